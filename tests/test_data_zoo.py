"data.zoo against small fakes in the official layouts; no network, no real data."
import inspect,random,shutil,zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torchvision import datasets

import gnosis_nb.config
import gnosis_nb.data.zoo as zoo
from gnosis_nb.data.folder import DataNotFound
from gnosis_nb.data.images import ImageData, ImageFiles, image_statistics
from gnosis_nb.data.zoo import STATISTICS, cifar10, cifar100, mnist
from gnosis_nb.data.zoo import VISION_SOURCES, cifar100_svhn, cifar102, emnist, imagenet, load_vision, svhn, tiny_imagenet
from fakes import (fake_cifar, fake_cifar102, fake_emnist, fake_imagenet_archives, fake_mnist, fake_svhn, fake_tiny_imagenet, md5, save_jpeg)

CONFIG = Path(gnosis_nb.config.__file__).parent/'dataset'


def sentence(source, *args, **kwargs):
    "The message with which `source` refuses: one line."
    with pytest.raises(DataNotFound) as e: source(*args, **kwargs)
    assert '\n' not in str(e.value)
    return str(e.value)


@pytest.mark.parametrize('source,what,where', [(svhn, 'SVHN', 'ufldl.stanford.edu'), (cifar102, 'CIFAR-10', 'cs.toronto.edu'),
    (cifar100_svhn, 'CIFAR-100', 'cs.toronto.edu'), (emnist, 'EMNIST', 'nist.gov'), (tiny_imagenet, 'Tiny ImageNet', 'cs231n.stanford.edu'),
    (imagenet, 'ImageNet', 'https://image-net.org/download')])
def test_missing_data_is_one_sentence(tmp_path, source, what, where):
    absent, offline = (sentence(source, tmp_path/'x', download) for download in (False, True))
    for message in (absent, offline): assert message.startswith(f'{what} is missing') and str(tmp_path/'x') in message and where in message
    if source is not imagenet: assert 'download=False' in absent and 'no network here' in offline


# SVHN, alone and among CIFAR-100

def test_svhn(tmp_path, monkeypatch):
    pixels = fake_svhn(tmp_path/'svhn', monkeypatch)
    sets = svhn(tmp_path/'svhn')
    for data, split in ((sets.train, 'train'), (sets.test, 'test')):
        assert np.array_equal(data.images, pixels[split].transpose(3, 2, 0, 1)) and data.images.is_contiguous()
        assert data.targets.tolist() == [*range(1, 10), 0]*2  # the files call the digit 0 "10"
    assert (sets.train.classes, sets.statistics) == (list('0123456789'), STATISTICS['svhn'])
    with open(tmp_path/'svhn'/'test_32x32.mat', 'ab') as f: f.write(b'x')
    assert sentence(svhn, tmp_path/'svhn', download=False).startswith('SVHN is missing or damaged: looked for test_32x32.mat')


@pytest.mark.parametrize('cifar,numbers', [('both', 'both'), ('cifar100', 'svhn'), ('.', 'both')])
def test_cifar100_svhn(tmp_path, monkeypatch, cifar, numbers):
    fake_cifar(tmp_path/cifar, monkeypatch, datasets.CIFAR100)
    house = fake_svhn(tmp_path/numbers, monkeypatch)['train'].transpose(3, 2, 0, 1)
    sets, plain = cifar100_svhn(tmp_path/'both', False, num_svhn_data=8), cifar100(tmp_path/cifar, False)
    assert torch.equal(sets.train.images[:6], plain.train.images) and torch.equal(sets.train.targets[:6], plain.train.targets)
    assert torch.equal(sets.test.images, plain.test.images) and (sets.train.classes, sets.statistics) == (plain.train.classes, plain.statistics)
    assert sets.train.targets[6:].tolist() == [-100]*8 and len(sets.train.labelled) == 6
    chosen = [next(i for i, h in enumerate(house) if np.array_equal(h, im)) for im in sets.train.images[6:]]
    assert chosen == sorted(set(chosen)) and chosen != list(range(8))
    assert not torch.equal(cifar100_svhn(tmp_path/'both', False, 8, seed=1).train.images, sets.train.images)
    assert len(cifar100_svhn(tmp_path/'both', False, 0).train) == 6
    with pytest.raises(ValueError, match='num_svhn_data is 10000: expected 0 to 20'): cifar100_svhn(tmp_path/'both', False)


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
    assert len(sets.train) == n + 20 and sets.statistics == plain.statistics
    assert torch.equal(sets.train.images[:n], plain.train.images[:n]) and torch.equal(sets.train.targets[:n], plain.train.targets[:n])
    assert np.array_equal(sets.train.images[n:], x.transpose(0, 3, 1, 2)) and sets.train.targets[n:].tolist() == y.tolist()
    assert sets.train.classes == plain.train.classes  # label k is the same class in both files
    assert torch.equal(sets.test.images, plain.test.images)


