"Every notebook opens cleanly: valid, of the Python kernel, without errors, warnings or large outputs."
import json, warnings
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted(o for o in (ROOT/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in o.parts)
LIMIT, WHOLE = 200_000, 300_000                                          # bytes of one output, of a notebook

def problems(path):
    "What is wrong with a notebook, in words."
    out = []
    with warnings.catch_warnings(record=True) as caught:                     # as that of a missing cell id
        warnings.simplefilter('always')
        try:
            nb = nbformat.read(path, as_version=nbformat.NO_CONVERT)
            nbformat.validate(nb)
        except nbformat.ValidationError as e: out.append(f'is not valid: {e.message}')
        except Exception as e: return [f'cannot be read: {e}']
    # Not those of other tests' files, which Python closes at any moment.
    out += sorted({f'validation warns: {o.message}' for o in caught if o.category is not ResourceWarning})
    if nb.nbformat != 4: out.append(f'nbformat is {nb.nbformat}; expected 4')
    kernel = nb.metadata.get('kernelspec', {})
    if kernel.get('name') != 'python3': out.append(f'kernelspec is {kernel}; expected that of python3')
    if (size := path.stat().st_size) > WHOLE: out.append(f'has {size} bytes; expected at most {WHOLE}')
    if 'widgets' in nb.metadata: out.append('keeps the state of widgets in its metadata')
    for i, cell in enumerate(nb.cells):
        for o in cell.get('outputs', []): out += [f'cell {i}: {p}' for p in output_problems(o)]
    return out

def output_problems(o):
    if o.output_type == 'error': yield f'output is an error, {o.ename}'
    if o.get('name') == 'stderr': yield f'output is on standard error: {o.text[:100]!r}'
    if (size := len(json.dumps(o))) > LIMIT: yield f'output has {size} bytes; expected at most {LIMIT}'
    if 'application/vnd.jupyter.widget-view+json' in o.get('data', {}):
        yield 'output is a widget, of which nothing is left without its kernel; keep a figure'


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda o: str(o.relative_to(ROOT/'nbs')))
def test_opens_cleanly(path): assert problems(path) == []

def test_there_are_notebooks():
    assert {'index', 'explore', 'quick_start', '00_losses'} <= {o.stem for o in NOTEBOOKS}

def test_what_is_wrong_is_found(tmp_path):
    from nbformat.v4 import new_code_cell, new_notebook, new_output
    widget = {'application/vnd.jupyter.widget-view+json': {}, 'text/plain': 'w'}
    outputs = [new_output('error', ename='ValueError', evalue='no', traceback=[]),
               new_output('stream', name='stderr', text='Warning: old'),
               new_output('stream', name='stdout', text='x'*LIMIT), new_output('display_data', data=widget)]
    nb = new_notebook(cells=[new_code_cell('1/0', outputs=outputs)],
                      metadata=dict(kernelspec=dict(name='julia', display_name='Julia')))
    (tmp_path/'bad.ipynb').write_text(nbformat.writes(nb))
    found = problems(tmp_path/'bad.ipynb')
    assert len(found) == 5 and 'julia' in found[0] and [o.split(':')[0] for o in found[1:]] == ['cell 0']*4

def write(path, **cell):
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(**cell)])
    nb.metadata['kernelspec'] = dict(name='python3', display_name='python3')
    path.write_text(json.dumps(nb))
    return path

def test_cell_without_id_is_found(tmp_path):
    path = write(tmp_path/'bad.ipynb', source='1')
    assert problems(path) == []
    nb = json.loads(path.read_text())
    del nb['cells'][0]['id']
    path.write_text(json.dumps(nb))
    assert len(problems(path)) == 1

def test_notebook_that_is_too_large_is_found(tmp_path):
    assert 'expected at most 300000' in problems(write(tmp_path/'bad.ipynb', source='#'*WHOLE))[0]

def test_what_is_no_notebook_is_found(tmp_path):
    (tmp_path/'bad.ipynb').write_text('{')
    assert 'cannot be read' in problems(tmp_path/'bad.ipynb')[0]
