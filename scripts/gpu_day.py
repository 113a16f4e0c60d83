"""Everything worth knowing from half an hour on a GPU: `python scripts/gpu_day.py --minutes 25 --out DIR`.

The work is cut into parts: first those that show whether all is right, side by side, then those that are
timed, one by one, the most valuable first. Each is a process of its own with a time limit, and leaves
`DIR/<part>.json` and `DIR/<part>.txt`. A part that fails or takes too long does not stop the others. Started
again, the command skips the parts that are done. It ends with a summary of at most 12,000 characters.

`--simulate` runs the same on the simulated device of `tests/simcuda.py`, with tiny sizes and longer limits.
It shows that the parts run. Nothing can be timed there: its rates say nothing about a GPU.

A machine without a network needs the wheels of `scripts/gpu_wheels.sh`."""
import argparse
import json
import os
import platform
import random
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from functools import partial
from importlib import import_module, metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 12_000  # characters of the summary
SIMULATED = 'GNOSIS_SIMULATED'  # environment variable of processes on the simulated device


# Parts

@dataclass
class Part:
    name:str
    command:list  # `{json}` stands for the file of its numbers, `{minutes}` for the time it has
    seconds:int  # that it may take, at most
    timed:bool=False  # nothing else may run beside it
    needs:Path|None=None  # the part is left out where this is missing

@dataclass
class Result:
    name:str
    state:str  # 'done', 'failed', 'stopped' by its time limit, 'no time', 'left out'
    seconds:float = 0.
    limit:float = 0.
    status:int|None = None  # exit status
    command:tuple = ()
    simulated:bool = False
    numbers:object = None  # what the part wrote as JSON

def rehearsal(name, *names):
    "Scenarios; they count, and time does not matter."
    command = ['tests/rehearsal.py', '--device', 'cuda', '--json', '{json}', *names]
    return Part(f'rehearsal-{name}', command, 150)

def benchmark(what, *args, name=None, seconds=180):
    command = ['scripts/benchmark.py', *what.split(), *args, '--device', 'cuda', '--json', '{json}']
    return Part(name or what.replace(' ', '-'), command, seconds, timed=True)

def own(what, *args, name=None, seconds=240, timed=True):
    command = ['scripts/gpu_day.py', '--part', what, '--json', '{json}', *args]
    return Part(name or what, command, seconds, timed)

REST = 'measures', 'landscape', 'resume', 'together', 'streamed', 'fastai_ways', 'cuda:1'

def parts(simulate, out, data):
    "All parts, the most valuable first."
    few, depths = '--rounds 3 --workers 8 --patience 100'.split(), (20, 56, 8)
    if simulate:
        few = '--rounds 1 --batches 2 --batch 8 --images 32 --workers 1'.split()
        depths = (8,)
    first = str(depths[0])
    speeds = [own('speed', '--depth', str(o), name=f'speed-{o}') for o in depths]
    compiled = [own('speed', '--depth', str(o), '--compile', name=f'compiled-{o}') for o in depths[:2]]
    steps = [benchmark('step', '--depth', str(o), *few, name=f'step-{o}', seconds=240) for o in depths]
    return [
        own('environment', seconds=90, timed=False),
        rehearsal('core', 'teacher', 'student', 'notebook', 'network', 'held'),
        rehearsal('texts-gan', 'texts', 'gan', 'generator'),
        rehearsal('policies', 'policy', 'augmentations'), rehearsal('losses', 'loss', 'hard labels'),
        rehearsal('rest', *REST), rehearsal('commands', 'command'),
        speeds[0], steps[0], own('kernels', '--depth', first), *compiled,
        benchmark('together', '--depth', first, *few), *speeds[1:], *steps[1:],
        benchmark('ensemble', '--depth', first, *few), benchmark('epoch', '--depth', first, *few),
        benchmark('text', *few), benchmark('cka loader', *few, seconds=120), benchmark('job', *few),
        figures_part(simulate, out, data)]

