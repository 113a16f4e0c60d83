"""A CUDA device made of CPU memory: run code that says 'cuda' on a machine without a GPU.

    with simcuda.device() as sim:  # here torch.cuda.is_available() is True
        net = net.to('cuda')       # real numbers, computed on the CPU
        ...
    print(sim.report())

It needs a CUDA build of torch (what pip installs on Linux) that lets a device be without a driver; `MISSING`
says what an installed one lacks.

* A tensor on the device is a wrapper that says `device='cuda:0'` (with CUDA's dispatch keys and autocast) and
  holds a CPU tensor. Each operation is checked as CUDA checks it, and then computed on the CPU. The autograd
  engine does not start without a driver: `run_backward` stands in for it.
* Tensors of both devices in one operation, and CPU generators on CUDA, are errors. CPU tensors without
  dimensions are numbers, as on CUDA.
* Host synchronisations (`.item()`, `.cpu()`, boolean masks, blocking copies, …) are counted, with the lines
  that made them; `torch.cuda.set_sync_debug_mode('error')` makes them errors.
* Streams have vector clocks: using what another stream writes, without waiting for it, is a race. So is
  reading on the host what is still being copied there.
* `torch.cuda.graph` records. What is illegal in a capture is an error here, and leaves behind what it leaves
  in torch: the stream of the capture current and, before torch 2.12, a generator that refuses to draw. A
  capture executes nothing and draws no random numbers; a replay runs the operations on the same memory again.
* Launches are counted: operations outside of graphs (each is a kernel or more, launched from Python),
  replays, and operations inside of replays.

Not simulated: time, memory, failures of kernels, cuDNN's choices, the GPU's rounding, Triton. Training with
SGD in fp32 has the bits of the CPU. `KERNELS` is a guess."""
import contextlib
import functools
import heapq
import os
import re
import sys
import threading
import types
import warnings
import weakref
from collections import Counter, defaultdict
from unittest import mock

import torch
from torch.multiprocessing import reductions
from torch.overrides import TorchFunctionMode
from torch.utils import _python_dispatch  # noqa: PLC2701 (torch's way to intercept operations)

aten = torch.ops.aten
SIM = None  # the device of the newest `device()`
MISSING = None  # why there can be no simulated device here
if not torch.backends.cuda.is_built():
    MISSING = 'a simulated GPU needs a CUDA build of torch'
elif not hasattr(torch._C, '_ensureCUDADeviceGuardSet'):
    MISSING = f'a simulated GPU needs a newer torch: devices of {torch.__version__} want a driver'
IS_OLD = tuple(map(int, torch.__version__.split('.')[:2])) < (2, 12)
PAGEABLE = 64 * 1024  # bytes: larger copies of memory that is not pinned wait for the stream, asked to or not
NO_KERNEL = set("""detach alias view t transpose permute expand slice select unsqueeze squeeze as_strided
    split split_with_sizes unbind _unsafe_view _reshape_alias unfold diagonal lift_fresh empty empty_strided
    empty_like new_empty new_empty_strided set_ resize_""".split())
SYNCING = set("""nonzero masked_select masked_scatter _unique2 unique_dim unique_consecutive bincount histc
    equal is_nonzero _local_scalar_dense""".split())
TAKES_NUMBERS = set("""fill masked_fill index_put _index_put_impl index_fill _fused_sgd _fused_adam
    _foreach_add _foreach_mul""".split())  # besides pointwise operations: 0-d CPU tensors are numbers
KERNELS = dict(convolution_backward=2, native_batch_norm=2, native_batch_norm_backward=2, var_mean=2,
    embedding_dense_backward=6, _lstm=8, sort=3, argsort=3, randperm=6, index_put_=2)


def leaves_of(tree):
    "What is in nested tuples, lists and dicts, in order."
    if isinstance(tree, dict): tree = tree.values()
    elif not isinstance(tree, (tuple, list)): return [tree]
    return [leaf for o in tree for leaf in leaves_of(o)]

def tree_map(f, tree):
    "`f` of each leaf, in the same nest."
    if isinstance(tree, (tuple, list)): return type(tree)([tree_map(f, o) for o in tree])
    return {k: tree_map(f, v) for k, v in tree.items()} if isinstance(tree, dict) else f(tree)

def name_of(func): return func.__name__.split('.')[0]
def kernels(func): return 0 if name_of(func) in NO_KERNEL else KERNELS.get(name_of(func), 1)
def memory(elem): return elem.untyped_storage()._cdata
def weak(elem): return reductions.StorageWeakRef(elem.untyped_storage())
def strip(tree): return tree_map(lambda o: o.elem if isinstance(o, SimTensor) else o, tree)
def on_device(leaves): return [o for o in leaves if isinstance(o, SimTensor)]


