"The later losses in a Learner: teacher, labels and rows without labels reach them."
import pytest
import torch

from gnosis_nb.data.loaders import image_dls
from gnosis_nb.data.zoo import digits
from gnosis_nb.learner import student_learner
from gnosis_nb.losses_beyond import ALL_LOSSES, DecoupledKD, LogitStandardization
from gnosis_nb.losses import StudentLoss
from gnosis_nb.models import ClassifierEnsemble, build_classifier

torch.set_num_threads(1)


def network(seed): return build_classifier('preresnet', 10, in_channels=1, input_size=8, depth=8, seed=seed)

def fit(loss, epochs=1):
    dls = image_dls(digits(size=8), bs=256, eval_bs=512, seed=0)
    teacher = ClassifierEnsemble(network(1), network(2))
    learn = student_learner(dls, network(0), teacher, loss, precision='fp32', compile=False)
    with learn.no_bar(), learn.no_logging(): learn.fit(epochs)
    return learn.recorder.values[-1][0], [p.detach().clone() for p in learn.model.parameters()]

@pytest.mark.parametrize('name', ['decoupled_kd', 'dist', 'logit_standardization', 'logit_mse'])
def test_a_learner_trains_with_it(name):
    (one, weights), (two, again) = fit(ALL_LOSSES[name]()), fit(ALL_LOSSES[name]())
    assert 0 < one < 1e3 and one == two
    assert all(torch.equal(a, b) for a, b in zip(weights, again))

@pytest.mark.parametrize('wrap', [lambda loss: loss, LogitStandardization])
def test_labels_reach_the_loss_that_asks_for_them(wrap):
    (_, of_labels), (_, of_teacher) = (fit(wrap(DecoupledKD(target=o))) for o in ('label', 'teacher'))
    assert any(not torch.equal(a, b) for a, b in zip(of_labels, of_teacher))

def test_rows_without_a_label_follow_the_teacher():
    generator = torch.Generator().manual_seed(0)
    z_t, z_s = (torch.randn(20, 5, generator=generator) for _ in range(2))
    loss, of_teacher = StudentLoss(DecoupledKD(target='label')), DecoupledKD()(z_t, z_s, 4.)
    assert loss(z_t, z_s, torch.full((20,), -100), 4.) == of_teacher == loss(z_t, z_s, z_t.argmax(-1), 4.)
