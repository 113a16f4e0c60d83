"Checkpoints that are damaged, hostile or cannot be written: an error that names the file, no code that runs, nothing good that is lost."
import builtins
import io
import json
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import zipfile

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from gnosis_nb.checkpoint import CheckpointError, checkpoint_info, load_checkpoint, load_weights, save_checkpoint, write_atomic

STATE = {'0.weight': torch.linspace(-1, 1, 40).view(8, 5), '0.bias': torch.arange(8.), 'steps': torch.tensor(3)}
fuzz = settings(max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def torch_zip(state=STATE):
    f = io.BytesIO()
    torch.save(state, f)
    return f.getvalue()


def legacy(state=STATE):
    f = io.BytesIO()
    torch.save(state, f, _use_new_zipfile_serialization=False)
    return f.getvalue()


@pytest.fixture(scope='module')
def good(tmp_path_factory):
    "One of each kind: bytes by suffix."
    path = save_checkpoint(tmp_path_factory.mktemp('good')/'t', STATE, network='lenet')
    return {'.safetensors': path.read_bytes(), '.ckpt': torch_zip(), '.pt': legacy()}


def same(state): return state.keys() == STATE.keys() and all(torch.equal(v, STATE[k]) for k, v in state.items())


def readable(path):
    "What both readers say of a file: a state, or None where it is refused with its name."
    for read in (checkpoint_info, load_checkpoint):
        try: out = read(path)
        except CheckpointError as e:
            assert str(path) in str(e)
            out = None
    return out and out[0]


# Damage

@pytest.mark.parametrize('suffix', ['.safetensors', '.ckpt', '.pt'])
def test_good_ones_are_read(suffix, good, tmp_path):
    (tmp_path/f'x{suffix}').write_bytes(good[suffix])
    assert same(load_checkpoint(tmp_path/f'x{suffix}')[0])


@fuzz
@given(data=st.binary(max_size=400), suffix=st.sampled_from(['.safetensors', '.ckpt', '.pt', '.pth']))
def test_random_bytes(data, suffix, tmp_path):
    path = tmp_path/f'x{suffix}'
    path.write_bytes(data)
    readable(path)


@fuzz
@given(suffix=st.sampled_from(['.safetensors', '.ckpt', '.pt']), part=st.floats(0, 1, exclude_max=True))
def test_cut_short(suffix, part, good, tmp_path):
    path, data = tmp_path/f'x{suffix}', good[suffix]
    path.write_bytes(data[:int(len(data) * part)])
    assert readable(path) is None


@fuzz
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_flipped_bit_of_ours_is_noticed(place, bit, good, tmp_path):
    data = bytearray(good['.safetensors'])
    data[int(len(data) * place)] ^= 1 << bit
    path = tmp_path/'x.safetensors'
    path.write_bytes(data)
    state = readable(path)
    assert state is None or same(state)                                      # a letter of a fact, or a space, may be another


@fuzz
@given(suffix=st.sampled_from(['.ckpt', '.pt']), flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 7)), min_size=1, max_size=4))
def test_flipped_bits_of_pickles(suffix, flips, good, tmp_path):
    data = bytearray(good[suffix])
    for place, bit in flips: data[int(len(data) * place)] ^= 1 << bit
    path = tmp_path/f'x{suffix}'
    path.write_bytes(data)
    readable(path)


@fuzz
@given(place=st.integers(0, 3), data=st.binary(min_size=1, max_size=40))
def test_spliced_pickles(place, data, good, tmp_path):
    "Bytes put into the pickle of an archive that is a good one otherwise."
    path = tmp_path/'x.ckpt'
    with zipfile.ZipFile(io.BytesIO(good['.ckpt'])) as old, zipfile.ZipFile(path, 'w') as new:
        for o in old.infolist():
            content = old.read(o)
            if o.filename.endswith('data.pkl'): i = len(content) * place // 4; content = content[:i] + data + content[i:]
            new.writestr(o.filename, content)
    readable(path)


@pytest.mark.parametrize('index', [0, 40 * 4 - 1, -1])
def test_weights_are_checked_to_the_last_bit(index, good, tmp_path):
    data = bytearray(good['.safetensors'])
    start = 8 + struct.unpack('<Q', data[:8])[0]
    data[start + index if index >= 0 else index] ^= 128
    path = tmp_path/'x.safetensors'
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=f'{path}: damaged'): load_checkpoint(path)
    net = torch.nn.Sequential(torch.nn.Linear(5, 8))
    with pytest.raises(CheckpointError, match='damaged'): load_weights(net, path)


@pytest.mark.parametrize('facts', ['[1]', '3', 'null', '"x"', '{', '{"weights": 3}', '[' * 100_000])
def test_facts_that_are_none(facts, tmp_path):
    save_file(STATE, tmp_path/'x.safetensors', metadata=dict(gnosis_nb=facts))
    with pytest.raises(CheckpointError, match='x.safetensors'): load_checkpoint(tmp_path/'x.safetensors')


