"""The CUDA path on a simulated device, and the device itself.

`LAUNCHES` says what a training batch may cost once everything is recorded."""
from functools import partial

import pytest
import rehearsal
import simcuda
import torch
from fastai.callback.core import Callback
from rehearsal import images, network, rehearse, student, teacher
from torch import nn

import gnosis_nb.compute as compute
import gnosis_nb.engine as engine
import gnosis_nb.program as program
import gnosis_nb.quality as quality
from gnosis_nb.data.augment import augmentation
from gnosis_nb.data.loaders import image_dls
from gnosis_nb.learner import teacher_learner
from gnosis_nb.losses import ConvexCrossEntropy
from gnosis_nb.losses_beyond import DIST
from gnosis_nb.models import LSTMClassifier
from gnosis_nb.resume import training_state

pytestmark = [pytest.mark.filterwarnings('ignore'),
              pytest.mark.skipif(bool(simcuda.MISSING), reason=str(simcuda.MISSING))]

HALF = 'autocast runs an LSTM of cuDNN in float16, whatever its dtype'
SLOW = ('network vgg', 'network resnet')  # nothing that the smaller networks do not show

# Scenario, or how it begins -> replays and launches of a batch, at most. An epoch of five batches is measured
# by one more replay, and takes three launches.
PROGRAM = 1.2, .6
LAUNCHES = {
    **dict.fromkeys(('teacher', 'cuda:1', 'network', 'held', 'landscape', 'student', 'loss', 'hard labels',
        'policy', 'augmentations', 'generator', 'features', 'outputs'), PROGRAM), 'policy ood': (1.4, 1.2),
    'batches with features': (2, 40),
    'notebook': PROGRAM, 'together': (rehearsal.TOGETHER, 0), 'streamed': (1, 32), 'gan': (1.2, 14),
    'texts, bucket=True': (2, 27), 'texts, bucket=False': (2, 80), 'texts_on_cpu': (2, 31)}

LATE = {'texts, bucket=False': 1}  # recordings in the last epoch: texts of a length that is new
WAITS = {'notebook': .2, 'texts': .25}  # synchronisations of a batch; nothing else has any

def limit(table, name, default=None):
    "The entry of the longest key that `name` begins with."
    known = [o for o in table if name.startswith(o)]
    return table[max(known, key=len)] if known else default

def check(found):
    "A scenario has met nothing bad, has waited for nothing, and has launched no more than it may."
    assert not found.error, found.error
    assert not found.problems and not [o for o in found.warned if 'uncaptured' in o or 'one by one' in o]
    replays, launches = found.launches
    most = limit(LAUNCHES, found.name)
    assert bool(found.fits) == (most is not None)
    if found.fits: assert 0 < replays <= most[0] and launches <= most[1]
    assert found.late <= LATE.get(found.name, 0)
    assert found.syncs <= limit(WAITS, found.name, 0)

NAMES = [o for o in rehearsal.SCENARIOS if o not in SLOW]

@pytest.mark.parametrize('name', NAMES)
def test_scenario(name): check(rehearse(name))


# What a table cannot say

@pytest.fixture
def sim():
    before = torch.backends.cudnn.benchmark
    with simcuda.device() as sim: yield sim
    torch.backends.cudnn.benchmark = before

def fit(learn, epochs=2):
    with learn.no_logging(), learn.no_bar(): learn.fit(epochs)
    return learn

def test_held_logits_before_torch_2_12(): check(rehearse('held dropout', old=True))

@pytest.mark.parametrize('name', ['network dropout', 'student',
    'hard labels sampled, CUDA generator'])
def test_before_torch_2_12(name): check(rehearse(name, old=True))

class Fetches(nn.Module):
    "A loss that looks at its own value."
    def forward(self, z, y):
        loss = nn.functional.cross_entropy(z, y)
        assert loss.item() > 0
        return loss

def test_a_step_that_cannot_be_recorded_leaves_the_device_as_it_was(sim):
    learn = teacher('cuda')
    learn.loss_func = Fetches()
    fit(learn)
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    assert not sim.stuck and not sim.capturing

def test_texts_use_few_streams():
    found = rehearse('texts, bucket=False')
    assert found.facts['streams made'] <= 8

