"The zoo against small fakes in the official layouts, without a network; MNIST itself where it is at hand."
import gzip
import hashlib
import inspect
import pickle
import random
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torchvision import datasets

import gnosis_nb.config
import gnosis_nb.data.zoo as zoo
import processes
from fakes import (fake_cifar, fake_cifar102, fake_emnist, fake_imagenet_archives, fake_mnist, fake_svhn,
                   fake_tiny_imagenet, md5, save_jpeg)
from gnosis_nb.data.folder import DataNotFound
from gnosis_nb.data.images import ImageData, ImageFiles, image_statistics, normalizer
from gnosis_nb.data.zoo import (STATISTICS, VISION_SOURCES, cifar10, cifar100, cifar100_svhn, cifar102,
                                emnist, fashion_mnist, imagenet, load_vision, mnist, svhn, tiny_imagenet)

CONFIG = Path(gnosis_nb.config.__file__).parent/'dataset'
DATA = Path(__file__).parent.parent/'data'/'datasets'
real_mnist = pytest.mark.skipif(not (DATA/'MNIST'/'raw').is_dir(), reason=f'no MNIST in {DATA}/MNIST')


def sentence(source, *args, **kwargs):
    "The message with which `source` refuses: one line."
    with pytest.raises(DataNotFound) as e: source(*args, **kwargs)
    assert '\n' not in str(e.value)
    return str(e.value)


def test_scikit_learn_is_imported_late_and_leaves_no_trace():
    "`digits` imports it, which draws from Python's global generator; it is as seeded afterwards."
    script = '''
import random, sys
import numpy as np, torch
from gnosis_nb.data.zoo import digits
assert not {'sklearn', 'scipy', 'torchtext', 'matplotlib'} & set(sys.modules)
for seed in random.seed, np.random.seed, torch.manual_seed: seed(0)
before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
print(digits(size=8).train.fingerprint())
assert before == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
'''
    out = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True)
    assert (out.returncode, out.stdout) == (0, f'{zoo.digits(size=8).train.fingerprint()}\n'), out.stderr


# An older torchvision prints why MNIST cannot be fetched; its error does not say so.
PRINTED = [] if 'Tried' in inspect.getsource(datasets.MNIST.download) else [mnist, fashion_mnist]

@pytest.mark.parametrize('source, what, where', [
    (cifar10, 'CIFAR-10', 'cs.toronto.edu'), (cifar100, 'CIFAR-100', 'cs.toronto.edu'),
    (mnist, 'MNIST', 'http'), (fashion_mnist, 'Fashion-MNIST', 'http'),
    (svhn, 'SVHN', 'ufldl.stanford.edu'), (cifar102, 'CIFAR-10', 'cs.toronto.edu'),
    (emnist, 'EMNIST', 'nist.gov'), (cifar100_svhn, 'CIFAR-100', 'cs.toronto.edu'),
    (tiny_imagenet, 'Tiny ImageNet', 'cs231n.stanford.edu'),
    (imagenet, 'ImageNet', 'https://image-net.org/download')])
@pytest.mark.parametrize('download, why', [(False, 'download=False'), (True, 'no network here')])
def test_missing_data_is_one_sentence(tmp_path, monkeypatch, source, what, where, download, why):
    monkeypatch.setattr(zoo, '_OF_DEBIAN', tmp_path)
    message = sentence(source, tmp_path/'x', download)
    assert message.startswith(f'{what} is missing') and str(tmp_path/'x') in message and where in message
    assert why in message or source in [imagenet, *PRINTED]


# CIFAR

@pytest.mark.parametrize('source, cls, first, count', [
    (cifar10, datasets.CIFAR10, 'data_batch_1', 30), (cifar100, datasets.CIFAR100, 'train', 6)])
