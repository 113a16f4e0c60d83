"Runs copied to a bucket, and teachers and generators from one, over a network that fails now and then."
import json
import pickle
from functools import partial
from pathlib import Path

import pytest
import torch

import processes
from experiments import program
from gnosis_nb.checkpoint import load_checkpoint
from gnosis_nb.cli import compose
from gnosis_nb.distill import FidelityTable
from gnosis_nb.experiment import ConfigError, image_classification
from gnosis_nb.generation import image_generation
from gnosis_nb.runs import find_runs
from gnosis_nb.stores import S3Store, StoreError, StoreRefused

SMALL = ['dataset=digits', 'dataset.size=8', 'classifier.depth=8',
         'dataloader.batch_size=256', 'trainer.num_epochs=1', 'device=cpu']
GAN = ['density_model.z_dim=16', 'density_model.generator.k=8', 'density_model.discriminator.k=8',
       'dataloader.batch_size=16', 'trainer.num_gen_updates=2', 'trainer.eval_period=2',
       'trainer.checkpoint_period=2', 'judge.name=none']
RECIPE = '+recipe=student'                                                # of commands with a teacher
COMMAND = [program('image_classification'), *SMALL, RECIPE]

@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr('gnosis_nb.teachers.S3Store', partial(S3Store, pause=.01, timeout=10, tries=4))

def run(data_dir, proxy, *overrides, task=image_classification, config='image_classification'):
    lines, settings = [], [*SMALL, *overrides, f'data_dir={data_dir}', f's3_endpoint_url={proxy.url}']
    if task is image_classification: settings.append(RECIPE)
    return task(compose(settings, config), say=lines.append), lines

def files(folder):
    names = (o.relative_to(folder) for o in Path(folder).rglob('*') if o.is_file())
    return {o.as_posix() for o in names if not any(part.startswith('.') for part in o.parts)}

def logged(bucket, *more): return ['logger=s3', f'logger.bucket_name={bucket.bucket}', *more]

def assert_in_bucket(bucket, run, root, prefix=''):
    "The bucket has the run's files, byte for byte."
    key, copy = prefix + run.path.relative_to(root).as_posix(), root/'.copy'
    assert {o.key for o in bucket.list(key)} == {f'{key}/{o}' for o in files(run.path)}
    for o in files(run.path):
        bucket.get(f'{key}/{o}', copy)
        assert copy.read_bytes() == (run.path/o).read_bytes(), o


# Runs that are copied

def test_a_run_is_in_the_bucket(bucket, proxy, tmp_path):
    proxy.fault('busy', 'PUT', 2).fault('failing', 'GET', 1).fault('damaged_up', 'PUT', 1)
    r, _ = run(tmp_path, proxy, *logged(bucket, 'logger.prefix=mine'))
    assert {'state.json', 'config.yaml', 'student.safetensors', 'teacher_0.safetensors',
            'student_train_metrics.csv', 'fidelity.csv', 'fidelity.png',
            'predictions_test.safetensors', 'predictions_train.safetensors'} <= files(r.path)
    assert_in_bucket(bucket, r, tmp_path, 'mine/')
    assert not list(tmp_path.rglob('.unsent.json')) and not any(o[2] for o in proxy.faults)
    again, _ = run(tmp_path, proxy)                      # where results are kept does not make another run
    assert again.finished

def test_a_server_that_is_gone_for_a_while(bucket, proxy, tmp_path):
    proxy.stop()
    r, lines = run(tmp_path, proxy, *logged(bucket), 'job_name=alone')
    assert r.state['state'] == 'done' and json.loads((r.path/'.unsent.json').read_text())
    assert any('could not be sent yet' in o for o in lines) and any('no proper answer' in o for o in lines)
    proxy.start()
    other, _ = run(tmp_path, proxy, *logged(bucket), 'seed=1')
    for o in (r, other): assert_in_bucket(bucket, o, tmp_path)
    assert not list(tmp_path.rglob('.unsent.json'))