class SimTensor(torch.Tensor):
    "A tensor that says it is on CUDA, over `elem`, a tensor that is not."
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, elem):
        if elem.dtype is torch.float64 and not SIM.float64:
            raise TypeError('Cannot convert a MPS Tensor to float64 dtype')
        return torch.Tensor._make_wrapper_subclass(cls, elem.size(), strides=elem.stride(), dtype=elem.dtype,
            storage_offset=elem.storage_offset(), layout=elem.layout, device=SIM.device)

    def __init__(self, elem): self.elem = elem
    def __repr__(self): return f"SimTensor({self.elem!r}, device='{self.device}')"
    def __reduce_ex__(self, protocol): return self.elem.__reduce_ex__(protocol)
    def __tensor_flatten__(self): return ['elem'], None
    def tolist(self): return self.cpu().tolist()

    @staticmethod
    def __tensor_unflatten__(inner, meta, size, stride): return SimTensor(inner['elem'])

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None): return SIM.run(func, args, kwargs or {})


class _Operations(_python_dispatch.TorchDispatchMode):
    "Every operation passes through the device, also those that make tensors of nothing."
    def __torch_dispatch__(self, func, types, args=(), kwargs=None): return SIM.run(func, args, kwargs or {})

class _Leaves(TorchFunctionMode):
    "The autograd node of a leaf belongs to the stream that made it, as long as a graph holds the node."
    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if not torch.is_grad_enabled(): return out
        leaves = [o for o in args if type(o) is SimTensor and o.is_leaf and o.requires_grad]
        for o in leaves:
            if o.shape != o.elem.shape: continue
            SIM.looking = True  # looking makes views, which are nobody's operations
            node = torch.autograd.graph.get_gradient_edge(o).node
            SIM.looking = False
            node.metadata.setdefault('stream', current_stream(SIM.device))
        return out

@contextlib.contextmanager
def unwatched():
    "Operations on the CPU that need not pass through the device."
    with _python_dispatch._disable_current_modes(), torch._C.DisableTorchFunction(): yield

class Generator(torch.Generator):
    "A generator of random numbers that says it is on CUDA."
    known = weakref.WeakValueDictionary()  # an operation is given another object for the same generator
    def __new__(cls, device='cpu'):
        return super().__new__(cls if torch.device(device).type == 'cuda' else torch._C.Generator)
    def __init__(self, device='cpu'): Generator.known[self._cdata] = self
    device = property(lambda self: SIM.device)


# Streams

class Stream:
    "A queue, and how far into each queue it has waited."
    def __init__(self, device=None, priority=0, default=False):
        self.device_index = index_of(device)
        number = 0
        if not default:  # torch has a pool of 32 streams, which it gives out in turns
            number = SIM.count['streams'] % 32 + 1
            SIM.count['streams'] += 1
        self.stream_id = self.cuda_stream = 100 * self.device_index + number
        self.is_default, self.device_type = default, 1
        self.device = torch.device('cuda', self.device_index)
        self.clock = SIM.clocks.setdefault(self.stream_id, Counter())

    def __eq__(self, o): return isinstance(o, Stream) and self.stream_id == o.stream_id
    def __hash__(self): return hash(self.stream_id)
    def __repr__(self): return f'<stream {self.stream_id}>'
    def tick(self): self.clock[self.stream_id] += 1
    def wait_stream(self, o): self.wait_event(o.record_event())
    def is_capturing(self): return self in SIM.capturing
    def query(self): return True
    def synchronize(self): SIM.sync('stream.synchronize', self.clock)

    def wait_event(self, event):
        mine = SIM.capturing.get(self)
        if mine and event.capture is not mine:
            SIM.fail('a capturing stream waits for work outside of the capture', 'StreamCaptureIsolation')
        if event.capture and not mine:  # it joins the capture
            if self.is_default:
                SIM.fail('the default stream waits for work of a capture', 'StreamCaptureImplicit')
            SIM.capturing[self] = event.capture
            event.capture.streams.add(self)
        self.clock |= event.clock

    def record_event(self, event=None):
        event = event or Event()
        event.record(self)
        return event

class Event:
    def __init__(self, enable_timing=False, **kwargs): self.clock, self.capture = Counter(), None
    def record(self, stream=None):
        stream = stream or current_stream()
        self.clock, self.capture = Counter(stream.clock), SIM.capturing.get(stream)
    def wait(self, stream=None): (stream or current_stream()).wait_event(self)
    def query(self): return True
    def synchronize(self): SIM.sync('event.synchronize', self.clock, explicit=True)
    def elapsed_time(self, o): return 0.

_here = threading.local()  # of each thread: its device, and the current stream of each device

def current_device(): return _here.__dict__.get('device', 0)

def index_of(device):
    if isinstance(device, int): return device
    index = None if device is None else torch.device(device).index
    return current_device() if index is None else index

def current_stream(device=None):
    index = index_of(device)
    return _here.__dict__.get(index) or Stream(index, default=True)

def set_stream(stream):
    _here.__dict__[stream.device_index] = stream
    _here.device = stream.device_index

