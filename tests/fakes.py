"Small fakes of data sets, in the official layouts."
import hashlib, io, pickle, random, struct, tarfile

import numpy as np
import scipy.io
from PIL import Image
from torchvision import datasets

from gnosis_nb.data import text


def md5(file): return hashlib.md5(file.read_bytes()).hexdigest()


def fake_cifar(folder, monkeypatch, cls, n=6):
    "Tiny batches of `n` images in CIFAR's layout; torchvision is told their checksums and verifies these."
    base, rng = folder/cls.base_folder, np.random.default_rng(0)
    base.mkdir(parents=True)
    key, num_classes = ('labels', 10) if cls.base_folder == 'cifar-10-batches-py' else ('fine_labels', 100)
    pixels = {}
    def write(name, obj):
        (base/name).write_bytes(pickle.dumps(obj))
        return md5(base/name)
    def batches(names):
        out = []
        for name, _ in names:
            pixels[name] = rng.integers(0, 256, (n, 3072), dtype=np.uint8)
            out.append([name, write(name, {'data': pixels[name], key: [i % num_classes for i in range(n)]})])
        return out
    monkeypatch.setattr(cls, 'train_list', batches(cls.train_list))
    monkeypatch.setattr(cls, 'test_list', batches(cls.test_list))
    meta_md5 = write(cls.meta['filename'], {cls.meta['key']: [f'c{i}' for i in range(num_classes)]})
    monkeypatch.setattr(cls, 'meta', {**cls.meta, 'md5': meta_md5})
    return pixels


def write_image_folder(root, n=50, size=(8, 6), classes=('cat', 'dog', 'eel')):
    "`n` random images of 8 × 6 pixels in each of two splits and three classes."
    rng = np.random.default_rng(0)
    for split in ('train', 'test'):
        for c in classes:
            folder = root/split/c
            folder.mkdir(parents=True)
            for i in range(n):
                Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder/f'{i:02}.png')
    return root


def write_idx(file, x):
    file.write_bytes(struct.pack(f'>{1 + x.ndim}I', 0x800 + x.ndim, *x.shape) + x.tobytes())


def fake_mnist(raw, n=60, parts=('train', 't10k'), prefix=''):
    "`n` training and `n` test images in MNIST's layout."
    raw.mkdir(parents=True)
    rng, images = np.random.default_rng(0), {}
    for part in parts:
        images[part] = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        write_idx(raw/f'{prefix}{part}-images-idx3-ubyte', images[part])
        write_idx(raw/f'{prefix}{part}-labels-idx1-ubyte', (np.arange(n) % 10).astype(np.uint8))
    return images


def fake_emnist(raw, n=40, split='byclass'):
    return fake_mnist(raw, n, ('train', 'test'), f'emnist-{split}-')


def fake_svhn(folder, monkeypatch, n=20):
    "`n` images a split in SVHN's layout: [32, 32, 3, n], labels 1 to 10; torchvision gets their checksums."
    folder.mkdir(parents=True, exist_ok=True)
    rng, pixels, splits = np.random.default_rng(1), {}, dict(datasets.SVHN.split_list)
    for split in ('train', 'test'):
        url, name, _ = splits[split]
        pixels[split] = rng.integers(0, 256, (32, 32, 3, n), dtype=np.uint8)
        labels = (np.arange(n) % 10 + 1).astype(np.uint8)[:, None]
        scipy.io.savemat(folder/name, dict(X=pixels[split], y=labels))
        splits[split] = [url, name, md5(folder/name)]
    monkeypatch.setattr(datasets.SVHN, 'split_list', splits)
    return pixels


def fake_cifar102(folder, n=20, **changed):
    "`n` images in CIFAR-10.2's layout, names as pickled objects included."
    folder.mkdir(parents=True, exist_ok=True)
    x, y = np.random.default_rng(2).integers(0, 256, (n, 32, 32, 3), dtype=np.uint8), np.arange(n) % 10
    names = np.array(['plane', 'car', None], object)
    np.savez(folder/'cifar102_train.npz', **{**dict(images=x, labels=y, label_names=names), **changed})
    return x, y


