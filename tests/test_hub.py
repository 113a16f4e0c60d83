"Networks of runs on an imitation of the Hugging Face Hub, which listens on this machine."
import base64
import hashlib
import json
import re
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import pandas as pd
import pytest
import torch
from experiments import images, texts

from gnosis_nb.checkpoint import CheckpointError, checkpoint_info, load_checkpoint, load_network
from gnosis_nb.metrics import fidelity_report

huggingface_hub = pytest.importorskip('huggingface_hub', reason='gnosis_nb[hub] is not installed')
hub = pytest.importorskip('gnosis_nb.hub')


def digest(data): return hashlib.sha1(data).hexdigest()
def commit(files): return digest(json.dumps({k: digest(v) for k, v in files.items()}).encode())

class Requests(BaseHTTPRequestHandler):
    "What huggingface_hub asks for when it makes a repository, commits to it and downloads from it."
    protocol_version = 'HTTP/1.1'
    def log_message(self, *args): pass

    def answer(self, data, status=200, **headers):
        data = data if isinstance(data, bytes) else json.dumps(data).encode()
        self.send_response(status)
        for k, v in {'Content-Length': len(data), **headers}.items(): self.send_header(k, v)
        self.end_headers()
        if self.command != 'HEAD': self.wfile.write(data)

    def no(self, code): self.answer(dict(error=code), 404, **{'X-Error-Code': code})

    def do_POST(self):
        repos, host = self.server.repos, f'http://{self.headers["Host"]}'
        body = self.rfile.read(int(self.headers['Content-Length']))
        assert self.headers['Authorization'] == 'Bearer hf_ours'
        if self.path == '/api/repos/create':
            name = '{organization}/{name}'.format(**json.loads(body))
            repos.setdefault(name, {})
            return self.answer(dict(url=f'{host}/{name}'))
        if self.path == '/api/validate-yaml': return self.answer(dict(errors=[], warnings=[]))
        name, what = re.fullmatch(r'/api/models/([^/]+/[^/]+)/(preupload|commit)/main', self.path).groups()
        if what == 'preupload':
            paths = [o['path'] for o in json.loads(body)['files']]
            facts = dict(uploadMode='regular', shouldIgnore=False)
            return self.answer(dict(files=[dict(facts, path=o) for o in paths]))
        for line in map(json.loads, body.splitlines()):
            if line['key'] != 'file': continue
            repos[name][line['value']['path']] = base64.b64decode(line['value']['content'])
        now = commit(repos[name])
        self.answer(dict(success=True, commitUrl=f'{host}/{name}/commit/{now}', commitOid=now))

    def do_GET(self):
        asked = re.fullmatch(r'/([^/]+/[^/]+)/resolve/(?:main|[0-9a-f]{40})/(.+)', unquote(self.path))
        name, path = asked.groups() if asked else (None, None)
        if name not in self.server.repos: return self.no('RepoNotFound')
        files = self.server.repos[name]
        if path not in files: return self.no('EntryNotFound')
        self.answer(files[path], ETag=f'"{digest(files[path])}"', **{'X-Repo-Commit': commit(files)})

    do_HEAD = do_GET


@pytest.fixture
def repos(monkeypatch, tmp_path):
    "Repositories of a hub, name -> path -> bytes. Nothing of it is in the cache."
    server = ThreadingHTTPServer(('127.0.0.1', 0), Requests)
    server.repos, address = {}, f'http://127.0.0.1:{server.server_port}'
    constants = huggingface_hub.constants
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, address)
    monkeypatch.setattr(constants, 'ENDPOINT', address)
    monkeypatch.setattr(constants, 'HUGGINGFACE_CO_URL_TEMPLATE', template)
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path/'cache'))
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
    monkeypatch.setattr(constants, 'HF_HUB_DISABLE_XET', True)
    thread = threading.Thread(target=server.serve_forever, kwargs=dict(poll_interval=.01))
    thread.start()
    yield server.repos
    server.shutdown()
    server.server_close()
    thread.join()

