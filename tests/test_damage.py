"Damaged files of one's own are made again; those of others are left out with a line that says why."
import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from gnosis_nb.checkpoint import load_checkpoint, save_checkpoint
from gnosis_nb.runs import find_runs
from processes import kill
from test_resume import results, run, same, start


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    "A run that is done, and what it said."
    folder = tmp_path_factory.mktemp('whole')
    return folder, *run(folder, 'seed=3')

@pytest.fixture
def copy(whole, tmp_path):
    "Another data folder with the same run, and the run's folder there."
    folder, r, _ = whole
    shutil.copytree(folder, tmp_path/'copy')
    return tmp_path/'copy', tmp_path/'copy'/r.path.relative_to(folder)

def cut(path): path.write_bytes(path.read_bytes()[:-9])
def flip(path):
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
def garble(path): path.write_bytes(b'\xff{"half')
def lose(path): path.unlink()

TEACHER, STUDENT, NOBODY = {'teacher 0'}, {'student'}, set()

@pytest.mark.parametrize('name, damage, trained', [
    ('student.safetensors', cut, STUDENT), ('student.safetensors', lose, STUDENT),
    ('teacher_0.safetensors', flip, TEACHER), ('teacher_0.safetensors', lose, TEACHER),
    ('student_train_metrics.csv', garble, STUDENT), ('summary.json', garble, NOBODY),
    ('fidelity.csv', lose, NOBODY), ('config.yaml', garble, NOBODY),
    ('predictions_test.safetensors', flip, NOBODY)])
def test_a_finished_run_is_whole_again(whole, copy, name, damage, trained):
    folder, path = copy
    damage(path/name)
    r, lines = run(folder, 'seed=3')
    assert r.path == path and sum('damaged: ' in o and name in o for o in lines) == 1
    begun = {o.partition(' epoch')[0] for o in lines if ' epoch ' in o}
    assert begun == trained
    assert same(results(whole[0]), results(folder))
    assert run(folder, 'seed=3')[1][0].startswith('already done')

def test_of_an_older_run_each_file_is_read(whole, copy):
    folder, path = copy
    state = json.loads((path/'state.json').read_text())
    (path/'state.json').write_text(json.dumps({k: v for k, v in state.items() if k != 'files'}))
    assert run(folder, 'seed=3')[1][0].startswith('already done')
    flip(path/'student.safetensors')
    run(folder, 'seed=3')
    assert same(results(whole[0]), results(folder))

def test_a_stopped_run_trains_its_damaged_teacher_again(whole, tmp_path):
    kill(start(tmp_path, 'seed=3', 'trainer.state_minutes=0', at='student_train_metrics.csv', n=2))
    teacher, = tmp_path.rglob('teacher_0.safetensors')
    flip(teacher)
    _, lines = run(tmp_path, 'seed=3')
    assert sum(str(teacher) in o and 'damaged' in o for o in lines) >= 1
    assert same(results(whole[0]), results(tmp_path))

def test_students_of_a_teacher_that_comes_out_otherwise_begin_anew(copy):
    folder, path = copy
    state = json.loads((path/'state.json').read_text())
    state['plan'][0][0]['weights'] = '0'*64                                  # as if from another machine
    (path/'state.json').write_text(json.dumps(state))
    lose(path/'teacher_0.safetensors')
    _, lines = run(folder, 'seed=3')
    assert any('its students begin anew' in o for o in lines)
    assert (path/'student.safetensors.damaged').exists()
    assert find_runs(folder).state.tolist() == ['done']


def checkpoint(path, metadata, **tensors):
    "A safetensors file with any metadata."
    from safetensors.torch import save_file
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors or dict(w=torch.ones(1)), path, metadata=metadata)

def nested(levels):
    value = {}
    for _ in range(levels): value = dict(a=value)
    return value

FACTS = {'a number': 7, 'a list of facts': [1], 'facts of another type': dict(facts=7, weights=[]),
         'weights of another type': dict(weights=5, facts={}), 'a time of another type': dict(created=5),
         'nested facts': dict(facts=nested(200)), 'a great number': dict(epochs=10**40)}

STATES = {'a list': '[]', 'half': '{"state": "run', 'types': '{"state": 7}', 'nested': '['*100_000,
          'a plan': '{"state": "done", "plan": 7}', 'a plan of numbers': '{"state": "done", "plan": [[7]]}',
          'binary': '\x00\udcff',
          'data': '{"state": "done", "started": 5}'}

@pytest.mark.parametrize('text', ['{half', '[7]', '{"x": 1}', '{"0": {}}'])
def test_a_damaged_list_of_reserved_teachers_is_made_again(whole, tmp_path, text):
    shutil.copytree(whole[0]/'.locks', tmp_path/'.locks')
    (reserved,) = (tmp_path/'.locks').glob('teachers-*.json')
    reserved.write_text(text)
    run(tmp_path, 'seed=3')
    assert same(results(whole[0]), results(tmp_path))

def test_files_of_others_stop_nobody(whole, tmp_path):
    "All kinds of files that a run may meet below its data folder, at once."
    for i, (what, facts) in enumerate(FACTS.items()):
        checkpoint(tmp_path/'junk'/f'{what}'/f'teacher_{i}.safetensors', dict(gnosis_nb=json.dumps(facts)))
    checkpoint(tmp_path/'junk'/'text'/'teacher_1.safetensors', dict(gnosis_nb='{half'))
    weights, facts = load_checkpoint(next(whole[0].rglob('teacher_0.safetensors')))
    flip(save_checkpoint(tmp_path/'flipped'/'teacher_0', weights, **facts))
    save_checkpoint(tmp_path/'nan'/'teacher_0', {k: v*float('nan') for k, v in weights.items()}, **facts)
    (tmp_path/'links').mkdir()
    (tmp_path/'links'/'teacher_0.safetensors').symlink_to(tmp_path/'nowhere')
    for what, text in STATES.items():
        (tmp_path/'states'/what).mkdir(parents=True)
        (tmp_path/'states'/what/'state.json').write_text(text, errors='surrogateescape')
    (tmp_path/'pipe').mkdir()
    os.mkfifo(tmp_path/'pipe'/'state.json')
    r, lines = run(tmp_path, 'seed=3')
    left_out = [o for o in lines if o.startswith('left out: ')]
    told = {Path(o.removeprefix('left out: ').split(': ')[0]).parent.name for o in left_out}
    assert told >= {*FACTS, *STATES, 'text', 'nan', 'flipped', 'links', 'pipe'}
    ours = find_runs(r.path)
    assert ours.state.tolist() == ['done'] and same(results(whole[0]), results(r.path))
    said = []
    assert find_runs(tmp_path, said.append).path.tolist() == [str(r.path)] and len(said) == len(STATES) + 1