def figures_part(simulate, out, data):
    "What decides the most claims of the paper in the time that is left, with CIFAR-100."
    needs = data/'datasets'/'cifar100'
    where = ['device=cuda', f'data_dir={out}/runs', f'dataset.root_dir={needs}']
    names = ['scale=medium']
    if simulate: names, needs, where = ['table1', 'scale=smoke'], None, where[:2]  # digits are never missing
    start = ['-c', 'from gnosis_nb.paper.plan import figure_command; figure_command()']
    return Part('figures', [*start, '--plan', 'minutes={minutes}', *names, *where], 1800, True, needs)


# Running them

START = """import atexit
import simcuda
device = simcuda.device()
device.__enter__()
atexit.register(device.__exit__, None, None, None)
"""

def environment_of(out, simulate):
    "Environment variables of a part's process."
    paths = [str(ROOT), str(ROOT/'tests'), os.environ.get('PYTHONPATH', '')]
    env = dict(os.environ, MPLBACKEND='Agg', PYTHONUNBUFFERED='1', OMP_WAIT_POLICY='PASSIVE',
        PYTHONWARNINGS='ignore::FutureWarning')
    if simulate:  # every Python process begins on the simulated device, also those that a part starts
        start = out/'simulated'
        start.mkdir(exist_ok=True)
        (start/'sitecustomize.py').write_text(START)
        paths.insert(0, str(start))
        env[SIMULATED] = env['OMP_NUM_THREADS'] = '1'
        env['TORCHDYNAMO_DISABLE'] = '1'  # there is no compiler for a simulated device
    return dict(env, PYTHONPATH=os.pathsep.join(filter(None, paths)))

class Running:
    "The process of a part, which may take so many seconds."
    def __init__(self, part, out, seconds, env):
        self.part, self.out, self.seconds, self.simulated = part, out, seconds, SIMULATED in env
        self.numbers, self.start = out/f'{part.name}.numbers.json', time.monotonic()
        minutes = f'{max(.5, seconds/60 - 1):.1f}'  # a minute for the start and what a row takes longer
        def fill(text): return text.replace('{json}', str(self.numbers)).replace('{minutes}', minutes)
        self.command = [fill(o) for o in part.command]
        self.numbers.unlink(missing_ok=True)
        with open(out/f'{part.name}.txt', 'w') as text:
            self.process = subprocess.Popen([sys.executable, *self.command], cwd=ROOT, env=env,
                stdin=subprocess.DEVNULL, stdout=text, stderr=subprocess.STDOUT, start_new_session=True)

    def stop(self):
        "End the process and those that it has started."
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def result(self):
        "What it has left behind, which is kept; None while it may go on."
        status, took = self.process.poll(), time.monotonic() - self.start
        if status is None:
            if took < self.seconds: return None
            self.stop()
        state = 'stopped' if status is None else 'failed' if status else 'done'
        res = Result(self.part.name, state, round(took, 1), round(self.seconds), status, tuple(self.command),
            self.simulated, read_json(self.numbers))
        (self.out/f'{self.part.name}.json').write_text(json.dumps(asdict(res), indent=1))
        return res

def read_json(path):
    "What is in a file, None where there is none or it was cut off."
    try: return json.loads(path.read_text())
    except (OSError, ValueError): return None

def known(part, out):
    "The result that a part has left behind, if it is done."
    found = read_json(out/f'{part.name}.json')
    return Result(**found) if found and found['state'] == 'done' else None

