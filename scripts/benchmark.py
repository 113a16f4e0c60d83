"""How fast gnosis_nb is on the machine at hand, beside plain PyTorch: `python scripts/benchmark.py step`.

Every contender lives in a process of its own, which is warmed up by one round and then does a round when told to; they alternate, and one runs at a time.
A ratio is the median of the rounds' ratios. Peak memory is the contender's process's (without the workers of its DataLoader), on a GPU torch's."""
import argparse
import json
import multiprocessing
import os
import platform
import random
import statistics
import sys
import time
from functools import partial
from itertools import chain, repeat
from pathlib import Path

import fastai
import torch
import torch.nn.functional as F
import torchvision
from fastai.callback.core import Callback, CancelFitException, CancelValidException
from fastai.callback.progress import ProgressCallback
from fastai.learner import Recorder
from PIL import Image
from torchvision import transforms

from gnosis_nb.cka import linear_cka
from gnosis_nb.data.augment import augmentation
from gnosis_nb.data.folder import DataNotFound, image_folder
from gnosis_nb.data.images import ImageData, ImageSets, normalizer
from gnosis_nb.data.loaders import ImageLoader, image_dls
from gnosis_nb.data.text import TextSets, text_dls, text_sets, write_review
from gnosis_nb.data.words import basic_english, encode_texts
from gnosis_nb.data.zoo import STATISTICS, cifar10
from gnosis_nb.distill import FidelityTable, PrintProgress
from gnosis_nb.engine import Captured, fit_together, frozen, keep_memory, peak_memory, pick_channels_last, pick_precision
from gnosis_nb.experiment import evaluation_rows
from gnosis_nb.learner import student_learner, teacher_learner
from gnosis_nb.metrics import accuracy, agreement, ece, nll, predictive_kl
from gnosis_nb.models import ClassifierEnsemble, build_classifier

SKIP = 5                                                                     # batches before the clock starts: a step is captured at the fourth


# Frame

class Contender:
    "A process of its own, which does a round when told to."
    def __init__(self, name, make, args):
        self.name, (self.pipe, theirs) = name, multiprocessing.get_context('spawn').Pipe()
        self.process = multiprocessing.get_context('spawn').Process(target=live, args=(theirs, make, args))
        self.process.start()
        theirs.close()

    def round(self):
        "What the round returns, and the peak memory so far."
        try: self.pipe.send(True); return self.pipe.recv()
        except (EOFError, OSError): sys.exit(f"{self.name}: failed, its error is above")

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
    except EOFError: pass                                                    # the parent is gone


def contest(args, title, makers, unit='images/s', compare=()): # name -> function of args that makes a round; (label, above, belows) of ratios of speeds
    "Rounds of all contenders in turns; prints their table and returns it. The first is what the others are compared with."
    contenders = [Contender(name, make, args) for name, make in makers.items()]
    try:
        for o in contenders: o.round()
        rounds = [[o.round() for o in contenders] for _ in range(args.rounds)]
    finally:
        for o in contenders: o.stop()
    values = {o.name: [r[0] for r in results] for o, results in zip(contenders, zip(*rounds))}
    is_rate = unit.endswith('/s')
    speed = {k: v if is_rate else [1 / o for o in v] for k, v in values.items()}
    def ratio(a, b): return statistics.median(x / y for x, y in zip(speed[a], speed[b]))
    first, width = next(iter(makers)), max(map(len, makers))
    rows = {k: dict(median=statistics.median(v), min=min(v), max=max(v), speed=ratio(k, first), gb=gb, rounds=v) for (k, v), (_, gb) in zip(values.items(), rounds[-1])}
    print(f"\n{title}\n{'':{width}}  {'median ' + unit:>16}  {'min – max':>21}  {'speed':>7}  {'GB':>6}")
    for k, o in rows.items():
        spread = f"{o['min']:,.4g} – {o['max']:,.4g}" if not is_rate else f"{o['min']:,.0f} – {o['max']:,.0f}"
        print(f"{k:{width}}  {o['median']:16{',.0f' if is_rate else ',.4g'}}  {spread:>21}  {o['speed']:6.2f}x  {o['gb']:6.2f}")
    ratios = {}
    for label, above, belows in compare:
        best = max(belows, key=lambda o: statistics.median(speed[o]))
        ratios[label] = dict(above=above, below=best, ratio=ratio(above, best))
        print(f"{label}: {ratios[label]['ratio']:.2f} ({above} / {best})")
    sys.stdout.flush()
    return dict(title=title, unit=unit, contenders=rows, ratios=ratios)


