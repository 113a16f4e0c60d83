"""How fast gnosis_nb is on the machine at hand, beside plain PyTorch: `python scripts/benchmark.py step`.

Every contender is a process of its own, which is warmed up by one round and then does a round when told to.
After that they alternate, and one runs at a time. A ratio is the median of the rounds' ratios. Peak memory
is that of the contender's process (without the workers of its DataLoader), on a GPU torch's."""
import argparse
import json
import multiprocessing
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import redirect_stdout
from functools import partial
from itertools import chain, repeat
from pathlib import Path

import fastai
import torch
import torch.nn.functional as F
import torchvision
from fastai.callback.core import Callback, CancelFitException, CancelValidException
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.mixup import CutMix, MixUp
from fastai.callback.progress import CSVLogger, ProgressCallback, ShowGraphCallback
from fastai.callback.tensorboard import TensorBoardCallback
from fastai.callback.tracker import EarlyStoppingCallback, ReduceLROnPlateau, SaveModelCallback
from fastai.callback.training import GradientAccumulation, GradientClip
from fastai.learner import Recorder
from PIL import Image
from torch.nn.utils.rnn import pack_padded_sequence, pad_sequence
from torchvision import transforms

from gnosis_nb.adapt import plain_tensor
from gnosis_nb.cka import linear_cka, watching
from gnosis_nb.compute import (Captured, Frozen, autocast, keep_memory, peak_memory, pick_channels_last,
    pick_precision)
from gnosis_nb.data.augment import augmentation
from gnosis_nb.data.blocks import DistillBlock, policy_blocks
from gnosis_nb.data.folder import DataNotFound, image_folder
from gnosis_nb.data.images import ImageData, ImageSets, normalizer
from gnosis_nb.data.loaders import image_dls
from gnosis_nb.data.text import TextSets, basic_english, encode_texts, text_dls, text_sets, write_review
from gnosis_nb.data.zoo import STATISTICS, cifar10
from gnosis_nb.distill import FidelityTable, PrintProgress
from gnosis_nb.fidelity import compare_students, fidelity_statistics
from gnosis_nb.features import FEATURE_LOSSES, FeatureDistillation
from gnosis_nb.inputs import evaluation_rows
from gnosis_nb.learner import student_learner, teacher_learner
from gnosis_nb.metrics import accuracy, agreement, ece, nll, predictive_kl
from gnosis_nb.models import ClassifierEnsemble, build_classifier
from gnosis_nb.program import EpochProgram
from gnosis_nb.statement import write_statement
from gnosis_nb.together import run_together

SKIP = 5  # batches before the clock starts: a step is captured at the fourth


# Frame

class Contender:
    "A process of its own, which does a round when told to."
    def __init__(self, name, make, args):
        context = multiprocessing.get_context('spawn')
        self.name, (self.pipe, theirs) = name, context.Pipe()
        self.process = context.Process(target=live, args=(theirs, make, args))
        self.process.start()
        theirs.close()

    def begin(self):
        "Tell it to do a round."
        try: self.pipe.send(True)
        except OSError: self.fail()

    def end(self):
        "What the round returns, and the peak memory so far."
        try: return self.pipe.recv()
        except (EOFError, OSError): self.fail()

    def ends_within(self, seconds): return self.pipe.poll(max(0, seconds))

    def round(self):
        self.begin()
        return self.end()

    def fail(self): sys.exit(f"{self.name}: failed, its error is above")

    def stop(self):
        try: self.pipe.send(None)
        except OSError: pass
        self.process.join()


def live(pipe, make, args):
    "A contender's life: do rounds until told to stop."
    torch.manual_seed(0)
    work = make(args)
    try:
        for _ in iter(pipe.recv, None): pipe.send((work(), peak_memory(args.device)))
    except EOFError: pass  # the parent is gone


def warm_up(contenders, patience):
    "Those that are done with a first round within `patience` seconds; the others are ended, and named."
    begun, ready = time.monotonic(), []
    for o in contenders: o.begin()  # all at once: nothing is timed yet
    for o in contenders:
        if o.ends_within(begun + patience - time.monotonic()):
            o.end()
            ready.append(o)
        else:
            o.process.kill()
            print(f'{o.name}: left out, it was not warm after {patience:g} s', flush=True)
    if not ready: sys.exit(f'--patience {patience:g}: expected more, no contender was warm by then')
    return ready

def run_rounds(args, makers):
    "Name -> (values of the rounds, peak memory in GB), of contenders that take turns."
    contenders = [Contender(name, make, args) for name, make in makers.items()]
    try:
        contenders = warm_up(contenders, args.patience)
        rounds = []
        for i in range(args.rounds):
            rounds.append([o.round() for o in contenders])
            values = [f'{o.name} {value:,.0f}' if value > 1000 else f'{o.name} {value:.4g}'
                      for o, (value, _) in zip(contenders, rounds[-1])]
            print(f"round {i + 1} of {args.rounds}: {', '.join(values)}", flush=True)
    finally:
        for o in contenders: o.stop()
    return {o.name: ([value for value, _ in mine], mine[-1][1]) for o, mine in zip(contenders, zip(*rounds))}


def contest(
    args, # of the command line
    title, # of the table
    makers, # name -> function of `args` that makes a round
    unit='images/s', # of what a round returns; without '/s' it is a time
    compare=(), # ratios of speeds: (label, above, several below, of which the fastest counts)
):
    "Print and return the table of all contenders, who are compared with the first."
    results, is_rate = run_rounds(args, makers), unit.endswith('/s')
    speeds = {k: v if is_rate else [1 / o for o in v] for k, (v, _) in results.items()}
    def ratio(a, b): return statistics.median(x / y for x, y in zip(speeds[a], speeds[b]))
    first, rows = next(iter(results)), {}
    for k, (v, gb) in results.items():
        spread = dict(median=statistics.median(v), min=min(v), max=max(v))
        rows[k] = dict(spread, speed=ratio(k, first), gb=gb, rounds=v)
    print_table(title, rows, unit, ',.0f' if is_rate else ',.4g')
    ratios = {}
    for label, above, belows in compare:
        belows = [o for o in belows if o in speeds]
        if above not in speeds or not belows: continue
        best = max(belows, key=lambda o: statistics.median(speeds[o]))
        ratios[label] = dict(above=above, below=best, ratio=ratio(above, best))
        print(f"{label}: {ratios[label]['ratio']:.2f} ({above} / {best})")
    sys.stdout.flush()
    return dict(title=title, unit=unit, contenders=rows, ratios=ratios)


