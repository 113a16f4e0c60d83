"Who teaches and what is kept: averages, drawn members, temperatures, smoothed labels, patience."
import json

import pytest
import torch
from fastai.callback.core import Callback

from experiments import equal, images, loaded, report, same_networks, table, weights
from gnosis_nb.averages import WeightAverage
from gnosis_nb.cli import compose
from gnosis_nb.compute import PythonGraph
from gnosis_nb.data.loaders import image_dls
from gnosis_nb.data.zoo import digits
from gnosis_nb.distill import FidelityTable
from gnosis_nb.learner import student_learner
from gnosis_nb.losses import ConvexCrossEntropy, ForwardCrossEntropy
from gnosis_nb.losses_beyond import DrawnMember
from gnosis_nb.metrics import fidelity_report
from gnosis_nb.models import build_classifier
from gnosis_nb.runs import run_identity
from gnosis_nb.settings import as_dict
from versions import records_on_cpu

TWO = ['teacher.num_components=2', 'dataset.subsample.ratio=0.5', 'dataset.shrink.train=300',
       'dataset.shrink.test=300', 'teacher.trainer.batch_size=16', 'trainer.precision=fp32']
LONG = 'teacher.trainer.num_epochs=10'


@pytest.fixture(scope='module')
def shared(tmp_path_factory):
    "A folder of runs with the same two teachers, and the first of them."
    folder = tmp_path_factory.mktemp('runs')
    return folder, images(folder, *TWO, LONG)[0]

def again(shared, *overrides):
    run, lines = images(shared[0], *TWO, LONG, *overrides)
    assert len(loaded(lines)) == 2
    return run

class Listens(Callback):
    "Puts a Learner on the path batch by batch."
    def after_batch(self): pass


# Averages

def test_no_average_is_the_student(shared):
    other = again(shared, 'trainer.average=ema', 'trainer.average_decay=0')
    assert equal(weights(other, 'student'), weights(shared[1], 'student'))
    assert table(other).equals(table(shared[1]))

def test_what_is_saved_and_reported_is_the_average_that_was_evaluated(shared):
    run = again(shared, 'trainer.average=ema', 'trainer.average_decay=0.5')
    assert not equal(weights(run, 'student'), weights(shared[1], 'student'))
    last, first = (table(o).iloc[-1] for o in (run, shared[1]))
    assert last.train_loss == first.train_loss and last.test_ts_kl != first.test_ts_kl
    assert last.test_ts_kl == pytest.approx(report(run).kl['student'], abs=1e-6)

def learner(loss=None, n=2, members=1, record=None, average=None, listens=False):
    "A student after two epochs, and its table."
    teachers = [build_classifier('lenet', 10, in_channels=1, input_size=28, seed=i) for i in range(members)]
    sets, tab = digits(size=28), FidelityTable()
    sets.train = sets.train.subset(range(192))
    cbs = [tab, *([Listens()] if listens else []), *([average] if average else [])]
    student = build_classifier('lenet', 10, in_channels=1, input_size=28, seed=9)
    dls = image_dls(sets, 32, eval_bs=450, seed=1)
    learn = student_learner(dls, student, teachers, loss, metrics=[], cbs=cbs, precision='fp32')
    learn.step_engine.record = record
    with learn.no_bar(), learn.no_logging(): learn.fit(n)
    return student.state_dict(), tab.rows, teachers, learn

@records_on_cpu
@pytest.mark.parametrize('average', [('ema', .7), ('swa', .999, .4)])
def test_an_average_on_every_path(average):
    plain, *_ = learner(average=WeightAverage(*average))
    assert equal(plain, learner(average=WeightAverage(*average), listens=True)[0])
    PythonGraph.made = 0
    recorded, *_ = learner(average=WeightAverage(*average), record=PythonGraph)
    assert PythonGraph.made
    for k, v in plain.items(): torch.testing.assert_close(recorded[k], v, atol=1e-4, rtol=0)

def test_an_interrupted_evaluation_leaves_the_student():
    class Stop(Callback):
        order = 99                                                           # when the average is shown
        def before_validate(self):
            self.shown = next(self.model.parameters()).detach().clone()
            raise KeyboardInterrupt()
    stop, average = Stop(), WeightAverage('ema', .5)
    student = build_classifier('lenet', 10, in_channels=1, input_size=28, seed=9)
    teacher = build_classifier('lenet', 10, in_channels=1, input_size=28, seed=1)
    dls = image_dls(digits(size=28), 500)
    learn = student_learner(dls, student, teacher, metrics=[], cbs=[average, stop])
    with pytest.raises(KeyboardInterrupt), learn.no_bar(), learn.no_logging(): learn.fit(2)
    assert not torch.equal(next(student.parameters()), stop.shown)
    assert not learn.opt.opt._optimizer_step_post_hooks