def test_an_lstm_is_not_computed_in_half_precision(sim):
    net = LSTMClassifier(9, 4, 4)
    assert 'precision' not in net.step_options and net.cuda().step_options['precision'] == 'fp32'
    words = torch.tensor([[2], [3], [4]]).cuda()
    with compute.autocast(sim.device, 'bf16'): net(words)
    assert [o[2] for o in sim.table('hazard')] == 2 * [HALF]  # what the choice avoids: one for each direction

@pytest.mark.parametrize('opt, dtypes', [('SGD', 2), ('Adam', 2)])
def test_a_training_state_is_copied_once_for_each_dtype(sim, opt, dtypes):
    learn = fit(teacher('cuda', opt=opt), 1)
    before = sim.count['syncs']
    tensors, _ = training_state(learn)
    assert len(tensors) > 20 and sim.count['syncs'] == before + dtypes
    for k, v in learn.model.state_dict().items(): assert tensors[f'model/{k}'].equal(v.cpu())

def test_evaluation_with_dist_waits_for_nothing(sim):
    z_t, z_s = torch.randn(2, 8, 3, device='cuda')
    before = sim.count['syncs']
    DIST()(z_t, z_s, 4.)
    assert sim.count['syncs'] == before

def test_the_weight_of_hard_labels_falls_in_replays(sim):
    "A loss with a schedule that is on the device is recorded once."
    loss, (z_t, z_s) = ConvexCrossEntropy(T_max=2).cuda(), torch.randn(2, 8, 3, device='cuda')
    out = torch.zeros((), device='cuda')
    graph = record(lambda: out.copy_(loss(z_t, z_s)))
    for beta in (1., .5, 0.):
        graph.replay()
        hard, soft = (part(z_t.cpu(), z_s.cpu()).item() for part in (loss.hard, loss.forward_ce))
        assert out.item() == pytest.approx(beta * hard + (1 - beta) * soft, rel=1e-6)
        loss.step()

def test_gans_need_no_float64_on_the_device(monkeypatch):
    "As on MPS, where the sums of metrics are in float32."
    monkeypatch.setattr(quality, 'sum_dtype', lambda device: torch.float32)
    with simcuda.device(float64=False):
        with pytest.raises(TypeError, match='float64'): torch.ones(2).cuda().double()
        fake, real = (torch.rand(20, 3, device='cuda') + i for i in (0, 1))
        assert quality.frechet_distance(real, fake) > 1
        found = rehearsal.Found('gan', 'simulated')
        rehearsal.gan(rehearsal.Rig('cuda', rehearsal.SimulatedCounts(simcuda.SIM), found), 'dcgan')
    assert found.facts['scores']['fid_classifier'] > 0

def test_logits_are_not_rounded(sim):
    learn = teacher('cuda')
    logits, _ = learn.get_preds(act=lambda o: o)
    assert not logits.bfloat16().float().equal(logits)

def test_crops_of_large_images_are_drawn_without_waiting(sim):
    dls = image_dls(images(224, n=64), 64, augmentation(), device='cuda')
    for _ in dls.train: pass
    assert not sim.table('hidden sync')

class Interrupts(Callback):
    order = 2000
    def after_batch(self): raise KeyboardInterrupt

def test_an_interrupted_fit_leaves_nothing(sim):
    learn = teacher('cuda')
    learn.add_cb(Interrupts())
    with pytest.raises(KeyboardInterrupt): fit(learn)
    assert 'forward' not in vars(learn.model) and not torch.backends.cudnn.benchmark

def test_adam_goes_on_on_the_cpu(sim):
    learn = fit(teacher('cuda', opt='Adam'))
    assert not any(o['capturable'] for o in learn.opt.opt.param_groups)


# Does the device notice what is broken?

def replay_outputs(self, *inputs):
    "Outputs are not cloned."
    for mine, new in zip(self.inputs, inputs): mine.copy_(new)
    self.graph.replay()
    return tuple(self.outputs)

def replay_old_inputs(self, *inputs):
    "Inputs are not copied."
    self.graph.replay()
    return tuple(o.clone() for o in self.outputs)

