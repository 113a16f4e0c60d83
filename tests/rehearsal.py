"""Rehearse the CUDA path: `python tests/rehearsal.py [--device cuda] [name …]`.

Each scenario is a small training, evaluation or command. Without `--device` it runs on the simulated device
of `simcuda`, where bits are compared with the CPU's; on a real GPU numbers are compared within a tolerance.
The table says, for each training batch of the last epoch, when all that can be recorded has been: host
synchronisations, operations launched outside of recordings, and replays.

A name stands for all scenarios that begin with it: `policy` for each `policy …`."""
import argparse
import contextlib
import copy
import io
import json
import random
import tempfile
import time
import traceback
import warnings
from collections import Counter
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import simcuda
import torch
import torch.nn as nn
from experiments import SMALL
from fastai.callback.core import Callback
from fastai.callback.progress import ProgressCallback
from fastai.callback.training import GradientClip
from fastai.data.core import DataLoaders
from fastai.learner import Recorder
from PIL import Image

from gnosis_nb.averages import WeightAverage
from gnosis_nb.cka import cka_matrix, stage_cka
from gnosis_nb.cli import compose, run_command
from gnosis_nb.data.augment import AUGMENTATIONS, augmentation
from gnosis_nb.data.blocks import POLICIES, DistillBlock, DistillLoader, policy_blocks
from gnosis_nb.data.folder import image_folder
from gnosis_nb.data.images import ImageData, ImageSets, image_statistics
from gnosis_nb.data.loaders import ImageLoader, image_dls
from gnosis_nb.data.text import sentences, text_dls
from gnosis_nb.data.views import ViewLoader
from gnosis_nb.distill import FidelityTable, PrintProgress
from gnosis_nb.features import FeatureDistillation
from gnosis_nb.fidelity import fidelity_statistics, predictions, reliability
from gnosis_nb.gan import GANTable, SampleGrid, gan_dls, gan_learner
from gnosis_nb.initialize import initialize_student
from gnosis_nb.landscape import Plane, WeightPath, loss_line, loss_surface
from gnosis_nb.leaderboard import read_entries, run_entries
from gnosis_nb.learner import student_learner, teacher_learner
from gnosis_nb.losses import ForwardCrossEntropy, HardCrossEntropy
from gnosis_nb.losses_beyond import ALL_LOSSES, DrawnMember
from gnosis_nb.metrics import fidelity_report
from gnosis_nb.models import ClassifierEnsemble, LSTMClassifier, build_classifier, build_gan
from gnosis_nb.outputs import teacher_outputs
from gnosis_nb.predictions import collect_predictions
from gnosis_nb.quality import SampleQuality, classifier_judge
from gnosis_nb.resume import KeepState
from gnosis_nb.together import run_together

PROBLEMS = 'error', 'race', 'hazard', 'hidden sync'  # what a simulated device says that is wrong
BATCHES, ROWS = 5, 16  # of an epoch: a recording is made at the fourth batch


# What a device counts

class SimulatedCounts:
    "Counters of a simulated device."
    def __init__(self, sim): self.sim = sim
    def now(self): return Counter(self.sim.count)
    def watch(self, on): pass

class DeviceCounts:
    "Replays, recordings and, while it watches, host synchronisations of a real device."
    def __init__(self, said): self.count, self.said = Counter(), said
    def now(self):
        syncs = sum('synchronizing CUDA operation' in str(o.message) for o in self.said)
        return self.count + Counter(syncs=syncs)
    def watch(self, on): torch.cuda.set_sync_debug_mode('warn' if on else 'default')

    @contextlib.contextmanager
    def counting(self):
        def counted(name, key):
            method = getattr(torch.cuda.CUDAGraph, name)
            def run(*args, **kwargs):
                self.count[key] += 1
                return method(*args, **kwargs)
            return mock.patch.object(torch.cuda.CUDAGraph, name, run)
        with counted('replay', 'replays'), counted('capture_end', 'recordings'): yield

