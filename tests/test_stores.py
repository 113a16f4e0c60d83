"Stores behind a network that misbehaves: nothing is lost, nothing wrong is accepted."
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time

import pytest
from moto.core import DEFAULT_ACCOUNT_ID
from moto.s3.models import s3_backends

from gnosis_nb import stores
from gnosis_nb.mirror import Mirror, send_unsent
from gnosis_nb.checkpoint import write_atomic
from gnosis_nb.stores import LocalStore, S3Store, StoreDamaged, StoreError, StoreMissing, StoreRefused, StoreUnreachable, fetch, file_sha256

MB = 2**20


pytestmark = pytest.mark.usefixtures('credentials', 'one_loader')

@pytest.fixture
def store(bucket, proxy): return via(proxy, bucket)


def via(proxy, bucket, fault=None, **options):
    "A store that speaks to the proxy, and does not wait long for one that is silent."
    quick = dict(timeout=.4, tries=8) if fault in ('silent', 'stalled') else dict(timeout=10, tries=4)     # a busy machine may be silent, too
    return S3Store(bucket.bucket, endpoint_url=proxy.url, **{**quick, 'pause': .01, **options})


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


# One interface

@pytest.fixture(params=['local', 's3', 's3 with a prefix'])
def any_store(request, bucket, tmp_path):
    if request.param == 'local': return LocalStore(tmp_path/'store')
    return bucket if request.param == 's3' else S3Store(bucket.bucket, 'below/this', endpoint_url=bucket.client.meta.endpoint_url)


def test_interface(any_store, tmp_path):
    store, path = any_store, file(tmp_path/'file')
    sha = file_sha256(path)
    assert list(store.list()) == [] and not store.exists('a/b')
    for key in ('a/b', 'a/ü c+%2F&.x', 'ab'): assert store.put(key, path) == sha
    assert [(o.key, o.size) for o in store.list()] == [('a/b', 5000), ('a/ü c+%2F&.x', 5000), ('ab', 5000)]
    assert [o.key for o in store.list('a/')] == ['a/b', 'a/ü c+%2F&.x']
    assert store.exists('a/b') and store.info('a/b').sha256 == sha and store.holds('a/b', path)
    for key in ('a/b', 'a/ü c+%2F&.x'):
        assert store.get(key, tmp_path/'new'/'back') == sha
        assert (tmp_path/'new'/'back').read_bytes() == path.read_bytes()
    assert not store.holds('a/b', file(tmp_path/'other', seed=1)) and not store.holds('none', path)
    store.put('a/b', file(tmp_path/'empty', 0))
    store.get('a/b', tmp_path/'back')
    assert (tmp_path/'back').read_bytes() == b'' and store.info('a/b').size == 0
    with pytest.raises(StoreMissing, match='none'): store.get('none', tmp_path/'x')
    with pytest.raises(FileNotFoundError): store.put('x', tmp_path/'nowhere')
    with pytest.raises(StoreError, match='expected names'): store.put('../x', path)
    assert not (tmp_path/'x').exists()


def test_environment_names_the_server(bucket, monkeypatch, tmp_path):
    monkeypatch.setenv('AWS_ENDPOINT_URL', bucket.client.meta.endpoint_url)
    store = S3Store(bucket.bucket)
    store.put('k', file(tmp_path/'file'))
    assert stored(bucket, 'k') == content(5000) and store.name == bucket.name


def test_large_file_goes_in_parts(bucket, tmp_path):
    n = 17 * MB + 3
    path = file(tmp_path/'large', n)
    sha = bucket.put('large', path)
    head = bucket.client.head_object(Bucket=bucket.bucket, Key='large')
    assert head['ETag'].endswith('-3"') and head['ContentLength'] == n and head['Metadata'] == dict(sha256=sha)
    assert bucket.get('large', tmp_path/'back') == sha == file_sha256(path)


def test_list_of_more_than_a_page(bucket):
    for i in range(1003): in_memory(bucket, f'many/{i:04}')
    assert [o.key for o in bucket.list('many/')] == [f'many/{i:04}' for i in range(1003)]