def test_files_of_others_have_no_facts(tmp_path):
    save_file(STATE, tmp_path/'x.safetensors')
    assert same(load_checkpoint(tmp_path/'x.safetensors')[0]) and checkpoint_info(tmp_path/'x.safetensors') == {}


# Sizes that are claimed

LIMITED = """
import resource, sys
from gnosis_nb.checkpoint import CheckpointError, checkpoint_info, load_checkpoint
import torch
resource.setrlimit(resource.RLIMIT_DATA, (4 << 30, 4 << 30))
for read in (checkpoint_info, load_checkpoint):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try: read(sys.argv[1])
    except CheckpointError as e: assert sys.argv[1] in str(e)
    else: sys.exit('accepted')
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000     # kilobytes
"""

def header(entries): return (lambda h: struct.pack('<Q', len(h)) + h)(json.dumps(entries).encode())

def wide():
    "A tensor of 2^40 numbers that all lie in one place."
    return torch_zip({'w': torch.zeros(1).expand(2**40)})

CLAIMS = {
    'header of 2^60 bytes.safetensors': lambda: struct.pack('<Q', 2**60) + b'{}',
    'header of 2^64 - 1 bytes.safetensors': lambda: b'\xff' * 8 + b'{}',
    'tensor of 2^60 bytes.safetensors': lambda: header({'w': dict(dtype='F32', shape=[2**58], data_offsets=[0, 2**60])}) + b'\0' * 64,
    'shape that overflows.safetensors': lambda: header({'w': dict(dtype='F32', shape=[2**62, 4], data_offsets=[0, 0])}),
    'negative offsets.safetensors': lambda: header({'w': dict(dtype='F32', shape=[1], data_offsets=[-4, 0])}),
    'stride of nothing.ckpt': wide,
    'storage of 2^60 bytes.pt': lambda: legacy().replace(pickle.dumps(40, 2)[2:-1], b'\x8a\x08' + struct.pack('<q', 2**58)),
}

@pytest.mark.parametrize('name', CLAIMS)
def test_claims_do_not_allocate(name, tmp_path):
    path = tmp_path/name
    path.write_bytes(CLAIMS[name]())
    res = subprocess.run([sys.executable, '-c', LIMITED, str(path)], capture_output=True, text=True, timeout=100)
    assert res.returncode == 0, res.stderr


# Code

class Call:
    "Pickles as a call."
    def __init__(self, f, *args): self.f, self.args = f, args
    def __reduce__(self): return self.f, self.args


class Built(Call):
    "Pickles as a harmless object, with a state that is a call."
    def __reduce__(self): return dict, (), None, None, iter([('k', Call(self.f, *self.args))])


def payloads(canary):
    touch, code = f'touch {canary}', f'open({str(canary)!r}, "w")'
    calls = {'os.system': Call(os.system, touch), 'eval': Call(builtins.eval, code), 'exec': Call(builtins.exec, code),
             'Popen': Call(subprocess.Popen, touch, -1, None, None, None, None, None, True, True), 'open': Call(builtins.open, str(canary), 'w'),
             'getattr': Call(builtins.getattr, os, 'system'), 'import': Call(builtins.__import__, 'antigravity'),
             'torch.load': Call(torch.load, str(canary)), 'torch.hub': Call(torch.hub.load, 'x', 'y'), 'jit': Call(torch.jit.load, str(canary))}
    nested = {f'nested {k}': Call(list, ([Call(dict, ([('a', o)],))],)) for k, o in calls.items()}
    items = {f'item {k}': Built(o.f, *o.args) for k, o in list(calls.items())[:3]}
    return {**calls, **nested, **items}


KINDS = {
    'zip.ckpt': torch_zip,
    'legacy.pt': legacy,
    'plain.ckpt': lambda o: pickle.dumps(o, 2),
    'protocol 4.pth': lambda o: pickle.dumps(o, 4),
    'protocol 0.ckpt': lambda o: pickle.dumps(o, 0),
}

@pytest.mark.parametrize('kind', KINDS)
def test_no_code_runs(kind, tmp_path):
    canary, tried = tmp_path/'canary', set()
    for name, payload in payloads(canary).items():
        for state in ({'weight': payload}, payload, {'state_dict': {'weight': payload}}):
            try: data = KINDS[kind](state)
            except (TypeError, pickle.PicklingError, AttributeError): continue             # modules do not pickle
            path = tmp_path/kind
            path.write_bytes(data)
            tried.add(name)
            with pytest.raises(CheckpointError, match=kind): load_checkpoint(path)
            with pytest.raises(CheckpointError, match=kind): checkpoint_info(path)
            assert not canary.exists(), name
    assert len(tried) >= 20