class _Begin(Callback):
    "The last to see an epoch of training begin. It has no event inside of an epoch."
    order, run_valid = 10**6, False
    def __init__(self, counts): self.counts = counts
    def before_train(self):
        self.counts.watch(self.epoch == self.n_epoch - 1)
        self.start = self.counts.now()

class _End(Callback):
    "The first to see it end; `found` is what the last epoch of training has added to the counters."
    order, run_valid = -10**6, False
    def __init__(self, begin): self.begin, self.found = begin, Counter()
    def after_train(self):
        self.found = self.begin.counts.now() - self.begin.start
        self.begin.counts.watch(False)


# A rehearsal

@dataclass
class Found:
    "What a scenario has found."
    name:str
    device:str
    fits:list = field(default_factory=list)  # a row for each training that was counted
    facts:dict = field(default_factory=dict)
    problems:list = field(default_factory=list)  # of `PROBLEMS`: kind, phase, text, lines, how often
    warned:list = field(default_factory=list)
    error:str = ''  # the end of a traceback
    seconds:float = 0.

    @property
    def syncs(self): return sum(o['syncs'] for o in self.fits)
    @property
    def late(self): return sum(o['late'] for o in self.fits)
    @property
    def launches(self): # the most replays and launches a batch
        return tuple(max((o[k] for o in self.fits), default=0) for k in ('replays', 'launches'))
    @property
    def difference(self): return max((o['difference'] for o in self.fits), default=0.)

class Rig:
    "A device, and what its trainings have in common."
    def __init__(self, device, counts, found): self.device, self.counts, self.found = device, counts, found

    @property
    def is_real(self): return isinstance(self.counts, DeviceCounts)

    def fit(self, learn, epochs=3, bar=False):
        "Fit a Learner; notes what each batch of its last epoch adds to the counters."
        begin, before = _Begin(self.counts), self.counts.now()
        if hasattr(learn, 'epoch_program'): learn.epoch_program.period = float('inf')  # nothing by the clock
        end = _End(begin)
        with contextlib.ExitStack() as stack:
            quiet = contextlib.redirect_stdout(io.StringIO())
            for o in [quiet] if bar else [learn.no_logging(), learn.no_bar()]: stack.enter_context(o)
            stack.enter_context(learn.added_cbs([begin, end]))
            learn.fit(epochs)
        return self.note(end.found, len(learn.dls.train), before['recordings'])

    def note(self, last, n, recorded):
        "What `n` batches have added to the counters; `recorded` was recorded before the fit."
        launches = float('nan') if self.is_real else last['eager'] / n  # which are not counted on a GPU
        row = dict(syncs=last['syncs'] / n, launches=launches, replays=last['replays'] / n,
            recordings=self.counts.now()['recordings'] - recorded, late=last['recordings'], difference=0.)
        self.found.fits.append(row)
        return row

    def compare(self, make, epochs=3, random=False, tolerance=0.):
        """Fit `make(device)` here and on the CPU, in fp32; notes the relative difference of the weights.

        `tolerance` is the one on a simulated device, where `random` numbers are those of the CPU, too."""
        torch.manual_seed(0)
        with without_tf32():
            learn = make(self.device, precision='fp32', channels_last=True)
            torch.manual_seed(0)
            row = self.fit(learn, epochs)
        if random and self.is_real: return learn
        torch.manual_seed(0)
        reference = make('cpu', precision='fp32', channels_last=True)
        reference.opt_func = partial(reference.opt_func, fused=True)  # as a recording needs it
        torch.manual_seed(0)
        with reference.no_logging(), reference.no_bar(): reference.fit(epochs)
        mine, theirs = weights(learn.model), weights(reference.model)
        difference = ((mine - theirs).norm() / theirs.norm()).item()
        limit = 5e-3 if self.is_real else tolerance
        row['difference'] = difference
        if not difference <= limit:
            raise AssertionError(f'weights differ from those of the CPU by {difference:.2g} of their norm; '
                                 f'expected at most {limit:.2g}')
        return learn