def test_objects_of_others_are_checked_by_length_and_md5(store, bucket, proxy, tmp_path):
    bucket.client.put_object(Bucket=bucket.bucket, Key='k', Body=content(5000))
    proxy.fault('damaged_down', 'GET', 2)
    store.get('k', tmp_path/'back')
    assert (tmp_path/'back').read_bytes() == content(5000) and len(proxy.seen) == 3


# Faults that pass

PASSING_UP = ['busy', 'failing', 'throttled', 'silent', 'hangup', 'cut_up', 'damaged_up', 'lost_answer', 'babble']

@pytest.mark.parametrize('fault', PASSING_UP)
def test_upload_through(fault, bucket, proxy, tmp_path):
    store = via(proxy, bucket, fault)
    proxy.fault(fault, 'PUT', 2)
    sha = store.put('k', file(tmp_path/'file'))
    assert stored(bucket, 'k') == content(5000) and bucket.info('k').sha256 == sha
    assert sum(method == 'PUT' for method, _ in proxy.seen) >= 3


def test_upload_to_a_server_that_checks(store, bucket, proxy, tmp_path):
    proxy.checks_md5 = True
    proxy.fault('damaged_up', 'PUT', 2)
    store.put('k', file(tmp_path/'file'))
    assert stored(bucket, 'k') == content(5000)
    assert [method for method, _ in proxy.seen] == ['PUT', 'PUT', 'PUT', 'HEAD']     # it did not take what was damaged


@pytest.mark.parametrize('fault', ['busy', 'damaged_up', 'silent', 'lost_answer'])
def test_upload_in_parts_through(fault, bucket, proxy, tmp_path):
    proxy.fault(fault, 'PUT', 1)
    n = 9 * MB
    store = via(proxy, bucket, fault, part_size=5 * MB, **dict(timeout=2) if fault == 'silent' else {})
    store.put('k', file(tmp_path/'file', n))
    assert stored(bucket, 'k') == content(n)
    assert not bucket.client.list_multipart_uploads(Bucket=bucket.bucket).get('Uploads')


@pytest.mark.parametrize('fault', ['busy', 'lost_answer'])
def test_end_of_upload_in_parts_through(fault, bucket, proxy, tmp_path):
    proxy.fault('none', 'POST', 1).fault(fault, 'POST', 1)                  # the second one completes the upload
    n = 9 * MB
    via(proxy, bucket, part_size=5 * MB).put('k', file(tmp_path/'file', n))
    assert stored(bucket, 'k') == content(n)
    assert not bucket.client.list_multipart_uploads(Bucket=bucket.bucket).get('Uploads')


@pytest.mark.parametrize('fault', ['busy', 'failing', 'throttled', 'silent', 'stalled', 'hangup', 'short', 'damaged_down', 'babble'])
def test_download_through(fault, bucket, proxy, tmp_path):
    store = via(proxy, bucket, fault)
    bucket.put('k', file(tmp_path/'file'))
    proxy.fault(fault, 'GET', 2)
    store.get('k', tmp_path/'back')
    assert (tmp_path/'back').read_bytes() == content(5000) and len(proxy.seen) >= 3


@pytest.mark.parametrize('fault', ['busy', 'silent', 'hangup', 'short', 'babble'])
def test_list_through(fault, bucket, proxy, tmp_path):
    store = via(proxy, bucket, fault)
    bucket.put('k', file(tmp_path/'file'))
    proxy.fault(fault, 'GET', 2)
    assert [o.key for o in store.list()] == ['k']


@pytest.mark.parametrize('fault', ['busy', 'hangup', 'babble'])
def test_head_through(fault, store, bucket, proxy, tmp_path):
    bucket.put('k', file(tmp_path/'file'))
    for key, there in dict(k=True, none=False).items():
        proxy.fault(fault, 'HEAD', 2)
        assert store.exists(key) == there
    proxy.fault(fault, 'HEAD', 2)
    assert store.info('k').sha256 == file_sha256(tmp_path/'file')


