"Runs that are killed, interrupted, started twice or fail: what is left, and how the same command goes on."
import itertools
import json
import os
import re
import signal
from pathlib import Path

import pandas as pd
import pytest
import torch
from PIL import Image

import processes
from experiments import conduct, program
from gnosis_nb.checkpoint import CheckpointError, load_checkpoint
from gnosis_nb.distill import FidelityTable
from gnosis_nb.predictions import load_predictions
from gnosis_nb.program import EpochProgram
from gnosis_nb.runs import find_runs
from gnosis_nb.schema import ConfigError
from processes import kill

SMALL = ['+experiment=digits', '+recipe=student', 'dataset.size=8', 'dataset.shrink.train=300',
    'dataset.shrink.test=100', 'dataloader.batch_size=64', 'trainer.num_epochs=2', 'trainer.eval_period=1',
    'device=cpu']

IMAGES = program('image_classification')

def complete(folder, *overrides, before=''):
    return processes.run(before + IMAGES, *SMALL, f'data_dir={folder}', *overrides)

def start(folder, *overrides, **when):
    "A run that has stopped before a file."
    return processes.start(IMAGES, *SMALL, f'data_dir={folder}', *overrides, **when)

def run(folder, *overrides): return conduct('image_classification', *SMALL, f'data_dir={folder}', *overrides)

def results(folder):
    "Weights, tables and summary of the one run below a folder, which is done and has nothing lying about."
    runs = find_runs(folder)
    assert runs.state.tolist() == ['done']
    path = Path(runs.path[0])
    assert not list(path.glob('.training_state*')) and not list(path.glob('.*.tmp'))
    nets = {o.name: load_checkpoint(o)[0] for o in path.glob('*.safetensors')}
    return nets, {o.name: o.read_bytes() for o in path.glob('*.csv')}, (path/'summary.json').read_text()

def same(a, b):
    (nets, *files), (nets_b, *files_b) = a, b
    weights = ((v, nets_b[name][k]) for name, net in nets.items() for k, v in net.items())
    return nets.keys() == nets_b.keys() and files == files_b and all(torch.equal(*o) for o in weights)

def save_images(folder, shade, classes=2):
    "A folder of images by class, with training and test images."
    for split in ('train', 'test'):
        for k in range(classes):
            (path := folder/split/f'class{k}').mkdir(parents=True, exist_ok=True)
            for i in range(4): Image.new('RGB', (8, 8), (shade + i, 40*k, 10*i)).save(path/f'{i}.png')
    return folder


# batches of each process
WITHIN = dict(image=[4, 7, 10, 8], averaged=[8, 3], text=[5, 9, 13], gan=[3, 6, 9], controls=[9])

@pytest.mark.parametrize('kind, n', [('image', 6), ('averaged', 2), ('text', 4), ('gan', 3), ('controls', 1)])
def test_killed_at_any_moment(tmp_path, kind, n):
    within = WITHIN[kind]
    out = processes.run('import killing; killing.main()', kind, tmp_path, n, *within)
    assert out.returncode == 0, out.stderr[-2000:]
    killed, in_epochs = (o := out.stdout.splitlines())[:n], o[n:]
    assert len(killed) == n and sum('training_state' in o for o in killed) >= n // 4, out.stdout
    places = [re.findall(r'training_state_(\w+) at (\d+):(\d+)', o)[-1] for o in in_epochs]
    assert len(set(places)) == len(within) and all(int(batch) for *_, batch in places), out.stdout
    whole = results(tmp_path/'whole')
    assert [same(results(tmp_path/name), whole) for name in (*map(str, range(n)), 'within')] == [True]*(n + 1)


def test_a_run_is_done_once(tmp_path):
    first, _ = run(tmp_path)
    others = 'exp_name=another_name', 'trainer.state_minutes=0', 'dataloader.num_workers=1'
    again, lines = run(tmp_path, *others)
    assert again.path == first.path and again.finished and again.tables == first.tables
    assert lines[0] == f'already done: {first.path}; force=true does it again'
    assert lines[1].split()[:5] == ['accuracy', 'nll', 'ece', 'agreement', 'kl']

@pytest.mark.parametrize('override', ['force=true', 'seed=1'])
def test_a_forced_run_and_another_seed_are_new_runs(tmp_path, override):
    first, _ = run(tmp_path)
    other, _ = run(tmp_path, override)
    assert other.path != first.path and not other.finished and len(find_runs(tmp_path)) == 2

