"The panel of a live run without a browser: what its buttons make of the run."
import time

from gnosis_nb.explore import live_run, read_tables, run_folder, run_state

SMALL = ['dataset=digits', 'dataset.size=8', 'device=cpu', 'trainer.precision=fp32']

def wait_for(condition, live, limit=90):
    end = time.time() + limit
    while not condition():
        assert time.time() < end and live.launched.running(), live.launched.said(30)
        time.sleep(.1)

def epochs(folder): return {k: t.epoch.tolist() for k, t in read_tables(folder).items()} if folder else {}

def stop(live):
    live.buttons['Stop'].click()
    live.launched.process.wait(60)
    live.refresh()


def test_a_resumed_run_goes_on_in_its_folder(tmp_path):
    live = live_run([*SMALL, f'data_dir={tmp_path}'], static=False)
    live.fields['trainer.num_epochs'].value, live.fields['trainer.eval_period'].value = 3000, 1
    live.buttons['Start'].click()
    wait_for(lambda: epochs(run_folder(live.settings)), live)
    stop(live)
    folder, before = run_folder(live.settings), epochs(run_folder(live.settings))
    assert run_state(folder) == 'interrupted' and live.launched.process.returncode == 130
    assert [live.buttons[k].disabled for k in ('Start', 'Stop', 'Resume')] == [True, True, False]
    live.buttons['Resume'].click()
    wait_for(lambda: epochs(folder) != before, live)
    stop(live)
    assert 'going on with' in live.launched.said(30) and run_folder(live.settings) == folder
    assert all(o == list(range(1, len(o) + 1)) for o in epochs(folder).values())

def test_texts(tmp_path):
    live = live_run(['dataset=sentences', 'scale=smoke', 'dataset.num_train=300', 'dataset.num_test=101', 'device=cpu', f'data_dir={tmp_path}'], 'text_classification', static=False)
    live.fields['trainer.num_epochs'].value, live.fields['teacher.num_components'].value = 3, 2
    blank = live.picture.value
    live.buttons['Start'].click()
    assert live.launched.process.wait(90) == 0, live.launched.said(30)
    live.refresh()
    folder = run_folder(live.settings)
    assert run_state(folder) == 'done' and epochs(folder) == {'student': [1, 2, 3], 'teacher_0': [1, 2, 3], 'teacher_1': [1, 2, 3]}
    assert live.picture.value != blank and live.says.value.count('<tr>') == 3 + 1 + 4     # networks; the names' row and the report's
    assert [live.buttons[k].disabled for k in ('Start', 'Stop', 'Resume')] == [False, True, True]

def test_a_network_for_images_is_not_offered_for_texts(tmp_path):
    live = live_run([f'data_dir={tmp_path}'], 'text_classification', static=False)
    assert [o for _, o in live.groups['dataset'].options] == ['', 'imdb', 'sentences']
    live.groups['dataset'].value = 'sentences'
    assert live.fields['trainer.num_epochs'].value == 6 and live.settings['classifier']['lstm_cell_size'] == 32

def test_what_the_command_refuses_is_shown(tmp_path):
    live = live_run([*SMALL, f'data_dir={tmp_path}'], static=False)
    live.fields['trainer.optimizer.lr'].value = -1.
    live.buttons['Start'].click()
    assert live.launched.process.wait(90) == 1
    live.refresh()
    assert 'trainer.optimizer.lr=-1.0: expected a number &gt; 0' in live.says.value and run_folder(live.settings) is None
