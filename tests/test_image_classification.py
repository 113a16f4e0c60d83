"The image experiment from end to end: teachers, students, files, and what is refused."
import json,os,re,shutil,subprocess,sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision import datasets

import gnosis_nb.cli as cli
import gnosis_nb.data.blocks as blocks
import gnosis_nb.distill as distill
import gnosis_nb.experiment as experiment
from fakes import fake_cifar
from gnosis_nb.cli import compose
from gnosis_nb.data.zoo import digits
from gnosis_nb.experiment import ConfigError, image_classification, load_data, load_teachers
from gnosis_nb.losses import LOSSES
from gnosis_nb.models import PreResNet, SNGANGenerator, build_classifier
from gnosis_nb.runs import Run, find_runs
from gnosis_nb.checkpoint import load_checkpoint, load_weights, save_checkpoint
from parity import fill_weights, recorded, rel_err

ROOT = Path(__file__).parent.parent
# the reference's columns, in its order
COLUMNS = '''train_loss train_acc train_ts_agree train_ece train_ts_kl lr epoch test_loss test_acc test_ece test_nll test_ts_agree test_ts_kl
    test_cka_0 test_cka_1 test_cka_2 teacher_train_acc teacher_test_acc'''.split()
SMALL = ['dataset=digits', 'dataset.size=8', 'dataloader.batch_size=256', 'trainer.num_epochs=1', 'device=cpu']
TEACHERS = [*SMALL, 'trainer.distill_teacher=false']


def run(data_dir, *overrides):
    "A run below `data_dir`, whatever has been done there, and the lines it said."
    lines = []
    return image_classification(compose([*overrides, 'force=true', f'data_dir={data_dir}']), say=lines.append), lines

def loaded(lines):
    "The teachers' files that a run said it has loaded, as <job>/teacher_<i>."
    files = [Path(o.split()[2]) for o in lines if o.startswith('teacher from ')]
    return [f'{o.parent.parent.name}/{o.stem}' for o in files]

def table(run, name='student_train_metrics'): return pd.read_csv(run.path/f'{name}.csv')
def report(run): return pd.read_csv(run.path/'fidelity.csv', index_col='model')
def weights(run, name): return load_checkpoint(run.path/f'{name}.safetensors')[0]
def checkpoints(run): return {o.stem for o in run.path.glob('*.safetensors')}
def states_below(folder): return [json.loads(o.read_text())['state'] for o in Path(folder).rglob('state.json')]


@pytest.fixture(scope='session')
def pool(tmp_path_factory):
    "A folder with a run that trained three teachers for one epoch; for reading only."
    folder = tmp_path_factory.mktemp('pool')
    run(folder, *TEACHERS, 'teacher.num_components=3', 'job_name=three')
    return folder

@pytest.fixture
def own_pool(pool, tmp_path):
    "The same to write to."
    return shutil.copytree(pool, tmp_path/'experiments')

@pytest.fixture
def counts(monkeypatch):
    "What every meter has counted, in order."
    seen, compute = [], distill.FidelityMeter.compute
    def spy(self):
        seen.append(compute(self))
        return seen[-1]
    monkeypatch.setattr(distill.FidelityMeter, 'compute', spy)
    return seen

@pytest.fixture
def batches(monkeypatch):
    "Every batch that a student was shown."
    seen, finish = [], blocks.DistillLoader.finish
    def spy(self, *args):
        seen.append(finish(self, *args))
        return seen[-1]
    monkeypatch.setattr(blocks.DistillLoader, 'finish', spy)
    return seen

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

@pytest.fixture
def fake_cifar100(tmp_path, monkeypatch):
    "40 training and 40 test images where CIFAR-100 belongs; the default places of data and runs."
    monkeypatch.chdir(tmp_path)
    fake_cifar(tmp_path/'data'/'datasets'/'cifar100', monkeypatch, datasets.CIFAR100, n=40)
    return tmp_path

def command(line, trials=(0, 1, 2)):
    "One after the other, the runs of a command line with `trial_id=0,1,2`, one epoch each, named by their trial."
    for t in trials:
        lines = []
        cfg = compose([*line.split(), f'trial_id={t}', 'trainer.num_epochs=1', f'job_name=trial{t}'])
        yield image_classification(cfg, say=lines.append), lines