@pytest.mark.parametrize('changed,problem', [(dict(images=np.zeros((20, 3, 32, 32), np.uint8)), 'expected uint8 (20, 32, 32, 3)'),
    (dict(images=np.zeros((20, 32, 32, 3), np.float32)), 'images are float32'),
    (dict(labels=np.full(20, 10)), 'labels range over [10, 10]: expected [0, 9]'),
    (dict(labels=np.zeros(19, np.int64)), 'labels are int64 (19,)'), (dict(images=np.array([None]*20, object)), 'cannot be read')])
def test_damaged_cifar102(cifars, changed, problem):
    fake_cifar102(cifars/'cifar102', **changed)
    message = sentence(cifar102, cifars/'cifar102', False)
    assert message.startswith('CIFAR-10.2 is missing or damaged: looked for cifar102_train.npz') and problem in message


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
    assert len(cifar102(cifars/'cifar102').train) == 50 and [f.name for f in file.parent.iterdir()] == [file.name]
    file.write_bytes(file.read_bytes()[:1000])
    assert len(cifar102(cifars/'cifar102').train) == 50
    def interrupted(url, root, filename):
        (Path(root)/filename).write_bytes(b'half')
        raise OSError('connection lost')
    monkeypatch.setattr(zoo, 'download_url', interrupted)
    file.unlink()
    assert 'the download failed (connection lost)' in sentence(cifar102, cifars/'cifar102') and not file.exists()


# EMNIST

@pytest.mark.parametrize('raw', ['emnist/EMNIST/raw', 'emnist/raw', 'EMNIST/raw'])
def test_emnist(tmp_path, raw):
    images = fake_emnist(tmp_path/raw)
    sets = emnist(tmp_path/'emnist', False)
    for data, part in ((sets.train, 'train'), (sets.test, 'test')):
        assert np.array_equal(data.images[:, 0], images[part].transpose(0, 2, 1)) and data.images.is_contiguous()
        assert 0 <= data.targets.min() and data.targets.max() <= 9 and len(data.targets.unique()) > 5
    assert sets.statistics == image_statistics(sets.train.images) and sets.train.classes == list('0123456789')


def test_emnist_shares_are_nested_and_labels_repeat(tmp_path):
    fake_emnist(tmp_path/'raw', 400)
    state = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    all_, half, quarter = (emnist(tmp_path, fraction=f).train for f in (1., .5, .25))
    row = {im.numpy().tobytes(): i for i, im in enumerate(all_.images)}
    ids = [[row[im.numpy().tobytes()] for im in part.images] for part in (half, quarter)]
    assert (len(half), len(quarter)) == (200, 100) and set(ids[1]) < set(ids[0]) and ids[0] == sorted(ids[0])
    for part, idx in zip((half, quarter), ids): assert torch.equal(part.targets, all_.targets[idx])  # an image keeps its label
    other = emnist(tmp_path, seed=1, fraction=.5).train
    assert not torch.equal(other.images, half.images)
    assert all_.targets.bincount(minlength=10).min() > 20
    assert torch.equal(torch.get_rng_state(), state[0]) and np.random.get_state()[1].tolist() == state[1] and random.getstate() == state[2]
    assert emnist(tmp_path, fraction=.5).statistics == emnist(tmp_path).statistics  # those of the whole


def test_emnist_refuses(tmp_path):
    fake_emnist(tmp_path/'raw')
    for options, message in ((dict(split='x'), "split is 'x'"), (dict(fraction=0), 'fraction is 0'), (dict(fraction=1.5), 'fraction is 1.5')):
        with pytest.raises(ValueError, match=message): emnist(tmp_path, **options)
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
    assert isinstance(sets.train, ImageData) and sets.train.shape == (3, 64, 64) and sets.statistics == STATISTICS['tiny_imagenet']
    assert sets.train.classes == sets.test.classes == ['crane (n01)', 'goldfish', 'crane (n03)']
    for data in (sets.train, sets.test): assert data.targets.tolist() == class_of(data.images) == [0, 0, 1, 1, 2, 2]
    assert len(list((tiny/'.gnosis_nb_cache').iterdir())) == 2
    streamed = tiny_imagenet(tiny.parent, False, memory_limit=0)
    assert isinstance(streamed.train, ImageFiles) and torch.equal(streamed.train.head(6), sets.train.images)
    assert streamed.train.name == sets.train.name == 'tiny-imagenet-200/train'
    assert tiny_imagenet(tiny, False, size=32).test.shape == (3, 32, 32)           # the folder itself as root
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
    assert [f.name for f in after.files] == [f.name for f in before.files] and torch.equal(after.targets, before.targets)
    assert torch.equal(after.head(6), pixels)


@pytest.mark.parametrize('file,problem', [('train/n01/images/n01_1.JPEG', '5 train images'), ('val/images/val_3.JPEG', '5 val images'),
                                          ('words.txt', 'words.txt'), ('val/val_annotations.txt', 'val_annotations.txt')])
