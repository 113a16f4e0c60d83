"Students that start on the way to their teacher, and what every distilled run reports of its fidelity."

import numpy as np
import pandas as pd
import pytest
import torch

from gnosis_nb.cli import compose
from gnosis_nb.experiment import ConfigError, image_classification, load_network, text_classification
from gnosis_nb.checkpoint import load_checkpoint

SMALL = ['dataset=digits', 'dataset.size=8', 'classifier.depth=8', 'dataloader.batch_size=128', 'trainer.num_epochs=1', 'trainer.precision=fp32', 'device=cpu']

def run(data_dir, *overrides, task=image_classification, config='image_classification', settings=SMALL):
    return task(compose([*settings, *overrides, f'data_dir={data_dir}'], config), say=lambda s: None)

def weights(path): return load_checkpoint(path)[0]
def between(own, other, loc): return {k: loc*v + (1 - loc)*other[k] if v.is_floating_point() else v for k, v in own.items()}
def parameters(state): return {k: v for k, v in state.items() if 'running' not in k and 'num_batches' not in k}

@pytest.fixture(scope='module')
def teacher(tmp_path_factory):
    "A trained teacher, and a student that starts from random weights."
    folder = tmp_path_factory.mktemp('pool')
    return folder, run(folder, 'trainer.distill_teacher=false', 'trainer.num_epochs=8'), run(folder)

@pytest.mark.parametrize('kind, of_teacher', [('init', 'teacher_init_0'), ('final', 'teacher_0')])
def test_where_a_student_starts(teacher, kind, of_teacher):
    folder, theirs, plain = teacher
    r = run(folder, f'teacher.ckpt_init.type={kind}', 'teacher.ckpt_init.loc_param=0.25')
    want = between(weights(plain.path/'student_init.safetensors'), weights(theirs.path/f'{of_teacher}.safetensors'), .25)
    got = weights(r.path/'student_init.safetensors')
    for k, v in parameters(got).items(): assert torch.allclose(v, want[k], atol=1e-6), k
    assert any(not torch.allclose(got[k], want[k], atol=1e-3) for k in got if 'running_var' in k)     # statistics are those of the new weights
    lr = pd.read_csv(r.path/'student_train_metrics.csv').lr[0]
    assert lr == pytest.approx(.05*.25 if kind == 'final' else .05)
    assert load_checkpoint(r.path/'student.safetensors')[1]['training']['lr'] == pytest.approx(lr)

def test_frozen_batchnorm_keeps_averaged_statistics(teacher):
    folder, theirs, plain = teacher
    r = run(folder, 'teacher.ckpt_init.type=final', 'teacher.ckpt_init.loc_param=0.5', 'trainer.freeze_bn=true')
    want = between(weights(plain.path/'student_init.safetensors'), weights(theirs.path/'teacher_0.safetensors'), .5)
    got = weights(r.path/'student_init.safetensors')
    for k in got:
        if 'running' in k: assert torch.allclose(got[k], want[k], atol=1e-6), k

def test_the_teacher_itself_is_its_most_faithful_student(teacher):
    r = run(teacher[0], 'teacher.ckpt_init.type=final', 'teacher.ckpt_init.loc_param=0')
    far = pd.read_csv(teacher[2].path/'fidelity.csv', index_col='model').agreement['student']
    near = pd.read_csv(r.path/'fidelity.csv', index_col='model').agreement['student']
    assert near > .98 > .9 > far

def test_texts_start_there_too(tmp_path):
    texts = ['dataset=sentences', 'dataset.num_train=400', 'dataset.num_test=100', 'trainer.num_epochs=1', 'trainer.precision=fp32', 'device=cpu']
    kwargs = dict(task=text_classification, config='text_classification', settings=texts)
    r = run(tmp_path, 'teacher.ckpt_init.type=final', 'teacher.ckpt_init.loc_param=0', **kwargs)
    a, b = weights(r.path/'student_init.safetensors'), weights(r.path/'teacher_0.safetensors')
    assert all(torch.equal(v, b[k]) for k, v in a.items())

def test_starts_that_cannot_be(teacher, tmp_path):
    folder, theirs, _ = teacher
    for settings, message in {('type=final', 'loc_param=2'): 'teacher.ckpt_init.loc_param=2: expected a number in', ('type=middle', 'loc_param=1'): "teacher.ckpt_init.type='middle'"}.items():
        with pytest.raises(ConfigError, match=message): run(folder, *(f'teacher.ckpt_init.{o}' for o in settings))
    with pytest.raises(ConfigError, match='teacher.ckpt_init'): run(folder, 'teacher.ckpt_init.type=final', 'teacher.depth=14')
    (tmp_path/'alone').mkdir()
    (tmp_path/'alone'/'teacher_0.safetensors').write_bytes((theirs.path/'teacher_0.safetensors').read_bytes())
    with pytest.raises(ConfigError, match='teacher.ckpt_init.type=init: there is no .*teacher_init_0'): run(tmp_path, 'teacher.ckpt_init.type=init')
    assert not (tmp_path/'image_classification').exists()


@pytest.mark.parametrize('overrides', [['classifier=preresnet8', 'classifier.norm=layer', 'trainer.optimizer.name=Adam', 'trainer.optimizer.lr=0.001', 'trainer.optimizer.weight_decay=0'],
                                       ['loss=decoupled_kd', 'loss.target=label'], ['loss=dist'], ['loss=logit_standardization', 'distill_loader.temp=2', 'loss.loss=ts_hard_cross_ent']])
def test_optimisers_and_newer_losses(teacher, overrides):
    r = run(teacher[0], *overrides)
    assert np.isfinite(pd.read_csv(r.path/'student_train_metrics.csv').train_loss).all() and len(pd.read_csv(r.path/'fidelity.csv')) == 3
    assert load_network(r.path/'student.safetensors').training is False

def test_fidelity_with_its_intervals(teacher):
    r = run(teacher[0], 'teacher.independent=true')
    report, table = (pd.read_csv(r.path/f'{o}.csv', index_col=0) for o in ('fidelity', 'fidelity_statistics'))
    for k in ('agreement', 'kl'):
        row = table.loc[k]
        assert row.value == pytest.approx(report[k]['student'], abs=1e-5) and row.low <= row.value <= row.high
    rows = pd.read_csv(r.path/'student_train_metrics.csv')
    for i in range(3): assert table.value[f'cka_{i}'] == pytest.approx(rows[f'test_cka_{i}'].iloc[-1], abs=1e-4) and 0 < table.value[f'cka_{i}'] <= 1
    differences = pd.read_csv(r.path/'fidelity_differences.csv', index_col=0)
    assert differences.difference['agreement'] == pytest.approx(report.agreement['student'] - report.agreement['independent student'], abs=1e-5)
