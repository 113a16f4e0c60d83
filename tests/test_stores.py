"Stores behind a network that misbehaves: nothing is lost, nothing wrong is accepted."
import json
import os
import random
import signal

import pytest
from moto.core import DEFAULT_ACCOUNT_ID
from moto.s3.models import s3_backends

import processes
from gnosis_nb import stores
from gnosis_nb.files import file_sha256, write_atomic
from gnosis_nb.mirror import Mirror, send_unsent
from gnosis_nb.stores import (LocalStore, S3Store, StoreDamaged, StoreError, StoreMissing, StoreRefused,
                              StoreUnreachable, fetch)

MB = 2**20
pytestmark = pytest.mark.usefixtures('credentials', 'one_loader')
each = pytest.mark.parametrize


def via(proxy, bucket, fault=None, **options):
    "A store that speaks to the proxy, and does not wait long for one that is silent."
    patience = dict(timeout=.4, tries=8) if fault in ('silent', 'stalled') else dict(timeout=10, tries=4)
    return S3Store(bucket.bucket, endpoint_url=proxy.url, **{**patience, 'pause': .01, **options})

def content(n, seed=0): return random.Random(seed).randbytes(n)

def file(path, n=5000, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content(n, seed))
    return path

def stored(bucket, key):
    "What the bucket has, past the proxy and our checks."
    return bucket.client.get_object(Bucket=bucket.bucket, Key=key)['Body'].read()

def names(folder): return sorted(o.name for o in folder.iterdir())

def in_memory(bucket, key):
    "Put an empty object where the server keeps them, without a request."
    s3_backends[DEFAULT_ACCOUNT_ID]['aws'].put_object(bucket.bucket, key, b'')

@pytest.fixture
def store(bucket, proxy): return via(proxy, bucket)

@pytest.fixture
def path(tmp_path): return file(tmp_path/'file')

@pytest.fixture
def back(tmp_path):
    "Where downloads go, with a file that was there before."
    (tmp_path/'out').mkdir()
    (tmp_path/'out'/'back').write_bytes(b'before')
    return tmp_path/'out'/'back'


# One interface

@pytest.fixture(params=['local', 's3', 's3 with a prefix'])
def any_store(request, bucket, tmp_path):
    if request.param == 'local': return LocalStore(tmp_path/'store')
    if request.param == 's3': return bucket
    return S3Store(bucket.bucket, 'below/this', endpoint_url=bucket.client.meta.endpoint_url)

def test_keys_are_listed_in_order(any_store, path):
    assert list(any_store.list()) == []
    for key in ('ab', 'a/ü c+%2F&.x', 'a/b'): any_store.put(key, path)
    assert [o.key for o in any_store.list()] == ['a/b', 'a/ü c+%2F&.x', 'ab']
    assert {o.size for o in any_store.list()} == {5000}
    assert [o.key for o in any_store.list('a/')] == ['a/b', 'a/ü c+%2F&.x']

@each('key', ['a/b', 'a/ü c+%2F&.x'])
@each('n', [0, 5000])
def test_there_and_back(key, n, any_store, tmp_path):
    sha = any_store.put(key, file(tmp_path/'file', n))
    assert any_store.get(key, tmp_path/'new'/'back') == any_store.info(key).sha256 == sha
    assert (tmp_path/'new'/'back').read_bytes() == content(n) and any_store.info(key).size == n

def test_what_a_store_holds(any_store, path, tmp_path):
    any_store.put('k', path)
    assert any_store.exists('k') and not any_store.exists('none')
    assert any_store.holds('k', path) and not any_store.holds('none', path)
    assert not any_store.holds('k', file(tmp_path/'other', seed=1))

def test_what_is_not_there(any_store, path, tmp_path):
    with pytest.raises(StoreMissing, match='none'): any_store.get('none', tmp_path/'x')
    with pytest.raises(FileNotFoundError): any_store.put('x', tmp_path/'nowhere')
    with pytest.raises(StoreError, match='expected names'): any_store.put('../x', path)
    assert not (tmp_path/'x').exists()