def print_table(title, rows, unit, form):
    width = max(map(len, rows))
    print(f"\n{title}\n{'':{width}}  {'median ' + unit:>16}  {'min – max':>21}  {'speed':>7}  {'GB':>6}")
    for k, o in rows.items():
        median, spread = f"{o['median']:{form}}", f"{o['min']:{form}} – {o['max']:{form}}"
        print(f"{k:{width}}  {median:>16}  {spread:>21}  {o['speed']:6.2f}x  {o['gb']:6.2f}")


def cpu_name():
    info = Path('/proc/cpuinfo')
    lines = info.read_text().splitlines() if info.exists() else []
    names = [o.split(':')[1].strip() for o in lines if o.startswith('model name')]
    return names[0] if names else platform.processor()


def facts(args):
    "A round that says what the machine, the software and the data are."
    device = torch.cuda.get_device_name(args.device) if args.device.type == 'cuda' else str(args.device)
    machine = dict(device=device, cpu=cpu_name(), cores=os.cpu_count(), threads=torch.get_num_threads(),
        precision=pick_precision('auto', args.device))
    software = dict(torch=torch.__version__, torchvision=torchvision.__version__, fastai=fastai.__version__,
        python=platform.python_version())
    known = {**machine, **software, 'data': cifar(args)[1]}
    return lambda: known


class Clock:
    "Images per second over `args.batches` batches, those before the first `SKIP` left out."
    def __init__(self, args):
        self.last, self.device = SKIP + args.batches, args.device
        self.done = self.seen = 0

    def tick(self, n):
        "Count a finished batch of `n` images; True when the round is over."
        self.done += 1
        if self.done > SKIP: self.seen += n
        if self.done in (SKIP, self.last):
            synchronize(self.device)
            if self.done == SKIP: self.start = time.perf_counter()
            else: self.rate = self.seen / (time.perf_counter() - self.start)
        return self.done >= self.last

def synchronize(device):
    if device.type == 'cuda': torch.cuda.synchronize(device)

def timed(step, batches, args):
    "Images per second of `step(x, y)`."
    clock = Clock(args)
    for x, y in batches:
        step(x, y)
        if clock.tick(len(y)): return clock.rate

def seconds(work, device):
    "A round that returns how long `work()` takes."
    def run():
        synchronize(device)
        start = time.perf_counter()
        work()
        synchronize(device)
        return time.perf_counter() - start
    return run


# Data and networks

def random_images(n):
    rng = torch.Generator().manual_seed(n)
    pixels = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=rng)
    return ImageData(pixels, torch.arange(n) % 10, range(10), 'random')

def load_cifar(root):
    "CIFAR-10 from the official files or a folder of pictures, else random pixels; and what it is."
    for source in (cifar10, image_folder):
        try: return source(root, download=False), f'CIFAR-10 in {root}'
        except DataNotFound: pass
    sets = ImageSets(random_images(50_000), random_images(10_000), STATISTICS['cifar10'])
    return sets, f'random pixels in the shape of CIFAR-10 (there is none in {root})'

def cifar(args, images=None):
    "CIFAR-10, the first `images` of both sets; and what it is."
    def some(data): return data.subset(range(min(images, len(data)))) if images else data
    sets, what = load_cifar(args.root)
    return ImageSets(some(sets.train), some(sets.test), sets.statistics), what

def networks(args, depth, m=1):
    "A student and its `m` teachers."
    nets = [build_classifier('preresnet', 10, depth=depth, seed=i).to(args.device) for i in range(m + 1)]
    return nets[0], [o.eval() for o in nets[1:]]

def kd_loss(z_t, z_s, tau=4.):
    p_t, log_p_s = F.softmax(z_t.float() / tau, 1), F.log_softmax(z_s.float() / tau, 1)
    return -tau**2 * (p_t * log_p_s).sum(1).mean()


# (a) Plain PyTorch

class PerImage(torch.utils.data.Dataset):
    "The usual way: a picture at a time, through torchvision's transforms."
    def __init__(self, data, norm, augment=True):
        self.images = data.images.permute(0, 2, 3, 1).contiguous().numpy()
        self.targets = data.targets.tolist()
        moved = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()] if augment else []
        normalize = transforms.Normalize(*(o.flatten().tolist() for o in norm))
        self.transform = transforms.Compose([*moved, transforms.ToTensor(), normalize])

    def __len__(self): return len(self.targets)
    def __getitem__(self, i): return self.transform(Image.fromarray(self.images[i])), self.targets[i]

def torch_loader(args, data, workers, train=True):
    data = PerImage(data, normalizer('unitcube', STATISTICS['cifar10']), train)
    # as in a script; a contender, itself spawned, would spawn workers, each with a copy of the data
    fork = dict(multiprocessing_context='fork') if workers and sys.platform == 'linux' else {}
    return torch.utils.data.DataLoader(data, args.batch, shuffle=train, num_workers=workers,
        persistent_workers=workers > 0, pin_memory=args.device.type == 'cuda', **fork)

def to(device, *tensors): return [o.to(device, non_blocking=True) for o in tensors]