def test_commands_of_the_paper(fake_cifar100, counts):
    teachers = '''teacher.use_ckpts=False classifier.depth=20 trainer.num_epochs=200 trainer.optimizer.lr=0.1
        trainer.lr_scheduler.eta_min=0. trainer.distill_teacher=False dataloader.batch_size=256'''
    for t, (r, lines) in enumerate(command(teachers)):
        assert r.path.parent == Path(f'data/experiments/image_classification/trial{t}')
        assert not loaded(lines) and checkpoints(r) == {'teacher_init_0', 'teacher_0'}
        assert table(r, 'teacher_0_train_metrics').lr.tolist() == [.1]
        assert (r.config['seed'], r.config['dataloader']['batch_size']) == (t, 256)
    counts.clear()

    for line, trials, wanted in [('exp_name=student_resnet_baseline_results', (0, 1, 2), dict(count=40, labelled=40)),
                                 ('exp_name=student_resnet_mixup_results distill_loader.mixup_alpha=1.', (2,), dict(count=40, labelled=0)),
                                 ('exp_name=student_resnet_synth-aug_results distill_loader.synth_ratio=0.2', (1,), dict(count=48, labelled=40))]:
        for t, (r, lines) in zip(trials, command(line, trials)):
            assert loaded(lines) == [f'trial{t}/teacher_0']
            assert checkpoints(r) == {'student_init', 'student'}
            assert {'config.yaml', 'state.json', 'summary.json', 'fidelity.csv', 'fidelity.png', 'tensorboard'} <= {o.name for o in r.path.iterdir()}
            train = next(o for o in counts if 'ts_agree' in o)                # the first meter with a teacher is the student's, in training
            assert {k: train[k] for k in wanted} == wanted
            df = table(r)
            if not wanted['labelled']: assert not {'train_acc', 'train_ece'} & set(df)
            assert [o for o in df if o in COLUMNS] == [o for o in COLUMNS if wanted['labelled'] or o not in ('train_acc', 'train_ece', 'teacher_train_acc')]
            assert df.notna().all(axis=None) and len(df) == 1
            assert df.train_ts_agree[0] == train['ts_agree'] == pytest.approx(round(train['ts_agree']*wanted['count'])/wanted['count'])
            assert df.filter(like='test_cka').iloc[-1].between(0, 1).all()
            counts.clear()
        assert any(o.startswith('generator: UNTRAINED') for o in lines) == ('synth' in line)


# Teachers

def test_an_ensemble_is_trained_and_distilled_and_only_what_is_missing_is_trained(own_pool):
    r, lines = run(own_pool, *SMALL, 'teacher.num_components=3')
    assert loaded(lines) == [f'three/teacher_{i}' for i in range(3)] and checkpoints(r) == {'student_init', 'student'}
    df = report(r)
    assert list(df.index) == ['teacher', 'student', 'teacher_0', 'teacher_1', 'teacher_2'] and df.loc['teacher', 'agreement'] == 1
    test = digits(size=8).test
    x, logits = test.images/127.5 - 1, []
    for name in [*(f'three/*/teacher_{i}' for i in range(3)), f'{r.path.parent.name}/*/student']:
        net = build_classifier('preresnet', 10, in_channels=1, input_size=8, depth=8).eval()
        load_weights(net, next((own_pool/'image_classification').glob(f'{name}.safetensors')))
        with torch.no_grad(): logits.append(net(x).softmax(-1))
    teacher, student = torch.stack(logits[:3]).mean(0), logits[3]
    assert df.accuracy.tolist() == pytest.approx([(o.argmax(-1) == test.targets).float().mean().item() for o in (teacher, student, *logits[:3])], abs=1e-6)
    assert df.loc['student', 'agreement'] == pytest.approx((teacher.argmax(-1) == student.argmax(-1)).float().mean().item(), abs=1e-6)
    assert df.loc['student', 'kl'] == pytest.approx((teacher*(teacher/student).log()).sum(-1).mean().item(), abs=1e-5)
    assert df.loc['student', 'nll'] == pytest.approx(-student.log()[range(450), test.targets].mean().item(), abs=1e-5)

    r, lines = run(own_pool, *TEACHERS, 'teacher.num_components=4', 'job_name=fourth')
    assert loaded(lines) == [f'three/teacher_{i}' for i in range(3)] and checkpoints(r) == {'teacher_init_3', 'teacher_3'}
    assert len(report(r)) == 5

    r, lines = run(own_pool, *SMALL, 'teacher.num_components=2', 'teacher.independent=true')
    assert loaded(lines) == ['three/teacher_0', 'three/teacher_1', 'three/teacher_2', 'fourth/teacher_3']
    assert list(report(r).index) == ['teacher', 'student', 'independent student', 'teacher_0', 'teacher_1']
    assert {'student', 'independent_student'} <= checkpoints(r)
    assert find_runs(own_pool)['independent_student_agreement'].notna().sum() == 1