def test_environment_names_the_server(bucket, path, monkeypatch):
    monkeypatch.setenv('AWS_ENDPOINT_URL', bucket.client.meta.endpoint_url)
    store = S3Store(bucket.bucket)
    store.put('k', path)
    assert stored(bucket, 'k') == content(5000) and store.name == bucket.name

def test_large_file_goes_in_parts(bucket, tmp_path):
    n = 17 * MB + 3
    sha = bucket.put('large', file(tmp_path/'large', n))
    head = bucket.client.head_object(Bucket=bucket.bucket, Key='large')
    assert head['ETag'].endswith('-3"') and head['ContentLength'] == n
    assert head['Metadata'] == dict(sha256=sha)
    assert bucket.get('large', tmp_path/'back') == sha == file_sha256(tmp_path/'large')

def test_list_of_more_than_a_page(bucket):
    for i in range(1003): in_memory(bucket, f'many/{i:04}')
    assert [o.key for o in bucket.list('many/')] == [f'many/{i:04}' for i in range(1003)]

def test_objects_of_others_are_checked_by_length_and_md5(store, bucket, proxy, back):
    bucket.client.put_object(Bucket=bucket.bucket, Key='k', Body=content(5000))
    proxy.fault('damaged_down', 'GET', 2)
    store.get('k', back)
    assert back.read_bytes() == content(5000) and len(proxy.seen) == 3

def test_keys_are_no_paths_of_this_machine(store, bucket, path, tmp_path, monkeypatch):
    (tmp_path/'data').symlink_to('/')
    monkeypatch.chdir(tmp_path)
    store.put('data/k', path)
    assert stored(bucket, 'data/k') == content(5000)


# Faults that pass

PASSING = ['busy', 'failing', 'throttled', 'silent', 'hangup', 'babble']
PASSING_UP = [*PASSING, 'cut_up', 'damaged_up', 'lost_answer']

@each('fault', PASSING_UP)
def test_upload_through(fault, bucket, proxy, path):
    proxy.fault(fault, 'PUT', 2)
    sha = via(proxy, bucket, fault).put('k', path)
    assert stored(bucket, 'k') == content(5000) and bucket.info('k').sha256 == sha
    assert proxy.count('PUT') >= 3

def test_upload_to_a_server_that_checks(store, bucket, proxy, path):
    proxy.checks_md5 = True
    proxy.fault('damaged_up', 'PUT', 2)
    store.put('k', path)
    assert stored(bucket, 'k') == content(5000)
    assert [method for method, _ in proxy.seen] == ['PUT', 'PUT', 'PUT', 'HEAD']      # two were refused

@each('fault, method, before', [     # the second POST completes the upload
    ('busy', 'PUT', 0), ('damaged_up', 'PUT', 0), ('silent', 'PUT', 0), ('lost_answer', 'PUT', 0),
    ('busy', 'POST', 1), ('lost_answer', 'POST', 1)])
def test_upload_in_parts_through(fault, method, before, bucket, proxy, tmp_path):
    proxy.fault('none', method, before).fault(fault, method)
    options = dict(timeout=2) if fault == 'silent' else {}
    via(proxy, bucket, fault, part_size=5 * MB, **options).put('k', file(tmp_path/'file', 9 * MB))
    assert stored(bucket, 'k') == content(9 * MB)
    assert not bucket.client.list_multipart_uploads(Bucket=bucket.bucket).get('Uploads')

@each('fault', [*PASSING, 'stalled', 'short', 'damaged_down'])
def test_download_through(fault, bucket, proxy, path, back):
    bucket.put('k', path)
    proxy.fault(fault, 'GET', 2)
    via(proxy, bucket, fault).get('k', back)
    assert back.read_bytes() == content(5000) and len(proxy.seen) >= 3

