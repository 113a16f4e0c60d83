"Runs told to W&B, MLflow and Trackio: to mocks of the clients, and to the clients where they are installed."
import json
import sqlite3
import struct
import sys
import threading
from functools import partial
from pathlib import Path
from unittest.mock import MagicMock

import pytest
from experiments import conduct, images, report, script, SHORT, SMALL, states_below, table

from gnosis_nb import experiment
from gnosis_nb.cli import compose, help_page
from gnosis_nb.run_folder import Run
from gnosis_nb.runs import find_runs
from gnosis_nb.schema import ConfigError
from gnosis_nb.trackers import MLflowTracker, TrackioTracker, Tracking, WandBTracker

NAMES = 'wandb', 'mlflow', 'trackio'
STARTED = '2026-01-01'


# Settings

@pytest.mark.parametrize('command', ['image_classification', 'text_classification', 'image_generation'])
@pytest.mark.parametrize('choice, chosen', [
    ('local', []), ('s3', ['s3']), ('wandb', ['wandb']), ('[wandb]', ['wandb']), ('[]', []),
    ('[s3,wandb]', ['s3', 'wandb']), ('[trackio,local,mlflow]', ['mlflow', 'trackio'])])
def test_one_logger_or_several(command, choice, chosen):
    bucket = ['logger.bucket_name=B'] if 's3' in chosen else []
    logger = compose([f'logger={choice}', *bucket], command).logger
    assert [o for o in ('s3', *NAMES) if getattr(logger, o)] == chosen

@pytest.mark.parametrize('line, message', [
    ('logger=[s3,wandb]', 'logger=s3: needs logger.bucket_name'),
    ('logger.bucket_name=B', 'logger.bucket_name=B: needs logger=s3'),
    ('logger=mlflow logger.mode=offline', 'logger.mode=offline: needs logger=wandb'),
    ('logger.entity=me', 'logger.entity=me: needs logger=wandb'),
    ('logger=wandb logger.tracking_uri=x', 'logger.tracking_uri=x: needs logger=mlflow'),
    ('logger=wandb logger.mode=away', "logger.mode='away': expected one of online, offline"),
    ('logger=wandb logger.projekt=x', 'logger.projekt: unknown key, did you mean logger.project?'),
    ('logger=[wandb,ftp]', 'ftp')])
def test_what_is_refused(line, message):
    with pytest.raises(ConfigError) as e: compose(line.split())
    assert message in str(e.value) and '\n' not in str(e.value)

def test_help_shows_the_loggers_whatever_is_chosen():
    for choice in ('local', '[s3,wandb]'):
        page = help_page('image_classification', [f'logger={choice}'])
        assert '  logger=local | mlflow | s3 | trackio | wandb\n' in page
        assert "# of W&B and Trackio, and MLflow's experiment" in page

@pytest.mark.parametrize('package', NAMES)
def test_a_missing_package_is_said_before_anything_begins(package, monkeypatch, tmp_path):
    monkeypatch.setattr(experiment, 'is_installed', lambda name: name != package)
    with pytest.raises(ConfigError, match=f'logger={package}: .* pip install {package}$'):
        images(tmp_path, f'logger=[{",".join(NAMES)}]')
    assert not list(tmp_path.iterdir())


# What the clients are asked

@pytest.fixture
def clients(monkeypatch):
    "Mocks in place of the three packages."
    mocks = {name: MagicMock() for name in NAMES}
    for name, mock in mocks.items(): monkeypatch.setitem(sys.modules, name, mock)
    mocks['mlflow'].MlflowClient().search_runs.return_value = []
    monkeypatch.setattr(experiment, 'is_installed', lambda name: True)
    return mocks

def logged(mock): return [o.args[0] for o in mock.log.call_args_list]