def sgd(net, lr=.05, wd=1e-4, **options):
    return torch.optim.SGD(net.parameters(), lr=lr, momentum=.9, weight_decay=wd, nesterov=True, **options)

def plain_step(args, student, teacher):
    "A training step in fp32, as one writes it by hand."
    opt = sgd(student)
    def step(x, y):
        x, y = to(args.device, x, y)
        with torch.no_grad(): z_t = teacher(x)
        loss = kd_loss(z_t, student(x))
        opt.zero_grad()
        loss.backward()
        opt.step()
    return step

def plain(args, depth):
    "Steps of the plain loop, with its loader."
    student, (teacher,) = networks(args, depth)
    step, loader = plain_step(args, student, teacher), torch_loader(args, cifar(args)[0].train, args.workers)
    return lambda: timed(step, chain.from_iterable(repeat(loader)), args)

def plain_epoch(args, depth):
    "An epoch of the plain loop; evaluation fetches each number of each batch."
    student, (teacher,) = networks(args, depth)
    sets, step = cifar(args, args.images)[0], plain_step(args, student, teacher)
    test_data = ImageData(sets.test.images[:10_000], sets.test.targets[:10_000], sets.test.classes)
    train = torch_loader(args, sets.train, args.workers)
    test = torch_loader(args, test_data, args.workers, False)
    def evaluate(x, y):
        x, y = to(args.device, x, y)
        z_t, z_s = teacher(x), student(x)
        for metric in (accuracy, nll, ece): metric(z_s, y)  # each ends in `.item()`
        for metric in (agreement, predictive_kl): metric(z_t, z_s)
    def epoch():
        student.train()
        for x, y in train: step(x, y)
        student.eval()
        with torch.no_grad():
            for x, y in test: evaluate(x, y)
    return seconds(epoch, args.device)


# (b) gnosis_nb

class Begin(Callback):
    "Notes when the training of an epoch begins; the last callback to see it."
    order = 10**6
    def __init__(self, epoch, device): self.which, self.device = epoch, device
    def before_train(self):
        if self.epoch != self.which: return
        synchronize(self.device)
        self.start = time.perf_counter()

class End(Callback):
    "Notes when that training ends, or that of a later epoch, then leaves the fit; the first to see it."
    order = -10**6
    def __init__(self, begin, epoch=None): self.begin, self.which = begin, epoch or begin.which
    def after_train(self):
        if self.epoch != self.which: return
        synchronize(self.begin.device)
        self.end = time.perf_counter()
        raise CancelFitException()

class NoEvaluation(Callback):
    def before_validate(self): raise CancelValidException()

def report_nowhere(learn, table):
    "Progress as a run prints it, in the place of fastai's."
    learn.remove_cbs([ProgressCallback, Recorder])
    learn.add_cb(PrintProgress(table=table, out=open(os.devnull, 'w')))
    return learn

def learner(args, depth, sets, m=1, eval_period=1, **kwargs):
    "A student's Learner with the callbacks of a run."
    student, teachers = networks(args, depth, m)
    table, ensemble = FidelityTable(eval_period), ClassifierEnsemble(*teachers).eval()
    learn = student_learner(loaders(args, sets), student, ensemble, metrics=[], cbs=table, **kwargs)
    return report_nowhere(learn, table)

def loaders(args, sets):
    rows = evaluation_rows(sets, args.device)
    return image_dls(sets, args.batch, augmentation(), eval_bs=rows, device=args.device)

def watched_fit(args, learn, epochs=3, watched=1):
    """Training rows per second of an epoch of a fit, which then ends.

    The second shows what all later ones are like: all that can be is recorded, answers are known."""
    begin = Begin(watched, args.device)
    end, rows = End(begin), learn.dls.train.n
    def run():
        with learn.added_cbs([begin, end]): learn.fit(epochs)
        return rows / (end.end - begin.start)
    return run

def ours(args, depth, m=1, precision='auto', long=False):
    "Training batches of a fit, as in a run, or in a long one, in which compiling pays."
    learn = learner(args, depth, cifar(args, args.batches * args.batch)[0], m, 10**9, precision=precision)
    return watched_fit(args, learn, 300 if long else 3)

def our_epoch(args, depth):
    learn = learner(args, depth, cifar(args, args.images)[0])
    return seconds(lambda: learn.fit(1), args.device)


# (c) The bare step, on one batch that is where it has to be

def bare(args, depth, precision, how, channels_last=True):
    """Forward, loss, backward, optimiser.

    `how` is 'eager', 'kept' (memory, as `keep_memory` does), 'compiled' or 'graph'."""
    if how == 'kept': keep_memory()
    torch.backends.cudnn.benchmark = True
    layout = torch.channels_last if channels_last else torch.contiguous_format
    student, (teacher,) = networks(args, depth)
    student, teacher = (o.to(memory_format=layout) for o in (student, teacher))
    x, y = next(iter(torch_loader(args, cifar(args)[0].train, 0)))
    x, y = x.to(args.device, memory_format=layout), y.to(args.device)
    opt = sgd(student, torch.tensor(.05, device=args.device), fused=True) if how == 'graph' else sgd(student)
    def loss(x):
        with autocast(args.device, precision):
            with torch.no_grad(): z_t = teacher(x)
            return kd_loss(z_t, student(x))
    run = torch.compile(loss, dynamic=False) if how == 'compiled' else loss
    def step(x, y):
        opt.zero_grad()
        value = run(x)
        value.backward()
        opt.step()
        opt.zero_grad()
        return value.detach(),
    whole = Captured(step, device=args.device) if how == 'graph' else step
    return partial(timed, whole, repeat((x, y)), args)


# What is measured

