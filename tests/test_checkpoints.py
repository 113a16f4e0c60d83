"Checkpoints that are damaged, hostile or cannot be written: errors name the file, no code runs."
import builtins
import io
import json
import os
import pickle
import signal
import struct
import subprocess
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

import processes
from gnosis_nb import checkpoint
from gnosis_nb.checkpoint import (CheckpointError, checkpoint_info, find_matching, load_checkpoint,
                                  load_weights, save_checkpoint)
from gnosis_nb.files import write_atomic
from versions import reads_pickles

STATE = {'weight': torch.linspace(-1, 1, 40).view(8, 5), 'bias': torch.arange(8.), 'steps': torch.tensor(3)}
fuzz = settings(max_examples=60, deadline=None, derandomize=True, database=None,
                suppress_health_check=[HealthCheck.function_scoped_fixture])
each = pytest.mark.parametrize
SHARE = st.floats(0, 1, exclude_max=True)


def torch_zip(state=STATE, **options):
    f = io.BytesIO()
    torch.save(state, f, **options)
    return f.getvalue()

def legacy(state=STATE): return torch_zip(state, _use_new_zipfile_serialization=False)

@pytest.fixture(scope='module')
def good(tmp_path_factory):
    "One of each kind: bytes by suffix."
    path = save_checkpoint(tmp_path_factory.mktemp('good')/'t', STATE, network='lenet')
    return {'.safetensors': path.read_bytes(), '.ckpt': torch_zip(), '.pt': legacy()}

def same(state):
    return state.keys() == STATE.keys() and all(torch.equal(v, STATE[k]) for k, v in state.items())

def read(path, data=None):
    "What both readers make of a file: a state, or None where it is refused by its name."
    if data is not None: path.write_bytes(data)
    try: checkpoint_info(path)
    except CheckpointError as e: assert str(path) in str(e)
    try: return load_checkpoint(path)[0]
    except CheckpointError as e: assert str(path) in str(e)

def is_refused(path):
    "Both readers raise an error that names the file."
    for reader in (load_checkpoint, checkpoint_info):
        with pytest.raises(CheckpointError, match=path.name): reader(path)
    return True

def never(*args, **kwargs): raise AssertionError('it was opened')

@reads_pickles
def test_an_archive_that_unpacks_to_much_more_is_not_unpacked(tmp_path, monkeypatch):
    with zipfile.ZipFile(io.BytesIO(torch_zip())) as old, \
            zipfile.ZipFile(tmp_path/'bomb.ckpt', 'w', zipfile.ZIP_DEFLATED) as new:
        for o in old.namelist(): new.writestr(o, bytes(2**28) if o.endswith('data/0') else old.read(o))
    assert (tmp_path/'bomb.ckpt').stat().st_size < 2**20
    monkeypatch.setattr(torch, 'load', never)
    with pytest.raises(CheckpointError, match='bomb.ckpt: refused: .* bytes that unpack to 268,4'):
        load_checkpoint(tmp_path/'bomb.ckpt')

@each('version, is_read', [('2.5.1+cu124', False), ('2.6.0', True), ('3.0.0', True)])
def test_pickles_are_read_where_that_runs_no_code(version, is_read, tmp_path, monkeypatch):
    (tmp_path/'t.ckpt').write_bytes(torch_zip())
    monkeypatch.setattr(torch, '__version__', version)
    if is_read: assert same(load_checkpoint(tmp_path/'t.ckpt')[0])
    else:
        with pytest.raises(CheckpointError, match=r'in torch 2.5.1\+cu124 a pickle can run code'):
            load_checkpoint(tmp_path/'t.ckpt')



# Damage

PICKLES = [pytest.param(o, marks=reads_pickles) for o in ('.ckpt', '.pt')]

@each('suffix', ['.safetensors', *PICKLES])
def test_good_ones_are_read(suffix, good, tmp_path): assert same(read(tmp_path/f'x{suffix}', good[suffix]))

@fuzz
@given(data=st.binary(max_size=400), suffix=st.sampled_from(['.safetensors', '.ckpt', '.pt', '.pth']))
def test_random_bytes(data, suffix, tmp_path): assert not read(tmp_path/f'x{suffix}', data)

@fuzz
@given(suffix=st.sampled_from(['.safetensors', '.ckpt', '.pt']), part=SHARE)
def test_cut_short(suffix, part, good, tmp_path):
    data = good[suffix]
    assert read(tmp_path/f'x{suffix}', data[:int(len(data) * part)]) is None

def flip(data, *flips):
    data = bytearray(data)
    for place, bit in flips: data[int(len(data) * place)] ^= 1 << bit
    return data

