"Representations of the package's own networks, and an independent program for CKA."
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from gnosis_nb.adapt import put_before
from gnosis_nb.cka import StreamingCKA, cka_matrix, has_stages, linear_cka, stage_cka, stage_features, stages
from gnosis_nb.distill import FidelityTable
from gnosis_nb.learner import student_learner
from gnosis_nb.models import ClassifierEnsemble, build_classifier

torch.set_num_threads(1)
GEN = torch.Generator().manual_seed(0)


def network(name, seed=0, channels=3, size=32, **options):
    return build_classifier(name, 10, channels, size, seed, **options)
def images(n, channels=3, size=32): return torch.rand(n, channels, size, size, generator=GEN)
def same(found, expected):
    return len(found) == len(expected) and all(torch.allclose(*o, atol=1e-6) for o in zip(found, expected))
def features(*sizes): return [torch.randn(96, p, generator=GEN, dtype=torch.double) + 2 for p in sizes]

def test_streaming_cka_equals_an_independent_program():
    other = pytest.importorskip('cka')
    X, Y = features(5, 40, 200), features(7, 30)
    X[1] = X[1] + Y[1].repeat(1, 2)[:, :40]
    one = StreamingCKA(); one.update(X, Y)
    expected = other.cka_from_features(X, Y) # clamps at 0
    assert torch.allclose(one.compute().clamp(min=0), expected, atol=1e-10) and expected.max() > .1

def test_cka_over_batches_equals_an_independent_program():
    other, many, sums = pytest.importorskip('cka'), StreamingCKA(), []
    X, Y = features(5, 40, 200), features(7, 30)
    for i in range(0, 96, 24):
        batch = [[layer[i:i + 24] for layer in side] for side in (X, Y)]
        many.update(*batch)
        sums.append(other.hsic(*(torch.stack([layer @ layer.T for layer in side]) for side in batch)))
    xy, xx, yy = (sum(parts) for parts in zip(*sums))
    assert torch.allclose(many.compute(), xy/(xx[:, None]*yy).sqrt(), atol=1e-8, equal_nan=True)

def test_matrix_equals_an_independent_program():
    other = pytest.importorskip('cka')
    def net(): return nn.Sequential(nn.Linear(6, 20), nn.Tanh(), nn.Linear(20, 9), nn.Tanh(), nn.Linear(9, 4))
    nets = net(), net()
    x = torch.randn(64, 6, generator=GEN)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, torch.zeros(64)), 16)
    expected, = other.compute_cka(*nets, loader, layers=['0', '2', '4'], device='cpu', progress=False)
    np.testing.assert_allclose(cka_matrix(*nets, loader).to_numpy(), expected.numpy(), atol=1e-4)

@pytest.mark.parametrize('name, options, size, channels, count', [
    ('preresnet', dict(depth=8), 16, 3, 3),
    ('preresnet', dict(depth=14, norm='layer'), 16, 3, 3),
    ('preresnet', dict(depth=8, skip_connections=False), 16, 3, 3),
    ('vgg', dict(depth=11), 32, 3, 5),
    ('vgg', dict(depth=11, batch_norm=True), 32, 3, 5),
    ('lenet', {}, 28, 1, 2)])
def test_stages_of_images(name, options, size, channels, count):
    net, x = network(name, 0, channels, size, **options), images(6, channels, size)
    feats = stage_features(net, x)
    assert len(stages(net)) == len(feats) == count and all(f.shape[0] == 6 and f.ndim == 2 for f in feats)
    if hasattr(net, 'preacts'):
        with torch.no_grad(): expected = [a.mean((2, 3)) for a in net.eval().preacts(x)]
        assert all(torch.allclose(f, e, atol=1e-5) for f, e in zip(feats, expected))
    ensemble = ClassifierEnsemble(net, network(name, 1, channels, size, **options))
    assert stage_cka(net, ensemble, [x]) == pytest.approx([1.]*count, abs=1e-6)

def test_networks_of_different_depth_have_stages_in_common():
    shallow, deep, x = network('preresnet', 0, depth=8), network('preresnet', 1, depth=14), images(12)
    values = stage_cka(shallow, ClassifierEnsemble(deep, shallow), x.split(4))
    expected = [linear_cka(a, b) for a, b in zip(stage_features(shallow, x), stage_features(deep, x))]
    assert len(values) == 3 and values == pytest.approx(expected, abs=1e-6)

def test_networks_of_another_kind_have_no_stages_in_common_but_layers():
    nets, x = (network('preresnet', depth=8), network('vgg', 2, depth=11)), images(12)
    assert stage_cka(*nets, [x]) == []
    layers = [sum(isinstance(m, (nn.Conv2d, nn.Linear)) for m in net.modules()) for net in nets]
    assert cka_matrix(*nets, x.split(6)).shape == tuple(layers) and layers[1] == 8 + 3
    assert not any(m._forward_hooks for net in nets for m in net.modules())