@contextlib.contextmanager
def without_tf32():
    flags = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with flags: yield
    finally: torch.backends.cuda.matmul.allow_tf32 = before

def weights(net):
    return torch.cat([o.detach().cpu().flatten().double() for o in net.state_dict().values()])


# Data and Learners

def images(size=8, channels=3, n=BATCHES * ROWS, n_test=32):
    "Random pixels, which are brighter in higher classes, and their classes."
    rng = torch.Generator().manual_seed(size)
    def some(n):
        y = torch.arange(n) % 10
        noise = torch.randint(0, 100, (n, channels, size, size), generator=rng)
        pixels = (noise + 15 * y[:, None, None, None]).to(torch.uint8)
        return ImageData(pixels, y, [str(i) for i in range(10)], 'random')
    train, test = some(n), some(n_test)
    return ImageSets(train, test, image_statistics(train.images))

class Tiny(nn.Sequential):
    "The smallest network with batch normalisation, and dropout."
    def __init__(self, channels, size, p=0.):
        super().__init__(nn.Conv2d(channels, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(p), nn.Flatten(),
            nn.Linear(4 * (size - 2)**2, 10))

def network(name='tiny', size=8, channels=3, seed=0):
    if name in ('tiny', 'dropout'):
        torch.manual_seed(seed)
        return Tiny(channels, size, p=.3 if name == 'dropout' else 0.)
    depth = dict(preresnet=8, resnet=18, vgg=11).get(name)
    return build_classifier(name, 10, channels, size, seed, depth=depth)

def ensemble(m, name='tiny'): return ClassifierEnsemble(*(network(name, seed=i + 1) for i in range(m))).eval()

def as_a_run(learn, table):
    "With the callbacks of a run."
    learn.remove_cbs([ProgressCallback, Recorder])
    learn.add_cb(PrintProgress(table=table, out=io.StringIO(), log_period=1e9))
    return learn

def table():
    table = FidelityTable(eval_period=10**9)  # after the last epoch
    table.patience = float('inf')  # it looks at the loss after seconds, which tests have none of
    return table

def student(device, policy='baseline', name='tiny', loss=None, m=1, run=True, synth=None, average=None,
            **options):
    extra = images(n=BATCHES * 4).train if policy == 'ood' else None
    block, bs = DistillBlock(*policy_blocks(policy, synth, extra)), ROWS if extra is None else ROWS + 4
    dls, mine = block.dataloaders(images(), bs=bs, device=device), table()
    loss = loss() if loss else None
    cbs = [mine, *([WeightAverage(*average)] if average else [])]
    learn = student_learner(dls, network(name), ensemble(m, name), loss, metrics=[], cbs=cbs, **options)
    return as_a_run(learn, mine) if run else learn

def teacher(
    device, name='tiny', size=8, rows=ROWS, channels=3, names=('crop', 'horizontal_flip'), lr=.01, **options
):
    mine, sets = table(), images(size, channels, BATCHES * rows)
    dls = image_dls(sets, rows, augmentation(names, JITTER), device=device)
    learn = teacher_learner(dls, network(name, size, channels), lr, metrics=[], cbs=mine, **options)
    return as_a_run(learn, mine)

JITTER = dict(colorjitter=dict(brightness=.2, contrast=.2, saturation=.2, hue=.2))

class Noise:
    "A source of synthetic images."
    def __init__(self, device): self.device, self.rng = device, torch.Generator(device).manual_seed(0)
    def sample(self, n): return torch.rand(n, 3, 8, 8, device=self.device, generator=self.rng) * 2 - 1
    def state_dict(self): return dict(rng=self.rng.get_state())
    def load_state_dict(self, state): self.rng.set_state(state['rng'])

class Enlarged:
    "A GAN's images in the size of the real ones, as the commands make them."
    def __init__(self, device):
        self.rng = torch.Generator(device).manual_seed(0)
        net, _ = build_gan('sngan', 3, 32, 0, **GANS['sngan'][1])
        self.net = net.to(device).eval()
    def sample(self, n): return self.net.sample(n, generator=self.rng)[:, :, ::4, ::4]


# Scenarios

def run_teacher(rig):
    "A teacher, as a run trains it, in the best precision."
    rig.fit(teacher(rig.device, 'preresnet'))

def run_student(rig):
    "A student of three teachers, as a run trains it, in the best precision."
    rig.fit(student(rig.device, name='preresnet', m=3))

def notebook(rig):
    "The same as a notebook trains it: with fastai's Recorder and progress bar."
    rig.fit(student(rig.device, name='preresnet', m=3, run=False), bar=True)

def networks(rig, name, size, rows):
    "A network with the CPU's weights after the training."
    options = dict(rows=rows)
    if rig.is_real and name == 'resnet':
        # 16 values to a BatchNorm: at a rate of .01 a difference of 1e-7 grows to .27, on one CPU too
        options = dict(rows=ROWS, lr=1e-5)
    rig.compare(partial(teacher, name=name, size=size, **options), random=name in ('vgg', 'dropout'))

def policies(rig, policy):
    "A policy of the paper."
    def make(device, **options):
        synth = Noise(device) if policy == 'gan' else None
        return student(device, policy, synth=synth, **options)
    rig.compare(make, random=policy in ('noise', 'gan'))

def augmentations(rig):
    "Every transform by name, one after the other."
    rig.compare(partial(teacher, names=list(AUGMENTATIONS)))

def generator(rig):
    "Policy gan with a network that makes the images."
    rig.fit(student(rig.device, 'gan', synth=Enlarged(rig.device)))

def losses(rig, loss):
    "A loss, with labels for a part of it."
    options = dict(ts_cvx_cross_ent=dict(T_max=2), decoupled_kd=dict(target='label')).get(loss, {})
    rig.compare(partial(student, loss=partial(ALL_LOSSES[loss], **options), m=2, alpha=.5))

class Listens(Callback):
    "Hears of every batch, so that an epoch is no program."
    run_valid = False
    def after_batch(self): pass

def features(rig, method, by_batches=False):
    "A loss of features, with its projectors; batch by batch, the teacher's come from a recording of its own."
    def make(device, **options):
        learn = student(device, m=2, features=FeatureDistillation(method, layers=['2']), **options)
        if by_batches: learn.add_cb(Listens())
        return learn
    rig.compare(make)

def hard_labels(rig, device, **options):
    "Labels that are drawn."
    def make(where, **kwargs):
        rng = torch.Generator(where if device == 'cuda' else device).manual_seed(0) if device else None
        return student(where, loss=partial(HardCrossEntropy, generator=rng, **options), **kwargs)
    if device == 'cpu': rig.fit(make(rig.device))  # it seeds one on the device, which draws other numbers
    else: rig.compare(make, random=True)

def averages(rig, kind):
    "A student whose weights are averaged."
    rig.compare(partial(student, average=(kind, .5)))

def drawn_member(rig):
    "A student that is taught by one of two teachers at a time."
    def make(where, **options):
        rng = torch.Generator(where).manual_seed(0)
        return student(where, loss=lambda: DrawnMember(ForwardCrossEntropy(), rng), m=2, **options)
    rig.compare(make, random=True)

def texts(rig, bucket):
    "LSTMs in the best precision."
    sets = sentences(num_train=BATCHES * ROWS, num_test=40)
    dls, mine = text_dls(sets, ROWS, bucket=bucket, device=rig.device), table()
    def net(): return LSTMClassifier(len(sets.words), 8, 8)
    learn = as_a_run(student_learner(dls, net(), net().eval(), metrics=[], cbs=mine), mine)
    before = rig.counts.now()['streams']
    rig.fit(learn, 5)  # a text of each length comes several times
    rig.found.facts['streams made'] = rig.counts.now()['streams'] - before

def texts_on_cpu(rig):
    "LSTMs with the CPU's weights after the training."
    sets = sentences(num_train=BATCHES * ROWS, num_test=40)
    def make(device, **options):
        nets = [LSTMClassifier(len(sets.words), 8, 8) for _ in range(2)]
        dls, mine = text_dls(sets, ROWS, bucket=True, device=device), table()
        learn = student_learner(dls, nets[0], nets[1].eval(), lr=.01, metrics=[], cbs=mine, **options)
        return as_a_run(learn, mine)
    rig.compare(make, 5, tolerance=1e-8)

GANS = dict(sngan=('hinge', dict(z_dim=8, generator_k=8, discriminator_k=8)),
    dcgan=('bce', dict(nz=8, ngf=4, ndf=4)))

def gan(rig, name):
    "A GAN with a judge."
    loss, sizes = GANS[name]
    judge = classifier_judge(network('preresnet', 32).eval())
    dls = gan_dls(images(32), 8, 2, 5, device=rig.device, n_real=32)
    cbs = [GANTable(), SampleGrid(2)]
    quality = SampleQuality(judge, dls.valid, 32, 16)
    learn = gan_learner(dls, *build_gan(name, 3, 32, 0, **sizes), loss, quality=quality, cbs=cbs)
    learn.remove_cbs([ProgressCallback, Recorder])
    rig.fit(learn, 3)
    rig.found.facts['scores'] = {k: round(v, 3) for k, v in learn.scores.items()}

def measures(rig):
    "CKA, reports, statistics, predictions, starting points."
    dls = image_dls(images(n_test=128), 32, eval_bs=64, device=rig.device)
    s, t = network('preresnet').to(rig.device), ensemble(2, 'preresnet').to(rig.device)
    dl = dls.valid
    report = fidelity_report(s, t, dl, s)
    found = [stage_cka(s, t, dl), stage_cka(s, t, dl, 'rbf'), cka_matrix(s, t, dl).to_numpy()]
    y, z_t, z_s = predictions(dl, t, s)
    statistics, bins = fidelity_statistics(z_s, z_t, y, num_resamples=20), reliability(z_s, y)
    kept = collect_predictions(dl, t, s)
    lr = initialize_student(s, t.models[0].state_dict(), 'final', .5, dls.train)
    rig.found.facts.update(agreement=round(report.loc['student', 'agreement'], 4), lr=lr,
        cka=[round(float(np.mean(o)), 3) for o in found],
        shapes=[tuple(o.shape) for o in (statistics, bins, kept.targets)])

def landscape(rig):
    "A plane through three networks, 16 networks at once, and a path of weights."
    dls = image_dls(images(), ROWS, eval_bs=64, device=rig.device)
    s, t = network('preresnet').to(rig.device), ensemble(2, 'preresnet').to(rig.device)
    states = [copy.deepcopy(o.state_dict()) for o in (s, *t.models)]
    plane = Plane(s, *states)
    for how in ('interpolate', 'reestimate'):
        loss_surface(s, plane, t, dls.valid, [0., 1.], [0.], batchnorm=how)
    loss_line(s, *states[:2], t, dls.valid, [0., .5])
    learn, path = teacher(rig.device), WeightPath()
    learn.add_cb(path)
    rig.fit(learn)
    rig.found.facts['states'] = len(path.states)

def resume(rig, opt='SGD', policy='baseline', seconds=0.):
    "Four epochs at once, and the rest after the state in the middle, kept after epochs or batches."
    def fit(keep):
        synth = Noise(rig.device) if policy == 'gan' else None
        learn = student(rig.device, policy, precision='fp32', opt=opt, synth=synth)
        learn.epoch_program.period = -1
        learn.add_cb(keep)
        with learn.no_logging(), learn.no_bar(): learn.fit(4, start_epoch=keep.start_epoch)
        return weights(learn.model)
    kept = []
    with deterministic():
        whole = fit(KeepState(lambda *o: kept.append(o), seconds=seconds))
        kept = [o for o in kept if o[1]['batch'] or not seconds]
        middle = kept[len(kept)//2 - 1]
        rest = fit(KeepState(lambda *o: None, state=middle))
    rig.found.facts.update({k: middle[1][k] for k in ('epoch', 'batch')})
    if whole.equal(rest): return
    raise AssertionError(f'the resumed training differs by {(whole - rest).abs().max()}')

@contextlib.contextmanager
def deterministic():
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    try: yield
    finally: torch.backends.cudnn.deterministic = before

TOGETHER = 8

def together(rig):
    "Students of one teacher in turns; counted are three rounds of batches within the last epoch."
    before, judge = torch.backends.cudnn.benchmark, ensemble(2)
    def one(seed):
        mine, block = table(), DistillBlock(*policy_blocks('baseline'))
        dls = block.dataloaders(images(), bs=ROWS, device=rig.device, seed=seed)
        learn = as_a_run(student_learner(dls, network(seed=seed), judge, metrics=[], cbs=mine), mine)
        learn.epoch_program.period = float('inf')
        return learn
    learners, seen, recorded = [one(i) for i in range(TOGETHER)], [], rig.counts.now()['recordings']
    first = learners[0].epoch_program
    def noting(sizes, rows, run=first._run):
        seen.append(rig.counts.now())
        run(sizes, rows)
    first._run = noting
    def fit(learn):
        with learn.no_logging(), learn.no_bar(): learn.fit(3)
    run_together([partial(fit, o) for o in learners], torch.device(rig.device))
    rig.note(seen[-1] - seen[-4], 3, recorded)
    after = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = before
    if after != before: raise AssertionError(f'cudnn.benchmark is {after} after the fits, and was {before}')

def streamed(rig):
    "Images that stay in files: workers, pinned memory."
    with tempfile.TemporaryDirectory() as tmp:
        for split, n in dict(train=BATCHES * 8, test=8).items():
            for i in range(n):
                folder = Path(tmp)/split/'ab'[i % 2]
                folder.mkdir(parents=True, exist_ok=True)
                pixels = np.random.default_rng(i).integers(0, 255, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder/f'{i}.png')
        sets, mine = image_folder(tmp, size=8, memory_limit=0), table()
        dls = image_dls(sets, 8, augmentation(), device=rig.device, num_workers=1)
        net = build_classifier('preresnet', 2, 3, 8, 0, depth=8)
        rig.fit(as_a_run(teacher_learner(dls, net, metrics=[], cbs=mine), mine))

WAYS = dict(
    lr_find=lambda o: o.lr_find(show_plot=False, num_it=8), one_cycle=lambda o: o.fit_one_cycle(1, .1),
    validate=lambda o: o.validate(), get_preds=lambda o: o.get_preds(),
    show_results=lambda o: o.show_results(), clip=lambda o: (o.fit(1, cbs=GradientClip()), o.fit(1)))

def fastai_ways(rig):
    "What users of fastai do."
    for name, do in WAYS.items():
        dls = image_dls(images(), ROWS, device=rig.device)
        learn = teacher_learner(dls, network())
        with learn.no_logging(), learn.no_bar(), contextlib.redirect_stdout(io.StringIO()): do(learn)

def held(rig, name):
    "Somebody has looked at the network's logits, and still holds them."
    learn = teacher(rig.device, name, rows=4)
    logits = learn.model(learn.dls.one_batch()[0])
    row = rig.fit(learn)
    back = torch.cuda.current_stream() == torch.cuda.default_stream()
    torch.cuda.set_stream(torch.cuda.default_stream())
    rig.found.facts['logits held'] = list(logits.shape)
    if not back: raise AssertionError('the stream of the capture is still the current one')
    if not row['replays']: raise AssertionError('nothing has been recorded')

def outputs(rig, keep):
    "A student that reads its teachers' kept outputs to fixed views of its images."
    with tempfile.TemporaryDirectory() as tmp:
        def make(device, **options):
            sets, mine, teachers = images(), table(), ensemble(2)
            part = ViewLoader(sets.train, 2, ROWS, True, augmentation(), device=device)
            test = ImageLoader(sets.test, device=device)
            dls = DataLoaders(DistillLoader([part], ROWS), test, device=device)
            kept = teacher_outputs(teachers.to(device), dls.train, tmp, {}, keep, say=lambda s: None)
            learn = student_learner(dls, network(), teachers, metrics=[], cbs=[mine], cache=0., outputs=kept,
                                    **options)
            return as_a_run(learn, mine)
        rig.compare(make)

def command(rig, name, overrides):
    "A command from its settings to its report."
    with tempfile.TemporaryDirectory() as tmp:
        where = [f'device={rig.device}', f'data_dir={tmp}', 'force=true']
        lines = []
        run = run_command(name, compose([*overrides, *where], name), say=lines.append)
        rig.found.facts.update(state=run.state['state'], lines=len(lines))

def trials(rig):
    "Two students of a leaderboard's entry at once, each in a run of its own."
    entries = {k: o for k, o in read_entries().items() if k in ('baseline', 'every_layer_warm')}
    with tempfile.TemporaryDirectory() as tmp:
        overrides = [f'device={rig.device}', f'data_dir={tmp}', 'dataset.shrink.train=160']
        rows = run_entries(entries, 'smoke', 2, overrides, say=lambda text: None)
    rig.found.facts.update(rows=len(rows))
    if len(rows) != 4 or rows.agreement.isna().any(): raise AssertionError(f'rows: {rows}')

ONE_EPOCH = ['trainer.num_epochs=1', 'teacher.trainer.num_epochs=1']
IMAGES = [*SMALL['image_classification'], *ONE_EPOCH, 'dataloader.batch_size=32',
    'dataset.shrink={train: 160, test: 64}', 'teacher.independent=true']
TEXTS = [*SMALL['text_classification'], *ONE_EPOCH]
GENERATION = ['dataset=digits8', 'judge.name=none', 'dataloader.batch_size=16', 'density_model=dcgan',
    'density_model.nz=8', 'density_model.ngf=4', 'density_model.ndf=4', 'trainer.num_gen_updates=4',
    'trainer.eval_period=2', 'trainer.checkpoint_period=4', 'trainer.num_eval_samples=40']

SCENARIOS = dict(
    teacher=run_teacher, student=run_student, notebook=notebook,
    **{f'network {name}': partial(networks, name=name, size=size, rows=rows) for name, size, rows in
       [('preresnet', 8, ROWS), ('dropout', 8, ROWS), ('lenet', 28, ROWS), ('vgg', 16, 2),
        ('resnet', 32, 2)]},
    **{f'policy {o}': partial(policies, policy=o) for o in POLICIES},
    augmentations=augmentations, generator=generator,
    **{f'loss {o}': partial(losses, loss=o) for o in ALL_LOSSES},
    **{f'features {o}': partial(features, method=o) for o in ('activations', 'fitnet', 'rkd')},
    **{'batches with features': partial(features, method='fitnet', by_batches=True)},
    **{f'hard labels {name}': partial(hard_labels, **o) for name, o in {
        'sampled': dict(device=None, mode='sample'), 'corrupted': dict(device=None, corruption_ratio=.3),
        'sampled, CUDA generator': dict(device='cuda', mode='sample'),
        'sampled, CPU generator': dict(device='cpu', mode='sample')}.items()},
    **{f'student {o}': partial(averages, kind=o) for o in ('ema', 'swa')}, **{'student drawn': drawn_member},
    **{f'texts, bucket={o}': partial(texts, bucket=o) for o in (False, True)}, texts_on_cpu=texts_on_cpu,
    **{f'gan {o}': partial(gan, name=o) for o in GANS},
    measures=measures, landscape=landscape,
    **{f'resume {o}': partial(resume, opt=o) for o in ('SGD', 'Adam')},
    **{f'resume within, {o}': partial(resume, policy=o, seconds=1e-9) for o in ('mixup', 'noise', 'gan')},
    together=together, streamed=streamed, fastai_ways=fastai_ways, **{'cuda:1': run_teacher},
    **{f'held {o}': partial(held, name=o) for o in ('tiny', 'dropout')},
    **{f'outputs {o}': partial(outputs, keep=o) for o in ('half', 3)},
    **{'command images': partial(command, name='image_classification', overrides=IMAGES),
       'command texts': partial(command, name='text_classification', overrides=TEXTS),
       'command generation': partial(command, name='image_generation', overrides=GENERATION),
       'command leaderboard': trials})


# Running them

def seed_everything():
    for seed in (random.seed, np.random.seed, torch.manual_seed): seed(0)

def summary_of(warned):
    "Different warnings, and how often each was given."
    texts = (f"{o.category.__name__}: {' '.join(str(o.message).split())[:200]}" for o in warned)
    return [f'{n}x {text}' for text, n in Counter(texts).items()]

def rehearse(
    name, # a key of `SCENARIOS`
    device='simulated', # or one of torch's
    old=simcuda.IS_OLD, # of `simcuda.device`
):
    "What a scenario has found. It does not raise."
    found, start, second = Found(name, device), time.process_time(), int(name == 'cuda:1')
    with contextlib.ExitStack() as stack:
        said = stack.enter_context(warnings.catch_warnings(record=True))
        warnings.simplefilter('always')
        if device == 'simulated':
            sim = stack.enter_context(simcuda.device(second, old=old))
            rig = Rig('cuda:1' if second else 'cuda', SimulatedCounts(sim), found)
        else:
            rig = Rig('cuda:1' if second else device, DeviceCounts(said), found)
            stack.enter_context(rig.counts.counting())
        seed_everything()
        try: SCENARIOS[name](rig)
        except Exception: found.error = traceback.format_exc(limit=-6)[-2000:]
        if device == 'simulated': found.problems = sim.table(*PROBLEMS)
        else: rig.counts.watch(False)
    found.warned, found.seconds = summary_of(said), time.process_time() - start
    return found

COLUMNS = dict(recordings='10', replays='8.2f', launches='8.1f', syncs='6.2f', difference='10.1e')

def print_head():
    print('for each training batch of the last epoch', end='')
    names = [f"{name:>{form.split('.')[0]}}" for name, form in COLUMNS.items()]
    print(f"\n{'':34} {' '.join(names)}  CPU s", flush=True)

def row_of(name, fit, seconds):
    cells = [f"{fit[k]:{form}}" if fit else ' ' * int(form.split('.')[0]) for k, form in COLUMNS.items()]
    return f"{name:34} {' '.join(cells)} {seconds:6.1f}"

def line_of(found):
    "A row of the table, and what is wrong below it."
    rows = [row_of(found.name, o, found.seconds) for o in found.fits or [None]]
    problems = [f'    {n}x {kind} [{phase}] {text} ({at})' for kind, phase, text, at, n in found.problems]
    facts = [f'    {k}: {v}' for k, v in found.facts.items()]
    return '\n'.join([*rows, *facts, *problems, *(f'    warned {o}' for o in found.warned),
        *(f'    {o}' for o in found.error.splitlines()[-6:])])

def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0], epilog=', '.join(SCENARIOS))
    parser.add_argument('names', nargs='*', help='of scenarios, or how they begin; none: all of them')
    parser.add_argument('--device', default='simulated', help="'simulated', or one of torch's")
    parser.add_argument('--json', type=Path, help='file for what was found, written after each scenario')
    args = parser.parse_args()
    names = [o for o in SCENARIOS if not args.names or o.startswith(tuple(args.names))]
    alone = args.device != 'simulated' and torch.cuda.device_count() < 2
    if alone: names = [o for o in names if o != 'cuda:1']
    if not names: parser.error(f"names={args.names}: expected scenarios, or how they begin")
    torch.set_num_threads(1)
    found = []
    print_head()
    for name in names:
        found.append(rehearse(name, args.device))
        print(line_of(found[-1]), flush=True)
        if args.json: args.json.write_text(json.dumps([asdict(o) for o in found], indent=1, default=str))
    bad = [o.name for o in found if o.error or o.problems]
    print(f"\n{len(found)} scenarios, {len(bad)} with problems: {', '.join(bad) or 'none'}")

if __name__ == '__main__': main()
