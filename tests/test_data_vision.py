"data.vision against real data where it is at hand, and against small fakes in the official layouts."
import os,pickle,random,shutil,subprocess,sys,zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

import gnosis_nb.data.vision as vision
from gnosis_nb.data.folder import DataNotFound, image_folder, sample_statistics
from gnosis_nb.data.images import ImageData, ImageFiles, image_statistics, normalizer
from gnosis_nb.data.split import hold_out, shuffle_targets, split_dataset, stratified_subset
from gnosis_nb.data.zoo import STATISTICS, cifar10, cifar100, digits, mnist
from fakes import fake_cifar, fake_mnist

HERE = Path(__file__).parent
DATA = HERE.parent/'data'/'datasets'
real_cifar10 = pytest.mark.skipif(not (DATA/'cifar10'/'train').is_dir(), reason=f'no CIFAR-10 images in {DATA}/cifar10')
real_mnist = pytest.mark.skipif(not (DATA/'MNIST'/'raw'/'train-images-idx3-ubyte').exists(), reason=f'no MNIST in {DATA}/MNIST')


# Splits and label shuffling

def test_split_and_shuffle_equal_the_recorded_ones():
    reference, seed = np.load(HERE/'data'/'reference.npz'), 20211206
    half0, half1 = split_dataset(1000, .5, seed)
    assert np.array_equal(half0, reference['split/half0']) and np.array_equal(half1, reference['split/half1'])
    for kind in (list, torch.tensor, np.array):
        assert np.array_equal(shuffle_targets(kind(range(1000)), .3, seed), reference['shuffle_targets/ratio0.3'])


def test_no_global_generator_is_touched():
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    data = digits(size=8).train
    split_dataset(100, .3, 1), shuffle_targets(data.targets, .5, 1), hold_out(data), stratified_subset(data.targets, 50)
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])


@pytest.mark.parametrize('n', [1, 7, 200, 1797])
@pytest.mark.parametrize('ratio', [0., .1, .3, 1/3, .5, .9, 1.])
def test_parts_are_a_partition(n, ratio):
    a, b = split_dataset(n, ratio, 3)
    assert sorted(a.tolist() + b.tolist()) == list(range(n))
    assert len(a) == int(n*ratio + 1e-6)
    shuffled = shuffle_targets(torch.arange(n), ratio, 3)
    assert shuffled.sort().values.tolist() == list(range(n))
    assert (shuffled != torch.arange(n)).sum() <= len(a)


def test_shuffling_copies():
    y = torch.arange(10)
    shuffle_targets(y, 1.)
    assert y.tolist() == list(range(10))


def test_hold_out_is_disjoint_and_a_fifth():
    data = digits(size=8).train
    ids = ImageData(torch.zeros(len(data), 1, 1, 1, dtype=torch.uint8), torch.arange(len(data)), list(range(len(data))))
    train, val = hold_out(ids)
    assert (len(train), len(val)) == (1077, 270)
    assert not set(train.targets.tolist()) & set(val.targets.tolist())


@pytest.mark.parametrize('n', [0, 1, 10, 123, 1000])
def test_stratified_subset_keeps_shares(n):
    y = torch.randint(0, 10, (1000,), generator=torch.Generator().manual_seed(0))
    picked = stratified_subset(y, n, 5)
    assert len(set(picked.tolist())) == n
    assert (y[picked].bincount(minlength=10) - y.bincount(minlength=10)*n/1000).abs().max() < 1


def test_unlabelled_rows_stay_unlabelled():
    y = torch.tensor([-100]*30 + [0]*40 + [1]*30)
    shuffled = shuffle_targets(y, 1., 3)
    assert (shuffled[:30] == -100).all() and shuffled[30:].bincount().tolist() == [40, 30] and not torch.equal(shuffled, y)
    assert y[stratified_subset(y, 10)].unique(return_counts=True)[1].tolist() == [3, 4, 3]
    data = ImageData(torch.zeros(100, 1, 1, 1, dtype=torch.uint8), y, ['a', 'b'])
    assert len(data.labelled) == 70 and data.labelled.targets.min() == 0
    with pytest.raises(ValueError, match=r'targets range over \[-1, 1\]'): ImageData(data.images, y.where(y != -100, -1), ['a', 'b'])


