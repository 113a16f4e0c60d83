"The half hour on a GPU: its parts, its results, and that it runs to its end on a simulated one."
import json
import subprocess
import sys

import pytest
import simcuda
from experiments import ROOT

sys.path.append(str(ROOT/'scripts'))
import gpu_day  # noqa: E402
from gpu_day import Part, run_all, summarize  # noqa: E402

WRITES = "import sys; print('rate', 7); open(sys.argv[1], 'w').write('[7]')"
PARTS = [
    Part('good', ['-c', WRITES, '{json}'], 60), Part('bad', ['-c', "print('why'); raise SystemExit(3)"], 60),
    Part('endless', ['-c', "print('began', flush=True); import time; time.sleep(99)"], 5),
    Part('missing', ['-c', ''], 60, needs=ROOT/'nowhere'), Part('last', ['-c', 'print(8)'], 60)]

@pytest.fixture(scope='module')
def day(tmp_path_factory):
    out = tmp_path_factory.mktemp('day')
    return out, run_all(PARTS, out, 5)

def test_a_part_that_fails_or_takes_too_long_does_not_stop_the_next(day):
    out, results = day
    assert [o.state for o in results] == ['done', 'failed', 'stopped', 'left out', 'done']
    assert results[0].numbers == [7] and results[1].status == 3 and results[2].seconds < 60
    assert json.loads((out/'good.json').read_text())['numbers'] == [7]
    assert (out/'endless.txt').read_text() == 'began\n'

def test_done_parts_are_not_done_again(day):
    out, before = day
    written = (out/'good.json').stat().st_mtime_ns
    results = run_all([PARTS[0], Part('bad', ['-c', ''], 60)], out, 5)
    assert [o.state for o in results] == ['done', 'done']
    assert results[0] == before[0].__class__(**json.loads((out/'good.json').read_text()))
    assert (out/'good.json').stat().st_mtime_ns == written

def test_without_time_nothing_is_started(tmp_path):
    assert [o.state for o in run_all(PARTS, tmp_path, 0)] == 3 * ['no time'] + ['left out', 'no time']
    assert not (tmp_path/'good.txt').exists()

def test_the_summary_is_short_and_has_the_end_of_each_part(day, tmp_path):
    _, results = day
    for o in results: (tmp_path/f'{o.name}.txt').write_text(10_000 * f'{o.name}\n' + f'end of {o.name}')
    text = summarize(results, tmp_path)
    assert 10_000 < len(text) <= gpu_day.LIMIT
    assert [o for o in PARTS if f'end of {o.name}' in text] == [o for o in PARTS if o.name != 'missing']

def test_the_parts_call_what_is_there():
    "Scenarios, subjects of the benchmark and own parts have the names that the parts use."
    scenarios = (ROOT/'tests'/'rehearsal.py').read_text()
    subjects = (ROOT/'scripts'/'benchmark.py').read_text()
    for part in gpu_day.parts(False, ROOT/'out', ROOT/'data'):
        script, *rest = part.command
        names = [o for o in rest if not o.startswith('-') and o[0].isalpha()]
        if 'rehearsal' in script:
            for o in names[1:]: assert f"'{o}" in scenarios or f' {o}=' in scenarios, o
        if 'benchmark' in script: assert f'def {names[0]}(args, facts)' in subjects
        if 'gpu_day' in script: assert names[0] in gpu_day.OWN

@pytest.mark.skipif(bool(simcuda.MISSING), reason=str(simcuda.MISSING))
def test_a_simulated_day(tmp_path):
    command = ['scripts/gpu_day.py', '--simulate', '--out', tmp_path, '--only', 'speed', '--minutes', '10']
    said = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
    assert said.returncode == 0 and 'SIMULATED DEVICE' in said.stdout
    result = json.loads((tmp_path/'speed-8.json').read_text())
    assert result['state'] == 'done' and result['simulated'], (tmp_path/'speed-8.txt').read_text()
    rows = {(o['teachers'], o['networks'], o['notebook']) for o in result['numbers']}
    assert rows == {(1, 1, False), (3, 1, False), (1, 2, False), (1, 1, True)}
