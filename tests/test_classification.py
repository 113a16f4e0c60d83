"Images and texts alike, from end to end: the paper's commands, teachers, students, files, and how runs fail."
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: PLC2701
from torchvision import datasets

import gnosis_nb.distill as distill
from experiments import (ROOT, SHORT, SMALL, TEACHERS, checkpoints, conduct, equal, loaded, report,
    same_networks, script, small, states_below, table, weights)
from fakes import fake_cifar, fake_imdb
from gnosis_nb.checkpoint import load_network, save_checkpoint
from gnosis_nb.cli import compose
from gnosis_nb.inputs import load_inputs
from gnosis_nb.losses import LOSSES
from gnosis_nb.models import SNGANGenerator, build_classifier
from gnosis_nb.runs import find_runs
from gnosis_nb.schema import ConfigError
from gnosis_nb.settings import network_options
from gnosis_nb.teachers import load_teachers
from versions import casts_in_modes, reads_pickles

IMAGES, TEXTS = SMALL
# the reference's columns, in its order
COLUMNS = '''train_loss train_acc train_ts_agree train_ece train_ts_kl lr epoch test_loss test_acc test_ece
    test_nll test_ts_agree test_ts_kl test_cka_0 test_cka_1 test_cka_2
    teacher_train_acc teacher_test_acc'''.split()
OF_LABELS = {'train_acc', 'train_ece', 'teacher_train_acc'}
both = pytest.mark.parametrize('command', SMALL)


def inputs_of(command, *overrides): return load_inputs(compose([*SMALL[command], *overrides], command))

def examples(data):
    "Pixels or words and the label of each example, sorted."
    if hasattr(data, 'images'): rows = data.images.flatten(1).tolist()
    else: rows = [data.ids[s:s + n].tolist() for s, n in zip(data.starts, data.lengths)]
    return sorted(zip(rows, data.targets.tolist()))


# The commands of the paper

@pytest.fixture
def papers_data(tmp_path, monkeypatch):
    "Forty images and forty reviews where CIFAR-100 and IMDB belong; the default places of data and runs."
    monkeypatch.chdir(tmp_path)
    fake_cifar(tmp_path/'data'/'datasets'/'cifar100', monkeypatch, datasets.CIFAR100, n=40)
    fake_imdb(tmp_path/'data'/'datasets'/'imdb'/'aclImdb', monkeypatch)

def trial(t, command, line):
    short = ['trainer.num_epochs=1', 'teacher.trainer.num_epochs=1']
    return conduct(command, *line.split(), f'trial_id={t}', *short, f'job_name=trial{t}')

PAPERS = {
    IMAGES: '''teacher.use_ckpts=False classifier.depth=20 trainer.num_epochs=200 trainer.optimizer.lr=0.1
        trainer.lr_scheduler.eta_min=0. trainer.distill_teacher=False dataloader.batch_size=256''',
    TEXTS: 'teacher.use_ckpts=False trainer.distill_teacher=False'}

@pytest.mark.parametrize('command, name, lr', [(IMAGES, 'student_resnet', .1), (TEXTS, 'student_lstm', .05)])
def test_each_trial_of_the_paper_has_its_own_teacher(papers_data, command, name, lr):
    for t in range(3):
        r, lines = trial(t, command, PAPERS[command])
        assert r.path.parent == Path(f'data/experiments/{command}/trial{t}') and r.config['seed'] == t
        assert not loaded(lines) and checkpoints(r) == {'teacher_init_0', 'teacher_0'}
        assert table(r, 'teacher_0_train_metrics').lr.tolist() == [lr]
    for t in range(3):
        r, lines = trial(t, command, f'exp_name={name}_baseline_results')
        assert loaded(lines) == [f'trial{t}/teacher_0'] and checkpoints(r) == {'student_init', 'student'}
    assert find_runs('data/experiments').state.tolist() == ['done']*6

@pytest.mark.parametrize('command, line, count, labelled', [
    (IMAGES, 'exp_name=student_resnet_baseline_results', 40, 40),
    (IMAGES, 'exp_name=student_resnet_mixup_results distill_loader.mixup_alpha=1.', 40, 0),
    (IMAGES, 'exp_name=student_resnet_synth-aug_results distill_loader.synth_ratio=0.2', 48, 40),
    (TEXTS, 'exp_name=student_lstm_baseline_results', 40, 40)])