def facts(args):
    "A round that says what the machine, the software and the data are."
    cpu = next((o.split(':')[1].strip() for o in open('/proc/cpuinfo') if o.startswith('model name')), '') if Path('/proc/cpuinfo').exists() else ''
    device = torch.cuda.get_device_name(args.device) if args.device.type == 'cuda' else str(args.device)
    res = dict(device=device, cpu=cpu or platform.processor(), cores=os.cpu_count(), threads=torch.get_num_threads(), precision=pick_precision('auto', args.device),
               torch=torch.__version__, torchvision=torchvision.__version__, fastai=fastai.__version__, python=platform.python_version(), data=cifar(args)[1])
    return lambda: res


class Clock:
    "Images per second over `args.batches` batches, those before the first `SKIP` left out."
    def __init__(self, args): self.last, self.device, self.done, self.seen = SKIP + args.batches, args.device, 0, 0
    def tick(self, n): # images of the batch that is finished
        "True when the round is over."
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

def cifar(args, images=None):
    "CIFAR-10 from the official files or a folder of pictures, else random pixels, the first `images` of both sets; and what it is."
    def some(data): return data.subset(range(min(images, len(data)))) if images else data
    for source in (cifar10, image_folder):
        try: sets, what = source(args.root, download=False), f'CIFAR-10 in {args.root}'; break
        except DataNotFound: pass
    else:
        def random(n): return ImageData(torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(n)), torch.arange(n) % 10, range(10), 'random')
        sets, what = ImageSets(random(50_000), random(10_000), STATISTICS['cifar10']), f'random pixels in the shape of CIFAR-10 (there is none in {args.root})'
    return ImageSets(some(sets.train), some(sets.test), sets.statistics), what

def networks(args, depth, m=1):
    "A student and its `m` teachers."
    student, *teachers = (build_classifier('preresnet', 10, depth=depth, seed=i).to(args.device) for i in range(m + 1))
    return student, [o.eval() for o in teachers]

def kd_loss(z_t, z_s, tau=4.): return -tau**2 * (F.softmax(z_t.float() / tau, 1) * F.log_softmax(z_s.float() / tau, 1)).sum(1).mean()


# (a) Plain PyTorch

class PerImage(torch.utils.data.Dataset):
    "The usual way: a picture at a time, through torchvision's transforms."
    def __init__(self, data, norm, augment=True):
        self.images, self.targets = data.images.permute(0, 2, 3, 1).contiguous().numpy(), data.targets.tolist()
        self.transform = transforms.Compose([*([transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()] if augment else []), transforms.ToTensor(),
                                             transforms.Normalize(*(o.flatten().tolist() for o in norm))])
    def __len__(self): return len(self.targets)
    def __getitem__(self, i): return self.transform(Image.fromarray(self.images[i])), self.targets[i]

def torch_loader(args, data, workers, train=True):
    return torch.utils.data.DataLoader(PerImage(data, normalizer('unitcube', STATISTICS['cifar10']), train), args.batch, shuffle=train, num_workers=workers,
                                       persistent_workers=workers > 0, pin_memory=args.device.type == 'cuda')

def to(device, *tensors): return [o.to(device, non_blocking=True) for o in tensors]

def plain_step(args, student, teacher):
    "A training step in fp32, as one writes it by hand."
    opt = torch.optim.SGD(student.parameters(), lr=.05, momentum=.9, weight_decay=1e-4, nesterov=True)
    def step(x, y):
        x, y = to(args.device, x, y)
        with torch.no_grad(): z_t = teacher(x)
        loss = kd_loss(z_t, student(x))
        opt.zero_grad(); loss.backward(); opt.step()
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
    train, test = torch_loader(args, sets.train, args.workers), torch_loader(args, ImageData(sets.test.images[:10_000], sets.test.targets[:10_000], sets.test.classes), args.workers, False)
    def epoch():
        student.train()
        for x, y in train: step(x, y)
        student.eval()
        with torch.no_grad():
            for x, y in test:
                x, y = to(args.device, x, y)
                z_t, z_s = teacher(x), student(x)
                accuracy(z_s, y), nll(z_s, y), ece(z_s, y), agreement(z_t, z_s), predictive_kl(z_t, z_s)     # each ends in `.item()`
    return seconds(epoch, args.device)


# (b) gnosis_nb

