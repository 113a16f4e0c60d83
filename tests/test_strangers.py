"Networks, loaders and callbacks as others write them, in a Learner and in a report."
import copy
import subprocess
import sys
import warnings
from types import SimpleNamespace

import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.tracker import SaveModelCallback
from fastai.data.core import DataLoaders
from fastai.learner import Learner, load_learner
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from gnosis_nb.adapt import Batches, as_dls
from gnosis_nb.averages import WeightAverage
from gnosis_nb.distill import Distillation, FidelityTable, TeacherSchedule
from gnosis_nb.learner import student_learner
from gnosis_nb.metrics import Agreement, fidelity_report

PLAIN = dict(precision='fp32', compile=False)


class Quiet(Callback):
    "Neither bars nor tables."
    def before_fit(self): self.learn.logger = lambda *_: None

class Keep(Callback):
    "The teacher's answers and inputs of each training batch."
    order = 97
    def before_fit(self): self.seen = []
    def after_batch(self):
        if self.training: self.seen.append((self.xb[0].clone(), self.teacher_logits.clone()))

class Stop(Callback):
    def after_epoch(self): raise KeyboardInterrupt

def linear(seed, wide=4, classes=3):
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return nn.Linear(wide, classes)

def rows(n=24):
    g = torch.Generator().manual_seed(0)
    return torch.randn(n, 4, generator=g), torch.arange(n) % 3

def loader(*tensors, **options): return DataLoader(TensorDataset(*tensors), 8, **options)
def pairs(**options): return [loader(*rows(), **options), loader(*rows())]

def taught(student, teacher, *cbs, dls=None, n=2, **options):
    "A Learner after `n` epochs."
    learn = student_learner(dls or pairs(), student, teacher, cbs=[Quiet(), *cbs], **(PLAIN | options))
    with learn.no_bar(): learn.fit(n)
    return learn

def plain_learner(student, *cbs, dls=None, metrics=None):
    cbs = [Quiet(), *cbs]
    return Learner(as_dls(dls or pairs()), student, F.cross_entropy, cbs=cbs, metrics=metrics, lr=.1)

def fit(learn, n=1):
    with learn.no_bar(): learn.fit(n)
    return learn


def test_a_list_of_networks_and_a_path_are_models_without_further_imports():
    code = '''import torch
from gnosis_nb.metrics import fidelity_report
net, batch = torch.nn.Linear(2, 3), [(torch.ones(4, 2), torch.zeros(4, dtype=torch.long))]
assert list(fidelity_report(net, [net, net], batch).index)[2:] == ['teacher_0', 'teacher_1']
try: fidelity_report(net, 'nowhere.safetensors', batch)
except FileNotFoundError as e: print(e)'''
    said = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout
    assert 'nowhere.safetensors does not exist' in said

def test_hooks_of_a_teacher_are_called_in_every_way():
    "One that normalises its inputs, say."
    teacher = linear(1)
    teacher.register_forward_pre_hook(lambda _, given: (given[0]*100,))
    kept = Keep()
    taught(linear(2), teacher, kept, n=1)
    x, z = kept.seen[0]
    assert torch.equal(z, F.linear(x*100, teacher.weight, teacher.bias))

def test_a_forward_of_its_own_is_used_and_kept():
    "As accelerate sets one on each network that it looks after."
    student, teacher = linear(2), linear(1)
    for net in (student, teacher): net.forward = lambda x, net=net: F.linear(x, net.weight*10, net.bias)
    before, x = student.forward, rows()[0]
    kept, want = Keep(), teacher(x[:8]).detach()
    learn = taught(student, teacher, kept, lr=0., eta_min=0.)
    assert student.forward is before
    assert any(torch.equal(z, want) for _, z in kept.seen)
    preds = learn.get_preds(act=nn.Identity())[0]
    assert torch.allclose(preds, student(x))

def compiled(net): return torch.compile(net, backend='eager')

@pytest.mark.parametrize('precision', ['fp32', 'bf16'])
@pytest.mark.parametrize('make', [compiled, torch.jit.script, nn.DataParallel])
def test_wrapped_networks_teach_and_are_measured(make, precision):
    teacher, kept, table = linear(1), Keep(), FidelityTable()
    taught(linear(2), make(copy.deepcopy(teacher)), kept, table, n=1, precision=precision)
    x, z = kept.seen[0]
    assert torch.allclose(z, teacher(x).detach(), atol=0 if precision == 'fp32' else .05)
    assert len(table.rows) == 1

