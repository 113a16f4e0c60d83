"What older versions of torch do not have that the package still admits: reasons to leave tests out."
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: PLC2701

TORCH = tuple(map(int, torch.__version__.split('.')[:2]))
reads_pickles = pytest.mark.skipif(TORCH < (2, 6), reason='torch < 2.6: pickled checkpoints are refused')

def end_autocast():
    "What a test may have left on, on the CPU."
    if TORCH >= (2, 4): torch.set_autocast_enabled('cpu', False)
    else: torch.set_autocast_cpu_enabled(False)

def is_possible(act):
    try: act()
    except (RuntimeError, NotImplementedError): return False
    return True

def _fused_step():
    weight = torch.zeros(1, requires_grad=True)
    weight.grad = torch.zeros(1)
    torch.optim.SGD([weight], torch.tensor(.1), fused=True).step()

class Nothing(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None): return func(*args, **(kwargs or {}))

def _cast_in_mode():
    with Nothing(): torch.zeros(1).as_subclass(torch.Tensor)

records_on_cpu = pytest.mark.skipif(
    not is_possible(_fused_step), reason='this torch has no fused SGD on the CPU')
casts_in_modes = pytest.mark.skipif(
    not is_possible(_cast_in_mode), reason='this torch casts no tensors, as fastai does, in a dispatch mode')