@pytest.mark.filterwarnings('ignore')
def test_other_archives_are_refused(tmp_path):
    net = torch.jit.script(torch.nn.Linear(2, 2))
    torch.jit.save(net, tmp_path/'script.pt')
    with tarfile.open(tmp_path/'tar.pt', 'w') as f:                          # torch before 0.1.10
        for name in ('sys_info', 'pickle', 'storages', 'tensors'):
            data = pickle.dumps(Call(os.system, f"touch {tmp_path/'canary'}"), 2)
            info = tarfile.TarInfo(name); info.size = len(data)
            f.addfile(info, io.BytesIO(data))
    with zipfile.ZipFile(tmp_path/'zip.ckpt', 'w') as f: f.writestr('../../escape', b'x')
    torch.save(torch.nn.Linear(2, 2), tmp_path/'module.ckpt')
    for name in ('script.pt', 'tar.pt', 'zip.ckpt', 'module.ckpt'):
        with pytest.raises(CheckpointError, match=name): load_checkpoint(tmp_path/name)
    assert not (tmp_path/'canary').exists()


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('state', [{'w': torch.zeros(2, device='meta')}, {'w': torch.eye(3).to_sparse()}, {1: torch.zeros(2)}, {'w': [torch.zeros(2)]}, torch.zeros(2), [1], {'w': 'x'}], ids=repr)
def test_no_plain_state_dict(state, tmp_path):
    torch.save(state, tmp_path/'x.ckpt')
    with pytest.raises(CheckpointError, match='x.ckpt'): load_checkpoint(tmp_path/'x.ckpt')
    with pytest.raises(CheckpointError, match='x.ckpt'): checkpoint_info(tmp_path/'x.ckpt')


def test_names_that_are_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match='none.ckpt does not exist'): load_checkpoint(tmp_path/'none.ckpt')
    for name in ('folder.ckpt', 'folder.safetensors'):
        (tmp_path/name).mkdir()
        with pytest.raises(CheckpointError, match=name): load_checkpoint(tmp_path/name)
    with pytest.raises(CheckpointError, match='damaged or not'): load_checkpoint(tmp_path/('x' * 300))


# Writing

def test_versions_and_digest_are_kept(tmp_path):
    info = checkpoint_info(save_checkpoint(tmp_path/'x', STATE, network='lenet'))
    assert info['versions']['torch'] == torch.__version__ and set(info) == {'network', 'weights', 'versions'} and len(info['weights']) == 64


def listing(folder): return sorted(o.name for o in folder.iterdir())


SMALL = """
import resource, sys
import torch
from gnosis_nb.checkpoint import save_checkpoint
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
save_checkpoint(sys.argv[1], {'w': torch.zeros(100_000)})
"""

def test_file_that_grows_too_large(tmp_path):
    path = save_checkpoint(tmp_path/'x', STATE)
    before = path.read_bytes()
    res = subprocess.run([sys.executable, '-c', SMALL, str(path)], capture_output=True, text=True, timeout=100)
    assert res.returncode == 1 and f"could not be written (File too large): '{path}'" in res.stderr.splitlines()[-1]
    assert listing(tmp_path) == ['x.safetensors'] and path.read_bytes() == before


@pytest.fixture
def tiny_disk(tmp_path):
    "A file system of 64 kB, where this user may make one."
    folder = tmp_path/'disk'
    folder.mkdir()
    if os.geteuid() != 0 or subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=64k', 'none', str(folder)], capture_output=True).returncode: pytest.skip('needs to mount a file system')
    yield folder
    subprocess.run(['umount', str(folder)], check=True)


def test_disk_full(tiny_disk):
    path = save_checkpoint(tiny_disk/'x', STATE)
    before = path.read_bytes()
    with pytest.raises(OSError, match='could not be written .No space left on device.*x.safetensors'): save_checkpoint(path, {'w': torch.zeros(100_000)})
    assert listing(tiny_disk) == ['x.safetensors'] and path.read_bytes() == before
    assert same(load_checkpoint(path)[0])


@pytest.mark.parametrize('step', ['fsync', 'replace', 'chmod'])
def test_disk_that_fails_late(step, tmp_path, monkeypatch):
    path = save_checkpoint(tmp_path/'x', STATE)
    before = path.read_bytes()
    def fail(*args): raise OSError(5, 'Input/output error')
    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match='could not be written .Input/output error.*x.safetensors'): save_checkpoint(path, {'w': torch.zeros(10)})
    assert listing(tmp_path) == ['x.safetensors'] and path.read_bytes() == before


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
    folder = tmp_path/'closed'
    path = save_checkpoint(folder/'x', STATE)
    before = path.read_bytes()
    for o in (tmp_path, *tmp_path.parents):
        if o.stat().st_uid == os.geteuid() and o != o.parent and 'pytest' in str(o): o.chmod(0o755)
    path.chmod(0o000); folder.chmod(0o555)
    try: res = subprocess.run([sys.executable, '-c', CLOSED, str(path)], capture_output=True, text=True, timeout=100)
    finally: folder.chmod(0o755); path.chmod(0o644)
    assert res.stdout.splitlines() == [f"[Errno 13] could not be written (Permission denied): '{path}'", f"{path}: this user may not read it"], res.stderr
    assert listing(folder) == ['x.safetensors'] and path.read_bytes() == before


def test_a_writer_that_fails_leaves_nothing(tmp_path):
    def interrupted(tmp): tmp.write_bytes(b'half'); raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): write_atomic(tmp_path/'new'/'x', interrupted)
    assert listing(tmp_path/'new') == []
