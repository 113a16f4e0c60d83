"""`hydra/launcher=together`: the jobs of a multirun in one process, several at a time, on one device.

Hydra looks for launchers in the package `hydra_plugins`. Chapter `together` explains how trainings take
turns."""
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import configure_log, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from omegaconf import open_dict


@dataclass
class TogetherConf:
    "Its settings."
    _target_: str = 'hydra_plugins.gnosis_together.TogetherLauncher'
    n_jobs: int = 4  # at a time

ConfigStore.instance().store('together', TogetherConf, 'hydra/launcher', provider='gnosis_nb')


def _hydra(): return HydraConfig.instance().cfg
def _set_hydra(cfg): HydraConfig.instance().cfg = cfg

class TogetherLauncher(Launcher):
    "Runs jobs in turns of a batch of training. A job that fails leaves the others alone."
    def __init__(self, n_jobs): self.n_jobs = n_jobs

    def setup(self, *, hydra_context, task_function, config):
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def launch(self, job_overrides, initial_job_idx):
        self.check()
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        Path(self.config.hydra.sweep.dir).mkdir(parents=True, exist_ok=True)
        return self.run([partial(self.job, initial_job_idx + i, o) for i, o in enumerate(job_overrides)])

    def compose(self, number, overrides):
        "The settings of a job."
        config = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(config): config.hydra.job.id = config.hydra.job.num = number
        return config

    def job(self, number, overrides):
        "Do a job."
        return run_job(hydra_context=self.hydra_context, task_function=self.task_function,
            config=self.compose(number, overrides), job_dir_key='hydra.sweep.dir',
            job_subdir_key='hydra.sweep.subdir')

    def check(self):
        "Raise `ConfigError` for impossible settings."
        from gnosis_nb.schema import ConfigError
        if self.n_jobs < 1: raise ConfigError(f'hydra.launcher.n_jobs={self.n_jobs}: expected a number >= 1')

    def run(self, jobs):
        "What the jobs return."
        from gnosis_nb.reproducible import pick_device  # imports torch; wrong settings are refused before
        from gnosis_nb.together import run_together
        device = pick_device(self.config.get('device') or 'auto')
        return run_together(jobs, device, most=self.n_jobs, kept=[(_hydra, _set_hydra)])
