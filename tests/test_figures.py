"The paper's figures: presets, sweeps that are stopped, launchers, targets, claims."
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from gnosis_nb.cli import COMMANDS, compose_sweep
from gnosis_nb.settings import check_combinations, check_settings
from gnosis_nb.figures import CLAIMS, FIGURES, Results, check_claims, collect, done_runs, interval, results, sweep_jobs, targets, teacher_jobs, train, verdict
from gnosis_nb.runs import find_runs, run_identity

ROOT = Path(__file__).parent.parent
PRESETS = sorted(o.stem for o in (ROOT/'gnosis_nb/config/experiment').glob('*.yaml'))
SMALLEST = ['+experiment=fig14', 'scale=smoke', 'teacher.num_components=1']

def multirun(data_dir, *overrides, **kwargs):
    code = 'from gnosis_nb.cli import image_classification as f; f()'
    return subprocess.Popen([sys.executable, '-c', code, '-m', *SMALLEST, f'data_dir={data_dir}', *overrides], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **kwargs)

def table(data_dir): return collect(sweep_jobs('fig14', 'smoke', ['teacher.num_components=1', f'data_dir={data_dir}']), data_dir)


# Presets

@pytest.mark.parametrize('preset', PRESETS)
@pytest.mark.parametrize('scale', ['smoke', 'small', 'paper'])
def test_presets_compose(preset, scale):
    command = dict(table2='text_classification', fig07='image_generation').get(preset, 'image_classification')
    jobs = compose_sweep([f'+experiment={preset}', f'scale={scale}', 'trial_id=0,1'], command)
    assert len(jobs) >= 2 and {cfg['trial_id'] for _, cfg in jobs} == {0, 1}
    for _, cfg in jobs:
        check_settings(cfg, COMMANDS[command][1])
        if command != 'image_generation': check_combinations(cfg)
        assert cfg['scale'] == scale
    assert len({run_identity(cfg) for _, cfg in jobs}) == len(jobs)

def test_every_sweep_has_a_preset():
    used = {preset for f in FIGURES.values() for preset in f.sweeps}
    assert used == set(PRESETS)
    assert {f'fig{i:02}' for i in range(1, 15)} | {'table1', 'table2', 'table2_imagenet'} == set(FIGURES)

@pytest.mark.parametrize('preset, key, value', [('fig03', 'teacher.num_components', 5), ('fig03', 'classifier.depth', 56), ('fig03', 'trainer.num_epochs', 300), ('fig03', 'dataloader.batch_size', 128),
    ('fig03', 'teacher.trainer.num_epochs', 200), ('fig03', 'teacher.trainer.batch_size', 256), ('fig03', 'teacher.trainer.lr', .1), ('fig03', 'teacher.trainer.eta_min', 0.), ('fig03', 'teacher.trainer.nesterov', False),
    ('fig01', 'distill_loader.temp', 1.), ('fig01', 'dataset.name', 'cifar100'), ('fig01', 'classifier.depth', 56), ('fig02', 'dataset.num_data', 200), ('fig02', 'teacher.trainer.num_epochs', 100), ('fig04', 'dataset.subsample.ratio', .5),
    ('fig06', 'classifier.norm', 'layer'), ('fig06', 'trainer.optimizer.weight_decay', 0.), ('fig06b', 'teacher.ckpt_init.type', 'final'), ('fig09', 'classifier.depth', 20), ('fig13', 'classifier.depth', 16), ('fig14', 'distill_loader.temp', 1.), ('table1', 'classifier.depth', 20),
    ('table2_imagenet', 'classifier', dict(name='resnet', depth=50)), ('table2_imagenet', 'dataset.name', 'imagenet'), ('table2_imagenet', 'dataloader.batch_size', 1024), ('table2_imagenet', 'trainer.lr_scheduler.warmup_epochs', 5),
    ('table2_imagenet', 'trainer.optimizer', dict(name='SGD', lr=.1, weight_decay=0., momentum=.9, nesterov=False)), ('table2_imagenet', 'teacher.trainer.weight_decay', 1e-4)])