def test_a_folder_with_other_images_is_another_run(tmp_path):
    options = ['dataset=image_folder', 'dataset.size=8', 'augmentation.transforms_list=[]',
        'dataset.shrink.train=null', 'dataset.shrink.test=null']
    shades = dict(a=10, b=60, copy_of_a=10)
    a, b, copy = (save_images(tmp_path/name, shade) for name, shade in shades.items())
    first, _ = run(tmp_path/'runs', *options, f'dataset.root_dir={a}')
    assert not run(tmp_path/'runs', *options, f'dataset.root_dir={b}')[0].finished
    assert run(tmp_path/'runs', *options, f'dataset.root_dir={copy}')[0].path == first.path

def test_other_images_beside_the_set_are_another_run(tmp_path):
    extra = f"distill_loader.extra=[{{name: image_folder, root_dir: '{tmp_path}/extra', size: 8}}]"
    save_images(tmp_path/'extra', 10, classes=1)
    run(tmp_path/'runs', extra)
    save_images(tmp_path/'extra', 99, classes=1)
    assert not run(tmp_path/'runs', extra)[0].finished
    assert run(tmp_path/'runs', extra)[0].finished

def test_equal_numbers_are_one_run(tmp_path):
    run(tmp_path, 'loss.alpha=0', 'distill_loader.temp=4', 'device=auto')
    again, _ = run(tmp_path, 'loss.alpha=0.0', 'distill_loader.temp=4.0', 'device=cpu')
    assert again.finished == (not torch.cuda.is_available())


def test_a_second_process_is_refused(tmp_path):
    one = start(tmp_path, at='student_init.safetensors')
    two = complete(tmp_path)
    kill(one)
    said = two.stderr.strip().splitlines()[-1]
    path = find_runs(tmp_path).path[0]
    assert two.returncode == 1 and said.startswith(f'error: {path}: process {one.pid} on ')
    assert 'is doing this run already' in said

def test_a_dead_process_holds_no_lock(tmp_path):
    kill(start(tmp_path, at='student_init.safetensors'))
    assert complete(tmp_path, 'trainer.num_epochs=1').returncode == 0     # another run, with its own lock
    path = find_runs(tmp_path).query("state == 'running'").path.item()
    again = start(tmp_path, at='student_train_metrics.csv')
    kill(again)
    assert json.loads(Path(path, 'state.json').read_text())['process']['pid'] == again.pid
    assert len(find_runs(tmp_path)) == 2

