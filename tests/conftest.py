"Fixtures of all test files."
from urllib.error import URLError

import pytest
import torch


@pytest.fixture(autouse=True, scope='session')
def one_thread(): torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    "No test reaches for the network: every download fails as it does on a machine without one."
    def refuse(*args, **kwargs): raise URLError('no network here')
    monkeypatch.setattr('urllib.request.urlopen', refuse)