def test_fingerprint_is_that_of_pixels_then_labels():
    data = digits(size=8).train
    assert data.fingerprint() == zlib.crc32(data.targets.numpy(), zlib.crc32(data.images.numpy()))
    turned = ImageData(data.images.transpose(2, 3), data.targets, data.classes)  # not contiguous
    assert turned.fingerprint() == ImageData(turned.images.contiguous(), data.targets, data.classes).fingerprint() != data.fingerprint()


# Fakes in the official layouts

@pytest.mark.parametrize('source,cls,first,count', [(cifar10, datasets.CIFAR10, 'data_batch_1', 30), (cifar100, datasets.CIFAR100, 'train', 6)])
def test_cifar_layout(tmp_path, monkeypatch, source, cls, first, count):
    pixels = fake_cifar(tmp_path, monkeypatch, cls)
    sets = source(tmp_path, download=False)
    assert (len(sets.train), len(sets.test), sets.train.shape) == (count, 6, (3, 32, 32))
    assert np.array_equal(sets.train.images[:6].flatten(1), pixels[first])  # rows are three planes, red first
    assert sets.train.targets[:6].tolist() == [0, 1, 2, 3, 4, 5]
    assert sets.train.classes[:2] == ['c0', 'c1'] and sets.train.images.is_contiguous()
    for elsewhere in (tmp_path/'data_set_name', tmp_path/cls.base_folder):  # beside the root, and the root itself
        assert torch.equal(source(elsewhere, download=False).test.images, sets.test.images)


def test_cifar_checksums_are_verified(tmp_path, monkeypatch):
    fake_cifar(tmp_path, monkeypatch, datasets.CIFAR10)
    with open(tmp_path/'cifar-10-batches-py'/'test_batch', 'ab') as f: f.write(b'x')
    with pytest.raises(DataNotFound, match='CIFAR-10 is missing or damaged'): cifar10(tmp_path, download=False)


@pytest.mark.parametrize('raw,root', [('mnist/MNIST/raw', 'mnist'), ('mnist/raw', 'mnist'), ('MNIST/raw', 'mnist'), ('MNIST/raw', 'MNIST'), ('MNIST/raw', '.')])
def test_mnist_layouts(tmp_path, raw, root):
    images = fake_mnist(tmp_path/raw)
    sets = mnist(tmp_path/root, num_data=None)
    assert np.array_equal(sets.train.images[:, 0], images['train']) and np.array_equal(sets.test.images[:, 0], images['t10k'])
    few = mnist(tmp_path/root, num_data=20)
    assert few.train.targets.bincount().tolist() == [2]*10 and len(few.test) == 60
    assert not torch.equal(few.train.images, mnist(tmp_path/root, num_data=20, seed=1).train.images)


def test_damaged_mnist(tmp_path):
    fake_mnist(tmp_path/'MNIST'/'raw')
    file = tmp_path/'MNIST'/'raw'/'train-images-idx3-ubyte'
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(DataNotFound, match='MNIST is missing or damaged'): mnist(tmp_path, download=False)


@pytest.mark.parametrize('source,what', [(cifar10, 'CIFAR-10'), (cifar100, 'CIFAR-100'), (mnist, 'MNIST')])
def test_missing_data_is_one_sentence(tmp_path, source, what):
    with pytest.raises(FileNotFoundError) as absent: source(tmp_path/'x', download=False)
    with pytest.raises(DataNotFound) as offline: source(tmp_path/'x', download=True)
    for message in (str(absent.value), str(offline.value)):
        assert message.startswith(f'{what} is missing') and str(tmp_path/'x') in message and 'http' in message and '\n' not in message
    assert 'download=False' in str(absent.value) and 'no network here' in str(offline.value)


def test_a_failed_download_does_not_hide_data_put_beside_it(tmp_path):
    with pytest.raises(DataNotFound): mnist(tmp_path/'mnist')
    fake_mnist(tmp_path/'MNIST'/'raw')
    assert len(mnist(tmp_path/'mnist', num_data=None).train) == 60


# Image folders

@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for split in ('train', 'test'):
        for c in ('cat', 'dog', 'eel'):
            d = tmp_path/split/c
            d.mkdir(parents=True)
            for i in range(50): Image.fromarray(rng.integers(0, 256, (8, 6, 3), dtype=np.uint8)).save(d/f'{i:02}.png')
    return tmp_path


