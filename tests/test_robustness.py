"Robustness of a finished run's networks, from its folder alone."
import torch
import pytest

from experiments import images, report
from gnosis_nb.data.shifts import SHIFTS, shift_images
from gnosis_nb.hub import find_networks
from gnosis_nb.inputs import run_inputs
from gnosis_nb.robustness import robustness_report
from gnosis_nb.runs import find_runs


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    return images(tmp_path_factory.mktemp('data'), 'teacher.independent=true')[0]

def names_of(run): return [find_networks(run.path, o) for o in ('student', 'teacher')]

def test_strength_0_is_what_the_run_has_reported(run):
    dl = run_inputs(run).evaluation('cpu')
    table = robustness_report(*names_of(run), dl, find_networks(run.path, 'independent_student'),
                              num_resamples=10, progress=False)
    assert len(table.kind.unique()) == len(SHIFTS) + 2
    plain = table[(table.strength == 0) & (table.kind == 'noise')].pivot(
        index='model', columns='measure', values='value')
    kept = report(run)
    for model in ('student', 'independent student'):
        for measure in ('accuracy', 'agreement', 'kl'):
            assert plain.loc[model, measure] == pytest.approx(kept.loc[model, measure], abs=1e-5)
    assert plain.loc['teacher', 'accuracy'] == pytest.approx(kept.loc['teacher', 'accuracy'], abs=1e-6)

def test_inputs_of_a_row_of_find_runs(run):
    row = find_runs(run.path.parent.parent).iloc[0]
    assert torch.equal(run_inputs(row).sets.test.images, run_inputs(run).sets.test.images)

def test_attacked_networks_are_left_as_they_were(run):
    from gnosis_nb.adapt import as_model
    student = as_model(find_networks(run.path, 'student')).train()
    before = {k: v.clone() for k, v in student.state_dict().items()}
    robustness_report(student, find_networks(run.path, 'teacher'), run_inputs(run).evaluation('cpu'),
                      num_resamples=10, progress=False)
    assert all(m.training for m in student.modules())
    assert all(o.grad is None and o.requires_grad for o in student.parameters())
    assert all(torch.equal(v, before[k]) for k, v in student.state_dict().items())

@pytest.mark.parametrize('rows', [7, 100])
def test_shifts_do_not_depend_on_the_size_of_batches(rows):
    x = torch.rand(450, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for shift in SHIFTS.values():
        whole, split = (torch.Generator().manual_seed(3) for _ in range(2))
        parts = torch.cat([shift_images(o, shift, 3, split) for o in x.split(rows)])
        assert torch.allclose(parts, shift_images(x, shift, 3, whole), atol=1e-6)
