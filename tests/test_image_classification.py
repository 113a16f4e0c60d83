"What only images have: which teachers fit, hostile checkpoints, batches, files of other programs."
import os

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torchvision import datasets

import gnosis_nb.distill as distill
import gnosis_nb.experiment as experiment
from experiments import (SHORT, SMALL, TEACHERS, checkpoints, conduct, equal, images, loaded, report,
    states_below, table, weights)
from fakes import fake_cifar, write_image_folder
from gnosis_nb.checkpoint import load_weights, save_checkpoint
from gnosis_nb.cli import compose
from gnosis_nb.data.folder import image_folder
from gnosis_nb.data.zoo import digits
from gnosis_nb.inputs import load_inputs, shrink
from gnosis_nb.models import LeNet, PreResNet, build_classifier
from gnosis_nb.run_folder import Run
from gnosis_nb.schema import ConfigError
from gnosis_nb.teachers import load_teachers
from parity import fill_weights, recorded, rel_err
from versions import end_autocast, reads_pickles


# Teachers

def find(folder, *overrides, data=SMALL['image_classification']):
    "The numbers of the teachers that a run below `folder` would use."
    lines = []
    cfg = compose([*data, 'teacher.trainer.num_epochs=1', f'data_dir={folder}', *overrides])
    load_teachers(cfg, load_inputs(cfg), lines.append)
    return [int(o[-1]) for o in loaded(lines)]

def test_trials_take_successive_teachers(pool):
    options = ['teacher.independent=true', f'teacher.ckpt_dir={pool}']
    used = [find(pool, *options, f'trial_id={t}') for t in range(4)]
    assert [first for first, _ in used] == [0, 1, 2, 0] and all(first != other for first, other in used)

@pytest.mark.parametrize('overrides', [['teacher.num_components=2'], ['teacher.independent=true']])
def test_the_same_teacher_is_not_taken_twice(tmp_path, overrides):
    for _ in range(2): images(tmp_path, TEACHERS, 'teacher.use_ckpts=false')
    r, lines = images(tmp_path, *overrides)
    assert len(loaded(lines)) == 1 and 'teacher_1' in checkpoints(r)

def test_teachers_of_another_data_set_are_not_used(pool, tmp_path, monkeypatch):
    fake_cifar(tmp_path, monkeypatch, datasets.CIFAR10)
    cifar = ['dataset=cifar10', f'dataset.root_dir={tmp_path}', 'classifier.depth=8']
    assert find(pool) == [0] and find(pool, data=cifar) == []

def test_teachers_of_other_pixels_are_not_used_and_those_of_the_same_in_another_place_are(tmp_path):
    def folder(name, shade):
        for split in ('train', 'test'):
            for k in range(2):
                path = tmp_path/name/split/f'class{k}'
                path.mkdir(parents=True)
                for i in range(4): Image.new('RGB', (8, 8), (shade + i, 40*k, 10*i)).save(path/f'{i}.png')
        data = ['dataset=image_folder', f'dataset.root_dir={tmp_path/name}']
        options = ['augmentation.transforms_list=[]', 'classifier.depth=8', '+recipe=student', *SHORT,
            'force=true']
        return conduct('image_classification', *data, *options, f'data_dir={tmp_path}/runs')[1]
    assert [len(loaded(folder(*o))) for o in (('a', 10), ('b', 200), ('c', 10))] == [0, 0, 1]

def test_a_missing_teacher_is_none_of_those_there(tmp_path):
    r, _ = images(tmp_path, TEACHERS, 'teacher.num_components=2', 'job_name=two')
    (r.path/'teacher_0.safetensors').unlink()
    new, lines = images(tmp_path, TEACHERS, 'teacher.num_components=2')
    assert loaded(lines) == ['two/teacher_1']
    assert report(new).loc[['teacher_0', 'teacher_1'], 'nll'].nunique() == 2

def test_dropout_does_not_depend_on_what_was_trained_before(tmp_path):
    options = ['dataset.size=16', 'classifier=vgg', 'classifier.depth=11', 'dataset.shrink.train=60',
        'dataset.shrink.test=20']
    # the second has its teacher from the first
    first, again = (images(tmp_path, *options)[0] for _ in range(2))
    assert 'teacher_0' in checkpoints(first) and 'teacher_0' not in checkpoints(again)
    assert again.state['teachers'] == [[str(first.path/'teacher_0.safetensors')]]
    assert equal(weights(first, 'student'), weights(again, 'student'))

@pytest.mark.parametrize('key', ['ckpt_dir', 'ckpt_path'])
def test_where_checkpoints_are(pool, tmp_path, key):
    assert find(pool, f'teacher.{key}=image_classification/three') == [0]
    assert find(tmp_path, f'teacher.{key}={pool}') == [0]
    assert find(tmp_path) == []