@fuzz
@given(place=SHARE, bit=st.integers(0, 7))
def test_flipped_bit_of_ours_is_noticed(place, bit, good, tmp_path):
    state = read(tmp_path/'x.safetensors', flip(good['.safetensors'], (place, bit)))
    assert state is None or same(state)                                      # it may be in a letter of a fact

@fuzz
@given(suffix=st.sampled_from(['.ckpt', '.pt']),
       flips=st.lists(st.tuples(SHARE, st.integers(0, 7)), min_size=1, max_size=4))
def test_flipped_bits_of_pickles(suffix, flips, good, tmp_path):
    state = read(tmp_path/f'x{suffix}', flip(good[suffix], *flips))
    assert state is None or all(isinstance(o, torch.Tensor) for o in state.values())

@fuzz
@given(place=st.integers(0, 3), data=st.binary(min_size=1, max_size=40))
def test_spliced_pickles(place, data, good, tmp_path):
    "Bytes put into the pickle of an archive that is a good one otherwise."
    path = tmp_path/'x.ckpt'
    with zipfile.ZipFile(io.BytesIO(good['.ckpt'])) as old, zipfile.ZipFile(path, 'w') as new:
        for o in old.infolist():
            content = old.read(o)
            i = len(content) * place // 4
            if o.filename.endswith('data.pkl'): content = content[:i] + data + content[i:]
            new.writestr(o.filename, content)
    state = read(path)
    assert state is None or all(isinstance(o, torch.Tensor) for o in state.values())

@each('index', [0, 40 * 4 - 1, -1])
def test_weights_are_checked_to_the_last_bit(index, good, tmp_path):
    data, path = bytearray(good['.safetensors']), tmp_path/'x.safetensors'
    start = 8 + struct.unpack('<Q', data[:8])[0]
    data[start + index if index >= 0 else index] ^= 128
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=f'{path}: damaged'): load_checkpoint(path)
    with pytest.raises(CheckpointError, match='damaged'): load_weights(torch.nn.Linear(5, 8), path)

@each('facts', ['[1]', '3', 'null', '"x"', '{', '{"weights": 3}', '[' * 100_000])
def test_facts_that_are_none(facts, tmp_path):
    save_file(STATE, tmp_path/'x.safetensors', metadata=dict(gnosis_nb=facts))
    with pytest.raises(CheckpointError, match='x.safetensors'): load_checkpoint(tmp_path/'x.safetensors')

def test_files_of_others_have_no_facts(tmp_path):
    save_file(STATE, tmp_path/'x.safetensors')
    assert same(read(tmp_path/'x.safetensors')) and checkpoint_info(tmp_path/'x.safetensors') == {}


# Sizes that are claimed

LIMITED = """
import resource, sys
from gnosis_nb.checkpoint import CheckpointError, checkpoint_info, load_checkpoint
resource.setrlimit(resource.RLIMIT_DATA, (4 << 30, 4 << 30))
def kilobytes(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[1:]:
    for read in (checkpoint_info, load_checkpoint):
        before = kilobytes()
        try: read(path)
        except CheckpointError as e: print(path if path in str(e) and kilobytes() - before < 100_000 else e)
"""

def header(entries):
    text = json.dumps(entries).encode()
    return struct.pack('<Q', len(text)) + text

CLAIMS = {
    'header of 2^60 bytes.safetensors': lambda: struct.pack('<Q', 2**60) + b'{}',
    'header of 2^64 - 1 bytes.safetensors': lambda: b'\xff' * 8 + b'{}',
    'tensor of 2^60 bytes.safetensors':
        lambda: header({'w': dict(dtype='F32', shape=[2**58], data_offsets=[0, 2**60])}) + b'\0' * 64,
    'shape that overflows.safetensors':
        lambda: header({'w': dict(dtype='F32', shape=[2**62, 4], data_offsets=[0, 0])}),
    'negative offsets.safetensors': lambda: header({'w': dict(dtype='F32', shape=[1], data_offsets=[-4, 0])}),
    'stride of nothing.ckpt': lambda: torch_zip({'w': torch.zeros(1).expand(2**40)}),    # all in one place
    'storage of 2^60 bytes.pt':
        lambda: legacy().replace(pickle.dumps(40, 2)[2:-1], b'\x8a\x08' + struct.pack('<q', 2**58)),
}

@pytest.fixture(scope='module')
def refused(tmp_path_factory):
    "Names of files with such claims that both readers refused without allocating much."
    folder = tmp_path_factory.mktemp('claims')
    for name, data in CLAIMS.items(): (folder/name).write_bytes(data())
    lines = processes.run(LIMITED, *[folder/name for name in CLAIMS]).stdout.splitlines()
    return [name for name in CLAIMS if lines.count(str(folder/name)) == 2]