@each('fault', ['busy', 'silent', 'hangup', 'short', 'babble'])
def test_list_through(fault, bucket, proxy, path):
    bucket.put('k', path)
    proxy.fault(fault, 'GET', 2)
    assert [o.key for o in via(proxy, bucket, fault).list()] == ['k']

@each('fault', ['busy', 'hangup', 'babble'])
@each('key, size', [('k', 5000), ('none', None)])
def test_head_through(fault, key, size, store, bucket, proxy, path):
    bucket.put('k', path)
    proxy.fault(fault, 'HEAD', 2)
    assert store.exists(key) == (size is not None) and proxy.count('HEAD') == 3
    if size: assert store.info(key).size == size

@each('kept', ['0123456789abcdef0123456789abcdef', '0123456789abcdef0123456789abcdef-2', '"x"'])
def test_other_etags_are_read_back(kept, store, bucket, proxy, path, back, monkeypatch):
    "As from a server that encrypts with keys of one's own."
    monkeypatch.setattr(stores, '_etag', lambda head: kept)
    proxy.fault('damaged_up', 'PUT', 2)
    sha = store.put('k', path)
    assert stored(bucket, 'k') == content(5000) and proxy.count('PUT') == 3
    assert store.get('k', back) == sha


# Faults that stay

@each('fault, error', [
    ('busy', StoreUnreachable), ('failing', StoreUnreachable), ('hangup', StoreUnreachable),
    ('short', StoreUnreachable), ('damaged_down', StoreDamaged)])
def test_download_that_never_succeeds(fault, error, store, bucket, proxy, path, back):
    bucket.put('k', path)
    proxy.fault(fault, 'GET', 99)
    with pytest.raises(error, match=rf's3://{bucket.bucket}/k.*\(4 attempts\)'): store.get('k', back)
    assert names(back.parent) == ['back'] and back.read_bytes() == b'before'
    assert len(proxy.seen) == 4

@each('fault, error', [('busy', StoreUnreachable), ('damaged_up', StoreDamaged), ('cut_up', StoreDamaged)])
def test_upload_that_never_succeeds(fault, error, store, bucket, proxy, path, back):
    proxy.fault(fault, 'PUT', 99)
    with pytest.raises(error, match=rf's3://{bucket.bucket}/k.*\(4 attempts\)'): store.put('k', path)
    assert not bucket.holds('k', path)
    with pytest.raises((StoreDamaged, StoreMissing)): bucket.get('k', back)
    assert back.read_bytes() == b'before'

@each('fault, advice', [('denied', 's3:PutObject'), ('expired', 'log in again')])
@each('use, method', [(S3Store.put, 'PUT'), (S3Store.get, 'GET')])
def test_refusals_are_not_repeated(fault, advice, use, method, store, bucket, proxy, path):
    proxy.fault(fault, method, 99)
    with pytest.raises(StoreRefused, match=f's3://{bucket.bucket}/k: .*{advice}'): use(store, 'k', path)
    assert len(proxy.seen) == 1

def test_denied_heads_are_no_missing_keys(store, proxy):
    proxy.fault('denied', 'HEAD', 99)
    with pytest.raises(StoreRefused, match='access denied'): store.exists('k')

@each('use', [
    lambda store, path: store.put('k', path),
    lambda store, path: store.get('k', path),
    lambda store, path: store.exists('k'),
    lambda store, path: list(store.list()),
    lambda store, path: fetch(store, 'p', path.parent/'c')], ids=['put', 'get', 'exists', 'list', 'fetch'])
def test_no_such_bucket(use, proxy, path):
    store = S3Store('nowhere', endpoint_url=proxy.url, tries=4, pause=.01)
    with pytest.raises(StoreRefused, match='s3://nowhere.*no such bucket'): use(store, path)

def test_no_bucket_may_have_this_name(proxy):
    store = S3Store('no bucket', endpoint_url=proxy.url)
    with pytest.raises(StoreRefused, match='Invalid bucket name'): store.exists('k')