@pytest.fixture(scope='module')
def run(tmp_path_factory):
    "A run with an ensemble of two teachers and an independent student."
    folder = tmp_path_factory.mktemp('images')
    return images(folder, 'teacher.num_components=2', 'teacher.independent=true')[0]

@pytest.fixture(scope='module')
def run_of_texts(tmp_path_factory): return texts(tmp_path_factory.mktemp('texts'))[0]

@pytest.fixture
def x(): return torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))

def pushed(run, name='student', **options):
    "A network that went to the hub, and what came back."
    model = hub.HubClassifier.from_run(run.path, name)
    model.push_to_hub('me/net', token='hf_ours', **options)
    return model, hub.HubClassifier.from_pretrained('me/net', token='hf_ours')

@pytest.mark.parametrize('name', ['student', 'independent_student'])
def test_a_student_comes_back(run, repos, x, name):
    _, back = pushed(run, name)
    assert back(x).equal(load_network(run.path/f'{name}.safetensors')(x)) and not back.training

def test_what_a_repository_holds(run, repos, tmp_path):
    pushed(run)
    assert sorted(repos['me/net']) == ['README.md', 'config.json', 'fidelity.png', 'model.safetensors']
    assert json.loads(repos['me/net']['config.json'])['depth'] == 8
    path = tmp_path/'model.safetensors'
    path.write_bytes(repos['me/net']['model.safetensors'])
    mine, theirs = load_checkpoint(run.path/'student.safetensors')[0], load_checkpoint(path)[0]
    assert mine.keys() == theirs.keys() and all(mine[k].equal(v) for k, v in theirs.items())

def test_a_teacher_is_its_ensemble(run, repos, x):
    model, back = pushed(run, 'teacher')
    assert back(x).equal(model(x)) and back(x).shape == (5, 2, 10)
    members = [load_network(run.path/f'teacher_{i}.safetensors')(x) for i in range(2)]
    assert back(x).equal(torch.stack(members, 1))

def test_the_card_holds_the_report(run, repos):
    pushed(run, model_card_kwargs=dict(license='mit'))
    card = huggingface_hub.ModelCard(repos['me/net']['README.md'].decode())
    report = pd.read_csv(run.path/'fidelity.csv', index_col='model')
    for model, row in report.iterrows():
        assert f"| {model} | {' | '.join(map('{:.4f}'.format, row))} |" in card.text
    statistics = pd.read_csv(run.path/'fidelity_statistics.csv', index_col='statistic')
    low, high = statistics.loc['agreement', ['low', 'high']]
    assert f'| {low:.4f} | {high:.4f} |' in card.text and '(fidelity.png)' in card.text
    assert run.state['provenance']['packages'] in card.text and "from_pretrained('me/net')" in card.text
    found = {o.metric_type: o.metric_value for o in card.data.eval_results}
    assert found == report.loc['student'].to_dict()
    assert (card.data.license, card.data.library_name, card.data.model_name) == ('mit', 'gnosis_nb', 'net')

@pytest.mark.parametrize('name', ['student', 'teacher'])
def test_the_code_in_the_card_runs(run, repos, x, name):
    model, back = pushed(run, name)
    given = dict(x=x)
    exec(re.search(r'```python\n(.*?)```', back.card.text, re.S)[1], given)
    assert given['logits'].equal(model(x))

def test_texts_bring_their_words(run_of_texts, repos):
    model, back = pushed(run_of_texts)
    assert back.words == (run_of_texts.path/'words.txt').read_text(encoding='utf-8').split('\n')
    given = {}
    exec(re.search(r'```python\n(.*?)```', back.card.text, re.S)[1], given)
    assert given['logits'].shape == (1, 2)

def test_what_came_back_goes_out_again(run, repos):
    _, back = pushed(run)
    back.push_to_hub('you/net', token='hf_ours')
    mine, yours = repos['me/net'], repos['you/net']
    assert {k for k in mine if mine[k] != yours[k]} == {'README.md'}
    assert mine['README.md'].replace(b'me/net', b'you/net') == yours['README.md']

