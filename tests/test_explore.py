"Panels on what users bring: shuffled loaders, texts, odd images, names with HTML, numbers that are none."
import base64
import io
import json
import shlex
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

from gnosis_nb.cli import compose
from gnosis_nb.data.augment import augmentation
from gnosis_nb.data.blocks import DistillBlock
from gnosis_nb.data.images import ImageData, ImageSets, image_statistics
from gnosis_nb.data.loaders import ImageLoader, image_dls
from gnosis_nb.data.text import sentences, text_dls
from gnosis_nb.explore import (augmentation_viewer, disagreements, find_disagreements, landscape_viewer,
                               live_run, run_browser, temperature_lab)
from gnosis_nb.explore.chart import Axes, Bars, Chart, Pictures, Softened, Surface
from gnosis_nb.explore.predictions import class_list, label_name, some_images
from gnosis_nb.explore.runs import find_command
from gnosis_nb.run_folder import Run
from gnosis_nb.runs import run_identity
from gnosis_nb.settings import as_dict

ODD = ['<b>x</b>', 'a & b', '$x_1^{$']

def sets_of(n=40, shape=(1, 6, 6), classes='abc'):
    g = torch.Generator().manual_seed(0)
    images = torch.randint(256, (n, *shape), generator=g, dtype=torch.uint8)
    data = ImageData(images, torch.arange(n) % len(classes), list(classes), 'made')
    return ImageSets(data, data, image_statistics(images))

def network(sets, seed, classes=3):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(sets.train.images[0].numel(), classes))

def two(sets): return network(sets, 0), network(sets, 1)

def plain(drawn): return json.loads(json.dumps(drawn, allow_nan=False))

def png(source): return np.asarray(Image.open(io.BytesIO(base64.b64decode(source.split(',')[1]))))


@pytest.fixture(scope='module')
def sets(): return sets_of()

@pytest.mark.parametrize('shuffle', [True, False])
def test_row_is_the_row_of_the_data(sets, shuffle):
    found = find_disagreements(*two(sets), ImageLoader(sets.train, bs=16, shuffle=shuffle))
    assert len(found) > 5 and found.place == 'row'
    assert torch.allclose(found.pixels, sets.train.images[found.table.index.tolist()]/255)

def test_row_of_a_loader_of_several_parts_counts_all(sets):
    dl = DistillBlock().loader(sets, bs=16)
    found = find_disagreements(*two(sets), dl)
    assert found.place == 'row'
    assert torch.allclose(found.pixels, sets.train.images[found.table.index.tolist()]/255, atol=1e-6)

def test_where_rows_are_not_known_the_index_is_a_position(sets):
    dls = image_dls(sets, bs=16, device='cpu', augment=augmentation())
    found = find_disagreements(*two(sets), dls.train)
    assert found.place == 'position' and found.table.index.isin(range(len(sets.train))).all()
    panel = disagreements(*two(sets), dls.train, static=False)
    assert panel.status.value.endswith('positions are those in the epoch')
    assert panel.chart.axes[2].marks[0].titles[0].startswith('position ')

@pytest.mark.parametrize('look', [
    lambda sets, dl: temperature_lab(network(sets, 0), dl, 8, static=True),
    lambda sets, dl: some_images(dl, 8),
    lambda sets, dl: disagreements(*two(sets), dl, static=True)])
def test_looking_leaves_the_loader_where_it_is(sets, look):
    dl = image_dls(sets, bs=16, device='cpu', augment=augmentation()).train
    before = dl.generator.get_state()
    look(sets, dl)
    assert torch.equal(dl.generator.get_state(), before) and dl.begun is None

def test_texts_are_no_images():
    dls = text_dls(sentences(num_train=20, num_test=10), bs=10, device='cpu')
    net = nn.Sequential(nn.Embedding(5000, 2), nn.Flatten(), nn.LazyLinear(2))
    for look in (lambda: find_disagreements(net, net, dls), lambda: temperature_lab(net, dls)):
        with pytest.raises(ValueError, match=r'data=\(\d+, 10\): expected images of shape'): look()
    with pytest.raises(TypeError, match='sets=TextSets: expected images'): augmentation_viewer(sentences())

