"""Several processes train one network: two equal one with the whole batch, a killed process ends the run with
a sentence, and a state fits another number of processes."""
import json
import os
import shutil
import signal
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

import processes
from experiments import ROOT, checkpoints, conduct, program, report, same_networks, script, table, weights
from gnosis_nb import devices
from gnosis_nb.cli import compose
from gnosis_nb.program import EpochProgram
from gnosis_nb.run_folder import Run
from gnosis_nb.schema import ConfigError

# rounding errors grow by a factor in each step, the more the larger the learning rate
SMALL = ['trainer.num_epochs=2', 'trainer.eval_period=1', '+recipe=student', 'device=cpu',
         'trainer.precision=fp32', 'trainer.optimizer.lr=0.001', 'trainer.state_minutes=0']
DIGITS = ['+experiment=digits', 'dataset.size=8', 'dataset.subsample.ratio=0.3', 'dataset.shrink.test=101',
          'dataloader.batch_size=67', *SMALL]                                # 404 images: the last has 2
TEXTS = ['+experiment=sentences', 'dataset.num_train=300', 'dataset.num_test=101', 'dataloader.batch_size=64',
         'classifier.embedding_size=16', 'classifier.lstm_cell_size=16', *SMALL]
CIFAR = ['dataset=cifar100', f'dataset.root_dir={ROOT}/data/datasets/cifar100', 'dataset.shrink.train=500',
         'dataset.shrink.test=200',
         'classifier.depth=8', 'dataloader.batch_size=128', *SMALL]


@pytest.fixture(scope='module')
def two():
    with devices.helpers(2) as both: yield both


@contextmanager
def nobody_else():
    "In the block, this process has no helpers."
    devices._now.append(devices.Team())
    try: yield
    finally: devices._now.pop()


def do(folder, n, *options, command='image_classification'):
    return conduct(command, *options, f'trainer.devices={n}', f'data_dir={folder}/{n}')[0]


def furthest(a, b):
    "The largest difference of two runs' weights."
    assert checkpoints(a) == checkpoints(b)
    both = [(weights(a, o), weights(b, o)) for o in checkpoints(a)]
    return max((x[k].double() - y[k].double()).abs().max().item() for x, y in both for k in x)


def assert_alike(a, b):
    assert 0 < furthest(a, b) < 1e-3  # they have not done the same sums
    tables = sorted(o.stem for o in a.path.glob('*_metrics.csv'))
    assert len(tables) == 2
    for name in tables:
        x, y = table(a, name), table(b, name)
        assert list(x) == list(y) and len(x) == 2
        assert (x - y).abs().max().max() < 1e-4
    assert (report(a) - report(b)).abs().max().max() < 1e-4


def compare(tmp_path, *options, command='image_classification'):
    with nobody_else(): one = do(tmp_path, 1, *options, command=command)
    assert_alike(one, do(tmp_path, 2, *options, command=command))


@pytest.mark.parametrize('more', [
    pytest.param([], id='plain'),
    pytest.param(['distill_loader.mixup_alpha=1.0', 'trainer.average=ema', 'trainer.average_decay=0.5'],
                 id='mixup-ema'),
    pytest.param(['features=fitnet', 'trainer.average=swa', 'trainer.average_start=0'], id='features-swa'),
    pytest.param(['trainer.teacher_cache_views=2', 'distill_loader.splits=[0,1]', 'loss.alpha=0.5'],
                 id='views-splits'),
    pytest.param(['trainer.teacher_cache=disk', 'trainer.teacher_cache_views=2'], id='disk')])
def test_two_processes_are_equal_to_one_on_digits(two, tmp_path, more):
    compare(tmp_path, *DIGITS, *more)


def test_two_processes_are_equal_to_one_on_texts(two, tmp_path):
    compare(tmp_path, *TEXTS, command='text_classification')


@pytest.mark.skipif(not (ROOT/'data/datasets/cifar100').exists(), reason='CIFAR-100 is not in data/datasets')
def test_two_processes_are_equal_to_one_on_cifar100(two, tmp_path):
    compare(tmp_path, *CIFAR)


@contextmanager
def interrupted(what, epoch=None):
    "In the block, `what` is called after a state of the student has been kept: of this epoch, or within one."
    keep = Run.keep_state
    def keep_state(run, name, tensors, facts):
        keep(run, name, tensors, facts)
        if name == 'student' and (facts['epoch'] == epoch or epoch is None and facts['batch']): what()
    Run.keep_state = keep_state
    try: yield
    finally: Run.keep_state = keep


def interrupt(): raise KeyboardInterrupt