def test_settings_of_the_paper(preset, key, value):
    cfg = compose_sweep([f'+experiment={preset}', 'scale=paper', 'trial_id=0'])[0][1]
    for k in key.split('.'): cfg = cfg[k]
    assert cfg == value

def test_figures_share_runs():
    runs = lambda preset, *more: {run_identity(cfg) for _, cfg in compose_sweep([f'+experiment={preset}', 'scale=paper', 'trial_id=0', *more])}
    assert runs('fig03') <= runs('fig11')
    assert runs('fig01') <= runs('fig05')
    assert runs('fig14', 'loss.alpha=0.0', 'teacher.num_components=5') <= runs('fig03')
    assert runs('fig01', 'distill_loader.synth_ratio=0.0') <= runs('fig14')


# Sweeps

def test_a_killed_sweep_goes_on(tmp_path):
    first = multirun(tmp_path, start_new_session=True)
    for _ in range(600):
        if done_runs(tmp_path): break
        time.sleep(.1)
    os.killpg(first.pid, signal.SIGKILL); first.communicate()
    before = {i: p.stat().st_mtime_ns for i, p in done_runs(tmp_path).items()}
    assert 1 <= len(before) < 4
    again = multirun(tmp_path)
    out, _ = again.communicate(timeout=300)
    assert again.returncode == 0 and out.count('already done') == len(before)
    assert len(done_runs(tmp_path)) == 4 and set(find_runs(tmp_path).state) == {'done'}
    assert before == {i: p.stat().st_mtime_ns for i, p in done_runs(tmp_path).items() if i in before}

def test_two_workers_make_the_same_table(tmp_path):
    for name, more in dict(one=[], two=['hydra/launcher=joblib', 'hydra.launcher.n_jobs=2']).items():
        teachers = teacher_jobs(sweep_jobs('fig14', 'smoke', ['teacher.num_components=1', f'data_dir={tmp_path/name}']))
        for args in ([*teachers[0][2:], 'scale=smoke'], []):
            run = multirun(tmp_path/name, *args, *(more if not args else []))
            out, _ = run.communicate(timeout=300)
            assert run.returncode == 0, out
    a, b = (table(tmp_path/o).drop(columns='path') for o in ('one', 'two'))
    assert len(a) == 4
    pd.testing.assert_frame_equal(a, b)

def test_imagenet(tmp_path):
    "The paper's settings on photographs of many sizes in ImageNet's folders, read from disk while they are learnt; a smaller network and fewer epochs."
    rng = np.random.default_rng(0)
    for split, n in (('train', 12), ('val', 6)):
        for k, colour in enumerate(((200, 60, 60), (60, 60, 200))):
            folder = tmp_path/'imagenet'/split/f'n0000{k}'; folder.mkdir(parents=True)
            for i in range(n):
                pixels = np.clip(rng.normal(colour, 40, (*rng.integers(60, 120, 2), 3)), 0, 255).astype('uint8')
                Image.fromarray(pixels).save(folder/f'{i}.JPEG')
    less = ['classifier.depth=18', 'dataset.size=48', 'dataset.resize=56', 'dataset.memory_limit=0', 'dataloader.batch_size=8', 'dataloader.num_workers=0', 'teacher.num_components=1', 'trial_id=0', 'trainer.optimizer.lr=0.01',
            *(f'{o}.num_epochs=6' for o in ('trainer', 'teacher.trainer')), 'teacher.trainer.batch_size=8', 'teacher.trainer.lr=0.01']
    jobs = train('table2_imagenet', 'paper', [f"dataset.root_dir={tmp_path/'imagenet'}", 'device=cpu', *less], tmp_path/'runs', here=True)
    r = results('table2_imagenet', 'paper', jobs, tmp_path/'runs')
    assert r.rows.data.tolist() == ['ImageNet'] and r.rows.network.tolist() == ['resnet']
    assert np.isfinite(r.rows[['accuracy', 'teacher_accuracy', 'agreement', 'kl', 'cka_3']].to_numpy()).all()
    rates = pd.read_csv(next((tmp_path/'runs'/'table2_imagenet').rglob('student_train_metrics.csv'))).lr
    assert rates.tolist() == pytest.approx([.01*(i + 1)/6 for i in range(6)])     # five epochs of warming up


