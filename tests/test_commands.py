"Commands that the documentation names: each of them can be given. `scripts/everything.py` does them."
import importlib
import re
import shlex
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT/'scripts'))
import everything  # noqa: E402
from gnosis_nb.cli import compose, compose_sweep  # noqa: E402

COMMANDS = [o.text for o in everything.documented()]
TRAININGS = [o for o in COMMANDS if re.match(everything.TRAINING, o)]
OTHERS = [o for o in COMMANDS if o not in TRAININGS]


def test_they_are_found():
    assert len(TRAININGS) > 25 and len(OTHERS) > 40
    assert 'make demo' in OTHERS and 'source .venv/bin/activate' in OTHERS
    block = '```\nC="loss=dist seed=1"\ngnosis-x -m $C \\\n    a=1   # why\n```\n'
    page = f'Use `pip`.\n\n{block}`make it`, `make <x>`'
    assert everything.page_commands(page) == ['gnosis-x -m loss=dist seed=1 a=1', 'make it']

@pytest.mark.parametrize('command', TRAININGS)
def test_settings_are_accepted(command):
    words = shlex.split(command)
    name = words[0].removeprefix('gnosis-').replace('-', '_')
    if name == 'teacher_outputs': name = 'image_classification'
    overrides = [o for o in words[1:] if not o.startswith('-')]
    (compose_sweep if '-m' in words else compose)(overrides, name)

def help_page(program, capsys):
    text = (ROOT/'settings.ini').read_text(encoding='utf-8')
    entries = dict(o.split('=') for o in re.search('^console_scripts = (.*)', text, re.M)[1].split())
    module, function = entries[program].split(':')
    with pytest.raises(SystemExit): getattr(importlib.import_module(module), function)(['--help'])
    return capsys.readouterr().out

@pytest.mark.parametrize('command', OTHERS)
def test_there_is_such_a_command(command, capsys):
    "A target of the Makefile, a file, or a program of the package; with options that it has."
    program, *words = shlex.split(command)
    if program == 'make': assert words[0] in everything.targets()
    elif program == 'source': assert words == ['.venv/bin/activate']
    elif program == 'python': assert (ROOT/words[0]).exists()
    else:
        known = re.findall(r'--[a-z-]+', help_page(program, capsys))
        assert {o for o in words if o.startswith('--')} <= {*known}

def test_nothing_is_left_out_without_a_reason():
    commands = everything.everything()
    done = [o.text for o in commands if everything.why_not(o.text) is None]
    assert 'gnosis-runs demo' in done
    assert {f'make {o}' for o in everything.targets()} - {*done} == {'make lab', 'make everything'}
    assert everything.why_not('gnosis-figure fig03 scale=paper') == 'its data set, and hours'
    assert everything.why_not('gnosis-figure --plan device=cuda') == 'a GPU'

def test_a_command_is_done_with_its_time_and_result(tmp_path, monkeypatch):
    def result(text, minutes=1):
        command = everything.Command(text, 'a page')
        everything.do(command, tmp_path, tmp_path/'log', minutes)
        return command
    monkeypatch.setenv('SECRET', 'x')
    rules = dict(good='test -z "$$SECRET"', bad='false', endless='sleep 99')
    (tmp_path/'Makefile').write_text('\n'.join(f'{k}:\n\t{v}' for k, v in rules.items()))
    good = result('make good')
    assert good.result == 'ok' and good.seconds > 0
    assert result('make bad').result == 'failed: 2'
    assert result('make endless', 1e-3).result == 'failed: stopped after 0.001 minutes'
    left = result('gnosis-figure fig03 scale=paper')
    assert left.result == 'not run: needs its data set, and hours' and left.seconds is None
    assert '| `make bad` | a page |' in everything.table([result('make bad')])
