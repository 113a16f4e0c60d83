"Runs whose folder is copied to a bucket, and teachers and generators that come from one, over a network that fails now and then."
import json
import pickle
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from gnosis_nb import experiment
from gnosis_nb.cli import compose
from gnosis_nb.distill import FidelityTable
from gnosis_nb.experiment import ConfigError, image_classification
from gnosis_nb.generation import image_generation
from gnosis_nb.runs import find_runs
from gnosis_nb.checkpoint import load_checkpoint
from gnosis_nb.stores import S3Store, StoreError, StoreRefused

SMALL = ['dataset=digits', 'dataset.size=8', 'classifier.depth=8', 'dataloader.batch_size=256', 'trainer.num_epochs=1', 'device=cpu']

@pytest.fixture(autouse=True)
def impatient(monkeypatch): monkeypatch.setattr(experiment, 'S3Store', partial(S3Store, pause=.01, timeout=10, tries=4))

def run(data_dir, proxy, *overrides, task=image_classification, config='image_classification'):
    lines = []
    return task(compose([*SMALL, *overrides, f'data_dir={data_dir}', f's3_endpoint_url={proxy.url}'], config), say=lines.append), lines

def files(folder): return {o.relative_to(folder).as_posix() for o in Path(folder).rglob('*') if o.is_file() and not any(p.startswith('.') for p in o.relative_to(folder).parts)}
def logged(bucket, *more): return ['logger=s3', f'logger.bucket_name={bucket.bucket}', *more]

def in_bucket(bucket, run, root, tmp_path, prefix=''):
    "Asserts that the bucket has the run's files, byte for byte."
    key = prefix + run.path.relative_to(root).as_posix()
    assert {o.key for o in bucket.list(key)} == {f'{key}/{o}' for o in files(run.path)}
    for o in files(run.path):
        bucket.get(f'{key}/{o}', tmp_path/'copy')
        assert (tmp_path/'copy').read_bytes() == (run.path/o).read_bytes(), o


def test_a_run_is_in_the_bucket(bucket, proxy, tmp_path):
    for kind, method, times in (('busy', 'PUT', 2), ('failing', 'GET', 1), ('damaged_up', 'PUT', 1)): proxy.fault(kind, method, times)
    r, lines = run(tmp_path/'runs', proxy, *logged(bucket, 'logger.prefix=mine'))
    assert {'state.json', 'config.yaml', 'student.safetensors', 'teacher_0.safetensors', 'student_train_metrics.csv', 'fidelity.csv', 'fidelity.png'} <= files(r.path)
    in_bucket(bucket, r, tmp_path/'runs', tmp_path, 'mine/')
    assert not list(tmp_path.rglob('.unsent.json')) and not any(o[2] for o in proxy.faults)
    again, _ = run(tmp_path/'runs', proxy)                                   # where results are kept does not make another run
    assert again.finished

def test_a_server_that_is_gone_for_a_while(bucket, proxy, tmp_path):
    proxy.stop()
    r, lines = run(tmp_path, proxy, *logged(bucket), 'job_name=alone')
    assert r.state['state'] == 'done' and any('could not be sent yet' in o for o in lines) and any('no proper answer' in o for o in lines)
    assert not list(bucket.list()) and json.loads((r.path/'.unsent.json').read_text())
    proxy.start()
    other, lines = run(tmp_path, proxy, *logged(bucket), 'seed=1')
    for o in (r, other): in_bucket(bucket, o, tmp_path, tmp_path/'..')
    assert not list(tmp_path.rglob('.unsent.json'))

def test_a_bucket_that_is_not_there_is_said_before_anything_begins(bucket, proxy, tmp_path):
    with pytest.raises(StoreRefused, match='there is no such bucket'): run(tmp_path, proxy, 'logger=s3', 'logger.bucket_name=nobodys-bucket')
    proxy.fault('denied', 'GET', 9)
    with pytest.raises(StoreRefused, match='access denied'): run(tmp_path, proxy, *logged(bucket))
    assert not len(find_runs(tmp_path))

@pytest.mark.parametrize('settings, message', [
    (['logger=s3'], 'logger=s3: needs logger.bucket_name'), (['ckpt_store=s3'], 'ckpt_store=s3: needs s3_bucket'),
    (['ckpt_store=s3', 's3_bucket=b'], 'needs teacher.ckpt_path or density_model.ckpt_path'), (['logger=ftp'], 'ftp')])
def test_settings_without_a_place(tmp_path, settings, message):
    out = subprocess.run([sys.executable, '-c', 'from gnosis_nb.cli import image_classification as f; f()', *SMALL, f'data_dir={tmp_path}', *settings], capture_output=True, text=True)
    assert out.returncode == 1 and message in out.stderr and len(out.stderr.splitlines()) == 1


@pytest.fixture
def teachers(bucket, proxy, tmp_path):
    "Two teachers in a bucket, and where."
    r, _ = run(tmp_path/'theirs', proxy, *logged(bucket), 'trainer.distill_teacher=false', 'teacher.num_components=2')
    return r, r.path.relative_to(tmp_path/'theirs').as_posix()

def from_bucket(bucket, path): return ['ckpt_store=s3', f's3_bucket={bucket.bucket}', f'teacher.ckpt_path={path}', 'teacher.num_components=2']