class StreamContext:
    def __init__(self, stream): self.stream = stream
    def __enter__(self):
        if self.stream is None: return
        self.before, self.device = current_stream(self.stream.device), current_device()
        set_stream(self.stream)
    def __exit__(self, *args):
        if self.stream is None: return
        set_stream(self.before)
        _here.device = self.device

class DeviceContext:
    def __init__(self, device=None): self.index = index_of(device)
    def __enter__(self): self.before, _here.device = current_device(), self.index
    def __exit__(self, *args): _here.device = self.before


# Graphs

class CUDAGraph:
    "Operations on memory of their own."
    def __init__(self, keep_graph=False):
        self.ops, self.failed, self.ended = [], None, False
        self.streams, self.generators = set(), set()  # of the capture; registered, by number
        self.saved, self.drawn = {}, {}  # memory from outside and states of generators, as they were
        self.own, self.touched, self.writers = set(), {}, {}  # memory made here; used here; last writers

    def register_generator_state(self, generator): self.generators.add(generator._cdata)

    def capture_begin(self, pool=None, capture_error_mode='global'):
        self.stream, self.mode, self.thread = current_stream(), capture_error_mode, threading.current_thread()
        self.pool_id = pool or object()
        if self.stream.is_default:
            raise RuntimeError('CUDA graphs must be captured on a non-default stream.')
        SIM.capturing[self.stream] = self
        self.streams.add(self.stream)
        if self.mode == 'global' and any(o.is_alive() and o is not self.thread for o in SIM.pinning):
            SIM.note('hazard', 'a capture of mode global beside a thread that pins memory: one of them fails')

    def record(self, func, args, kwargs, fresh, inputs):
        "Keep an operation. A CPU tensor is a number: it stays what it is now."
        def bake(o): return o.clone() if isinstance(o, torch.Tensor) and id(o) not in inputs else o
        self.ops.append((func, tree_map(bake, args), tree_map(bake, kwargs), fresh))

    def save(self, elem):
        "Remember memory from outside before it is written to."
        if memory(elem) in self.own or memory(elem) in self.saved: return
        storage = elem.untyped_storage()
        self.saved[memory(elem)] = storage, storage.clone()

    def capture_end(self):
        if current_stream() != self.stream:
            raise RuntimeError('Capture must end on the same stream it began on.')
        unjoined = any(self.stream.clock[o.stream_id] < o.clock[o.stream_id] for o in self.streams)
        for o in self.streams: SIM.capturing.pop(o, None)
        for storage, before in self.saved.values(): storage.copy_(before)  # nothing has been executed
        for generator, state in self.drawn.values(): generator.set_state(state)
        if self.failed or unjoined:
            SIM.stuck = SIM.old
            left = ', the generator in capture mode' if SIM.old else ''
            SIM.note('hazard', f'capture_end raises: torch leaves the stream of the capture current{left}')
            why = 'operation failed due to a previous error during capture'
            raise RuntimeError(f"CUDA error: {why if self.failed else 'capturing stream has unjoined work'}")
        if not self.ops: SIM.note('hazard', 'an empty graph: the work went to another device or stream')
        self.ended = True
        SIM.graphs.append(self)
        SIM.count['recordings'] += 1

    def replay(self):
        if not self.ended: raise RuntimeError('Called CUDAGraph::replay without a preceding capture.')
        stream = current_stream()
        if stream in SIM.capturing: SIM.fail('replay inside of a capture', 'StreamCaptureUnsupported')
        stream.tick()
        SIM.count['replays'] += 1
        SIM.count['replayed'] += self.kernels()
        with SIM.lock:
            SIM.claim(self.pool_id, stream, 'recordings that share a pool')
            if SIM.old:
                for o in self.drawn: SIM.claim(o, stream, 'recordings that share a generator')
            with unwatched(): self.run_operations()
            for elem, writes in self.touched.values(): SIM.touch(stream, elem, writes)

    def run_operations(self):
        for func, args, kwargs, fresh in self.ops:
            for mine, new in zip(fresh, leaves_of(SIM.compute(func, args, kwargs))):
                if mine is not None and new is not mine: mine.copy_(new)

    def kernels(self): return sum(kernels(func) for func, *_ in self.ops)
    def pool(self): return self.pool_id
    def reset(self): self.__init__()

class graph:
    "As torch.cuda.graph: if the end of a capture raises, its stream stays the current one."
    default_capture_stream = None
    def __init__(self, cuda_graph, pool=None, stream=None, capture_error_mode='global', **kwargs):
        if stream is None and graph.default_capture_stream is None: graph.default_capture_stream = Stream()
        self.graph, self.pool, self.mode = cuda_graph, pool, capture_error_mode
        self.context = StreamContext(stream or graph.default_capture_stream)

    def __enter__(self):
        torch.cuda.synchronize()
        self.context.stream.clock |= SIM.host
        self.context.__enter__()
        self.graph.capture_begin(self.pool, self.mode)

    def __exit__(self, *args):
        self.graph.capture_end()
        self.context.__exit__(*args)


# The device