# The paper's numbers

TYPED = [('table1', 'random', 'agreement', '', 77.174, .352), ('table1', 'random', 'kl', '', .836, .016), ('table1', "teacher's initial weights", 'cka_2', '', .890, .015),
         ('fig09', 1, 'accuracy', 'm = 1', 59.38, None), ('fig09', 4, 'agreement', 'm = 3', 72.77, None), ('fig09', 16, 'agreement', 'm = 5', 74.92, None), ('fig09', 8, 'accuracy', 'm = 3', 62.12, None),
         ('table2', 1, 'agreement', 'IMDB', 86.488, .521), ('table2', 5, 'kl', 'IMDB', .052, .001), ('table2_imagenet', 3, 'accuracy', 'ImageNet', 75.5, None), ('fig06', 300, 'train_agreement', 'SGD', 78.95, None), ('fig06', 5000, 'train_agreement', 'SGD', 83.3, None)]
READ = [('fig03', 'MixUp', 'accuracy', 'm = 5', 75.), ('fig03', 'Noise', 'agreement', 'm = 5', 78.5), ('fig14', .3, 'accuracy', 'm = 3', 72.1), ('fig14', .7, 'agreement', 'm = 5', 77.5),
        ('fig01', .25, 'agreement', 'm = 1', 73.5), ('fig01', 1., 'agreement', 'm = 3', 80.), ('fig10', 12, 'agreement', 'τ = 4', 86.), ('fig13', 'CombAug', 'nll', '', 1.)]

@pytest.mark.parametrize('figure, x, metric, series, value, std, printed', [(*o, True) for o in TYPED] + [(*o, None, False) for o in READ])
def test_targets(figure, x, metric, series, value, std, printed):
    t = targets()
    row = t[(t.figure == figure) & (t.x == x) & (t.metric == metric) & (t.series == series)]
    assert row.value.tolist() == [value] and row.printed.tolist() == [printed]
    assert np.isnan(row['std'].item()) if std is None else row['std'].item() == std


# Claims

def test_interval():
    mean, low, high = interval([2., 4., 6., 8.])
    assert mean == 5. and high - mean == pytest.approx(3.182446*np.std([2, 4, 6, 8], ddof=1)/2, rel=1e-6) and mean - low == pytest.approx(high - mean)
    assert np.isnan(interval([3.])[1]) and np.isnan(interval([])[0])

@pytest.mark.parametrize('values, margin, scale, expected', [([1, 2, 1.5], None, 'small', 'holds'), ([-1, -2, -1.5], None, 'paper', 'fails'), ([1, -1, 2], None, 'small', 'undecided'), ([5], None, 'paper', 'undecided'),
    ([1, 2, 1.5], None, 'smoke', 'undecided'), ([.1, .2, .15], 1, 'small', 'holds'), ([-2, -2.1, -1.9], 1, 'small', 'fails'), ([.9, 1.1, 1.], 1, 'small', 'undecided')])
def test_verdict(values, margin, scale, expected): assert verdict(values, scale, margin) == expected

def test_effects_are_paired():
    "A shift of both conditions of a trial changes no effect."
    def rows(shift): return pd.DataFrame([dict(trial=t, policy=p, agreement=a + shift*t, accuracy=70 + t, nll=1., teacher_nll=1.1) for t in range(3) for p, a in (('Baseline', 80), ('MixUp', 83 + .1*t), ('MixUp τ=4', 85 + .1*t))])
    a, b = (check_claims(Results('fig03', 'small', rows(s), {})).set_index('claim') for s in (0., 7.))
    best = 'MixUp with τ = 4 has the best fidelity'
    assert a.loc[best].equals(b.loc[best]) and a.effect[best] == pytest.approx(2.) and a.verdict[best] == 'holds'

def test_claims_that_are_not_measured():
    c = check_claims(Results('fig03', 'paper', pd.DataFrame([dict(trial=0, policy='Baseline', accuracy=70., agreement=80.)]), {}))
    assert set(c.verdict) == {'not measured', 'undecided'}
    assert {o.figure for o in CLAIMS} <= set(FIGURES)
