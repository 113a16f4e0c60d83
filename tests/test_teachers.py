"Which teachers a run takes, what it says of the others, and that each trial has its own."
import json
from pathlib import Path

import pytest

import processes
from experiments import checkpoints, conduct, program
from gnosis_nb.cli import compose, compose_sweep, run_command
from gnosis_nb.inputs import load_inputs
from gnosis_nb.runs import find_runs
from gnosis_nb.settings import ConfigError
from gnosis_nb.teachers import find_teachers, load_teachers

TINY = ['+experiment=digits', 'dataset.size=8', 'dataset.shrink.train=100', 'dataset.shrink.test=50',
    'dataloader.batch_size=50', 'teacher.trainer.batch_size=50', 'trainer.num_epochs=1', 'device=cpu']
def quiet(sentence): pass

TRAIN = 'trainer.distill_teacher=false'
SETS = dict(a='dataset.seed=0', b='dataset.seed=1', c='dataset.size=9')


# One pool: two recipes, three data sets

@pytest.fixture(scope='module')
def pool(tmp_path_factory):
    "Two teachers of one epoch and one of two, for each of three data sets."
    folder = tmp_path_factory.mktemp('pool')
    for name, data in SETS.items():
        for epochs, m in ((1, 2), (2, 1)):
            options = [data, TRAIN, f'trainer.num_epochs={epochs}', f'teacher.num_components={m}']
            conduct('image_classification', *TINY, *options, f'data_dir={folder}', f'exp_name={name}{epochs}')
    return folder

def taken(folder, *overrides):
    "Teachers that a run would take, as experiment/number, and the sentence about others."
    cfg = compose([*TINY, f'data_dir={folder}', *overrides])
    inputs = load_inputs(cfg)
    groups = load_teachers(cfg, inputs, quiet)
    paths = [info['path'].split('/') for group in groups for _, info in group]
    return [f"{o[-4]}/{o[-1].split('_')[1][0]}" for o in paths], find_teachers(cfg, inputs)[1]

ONE, TWO = 'teacher.trainer.num_epochs=1', 'teacher.trainer.num_epochs=2'
ANY, ALL = 'teacher.any_recipe=true', 'teacher.num_components=3'
TABLE = [                                                                    # command, teachers, what differs
    ([ONE], ['a1/0'], 'num_epochs 2 instead of 1'),
    ([TWO], ['a2/0'], 'num_epochs 1 instead of 2'),
    ([TWO, SETS['b']], ['b2/0'], 'num_epochs 1 instead of 2'),
    ([ONE, SETS['c'], 'trial_id=1'], ['c1/1'], 'num_epochs 2 instead of 1'),
    ([ONE, 'teacher.num_components=2'], ['a1/0', 'a1/1'], 'num_epochs 2 instead of 1'),
    ([ONE, ALL], [], 'num_epochs 2 instead of 1'),
    ([ONE, ALL, ANY], ['a1/0', 'a1/1', 'a2/0'], None),
    ([], [], 'num_epochs 1 or 2 instead of 10'),
    ([ONE, 'teacher.trainer.lr=0.1'], [], 'lr 0.05 instead of 0.1, num_epochs 2 instead of 1'),
    ([ONE, 'augmentation.transforms_list=[]'], [],
     "augmentation {'crop': {'padding': 1}} instead of {}, num_epochs 2 instead of 1"),
    (['teacher.ckpt_dir=b2', SETS['b']], ['b2/0'], None),
    ([ONE, 'trainer.num_epochs=5', 'trainer.precision=bf16', 'trainer.parallel_models=2', 'policy=mixup'],
     ['a1/0'], 'num_epochs 2 instead of 1')]

@pytest.mark.parametrize('overrides, teachers, differences', TABLE)
def test_which_teachers_a_command_takes(pool, overrides, teachers, differences):
    found, note = taken(pool, *overrides)
    assert found == teachers
    if differences is None: assert note is None
    else: assert f'({differences}); teacher.any_recipe=true takes them' in note

def test_a_smoke_runs_teacher_is_left_alone(tmp_path):
    "The story that this is about: a teacher of one epoch lies there, older than a proper one."
    for epochs in (1, 3):
        conduct('image_classification', *TINY, TRAIN, f'trainer.num_epochs={epochs}', f'data_dir={tmp_path}')
    options = ['teacher.trainer.num_epochs=3', f'data_dir={tmp_path}', 'force=true']
    run, lines = conduct('image_classification', *TINY, *options)
    assert any('teacher_0.safetensors (epochs 3,' in o for o in lines)
    assert not list(run.path.glob('teacher_*')) and not any('left out' in o for o in lines)

def test_what_is_missing_is_said_and_trained(tmp_path):
    conduct('image_classification', *TINY, TRAIN, f'data_dir={tmp_path}')
    options = ['teacher.trainer.num_epochs=2', f'data_dir={tmp_path}']
    run, lines = conduct('image_classification', *TINY, *options)
    said, = (o for o in lines if 'left out' in o)
    assert '(num_epochs 1 instead of 2); teacher.any_recipe=true takes them' in said
    assert 'training 1 teacher: 2 epochs, batches of 50, SGD, learning rate 0.05 to 1e-06' in lines
    assert (run.path/'teacher_0.safetensors').exists()