def test_what_a_student_of_the_paper_leaves(papers_data, counts, command, line, count, labelled):
    r, lines = trial(0, command, line)
    # the first with a teacher is the student's, in training
    train = next(o for o in counts if 'ts_agree' in o)
    assert (train['count'], train['labelled']) == (count, labelled)
    files = {'config.yaml', 'state.json', 'summary.json', 'fidelity.csv', 'fidelity.png', 'tensorboard'}
    assert files <= {o.name for o in r.path.iterdir()}
    df = table(r)
    missing = {o for o in COLUMNS if 'cka' in o and command == TEXTS} | (set() if labelled else OF_LABELS)
    assert [o for o in df if o in COLUMNS] == [o for o in COLUMNS if o not in missing]
    assert len(df) == 1 and df.notna().all(axis=None)
    assert df.train_ts_agree[0]*count == pytest.approx(round(df.train_ts_agree[0]*count))
    assert any(o.startswith('generator: UNTRAINED') for o in lines) == ('synth' in line)

@both
def test_settings_reach_the_optimizer(tmp_path, learners, command):
    keys = dict(name='SGD', lr=.01, weight_decay=1e-3, momentum=.8, nesterov=True)
    options = [f'trainer.optimizer.{k}={v}' for k, v in keys.items()]
    small(command, tmp_path, *options, 'distill_loader.temp=2')
    for learn in learners['teacher'] + learners['student']:
        group, = learn.opt.opt.param_groups
        assert (group['weight_decay'], group['momentum'], group['nesterov']) == (1e-3, .8, True)
        assert learn.dls.train.bs == {IMAGES: 256, TEXTS: 64}[command]
    assert learners['student'][0].distillation.temp == 2.


# Teachers

def answers(path, command, test):
    "The softmax of a network on the evaluation examples, without a loader: one text at a time, not padded."
    net = load_network(path)
    with torch.no_grad():
        if command == IMAGES: return net(test.images/127.5 - 1).softmax(-1)
        places = zip(test.starts, test.lengths)
        alone = (torch.cat([n[None], test.ids[s:s + n].long()])[:, None] for s, n in places)
        return torch.cat([net(x) for x in alone]).softmax(-1)

@both
def test_the_report_of_an_ensemble(pool, tmp_path, command):
    r, lines = small(command, tmp_path, 'teacher.num_components=3', f'teacher.ckpt_dir={pool}')
    assert loaded(lines) == [f'three/teacher_{i}' for i in range(3)]
    assert checkpoints(r) == {'student_init', 'student'}
    df, test = report(r), inputs_of(command).sets.test
    assert list(df.index) == ['teacher', 'student', 'teacher_0', 'teacher_1', 'teacher_2']
    assert df.agreement['teacher'] == 1
    members = [answers(o, command, test) for o in r.state['teachers'][0]]
    teacher, student = torch.stack(members).mean(0), answers(r.path/'student.safetensors', command, test)
    def accuracy(p): return (p.argmax(-1) == test.targets).float().mean().item()
    accuracies = [accuracy(o) for o in (teacher, student, *members)]
    assert df.accuracy.tolist() == pytest.approx(accuracies, abs=1e-6)
    wanted = dict(
        agreement=(teacher.argmax(-1) == student.argmax(-1)).float().mean().item(),
        kl=(teacher*(teacher/student).log()).sum(-1).mean().item(),
        nll=-student.log()[range(len(student)), test.targets].mean().item())
    assert df.loc['student', list(wanted)].to_dict() == pytest.approx(wanted, abs=1e-5)

@both
def test_only_what_is_missing_is_trained(pool, tmp_path, command):
    own = shutil.copytree(pool/command, tmp_path/command).parent
    r, lines = small(command, own, TEACHERS, 'teacher.num_components=4', 'job_name=fourth')
    assert loaded(lines) == [f'three/teacher_{i}' for i in range(3)]
    assert checkpoints(r) == {'teacher_init_3', 'teacher_3'} and len(report(r)) == 5
    two = ['teacher.num_components=2', 'teacher.independent=true']
    r, lines = small(command, own, *two)
    assert loaded(lines) == [*(f'three/teacher_{i}' for i in range(3)), 'fourth/teacher_3']
    assert checkpoints(r) == {'student_init', 'student', 'independent_student_init', 'independent_student'}
    assert list(report(r).index) == ['teacher', 'student', 'independent student', 'teacher_0', 'teacher_1']
    assert find_runs(own)['independent_agreement'].notna().sum() == 1

