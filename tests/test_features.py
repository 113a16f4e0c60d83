"Losses of features by way of the command's settings."
import pytest
import torch

from gnosis_nb.checkpoint import load_checkpoint, load_network
from gnosis_nb.cli import compose, run_command
from gnosis_nb.runs import run_identity
from gnosis_nb.settings import ConfigError, as_dict

SMALL = ['+experiment=digits', '+recipe=student', 'dataset.size=8', 'dataset.shrink={train: 160, test: 64}',
         'dataloader.batch_size=32', 'trainer.num_epochs=2', 'device=cpu']


def run(folder, *overrides):
    cfg = compose([*SMALL, *overrides, f'data_dir={folder}'])
    return run_command('image_classification', cfg, say=lambda line: None)


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp('features')
    deeper = ['classifier.depth=14', 'teacher.depth=8']
    return run(folder), run(folder, *deeper, 'features=fitnet', 'features.layers=[layer1, layer3]')


def test_a_saved_student_has_no_projectors(runs):
    student = load_checkpoint(runs[1].path/'student.safetensors')[0]
    assert student.keys() == load_network(runs[1].path/'student.safetensors').state_dict().keys()


def test_both_learn_from_the_same_teacher(runs):
    assert runs[0].state['teachers'] == runs[1].state['teachers']
    assert runs[1].tables['student_train_metrics'][-1]['train_loss'] > 0


def test_features_are_part_of_a_runs_identity_and_none_is_not():
    plain = as_dict(compose(SMALL))
    before = {k: v for k, v in plain.items() if k != 'features'}
    assert run_identity(plain) == run_identity(before)
    assert run_identity(plain) != run_identity(as_dict(compose([*SMALL, 'features=rkd'])))


@pytest.mark.parametrize('command, overrides, text', [
    ('text_classification', ['features=rkd'], 'features'),
    ('image_classification', ['features=hints'],
     'expected one of activations, attention, fitnet, none, rkd, similarity'),
    ('image_classification', ['features.beta=2'], 'features.beta')])
def test_what_there_is_not(command, overrides, text):
    with pytest.raises(ConfigError, match=text): compose(overrides, command)


def test_layers_are_checked_before_the_run(tmp_path):
    with pytest.raises(ConfigError, match="features.layers='layer9': expected the name of a module"):
        run(tmp_path, 'features=rkd', 'features.layers=[layer9]')
    assert not list(tmp_path.rglob('state.json'))


def test_logit_mse_trains_a_student(tmp_path):
    losses = [row['train_loss'] for row in run(tmp_path, 'loss=logit_mse').tables['student_train_metrics']]
    assert losses[1] < losses[0] and torch.tensor(losses).isfinite().all()
