"The plan: a row that fails does not stop the others, and nothing is done twice."
import pytest
from PIL import Image

from gnosis_nb.cli import compose
from gnosis_nb.paper import plan, sweeps
from gnosis_nb.paper.plan import Speed, needed_rows, run_plan, sweep_rows
from gnosis_nb.paper.sweeps import done_runs
from gnosis_nb.settings import ConfigError

SPEED = Speed(1e5, 1e6)

def test_a_row_that_fails_leaves_the_others(tmp_path, monkeypatch):
    one = ['teacher.num_components=1', 'loss.alpha=0.0,0.5', 'trial_id=0']
    less = ['device=cpu', f'data_dir={tmp_path}', *one]
    rows, said, run_here, ran = sweep_rows(['fig14'], 'smoke', less), [], plan.run_here, []
    claims = needed_rows(rows, 'smoke')
    assert [len(o) for o in claims.values()] == [2]
    def run(command, settings):
        ran.append(settings.loss.alpha if settings.trainer.distill_teacher else 'teachers')
        if ran[-1] == 0: raise FloatingPointError('loss is no number')
        return run_here(command, settings)
    for module in (plan, sweeps): monkeypatch.setattr(module, 'run_here', run)
    with pytest.raises(ConfigError, match=r'^fig14 loss.alpha=0.0: failed'):
        run_plan(rows, claims, 'smoke', 60, SPEED, less, say=said.append)
    assert ran == ['teachers', 0, 'teachers', .5] and len(done_runs(tmp_path)) == 3
    assert 'failed, and left out: FloatingPointError: loss is no number' in said
    assert (tmp_path/'figures'/'fig14_smoke.csv').exists()
    again = lambda *args: ran.append(args[1].loss.alpha) or run_here(*args)
    for module in (plan, sweeps): monkeypatch.setattr(module, 'run_here', again)
    assert len(run_plan(rows, claims, 'smoke', 60, SPEED, less, say=said.append)) == 1
    assert ran[4:] == [0] and len(done_runs(tmp_path)) == 4                  # its teacher was there

def test_images_of_a_folder_are_counted(tmp_path):
    for split, kind, n in [('train', 'cat', 3), ('train', 'dog', 2), ('test', 'cat', 1), ('test', 'dog', 1)]:
        (tmp_path/split/kind).mkdir(parents=True)
        for i in range(n): Image.new('RGB', (8, 8), (i, 0, 0)).save(tmp_path/split/kind/f'{i}.png')
    cfg = compose(['dataset=image_folder', f'dataset.root_dir={tmp_path}'])
    assert plan._training_set(cfg) == (5, 3, 8, 2)

def test_without_time_nothing_is_run(tmp_path):
    rows = sweep_rows(['table1'], 'smoke', ['device=cpu', f'data_dir={tmp_path}'])
    assert run_plan(rows, needed_rows(rows, 'smoke'), 'smoke', .01, SPEED) == []
    assert not list(tmp_path.iterdir())

@pytest.mark.parametrize('given, message', [
    (['minutes=x'], 'minutes=x: expected a number > 0'),
    (['minutes=-1'], 'minutes=-1: expected a number > 0'),
    (['fig15', 'scale=smoke'], "name='fig15': expected one of fig01"),
    (['scale=tiny', 'device=cpu'], "scale='tiny': expected one of"),
    (['table2'], "name='table2': expected a figure of images")])
def test_wrong_arguments_are_one_sentence(given, message):
    with pytest.raises(SystemExit) as stop: plan.figure_command(['--plan', *given])
    assert message in stop.value.code and '\n' not in stop.value.code

def test_costs_say_how_far_they_are(monkeypatch, capsys):
    told = plan.with_progress
    monkeypatch.setattr(plan, 'with_progress', lambda *args, **kw: told(*args, **kw, patience=-1))
    plan.figure_command(['--cost', 'fig14', 'scale=smoke'])
    out, err = capsys.readouterr()
    assert err == 'figures: 1 of 1\n' and out.split('\n')[1].startswith('fig14')