def test_no_such_profile(monkeypatch):
    monkeypatch.setenv('AWS_PROFILE', 'nobody')
    with pytest.raises(StoreRefused, match='s3://b: .*profile .nobody. could not be found'): S3Store('b')

def test_no_credentials(proxy, monkeypatch):
    for k in ('AWS_ACCESS_KEY_ID', 'AWS_SECRET_ACCESS_KEY'): monkeypatch.delenv(k)
    store = S3Store('b', endpoint_url=proxy.url)
    with pytest.raises(StoreRefused, match='no credentials; set AWS_ACCESS_KEY_ID'): store.exists('k')
    assert proxy.seen == []

def test_nobody_there(store, proxy, path):
    proxy.stop()
    message = rf'no proper answer from {proxy.url}.*\(4 attempts\)'
    with pytest.raises(StoreUnreachable, match=message): store.put('k', path)
    proxy.start()
    assert store.put('k', path) == file_sha256(path)

def test_back_off_leaves_the_global_generator_alone(store, proxy, path):
    state = random.getstate()
    proxy.fault('busy', 'PUT', 3)
    store.put('k', path)
    assert random.getstate() == state

def test_disk_full_while_downloading(store, bucket, path, back, monkeypatch):
    bucket.put('k', path)
    def full(fd): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(OSError, match='No space left'): store.get('k', back)
    assert names(back.parent) == ['back'] and back.read_bytes() == b'before'


# Mirrors

@pytest.fixture
def run(tmp_path):
    "A folder with two files."
    for i, name in enumerate('ab'): file(tmp_path/'run'/name, seed=i)
    return tmp_path/'run'

def note(folder): return json.loads((folder/'.unsent.json').read_text())
def is_noted(folder): return (folder/'.unsent.json').exists()

@each('fault', PASSING_UP)
def test_mirror_through(fault, bucket, proxy, run):
    proxy.fault(fault, 'PUT', 2)
    file(run/'deep'/'c', seed=2)
    with Mirror(run, via(proxy, bucket, fault), 'r') as mirror:
        mirror.send(run/'a'); mirror.send(run/'deep'/'c')
        assert mirror.flush() == []
    assert stored(bucket, 'r/a') == content(5000) and stored(bucket, 'r/deep/c') == content(5000, 2)
    assert not is_noted(run)

@each('fault', ['denied', 'busy', 'silent', 'damaged_up'])
def test_mirror_keeps_what_could_not_be_sent(fault, bucket, proxy, run):
    proxy.fault(fault, 'PUT', 99)
    said, store = [], via(proxy, bucket, fault, tries=2)
    mirror = Mirror(run, store, 'r', say=said.append)
    for name in 'ab': mirror.send(run/name)
    assert mirror.close(None) == [run/'a', run/'b']
    assert note(run) == {store.name: dict(prefix='r', open=False, files=['a', 'b'])}
    assert said and all(f's3://{bucket.bucket}/r/' in o for o in said)
    proxy.faults.clear()
    assert send_unsent(run.parent, via(proxy, bucket)) == []
    assert [stored(bucket, f'r/{o}') for o in 'ab'] == [content(5000), content(5000, 1)] and not is_noted(run)

def test_mirror_while_the_server_is_gone_for_a_while(bucket, proxy, run):
    store = via(proxy, bucket, tries=2)
    proxy.stop()
    mirror = Mirror(run, store, again=.05, say=lambda text: None)
    mirror.send(run/'a')
    assert mirror.flush() == [run/'a'] and note(run)[store.name]['files'] == ['a']
    proxy.start()
    with mirror._cond: assert mirror._cond.wait_for(lambda: not mirror._waiting, 60)     # nobody asks
    assert stored(bucket, 'a') == content(5000) and mirror.close() == []

def test_send_does_not_wait(bucket, proxy, run):
    proxy.fault('silent', 'PUT')
    mirror = Mirror(run, via(proxy, bucket, timeout=600), say=lambda text: None)
    for _ in range(2): mirror.send(run/'a'); proxy.wait_for('PUT')
    assert mirror.flush(0) == [run/'a'] and proxy.count('PUT') == 1          # which has no answer yet
    assert mirror.close(0) == [run/'a'] and note(run)[mirror.store.name]['files'] == ['a']