def find(command, folder, *overrides):
    "Which teachers a run below `folder` would use."
    lines = []
    more = ['teacher.trainer.num_epochs=1', 'teacher.num_components=3', f'data_dir={folder}']
    cfg = compose([*SMALL[command], *more, *overrides], command)
    load_teachers(cfg, load_inputs(cfg), lines.append)
    return loaded(lines)

@pytest.mark.parametrize('command, other', [*((command, other) for command in SMALL for other in (
    'dataset.seed=1', 'dataset.subsample.ratio=0.5', 'dataset.shuffle_train_targets.enabled=true',
    'trainer.eval_dataset=val', 'teacher.trainer.num_epochs=5', 'teacher.use_ckpts=false')),
    *((IMAGES, other) for other in (
    'dataset.size=9', 'dataset.statistics.max=[0.5]', 'augmentation.normalization=zscore', 'teacher.depth=14',
    'classifier.norm=layer', 'teacher.trainer.batch_size=64')),
    *((TEXTS, other) for other in (
    'dataset.noise=0.1', 'dataset.min_freq=3', 'dataset.max_len=10', 'teacher.depth=2',
    'classifier.lstm_cell_size=8', 'classifier.bidirectional=false'))])
def test_teachers_of_another_experiment_are_not_used(pool, command, other):
    assert find(command, pool, other) == []

@pytest.mark.parametrize('command, same', [
    (IMAGES, 'trainer.num_epochs=7'), (IMAGES, 'teacher.trainer.num_epochs=1'),
    (IMAGES, 'distill_loader.temp=1'), (IMAGES, 'dataset.shuffle_train_targets.seed=5'),
    (TEXTS, 'trainer.num_epochs=7'), (TEXTS, 'distill_loader.temp=4'), (TEXTS, 'dataloader.bucket=true'),
    (TEXTS, 'dataset.backend=builtin'), (TEXTS, 'dataset.download=false')])
def test_teachers_of_the_same_experiment_are_used(pool, command, same):
    assert find(command, pool, same) == [f'three/teacher_{i}' for i in range(3)]

@both
@pytest.mark.parametrize('key', ['ckpt_dir', 'ckpt_path'])
@reads_pickles
def test_a_foreign_state_dict_is_a_teacher_only_where_it_is_pointed_at(tmp_path, command, key):
    inputs = inputs_of(command)
    options = network_options(compose(SMALL[command], command), 'classifier')
    net = build_classifier(**options, **inputs.shape, seed=5)
    (tmp_path/'theirs').mkdir()
    torch.save(net.state_dict(), tmp_path/'theirs'/'teacher_0.ckpt')
    r, lines = small(command, tmp_path, f'teacher.{key}=theirs')
    assert loaded(lines)[0].endswith('/teacher_0') and checkpoints(r) == {'student_init', 'student'}
    with torch.no_grad():
        right = sum((net.eval()(x).argmax(-1) == y).sum().item() for x, y in inputs.evaluation('cpu'))
    assert report(r).accuracy['teacher'] == pytest.approx(right/len(inputs.sets.test), abs=1e-6)
    r, lines = small(command, tmp_path, TEACHERS)  # nobody knows what it was trained on
    assert loaded(lines) == [] and 'teacher_0' in checkpoints(r)


# Same seed, same bits

MUCH = {
    IMAGES: [
        'dataset.channels=3', 'dataset.shrink.train=200', 'dataset.shrink.test=100',
        'dataloader.batch_size=32',
        'augmentation.transforms_list=[crop,horizontal_flip,colorjitter]', 'dataset.subsample.ratio=0.5',
        'distill_loader.splits=[0,1]', 'distill_loader.temp=[1.,4.]', 'distill_loader.mixup_alpha=1',
        'distill_loader.mixup_portion=0.5', 'distill_loader.synth_ratio=0.2', 'density_model.generator.k=8'],
    TEXTS: ['dataloader.bucket=true']}