@each('name', CLAIMS)
def test_claims_do_not_allocate(name, refused): assert name in refused


# Code

class Call:
    "Pickles as a call."
    def __init__(self, f, *args): self.f, self.args = f, args
    def __reduce__(self): return self.f, self.args

class Built(Call):
    "Pickles as a harmless object, with a state that is a call."
    def __reduce__(self): return dict, (), None, None, iter([('k', Call(self.f, *self.args))])

CALLS = {     # of functions that make or read a file
    'os.system': lambda file: Call(os.system, f'touch {file}'),
    'eval': lambda file: Call(builtins.eval, f'open({file!r}, "w")'),
    'exec': lambda file: Call(builtins.exec, f'open({file!r}, "w")'),
    'Popen': lambda file: Call(subprocess.Popen, f'touch {file}', -1, *[None] * 5, True, True),
    'open': lambda file: Call(builtins.open, file, 'w'),
    'import': lambda file: Call(builtins.__import__, 'antigravity'),
    'torch.load': lambda file: Call(torch.load, file),
    'torch.hub': lambda file: Call(torch.hub.load, 'x', 'y'),
    'jit': lambda file: Call(torch.jit.load, file),
}
KINDS = {
    'zip.ckpt': torch_zip,
    'legacy.pt': legacy,
    'plain.ckpt': lambda o: pickle.dumps(o, 2),
    'protocol 4.pth': lambda o: pickle.dumps(o, 4),
    'protocol 0.ckpt': lambda o: pickle.dumps(o, 0),
}
PLACES = {
    'alone': lambda call: call,
    'weight': lambda call: {'weight': call},
    'state dict': lambda call: {'state_dict': {'weight': call}},
    'nested': lambda call: {'weight': Call(list, ([Call(dict, ([('a', call)],))],))},
    'item': lambda call: {'weight': Built(call.f, *call.args)},
}

@each('call', CALLS)
@each('kind', KINDS)
@each('place', PLACES)
def test_no_code_runs(call, kind, place, tmp_path):
    data = KINDS[kind](PLACES[place](CALLS[call](str(tmp_path/'canary'))))
    (tmp_path/kind).write_bytes(data)
    assert is_refused(tmp_path/kind) and not (tmp_path/'canary').exists()

def tar(path):
    "As torch wrote before 0.1.10."
    with tarfile.open(path, 'w') as f:
        for name in ('sys_info', 'pickle', 'storages', 'tensors'):
            data = pickle.dumps(Call(os.system, f"touch {path.with_name('canary')}"), 2)
            info = tarfile.TarInfo(name)
            info.size = len(data)
            f.addfile(info, io.BytesIO(data))

def outside(path):
    with zipfile.ZipFile(path, 'w') as f: f.writestr('../../escape', b'x')

@pytest.mark.filterwarnings('ignore')
@each('write', [
    lambda path: torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path), tar, outside,
    lambda path: torch.save(torch.nn.Linear(2, 2), path)], ids=['script', 'tar', 'outside', 'module'])
def test_other_archives_are_refused(write, tmp_path):
    write(tmp_path/'archive.pt')
    assert is_refused(tmp_path/'archive.pt') and not (tmp_path/'canary').exists()

@pytest.mark.filterwarnings('ignore')
@each('state', [
    {'w': torch.zeros(2, device='meta')}, {'w': torch.eye(3).to_sparse()}, {1: torch.zeros(2)},
    {'w': [torch.zeros(2)]}, torch.zeros(2), [1], {'w': 'x'}], ids=repr)
def test_no_plain_state_dict(state, tmp_path):
    torch.save(state, tmp_path/'x.ckpt')
    assert is_refused(tmp_path/'x.ckpt')

def test_a_name_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match='none.ckpt does not exist'):
        load_checkpoint(tmp_path/'none.ckpt')

@each('name', ['folder.ckpt', 'folder.safetensors'])
def test_folders_are_no_checkpoints(name, tmp_path):
    (tmp_path/name).mkdir()
    assert is_refused(tmp_path/name)

def test_a_name_that_is_too_long(tmp_path): assert is_refused(tmp_path/('x' * 300))


# Writing

def test_versions_and_digest_are_kept(tmp_path):
    info = checkpoint_info(save_checkpoint(tmp_path/'x', STATE, network='lenet'))
    assert set(info) == {'network', 'weights', 'versions'}
    assert info['versions']['torch'] == torch.__version__ and len(info['weights']) == 64

