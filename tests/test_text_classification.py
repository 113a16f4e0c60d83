"The text experiment from end to end: the paper's commands on a small fake of IMDB, teachers, students, files, and what is refused."
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import gnosis_nb.cli as cli
import gnosis_nb.distill as distill
import gnosis_nb.experiment as experiment
from fakes import fake_imdb
from gnosis_nb.cli import compose
from gnosis_nb.data.text import load_text
from gnosis_nb.experiment import ConfigError, image_classification, load_network, load_teachers, load_texts, text_classification
from gnosis_nb.losses import LOSSES
from gnosis_nb.models import build_classifier
from gnosis_nb.runs import find_runs
from test_image_classification import COLUMNS, HostReads, checkpoints, loaded, report, states_below, table, weights

ROOT = Path(__file__).parent.parent
SMALL = ['dataset=sentences', 'scale=smoke', 'dataset.num_train=300', 'dataset.num_test=101', 'dataloader.batch_size=64', 'device=cpu']
TEACHERS = [*SMALL, 'trainer.distill_teacher=false']


def run(data_dir, *overrides):
    "A run below `data_dir`, and the lines it said."
    lines = []
    return text_classification(compose([*overrides, 'force=true', f'data_dir={data_dir}'], 'text_classification'), say=lines.append), lines

@pytest.fixture(scope='module')
def pool(tmp_path_factory):
    "A folder with a run that trained three teachers for one epoch; for reading only."
    folder = tmp_path_factory.mktemp('pool')
    run(folder, *TEACHERS, 'teacher.num_components=3', 'job_name=three')
    return folder

@pytest.fixture
def learners(monkeypatch):
    "Every Learner, by who learns."
    seen = dict(teacher=[], student=[])
    for who in seen:
        def spy(*args, make=getattr(experiment, f'{who}_learner'), into=seen[who], **kwargs):
            into.append(make(*args, **kwargs))
            return into[-1]
        monkeypatch.setattr(experiment, f'{who}_learner', spy)
    return seen


# The commands of the paper

def command(line, trials=(0, 1, 2)):
    "One after the other, the runs of a command line with `trial_id=0,1,2`, one epoch each, named by their trial."
    for t in trials:
        lines = []
        cfg = compose([*line.split(), f'trial_id={t}', 'trainer.num_epochs=1', f'job_name=trial{t}'], 'text_classification')
        yield text_classification(cfg, say=lines.append), lines