@pytest.mark.parametrize('kept', ['0123456789abcdef0123456789abcdef', '0123456789abcdef0123456789abcdef-2', '"x"'])
def test_other_etags_are_read_back(kept, store, bucket, proxy, tmp_path, monkeypatch):
    "As from a server that encrypts with keys of one's own."
    monkeypatch.setattr(stores, '_etag', lambda head: kept)
    proxy.fault('damaged_up', 'PUT', 2)
    sha = store.put('k', file(tmp_path/'file'))
    assert stored(bucket, 'k') == content(5000) and sum(method == 'PUT' for method, _ in proxy.seen) == 3
    assert store.get('k', tmp_path/'back') == sha


# Faults that stay

@pytest.mark.parametrize('fault, error', [('busy', StoreUnreachable), ('failing', StoreUnreachable), ('hangup', StoreUnreachable), ('short', StoreUnreachable), ('damaged_down', StoreDamaged)])
def test_download_that_never_succeeds(fault, error, store, bucket, proxy, tmp_path):
    bucket.put('k', file(tmp_path/'file'))
    (tmp_path/'out').mkdir()
    (tmp_path/'out'/'back').write_bytes(b'before')
    proxy.fault(fault, 'GET', 99)
    with pytest.raises(error, match=rf's3://{bucket.bucket}/k.*\(4 attempts\)'): store.get('k', tmp_path/'out'/'back')
    assert names(tmp_path/'out') == ['back'] and (tmp_path/'out'/'back').read_bytes() == b'before'
    assert len(proxy.seen) == 4


@pytest.mark.parametrize('fault, error', [('busy', StoreUnreachable), ('damaged_up', StoreDamaged), ('cut_up', StoreDamaged)])
def test_upload_that_never_succeeds(fault, error, store, bucket, proxy, tmp_path):
    proxy.fault(fault, 'PUT', 99)
    with pytest.raises(error, match=rf's3://{bucket.bucket}/k.*\(4 attempts\)'): store.put('k', file(tmp_path/'file'))
    assert not bucket.holds('k', tmp_path/'file')
    with pytest.raises((StoreDamaged, StoreMissing)): bucket.get('k', tmp_path/'back')     # what got there is not taken for it
    assert not (tmp_path/'back').exists()


@pytest.mark.parametrize('fault, advice', [('denied', 's3:PutObject'), ('expired', 'log in again')])
def test_refusals_are_not_repeated(fault, advice, store, bucket, proxy, tmp_path):
    path = file(tmp_path/'file')
    for method, use in dict(PUT=lambda: store.put('k', path), GET=lambda: store.get('k', tmp_path/'back')).items():
        proxy.seen.clear(); proxy.fault(fault, method, 99)
        with pytest.raises(StoreRefused, match=f's3://{bucket.bucket}/k: .*{advice}'): use()
        assert len(proxy.seen) == 1


def test_denied_heads_are_no_missing_keys(store, proxy):
    proxy.fault('denied', 'HEAD', 99)
    with pytest.raises(StoreRefused, match='access denied'): store.exists('k')


def test_no_such_bucket(proxy, tmp_path):
    store = S3Store('nowhere', endpoint_url=proxy.url, tries=4, pause=.01)
    path = file(tmp_path/'file')
    for use in (lambda: store.put('k', path), lambda: store.get('k', tmp_path/'b'), lambda: list(store.list()), lambda: store.exists('k'), lambda: fetch(store, 'p', tmp_path/'c')):
        with pytest.raises(StoreRefused, match='s3://nowhere.*no such bucket'): use()
    with pytest.raises(StoreRefused, match='Invalid bucket name'): S3Store('no bucket', endpoint_url=proxy.url).exists('k')


def test_no_such_profile(monkeypatch):
    monkeypatch.setenv('AWS_PROFILE', 'nobody')
    with pytest.raises(StoreRefused, match='s3://b: .*profile .nobody. could not be found'): S3Store('b')


def test_keys_are_no_paths_of_this_machine(store, bucket, tmp_path, monkeypatch):
    (tmp_path/'data').symlink_to('/')
    monkeypatch.chdir(tmp_path)
    store.put('data/k', file(tmp_path/'file'))
    assert stored(bucket, 'data/k') == content(5000)