def test_a_compiled_student_learns_as_the_network_itself():
    nets = linear(2), compiled(linear(2))
    for net in nets: taught(net, linear(1))
    assert torch.allclose(nets[0].weight, nets[1]._orig_mod.weight, atol=1e-6)
    assert not torch.equal(nets[0].weight, linear(2).weight)

def test_an_ensemble_is_no_student():
    with pytest.raises(ValueError, match=r'student_logits.shape=\(8, 1, 3\): expected \[batch, classes\]'):
        taught([linear(2)], linear(1))

@pytest.mark.parametrize('interrupted', [False, True])
def test_a_student_is_exported_without_its_teacher(tmp_path, interrupted):
    learn = student_learner(pairs(), linear(2), linear(1), cbs=[Quiet(), *[Stop()]*interrupted], **PLAIN)
    try: fit(learn)
    except KeyboardInterrupt: assert interrupted
    learn.remove_cb(Stop)
    learn.export(tmp_path/'student.pkl')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')                                      # of pickle
        loaded = load_learner(tmp_path/'student.pkl')
    assert torch.equal(loaded.model.weight, learn.model.weight)
    assert loaded.distillation.teacher is None
    x, y = rows()
    loaded.dls = as_dls(pairs())
    with loaded.no_bar(): preds, targets = loaded.get_preds(act=nn.Identity())
    assert torch.equal(preds, learn.model(x).detach()) and torch.equal(targets, y)

def test_a_loader_with_a_sampler_is_predicted_as_it_is():
    part = [16, 17, 18]
    learn = plain_learner(linear(2), dls=[pairs()[0], loader(*rows(), sampler=part)])
    with learn.no_bar(): preds, targets = learn.get_preds(act=nn.Identity())
    assert torch.equal(targets, rows()[1][part]) and len(preds) == 3

def test_frozen_layers_may_be_shared():
    front = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).requires_grad_(False)
    student, teacher = (nn.Sequential(front, linear(seed)) for seed in (2, 1))
    with pytest.raises(ValueError, match='they share layers'): taught(student, teacher)
    taught(student, teacher, freeze_bn=True)

def test_predictions_for_training_data_are_in_order():
    learn = plain_learner(linear(2), dls=pairs(shuffle=True, drop_last=True))
    with learn.no_bar(): preds, targets = learn.get_preds(ds_idx=0, act=nn.Identity())
    assert torch.equal(preds, learn.model(rows()[0]).detach()) and torch.equal(targets, rows()[1])


class Answer(nn.Module):
    "As a network of Hugging Face: named inputs, an object with logits."
    def __init__(self, seed):
        super().__init__()
        self.net = linear(seed)
    def forward(self, x, mask=None, types=None):
        logits = self.net(x if mask is None else x*mask)
        return SimpleNamespace(logits=logits if types is None else logits + torch.arange(3)*types)

class Rest(nn.Module):
    def __init__(self, seed):
        super().__init__()
        self.net = linear(seed)
    def forward(self, x): return self.net(x), 'something else'

def named(n=24):
    x, y = rows(n)
    g = torch.Generator().manual_seed(1)
    mask, types = torch.rand(n, 4, generator=g), torch.rand(n, 1, generator=g)
    whole = dict(x=x, types=types, mask=mask, labels=y)
    return [{k: v[i:i+8] for k, v in whole.items()} for i in range(0, n, 8)]

@pytest.mark.parametrize('make', [Answer, Rest])
def test_objects_with_logits_in_a_learner_of_fastai(make):
    teacher, table = make(1), FidelityTable()
    metrics = [Agreement(), Agreement([make(1), make(1)])]
    learn = plain_learner(make(2), Distillation(teacher), table, metrics=metrics)
    fit(learn, 2)
    report = fidelity_report(learn.model, teacher, learn.dls.valid)
    assert table.rows[-1]['test_ts_agree'] == report.agreement['student']
    assert learn.metrics[0].value == learn.metrics[1].value == report.agreement['student']

def test_named_inputs_reach_each_member_of_an_ensemble():
    both = [Rest(1), Answer(2)]
    batch = named()[0]
    report = fidelity_report(Answer(2), both, [batch])
    want = fidelity_report(Answer(2), [both[1], both[0]], [batch])
    assert report.loc['teacher_0'].equals(want.loc['teacher_1'])
    assert fidelity_report(both[1], both[1], [batch]).kl['student'] == 0
    ask = compiled(copy.deepcopy(both[1]))
    assert fidelity_report(ask, both[1], [batch]).kl['student'] < 1e-6