@pytest.mark.parametrize('draw', ['sheet', 'page'])
def test_names_of_classes_are_shown_as_they_are(draw):
    sets = sets_of(classes=ODD)
    panels = [disagreements(*two(sets), image_dls(sets, bs=16, device='cpu'), static=False),
              temperature_lab(network(sets, 0), image_dls(sets, bs=16, device='cpu'), static=False),
              augmentation_viewer(sets, ['noise'], network(sets, 0), static=False)]
    panels[0].controls['view'].value = 'grid'
    for panel in panels:
        if draw == 'sheet': panel.chart.sheet()._repr_png_()
        texts = json.dumps(panel.chart.figure()[0])
        assert '<b>' not in texts and 'a & b' not in texts and '<br>' in texts
        assert '&lt;b&gt;x&lt;/b&gt;' in texts and 'a &amp; b' in texts

def test_surface_with_values_that_are_no_numbers():
    x, z = np.arange(4.), np.exp(np.arange(12.)).reshape(3, 4)
    z[0, 0], z[1, 2] = np.nan, np.inf
    for log in (True, False):
        chart = Chart([Axes([Surface(x, x[:3], z, log=log)])])
        with warnings.catch_warnings(action='error'): chart.sheet()._repr_png_()
        trace = plain(chart.figure()[0])['data'][0]
        assert trace['z'][0][0] is None and trace['z'][1][2] is None and trace['z'][2][3] is not None
        assert trace['zmax'] == pytest.approx(11/np.log(10) if log else np.exp(11))

@pytest.fixture
def grid():
    a, b = (o.ravel() for o in np.meshgrid([0., 1., 2.], [0., 1.]))
    return pd.DataFrame(dict(a=a, b=b, nll=1 + a + 2*b, kl=1 + a*b))

def test_landscape_of_values_that_are_no_numbers(grid):
    grid.loc[[0, 4], ['nll', 'kl']] = [[np.nan, np.inf], [np.inf, np.nan]]
    with warnings.catch_warnings(action='error'):
        panel = landscape_viewer(grid, dict(p=(0., 0.), q=(2., 1.)), static=False)
        assert panel.problem.value == ''
        panel.chart.sheet()._repr_png_()
    plain(panel.chart.figure()[0])

def test_menu_of_measures_follows_the_plane(grid):
    other = grid.drop(columns='kl').assign(agreement=.5)
    panel = landscape_viewer(dict(one=grid, two=other), static=False)
    value, plane = panel.controls['value'], panel.controls['plane']
    plane.value = 'two'
    assert panel.problem.value == '' and value.options == ('nll', 'agreement') and value.value == 'nll'
    plane.value = 'one'
    assert value.options == ('nll', 'kl') and value.value == 'nll'

def test_line_between_two_equal_points_is_none(grid):
    with warnings.catch_warnings(action='error'):
        panel = landscape_viewer(grid, dict(p=(1., 0.), q=(1., 0.)), static=False)
    assert panel.problem.value == '' and len(panel.chart.axes) == 1
    assert panel.controls['lam'].layout.display == 'none'

def test_logits_that_are_no_numbers(sets):
    net = network(sets, 0)
    with torch.no_grad(): net[1].bias[0] = torch.nan
    panel = temperature_lab(net, image_dls(sets, bs=16, device='cpu'), static=False)
    assert plain(panel.chart.figure()[0])['softened']['logits'][0][0] is None
    soft = Chart([Axes([Bars([0], [0.], places=[(0, 0)])])], softened=Softened(np.array([[-np.inf, 0.]]), 1.))
    assert plain(soft.figure()[0])['softened']['logits'] == [[-1e9, 0.]]   # a probability of 0

@pytest.mark.parametrize('shape, box', [((3, 4, 8), (0, .25, 1, .5)), ((3, 8, 4), (.25, 0, .5, 1))])
def test_images_keep_their_shape(shape, box):
    chart = Chart([Axes([Pictures([np.ones(shape)])])])
    left, right, bottom, top = chart.sheet().axes[0].images[0].get_extent()
    assert (left, top, right - left, bottom - top) == box
    opaque = png(chart.figure()[0]['layout']['images'][0]['source'])[..., 3] > 0
    rows, columns = np.flatnonzero(opaque.any(1)), np.flatnonzero(opaque.any(0))
    assert [columns[0]/32, rows[0]/32, len(columns)/32, len(rows)/32] == list(box)
    assert opaque.sum() == len(rows)*len(columns)

