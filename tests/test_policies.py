"Distillation data from the command line: every policy, other sets, and what the teacher is asked about."
import json

import pytest
import torch
from torchvision import datasets

import gnosis_nb.data.blocks as blocks
import gnosis_nb.distill as distill
from fakes import fake_cifar, fake_svhn
from gnosis_nb.cli import compose
from gnosis_nb.data.blocks import POLICIES, POLICY_OPTIONS
from gnosis_nb.experiment import ConfigError, image_classification

DIGITS = ['dataset=digits', 'dataset.size=8', 'dataloader.batch_size=128', 'trainer.num_epochs=1', 'device=cpu']


def run(data_dir, *overrides):
    lines = []
    return image_classification(compose(['trainer.precision=fp32', *overrides, 'force=true', f'data_dir={data_dir}']), say=lines.append), lines

@pytest.fixture
def shown(monkeypatch):
    "Every batch that a student was shown, with the source of its rows; in the end, that the teacher was asked about these very pixels."
    seen, finish, before = [], blocks.DistillLoader.finish, distill.Distillation.before_batch
    def spy(self, *args):
        batch = finish(self, *args)
        seen.append(dict(batch=batch, sources=self.sources()))
        return batch
    def asked(self):
        before(self)
        if self.training: seen[-1].update(x=self.xb[0], logits=self.learn.teacher_logits, again=self.teacher(seen[-1]['batch'][0]))
    monkeypatch.setattr(blocks.DistillLoader, 'finish', spy)
    monkeypatch.setattr(distill.Distillation, 'before_batch', asked)
    yield seen
    assert seen
    for o in seen:
        assert torch.equal(o['x'], o['batch'][0])
        torch.testing.assert_close(o['logits'], o['again'], rtol=1e-4, atol=1e-5)


def test_policies_of_the_command_line_are_those_of_the_library():
    defaults = compose([])['distill_loader']
    for name, settings in POLICIES.items():
        cfg = compose([f'policy={name}'])
        assert cfg['distill_loader'] == {**defaults, 'policy': name, **settings}
        for key, options in POLICY_OPTIONS.items(): assert cfg['augmentation'][key] == options
    assert compose(['policy=mixup', 'distill_loader.mixup_alpha=0.5'])['distill_loader']['mixup_alpha'] == .5


@pytest.fixture(scope='module')
def pool(tmp_path_factory):
    folder = tmp_path_factory.mktemp('pool')
    run(folder, *DIGITS, 'trainer.distill_teacher=false')
    return folder

EXPECTED = dict(baseline=dict(digits=(1347, 1347)), rotation=dict(digits=(1347, 1347)), vertical_flip=dict(digits=(1347, 1347)), colorjitter=dict(digits=(1347, 1347)),
                comb_aug=dict(digits=(1347, 1347)), mixup={'mixed digits': (1347, 0)})

@pytest.mark.parametrize('policy', EXPECTED)
def test_composition(pool, shown, policy, tmp_path):
    r, lines = run(pool, *DIGITS, f'policy={policy}')
    assert any(o.startswith('teacher from') for o in lines)                  # the policy is the student's affair
    rows = {}
    for o in shown:
        x, y, temp = o['batch']
        assert (temp == 4).all()
        for source, label in zip(o['sources'], y.tolist()):
            n, m = rows.get(source := source.replace('/train', ''), (0, 0))
            rows[source] = n + 1, m + (label >= 0)
    assert rows == EXPECTED[policy]
    assert r.config['distill_loader']['policy'] == policy


def test_noise(pool, shown):
    run(pool, *DIGITS, 'policy=noise')
    sources, y = [s for o in shown for s in o['sources']], torch.cat([o['batch'][1] for o in shown])
    noise = torch.tensor([s == 'noise' for s in sources])
    assert len(noise) == 1347 and abs(noise.float().mean() - .2) < .05 and torch.equal(y == -100, noise)


