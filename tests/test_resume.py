"Runs that are killed, interrupted, started twice or fail: what is left, and what the same command makes of it."
import json, os, resource, signal, subprocess, sys, time
from pathlib import Path

import pandas as pd
import pytest
import torch

from gnosis_nb.cli import compose
from gnosis_nb.experiment import ConfigError, image_classification
from gnosis_nb.runs import find_runs
from gnosis_nb.checkpoint import load_checkpoint

ROOT = Path(__file__).parent.parent
ENV = {**os.environ, 'OMP_NUM_THREADS': '1', 'OMP_WAIT_POLICY': 'PASSIVE'}
SMALL = ['dataset=digits', 'dataset.size=8', 'classifier.depth=8', 'dataloader.batch_size=64', 'trainer.num_epochs=2', 'trainer.eval_period=1', 'device=cpu']
LONG = ['trainer.num_epochs=400', 'trainer.eval_period=100']

def command(folder, *overrides): return [sys.executable, str(ROOT/'scripts/image_classification.py'), *SMALL, f'data_dir={folder}', *overrides]
def heed_ctrl_c(): signal.signal(signal.SIGINT, signal.SIG_DFL)             # also where the tests run in the background of a script
def start(folder, *overrides): return subprocess.Popen(command(folder, *overrides), env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed_ctrl_c)
def complete(folder, *overrides): return subprocess.run(command(folder, *overrides), env=ENV, capture_output=True, text=True)
def run(folder, *overrides):
    lines = []
    return image_classification(compose([*SMALL, f'data_dir={folder}', *overrides]), say=lines.append), lines

def wait_for(condition, process, limit=120):
    for _ in range(limit * 10):
        if condition(): return
        if process.poll() is not None: pytest.fail(process.communicate()[1][-2000:])
        time.sleep(.1)
    pytest.fail('nothing happened')

def results(folder):
    "Weights, tables and summary of the one run below a folder, which is done and has nothing lying about."
    runs = find_runs(folder)
    assert runs.state.tolist() == ['done']
    path = Path(runs.path[0])
    assert not list(path.glob('.training_state*')) and not list(path.glob('.*.tmp'))
    return {o.name: load_checkpoint(o)[0] for o in path.glob('*.safetensors')}, {o.name: o.read_bytes() for o in path.glob('*.csv')}, (path/'summary.json').read_text()

def same(a, b):
    (nets, *files), (nets_b, *files_b) = a, b
    return nets.keys() == nets_b.keys() and all(torch.equal(v, nets_b[n][k]) for n, net in nets.items() for k, v in net.items()) and files == files_b


