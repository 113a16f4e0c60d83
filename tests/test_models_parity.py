"""State dicts and outputs of the networks against numbers recorded from the paper's implementation."""
import pytest
import torch

from gnosis_nb.models import (DCGANDiscriminator, DCGANGenerator, LeNet, LSTMClassifier, PreResNet,
    SNGANDiscriminator, SNGANGenerator, VGG)
from parity import fill_weights, recorded, recorded_shapes, rel_err, state_shapes

TOL = 1e-4
MODELS = dict(
    preresnet20=(lambda: PreResNet(100, 20), 'x32'),
    preresnet56=(lambda: PreResNet(100, 56), 'x32'),
    preresnet20_noskip=(lambda: PreResNet(10, 20, skip_connections=False), 'x32'),
    preresnet20_64px=(lambda: PreResNet(200, 20, input_size=64), 'x64'),
    vgg16=(lambda: VGG(100, 16), 'x32'),
    vgg19_bn=(lambda: VGG(10, 19, batch_norm=True), 'x32'),
    lenet=(lambda: LeNet(10), 'x28'),
    lstm_bi1=(lambda: LSTMClassifier(50), 'lstm/input'),
    lstm_bi2=(lambda: LSTMClassifier(50, lstm_cell_size=70, depth=2), 'lstm/input'),
    sngan_generator_k64=(lambda: SNGANGenerator(k=64), 'z128'),
    dcgan_generator_ngf16=(lambda: DCGANGenerator(ngf=16), 'z100'),
    dcgan_discriminator_ndf16=(lambda: DCGANDiscriminator(ndf=16), 'x32'),
    sngan_discriminator_k32=(lambda: SNGANDiscriminator(k=32), None)) # no outputs were recorded

def names(pick): return [n for n, (_, inp) in MODELS.items() if pick(n, inp)]

@pytest.mark.parametrize('name', MODELS)
def test_state_dict(name):
    assert state_shapes(MODELS[name][0]()) == recorded_shapes(name)

@pytest.mark.parametrize('name', names(lambda n, inp: inp))
def test_output(name):
    build, inp = MODELS[name]
    with torch.no_grad(): out = fill_weights(build())(recorded(inp))
    assert rel_err(out, recorded(f'model/{name}')) < TOL

@pytest.mark.parametrize('name', names(lambda n, inp: n.startswith('preresnet')))
def test_preacts(name):
    build, inp = MODELS[name]
    with torch.no_grad(): stages = fill_weights(build()).preacts(recorded(inp))
    assert len(stages) == 3
    for i, a in enumerate(stages):
        assert rel_err(a.mean((2, 3)), recorded(f'preact/{name}/{i}')) < TOL, f'stage {i}'