def test_wandb_is_told_of_a_whole_run(clients, tmp_path):
    choice = 'logger=wandb', 'logger.mode=offline', 'logger.entity=us'
    r, _ = images(tmp_path, *choice, 'trainer.num_epochs=2')
    asked, tracked = clients['wandb'].init.call_args.kwargs, clients['wandb'].init.return_value
    wanted = dict(project='gnosis_nb', entity='us', mode='offline', reinit='create_new', resume='allow')
    assert {k: asked[k] for k in wanted} == wanted and asked['name'] == '/'.join(r.path.parts[-2:])
    assert asked['config']['trainer']['num_epochs'] == 2 and asked['config']['job_name'] == r.path.parent.name
    rows = [o for o in logged(tracked) if 'student_train_metrics/train_loss' in o]
    expected = table(r)
    assert [o['epoch'] for o in rows] == expected.epoch.tolist() == [1, 2]
    for k in expected.columns.drop('epoch'):
        assert rows[-1][f'student_train_metrics/{k}'] == pytest.approx(expected[k].iloc[-1])
    shown = {k for o in logged(tracked) if 'epoch' not in o for k in o}
    assert shown == {'pictures/fidelity', 'tables/fidelity', 'tables/fidelity_statistics'}
    assert tracked.summary.update.call_args.args[0] == json.loads((r.path/'summary.json').read_text())
    tracked.finish.assert_called_once_with(exit_code=0)

def test_several_are_told_the_same(clients, tmp_path):
    images(tmp_path, 'logger=[mlflow,wandb,trackio]', 'job_name=three')
    wandb, trackio = (clients[o].init.return_value for o in ('wandb', 'trackio'))
    metrics = [o.args[0] for o in clients['mlflow'].entities.Metric.call_args_list]
    told = [*(k for o in logged(wandb) for k in o)], [*(k for o in logged(trackio) for k in o)], metrics
    of_student = [{o for o in names if o.startswith('student_train_metrics/')} for names in told]
    assert of_student[0] == of_student[1] == of_student[2] and len(of_student[0]) > 10

def test_a_gan_shows_its_samples(clients, tmp_path):
    gan = ['dataset=digits', 'dataset.size=8', 'density_model.z_dim=16', 'density_model.generator.k=8',
           'density_model.discriminator.k=8', 'dataloader.batch_size=16', 'trainer.num_gen_updates=2',
           'trainer.eval_period=1', 'trainer.checkpoint_period=2', 'judge.name=none', 'device=cpu']
    conduct('image_generation', *gan, f'data_dir={tmp_path}', 'logger=wandb')
    told = logged(clients['wandb'].init.return_value)
    assert [o['epoch'] for o in told if 'train_metrics/gen_loss' in o] == [1, 2]
    assert any('pictures/samples' in o for o in told)

def trackers(root, folder):
    name = folder.name
    made = WandBTracker(name, 'p', root), MLflowTracker(name, 'p', root), TrackioTracker(name, 'p')
    return [Tracking(o, say=lambda text: None) for o in made]

@pytest.mark.parametrize('error, status, state', [
    (KeyboardInterrupt, 255, 'KILLED'), (SystemExit, 255, 'KILLED'), (ArithmeticError, 1, 'FAILED')])
def test_how_a_run_that_stopped_ends(error, status, state, clients, tmp_path):
    with pytest.raises(error):
        with Run(tmp_path/'run', {}, trackers=partial(trackers, tmp_path)) as run: raise error()
    clients['wandb'].init().finish.assert_called_once_with(exit_code=status)
    assert clients['mlflow'].MlflowClient().set_terminated.call_args.args[1] == state
    assert logged(clients['trackio'].init())[-1] == dict(state=run.state['state'])

def test_a_run_that_goes_on_is_the_same_run(clients, tmp_path):
    mlflow = clients['mlflow'].MlflowClient()
    for n in (1, 2):
        with Run(tmp_path/'run', dict(seed=0), trackers=partial(trackers, tmp_path)) as run:
            run.log('student', dict(train_loss=.5, epoch=n))
        mlflow.search_runs.return_value = [mlflow.create_run.return_value]
    (first, second), names = clients['wandb'].init.call_args_list, clients['trackio'].init.call_args_list
    assert first.kwargs['id'] == second.kwargs['id'] and names[0].kwargs['name'] == names[1].kwargs['name']
    assert mlflow.create_run.call_count == 1 and mlflow.update_run.call_args.kwargs == dict(status='RUNNING')
    assert sum('params' in o.kwargs for o in mlflow.log_batch.call_args_list) == 1
    assert [o.args[3] for o in clients['mlflow'].entities.Metric.call_args_list] == [1, 2]