@both
def test_same_seed_same_bits(tmp_path, command):
    torch.manual_seed(0)
    generator = SNGANGenerator(k=8)
    def go(name, seed):
        save_checkpoint(tmp_path/name/'gan'/'generator_10', generator)
        torch.rand(len(name))  # the global generator is elsewhere each time
        more = ['teacher.num_components=2', 'trainer.num_epochs=2', 'trainer.eval_period=1', f'seed={seed}']
        return small(command, tmp_path/name, *MUCH[command], *more)[0]
    a, b, c = go('a', 0), go('bb', 0), go('c', 1)
    assert same_networks(a, b) and checkpoints(a) == checkpoints(c) and len(checkpoints(a)) == 6
    assert not any(equal(weights(a, o), weights(c, o)) for o in checkpoints(a))
    assert not equal(weights(a, 'teacher_0'), weights(a, 'teacher_1'))
    for name in ('student_train_metrics', 'teacher_0_train_metrics', 'teacher_1_train_metrics', 'fidelity'):
        first, again, other = ((o.path/f'{name}.csv').read_bytes() for o in (a, b, c))
        assert first == again != other

@both
def test_networks_trained_together_are_those_trained_one_by_one(tmp_path, command):
    overrides = ['teacher.num_components=2', 'teacher.independent=true', 'trainer.num_epochs=2',
        'dataset.subsample.ratio=0.4']
    def go(k): return small(command, tmp_path/str(k), *overrides, f'trainer.parallel_models={k}')[0]
    one, many = go(1), go(4)
    assert same_networks(one, many) and len(checkpoints(one)) == 12
    for name in [*(f'teacher_{i}_train_metrics' for i in range(4)), 'student_train_metrics']:
        pd.testing.assert_frame_equal(table(one, name), table(many, name))

@pytest.mark.parametrize('command, batches, most', [(IMAGES, 6, 12), (TEXTS, 5, 10)])
def test_remembered_teachers_answer_as_they_would(pool, tmp_path, monkeypatch, command, batches, most):
    asked, ask, answer = [], distill.Distillation._ask, distill.Distillation.answer
    def spy(self):
        asked.append(self.learn.training)
        return ask(self)
    def spy_in_programs(self, x, rows, recall):
        asked.append(not recall)
        return answer(self, x, rows, recall)
    monkeypatch.setattr(distill.Distillation, '_ask', spy)
    monkeypatch.setattr(distill.Distillation, 'answer', spy_in_programs)
    options = ['trainer.num_epochs=3', 'trainer.precision=fp32', f'teacher.ckpt_dir={pool}']
    if command == IMAGES: options.append('augmentation.transforms_list=[]')
    def go(gb):
        asked.clear()
        return small(command, tmp_path/str(gb), *options, f'trainer.teacher_cache={gb}')[0], sum(asked)
    (kept, few), (fresh, all_) = go(1), go(0)
    # shuffled batches may meet a new row in the second epoch
    assert all_ == 3*batches and batches <= few < most
    np.testing.assert_allclose(table(kept).to_numpy(), table(fresh).to_numpy(), atol=1e-4)
    for k, v in weights(kept, 'student').items():
        torch.testing.assert_close(v, weights(fresh, 'student')[k], atol=1e-3, rtol=1e-3)


# What is trained on, and measured on

@pytest.mark.parametrize('command, low, high', [(IMAGES, .35, .5), (TEXTS, .1, .4)])
def test_shuffled_labels_are_for_training_only(tmp_path, learners, command, low, high):
    shuffle = 'dataset.shuffle_train_targets'
    small(command, tmp_path, f'{shuffle}.enabled=true', f'{shuffle}.ratio=0.5')
    sets = inputs_of(command).sets
    for who in learners.values(): assert examples(who[0].dls.valid.dataset) == examples(sets.test)
    data = learners['teacher'][0].dls.train.dataset
    assert torch.equal(data.targets.bincount(), sets.train.targets.bincount())
    assert low < (data.targets != sets.train.targets).float().mean() < high

@pytest.mark.parametrize('command, sizes', [(IMAGES, [1077, 270]), (TEXTS, [240, 60])])
def test_evaluation_on_held_out_training_examples(tmp_path, learners, counts, command, sizes):
    small(command, tmp_path, TEACHERS, 'trainer.eval_dataset=val')
    dls = learners['teacher'][0].dls
    parts, whole = [o.dataset for o in (dls.train, dls.valid)], inputs_of(command).sets
    assert [len(o) for o in parts] == sizes
    assert sorted(sum(map(examples, parts), [])) == examples(whole.train)
    assert sizes[1] in [o['count'] for o in counts] and len(whole.test) not in [o['count'] for o in counts]


# Losses, precision and speed