class Hostile:
    def __init__(self, file): self.file = file
    def __reduce__(self): return os.system, (f'touch {self.file}',)

@reads_pickles
def test_a_hostile_checkpoint_is_refused(tmp_path):
    torch.save(dict(weight=Hostile(tmp_path/'owned')), tmp_path/'teacher_0.ckpt')
    with pytest.raises(ConfigError, match=r'^teacher\.ckpt_dir.*teacher_0\.ckpt: refused.*system') as e:
        images(tmp_path, 'teacher.ckpt_dir=.')
    assert '\n' not in str(e.value) and not (tmp_path/'owned').exists() and not states_below(tmp_path)

@reads_pickles
def test_a_damaged_checkpoint_is_refused(tmp_path):
    (tmp_path/'teacher_0.ckpt').write_bytes(b'junk')
    with pytest.raises(ConfigError, match='^teacher.ckpt_dir.*teacher_0.ckpt: damaged'):
        images(tmp_path, 'teacher.ckpt_dir=.')

def save_foreign(path, state): torch.save(state, path.with_suffix('.ckpt'))
def save_own(path, state):
    network = dict(name='preresnet', depth=8, skip_connections=True, norm='batch')
    save_checkpoint(path, state, facts=dict(classes=20, network=network), training={})

@pytest.mark.parametrize('save, message', [
    pytest.param(save_foreign, r"teacher\.ckpt_dir: .*teacher_0\.ckpt: 'fc.*has shape \[20.*expected \[10",
                 marks=reads_pickles),
    (save_own, r"teacher\.ckpt_dir=\.: .*teacher_0.*classes is 20, expected 10")])
def test_checkpoints_with_other_classes_are_refused(tmp_path, save, message):
    net = build_classifier('preresnet', 20, in_channels=1, input_size=8, depth=8)
    save(tmp_path/'teacher_0', net.state_dict())
    with pytest.raises(ConfigError, match=f'^{message}'): images(tmp_path, 'teacher.ckpt_dir=.')
    assert not states_below(tmp_path)

@reads_pickles
def test_a_checkpoint_of_the_original_program(tmp_path):
    torch.save(fill_weights(PreResNet(100, 20)).state_dict(), tmp_path/'teacher_0.ckpt')
    net = PreResNet(100, 20).eval()
    load_weights(net, tmp_path/'teacher_0.ckpt')
    with torch.no_grad(): assert rel_err(net(recorded('x32')), recorded('model/preresnet20')) < 1e-4


# What is trained on

@pytest.mark.parametrize('size, classes, message', [
    ((28, 40), ['cat', 'dog'], 'classifier: expected square images, found 28×40 pixels .*shrink.size'),
    ((28, 28), ['cat'], 'dataset.name=image_folder: expected classes, not one')])
def test_images_that_cannot_be_learnt_are_refused_at_once(tmp_path, size, classes, message):
    write_image_folder(tmp_path/'pets', 4, size, classes)
    given = ['dataset=image_folder', f'dataset.root_dir={tmp_path}/pets', f'data_dir={tmp_path}']
    with pytest.raises(ConfigError, match=f'^{message}'):
        conduct('image_classification', *given, 'classifier=lenet', 'device=cpu')
    assert not states_below(tmp_path)

def test_images_that_are_not_square_are_made_square(tmp_path):
    sets = image_folder(write_image_folder(tmp_path/'pets', 4, size=(8, 6)))
    assert [shrink(sets, size=n).train.shape for n in (6, 8)] == [(3, 6, 6), (3, 8, 8)]

def test_two_splits_are_all_rows(tmp_path, batches, counts):
    split = ['dataset.subsample.ratio=0.5', 'distill_loader.splits=[0,1]', 'distill_loader.temp=[1,2]']
    images(tmp_path, 'augmentation.transforms_list=[]', *split)
    train = digits(size=8).train
    x, y, temp = (torch.cat(o) for o in zip(*batches))
    def rows(x, y): return torch.cat([x.flatten(1), y[:, None].float()], 1).unique(dim=0, return_counts=True)
    ours, wanted = rows(((x + 1)*127.5).round(), y), rows(train.images.float(), train.targets)
    assert len(x) == 1347 and all(torch.equal(*o) for o in zip(ours, wanted))
    assert temp.unique(return_counts=True)[1].tolist() == [673, 674]
    assert counts[0]['count'] == 673  # the teacher has seen the first half