def find(folder, *overrides):
    cfg, lines = compose([*SMALL, *overrides, 'teacher.num_components=3', f'data_dir={folder}']), []
    load_teachers(cfg, load_data(cfg)[1], lines.append)
    return loaded(lines)

@pytest.mark.parametrize('other', ['dataset.seed=1', 'dataset.size=9', 'teacher.depth=14', 'classifier.norm=layer', 'augmentation.normalization=zscore',
    'trainer.eval_dataset=val', 'dataset.subsample.ratio=0.5', 'dataset.statistics.max=[0.5]', 'teacher.trainer.num_epochs=5',
    'teacher.trainer.batch_size=64', 'dataset.shuffle_train_targets.enabled=true', 'teacher.use_ckpts=false'])
def test_teachers_of_another_experiment_are_not_used(pool, other):
    assert find(pool, other) == []

def test_teachers_of_another_data_set_are_not_used(pool, tmp_path, monkeypatch):
    fake_cifar(tmp_path, monkeypatch, datasets.CIFAR10)
    cfg, lines = compose(['dataset=cifar10', f'dataset.root_dir={tmp_path}', 'classifier.depth=8', f'data_dir={pool}']), []
    load_teachers(cfg, load_data(cfg)[1], lines.append)
    assert lines == []

@pytest.mark.parametrize('same', ['teacher.trainer.num_epochs=1', 'trainer.num_epochs=7', 'distill_loader.temp=1', 'dataset.shuffle_train_targets.seed=5'])
def test_teachers_of_the_same_experiment_are_used(pool, same):
    assert find(pool, same) == [f'three/teacher_{i}' for i in range(3)]

def test_trials_take_successive_teachers(pool):
    cfg = compose([*SMALL, 'teacher.independent=true', f'data_dir={pool}'])
    sets, used = load_data(cfg)[1], []
    for t in range(4):
        load_teachers({**cfg, 'trial_id': t}, sets, (lines := []).append)
        used.append([int(o[-1]) for o in loaded(lines)])
    assert [o[0] for o in used] == [0, 1, 2, 0]
    assert all(a != b for a, b in used)

@pytest.mark.parametrize('overrides', [['teacher.num_components=2'], ['teacher.independent=true']])
def test_the_same_teacher_is_not_taken_twice(tmp_path, overrides):
    for _ in range(2): run(tmp_path, *TEACHERS, 'teacher.use_ckpts=false')
    r, lines = run(tmp_path, *SMALL, *overrides)
    assert len(loaded(lines)) == 1 and 'teacher_1' in checkpoints(r)

def test_teachers_of_other_images_are_not_reused(tmp_path):
    from PIL import Image
    def folder(name, shade):
        for split in ('train', 'test'):
            for k in range(2):
                (tmp_path/name/'images'/split/f'class{k}').mkdir(parents=True)
                for i in range(4): Image.new('RGB', (8, 8), (shade + i, 40*k, 10*i)).save(tmp_path/name/'images'/split/f'class{k}'/f'{i}.png')
        return f"dataset.root_dir={tmp_path/name/'images'}"
    options = ['dataset=image_folder', 'classifier.depth=8', 'trainer.num_epochs=1', 'device=cpu', 'augmentation.transforms_list=[]']
    _, lines = run(tmp_path/'runs', *options, folder('a', 10))
    for name, shade, reused in (('b', 200, 0), ('c', 10, 1)):                # other pixels; the same in another place
        assert len(loaded(run(tmp_path/'runs', *options, folder(name, shade))[1])) == reused

def test_dropout_does_not_depend_on_what_was_trained_before(tmp_path):
    options = [*SMALL, 'dataset.size=32', 'classifier=vgg', 'classifier.depth=11', 'dataset.subsample.ratio=.1', 'job_name=vgg']
    first, again = (run(tmp_path, *options)[0] for _ in range(2))            # the second has its teacher from the first
    assert 'teacher_0' in checkpoints(first) and 'teacher_0' not in checkpoints(again)
    assert again.state['teachers'] == [[str(first.path/'teacher_0.safetensors')]]
    for k, v in weights(first, 'student').items(): assert torch.equal(v, weights(again, 'student')[k])

def test_a_missing_teacher_is_none_of_those_there(tmp_path):
    r, _ = run(tmp_path, *TEACHERS, 'teacher.num_components=2', 'job_name=two')
    (r.path/'teacher_0.safetensors').unlink()
    new, lines = run(tmp_path, *TEACHERS, 'teacher.num_components=2')
    assert loaded(lines) == ['two/teacher_1'] and len(report(new).loc[['teacher_0', 'teacher_1'], 'nll'].unique()) == 2