def test_commands_of_the_paper(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fake_imdb(tmp_path/'data'/'datasets'/'imdb'/'aclImdb', monkeypatch)
    for t, (r, lines) in enumerate(command('teacher.use_ckpts=False trainer.distill_teacher=False')):
        assert r.path.parent == Path(f'data/experiments/text_classification/trial{t}')
        assert not loaded(lines) and checkpoints(r) == {'teacher_init_0', 'teacher_0'}
        assert r.config['seed'] == t and table(r, 'teacher_0_train_metrics').lr.tolist() == [.05]
    for t, (r, lines) in enumerate(command('exp_name=student_lstm_baseline_results')):
        assert loaded(lines) == [f'trial{t}/teacher_0'] and checkpoints(r) == {'student_init', 'student'}
        assert {'config.yaml', 'state.json', 'summary.json', 'fidelity.csv', 'fidelity.png', 'words.txt', 'tensorboard'} <= {o.name for o in r.path.iterdir()}
        df = table(r)
        assert [o for o in df if o in COLUMNS] == [o for o in COLUMNS if 'cka' not in o] and df.notna().all(axis=None) and len(df) == 1
        assert df.train_ts_agree[0] == pytest.approx(round(df.train_ts_agree[0]*40)/40)            # all 40 reviews
        assert list(report(r).index) == ['teacher', 'student', 'teacher_0']
        words = (r.path/'words.txt').read_text(encoding='utf-8').split('\n')
        assert words[0] == '<unk>' and weights(r, 'student')['embed.weight'].shape == (len(words), 128)
    assert {tuple(o) for o in find_runs('data/experiments')[['state', 'dataset.name', 'classifier.name']].to_numpy()} == {('done', 'imdb', 'lstm')}

def test_the_papers_settings_are_one_override_away(tmp_path, monkeypatch, learners):
    reviews = fake_imdb(tmp_path/'aclImdb', monkeypatch)
    r, _ = run(tmp_path, f'dataset.root_dir={reviews}', 'scale=paper', 'trainer.num_epochs=1', 'teacher.num_components=2', 'device=cpu')
    assert weights(r, 'student')['lstm.weight_hh_l1_reverse'].shape == (280, 70)
    for learn in learners['teacher'] + learners['student']:
        group, = learn.opt.opt.param_groups
        assert (group['initial_lr'] if 'initial_lr' in group else .01, group['weight_decay'], group['momentum'], group['nesterov'], learn.dls.train.bs) == (.01, 1e-3, .9, True, 100)
    assert learners['student'][0].distillation.temp == 1.


# Teachers

def test_an_ensemble_is_trained_and_distilled_and_only_what_is_missing_is_trained(pool, tmp_path):
    r, lines = run(tmp_path, *SMALL, 'teacher.num_components=3', f'teacher.ckpt_dir={pool}')
    assert loaded(lines) == [f'three/teacher_{i}' for i in range(3)] and checkpoints(r) == {'student_init', 'student'}
    df, cfg = report(r), r.config
    assert list(df.index) == ['teacher', 'student', 'teacher_0', 'teacher_1', 'teacher_2']
    test = load_text('sentences', num_train=300, num_test=101).test
    nets = [*(load_network(o) for o in r.state['teachers'][0]), load_network(r.path/'student.safetensors')]
    logits = []
    for net in nets:                                                         # a text at a time, without any padding
        with torch.no_grad(): logits.append(torch.cat([net(torch.cat([n[None], test.ids[s:s + n].long()])[:, None]) for s, n in zip(test.starts, test.lengths)]).softmax(-1))
    teacher, student = torch.stack(logits[:3]).mean(0), logits[3]
    assert df.accuracy.tolist() == pytest.approx([(o.argmax(-1) == test.targets).float().mean().item() for o in (teacher, student, *logits[:3])], abs=1e-6)
    assert df.loc['student', 'agreement'] == pytest.approx((teacher.argmax(-1) == student.argmax(-1)).float().mean().item(), abs=1e-6)
    assert df.loc['student', 'kl'] == pytest.approx((teacher*(teacher/student).log()).sum(-1).mean().item(), abs=1e-5)
    assert df.loc['student', 'nll'] == pytest.approx(-student.log()[range(101), test.targets].mean().item(), abs=1e-5)

def test_an_independent_baseline_trains_what_it_lacks(tmp_path):
    run(tmp_path, *TEACHERS, 'teacher.num_components=3', 'job_name=three')
    r, lines = run(tmp_path, *SMALL, 'teacher.num_components=2', 'teacher.independent=true')
    assert loaded(lines) == [f'three/teacher_{i}' for i in range(3)]
    assert checkpoints(r) == {'teacher_init_3', 'teacher_3', 'student_init', 'student', 'independent_student_init', 'independent_student'}
    assert list(report(r).index) == ['teacher', 'student', 'independent student', 'teacher_0', 'teacher_1']

def find(folder, *overrides):
    cfg, lines = compose([*SMALL, *overrides, 'teacher.num_components=3', f'data_dir={folder}'], 'text_classification'), []
    load_teachers(cfg, load_texts(cfg)[1], lines.append)
    return loaded(lines)

@pytest.mark.parametrize('other', ['dataset.seed=1', 'dataset.noise=0.1', 'dataset.min_freq=3', 'dataset.max_len=10', 'teacher.depth=2', 'classifier.lstm_cell_size=8', 'classifier.bidirectional=false',
    'trainer.eval_dataset=val', 'dataset.subsample.ratio=0.5', 'dataset.shuffle_train_targets.enabled=true', 'teacher.trainer.num_epochs=5', 'teacher.use_ckpts=false'])
def test_teachers_of_another_experiment_are_not_used(pool, other): assert find(pool, other) == []

@pytest.mark.parametrize('same', ['trainer.num_epochs=7', 'distill_loader.temp=4', 'dataloader.bucket=true', 'dataset.backend=builtin', 'dataset.download=false'])
def test_teachers_of_the_same_experiment_are_used(pool, same): assert find(pool, same) == [f'three/teacher_{i}' for i in range(3)]

def test_a_checkpoint_of_the_original_program_is_a_teacher_where_it_is_pointed_at(tmp_path):
    (tmp_path/'theirs').mkdir()
    words = load_text('sentences', num_train=300, num_test=101).words
    net = build_classifier('lstm', 2, num_words=len(words), embedding_size=16, lstm_cell_size=16, seed=5)
    torch.save(net.state_dict(), tmp_path/'theirs'/'teacher_0.ckpt')
    r, lines = run(tmp_path, *SMALL, 'teacher.ckpt_path=theirs')
    assert loaded(lines)[0].endswith('/teacher_0') and checkpoints(r) == {'student_init', 'student'}
    with pytest.raises(ConfigError, match=r"teacher\.ckpt_dir: .*'embed.weight' has shape"): run(tmp_path, *SMALL, 'dataset.min_freq=30', 'teacher.ckpt_dir=theirs')


# Same seed, same bits

def test_the_same_seed_gives_the_same_bits(tmp_path):
    overrides = *SMALL, 'teacher.num_components=2', 'trainer.num_epochs=2', 'dataloader.bucket=true'
    (a, _), (b, _), (c, _) = (run(tmp_path/str(i), *overrides, f'trial_id={t}') for i, t in enumerate((0, 0, 1)))
    for name in checkpoints(a):
        for k, v in weights(a, name).items(): assert torch.equal(v, weights(b, name)[k]), (name, k)
    for name in ('student_train_metrics', 'teacher_0_train_metrics', 'teacher_1_train_metrics', 'fidelity'):
        assert (a.path/f'{name}.csv').read_bytes() == (b.path/f'{name}.csv').read_bytes() != (c.path/f'{name}.csv').read_bytes()
    assert not torch.equal(weights(a, 'teacher_0')['embed.weight'], weights(a, 'teacher_1')['embed.weight'])

def test_teachers_trained_together_are_those_trained_one_by_one(tmp_path):
    overrides = *SMALL, 'teacher.num_components=2', 'teacher.independent=true'
    (one, _), (many, _) = (run(tmp_path/str(k), *overrides, f'trainer.parallel_models={k}') for k in (1, 4))
    assert checkpoints(one) == checkpoints(many) and len(checkpoints(one)) == 12
    for name in checkpoints(one):
        for k, v in weights(one, name).items(): assert torch.equal(v, weights(many, name)[k]), (name, k)

def test_remembered_teachers_answer_as_they_would(pool, tmp_path, monkeypatch):
    asked, ask = [], distill.Distillation._ask
    monkeypatch.setattr(distill.Distillation, '_ask', lambda self: asked.append(self.learn.training) or ask(self))
    overrides = *SMALL, 'trainer.num_epochs=3', f'teacher.ckpt_dir={pool}', 'trainer.precision=fp32'
    counts, runs = [], []
    for gb in (1, 0):
        asked.clear()
        runs.append(run(tmp_path/str(gb), *overrides, f'trainer.teacher_cache={gb}')[0])
        counts.append(sum(asked))
    assert counts[1] == 15 and 5 <= counts[0] < 10                           # five batches an epoch; shuffled ones may meet a new row in the second
    np.testing.assert_allclose(table(runs[0]).to_numpy(), table(runs[1]).to_numpy(), atol=1e-4)


# What is trained on, and measured on

def test_two_splits_are_all_texts(tmp_path, learners):
    r, _ = run(tmp_path, *SMALL, 'dataset.subsample.ratio=0.4', 'distill_loader.splits=[0,1]', 'distill_loader.temp=[1,2]')
    dl = learners['student'][0].dls.train
    assert len(learners['teacher'][0].dls.train.dataset) == 120 and [len(o.dataset) for o in dl.parts] == [120, 180]
    train = load_text('sentences', num_train=300, num_test=101).train
    seen, rows = [], 0
    for x, y, temp in dl:
        assert x.shape[1] == len(y) == len(temp) and len(x) == 1 + x[0].max()
        assert not any(x[1 + n:, i].any() for i, n in enumerate(x[0]))
        seen += [(*c[1:1 + c[0]], t) for c, t in zip(x.T.tolist(), y.tolist())]
        rows += (temp == 1).sum().item()
    assert rows == 120
    assert sorted(seen) == sorted((*train.ids[s:s + n].tolist(), t) for s, n, t in zip(train.starts.tolist(), train.lengths.tolist(), train.targets.tolist()))

def test_shuffled_labels_are_for_training_only(tmp_path, learners):
    run(tmp_path, *SMALL, 'dataset.shuffle_train_targets.enabled=true', 'dataset.shuffle_train_targets.ratio=0.5')
    sets = load_text('sentences', num_train=300, num_test=101)
    for dls in (learners['teacher'][0].dls, learners['student'][0].dls): assert torch.equal(dls.valid.dataset.targets, sets.test.targets)
    changed = (learners['teacher'][0].dls.train.dataset.targets != sets.train.targets).float().mean()
    assert .1 < changed < .4

def test_evaluation_on_held_out_training_texts(tmp_path, learners):
    run(tmp_path, *TEACHERS, 'trainer.eval_dataset=val')
    dls = learners['teacher'][0].dls
    assert (len(dls.train.dataset), len(dls.valid.dataset)) == (240, 60)

@pytest.mark.parametrize('loss', sorted(LOSSES))
def test_every_loss_trains(pool, tmp_path, loss):
    r, lines = run(tmp_path, *SMALL, f'loss={loss}', 'teacher.num_components=3', f'teacher.ckpt_dir={pool}')
    assert len(loaded(lines)) == 3 and np.isfinite(table(r).to_numpy()).all() and table(r).train_loss[0] > 0
    assert any(not torch.equal(v, weights(r, 'student')[k]) for k, v in weights(r, 'student_init').items())

def test_bf16_is_close_to_fp32(tmp_path):
    full, half = (run(tmp_path/o, *SMALL, f'trainer.precision={o}')[0] for o in ('fp32', 'bf16'))
    for name in ('teacher_0_train_metrics', 'student_train_metrics'):
        assert table(half, name).train_loss[0] == pytest.approx(table(full, name).train_loss[0], rel=.02)
    assert all(v.dtype == torch.float32 for v in weights(half, 'student').values())

def test_nothing_is_read_from_the_device_between_the_batches_of_an_epoch(pool, tmp_path, monkeypatch):
    reads, rows, before, after = [], experiment.TextLoader.rows, distill.FidelityTable.before_train, distill.FidelityTable.after_train
    def enter(self):
        before(self)
        self.mode = HostReads(); self.mode.__enter__()
    def leave(self):
        self.mode.__exit__(None, None, None); reads.append(self.mode.seen)
        after(self)
    monkeypatch.setattr(distill.FidelityTable, 'before_train', enter); monkeypatch.setattr(distill.FidelityTable, 'after_train', leave)
    run(tmp_path, *SMALL, f'teacher.ckpt_dir={pool}', 'trainer.teacher_cache=0', 'trainer.optimizer.name=SGD')        # Adam reads its step count, on the CPU
    assert reads == [['aten._local_scalar_dense.default']*5]                 # the greatest length of each batch, from the loader's own copy on the CPU


# Failures

def test_a_run_that_fails_says_so(pool, tmp_path, monkeypatch):
    def break_down(self): raise RuntimeError('the disk is full')
    monkeypatch.setattr(distill.FidelityTable, 'after_epoch', break_down)
    with pytest.raises(RuntimeError, match='the disk is full'): run(tmp_path, *SMALL, f'teacher.ckpt_dir={pool}')
    assert states_below(tmp_path) == ['failed'] and not list(tmp_path.rglob('student.safetensors'))

def test_a_teacher_that_diverges_is_a_failure(tmp_path):
    with pytest.raises(FloatingPointError, match='diverged'): run(tmp_path, *TEACHERS, 'trainer.optimizer.name=SGD', 'trainer.optimizer.lr=1e30', 'trainer.num_epochs=3')
    assert states_below(tmp_path) == ['failed'] and not list(tmp_path.rglob('teacher_0.safetensors'))

@pytest.mark.parametrize('overrides', [
    ['dataset.max_len=0'],
    ['dataset.min_freq=many'],
    ['dataset.noise=2'],
    ['dataset.num_test=1'],
    ['dataset.backend=spacy'],
    ['classifier.depth=0'],
    ['classifier.bidirectional=2'],
    ['+classifier.dropout=0.1'],
    ['classifier=preresnet'],
    ['+trainer.freeze_bn=true'],
    ['+distill_loader.mixup_alpha=1.'],
    ['+dataset.statistics.mean=[0.5]'],
    ['dataloader.bucket=2'],
    ['distill_loader.splits=[]'],
    ['distill_loader.temp=[1,2]'],
    ['dataset.subsample.ratio=0.001'],
    ['distill_loader.drop_last=true', 'dataloader.batch_size=2000'],
    ['trainer.precision=fp16'],
    ['teacher.ckpt_dir=nowhere']])
def test_settings_that_cannot_be_are_refused_before_anything_is_begun(tmp_path, overrides):
    with pytest.raises(ConfigError) as e: run(tmp_path, *SMALL, *overrides)
    key = overrides[0].split('=')[0].lstrip('+').split('.')[-1]
    assert key in str(e.value) and '\n' not in str(e.value)
    assert not states_below(tmp_path)

def test_images_are_no_texts(tmp_path):
    with pytest.raises(ConfigError, match="dataset.name='digits': expected a word: one of imdb, sentences"): run(tmp_path, 'dataset=digits')
    with pytest.raises(ConfigError, match="dataset.name='imdb': expected a word: one of cifar10"): image_classification(compose(['dataset=imdb', f'data_dir={tmp_path}']))


# The command

def script(cwd, *args):
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT)}
    return subprocess.run([sys.executable, ROOT/'scripts'/'text_classification.py', *args], cwd=cwd, env=env, text=True, capture_output=True)