def test_cifar_layout(tmp_path, monkeypatch, source, cls, first, count):
    pixels = fake_cifar(tmp_path, monkeypatch, cls)
    sets = source(tmp_path, download=False)
    assert (len(sets.train), len(sets.test), sets.train.shape) == (count, 6, (3, 32, 32))
    assert np.array_equal(sets.train.images[:6].flatten(1), pixels[first])  # rows are three planes, red first
    assert sets.train.targets[:6].tolist() == [0, 1, 2, 3, 4, 5]
    assert sets.train.classes[:2] == ['c0', 'c1'] and sets.train.images.is_contiguous()
    for elsewhere in (tmp_path/'data_set_name', tmp_path/cls.base_folder):  # beside the root, the root itself
        assert torch.equal(source(elsewhere, download=False).test.images, sets.test.images)


def save_pngs(folder, classes, size=32):
    "One training and one test image of each class."
    for split in ('train', 'test'):
        for k in range(classes):
            path = folder/split/f'c{k:03}'
            path.mkdir(parents=True)
            Image.new('RGB', (size, size), (k, 2*k, 100)).save(path/'0.png')

def test_cifar_as_png_files(tmp_path):
    save_pngs(tmp_path, 100)
    sets = cifar100(tmp_path, download=False)
    assert sets.train.images[:, :, 0, 0].tolist() == [[k, 2*k, 100] for k in range(100)]
    assert sets.test.targets.tolist() == [*range(100)] and sets.train.name == 'cifar100/train'
    assert sets.statistics == STATISTICS['cifar100'] and sets.train.shape == (3, 32, 32)
    assert sets.train.describe().startswith('100 of 50,000 images (files in')

@pytest.mark.parametrize('classes, size', [(10, 32), (100, 16)])
def test_other_png_files_are_not_cifar100(tmp_path, classes, size):
    save_pngs(tmp_path, classes, size)
    with pytest.raises(ValueError, match=r'expected 100 and \[3, 32, 32\], as CIFAR-100 has'):
        cifar100(tmp_path, download=False)

def test_cifar_checksums_are_verified(tmp_path, monkeypatch):
    fake_cifar(tmp_path, monkeypatch, datasets.CIFAR10)
    with open(tmp_path/'cifar-10-batches-py'/'test_batch', 'ab') as f: f.write(b'x')
    assert sentence(cifar10, tmp_path, download=False).startswith('CIFAR-10 is missing or damaged')


def write_whole_cifar(folder):
    "Fifty thousand black images in CIFAR's layout; the torchvision attributes that go with them."
    folder.mkdir()
    def write(name, obj):
        (folder/name).write_bytes(pickle.dumps(obj))
        return [name, hashlib.md5((folder/name).read_bytes()).hexdigest()]
    batch, cls = dict(data=np.zeros((10_000, 3072), np.uint8), labels=[0]*10_000), datasets.CIFAR10
    meta = write('batches.meta', dict(label_names=list('abcdefghij')))[1]
    return dict(train_list=[write(n, batch) for n, _ in cls.train_list],
                test_list=[write(n, batch) for n, _ in cls.test_list], meta={**cls.meta, 'md5': meta})


def test_reading_cifar_makes_no_float_copy(tmp_path):
    "Reading 50,000 images takes their 154 MB, the parts they are joined from, and little more."
    attributes = write_whole_cifar(tmp_path/'cifar-10-batches-py')
    script = f'''
import resource
from torchvision.datasets import CIFAR10
from gnosis_nb.data.zoo import cifar10
for name, value in {attributes}.items(): setattr(CIFAR10, name, value)
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024
before = peak()
assert len(cifar10({str(tmp_path)!r}, download=False).train) == 50_000
print(peak() - before)
'''
    out = processes.run(script)
    assert float(out.stdout) < 450


# MNIST

@pytest.mark.parametrize('raw, root', [
    ('mnist/MNIST/raw', 'mnist'), ('mnist/raw', 'mnist'), ('MNIST/raw', 'mnist'), ('MNIST/raw', 'MNIST'),
    ('MNIST/raw', '.')])
