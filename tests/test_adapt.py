"Networks and batches of other libraries, in every function that takes a network or a loader."
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fastai.data.core import DataLoaders
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from gnosis_nb.adapt import Batches
from gnosis_nb.cka import cka_matrix, stage_cka
from gnosis_nb.explore.differences import find_disagreements
from gnosis_nb.explore.predictions import some_images, member_logits
from gnosis_nb.fidelity import predictions
from gnosis_nb.landscape import loss_line
from gnosis_nb.learner import student_learner, teacher_learner
from gnosis_nb.metrics import fidelity_report

N, CLASSES = 24, 5


def pixels():
    rng = torch.Generator().manual_seed(0)
    return torch.randn(N, 3, 8, 8, generator=rng), torch.arange(N) % CLASSES

class Net(nn.Module):
    "A network whose output is made by `wrap`, and whose input is named `pixel_values`."
    def __init__(self, seed, wrap):
        super().__init__()
        torch.manual_seed(seed)
        self.layer1, self.layer2 = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 6, 3, 2, 1)
        self.norm, self.head, self.wrap = nn.BatchNorm2d(6), nn.Linear(6, CLASSES), wrap

    def forward(self, pixel_values):
        h = self.norm(self.layer2(self.layer1(pixel_values).relu())).relu()
        return self.wrap(self.head(h.mean((2, 3))))

def as_it_is(z): return z
def as_tuple(z): return z, None
def as_object(z): return SimpleNamespace(loss=None, logits=z)
def as_dict(z): return dict(logits=z)

MODELS = dict(
    tensor=lambda seed: Net(seed, as_it_is), tuple=lambda seed: Net(seed, as_tuple),
    object=lambda seed: Net(seed, as_object), dict=lambda seed: Net(seed, as_dict))

class Named(torch.utils.data.Dataset):
    "Examples that are dicts, as those of Hugging Face."
    def __len__(self): return N
    def __getitem__(self, i):
        x, y = pixels()
        return dict(pixel_values=x[i], labels=y[i])

def dls(data): return DataLoaders(DataLoader(data, 8), DataLoader(data, 8), device='cpu')

BATCHES = dict(
    tuples=lambda: DataLoader(TensorDataset(*pixels()), 8), dicts=lambda: DataLoader(Named(), 8),
    lists=lambda: [[o[:8] for o in pixels()], [o[8:] for o in pixels()]], dataset=lambda: Named(),
    dls=lambda: dls(TensorDataset(*pixels())), named_dls=lambda: dls(Named()))

@pytest.fixture(params=MODELS)
def models(request): return [MODELS[request.param](seed).eval() for seed in range(3)]

@pytest.fixture(params=BATCHES)
def data(request): return BATCHES[request.param]()

@pytest.fixture(scope='module')
def wanted():
    "What networks that return tensors say of tuples."
    student, *teachers = (MODELS['tensor'](seed).eval() for seed in range(3))
    dl = BATCHES['tuples']()
    return dict(report=fidelity_report(student, teachers, dl), cka=stage_cka(student, teachers[0], dl),
        matrix=cka_matrix(student, teachers[0], dl), logits=predictions(dl, student, teachers))

def test_report(models, data, wanted):
    student, *teachers = models
    assert np.allclose(fidelity_report(student, teachers, data), wanted['report'], atol=1e-6)

def test_predictions(models, data, wanted):
    student, *teachers = models
    for mine, theirs in zip(predictions(data, student, teachers), wanted['logits']):
        assert torch.allclose(mine, theirs, atol=1e-6)

def test_cka(models, data, wanted):
    student, *teachers = models
    assert np.allclose(stage_cka(student, teachers, data), wanted['cka'], atol=1e-5)
    matrix = cka_matrix(student, teachers[0], data)  # by batches: other batches, another estimate
    if not isinstance(data, (list, Named)): assert np.allclose(matrix, wanted['matrix'], atol=1e-4)
    assert matrix.shape == wanted['matrix'].shape and matrix.notna().all(axis=None)

def test_landscape(models, data):
    student, teacher, other = models
    states = student.state_dict(), other.state_dict()
    line = loss_line(student, *states, teacher, data, [0., .5])
    report = fidelity_report(student, teacher, data).loc['student']
    again = loss_line(student, *states, teacher, data, [0.], batchnorm='interpolate')
    columns = ['agreement', 'kl', 'nll']
    assert np.allclose(again.loc[0, columns].astype(float), report[columns], atol=1e-5)
    assert line.notna().all(axis=None)

def test_exploration(models, data, wanted):
    student, teacher, _ = models
    sample = some_images(data, 6)
    assert sample.x.shape == (6, 3, 8, 8) and sample.y.tolist() == [0, 1, 2, 3, 4, 0]
    logits = member_logits(dict(student=student, teacher=[teacher, student]), sample.x)
    assert {k: tuple(z.shape) for k, z in logits.items()} == dict(student=(6, 1, 5), teacher=(6, 2, 5))
    agreement = wanted['report'].loc['student', 'agreement']
    found = find_disagreements(student, models[1:], data)
    assert len(found.table) == round((1 - agreement)*N)

