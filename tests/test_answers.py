"Commands that make tables of runs, where something is odd: images, files, options, signals."
import json
import os
import signal

import numpy as np
import pytest
from PIL import Image

import processes
from experiments import conduct
from gnosis_nb.cli import compose
from gnosis_nb.law import law_command
from gnosis_nb.leaderboard import leaderboard_command
from gnosis_nb.paper.plan import figure_command
from gnosis_nb.paper.sweeps import done_runs, load_results
from gnosis_nb.runs import find_runs
from gnosis_nb.schema import ConfigError

SMOKE = ['track=smoke', 'trials=1', 'dataset.shrink.train=200', 'trainer.num_epochs=1', 'device=cpu']


def leaderboard(folder, *given): return leaderboard_command([*SMOKE, f'data_dir={folder}', *given])
def law(folder, *given): return law_command([*SMOKE[:2], 'device=cpu', f'data_dir={folder}', *given])
def rows(folder, name='leaderboard', where='leaderboard'): return load_results(name, 'smoke', folder/where)
def refused(command, *given):
    "What a command says."
    with pytest.raises(SystemExit) as said: command(*given)
    return str(said.value)

def images_of(folder, seed, n=40):
    "A folder of images of three classes, which are circles of other sizes and any colours."
    rng, (a, b) = np.random.default_rng(seed), np.mgrid[:16, :16] - 8
    for part, count in dict(train=n, test=n//2).items():
        for k in range(3):
            (folder/part/str(k)).mkdir(parents=True)
            for i in range(count):
                colours = rng.integers(0, 256, (2, 3))
                x = colours[(a**2 + b**2 < (3 + 2*k)**2).astype(int)] + rng.integers(-20, 20, (16, 16, 3))
                Image.fromarray(x.clip(0, 255).astype('uint8')).save(folder/part/str(k)/f'{i}.png')
    return folder

def test_images_of_another_folder_are_other_runs(tmp_path):
    folders = [images_of(tmp_path/name, seed) for seed, name in enumerate('ab')]
    numbers = []
    for data in (folders[0], folders[1], folders[0]):
        leaderboard(tmp_path/'runs', '--only', 'tau_1', 'dataset=image_folder', 'dataset.shrink.train=60',
                    f'dataset.root_dir={data}')
        numbers.append(rows(tmp_path/'runs').rows)
    assert len(find_runs(tmp_path/'runs')) == 6                              # of each a teacher, two students
    assert len(done_runs(tmp_path/'runs')) == 3                              # settings
    assert numbers[0].equals(numbers[2]) and not numbers[0].kl.equals(numbers[1].kl)

def test_rates_of_one_entry_after_another(tmp_path):
    for name in ('tau_1', 'brier'): leaderboard(tmp_path, '--rates', '--only', name)
    assert {*rows(tmp_path, 'rates').rows.entry} == {'baseline', 'tau_1', 'brier'}
    leaderboard(tmp_path, '--tuned', '--only', 'tau_1,brier')
    r = rows(tmp_path, 'rates')
    assert sorted(i for o in r.facts['provenance'] for i in o['rows']) == [*range(len(r))]
    assert r.facts['runs'] == len(r) and '--only baseline,brier,tau_1' in r.facts['command']

def test_a_table_of_other_entries_is_not_replaced(tmp_path):
    kept = tmp_path/'kept'
    leaderboard(tmp_path, '--only', 'tau_1', '--results', str(kept))
    before = (kept/'leaderboard_smoke.csv').read_text()
    said = refused(leaderboard, tmp_path, '--only', 'brier', 'trainer.num_epochs=2', '--results', str(kept))
    assert 'leaderboard_smoke.csv: has tau_1 … of another command' in said and '--results' in said
    assert (kept/'leaderboard_smoke.csv').read_text() == before

def test_files_of_entries_have_names_of_their_own(tmp_path):
    for name in ('mine', 'mixup', 'other/mine'):
        (tmp_path/name).parent.mkdir(exist_ok=True)
        (tmp_path/f'{name}.yaml').write_text('what: a temperature of 20\nsettings: [distill_loader.temp=20.]')
    mine = str(tmp_path/'mine.yaml')
    assert 'this package has an entry mixup' in refused(leaderboard, tmp_path, str(tmp_path/'mixup.yaml'))
    other = str(tmp_path/'other/mine.yaml')
    assert f'{mine} has an entry mine' in refused(leaderboard, tmp_path, mine, other)
    leaderboard(tmp_path, mine)
    assert rows(tmp_path).facts['command'].startswith(f'gnosis-leaderboard {mine} track=smoke')

def test_when_all_entries_fail_it_is_said(tmp_path, capsys):
    said = refused(leaderboard, tmp_path, '--only', 'tau_1', 'trainer.optimizer.lr=1e30')
    assert said == 'error: baseline, tau_1: failed, see above; the same command tries again'
    assert 'training diverged' in capsys.readouterr().out

def test_damaged_and_foreign_files_are_named_and_left_out(tmp_path, capsys):
    leaderboard(tmp_path, '--only', 'tau_1')
    for name, text in dict(a='{"state": "do', b='[1]', c='{"state": "done"}').items():
        (tmp_path/name).mkdir()
        (tmp_path/name/'state.json').write_text(text)
    leaderboard(tmp_path, '--only', 'tau_1')
    said = capsys.readouterr().err
    assert said.count('left out:') == 2 and f"{tmp_path/'a'}" in said and f"{tmp_path/'b'}" in said
    (tmp_path/'leaderboard/rates_smoke.csv').write_text('x,y\n1,2\n')
    (tmp_path/'leaderboard/rates_smoke.json').write_text('{}')
    assert 'expected columns entry, lr and agreement in' in refused(leaderboard, tmp_path, '--tuned')
    (tmp_path/'leaderboard/leaderboard_smoke.json').write_text('{"what": "a')
    assert 'leaderboard_smoke.json' in refused(
        leaderboard, tmp_path, '--verify', '--results', str(tmp_path/'leaderboard'))

def test_a_table_is_printed_again_without_the_teachers_weights(tmp_path):
    leaderboard(tmp_path, '--only', 'tau_1')
    for o in tmp_path.rglob('teacher_*.safetensors'): o.unlink()
    before = len(find_runs(tmp_path))
    leaderboard(tmp_path, '--only', 'tau_1')
    assert len(find_runs(tmp_path)) == before and rows(tmp_path).rows.weights.isna().all()

@pytest.mark.parametrize('number, status', [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_leaderboard_that_is_stopped_keeps_its_state(tmp_path, number, status):
    code = 'from gnosis_nb.leaderboard import leaderboard_command as f; f()'
    given = [*SMOKE[:3], 'trainer.num_epochs=300', 'device=cpu', '--only', 'tau_1', f'data_dir={tmp_path}']
    process = processes.start(code, *given, at='student_init.safetensors')
    os.kill(process.pid, number)
    os.kill(process.pid, signal.SIGCONT)
    found, _, said = process.wait()
    assert found == status and said.splitlines()[-1] == 'interrupted; the same command goes on from here'
    assert 'Traceback' not in said and 'interrupted' in set(find_runs(tmp_path).state)

def test_options_that_have_no_effect_are_refused(tmp_path, capsys):
    for given in (['--row', '1'], ['--rates', '--tuned']):
        assert refused(leaderboard, tmp_path, *given) == '2'
    assert 'expected with --verify' in capsys.readouterr().err
    assert refused(figure_command, ['fig14', 'scale']) == 'error: scale: expected scale=value'

@pytest.mark.parametrize('command', [figure_command, leaderboard_command, law_command])
def test_results_are_kept_in_no_folder_with_a_tilde(command, capsys):
    assert refused(command, ['--results=~/x']) == '2'
    assert 'argument --results: ~/x: expected $HOME in place of ~' in capsys.readouterr().err

def test_names_of_grids_may_have_dots(tmp_path):
    grid = 'dataset.shrink.train=100,200', 'trainer.num_epochs=1'
    for name in ('v1.1', 'v1.2'): law(tmp_path, *grid, '--name', name)
    assert {o.name for o in (tmp_path/'law').glob('v1*.csv')} == {'v1.1_smoke.csv', 'v1.2_smoke.csv'}
    assert len(rows(tmp_path, 'v1.1', 'law')) == 2

def test_a_grid_of_networks_and_of_ensembles(tmp_path):
    said = refused(law, tmp_path, 'classifier.depth=8,14', 'trainer.num_epochs=1')
    assert "a teacher's network is its student's unless it is given, too, by teacher.depth=…" in said
    law(tmp_path, 'teacher.num_components=2', 'dataset.shrink.train=100,200', 'trainer.num_epochs=1')
    states = [json.loads((o/'state.json').read_text()) for o in find_runs(tmp_path).path.map(type(tmp_path))]
    assert {len(o['teachers'][0]) for o in states if o['teachers']} == {2}

def test_a_figures_row_is_verified_where_the_data_are_elsewhere(tmp_path, capsys):
    given = ['fig14', 'scale=smoke', f'data_dir={tmp_path}', '--trials', '1', 'teacher.num_components=1',
             'loss.alpha=0.0', 'dataset.shrink={train: 100}', 'device=cpu', '--results', str(tmp_path/'kept')]
    figure_command(given)
    again = [*given[:3], '--verify', '--row', '0', *given[-2:], 'dataset.download=false']
    with pytest.raises(SystemExit) as ended: figure_command(again)
    assert ended.value.code == 0 and 'comes back to the last digit' in capsys.readouterr().out

def test_of_values_below_a_mapping_the_last_one_counts():
    def train_of(*given): return compose(['dataset=digits', *given]).dataset.shrink.train
    assert train_of('dataset.shrink.train=600', 'dataset.shrink={train: 300}') == 300
    assert train_of('dataset.shrink={train: 300}', 'dataset.shrink.train=600') == 600

def test_a_batch_has_room_for_each_source(tmp_path):
    with pytest.raises(ConfigError, match='dataloader.batch_size=1: .* one row of each of 2 sources'):
        conduct('image_classification', '+experiment=digits', 'dataset=digits8', 'dataset.shrink.train=30',
                'dataset.subsample.ratio=0.5', 'distill_loader.splits=[0,1]', 'dataloader.batch_size=1',
                'trainer.num_epochs=1', 'teacher.trainer.num_epochs=1', 'device=cpu', f'data_dir={tmp_path}')