def on_streams(calls, streams, wait=True, join=True):
    "Streams do not wait for the work before, or are not joined."
    here, outs = torch.cuda.current_stream(), []
    for stream, call in zip(streams, calls):
        if wait: stream.wait_stream(here)
        with torch.cuda.stream(stream): outs.append(call())
        if join: here.wait_stream(stream)
    return outs

def step_that_waits(self, *tensors, step=engine.StepEngine._step):
    out = step(self, *tensors)
    out[1].item()
    return out

MUTATIONS = dict(
    outputs_not_cloned=(compute.CudaGraph, '__call__', replay_outputs),
    inputs_not_copied=(compute.CudaGraph, '__call__', replay_old_inputs),
    streams_not_joined=(compute, 'on_streams', partial(on_streams, join=False)),
    streams_do_not_wait=(compute, 'on_streams', partial(on_streams, wait=False)),
    step_waits=(engine.StepEngine, '_step', step_that_waits))
OF_PROGRAMS = dict(
    plan_not_advanced=(program.Plan, 'advance', lambda self: None),
    rates_not_sent=(engine.StepEngine, 'fill_rates', lambda self: None),
    measured_twice=(program.EpochProgram, '_take', lambda self: self.takers[0].take(*self.kept.room) or ()))

def trained(batches):
    "Weights and the last row of the table of a student, and what the device met."
    with simcuda.device() as sim:
        learn = student('cuda', m=2, alpha=.5, precision='fp32')
        if batches: learn.remove_cb(program.EpochProgram)
        fit(learn, 3)
        row = learn.fidelity_table.rows[-1]
        return rehearsal.weights(learn.model), row, sim.table('error', 'race', 'hazard')

@pytest.fixture(scope='module')
def right(): return [trained(batches) for batches in (False, True)]

@pytest.mark.parametrize('name', [*MUTATIONS, *OF_PROGRAMS])
def test_the_device_notices(monkeypatch, right, name):
    batches = name in MUTATIONS
    weights, row, met = right[batches]
    assert not met
    monkeypatch.setattr(*(MUTATIONS | OF_PROGRAMS)[name])
    try: others, other_row, met = trained(batches)
    except RuntimeError: return
    assert met or not others.equal(weights) or other_row != row

def test_a_program_trains_as_batches_do(right):
    (weights, row, _), (others, other_row, _) = right
    assert weights.equal(others) and row == other_row


# The device itself

def test_tensors_of_both_devices_do_not_mix(sim):
    x = torch.ones(2, device='cuda')
    with pytest.raises(RuntimeError, match='at least two devices'): x + torch.ones(2)
    with pytest.raises(RuntimeError, match="Expected a 'cuda' device type for generator"):
        torch.rand(2, device='cuda', generator=torch.Generator())
    assert (x + torch.tensor(1.)).tolist() == [2, 2]

@pytest.mark.parametrize('wait', [
    lambda x: x.sum().item(), lambda x: x.cpu(), lambda x: x[x > 0], lambda x: bool(x.any()),
    lambda x: torch.ones(2).to('cuda'), lambda x: x.nonzero(), lambda x: x[torch.tensor([0])]])
def test_synchronisations_are_counted_and_may_be_errors(sim, wait):
    x = torch.ones(2, device='cuda')
    before = sim.count['syncs']
    wait(x)
    assert sim.count['syncs'] == before + 1
    torch.cuda.set_sync_debug_mode('error')
    with pytest.raises(RuntimeError, match='synchronizing CUDA operation'): wait(x)
    torch.cuda.synchronize()  # what is asked for is allowed

def test_pinned_memory_is_copied_without_waiting(sim):
    x, before = torch.arange(10**5).pin_memory(), sim.count['syncs']
    y = x.to('cuda', non_blocking=True)
    assert x.is_pinned() and not sim.table('hidden sync') and sim.count['syncs'] == before
    torch.arange(10**5).to('cuda', non_blocking=True)
    assert len(sim.table('hidden sync')) == 1
    mine = torch.empty(10**5, dtype=torch.int64, pin_memory=True)
    mine.copy_(y, non_blocking=True)
    assert sim.count['syncs'] == before
    torch.cuda.current_stream().synchronize()
    assert mine.equal(x) and not sim.table('race')

