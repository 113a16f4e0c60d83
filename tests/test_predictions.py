"Logits that a run keeps, and what can be asked of them later."
import shutil

import pandas as pd
import pytest
import torch
from experiments import SMALL, TEACHERS, conduct, images, small

from gnosis_nb.checkpoint import CheckpointError, load_checkpoint, load_network, save_checkpoint
from gnosis_nb.cli import compose
from gnosis_nb.inputs import load_inputs
from gnosis_nb.losses import reduce_ensemble_logits
from gnosis_nb.predictions import load_predictions, pack_logits, tabulate_statistics, unpack_logits
from gnosis_nb.runs import find_runs

IMAGES, TEXTS = 'image_classification', 'text_classification'
both = pytest.mark.parametrize('command', [IMAGES, TEXTS])
KEPT = 'predictions_*.safetensors'
SHORT_TEACHERS = ['trainer.num_epochs=1', 'teacher.trainer.num_epochs=1', 'trainer.precision=fp32']
MUCH = {  # evaluation batches of texts are out of order
    IMAGES: ['dataset.subsample.ratio=0.5', 'distill_loader.splits=[1]'],
    TEXTS: ['dataloader.bucket=true', 'distill_loader.splits=[0]']}

@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    "A finished run of each command, with ensembles of two and an independent student, and its settings."
    folder = tmp_path_factory.mktemp('runs')
    ensembles = ['teacher.num_components=2', 'teacher.independent=true']
    settings = {o: [*MUCH[o], *SHORT_TEACHERS, *ensembles] for o in SMALL}
    done = {o: small(o, folder, *settings[o])[0] for o in SMALL}
    return {o: (run, compose([*SMALL[o], *settings[o]], o)) for o, run in done.items()}

def answers(run, inputs, examples, name):
    "What a network of a run says about each example, in order."
    net, loader = load_network(run.path/f'{name}.safetensors'), inputs.evaluation('cpu', examples)
    parts = torch.arange(len(examples)).split(50)
    with torch.no_grad(): return torch.cat([net(loader.rows(o)[0]) for o in parts])

def top(logits): return reduce_ensemble_logits(logits).argmax(-1)

@both
@pytest.mark.parametrize('part', ['test', 'train'])
def test_what_is_kept_is_what_the_networks_say(runs, command, part):
    run, cfg = runs[command]
    p, inputs = load_predictions(run, part), load_inputs(cfg)
    examples = getattr(inputs.sets, part).subset(p.indices)
    assert p.targets.equal(examples.targets)
    names = 'student', 'independent_student', 'teacher_0', 'teacher_1'
    student, independent, *members = (answers(run, inputs, examples, o) for o in names)
    for kept, said in zip((p.student, p.independent, *p.teacher.unbind(1)), (student, independent, *members)):
        torch.testing.assert_close(kept, said, atol=2e-3, rtol=1e-3)

@both
def test_rows_are_those_that_the_student_was_shown(runs, command):
    run, cfg = runs[command]
    inputs, number = load_inputs(cfg), cfg.distill_loader.splits[0]
    shown = inputs.sets.train.subset(load_predictions(run, 'train').indices)
    assert sorted(shown.targets.tolist()) == sorted(inputs.parts[number].targets.tolist())
    assert load_predictions(run).indices.equal(torch.arange(len(inputs.sets.test)))

@both
def test_the_tables_of_a_run_come_back_without_its_networks(runs, command, monkeypatch):
    run, _ = runs[command]
    def refuse(*args, **kwargs): raise AssertionError('a network')
    monkeypatch.setattr(torch.nn.Module, '__init__', refuse)
    p = load_predictions(run)
    tables = dict(fidelity=p.report(), statistics=p.statistics(), differences=p.differences())
    for name, table in tables.items():
        file = 'fidelity.csv' if name == 'fidelity' else f'fidelity_{name}.csv'
        written = pd.read_csv(run.path/file, index_col=0, float_precision='round_trip').loc[table.index]
        exact = [o for o in table.columns if o in ('accuracy', 'agreement')]
        assert table[exact].equals(written[exact])
        middle = [o for o in table.columns if o not in ('low', 'high')]    # texts are in another order
        pd.testing.assert_frame_equal(table[middle], written[middle], atol=1e-3, rtol=2e-3, check_names=False)