def test_newest_version_wins(store, bucket, proxy, run):
    proxy.fault('busy', 'PUT', 3)
    with Mirror(run, store) as mirror:
        for i in range(50):
            write_atomic(run/'table', lambda tmp: tmp.write_bytes(content(5000, i)))
            mirror.send(run/'table')
    assert stored(bucket, 'table') == content(5000, 49)
    assert proxy.count('PUT') < 54

@pytest.fixture
def during_upload(bucket, proxy, monkeypatch):
    "A store of parts, and a function that takes what is to be done before its first part is sent."
    store = via(proxy, bucket, part_size=5 * MB)
    once, todo = store._once, []
    def meddling(op, *args, **kwargs):
        if op == 'upload_part' and todo: todo.pop()()
        return once(op, *args, **kwargs)
    monkeypatch.setattr(store, '_once', meddling)
    return store, todo.append

def test_file_that_grows_under_the_upload(during_upload, bucket, tmp_path):
    store, during = during_upload
    path = file(tmp_path/'grows', 6 * MB)
    during(lambda: path.write_bytes(content(6 * MB) + b'more'))
    sha = store.put('k', path)
    assert stored(bucket, 'k') == content(6 * MB) and bucket.info('k').sha256 == sha

def test_file_that_is_rewritten_under_the_upload(during_upload, bucket, tmp_path):
    store, during = during_upload
    path = file(tmp_path/'changes', 6 * MB)
    during(lambda: file(path, 6 * MB, seed=1))
    store.put('k', path)
    assert stored(bucket, 'k') == content(6 * MB, 1)

def test_files_that_are_gone_are_crossed_off(store, tmp_path):
    with Mirror(tmp_path/'run', store) as mirror: mirror.send(tmp_path/'run'/'never')
    assert names(tmp_path/'run') == ['.unsent.lock'] and list(store.list()) == []

def test_a_folder_has_one_sender(store, run):
    with Mirror(run, store):
        with pytest.raises(StoreError, match='another process is sending'): Mirror(run, store, wait=0)
    assert Mirror(run, store).close() == []

def test_unreadable_note_means_everything(store, bucket, run):
    (run/'.unsent.json').write_text('{"cut')
    said = []
    assert send_unsent(run.parent, store, say=said.append) == [run/'.unsent.json'] and 'unreadable' in said[0]
    Mirror(run, store).close()
    assert [stored(bucket, o) for o in 'ab'] == [content(5000), content(5000, 1)] and not is_noted(run)

SENDING = """
import os, signal, sys
from pathlib import Path
from gnosis_nb.mirror import Mirror
from gnosis_nb.stores import S3Store
run, bucket, url = Path(sys.argv[1]), *sys.argv[2:]
mirror = Mirror(run, S3Store(bucket, endpoint_url=url, timeout=600), 'r')
for name in 'ab': mirror.send(run/name)
os.kill(os.getpid(), signal.SIGSTOP)                                         # both are noted
signal.pause()
"""

@each('fault', ['silent', 'damaged_up'])
def test_killed_in_the_middle(fault, bucket, proxy, run):
    proxy.fault(fault, 'PUT', 99)
    process = processes.Process(SENDING, run, bucket.bucket, proxy.url)
    assert process.wait()[0] == 'stopped'
    os.kill(process.pid, signal.SIGCONT)
    proxy.wait_for('PUT')
    (run/'c').write_bytes(b'written, and nobody said so')
    processes.kill(process)
    assert note(run) == {via(proxy, bucket).name: dict(prefix='r', open=True, files=['a', 'b'])}
    proxy.faults.clear()
    assert send_unsent(run.parent, via(proxy, bucket)) == [] and not is_noted(run)
    expected = [content(5000), content(5000, 1), b'written, and nobody said so']
    assert [stored(bucket, f'r/{o}') for o in 'abc'] == expected