class Sim:
    "The state of the device, and what has happened on it."
    def __init__(self, device, roots, old, float64):
        self.device, self.roots, self.old, self.float64 = device, roots, old, float64
        self.clocks, self.capturing, self.graphs, self.lock = {}, {}, [], threading.RLock()
        self.stuck = self.looking = False  # a generator left in capture mode; somebody looks at a leaf's node
        self.events, self.count, self.sync_mode = [], Counter(), 0
        self.host = Counter()  # how far into each stream the host has waited
        self.writers = {}  # memory -> stream and time of its last write
        self.arriving = {}  # memory of the host -> stream and time of a copy that may still be under way
        self.claimed = {}  # what two streams must not use at the same time -> stream and time of its last use
        self.pinned, self.pinning = {}, set()  # memory of the host; threads that pin it

    def capture(self): return next(iter(self.capturing.values()), None)

    # What is written down

    def note(self, kind, text):
        "Something happened; with the last three lines of `roots` that led to it, and whether in a batch."
        frame, names, own = sys._getframe(1), set(), []
        while frame:
            code = frame.f_code
            names.add(code.co_name)
            if any(o in code.co_filename for o in self.roots) and code.co_filename != __file__:
                own.append(f'{code.co_filename.split(os.sep)[-1]}:{frame.f_lineno}')
            frame = frame.f_back
        phases = dict(_do_epoch_train='train', _do_epoch_validate='valid')
        phase = next((v for k, v in phases.items() if k in names), 'other')
        if names & {'one_batch', 'all_batches'}: phase += ' batch'
        self.events.append((kind, phase, text, ' < '.join(own[:3])))

    def sync(self, text, clock=None, explicit=False):
        "The host waits. torch's debug mode does not mind what was asked for, as torch.cuda.synchronize()."
        self.note('sync', text)
        self.count['syncs'] += 1
        if self.capture(): self.fail(text, 'StreamCaptureUnsupported')
        self.host |= current_stream(self.device).clock if clock is None else clock
        if explicit or not self.sync_mode: return
        message = f'called a synchronizing CUDA operation ({text})'
        if self.sync_mode == 2: raise RuntimeError(message)
        warnings.warn(message, stacklevel=2)

    def fail(self, text, code, invalidates=True):
        if invalidates and self.capture(): self.capture().failed = text
        self.note('error', f'{text}: cudaError{code}')
        raise RuntimeError(f'CUDA error: operation not permitted when stream is capturing ({text}: {code})')

    def touch(self, stream, elem, writes):
        "A use must come after the last write, as far as this stream, or the host, has waited."
        key, capture = memory(elem), self.capturing.get(stream)
        if capture:
            capture.touched[key] = elem, writes or capture.touched.get(key, (0, False))[1]
        writers = capture.writers if capture else self.writers  # a capture writes nothing: its replays do
        who, when, alive = writers.get(key, (stream.stream_id, 0, None))
        if who != stream.stream_id and max(stream.clock[who], self.host[who]) < when and not alive.expired():
            self.note('race', f'stream {stream.stream_id} uses {list(elem.shape)} that stream {who} writes')
        if writes: writers[key] = stream.stream_id, stream.clock[stream.stream_id], weak(elem)
        if len(self.writers) > 50_000:
            self.writers = {k: v for k, v in self.writers.items() if not v[2].expired()}

    def claim(self, key, stream, what):
        "Note a race if another stream, for which nobody has waited, uses the same thing."
        who, when = self.claimed.get(key, (stream.stream_id, 0))
        if who != stream.stream_id and max(stream.clock[who], self.host[who]) < when:
            self.note('race', f'{what} run at the same time')
        self.claimed[key] = stream.stream_id, stream.clock[stream.stream_id]

    def is_pinned(self, elem):
        found = self.pinned.get(memory(elem))
        return found is not None and not found.expired()

    # Operations

    def run(self, func, args, kwargs):
        "An operation: of the host, between host and device, or of the device."
        leaves, name, device = leaves_of((args, kwargs)), name_of(func), kwargs.get('device')
        to = None if device is None else torch.device(device).type
        if to != 'cuda' and not on_device(leaves): return self.run_on_host(func, leaves, args, kwargs)
        if name in ('_to_copy', 'copy_'):
            x = args[1] if name == 'copy_' else args[0]
            there = 'cuda' if isinstance(x, SimTensor) else 'cpu'
            if name == 'copy_': to = 'cuda' if isinstance(args[0], SimTensor) else 'cpu'
            if to not in (None, there): return self.transfer(func, name, x, to, args, kwargs)
        self.check(func, name, leaves, args, kwargs)
        if device is not None: kwargs = {**kwargs, 'device': torch.device('cpu')}
        if kwargs.get('pin_memory'): kwargs = {**kwargs, 'pin_memory': False}
        return self.execute(func, args, kwargs)

    def run_on_host(self, func, leaves, args, kwargs):
        for o in leaves if self.arriving else ():
            if not isinstance(o, torch.Tensor) or memory(o) not in self.arriving: continue
            who, when, alive = self.arriving.pop(memory(o))
            if self.host[who] < when and not alive.expired():
                self.note('race', f'the host uses {list(o.shape)}, which stream {who} is still copying')
        if not kwargs.get('pin_memory'): return func(*args, **kwargs)
        return self.pin(func(*args, **{**kwargs, 'pin_memory': False}))

    def pin(self, elem):
        self.pinned[memory(elem)] = weak(elem)
        return elem

    def check(self, func, name, leaves, args, kwargs):
        "What CUDA refuses, and what it waits for."
        indices = args[1] if name in ('index', 'index_put', 'index_put_', '_index_put_impl_') else ()
        uncounted = name == 'repeat_interleave' and kwargs.get('output_size') is None
        if name in SYNCING or uncounted: self.sync(name)
        masks = (torch.bool, torch.uint8)
        if any(isinstance(o, torch.Tensor) and o.dtype in masks for o in indices):
            self.sync(f'{name} by a boolean mask')
        numbers = torch.Tag.pointwise in getattr(func, 'tags', ()) or name.rstrip('_') in TAKES_NUMBERS
        if name == '_pack_padded_sequence': return  # the lengths are on the CPU
        for o in leaves:
            if isinstance(o, torch._C.Generator): self.check_generator(o)
            if not isinstance(o, torch.Tensor) or isinstance(o, SimTensor): continue
            if any(o is i for i in indices): self.sync('an index on the CPU is copied to the device')
            elif o.dim() or not numbers:
                self.note('error', f'{name} of tensors of both devices')
                raise RuntimeError('Expected all tensors to be on the same device, but found at least two '
                                   f'devices, {self.device} and cpu! (in {name})')

    def check_generator(self, generator):
        key, capture = generator._cdata, self.capture()
        if key not in Generator.known:
            raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
        known = not capture or key == self.generator._cdata or key in capture.generators
        if self.old and not known:
            self.fail('a generator that is not registered with the graph', 'philox_cuda_state', False)

    def transfer(self, func, name, x, to, args, kwargs):
        "Copy between host and device."
        blocking = not (kwargs.get('non_blocking') or name == 'copy_' and len(args) > 2 and args[2])
        stream, size = current_stream(self.device), x.numel() * x.element_size()
        if stream in self.capturing:
            text = 'Cannot copy between CPU and CUDA tensors during CUDA graph capture'
            self.fail(text, 'TORCH_CHECK', invalidates=False)
        stream.tick()
        self.count['copies'] += 1
        if blocking: self.sync(f'blocking copy to the {"device" if to == "cuda" else "CPU"}')
        elif to == 'cuda' and not self.is_pinned(x) and size > PAGEABLE:
            self.note('hidden sync', f'copy of {size:,} bytes of pageable memory')
        if name == 'copy_': target = args[0]
        else:
            own = dict(device=torch.device('cpu'), pin_memory=None, non_blocking=False)
            target = func(strip(x), **{**kwargs, **own})
            if memory(target) == memory(strip(x)): target = target.clone()
        if name == 'copy_':
            if to == 'cpu' and not blocking and not self.is_pinned(target):
                self.sync('copy to pageable memory', explicit=True)
            strip(target).copy_(strip(x))
        if to == 'cpu':
            self.touch(stream, x.elem, False)
            when = stream.clock[stream.stream_id]
            if not blocking: self.arriving[memory(target)] = stream.stream_id, when, weak(target)
            return target
        self.touch(stream, strip(target), True)
        return target if name == 'copy_' else SimTensor(target)

    def execute(self, func, args, kwargs):
        "Compute on the CPU what has been checked; count, record, wrap."
        if self.looking: return SimTensor(func(*strip(args)))
        stream = current_stream(self.device)
        capture, busy = self.capturing.get(stream), self.capture()
        if capture and capture.failed:
            raise RuntimeError('CUDA error: operation failed due to a previous error during capture')
        written, inputs = writes_to(func, args, kwargs), on_device(leaves_of((args, kwargs)))
        by_elem = {id(o.elem): o for o in inputs}
        stream.tick()
        with self.lock:
            for o in inputs: self.touch(stream, o.elem, False)
            for o in written if capture else (): capture.save(o.elem)
            args, kwargs = strip(args), strip(kwargs)
            known, fresh = {memory(o.elem) for o in inputs}, []
            def wrapped(o):
                new = isinstance(o, torch.Tensor) and memory(o) not in known
                fresh.append(o if new else None)
                if not isinstance(o, torch.Tensor): return o
                if new: self.allocated(o, stream, capture, busy)
                same = id(o) in by_elem and func is not aten.alias.default
                return by_elem[id(o)] if same else SimTensor(o)
            out = tree_map(wrapped, self.compute(func, args, kwargs))
            for o in written: self.touch(stream, o.elem, True)
            self.count['captured' if capture else 'eager'] += kernels(func)
            if capture: capture.record(func, args, kwargs, fresh, by_elem)
        if name_of(func) == '_pack_padded_sequence': out = out[0], out[1].elem  # the host has the lengths
        return out

    def allocated(self, elem, stream, capture, busy):
        if capture: capture.own.add(memory(elem))
        elif busy and busy.mode == 'global':
            self.fail('memory is allocated for another stream than those of the capture', 'cudaMalloc')
        self.touch(stream, elem, True)

    def compute(self, func, args, kwargs):
        "On the CPU: kernels that it does not have are replaced, random numbers are those of the device."
        name = name_of(func)
        if name == 'cudnn_batch_norm':
            return (*aten.native_batch_norm(*args), torch.empty(0, dtype=torch.uint8))
        if name == 'cudnn_batch_norm_backward':
            x, grad, w, mean, var, m, v, eps, _ = args
            return aten.native_batch_norm_backward(grad, x, w, mean, var, m, v, True, eps, [True] * 3)
        takes, like = 'generator' in arguments(func), name in ('native_dropout', 'rand_like', 'randn_like',
                                                               'randint_like')
        if not takes and not like: return func(*args, **kwargs)
        given = kwargs.get('generator')
        generator = self.generator if given is None else Generator.known.get(given._cdata, given)
        if self.stuck and given is None and not self.capture():
            raise RuntimeError('Offset increment outside graph capture encountered unexpectedly.')
        capture = self.capturing.get(current_stream(self.device))
        if capture: capture.drawn.setdefault(generator._cdata, (generator, generator.get_state()))
        if takes: return func(*args, **{**kwargs, 'generator': generator})
        before = torch.default_generator.get_state()
        torch.default_generator.set_state(generator.get_state())
        try: return func(*args, **kwargs)
        finally:
            generator.set_state(torch.default_generator.get_state())
            torch.default_generator.set_state(before)

    # What is said

    def table(self, *kinds):
        "Kind, phase, what, where and how often, of the events of these kinds; of all if none is named."
        def short(text): return re.sub(r'stream \d+', 'a stream', re.sub(r' ?\[[\d, ]*\]', ' memory', text))
        events = [o for o in self.events if not kinds or o[0] in kinds]
        counted = Counter((kind, phase, short(text), at) for kind, phase, text, at in events)
        return [(*k, n) for k, n in counted.most_common()]

    def report(self, *kinds):
        rows = [f'{n:6}  {kind:11} [{phase}] {text}\n{"":21}{at}'
                for kind, phase, text, at, n in self.table(*kinds)]
        return '\n'.join([*rows, ', '.join(f'{k}: {v}' for k, v in self.count.items())])


