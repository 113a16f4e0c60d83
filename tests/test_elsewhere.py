"Runs that another machine goes on with: two data folders, one bucket, a real server."
import json
import os
from functools import partial
from pathlib import Path

import pytest

import processes
from experiments import program
from gnosis_nb.files import file_sha256
from gnosis_nb.mirror import Lease, Mirror
from gnosis_nb.run_folder import Elsewhere, Run, RunLocked
from gnosis_nb.runs import find_runs
from gnosis_nb.stores import S3Store, StoreRefused, fetch
from test_resume import SMALL, results, run, same

KILLED = f"""
import os
from gnosis_nb.run_folder import Run
log = Run.log
def stop(self, table, row):
    if table == 'student_train_metrics' and row['epoch'] == 3:
        assert not self._mirror.flush()
        os.kill(os.getpid(), 9)
    log(self, table, row)
Run.log = stop
{program('image_classification')}"""

@pytest.fixture
def logged(real_bucket, monkeypatch):
    "Settings with which runs go to the bucket."
    monkeypatch.setattr('gnosis_nb.teachers.S3Store', partial(S3Store, pause=.05, timeout=10, tries=4))
    return ['trainer.num_epochs=4', 'trainer.state_minutes=0', 'logger=s3', 'logger.lease_seconds=3',
            f'logger.bucket_name={real_bucket.bucket}',
            f's3_endpoint_url={real_bucket.client.meta.endpoint_url}']

def test_another_machine_goes_on(real_bucket, logged, tmp_path):
    a, b, c = (tmp_path/o for o in 'abc')
    run(tmp_path/'whole', 'trainer.num_epochs=4')
    out = processes.run(KILLED, *SMALL, *logged, f'data_dir={a}')
    assert out.returncode == -9, out.stderr[-2000:]
    r, lines = run(b, *logged)
    assert any('fetched from' in o for o in lines)
    assert any(o.endswith('student after epoch 2 of 4') for o in lines)
    assert not any(o.startswith('teacher 0 epoch') for o in lines)
    assert same(results(tmp_path/'whole'), results(b))
    assert not [o.key for o in real_bucket.list() if '.training_state' in o.key]
    for folder in (c, a):                                                    # empty, and with half of it
        again, lines = run(folder, *logged)
        assert again.finished and any(o.startswith('already done') for o in lines)
        assert same(results(b), results(folder))
        assert again.path.relative_to(folder) == r.path.relative_to(b)