class Stopwatch(Callback):
    "Time the training batches of a fit, then leave it."
    order = 2000                                                             # after the step
    def __init__(self, args): self.args = args
    def before_fit(self): self.clock = Clock(self.args)
    def after_batch(self):
        if self.clock.tick(len(self.yb[0])): raise CancelFitException()

class NoEvaluation(Callback):
    def before_validate(self): raise CancelValidException()

def learner(args, depth, sets, m=1, eval_period=1, **kwargs):
    "A student's Learner with the callbacks of a run."
    student, teachers = networks(args, depth, m)
    table = FidelityTable(eval_period)
    learn = student_learner(loaders(args, sets), student, ClassifierEnsemble(*teachers).eval(), metrics=[], cbs=table, **kwargs)
    learn.remove_cbs([ProgressCallback, Recorder])
    learn.add_cb(PrintProgress(table=table, out=open(os.devnull, 'w')))
    return learn

def loaders(args, sets): return image_dls(sets, args.batch, augmentation(), eval_bs=evaluation_rows(sets, args.device), device=args.device)

def ours(args, depth, m=1, precision='auto', long=False):
    "Training batches of a fit, with everything as in a run; of a long one, in which compiling pays, the first."
    learn, watch = learner(args, depth, cifar(args)[0], m, eval_period=10**9, precision=precision), Stopwatch(args)
    epochs = 300 if long else 1 + -(-(SKIP + args.batches) // len(learn.dls.train))          # one more, the last is evaluated
    def run():
        with learn.added_cbs(watch): learn.fit(epochs)
        return watch.clock.rate
    return run

def our_epoch(args, depth):
    learn = learner(args, depth, cifar(args, args.images)[0])
    return seconds(lambda: learn.fit(1), args.device)


# (c) The bare step, on one batch that is where it has to be

def bare(args, depth, precision, how, channels_last=True): # how: 'eager', 'kept' (memory, as `keep_memory` does), 'compiled' or 'graph'
    "Forward, loss, backward, optimiser."
    if how == 'kept': keep_memory()
    torch.backends.cudnn.benchmark = True
    layout = torch.channels_last if channels_last else torch.contiguous_format
    student, (teacher,) = (o.to(memory_format=layout) if isinstance(o, torch.nn.Module) else [p.to(memory_format=layout) for p in o] for o in networks(args, depth))
    x, y = next(iter(torch_loader(args, cifar(args)[0].train, 0)))
    x, y = x.to(args.device, memory_format=layout), y.to(args.device)
    options = dict(lr=torch.tensor(.05, device=args.device), fused=True) if how == 'graph' else dict(lr=.05)
    opt = torch.optim.SGD(student.parameters(), momentum=.9, weight_decay=1e-4, nesterov=True, **options)
    def loss(x):
        with torch.autocast(args.device.type, torch.bfloat16, enabled=precision == 'bf16'):
            with torch.no_grad(): z_t = teacher(x)
            return kd_loss(z_t, student(x))
    run = torch.compile(loss, dynamic=False) if how == 'compiled' else loss
    def step(x, y):
        opt.zero_grad()
        res = run(x); res.backward()
        opt.step(); opt.zero_grad()
        return res.detach(),
    return partial(timed, Captured(step) if how == 'graph' else step, repeat((x, y)), args)


# What is measured

def step(args, facts):
    "Training steps of a student with one teacher."
    auto, cuda = facts['precision'], args.device.type == 'cuda'
    a, b, b300, b32 = f'plain PyTorch, fp32, {args.workers} workers', f'gnosis_nb, {auto}', f'gnosis_nb, {auto}, as in 300 epochs', 'gnosis_nb, fp32'
    variants = [(p, how, True) for p in dict.fromkeys((auto, 'fp32'))
                for how in ('eager', *(['graph'] if cuda else ['kept']), *(['compiled'] if args.compile else []))]
    if cuda: variants.append(('fp32', 'graph', False))
    words = dict(eager='eager', kept='eager, memory kept', graph='graph', compiled='compiled')
    names = {(p, how, last): f"bare step, {p}, {words[how]}{'' if last else ', not channels_last'}" for p, how, last in variants}
    def bares(p): return [name for key, name in names.items() if key[0] == p]
    compare = [('gnosis_nb / plain PyTorch', b, [a]), ('the same in a long run', b300, [a]), ('gnosis_nb / best bare step', b, bares(auto))]
    if auto != 'fp32': compare.append(('gnosis_nb / best bare step, fp32', b32, bares('fp32')))
    for depth in args.depth:
        makers = {a: partial(plain, depth=depth), b: partial(ours, depth=depth), b300: partial(ours, depth=depth, long=True), b32: partial(ours, depth=depth, precision='fp32'),
                  **{name: partial(bare, depth=depth, precision=p, how=how, channels_last=last) for (p, how, last), name in names.items()}}
        yield contest(args, f'PreResNet-{depth}, one teacher, {args.batches} batches of {args.batch} a round', makers, compare=compare)


def epoch(args, facts):
    "One epoch of training and an evaluation."
    for depth in args.depth:
        title = f'PreResNet-{depth}, one teacher: an epoch of {args.images:,} images, and accuracy, NLL, ECE, agreement and KL of the first {min(args.images, 10_000):,} test images'
        yield contest(args, title, {f'plain PyTorch, fp32, {args.workers} workers': partial(plain_epoch, depth=depth), f"gnosis_nb, {facts['precision']}, CKA too": partial(our_epoch, depth=depth)}, 's')


def ask(args, depth, m, how): # how: 'fp32', 'autocast', 'frozen' or 'compiled'
    "Milliseconds in which `m` teachers answer a batch."
    precision, (_, teachers) = pick_precision('auto', args.device), networks(args, depth, m)
    x = torch.randn(args.batch, 3, 32, 32).to(args.device)
    if how != 'fp32' and pick_channels_last('auto', args.device, precision):
        x, teachers = x.to(memory_format=torch.channels_last), [o.to(memory_format=torch.channels_last) for o in teachers]
    fast = frozen(ClassifierEnsemble(*teachers).eval(), precision, how == 'compiled') if how in ('frozen', 'compiled') else None
    def each(x, y):
        with torch.no_grad(), torch.autocast(args.device.type, torch.bfloat16, enabled=how != 'fp32' and precision == 'bf16'): return [o(x) for o in teachers]
    answer = each if fast is None else lambda x, y: fast(x)
    return lambda: 1000 * args.batch / timed(answer, repeat((x, range(args.batch))), args)


def ensemble(args, facts):
    "Teachers' answers, and steps of their student."
    auto = facts['precision']
    names = dict(fp32='one by one, fp32', autocast=f'one by one, {auto}', frozen=f'frozen, {auto}', compiled=f'frozen, {auto}, compiled')
    for depth in args.depth:
        for m in 1, 5:
            yield contest(args, f'PreResNet-{depth}: answers of {m} teacher{"s" * (m > 1)}, batches of {args.batch}', {name: partial(ask, depth=depth, m=m, how=how) for how, name in names.items()}, 'ms')
        makers = {f'gnosis_nb, m={m}': partial(ours, depth=depth, m=m) for m in (1, 5)}
        yield contest(args, f'PreResNet-{depth}: steps of a student of m teachers', makers, compare=[('time of a step, m=5 to m=1', *[o if i == 0 else [o] for i, o in enumerate(makers)])])


def several(args, depth, at_once):
    "Four networks, an epoch each."
    sets = cifar(args, args.images)[0]
    learners = [teacher_learner(loaders(args, sets), networks(args, depth)[0], metrics=[], cbs=NoEvaluation()) for _ in range(4)]
    for o in learners: o.remove_cbs([ProgressCallback, Recorder])
    fits = [partial(o.fit, 1) for o in learners]
    def run():
        if at_once: fit_together(fits, learners)
        else:
            for fit in fits: fit()
    return seconds(run, args.device)


def together(args, facts):
    "Several networks trained at once."
    for depth in args.depth:
        yield contest(args, f'PreResNet-{depth}: four networks trained for an epoch of {args.images:,} images each', {name: partial(several, depth=depth, at_once=at_once) for name, at_once in {'one by one': False, 'together': True}.items()}, 's')


def table_cka(X, Y):
    "Linear CKA as its definition has it, from two n × n tables, in float64."
    def centred(X):
        K = X.double() @ X.double().T
        return K - K.mean(0) - K.mean(1, keepdim=True) + K.mean()
    K, L = centred(X), centred(Y)
    return ((K * L).sum() / ((K * K).sum() * (L * L).sum()).sqrt()).item()

def aligned(args, fn):
    n = min(args.images, 10_000)
    X, Y = (torch.randn(n, max(1, n * 4096 // 10_000)).to(args.device) for _ in range(2))
    return seconds(lambda: fn(X, Y), args.device)


def cka(args, facts):
    "Linear CKA of two sets of features."
    n = min(args.images, 10_000)
    yield contest(args, f'linear CKA of features [{n:,}, {max(1, n * 4096 // 10_000):,}], float64', {'n x n tables': partial(aligned, fn=table_cka), 'gnosis_nb': partial(aligned, fn=linear_cka)}, 's')


def rate(loader, args, n=10**9):
    "Images per second over an epoch, or the first `n` images of it."
    seen, start = 0, time.perf_counter()
    for x, y in loader:
        seen += len(to(args.device, x, y)[1])
        if seen >= n: break
    synchronize(args.device)
    return seen / (time.perf_counter() - start)

def torch_batches(args, workers): return partial(rate, torch_loader(args, cifar(args)[0].train, workers), args, args.images)
def our_batches(args): return partial(rate, loaders(args, cifar(args)[0]).train, args)


def loader(args, facts):
    "The loader alone: crop, flip and normalisation."
    workers = list(dict.fromkeys((0, args.workers)))
    makers = {f'torch DataLoader, {w} workers': partial(torch_batches, workers=w) for w in workers}
    compare = [('gnosis_nb / faster DataLoader', 'gnosis_nb ImageLoader', list(makers))]
    yield contest(args, f'loader alone, crop and flip, batches of {args.batch}', {**makers, 'gnosis_nb ImageLoader': our_batches}, compare=compare)


# Texts

TEXT_BATCH, TEXT_WORDS = 100, 100                                            # as in the paper

def reviews(args, n=5000):
    "`n` training reviews of IMDB and their labels, else synthetic ones of its length; and what they are."
    folder = next((p/'train' for p in (args.text_root/'aclImdb', args.text_root, args.text_root.parent/'aclImdb') if (p/'train'/'pos').is_dir()), None)
    if folder:
        files = list(chain.from_iterable(zip(*(sorted((folder/c).glob('*.txt'))[:n // 2] for c in ('neg', 'pos')))))
        return [o.read_text(encoding='utf-8') for o in files], [i % 2 for i in range(len(files))], f'{len(files):,} reviews of IMDB'
    rng = random.Random(0)
    return [' '.join(write_review(rng, i % 2) for _ in range(12)) for i in range(n)], [i % 2 for i in range(n)], f'{n:,} synthetic texts (there is no IMDB in {args.text_root})'

def text_networks(args, num_words):
    "A student and its teacher."
    return [build_classifier('lstm', 2, num_words=num_words, lstm_cell_size=70, depth=2, seed=i).to(args.device) for i in range(2)]

def encoded(args):
    texts, targets, _ = reviews(args)
    return text_sets(*encode_texts([texts, texts[:100]]), [targets, targets[:100]], ['neg', 'pos'], 'benchmark', TEXT_WORDS)

def collate(number, pairs):
    "Words of a few texts, numbered and padded, their lengths, and the labels."
    ids = [torch.tensor([number.get(w, 0) for w in basic_english(text)[:TEXT_WORDS]]) for text, _ in pairs]
    return (torch.nn.utils.rnn.pad_sequence(ids), torch.tensor([len(o) for o in ids])), torch.tensor([y for _, y in pairs])

def plain_texts(args, workers):
    "Steps of a loop as one writes it by hand: words are cut, numbered and padded batch by batch, sequences packed, in fp32."
    texts, targets, _ = reviews(args)
    number = {w: i for i, w in enumerate(encode_texts([texts])[0])}
    student, teacher = text_networks(args, len(number))
    loader = torch.utils.data.DataLoader(list(zip(texts, targets)), TEXT_BATCH, shuffle=True, collate_fn=partial(collate, number), num_workers=workers, persistent_workers=workers > 0, pin_memory=args.device.type == 'cuda')
    def logits(net, words, lengths):
        _, (h, _) = net.lstm(torch.nn.utils.rnn.pack_padded_sequence(net.embed(words), lengths, enforce_sorted=False))     # lengths stay on the CPU
        return net.linear(torch.cat([h[-2], h[-1]], 1))
    opt = torch.optim.SGD(student.parameters(), lr=.01, momentum=.9, weight_decay=1e-3, nesterov=True)
    def step(x, y):
        words, = to(args.device, x[0])
        with torch.no_grad(): z_t = logits(teacher.eval(), words, x[1])
        loss = kd_loss(z_t, logits(student, words, x[1]), 1.)
        opt.zero_grad(); loss.backward(); opt.step()
    return lambda: timed(step, chain.from_iterable(repeat(loader)), args)

def our_texts(args, precision, remembered):
    "Training batches of a fit, with everything as in a run; `remembered`: of so few texts that the teacher has answered for all before the clock starts, as from a run's second epoch on."
    sets = encoded(args)
    if remembered: sets = TextSets(sets.train.subset(range(SKIP * TEXT_BATCH)), sets.test)
    student, teacher = text_networks(args, len(sets.words))
    table, watch = FidelityTable(10**9), Stopwatch(args)
    learn = student_learner(text_dls(sets, TEXT_BATCH, device=args.device), student, teacher, temp=1., lr=.01, wd=1e-3, precision=precision, metrics=[], cbs=[table, NoEvaluation()])
    learn.remove_cbs([ProgressCallback, Recorder])
    learn.add_cb(PrintProgress(table=table, out=open(os.devnull, 'w')))
    def run():
        with learn.added_cbs(watch): learn.fit(1 + -(-(SKIP + args.batches) // len(learn.dls.train)))
        return watch.clock.rate
    return run


def text(args, facts):
    "Training steps of an LSTM with one teacher."
    auto, plains = facts['precision'], [f'plain PyTorch, fp32, {w} workers' for w in dict.fromkeys((0, args.workers))]
    makers = {**{name: partial(plain_texts, workers=w) for name, w in zip(plains, dict.fromkeys((0, args.workers)))},
              **{f"gnosis_nb, {p}{', answers remembered' if r else ''}": partial(our_texts, precision=p, remembered=r) for p in dict.fromkeys(('fp32', auto)) for r in (False, True)}}
    compare = [('gnosis_nb / faster plain loop, first epoch', f'gnosis_nb, {auto}', plains), ('the same from the second epoch on', f'gnosis_nb, {auto}, answers remembered', plains),
               ('in fp32, first epoch', 'gnosis_nb, fp32', plains), ('in fp32, from the second epoch on', 'gnosis_nb, fp32, answers remembered', plains)]
    title = f'{reviews(args)[2]}, {TEXT_WORDS} words at most; LSTM of two layers of 70 both ways; {args.batches} batches of {TEXT_BATCH} a round'
    yield contest(args, title, makers, 'texts/s', compare)


WHAT = {o.__name__: o for o in (loader, step, epoch, ensemble, cka, together, text)}

def positive(text):
    if (n := int(text)) < 1: raise ValueError(text)
    return n

if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0], epilog='; '.join(f'{k}: {o.__doc__}' for k, o in WHAT.items()))
    parser.add_argument('what', nargs='+', choices=[*WHAT, 'all'])
    parser.add_argument('--root', type=Path, default=Path('data/datasets/cifar10'), help='folder of CIFAR-10')
    parser.add_argument('--text-root', type=Path, default=Path('data/datasets/imdb'), help='folder of IMDB; aclImdb in it or beside it will do')
    parser.add_argument('--device', type=torch.device, default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--depth', type=positive, nargs='+', default=[20, 56], help='of the networks')
    parser.add_argument('--batch', type=positive, default=128, help='rows in a batch')
    parser.add_argument('--batches', type=positive, help='batches a round of step and ensemble; default: 100 on CUDA, else 10')
    parser.add_argument('--images', type=positive, help='images of an epoch and for the per-image loaders; default: 50,000 on CUDA, else 10,000')
    parser.add_argument('--rounds', type=positive, default=5, help='rounds that count')
    parser.add_argument('--workers', type=positive, default=2, help="of the plain loop's DataLoader")
    parser.add_argument('--compile', action='store_true', help='compile the bare step, too (a minute)')
    parser.add_argument('--json', type=Path, help='file for everything, each round included')
    args = parser.parse_args()
    cuda = args.device.type == 'cuda'
    args.batches, args.images = args.batches or (100 if cuda else 10), args.images or (50_000 if cuda else 10_000)
    probe = Contender('facts', facts, args)                                  # a process's peak memory begins with its parent's: the data stay out of this one
    try: known = probe.round()[0]
    finally: probe.stop()
    tables = {}
    for what in WHAT if 'all' in args.what else dict.fromkeys(args.what):
        print(f"\n{what}: {WHAT[what].__doc__}\n{known['device']}; {known['cpu']}, {known['cores']} cores, {known['threads']} threads; torch {known['torch']}, "
              f"torchvision {known['torchvision']}, fastai {known['fastai']}\n{'' if what == 'text' else known['data'] + '; '}median of {args.rounds} rounds")
        tables[what] = list(WHAT[what](args, known))
    if args.json: args.json.write_text(json.dumps(dict(facts=known, args={k: str(v) if isinstance(v, (Path, torch.device)) else v for k, v in vars(args).items()}, tables=tables), indent=1))