def bare_variants(args, precisions):
    "Arguments of `bare`, by the name of the contender."
    cuda = args.device.type == 'cuda'
    hows = dict(eager='eager', graph='graph') if cuda else dict(eager='eager', kept='eager, memory kept')
    if args.compile: hows['compiled'] = 'compiled'
    found = {}
    for p in precisions:
        for how, words in hows.items(): found[f'bare step, {p}, {words}'] = dict(precision=p, how=how)
    last = dict(precision='fp32', how='graph', channels_last=False)
    if cuda: found['bare step, fp32, graph, not channels_last'] = last
    return found

def step(args, facts):
    "Training steps of a student with one teacher."
    auto = facts['precision']
    loop, b = f'plain PyTorch, fp32, {args.workers} workers', f'gnosis_nb, {auto}'
    # a GPU compiles only very long trainings: half a minute
    b300 = f'{b}, as in 300 epochs' if args.compile or args.device.type == 'cpu' else None
    b32 = 'gnosis_nb, fp32'
    variants = bare_variants(args, dict.fromkeys((auto, 'fp32')))
    def bares(p): return [name for name, o in variants.items() if o['precision'] == p]
    compare = [('gnosis_nb / plain PyTorch', b, [loop]), ('gnosis_nb / best bare step', b, bares(auto))]
    if b300: compare.append(('the same in a long run', b300, [loop]))
    if auto != 'fp32': compare.append(('gnosis_nb / best bare step, fp32', b32, bares('fp32')))
    for depth in args.depth:
        fit = partial(ours, depth=depth)
        makers = {loop: partial(plain, depth=depth), b: fit, b32: partial(fit, precision='fp32')}
        if b300: makers[b300] = partial(fit, long=True)
        for name, o in variants.items(): makers[name] = partial(bare, depth=depth, **o)
        title = f'PreResNet-{depth}, one teacher, {args.batches} batches of {args.batch} a round'
        yield contest(args, title, makers, compare=compare)


def epoch(args, facts):
    "One epoch of training and an evaluation."
    for depth in args.depth:
        title = (f'PreResNet-{depth}, one teacher: an epoch of {args.images:,} images, and accuracy, NLL, '
                 f'ECE, agreement and KL of the first {min(args.images, 10_000):,} test images')
        makers = {f'plain PyTorch, fp32, {args.workers} workers': partial(plain_epoch, depth=depth),
            f"gnosis_nb, {facts['precision']}, CKA too": partial(our_epoch, depth=depth)}
        yield contest(args, title, makers, 's')


def ask(args, depth, m, how):
    """Milliseconds in which `m` teachers answer a batch.

    `how` is 'fp32', 'autocast', 'frozen' or 'compiled'."""
    precision, (_, teachers) = pick_precision('auto', args.device), networks(args, depth, m)
    x = torch.randn(args.batch, 3, 32, 32).to(args.device)
    if how != 'fp32' and pick_channels_last('auto', args.device):
        x, *teachers = (o.to(memory_format=torch.channels_last) for o in (x, *teachers))
    used = 'fp32' if how == 'fp32' else precision
    def each(x):
        with torch.no_grad(), autocast(args.device, used): return [o(x) for o in teachers]
    answer = each
    if how in ('frozen', 'compiled'):
        answer = Frozen(ClassifierEnsemble(*teachers).eval(), precision, how == 'compiled')
    batches = repeat((x, range(args.batch)))
    return lambda: 1000 * args.batch / timed(lambda x, y: answer(x), batches, args)


def ensemble(args, facts):
    "Teachers' answers, and steps of their student."
    auto = facts['precision']
    names = dict(fp32='one by one, fp32', autocast=f'one by one, {auto}', frozen=f'frozen, {auto}',
        compiled=f'frozen, {auto}, compiled')
    for depth in args.depth:
        for m, teachers in {1: '1 teacher', 5: '5 teachers'}.items():
            title = f'PreResNet-{depth}: answers of {teachers}, batches of {args.batch}'
            makers = {name: partial(ask, depth=depth, m=m, how=how) for how, name in names.items()}
            yield contest(args, title, makers, 'ms')
        makers = {f'gnosis_nb, m={m}': partial(ours, depth=depth, m=m) for m in (1, 5)}
        one, five = makers
        compare = [('time of a step, m=5 to m=1', one, [five])]
        yield contest(args, f'PreResNet-{depth}: steps of a student of m teachers', makers, compare=compare)


def bare_feature_loss(args, depth, method):
    "A feature loss of given activations, those of a batch: forward, backward, and the projectors' step."
    precision, layout = pick_precision('auto', args.device), torch.contiguous_format
    if pick_channels_last('auto', args.device): layout = torch.channels_last
    keep_memory()
    student, (teacher,) = networks(args, depth)
    x = torch.randn(args.batch, 3, 32, 32).to(args.device, memory_format=layout)
    cb = FeatureDistillation(method)
    cb.prepare(student, teacher, (x[:2],))
    asked = teacher.to(memory_format=layout)
    look = watching(asked, cb.names[1], plain_tensor)
    with torch.no_grad(), autocast(args.device, precision), look as seen:
        asked(x)
        given = [seen[name] for name in cb.names[1]]
    mine = [o.clone().requires_grad_() for o in given]
    params = list(cb.projectors.to(args.device).parameters())
    rate = torch.tensor(.05, device=args.device)
    opt = torch.optim.SGD(params, rate, momentum=.9, fused=True) if params else None
    def step():
        cb.seen = dict(zip(cb.names[0], mine))
        loss = cb.compare(given)
        grads = torch.autograd.grad(loss, [*mine, *params])
        for p, g in zip(params, grads[len(mine):]): p.grad = g
        if opt: opt.step()
        return loss.detach(),
    run = Captured(step, device=args.device) if args.device.type == 'cuda' else step
    for _ in range(SKIP): run()
    def work():
        start = work_time(args.device)
        for _ in range(args.batches): run()
        return (work_time(args.device) - start) / args.batches
    return work

