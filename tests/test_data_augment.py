"Batch transforms against torchvision's: pixels for given parameters, distributions for drawn ones."
import pickle

import pytest
import torch
from sklearn.datasets import load_sample_images
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from gnosis_nb.data import augment as A
from gnosis_nb.data import geometry as G
from gnosis_nb.data.zoo import digits


@pytest.fixture(scope='module')
def photos():
    "200 pieces of photographs, 24 × 16 pixels: not square, so that width and height cannot be mixed up."
    photo = torch.tensor(load_sample_images().images[0]).permute(2, 0, 1)[:, ::3, ::3]
    tiles = photo.unfold(1, 24, 12).unfold(2, 16, 8).flatten(1, 2).transpose(0, 1)
    return tiles[torch.arange(200)*len(tiles)//200].contiguous()


@pytest.fixture(scope='module')
def grey(): return digits(size=20).train.images[:200]


def seeded(seed=0): return torch.Generator().manual_seed(seed)
def uniform(n, lo, hi, seed=0): return torch.empty(n).uniform_(lo, hi, generator=seeded(seed))


def assert_same(ours, x, theirs, *params, share=0.):
    "Equal, or a grey level apart in at most `share` of the values."
    ref = torch.stack([theirs(im, *p) for im, *p in zip(x, *[o.tolist() for o in params])])
    d = (ours.int() - ref.int()).abs()
    assert d.max() <= (1 if share else 0) and (d > 0).float().mean() <= share


@pytest.mark.parametrize('how', ['nearest', 'bilinear'])
@pytest.mark.parametrize('fill', [0, 200])
def test_rotation_is_torchvisions(photos, grey, how, fill):
    angles = uniform(200, -180, 180)
    for x in (photos, grey):
        ours = G.rotate(x, angles, how, fill)
        assert_same(ours, x, lambda im, a: TF.rotate(im, a, TF.InterpolationMode(how), fill=fill), angles)


def test_perspective_is_torchvisions(photos, grey):
    for x in (photos, grey):
        h, w = x.shape[2:]
        start = [[0, 0], [w - 1, 0], [w - 1, h - 1], [0, h - 1]]
        ends = torch.tensor(start) + torch.randint(-4, 5, (200, 4, 2), generator=seeded())
        ours = G.perspective(x, ends, fill=30)
        assert_same(ours, x, lambda im, e: TF.perspective(im, start, e, fill=30), ends, share=1e-4)


@pytest.mark.parametrize('name', ['brightness', 'contrast', 'saturation'])
def test_colours_are_torchvisions(photos, grey, name):
    factor = uniform(200, 0, 3)
    for x in (photos, grey):
        assert_same(getattr(A, f'adjust_{name}')(x, factor), x, getattr(TF, f'adjust_{name}'), factor)


def test_hue_and_blur_are_torchvisions(photos, grey):
    turn, sigma = uniform(200, -.5, .5), uniform(200, .1, 2)
    for x in (photos, grey):
        assert_same(A.adjust_hue(x, turn), x, TF.adjust_hue, turn, share=1e-4)
        ours = A.gaussian_blur(x, sigma, (5, 3))
        assert_same(ours, x, lambda im, s: TF.gaussian_blur(im, [5, 3], [s, s]), sigma, share=1e-4)


JITTER, BLUR = (.5, (.2, 2.), .9, .3), ((5, 3), (.2, 3.))
PAIRS = dict(crop=(G.random_crop(3, fill=50), lambda h, w: v2.RandomCrop((h, w), padding=3, fill=50)),
             cut=(G.random_crop(2, size=(10, 13)), lambda h, w: v2.RandomCrop((10, 13), padding=2)),
             rotation=(G.random_rotation(30), lambda h, w: v2.RandomRotation(30)),
             perspective=(G.random_perspective(.6, .7), lambda h, w: v2.RandomPerspective(.6, .7)),
             grayscale=(A.random_grayscale(.3), lambda h, w: v2.RandomGrayscale(.3)),
             colorjitter=(A.random_colorjitter(*JITTER), lambda h, w: v2.ColorJitter(*JITTER)),
             gaussian_blur=(A.random_gaussian_blur(*BLUR), lambda h, w: v2.GaussianBlur(*BLUR)))


@pytest.mark.parametrize('name', PAIRS)
def test_drawn_images_are_distributed_as_torchvisions(photos, name):
    "Means of pixels and of their squares over many applications to one image."
    ours, theirs = PAIRS[name]
    im = photos[37]
    a = ours(im.expand(4000, -1, -1, -1), seeded()).double()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        tfm = theirs(*im.shape[1:])
        b = torch.stack([tfm(im) for _ in range(500)]).double()
    for power in (1, 2):
        u, v = a**power, b**power
        error = (u.var(0)/len(u) + v.var(0)/len(v)).sqrt()
        z = (u.mean(0) - v.mean(0))/error.clamp_min(1e-9)
        assert z.abs().max() < 5.5 and (z**2).mean() < 3  # neighbouring pixels are correlated


def test_crop_offsets_are_uniform():
    dots = torch.zeros(8100, 1, 11, 9, dtype=torch.uint8)
    dots[:, :, 5, 4] = 1
    n = G.random_crop(4)(dots, seeded()).sum((0, 1)).double()[1:-1]
    assert n.shape == (9, 9) and ((n - 100)**2/100).sum() < 125  # χ², 80 degrees of freedom: 80 ± 12.6


def test_a_window_is_its_steps_one_after_the_other(photos):
    flip, turn = G.random_flip(), G.random_flip(dim=-2)
    steps = [turn, flip, G.random_crop(3), flip, G.random_crop(0, size=(9, 13)), turn, flip]
    window, x, g = sum(steps, G.Window()), photos, seeded(3)
    for step in steps: x = step(x, g)
    for images in (photos, photos.to(memory_format=torch.channels_last), photos.repeat(1, 1, 1, 2)[..., :16]):
        assert torch.equal(window(images, seeded(3)), x)
    index = torch.tensor([7, 7, 0])
    numbers = window.draw(len(index), photos.shape[1:], seeded(4))
    assert torch.equal(window.cut(window.pad(photos), index, *numbers), window(photos[index], seeded(4)))


def test_second_crop_pads_the_result_of_the_first():
    x = torch.full((64, 1, 6, 6), 9, dtype=torch.uint8)
    # the image goes on around the first crop, but is not to be seen again
    twice = A.Augmentation([G.random_crop(0, size=2), G.random_crop(1, size=4)])
    assert len(twice.rest) == 1 and (twice(x, seeded())[:, 0] == 9).sum((1, 2)).eq(4).all()


@pytest.mark.parametrize('name', A.AUGMENTATIONS)
def test_each_is_reproducible_and_leaves_its_argument_and_the_global_generator_alone(photos, name):
    tfm, before, state = A.augmentation([name]), photos.clone(), torch.get_rng_state()
    res = tfm(photos[:9], seeded(5))
    assert torch.equal(res, pickle.loads(pickle.dumps(tfm))(photos[:9], seeded(5)))  # for exports
    assert torch.equal(res, tfm(photos[:9], seeded(6))) == (name == 'colorjitter')  # no change
    assert res.dtype == torch.uint8 and torch.equal(photos, before)
    assert torch.equal(state, torch.get_rng_state())
    assert [tfm(photos[:n], seeded()).shape for n in (0, 1)] == [(n, 3, 24, 16) for n in (0, 1)]


def test_with_p_an_image_goes_through_all_or_nothing(photos):
    tfm = A.augmentation(['vertical_flip', lambda x, g: 255 - x], dict(vertical_flip=dict(p=1)), p=.25)
    res = tfm(photos, seeded())
    through = (res == 255 - photos.flip(-2)).flatten(1).all(1)
    assert ((res == photos).flatten(1).all(1) ^ through).all() and 25 < through.sum() < 75


@pytest.mark.parametrize('make, says', [
    (lambda: G.random_crop(1.5), 'padding=1.5: expected'),
    (lambda: G.random_crop(size=(3, 0)), r'size=\(3, 0\): expected'),
    (lambda: G.random_crop(fill=-1), 'fill=-1: expected'),
    (lambda: G.random_crop(1) + G.random_crop(2), 'padding=2: expected'),
    (lambda: G.random_flip(2), 'p=2: expected'),
    (lambda: G.random_rotation((3, 1)), r'degrees=\(3, 1\): expected'),
    (lambda: G.random_rotation(interpolation='cubic'), "interpolation='cubic': expected"),
    (lambda: G.random_perspective(-.1), 'distortion_scale=-0.1: expected'),
    (lambda: A.random_grayscale(-1), 'p=-1: expected'),
    (lambda: A.random_colorjitter(hue=.7), 'hue=0.7: expected'),
    (lambda: A.random_colorjitter(brightness=-1), 'brightness=-1: expected'),
    (lambda: A.random_gaussian_blur(2), 'kernel_size=2: expected'),
    (lambda: A.random_gaussian_blur(3, (0, 1)), r'sigma=\(0, 1\): expected'),
    (lambda: A.augmentation(['flop']), "augmentation='flop': expected one of"),
    (lambda: A.augmentation(p=3), 'p=3: expected')])
def test_errors_name_argument_and_value(make, says):
    with pytest.raises(ValueError, match=says): make()