def test_another_run_is_another_run(clients, tmp_path):
    for name in ('a', 'b'):
        with Run(tmp_path/name, {}, trackers=partial(trackers, tmp_path)): pass
    a, b = (o.kwargs['id'] for o in clients['wandb'].init.call_args_list)
    assert a != b and clients['mlflow'].MlflowClient().create_run.call_count == 2

def test_who_listens_makes_no_other_run(clients, tmp_path):
    settings = [*SMALL['image_classification'], *SHORT, f'data_dir={tmp_path}']
    first, _ = conduct('image_classification', *settings)
    again, _ = conduct('image_classification', *settings, 'logger=wandb', 'logger.project=other')
    assert again.finished and again.path == first.path and not clients['wandb'].init.called


# Troubles

@pytest.mark.parametrize('name', NAMES)
def test_a_tracker_that_cannot_be_started(name, clients, tmp_path):
    start = clients[name].MlflowClient if name == 'mlflow' else clients[name].init
    start.side_effect = OSError('no\nnetwork')
    r, lines = images(tmp_path, f'logger={name}')
    assert states_below(tmp_path) == ['done'] and len(report(r))
    assert sum(o.endswith(': no network; the run goes on without it') for o in lines) == 1

def test_a_tracker_that_fails_later(clients, tmp_path):
    tracked = clients['wandb'].init.return_value
    tracked.log.side_effect = ConnectionError('gone')
    r, lines = images(tmp_path, 'logger=wandb', 'trainer.num_epochs=2')
    assert states_below(tmp_path) == ['done'] and lines.count('W&B: gone; the run goes on') == 1
    tracked.finish.assert_called_once_with(exit_code=0)

def test_a_tracker_that_hangs_is_not_waited_for(tmp_path):
    said, released = [], threading.Event()
    tracker = MagicMock(title='slow', log=lambda table, row: released.wait(), start=lambda *args: 'here')
    with Run(tmp_path/'run', {}, trackers=lambda folder: [Tracking(tracker, said.append, wait=0)]) as run:
        run.log('student', dict(train_loss=.5, epoch=1))
    released.set()
    assert run.state['state'] == 'done' and 'slow: not done after 0 s; not waiting longer' in said


# The clients themselves, without a network

def tracked_run(root, logger, *more):
    "A run in a process of its own, because clients read the environment when they are imported."
    settings = [*SMALL['image_classification'], *SHORT, 'trainer.num_epochs=2', f'data_dir={root}']
    out = script('image_classification', *settings, f'logger={logger}', *more)
    assert out.returncode == 0, out.stderr[-2000:]
    return Run(find_runs(root).path[0], {})

def wandb_records(path):
    "The records of a W&B file: LevelDB's log format, records in pieces in blocks of 32 kB."
    from wandb.proto.wandb_internal_pb2 import Record
    data, whole, at = path.read_bytes(), b'', 7
    while at + 7 <= len(data):
        rest = 2**15 - at % 2**15
        if rest < 7: at += rest; continue
        _, size, piece = struct.unpack_from('<IHB', data, at)
        whole += data[at + 7:at + 7 + size]
        at += 7 + size
        if piece in (1, 4):                                                  # whole, or the last piece
            yield Record.FromString(whole)
            whole = b''

def items(record): return {o.key or '/'.join(o.nested_key): json.loads(o.value_json) for o in record}

def test_wandb_offline(tmp_path):
    pytest.importorskip('wandb', reason='W&B is not installed')
    run = tracked_run(tmp_path, 'wandb', 'logger.mode=offline')
    file, = (tmp_path/'wandb').glob('offline-run-*/*.wandb')
    found = [(o.WhichOneof('record_type'), o) for o in wandb_records(file)]
    about = next(o.run for kind, o in found if kind == 'run')
    config = {o.key: json.loads(o.value_json) for o in about.config.update}
    assert about.display_name == '/'.join(run.path.parts[-2:]) and config['trainer']['num_epochs'] == 2
    rows = [items(o.history.item) for kind, o in found if kind == 'history']
    losses = [(o['epoch'], o['student_train_metrics/train_loss']) for o in rows
              if 'student_train_metrics/train_loss' in o]
    assert losses == [(r.epoch, pytest.approx(r.train_loss)) for r in table(run).itertuples()]
    summary = {k: v for kind, o in found if kind == 'summary' for k, v in items(o.summary.update).items()}
    assert summary['agreement'] == report(run).agreement['student'] and summary['state'] == 'done'
    picture, = file.parent.glob('files/media/images/pictures/fidelity_*.png')
    assert picture.read_bytes() == (run.path/'fidelity.png').read_bytes()
    assert [o.exit.exit_code for kind, o in found if kind == 'exit'] == [0]