def feature_step(args, depth, method=None):
    "A round: seconds of a step of the second epoch of a fit, with a loss of features if there is a method."
    options = dict(features=FeatureDistillation(method)) if method else {}
    first, last = First(), Last()
    learn = learner(args, depth, cifar(args, args.batches * args.batch)[0], 1, 10**9, **options)
    learn.add_cbs([first, last, NoEvaluation()])
    def work():
        with learn.no_logging(): learn.fit(2)
        return (first.trained - last.began) / args.batches
    return work

def features(args, facts):
    "What a loss of features adds to a step, over the time of its arithmetic alone."
    for depth in args.depth:
        work = {'logits only': feature_step(args, depth)}
        for name in FEATURE_LOSSES:
            work[f'with {name}'] = feature_step(args, depth, name)
            work[f'{name} alone'] = bare_feature_loss(args, depth, name)
        for o in work.values(): o()
        turns = [list(work), list(work)[::-1]]  # what drifts is nobody's advantage
        results = [{name: work[name]() for name in turns[i % 2]} for i in range(args.rounds)]
        rows = {}
        for name in work:
            v = [1000*o[name] for o in results]
            rows[name] = dict(median=statistics.median(v), min=min(v), max=max(v), rounds=v)
            print(f"{name:20} {rows[name]['median']:8.2f} ms  {min(v):8.2f} – {max(v):.2f}")
        ratios = {}
        for name in FEATURE_LOSSES:
            compared = f'with {name}', 'logits only', f'{name} alone'
            with_it, plain, alone = (rows[o]['rounds'] for o in compared)
            ratios[name] = dict(step=statistics.median(a / b for a, b in zip(with_it, plain)),
                added=statistics.median((a - b) / c for a, b, c in zip(with_it, plain, alone)))
            print(f"{name}: a step takes {ratios[name]['step']:.2f} times as long; "
                  f"added time / time alone: {ratios[name]['added']:.2f}")
        title = f'PreResNet-{depth}, one teacher, {args.batches} batches of {args.batch} a round'
        yield dict(title=title, unit='ms', contenders=rows, ratios=ratios)


def several(args, depth, at_once):
    "Four networks, an epoch each."
    sets, options = cifar(args, args.images)[0], dict(metrics=[], cbs=NoEvaluation())
    learners = [teacher_learner(loaders(args, sets), networks(args, depth)[0], **options) for _ in range(4)]
    for o in learners: o.remove_cbs([ProgressCallback, Recorder])
    fits = [partial(o.fit, 1) for o in learners]
    def one_by_one():
        for fit in fits: fit()
    return seconds(partial(run_together, fits, args.device) if at_once else one_by_one, args.device)


def together(args, facts):
    "Several networks trained at once."
    for depth in args.depth:
        title = f'PreResNet-{depth}: four networks trained for an epoch of {args.images:,} images each'
        ways = {'one by one': False, 'together': True}
        makers = {name: partial(several, depth=depth, at_once=o) for name, o in ways.items()}
        yield contest(args, title, makers, 's')


def table_cka(X, Y):
    "Linear CKA as its definition has it, from two n × n tables, in float64."
    def centred(X):
        K = X.double() @ X.double().T
        return K - K.mean(0) - K.mean(1, keepdim=True) + K.mean()
    K, L = centred(X), centred(Y)
    return ((K * L).sum() / ((K * K).sum() * (L * L).sum()).sqrt()).item()

