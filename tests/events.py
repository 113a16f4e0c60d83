"""Processes that stop or die at an event and not after some time: just before a file is put in its place.

`python tests/events.py SIGNAL NAME N SCRIPT ARGUMENTS…` runs a script that sends itself SIGNAL
before it puts a file whose name matches NAME in its place for the N-th time."""
import fnmatch, itertools, os, runpy, signal, sys
from pathlib import Path


def before_change(act, events=('os.rename',), pattern='*'):
    "Call `act(n)` before the n-th of these `events` of a file that matches `pattern`, in this process."
    numbers = itertools.count(1)
    def hook(event, args):
        if event not in events: return
        name = Path(os.fsdecode(args[1 if event == 'os.rename' else 0])).name
        if fnmatch.fnmatch(name, pattern): act(next(numbers))
    sys.addaudithook(hook)


if __name__ == '__main__':
    sign, pattern, n = signal.Signals[sys.argv[1]], sys.argv[2], int(sys.argv[3])
    def act(i):
        if i == n: os.kill(os.getpid(), sign)
    before_change(act, pattern=pattern)
    sys.argv = sys.argv[4:]
    runpy.run_path(sys.argv[0], run_name='__main__')
