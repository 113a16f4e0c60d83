"A student learns under the callbacks that users of fastai add to a Learner."
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.mixup import CutMix, MixUp
from fastai.callback.progress import CSVLogger, ShowGraphCallback
from fastai.callback.tracker import EarlyStoppingCallback, ReduceLROnPlateau, SaveModelCallback
from fastai.callback.training import GradientAccumulation, GradientClip

from gnosis_nb.data.loaders import image_dls
from gnosis_nb.data.zoo import digits
from gnosis_nb.learner import student_learner
from gnosis_nb.metrics import fidelity_report
from gnosis_nb.models import build_classifier

EPOCHS = 3

@pytest.fixture(scope='module')
def teacher(): return build_classifier('preresnet', 10, 1, 8, depth=8, seed=0).eval()

def student(teacher, folder, *cbs, lr=.05):
    "A student's Learner, with everything that runs have."
    net = build_classifier('preresnet', 10, 1, 8, depth=8, seed=1)
    dls = image_dls(digits(size=8), bs=128, eval_bs=450, seed=0, device='cpu')
    return student_learner(dls, net, teacher, lr=lr, precision='fp32', path=folder, cbs=list(cbs))

def fit(learn, do=None):
    with warnings.catch_warnings(), learn.no_bar(), learn.no_logging():
        warnings.simplefilter('ignore')  # those that say what it costs are tested with the engine
        (do or (lambda: learn.fit(EPOCHS)))()
    return learn

class Steps(Callback):
    "Counts the optimiser's steps, and notes the largest norm of a step's gradients."
    order = 1999
    def before_fit(self): self.n, self.norm = 0, 0.
    def before_step(self):
        self.n += 1
        norms = [p.grad.norm() for p in self.model.parameters() if p.grad is not None]
        self.norm = max(self.norm, torch.stack(norms).norm().item())

@pytest.mark.parametrize('make', [MixUp, CutMix, MixedPrecision, ReduceLROnPlateau],
    ids=lambda o: o.__name__)
def test_a_student_learns(teacher, tmp_path, make):
    learn = fit(student(teacher, tmp_path, make()))
    values = learn.recorder.values
    assert len(values) == EPOCHS and values[-1][-1] < .7*values[0][-1]  # KL to the teacher falls
    assert learn.loss_func.__name__ == 'cross_entropy'  # it has its own loss again

def test_the_graph_is_drawn(teacher, tmp_path, monkeypatch):
    learn, graphs = student(teacher, tmp_path, ShowGraphCallback()), []
    bar = 'fastprogress.fastprogress.ConsoleMasterBar'
    monkeypatch.setattr(f'{bar}.update_graph', lambda bar, graphs_of, *bounds: graphs.append(graphs_of))
    with learn.no_logging(): learn.fit(2)
    (_, losses), (_, valid) = graphs[-1]
    assert len(losses) == 2*len(learn.dls.train) and len(valid) == 2

def test_gradients_are_accumulated(teacher, tmp_path):
    steps = Steps()
    learn = fit(student(teacher, tmp_path, GradientAccumulation(n_acc=3*128), steps))
    assert 0 < steps.n <= EPOCHS*(len(learn.dls.train)//3 + 1)

def test_gradients_are_clipped(teacher, tmp_path):
    steps = Steps()
    fit(student(teacher, tmp_path, GradientClip(.01), steps))
    assert 0 < steps.norm <= .0101

def test_the_best_weights_are_saved(teacher, tmp_path):
    save = SaveModelCallback(monitor='predictive_kl', comp=np.less, fname='best')
    learn = fit(student(teacher, tmp_path, save))
    best = min(o[-1] for o in learn.recorder.values)
    assert (tmp_path/'models'/'best.pth').exists()
    report = fidelity_report(learn, teacher, learn.dls.valid)  # they are loaded at the end
    assert report.loc['student', 'kl'] == pytest.approx(best, rel=1e-4)

def test_training_stops_early(teacher, tmp_path):
    stop = EarlyStoppingCallback(monitor='agreement', min_delta=1., patience=1)
    learn = student(teacher, tmp_path, stop)
    fit(learn, lambda: learn.fit(9))
    assert len(learn.recorder.values) == 2

def test_a_table_is_written(teacher, tmp_path):
    learn = fit(student(teacher, tmp_path, CSVLogger(fname='log.csv')))
    table = pd.read_csv(tmp_path/'log.csv')
    assert table.epoch.tolist() == [0, 1, 2]
    assert table.agreement.tolist() == pytest.approx([o[-2] for o in learn.recorder.values], abs=1e-5)

def test_tensorboard(teacher, tmp_path):
    tensorboard = pytest.importorskip('fastai.callback.tensorboard')
    learn = student(teacher, tmp_path)
    cb = tensorboard.TensorBoardCallback(log_dir=tmp_path/'tb', trace_model=False, log_preds=False)
    fit(learn, lambda: learn.fit(1, cbs=cb))
    assert list((tmp_path/'tb').glob('events*'))

def test_wandb(teacher, tmp_path, monkeypatch):
    "fastai's own callback, without a network."
    wandb = pytest.importorskip('wandb')
    from fastai.callback.wandb import WandbCallback
    monkeypatch.chdir(tmp_path)
    learn = student(teacher, tmp_path)
    with wandb.init(mode='offline', dir=tmp_path, settings=wandb.Settings(silent=True)) as run:
        fit(learn, lambda: learn.fit(1, cbs=WandbCallback(log=None, log_preds=False, log_model=False)))
        assert run.summary['agreement'] == pytest.approx(learn.recorder.values[-1][-2], abs=1e-5)
    assert list(tmp_path.glob('wandb/offline-run-*'))

def test_one_cycle(teacher, tmp_path):
    learn = student(teacher, tmp_path)
    fit(learn, lambda: learn.fit_one_cycle(EPOCHS, .05))
    assert len(learn.recorder.lrs) == EPOCHS*len(learn.dls.train)
