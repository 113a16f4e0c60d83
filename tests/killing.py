"""`python tests/killing.py image|text|gan folder n`: run once without disturbance in folder/whole, then n times in folder/0, folder/1, …, each killed (-9) at a
random moment between two rows of its tables and started again. Processes are forked, so that torch is imported once. Prints what each run was doing when it was killed."""
import os, random, signal, sys, time
from pathlib import Path

import torch

from gnosis_nb import experiment, generation
from gnosis_nb.cli import compose
from gnosis_nb.runs import find_runs

KINDS = dict(
    image=(experiment.image_classification, 'image_classification', ['dataset=digits', 'dataset.size=8', 'classifier.depth=8', 'dataset.subsample.ratio=0.3', 'dataloader.batch_size=64', 'augmentation.transforms_list=[crop]',
           'augmentation.crop.padding=1', 'teacher.num_components=1', 'teacher.independent=true', 'trainer.num_epochs=4', 'trainer.eval_period=2', 'loss=ts_cvx_cross_ent', 'distill_loader.mixup_alpha=1.0']),
    text=(experiment.text_classification, 'text_classification', ['dataset=sentences', 'dataset.num_train=600', 'dataset.num_test=200', 'trainer.num_epochs=4', 'trainer.eval_period=2']),
    gan=(generation.image_generation, 'image_generation', ['dataset=digits', 'density_model.z_dim=16', 'density_model.generator.k=8', 'density_model.discriminator.k=8', 'dataloader.batch_size=16', 'trainer.num_gen_updates=8',
         'trainer.eval_period=2', 'trainer.checkpoint_period=4', 'trainer.num_eval_samples=200', 'trainer.num_epochs=2', 'classifier.depth=8']))


def start(kind, folder):
    run, config, settings = KINDS[kind]
    if pid := os.fork(): return pid
    torch.set_num_threads(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    try: run(compose([*settings, 'device=cpu', 'trainer.state_minutes=0', f'data_dir={folder}'], config))
    except BaseException as e: print(repr(e), file=sys.stderr); os._exit(1)
    os._exit(0)

def finish(pid): assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

def doing(folder):
    "What the run below a folder was doing."
    runs = find_runs(folder)
    if not len(runs): return 'nothing yet'
    path = Path(runs.path[0])
    return runs.state[0] + ''.join(f', {o.stem}' for o in path.glob('.training_state*')) + f', {len(list(path.glob("*_metrics.csv")))} tables'

def rows(folder):
    "How far the run below a folder has come: lines in all its tables."
    return sum(o.read_bytes().count(b'\n') for o in folder.rglob('*_metrics.csv'))

def wait_for_rows(folder, n, pid):
    while rows(folder) < n and not os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT): time.sleep(.002)

if __name__ == '__main__':
    kind, folder, n = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    finish(start(kind, folder/'warm'))                                       # files are in the cache of the disk
    began = time.time()
    finish(start(kind, folder/'whole'))
    spent, total, rng = time.time() - began, rows(folder/'whole'), random.Random()
    for i in range(n):
        pid = start(kind, folder/str(i))
        wait_for_rows(folder/str(i), total * i // n, pid)
        time.sleep(spent / total * rng.random())
        os.kill(pid, signal.SIGKILL); os.waitpid(pid, 0)
        print(doing(folder/str(i)), flush=True)
        finish(start(kind, folder/str(i)))