@pytest.mark.parametrize('name, fault, message', [
    ('nobodys-bucket', 'none', 'there is no such bucket'), (None, 'denied', 'access denied')])
def test_a_bucket_out_of_reach_is_said_before_anything_begins(name, fault, message, bucket, proxy, tmp_path):
    proxy.fault(fault, 'GET', 9)
    with pytest.raises(StoreRefused, match=message):
        run(tmp_path, proxy, 'logger=s3', f'logger.bucket_name={name or bucket.bucket}')
    assert not len(find_runs(tmp_path))

@pytest.mark.parametrize('settings, message', [
    (['logger=s3'], 'logger=s3: needs logger.bucket_name'),
    (['ckpt_store=s3'], 'ckpt_store=s3: needs s3_bucket'),
    (['ckpt_store=s3', 's3_bucket=b'], 'needs teacher.ckpt_path or density_model.ckpt_path'),
    (['logger=ftp'], 'ftp')])
def test_settings_without_a_place(tmp_path, settings, message):
    out = processes.run(*COMMAND, f'data_dir={tmp_path}', *settings)
    assert out.returncode == 1 and message in out.stderr and len(out.stderr.splitlines()) == 1

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
        with pytest.raises(KeyboardInterrupt): run(tmp_path, proxy, 'trainer.num_epochs=3')
    assert list(tmp_path.rglob('.training_state_student*'))
    r, _ = run(tmp_path, proxy, *logged(bucket), 'trainer.num_epochs=3')
    assert len(r.state['continued']) == 1
    assert_in_bucket(bucket, r, tmp_path)

def test_a_run_that_was_done_without_a_bucket_is_complete_in_it(bucket, proxy, tmp_path):
    done, _ = run(tmp_path, proxy)
    again, _ = run(tmp_path, proxy, *logged(bucket))
    assert again.finished
    assert_in_bucket(bucket, done, tmp_path)

def test_the_next_run_sends_what_a_killed_one_has_left(bucket, proxy, tmp_path):
    settings = [*logged(bucket), f'data_dir={tmp_path}', f's3_endpoint_url={proxy.url}',
                'trainer.num_epochs=300', 'trainer.eval_period=100', 'trainer.state_minutes=0']
    processes.kill(processes.start(*COMMAND, *settings, at='.training_state_*', n=2))
    assert list(tmp_path.rglob('.training_state_*')) and list(tmp_path.rglob('.unsent.json'))
    run(tmp_path, proxy, *logged(bucket), 'seed=5')
    keys = {o.key for o in bucket.list()}
    assert not list(tmp_path.rglob('.unsent.json'))
    for path in (tmp_path/'image_classification').glob('*/*'):
        assert {f'{path.relative_to(tmp_path).as_posix()}/{o}' for o in files(path)} <= keys


# Checkpoints from a bucket

@pytest.fixture
def teachers(bucket, proxy, tmp_path):
    "A run with two teachers in a bucket, and its prefix there."
    settings = [*logged(bucket), 'trainer.distill_teacher=false', 'teacher.num_components=2']
    r, _ = run(tmp_path/'theirs', proxy, *settings)
    return r, r.path.relative_to(tmp_path/'theirs').as_posix()

def from_bucket(bucket, path, who='teacher'):
    return ['ckpt_store=s3', f's3_bucket={bucket.bucket}', f'{who}.ckpt_path={path}']

@pytest.mark.parametrize('fault', [('damaged_down', 'GET', 1), ('short', 'GET', 2), ('busy', 'GET', 3)])
def test_teachers_from_a_bucket(bucket, proxy, teachers, tmp_path, fault):
    theirs, path = teachers
    proxy.fault(*fault)
    r, lines = run(tmp_path/'mine', proxy, *from_bucket(bucket, path), 'teacher.num_components=2')
    used = [Path(o.split()[2]) for o in lines if o.startswith('teacher from ')]
    assert [o.name for o in used] == ['teacher_0.safetensors', 'teacher_1.safetensors']
    assert not list(r.path.glob('teacher*'))                                 # none was trained
    for o in used:
        a, b = load_checkpoint(o)[0], load_checkpoint(theirs.path/o.name)[0]
        assert all(torch.equal(v, b[k]) for k, v in a.items())