@pytest.mark.parametrize('key', ['ckpt_dir', 'ckpt_path'])
def test_where_checkpoints_are(pool, tmp_path, key):
    for folder, where in ((pool, 'image_classification/three'), (tmp_path, pool)):
        assert find(folder, f'teacher.{key}={where}') == [f'three/teacher_{i}' for i in range(3)]
    assert find(tmp_path) == []
    with pytest.raises(ConfigError, match=rf'teacher\.{key}=.*no .*nowhere'): find(pool, f'teacher.{key}=nowhere')

def state_dict(classes=10): return build_classifier('preresnet', classes, in_channels=1, input_size=8, depth=8, seed=5).state_dict()

def test_a_foreign_state_dict_is_a_teacher_where_it_is_pointed_at(tmp_path):
    (tmp_path/'theirs').mkdir()
    torch.save(state_dict(), tmp_path/'theirs'/'teacher_0.ckpt')
    r, lines = run(tmp_path, *SMALL, 'teacher.ckpt_dir=theirs')
    assert loaded(lines)[0].endswith('/teacher_0') and checkpoints(r) == {'student_init', 'student'}
    net = build_classifier('preresnet', 10, in_channels=1, input_size=8, depth=8, seed=5).eval()
    test = digits(size=8).test
    with torch.no_grad(): acc = (net(test.images/127.5 - 1).argmax(-1) == test.targets).float().mean().item()
    assert report(r).loc['teacher', 'accuracy'] == pytest.approx(acc, abs=1e-6)
    r, lines = run(tmp_path, *TEACHERS)                                     # not pointed at: nobody knows what it was trained on
    assert loaded(lines) == [] and 'teacher_0' in checkpoints(r)

class Hostile:
    def __init__(self, file): self.file = file
    def __reduce__(self): return os.system, (f'touch {self.file}',)

def test_a_hostile_checkpoint_is_refused(tmp_path):
    (tmp_path/'theirs').mkdir()
    torch.save(dict(weight=Hostile(tmp_path/'owned')), tmp_path/'theirs'/'teacher_0.ckpt')
    with pytest.raises(ConfigError) as e: run(tmp_path, *SMALL, 'teacher.ckpt_dir=theirs')
    message = str(e.value)
    assert message.startswith('teacher.ckpt_dir') and 'teacher_0.ckpt: refused' in message and 'system' in message and '\n' not in message
    assert not (tmp_path/'owned').exists() and not states_below(tmp_path)

def test_a_damaged_checkpoint_is_refused(tmp_path):
    (tmp_path/'teacher_0.ckpt').write_bytes(b'junk')
    with pytest.raises(ConfigError, match='^teacher.ckpt_dir.*teacher_0.ckpt: damaged'): run(tmp_path, *SMALL, 'teacher.ckpt_dir=.')

def test_checkpoints_with_other_classes_are_refused(tmp_path):
    for name in ('foreign', 'own'): (tmp_path/name).mkdir()
    torch.save(state_dict(20), tmp_path/'foreign'/'teacher_0.ckpt')
    save_checkpoint(tmp_path/'own'/'teacher_0', state_dict(20), facts=dict(classes=20, network=dict(name='preresnet', depth=8, skip_connections=True, norm='batch')), training={})
    with pytest.raises(ConfigError, match=r"teacher\.ckpt_dir: .*foreign/teacher_0\.ckpt: 'fc.*has shape \[20.*expected \[10"): run(tmp_path, *SMALL, 'teacher.ckpt_dir=foreign')
    with pytest.raises(ConfigError, match=r"teacher\.ckpt_dir=own: .*own/teacher_0.*classes is 20, expected 10"): run(tmp_path, *SMALL, 'teacher.ckpt_dir=own')
    assert not states_below(tmp_path)


# Seeds