def test_mnist_layouts(tmp_path, raw, root):
    images = fake_mnist(tmp_path/raw)
    sets = mnist(tmp_path/root, num_data=None)
    assert np.array_equal(sets.train.images[:, 0], images['train'])
    assert np.array_equal(sets.test.images[:, 0], images['t10k'])
    few = mnist(tmp_path/root, num_data=20)
    assert few.train.targets.bincount().tolist() == [2]*10 and len(few.test) == 60
    assert not torch.equal(few.train.images, mnist(tmp_path/root, num_data=20, seed=1).train.images)


def test_fashion_mnist_is_unpacked_from_where_debian_has_it(tmp_path, monkeypatch):
    images, packed = fake_mnist(tmp_path/'raw'), tmp_path/'packed'
    packed.mkdir()
    for file in (tmp_path/'raw').iterdir():
        (packed/f'{file.name}.gz').write_bytes(gzip.compress(file.read_bytes()))
    monkeypatch.setattr(zoo, '_OF_DEBIAN', packed)
    sets = fashion_mnist(tmp_path/'mine', download=False)
    assert torch.equal(sets.train.images[:, 0], torch.from_numpy(images['train']))
    assert sets.train.classes[9] == 'Ankle boot' and sets.train.name == 'fashion_mnist/train'
    assert not (tmp_path/'fashion_mnist').exists() and (tmp_path/'mine/FashionMNIST/raw').is_dir()

def test_damaged_mnist(tmp_path):
    fake_mnist(tmp_path/'MNIST'/'raw')
    file = tmp_path/'MNIST'/'raw'/'train-images-idx3-ubyte'
    file.write_bytes(file.read_bytes()[:1000])
    assert sentence(mnist, tmp_path, download=False).startswith('MNIST is missing or damaged')


def test_a_failed_download_does_not_hide_data_put_beside_it(tmp_path):
    with pytest.raises(DataNotFound): mnist(tmp_path/'mnist')
    fake_mnist(tmp_path/'MNIST'/'raw')
    assert len(mnist(tmp_path/'mnist', num_data=None).train) == 60


@real_mnist
def test_mnist_itself():
    sets = mnist(DATA/'mnist', download=False, num_data=None)
    assert (len(sets.train), len(sets.test), sets.train.shape) == (60_000, 10_000, (1, 28, 28))
    exact = image_statistics(sets.train.images)
    for k in exact: assert np.abs(np.subtract(exact[k], sets.statistics[k])).max() < 1e-5
    shift, scale = normalizer('zscore', sets.statistics)
    z = (sets.train.images[:20_000].float()/255 - shift)/scale
    assert abs(z.mean().item()) < 1e-2 and abs(z.std().item() - 1) < 1e-2


@real_mnist
def test_two_hundred_of_mnist_are_stratified():
    few, every = (mnist(DATA/'mnist', download=False, num_data=n) for n in (200, None))
    assert len(few.train) == 200 and len(few.test) == 10_000
    assert (few.train.targets.bincount() - every.train.targets.bincount()/300).abs().max() < 1


# SVHN, alone and among CIFAR-100

def test_svhn(tmp_path, monkeypatch):
    pixels = fake_svhn(tmp_path/'svhn', monkeypatch)
    sets = svhn(tmp_path/'svhn')
    for data, split in ((sets.train, 'train'), (sets.test, 'test')):
        assert np.array_equal(data.images, pixels[split].transpose(3, 2, 0, 1))
        assert data.images.is_contiguous()
        assert data.targets.tolist() == [*range(1, 10), 0]*2  # the files call the digit 0 "10"
    assert (sets.train.classes, sets.statistics) == (list('0123456789'), STATISTICS['svhn'])
    with open(tmp_path/'svhn'/'test_32x32.mat', 'ab') as f: f.write(b'x')
    assert 'SVHN is missing or damaged: looked for test' in sentence(svhn, tmp_path/'svhn', download=False)