@pytest.mark.parametrize('fault', [('damaged_down', 'GET', 1), ('short', 'GET', 2), ('busy', 'GET', 3)])
def test_teachers_from_a_bucket(bucket, proxy, teachers, tmp_path, fault):
    theirs, path = teachers
    proxy.fault(*fault)
    r, lines = run(tmp_path/'mine', proxy, *from_bucket(bucket, path))
    used = [Path(o.split()[2]) for o in lines if o.startswith('teacher from ')]
    assert [o.name for o in used] == ['teacher_0.safetensors', 'teacher_1.safetensors'] and {o.name for o in r.path.glob('teacher*')} == set()
    for o in used:
        a, b = load_checkpoint(o)[0], load_checkpoint(theirs.path/o.name)[0]
        assert all(torch.equal(v, b[k]) for k, v in a.items())
    seen = len(proxy.seen)
    _, lines = run(tmp_path/'mine', proxy, *from_bucket(bucket, path), 'seed=3')      # they are here now
    assert not any('.safetensors, ' in o for o in lines) and all('teacher_' not in path for _, path in proxy.seen[seen:] if 'prefix' not in path)
    plain, lines = run(tmp_path/'mine', proxy, 'seed=4')                     # who did not ask for the bucket's does not get them
    assert not any('.fetched' in o for o in lines)

def test_damaged_and_missing_teachers(bucket, proxy, teachers, tmp_path):
    _, path = teachers
    with pytest.raises(ConfigError, match='teacher.ckpt_path=nowhere: s3:.* has no teacher_<number> checkpoint there'): run(tmp_path/'mine', proxy, *from_bucket(bucket, 'nowhere'))
    proxy.fault('damaged_down', 'GET', 99)
    with pytest.raises(StoreError): run(tmp_path/'mine', proxy, *from_bucket(bucket, path))
    assert not len(find_runs(tmp_path/'mine')) and not list((tmp_path/'mine').rglob('*.safetensors'))

class Hostile:
    def __reduce__(self): return (exec, ('open("/tmp/gnosis_nb_was_here", "w")',))

def test_a_hostile_teacher_in_a_bucket(bucket, proxy, tmp_path):
    (tmp_path/'teacher_0.ckpt').write_bytes(pickle.dumps(dict(state_dict=Hostile())))
    bucket.put('evil/teacher_0.ckpt', tmp_path/'teacher_0.ckpt')
    with pytest.raises(ConfigError, match=r'teacher.ckpt_path: .*teacher_0.ckpt: (refused|damaged)'): run(tmp_path/'mine', proxy, *from_bucket(bucket, 'evil'))
    assert not Path('/tmp/gnosis_nb_was_here').exists()

def test_a_generator_from_a_bucket(bucket, proxy, tmp_path):
    gan = ['density_model.z_dim=16', 'density_model.generator.k=8', 'density_model.discriminator.k=8', 'dataloader.batch_size=16', 'trainer.num_gen_updates=2', 'trainer.eval_period=2', 'trainer.checkpoint_period=2', 'judge.name=none']
    theirs, _ = run(tmp_path/'theirs', proxy, *logged(bucket), *gan, task=image_generation, config='image_generation')
    in_bucket(bucket, theirs, tmp_path/'theirs', tmp_path)
    path = theirs.path.relative_to(tmp_path/'theirs').as_posix()
    r, lines = run(tmp_path/'mine', proxy, 'ckpt_store=s3', f's3_bucket={bucket.bucket}', f'density_model.ckpt_path={path}', 'distill_loader.synth_ratio=0.2')
    assert any(o.startswith('generator: ') and o.endswith(f'{path}/generator_2.safetensors') and '.fetched' in o and bucket.bucket in o for o in lines)


def stop_in(monkeypatch, name):
    "The training of `name` is interrupted in its second epoch."
    after = FidelityTable.after_train
    def stumble(self):
        after(self)
        if name in self.learn.print_progress.title and self.epoch == 1: raise KeyboardInterrupt()
    monkeypatch.setattr(FidelityTable, 'after_train', stumble)

def test_a_run_that_began_without_a_bucket_is_complete_in_it(bucket, proxy, tmp_path, monkeypatch):
    with monkeypatch.context() as m:
        stop_in(m, 'student')
        with pytest.raises(KeyboardInterrupt): run(tmp_path/'runs', proxy, 'trainer.num_epochs=3')
    assert list((tmp_path/'runs').rglob('.training_state_student*'))
    r, _ = run(tmp_path/'runs', proxy, *logged(bucket), 'trainer.num_epochs=3')
    assert len(r.state['continued']) == 1
    in_bucket(bucket, r, tmp_path/'runs', tmp_path)
    done, _ = run(tmp_path/'more', proxy)
    again, _ = run(tmp_path/'more', proxy, *logged(bucket))
    assert again.finished
    in_bucket(bucket, done, tmp_path/'more', tmp_path)

def test_states_of_training_stay_here(bucket, proxy, tmp_path):
    command = [sys.executable, '-c', 'from gnosis_nb.cli import image_classification as f; f()', *SMALL, 'trainer.num_epochs=300', 'trainer.eval_period=100', 'trainer.state_minutes=0', *logged(bucket), f'data_dir={tmp_path}', f's3_endpoint_url={proxy.url}']
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(600):
        if list(tmp_path.rglob('.training_state_*')) and list(bucket.list()) or process.poll() is not None: break
        time.sleep(.1)
    process.kill(); process.wait()
    assert list(tmp_path.rglob('.training_state_*')) and list(tmp_path.rglob('.unsent.json'))
    other, _ = run(tmp_path, proxy, *logged(bucket), 'seed=5')               # sends what the dead one has left
    assert not list(tmp_path.rglob('.unsent.json')) and not any('training_state' in o.key for o in bucket.list())
    assert {o.key.split('/')[1] for o in bucket.list()} == {o.parent.name for o in (tmp_path/'image_classification').glob('*/*')}