def test_same_seed_same_bits(tmp_path, monkeypatch):
    fake_cifar(tmp_path/'images', monkeypatch, datasets.CIFAR10, n=16)
    torch.manual_seed(0)
    generator = SNGANGenerator(k=8)
    def go(name, *more):
        save_checkpoint(tmp_path/name/'gan'/'generator_10', generator)
        torch.rand(len(name))                                               # the global generator is elsewhere each time
        return run(tmp_path/name, 'dataset=cifar10', f'dataset.root_dir={tmp_path}/images', 'classifier.depth=8', 'trainer.num_epochs=2', 'trainer.eval_period=1',
                   'augmentation.transforms_list=[crop,horizontal_flip,colorjitter]', 'dataset.subsample.ratio=0.5', 'distill_loader.splits=[0,1]', 'distill_loader.temp=[1.,4.]',
                   'distill_loader.mixup_alpha=1', 'distill_loader.mixup_portion=0.5', 'distill_loader.synth_ratio=0.2', 'density_model.generator.k=8',
                   'dataloader.batch_size=16', 'teacher.num_components=2', *more)
    (a, said), (b, _), (c, _) = go('a'), go('bb'), go('c', 'seed=1')
    assert f'generator: {tmp_path}/a/gan/generator_10.safetensors' in said
    names = checkpoints(a)
    assert names == checkpoints(b) == {'teacher_init_0', 'teacher_init_1', 'teacher_0', 'teacher_1', 'student_init', 'student'}
    for name in names:
        x, y, z = (weights(r, name) for r in (a, b, c))
        assert list(x) == list(y) and all(torch.equal(x[k], y[k]) for k in x)
        assert not torch.equal(x['conv1.weight'], z['conv1.weight'])
    for name in ('student_train_metrics', 'teacher_0_train_metrics', 'teacher_1_train_metrics', 'fidelity'):
        assert (a.path/f'{name}.csv').read_bytes() == (b.path/f'{name}.csv').read_bytes() != (c.path/f'{name}.csv').read_bytes()
    assert not torch.equal(weights(a, 'teacher_0')['conv1.weight'], weights(a, 'teacher_1')['conv1.weight'])


# What is trained on, and measured on

def test_two_splits_are_all_rows(tmp_path, batches, counts):
    r, _ = run(tmp_path, *SMALL, 'augmentation.transforms_list=[]', 'dataset.subsample.ratio=0.5', 'distill_loader.splits=[0,1]', 'distill_loader.temp=[1,2]')
    train = digits(size=8).train
    x, y, temp = (torch.cat(o) for o in zip(*batches))
    assert len(x) == 1347 and {o['count'] for o in counts[:1]} == {673}      # the teacher has seen the first half
    rows = lambda x, y: torch.cat([x.flatten(1), y[:, None].float()], 1).unique(dim=0, return_counts=True)
    ours, wanted = rows(((x + 1)*127.5).round(), y), rows(train.images.float(), train.targets)
    assert all(torch.equal(*o) for o in zip(ours, wanted))
    assert temp.unique(return_counts=True)[1].tolist() == [673, 674]

def test_shuffled_labels_are_for_training_only(tmp_path, learners):
    run(tmp_path, *SMALL, 'dataset.shuffle_train_targets.enabled=true', 'dataset.shuffle_train_targets.ratio=0.5')
    sets = digits(size=8)
    for dls in (learners['teacher'][0].dls, learners['student'][0].dls):
        assert torch.equal(dls.valid.dataset.targets, sets.test.targets) and torch.equal(dls.valid.dataset.images, sets.test.images)
    data = learners['teacher'][0].dls.train.dataset
    changed = (data.targets != sets.train.targets).float().mean()
    assert .35 < changed < .5 and torch.equal(data.targets.bincount(), sets.train.targets.bincount())

def test_evaluation_on_held_out_training_images(tmp_path, learners, counts):
    run(tmp_path, *TEACHERS, 'trainer.eval_dataset=val', 'augmentation.transforms_list=[]')
    dls, train = learners['teacher'][0].dls, digits(size=8).train
    assert (len(dls.train.dataset), len(dls.valid.dataset)) == (1077, 270)
    both = torch.cat([dls.train.dataset.images, dls.valid.dataset.images]).flatten(1)
    assert torch.equal(both.unique(dim=0), train.images.flatten(1).unique(dim=0))
    assert 270 in [o['count'] for o in counts] and 450 not in [o['count'] for o in counts]

def test_zscore(tmp_path, learners, batches):
    run(tmp_path, *SMALL, 'augmentation.normalization=zscore', 'augmentation.transforms_list=[]')
    for x in (torch.cat([x for x, _ in learners['teacher'][0].dls.train]), torch.cat([x for x, *_ in batches])):
        assert abs(x.mean()) < 1e-2 and abs(x.std() - 1) < 1e-2

def test_frozen_statistics(pool, tmp_path):
    here = [*SMALL, f'teacher.ckpt_dir={pool}']
    for freeze, (r, _) in {o: run(tmp_path, *here, f'trainer.freeze_bn={o}') for o in (True, False)}.items():
        before, after = weights(r, 'student_init'), weights(r, 'student')
        for k in before: assert torch.equal(before[k], after[k]) == (freeze and 'running' in k or freeze and 'num_batches' in k), k