def test_zscore(tmp_path, learners, batches):
    images(tmp_path, 'augmentation.normalization=zscore', 'augmentation.transforms_list=[]')
    for seen in (learners['teacher'][0].dls.train, batches):
        x = torch.cat([o[0] for o in seen])
        assert abs(x.mean()) < 1e-2 and abs(x.std() - 1) < 1e-2

@pytest.mark.parametrize('freeze', [True, False])
def test_frozen_statistics(pool, tmp_path, freeze):
    r, _ = images(tmp_path, f'teacher.ckpt_dir={pool}', f'trainer.freeze_bn={freeze}')
    before, after = weights(r, 'student_init'), weights(r, 'student')
    for k in before:
        assert torch.equal(before[k], after[k]) == (freeze and ('running' in k or 'num_batches' in k)), k

def test_beta_falls_to_0(pool, tmp_path, monkeypatch):
    made, betas, build, log = [], [], experiment.build_loss, Run.log
    monkeypatch.setattr(experiment, 'build_loss', lambda cfg: made.append(build(cfg)) or made[-1])
    monkeypatch.setattr(Run, 'log', lambda *args: betas.append(made[-1].beta) or log(*args))
    loss = ['loss=ts_cvx_cross_ent', 'loss.beta=0.6']
    images(tmp_path, *loss, 'trainer.num_epochs=3', f'teacher.ckpt_dir={pool}')
    assert betas == pytest.approx([.4, .2, 0], abs=1e-7)


# Training

def test_a_failure_stops_those_trained_beside_it(tmp_path, monkeypatch):
    def stumble(self, *args, after_train=distill.FidelityTable.after_train):
        if 'teacher 1' in str(self.learn.print_progress.title) and self.epoch == 1:
            raise ZeroDivisionError('teacher 1 stumbles')
        after_train(self)
    monkeypatch.setattr(distill.FidelityTable, 'after_train', stumble)
    with pytest.raises(ZeroDivisionError, match='teacher 1 stumbles'):
        three = ['teacher.num_components=3', 'trainer.parallel_models=3', 'trainer.num_epochs=3']
        images(tmp_path, TEACHERS, *three)
    assert states_below(tmp_path) == ['failed']
    kept = {o.stem for o in tmp_path.rglob('*.safetensors') if not o.name.startswith('.')}
    assert kept == {f'teacher_init_{i}' for i in range(3)}                   # nobody is taken for trained

def two_layers(self, num_classes, in_channels=1):
    torch.nn.Sequential.__init__(
        self, torch.nn.Conv2d(in_channels, 6, 5, stride=4), torch.nn.ReLU(), torch.nn.Flatten(),
        torch.nn.Linear(6*6*6, num_classes))

def test_compiled_networks_learn_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(LeNet, '__init__', two_layers)                       # each kernel takes two seconds
    options = ['dataset.size=28', 'classifier=lenet', 'trainer.precision=fp32', 'trainer.num_epochs=2']
    (plain, _), (fast, _) = (images(tmp_path/str(o), *options, f'trainer.compile={o}') for o in (False, True))
    for k in ('train_loss', 'test_loss', 'test_acc', 'test_ts_agree'):
        np.testing.assert_allclose(table(fast)[k], table(plain)[k], atol=.01)

def interrupt(*args): raise KeyboardInterrupt

def test_a_run_that_is_interrupted_says_so(pool, tmp_path, monkeypatch):
    monkeypatch.setattr(distill.FidelityTable, 'after_train', interrupt)
    with pytest.raises(KeyboardInterrupt): images(tmp_path, f'teacher.ckpt_dir={pool}')
    assert states_below(tmp_path) == ['interrupted']

def test_an_interrupted_bf16_run_leaves_autocast_off(pool, tmp_path, monkeypatch):
    monkeypatch.setattr(PreResNet, 'forward', interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            images(tmp_path, 'trainer.precision=bf16', f'teacher.ckpt_dir={pool}')
        assert torch.ones(1, 1).mm(torch.ones(1, 1)).dtype == torch.float32
    finally: end_autocast()


# Other programs' eyes

def test_tensorboard_has_the_tables(pool, tmp_path):
    r, _ = images(tmp_path, 'trainer.num_epochs=2', 'trainer.eval_period=2', f'teacher.ckpt_dir={pool}')
    events = EventAccumulator(str(r.path/'tensorboard'))
    events.Reload()
    df = table(r).set_index('epoch')
    assert set(events.Tags()['scalars']) == {f'student_train_metrics/{o}' for o in df}
    for name in df:
        points, column = events.Scalars(f'student_train_metrics/{name}'), df[name].dropna()
        assert [o.step for o in points] == column.index.tolist()
        assert [o.value for o in points] == pytest.approx(column.tolist(), rel=1e-6)
    assert df.test_acc.notna().tolist() == [False, True]
