"Distillation data from the command line: every policy, other sets, and what the teacher is asked about."
from collections import Counter

import pytest
import torch
from torchvision import datasets

import gnosis_nb.data.blocks as blocks
import gnosis_nb.distill as distill
from experiments import SHORT, TEACHERS, conduct, images, loaded, small, states_below
from fakes import fake_cifar, fake_svhn
from gnosis_nb.data.zoo import digits
from gnosis_nb.schema import ConfigError


def test_a_block_is_a_data_block_of_fastai():
    "Rows of a batch, whatever fastai makes of the signature of `dataloaders`."
    block = blocks.DistillBlock(blocks.policy_blocks('rotation'), blocks.NoiseBlock(.5))
    dls = block.dataloaders(digits(size=8), bs=16)
    assert len(dls.one_batch()[0]) == 16

@pytest.fixture
def shown(monkeypatch):
    "Every batch that a student was shown, and its rows' sources; in the end, that its teacher saw them."
    seen, finish, answer = [], blocks.DistillLoader.finish, distill.Distillation.answer
    def spy(self, *args):
        seen.append(dict(batch=finish(self, *args), sources=self.sources()))
        return seen[-1]['batch']
    def asked(self, x, *args):
        logits = answer(self, x, *args)
        seen[-1].update(x=x, logits=logits, again=self.teacher(seen[-1]['batch'][0]))
        return logits
    monkeypatch.setattr(blocks.DistillLoader, 'finish', spy)
    monkeypatch.setattr(distill.Distillation, 'answer', asked)
    yield seen
    assert seen
    for o in seen:
        assert torch.equal(o['x'], o['batch'][0])
        torch.testing.assert_close(o['logits'], o['again'], rtol=1e-4, atol=1e-5)

def student(pool, tmp_path, *overrides):
    "A student of a teacher in the pool, and the lines of its run."
    r, lines = images(tmp_path, 'trainer.precision=fp32', f'teacher.ckpt_dir={pool}', *overrides)
    assert len(loaded(lines)) == 1  # the policy is the student's affair
    return r, lines

def all_rows(shown):
    "Labels, temperatures and sources of all rows."
    y, temp = (torch.cat([o['batch'][i] for o in shown]) for i in (1, 2))
    return y, temp, [source for o in shown for source in o['sources']]


@pytest.mark.parametrize('policy, source, labelled', [
    ('baseline', 'digits/train', 1347), ('rotation', 'digits/train', 1347),
    ('comb_aug', 'digits/train', 1347), ('vertical_flip', 'digits/train', 1347),
    ('colorjitter', 'digits/train', 1347),
    ('mixup', 'mixed digits/train', 0)])
def test_composition(pool, tmp_path, shown, policy, source, labelled):
    r, _ = student(pool, tmp_path, f'policy={policy}')
    y, temp, sources = all_rows(shown)
    assert Counter(sources) == {source: 1347} and (y >= 0).sum() == labelled and (temp == 4).all()
    assert r.config['distill_loader']['policy'] == policy

def test_noise(pool, tmp_path, shown):
    student(pool, tmp_path, 'policy=noise')
    y, _, sources = all_rows(shown)
    noise = torch.tensor([o == 'noise' for o in sources])
    assert len(noise) == 1347 and abs(noise.float().mean() - .2) < .05 and torch.equal(y == -100, noise)

def test_synthetic_rows_with_an_untrained_generator(tmp_path, shown):
    small = ['dataset.subsample.ratio=0.2', 'density_model.generator.k=8', 'dataloader.batch_size=512']
    _, lines = images(tmp_path, *small, 'trainer.precision=fp32', 'policy=gan', 'distill_loader.temp=[1,2]')
    assert any('UNTRAINED' in o for o in lines)
    y, temp, sources = all_rows(shown)
    assert (y >= 0).tolist() == [True]*269 + [False]*67 and sources[269:] == ['synthetic']*67
    assert temp[:, 0].tolist() == [1.]*269 + [2.]*67

def test_a_student_without_its_teachers_augmentation(pool, tmp_path, shown):
    student(pool, tmp_path, 'distill_loader.teacher_transforms=false')
    x = torch.cat([o['batch'][0] for o in shown])
    plain = digits(size=8).train.images
    def rows(x): return x.flatten(1).unique(dim=0)
    assert torch.equal(rows(((x + 1)*127.5).round()), rows(plain.float()))

