"GANs: what a run leaves, who finds its generators, and how it fails."

import pandas as pd
import pytest
import torch
from torchvision import datasets

import gnosis_nb.gan as gan
from fakes import fake_cifar
from gnosis_nb.cli import compose
from gnosis_nb.experiment import ConfigError, image_classification
from gnosis_nb.generation import image_generation
from gnosis_nb.models import DCGANGenerator
from gnosis_nb.runs import find_runs
from gnosis_nb.checkpoint import checkpoint_info, load_checkpoint

TINY = ['density_model.z_dim=8', 'density_model.generator.k=8', 'density_model.discriminator.k=8', 'dataloader.batch_size=16', 'trainer.num_eval_samples=40', 'device=cpu']
SHORT = ['trainer.num_gen_updates=4', 'trainer.eval_period=2', 'trainer.checkpoint_period=4']


def generate(data_dir, *overrides):
    lines = []
    return image_generation(compose([*overrides, 'force=true', f'data_dir={data_dir}'], 'image_generation'), say=lines.append), lines

def distil(data_dir, *overrides):
    lines = []
    return image_classification(compose([*overrides, 'force=true', f'data_dir={data_dir}']), say=lines.append), lines

def weights(run, name): return load_checkpoint(run.path/f'{name}.safetensors')[0]
def equal(a, b): return a.keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.items())


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    fake_cifar(tmp_path/'data/datasets/cifar100', monkeypatch, datasets.CIFAR100, n=40)
    monkeypatch.chdir(tmp_path)

def test_generators_are_found_by_trial_and_by_their_images(cifar, tmp_path):
    gans = [generate('out', *TINY, *SHORT, f'trial_id={i}', 'judge.name=none')[0] for i in (0, 1)]
    for run in gans:
        assert {o.stem for o in run.path.glob('*.safetensors')} == {'generator_4', 'discriminator_4'}
        assert list(pd.read_csv(run.path/'train_metrics.csv').gen_updates) == [2, 4] and (run.path/'samples.png').exists()
    assert not equal(*(weights(o, 'generator_4') for o in gans))
    student = ['dataloader.batch_size=20', 'trainer.num_epochs=1', 'classifier.depth=8', 'device=cpu', 'distill_loader.synth_ratio=0.2']
    for trial, g in enumerate(gans):                                         # the networks' sizes are those of the checkpoint
        _, lines = distil('out', *student, f'trial_id={trial}')
        assert f'generator: {g.path}/generator_4.safetensors' in lines
    _, lines = distil('out', *student, 'dataset=digits', 'dataset.size=32')
    assert any(o.startswith('generator: UNTRAINED') for o in lines)          # those are of other images
    with pytest.raises(ConfigError, match='density_model.ckpt_dir=image_generation: .* was trained on other images'):
        distil('out', *student, 'dataset=digits', 'dataset.size=32', 'density_model.ckpt_dir=image_generation')
    for same in (['trainer.eval_dataset=val'], ['dataset.shuffle_train_targets.enabled=true', 'dataset.shuffle_train_targets.ratio=0.5']):     # held out, other labels: still these images
        _, lines = distil('out', *student, *same)
        assert f'generator: {gans[0].path}/generator_4.safetensors' in lines
    (tmp_path/'out/junk').mkdir()
    (tmp_path/'out/junk/generator_9.safetensors').write_bytes(b'no')
    generate('out', *TINY, 'trainer.num_gen_updates=1', 'trainer.eval_period=1', 'trainer.checkpoint_period=1', 'judge.name=none', 'trial_id=2')     # one that has hardly begun
    _, lines = distil('out', *student)
    assert f'generator: {gans[0].path}/generator_4.safetensors' in lines and any(o.startswith('left out: out/junk/generator_9') for o in lines)
    with pytest.raises(ConfigError, match='density_model.ckpt_dir=image_generation: .* is a sngan, density_model=dcgan'): distil('out', *student, 'density_model=dcgan', 'density_model.ckpt_dir=image_generation')


def test_samples_have_the_size_of_the_real_images(tmp_path):
    generate(tmp_path, *TINY, *SHORT, 'dataset=digits', 'judge.name=none')   # learnt at 32 pixels
    run, lines = distil(tmp_path, 'dataset=digits', 'dataset.size=16', 'trainer.num_epochs=1', 'device=cpu', 'distill_loader.synth_ratio=0.5')
    assert any(o.startswith(f'generator: {tmp_path}') for o in lines) and (run.path/'fidelity.csv').exists()


def test_dcgan_and_foreign_generators(tmp_path):
    run, _ = generate(tmp_path, 'density_model=dcgan', 'density_model.nz=8', 'density_model.ngf=4', 'density_model.ndf=4', *TINY[3:], *SHORT, 'dataset=digits', 'trainer.num_epochs=1', 'classifier.depth=8')
    spec = checkpoint_info(run.path/'generator_4.safetensors')['spec']
    assert spec == dict(name='dcgan', nz=8, ngf=4, ndf=4, img_channels=1, size=32)
    assert find_runs(tmp_path).iloc[0].fid_classifier > 0
    (tmp_path/'pickled').mkdir()
    torch.save(DCGANGenerator(1, 8, 4).state_dict(), tmp_path/'pickled/generator_100.ckpt')
    options = ['density_model=dcgan', 'density_model.nz=8', 'density_model.ngf=4', 'density_model.ndf=4', 'dataset=digits', 'trainer.num_epochs=1', 'device=cpu', 'distill_loader.synth_ratio=0.5']
    _, lines = distil(tmp_path, *options, 'density_model.ckpt_path=pickled')
    assert f'generator: {tmp_path}/pickled/generator_100.ckpt' in lines
    _, lines = distil(tmp_path, *options)
    assert f'generator: {run.path}/generator_4.safetensors' in lines
    with pytest.raises(ConfigError, match='density_model: .*has shape'): distil(tmp_path, *options, 'density_model.ckpt_path=pickled', 'density_model.nz=9')


def test_a_gan_that_diverges_is_a_failed_run(tmp_path, monkeypatch):
    monkeypatch.setitem(gan.GAN_LOSSES, 'hinge', (lambda real, fake: (real - fake).mean() * float('inf'), gan.hinge_generator))
    with pytest.raises(FloatingPointError, match='disc_loss of epoch 1 is'): generate(tmp_path, 'dataset=digits', *TINY, *SHORT, 'judge.name=none')
    assert find_runs(tmp_path).state.tolist() == ['failed']


def test_missing_weights_of_a_judge_are_one_sentence(tmp_path, monkeypatch):
    def no_network(*args, **kwargs): raise OSError('no network')
    monkeypatch.setenv('TORCH_HOME', str(tmp_path/'hub')); monkeypatch.setattr(torch.hub, 'download_url_to_file', no_network)
    with pytest.raises(FileNotFoundError, match="judge='inception_logits': the weights of Inception-v3 are not at"):
        generate(tmp_path, 'dataset=digits', *TINY, *SHORT, 'judge.name=inception_logits')