def pixels(file): return torch.from_numpy(np.array(Image.open(file).convert('RGB'))).permute(2, 0, 1)

def only(folder): return sorted(f.name for f in (folder/'.gnosis_nb_cache').iterdir())


def test_image_folder_reads_every_image_in_order(folder):
    sets = image_folder(folder)
    files = sorted((folder/'train').rglob('*.png'))
    assert torch.equal(sets.train.images, torch.stack([pixels(f) for f in files]))
    assert sets.train.targets.tolist() == [i for i in range(3) for _ in range(50)]
    assert (sets.train.classes, sets.train.shape) == (['cat', 'dog', 'eel'], (3, 8, 6))


def test_cache_is_used_and_renewed(folder, monkeypatch):
    first, kept = image_folder(folder), only(folder)
    monkeypatch.setattr(vision, '_decode', None)
    assert torch.equal(image_folder(folder).train.images, first.train.images)
    monkeypatch.undo()
    changed = folder/'train'/'cat'/'07.png'
    Image.new('RGB', (6, 8), (1, 2, 3)).save(changed)
    assert image_folder(folder).train.images[7, :, 0, 0].tolist() == [1, 2, 3]
    assert len(only(folder)) == 2 and len(set(only(folder)) & set(kept)) == 1  # the old array is gone, that of test stays


def test_damaged_cache_is_ignored(folder):
    first = image_folder(folder)
    for f in (folder/'.gnosis_nb_cache').iterdir(): f.write_bytes(f.read_bytes()[:300])
    assert torch.equal(image_folder(folder).train.images, first.train.images)


def test_folder_that_cannot_be_written_to(folder):
    (folder/'.gnosis_nb_cache').write_text('in the way')
    assert len(image_folder(folder).train) == 150
    assert (folder/'.gnosis_nb_cache').read_text() == 'in the way'


def test_modes_and_sizes(folder):
    Image.new('L', (12, 8), 77).save(folder/'train'/'cat'/'00.png')
    with pytest.raises(ValueError, match=r'train/cat/01.png has 8×6 pixels, others have 8×12'): image_folder(folder)
    sets = image_folder(folder, size=4)
    assert sets.train.shape == sets.test.shape == (3, 4, 4)
    assert (sets.train.images[0] == 77).all()
    wide = np.zeros((4, 12, 3), np.uint8)
    wide[:, 4:8] = 200
    Image.fromarray(wide).save(folder/'train'/'cat'/'00.png')
    assert (image_folder(folder, size=4).train.images[0] == 200).all()  # the central square


def test_test_images_of_another_size_than_training_images(folder):
    for f in (folder/'test').rglob('*.png'): Image.new('RGB', (9, 9)).save(f)
    with pytest.raises(ValueError, match='test/cat/00.png has 9×9 pixels, others have 8×6'): image_folder(folder)