def test_no_credentials(store, proxy, monkeypatch):
    for k in ('AWS_ACCESS_KEY_ID', 'AWS_SECRET_ACCESS_KEY'): monkeypatch.delenv(k)
    with pytest.raises(StoreRefused, match='no credentials; set AWS_ACCESS_KEY_ID'): S3Store(store.bucket, endpoint_url=proxy.url).exists('k')
    assert proxy.seen == []


def test_nobody_there(store, proxy, tmp_path):
    proxy.stop()
    with pytest.raises(StoreUnreachable, match=rf'no proper answer from {proxy.url}.*\(4 attempts\)'): store.put('k', file(tmp_path/'file'))
    proxy.start()
    store.put('k', tmp_path/'file')


def test_back_off_leaves_the_global_generator_alone(store, proxy, tmp_path):
    state = random.getstate()
    proxy.fault('busy', 'PUT', 3)
    store.put('k', file(tmp_path/'file'))
    assert random.getstate() == state


def test_disk_full_while_downloading(store, bucket, tmp_path, monkeypatch):
    bucket.put('k', file(tmp_path/'file'))
    (tmp_path/'out').mkdir(); (tmp_path/'out'/'back').write_bytes(b'before')
    def full(fd): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(OSError, match='No space left'): store.get('k', tmp_path/'out'/'back')
    assert names(tmp_path/'out') == ['back'] and (tmp_path/'out'/'back').read_bytes() == b'before'


# Mirrors

def note(folder): return json.loads((folder/'.unsent.json').read_text())


@pytest.mark.parametrize('fault', PASSING_UP)
def test_mirror_through(fault, bucket, proxy, tmp_path):
    store = via(proxy, bucket, fault)
    proxy.fault(fault, 'PUT', 2)
    with Mirror(tmp_path/'run', store, 'r') as mirror:
        mirror.send(file(tmp_path/'run'/'a')); mirror.send(file(tmp_path/'run'/'deep'/'b', seed=1))
        assert mirror.flush(10) == []
    assert stored(bucket, 'r/a') == content(5000) and stored(bucket, 'r/deep/b') == content(5000, 1)
    assert not (tmp_path/'run'/'.unsent.json').exists()


@pytest.mark.parametrize('fault', ['denied', 'busy', 'silent', 'damaged_up'])
def test_mirror_keeps_what_could_not_be_sent(fault, bucket, proxy, tmp_path):
    proxy.fault(fault, 'PUT', 99)
    said, run, store = [], tmp_path/'run', via(proxy, bucket, fault, tries=2)
    mirror = Mirror(run, store, 'r', say=said.append)
    for name in ('a', 'b'): mirror.send(file(run/name))
    assert mirror.close(10) == [run/'a', run/'b']
    assert note(run) == {store.name: dict(prefix='r', open=False, files=['a', 'b'])}
    assert said and all(f's3://{bucket.bucket}/r/' in o for o in said)
    proxy.faults.clear()
    assert send_unsent(tmp_path, store) == []
    assert stored(bucket, 'r/a') == stored(bucket, 'r/b') == content(5000)
    assert not (run/'.unsent.json').exists()


def test_mirror_while_the_server_is_gone_for_a_while(bucket, proxy, tmp_path):
    store, run = via(proxy, bucket, tries=2), tmp_path/'run'
    proxy.stop()
    mirror = Mirror(run, store, again=.05, say=lambda s: None)
    mirror.send(file(run/'a'))
    assert mirror.flush(10) == [run/'a'] and note(run)[store.name]['files'] == ['a']
    proxy.start()
    deadline = time.monotonic() + 10
    while mirror._waiting and time.monotonic() < deadline: time.sleep(.02)  # by itself, nobody asks
    assert stored(bucket, 'a') == content(5000) and mirror.close() == []