def test_a_run_of_one_process_goes_on_in_two(two, tmp_path):
    whole = do(tmp_path/'whole', 2, *DIGITS)
    with nobody_else(), pytest.raises(KeyboardInterrupt), interrupted(interrupt, 1):
        do(tmp_path/'parts', 1, *DIGITS)
    os.rename(tmp_path/'parts/1', tmp_path/'parts/2')
    parts = do(tmp_path/'parts', 2, *DIGITS)
    assert len(parts.state['continued']) == 1
    assert_alike(whole, parts)


def test_a_state_within_an_epoch_goes_on_in_two_processes(two, tmp_path, monkeypatch):
    monkeypatch.setattr(EpochProgram, 'period', -1)                          # tells others after every batch
    within = [*DIGITS, 'trainer.state_minutes=1e-9']
    whole = do(tmp_path/'whole', 2, *within)
    with nobody_else(), pytest.raises(KeyboardInterrupt), interrupted(interrupt):
        do(tmp_path/'parts', 1, *within)
    os.rename(tmp_path/'parts/1', tmp_path/'parts/2')
    assert_alike(whole, do(tmp_path/'parts', 2, *within))


def test_batchnorm_of_each_process_is_another_recipe(two, tmp_path):
    alike, own = (do(tmp_path/o, 2, *DIGITS, f'trainer.sync_batchnorm={o}') for o in ('true', 'false'))
    assert furthest(alike, own) > 1e-3
    assert alike.state['identity'] != own.state['identity']


def children(pid): return [int(o) for o in Path(f'/proc/{pid}/task/{pid}/children').read_text().split()]


@pytest.mark.skipif(not Path('/proc/self/task').exists(), reason='finds processes in /proc')
def test_a_killed_process_ends_the_run_and_the_same_command_goes_on(two, tmp_path):
    whole = do(tmp_path/'whole', 2, *DIGITS)
    args = [*DIGITS, 'trainer.devices=2', f'data_dir={tmp_path}/parts']
    run = processes.start(program('image_classification'), *args, at='.training_state_student*')
    helper, = children(run.pid)
    os.kill(helper, signal.SIGKILL)
    os.kill(run.pid, signal.SIGCONT)
    status, _, said = run.wait()
    lost = 'trainer.devices=2: process 1 was killed (SIGKILL); the same command goes on'
    assert status == 1 and said.splitlines()[-1].startswith(f'error: {lost}')
    state = json.loads(next((tmp_path/'parts').rglob('state.json')).read_text())
    assert state['state'] == 'failed' and lost in state['error']
    shutil.copytree(tmp_path/'parts', tmp_path/'other/1')
    with nobody_else(): alone = do(tmp_path/'other', 1, *DIGITS)
    assert_alike(whole, alone)                                               # and with another number, too
    assert 'student after epoch 1 of 2' in script('image_classification', *args).stdout
    folder = next((tmp_path/'parts').rglob('state.json')).parent
    assert same_networks(whole, SimpleNamespace(path=folder))


@pytest.mark.skipif(not Path('/proc/self/task').exists(), reason='finds processes in /proc')
def test_helpers_end_with_the_process_that_started_them(tmp_path):
    args = [*DIGITS, 'trainer.devices=2', f'data_dir={tmp_path}']
    run = processes.start(program('image_classification'), *args, at='.training_state_teacher*')
    helper, = children(run.pid)
    os.kill(run.pid, signal.SIGKILL)
    assert run.wait()[0] == -signal.SIGKILL
    processes.until(lambda: not Path(f'/proc/{helper}/exe').exists())


@pytest.mark.parametrize('options, expected', [
    (['trainer.parallel_models=2'], 'with trainer.parallel_models=2'),
    (['loss=dist'], 'with loss=dist'),
    (['loss=ts_hard_cross_ent', 'loss.mode=sample'], 'with loss=ts_hard_cross_ent'),
    (['features=rkd'], 'with features=rkd'),
    (['teacher.draw_member=true'], 'with teacher.draw_member=True'),
    (['teacher.control=[permuted]'], "with teacher.control=['permuted']"),
    (['loss.alpha=0.5', 'distill_loader.noise=0.2'],
     'with loss.alpha=0.5, distill_loader.noise=0.2'),
    (['trainer.average=ema', 'trainer.sync_batchnorm=false'],
     'with trainer.average=ema, trainer.sync_batchnorm')])
def test_what_needs_the_whole_batch_is_refused(options, expected):
    with pytest.raises(ConfigError) as error: compose([*options, 'trainer.devices=2'])
    assert f'trainer.devices=2 {expected}' in str(error.value)
