"""Processes that stop or die at an event: just before a file is put in its place.

`python tests/events.py SIGNAL NAME N SCRIPT ARGUMENTS…` runs a script that sends itself SIGNAL
before it puts a file whose name matches NAME in its place for the N-th time."""
import fnmatch
import itertools
import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path

ENV = {**os.environ, 'OMP_NUM_THREADS': '1', 'OMP_WAIT_POLICY': 'PASSIVE'}
PIPES = dict(env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

def heed_ctrl_c(): signal.signal(signal.SIGINT, signal.SIG_DFL)    # a script's background job ignores it

def start(*script, at, n=1):
    "A script's process that has stopped before it put a file called `at` in its place for the n-th time."
    events = [sys.executable, __file__, 'SIGSTOP', at, str(n)]
    process = subprocess.Popen([*events, *script], **PIPES, preexec_fn=heed_ctrl_c)
    what = os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    assert what.si_code == os.CLD_STOPPED, process.communicate()[1][-2000:]
    return process

def kill(process): process.kill(); process.communicate()


def signal_before_file(sign, pattern, n):
    "Send this process `sign` before it renames a file to a name that matches `pattern` for the n-th time."
    numbers = itertools.count(1)
    def hook(event, args):
        if event != 'os.rename' or not fnmatch.fnmatch(Path(os.fsdecode(args[1])).name, pattern): return
        if next(numbers) == n: os.kill(os.getpid(), sign)
    sys.addaudithook(hook)


if __name__ == '__main__':
    sign, pattern, n = sys.argv[1:4]
    signal_before_file(signal.Signals[sign], pattern, int(n))
    sys.argv = sys.argv[4:]
    runpy.run_path(sys.argv[0], run_name='__main__')