def test_first_corrupt_image_is_named(folder):
    for name in ('dog/31.png', 'eel/02.png'): (folder/'train'/name).write_bytes(b'GIF?')
    with pytest.raises(ValueError, match='cannot decode image .*train/dog/31.png'): image_folder(folder)
    data = (folder/'train'/'dog'/'30.png').read_bytes()
    (folder/'train'/'dog'/'30.png').write_bytes(data[:len(data)//2])
    with pytest.raises(ValueError, match='cannot decode image .*train/dog/30.png'): image_folder(folder)
    assert not (folder/'.gnosis_nb_cache').exists()


def test_classes_must_agree(folder):
    (folder/'test'/'eel').rename(folder/'test'/'fly')
    with pytest.raises(ValueError, match='different classes: eel, fly in only one of them'): image_folder(folder)
    (folder/'train'/'gnu').mkdir()
    with pytest.raises(ValueError, match='train/gnu holds no image'): image_folder(folder)


def test_incomplete_folders(tmp_path):
    with pytest.raises(DataNotFound, match='looked for train and test'): image_folder(tmp_path)
    for s in ('train', 'val'): (tmp_path/s).mkdir()
    with pytest.raises(DataNotFound, match='train holds no images'): image_folder(tmp_path)


# Images that stay on disk

def test_streamed_folder_gives_the_pixels_that_memory_has(folder):
    ours, theirs = image_folder(folder, size=4, memory_limit=0), image_folder(folder, size=4)
    for a, b in ((ours.train, theirs.train), (ours.test, theirs.test)):
        assert isinstance(a, ImageFiles) and (a.shape, a.classes, a.vocab, a.name, a.num_classes, len(a)) == (b.shape, b.classes, b.vocab, b.name, 3, 150)
        assert torch.equal(torch.stack([a.read(i) for i in range(150)]), b.images) and torch.equal(a.head(7), b.head(7))
        assert torch.equal(a.targets, b.targets) and a.head(1).dtype == torch.uint8
    assert ours.statistics == theirs.statistics
    for a, b in zip(hold_out(ours.train, .2, 3), hold_out(theirs.train, .2, 3)):
        assert a.name == b.name and torch.equal(a.head(200), b.images) and torch.equal(a.targets, b.targets)
    mask = ours.train.targets == 1
    assert torch.equal(ours.train.subset(mask).head(50), theirs.train.subset(mask).images)
    assert len(ours.train.new_empty()) == len(ours.train.new_empty().head(3)) == 0
    assert len(pickle.loads(pickle.dumps(ours.train)).files) == 150


def test_memory_limit_is_in_gigabytes_of_both_splits(folder):
    exact = 300*3*8*6/1e9
    assert isinstance(image_folder(folder, memory_limit=exact).train, ImageData)
    with pytest.raises(ValueError, match='train/cat/00.png has 8×6 pixels .* not a square: pass size='): image_folder(folder, memory_limit=exact*.999)
    assert isinstance(image_folder(folder, size=6, memory_limit=exact).train, ImageData)  # smaller, once scaled
    for bad in (-1, float('nan')):
        with pytest.raises(ValueError, match='memory_limit is'): image_folder(folder, memory_limit=bad)


def test_streaming_needs_one_size(folder):
    for f in folder.glob('*/*/*.png'): Image.open(f).resize((6, 6)).save(f)
    sets = image_folder(folder, memory_limit=0)
    assert sets.train.shape == (3, 6, 6) and torch.equal(sets.train.head(3), image_folder(folder).train.images[:3])
    Image.new('RGB', (7, 6)).save(folder/'test'/'dog'/'11.png')
    with pytest.raises(ValueError, match='test/dog/11.png has 6×7 pixels, others have 6×6'): image_folder(folder, memory_limit=0)
    (folder/'test'/'dog'/'11.png').write_bytes(b'GIF?')
    with pytest.raises(ValueError, match='cannot decode image .*test/dog/11.png'): image_folder(folder, memory_limit=0)
    with pytest.raises(ValueError, match='cannot decode image .*test/dog/11.png'): image_folder(folder, size=6, memory_limit=0).test.read(61)


def test_scaling_then_cutting(tmp_path):
    Image.fromarray(np.tile(np.arange(0, 240, 2, np.uint8)[None, :, None], (60, 1, 3))).save(tmp_path/'ramp.png')  # 120 × 60, rising to the right
    data = ImageFiles([tmp_path/'ramp.png'], torch.tensor([-100]), ['a'], size=20, resize=30)
    middle = data.read(0).float().mean((0, 1))
    assert abs(middle.mean() - 119) < 1.5 and abs(middle[-1] - middle[0] - 19*4) < 4  # at half the scale, 20 columns span 40 of the 120
    assert data.read(0, lambda im: torch.full((3, 20, 20), im.width, dtype=torch.uint8)).unique().tolist() == [120]
    fig = data.show()
    assert fig.axes[0].get_title() == ''
    with pytest.raises(ValueError, match='resize is 10: expected at least size, which is 20'): ImageFiles([], torch.zeros(0, dtype=torch.long), [], 20, 10)
    with pytest.raises(ValueError, match='targets has 1 labels for 2 images'): ImageFiles(['a', 'b'], torch.tensor([0]), ['a'], 20)


def test_fingerprint_of_files(folder, tmp_path_factory):
    first = image_folder(folder, size=4, memory_limit=0).train
    elsewhere = tmp_path_factory.mktemp('copy')/'x'
    shutil.copytree(folder, elsewhere)
    assert image_folder(elsewhere, size=4, memory_limit=0).train.fingerprint() == first.fingerprint()
    relabelled = ImageFiles(first.files, first.targets.flip(0), first.classes, 4)
    assert len({first.fingerprint(), relabelled.fingerprint(), first.subset(range(149)).fingerprint(), first.subset([*range(1, 150), 0]).fingerprint()}) == 4
    before = first.fingerprint()
    Image.new('RGB', (6, 8)).save(folder/'train'/'dog'/'11.png')
    assert first.fingerprint() != before


def test_statistics_of_a_sample(folder):
    data = image_folder(folder, size=4, memory_limit=0).train
    some = sample_statistics(data, 20)
    assert some == sample_statistics(data, 20) != sample_statistics(data, 20, seed=1)
    assert np.abs(np.subtract(some['mean'], sample_statistics(data)['mean'])).max() < .05


def test_progress_is_reported_at_most_once_a_second(monkeypatch, capsys):
    clock = iter(np.arange(0, 100, .25))
    monkeypatch.setattr(vision.time, 'monotonic', lambda: next(clock))
    assert len(list(vision._progress([10]*40, 400, 'decoding'))) == 40
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 8 and lines[0] == 'decoding: 50 of 400'


# Real data

@real_cifar10
def test_cifar10_images():
    sets = image_folder(DATA/'cifar10')
    assert (len(sets.train), len(sets.test), sets.train.shape) == (50_000, 10_000, (3, 32, 32))
    assert sets.train.targets.bincount().tolist() == [5000]*10
    assert sets.train.classes == ['airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck']
    for k, tol in (('mean', 5e-4), ('std', 2.5e-3)):  # JPEG smooths: it keeps the mean and takes a little of the deviation
        assert np.abs(np.subtract(sets.statistics[k], STATISTICS['cifar10'][k])).max() < tol


@real_mnist
def test_mnist_images():
    sets = mnist(DATA/'mnist', download=False, num_data=None)
    assert (len(sets.train), len(sets.test), sets.train.shape) == (60_000, 10_000, (1, 28, 28))
    exact = image_statistics(sets.train.images)
    for k in exact: assert np.abs(np.subtract(exact[k], sets.statistics[k])).max() < 1e-5
    few = mnist(DATA/'mnist', download=False)
    assert len(few.train) == 200 and len(few.test) == 10_000
    assert (few.train.targets.bincount() - sets.train.targets.bincount()/300).abs().max() < 1


@real_mnist
def test_normalised_mnist_has_mean_0_and_deviation_1():
    sets = mnist(DATA/'mnist', download=False, num_data=None)
    shift, scale = normalizer('zscore', sets.statistics)
    z = (sets.train.images[:20_000].float()/255 - shift)/scale
    assert abs(z.mean().item()) < 1e-2 and abs(z.std().item() - 1) < 1e-2


def test_reading_cifar_makes_no_float_copy(tmp_path):
    "Reading 50,000 images takes their 154 MB, the parts they are joined from, and little more; floats would be 614 MB."
    script = '''
import hashlib,pickle,resource,sys
from pathlib import Path
import numpy as np
from torchvision import datasets
from gnosis_nb.data.zoo import cifar10
base, C = Path(sys.argv[1])/'cifar-10-batches-py', datasets.CIFAR10
base.mkdir()
def write(name, obj):
    (base/name).write_bytes(pickle.dumps(obj))
    return [name, hashlib.md5((base/name).read_bytes()).hexdigest()]
batch = lambda n: dict(data=np.zeros((10_000, 3072), np.uint8), labels=[0]*10_000)
C.train_list = [write(n, batch(n)) for n, _ in C.train_list]
C.test_list = [write(n, batch(n)) for n, _ in C.test_list]
C.meta = dict(C.meta, md5=write('batches.meta', dict(label_names=list('abcdefghij')))[1])
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024
before = peak()
assert len(cifar10(sys.argv[1], download=False).train) == 50_000
print(peak() - before)
'''
    out = subprocess.run([sys.executable, '-c', script, str(tmp_path)], capture_output=True, text=True, check=True,
                         env={**os.environ, 'OMP_NUM_THREADS': '1'})
    assert float(out.stdout) < 450