# Losses and precision

@pytest.mark.parametrize('loss', sorted(LOSSES))
def test_every_loss_trains(pool, tmp_path, loss):
    r, lines = run(tmp_path, *SMALL, f'loss={loss}', 'teacher.num_components=3', f'teacher.ckpt_dir={pool}')
    assert len(loaded(lines)) == 3
    df = table(r)
    assert np.isfinite(df.to_numpy()).all() and df.train_loss[0] > 0
    assert any(not torch.equal(v, weights(r, 'student')[k]) for k, v in weights(r, 'student_init').items())

def test_beta_falls_to_0(pool, tmp_path, monkeypatch):
    made, betas, build, log = [], [], experiment.build_loss, Run.log
    monkeypatch.setattr(experiment, 'build_loss', lambda cfg: made.append(build(cfg)) or made[-1])
    monkeypatch.setattr(Run, 'log', lambda *args: betas.append(made[-1].beta) or log(*args))
    run(tmp_path, *SMALL, 'loss=ts_cvx_cross_ent', 'loss.beta=0.6', 'trainer.num_epochs=3', f'teacher.ckpt_dir={pool}')
    assert betas == pytest.approx([.4, .2, 0], abs=1e-7)

def test_bf16_is_close_to_fp32(tmp_path):
    full, half = (run(tmp_path/o, *SMALL, 'dataloader.batch_size=64', f'trainer.precision={o}')[0] for o in ('fp32', 'bf16'))
    for name in ('teacher_0_train_metrics', 'student_train_metrics'):
        a, b = table(full, name), table(half, name)
        assert np.isfinite(b.to_numpy()).all()
        assert b.train_loss[0] == pytest.approx(a.train_loss[0], rel=.02) and b.test_loss[0] == pytest.approx(a.test_loss[0], rel=.05)
    assert any(not torch.equal(v, weights(half, 'student')[k]) for k, v in weights(full, 'student').items())
    assert all(v.dtype != torch.bfloat16 for v in weights(half, 'student').values())


# Speed, and that it changes nothing

def test_teachers_trained_together_are_those_trained_one_by_one(tmp_path):
    overrides = *SMALL, 'teacher.num_components=3', 'teacher.independent=true', 'trainer.num_epochs=2'
    (one, _), (many, _) = (run(tmp_path/str(k), *overrides, f'trainer.parallel_models={k}') for k in (1, 4))
    assert checkpoints(one) == checkpoints(many) and len(checkpoints(one)) == 16
    for name in checkpoints(one):
        for k, v in weights(one, name).items(): assert torch.equal(v, weights(many, name)[k]), (name, k)
    for name in [f'teacher_{i}_train_metrics' for i in range(6)] + ['student_train_metrics']: pd.testing.assert_frame_equal(table(one, name), table(many, name))

def test_a_failure_stops_those_trained_beside_it(tmp_path, monkeypatch):
    def stumble(self, *args, after_train=distill.FidelityTable.after_train):
        if 'teacher 1' in str(self.learn.print_progress.title) and self.epoch == 1: raise ZeroDivisionError('teacher 1 stumbles')
        after_train(self)
    monkeypatch.setattr(distill.FidelityTable, 'after_train', stumble)
    with pytest.raises(ZeroDivisionError, match='teacher 1 stumbles'):
        run(tmp_path, *TEACHERS, 'teacher.num_components=3', 'trainer.num_epochs=3', 'trainer.parallel_models=3')
    assert states_below(tmp_path) == ['failed']
    assert {o.stem for o in tmp_path.rglob('*.safetensors') if not o.stem.startswith('.training_state')} == {f'teacher_init_{i}' for i in range(3)}      # nobody is taken for trained

def test_remembered_teachers_answer_as_they_would(pool, tmp_path):
    overrides = *SMALL, 'augmentation.transforms_list=[]', 'trainer.num_epochs=3', f'teacher.ckpt_dir={pool}'
    (kept, _), (asked, _) = (run(tmp_path/str(gb), *overrides, f'trainer.teacher_cache={gb}') for gb in (1, 0))
    np.testing.assert_allclose(table(kept).to_numpy(), table(asked).to_numpy(), atol=1e-4)
    assert weights(kept, 'student').keys() and all(torch.allclose(v, weights(asked, 'student')[k], atol=1e-3) for k, v in weights(kept, 'student').items())