@functools.cache
def schema(func):
    "Names of an operation's arguments, and whether it writes to them."
    if not hasattr(func, '_schema'): return ()
    return [(o.name, o.alias_info is not None and o.alias_info.is_write) for o in func._schema.arguments]

@functools.cache
def arguments(func): return {name for name, _ in schema(func)}

def writes_to(func, args, kwargs):
    "The tensors of the device that an operation writes to."
    if not schema(func): return []
    def value(i, name): return args[i] if i < len(args) else kwargs.get(name)
    values = [value(i, name) for i, (name, writes) in enumerate(schema(func)) if writes]
    if name_of(func) in ('cudnn_batch_norm', 'native_batch_norm'):
        values += args[3:5]  # running statistics, about which the schema is silent
    return on_device(leaves_of(values))


# Backward passes

def edge_of(o): return torch.autograd.graph.get_gradient_edge(o) if isinstance(o, torch.Tensor) else o

def wait_counts(roots):
    "How many gradients each node below `roots` waits for."
    waiting, seen, stack = Counter(), set(roots), list(roots)
    while stack:
        for node, _ in stack.pop().next_functions:
            if node is None: continue
            waiting[node] += 1
            if node not in seen:
                seen.add(node)
                stack.append(node)
    return waiting

def run_backward(outputs, grads, keep_graph, create_graph, inputs=(), allow_unreachable=True,
                 accumulate_grad=True):
    "What the autograd engine does, in Python: it asks for a CUDA context before it begins."
    edges = [edge_of(o) for o in outputs]
    wanted = {(edge_of(o).node, edge_of(o).output_nr): i for i, o in enumerate(inputs)}
    found, buffers, waiting = [None] * len(wanted), defaultdict(dict), wait_counts({o.node for o in edges})
    def give(node, nr, grad):
        if grad is None: return
        meta = node._input_metadata[nr]
        if grad.shape != meta.shape: grad = grad.sum_to_size(meta.shape)
        if grad.dtype != meta.dtype: grad = grad.to(meta.dtype)
        buffers[node][nr] = buffers[node][nr] + grad if nr in buffers[node] else grad
    def entry(node): return -node._sequence_nr(), id(node), node  # the newest first
    with torch.set_grad_enabled(create_graph):
        for e, o, g in zip(edges, outputs, grads):
            give(e.node, e.output_nr, torch.ones_like(o) if g is None else g)
        ready = [entry(o) for o in {o.node for o in edges} if not waiting[o]]
        heapq.heapify(ready)
        while ready:
            node = heapq.heappop(ready)[-1]
            got = buffers.pop(node, {})
            for nr, g in got.items():
                if (node, nr) in wanted: found[wanted[node, nr]] = g
            accumulate = accumulate_grad and (not inputs or any((node, nr) in wanted for nr in got))
            for (after, nr), g in zip(node.next_functions, call_node(node, got, accumulate)):
                if after is None: continue
                give(after, nr, g)
                waiting[after] -= 1
                if not waiting[after]: heapq.heappush(ready, entry(after))
    return tuple(found)

