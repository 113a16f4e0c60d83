"""Signatures as the API pages show them.

nbdev gives a comment to the last parameter of its line, so a documented parameter needs a line of its own.
"""
import ast
import importlib
import inspect
import io
import pkgutil
import textwrap
import tokenize

import pytest
from fastcore.docments import docments

import gnosis_nb


def modules():
    "Names of all exported modules."
    found = (o.name for o in pkgutil.walk_packages(gnosis_nb.__path__, 'gnosis_nb.'))
    return sorted(o for o in found if o not in ('gnosis_nb._modidx', 'gnosis_nb.config'))

def public(module):
    "Pairs (name, object): functions and classes that a module exports, and their public methods."
    module = importlib.import_module(module)
    for name in getattr(module, '__all__', []):    # folders of modules have none
        o = getattr(module, name)
        if inspect.isfunction(o) or inspect.isclass(o): yield name, o
        if inspect.isclass(o): yield from methods(name, o)

def methods(name, cls):
    for key, o in vars(cls).items():
        o = inspect.unwrap(getattr(o, 'fget', None) or getattr(o, '__func__', o))
        ours = inspect.isfunction(o) and o.__module__.startswith('gnosis_nb')
        if ours and (key == '__init__' or not key.startswith('_')): yield f'{name}.{key}', o

def source(o):
    "The source of a function or class; empty where Python has made it (`__init__` of a data class)."
    try: return textwrap.dedent(inspect.getsource(o))
    except (OSError, TypeError): return ''

def comments(text):
    "The numbers of the lines with a comment."
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return {o.start[0] for o in tokens if o.type == tokenize.COMMENT}

def crowded(text):
    "Lists of documented parameters that share a line; a comment beside a return annotation is the result's."
    node = next(iter(ast.parse(text).body), None)
    if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)): return []
    a, by_line = node.args, {}
    for o in [*a.posonlyargs, *a.args, a.vararg, *a.kwonlyargs, a.kwarg]:
        if o is not None and o.arg not in ('self', 'cls'): by_line.setdefault(o.lineno, []).append(o.arg)
    commented = comments(text) - ({node.returns.lineno} if node.returns else set())
    return [names for line, names in by_line.items() if len(names) > 1 and line in commented]

def has_docstring(name, o):
    "Whether somebody wrote one: a data class without a docstring gets its signature from Python."
    doc = vars(o).get('__doc__') if inspect.isclass(o) else o.__doc__
    return bool(doc and doc.strip()) and not doc.startswith(f'{name}(')


@pytest.mark.parametrize('module', modules())
def test_documented_parameters_stand_on_lines_of_their_own(module):
    assert {name: lines for name, o in public(module) if (lines := crowded(source(o)))} == {}

@pytest.mark.parametrize('module', modules())
def test_every_public_function_and_class_has_a_docstring(module):
    assert [name for name, o in public(module) if '.' not in name and not has_docstring(name, o)] == []

def test_what_is_wrong_is_found():
    bad = 'def f(a:int, b=1, # shape\n      c=2, # unit\n      *, d=3): # two\n    pass'
    good = 'def f(self, a:int, # shape\n      b=1, c=2,\n      )->int: # [n]\n    return 1 # why'
    assert crowded(bad) == [['a', 'b']] and crowded(good) == []
    assert crowded('def f(a, b): return a # why') == [['a', 'b']]

def test_nbdev_gives_a_comment_to_the_last_parameter_of_its_line():
    def f(a, b): # of which?
        pass
    assert docments(f, returns=False) == {'a': None, 'b': 'of which?'}

def test_all_modules_are_read():
    assert {'gnosis_nb.losses', 'gnosis_nb.data.images', 'gnosis_nb.models.convnets'} <= set(modules())
