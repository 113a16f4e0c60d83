"""Multiruns under launchers: jobs that can run do, others are named, what is done is not done again.

The tutorial `sweep` has joblib and submitit."""
import importlib.util
from pathlib import Path

import pandas as pd
import pytest

import processes
from experiments import SHORT, SMALL, TEACHERS, script
from gnosis_nb.checkpoint import load_checkpoint
from gnosis_nb.runs import find_runs

OVERRIDES = ['-m', *SMALL['image_classification'], *SHORT, TEACHERS]
LAUNCHERS = dict(
    basic=[],
    together=['hydra/launcher=together', 'hydra.launcher.n_jobs=2'],
    ray=['hydra/launcher=ray', *(f'+hydra.launcher.ray.{o}' for o in (
        'init.num_cpus=2', 'init.include_dashboard=false', 'remote.num_cpus=1',
        'init.num_gpus=1', 'remote.num_gpus=0.5'))])  # a GPU in name only: Ray counts what it is told

def sweep(folder, *overrides):
    "A multirun; its exit status, the lines that name jobs, and what it said."
    out = script('image_classification', *OVERRIDES, f'data_dir={folder}', *overrides)
    return out.returncode, [o for o in out.stderr.splitlines() if o.startswith('error')], out.stdout

@pytest.mark.parametrize('launcher', LAUNCHERS)
def test_a_failed_job_stops_no_other(tmp_path, launcher):
    own = launcher in ('basic', 'together')
    if not own and not importlib.util.find_spec(f'hydra_plugins.hydra_{launcher}_launcher'):
        pytest.skip(f"needs the extra: pip install 'gnosis_nb[{launcher}]'")
    axes = ['teacher.use_ckpts=false', 'trainer.optimizer.lr=0.05,-1,0.06']
    status, (error,), said = sweep(tmp_path, *axes, *LAUNCHERS[launcher])
    assert status == 1 and error.startswith('error in job 1 (')
    assert error.endswith('): trainer.optimizer.lr=-1: expected a number > 0')
    assert find_runs(tmp_path).state.tolist() == ['done', 'done']
    table, = tmp_path.rglob('table.csv')
    assert pd.read_csv(table)['trainer.optimizer.lr'].tolist() == [.05, .06]
    assert f'2 runs of this sweep, in {table}:' in said
    if own:                                              # Ray has its jobs' output elsewhere
        labels = {o[:o.index('] ') + 1] for o in said[:said.index('\n\n')].splitlines()}
        assert labels == {'[0 lr=0.05]', '[2 lr=0.06]'}

def test_a_job_that_diverges_is_a_failed_run(tmp_path):
    status, (error,), _ = sweep(tmp_path, 'trainer.optimizer.lr=1e30')
    assert status == 1 and error.startswith('error in job 0 (') and 'training diverged' in error
    runs = find_runs(tmp_path)
    assert runs.state.tolist() == ['failed'] and 'training diverged' in runs.error[0]

STUMBLE = """
import gnosis_nb.experiment as experiment
write = experiment.write_report
def stumble(run, *args):
    if run.config['seed'] == 0: raise ZeroDivisionError('nobody thought of that')
    write(run, *args)
experiment.write_report = stumble
from gnosis_nb.cli import image_classification
image_classification()"""

def test_an_unforeseen_failure_stops_no_other_either(tmp_path):
    out = processes.run(STUMBLE, *OVERRIDES, f'data_dir={tmp_path}', 'seed=0,1')
    assert out.returncode == 1 and 'Traceback' in out.stderr
    assert out.stderr.splitlines()[-1].endswith('ZeroDivisionError: nobody thought of that')
    assert sorted(find_runs(tmp_path).state) == ['done', 'failed']
    status, errors, said = sweep(tmp_path, 'seed=0,1')  # the same sweep does what is left
    assert (status, errors) == (0, []) and said.count('already done') == 1
    assert '2 runs of this sweep' in said                    # also the one that was done before
    assert find_runs(tmp_path).state.tolist() == ['done', 'done']

def test_notes_of_an_earlier_sweep_are_forgotten(tmp_path):
    here = f'hydra.sweep.dir={tmp_path}/sweep'
    assert sweep(tmp_path, 'loss.alpha=2', here)[0] == 1
    status, errors, said = sweep(tmp_path, 'loss.alpha=0', here)
    assert (status, errors) == (0, []) and 'of this sweep' not in said       # a single run has no table

CTRL_C = """
import os, signal
from gnosis_nb.cli import image_classification
from gnosis_nb.distill import FidelityTable
from gnosis_nb.runs import Run

def press_before(owner, name, now):
    call = getattr(owner, name)
    def pressed(self, *args, **kwargs):
        if now(self, *args): os.kill(os.getpid(), signal.SIGINT)
        return call(self, *args, **kwargs)
    setattr(owner, name, pressed)

press_before(FidelityTable, 'after_train', lambda table: table.epoch == 1)
press_before(Run, 'keep_state', lambda *args: True)
press_before(Run, 'set_state', lambda run, state: state == 'interrupted')
image_classification()"""

@pytest.mark.parametrize('how, begun', [
    ([], 1), (['-m', 'seed=0,1'], 1), (['-m', 'seed=0,1', *LAUNCHERS['together']], 2)])
def test_ctrl_c_three_times(tmp_path, how, begun):
    "The second one comes while the training state is being written, the third while the run's end is."
    settings = [*OVERRIDES[1:], 'trainer.num_epochs=3', 'trainer.state_minutes=60', 'teacher.use_ckpts=false']
    out = processes.run(CTRL_C, *how, *settings, f'data_dir={tmp_path}')
    assert out.returncode == 130 and 'Traceback' not in out.stderr
    assert [o for o in out.stderr.splitlines() if 'interrupted' in o] == [
        'interrupted; the same command goes on from here']
    runs = find_runs(tmp_path)
    assert runs.state.tolist() == ['interrupted']*begun
    states = [Path(o)/'.training_state_teacher_0.safetensors' for o in runs.path]
    assert [load_checkpoint(o)[1]['training']['epoch'] for o in states] == [1]*begun