def run_all(todo, out, minutes, simulate=False, at_once=None):
    "Results of all parts, within so many minutes; of those that are not timed, `at_once` run side by side."
    end, results, running = time.monotonic() + 60 * minutes, {}, []
    at_once = at_once or max(1, (os.cpu_count() or 1) // 2)
    out.mkdir(parents=True, exist_ok=True)
    env = environment_of(out, simulate)
    def note(res):
        results[res.name] = res
        print(f'{res.name}: {res.state}, {res.seconds:.0f} s', flush=True)
        (out/'summary.txt').write_text(summarize(in_order(todo, results), out))
    def begin(part):
        left, res = end - time.monotonic(), known(part, out)
        if res: pass
        elif part.needs and not part.needs.exists(): res = Result(part.name, 'left out')
        elif left < min(20, part.seconds): res = Result(part.name, 'no time')
        if res: note(res)
        else: running.append(Running(part, out, min(part.seconds * (3 if simulate else 1), left), env))
    waiting = sorted(todo, key=lambda o: o.timed)
    try:
        while waiting or running:
            while waiting and len(running) < (1 if waiting[0].timed else at_once): begin(waiting.pop(0))
            over = [(o, res) for o in running if (res := o.result())]
            for o, res in over:
                running.remove(o)
                note(res)
            if not over: time.sleep(.1)
    finally:
        for o in running: o.stop()
    return in_order(todo, results)

def in_order(todo, results): return [results[o.name] for o in todo if o.name in results]


# The summary

def summarize(results, out, limit=LIMIT):
    "States of all parts, and the ends of what they said, in at most `limit` characters."
    lines = [f'{o.name:20} {o.state:8} {o.seconds:6.0f} s' for o in results]
    text = '\n'.join(lines)
    if any(o.simulated for o in results):
        text = f'SIMULATED DEVICE: this shows that the parts run; no rate or time says anything.\n{text}'
    ran = [o for o in results if o.state in ('done', 'failed', 'stopped')]
    for i, o in enumerate(ran):
        room = (limit - len(text)) // (len(ran) - i) - len(o.name) - 10
        if room < 40: break
        text += f'\n\n== {o.name}\n{end_of(out/f"{o.name}.txt", room)}'
    return text[:limit]

def end_of(path, room):
    "The last lines of a file that fit."
    text = path.read_text(errors='replace').strip() if path.exists() else ''
    if len(text) <= room: return text
    kept = text[len(text) - room + 2:]
    return '…\n' + kept[kept.find('\n') + 1:]


# Parts of this script

def commit():
    "The commit of the code: of a file COMMIT beside it, or of git."
    kept, command = ROOT/'COMMIT', ['git', 'rev-parse', 'HEAD']
    if kept.exists(): return kept.read_text().strip()
    try: return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip() or None
    except OSError: return None

MODULES = ('fastai', 'fastcore', 'fasttransform', 'fastprogress', 'hydra', 'omegaconf', 'torchmetrics',
    'boto3', 'IPython', 'safetensors', 'scipy', 'sklearn', 'triton', 'timm', 'torch_fidelity', 'ipywidgets')

def found(name):
    "Version of a module, or why it cannot be imported."
    try: module = import_module(name)
    except Exception as e: return f'{type(e).__name__}: {e}'
    return getattr(module, '__version__', 'there')

def environment(args):
    "The machine, its software, and the state of the code."
    import torch
    import torchvision
    facts = dict(
        date=time.strftime('%Y-%m-%d %H:%M:%S %Z'), commit=commit(), python=platform.python_version(),
        torch=torch.__version__, torchvision=torchvision.__version__, cuda=torch.version.cuda,
        cudnn=torch.backends.cudnn.version(), cores=os.cpu_count(), device=torch.cuda.get_device_name(0),
        capability=torch.cuda.get_device_capability(0), memory=torch.cuda.mem_get_info(0),
        simulated=SIMULATED in os.environ, driver=smi('driver_version'), clocks=smi('clocks.max.sm'))
    facts['modules'] = {o: found(o) for o in MODULES}
    facts['packages'] = sorted(f'{o.name}=={o.version}' for o in metadata.distributions())
    for k, v in facts.items():
        if k != 'packages': print(f'{k}: {v}')
    return facts

def smi(query):
    "What nvidia-smi says, None where there is none."
    command = ['nvidia-smi', f'--query-gpu={query}', '--format=csv,noheader']
    try: return subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.strip() or None
    except (OSError, subprocess.TimeoutExpired): return None

class BusyShare:
    "The share of time in which the GPU has a kernel to run, as nvidia-smi measures it, in a `with` block."
    value = None
    def __enter__(self):
        command = 'nvidia-smi --query-gpu=utilization.gpu --format=csv,noheader,nounits -lms 200'.split()
        quiet = dict(stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        try: self.process = subprocess.Popen(command, **quiet)
        except OSError: self.process = None
        return self

    def __exit__(self, *args):
        if self.process is None: return
        self.process.terminate()
        lines, _ = self.process.communicate()
        values = [int(o) for o in lines.split() if o.isdigit()]
        if len(values) > 2: self.value = sum(values[1:]) / (100 * len(values[1:]))

def random_sets(n, n_test):
    "Random pixels in the shape of CIFAR-10."
    import torch
    from gnosis_nb.data.images import ImageData, ImageSets
    from gnosis_nb.data.zoo import STATISTICS
    def some(n):
        pixels = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8)
        return ImageData(pixels, torch.arange(n) % 10, range(10), 'random')
    return ImageSets(some(n), some(n_test), STATISTICS['cifar10'])

def learners(k, m, depth, images, notebook, watch, **options):
    "`k` students of one ensemble of `m` teachers, as runs train them or as notebooks do."
    from fastai.callback.progress import ProgressCallback
    from fastai.learner import Recorder
    from gnosis_nb.data.augment import augmentation
    from gnosis_nb.data.loaders import image_dls
    from gnosis_nb.distill import FidelityTable
    from gnosis_nb.learner import student_learner
    from gnosis_nb.models import ClassifierEnsemble, build_classifier
    build = partial(build_classifier, 'preresnet', 10, depth=depth)
    sets = random_sets(images, max(4, images // 50))
    teacher, made = ClassifierEnsemble(*(build(seed=i) for i in range(m))).eval(), []
    for i in range(k):
        dls = image_dls(sets, min(128, images // 5), augmentation(), eval_bs=1024, seed=i, device='cuda')
        cbs = [FidelityTable(10**9), *watch()]
        learn = student_learner(dls, build(seed=100 + i), teacher, metrics=[], cbs=cbs, **options)
        if not notebook: learn.remove_cbs([ProgressCallback, Recorder])
        made.append(learn)
    return made

def measure(depth, m, k, images, epochs, notebook=False, compile=False):
    "Images per second, memory and busy share from the second epoch on, when all that can be is recorded."
    began = time.perf_counter()
    import torch
    from benchmark import Begin, End
    from gnosis_nb.together import run_together
    device, watches = torch.device('cuda'), []
    def watch():
        begin = Begin(1, device)
        watches.append(End(begin, epochs - 1))
        return [begin, watches[-1]]
    torch.cuda.reset_peak_memory_stats()
    made = learners(k, m, depth, images, notebook, watch, compile=compile)
    def fit(learn):
        with learn.no_logging(), learn.no_bar(): learn.fit(epochs)
    with BusyShare() as busy:
        if k == 1: fit(made[0])
        else: run_together([partial(fit, o) for o in made], device)
    seen, first = k * images * (epochs - 1), min(o.begin.start for o in watches)
    return dict(depth=depth, teachers=m, networks=k, notebook=notebook, images=images,
        compiled=compile, rate=seen / (max(o.end for o in watches) - first), before=first - began,
        allocated_gb=torch.cuda.max_memory_allocated() / 1e9,
        reserved_gb=torch.cuda.max_memory_reserved() / 1e9, busy=busy.value)

CASES = [(1, 1, False), (3, 1, False), (1, 4, False), (1, 1, True), (5, 1, False), (1, 8, False)]
COMPILED = [(1, 1, False), (1, 4, False), (5, 1, False)]

def speed(args):
    """Students of PreResNets: with 1, 3 and 5 teachers, 1, 4 and 8 at once, in a notebook, and compiled.

    `before` are the seconds before the second epoch."""
    simulated, rows = SIMULATED in os.environ, []
    print(f"PreResNet-{args.depth}, random images, the best precision{', compiled' if args.compile else ''}")
    print('teachers networks notebook  images/s  GB used  reserved  busy  before')
    for m, k, notebook in COMPILED if args.compile else CASES[:4] if simulated else CASES:
        if simulated: k = min(k, 2)
        images, epochs = (20, 2) if simulated else (50_048, 4 if args.depth < 50 and k == 1 else 2)
        row = measure(args.depth, m, k, images, epochs, notebook, args.compile)
        rows.append(row)
        memory = f"{row['allocated_gb']:8.2f} {row['reserved_gb']:9.2f}"
        busy = '' if row['busy'] is None else f"{row['busy']:.0%}"
        start = f"{row['before']:5.0f} s"
        print(f"{m:8} {k:8} {notebook!s:>8} {row['rate']:9,.0f} {memory} {busy:>5} {start}", flush=True)
        args.json.write_text(json.dumps(rows, indent=1))
    return rows

def kernels(args):
    "Where the GPU's time goes: kernels of a student's batches, all recorded, by their time."
    import torch
    from torch.profiler import ProfilerActivity, profile
    os.environ.update(DISABLE_CUPTI_LAZY_REINIT='1', TEARDOWN_CUPTI='0')  # else recordings may crash
    simulated = SIMULATED in os.environ
    epochs, activity = 2, ProfilerActivity.CPU if simulated else ProfilerActivity.CUDA
    learn, = learners(1, 1, args.depth, 40 if simulated else 25_600, False, list)
    def fit():
        with learn.no_logging(), learn.no_bar(): learn.fit(epochs)
        torch.cuda.synchronize()
    fit()
    with profile(activities=[activity]) as seen: fit()
    n, found = epochs * len(learn.dls.train), [o for o in seen.key_averages() if o.self_device_time_total]
    found.sort(key=lambda o: -o.self_device_time_total)
    rows = [dict(name=o.key, microseconds=o.self_device_time_total / n, count=o.count / n) for o in found]
    print(f"{sum(o['microseconds'] for o in rows):,.0f} µs of kernels a batch; an evaluation is in it")
    for o in rows[:50]: print(f"{o['microseconds']:8.1f} µs {o['count']:7.1f}  {o['name'][:90]}")
    return rows

OWN = dict(environment=environment, speed=speed, kernels=kernels)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    add = parser.add_argument
    add('--minutes', type=float, default=25., help='for all parts together')
    add('--out', type=Path, help='folder of the results')
    add('--only', nargs='+', help='parts, or how their names begin; default: all')
    add('--data', type=Path, default=ROOT/'data', help='folder with datasets/cifar100, for a figure')
    add('--simulate', action='store_true', help='on a simulated device, with tiny sizes')
    add('--part', choices=OWN, help='run this part here')
    add('--depth', type=int, default=20, help='of the networks of part speed')
    add('--compile', action='store_true', help='compile the networks of part speed')
    add('--json', type=Path, help="file for a part's numbers")
    args = parser.parse_args()
    if not (args.out or args.part): parser.error('--out: expected a folder for the results')
    if args.part and not args.json: parser.error('--json: expected a file for the numbers')
    return args

def main():
    args = parse_args()
    if args.part:
        random.seed(0)
        args.json.write_text(json.dumps(OWN[args.part](args), indent=1))
        return
    out = args.out.resolve()
    todo = parts(args.simulate, out, args.data.resolve())
    if args.only: todo = [o for o in todo if o.name.startswith(tuple(args.only))]
    results = run_all(todo, out, args.minutes, args.simulate)
    print('\n' + summarize(results, out))

if __name__ == '__main__': main()