@pytest.mark.parametrize('cifar,numbers', [('both', 'both'), ('cifar100', 'svhn'), ('.', 'both')])
def test_cifar100_svhn(tmp_path, monkeypatch, cifar, numbers):
    fake_cifar(tmp_path/cifar, monkeypatch, datasets.CIFAR100)
    house = fake_svhn(tmp_path/numbers, monkeypatch)['train'].transpose(3, 2, 0, 1)
    sets, plain = cifar100_svhn(tmp_path/'both', False, num_svhn_data=8), cifar100(tmp_path/cifar, False)
    assert torch.equal(sets.train.images[:6], plain.train.images)
    assert torch.equal(sets.train.targets[:6], plain.train.targets)
    assert torch.equal(sets.test.images, plain.test.images)
    assert (sets.train.classes, sets.statistics) == (plain.train.classes, plain.statistics)
    assert sets.train.targets[6:].tolist() == [-100]*8 and len(sets.train.labelled) == 6
    chosen = [next(i for i, h in enumerate(house) if np.array_equal(h, im)) for im in sets.train.images[6:]]
    assert chosen == sorted(set(chosen)) and chosen != list(range(8))
    assert not torch.equal(cifar100_svhn(tmp_path/'both', False, 8, seed=1).train.images, sets.train.images)
    assert len(cifar100_svhn(tmp_path/'both', False, 0).train) == 6
    with pytest.raises(ValueError, match='num_svhn_data=10000: expected 0 to 20'):
        cifar100_svhn(tmp_path/'both', False)


def test_cifar100_without_svhn(tmp_path, monkeypatch):
    fake_cifar(tmp_path/'cifar100', monkeypatch, datasets.CIFAR100)
    message = sentence(cifar100_svhn, tmp_path/'both', False)
    assert message.startswith('SVHN is missing') and f'{tmp_path}/both, {tmp_path}/svhn' in message


# CIFAR-10.2

@pytest.fixture
def cifars(tmp_path, monkeypatch):
    monkeypatch.setattr(zoo, 'CIFAR102_SIZE', 20)
    fake_cifar(tmp_path/'cifar10', monkeypatch, datasets.CIFAR10)
    return tmp_path


@pytest.mark.parametrize('fraction,n', [(1., 30), (.5, 15), (.29, 8), (0, 0)])
def test_cifar102_follows_the_first_images_of_cifar10(cifars, fraction, n):
    x, y = fake_cifar102(cifars/'cifar102')
    sets, plain = cifar102(cifars/'cifar102', False, fraction), cifar10(cifars/'cifar10', False)
    less = '' if fraction == 1 else ' of 50'
    assert sets.train.describe().startswith(f'{n + 20}{less} images')
    assert sets.statistics == plain.statistics
    assert torch.equal(sets.train.images[:n], plain.train.images[:n])
    assert torch.equal(sets.train.targets[:n], plain.train.targets[:n])
    assert np.array_equal(sets.train.images[n:], x.transpose(0, 3, 1, 2))
    assert sets.train.targets[n:].tolist() == y.tolist()
    assert sets.train.classes == plain.train.classes  # label k is the same class in both files
    assert torch.equal(sets.test.images, plain.test.images)


@pytest.mark.parametrize('changed, problem', [
    (dict(images=np.zeros((20, 3, 32, 32), np.uint8)), 'expected uint8 (20, 32, 32, 3)'),
    (dict(images=np.zeros((20, 32, 32, 3), np.float32)), 'images are float32'),
    (dict(labels=np.full(20, 10)), 'labels=10…10: expected 0…9'),
    (dict(labels=np.zeros(19, np.int64)), 'labels are int64 (19,)'),
    (dict(images=np.array([None]*20, object)), 'cannot be read')])
def test_damaged_cifar102(cifars, changed, problem):
    fake_cifar102(cifars/'cifar102', **changed)
    message = sentence(cifar102, cifars/'cifar102', False)
    assert message.startswith('CIFAR-10.2 is missing or damaged: looked for cifar102_train.npz')
    assert problem in message


