"""How fast gnosis_nb is on the machine at hand, beside plain PyTorch: `python scripts/benchmark.py loader`."""
import argparse
import statistics
import time
from pathlib import Path

import torch
from PIL import Image
from torchvision import transforms

from gnosis_nb.data.augment import augmentation
from gnosis_nb.data.loaders import ImageLoader
from gnosis_nb.data.vision import STATISTICS, DataNotFound, ImageData, cifar10, image_folder, normalizer


def cifar_images(root):
    "CIFAR-10's training images from the official files or a folder of pictures, else random ones; and what they are."
    for source in (cifar10, image_folder):
        try: return source(root, download=False).train, f'CIFAR-10 in {root}'
        except DataNotFound: pass
    x = torch.randint(0, 256, (50_000, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return ImageData(x, torch.arange(50_000) % 10, range(10), 'random'), f'random pixels in the shape of CIFAR-10 (there is none in {root})'


class PerImage(torch.utils.data.Dataset):
    "The usual way: a picture at a time, through torchvision's transforms."
    def __init__(self, data, shift, scale):
        self.images, self.targets = data.images.permute(0, 2, 3, 1).contiguous().numpy(), data.targets.tolist()
        self.transform = transforms.Compose([transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), transforms.ToTensor(),
                                             transforms.Normalize(shift.flatten().tolist(), scale.flatten().tolist())])
    def __len__(self): return len(self.targets)
    def __getitem__(self, i): return self.transform(Image.fromarray(self.images[i])), self.targets[i]


def rate(loader, device, n):
    "Images per second over an epoch, or the first `n` images of it."
    seen, start = 0, time.perf_counter()
    for x, y in loader:
        x, y = x.to(device), y.to(device)
        seen += len(y)
        if seen >= n: break
    if device.type == 'cuda': torch.cuda.synchronize()
    return seen / (time.perf_counter() - start)


def loader(args):
    "Throughput of the loader alone, crop and flip, batch 128."
    data, what = cifar_images(args.root)
    norm, device = normalizer('unitcube', STATISTICS['cifar10']), torch.device(args.device)
    plain = PerImage(data, *norm)
    contenders = {f'torch DataLoader, {w} workers': (torch.utils.data.DataLoader(plain, 128, shuffle=True, num_workers=w, persistent_workers=w > 0), args.images) for w in (0, 2)}
    contenders['gnosis_nb ImageLoader'] = ImageLoader(data, 128, shuffle=True, augment=augmentation(), norm=norm, device=device), 10**9
    for dl, _ in contenders.values(): rate(dl, device, 2560)                 # workers started, memory touched
    rates = {name: statistics.median(rate(dl, device, n) for _ in range(args.rounds)) for name, (dl, n) in contenders.items()}
    best = max(r for name, r in rates.items() if name.startswith('torch'))
    print(f'{what}; {device}, {torch.get_num_threads()} threads, torch {torch.__version__}; median of {args.rounds}')
    for name, r in rates.items(): print(f'{name:32s} {r:12,.0f} images/s   {r / best:6.1f} x')


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('what', choices=['loader'])
    parser.add_argument('--root', type=Path, default=Path('data/datasets/cifar10'), help='folder of CIFAR-10')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--images', type=int, default=50_000, help='images that the per-image loaders are timed on')
    parser.add_argument('--rounds', type=int, default=3)
    args = parser.parse_args()
    loader(args)
