"Folders of images: order, cache, sizes, damage; decoded and streamed; CIFAR as PNG where it is at hand."
import os, pickle, shutil, signal
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import gnosis_nb.data.folder as folders
from fakes import write_image_folder
from gnosis_nb.data.folder import DataNotFound, image_folder, sample_statistics
from gnosis_nb.data.images import ImageData, ImageFiles, UnreadableImage
from gnosis_nb.data.loaders import ImageLoader
from gnosis_nb.data.split import hold_out
from gnosis_nb.data.zoo import STATISTICS

DATA = Path(__file__).parent.parent/'data'/'datasets'


@pytest.fixture
def folder(tmp_path): return write_image_folder(tmp_path/'pets')


def pixels(file): return torch.from_numpy(np.array(Image.open(file).convert('RGB'))).permute(2, 0, 1)

def cached(folder): return sorted(f.name for f in (folder/'.gnosis_nb_cache').iterdir())


# Decoded into memory

def test_image_folder_reads_every_image_in_order(folder):
    sets = image_folder(folder)
    files = sorted((folder/'train').rglob('*.png'))
    assert torch.equal(sets.train.images, torch.stack([pixels(f) for f in files]))
    assert sets.train.targets.tolist() == [i for i in range(3) for _ in range(50)]
    assert (sets.train.classes, sets.train.shape) == (['cat', 'dog', 'eel'], (3, 8, 6))


def test_cache_is_used_and_renewed(folder, monkeypatch):
    first, kept = image_folder(folder), cached(folder)
    with monkeypatch.context() as m:
        m.setattr(folders, '_decode', None)
        assert torch.equal(image_folder(folder).train.images, first.train.images)
    Image.new('RGB', (6, 8), (1, 2, 3)).save(folder/'train'/'cat'/'07.png')
    assert image_folder(folder).train.images[7, :, 0, 0].tolist() == [1, 2, 3]
    assert len(cached(folder)) == 2 and len(set(cached(folder)) & set(kept)) == 1  # that of test stays


def test_damaged_cache_is_ignored(folder):
    first = image_folder(folder)
    for f in (folder/'.gnosis_nb_cache').iterdir(): f.write_bytes(f.read_bytes()[:300])
    assert torch.equal(image_folder(folder).train.images, first.train.images)


def test_folder_that_cannot_be_written_to(folder):
    (folder/'.gnosis_nb_cache').write_text('in the way')
    assert len(image_folder(folder).train) == 150
    assert (folder/'.gnosis_nb_cache').read_text() == 'in the way'


def test_images_of_several_sizes_are_brought_to_one(folder):
    Image.new('L', (12, 8), 77).save(folder/'train'/'cat'/'00.png')
    with pytest.raises(ValueError, match='train/cat/01.png has 8×6 pixels, others have 8×12 .*dataset.size='):
        image_folder(folder)
    sets = image_folder(folder, size=4)
    assert sets.train.shape == sets.test.shape == (3, 4, 4)
    assert (sets.train.images[0] == 77).all()


def test_the_central_square_is_kept(folder):
    wide = np.zeros((4, 12, 3), np.uint8)
    wide[:, 4:8] = 200
    Image.fromarray(wide).save(folder/'train'/'cat'/'00.png')
    assert (image_folder(folder, size=4).train.images[0] == 200).all()


def test_test_images_of_another_size_than_training_images(folder):
    for f in (folder/'test').rglob('*.png'): Image.new('RGB', (9, 9)).save(f)
    with pytest.raises(ValueError, match='test/cat/00.png has 9×9 pixels, others have 8×6'):
        image_folder(folder)