def test_cifar102_as_a_pickle_is_not_read(cifars):
    (cifars/'cifar102').mkdir()
    class Bomb:
        def __reduce__(self): return (cifars/'exploded').touch, ()
    np.save(cifars/'cifar102'/'cifar102_train.npy', np.array(Bomb(), object), allow_pickle=True)
    assert 'cifar102_train.npy is there, but it is a pickle' in sentence(cifar102, cifars/'cifar102', False)
    fake_cifar102(cifars/'cifar102', label_names=np.array(Bomb(), object))
    assert len(cifar102(cifars/'cifar102', False).train) == 50
    fake_cifar102(cifars/'cifar102', labels=np.array(Bomb(), object))
    assert 'cannot be read' in sentence(cifar102, cifars/'cifar102', False)
    assert not (cifars/'exploded').exists()


def test_cifar102_is_fetched_when_absent_or_damaged(cifars, monkeypatch):
    fake_cifar102(cifars/'server')
    def fetch(url, root, filename):
        Path(root).mkdir(exist_ok=True)
        shutil.copy(cifars/'server'/url.rsplit('/', 1)[1], Path(root)/filename)
    monkeypatch.setattr(zoo, 'download_url', fetch)
    file = cifars/'cifar102'/'cifar102_train.npz'
    assert len(cifar102(cifars/'cifar102').train) == 50
    assert [f.name for f in file.parent.iterdir()] == [file.name]
    file.write_bytes(file.read_bytes()[:1000])
    assert len(cifar102(cifars/'cifar102').train) == 50
    def interrupted(url, root, filename):
        (Path(root)/filename).write_bytes(b'half')
        raise OSError('connection lost')
    monkeypatch.setattr(zoo, 'download_url', interrupted)
    file.unlink()
    assert 'the download failed (connection lost)' in sentence(cifar102, cifars/'cifar102')
    assert not file.exists()


# EMNIST

@pytest.mark.parametrize('raw', ['emnist/EMNIST/raw', 'emnist/raw', 'EMNIST/raw'])
def test_emnist(tmp_path, raw):
    images = fake_emnist(tmp_path/raw)
    sets = emnist(tmp_path/'emnist', False)
    for data, part in ((sets.train, 'train'), (sets.test, 'test')):
        assert np.array_equal(data.images[:, 0], images[part].transpose(0, 2, 1))
        assert data.images.is_contiguous()
        assert 0 <= data.targets.min() and data.targets.max() <= 9 and len(data.targets.unique()) > 5
    assert sets.statistics == image_statistics(sets.train.images)
    assert sets.train.classes == list('0123456789')


def test_emnist_shares_are_nested_and_labels_repeat(tmp_path):
    fake_emnist(tmp_path/'raw', 400)
    state = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    all_, half, quarter = (emnist(tmp_path, fraction=f).train for f in (1., .5, .25))
    row = {im.numpy().tobytes(): i for i, im in enumerate(all_.images)}
    ids = [[row[im.numpy().tobytes()] for im in part.images] for part in (half, quarter)]
    assert half.describe() == '200 of 400 images (fraction)'
    assert len(quarter) == 100 and set(ids[1]) < set(ids[0])
    assert ids[0] == sorted(ids[0])
    for part, idx in zip((half, quarter), ids):
        assert torch.equal(part.targets, all_.targets[idx])  # an image keeps its label
    other = emnist(tmp_path, seed=1, fraction=.5).train
    assert not torch.equal(other.images, half.images)
    assert all_.targets.bincount(minlength=10).min() > 20
    assert torch.equal(torch.get_rng_state(), state[0])
    assert np.random.get_state()[1].tolist() == state[1] and random.getstate() == state[2]
    assert emnist(tmp_path, fraction=.5).statistics == emnist(tmp_path).statistics  # those of the whole