def feature_shape(args):
    n = min(args.images, 10_000)
    return n, max(1, n * 4096 // 10_000)

def aligned(args, fn):
    X, Y = (torch.randn(feature_shape(args)).to(args.device) for _ in range(2))
    return seconds(lambda: fn(X, Y), args.device)


def cka(args, facts):
    "Linear CKA of two sets of features."
    n, d = feature_shape(args)
    makers = {'n x n tables': partial(aligned, fn=table_cka), 'gnosis_nb': partial(aligned, fn=linear_cka)}
    yield contest(args, f'linear CKA of features [{n:,}, {d:,}], float64', makers, 's')


def rate(loader, args, n=10**9):
    "Images per second over an epoch, or the first `n` images of it."
    seen, start = 0, time.perf_counter()
    for x, y in loader:
        seen += len(to(args.device, x, y)[1])
        if seen >= n: break
    synchronize(args.device)
    return seen / (time.perf_counter() - start)

def torch_batches(args, workers):
    return partial(rate, torch_loader(args, cifar(args)[0].train, workers), args, args.images)

def our_batches(args): return partial(rate, loaders(args, cifar(args)[0]).train, args)


def loader(args, facts):
    "The loader alone: crop, flip and normalisation."
    workers = dict.fromkeys((0, args.workers))
    makers = {f'torch DataLoader, {w} workers': partial(torch_batches, workers=w) for w in workers}
    compare = [('gnosis_nb / faster DataLoader', 'gnosis_nb ImageLoader', list(makers))]
    makers['gnosis_nb ImageLoader'] = our_batches
    yield contest(args, f'loader alone, crop and flip, batches of {args.batch}', makers, compare=compare)


# Texts

TEXT_BATCH, TEXT_WORDS = 100, 100  # as in the paper

def review_files(root, n):
    "Paths of `n` training reviews of IMDB, negative and positive in turns; none where there are no reviews."
    folders = [o/'train' for o in (root/'aclImdb', root, root.parent/'aclImdb')]
    folder = next((o for o in folders if (o/'pos').is_dir()), None)
    if folder is None: return []
    halves = [sorted((folder/c).glob('*.txt'))[:n // 2] for c in ('neg', 'pos')]
    return list(chain.from_iterable(zip(*halves)))

def reviews(args, n=5000):
    "`n` training reviews of IMDB and their labels, else synthetic ones of its length; and what they are."
    files, rng = review_files(args.text_root, n), random.Random(0)
    what = f'{len(files):,} reviews of IMDB'
    if files: texts = [o.read_text(encoding='utf-8') for o in files]
    else:
        texts = [' '.join(write_review(rng, i % 2) for _ in range(12)) for i in range(n)]
        what = f'{n:,} synthetic texts (there is no IMDB in {args.text_root})'
    return texts, [i % 2 for i in range(len(texts))], what

def text_networks(args, num_words):
    "A student and its teacher."
    options = dict(num_words=num_words, lstm_cell_size=70, depth=2)
    return [build_classifier('lstm', 2, seed=i, **options).to(args.device) for i in range(2)]

def encoded(args):
    texts, targets, _ = reviews(args)
    words = encode_texts([texts, texts[:100]])
    return text_sets(*words, [targets, targets[:100]], ['neg', 'pos'], 'benchmark', TEXT_WORDS)

def collate(number, pairs):
    "Words of a few texts, numbered and padded, their lengths, and the labels."
    cut = [basic_english(text)[:TEXT_WORDS] for text, _ in pairs]
    ids = [torch.tensor([number.get(w, 0) for w in words]) for words in cut]
    return (pad_sequence(ids), torch.tensor([len(o) for o in ids])), torch.tensor([y for _, y in pairs])

def packed_logits(net, words, lengths):
    packed = pack_padded_sequence(net.embed(words), lengths, enforce_sorted=False)  # lengths stay on the CPU
    _, (h, _) = net.lstm(packed)
    return net.linear(torch.cat([h[-2], h[-1]], 1))

def plain_texts(args, workers):
    """Steps of a loop as one writes it by hand, in fp32.

    Words are cut, numbered and padded batch by batch, sequences are packed."""
    texts, targets, _ = reviews(args)
    number = {w: i for i, w in enumerate(encode_texts([texts])[0])}
    student, teacher = text_networks(args, len(number))
    loader = torch.utils.data.DataLoader(list(zip(texts, targets)), TEXT_BATCH, shuffle=True,
        collate_fn=partial(collate, number), num_workers=workers, persistent_workers=workers > 0,
        pin_memory=args.device.type == 'cuda')
    opt = sgd(student, .01, 1e-3)
    def step(x, y):
        words, = to(args.device, x[0])
        with torch.no_grad(): z_t = packed_logits(teacher.eval(), words, x[1])
        loss = kd_loss(z_t, packed_logits(student, words, x[1]), 1.)
        opt.zero_grad()
        loss.backward()
        opt.step()
    return lambda: timed(step, chain.from_iterable(repeat(loader)), args)

def our_texts(args, precision, remembered):
    """Training batches of a fit, as in a run.

    With `remembered` those of the second epoch: the teacher has answered for all texts."""
    sets = encoded(args)
    sets = TextSets(sets.train.subset(range(min(len(sets.train), args.batches * TEXT_BATCH))), sets.test)
    student, teacher = text_networks(args, len(sets.words))
    table, dls = FidelityTable(10**9), text_dls(sets, TEXT_BATCH, device=args.device)
    learn = student_learner(dls, student, teacher, temp=1., lr=.01, wd=1e-3, precision=precision, metrics=[],
        cbs=[table, NoEvaluation()])
    return watched_fit(args, report_nowhere(learn, table), watched=int(remembered))


def text(args, facts):
    "Training steps of an LSTM with one teacher."
    auto, makers = 'fp32' if args.device.type == 'cuda' else facts['precision'], {}  # LSTMs of a GPU
    for w in dict.fromkeys((0, args.workers)):
        makers[f'plain PyTorch, fp32, {w} workers'] = partial(plain_texts, workers=w)
    plains = list(makers)
    for p in dict.fromkeys(('fp32', auto)):
        makers[f'gnosis_nb, {p}'] = partial(our_texts, precision=p, remembered=False)
        makers[f'gnosis_nb, {p}, answers remembered'] = partial(our_texts, precision=p, remembered=True)
    compare = [('gnosis_nb / faster plain loop, first epoch', f'gnosis_nb, {auto}', plains),
        ('the same from the second epoch on', f'gnosis_nb, {auto}, answers remembered', plains),
        ('in fp32, first epoch', 'gnosis_nb, fp32', plains),
        ('in fp32, from the second epoch on', 'gnosis_nb, fp32, answers remembered', plains)]
    title = (f'{reviews(args)[2]}, {TEXT_WORDS} words at most, LSTM of two layers of 70 both ways, '
             f'{args.batches} batches of {TEXT_BATCH} a round')
    yield contest(args, title, makers, 'texts/s', compare)


# What is not arithmetic

class Nothing:
    "A recording whose replay does nothing; inputs and outputs are copied as they are on CUDA."
    def __init__(self, fn, inputs, **options):
        self.inputs = [o.clone() for o in inputs]
        self.outputs = fn(*self.inputs)

    def __call__(self, *inputs):
        for mine, new in zip(self.inputs, inputs): mine.copy_(new)
        return tuple(o.clone() for o in self.outputs)

class Times(Callback):
    "CPU time of each epoch's training."
    order = 10_000
    def before_fit(self): self.epochs = []
    def before_train(self): self.start = time.process_time()
    def after_train(self): self.epochs.append(time.process_time() - self.start)

def tiny_learner(kind, policy='baseline'):
    "A Learner of 400 batches of 128 tiny images, whose replays do nothing, and the times of its epochs."
    data = [ImageData(o.images[:, :, :8, :8].contiguous(), o.targets, o.classes, 'random')
        for o in (random_images(51_200), random_images(256))]
    sets, times, table = ImageSets(*data, STATISTICS['cifar10']), Times(), FidelityTable(10**9)
    def net(): return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 10))
    options = dict(metrics=[], cbs=[table, times], precision='fp32')
    if kind == 'teacher':
        learn = teacher_learner(image_dls(sets, 128, augmentation(), device='cpu'), net(), **options)
    else:
        dls = DistillBlock(policy_blocks(policy)).dataloaders(sets, bs=128, device='cpu')
        learn = student_learner(dls, net(), net().eval(), **options)
    learn.step_engine.record = Nothing
    return report_nowhere(learn, table), times

def microseconds(args, kind, batches=False, **options):
    "A round: the CPU time of a batch, the median of three epochs."
    torch.set_num_threads(1)
    learn, times = tiny_learner(kind, **options)
    if batches: learn.remove_cb(EpochProgram)
    def run():
        with learn.no_logging(): learn.fit(4)
        return 1e6 * statistics.median(times.epochs[1:]) / 400
    return run


def overhead(args, facts):
    "Python's time for a batch: tiny images, one core, recordings whose replays do nothing."
    kinds = {'student, program': {}, 'student, batch by batch': dict(batches=True),
        'student of comb_aug, program': dict(policy='comb_aug')}
    makers = {k: partial(microseconds, kind='student', **v) for k, v in kinds.items()}
    makers['teacher, program'] = partial(microseconds, kind='teacher')
    makers['teacher, batch by batch'] = partial(microseconds, kind='teacher', batches=True)
    yield contest(args, "CPU time of a batch that does not compute", makers, 'µs')


# fastai's callbacks

def fastai_callbacks(args, folder):
    "Name -> function that makes callbacks of fastai."
    board = dict(log_dir=folder, trace_model=False, log_preds=False)
    found = {
        'alone': Callback,  # does nothing
        'GradientClip': lambda: GradientClip(1.),
        'GradientAccumulation, 2 batches': lambda: GradientAccumulation(2*args.batch),
        'MixUp': MixUp,
        'CutMix': CutMix,
        'one cycle (ParamScheduler)': Callback,
        'TensorBoardCallback': lambda: TensorBoardCallback(**board),
        'CSVLogger': CSVLogger,
        'ShowGraphCallback': ShowGraphCallback,
        'SaveModelCallback, every epoch': lambda: SaveModelCallback(every_epoch=True),
        'EarlyStoppingCallback': lambda: EarlyStoppingCallback(patience=10**6),
        'ReduceLROnPlateau': ReduceLROnPlateau}
    if args.device.type == 'cuda': found['MixedPrecision'] = MixedPrecision  # elsewhere it does nothing
    return {**found, 'alone, again': Callback}  # how sure is a ratio?

def work_time(device):
    "Seconds that this process has worked: on a CPU whatever else the machine does."
    synchronize(device)
    return time.perf_counter() if device.type == 'cuda' else time.process_time()

class First(Callback):
    "Notes when an epoch begins, and when its training ends; the first callback to see it."
    order = -10**6
    def before_epoch(self): self.began = work_time(self.dls.device)
    def after_train(self): self.trained = work_time(self.dls.device)

class Last(Callback):
    "Notes when an epoch's training begins, who makes its steps, and when the epoch ends; the last to see it."
    order = 10**6
    def before_train(self):
        whole, own = self.learn.epoch_program.active, self.learn.step_engine.own
        self.steps = 'whole epochs' if whole else 'batch by batch' if own else "fastai's"
        self.began = work_time(self.dls.device)
    def after_epoch(self): self.ended = work_time(self.dls.device)

def callback_round(args, depth, name, make, folder):
    "A round: seconds of training and of all of the second epoch of a fit, and who makes its steps."
    student, teachers = networks(args, depth)
    first, last = First(), Last()
    dls = loaders(args, cifar(args, args.batches * args.batch)[0])
    learn = student_learner(dls, student, teachers, path=folder, cbs=[make(), first, last])
    fit = partial(learn.fit_one_cycle, 2, .05) if name.startswith('one cycle') else partial(learn.fit, 2)
    def run():
        with open(os.devnull, 'w') as nowhere, redirect_stdout(nowhere): fit()
        return first.trained - last.began, last.ended - first.began, last.steps
    return run

def callback_table(title, rounds, n):
    "Print and return the table of rounds of `n` images: (seconds, seconds of the epoch, who steps)."
    alone = list(zip(rounds['alone'], rounds['alone, again']))
    def speed(name, part):
        return statistics.median((a[part] + b[part]) / 2 / o[part] for (a, b), o in zip(alone, rounds[name]))
    print(f"\n{title}\n{'':32}  {'images/s':>10}  {'speed':>7}  {'of the epoch':>12}  steps")
    rows = {}
    for name, mine in rounds.items():
        rates = [n / o[0] for o in mine]
        row = rows[name] = dict(
            median=statistics.median(rates), min=min(rates), max=max(rates), speed=speed(name, 0),
            epoch=speed(name, 1), steps=mine[0][2], rounds=mine)
        shown = f"{row['median']:10,.0f}  {row['speed']:6.2f}x  {row['epoch']:11.2f}x  {row['steps']}"
        print(f'{name:32}  {shown}')
    return dict(title=title, unit='images/s', contenders=rows, ratios={})

def callbacks(args, facts):
    "A student's training, and its epochs with their evaluation, under each of fastai's callbacks."
    for depth in args.depth:
        title = f'PreResNet-{depth}, one teacher, an epoch of {args.batches} batches of {args.batch}'
        with tempfile.TemporaryDirectory() as folder:
            fits = {name: callback_round(args, depth, name, make, folder)
                for name, make in fastai_callbacks(args, folder).items()}
            for fit in fits.values(): fit()
            turns = [list(fits), list(fits)[::-1]]  # what drifts is nobody's advantage
            results = [{name: fits[name]() for name in turns[i % 2]} for i in range(args.rounds)]
        rounds = {name: [o[name] for o in results] for name in fits}
        yield callback_table(title, rounds, args.batches * args.batch)


JOB = """
import json, sys, time
begin = time.perf_counter()
from gnosis_nb.cli import compose, run_command
cfg = compose(sys.argv[1:])
spent = {'settings': time.perf_counter() - begin}
from gnosis_nb import experiment
spent['imports'] = time.perf_counter() - begin - spent['settings']
def timed(part, name):
    fn = getattr(experiment, name)
    def run(*args, **kwargs):
        start = time.perf_counter()
        try: return fn(*args, **kwargs)
        finally: spent[part] = spent.get(part, 0) + time.perf_counter() - start
    setattr(experiment, name, run)
timed('data', 'load_inputs')
timed('teacher', 'complete_teachers')
timed('student', 'fit')
for name in ('collect_predictions', 'write_report', 'write_statistics'): timed('report', name)
run_command('image_classification', cfg, say=lambda o: None)
spent['whole run'] = time.perf_counter() - begin
print(json.dumps(spent))
"""

def job(args, facts):
    "A small run from its start to its report: ResNet-8, digits, a teacher and a student of 5 epochs each."
    found = []
    for _ in range(args.rounds):
        with tempfile.TemporaryDirectory() as tmp:
            settings = ['+experiment=digits', '+recipe=student', 'trainer.num_epochs=5', f'data_dir={tmp}',
                f'device={args.device}']
            start = time.perf_counter()
            out = subprocess.run([sys.executable, '-c', JOB, *settings], stdout=subprocess.PIPE, check=True)
            found.append(json.loads(out.stdout.splitlines()[-1]))
            found[-1]['with the interpreter'] = time.perf_counter() - start
    rows = {}
    for part in found[0]:
        v = [o[part] for o in found]
        rows[part] = dict(median=statistics.median(v), min=min(v), max=max(v), rounds=v)
        print(f"{part:20} {rows[part]['median']:7.2f} s  {min(v):6.2f} – {max(v):.2f}")
    yield dict(title=job.__doc__, unit='s', contenders=rows, ratios={})


def random_logits(n=10_000, classes=100):
    "Logits of two models and a teacher with three members, which have much in common, and labels."
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(0))
    y = torch.arange(n) % classes
    base = 1.5*draw(n, classes) + 4.5*F.one_hot(y, classes)
    return *(base + draw(n, classes) for _ in range(2)), base[:, None] + draw(n, 3, classes), y

