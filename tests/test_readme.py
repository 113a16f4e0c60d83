"What a stranger reads first is short, and its two examples run as they are written, in an empty folder."
import re
import shlex
from pathlib import Path

import pandas as pd
import pytest

import processes
from experiments import script
from gnosis_nb.paper.plan import MAIN
from gnosis_nb.paper.verdicts import all_verdicts

ROOT = Path(__file__).parent.parent
README = (ROOT/'README.md').read_text(encoding='utf-8')

def example(language, text):
    "The block of this language that contains `text`."
    blocks = re.findall(r'^```(\w*)\n(.*?)^```', README, flags=re.M | re.S)
    return next(block for kind, block in blocks if kind == language and text in block)


def test_is_short(): assert len(README.split()) <= 900

def test_python_example_gives_the_table_below_it(tmp_path):
    out = processes.run(example('python', 'fidelity_report'), cwd=tmp_path)
    assert out.returncode == 0, out.stderr[-2000:]
    table = out.stdout.splitlines()[-3:]
    shown = re.search(r'^ {4}( *accuracy.*)\n {4}(teacher.*)\n {4}(student.*)$', README, flags=re.M).groups()
    assert [o.split()[0] for o in table] == [o.split()[0] for o in shown]
    measured, printed = ([float(o) for o in rows[2].split()[1:]] for rows in (table, shown))
    assert measured == pytest.approx(printed, abs=.1)                    # other machines, other bits

def test_command_writes_the_table_and_what_the_text_says(tmp_path):
    command, *settings = shlex.split(example('', 'teacher.independent=true').replace('\\\n', ' '))
    assert command == 'gnosis-image-classification'
    shorter = ['dataset.size=8', 'trainer.num_epochs=1', 'teacher.trainer.num_epochs=1']
    out = script('image_classification', *settings, *shorter, cwd=tmp_path)
    assert out.returncode == 0, out.stderr[-2000:]
    found, = tmp_path.glob('demo/**/fidelity.csv')
    table = pd.read_csv(found, index_col=0)
    assert table.agreement['teacher'] == 1 and table.kl['teacher'] < 1e-6
    assert {'student', 'independent student', 'teacher_0', 'teacher_1', 'teacher_2'} <= set(table.index)
    files = {o.name for o in found.parent.iterdir()}
    expected = {'fidelity_statistics.csv', 'student_train_metrics.csv', 'student.safetensors', 'config.yaml',
        'fidelity.png'}
    assert expected <= files


# What holds

@pytest.fixture(scope='module')
def verdicts():
    "A row for each claim, at the largest scale that there is."
    table = all_verdicts(ROOT/'nbs/figures/results').drop_duplicates(['figure', 'claim'])
    return table.set_index(['figure', 'claim'])

@pytest.mark.parametrize('claim', MAIN, ids=' '.join)
def test_claims_are_those_of_the_results(verdicts, claim):
    o = verdicts.loc[claim]
    digits, unit = (2, ' nats') if o.unit == 'nats' else (1, '')
    effect, low, high = (f'{x:.{digits}f}'.replace('-', '−') for x in (o.effect, o.low, o.high))
    number = claim[0].removeprefix('fig').lstrip('0')
    assert re.search(rf'^\| .*\(Fig {number}\) \| {effect}{unit} \({low} to {high}\) \| {o.verdict} \|$',
                     README, flags=re.M), f'{effect}{unit} ({low} to {high}) | {o.verdict}'

def test_verdicts_are_counted(verdicts):
    n = verdicts.verdict.value_counts()
    total = n.sum() - n['not measured']
    said = (f"Of {total} claims, at the largest scale run, {n['holds']} hold, {n['fails']} fail, "
            f"{n['undecided']} are undecided and {n['not comparable']} are not comparable")
    assert said in ' '.join(README.split())
