"What a run says of its data, and how far it has come."
import io
import itertools
import re
import sys
from types import SimpleNamespace

import pytest

from experiments import images
from fakes import fake_imdb, fake_mnist
from gnosis_nb.cli import compose
from gnosis_nb.data.text import imdb
from gnosis_nb.inputs import load_inputs
from gnosis_nb.progress import with_progress
from gnosis_nb.schema import ConfigError

FEW = ['dataset=mnist', 'dataset.num_data=40', 'dataset.download=false']


@pytest.fixture
def hours(monkeypatch):
    "A clock that moves by an hour with every look at it."
    hour = itertools.count(step=3600)
    monkeypatch.setattr('gnosis_nb.progress.time', SimpleNamespace(monotonic=lambda: next(hour)))

@pytest.fixture
def root(tmp_path):
    fake_mnist(tmp_path/'MNIST'/'raw')
    return f'dataset.root_dir={tmp_path}'


def test_a_short_loop_says_nothing(capsys):
    assert list(with_progress([10]*40, 400, 'decoding')) == [10]*40
    assert capsys.readouterr().err == ''

def test_a_loop_that_is_broken_off_ends_its_line(hours, monkeypatch):
    monkeypatch.setattr(sys, 'stderr', terminal := io.StringIO())
    terminal.isatty = lambda: True
    for _ in with_progress([10]*40, 400, 'decoding'): break
    assert terminal.getvalue() == '\rdecoding: 10 of 400\n'

def test_texts_are_counted_while_they_are_read(tmp_path, monkeypatch, hours, capsys):
    reviews = fake_imdb(tmp_path/'aclImdb', monkeypatch)
    imdb(reviews, min_freq=1)
    assert capsys.readouterr().err.endswith(f'reading and encoding {reviews}: 80 of 80\n')

def test_a_run_says_which_data_it_has_and_how_far_it_is(tmp_path, hours):
    parts = ['dataset.shrink.train=400', 'trainer.eval_dataset=val', 'dataset.subsample.ratio=0.5']
    r, lines = images(tmp_path, *parts)
    assert lines[0] == (
        f'run: {r.path} on cpu: 160 of 1,347 training images (shrink.train, trainer.eval_dataset=val, '
        'subsample.ratio), 80 of 1,347 for evaluation (shrink.train, trainer.eval_dataset=val), 10 classes')
    assert {f'{who}evaluation: 80 of 80' for who in ('teacher 0 ', 'student ', '')} <= {*lines}
    assert [re.split(r' \d+\.', o)[0] for o in lines if ' epoch ' in o] == [
        'teacher 0 epoch 1/1 loss', 'student epoch 1/1 train KL']

def test_a_set_that_is_small_by_default_says_so(root):
    assert load_inputs(compose([*FEW, root])).teacher_part.describe() == '40 of 60 images (num_data)'

@pytest.mark.parametrize('split', ['dataset.subsample.split=0', 'distill_loader.splits=[1]'])
def test_a_part_with_an_image_a_class_is_refused(root, split):
    ratio = 'dataset.subsample.ratio=0.25' if 'subsample' in split else 'dataset.subsample.ratio=0.75'
    with pytest.raises(ConfigError) as e: load_inputs(compose([*FEW, root, ratio, split]))
    assert str(e.value) == (
        f'{split}: expected more than 10 images for 10 classes, found 10 of 60 images '
        '(num_data, subsample.ratio); try dataset.num_data=null or another dataset.subsample.ratio')