# Fetching

def teachers(store, path, n=4):
    "Put files t/r0/teacher_0.ckpt, t/r1/teacher_0.ckpt, … into a store."
    for i in range(n): store.put(f't/r{i}/teacher_0.ckpt', file(path, seed=i))

def seeds(paths): return {o.parent.name: o.read_bytes() for o in paths}
def expected(*numbers): return {f'r{i}': content(5000, seed) for i, seed in enumerate(numbers)}

def test_fetch_takes_what_matches(any_store, path, tmp_path):
    teachers(any_store, path)
    any_store.put('t/r0/notes', path)
    said = []
    paths = fetch(any_store, 't', tmp_path/'c', r'teacher_\d+\.ckpt', say=said.append)
    assert paths == [tmp_path/'c'/f'r{i}'/'teacher_0.ckpt' for i in range(4)]
    assert seeds(paths) == expected(0, 1, 2, 3)
    assert len(said) == 4 and not (tmp_path/'c'/'r0'/'notes').exists()

def test_fetch_again(any_store, path, tmp_path):
    teachers(any_store, path)
    paths = fetch(any_store, 't', tmp_path/'c', say=None)
    paths[0].write_bytes(b'damaged'); paths[1].unlink()
    any_store.put('t/r2/teacher_0.ckpt', file(path, seed=99))
    said = []
    assert fetch(any_store, 't/', tmp_path/'c', lambda name: name.endswith('.ckpt'), say=said.append) == paths
    assert len(said) == 3 and seeds(paths) == expected(0, 1, 99, 3)

@each('fault', ['busy', 'silent', 'hangup', 'short', 'damaged_down'])
def test_fetch_through(fault, bucket, proxy, path, tmp_path):
    teachers(bucket, path)
    proxy.fault('none', 'GET').fault(fault, 'GET', 3)                        # after the list
    assert seeds(fetch(via(proxy, bucket, fault), 't', tmp_path/'c', say=None)) == expected(0, 1, 2, 3)

def test_fetch_that_was_stopped_goes_on(bucket, proxy, path, tmp_path):
    teachers(bucket, path)
    store = via(proxy, bucket, tries=1)
    proxy.fault('none', 'GET', 3).fault('busy', 'GET', 99)                   # the list and two files
    with pytest.raises(StoreUnreachable): fetch(store, 't', tmp_path/'c', say=None, threads=1)
    assert [o for o in names(tmp_path/'c') if o != '.fetched.json'] == ['r0', 'r1']
    proxy.faults.clear()
    said = []
    assert len(fetch(store, 't', tmp_path/'c', say=said.append)) == 4 and len(said) == 2

@each('key', ['../x', 't/../../x', '/x', 't//x', 't/..', 't/a\\..\\x', 't/./x', 't/new\nline'])
def test_hostile_keys(key, bucket, tmp_path):
    in_memory(bucket, key)
    with pytest.raises(StoreError) as e: fetch(bucket, '', tmp_path/'in'/'cache', say=None)
    assert repr(key) in str(e.value)
    assert [o for o in tmp_path.rglob('*') if o.is_file()] == []

def test_keys_that_lead_through_a_link(bucket, path, tmp_path):
    for name in ('outside', 'cache'): (tmp_path/name).mkdir()
    (tmp_path/'cache'/'t').symlink_to(tmp_path/'outside')
    bucket.put('t/x', path)
    with pytest.raises(StoreError, match='t/x'): fetch(bucket, '', tmp_path/'cache', say=None)
    assert names(tmp_path/'outside') == []

def test_folder_objects_are_passed_over(bucket, path, tmp_path):
    bucket.client.put_object(Bucket=bucket.bucket, Key='t/', Body=b'')
    bucket.put('t/x', path)
    assert fetch(bucket, 't', tmp_path/'cache', say=None) == [tmp_path/'cache'/'x']
