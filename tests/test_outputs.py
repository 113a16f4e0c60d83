"Teacher outputs on disk, from command to student."
import os
import signal
import subprocess
import sys

import processes
import pytest
import torch
from experiments import SHORT, SMALL, program, small, weights

from gnosis_nb.cli import compose, teacher_outputs
from gnosis_nb.runs import run_identity
from gnosis_nb.settings import ConfigError, as_dict

IMAGES, TEXTS = SMALL
VIEWS = ['augmentation.transforms_list=[crop,horizontal_flip]', 'trainer.teacher_cache_views=2',
         'trainer.num_epochs=3']
DISK = 'trainer.teacher_cache=disk'


def pages(folder): return sorted((folder/'.teacher_outputs').rglob('*.npy'))
def asked(lines): return [o for o in lines if 'asking the teacher ahead' in o]
def student(run):
    return torch.cat([o.flatten() for o in weights(run, 'student').values() if o.is_floating_point()])
def teachers_of(pool): return ['teacher.num_components=3', f'teacher.ckpt_dir={pool}']


@pytest.mark.parametrize('command, more', [(IMAGES, VIEWS), (TEXTS, ['trainer.num_epochs=3'])])
def test_a_student_of_the_disk_is_the_teachers_own(pool, tmp_path, command, more):
    known = [*teachers_of(pool), *more]
    want, _ = small(command, tmp_path/'memory', *known)
    first, lines = small(command, tmp_path/'disk', DISK, *known)
    views = 2 if command == IMAGES else 1
    assert len(asked(lines)) == 1 and f'{3*views} of {3*views} pages' in asked(lines)[0]
    assert len(pages(tmp_path/'disk')) == 3*views
    torch.testing.assert_close(student(first), student(want), rtol=0, atol=2e-3)
    again, lines = small(command, tmp_path/'disk', DISK, 'force=true', *known)
    assert asked(lines) == [] and torch.equal(student(again), student(first))


def test_what_is_kept_counts_where_it_comes_from_does_not():
    def identity(*more): return run_identity(as_dict(compose(['dataset=digits', 'classifier=lenet', *more])))
    plain, same = identity(), identity(DISK, 'augmentation.transforms_list=[]')
    assert same == identity('augmentation.transforms_list=[]') != plain
    views = ['trainer.teacher_cache_views=2']
    found = {plain, identity(*views), identity(*views, 'trainer.teacher_cache_seed=1'),
             identity(*views, DISK, 'trainer.teacher_cache_keep=half')}
    assert len(found) == 4 and identity(*views) == identity(*views, DISK)


def test_another_trial_and_fewer_views_ask_nobody(pool, tmp_path):
    known = [*teachers_of(pool), DISK, *VIEWS[:1], 'trainer.teacher_cache_keep=3']
    small(IMAGES, tmp_path, *known, 'trainer.teacher_cache_views=2')
    there = pages(tmp_path)
    _, lines = small(IMAGES, tmp_path, *known, 'trainer.teacher_cache_views=2', 'seed=5')
    _, fewer = small(IMAGES, tmp_path, *known, 'trainer.teacher_cache_views=1')
    assert asked(lines) == asked(fewer) == [] and pages(tmp_path) == there
    _, more = small(IMAGES, tmp_path, *known, 'trainer.teacher_cache_views=3')
    assert '3 of 9 pages' in asked(more)[0]


def test_the_command_asks_ahead(pool, tmp_path, capsys):
    given = [*teachers_of(pool), *VIEWS]
    teacher_outputs([*SMALL[IMAGES], *SHORT, f'data_dir={tmp_path}', *given])
    assert '6 of 6 pages' in capsys.readouterr().out and len(pages(tmp_path)) == 6
    _, lines = small(IMAGES, tmp_path, DISK, *given)
    assert asked(lines) == []


def test_two_processes_share_the_pages(pool, tmp_path):
    given = [*SMALL[IMAGES], *SHORT, f'data_dir={tmp_path}', *teachers_of(pool), *VIEWS[:1],
             'trainer.teacher_cache_views=4']
    code = f'from gnosis_nb.cli import teacher_outputs; teacher_outputs({given!r})'
    both = [subprocess.Popen([sys.executable, '-c', code], stderr=subprocess.PIPE) for _ in range(2)]
    assert [o.wait() for o in both] == [0, 0], [o.stderr.read() for o in both]
    assert len(pages(tmp_path)) == 12 and not list((tmp_path/'.teacher_outputs').rglob('*.tmp'))


def test_a_command_without_teachers_is_one_sentence(tmp_path):
    with pytest.raises(SystemExit, match='teacher.num_components=1: expected teachers for trial 0'):
        teacher_outputs(['dataset=digits', 'trainer.teacher_cache_views=2', f'data_dir={tmp_path}'])


def test_a_command_that_is_interrupted_says_so_and_leaves_nothing(pool, tmp_path):
    given = [*SMALL[IMAGES], *SHORT, f'data_dir={tmp_path}', *teachers_of(pool), *VIEWS]
    process = processes.start(program('teacher_outputs'), *given, at='view_0.*')
    os.kill(process.pid, signal.SIGINT)
    os.kill(process.pid, signal.SIGCONT)
    status, _, said = process.wait()
    assert status == 130 and 'interrupted; the same command goes on from here' in said
    assert 'Traceback' not in said and not list((tmp_path/'.teacher_outputs').rglob('*.tmp'))


def test_classes_to_keep_are_counted_before_teachers_are_trained(tmp_path):
    given = [DISK, 'augmentation.transforms_list=[]', 'trainer.teacher_cache_keep=10']
    with pytest.raises(ConfigError, match='trainer.teacher_cache_keep=10: expected .* than the 10 classes'):
        small(IMAGES, tmp_path, *given)
    assert not list(tmp_path.rglob('teacher_*'))