def test_mlflow_in_a_file(tmp_path, monkeypatch):
    mlflow = pytest.importorskip('mlflow', reason='MLflow is not installed')
    monkeypatch.delenv('MLFLOW_TRACKING_URI', raising=False)
    run = tracked_run(tmp_path, 'mlflow', 'logger.project=trials')
    client = mlflow.MlflowClient(f'sqlite:///{tmp_path}/mlflow.db')
    found, = client.search_runs([client.get_experiment_by_name('trials').experiment_id])
    assert found.info.run_name == '/'.join(run.path.parts[-2:]) and found.info.status == 'FINISHED'
    assert found.data.params['trainer.num_epochs'] == '2' and len(found.data.params) > 100
    history = client.get_metric_history(found.info.run_id, 'student_train_metrics/train_loss')
    expected = [(r.epoch, pytest.approx(r.train_loss)) for r in table(run).itertuples()]
    assert [(o.step, o.value) for o in history] == expected
    assert found.data.metrics['agreement'] == report(run).agreement['student']
    files = {o.path for o in client.list_artifacts(found.info.run_id)}
    assert files == {'fidelity.png', 'fidelity.csv', 'fidelity_statistics.csv'}
    copy = Path(client.download_artifacts(found.info.run_id, 'fidelity.png', tmp_path))
    assert copy.read_bytes() == (run.path/'fidelity.png').read_bytes()

def test_mlflow_finds_a_run_again(tmp_path, monkeypatch):
    mlflow = pytest.importorskip('mlflow', reason='MLflow is not installed')
    monkeypatch.delenv('MLFLOW_TRACKING_URI', raising=False)
    for n, error in enumerate([ArithmeticError, KeyboardInterrupt, None]):
        tracker = MLflowTracker('job/time', 'p', tmp_path)
        tracker.start(dict(seed=0, n=n), STARTED)
        tracker.log('student', dict(train_loss=.5, epoch=n + 1))
        tracker.end({ArithmeticError: 'failed', KeyboardInterrupt: 'interrupted', None: 'done'}[error])
        experiment = tracker.client.get_experiment_by_name('p').experiment_id
        found, = tracker.client.search_runs([experiment])
        assert found.info.status == ['FAILED', 'KILLED', 'FINISHED'][n] and found.data.params['n'] == '0'
    client = mlflow.MlflowClient(tracker.tracking_uri)
    assert [o.step for o in client.get_metric_history(tracker.id, 'student/train_loss')] == [1, 2, 3]

def test_trackio_in_a_file(tmp_path, monkeypatch):
    pytest.importorskip('trackio', reason='Trackio is not installed')
    monkeypatch.setenv('TRACKIO_DIR', str(tmp_path/'trackio'))
    run = tracked_run(tmp_path, 'trackio')
    db = sqlite3.connect(tmp_path/'trackio'/'gnosis_nb.db')
    (name, config), = db.execute('select run_name, config from configs')
    assert name.startswith('/'.join(run.path.parts[-2:])) and json.loads(config)['trainer.num_epochs'] == 2
    told = [(step, json.loads(o)) for step, o in db.execute('select step, metrics from metrics order by id')]
    losses = [(step, o['student_train_metrics/train_loss']) for step, o in told
              if 'student_train_metrics/train_loss' in o]
    assert losses == [(r.epoch, pytest.approx(r.train_loss)) for r in table(run).itertuples()]
    assert next(o['agreement'] for _, o in told if 'agreement' in o) == report(run).agreement['student']
    picture = next(o['pictures/fidelity'] for _, o in told if 'pictures/fidelity' in o)
    copy = tmp_path/'trackio'/'media'/picture['file_path']
    assert copy.read_bytes() == (run.path/'fidelity.png').read_bytes() and told[-1][1] == dict(state='done')
