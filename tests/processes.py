"""Processes without the seconds that it takes to import torch: forks of one that has imported everything.

`run` and `start` do what `python -c CODE ARGUMENTS…` does, in a session of its own. With `at=NAME` it stops
just before it puts a file whose name matches NAME in its place for the n-th time."""
import atexit, fnmatch, functools, gc, itertools, json, os, select, signal, socket, subprocess, sys, tempfile
import threading, time, traceback
from pathlib import Path
from types import ModuleType

def unix_socket(): return socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)

@functools.cache
def server():
    "A socket to the process that forks. The workers of a test run share it; it ends with the last of them."
    name, ours = f"\0forks of {os.environ.get('PYTEST_XDIST_TESTRUNUID', os.getpid())}", unix_socket()
    env = {**os.environ, 'PYTHONPATH': str(Path(__file__).parent.parent), 'OMP_NUM_THREADS': '1'}
    with unix_socket() as theirs:
        try: theirs.bind(name)
        except OSError: pass                                                 # another worker's
        else:
            theirs.listen()
            subprocess.Popen([sys.executable, __file__], stdin=theirs, env=env)
    until(lambda: ours.connect_ex(name) == 0)
    return ours

class Process:
    def __init__(self, *argv, cwd=None, at=None, n=1, files=None):
        self.files = files or [tempfile.TemporaryFile('a+') for _ in range(2)]
        reports, theirs = os.pipe()
        request = dict(argv=[*map(str, argv)], cwd=str(cwd or Path.cwd()), env=dict(os.environ), at=at, n=n)
        fds = [*(o.fileno() for o in self.files), theirs]
        socket.send_fds(server(), [json.dumps(request).encode()], fds)
        os.close(theirs)
        self.reports = open(reports)
        self.pid = int(self.reports.readline())

    def wait(self):
        "The exit status, or 'stopped'; and what is on standard output and standard error."
        status = self.reports.readline().strip()
        for o in self.files: o.seek(0)
        said = [o.read() for o in self.files]
        if status == 'stopped': return status, *said
        for o in (self.reports, *self.files): o.close()
        return int(status), *said

class Popen(Process):
    "For code that has a `subprocess.Popen` of `python -c CODE ARGUMENTS…`, with both outputs in one file."
    def __init__(self, command, stdout, **kwargs):
        super().__init__(*command[2:], files=[stdout, stdout])
        self.returncode, self.end = None, threading.Thread(target=self.watch, daemon=True)
        self.end.start()

    def watch(self):
        with self.reports: self.returncode = int(self.reports.readline())
    def poll(self): return self.returncode
    def wait(self, timeout=None):
        self.end.join(timeout)
        if self.returncode is None: raise subprocess.TimeoutExpired('a fork', timeout)
        return self.returncode

    def send_signal(self, n): os.kill(self.pid, n)
    def kill(self): self.send_signal(signal.SIGKILL)

def run(*argv, cwd=None): return subprocess.CompletedProcess(argv, *Process(*argv, cwd=cwd).wait())

def start(*argv, at, n=1):
    "A process that has stopped."
    process = Process(*argv, at=at, n=n)
    status, _, said = process.wait()
    assert status == 'stopped', said[-2000:]
    return process

def kill(process):
    "Kill a process and those that it has started."
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait()[0] == -signal.SIGKILL

def until(condition, process=None):
    "Wait for what other processes do, five minutes at most; then kill this one and all that it has started."
    for _ in range(6000):
        if condition(): return
        time.sleep(.05)
    if process: kill(process)
    raise AssertionError('nothing has happened')

def no_picture(draw):
    "`Figure.savefig` that leaves a single pixel in place of a picture in a file, and otherwise does `draw`."
    from PIL import Image
    def savefig(self, to, **kwargs):
        if isinstance(to, Path): Image.new('RGB', (1, 1)).save(to, kwargs['format'])
        else: draw(self, to, **kwargs)
    return savefig


# In the process that forks, and in its forks

def stop_before_file(pattern, n):
    numbers = itertools.count(1)
    def hook(event, args):
        if event != 'os.rename' or not fnmatch.fnmatch(Path(os.fsdecode(args[1])).name, pattern): return
        if next(numbers) == n: os.kill(os.getpid(), signal.SIGSTOP)
    sys.addaudithook(hook)

def become(argv, cwd, env, at, n, fds):
    "Do what was asked for, and end as Python does but for tidying up, which would take seconds."
    os.setsid(); os.chdir(cwd)
    os.environ.clear(); os.environ.update(env)
    for i, fd in enumerate((os.open(os.devnull, os.O_RDONLY), *fds)): os.dup2(fd, i); os.close(fd)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)                             # under nohup it is ignored
    if at: stop_before_file(at, n)
    code, *args = argv
    sys.argv, sys.modules['__main__'], status = ['-c', *args], ModuleType('__main__'), 0
    try: exec(compile(code, '<string>', 'exec'), sys.modules['__main__'].__dict__)
    except SystemExit as e:
        status = e.code if isinstance(e.code, int) else int(e.code is not None)
        if isinstance(e.code, str): print(e.code, file=sys.stderr)
    except BaseException: status = 1; traceback.print_exc()
    threading._shutdown(); atexit._run_exitfuncs()
    sys.stdout.flush(); sys.stderr.flush()
    os._exit(status)

def report(pid, to):
    "Say a child's number, that it stops, and its exit status."
    os.write(to, f'{pid}\n'.encode())
    while os.WIFSTOPPED(status := os.waitpid(pid, os.WUNTRACED)[1]): os.write(to, b'stopped\n')
    os.write(to, f'{os.waitstatus_to_exitcode(status)}\n'.encode())
    os._exit(0)

def serve(listener):
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)                            # nobody waits for who reports
    workers = [listener.accept()[0]]
    while workers:
        for o in select.select([listener, *workers], [], [])[0]:
            if o is listener: workers.append(o.accept()[0])
            elif (got := socket.recv_fds(o, 2**17, 3))[0]: fork(*got[:2], [listener, *workers])
            else: workers.remove(o); o.close()

def fork(text, fds, inherited):
    *files, to = fds
    if not os.fork():
        for o in inherited: o.close()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        if pid := os.fork(): report(pid, to)
        os.close(to)
        become(**json.loads(text), fds=files)
    for o in fds: os.close(o)

if __name__ == '__main__':
    import sklearn.datasets, matplotlib.backends.backend_agg  # noqa: F401
    import gnosis_nb.cli, gnosis_nb.experiment, gnosis_nb.generation  # noqa: F401
    from matplotlib.figure import Figure
    Figure.savefig = no_picture(Figure.savefig)
    gnosis_nb.cli.compose()                                                  # Hydra has found its plugins
    gc.freeze()                                                              # forks do not touch what is here
    serve(socket.socket(fileno=os.dup(0)))
    os._exit(0)
