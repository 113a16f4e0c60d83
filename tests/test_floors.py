"A module imports only from chapters with lower numbers, and no private name of another module."
import ast
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def exported(path):
    cells = json.loads(path.read_text(encoding='utf-8'))['cells']
    return '\n'.join(code for code in (''.join(o['source']) for o in cells) if code.startswith('#| export'))


def module_of(path):
    name = re.search(r'#\| *default_exp ([\w.]+)', path.read_text(encoding='utf-8'))[1]
    return f'gnosis_nb.{name}'.removesuffix('.__init__')


CHAPTERS = {module_of(o): o for o in sorted((ROOT/'nbs').glob('[0-9]*.ipynb'))}


def imports(path):
    "Pairs of module and name, also of imports inside functions."
    for node in ast.walk(ast.parse(exported(path))):
        if isinstance(node, ast.ImportFrom) and (node.module or '').startswith('gnosis_nb'):
            for name in node.names: yield node.module, name.name


def number(path): return path.name.split('_')[0]  # '05' < '05a' < '06'


def test_numbers_are_unique():
    numbers = [number(o) for o in CHAPTERS.values()]
    assert len(numbers) == len(set(numbers)) > 50


@pytest.mark.parametrize('path', CHAPTERS.values(), ids=lambda o: o.stem)
def test_imports_point_downwards(path):
    used = [CHAPTERS[module] for module, _ in imports(path) if module in CHAPTERS]
    assert [o.stem for o in used if number(o) >= number(path)] == []


@pytest.mark.parametrize('path', CHAPTERS.values(), ids=lambda o: o.stem)
def test_no_private_name_crosses_a_module(path):
    assert [f'{module}.{name}' for module, name in imports(path)
            if name.startswith('_') and not name.startswith('__')] == []