@pytest.mark.parametrize('channels', [2, 4])
def test_first_of_other_channels_is_drawn(channels):
    sets = sets_of(shape=(channels, 6, 6))
    panel = disagreements(*two(sets), image_dls(sets, bs=16, device='cpu'), static=False)
    assert panel.problem.value == ''
    drawn = png(panel.chart.figure()[0]['layout']['images'][0]['source'])
    first = sets.test.images[int(panel.chart.axes[2].marks[0].titles[0].split()[1].rstrip(':'))][0]
    assert np.array_equal(drawn[2:36:6, 2:36:6, 0], first) and (drawn[..., 0] == drawn[..., 2]).all()

def test_large_images_are_small_in_the_page_and_small_ones_exact():
    ramp = np.linspace(0, 1, 256)[None, None].repeat(256, 1)
    large, = Chart([Axes([Pictures([ramp])])]).figure()[0]['layout']['images']
    drawn = png(large['source'])
    assert (drawn[..., 3] > 0).sum() == 128*128
    assert np.abs(drawn[5, :128, 0] - (2*np.arange(128) + .5)).max() <= 1    # the mean of two pixels
    noise = np.random.default_rng(0).integers(256, size=(3, 100, 100))
    exact, = Chart([Axes([Pictures([noise/255])])]).figure()[0]['layout']['images']
    assert np.array_equal(png(exact['source'])[:100, :100, :3], noise.transpose(1, 2, 0))

def test_classes_without_a_name_have_a_number(sets):
    assert class_list('ab', 4) == ['a', 'b', '2', '3']
    assert label_name(['a'], 2) == '2'
    panel = temperature_lab(network(sets, 0, classes=7), image_dls(sets, bs=16, device='cpu'), static=False)
    assert panel.problem.value == '' and set(panel.chart.axes[-1].xticks[1]) == {*'abc3456'}
    viewer = augmentation_viewer(sets, ['noise'], network(sets, 0, classes=7), static=False)
    assert viewer.problem.value == ''

NONE = torch.zeros(0, 1, 6, 6), torch.zeros(0, dtype=torch.int64)

@pytest.mark.parametrize('look, message', [
    (lambda net, dl: temperature_lab(net, dl, n=0), 'n=0: expected at least 1'),
    (lambda net, dl: temperature_lab(net, [NONE]), 'data: expected at least one image, got none'),
    (lambda net, dl: temperature_lab(net, []), 'data: expected at least one image, got none'),
    (lambda net, dl: temperature_lab(net, dl, temp=64.), 'temp=64.0: expected a temperature in '),
    (lambda net, dl: disagreements(net, net, dl, per_page=0), 'per_page=0: expected at least 1')])
def test_what_is_out_of_range_is_named(sets, look, message):
    with pytest.raises(ValueError, match=message): look(network(sets, 0), ImageLoader(sets.test))

@pytest.mark.parametrize('overrides', [
    ['policy=ood'],
    ['classifier=timm', 'classifier.options={drop_rate: 0.1, in_chans: null, name: "1e3"}'],
    ['data_dir="my data, a=b"', 'dataset.root_dir="007"', 'exp_name="it\'s"'],
    ['device="null"', 'teacher.control=[permuted, label_noise]']])
def test_command_does_the_same_run(overrides):
    config = as_dict(compose(overrides))
    command = find_command(config)
    assert command is not None
    again = as_dict(compose(shlex.split(command)[1:]))
    assert run_identity(again) == run_identity(config) and again == config

@pytest.fixture
def run(tmp_path):
    "A run with a table of two epochs."
    with Run(tmp_path/'run', as_dict(compose(['dataset=digits']))) as run:
        for epoch in (1, 2): run.log('student_train_metrics', dict(epoch=epoch, train_loss=1.))
    return run

@pytest.mark.parametrize('table', ['epoch\n1\n2\n', 'train_loss,epo', ''])
def test_run_without_a_metric_is_shown(run, table):
    (run.path/'student_train_metrics.csv').write_text(table)
    browser = run_browser(run.path.parent, static=False)
    assert browser.problem.value == '' and browser.chart.axes[0].note == 'no epochs yet'
    live = live_run(['dataset=digits', f'data_dir={run.path.parent}'], static=False)
    live.watched.value = str(run.path)
    assert live.problem.value == '' and live.chart.axes[0].note == 'no epochs yet'

def test_run_without_settings_is_shown(run):
    (run.path/'config.yaml').unlink()
    browser = run_browser(run.path.parent, 'train_loss', static=False)
    browser.controls['runs'].value = (0,)
    assert browser.problem.value == '' and len(browser.chart.axes[0].marks) == 1
    assert 'no command is known: ' in browser.text.value
    assert 'The settings of this run cannot be read: ' in browser.text.value
