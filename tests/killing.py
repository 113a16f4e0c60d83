"""`main` of image|averaged|text|gan, a folder, n and numbers m: run once undisturbed in folder/whole,
then n times in folder/0, folder/1, …, each killed (-9) just before an event and started again. An event
is a backward pass, or that a file is flushed to the disk or renamed. The n events are spread evenly over
the run. A last run, in folder/within, keeps its training state after every batch: its process is killed
after m batches within epochs, the one that goes on after the next m, and so on. Prints what each run was
doing when it was killed."""
import itertools, os, signal, sys
from pathlib import Path

import torch
from matplotlib.figure import Figure

from gnosis_nb import experiment, generation
from gnosis_nb.checkpoint import checkpoint_info
from gnosis_nb.cli import compose
from gnosis_nb.gan import SampleGrid
from gnosis_nb.program import EpochProgram
from gnosis_nb.run_folder import Run
from gnosis_nb.runs import find_runs

KINDS = dict(
    image=(experiment.image_classification, 'image_classification', [
        '+experiment=digits', '+recipe=student', 'dataset.size=8', 'dataset.subsample.ratio=0.1',
        'dataset.shrink.test=50', 'teacher.independent=true', 'trainer.num_epochs=3', 'trainer.eval_period=2',
        'loss=ts_cvx_cross_ent', 'distill_loader.mixup_alpha=1.0']),
    averaged=(experiment.image_classification, 'image_classification', [
        '+experiment=digits', 'teacher.trainer.num_epochs=1', 'dataset.size=8', 'dataset.subsample.ratio=0.1',
        'dataset.shrink.test=50', 'trainer.num_epochs=3', 'teacher.num_components=2',
        'teacher.draw_member=true', 'teacher.temperature=fit',
        'trainer.average=ema', 'trainer.average_decay=0.5']),
    controls=(experiment.image_classification, 'image_classification', [
        '+experiment=digits', '+recipe=student', 'dataset.size=8', 'dataset.subsample.ratio=0.1',
        'dataset.shrink.test=50', 'trainer.num_epochs=3', 'trainer.eval_period=2',
        'teacher.trainer.keep_epochs=[1,2]', 'teacher.schedule=[1,2]',
        'teacher.control=[permuted_in_class,label_noise]']),
    text=(experiment.text_classification, 'text_classification', [
        '+experiment=sentences', '+recipe=student', 'dataset.num_train=300', 'dataset.num_test=100',
        'trainer.num_epochs=3', 'trainer.eval_period=2']),
    gan=(generation.image_generation, 'image_generation', [
        'dataset=digits8', 'dataset.shrink.train=200', 'dataset.shrink.test=50', 'density_model.z_dim=8',
        'density_model.generator.k=8', 'density_model.discriminator.k=8', 'dataloader.batch_size=16',
        'trainer.num_gen_updates=4', 'trainer.eval_period=2', 'trainer.checkpoint_period=2',
        'trainer.num_eval_samples=50', 'trainer.num_epochs=2', 'classifier.depth=8']))

class Events:
    "Counts events in this process, and kills it just before number `last`."
    def __init__(self, last=None):
        self.n, self.last = 0, last
        for owner, name in ((torch.Tensor, 'backward'), (os, 'fsync'), (os, 'replace')):
            setattr(owner, name, self.counted(getattr(owner, name)))

    def counted(self, f):
        def count(*args, **kwargs):
            self.n += 1
            if self.n == self.last: os.kill(os.getpid(), signal.SIGKILL)
            return f(*args, **kwargs)
        return count

def keep_every_batch(last):
    "Kill this process when it has kept `last` training states within epochs."
    EpochProgram.period, keep, kept = -1, Run.keep_state, itertools.count(1)  # tells others after every batch
    def counted(run, name, tensors, facts):
        keep(run, name, tensors, facts)
        if facts['batch'] and next(kept) == last: os.kill(os.getpid(), signal.SIGKILL)
    Run.keep_state = counted

def start(kind, folder, last=None, batches=None):
    """Run in a process of its own, killed before event `last`, or after so many batches; one that ends writes
    the number of its events."""
    run, config, settings = KINDS[kind]
    if pid := os.fork(): return pid
    torch.set_num_threads(1)
    SampleGrid.plot = lambda self: Figure()                                  # nobody looks at it
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    events = Events(last)
    if batches: keep_every_batch(batches)
    options = ['device=cpu', f'trainer.state_minutes={1e-9 if batches else 0}', f'data_dir={folder}']
    try: run(compose([*settings, *options], config))
    except BaseException as e: print(repr(e), file=sys.stderr); os._exit(1)
    Path(f'{folder}.events').write_text(str(events.n))
    os._exit(0)

def status(pid): return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def doing(folder):
    "What the run below a folder was doing."
    runs = find_runs(folder)
    if not len(runs): return 'nothing yet'
    path = Path(runs.path[0])
    at = {o.stem: checkpoint_info(o)['training'] for o in path.glob('.training_state*')}
    states = [f"{name} at {o['epoch']}:{o['batch']}" for name, o in at.items()]
    return ', '.join([runs.state[0], *states, f'{len(list(path.glob("*_metrics.csv")))} tables'])

def main():
    kind, folder, n, *batches = sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:])
    folder.mkdir(parents=True, exist_ok=True)
    assert status(start(kind, folder/'whole')) == 0
    total = int(Path(f'{folder}/whole.events').read_text())
    for i in range(n):
        last = 1 + total * (2*i + 1) // (2*n)
        assert status(start(kind, folder/str(i), last)) == -signal.SIGKILL
        print(f'event {last} of {total}: {doing(folder/str(i))}', flush=True)
        assert status(start(kind, folder/str(i))) == 0
    for m in batches:
        assert status(start(kind, folder/'within', batches=m)) == -signal.SIGKILL
        print(f'batch {m}: {doing(folder/"within")}', flush=True)
    assert status(start(kind, folder/'within', batches=-1)) == 0
