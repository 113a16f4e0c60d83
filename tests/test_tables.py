"Tables of many runs: statistics over trials, shared teachers, the table of a sweep, `gnosis-runs`."
import json
import subprocess
import sys
from dataclasses import fields, is_dataclass
from typing import get_type_hints

import numpy as np
import pandas as pd
import pytest
from experiments import SHORT, SMALL, script
from scipy import stats

from gnosis_nb.cli import COMMANDS
from gnosis_nb.listing import list_runs
from gnosis_nb.run_folder import Run
from gnosis_nb.runs import NOT_IN_IDENTITY, find_runs
from gnosis_nb.tables import (WITHOUT_GROUP, describe_runs, format_table, label_runs, shared_teachers,
    tabulate_runs)

POLICY = 'distill_loader.policy'


def row(policy='baseline', trial=0, teachers=None, state='done', **more):
    "A run as `find_runs` would give it, with made-up results."
    made_up = np.random.default_rng([trial, len(policy)]).uniform(.8, .9, 3)
    results = dict(zip(('agreement', 'kl', 'independent_agreement'), made_up))
    settings = {'trial_id': trial, 'seed': trial, POLICY: policy, 'classifier.depth': 8, 'teacher.depth': 8}
    facts = dict(path='p', state=state, started=f'2027-01-{trial + 1:02}', teachers=teachers)
    return facts | settings | results | more

def runs(*rows): return pd.DataFrame(list(rows))


# Statistics

@pytest.mark.parametrize('n', [2, 3, 7])
def test_means_deviations_and_intervals_are_those_of_scipy(n):
    df = runs(*(row(policy, t) for policy in ('baseline', 'mixup') for t in range(n)))
    table = tabulate_runs(df)
    assert table.index.tolist() == ['baseline', 'mixup'] and table.runs.tolist() == [n, n]
    for policy, some in df.groupby(POLICY):
        for name in ('agreement', 'kl', 'independent_agreement'):
            x, found = some[name], table.loc[policy]
            assert found[name] == pytest.approx(np.mean(x))
            assert found[f'{name}_std'] == pytest.approx(np.std(x, ddof=1))
            interval = stats.t.interval(.95, n - 1, np.mean(x), stats.sem(x))
            assert (found[f'{name}_low'], found[f'{name}_high']) == pytest.approx(interval)

def test_one_trial_has_no_interval():
    table = tabulate_runs(runs(row(), row(trial=1, agreement=np.nan)))
    assert table.runs.tolist() == [2] and table.kl_low.notna().all()
    assert table[['agreement_std', 'agreement_low', 'agreement_high']].isna().values.all()
    assert '±' not in format_table(table).agreement['all'] and '±' in format_table(table).KL['all']

@pytest.mark.parametrize('state', ['failed', 'running', 'interrupted'])
def test_only_runs_that_are_done_count(state):
    df = runs(row(), row(trial=1), row(trial=2, state=state, agreement=0.))
    table = tabulate_runs(df)
    assert table[['runs', 'not_done']].values.tolist() == [[2, 1]] and table.agreement['all'] > .8
    assert f'1 of 3 runs (1 {state})' in describe_runs(df)

@pytest.mark.parametrize('name, values', [
    ('force', [False, True]), ('job_name', ['a', 'b']), ('dataloader.num_workers', [0, 4]),
    ('logger.wandb', [False, True])])
def test_what_changes_no_result_makes_no_setting(name, values):
    assert name in NOT_IN_IDENTITY or name.split('.')[0] in NOT_IN_IDENTITY
    first, second = ({name: v} for v in values)
    df = runs(row(**first), row(trial=1, **second), row(trial=1, **first))   # the last one is a repetition
    assert tabulate_runs(df).runs.tolist() == [2] and set(label_runs(df)) == {'all'}

def test_a_repetition_that_failed_replaces_nothing():
    df = runs(row(), row(trial=1), row(state='failed', started='2028'))
    assert tabulate_runs(df)[['runs', 'not_done']].values.tolist() == [[2, 0]]

