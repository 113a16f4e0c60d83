"Control students and teachers of earlier epochs: what is trained, what is left, and how it goes on."
import json
import shutil

import pandas as pd
import pytest
import torch

from experiments import checkpoints, conduct, equal, report, table, texts, weights
from gnosis_nb.cli import compose
from gnosis_nb.inputs import load_inputs
from gnosis_nb.metrics import agreement
from gnosis_nb.predictions import load_predictions
from gnosis_nb.schema import ConfigError
from gnosis_nb.teachers import find_teachers, load_teachers
from test_resume import results, same

TINY = ['+experiment=digits', '+recipe=student', 'dataset.size=8', 'dataset.shrink.train=160',
        'dataset.shrink.test=150', 'trainer.num_epochs=2', 'trainer.eval_period=2', 'device=cpu']
NAMES = ['random', 'permuted', 'label_noise', 'early']
KEPT = ['teacher.trainer.keep_epochs=[1]', 'teacher.schedule=[1]']
CONTROLS = [*KEPT, f'teacher.control=[{",".join(NAMES)}]']

def run(folder, *overrides):
    return conduct('image_classification', *TINY, f'data_dir={folder}', *overrides)

@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp('controls')
    return folder, *run(folder, *CONTROLS)

@pytest.fixture
def copy(whole, tmp_path):
    folder, r, _ = whole
    shutil.copytree(folder, tmp_path/'copy')
    return tmp_path/'copy', tmp_path/'copy'/r.path.relative_to(folder)

def begun(lines): return {o.partition(' epoch')[0] for o in lines if ' epoch ' in o}


def test_each_control_has_its_files(whole):
    _, r, _ = whole
    students = {f'control_{o}{end}' for o in NAMES for end in ('', '_init')}
    teachers = {f'control_{o}_teacher_{end}0' for o in ('random', 'label_noise') for end in ('', 'init_')}
    kept = {'teacher_0_epoch_1', 'control_label_noise_teacher_0_epoch_1'}
    own = {'teacher_0', 'teacher_init_0', 'student', 'student_init'}
    assert checkpoints(r) == students | teachers | kept | own

def test_each_control_has_its_row_and_its_share(whole):
    _, r, lines = whole
    rows = [f'control_{o}' for o in NAMES]
    assert report(r).index.tolist() == ['teacher', 'student', *rows, 'teacher_0']
    shares = pd.read_csv(r.path/'fidelity_controls.csv', index_col='control')
    agree = report(r).agreement
    assert shares.index.tolist() == rows
    for o in rows: assert shares.share[o] == pytest.approx(agree[o]/agree['student'])
    summary = json.loads((r.path/'summary.json').read_text())
    assert summary['control_early_share'] == pytest.approx(shares.share['control_early'])
    assert summary['control_random_agreement'] == agree['control_random']
    assert sum('beyond what the label gives' in o for o in lines) == 1
    again, lines = run(r.path.parents[2], *CONTROLS)
    assert again.finished and 'beyond what the label gives' in lines[1]

def test_predictions_of_controls_are_kept(whole):
    _, r, _ = whole
    for part, n in dict(test=150, train=160).items():
        p = load_predictions(r, part)
        assert sorted(p.controls) == sorted(f'control_{o}' for o in NAMES) and len(p) == n
    p = load_predictions(r)
    found = agreement(p.teacher, p.controls['control_early'])
    assert found == pytest.approx(report(r).agreement['control_early'])

def test_a_finished_run_without_controls_is_another(whole, tmp_path):
    "And its student and teacher have the same bits."
    plain, _ = run(tmp_path, *KEPT)
    _, r, _ = whole
    assert plain.state['identity'] != r.state['identity']
    assert all(equal(weights(plain, o), weights(r, o)) for o in checkpoints(plain))

@pytest.mark.parametrize('name, trained', [
    ('control_permuted', {'control permuted'}),
    ('control_label_noise_teacher_0_epoch_1', {'control label noise teacher 0'}),
    ('teacher_0_epoch_1', {'teacher 0'})])