def test_compiled_networks_learn_the_same(pool, tmp_path):
    overrides = *SMALL, 'trainer.precision=fp32', 'teacher.num_components=2', f'teacher.ckpt_dir={pool}', 'trainer.num_epochs=2'
    (plain, _), (fast, _) = (run(tmp_path/str(o), *overrides, f'trainer.compile={o}') for o in (False, True))
    for k in ('train_loss', 'test_loss', 'test_acc', 'test_ts_agree'): np.testing.assert_allclose(table(fast)[k], table(plain)[k], atol=.01)

class HostReads(TorchDispatchMode):
    "Counts what would make the host wait for a GPU."
    def __init__(self): super().__init__(); self.seen = []
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in ('_local_scalar_dense', 'nonzero', 'is_nonzero', 'masked_select'): self.seen.append(str(func))
        return func(*args, **(kwargs or {}))

def test_nothing_is_read_from_the_device_between_the_batches_of_an_epoch(pool, tmp_path, monkeypatch):
    reads, before, after = [], distill.FidelityTable.before_train, distill.FidelityTable.after_train
    def enter(self):
        before(self)
        self.mode = HostReads(); self.mode.__enter__()
    def leave(self):
        self.mode.__exit__(None, None, None); reads.append(self.mode.seen)
        after(self)
    monkeypatch.setattr(distill.FidelityTable, 'patience', 1e9)             # that it looks at the loss every few seconds is another matter
    monkeypatch.setattr(distill.FidelityTable, 'before_train', enter); monkeypatch.setattr(distill.FidelityTable, 'after_train', leave)
    run(tmp_path, *SMALL, 'dataloader.batch_size=16', 'augmentation.transforms_list=[crop,horizontal_flip]', 'teacher.num_components=2', 'trainer.num_epochs=2', 'trainer.teacher_cache=0')
    assert reads == [[]]*6                                                   # two teachers, a student, two epochs

@pytest.mark.parametrize('setting', ['precision=fp16', 'channels_last=maybe', 'compile=2', 'parallel_models=0', 'parallel_models=many', 'teacher_cache=-1'])
def test_choices_of_the_engine_are_checked(tmp_path, setting):
    with pytest.raises(ConfigError, match=f"trainer.{setting.split('=')[0]}="): run(tmp_path, *SMALL, f'trainer.{setting}')


# Failures

def test_a_run_that_fails_says_so(pool, tmp_path, monkeypatch):
    after, calls = distill.FidelityTable.after_epoch, []
    def break_down(self):
        after(self)
        calls.append(1)
        if len(calls) == 2: raise RuntimeError('the disk is full')
    monkeypatch.setattr(distill.FidelityTable, 'after_epoch', break_down)
    with pytest.raises(RuntimeError, match='the disk is full'):
        run(tmp_path, *SMALL, 'trainer.num_epochs=3', f'teacher.ckpt_dir={pool}', 'job_name=unlucky')
    runs = find_runs(tmp_path)
    assert runs.state.tolist() == ['failed'] and re.fullmatch(r'RuntimeError: .*the disk is full', runs.error[0], re.S)
    path = Path(runs.path[0])
    assert 'break_down' in json.loads((path/'state.json').read_text())['traceback']
    assert len(pd.read_csv(path/'student_train_metrics.csv')) == 2           # what was measured is kept
    assert not (path/'student.safetensors').exists() and not (path/'fidelity.csv').exists()

def test_a_run_that_is_interrupted_says_so(pool, tmp_path, monkeypatch):
    def interrupt(self): raise KeyboardInterrupt
    monkeypatch.setattr(distill.FidelityTable, 'after_train', interrupt)
    with pytest.raises(KeyboardInterrupt): run(tmp_path, *SMALL, f'teacher.ckpt_dir={pool}')
    assert states_below(tmp_path) == ['interrupted']

def test_an_interrupted_bf16_run_leaves_autocast_off(pool, tmp_path, monkeypatch):
    def interrupt(self, x): raise KeyboardInterrupt
    monkeypatch.setattr(PreResNet, 'forward', interrupt)
    try:
        with pytest.raises(KeyboardInterrupt): run(tmp_path, *SMALL, 'trainer.precision=bf16', f'teacher.ckpt_dir={pool}')
        assert not torch.is_autocast_enabled('cpu')
    finally: torch.set_autocast_enabled('cpu', False)

@pytest.mark.parametrize('overrides', [[], ['dataloader.batch_size=2000']])   # within the epoch, and by its only step
def test_a_teacher_that_diverges_is_a_failure(tmp_path, overrides):
    with pytest.raises(FloatingPointError, match='diverged'): run(tmp_path, *TEACHERS, 'trainer.optimizer.lr=1e30', *overrides)
    assert states_below(tmp_path) == ['failed'] and not list(tmp_path.rglob('teacher_0.safetensors'))

