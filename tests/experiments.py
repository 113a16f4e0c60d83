"Small experiments, a second each, and what they leave behind."
import json
from functools import partial
from pathlib import Path

import pandas as pd

import processes
from gnosis_nb.checkpoint import load_checkpoint
from gnosis_nb.cli import compose, run_command

ROOT = Path(__file__).parent.parent
SMALL = dict(
    image_classification=[
        '+experiment=digits', 'dataset.size=8', 'dataloader.batch_size=256', '+recipe=student'],
    text_classification=[
        '+experiment=sentences', 'dataset.num_train=300', 'dataset.num_test=101', 'dataloader.batch_size=64',
        '+recipe=student',
        'classifier.embedding_size=16', 'classifier.lstm_cell_size=16'])
SHORT = ['trainer.num_epochs=1', 'device=cpu']
TEACHERS = 'trainer.distill_teacher=false'


def conduct(command, *overrides):
    "A run, and the lines it said."
    lines = []
    return run_command(command, compose(overrides, command), say=lines.append), lines

def small(command, data_dir, *overrides):
    "A small run below `data_dir`, whatever has been done there, and the lines it said."
    return conduct(command, *SMALL[command], *SHORT, 'force=true', f'data_dir={data_dir}', *overrides)

images, texts = (partial(small, o) for o in SMALL)

def program(command): return f'from gnosis_nb.cli import {command}; {command}()'

def script(command, *args, cwd=None):
    "A command as a process of its own."
    return processes.run(program(command), *args, cwd=cwd)

def loaded(lines):
    "The teachers' files that a run said it has loaded, as <job>/teacher_<i>."
    files = [Path(o.split()[2]) for o in lines if o.startswith('teacher from ')]
    return [f'{o.parent.parent.name}/{o.stem}' for o in files]

def table(run, name='student_train_metrics'): return pd.read_csv(run.path/f'{name}.csv')
def report(run): return pd.read_csv(run.path/'fidelity.csv', index_col='model')
def weights(run, name): return load_checkpoint(run.path/f'{name}.safetensors')[0]
def checkpoints(run):
    found = {o.stem for o in run.path.glob('*.safetensors')}
    return {o for o in found if not o.startswith('predictions_')}
def states_below(folder):
    return [json.loads(o.read_text())['state'] for o in Path(folder).rglob('state.json')]
def equal(a, b): return a.keys() == b.keys() and all(v.equal(b[k]) for k, v in a.items())
def same_networks(a, b):
    names = checkpoints(a)
    return names == checkpoints(b) and all(equal(weights(a, o), weights(b, o)) for o in names)