def call_node(node, got, accumulate):
    "The gradients that a node passes on, for those that it got."
    none, metas = [None] * len(node.next_functions), node._input_metadata
    args = [got.get(i) for i in range(len(metas))]
    if not got: return none
    if node.name().endswith('AccumulateGrad'):
        return accumulate_gradient(node, node.variable, args[0]) if accumulate else none
    if isinstance(node, torch.autograd.function.BackwardCFunction):
        def zeros(m): return torch.zeros(m.shape, dtype=m.dtype, device=m.device)
        out = node.apply(*(zeros(m) if g is None else g for g, m in zip(args, metas)))
    else: out = node(*args)
    out = out if isinstance(out, tuple) else (out,)
    if len(out) == len(none): return out
    if all(o is None for o in out): return none
    raise NotImplementedError(f'{node.name()} has arguments that are no tensors')

def accumulate_gradient(node, leaf, grad):
    "The gradient is taken as it is, added, or copied where its strides differ; on the stream of the node."
    here, there = current_stream(SIM.device), node.metadata.get('stream')
    if there not in (None, here):
        held = 'somebody holds an older graph, of {} stream, with this parameter'
        if here in SIM.capturing and there.is_default:
            SIM.fail(held.format('the default'), 'StreamCaptureImplicit')
        text = f"{held.format('another')}: torch warns that AccumulateGrad's stream does not match"
        SIM.note('hazard', text)
    if leaf.grad is not None: leaf.grad.add_(grad)
    elif grad.stride() == leaf.stride(): leaf.grad = grad.detach()
    else: leaf.grad = torch.empty_like(leaf).copy_(grad)
    return ()


