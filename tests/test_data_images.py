"Images in memory and on disk: labels, parts, checksums, how a file is read."
import shutil
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from fakes import write_image_folder
from gnosis_nb.data.folder import image_folder
from gnosis_nb.data.images import ImageData, ImageFiles
from gnosis_nb.data.split import stratified_subset
from gnosis_nb.data.zoo import digits


@pytest.fixture
def folder(tmp_path): return write_image_folder(tmp_path/'pets')


def test_unlabelled_images_are_no_class():
    y = torch.tensor([-100]*30 + [0]*40 + [1]*30)
    data = ImageData(torch.zeros(100, 1, 1, 1, dtype=torch.uint8), y, ['a', 'b'])
    assert len(data.labelled) == 70 and data.labelled.targets.min() == 0
    assert y[stratified_subset(y, 10)].unique(return_counts=True)[1].tolist() == [3, 4, 3]
    with pytest.raises(ValueError, match='targets=-1…1: expected 0…1 for 2 classes'):
        ImageData(data.images, y.where(y != -100, -1), ['a', 'b'])


def test_fingerprint_is_that_of_pixels_then_labels():
    data = digits(size=8).train
    assert data.fingerprint() == zlib.crc32(data.targets.numpy(), zlib.crc32(data.images.numpy()))
    turned = ImageData(data.images.transpose(2, 3), data.targets, data.classes)  # not contiguous
    copied = ImageData(turned.images.contiguous(), data.targets, data.classes)
    assert turned.fingerprint() == copied.fingerprint() != data.fingerprint()


def test_fingerprint_of_files_does_not_depend_on_where_they_are(folder, tmp_path):
    shutil.copytree(folder, tmp_path/'elsewhere')
    first, second = (image_folder(o, size=4, memory_limit=0).train for o in (folder, tmp_path/'elsewhere'))
    assert first.fingerprint() == second.fingerprint()


def test_fingerprint_of_files_is_of_labels_order_and_sizes(folder):
    first = image_folder(folder, size=4, memory_limit=0).train
    relabelled = ImageFiles(first.files, first.targets.flip(0), first.classes, 4)
    others = [relabelled, first.subset(range(149)), first.subset([*range(1, 150), 0])]
    assert len({o.fingerprint() for o in [first, *others]}) == 4
    before = first.fingerprint()
    Image.new('RGB', (6, 8)).save(folder/'train'/'dog'/'11.png')
    assert first.fingerprint() != before


def test_scaling_then_cutting(tmp_path):
    ramp = np.tile(np.arange(0, 240, 2, np.uint8)[None, :, None], (60, 1, 3))  # 120 × 60, rising to the right
    Image.fromarray(ramp).save(tmp_path/'ramp.png')
    data = ImageFiles([tmp_path/'ramp.png'], torch.tensor([-100]), ['a'], size=20, resize=30)
    middle = data.read(0).float().mean((0, 1))
    assert abs(middle.mean() - 119) < 1.5
    assert abs(middle[-1] - middle[0] - 19*4) < 4  # at half the scale, 20 columns span 40 of the 120
    whole = data.read(0, lambda im: torch.full((3, 20, 20), im.width, dtype=torch.uint8))
    assert whole.unique().tolist() == [120]
    assert data.show().axes[0].get_title() == ''


@pytest.mark.parametrize('args, says', [
    (([], torch.zeros(0, dtype=torch.long), [], 20, 10), 'resize=10: expected at least size=20'),
    ((['a', 'b'], torch.tensor([0]), ['a'], 20), r'len\(targets\)=1: expected a label for each of 2 images'),
    ((['a'], torch.tensor([0]), ['a'], 0), 'size=0: expected a positive number of pixels')])
def test_impossible_files(args, says):
    with pytest.raises(ValueError, match=says): ImageFiles(*args)
