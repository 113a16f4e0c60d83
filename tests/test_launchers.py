"Multiruns under other launchers: the jobs that can run do, the others are named, and what is done is not done again."
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gnosis_nb.runs import find_runs

LAUNCHERS = dict(basic=[], joblib=['hydra/launcher=joblib', 'hydra.launcher.n_jobs=2'], submitit=['hydra/launcher=submitit_local', 'hydra.launcher.timeout_min=5', 'hydra.launcher.cpus_per_task=1'],
                 ray=['hydra/launcher=ray', '+hydra.launcher.ray.init.num_cpus=2', '+hydra.launcher.ray.init.include_dashboard=false', '+hydra.launcher.ray.remote.num_cpus=1',
                 '+hydra.launcher.ray.init.num_gpus=1', '+hydra.launcher.ray.remote.num_gpus=0.5'])     # a GPU in name only: Ray counts what it is told
SMALL = ['dataset=digits', 'dataset.size=8', 'classifier.depth=8', 'dataloader.batch_size=256', 'trainer.num_epochs=1', 'trainer.distill_teacher=false', 'device=cpu']

def sweep(folder, *overrides):
    "A multirun; its exit status and the lines that name jobs."
    command = [sys.executable, str(Path(__file__).parent.parent/'scripts/image_classification.py'), '-m', *SMALL, f'data_dir={folder}', *overrides]
    out = subprocess.run(command, env={**os.environ, 'OMP_NUM_THREADS': '1'}, capture_output=True, text=True)
    return out.returncode, [o for o in out.stderr.splitlines() if o.startswith('error')], out.stdout

@pytest.mark.parametrize('launcher', LAUNCHERS)
def test_a_failed_job_stops_no_other(tmp_path, launcher):
    if launcher != 'basic' and not importlib.util.find_spec(f'hydra_plugins.hydra_{launcher}_launcher'): pytest.skip(f"needs the extra: pip install 'gnosis_nb[{launcher}]'")
    status, errors, _ = sweep(tmp_path, 'teacher.use_ckpts=false', 'trainer.optimizer.lr=0.05,1e30', 'loss.alpha=0,2', *LAUNCHERS[launcher])
    assert status == 1 and len(errors) == 3
    assert [('loss.alpha=2: expected a number in [0, 1]' in o, 'training diverged' in o) for o in errors] == [(True, False), (False, True), (True, False)]
    assert [o.split()[3] for o in errors] == ['1', '2', '3'] and 'trainer.optimizer.lr=1e' in errors[1]
    runs = find_runs(tmp_path)
    assert sorted(runs.state) == ['done', 'failed'] and 'training diverged' in runs.set_index('state').error['failed']

def test_an_unforeseen_failure_stops_no_other_either(tmp_path):
    code = """
import gnosis_nb.generation, gnosis_nb.experiment as e, sys
finish = e.finish
def stumble(run, *args):
    if run.config['seed'] == 0: raise ZeroDivisionError('nobody thought of that')
    finish(run, *args)
e.finish = stumble
from gnosis_nb.cli import image_classification
image_classification()"""
    out = subprocess.run([sys.executable, '-c', code, '-m', *SMALL, f'data_dir={tmp_path}', 'seed=0,1'], capture_output=True, text=True)
    assert out.returncode == 1 and out.stderr.splitlines()[-1].endswith('ZeroDivisionError: nobody thought of that') and 'Traceback' in out.stderr
    assert sorted(find_runs(tmp_path).state) == ['done', 'failed']
    status, errors, said = sweep(tmp_path, 'seed=0,1')                       # the same sweep does what is left
    assert (status, errors) == (0, []) and said.count('already done') == 1 and find_runs(tmp_path).state.tolist() == ['done', 'done']

def test_notes_of_an_earlier_sweep_are_forgotten(tmp_path):
    here = f'hydra.sweep.dir={tmp_path}/sweep'
    assert sweep(tmp_path, 'loss.alpha=2', here)[0] == 1
    assert sweep(tmp_path, 'loss.alpha=0', here)[:2] == (0, [])