def test_a_new_metric_of_20_finished_runs(runs, tmp_path, monkeypatch):
    "A measure that no table has, from folders without any weights."
    run, cfg = runs[IMAGES]
    def weights(_, names): return [o for o in names if o.endswith('.safetensors') and 'predictions' not in o]
    for i in range(20): shutil.copytree(run.path, tmp_path/str(i), ignore=weights)
    def second(z): return reduce_ensemble_logits(z).topk(2).indices[:, 1]
    def second_agreement(teacher, student): return (second(teacher) == second(student)).double().mean().item()
    inputs = load_inputs(cfg)
    z = {o: answers(run, inputs, inputs.sets.test, o) for o in ('teacher_0', 'teacher_1', 'student')}
    expected = second_agreement(torch.stack([z['teacher_0'], z['teacher_1']], 1), z['student'])

    def refuse(*args, **kwargs): raise AssertionError('a network')
    monkeypatch.setattr(torch.nn.Module, '__init__', refuse)
    found = [load_predictions(o) for _, o in find_runs(tmp_path).iterrows()]
    values = [second_agreement(o.teacher, o.student) for o in found]
    assert values == pytest.approx([expected]*20, abs=.01)

def test_a_run_of_teachers_keeps_theirs(tmp_path):
    run, _ = images(tmp_path, TEACHERS, 'teacher.num_components=2')
    for part, n in dict(test=450, train=1347).items():
        p = load_predictions(run, part)
        assert p.teacher.shape == (n, 2, 10) and p.student is None and p.independent is None
    assert load_predictions(run).report().index.tolist() == ['teacher', 'teacher_0', 'teacher_1']
    with pytest.raises(ValueError, match='student=None: expected logits'): p.statistics()

@both
def test_the_setting_keeps_none_and_makes_no_other_run(tmp_path, command):
    settings = [*SMALL[command], *SHORT_TEACHERS, 'device=cpu', f'data_dir={tmp_path}']
    run, _ = conduct(command, *settings, 'keep_predictions=false')
    again, _ = conduct(command, *settings)
    assert again.finished and again.path == run.path and not list(tmp_path.rglob(KEPT))
    message = 'has no predictions .* keep_predictions=false'
    with pytest.raises(CheckpointError, match=message): load_predictions(run)

def test_a_student_of_other_sets_only_has_no_distillation_examples(tmp_path):
    others = 'distill_loader.extra=[{name: digits, size: 8, num: 100}]'
    run, _ = images(tmp_path, 'distill_loader.splits=[]', others)
    assert [o.name for o in run.path.glob(KEPT)] == ['predictions_test.safetensors']
    with pytest.raises(CheckpointError, match='shown other sets only'): load_predictions(run, 'train')

@pytest.mark.parametrize('scale', [1e-6, 1e-2, 1., 30., 1e5, 1e30])
@pytest.mark.parametrize('shape', [(2000, 5), (2000, 1, 5), (2000, 3, 5)])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_rounding_changes_no_prediction(scale, shape, dtype):
    rng = torch.Generator().manual_seed(0)
    z = (scale*(10 + torch.randn(*shape, generator=rng))).to(dtype)
    again = unpack_logits(pack_logits(z))
    assert top(again).equal(top(z)) and again.argmax(-1).equal(z.argmax(-1))
    z = z.float()
    distance, magnitude = z.amax(-1, keepdim=True) - z, z.abs().amax(-1, keepdim=True)
    assert ((again - z).abs() <= distance/2048 + 2**-25 + 2**-22*magnitude).all()

def test_rows_that_are_not_finite_stay_as_they_are():
    z = torch.tensor([[1., 2., 3.], [0., float('inf'), 1.], [float('nan'), 1., 2.], [-float('inf'), 0., 1.]])
    torch.testing.assert_close(unpack_logits(pack_logits(z)), z, equal_nan=True)

def test_one_run_is_a_list_of_one(runs):
    run = runs[IMAGES][0]
    row = find_runs(run.path).iloc[0]
    given = run, row, run.path, str(run.path)
    tables = [tabulate_statistics(o, ('exaggeration',), num_resamples=10) for o in given]
    assert [o.index.tolist() for o in tables] == [[(str(run.path), 'test', 'exaggeration')]]*4

@pytest.mark.parametrize('name, why', [('state.json', 'damaged'), (KEPT, "has no tensor 'indices'")])
def test_what_is_damaged_is_a_checkpoint_error(runs, tmp_path, name, why):
    folder = shutil.copytree(runs[IMAGES][0].path, tmp_path/'run')
    if name == 'state.json': (folder/name).write_text('{"cut')
    else:
        path = folder/'predictions_test.safetensors'
        tensors, facts = load_checkpoint(path)
        tensors.pop('indices')
        save_checkpoint(path, tensors, **facts)
    with pytest.raises(CheckpointError, match=why): load_predictions(folder)

def test_a_run_of_a_generator_says_what_it_is(tmp_path):
    (tmp_path/'state.json').write_text('{"state": "done"}')
    (tmp_path/'config.yaml').write_text('judge: {name: none}')
    with pytest.raises(CheckpointError, match='it trained a generator, no classifiers'):
        load_predictions(tmp_path)
