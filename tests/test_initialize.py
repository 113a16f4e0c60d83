"Students that start between random weights and their teacher's, and what a run reports of their fidelity."
import numpy as np
import pytest
import torch

from experiments import conduct, equal, report, table, weights
from gnosis_nb.checkpoint import load_checkpoint, load_network
from gnosis_nb.schema import ConfigError

SMALL = ['+experiment=digits', '+recipe=student', 'dataset.size=8', 'classifier.depth=8',
    'dataloader.batch_size=128', 'trainer.num_epochs=1', 'trainer.precision=fp32', 'device=cpu']

def run(data_dir, *overrides):
    options = [*SMALL, 'teacher.trainer.num_epochs=8', f'data_dir={data_dir}']
    return conduct('image_classification', *options, *overrides)[0]

def started(data_dir, kind, loc, *overrides):
    "A run whose student starts at loc·own + (1-loc)·teacher."
    start = f'teacher.ckpt_init.type={kind}', f'teacher.ckpt_init.loc_param={loc}'
    return run(data_dir, *start, *overrides)

def between(own, other, loc):
    return {k: loc*v + (1 - loc)*other[k] if v.is_floating_point() else v for k, v in own.items()}

def assert_close(got, want, names):
    for k in names: assert torch.allclose(got[k], want[k], atol=1e-6), k

@pytest.fixture(scope='module')
def teacher(tmp_path_factory):
    "A trained teacher, and a student that starts from random weights."
    folder = tmp_path_factory.mktemp('pool')
    return folder, run(folder, 'trainer.distill_teacher=false', 'trainer.num_epochs=8'), run(folder)


@pytest.mark.parametrize('kind, of_teacher', [('init', 'teacher_init_0'), ('final', 'teacher_0')])
def test_where_a_student_starts(teacher, kind, of_teacher):
    folder, theirs, plain = teacher
    got = weights(started(folder, kind, .25), 'student_init')
    want = between(weights(plain, 'student_init'), weights(theirs, of_teacher), .25)
    assert_close(got, want, [k for k in got if 'running' not in k and 'num_batches' not in k])
    variances = [k for k in got if 'running_var' in k]                      # those of the new weights
    assert any(not torch.allclose(got[k], want[k], atol=1e-3) for k in variances)

@pytest.mark.parametrize('kind, lr', [('init', .05), ('final', .05*.25)])
def test_the_learning_rate_of_a_start(teacher, kind, lr):
    r = started(teacher[0], kind, .25)
    assert table(r).lr[0] == pytest.approx(lr)
    assert load_checkpoint(r.path/'student.safetensors')[1]['training']['lr'] == pytest.approx(lr)

def test_frozen_batchnorm_keeps_averaged_statistics(teacher):
    folder, theirs, plain = teacher
    got = weights(started(folder, 'final', .5, 'trainer.freeze_bn=true'), 'student_init')
    want = between(weights(plain, 'student_init'), weights(theirs, 'teacher_0'), .5)
    assert_close(got, want, [k for k in got if 'running' in k])

def test_the_teacher_itself_is_its_most_faithful_student(teacher):
    near, far = (report(r).agreement['student'] for r in (started(teacher[0], 'final', 0), teacher[2]))
    assert near > .98 > .9 > far

def test_texts_start_there_too(tmp_path):
    r, _ = conduct('text_classification', '+experiment=sentences', '+recipe=student', 'dataset.num_train=400',
        'dataset.num_test=100', 'trainer.num_epochs=1', 'trainer.precision=fp32', 'device=cpu',
        f'data_dir={tmp_path}', 'teacher.ckpt_init.type=final', 'teacher.ckpt_init.loc_param=0')
    assert equal(weights(r, 'student_init'), weights(r, 'teacher_0'))

@pytest.mark.parametrize('settings, message', [
    (['type=final', 'loc_param=2'], 'teacher.ckpt_init.loc_param=2.*: expected a number in'),
    (['type=middle', 'loc_param=1'], 'teacher.ckpt_init.type=.?middle'),
    (['type=final', 'loc_param=1', 'depth=14'], 'teacher.ckpt_init')])
def test_starts_that_cannot_be(teacher, settings, message):
    start = [f'teacher.ckpt_init.{o}' if 'depth' not in o else f'teacher.{o}' for o in settings]
    with pytest.raises(ConfigError, match=message): run(teacher[0], *start)

def test_a_teacher_without_its_first_weights(teacher, tmp_path):
    (tmp_path/'alone').mkdir()
    (tmp_path/'alone'/'teacher_0.safetensors').write_bytes((teacher[1].path/'teacher_0.safetensors').read_bytes())
    message = 'teacher.ckpt_init.type=init: there is no .*teacher_init_0'
    with pytest.raises(ConfigError, match=message): started(tmp_path, 'init', 1)
    assert not (tmp_path/'image_classification').exists()


@pytest.mark.parametrize('overrides', [
    ['classifier=preresnet8', 'classifier.norm=layer', 'trainer.optimizer.name=Adam',
     'trainer.optimizer.lr=0.001', 'trainer.optimizer.weight_decay=0'],
    ['loss=decoupled_kd', 'loss.target=label'],
    ['loss=dist'],
    ['loss=logit_standardization', 'distill_loader.temp=2', 'loss.loss=ts_hard_cross_ent']])
def test_optimisers_and_newer_losses(teacher, overrides):
    r = run(teacher[0], *overrides)
    assert np.isfinite(table(r).train_loss).all() and len(report(r)) == 3
    assert load_network(r.path/'student.safetensors').training is False


@pytest.fixture(scope='module')
def independent(teacher): return run(teacher[0], 'teacher.independent=true')

@pytest.mark.parametrize('name', ['agreement', 'kl'])
def test_fidelity_with_its_intervals(independent, name):
    row = table(independent, 'fidelity_statistics').set_index('statistic').loc[name]
    assert row.value == pytest.approx(report(independent)[name]['student'], abs=1e-5)
    assert row.low <= row.value <= row.high

@pytest.mark.parametrize('i', range(3))
def test_cka_of_the_stages(independent, i):
    value = table(independent, 'fidelity_statistics').set_index('statistic').value[f'cka_{i}']
    assert 0 < value <= 1 and value == pytest.approx(table(independent)[f'test_cka_{i}'].iloc[-1], abs=1e-4)

def test_the_difference_of_the_students(independent):
    students = report(independent).agreement
    difference = table(independent, 'fidelity_differences').set_index('statistic').difference['agreement']
    assert difference == pytest.approx(students['student'] - students['independent student'], abs=1e-5)
