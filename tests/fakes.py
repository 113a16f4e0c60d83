"Small fakes of data sets, in the official layouts."
import hashlib,pickle,struct

import numpy as np


def fake_cifar(folder, monkeypatch, cls, n=6):
    "Tiny batches of `n` images in CIFAR's layout; torchvision is told their checksums in place of the real ones and verifies these."
    base, rng = folder/cls.base_folder, np.random.default_rng(0)
    base.mkdir(parents=True)
    key, num_classes = ('labels', 10) if cls.base_folder == 'cifar-10-batches-py' else ('fine_labels', 100)
    pixels = {}
    def write(name, obj):
        (base/name).write_bytes(pickle.dumps(obj))
        return hashlib.md5((base/name).read_bytes()).hexdigest()
    def batches(names):
        out = []
        for name, _ in names:
            pixels[name] = rng.integers(0, 256, (n, 3072), dtype=np.uint8)
            out.append([name, write(name, {'data': pixels[name], key: [i % num_classes for i in range(n)]})])
        return out
    monkeypatch.setattr(cls, 'train_list', batches(cls.train_list))
    monkeypatch.setattr(cls, 'test_list', batches(cls.test_list))
    md5 = write(cls.meta['filename'], {cls.meta['key']: [f'c{i}' for i in range(num_classes)]})
    monkeypatch.setattr(cls, 'meta', {**cls.meta, 'md5': md5})
    return pixels


def fake_mnist(raw, n=60):
    "`n` training and `n` test images in MNIST's layout."
    raw.mkdir(parents=True)
    rng, images = np.random.default_rng(0), {}
    for part in ('train', 't10k'):
        x, y = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8), (np.arange(n) % 10).astype(np.uint8)
        (raw/f'{part}-images-idx3-ubyte').write_bytes(struct.pack('>IIII', 0x803, n, 28, 28) + x.tobytes())
        (raw/f'{part}-labels-idx1-ubyte').write_bytes(struct.pack('>II', 0x801, n) + y.tobytes())
        images[part] = x
    return images