def test_first_corrupt_image_is_named(folder):
    for name in ('dog/31.png', 'eel/02.png'): (folder/'train'/name).write_bytes(b'GIF?')
    with pytest.raises(ValueError, match='cannot decode image .*train/dog/31.png'): image_folder(folder)
    half = folder/'train'/'dog'/'30.png'
    half.write_bytes(half.read_bytes()[:half.stat().st_size//2])
    with pytest.raises(ValueError, match='cannot decode image .*train/dog/30.png'): image_folder(folder)
    assert not (folder/'.gnosis_nb_cache').exists()


def test_classes_must_agree(folder):
    (folder/'test'/'eel').rename(folder/'test'/'fly')
    with pytest.raises(ValueError, match='different classes: eel, fly in only one of them'):
        image_folder(folder)
    (folder/'train'/'gnu').mkdir()
    with pytest.raises(ValueError, match='train/gnu holds no image'): image_folder(folder)


def test_incomplete_folders(tmp_path):
    how = r'looked for train and test .* as root \(of a command dataset.root_dir=\)'
    with pytest.raises(DataNotFound, match=how): image_folder(tmp_path)
    for s in ('train', 'val'): (tmp_path/s).mkdir()
    with pytest.raises(DataNotFound, match='train holds no images'): image_folder(tmp_path)


# Streamed

@pytest.mark.parametrize('split', ['train', 'test'])
def test_streamed_folder_gives_the_pixels_that_memory_has(folder, split):
    a, b = (getattr(image_folder(folder, size=4, memory_limit=limit), split) for limit in (0, 4))
    assert isinstance(a, ImageFiles) and isinstance(b, ImageData)
    for fact in ('shape', 'classes', 'vocab', 'name', 'num_classes'):
        assert getattr(a, fact) == getattr(b, fact)
    assert torch.equal(a.head(150), b.images) and torch.equal(a.targets, b.targets)
    assert a.head(1).dtype == torch.uint8
    mask = a.targets == 1
    assert torch.equal(a.subset(mask).head(50), b.subset(mask).images)
    assert len(a.new_empty()) == len(a.new_empty().head(3)) == 0
    assert len(pickle.loads(pickle.dumps(a)).files) == 150


def test_streamed_folder_has_the_statistics_and_splits_that_memory_has(folder):
    ours, theirs = (image_folder(folder, size=4, memory_limit=limit) for limit in (0, 4))
    assert ours.statistics == theirs.statistics
    for a, b in zip(hold_out(ours.train, .2, 3), hold_out(theirs.train, .2, 3)):
        assert a.name == b.name and torch.equal(a.head(200), b.images) and torch.equal(a.targets, b.targets)


def test_memory_limit_is_in_gigabytes_of_both_splits(folder):
    exact = 300*3*8*6/1e9
    assert isinstance(image_folder(folder, memory_limit=exact).train, ImageData)
    with pytest.raises(ValueError, match='train/cat/00.png has 8×6 pixels .* not a square: pass size='):
        image_folder(folder, memory_limit=exact*.999)
    scaled = image_folder(folder, size=6, memory_limit=exact)
    assert isinstance(scaled.train, ImageData)


@pytest.mark.parametrize('bad', [-1, float('nan')])
def test_impossible_memory_limit(folder, bad):
    with pytest.raises(ValueError, match=f'memory_limit={bad}: expected'):
        image_folder(folder, memory_limit=bad)


def test_streaming_needs_one_size(folder):
    for f in folder.glob('*/*/*.png'): Image.open(f).resize((6, 6)).save(f)
    sets, odd = image_folder(folder, memory_limit=0), folder/'test'/'dog'/'11.png'
    assert sets.train.shape == (3, 6, 6)
    assert torch.equal(sets.train.head(3), image_folder(folder).train.images[:3])
    Image.new('RGB', (7, 6)).save(odd)
    with pytest.raises(ValueError, match='11.png has 6×7 pixels, others have 6×6'):
        image_folder(folder, memory_limit=0)
    odd.write_bytes(b'GIF?')
    with pytest.raises(ValueError, match='cannot decode image .*dog/11.png'):
        image_folder(folder, memory_limit=0)
    unread = image_folder(folder, size=6, memory_limit=0).test
    with pytest.raises(ValueError, match='cannot decode image .*dog/11.png'): unread.read(61)


@pytest.mark.parametrize('suffix', ['png', 'tiff'])
def test_the_upper_bits_of_16_are_kept(folder, suffix):
    deep = np.random.default_rng(0).integers(0, 2**16, (8, 6), dtype=np.uint16)
    Image.fromarray(deep).save(folder/'train'/'cat'/f'-.{suffix}')           # the first of all
    wanted = torch.from_numpy((deep >> 8).astype(np.uint8)).expand(3, -1, -1)
    assert torch.equal(image_folder(folder).train.images[0], wanted)

def test_pixels_of_an_unknown_range_are_refused(folder):
    Image.fromarray(np.zeros((8, 6), dtype=np.float32)).save(folder/'train'/'cat'/'00.tiff')
    with pytest.raises(UnreadableImage, match='00.tiff: mode F: expected 8 or 16 bits a channel'):
        image_folder(folder)

def test_what_links_lead_to_is_read_and_what_is_hidden_is_not(folder, tmp_path):
    before, cat = image_folder(folder).train, folder/'train'/'cat'
    (cat/'.ipynb_checkpoints').mkdir()
    shutil.copy(cat/'00.png', cat/'.ipynb_checkpoints'/'00-checkpoint.png')
    assert image_folder(folder).train.fingerprint() == before.fingerprint()
    other = tmp_path/'more'
    other.mkdir()
    shutil.copy(cat/'00.png', other/'0.png')
    (cat/'linked').symlink_to(other)
    (cat/'linked_again').symlink_to(other)
    (other/'around').symlink_to(cat)
    assert len(image_folder(folder).train) == len(before) + 1

def test_a_link_to_nothing_is_an_image_that_cannot_be_decoded(folder):
    (folder/'train'/'cat'/'50.png').symlink_to('gone.png')
    for limit in (None, 0):
        with pytest.raises(UnreadableImage, match='50.png'): image_folder(folder, size=6, **memory(limit))

def memory(limit): return {} if limit is None else dict(memory_limit=limit)

@pytest.fixture
def streamed(folder): return ImageLoader(image_folder(folder, size=6, memory_limit=0).train, 8, num_workers=2)

def test_two_readers_of_a_loader_do_not_disturb_each_other(streamed):
    def rows(dl): return sum(len(y) for _, y in dl)
    outer, inner = 0, []
    for i, (_, y) in enumerate(streamed):
        outer += len(y)
        if i in (3, 7): inner.append(rows(streamed))
    assert (outer, inner, len(list(zip(streamed, streamed)))) == (150, [150, 150], 19)

@pytest.mark.parametrize('where', ['elsewhere', 'reading'])
def test_a_loader_goes_on_after_a_worker_was_killed(streamed, where):
    batches = iter(streamed)
    next(batches)
    with pytest.raises(RuntimeError, match='killed by signal|exited unexpectedly'):  # torch says it anywhere
        worker = streamed._stream._iterator._workers[0].pid
        os.kill(worker, signal.SIGKILL)
        try:
            if where == 'reading': list(batches)
        finally:                                                             # it has been said by then
            with suppress(ChildProcessError): os.waitid(os.P_PID, worker, os.WEXITED | os.WNOWAIT)
    del batches
    assert sum(len(y) for _, y in streamed) == 150

@pytest.mark.parametrize('error', [EOFError, ConnectionResetError])
def test_a_batch_that_a_killed_worker_leaves_unfinished(streamed, monkeypatch, error):
    batches = iter(streamed)
    next(batches)
    stream = streamed._stream
    def broken(*args):
        stream._iterator._workers[0].kill()
        raise error
    monkeypatch.setattr(stream._iterator, '_next_data', broken)
    tells = signal.signal(signal.SIGCHLD, signal.SIG_DFL)               # torch's own message, and wherever
    try:
        with pytest.raises(RuntimeError, match='exited unexpectedly: was it killed'): next(batches)
        assert sum(len(y) for _, y in streamed) == 150
    finally: signal.signal(signal.SIGCHLD, tells)

def test_a_workers_error_names_the_file_and_no_more(streamed):
    streamed.dataset.files[140].write_bytes(b'GIF?')
    with pytest.raises(UnreadableImage) as e: list(streamed)
    file = streamed.dataset.files[140]
    assert str(e.value) == f"cannot decode image {file}: cannot identify image file '{file}'"


def test_statistics_of_a_sample(folder):
    data = image_folder(folder, size=4, memory_limit=0).train
    some = sample_statistics(data, 20)
    assert some == sample_statistics(data, 20) != sample_statistics(data, 20, seed=1)
    assert np.abs(np.subtract(some['mean'], sample_statistics(data)['mean'])).max() < .05


# Real data

REAL = dict(cifar100=('cifar100', 50_000, 100), cifar10=('cifar10_png', 10_000, 10))

@pytest.mark.parametrize('name', REAL)
def test_real_cifar(name):
    where, n, classes = REAL[name]
    if not (DATA/where/'train').is_dir(): pytest.skip(f'no images in {DATA/where}')
    sets = image_folder(DATA/where)
    assert (len(sets.train), len(sets.test), sets.train.shape) == (n, 10_000, (3, 32, 32))
    assert sets.train.targets.bincount().tolist() == [n//classes]*classes
    far = dict(mean=2e-5, std=2e-5) if n == 50_000 else dict(mean=5e-3, std=2e-3)  # a fifth
    for k in far: assert np.abs(np.subtract(sets.statistics[k], STATISTICS[name][k])).max() < far[k]