@pytest.mark.parametrize('overrides', [
    ['classifier.skip_connections=maybe'],
    ['distill_loader.splits=[[0]]'],
    ['distill_loader.temp=true'],
    ['dataset.seed=abc'],
    ['augmentation.crop.padding=-1'],
    ['augmentation.crop.padding=abc'],
    ['dataset.statistics.max=[0]'],
    ['augmentation.normalization=zscore', 'dataset.statistics.mean=[.5,.5,.5]'],
    ['dataset.subsample.ratio=0.0001'],
    ['distill_loader.drop_last=true', 'dataloader.batch_size=2000'],
    ['trainer.distill_teacher=false', 'dataloader.drop_last=true', 'dataloader.batch_size=2001'],
    ['trainer.optimizer.name=LBFGS'],
    ['trainer.optimizer.momentum=0'],
    ['trainer.optimizer.nesterov=false', 'trainer.optimizer.momentum=0', 'teacher.trainer.nesterov=true'],
    ['teacher.trainer.lr=1e-3', 'teacher.trainer.eta_min=.1'],
    ['loss=ts_hard_cross_ent', 'loss.mode=foo'],
    ['dataset.size=4'],
    ['dataset.subsample.seed=99999999999999999999'],
    ['seed=99999999999999999999']])
def test_settings_that_cannot_be_are_refused_before_anything_is_begun(tmp_path, overrides):
    with pytest.raises(ConfigError) as e: run(tmp_path, *SMALL, *overrides)
    assert overrides[-1].split('=')[0].split('.')[-1] in str(e.value) and '\n' not in str(e.value)
    assert not states_below(tmp_path)


# The command

def script(cwd, *args):
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT)}
    return subprocess.run([sys.executable, ROOT/'scripts'/'image_classification.py', *args], cwd=cwd, env=env, text=True, capture_output=True)

def test_two_trials_from_an_empty_folder(tmp_path):
    p = script(tmp_path, '-m', 'dataset=digits', 'trainer.num_epochs=1', 'trial_id=0,1')
    assert p.returncode == 0, p.stderr
    runs = find_runs(tmp_path/'data'/'experiments')
    assert runs.state.tolist() == ['done']*2 and runs['trial_id'].tolist() == [0, 1]
    assert all(len(pd.read_csv(Path(o)/'student_train_metrics.csv')) == 1 for o in runs.path)
    assert 'images/s' in p.stderr and p.stdout.count('agreement') == 2
    assert {o.name for o in tmp_path.iterdir()} == {'data'}

BAD_KEY = 'error: trainer.num_epoch: unknown key, did you mean trainer.num_epochs?'

def test_a_bad_key_is_one_line(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', ['gnosis-image-classification', 'dataset=digits', 'trainer.num_epoch=1'])
    with pytest.raises(SystemExit) as e: cli.image_classification()
    assert e.value.code == BAD_KEY                                           # a string is printed to stderr, and exits 1
    assert capfd.readouterr() == ('', '') and not list(tmp_path.iterdir())

def test_a_bad_key_is_one_line_in_a_multirun(tmp_path):
    p = script(tmp_path, '-m', 'trial_id=0,1', 'dataset=digits', 'trainer.num_epoch=1')
    assert (p.returncode, p.stdout, p.stderr.splitlines()) == (1, '', [BAD_KEY])
    assert not states_below(tmp_path)


# Other programs' eyes

def test_tensorboard_has_the_tables(pool, tmp_path):
    r, _ = run(tmp_path, *SMALL, 'trainer.num_epochs=2', 'trainer.eval_period=2', f'teacher.ckpt_dir={pool}')
    events = EventAccumulator(str(r.path/'tensorboard'))
    events.Reload()
    df, tags = table(r).set_index('epoch'), events.Tags()['scalars']
    assert set(tags) == {f'student_train_metrics/{o}' for o in df}
    for name in df:
        column = df[name].dropna()
        points = events.Scalars(f'student_train_metrics/{name}')
        assert [o.step for o in points] == column.index.tolist()
        assert [o.value for o in points] == pytest.approx(column.tolist(), rel=1e-6)
    assert df.test_acc.notna().tolist() == [False, True]

def test_a_checkpoint_of_the_original_program(tmp_path):
    torch.save(fill_weights(PreResNet(100, 20)).state_dict(), tmp_path/'teacher_0.ckpt')
    net = PreResNet(100, 20).eval()
    load_weights(net, tmp_path/'teacher_0.ckpt')
    with torch.no_grad(): assert rel_err(net(recorded('x32')), recorded('model/preresnet20')) < 1e-4
