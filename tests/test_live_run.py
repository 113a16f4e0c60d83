"The panel of a live run without a browser: what its buttons make of the run."
import subprocess
import sys
import tempfile
import time
from types import SimpleNamespace

import pytest

import processes
from gnosis_nb.curves import read_tables
from gnosis_nb.explore import live_run, run_folder, run_state
from gnosis_nb.explore.live import CommandProcess

SMALL = ['+experiment=digits', '+recipe=student', 'dataset.size=8', 'device=cpu', 'trainer.precision=fp32',
    'trainer.state_minutes=0']
TEXTS = ['+experiment=sentences', '+recipe=student', 'dataset.num_train=300', 'dataset.num_test=101',
         'trainer.eval_period=1', 'device=cpu']

def folder_of(live): return run_folder(live.settings)

def epochs(live):
    "The epochs in the tables of the form's run, by network."
    folder = folder_of(live)
    return {k: t.epoch.tolist() for k, t in read_tables(folder).items()} if folder else {}

def wait_for(condition, live):
    "Until a condition holds; an error if the command ends before."
    while not condition():
        assert live.process.running(), live.process.output(30)
        time.sleep(.1)

def press(live, button):
    assert not live.buttons[button].disabled
    live.buttons[button].click()

def stop(live):
    press(live, 'Stop')
    status = live.process.wait(120)
    live.refresh()
    return status

def enabled(live): return [k for k, o in live.buttons.items() if not o.disabled]

@pytest.fixture(autouse=True)
def forks(monkeypatch):
    "Commands need not import torch again. Chapter `explore.live` and the browser start whole ones."
    forking = SimpleNamespace(**vars(subprocess) | dict(Popen=processes.Popen))
    monkeypatch.setattr('gnosis_nb.explore.live.subprocess', forking)

@pytest.fixture
def live(tmp_path):
    "The form of a run that is far too long."
    live = live_run([*SMALL, f'data_dir={tmp_path}'], static=False)
    live.fields['trainer.num_epochs'].value, live.fields['trainer.eval_period'].value = 3000, 1
    yield live
    if live.process.running(): live.process.process.kill()


def test_a_run_is_shown_stopped_resumed_and_killed(live):
    blank = live.picture.drawn
    press(live, 'Start')
    assert enabled(live) == ['Stop'] and all(o.disabled for o in live.fields.values())
    with pytest.raises(RuntimeError, match='is still running'): live.start()
    wait_for(lambda: epochs(live), live)
    live.refresh()
    assert 'running</b>' in live.status.value and '<tr' in live.text.value and live.picture.drawn != blank
    wait_for(lambda: any(len(o) > 1 for o in epochs(live).values()), live)      # one has a state
    assert stop(live) == 130 and '<b>interrupted</b>' in live.status.value and enabled(live) == ['Resume']
    folder, before = folder_of(live), epochs(live)
    assert run_state(folder) == 'interrupted'
    press(live, 'Resume')
    wait_for(lambda: epochs(live) != before, live)
    assert 'going on with' in live.process.output(100_000) and folder_of(live) == folder
    assert all(o == list(range(1, len(o) + 1)) for o in epochs(live).values())
    live.process.process.kill()
    live.process.wait(120)
    live.refresh()
    assert '<b>killed' in live.status.value and enabled(live) == ['Resume']

def test_output_is_read_where_the_command_goes_on_writing():
    process = CommandProcess()
    process.log = tempfile.TemporaryFile()
    process.log.write('one\ntwö\nthree'.encode())
    process.log.flush()
    assert process.output() == 'one\ntwö\nthree' and process.output(2) == 'twö\nthree'
    assert process.log.tell() == 14                                          # the next line begins there

def test_sentences_in_a_log_are_there_at_once(tmp_path):
    code = ('import sys; from gnosis_nb.cli import image_classification as main; main(); '
            'sys.exit(not sys.stdout.line_buffering)')
    with open(tmp_path/'log', 'w') as log:
        assert subprocess.run([sys.executable, '-c', code, '--help'], stdout=log).returncode == 0

def test_texts(tmp_path):
    live = live_run([*TEXTS, f'data_dir={tmp_path}'], 'text_classification', static=False)
    live.fields['trainer.num_epochs'].value, live.fields['teacher.num_components'].value = 3, 2
    blank = live.picture.drawn
    press(live, 'Start')
    assert live.process.wait(300) == 0, live.process.output(30)
    live.refresh()
    assert run_state(folder_of(live)) == 'done' and enabled(live) == ['Start']
    assert epochs(live) == {k: [1, 2, 3] for k in ('student', 'teacher_0', 'teacher_1')}
    assert live.picture.drawn != blank
    assert live.text.value.count('<tr>') == 3 + 1 + 4                        # networks, and the report

def test_a_gan_shows_its_samples(tmp_path):
    "Shorter than its checkpoint period, which the run then shortens."
    of_gan = ['dataset=digits', 'dataset.size=8', 'density_model=sngan', 'density_model.size=8', 'device=cpu',
        'trainer.num_gen_updates=4', 'trainer.eval_period=2', 'trainer.num_eval_samples=64',
        'trainer.num_epochs=1']
    live = live_run([*of_gan, f'data_dir={tmp_path}'], 'image_generation', static=False)
    assert live.samples.layout.display == 'none'
    press(live, 'Start')
    assert live.process.wait(300) == 0, live.process.output(30)
    live.refresh()
    assert run_state(folder_of(live)) == 'done' and 'gan, epoch 2; 2 of 2 in all' in live.status.value
    assert live.samples.layout.display is None and live.samples.value[1:4] == b'PNG'
    assert [len(o.marks) for o in live.chart.axes] == [2, 1]                 # two losses and the FID

def test_network_for_images_is_not_offered_for_texts(tmp_path):
    live = live_run([f'data_dir={tmp_path}'], 'text_classification', static=False)
    assert [o for _, o in live.groups['dataset'].options] == ['', 'imdb', 'sentences']
    for k, v in dict(dataset='sentences', classifier='lstm_small').items(): live.groups[k].value = v
    assert live.settings['dataset']['name'] == 'sentences'
    assert live.settings['classifier']['lstm_cell_size'] == 32

def test_fields_follow_a_menu(tmp_path):
    live = live_run([f'data_dir={tmp_path}'], fields=['distill_loader.mixup_alpha', 'trial_id'], static=False)
    live.groups['policy'].value = 'mixup'
    assert live.fields['distill_loader.mixup_alpha'].value == 1. and live.overrides()[-1] == 'policy=mixup'

def test_settings_that_are_refused_start_nothing(tmp_path):
    live = live_run([*SMALL, f'data_dir={tmp_path}'], static=False)
    live.fields['trainer.optimizer.lr'].value = -1.
    press(live, 'Start')
    assert 'trainer.optimizer.lr=-1.0: expected' in live.problem.value and live.process.process is None

def test_what_stops_the_command_is_shown(tmp_path):
    missing = ['dataset=cifar100', 'dataset.download=false', f'dataset.root_dir={tmp_path}/nothing']
    live = live_run([*missing, 'device=cpu', f'data_dir={tmp_path}'], static=False)
    press(live, 'Start')
    assert live.process.wait(300) == 1
    live.refresh()
    assert f'{tmp_path}/nothing' in live.text.value and folder_of(live) is None