@pytest.mark.parametrize('command, more', [
    ('text_classification', ['dataset.num_train=200', 'dataloader.batch_size=10']),
    ('image_classification', ['dataset.shrink.train=400', 'dataloader.batch_size=16',
                              'trainer.teacher_cache=disk', 'trainer.teacher_cache_views=2'])])
def test_a_part_with_fewer_rows_than_there_are_batches(tmp_path, monkeypatch, command, more):
    sizes, finish = [], blocks.DistillLoader.finish
    def spy(self, x, y, given, *args):
        sizes.append(given)
        return finish(self, x, y, given, *args)
    monkeypatch.setattr(blocks.DistillLoader, 'finish', spy)
    few = ['dataset.subsample.ratio=0.03', 'dataset.subsample.split=1', 'distill_loader.splits=[0,1]']
    small(command, tmp_path, *more, *few)
    n, (first, second) = int(more[0].partition('=')[2]), zip(*sizes)
    assert (sum(first), sum(second)) == (3*n//100, 97*n//100) and min(first) == 0 < min(second)

def test_other_sets_beside_the_training_images(pool, tmp_path, shown):
    extra = '[{name:digits,size:16,channels:3,num:200,temp:1.0},{name:digits,size:12,num:50}]'
    _, lines = student(pool, tmp_path, 'dataloader.batch_size=128', f'distill_loader.extra={extra}')
    assert any('1,597 for the student' in o for o in lines)
    y, temp, _ = all_rows(shown)
    assert (y >= 0).sum() == 1347 and (y == -100).sum() == 250 and (temp == 1).sum() == 200
    assert all((o['batch'][2] == 1).any() for o in shown)                    # some in each batch
    assert {o['batch'][0].shape[1:] for o in shown} == {(1, 8, 8)}

def test_only_other_sets(pool, tmp_path, shown):
    student(pool, tmp_path, 'distill_loader.splits=[]', 'distill_loader.extra=[{name:digits,size:8}]')
    y, _, sources = all_rows(shown)
    assert len(sources) == 1347 and (y == -100).all()

@pytest.mark.parametrize('override, message', [
    ('distill_loader.extra=[{name:nothing}]', r'distill_loader.extra\[0\].*nothing'),
    ('distill_loader.extra=[{name:digits,num:9999}]', r'distill_loader.extra\[0\].*num=9999'),
    ('distill_loader.extra=[{name:digits,colour:red}]', r'distill_loader.extra\[0\].*colour'),
    ('distill_loader.extra=[{name:digits,temp:9.0}] distill_loader.temp=[4,1]',
     r'distill_loader.extra\[0\].temp=9.0'),
    ('distill_loader.synth_ratio=.001 dataloader.batch_size=32', 'distill_loader.synth_ratio=0.001: .*bs=32'),
    ('distill_loader.transforms_list=[rotate]', 'distill_loader.transforms_list.*rotate')])
def test_what_is_refused(tmp_path, override, message):
    with pytest.raises(ConfigError, match=f'^{message}'): images(tmp_path, *override.split())
    assert not states_below(tmp_path)

@pytest.mark.parametrize('options', [
    ['dataset=cifar100_svhn', 'dataset.num_svhn_data=10'],
    ['dataset=cifar100', 'policy=ood', 'distill_loader.extra=[{name:svhn,num:10}]']])
def test_cifar100_svhn_shares_the_teachers_of_cifar100(tmp_path, monkeypatch, shown, options):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path/'data'/'datasets'
    fake_cifar(folder/'cifar100', monkeypatch, datasets.CIFAR100, n=20)
    fake_svhn(folder/'svhn', monkeypatch, n=30)
    (folder/'cifar100_svhn').symlink_to(folder/'cifar100')
    small = ['classifier=preresnet8', '+recipe=student', 'teacher.trainer.nesterov=false', *SHORT,
        'dataloader.batch_size=16', 'trainer.precision=fp32']
    conduct('image_classification', *small, 'dataset=cifar100', TEACHERS)
    _, lines = conduct('image_classification', *small, *options)
    y, _, sources = all_rows(shown)
    assert len(loaded(lines)) == 1 and len(sources) == 30 and (y == -100).sum() == 10