@both
@pytest.mark.parametrize('loss', sorted(LOSSES))
def test_every_loss_trains(pool, tmp_path, command, loss):
    teachers = ['teacher.num_components=3', f'teacher.ckpt_dir={pool}']
    r, lines = small(command, tmp_path, f'loss={loss}', *teachers)
    assert len(loaded(lines)) == 3 and np.isfinite(table(r).to_numpy()).all() and table(r).train_loss[0] > 0
    assert not equal(weights(r, 'student'), weights(r, 'student_init'))

@both
def test_bf16_is_close_to_fp32(tmp_path, command):
    if command == TEXTS and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip('this CPU has no LSTM in bf16')
    def go(precision): return small(command, tmp_path/precision, 'dataloader.batch_size=64',
        'dataset.subsample.ratio=0.5', f'trainer.precision={precision}')[0]
    full, half = go('fp32'), go('bf16')
    for name in ('teacher_0_train_metrics', 'student_train_metrics'):
        a, b = table(full, name), table(half, name)
        assert b.train_loss[0] == pytest.approx(a.train_loss[0], rel=.02)
        assert b.test_loss[0] == pytest.approx(a.test_loss[0], rel=.05)
    assert not equal(weights(full, 'student'), weights(half, 'student'))
    assert all(v.dtype != torch.bfloat16 for v in weights(half, 'student').values())

class HostReads(TorchDispatchMode):
    "Counts what would make the host wait for a GPU."
    def __init__(self): super().__init__(); self.seen = []
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        names = ('_local_scalar_dense', 'nonzero', 'is_nonzero', 'masked_select')
        if func.overloadpacket.__name__ in names: self.seen.append(str(func))
        return func(*args, **(kwargs or {}))

@pytest.mark.parametrize('command, overrides, reads', [
    (IMAGES, ['dataloader.batch_size=64', 'augmentation.transforms_list=[crop,horizontal_flip]'], []),
    pytest.param(TEXTS, ['trainer.optimizer.name=SGD'],  # Adam reads its step count, on the CPU
                 ['aten._local_scalar_dense.default']*5,  # each batch's greatest length, of a copy on the CPU
                 marks=casts_in_modes)])
def test_nothing_is_read_from_the_device_between_batches(tmp_path, monkeypatch, command, overrides, reads):
    seen, before, after = [], distill.FidelityTable.before_train, distill.FidelityTable.after_train
    entered = []
    def enter(self):
        before(self)
        entered.append(HostReads().__enter__())
    def leave(self):
        mode = entered.pop()
        mode.__exit__(None, None, None); seen.append(mode.seen)
        after(self)
    # its look at the loss every few seconds is another matter
    monkeypatch.setattr(distill.FidelityTable, 'patience', 1e9)
    monkeypatch.setattr(distill.FidelityTable, 'before_train', enter)
    monkeypatch.setattr(distill.FidelityTable, 'after_train', leave)
    more = ['teacher.num_components=2', 'trainer.num_epochs=2', 'trainer.teacher_cache=0']
    try: small(command, tmp_path, *overrides, *more)
    finally:                                     # what is wrong in one test is not to count in the next
        for mode in entered: mode.__exit__(None, None, None)
    assert seen == [reads]*6  # two teachers, a student, two epochs


# Failures

@both
def test_a_run_that_fails_says_so_and_keeps_what_was_measured(pool, tmp_path, monkeypatch, command):
    after, calls = distill.FidelityTable.after_epoch, []
    def break_down(self):
        after(self)
        calls.append(1)
        if len(calls) == 2: raise RuntimeError('the disk is full')
    monkeypatch.setattr(distill.FidelityTable, 'after_epoch', break_down)
    with pytest.raises(RuntimeError, match='the disk is full'):
        small(command, tmp_path, 'trainer.num_epochs=3', f'teacher.ckpt_dir={pool}')
    runs = find_runs(tmp_path)
    assert runs.state.tolist() == ['failed']
    assert runs.error[0].startswith('RuntimeError: ') and runs.error[0].endswith('the disk is full')
    path = Path(runs.path[0])
    assert 'break_down' in (path/'state.json').read_text()
    assert len(pd.read_csv(path/'student_train_metrics.csv')) == 2
    assert not (path/'student.safetensors').exists() and not (path/'fidelity.csv').exists()

@pytest.mark.parametrize('command, overrides', [
    (IMAGES, []), (IMAGES, ['dataloader.batch_size=2000']),  # within the epoch, and by its only step
    (TEXTS, ['trainer.optimizer.name=SGD', 'trainer.num_epochs=3'])])