def test_a_data_folder_may_be_relative(real_bucket, logged, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run('a', *logged)[0].state['state'] == 'done' and run('b', *logged)[0].finished
    assert not [o.key for o in real_bucket.list() if '.training_state' in o.key]

EARLY = ['teacher.trainer.keep_epochs=[1]', 'teacher.schedule=[2]', 'teacher.control=early']

@pytest.mark.parametrize('kept, more', [([], []), (EARLY[:1], EARLY)],
                         ids=['teachers', 'their earlier epochs'])
def test_teachers_of_another_run_come_with_it(real_bucket, logged, tmp_path, kept, more):
    a, b = tmp_path/'a', tmp_path/'b'
    run(a, *logged, *kept, 'trainer.distill_teacher=false')
    assert processes.run(KILLED, *SMALL, *logged, *more, f'data_dir={a}').returncode == -9
    _, lines = run(b, *logged, *more)
    assert not any(o.startswith('teacher 0 epoch') for o in lines)
    assert find_runs(b).state.tolist() == ['done'] and len(list(b.rglob('teacher_0.safetensors'))) == 1

def test_a_plan_is_read_without_trust(bucket, tmp_path):
    "A folder may be called as a teacher, and no file of a bucket is put outside of the data folder."
    def put(key, text): bucket.client.put_object(Bucket=bucket.bucket, Key=key, Body=text.encode())
    files = ['teacher_runs/teacher_0.safetensors', 'teacher_runs/teacher_init_0.safetensors']
    for key in ('../escaped/evil.txt', *files): put(key, key)
    plan = [[dict(path='../escaped/evil.txt'), dict(path=files[0])]]
    put('exp/run/state.json', json.dumps(dict(plan=plan)))
    Elsewhere(bucket, tmp_path/'data', say=lambda text: None)._fetch('exp/run')
    assert not (tmp_path/'escaped').exists()
    assert all((tmp_path/'data'/o).is_file() for o in files)

def held(store, run, folder, seconds):
    "The lease of a run, by another machine."
    return Elsewhere(store, folder, seconds)._lease(run.state['identity'], run.state['data'])

def test_a_machine_that_is_alive_is_left_alone(real_bucket, logged, tmp_path):
    r, _ = run(tmp_path/'a', *logged)
    lease = held(real_bucket, r, tmp_path/'b', 3)
    lease.acquire()
    with pytest.raises(RunLocked, match=f'process {os.getpid()} on .* is at work; wait for it'):
        run(tmp_path/'c', *logged)
    assert not list((tmp_path/'c').rglob('state.json'))
    lease.release()
    assert run(tmp_path/'c', *logged)[0].finished

def test_who_has_been_taken_over_stops_and_sends_nothing(real_bucket, logged, tmp_path, monkeypatch):
    "A machine that slept: its lease is another's when it wakes up."
    log = Run.log
    def sleep(self, table, row):
        if table == 'student_train_metrics' and row['epoch'] == 2:
            assert not self._mirror.flush()
            taken = Lease(real_bucket, self.lease.key)
            with self.lease._cond: assert taken._write(True, taken.read()[1])     # no renewal in between
            self.lease.update(folder='mine', place='here')
            real_bucket.put('.seen', self.path/'state.json')
        log(self, table, row)
    monkeypatch.setattr(Run, 'log', sleep)
    with pytest.raises(RunLocked, match='another machine has taken this run over'): run(tmp_path, *logged)
    runs = find_runs(tmp_path)
    assert runs.state.tolist() == ['failed'] and not (Path(runs.path[0])/'.unsent.json').exists()
    key = Path(runs.path[0]).relative_to(tmp_path).as_posix()
    assert real_bucket.info(f'{key}/state.json').sha256 == real_bucket.info('.seen').sha256

def test_what_is_another_machines_is_not_sent_later(real_bucket, logged, tmp_path):
    a, b = tmp_path/'a', tmp_path/'b'
    assert processes.run(KILLED, *SMALL, *logged, f'data_dir={a}').returncode == -9
    r, _ = run(b, *logged)
    done = real_bucket.info(f'{r.path.relative_to(b).as_posix()}/state.json')
    run(a, *logged, 'seed=5', 'trainer.num_epochs=1', 'trainer.distill_teacher=false')   # sends what is left
    assert real_bucket.info(done.key) == done


# The store itself

def test_a_store_keeps_what_it_is_given(real_bucket, tmp_path):
    (tmp_path/'large').write_bytes(os.urandom(40 * 2**20))
    sha = real_bucket.put('large', tmp_path/'large')                         # in five parts
    assert real_bucket.get('large', tmp_path/'back') == sha == file_sha256(tmp_path/'back')
    assert real_bucket.holds('large', tmp_path/'large') and real_bucket.info('large').sha256 == sha

def test_many_objects_are_listed(real_bucket, tmp_path):
    keys = [f'many/{i:04}' for i in range(1200)]
    for key in keys: real_bucket.write_if(key, b'x')
    assert [o.key for o in real_bucket.list('many/')] == keys

def test_a_wrong_secret(real_bucket, monkeypatch, tmp_path):
    monkeypatch.setenv('AWS_SECRET_ACCESS_KEY', 'wrong')
    store = S3Store(real_bucket.bucket, endpoint_url=real_bucket.client.meta.endpoint_url)
    (tmp_path/'x').write_text('x')
    for act in (lambda: store.put('x', tmp_path/'x'), lambda: list(store.list()), lambda: store.read('x')):
        with pytest.raises(StoreRefused, match='the secret key is wrong'): act()

def test_a_server_that_is_killed_and_comes_back(real_bucket, weed_server, tmp_path):
    "Files that are sent meanwhile arrive all the same."
    (folder := tmp_path/'run').mkdir()
    mirror = Mirror(folder, real_bucket, 'run', again=.1, say=lambda line: None)
    for i in range(6):
        (folder/f'{i}').write_bytes(os.urandom(2**20))
        mirror.send(folder/f'{i}')
        if i == 2: weed_server.kill()
    weed_server.start()
    assert mirror.close(None) == []
    fetch(real_bucket, 'run', tmp_path/'back', say=None)
    assert [file_sha256(tmp_path/'back'/f'{i}') == file_sha256(folder/f'{i}') for i in range(6)] == [True]*6
