"Networks and weights of other libraries: from the command line to a checkpoint that is read again."
import pytest
import torch
from experiments import SHORT, TEACHERS, conduct, equal, images, report, texts, weights

from gnosis_nb.checkpoint import checkpoint_info, load_network
from gnosis_nb.models import OwnInput, build_classifier
from gnosis_nb.predictions import load_predictions
from gnosis_nb.schema import ConfigError
from versions import reads_pickles

COLOUR = ['dataset.channels=3', 'dataset.shrink.train=200', 'dataset.shrink.test=100']
TINY = ['classifier=timm', 'classifier.model=vit_tiny_patch16_224',
        'classifier.options={img_size: 8, patch_size: 4, embed_dim: 16, depth: 1, num_heads: 2}']
CIFAR = ['classifier=resnet_cifar', 'classifier.depth=8']


@pytest.fixture
def published(tmp_path):
    "A file of weights for the teacher of `CIFAR`."
    path = tmp_path/'resnet8.pth'
    torch.save(build_classifier('resnet_cifar', 10, seed=3, depth=8).state_dict(), path)
    return path

def logits(run): return load_predictions(run.path, 'test').teacher

def test_a_student_of_timm_is_read_again_without_its_settings(tmp_path):
    run, _ = images(tmp_path, *COLOUR, *TINY, 'teacher.name=preresnet')
    net = load_network(run.path/'student.safetensors')
    assert type(net).__name__ == 'VisionTransformer' and equal(net.state_dict(), weights(run, 'student'))
    assert net(torch.zeros(2, 3, 8, 8)).shape == (2, 10)
    assert report(run).accuracy.between(0, 1).all()

@reads_pickles
def test_a_published_teacher_is_used_as_it_is(tmp_path, published):
    run, lines = images(tmp_path, *COLOUR, *CIFAR, f'teacher.weights={published}')
    assert equal(weights(run, 'teacher_0'), torch.load(published))
    assert f'teacher: resnet_cifar, {published}' in lines
    assert checkpoint_info(run.path/'teacher_0.safetensors')['published'] == str(published)

@reads_pickles
def test_a_teacher_is_shown_images_in_its_own_normalisation(tmp_path, published):
    "The same logits whether the run is normalised as the teacher wants it, or the teacher sees to that."
    common = [*COLOUR, *CIFAR, f'teacher.weights={published}', TEACHERS]
    own = ['teacher.own_input.mean=[.485,.456,.406]', 'teacher.own_input.std=[.229,.224,.225]']
    same, _ = images(tmp_path/'a', *common, 'augmentation.normalization=imagenet')
    behind, _ = images(tmp_path/'b', *common, *own)
    other, _ = images(tmp_path/'c', *common)
    assert torch.allclose(logits(behind), logits(same), atol=.01)            # kept in half precision
    assert (logits(other) - logits(same)).abs().max() > .1
    net = load_network(behind.path/'teacher_0.safetensors')
    assert isinstance(net, OwnInput) and net.size is None

def test_published_weights_can_be_trained_further(tmp_path):
    "The training of a teacher from torch.hub begins with the weights that its repository gives."
    (tmp_path/'hubconf.py').write_text('''
from torch import nn
def tiny(pretrained=False):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
    if pretrained: nn.init.constant_(net[0].weight, .1)
    return net
''')
    run, _ = images(tmp_path, *COLOUR, 'teacher=hub', f"teacher.model='{tmp_path}:tiny'",
                    'teacher.fine_tune=true', 'teacher.weights=pretrained')
    start, end = (weights(run, o)['0.weight'] for o in ('teacher_init_0', 'teacher_0'))
    assert start.unique().tolist() == pytest.approx([.1]) and not torch.equal(start, end)

def vit(folder, classes):
    "A small network of transformers with random weights, and its preprocessing."
    transformers = pytest.importorskip('transformers')
    net = transformers.ViTForImageClassification(transformers.ViTConfig(hidden_size=16, num_hidden_layers=1,
        num_attention_heads=2, intermediate_size=16, image_size=16, patch_size=8, num_labels=classes))
    net.save_pretrained(folder)
    transformers.ViTImageProcessor(size=dict(height=16, width=16), image_mean=[.1]*3,
        image_std=[.2]*3).save_pretrained(folder)
    return net.eval()