def test_a_teacher_that_diverges_is_a_failure(tmp_path, command, overrides):
    with pytest.raises(FloatingPointError, match='diverged'):
        small(command, tmp_path, TEACHERS, 'trainer.optimizer.lr=1e30', *overrides)
    assert states_below(tmp_path) == ['failed'] and not list(tmp_path.rglob('teacher_0.safetensors'))


# The command

@pytest.mark.parametrize('command, unit', [(IMAGES, 'images'), (TEXTS, 'texts')])
def test_two_trials_from_an_empty_folder(tmp_path, command, unit):
    p = script(command, '-m', *SMALL[command], *SHORT, 'trial_id=0,1', cwd=tmp_path)
    assert p.returncode == 0, p.stderr
    runs = find_runs(tmp_path/'data'/'experiments')
    assert runs.state.tolist() == ['done']*2 and runs['trial_id'].tolist() == [0, 1]
    assert all(len(pd.read_csv(Path(o)/'student_train_metrics.csv')) == 1 for o in runs.path)
    said, _, table = p.stdout.partition('\n\n')
    assert f'{unit}/s' in p.stderr and said.count('agreement') == 2 and '0.' in table
    assert all(o.startswith(('[0 trial_id=0] ', '[1 trial_id=1] ')) for o in (said + p.stderr).splitlines())
    assert {o.name for o in tmp_path.iterdir()} == {'data'}

@both
def test_settings_are_refused_before_anything_is_begun(tmp_path, command):
    env, arguments = {**os.environ, 'PYTHONPATH': str(ROOT)}, ['-m', *SMALL[command], 'trainer.num_epoch=1']
    p = subprocess.run([sys.executable, ROOT/'scripts'/f'{command}.py', *arguments], cwd=tmp_path, env=env,
        text=True, capture_output=True)
    assert (p.returncode, p.stdout) == (1, '')
    assert p.stderr == 'error: trainer.num_epoch: unknown key, did you mean trainer.num_epochs?\n'
    assert not states_below(tmp_path)

@pytest.mark.parametrize('command, overrides, message', [
    (IMAGES, ['augmentation.crop.padding=-1'], 'augmentation.crop.padding=-1: '),
    (IMAGES, ['augmentation.crop.padding=abc'], "augmentation.crop.padding='abc': "),
    (IMAGES, ['dataset.statistics.max=[0]'], 'dataset.statistics'),
    (IMAGES, ['augmentation.normalization=zscore', 'dataset.statistics.mean=[.5,.5,.5]'],
     'dataset.statistics.mean='),
    (IMAGES, ['dataset.subsample.ratio=0.0001'],
     'dataset.subsample.split=0: expected more than 10 images for 10 classes, found 0 of 1,347 images '),
    (IMAGES, ['distill_loader.drop_last=true', 'dataloader.batch_size=2000'],
     'distill_loader.drop_last=True: '),
    (IMAGES, [TEACHERS, 'dataloader.drop_last=true', 'dataloader.batch_size=2001'],
     'dataloader.drop_last=True: '),
    (IMAGES, ['trainer.optimizer.name=LBFGS'], "trainer.optimizer.name='LBFGS': "),
    (IMAGES, ['dataset.size=4'], 'dataset.size=4: '),
    (IMAGES, ['teacher.ckpt_path=nowhere'], 'teacher.ckpt_path=nowhere: there is no '),
    (TEXTS, ['dataset.num_test=1'], 'dataset.num_test=1: '),
    (TEXTS, ['classifier=preresnet'], 'classifier'),
    (TEXTS, ['distill_loader.temp=[1,2]'], r'distill_loader.temp=\[1.0, 2.0\]: '),
    (TEXTS, ['dataset.subsample.ratio=0.001'],
     'dataset.subsample.split=0: expected more than 2 texts for 2 classes, found 0 of 300 texts '),
    (TEXTS, ['distill_loader.drop_last=true', 'dataloader.batch_size=2000'],
     'distill_loader.drop_last=True: '),
    (TEXTS, ['teacher.ckpt_dir=nowhere'], 'teacher.ckpt_dir=nowhere: there is no ')])
def test_settings_that_the_data_refuse(tmp_path, command, overrides, message):
    with pytest.raises(ConfigError, match=f'^{message}') as e: small(command, tmp_path, *overrides)
    assert '\n' not in str(e.value) and not states_below(tmp_path)