# Drawn members

def drawn(loss=ForwardCrossEntropy, seed=0, **options):
    return DrawnMember(loss(**options), torch.Generator().manual_seed(seed))

def test_one_member_is_always_drawn():
    for loss, options in ((ForwardCrossEntropy, {}), (ConvexCrossEntropy, dict(T_max=2))):
        one, other = learner(loss(**options)), learner(drawn(loss, **options))
        assert equal(one[0], other[0]) and one[1] == other[1]

def test_members_are_drawn_alike_on_every_path():
    plain, rows, teachers, learn = learner(drawn(), members=2)
    other, other_rows, *_ = learner(drawn(), members=2, listens=True)
    assert equal(plain, other) and rows == other_rows
    assert not equal(plain, learner(drawn(seed=1), members=2)[0])
    assert not equal(plain, learner(members=2)[0])
    measured = fidelity_report(learn.model, teachers, learn.dls.valid)       # against both of them
    assert rows[-1]['test_ts_kl'] == pytest.approx(measured.kl['student'], abs=1e-6)

def test_a_run_draws_and_begins_as_others(shared):
    run = again(shared, 'teacher.draw_member=true')
    same, other = ([equal(weights(run, o), weights(shared[1], o))] for o in ('student_init', 'student'))
    assert same == [True] and other == [False]


# How sure teachers are

def test_a_fitted_temperature_calibrates_and_is_what_students_learn(shared):
    run = again(shared, 'teacher.temperature=fit')
    value, = run.state['teacher_temperature']
    before, after = report(shared[1]).loc['teacher'], report(run).loc['teacher']
    assert value != 1 and after.nll < before.nll and after.ece < before.ece
    same = again(shared, f'teacher.temperature={value}')
    assert same_networks(run, same) and report(same).equals(report(run))
    assert not equal(weights(run, 'student'), weights(shared[1], 'student'))
    assert equal(weights(run, 'student_init'), weights(shared[1], 'student_init'))

def test_teachers_of_smoothed_labels_have_a_pool_of_their_own(shared):
    smooth = [*TWO, 'teacher.trainer.num_epochs=2', 'teacher.trainer.label_smoothing=0.2']
    run, lines = images(shared[0], *smooth)
    assert not loaded(lines) and 'label_smoothing 0.0 instead of 0.2' in ' '.join(lines)
    run, lines = images(shared[0], *smooth)
    assert len(loaded(lines)) == 2
    again(shared)                                                            # finds the first two

@pytest.mark.parametrize('override', ['teacher.trainer.label_smoothing=0.1', 'teacher.temperature=2',
    'teacher.draw_member=true', 'trainer.average=swa', 'trainer.average_start=0.5'])
def test_each_makes_another_run_and_its_default_does_not(override):
    def identity(cfg, without=False):
        cfg = json.loads(json.dumps(cfg))
        if without:
            for key in ('temperature', 'draw_member'): del cfg['teacher'][key]
            for key in ('average', 'average_decay', 'average_start'): del cfg['trainer'][key]
            del cfg['teacher']['trainer']['label_smoothing']
        return run_identity(cfg)
    plain = as_dict(compose(['+experiment=digits']))
    assert identity(plain) == identity(plain, without=True)                  # as runs from before
    assert identity(as_dict(compose(['+experiment=digits', override]))) != identity(plain)


# Patience

def test_patience_goes_with_any_data():
    for data in ([], ['dataset=cifar10'], ['dataset=image_folder', 'dataset.root_dir=x']):
        cfg = compose(['+experiment=patient', *data])
        shown = cfg.distill_loader
        assert (shown.mixup_alpha, shown.transforms_list, shown.temp) == (1., ['random_resized_crop'], 1.)
        assert (cfg.loss.name, cfg.loss.alpha, cfg.trainer.num_epochs) == ('teacher_student_kl', 0., 3000)
    small = compose(['+experiment=[digits,patient]', 'trainer.num_epochs=50'])
    assert (small.dataset.name, small.classifier.depth, small.trainer.num_epochs) == ('digits', 8, 50)