def test_send_does_not_wait(bucket, proxy, tmp_path):
    proxy.fault('silent', 'PUT', 1)
    run, sent = tmp_path/'run', threading.Event()
    mirror = Mirror(run, via(proxy, bucket, timeout=60), say=lambda s: None)
    file(run/'a')
    threading.Thread(target=lambda: (mirror.send(run/'a'), mirror.send(run/'a'), sent.set()), daemon=True).start()
    assert sent.wait(3) and mirror.flush(.1) == [run/'a']
    assert mirror.close(0) == [run/'a'] and note(run)[mirror.store.name]['files'] == ['a']


def test_newest_version_wins(store, bucket, proxy, tmp_path):
    run = tmp_path/'run'
    proxy.fault('busy', 'PUT', 3)
    with Mirror(run, store) as mirror:
        for i in range(50):
            write_atomic(run/'table', lambda tmp: tmp.write_bytes(content(5000, i)))
            mirror.send(run/'table')
    assert stored(bucket, 'table') == content(5000, 49)
    assert sum(method == 'PUT' for method, _ in proxy.seen) < 54


def test_file_that_changes_under_the_upload(bucket, proxy, tmp_path):
    run, n = tmp_path/'run', 6 * MB
    store = via(proxy, bucket, part_size=5 * MB)
    file(run/'grows', n)
    once = store._once
    def growing(op, *args, **kwargs):
        if op == 'upload_part' and kwargs['PartNumber'] == 1:
            with open(run/'grows', 'ab') as f: f.write(b'more')
        return once(op, *args, **kwargs)
    store._once = growing
    sha = store.put('k', run/'grows')
    assert stored(bucket, 'k') == content(n) and bucket.info('k').sha256 == sha
    def rewriting(op, *args, **kwargs):
        if op == 'upload_part' and kwargs['PartNumber'] == 1: store._once = once; file(run/'grows', n, seed=1)
        return once(op, *args, **kwargs)
    store._once = rewriting
    store.put('k', run/'grows')
    assert stored(bucket, 'k') == content(n, 1)


def test_files_that_are_gone_are_crossed_off(store, tmp_path):
    with Mirror(tmp_path/'run', store) as mirror: mirror.send(tmp_path/'run'/'never')
    assert names(tmp_path/'run') == ['.unsent.lock'] and list(store.list()) == []


def test_a_folder_has_one_sender(store, tmp_path):
    with Mirror(tmp_path/'run', store), pytest.raises(StoreError, match='another process is sending'): Mirror(tmp_path/'run', store, wait=0)
    Mirror(tmp_path/'run', store).close()


def test_unreadable_note_means_everything(store, bucket, tmp_path):
    run = tmp_path/'run'
    file(run/'a'); (run/'.unsent.json').write_text('{"cut')
    said = []
    assert send_unsent(tmp_path, store, say=said.append) == [run/'.unsent.json'] and 'unreadable' in said[0]
    Mirror(run, store).close()
    assert stored(bucket, 'a') == content(5000) and not (run/'.unsent.json').exists()


