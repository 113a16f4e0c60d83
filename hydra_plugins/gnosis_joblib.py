"""What `hydra/launcher=joblib` runs: the jobs of a multirun in processes, several at a time.

hydra-joblib-launcher has the settings. Its launcher puts all processes into one pool of loky, joblib's
library of processes. When one of them is killed, as Linux does when memory runs out, loky kills the others
and drops the jobs that wait. Here each process has a pool of its own, so the others do not notice. Chapter
`cli` puts this launcher in the place of that one."""
import os
import signal
from collections import deque
from concurrent.futures import FIRST_COMPLETED, wait
from contextlib import contextmanager

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, setup_globals

from hydra_plugins.gnosis_together import TogetherLauncher

# libraries that compute with as many threads as there are cores, if nobody tells them otherwise
_THREADS = 'OMP_NUM_THREADS', 'MKL_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'VECLIB_MAXIMUM_THREADS'

class JoblibLauncher(TogetherLauncher):
    "Runs jobs in processes. A job whose process is killed leaves the others alone."
    def __init__(self, n_jobs, timeout=None, **others):  # others: how joblib divides small tasks in a pool
        super().__init__(n_jobs)
        self.timeout = timeout

    def check(self):
        from gnosis_nb.schema import ConfigError
        expected = 'expected a number >= 1, or -1 for all cores'
        if not self.n_jobs: raise ConfigError(f'hydra.launcher.n_jobs={self.n_jobs}: {expected}')
        if self.timeout: raise ConfigError(f'hydra.launcher.timeout={self.timeout}: expected null')

    def run(self, jobs):
        from gnosis_nb.cli import stop_jobs
        todo, free, running, results = deque(enumerate(jobs)), [], {}, {}
        start, n, singletons = *_pools(self.n_jobs), Singleton.get_state()
        try:
            while todo or running:
                while todo and len(running) < n:
                    i, job = todo.popleft()
                    pool = free.pop() if free else start()
                    with _deaf_to_ctrl_c(): running[pool.submit(_do, job, singletons)] = i, pool
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    i, pool = running.pop(future)
                    results[i] = self.result(jobs[i], future)
                    if future.exception() is None: free.append(pool)
                    else: pool.shutdown(kill_workers=True)
        except BaseException:
            stop_jobs()
            for pool in [*free, *(o for _, o in running.values())]: pool.shutdown(kill_workers=True)
            raise
        for pool in free: pool.shutdown()
        return [results[i] for i in range(len(jobs))]

    def result(self, job, future):
        "What a job has returned. If its process was killed, that is noted, and it has returned nothing."
        from gnosis_nb.cli import note_lost_job
        if not (error := future.exception()): return future.result()
        note_lost_job(self.compose(*job.args), error)
        return JobReturn(status=JobStatus.COMPLETED)

def _pools(n_jobs):
    "What starts a pool of one process, and how many there are at a time. They share the cores."
    from joblib import cpu_count, effective_n_jobs
    from joblib.externals.loky import ProcessPoolExecutor
    n = effective_n_jobs(n_jobs)
    threads = {o: os.environ.get(o, str(max(cpu_count() // n, 1))) for o in _THREADS}
    return lambda: ProcessPoolExecutor(1, timeout=300, env=threads if n > 1 else None), n

@contextmanager
def _deaf_to_ctrl_c():
    "A process that begins in the block is deaf to Ctrl-C: the one that began the sweep stops it."
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try: yield
    finally: signal.pthread_sigmask(signal.SIG_SETMASK, before)

def _do(job, singletons):
    "Do a job of Hydra in another process."
    setup_globals()
    Singleton.set_state(singletons)
    return job()