# An LSTM is one call of cuDNN

def lstm_on_cpu(half, packed, options, x, h, c, *weights):
    tensors = [o.half().float() if half else o.float() for o in (x, h, c, *weights)]
    x, h, c, *weights = tensors
    out = torch._C._VariableFunctions.lstm(x, *packed, (h, c), weights, *options)
    return tuple(o.half() if half else o for o in out)

def lstm_function(*known):
    "An autograd function of tensors only; its recordings must not hold the graph."
    class _LSTM(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *tensors):
            ctx.save_for_backward(*tensors)
            def _lstm(*t): return lstm_on_cpu(*known, *t)
            return SIM.execute(_lstm, tensors, {})

        @staticmethod
        def backward(ctx, *grads):
            n = len(ctx.saved_tensors)
            def _lstm(*t):
                inputs = [o.detach().requires_grad_() for o in t[:n]]
                with torch.enable_grad(): outputs = lstm_on_cpu(*known, *inputs)
                return torch.autograd.grad(outputs, inputs, t[n:])
            with torch.no_grad(): return SIM.execute(_lstm, (*ctx.saved_tensors, *grads), {})
    return _LSTM

def lstm(x, *rest, plain=torch.lstm):
    "Of a batch, or of a packed sequence, with the number of texts in each step."
    if not isinstance(x, SimTensor): return plain(x, *rest)
    half = torch.is_autocast_enabled('cuda')
    if half: SIM.note('hazard', 'autocast runs an LSTM of cuDNN in float16, whatever its dtype')
    packed = rest[:isinstance(rest[0], torch.Tensor)]
    hx, weights, *options = rest[len(packed):]
    return lstm_function(half, packed, options).apply(x, *hx, *weights)


# Switching it on

def pin_memory(self, device=None):
    capture, thread = SIM.capture(), threading.current_thread()
    SIM.pinning.add(thread)
    if capture and capture.mode == 'global' and thread is not capture.thread:
        capture.failed = 'cudaHostAlloc'
        SIM.note('error', 'another thread pins memory in a capture of mode global')
    return SIM.pin(self.clone())

def swap_tensors(a, b, plain=torch.utils.swap_tensors):
    "`Module.to` of what is on the device already: as `a.data = b`, for graphs may hold `a`."
    if not (isinstance(a, SimTensor) and isinstance(b, SimTensor)): return plain(a, b)
    a.data, a.elem = b, b.elem

def engine(outputs, *args, plain=torch.autograd._engine_run_backward, **kwargs):
    run = run_backward if any(isinstance(o, SimTensor) for o in outputs) else plain
    return run(outputs, *args, **kwargs)