KILLED = """
import os, signal, sys
from pathlib import Path
from gnosis_nb.mirror import Mirror
from gnosis_nb.stores import S3Store
run, bucket, url = Path(sys.argv[1]), *sys.argv[2:]
mirror = Mirror(run, S3Store(bucket, endpoint_url=url, timeout=60), 'r')
mirror.send(run/'a'); mirror.send(run/'b')
mirror.flush(.3)
(run/'c').write_bytes(b'written, and nobody said so')
print('sending', flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""

@pytest.mark.parametrize('fault', ['silent', 'damaged_up'])
def test_killed_in_the_middle(fault, bucket, proxy, tmp_path):
    run = tmp_path/'run'
    for i, name in enumerate('ab'): file(run/name, seed=i)
    proxy.fault(fault, 'PUT', 99)
    res = subprocess.run([sys.executable, '-c', KILLED, str(run), bucket.bucket, proxy.url], capture_output=True, text=True, timeout=60)
    assert res.returncode == -signal.SIGKILL and 'sending' in res.stdout, res.stderr
    assert note(run) == {via(proxy, bucket).name: dict(prefix='r', open=True, files=['a', 'b'])}
    proxy.faults.clear()
    assert send_unsent(tmp_path, via(proxy, bucket)) == []
    assert [stored(bucket, f'r/{o}') for o in 'abc'] == [content(5000), content(5000, 1), b'written, and nobody said so']
    assert not (run/'.unsent.json').exists()


# Fetching

def test_fetch(any_store, tmp_path):
    for i in range(12): any_store.put(f't/r{i}/teacher_0.ckpt', file(tmp_path/'file', seed=i))
    any_store.put('t/r0/notes', tmp_path/'file')
    said = []
    paths = fetch(any_store, 't', tmp_path/'c', r'teacher_\d+\.ckpt', say=said.append)
    assert {o.relative_to(tmp_path/'c').as_posix(): o.read_bytes() for o in paths} == {f'r{i}/teacher_0.ckpt': content(5000, i) for i in range(12)}
    assert len(said) == 12 and not (tmp_path/'c'/'r0'/'notes').exists()
    paths[3].write_bytes(b'damaged'); paths[5].unlink(); any_store.put('t/r7/teacher_0.ckpt', file(tmp_path/'file', seed=99))
    said.clear()
    assert fetch(any_store, 't/', tmp_path/'c', lambda name: name.endswith('.ckpt'), say=said.append) == paths
    assert len(said) == 3
    assert {o.parent.name: o.read_bytes() for o in paths} == {f'r{i}': content(5000, 99 if i == 7 else i) for i in range(12)}


@pytest.mark.parametrize('fault', ['busy', 'silent', 'hangup', 'short', 'damaged_down'])
def test_fetch_through(fault, bucket, proxy, tmp_path):
    store = via(proxy, bucket, fault)
    for i in range(4): bucket.put(f't/{i}', file(tmp_path/'file', seed=i))
    proxy.fault('none', 'GET', 1).fault(fault, 'GET', 3)                    # after the list
    assert [o.read_bytes() for o in fetch(store, 't', tmp_path/'c', say=None)] == [content(5000, i) for i in range(4)]


def test_fetch_that_was_stopped_goes_on(bucket, proxy, tmp_path):
    for i in range(4): bucket.put(f't/{i}', file(tmp_path/'file', seed=i))
    store = via(proxy, bucket, tries=1)
    proxy.fault('none', 'GET', 3).fault('busy', 'GET', 99)                  # the list and two files
    with pytest.raises(StoreUnreachable): fetch(store, 't', tmp_path/'c', say=None, threads=1)
    assert [o for o in names(tmp_path/'c') if o != '.fetched.json'] == ['0', '1']
    proxy.faults.clear()
    said = []
    assert len(fetch(store, 't', tmp_path/'c', say=said.append)) == 4 and len(said) == 2


@pytest.mark.parametrize('key', ['../x', 't/../../x', '/x', 't//x', 't/..', 't/a\\..\\x', 't/./x', 't/new\nline'])
def test_hostile_keys(key, bucket, tmp_path):
    in_memory(bucket, key)
    try: paths = fetch(bucket, '', tmp_path/'in'/'cache', say=None)
    except StoreError as e: assert repr(key) in str(e)
    else: assert False, paths
    assert [o for o in tmp_path.rglob('*') if o.is_file()] == []


def test_keys_that_lead_through_a_link(bucket, tmp_path):
    (tmp_path/'outside').mkdir(); (tmp_path/'cache').mkdir(); (tmp_path/'cache'/'t').symlink_to(tmp_path/'outside')
    bucket.put('t/x', file(tmp_path/'file'))
    with pytest.raises(StoreError, match='t/x'): fetch(bucket, '', tmp_path/'cache', say=None)
    assert names(tmp_path/'outside') == []


def test_folder_objects_are_passed_over(bucket, tmp_path):
    bucket.client.put_object(Bucket=bucket.bucket, Key='t/', Body=b'')
    bucket.put('t/x', file(tmp_path/'file'))
    assert fetch(bucket, 't', tmp_path/'cache', say=None) == [tmp_path/'cache'/'x']