def test_an_lstm_is_compared_at_its_final_states():
    options = dict(num_words=30, embedding_size=8, lstm_cell_size=5)
    nets = [build_classifier('lstm', 2, seed=seed, **options) for seed in (0, 1)]
    lengths = torch.randint(1, 12, (20,), generator=GEN)
    x = torch.cat([lengths[None], torch.randint(30, (11, 20), generator=GEN)])
    assert not has_stages(nets[0]) and stage_cka(*nets, [x]) == []
    assert stage_features(nets[0], x, ['linear:input'])[0].shape == (20, 10)
    value, = stage_cka(*nets, [x], layers=['linear:input'])
    assert 0 < value < 1
    assert list(cka_matrix(*nets, [x]).index) == ['linear']
    with pytest.raises(ValueError, match="layers='lstm': expected a layer that LSTMClassifier calls"):
        stage_features(nets[0], x, ['lstm'])
    with pytest.raises(ValueError, match="layers='embed': expected a row for each of 20 examples, found 11"):
        stage_features(nets[0], x, ['embed'])

def test_compiled_forward_of_a_learner_does_not_hide_the_layers():
    net, x = network('preresnet', 0, depth=8, size=16), images(5, size=16)
    expected = stage_features(net, x)
    put_before(net, lambda x: pytest.fail('the network was run as training runs it'))
    assert all(torch.equal(a, b) for a, b in zip(expected, stage_features(net, x)))

def test_features_of_tokens_are_means_over_tokens():
    block = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    net = nn.Sequential(nn.Linear(5, 4), block, nn.GELU(), nn.Linear(4, 3)).eval()
    x = torch.randn(7, 6, 5, generator=GEN)
    with torch.no_grad(): a = net[0](x); b = block(a); z = net(x)
    expected = [a.mean(1), b.mean(1), net[2](b).mean(1), z.mean(1)]
    assert same(stage_features(net, x, ['0', '1', '3:input', '3']), expected)

def test_features_of_a_series_are_means_over_its_length():
    net = nn.Sequential(nn.Conv1d(5, 4, 3), nn.BatchNorm1d(4), nn.MaxPool1d(2)).eval()
    x = torch.randn(7, 5, 9, generator=GEN)
    with torch.no_grad(): expected = [net[:i + 1](x).mean(2) for i in range(3)]
    assert same(stage_features(net, x, ['0', '1', '2']), expected)
    both = nn.Sequential(net[0], nn.Linear(7, 7))
    with pytest.raises(ValueError, match="layers='0': expected a layer whose channels are known"):
        stage_features(nn.Sequential(both), x, ['0'])

def test_linear_layers_have_their_channels_last_and_convolutions_second():
    net, x = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Linear(8, 5), nn.LayerNorm(5)).eval(), images(6, size=8)
    with torch.no_grad(): a = net[0](x); b = net[1](a); c = net(x)
    expected = a.mean((2, 3)), b.mean((1, 2)), c.mean((1, 2))
    assert same(stage_features(net, x, ['0', '1', '2']), expected)

def test_layers_of_a_vision_transformer():
    net = pytest.importorskip('torchvision').models.VisionTransformer(8, 4, 1, 2, 16, 32, num_classes=5)
    matrix = cka_matrix(net, net, [images(6, size=8)])
    mlp = 'encoder.layers.encoder_layer_0.mlp'
    assert list(matrix.index) == ['conv_proj', f'{mlp}.0', f'{mlp}.3', 'heads.head']

class Recurrent(nn.Module):
    "A network whose only stage returns a tuple."
    def __init__(self):
        super().__init__()
        self.layer1, self.out = nn.GRU(4, 8, batch_first=True), nn.Linear(8, 5)
    def forward(self, x): return self.out(self.layer1(x)[0][:, -1])

def test_a_stage_that_returns_a_tuple_has_no_cka():
    x, y = torch.randn(32, 6, 4, generator=GEN), torch.randint(5, (32,), generator=GEN)
    dl = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), 16)
    with pytest.raises(ValueError, match="layers='layer1': expected a layer with a tensor, found tuple"):
        stage_cka(Recurrent(), Recurrent(), dl)
    table = FidelityTable()
    learn = student_learner([dl, dl], Recurrent(), Recurrent(), cbs=table)
    with warnings.catch_warnings(record=True) as said, learn.no_bar(), learn.no_logging():
        warnings.simplefilter('always')
        learn.fit(2)
    assert sum('no CKA of stages' in str(o.message) for o in said) == 1
    assert len(table.rows) == 2 and 'test_acc' in table.rows[-1] and 'test_cka_0' not in table.rows[-1]
