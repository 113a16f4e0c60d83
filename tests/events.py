"""Processes that stop or die at an event: just before a file is put in its place.

`python tests/events.py SIGNAL NAME N SCRIPT ARGUMENTS…` runs a script that sends itself SIGNAL
before it puts a file whose name matches NAME in its place for the N-th time."""
import fnmatch
import itertools
import os
import runpy
import signal
import sys
from pathlib import Path


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