def test_a_teacher_that_is_pointed_at_is_taken_with_a_warning(pool, tmp_path):
    _, lines = conduct('image_classification', *TINY, f'teacher.ckpt_dir={pool}/a1', f'data_dir={tmp_path}')
    assert 'warning: it has another recipe than this run\'s teachers: num_epochs 1 instead of 10' in lines

def test_an_experiment_on_another_disk_is_searched(tmp_path):
    "A link leads to it, and in it another one leads back."
    far, data = tmp_path/'far', tmp_path/'data'
    for o in (far, data): o.mkdir()
    (data/'fig').symlink_to(far)
    (far/'back').symlink_to(data)
    options = [*TINY, TRAIN, f'data_dir={data}', 'exp_name=fig']
    run, _ = conduct('image_classification', *options)
    again, lines = conduct('image_classification', *options)
    assert again.finished and any(o.startswith('already done') for o in lines)
    assert find_runs(data).path.tolist() == [str(run.path)]

def test_a_trained_teacher_that_is_not_found_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setattr('gnosis_nb.checkpoint.find_checkpoints', lambda folder, stem: [])
    with pytest.raises(ConfigError, match='teacher_0.safetensors was trained just now, and is not among'):
        conduct('image_classification', *TINY, TRAIN, f'data_dir={tmp_path}')


# Each trial has its own

SWEEP = [*TINY, ONE, 'policy=baseline,mixup', 'trial_id=0,1,2']

def sweep(folder):
    for _, cfg in compose_sweep([*SWEEP, f'data_dir={folder}']):
        run_command('image_classification', cfg, quiet)

def outcome(folder):
    "By trial and policy: the digest of the teacher, and the student's tables."
    runs = find_runs(folder).set_index(['trial_id', 'distill_loader.policy'])
    assert runs.state.tolist() == ['done']*6
    paths = {i: Path(o) for i, o in runs.path.items()}
    states = {i: json.loads((o/'state.json').read_text()) for i, o in paths.items()}
    tables = {i: {p.name: p.read_bytes() for p in o.glob('*.csv') if 'teacher' not in p.name}
              for i, o in paths.items()}
    return {i: o['teacher_weights'] for i, o in states.items()}, tables

@pytest.fixture(scope='module')
def one_by_one(tmp_path_factory):
    folder = tmp_path_factory.mktemp('one')
    sweep(folder)
    return outcome(folder)

def test_three_trials_have_three_teachers(one_by_one):
    teachers, tables = one_by_one
    of_trial = [{str(o) for (t, _), o in teachers.items() if t == trial} for trial in range(3)]
    assert [len(o) for o in of_trial] == [1, 1, 1] and len(set.union(*of_trial)) == 3
    assert len({o['student_train_metrics.csv'] for o in tables.values()}) == 6

def test_two_processes_make_the_same(one_by_one, tmp_path):
    "They start with the trials in the other order, and want each other's teachers."
    others = [program('image_classification'), '-m', *TINY, ONE, 'trial_id=2,1,0', f'data_dir={tmp_path}']
    both = [processes.Process(*others, f'policy={o}') for o in ('baseline', 'mixup')]
    assert [o.wait()[0] for o in both] == [0, 0]
    assert outcome(tmp_path) == one_by_one

def test_a_killed_sweep_makes_the_same(one_by_one, tmp_path):
    sweep_of_runs = [program('image_classification'), '-m', *SWEEP, f'data_dir={tmp_path}']
    processes.kill(processes.start(*sweep_of_runs, at='teacher_1.safetensors'))
    sweep(tmp_path)
    assert outcome(tmp_path) == one_by_one

def test_trials_without_a_pool_have_teachers_of_their_own(tmp_path):
    options = [TRAIN, 'teacher.use_ckpts=false', f'data_dir={tmp_path}']
    runs = [conduct('image_classification', *TINY, *options, f'trial_id={t}')[0] for t in range(2)]
    assert [checkpoints(r) for r in runs] == [{'teacher_0', 'teacher_init_0'}]*2
    first, second = (r.state['teacher_weights'] for r in runs)
    assert first != second

def test_a_trial_waits_for_its_own_teacher(one_by_one, tmp_path):
    """Another process has trained the second trial's teacher, and trains the first trial's. It dies before
    that is done. The process of the first trial trains it, and does not take the one that is there."""
    options = [*TINY, ONE, f'data_dir={tmp_path}']
    second = [program('image_classification'), *options, 'trial_id=1']
    other, lines = processes.start(*second, at='teacher_0.safetensors'), []
    assert len(list(tmp_path.rglob('teacher_1.safetensors'))) == 1
    def hear(line):
        lines.append(line)
        if line.startswith('waiting'): processes.kill(other)
    run = run_command('image_classification', compose([*options, 'policy=mixup']), hear)
    assert 'waiting for a teacher that another process trains' in lines
    assert run.state['teacher_weights'] == one_by_one[0][0, 'mixup']

def test_an_independent_student_has_the_next_trials_teacher(tmp_path):
    options = [*TINY, ONE, f'data_dir={tmp_path}']
    run, _ = conduct('image_classification', *options, 'teacher.independent=true')
    after, _ = conduct('image_classification', *options, 'trial_id=1')
    (first,), (second,) = run.state['teacher_weights']
    assert first != second and after.state['teacher_weights'] == [[second]]