def test_what_is_damaged_is_made_again(whole, copy, name, trained):
    folder, path = copy
    (path/f'{name}.safetensors').write_bytes(b'half')
    r, lines = run(folder, *CONTROLS)
    assert r.path == path and begun(lines) == trained
    assert same(results(whole[0]), results(folder))

def test_teachers_of_controls_are_nobodys_teachers(whole):
    folder, r, _ = whole
    cfg = compose([*TINY, f'data_dir={folder}', 'teacher.num_components=4', 'teacher.any_recipe=true'])
    found, _ = find_teachers(cfg, load_inputs(cfg))
    assert [o.name for o, _ in found] == ['teacher_0.safetensors']

def test_a_pool_without_trajectory_is_trained_again(tmp_path):
    plain, _ = run(tmp_path, 'trainer.distill_teacher=false')
    r, lines = run(tmp_path, 'teacher.trainer.keep_epochs=[1]')
    assert sum('without their weights after epochs [1]: 1 below' in o for o in lines) == 1
    assert equal(weights(plain, 'teacher_0'), weights(r, 'teacher_0'))
    assert r.state['plan'][0][0]['keep_epochs'] == [1]
    cfg = compose([*TINY, f'data_dir={tmp_path}'])
    assert len(load_teachers(cfg, load_inputs(cfg), lambda s: None)[0]) == 1  # the two are one network

def test_the_schedule_teaches_in_the_right_epochs(tmp_path):
    """Epoch by epoch: the student's first two are those of a run that the early teacher taught alone, and the
    table's teacher in training is less accurate there than that of the third epoch."""
    r, _ = run(tmp_path, 'trainer.num_epochs=4', 'teacher.trainer.keep_epochs=[1]', 'teacher.schedule=[2]',
               'augmentation.transforms_list=[]', 'trainer.eval_period=1')
    rows = table(r)
    of_teacher = rows.teacher_train_acc.round(9).tolist()
    assert of_teacher[0] == of_teacher[1] != of_teacher[2] == of_teacher[3]
    assert rows.teacher_test_acc.nunique() == 1                              # always the final one
    assert rows.teacher_test_acc[0] == pytest.approx(report(r).accuracy['teacher'])

def test_controls_of_an_ensemble_of_texts(tmp_path):
    r, _ = texts(tmp_path, 'teacher.num_components=2', 'teacher.control=[random,permuted_in_class,labels]')
    assert {f'control_random_teacher_{i}' for i in range(2)} <= checkpoints(r)
    assert {'control_random', 'control_permuted_in_class', 'control_labels'} <= set(report(r).index)

def test_a_start_at_the_teachers_weights(tmp_path):
    "Of a control: at those of its own teacher."
    r, _ = run(tmp_path, 'trainer.num_epochs=1', 'teacher.control=[random,label_noise]',
               'teacher.ckpt_init.type=init', 'teacher.ckpt_init.loc_param=0', 'teacher.trainer.num_epochs=1')
    first = weights(r, 'control_label_noise_init')
    own = weights(r, 'control_label_noise_teacher_init_0')
    name = next(iter(own))
    assert torch.equal(first[name], own[name])

@pytest.mark.parametrize('overrides, message', [
    (['teacher.control=[random,random]'], 'expected each control once'),
    (['teacher.control=[permuted]', 'dataloader.shuffle=false'], 'expected batches in a random order'),
    (['teacher.control=[random]', 'trainer.distill_teacher=false'], 'there is no student to teach'),
    (['teacher.control=[permuted_in_class]', 'policy=mixup'], "'permuted_in_class' needs labels"),
    (['teacher.control=rnadom'], "teacher.control='rnadom'")])
def test_contradictions_are_one_sentence(overrides, message):
    with pytest.raises(ConfigError) as e: compose(overrides)
    assert message in str(e.value) and '\n' not in str(e.value)