@pytest.mark.parametrize('kind', MODELS)
@pytest.mark.parametrize('batches', ['tuples', 'dicts'])
def test_a_student_learns(kind, batches):
    student, *teachers = (MODELS[kind](seed) for seed in range(3))
    loaders = [BATCHES[batches]() for _ in range(2)]
    learn = student_learner(loaders, student, teachers, lr=.05, precision='fp32')
    with learn.no_bar(), learn.no_logging(): learn.fit(3)
    same = MODELS['tensor'](0)
    plain = student_learner([BATCHES['tuples']() for _ in range(2)], same,
        [MODELS['tensor'](seed) for seed in (1, 2)], lr=.05, precision='fp32')
    with plain.no_bar(), plain.no_logging(): plain.fit(3)
    for a, b in zip(student.parameters(), same.parameters()): assert torch.equal(a, b)
    assert learn.recorder.values == plain.recorder.values
    assert fidelity_report(learn, teachers, loaders[1]).loc['student', 'agreement'] == pytest.approx(
        plain.recorder.values[-1][-2])

def test_a_teacher_learns_from_dicts():
    net = MODELS['object'](0)
    learn = teacher_learner([BATCHES['dicts']()]*2, net, lr=.05)
    with learn.no_bar(), learn.no_logging(): learn.fit(2)
    assert len(learn.recorder.values) == 2


# Networks and data sets as Hugging Face makes them

@pytest.fixture(scope='module')
def vit():
    transformers = pytest.importorskip('transformers', reason='no transformers')
    config = transformers.ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, image_size=8, patch_size=4, num_labels=CLASSES)
    def build(seed):
        torch.manual_seed(seed)
        return transformers.ViTForImageClassification(config).eval()
    return build

def test_a_vision_transformer(vit):
    student, teacher = vit(0), vit(1)
    report = fidelity_report(student, teacher, DataLoader(Named(), 8))
    x, y = pixels()
    with torch.no_grad(): z_t, z_s = teacher(pixel_values=x).logits, student(pixel_values=x).logits
    assert report.loc['student', 'agreement'] == (z_t.argmax(1) == z_s.argmax(1)).float().mean().item()
    assert cka_matrix(student, teacher, DataLoader(Named(), 8)).notna().all(axis=None)
    learn = student_learner([DataLoader(Named(), 8)]*2, student, teacher, lr=.01)
    with learn.no_bar(), learn.no_logging(): learn.fit(2)
    after = fidelity_report(student, teacher, DataLoader(Named(), 8))
    assert after.loc['student', 'kl'] < report.loc['student', 'kl']

def test_texts_with_a_mask():
    transformers = pytest.importorskip('transformers', reason='no transformers')
    config = transformers.BertConfig(vocab_size=30, hidden_size=16, num_hidden_layers=1,
        num_attention_heads=2, intermediate_size=16, max_position_embeddings=8, num_labels=2)
    torch.manual_seed(0)
    student, teacher = (transformers.BertForSequenceClassification(config).eval() for _ in range(2))
    ids, mask = torch.randint(0, 30, (12, 6)), torch.ones(12, 6, dtype=torch.long)
    mask[:6, 3:] = 0
    batches = [dict(input_ids=ids, attention_mask=mask, label=torch.arange(12) % 2)]
    y, z = predictions(batches, student)
    with torch.no_grad(): wanted = student(input_ids=ids, attention_mask=mask).logits
    assert torch.equal(z, wanted) and y.tolist() == [0, 1]*6
    learn = student_learner([batches, batches], student, teacher, lr=.01)
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert len(learn.recorder.values) == 1

def test_a_dataset_of_hugging_face():
    datasets = pytest.importorskip('datasets', reason='no datasets')
    x, y = pixels()
    data = datasets.Dataset.from_dict(dict(pixel_values=x.tolist(), label=y.tolist(), name=['a']*N))
    read = Batches(data, bs=16)
    batches = list(read)
    assert read.names == ('pixel_values',) and [len(y) for _, y in batches] == [16, 8]
    assert torch.allclose(batches[0][0][0], x[:16])


# What cannot be read is said in a sentence

def test_errors_name_what_was_given():
    student, dl = MODELS['tensor'](0), BATCHES['tuples']()
    with pytest.raises(TypeError, match='teacher=int: expected a network'): fidelity_report(student, 3, dl)
    with pytest.raises(TypeError, match='independent=int'): fidelity_report(student, student, dl, 3)
    with pytest.raises(TypeError, match='dl=int: expected a loader'): fidelity_report(student, student, 3)
    with pytest.raises(TypeError, match='student=dict'): student_learner([dl, dl], {}, student)
    with pytest.raises(TypeError, match='dls=DataLoader'): student_learner(dl, student, student)
    bare = Net(0, lambda z: SimpleNamespace(hidden=z))
    with pytest.raises(TypeError, match='output is a SimpleNamespace'): fidelity_report(bare, student, dl)