def test_synthetic_rows_with_an_untrained_generator(shown, tmp_path):
    _, lines = run(tmp_path, 'dataset=digits', 'dataset.size=32', 'dataloader.batch_size=512', 'dataset.subsample.ratio=0.2', 'trainer.num_epochs=1', 'device=cpu',
                   'policy=gan', 'distill_loader.temp=[1,2]', 'density_model.generator.k=8')
    assert any('UNTRAINED' in o for o in lines)
    x, y, temp = shown[0]['batch']
    assert len(x) == 269 + 67 and (y[269:] == -100).all() and (y[:269] >= 0).all()
    assert temp[:, 0].tolist() == [1.]*269 + [2.]*67 and shown[0]['sources'].count('synthetic') == 67


def test_other_sets_beside_the_training_images(pool, shown):
    r, lines = run(pool, *DIGITS, 'distill_loader.extra=[{name:digits,size:16,channels:3,num:200,temp:1.0},{name:digits,size:12,num:50}]')
    assert any('1597 for the student' in o for o in lines)
    y, temp = (torch.cat([o['batch'][i] for o in shown]) for i in (1, 2))
    assert (y >= 0).sum() == 1347 and (y == -100).sum() == 250 and (temp == 1).sum() == 200
    assert all((temp_ == 1).any() and o['batch'][0].shape[1:] == (1, 8, 8) for o in shown for temp_ in [o['batch'][2]])
    assert json.loads((r.path/'state.json').read_text())['state'] == 'done'


def test_only_other_sets(pool, shown):
    run(pool, *DIGITS, 'distill_loader.splits=[]', 'distill_loader.extra=[{name:digits,size:8}]')
    assert all((o['batch'][1] == -100).all() for o in shown) and sum(len(o['sources']) for o in shown) == 1347


@pytest.mark.parametrize('overrides,message', [
    (['distill_loader.splits=[]'], 'distill_loader.splits'),
    (['distill_loader.extra=[{name:nothing}]'], r'distill_loader.extra\[0\].*nothing'),
    (['distill_loader.extra=[{name:digits,num:9999}]'], r'distill_loader.extra\[0\].*num=9999'),
    (['distill_loader.extra=[{name:digits,colour:red}]'], r'distill_loader.extra\[0\].*colour'),
    (['distill_loader.extra=[svhn]'], 'distill_loader.extra'),
    (['distill_loader.transforms_list=[rotate]'], 'distill_loader.transforms_list.*rotate'),
    (['distill_loader.noise=2'], 'distill_loader.noise'),
    (['distill_loader.noise=1', 'loss.alpha=0.5'], 'loss.alpha'),
    (['policy=mixup', 'loss.alpha=0.5'], 'loss.alpha')])
def test_what_is_refused(tmp_path, overrides, message):
    with pytest.raises(ConfigError, match=message): run(tmp_path, *DIGITS, *overrides)
    assert not list(tmp_path.rglob('state.json'))


def test_cifar100_svhn_shares_the_teachers_of_cifar100(tmp_path, monkeypatch, shown):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path/'data'/'datasets'
    fake_cifar(folder/'cifar100', monkeypatch, datasets.CIFAR100, n=20)
    fake_svhn(folder/'svhn', monkeypatch, n=30)
    (folder/'cifar100_svhn').symlink_to(folder/'cifar100')
    small = ['classifier=preresnet8', 'trainer.num_epochs=1', 'device=cpu', 'dataloader.batch_size=16']
    run(tmp_path/'runs', *small, 'dataset=cifar100', 'trainer.distill_teacher=false')
    for options, name in ((['dataset=cifar100_svhn', 'dataset.num_svhn_data=10'], 1), (['dataset=cifar100', 'policy=ood', 'distill_loader.extra=[{name:svhn,num:10}]'], 2)):
        shown.clear()
        _, lines = run(tmp_path/'runs', *small, *options)
        assert any(o.startswith('teacher from') for o in lines)
        y = torch.cat([o['batch'][1] for o in shown])
        assert len(y) == 30 and (y == -100).sum() == 10