def test_a_network_of_transformers_brings_its_preprocessing(tmp_path):
    net = vit(tmp_path/'vit', classes=10)
    run, _ = images(tmp_path, *COLOUR, 'teacher=transformers', f"teacher.model={tmp_path/'vit'}",
                    'teacher.weights=pretrained')
    kept = load_network(run.path/'teacher_0.safetensors')
    assert (kept.size, type(kept.net)) == (16, type(net))
    x = torch.rand(2, 3, 8, 8)                                               # in [0, 1]; the run has [-1, 1]
    large = torch.nn.functional.interpolate((x - .1)/.2, (16, 16), mode='bilinear', antialias=True)
    assert torch.allclose(kept(2*x - 1), net(large).logits, atol=1e-4)

def test_weights_of_other_classes_are_refused_unless_they_are_trained_further(tmp_path):
    vit(tmp_path/'vit', classes=4)
    ask = [*COLOUR, 'teacher=transformers', f"teacher.model={tmp_path/'vit'}", 'teacher.weights=pretrained']
    with pytest.raises(ConfigError, match='weights of 10 classes, found 4; teacher.fine_tune=true'):
        images(tmp_path, *ask)
    run, _ = images(tmp_path, *ask, 'teacher.fine_tune=true', TEACHERS)
    assert weights(run, 'teacher_0')['net.classifier.weight'].shape == (10, 16)

def bert(folder, words):
    "A small BERT with random weights, and a tokeniser that knows these words and single letters."
    transformers = pytest.importorskip('transformers')
    special = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]']
    letters = [chr(i) for i in range(97, 123)]
    vocabulary = [*special, *words, *letters, *(f'##{o}' for o in letters)]
    transformers.BertTokenizerFast(vocab={o: i for i, o in enumerate(vocabulary)}).save_pretrained(folder)
    net = transformers.BertForSequenceClassification(transformers.BertConfig(vocab_size=len(vocabulary),
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, num_labels=2))
    net.save_pretrained(folder)
    return net.eval(), transformers.AutoTokenizer.from_pretrained(folder)

def test_a_published_network_of_texts_reads_them_in_its_own_pieces(tmp_path):
    "Its logits are those of the library for the same words, cut up by its own tokeniser."
    net, tokenizer = bert(tmp_path/'bert', ['brilliant', 'film', 'the'])
    run, _ = texts(tmp_path, 'teacher=transformers', f"teacher.model={tmp_path/'bert'}",
                   'teacher.weights=pretrained')
    kept = load_network(run.path/'teacher_0.safetensors')
    words = (run.path/'words.txt').read_text().split('\n')
    some = [[words.index(o) for o in text.split()] for text in ('the film was brilliant', 'the film')]
    batch = torch.tensor([[len(o), *o, *[0]*(4 - len(o))] for o in some]).T
    asked = tokenizer([' '.join(words[i] for i in o) for o in some], padding=True, return_tensors='pt')
    assert torch.allclose(kept(batch), net(**asked).logits, atol=1e-5)
    assert len(asked['input_ids'][0]) > 6                                    # 'was' has three pieces
    assert report(run).accuracy.between(0, 1).all()

def test_a_student_of_texts_can_be_a_transformer(tmp_path):
    pytest.importorskip('transformers')
    sizes = '{hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 16}'
    run, _ = conduct('text_classification', '+experiment=sentences', 'dataset.num_train=100', *SHORT,
        'dataset.num_test=50', 'classifier=transformers', 'classifier.model=bert',
        f'classifier.options={sizes}', f'data_dir={tmp_path}', 'teacher.trainer.num_epochs=1')
    assert type(load_network(run.path/'student.safetensors').net).__name__ == 'BertForSequenceClassification'

@pytest.mark.parametrize('overrides, message', [
    (['teacher=timm'], 'teacher.model=null: expected the name of a model of timm'),
    (['classifier=timm', 'classifier.model=resnet1'], "classifier.model='resnet1': timm says: Unknown model"),
    (['teacher.weights=none.pth'], "teacher.weights='none.pth': expected a file or an address"),
    (['teacher.weights=none.pth', 'teacher.independent=true'], 'expected a list of 2'),
    (['teacher.weights=none.pth', 'teacher.ckpt_path=there'], 'give one of them'),
    (['teacher.weights=none.pth', 'teacher.ckpt_init.type=init'], 'published weights come without'),
    (['teacher.own_input.mean=[.5]'], 'expected mean and std'),
    (['teacher.own_input.mean=[.5]', 'teacher.own_input.std=[.5]'], 'expected 3 numbers, one a channel')])
def test_what_is_wrong_is_said_before_a_run_begins(tmp_path, overrides, message):
    with pytest.raises(ConfigError) as e: images(tmp_path, *COLOUR, *overrides)
    assert message in str(e.value) and not [*tmp_path.rglob('state.json')]
