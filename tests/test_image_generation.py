"GANs: what a run leaves, who finds its generators, and how it fails."
import shutil

import pytest
import torch

import gnosis_nb.gan as gan
from experiments import checkpoints, conduct, equal, images, table, weights
from gnosis_nb.checkpoint import checkpoint_info
from gnosis_nb.models import DCGANGenerator
from gnosis_nb.runs import find_runs
from gnosis_nb.schema import ConfigError
from versions import reads_pickles

SNGAN = ['density_model.z_dim=8', 'density_model.generator.k=8', 'density_model.discriminator.k=8']
DCGAN = ['density_model=dcgan', 'density_model.nz=8', 'density_model.ngf=4', 'density_model.ndf=4']


def generate(data_dir, *overrides, updates=4):
    "A GAN of the digits, trained for a moment, and the lines of its run."
    schedule = dict(num_gen_updates=updates, eval_period=updates // 2 or 1, checkpoint_period=updates,
        num_epochs=1)
    small = ['dataset=digits8', 'dataloader.batch_size=16', 'trainer.num_eval_samples=40',
        'classifier.depth=8']
    where = ['device=cpu', f'data_dir={data_dir}']
    return conduct('image_generation', *small, *(f'trainer.{k}={v}' for k, v in schedule.items()), *where,
        *overrides)

def distil(data_dir, *overrides):
    "A student with synthetic images, and the lines that are about their generator."
    run, lines = images(data_dir, 'distill_loader.synth_ratio=0.2', *overrides)
    return run, [o for o in lines if o.startswith(('generator', 'left out'))]

@pytest.fixture(scope='module')
def gans(tmp_path_factory):
    "The runs of two GANs in one folder; nothing else is trained there but students."
    folder = tmp_path_factory.mktemp('gans')
    def go(t): return generate(folder, *SNGAN, 'judge.name=none', f'trial_id={t}', f'job_name=gan{t}')[0]
    return folder, [go(0), go(1)]


def test_what_a_run_leaves(gans):
    for run in gans[1]:
        assert checkpoints(run) == {'generator_4', 'discriminator_4'}
        assert table(run, 'train_metrics').gen_updates.tolist() == [2, 4]
        assert (run.path/'samples.png').exists()
    assert not equal(*(weights(o, 'generator_4') for o in gans[1]))

@pytest.mark.parametrize('trial, overrides', [
    (0, []), (1, []), (0, ['trainer.eval_dataset=val']),  # held out, other labels: still these images
    (0, ['dataset.shuffle_train_targets.enabled=true', 'dataset.shuffle_train_targets.ratio=0.5'])])
def test_a_students_generator_is_found_by_trial_and_images(gans, batches, trial, overrides):
    folder, runs = gans
    _, lines = distil(folder, f'trial_id={trial}', *overrides)
    assert lines == [f'generator: {runs[trial].path}/generator_4.safetensors']
    assert {o[0].shape[1:] for o in batches} == {(1, 8, 8)}  # of 32 pixels, made as large as the real images
    labelled = torch.cat([o[1] for o in batches]) >= 0
    assert labelled.sum() in (1347, 1077) and .15 < (~labelled).sum()/labelled.sum() <= .2

@pytest.mark.parametrize('overrides, message', [
    (['dataset.seed=1'], 'was trained on other images'),
    (['density_model=dcgan'], 'is a sngan, density_model=dcgan')])
def test_a_generator_that_does_not_fit_is_refused_where_it_is_pointed_at(gans, overrides, message):
    with pytest.raises(ConfigError, match=f'^density_model.ckpt_dir=image_generation: .* {message}'):
        distil(gans[0], *overrides, 'density_model.ckpt_dir=image_generation')
    small = [] if 'density_model=dcgan' in overrides else SNGAN              # the paper's takes ten seconds
    assert distil(gans[0], *overrides, *small)[1][-1].startswith('generator: UNTRAINED')

def test_damaged_files_and_generators_that_have_hardly_begun_are_left_out(gans, tmp_path):
    shutil.copytree(gans[0]/'image_generation', tmp_path/'image_generation')
    (tmp_path/'junk').mkdir()
    (tmp_path/'junk/generator_9.safetensors').write_bytes(b'no')
    generate(tmp_path, *SNGAN, 'judge.name=none', 'trial_id=2', updates=1)
    left_out, found = distil(tmp_path)[1]
    assert left_out.startswith(f'left out: {tmp_path}/junk/generator_9')
    assert found.startswith(f'generator: {tmp_path}/image_generation/gan0')
    assert found.endswith('/generator_4.safetensors')

@pytest.fixture(scope='module')
def dcgan(tmp_path_factory):
    folder = tmp_path_factory.mktemp('dcgan')
    (folder/'pickled').mkdir()
    torch.save(DCGANGenerator(1, 8, 4).state_dict(), folder/'pickled/generator_100.ckpt')
    return folder, generate(folder, *DCGAN)[0]

def test_a_dcgan_and_its_score(dcgan):
    folder, run = dcgan
    spec = checkpoint_info(run.path/'generator_4.safetensors')['spec']
    assert spec == dict(name='dcgan', nz=8, ngf=4, ndf=4, img_channels=1, size=32)
    assert find_runs(folder).iloc[0].fid_classifier == table(run, 'train_metrics').fid_classifier.iloc[-1] > 0
    assert distil(folder, *DCGAN)[1] == [f'generator: {run.path}/generator_4.safetensors']

@reads_pickles
def test_a_foreign_generator_is_used_where_it_is_pointed_at(dcgan):
    pickled = [*DCGAN, 'density_model.ckpt_path=pickled']
    assert distil(dcgan[0], *pickled)[1] == [f'generator: {dcgan[0]}/pickled/generator_100.ckpt']
    with pytest.raises(ConfigError, match='^density_model: .*has shape'):
        distil(dcgan[0], *pickled, 'density_model.nz=9')


def test_a_gan_that_diverges_is_a_failed_run(tmp_path, monkeypatch):
    def infinite(real, fake): return (real - fake).mean()*float('inf')
    monkeypatch.setitem(gan.GAN_LOSSES, 'hinge', (infinite, gan.hinge_generator))
    with pytest.raises(FloatingPointError, match='disc_loss of epoch 1 is'):
        generate(tmp_path, *SNGAN, 'judge.name=none')
    assert find_runs(tmp_path).state.tolist() == ['failed']

def test_missing_weights_of_a_judge_are_one_sentence(tmp_path, monkeypatch):
    def no_network(*args, **kwargs): raise OSError('no network')
    monkeypatch.setenv('TORCH_HOME', str(tmp_path/'hub'))
    monkeypatch.setattr(torch.hub, 'download_url_to_file', no_network)
    message = "judge='inception_logits': the weights of Inception-v3 are not at"
    with pytest.raises(FileNotFoundError, match=message):
        generate(tmp_path, *SNGAN, 'judge.name=inception_logits')
