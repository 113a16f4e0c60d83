"""Multiruns under launchers: jobs that can run do, others are named, what is done is not done again.
Processes that are killed, and sweeps that are stopped.

The tutorial `sweep` has joblib and submitit as they are used."""
import importlib.util
import json
import os
import signal

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

NEW = ['teacher.use_ckpts=false', 'keep_predictions=false']
LONG = [*NEW, 'trainer.num_epochs=3', 'trainer.state_minutes=60']

def kept_epochs(folder):
    "How many epochs each training state below a folder has."
    return [load_checkpoint(o)[1]['training']['epoch'] for o in folder.rglob('.training_state_*.safetensors')]

def needs(launcher):
    if not importlib.util.find_spec(f'hydra_plugins.hydra_{launcher}_launcher'):
        pytest.skip(f"needs the extra: pip install 'gnosis_nb[{launcher}]'")

def sweep(folder, *overrides):
    "A multirun; its exit status, the lines that name jobs, and what it said."
    for _ in range(3):
        out = script('image_classification', *OVERRIDES, f'data_dir={folder}', *overrides)
        if 'timed out during startup' not in out.stderr: break               # Ray waits 30 s, on any machine
    else: pytest.skip('Ray does not start in 30 s on this machine')
    return out.returncode, [o for o in out.stderr.splitlines() if o.startswith('error')], out.stdout

@pytest.mark.parametrize('launcher', LAUNCHERS)
def test_a_failed_job_stops_no_other(tmp_path, launcher):
    own = launcher in ('basic', 'together')
    if not own: needs(launcher)
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

JOBLIB = ['hydra/launcher=joblib', 'hydra.launcher.n_jobs=2']
FORK = """
from joblib.externals.loky.backend.context import set_start_method
set_start_method('fork')  # spares each process of joblib ten seconds for importing torch
"""
KILLED = FORK + """
import os, signal
import gnosis_nb.experiment as experiment
from gnosis_nb.cli import image_classification
from gnosis_nb.runs import find_runs
from processes import until
write = experiment.write_report
def kill_first(run, *args):
    seed, root = run.config['seed'], run.config['data_dir']
    if seed == 0: os.kill(os.getpid(), signal.SIGKILL)
    if seed == 1: until(lambda: 'failed' in [*find_runs(root).state])
    write(run, *args)
experiment.write_report = kill_first
image_classification()"""

def test_a_killed_process_takes_its_own_job_only(tmp_path):
    "The second job is in the middle of its work then, and the third has not begun."
    needs('joblib')
    axes = [*NEW, 'seed=0,1,2', f'data_dir={tmp_path}']
    out = processes.run(KILLED, *OVERRIDES, *axes, *JOBLIB)
    error, = [o for o in out.stderr.splitlines() if o.startswith('error')]
    assert out.returncode == 1 and error.startswith('error in job 0 (') and 'Traceback' not in out.stderr
    why = 'its process was killed (SIGKILL), probably because memory ran out: fewer jobs at a time'
    assert why in error
    runs = find_runs(tmp_path).sort_values('seed')
    assert runs.state.tolist() == ['failed', 'done', 'done'] and runs.error.iloc[0].startswith(why)
    assert '2 runs of this sweep' in out.stdout
    assert sweep(tmp_path, *axes)[0] == 0                                    # goes on with the first
    states = [json.loads(o.read_text()) for o in tmp_path.rglob('state.json')]
    assert sorted((o['state'], len(o.get('continued', []))) for o in states) == [
        ('done', 0), ('done', 0), ('done', 1)]

WAITING = """
import gnosis_nb.cli as cli
def wait_in_epoch_1(command, cfg):
    import time
    from pathlib import Path
    from gnosis_nb.distill import FidelityTable
    from gnosis_nb.experiment import image_classification
    after = FidelityTable.after_train
    def wait(self):
        after(self)
        if self.epoch < 1: return
        Path(cfg.data_dir, f'{cfg.seed}.waits').touch()
        while True: time.sleep(.05)
    FidelityTable.after_train = wait
    return image_classification(cfg)
cli.run_command = wait_in_epoch_1  # launchers send it to their processes
cli.image_classification()"""

@pytest.mark.parametrize('launcher, before, options', [
    ('joblib', FORK, ['seed=0,1', *JOBLIB]),
    ('submitit', '', ['seed=0', 'hydra/launcher=submitit_local', 'hydra.launcher.timeout_min=10'])])
def test_jobs_in_other_processes_are_stopped(tmp_path, launcher, before, options):
    needs(launcher)
    overrides = [*OVERRIDES, *LONG, f'data_dir={tmp_path}', options[0]]
    begun = len(options[0].split(','))
    process = processes.Process(before + WAITING, *overrides, *options[1:])
    processes.until(lambda: len(list(tmp_path.glob('*.waits'))) == begun, process)
    os.kill(process.pid, signal.SIGTERM)
    status, _, said = process.wait()
    assert status == 143 and said.splitlines()[-1] == 'interrupted; the same command goes on from here'
    assert find_runs(tmp_path).state.tolist() == ['interrupted']*begun
    assert kept_epochs(tmp_path) == [1]*begun
    assert script('image_classification', *overrides).returncode == 0
    assert find_runs(tmp_path).state.tolist() == ['done']*begun

def test_no_slurm_is_one_line(tmp_path, monkeypatch):
    needs('submitit')
    monkeypatch.setenv('PATH', str(tmp_path))
    out = script('image_classification', *OVERRIDES, f'data_dir={tmp_path}', 'hydra/launcher=submitit_slurm')
    assert out.returncode == 1 and not list(tmp_path.iterdir())
    line, = out.stderr.splitlines()
    assert line.startswith('error: hydra/launcher=submitit_slurm: there is no sbatch and no srun on the PATH')

CTRL_C = """
import atexit, os, signal
from gnosis_nb.cli import image_classification
from gnosis_nb.distill import FidelityTable
from gnosis_nb.run_folder import Run
def press(): os.kill(os.getpid(), signal.SIGINT)
def press_before(owner, name, now):
    call = getattr(owner, name)
    def pressed(self, *args, **kwargs):
        if now(self, *args): press()
        return call(self, *args, **kwargs)
    setattr(owner, name, pressed)
press_before(FidelityTable, 'after_train', lambda table: table.epoch == 1)
press_before(Run, 'keep_state', lambda *args: True)
press_before(Run, 'set_state', lambda run, state, **facts: state == 'interrupted')
atexit.register(press)
image_classification()"""

@pytest.mark.parametrize('how, begun', [
    ([], 1), (['-m', 'seed=0,1'], 1), (['-m', 'seed=0,1', *LAUNCHERS['together']], 2)])
def test_ctrl_c_again_and_again(tmp_path, how, begun):
    "While the training state is written, while the run's end is recorded, and when Python ends."
    out = processes.run(CTRL_C, *how, *OVERRIDES[1:], *LONG, f'data_dir={tmp_path}')
    assert out.returncode == 130 and 'Traceback' not in out.stderr
    assert [o for o in out.stderr.splitlines() if 'interrupted' in o] == [
        'interrupted; the same command goes on from here']
    assert find_runs(tmp_path).state.tolist() == ['interrupted']*begun
    assert kept_epochs(tmp_path) == [1]*begun