def copied(make):
    "`make`, which turns Python's numbers into a tensor, on the CPU; the tensor is copied."
    def made(data, *args, device=None, **kwargs):
        if isinstance(data, SimTensor): return data.to(*args, device=device or data.device, **kwargs)
        if isinstance(data, (list, tuple)):
            data = [o.item() if isinstance(o, SimTensor) else o for o in data]
        if device is None or torch.device(device).type != 'cuda':
            return make(data, *args, device=device, **kwargs)
        return make(data, *args, **kwargs).to(device)
    return made

def nothing(*args, **kwargs): return None
def zero(*args, **kwargs): return 0

def set_sync_debug_mode(mode):
    SIM.sync_mode = ['default', 'warn', 'error'].index(mode) if isinstance(mode, str) else mode

def everything(): return functools.reduce(lambda a, b: a | b, SIM.clocks.values(), Counter())

def of_torch_cuda(count):
    "What takes the place of attributes of torch.cuda."
    facts = types.SimpleNamespace(name='simulated', major=9, minor=0, total_memory=80 * 10**9,
        multi_processor_count=132)
    rng = SIM.generator
    silent = dict.fromkeys(['init', '_lazy_init', 'empty_cache', 'reset_peak_memory_stats'], nothing)
    zeros = ['memory_allocated', 'max_memory_allocated', 'memory_reserved', 'max_memory_reserved']
    return dict(
        silent, **dict.fromkeys(zeros, zero),
        is_available=lambda: True, is_initialized=lambda: True, is_bf16_supported=lambda *a, **k: True,
        device_count=lambda: count, current_device=current_device, device=DeviceContext,
        set_device=lambda d: DeviceContext(d).__enter__(), get_device_name=lambda d=None: facts.name,
        get_device_capability=lambda d=None: (facts.major, facts.minor),
        get_device_properties=lambda d=None: facts,
        mem_get_info=lambda d=None: (facts.total_memory, facts.total_memory),
        synchronize=lambda d=None: SIM.sync('torch.cuda.synchronize', everything(), explicit=True),
        set_sync_debug_mode=set_sync_debug_mode, get_sync_debug_mode=lambda: SIM.sync_mode,
        Stream=Stream, Event=Event, stream=StreamContext, StreamContext=StreamContext, set_stream=set_stream,
        current_stream=current_stream, default_stream=lambda d=None: Stream(d, default=True),
        CUDAGraph=CUDAGraph, graph=graph, graph_pool_handle=object,
        is_current_stream_capturing=lambda: current_stream() in SIM.capturing,
        get_rng_state=lambda d=None: rng.get_state(), set_rng_state=lambda s, d=None: rng.set_state(s),
        manual_seed=rng.manual_seed, manual_seed_all=rng.manual_seed)

def of_torch(run_thread):
    "What takes the place of other attributes: object -> names and values."
    load, Tensor = torch.load, torch.Tensor
    def load_on_cpu(f, map_location=None, **kwargs): return load(f, map_location='cpu', **kwargs)
    def is_pinned(self, device=None): return SIM.is_pinned(self)
    def in_modes(self):
        with _Operations(), _Leaves(): run_thread(self)
    optimizer, device = sys.modules['torch.optim.optimizer'], SIM.device
    accelerator = dict(current_accelerator=lambda check_available=False: device, is_available=lambda: True,
        current_stream=current_stream)
    return {
        torch: dict(Generator=Generator, lstm=lstm, _cudnn_rnn_flatten_weight=nothing, load=load_on_cpu,
            tensor=copied(torch.tensor), as_tensor=copied(torch.as_tensor)),
        torch.autograd: dict(_engine_run_backward=engine), torch._VF: dict(lstm=lstm),
        torch.utils: dict(swap_tensors=swap_tensors),
        Tensor: dict(pin_memory=pin_memory, is_pinned=is_pinned, record_stream=nothing),
        threading.Thread: dict(run=in_modes), torch.accelerator: accelerator,
        optimizer: dict(_foreach_supported_types=[Tensor, torch.nn.Parameter, SimTensor])}

@contextlib.contextmanager
def device(
    index=0, # of the GPU that is used; there are index + 1 of them, and the current one is cuda:0
    roots=('gnosis_nb', 'fastai'), # parts of the names of files whose lines are shown
    old=IS_OLD, # as before torch 2.12: generators are registered with graphs, which share their offsets
    float64=True, # has it? MPS, which is not simulated otherwise, has not
):
    "A GPU within the context."
    global SIM
    if MISSING: raise RuntimeError(MISSING)
    SIM = Sim(torch.device('cuda', index), roots, old, float64)
    _here.__dict__.clear()
    SIM.generator = Generator('cuda').manual_seed(0)
    torch._C._ensureCUDADeviceGuardSet()
    graph.default_capture_stream = None
    places = {torch.cuda: of_torch_cuda(index + 1), **of_torch(threading.Thread.run)}
    with contextlib.ExitStack() as stack:
        for place, new in places.items():
            for k, v in new.items(): stack.enter_context(mock.patch.object(place, k, v))
        stack.enter_context(_Operations())
        stack.enter_context(_Leaves())
        yield SIM