def test_emnist_refuses(tmp_path):
    fake_emnist(tmp_path/'raw')
    for bad in (dict(split='x'), dict(fraction=0), dict(fraction=1.5)):
        (key, value), = bad.items()
        with pytest.raises(ValueError, match=f'{key}={value!r}: expected'): emnist(tmp_path, **bad)
    assert 'emnist-letters-train-images-idx3-ubyte' in sentence(emnist, tmp_path, False, split='letters')
    file = tmp_path/'raw'/'emnist-byclass-test-images-idx3-ubyte'
    file.write_bytes(file.read_bytes()[:500])
    assert sentence(emnist, tmp_path, False).startswith('EMNIST is missing or damaged')


# Tiny ImageNet

@pytest.fixture
def tiny(tmp_path, monkeypatch):
    folder = tmp_path/'tiny-imagenet-200'
    monkeypatch.setattr(zoo, 'TINY_IMAGENET_COUNTS', fake_tiny_imagenet(folder))
    return folder


def class_of(images): return (images[:, 0, 0, 0].int()//40 - 1).tolist()


def test_tiny_imagenet(tiny):
    sets = tiny_imagenet(tiny.parent, False)
    assert isinstance(sets.train, ImageData) and sets.train.shape == (3, 64, 64)
    assert sets.statistics == STATISTICS['tiny_imagenet']
    assert sets.train.classes == sets.test.classes == ['crane (n01)', 'goldfish', 'crane (n03)']
    for data in (sets.train, sets.test):
        assert data.targets.tolist() == class_of(data.images) == [0, 0, 1, 1, 2, 2]
    assert len(list((tiny/'.gnosis_nb_cache').iterdir())) == 2
    streamed = tiny_imagenet(tiny.parent, False, memory_limit=0)
    assert isinstance(streamed.train, ImageFiles) and torch.equal(streamed.train.head(6), sets.train.images)
    assert streamed.train.name == sets.train.name == 'tiny-imagenet-200/train'
    assert tiny_imagenet(tiny, False, size=32).test.shape == (3, 32, 32)  # the folder itself as root
    assert len(tiny_imagenet(tiny.parent/'tiny_imagenet', False).train) == 6       # beside it


@pytest.mark.parametrize('below', ['', 'images'])
@pytest.mark.parametrize('list_left', [True, False])
def test_tiny_imagenet_with_sorted_validation_images(tiny, below, list_left):
    before = tiny_imagenet(tiny.parent, False, memory_limit=0).test
    pixels, val = before.head(6), tiny/'val'
    for line in (val/'val_annotations.txt').read_text().splitlines():
        name, w = line.split('\t')[:2]
        (val/w/below).mkdir(parents=True, exist_ok=True)
        (val/'images'/name).rename(val/w/below/name)
    if not list_left:
        (val/'val_annotations.txt').unlink()
        (val/'images').rmdir()
    after = tiny_imagenet(tiny.parent, False, memory_limit=0).test
    assert [f.name for f in after.files] == [f.name for f in before.files]
    assert torch.equal(after.targets, before.targets)
    assert torch.equal(after.head(6), pixels)


@pytest.mark.parametrize('file, problem', [
    ('train/n01/images/n01_1.JPEG', '5 train images'), ('val/images/val_3.JPEG', '5 val images'),
    ('words.txt', 'words.txt'), ('val/val_annotations.txt', 'val_annotations.txt')])
def test_incomplete_tiny_imagenet(tiny, file, problem):
    (tiny/file).unlink()
    message = sentence(tiny_imagenet, tiny.parent, False)
    assert message.startswith('Tiny ImageNet is missing or damaged') and problem in message
    assert str(tiny) in message


def test_tiny_imagenet_is_unpacked_from_a_verified_archive(tiny, monkeypatch):
    archive = tiny.parent/'tiny-imagenet-200.zip'
    with zipfile.ZipFile(archive, 'w') as z:
        for f in tiny.rglob('*'): z.write(f, f.relative_to(tiny.parent))
    shutil.rmtree(tiny)
    assert 'download=False' in sentence(tiny_imagenet, tiny.parent, False)
    assert not tiny.exists()  # the checksum is another
    monkeypatch.setattr(zoo, 'TINY_IMAGENET_MD5', md5(archive))
    assert len(tiny_imagenet(tiny.parent, False).train) == 6
    (tiny/'train'/'n02'/'images'/'n02_0.JPEG').unlink()
    assert len(tiny_imagenet(tiny.parent).train) == 6  # mended


# ImageNet

def test_imagenet_from_its_archives(tmp_path, monkeypatch):
    fake_imagenet_archives(tmp_path/'imagenet', monkeypatch)
    sets = imagenet(tmp_path/'imagenet', memory_limit=0)
    assert isinstance(sets.train, ImageFiles)
    assert (sets.train.shape, sets.train.resize) == ((3, 224, 224), 256)
    assert sets.train.classes == ['red disc', 'gold disc'] and sets.statistics == STATISTICS['imagenet']
    assert [f.name for f in sets.train.files] == ['n01_0.JPEG', 'n01_1.JPEG', 'n02_0.JPEG', 'n02_1.JPEG']
    assert [sets.train.read(i)[0, 0, 0].item() for i in range(4)] == [150, 150, 50, 50]
    assert sets.train.targets.tolist() == [0, 0, 1, 1]
    assert [sets.test.read(i)[0, 0, 0].item() for i in range(2)] == [150, 50]
    assert sets.test.targets.tolist() == [0, 1]
    whole = imagenet(tmp_path/'imagenet', size=32, resize=None)
    assert isinstance(whole.train, ImageData) and whole.train.shape == (3, 32, 32)


def test_damaged_imagenet(tmp_path, monkeypatch):
    root = tmp_path/'imagenet'
    fake_imagenet_archives(root, monkeypatch)
    with open(root/'ILSVRC2012_img_val.tar', 'ab') as f: f.write(b'x')
    assert 'ILSVRC2012_img_val.tar is not present' in sentence(imagenet, root)
    assert (root/'train'/'n01').is_dir() and not (root/'val').exists()
    (root/'train'/'n77.tar').touch()
    (root/'val').mkdir()
    assert 'n77.tar is not unpacked yet' in sentence(imagenet, root)


def test_imagenet_folders_alone(tmp_path):
    for split in ('train', 'val'):
        for k, w in enumerate(('n02', 'n01')):
            save_jpeg(tmp_path/split/w/f'{w}.JPEG', (100*k,)*3, (300, 400))
    sets = imagenet(tmp_path, memory_limit=0)
    assert sets.train.classes == ['n01', 'n02']
    assert [f.parent.name for f in sets.train.files] == ['n01', 'n02']
    streamed, whole = (imagenet(tmp_path, size=48, resize=64, memory_limit=o).test for o in (0, 4))
    assert torch.equal(streamed.head(2), whole.images)
    (tmp_path/'val'/'n01').rename(tmp_path/'val'/'n03')
    assert 'different classes: n01, n03 in only one' in sentence(imagenet, tmp_path)


# By name

@pytest.mark.parametrize('name', VISION_SOURCES)
def test_every_source_has_a_configuration_that_it_understands(name):
    config = yaml.safe_load((CONFIG/f'{name}.yaml').read_text())
    config = {k: v for k, v in config.get('dataset', config).items() if k not in ('defaults', 'name')}
    parameters = inspect.signature(VISION_SOURCES[name]).parameters
    defaults = {k: p.default for k, p in parameters.items() if k not in ('root', 'download')}
    assert set(config) == set(defaults)
    if name != 'digits': assert config == defaults


def test_default_root_is_data_datasets_name(tmp_path, monkeypatch):
    fake_mnist(tmp_path/'elsewhere'/'MNIST'/'raw')
    (tmp_path/'data'/'datasets').mkdir(parents=True)
    (tmp_path/'data'/'datasets'/'mnist').symlink_to(tmp_path/'elsewhere')
    monkeypatch.chdir(tmp_path)
    assert len(load_vision('mnist', num_data=None).train) == len(mnist(num_data=None).train) == 60