def test_teachers_are_fetched_once(bucket, proxy, teachers, tmp_path):
    settings = [*from_bucket(bucket, teachers[1]), 'teacher.num_components=2']
    run(tmp_path/'mine', proxy, *settings)
    proxy.seen.clear()
    _, lines = run(tmp_path/'mine', proxy, *settings, 'seed=3')
    assert not any('.safetensors, ' in o for o in lines)
    assert not any('teacher_' in path for _, path in proxy.seen if 'prefix' not in path)

def test_a_folder_of_a_bucket_may_be_called_as_a_teacher(bucket, proxy, teachers, tmp_path):
    bucket.put('old/teacher_runs/teacher_0.safetensors', teachers[0].path/'teacher_0.safetensors')
    _, lines = run(tmp_path/'mine', proxy, *from_bucket(bucket, 'old'))
    assert any('/old/teacher_runs/teacher_0.safetensors (' in o for o in lines)

def test_who_did_not_ask_for_the_teachers_of_a_bucket_does_not_get_them(bucket, proxy, teachers, tmp_path):
    run(tmp_path/'mine', proxy, *from_bucket(bucket, teachers[1]))
    _, lines = run(tmp_path/'mine', proxy, 'seed=4')
    assert lines and not any('.fetched' in o for o in lines)

def test_missing_teachers(bucket, proxy, tmp_path):
    message = 'teacher.ckpt_path=nowhere: s3:.* has no teacher_<number> checkpoint there'
    with pytest.raises(ConfigError, match=message): run(tmp_path, proxy, *from_bucket(bucket, 'nowhere'))
    assert not len(find_runs(tmp_path))

def test_damaged_teachers(bucket, proxy, teachers, tmp_path):
    proxy.fault('damaged_down', 'GET', 99)
    with pytest.raises(StoreError): run(tmp_path/'mine', proxy, *from_bucket(bucket, teachers[1]))
    assert not len(find_runs(tmp_path/'mine')) and not list((tmp_path/'mine').rglob('*.safetensors'))

class Hostile:
    def __init__(self, file): self.file = file
    def __reduce__(self): return exec, (f'open({self.file!r}, "w")',)

def test_a_hostile_teacher_in_a_bucket(bucket, proxy, tmp_path):
    path = tmp_path/'teacher_0.ckpt'
    path.write_bytes(pickle.dumps(dict(state_dict=Hostile(str(tmp_path/'was_here')))))
    bucket.put('evil/teacher_0.ckpt', path)
    with pytest.raises(ConfigError, match=r'teacher.ckpt_path: .*teacher_0.ckpt: (refused|damaged)'):
        run(tmp_path/'mine', proxy, *from_bucket(bucket, 'evil'))
    assert not (tmp_path/'was_here').exists()

def test_a_generator_from_a_bucket(bucket, proxy, tmp_path):
    of_a_gan = dict(task=image_generation, config='image_generation')
    theirs, _ = run(tmp_path/'theirs', proxy, *logged(bucket), *GAN, **of_a_gan)
    assert_in_bucket(bucket, theirs, tmp_path/'theirs')
    path = theirs.path.relative_to(tmp_path/'theirs').as_posix()
    settings = [*from_bucket(bucket, path, 'density_model'), 'distill_loader.synth_ratio=0.2']
    _, lines = run(tmp_path/'mine', proxy, *settings)
    used = [o for o in lines if o.startswith('generator: ')]
    assert len(used) == 1 and used[0].endswith(f'{path}/generator_2.safetensors')
    assert '.fetched' in used[0] and bucket.bucket in used[0]