def table(args, facts):
    "What a run knows of a student: statistics of 10,000 examples of 100 classes, 2,000 resamples."
    z_s, z_i, z_t, y = random_logits()
    parts = {
        'fidelity_statistics': lambda: fidelity_statistics(z_s, z_t, y),
        'compare_students': lambda: compare_students(z_s, z_i, z_t, y),
        'write_statement': lambda: write_statement(z_s, z_t, y, z_i)}
    rows = {}
    for name, work in parts.items():
        v = []
        for _ in range(args.rounds):
            start = time.process_time()
            work()
            v.append(time.process_time() - start)
        rows[name] = dict(median=statistics.median(v), min=min(v), max=max(v), rounds=v)
        print(f"{name:20} {rows[name]['median']:7.2f} s of a CPU  {min(v):6.2f} – {max(v):.2f}")
    yield dict(title=table.__doc__, unit='s', contenders=rows, ratios={})


WHAT = {o.__name__: o for o in (
    loader, step, epoch, ensemble, features, cka, together, text, overhead, callbacks, job, table)}

def positive(text):
    n = int(text)
    if n < 1: raise ValueError(text)
    return n

def parse_args():
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    subjects = ', '.join(f'{k}: {o.__doc__}' for k, o in WHAT.items())
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0], epilog=subjects)
    add = parser.add_argument
    add('what', nargs='+', choices=[*WHAT, 'all'])
    add('--root', type=Path, default=Path('data/datasets/cifar10'), help='folder of CIFAR-10')
    add('--text-root', type=Path, default=Path('data/datasets/imdb'),
        help='folder of IMDB, with aclImdb in it or beside it')
    add('--device', type=torch.device, default=device)
    add('--depth', type=positive, nargs='+', default=[20, 56], help='of the networks')
    add('--batch', type=positive, default=128, help='rows in a batch')
    add('--batches', type=positive,
        help='batches a round of step and ensemble (default: 200 on CUDA, else 10)')
    add('--images', type=positive,
        help='images of an epoch and for the per-image loaders (default: 50,000 on CUDA, else 10,000)')
    add('--rounds', type=positive, default=5, help='rounds that count')
    add('--workers', type=positive, default=2, help="of the plain loop's DataLoader")
    add('--compile', action='store_true', help='compile the bare step, too (a minute)')
    add('--patience', type=float, default=900., help='seconds in which a contender has to be warm')
    add('--json', type=Path, help='file for everything, each round included')
    args = parser.parse_args()
    batches, images = (200, 50_000) if args.device.type == 'cuda' else (10, 10_000)
    args.batches, args.images = args.batches or batches, args.images or images
    return args

def look(args):
    "The facts, found in another process: peak memory begins with that of the parent, which loads no data."
    probe = Contender('facts', facts, args)
    try: return probe.round()[0]
    finally: probe.stop()

def main():
    args = parse_args()
    known, tables = look(args), {}
    machine = f"{known['device']}, {known['cpu']}, {known['cores']} cores, {known['threads']} threads"
    versions = ', '.join(f'{k} {known[k]}' for k in ('torch', 'torchvision', 'fastai'))
    for what in WHAT if 'all' in args.what else dict.fromkeys(args.what):
        data = '' if what == 'text' else f"{known['data']}, "
        print(f'\n{what}: {WHAT[what].__doc__}\n{machine}\n{versions}\n{data}median of {args.rounds} rounds')
        tables[what] = list(WHAT[what](args, known))
    if args.json is None: return
    given = {k: str(v) if isinstance(v, (Path, torch.device)) else v for k, v in vars(args).items()}
    args.json.write_text(json.dumps(dict(facts=known, args=given, tables=tables), indent=1))

if __name__ == '__main__': main()