def test_two_trials_from_an_empty_folder(tmp_path):
    p = script(tmp_path, '-m', *SMALL, 'trial_id=0,1')
    assert p.returncode == 0, p.stderr
    runs = find_runs(tmp_path/'data'/'experiments')
    assert runs.state.tolist() == ['done']*2 and runs['trial_id'].tolist() == [0, 1]
    assert 'texts/s' in p.stderr and p.stdout.count('agreement') == 2 and {o.name for o in tmp_path.iterdir()} == {'data'}

def test_missing_reviews_are_one_line_and_exit_status_1(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', ['gnosis-text-classification'])
    with pytest.raises(SystemExit) as e: cli.text_classification()
    assert e.value.code.startswith('error: IMDB is missing or damaged: looked for train/pos in data/datasets/imdb/aclImdb') and '\n' not in e.value.code
    assert not states_below(tmp_path)

@pytest.mark.parametrize('setting, message', [
    ('trainer.num_epoch=1', 'error: trainer.num_epoch: unknown key, did you mean trainer.num_epochs?'),
    ('trainer.freeze_bn=true', 'error: trainer.freeze_bn: unknown key')])
def test_a_bad_key_is_one_line(tmp_path, monkeypatch, setting, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', ['gnosis-text-classification', 'dataset=sentences', setting])
    with pytest.raises(SystemExit) as e: cli.text_classification()
    assert e.value.code.startswith(message) and '\n' not in e.value.code and not list(tmp_path.iterdir())
