"torchtext itself against what is built in; needs an environment that `make torchtext` makes."
import json
from pathlib import Path

import numpy as np
import pytest

from gnosis_nb.data.text import imdb, sentences
from gnosis_nb.data.words import basic_english, encode_texts, pick_backend

if pick_backend() != 'torchtext': pytest.skip('needs torchtext: make torchtext', allow_module_level=True)

ROOT = Path(__file__).parent.parent
PLACES = ROOT/'data/datasets/imdb/aclImdb', ROOT/'data/datasets/aclImdb'
REVIEWS = next((o for o in PLACES if o.is_dir()), PLACES[-1])


def both(corpora, min_freq):
    "Words, numbers and lengths by torchtext, after it has been seen that the others are the same."
    ours, theirs = (encode_texts(corpora, min_freq, o) for o in ('builtin', 'torchtext'))
    assert ours[0] == theirs[0]
    for a, b in zip(ours[1], theirs[1]):
        for x, y in zip(a, b): np.testing.assert_array_equal(x, y)
    return theirs

def test_on_record():
    from torchtext.data.utils import get_tokenizer
    for o in json.loads((ROOT/'tests'/'data'/'torchtext.json').read_text(encoding='utf-8'))['edge']:
        assert get_tokenizer('basic_english')(o['text']) == basic_english(o['text']) == o['tokens']

def test_odd_strings():
    odd = ['', ' ', '<unk> <UNK>', 'a"b <br"/> <br" />', "'.,()!?;:\"", 'a\x1fb\x85c\u2028d\u00a0e',
           'İSTANBUL ẞ Σ', 'tab\tnew\nline\r\n', '<br /><br  />', '\ufeffbom', '...!!!',
           'no-break\u202fspace']
    assert both([odd*2, odd], 2)[0][0] == '<unk>'

def test_sentences():
    ours, theirs = (sentences(backend=o).train.fingerprint() for o in ('builtin', 'torchtext'))
    assert ours == theirs

@pytest.mark.skipif(not REVIEWS.is_dir(), reason='needs IMDB in data/datasets/aclImdb')
@pytest.mark.parametrize('min_freq', [1, 10])
def test_all_reviews_of_imdb(min_freq):
    files = [[*sorted((REVIEWS/s/'neg').glob('*.txt')), *sorted((REVIEWS/s/'pos').glob('*.txt'))]
             for s in ('train', 'test')]
    texts = [[o.read_text(encoding='utf-8') for o in part] for part in files]
    assert [len(o) for o in texts] == [25_000, 25_000]
    words, _ = both(texts, min_freq)
    assert min_freq == 1 or len(words) == 20_435

@pytest.mark.skipif(not REVIEWS.is_dir(), reason='needs IMDB in data/datasets/aclImdb')
def test_the_loader_gives_the_same(tmp_path):
    (tmp_path/'aclImdb').symlink_to(REVIEWS.resolve())
    ours, theirs = (imdb(tmp_path/'imdb', download=False, backend=o) for o in ('builtin', 'torchtext'))
    assert ours.train.fingerprint() == theirs.train.fingerprint()
    assert ours.test.fingerprint() == theirs.test.fingerprint()
