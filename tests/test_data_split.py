"Splits and label shuffling: as on record, partitions, and no global generator moves."
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from gnosis_nb.data.images import ImageData
from gnosis_nb.data.split import hold_out, shuffle_targets, split_dataset, stratified_subset

REFERENCE, SEED = np.load(Path(__file__).parent/'data'/'reference.npz'), 20211206


def test_halves_are_the_recorded_ones():
    for i, half in enumerate(split_dataset(1000, .5, SEED)):
        assert np.array_equal(half, REFERENCE[f'split/half{i}'])


@pytest.mark.parametrize('kind', [list, torch.tensor, np.array])
def test_shuffled_labels_are_the_recorded_ones(kind):
    assert np.array_equal(shuffle_targets(kind(range(1000)), .3, SEED), REFERENCE['shuffle_targets/ratio0.3'])


def test_no_global_generator_is_touched():
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    data = ImageData(torch.zeros(100, 1, 1, 1, dtype=torch.uint8), torch.arange(100) % 10, range(10))
    split_dataset(100, .3, 1), shuffle_targets(data.targets, .5, 1)
    hold_out(data), stratified_subset(data.targets, 50)
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


def test_unlabelled_rows_stay_unlabelled():
    y = torch.tensor([-100]*30 + [0]*40 + [1]*30)
    shuffled = shuffle_targets(y, 1., 3)
    assert (shuffled[:30] == -100).all() and not torch.equal(shuffled, y)
    assert shuffled[30:].bincount().tolist() == [40, 30]


def test_hold_out_is_disjoint_and_a_fifth():
    ids = ImageData(torch.zeros(1347, 1, 1, 1, dtype=torch.uint8), torch.arange(1347), range(1347))
    train, val = hold_out(ids)
    assert (len(train), len(val)) == (1077, 270)
    assert not set(train.targets.tolist()) & set(val.targets.tolist())


@pytest.mark.parametrize('n', [0, 1, 10, 123, 1000])
def test_stratified_subset_keeps_shares(n):
    y = torch.randint(0, 10, (1000,), generator=torch.Generator().manual_seed(0))
    picked = stratified_subset(y, n, 5)
    assert len(set(picked.tolist())) == n
    assert (y[picked].bincount(minlength=10) - y.bincount(minlength=10)*n/1000).abs().max() < 1