def test_rows_are_of_the_settings_asked_for():
    df = runs(*(row(p, t, **{'classifier.depth': d}) for p in ('a', 'bc') for t in (0, 1) for d in (8, 14)))
    assert tabulate_runs(df).runs.tolist() == [2]*4
    assert tabulate_runs(df, POLICY).runs.tolist() == tabulate_runs(df, 'policy').runs.tolist() == [4, 4]
    table = tabulate_runs(df, ['policy', 'classifier.depth'])
    assert table.index.tolist() == [('a', 8), ('a', 14), ('bc', 8), ('bc', 14)]
    assert 'runs of one row differ in classifier.depth' in describe_runs(df, 'policy')
    assert 'differ in' not in describe_runs(df)
    with pytest.raises(ValueError, match="by='depth': expected one of .*: classifier.depth, teacher.depth"):
        tabulate_runs(df, 'depth')
    with pytest.raises(ValueError, match="by='agreement': expected a setting"): tabulate_runs(df, 'agreement')

def test_runs_of_generators_have_their_own_results():
    df = pd.DataFrame([dict(path='p', state='done', started='1', trial_id=t, fid_classifier=99. + t)
                       for t in (0, 1)])
    assert format_table(tabulate_runs(df)).fid_classifier.tolist() == ['99.5 ± 6.4']

def test_a_folder_without_runs_has_an_empty_table(tmp_path):
    df = find_runs(tmp_path)
    assert tabulate_runs(df, POLICY).empty and format_table(tabulate_runs(df)).empty
    assert describe_runs(df) == 'no runs'

def test_tables_can_be_read_again(tmp_path):
    table = tabulate_runs(runs(row(), row(trial=1), row('mixup')))
    table.to_csv(tmp_path/'t.csv')
    again = pd.read_csv(tmp_path/'t.csv', index_col=0)
    pd.testing.assert_frame_equal(again, table, check_dtype=False)
    assert format_table(table).to_latex().count(r'\\') == 4                  # two lines of head, two rows

def test_settings_without_a_group_are_known():
    def plain(cls): return {o for o, kind in get_type_hints(cls).items() if not is_group(kind)}
    def is_group(kind): return any(is_dataclass(o) for o in (kind, *getattr(kind, '__args__', ())))
    names = {o for cls in COMMANDS.values() for o in plain(cls) & {f.name for f in fields(cls)}}
    assert names == {*WITHOUT_GROUP} - {'scale'}


# Teachers

@pytest.mark.parametrize('teachers, sentences', [
    (['a', 'b', 'c', 'd'], []),
    (['a', 'b', 'a', 'b'], []),                                              # each policy has both
    (['a', 'a', 'a', 'a'], ['trials 0 and 1 share teacher a']),
    (['a', 'b', 'c d', 'e d'], ['policy=mixup: trials 0 and 1 share teacher d']),
    (['a b', 'b a', 'c', 'd'], ['policy=baseline: trials 0 and 1 share teachers a and b']),
    ([None, 'a', 'b', 'b'], ['policy=mixup: trials 0 and 1 share teacher b'])])
def test_trials_that_share_a_teacher_are_named(teachers, sentences):
    trials = [('baseline', 0), ('baseline', 1), ('mixup', 0), ('mixup', 1)]
    df = runs(*(row(*o, teachers=t) for o, t in zip(trials, teachers)))
    assert shared_teachers(df) == [f"{o}: their spread leaves out the teachers' own" for o in sentences]
    assert all(o in describe_runs(df) for o in sentences)

def test_distinct_teachers_are_counted():
    df = runs(row(teachers='a b'), row(trial=1, teachers='b c'), row('mixup', teachers=None))
    assert tabulate_runs(df).teachers.fillna(-1).tolist() == [3, -1]

def test_runs_say_which_teachers_they_had(tmp_path):
    with Run(tmp_path/'new', {}) as run:
        run.set_state('running', teacher_weights=[['0123456789', 'abcdefghij'], ['9876543210']])
    with Run(tmp_path/'older', {}): pass
    df = find_runs([tmp_path/'new', tmp_path/'older'])
    assert df.teachers[0] == '01234567 abcdefgh' and df.independent_teachers[0] == '98765432'
    assert df.teachers.isna().tolist() == [False, True]


# A sweep and the command

SWEEP = ['-m', *SMALL['image_classification'], *SHORT, 'exp_name=here']

@pytest.fixture(scope='module')
def swept(tmp_path_factory):
    "Two trials of two policies, and what the sweep said."
    folder = tmp_path_factory.mktemp('swept')
    sweep = [*SWEEP, f'data_dir={folder}', 'policy=baseline,mixup', 'trial_id=0,1']
    out = script('image_classification', *sweep)
    assert out.returncode == 0, out.stderr
    return folder, out.stdout