def test_named_inputs_by_position_are_refused_where_they_would_be_exchanged():
    learn = plain_learner(Answer(2), Distillation(Answer(1)), dls=[named(), named()])
    with pytest.raises(ValueError, match='a batch has x, types, mask, which a plain Learner gives'):
        fit(learn)
    ordered = [Batches(named(), inputs=['x', 'mask', 'types'])]*2
    same = Answer(1)
    learn = plain_learner(copy.deepcopy(same), Distillation(same), dls=ordered, metrics=Agreement())
    learn.lr = 0.
    assert fit(learn).metrics[0].value == 1
    taught(Answer(2), same, dls=[named(), named()])                           # by name

def test_stages_of_a_schedule_get_inputs_by_name():
    kept, stage = Keep(), Answer(3)
    ordered = [Batches(named(), inputs=['x', 'mask', 'types'])]*2
    cbs = Distillation(Answer(1)), TeacherSchedule([stage], [1]), kept
    fit(plain_learner(Answer(2), *cbs, dls=ordered))
    first = named()[0]
    want = stage(first['x'], first['mask'], first['types']).logits
    assert torch.equal(kept.seen[0][1], want.detach())

def test_validation_batches_may_have_fewer_inputs():
    x, y = rows()
    both, one = [dict(x=x, mask=x > 0, labels=y)], [dict(x=x, labels=y)]
    for dls in ([both, one], [one, both]):
        table = FidelityTable()
        taught(Answer(2), Answer(1), table, dls=dls)
        assert 'test_ts_agree' in table.rows[-1]

def test_temperatures_of_a_torch_loader_are_used():
    "A student whose loader gives τ = 2 is one of a Learner with τ = 2."
    x, y = rows()
    tempered = [loader(x, y, torch.full((24, 1), 2.)), pairs()[1]]
    def weights(**options): return taught(linear(2), linear(1), **options).model.weight
    found = weights(dls=tempered, temp=4.)
    assert torch.allclose(found, weights(temp=2.), atol=1e-6)
    learn = plain_learner(linear(2), dls=[tempered[0]]*2)                    # which has no use for them
    with learn.no_bar(): assert len(learn.get_preds()[0]) == 24
    fit(learn)
    assert not torch.allclose(found, weights(temp=4.), atol=1e-4)


class TwoInputs(nn.Module):
    "With a pooling layer that is called, and perhaps one that is not."
    def __init__(self, seed, unused=False):
        super().__init__()
        self.pool, self.net = nn.MaxPool2d(2), linear(seed, 8)
        if unused: self.never = nn.MaxPool2d(3)
    def forward(self, a, b):
        halves = [self.pool(o[:, None, None].expand(-1, 2, 4, -1)).mean((2, 3)) for o in (a, b)]
        return self.net(torch.cat(halves*2, 1))

@pytest.mark.parametrize('unused', [False, True])
def test_a_table_of_a_network_with_two_inputs(unused):
    x, y = rows()
    dls = [loader(x, x.flip(0), y)]*2
    table = FidelityTable()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        taught(TwoInputs(2, unused), TwoInputs(1), table, dls=dls)
    assert len(table.rows) == 2 and ('test_cka_0' in table.rows[-1]) == (not unused)
    # stages that differ in number are not compared, which needs no words
    assert not any('no CKA' in str(o.message) for o in said)

def test_a_layer_that_is_never_called_costs_its_cka_and_nothing_else():
    x, y = rows()
    dls, table = [loader(x, x.flip(0), y)]*2, FidelityTable()
    with pytest.warns(UserWarning, match='no CKA of stages: .*expected a layer that TwoInputs calls'):
        taught(TwoInputs(2, True), TwoInputs(1, True), table, dls=dls)
    assert len(table.rows) == 2 and 'test_ts_agree' in table.rows[-1]

def test_training_without_validation_data():
    table = FidelityTable()
    taught(linear(2), linear(1), table, dls=DataLoaders(*as_dls([pairs()[0], []]).loaders), metrics=[])
    assert len(table.rows) == 2 and 'test_acc' not in table.rows[-1]

def test_the_best_of_averages_is_not_saved():
    with pytest.raises(ValueError, match='expected no SaveModelCallback beside WeightAverage'):
        taught(linear(2), linear(1), WeightAverage('ema', .5), SaveModelCallback())