def test_incomplete_tiny_imagenet(tiny, file, problem):
    (tiny/file).unlink()
    message = sentence(tiny_imagenet, tiny.parent, False)
    assert message.startswith('Tiny ImageNet is missing or damaged') and problem in message and str(tiny) in message


def test_tiny_imagenet_is_unpacked_from_a_verified_archive(tiny, monkeypatch):
    archive = tiny.parent/'tiny-imagenet-200.zip'
    with zipfile.ZipFile(archive, 'w') as z:
        for f in tiny.rglob('*'): z.write(f, f.relative_to(tiny.parent))
    shutil.rmtree(tiny)
    assert 'download=False' in sentence(tiny_imagenet, tiny.parent, False) and not tiny.exists()  # the checksum is another
    monkeypatch.setattr(zoo, 'TINY_IMAGENET_MD5', md5(archive))
    assert len(tiny_imagenet(tiny.parent, False).train) == 6
    (tiny/'train'/'n02'/'images'/'n02_0.JPEG').unlink()
    assert len(tiny_imagenet(tiny.parent).train) == 6  # mended


# ImageNet

def test_imagenet_from_its_archives(tmp_path, monkeypatch):
    fake_imagenet_archives(tmp_path/'imagenet', monkeypatch)
    sets = imagenet(tmp_path/'imagenet', memory_limit=0)
    assert isinstance(sets.train, ImageFiles) and (sets.train.shape, sets.train.resize) == ((3, 224, 224), 256)
    assert sets.train.classes == ['red disc', 'gold disc'] and sets.statistics == STATISTICS['imagenet']
    assert [f.name for f in sets.train.files] == ['n01_0.JPEG', 'n01_1.JPEG', 'n02_0.JPEG', 'n02_1.JPEG']
    assert [sets.train.read(i)[0, 0, 0].item() for i in range(4)] == [150, 150, 50, 50] and sets.train.targets.tolist() == [0, 0, 1, 1]
    assert [sets.test.read(i)[0, 0, 0].item() for i in range(2)] == [150, 50] and sets.test.targets.tolist() == [0, 1]
    whole = imagenet(tmp_path/'imagenet', size=32, resize=None)
    assert isinstance(whole.train, ImageData) and whole.train.shape == (3, 32, 32)


def test_damaged_imagenet(tmp_path, monkeypatch):
    root = tmp_path/'imagenet'
    fake_imagenet_archives(root, monkeypatch)
    with open(root/'ILSVRC2012_img_val.tar', 'ab') as f: f.write(b'x')
    assert 'ILSVRC2012_img_val.tar is not present in the root directory or is corrupted' in sentence(imagenet, root)
    assert (root/'train'/'n01').is_dir() and not (root/'val').exists()
    (root/'train'/'n77.tar').touch()
    (root/'val').mkdir()
    assert 'n77.tar is not unpacked yet' in sentence(imagenet, root)


def test_imagenet_folders_alone(tmp_path):
    for split in ('train', 'val'):
        for k, w in enumerate(('n02', 'n01')): save_jpeg(tmp_path/split/w/f'{w}.JPEG', (100*k,)*3, (300, 400))
    sets = imagenet(tmp_path, memory_limit=0)
    assert sets.train.classes == ['n01', 'n02'] and [f.parent.name for f in sets.train.files] == ['n01', 'n02']
    streamed, whole = imagenet(tmp_path, size=48, resize=64, memory_limit=0).test, imagenet(tmp_path, size=48, resize=64).test
    assert torch.equal(streamed.head(2), whole.images)
    (tmp_path/'val'/'n01').rename(tmp_path/'val'/'n03')
    assert 'different classes: n01, n03 in only one' in sentence(imagenet, tmp_path)


# By name

@pytest.mark.parametrize('name', VISION_SOURCES)
def test_every_source_has_a_configuration_that_it_understands(name):
    config = yaml.safe_load((CONFIG/f'{name}.yaml').read_text())
    config = {k: v for k, v in config.get('dataset', config).items() if k not in ('defaults', 'name')}
    defaults = {k: p.default for k, p in inspect.signature(VISION_SOURCES[name]).parameters.items() if k not in ('root', 'download')}
    assert set(config) == set(defaults)
    if name != 'digits': assert config == defaults


def test_default_root_is_data_datasets_name(tmp_path, monkeypatch):
    fake_mnist(tmp_path/'elsewhere'/'MNIST'/'raw')
    (tmp_path/'data'/'datasets').mkdir(parents=True)
    (tmp_path/'data'/'datasets'/'mnist').symlink_to(tmp_path/'elsewhere')
    monkeypatch.chdir(tmp_path)
    assert len(load_vision('mnist', num_data=None).train) == len(mnist(num_data=None).train) == 60