@pytest.mark.parametrize('sign, status', [
    (signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_ctrl_c_and_the_scheduler_lose_nothing(tmp_path, sign, status):
    slow = ['trainer.num_epochs=4', 'trainer.state_minutes=60']
    process = start(tmp_path, *slow, at='teacher_0_train_metrics.csv', n=3)
    for o in (sign, signal.SIGCONT): os.kill(process.pid, o)
    ended, _, said = process.wait()
    assert ended == status
    assert said.strip().splitlines()[-1] == 'interrupted; the same command goes on from here'
    runs = find_runs(tmp_path)
    state = Path(runs.path[0])/'.training_state_teacher_0.safetensors'
    assert runs.state.tolist() == ['interrupted'] and load_checkpoint(state)[1]['training']['epoch'] == 2
    rows = len(pd.read_csv(state.with_name('teacher_0_train_metrics.csv')))
    assert rows in (2, 3)    # the third was being written

@pytest.mark.parametrize('error', [KeyboardInterrupt, SystemExit])               # of Ctrl-C, and of SIGTERM
def test_stopped_within_a_step(tmp_path, monkeypatch, error):
    "The state of the last batch but this one was kept; weights in the middle of a step are not."
    run(tmp_path/'whole')
    backward, steps = torch.Tensor.backward, itertools.count(1)
    def stumble(*args, **kwargs):
        backward(*args, **kwargs)
        if next(steps) == 9: raise error()
    with monkeypatch.context() as m:
        m.setattr(torch.Tensor, 'backward', stumble)
        m.setattr(EpochProgram, 'period', -1)
        with pytest.raises(error): run(tmp_path/'stopped', 'trainer.state_minutes=1e-9')
    state, = (tmp_path/'stopped').rglob('.training_state_*.safetensors')
    at = load_checkpoint(state)[1]['training']
    assert (at['epoch'], at['batch'], at['n_batch']) == (1, 3, 5)
    _, lines = run(tmp_path/'stopped')
    assert any(o.endswith('teacher 0 after batch 3 of 5 of epoch 2 of 2') for o in lines)
    assert same(results(tmp_path/'whole'), results(tmp_path/'stopped'))

def test_a_damaged_state_begins_anew_and_ends_the_same(tmp_path):
    run(tmp_path/'whole', 'seed=3')
    kill(start(tmp_path/'damaged', 'seed=3', 'trainer.state_minutes=0', at='.training_state_*', n=2))
    state, = (tmp_path/'damaged').rglob('.training_state_*.safetensors')
    state.write_bytes(state.read_bytes()[:-50])
    _, lines = run(tmp_path/'damaged', 'seed=3')
    assert any('damaged' in o and 'begins anew' in o for o in lines)
    assert same(results(tmp_path/'whole'), results(tmp_path/'damaged'))

def test_a_run_killed_at_its_end_keeps_its_predictions(tmp_path):
    run(tmp_path/'whole', 'seed=3')
    kill(start(tmp_path/'killed', 'seed=3', at='predictions_train.safetensors'))
    path, = (o.parent for o in (tmp_path/'killed').rglob('predictions_test.safetensors'))
    with pytest.raises(CheckpointError, match='the run is running'): load_predictions(path, 'train')
    run(tmp_path/'killed', 'seed=3')
    assert len(load_predictions(path)) == 100 and len(load_predictions(path, 'train')) == 300
    assert same(results(tmp_path/'whole'), results(tmp_path/'killed'))

def test_a_run_keeps_the_teachers_it_began_with(tmp_path):
    teacher, _ = run(tmp_path, 'trainer.distill_teacher=false')
    kill(start(tmp_path, at='student_train_metrics.csv', n=2))
    other, _ = run(tmp_path, 'trainer.distill_teacher=false', 'teacher.use_ckpts=false', 'seed=9')
    begun = find_runs(tmp_path).query("state == 'running'").path.item()
    plan = json.loads(Path(begun, 'state.json').read_text())['plan']
    assert [[tmp_path/Path(o['path']).parent for o in group] for group in plan] == [[teacher.path]]
    (teacher.path/'teacher_0.safetensors').write_bytes((other.path/'teacher_0.safetensors').read_bytes())
    message = 'a teacher that this run began with, is gone or another now'
    with pytest.raises(ConfigError, match=message): run(tmp_path)


def test_a_diverged_run_says_where(tmp_path):
    out = complete(tmp_path, 'trainer.optimizer.lr=1e20')
    state = json.loads(next(tmp_path.rglob('state.json')).read_text())
    assert out.returncode == 1 and state['state'] == 'failed'
    for part in ('training diverged: train_loss of epoch 1 is', 'in batch', 'learning rate 1e+20', 'norm of'):
        assert part in out.stderr and part in state['error']
    assert not list(tmp_path.rglob('summary.json')) and not list(tmp_path.rglob('teacher_0.safetensors'))

LIMIT = 'import resource as r; r.setrlimit(r.RLIMIT_FSIZE, (100_000, 100_000))\n'

def test_a_full_disk(tmp_path):
    "A limit on the size of files stands for it: the write fails in the middle."
    limited = complete(tmp_path, 'trainer.num_epochs=3', before=LIMIT)
    assert limited.returncode == 1
    assert 'teacher_init_0' in limited.stderr and 'Traceback' not in limited.stderr
    assert find_runs(tmp_path).state.tolist() == ['failed']
    assert not list(tmp_path.rglob('.*.tmp')) and not list(tmp_path.rglob('*.safetensors'))
    done = complete(tmp_path, 'trainer.num_epochs=3')
    assert done.returncode == 0 and find_runs(tmp_path).state.tolist() == ['done']

def test_a_run_goes_on_from_elsewhere(tmp_path, monkeypatch):
    (tmp_path/'here').mkdir(); (tmp_path/'there').mkdir()
    monkeypatch.chdir(tmp_path/'here')
    run('runs', 'trainer.distill_teacher=false')
    after = FidelityTable.after_train
    def stumble(self):
        after(self)
        if self.epoch == 0: raise KeyboardInterrupt()
    with monkeypatch.context() as m:
        m.setattr(FidelityTable, 'after_train', stumble)
        with pytest.raises(KeyboardInterrupt): run('runs')
    (tmp_path/'here'/'runs').rename(tmp_path/'there'/'moved')
    monkeypatch.chdir(tmp_path)
    r, _ = run(tmp_path/'there'/'moved')
    assert not r.finished and len(r.state['continued']) == 1 and r.state['state'] == 'done'

def test_a_run_that_is_continued_elsewhere_says_so(tmp_path, monkeypatch):
    def stop(*args): raise KeyboardInterrupt
    with monkeypatch.context() as m:
        m.setattr('gnosis_nb.experiment.complete_teachers', stop)
        m.setattr('gnosis_nb.experiment.provenance', lambda device, data: dict(device='another', data=data))
        with pytest.raises(KeyboardInterrupt): run(tmp_path)
    state = run(tmp_path, 'trainer.distill_teacher=true')[0].state
    assert [o['device'] for o in state['provenance_before']] == ['another']
    assert state['provenance']['data'] == state['data'] and state['provenance']['device'] != 'another'
