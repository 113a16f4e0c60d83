"IMDB in its official layout: archive, folder, nothing; words and numbers as torchtext has them."
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

import gnosis_nb.data.text as text
from fakes import fake_imdb, md5
from gnosis_nb.data.text import imdb, load_text
from gnosis_nb.data.words import basic_english, encode_texts
from gnosis_nb.data.folder import DataNotFound

RECORDED = json.loads((Path(__file__).parent/'data'/'torchtext.json').read_text(encoding='utf-8'))
SETS = Path(__file__).parent.parent/'data/datasets'
PLACES = SETS/'imdb/aclImdb/train', SETS/'aclImdb/train'
REVIEWS = next((o for o in PLACES if o.is_dir()), PLACES[-1])


def archive(root, reviews, monkeypatch):
    "The folder as the official archive."
    root.mkdir()
    file = root/text.IMDB_URL.rsplit('/', 1)[1]
    with tarfile.open(file, 'w:gz') as t: t.add(reviews, 'aclImdb')
    monkeypatch.setattr(text, 'IMDB_MD5', md5(file))
    return file

@pytest.fixture
def reviews(tmp_path, monkeypatch): return fake_imdb(tmp_path/'there'/'aclImdb', monkeypatch)

def test_a_folder_that_is_there(reviews, tmp_path):
    roots = reviews, reviews.parent, reviews.parent/'imdb', str(reviews)
    bits = {imdb(o, min_freq=2).train.fingerprint() for o in roots}
    assert len(bits) == 1
    sets = imdb(reviews, min_freq=1, max_len=None)
    assert sets.train.targets.tolist() == [0]*20 + [1]*20 and sets.train.classes == ['neg', 'pos']
    names = [*sorted((reviews/'train'/'neg').iterdir()), *sorted((reviews/'train'/'pos').iterdir())]
    assert [sets.train.read(i) for i in range(40)] == [' '.join(basic_english(o.read_text())) for o in names]

def test_the_archive_is_unpacked_after_its_checksum_has_been_verified(reviews, tmp_path, monkeypatch):
    file = archive(tmp_path/'imdb', reviews, monkeypatch)
    sets = imdb(tmp_path/'imdb', download=False, min_freq=1)                 # nothing has to be fetched
    assert sets.train.fingerprint() == imdb(reviews, min_freq=1).train.fingerprint()
    (tmp_path/'imdb'/'aclImdb'/'test'/'pos'/'0_8.txt').unlink()  # not whole: unpacked again
    assert imdb(tmp_path/'imdb', min_freq=1).test.fingerprint() == sets.test.fingerprint()
    file.write_bytes(file.read_bytes()[:-9])
    (tmp_path/'imdb'/'aclImdb'/'test'/'pos'/'0_8.txt').unlink()
    for download in (False, True):
        with pytest.raises(DataNotFound, match='IMDB is missing or damaged') as e:
            imdb(tmp_path/'imdb', download=download)
        assert '\n' not in str(e.value) and '19 files in' in str(e.value)

@pytest.mark.parametrize('download', [True, False])
def test_what_is_missing_is_one_sentence(tmp_path, download):
    with pytest.raises(DataNotFound) as e: imdb(tmp_path/'imdb', download=download)
    message = str(e.value)
    assert '\n' not in message
    assert f"{tmp_path/'imdb'/'aclImdb'}, {tmp_path/'imdb'}, {tmp_path/'aclImdb'}" in message
    assert ('the download failed' in message) == download and text.IMDB_URL in message

def test_a_folder_that_cannot_be_written_to_is_encoded_each_time(reviews, monkeypatch):
    bits = imdb(reviews, min_freq=1).train.fingerprint()
    (cache,) = (reviews/'.gnosis_nb_cache').iterdir()
    cache.unlink()
    def refuse(*args, **kwargs): raise PermissionError('read-only')
    monkeypatch.setattr(np, 'savez', refuse)
    assert imdb(reviews, min_freq=1).train.fingerprint() == bits
    assert not list((reviews/'.gnosis_nb_cache').iterdir())

def test_each_option_of_the_encoding_has_its_own_cache(reviews):
    words = {n: len(imdb(reviews, min_freq=n).words) for n in (1, 5, 1, 5)}
    assert words[1] > words[5] and len(list((reviews/'.gnosis_nb_cache').iterdir())) == 2
    for bad in (dict(min_freq=0), dict(max_len=0), dict(backend='spacy')):
        with pytest.raises(ValueError, match=f"{next(iter(bad))}=") as e: imdb(reviews, **bad)
        assert not isinstance(e.value, DataNotFound)

def test_tokens_on_record():
    assert len(RECORDED['edge']) == 10
    for o in RECORDED['edge']: assert basic_english(o['text']) == o['tokens']

@pytest.mark.skipif(not REVIEWS.is_dir(), reason='needs IMDB in data/datasets/aclImdb')
def test_reviews_on_record():
    texts = {o: (REVIEWS/o).read_text(encoding='utf-8') for o in RECORDED['files']}
    words, ((ids, lengths),) = encode_texts([list(texts.values())], RECORDED['min_freq'], 'builtin')
    assert words == RECORDED['vocab']
    each = dict(zip(texts, np.split(ids, np.cumsum(lengths)[:-1])))
    for o in RECORDED['docs']:
        tokens = basic_english(texts[o['file']])
        assert len(tokens) == o['n_tokens'] and tokens[:len(o['tokens'])] == o['tokens']
        assert each[o['file']].tolist()[:len(o['ids'])] == o['ids']

def test_sources_by_name(reviews):
    by_name = load_text('imdb', reviews, min_freq=3)
    assert by_name.train.fingerprint() == imdb(reviews, min_freq=3).train.fingerprint()
    with pytest.raises(ValueError, match='expected one of imdb, sentences'): load_text('cifar10')