@pytest.mark.parametrize('kind, n', [('image', 20), ('text', 5), ('gan', 5)])
def test_killed_at_any_moment(tmp_path, kind, n):
    out = subprocess.run([sys.executable, str(ROOT/'tests/killing.py'), kind, str(tmp_path), str(n)], env=ENV, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr[-2000:]
    killed = out.stdout.splitlines()
    print('\n'.join(killed))
    assert len(killed) == n and sum('training_state' in o for o in killed) >= n // 4, out.stdout    # many in the middle of a training
    whole = results(tmp_path/'whole')
    assert [same(results(tmp_path/str(i)), whole) for i in range(n)] == [True]*n


def test_a_run_is_done_once(tmp_path):
    first, _ = run(tmp_path)
    again, lines = run(tmp_path, 'exp_name=another_name', 'trainer.state_minutes=0', 'dataloader.num_workers=1')
    assert again.path == first.path and again.finished and lines[0] == f'already done: {first.path}; force=true does it again'
    assert again.tables == first.tables and lines[1].split()[:5] == ['accuracy', 'nll', 'ece', 'agreement', 'kl']
    forced, lines = run(tmp_path, 'force=true')
    assert forced.path != first.path and not forced.finished
    other, _ = run(tmp_path, 'seed=1')
    assert other.path not in (first.path, forced.path) and len(find_runs(tmp_path)) == 3

def test_a_folder_with_other_images_is_another_run(tmp_path):
    from PIL import Image
    def folder(name, shade):
        for split in ('train', 'test'):
            for k in range(2):
                (tmp_path/name/split/f'class{k}').mkdir(parents=True)
                for i in range(4): Image.new('RGB', (8, 8), (shade + i, 40*k, 10*i)).save(tmp_path/name/split/f'class{k}'/f'{i}.png')
        return f'dataset.root_dir={tmp_path/name}'
    a, b, copy = folder('a', 10), folder('b', 60), folder('copy_of_a', 10)
    options = ['dataset=image_folder', 'dataset.size=8', 'augmentation.transforms_list=[]']
    first, _ = run(tmp_path/'runs', *options, a)
    assert not run(tmp_path/'runs', *options, b)[0].finished
    assert run(tmp_path/'runs', *options, copy)[0].path == first.path

def test_two_processes(tmp_path):
    one = start(tmp_path, *LONG)
    wait_for(lambda: list(tmp_path.rglob('student_init.safetensors')) or list(tmp_path.rglob('teacher_init_0.safetensors')), one)
    two = complete(tmp_path, *LONG)
    path = find_runs(tmp_path).path[0]
    assert two.returncode == 1 and two.stderr.strip().splitlines()[-1].startswith(f'error: {path}: process {one.pid} on ') and 'is doing this run already' in two.stderr
    one.kill(); one.wait()
    short = complete(tmp_path, *LONG, 'trainer.num_epochs=1')                # its lock is no obstacle, and a dead process holds none
    assert short.returncode == 0
    three = start(tmp_path, *LONG)
    wait_for(lambda: json.loads(Path(path, 'state.json').read_text())['process']['pid'] == three.pid, three)
    three.kill(); three.wait()
    assert len(find_runs(tmp_path)) == 2

@pytest.mark.parametrize('sign, status', [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_and_the_scheduler_lose_nothing(tmp_path, sign, status):
    process = start(tmp_path, *LONG, 'trainer.state_minutes=60')
    wait_for(lambda: any(len(pd.read_csv(o)) > 20 for o in tmp_path.rglob('teacher_0_train_metrics.csv')), process)
    process.send_signal(sign)
    _, said = process.communicate(timeout=60)
    assert process.returncode == status and said.strip().splitlines()[-1] == 'interrupted; the same command goes on from here'
    runs = find_runs(tmp_path)
    state = Path(runs.path[0])/'.training_state_teacher_0.safetensors'
    assert runs.state.tolist() == ['interrupted']
    assert load_checkpoint(state)[1]['training']['epoch'] >= len(pd.read_csv(state.with_name('teacher_0_train_metrics.csv'))) - 1 > 19

def test_a_damaged_state_begins_anew_and_ends_the_same(tmp_path):
    whole, _ = run(tmp_path/'whole', 'seed=3')
    process = start(tmp_path/'damaged', 'seed=3', 'trainer.state_minutes=0')
    wait_for(lambda: list(tmp_path.rglob('damaged/**/.training_state_*')), process)
    process.kill(); process.wait()
    for state in (tmp_path/'damaged').rglob('.training_state_*'): state.write_bytes(state.read_bytes()[:-50])
    _, lines = run(tmp_path/'damaged', 'seed=3')
    assert any('damaged' in o and 'begins anew' in o for o in lines) and same(results(tmp_path/'whole'), results(tmp_path/'damaged'))

def test_a_teacher_that_has_changed_since(tmp_path):
    teacher, _ = run(tmp_path, 'trainer.distill_teacher=false')
    process = start(tmp_path, *LONG)
    wait_for(lambda: list(tmp_path.rglob('.training_state_student.safetensors')) or list(tmp_path.rglob('student_train_metrics.csv')), process)
    process.kill(); process.wait()
    other, _ = run(tmp_path, 'trainer.distill_teacher=false', 'teacher.use_ckpts=false', 'seed=9')       # more teachers do not matter …
    used = json.loads(Path(find_runs(tmp_path).query("state == 'running'").path.item(), 'state.json').read_text())['plan']
    assert [[tmp_path/Path(o['path']).parent for o in group] for group in used] == [[teacher.path]]
    (teacher.path/'teacher_0.safetensors').write_bytes((other.path/'teacher_0.safetensors').read_bytes())
    with pytest.raises(ConfigError, match='a teacher this run has begun with, is gone or another now'): run(tmp_path, *LONG)

def test_a_diverged_run_says_where(tmp_path):
    out = complete(tmp_path, 'trainer.optimizer.lr=1e20')
    state = json.loads(next(tmp_path.rglob('state.json')).read_text())
    assert out.returncode == 1 and state['state'] == 'failed'
    for text in (out.stderr, state['error']): assert 'training diverged: train_loss of epoch 1 is' in text and 'in batch' in text and 'learning rate 1e+20' in text and 'norm of the gradients' in text
    assert not list(tmp_path.rglob('summary.json')) and not list(tmp_path.rglob('teacher_0.safetensors'))

def test_a_full_disk(tmp_path):
    "A limit on the size of files stands for a full disk: the write fails in the middle."
    limited = subprocess.run(command(tmp_path, 'trainer.num_epochs=3'), env=ENV, capture_output=True, text=True, preexec_fn=lambda: (signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))))
    assert limited.returncode == 1 and 'teacher_init_0' in limited.stderr and 'Traceback' not in limited.stderr
    assert find_runs(tmp_path).state.tolist() == ['failed'] and not list(tmp_path.rglob('.*.tmp')) and not list(tmp_path.rglob('*.safetensors'))
    done = complete(tmp_path, 'trainer.num_epochs=3')
    assert done.returncode == 0 and find_runs(tmp_path).state.tolist() == ['done']

def test_other_images_beside_the_set_are_another_run(tmp_path):
    from PIL import Image
    def images(shade):
        for split in ('train', 'test'):
            (tmp_path/'extra'/split/'a').mkdir(parents=True, exist_ok=True)
            for i in range(4): Image.new('RGB', (8, 8), (shade + i,)*3).save(tmp_path/'extra'/split/'a'/f'{i}.png')
    images(10)
    extra = f"distill_loader.extra=[{{name: image_folder, root_dir: '{tmp_path}/extra', size: 8}}]"
    first, _ = run(tmp_path/'runs', extra)
    images(99)
    assert not run(tmp_path/'runs', extra)[0].finished
    assert run(tmp_path/'runs', extra)[0].finished

def test_equal_numbers_are_one_run(tmp_path):
    first, _ = run(tmp_path, 'loss.alpha=0', 'distill_loader.temp=4', 'device=auto')
    assert run(tmp_path, 'loss.alpha=0.0', 'distill_loader.temp=4.0', 'device=cpu')[0].finished == (not torch.cuda.is_available())

def test_a_run_goes_on_from_elsewhere(tmp_path, monkeypatch):
    from gnosis_nb.distill import FidelityTable
    (tmp_path/'here').mkdir(); (tmp_path/'there').mkdir()
    monkeypatch.chdir(tmp_path/'here')
    run('runs', 'trainer.distill_teacher=false')
    after = FidelityTable.after_train
    def stumble(self):
        after(self)
        if self.epoch == 0: raise KeyboardInterrupt()
    with monkeypatch.context() as m:
        m.setattr(FidelityTable, 'after_train', stumble)
        with pytest.raises(KeyboardInterrupt): run('runs')
    (tmp_path/'here'/'runs').rename(tmp_path/'there'/'moved')
    monkeypatch.chdir(tmp_path)
    r, lines = run(tmp_path/'there'/'moved')
    assert not r.finished and len(r.state['continued']) == 1 and r.state['state'] == 'done'

def test_a_done_run_without_its_report(tmp_path):
    r, _ = run(tmp_path)
    (r.path/'fidelity.csv').unlink()
    with pytest.raises(ConfigError, match='its fidelity.csv is gone; force=true'): run(tmp_path)