def test_reading_what_is_still_copied_is_a_race(sim):
    y = torch.ones(3, device='cuda').to('cpu', non_blocking=True)
    y.sum()
    assert [o[0] for o in sim.table()] == ['race']

def test_streams_have_to_wait(sim):
    stream, x = torch.cuda.Stream(), torch.ones(2, device='cuda')
    with torch.cuda.stream(stream): x + 1
    assert len(sim.table('race')) == 1
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream): x + 1
    assert len(sim.table('race')) == 1

def record(fn, **options):
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.Stream(), **options): fn()
    return graph

def test_a_capture_executes_nothing_and_a_replay_does(sim):
    x = torch.zeros(1, device='cuda')
    graph = record(lambda: x.add_(1))
    assert x.item() == 0
    for _ in range(3): graph.replay()
    assert x.item() == 3 and sim.count['replays'] == 3

@pytest.mark.parametrize('old', [False, True])
def test_a_generator_of_its_own_draws_in_replays(old):
    with simcuda.device(old=old):
        rng, x = torch.Generator('cuda').manual_seed(0), torch.zeros(3, device='cuda')
        def draw(): x.copy_(torch.rand(3, device='cuda', generator=rng))
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(rng)
        with torch.cuda.graph(graph, stream=torch.cuda.Stream()): draw()
        want = torch.Generator().manual_seed(0)
        for _ in range(2):
            graph.replay()
            assert x.tolist() == torch.rand(3, generator=want).tolist()
        if old:
            with pytest.raises(RuntimeError, match='not registered'): record(draw)

def test_recordings_of_one_pool_must_not_run_at_the_same_time(sim):
    x, pool, streams = torch.zeros(1, device='cuda'), torch.cuda.graph_pool_handle(), []
    graphs = [record(lambda: x + 1, pool=pool, capture_error_mode='thread_local') for _ in range(2)]
    for graph in graphs:
        streams.append(torch.cuda.Stream())
        streams[-1].wait_stream(torch.cuda.default_stream())
        with torch.cuda.stream(streams[-1]): graph.replay()
    assert [o[2] for o in sim.table('race')] == ['recordings that share a pool run at the same time']

def test_a_whole_step_without_inputs(sim):
    """A recording that reads its batch from a plan, at a counter on the device, trains like a loop."""
    torch.manual_seed(0)
    x, y, plan = torch.randn(40, 5), torch.randn(40, 1), torch.randperm(40).view(8, 5)
    def make(device):
        torch.manual_seed(1)
        net = nn.Linear(5, 1).to(device)
        return net, torch.optim.SGD(net.parameters(), lr=.1, momentum=.9, fused=True)
    def train(net, opt, x, y):
        loss = (net(x) - y).square().mean()
        loss.backward()
        opt.step()
        opt.zero_grad()
        return loss.detach()
    want, own = make('cpu')
    losses = [train(want, own, x[rows], y[rows]).item() for rows in plan]
    net, opt = make('cuda')
    x, y, rows = (o.pin_memory().to('cuda', non_blocking=True) for o in (x, y, plan))
    t, seen = torch.zeros(1, dtype=torch.int64, device='cuda'), torch.zeros(8, device='cuda')
    def step():
        i = rows.index_select(0, t)[0]
        loss = train(net, opt, x.index_select(0, i), y.index_select(0, i))
        seen.index_copy_(0, t, loss[None])
        t.add_(1)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    torch.cuda.set_sync_debug_mode('error')
    with torch.cuda.stream(stream):
        for _ in range(3): step()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream, capture_error_mode='thread_local'): step()
        before = sim.count['eager']
        for _ in range(5): graph.replay()
        assert sim.count['eager'] == before
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.set_sync_debug_mode('default')
    assert seen.tolist() == losses and rehearsal.weights(net).equal(rehearsal.weights(want))
    assert not sim.table(*rehearsal.PROBLEMS)

def test_a_network_and_its_learner_are_small():
    "The sizes of scenarios decide how long these tests take."
    assert sum(o.numel() for o in network().parameters()) < 2000 and len(images().train) == 80
    assert len(teacher_learner(image_dls(images(), 16, device='cpu'), network()).dls.train) == 5