def save_jpeg(file, colour, size=(64, 64), mode='RGB'):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', size, colour).convert(mode).save(file)


def fake_tiny_imagenet(folder, wnids=('n03', 'n01', 'n02'), n=2):
    "`n` images of each class and split in Tiny ImageNet's layout; class k is 40·(k+1) red. Some are grey."
    folder.mkdir(parents=True)
    (folder/'wnids.txt').write_text('\n'.join(wnids))
    words = dict(n01='crane', n02='goldfish, Carassius auratus', n03='crane, derrick', n99='entity')
    (folder/'words.txt').write_text(''.join(f'{k}\t{v}\n' for k, v in words.items()))
    rows = []
    for k, w in enumerate(sorted(wnids)):
        for i in range(n):
            save_jpeg(folder/'train'/w/'images'/f'{w}_{i}.JPEG', (40*(k+1),)*3, mode='L' if i == 0 else 'RGB')
            name = f'val_{i*len(wnids) + k}.JPEG'  # official order is not by class
            save_jpeg(folder/'val'/'images'/name, (40*(k+1),)*3)
            rows.append(f'{name}\t{w}\t0\t0\t63\t63\n')
        (folder/'train'/w/f'{w}_boxes.txt').write_text('')
    (folder/'val'/'val_annotations.txt').write_text(''.join(rows[::-1]))
    (folder/'test'/'images').mkdir(parents=True)
    return dict(classes=len(wnids), train=n*len(wnids), val=n*len(wnids))


def _jpeg(colour):
    out = io.BytesIO()
    Image.new('RGB', (300, 260), colour).save(out, 'JPEG')
    return out.getvalue()

def _add(tar, name, data):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))

def fake_imagenet_archives(root, monkeypatch, n=2):
    """The three archives of ImageNet with two classes of `n` training images and a validation image each;
    torchvision is told their checksums."""
    root.mkdir(parents=True)
    classes = {'n02': 'gold disc', 'n01': 'red disc, dot'}
    fields = [(f, object) for f in ('ILSVRC2012_ID', 'WNID', 'words', 'gloss', 'num_children')]
    leaves = [(i+1, w, names, '', 0) for i, (w, names) in enumerate(classes.items())]
    synsets = np.array([*leaves, (3, 'n00', 'disc', '', 2)], fields)
    mat = io.BytesIO()
    scipy.io.savemat(mat, dict(synsets=synsets))
    names = {k: f for k, (f, _) in datasets.imagenet.ARCHIVE_META.items()}
    with tarfile.open(root/names['devkit'], 'w:gz') as t:
        _add(t, 'ILSVRC2012_devkit_t12/data/meta.mat', mat.getvalue())
        _add(t, 'ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt', b'2\n1\n')  # n01, n02
    with tarfile.open(root/names['train'], 'w') as t:
        for k, w in enumerate(classes):
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode='w') as c:
                for i in range(n): _add(c, f'{w}_{i}.JPEG', _jpeg((100*k + 50,)*3))
            _add(t, f'{w}.tar', inner.getvalue())
    with tarfile.open(root/names['val'], 'w') as t:
        for i, v in enumerate((150, 50)): _add(t, f'ILSVRC2012_val_{i+1:08}.JPEG', _jpeg((v,)*3))
    monkeypatch.setattr(datasets.imagenet, 'ARCHIVE_META', {k: (f, md5(root/f)) for k, f in names.items()})


def fake_imdb(folder, monkeypatch, n=20):
    "`n` short synthetic reviews of each class and split in IMDB's layout; the loader is told their number."
    rng = random.Random(0)
    for split in ('train', 'test'):
        for c in ('neg', 'pos'):
            (folder/split/c).mkdir(parents=True)
            for i in range(n):
                review = f'{text.write_review(rng, c == "pos")}<br /><br />No. {i}'
                (folder/split/c/f'{i}_{8 if c == "pos" else 3}.txt').write_text(review, encoding='utf-8')
    monkeypatch.setattr(text, 'IMDB_COUNT', n)
    return folder