@pytest.fixture(autouse=True)
def wide(monkeypatch): monkeypatch.setenv('COLUMNS', '105')                 # of the terminal

def gnosis_runs(capsys, folder, *args):
    "What the command prints."
    list_runs(['--data-dir', str(folder), *args])
    return capsys.readouterr().out

def test_a_sweep_ends_with_its_table(swept):
    folder, said = swept
    file, = folder.rglob('table.csv')
    assert f'4 runs of this sweep, in {file}:' in said
    kept, table = pd.read_csv(file, index_col=0), tabulate_runs(find_runs(folder))
    pd.testing.assert_frame_equal(kept, table, check_dtype=False)
    assert format_table(table).agreement['mixup'] in said
    jobs = [o for o in said.splitlines() if 'training images' in o]
    assert [o.split('] ')[0] for o in jobs] == [
        f'[{i} policy={p},trial_id={t}' for i, (p, t) in enumerate((p, t) for p in ('baseline', 'mixup')
                                                                    for t in (0, 1))]

def test_the_command_lists_and_filters(swept, capsys):
    folder, _ = swept
    lines = gnosis_runs(capsys, folder, 'here').splitlines()
    assert lines[0] == f'4 runs below {folder}/here, 4 of them done' and len(lines) == 6
    assert all((folder/'here'/o.split()[-1]/'state.json').exists() for o in lines[2:])
    assert len(gnosis_runs(capsys, folder, '--filter', 'mixup').splitlines()) == 4

def test_the_command_tabulates(swept, capsys, tmp_path):
    folder, said = swept
    file = tmp_path/'t.csv'
    text = gnosis_runs(capsys, folder, 'here', '--by', 'policy', '--csv', str(file))
    assert text == said.partition('table.csv:\n')[2]
    assert text == gnosis_runs(capsys, folder, str(folder/'here'), '--table')
    assert pd.read_csv(file).runs.tolist() == [2, 2]
    assert gnosis_runs(capsys, folder, '--table', '--format', 'csv') == file.read_text()
    markdown = gnosis_runs(capsys, folder, '--table', '--format', 'markdown').splitlines()
    assert len(markdown) == 4 and len({o.count('|') for o in markdown}) == 1

def test_the_command_compares(swept, capsys):
    folder, _ = swept
    df = find_runs(folder)
    i, j = df.index[df[POLICY] == 'mixup']
    for k, path in df.path[[i, j]].items():
        state = json.loads((folder/path/'state.json').read_text())
        (folder/path/'state.json').write_text(json.dumps(state | dict(teacher_weights=[['0123456789']])))
    text = gnosis_runs(capsys, folder, '--compare', str(i), str(j))
    assert 'trial_id' in text and POLICY not in text and f'{df.agreement[j] - df.agreement[i]:.4f}' in text
    assert text.splitlines()[-1].startswith('trials 0 and 1 share teacher 01234567')

CODE = '''
import sys
from gnosis_nb.listing import list_runs
try: list_runs(sys.argv[1:])
finally: print('torch' in sys.modules)'''

@pytest.mark.parametrize('args, status, message', [
    (['--help'], 0, ''), (['nowhere'], 1, 'error: nowhere: expected a folder with runs below it'),
    (['--format', 'pdf'], 2, "invalid choice: 'pdf'")])
def test_help_and_errors_need_no_torch(tmp_path, args, status, message):
    out = subprocess.run([sys.executable, '-c', CODE, *args], cwd=tmp_path, capture_output=True, text=True)
    assert (out.returncode, out.stdout.splitlines()[-1]) == (status, 'False') and message in out.stderr

@pytest.mark.parametrize('args, message', [
    (['here', '--by', 'polcy'], "by='polcy': expected a setting of these runs: policy"),
    (['--filter', 'colour == 3'], "filter='colour == 3'.*such as policy=mixup, agreement > .9 "),
    (['--filter', 'imdb'], "filter='imdb'"),
    (['--compare', '0', '9'], 'compare=9'), (['her'], 'experiments below .*: here')])
def test_mistakes_are_one_line(swept, capsys, args, message):
    with pytest.raises(SystemExit, match=f'^error: .*{message}'): gnosis_runs(capsys, swept[0], *args)
