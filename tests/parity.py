"""Numbers recorded from the paper's implementation, and the rule that filled its weights."""
import json
from functools import lru_cache
from pathlib import Path
from zlib import crc32
import numpy as np
import torch

SEED = 20211206
DATA = Path(__file__).parent/'data'

@lru_cache
def arrays():
    "Recorded inputs and outputs, name -> array."
    with np.load(DATA/'reference.npz') as z: return {k: z[k] for k in z.files}

@lru_cache
def shapes():
    "State-dict keys and shapes in order, model name -> {key: shape}."
    return json.loads((DATA/'reference.json').read_text())

def recorded(key):
    "The recorded array `key` as a tensor."
    return torch.from_numpy(arrays()[key].copy())

def state_shapes(model):
    "Keys and shapes of `model`'s state dict as an ordered list, comparable with `recorded_shapes`."
    return [(k, list(v.shape)) for k, v in model.state_dict().items()]

def recorded_shapes(name):
    "Keys and shapes recorded for model `name`, as an ordered list."
    return list(shapes()[name].items())

def _filled(key, value, seed):
    if not value.is_floating_point(): return torch.zeros_like(value)
    generator = np.random.default_rng([seed, crc32(key.encode())])
    w = generator.standard_normal(tuple(value.shape)).astype('float32')*np.float32(0.1)
    if key.endswith('running_var'): w = np.abs(w) + np.float32(0.5)
    return torch.from_numpy(w).to(value)

def fill_weights(model, seed=SEED):
    "Fill `model` (a Module) by the recording's rule, put it in eval mode and return it."
    model.load_state_dict({k: _filled(k, v, seed) for k, v in model.state_dict().items()})
    return model.eval()

def rel_err(ours, ref):
    "Largest absolute difference relative to the largest recorded magnitude."
    ref = torch.as_tensor(ref)
    assert ours.shape == ref.shape, f'shape {tuple(ours.shape)}, recorded {tuple(ref.shape)}'
    return ((ours - ref).abs().max() / ref.abs().max()).item()