def listing(folder): return sorted(o.name for o in folder.iterdir())

@pytest.fixture
def kept(tmp_path): return Kept(tmp_path)

class Kept:
    "A checkpoint in a folder that has to be there unchanged after a failed attempt to write it again."
    def __init__(self, folder):
        self.path = save_checkpoint(folder/'x', STATE)
        self.data = self.path.read_bytes()
    def is_there(self):
        return listing(self.path.parent) == ['x.safetensors'] and self.path.read_bytes() == self.data

SMALL = """
import resource, sys
import torch
from gnosis_nb.checkpoint import save_checkpoint
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
save_checkpoint(sys.argv[1], {'w': torch.zeros(100_000)})
"""

def test_file_that_grows_too_large(kept):
    res = processes.run(SMALL, kept.path)
    assert res.returncode == 1 and kept.is_there()
    assert f"could not be written (File too large): '{kept.path}'" in res.stderr.splitlines()[-1]

@pytest.fixture
def tiny_disk(tmp_path):
    "A file system of 64 kB, where this user may make one."
    mount = ['mount', '-t', 'tmpfs', '-o', 'size=64k', 'none', str(tmp_path)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip('needs to mount a file system')
    yield tmp_path
    subprocess.run(['umount', str(tmp_path)], check=True)

def test_disk_full(tiny_disk):
    kept = Kept(tiny_disk)
    with pytest.raises(OSError, match='could not be written .No space left on device.*x.safetensors'):
        save_checkpoint(kept.path, {'w': torch.zeros(100_000)})
    assert kept.is_there()

@each('step', ['fsync', 'replace', 'chmod'])
def test_disk_that_fails_late(step, kept, monkeypatch):
    def fail(*args): raise OSError(5, 'Input/output error')
    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match='could not be written .Input/output error.*x.safetensors'):
        save_checkpoint(kept.path, {'w': torch.zeros(10)})
    assert kept.is_there()

CLOSED = """
import os, sys
import torch
from gnosis_nb.checkpoint import load_checkpoint, save_checkpoint
if os.geteuid() == 0: os.setgid(65534); os.setuid(65534)     # nothing is closed to root
try: save_checkpoint(sys.argv[1], {'w': torch.zeros(10)})
except PermissionError as e: print(e)
try: load_checkpoint(sys.argv[1])
except ValueError as e: print(e)
"""

def test_closed_folder(tmp_path):
    kept = Kept(tmp_path/'closed')
    path, folder = kept.path, kept.path.parent
    for o in folder.parents:
        if o.stat().st_uid == os.geteuid() and 'pytest' in str(o): o.chmod(0o755)
    path.chmod(0o000); folder.chmod(0o555)
    try: res = processes.run(CLOSED, path)
    finally: folder.chmod(0o755); path.chmod(0o644)
    assert res.stdout.splitlines() == [f"[Errno 13] could not be written (Permission denied): '{path}'",
                                       f"{path}: this user may not read it"], res.stderr
    assert kept.is_there()

def test_a_writer_that_fails_leaves_nothing(tmp_path):
    def interrupted(tmp): tmp.write_bytes(b'half'); raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): write_atomic(tmp_path/'new'/'x', interrupted)
    assert listing(tmp_path/'new') == []

def leave(number, frame): raise SystemExit(128 + number)

@pytest.fixture(params=[(signal.SIGINT, signal.default_int_handler, KeyboardInterrupt),
                        (signal.SIGTERM, leave, SystemExit)])
def interrupted(request, monkeypatch):
    "A signal comes while a checkpoint is read. As in safetensors, what it raises is taken for a defect."
    number, handler, error = request.param
    def opening(*args, **kwargs):
        try: signal.raise_signal(number)
        except BaseException: raise ValueError('could not determine the shape') from None
        return safe_open(*args, **kwargs)
    monkeypatch.setattr(checkpoint, 'safe_open', opening)
    before = signal.signal(number, handler)
    yield error
    assert signal.signal(number, before) is handler

def find(path): return find_matching(path.parent, 't', lambda *_: None, say=never)

@each('read', [load_checkpoint, checkpoint_info, find])
def test_a_signal_while_a_checkpoint_is_read_is_no_damage(read, interrupted, tmp_path):
    path = save_checkpoint(tmp_path/'t_0', STATE)
    with pytest.raises(interrupted): read(path)

def test_threads_read_checkpoints(tmp_path):
    path = save_checkpoint(tmp_path/'t', STATE)
    with ThreadPoolExecutor(1) as pool: assert same(pool.submit(load_checkpoint, path).result()[0])