def test_a_report_takes_what_came_back(run, repos, x):
    _, back = pushed(run)
    _, teacher = pushed(run, 'teacher')
    report = fidelity_report(back, teacher, [(x, torch.zeros(5, dtype=torch.long))])
    assert report.loc['teacher', 'agreement'] == 1 and 0 <= report.loc['student', 'agreement'] <= 1

def test_there_is_no_such_repository(repos):
    with pytest.raises(CheckpointError, match="repo_id='me/none': expected a folder that exists, or a repo"):
        hub.HubClassifier.from_pretrained('me/none', token='hf_ours')

def test_a_hub_that_does_not_answer(repos, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
    with pytest.raises(CheckpointError, match="repo_id='me/net': the Hub does not answer"):
        hub.HubClassifier.from_pretrained('me/net')

def test_weights_that_do_not_fit(run, repos):
    pushed(run)
    repos['me/net']['config.json'] = repos['me/net']['config.json'].replace(b'"depth": 8', b'"depth": 14')
    with pytest.raises(CheckpointError, match='which PreResNet needs'):
        hub.HubClassifier.from_pretrained('me/net', token='hf_ours')

def test_a_run_without_a_student(pool):
    folder = next(pool.rglob('three/*/state.json')).parent
    with pytest.raises(CheckpointError, match="name='student': expected a network of .*, which has"):
        hub.HubClassifier.from_run(folder)

@pytest.mark.parametrize('moved', [False, True], ids=['another folder', 'moved'])
def test_teachers_of_a_data_folder_that_was_relative(pool, x, tmp_path, monkeypatch, moved):
    "A run with another run's teachers, looked at from elsewhere, or after the data folder was moved."
    monkeypatch.chdir(tmp_path)
    shutil.copytree(pool/'image_classification', 'data/image_classification')
    run, _ = images('data')
    assert not list(run.path.glob('teacher_*'))
    data, theirs = tmp_path/'data', run.state['teacher_weights'][0]
    if moved: data = data.rename(tmp_path/'other')
    monkeypatch.chdir('/')
    folder = data/run.path.relative_to('data')
    found, = hub.find_networks(folder, 'teacher')
    assert found.is_relative_to(data) and checkpoint_info(found)['weights'] == theirs[0]
    assert hub.HubClassifier.from_run(folder, 'teacher')(x).equal(load_network(found)(x))

def test_a_pickled_teacher_is_one_sentence(pool, tmp_path):
    teacher = next(pool.rglob('image_classification/three/*/teacher_0.safetensors'))
    (tmp_path/'theirs').mkdir()
    torch.save(load_checkpoint(teacher)[0], tmp_path/'theirs'/'teacher_0.pt')
    run, _ = images(tmp_path, 'teacher.ckpt_dir=theirs')
    with pytest.raises(CheckpointError, match=r'theirs/teacher_0.pt: does not say which network it holds'):
        hub.HubClassifier.from_run(run.path, 'teacher')

def test_images_have_no_words(run):
    with pytest.raises(ValueError, match='^words=None: expected a classifier of texts'):
        hub.HubClassifier.from_run(run.path).encode('a text')

def test_no_run(tmp_path):
    with pytest.raises(CheckpointError, match='folder=.*: expected the folder of a run that is done'):
        hub.HubClassifier.from_run(tmp_path)

def test_a_teacher_that_has_changed(run, tmp_path):
    state = json.loads((run.path/'state.json').read_text())
    state['teacher_weights'][0][1] = 'other'
    for o in run.path.glob('*.*'): (tmp_path/o.name).write_bytes(o.read_bytes())
    (tmp_path/'state.json').write_text(json.dumps(state))
    with pytest.raises(CheckpointError, match='teacher_1.safetensors: holds other weights than before'):
        hub.HubClassifier.from_run(tmp_path, 'teacher')
