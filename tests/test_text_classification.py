"What only texts have: batches with padding, vocabularies, and reviews that are missing."
import pytest
import torch

from experiments import SHORT, TEACHERS, conduct, script, states_below, texts, weights
from fakes import fake_imdb
from gnosis_nb.data.text import load_text
from gnosis_nb.models import build_classifier
from gnosis_nb.schema import ConfigError
from versions import reads_pickles


def test_a_network_has_a_vector_for_each_word(tmp_path, monkeypatch):
    reviews = fake_imdb(tmp_path/'aclImdb', monkeypatch)
    network = ['classifier.embedding_size=16', 'classifier.lstm_cell_size=16', 'classifier.depth=2']
    where = [f'dataset.root_dir={reviews}', f'data_dir={tmp_path}']
    r, _ = conduct('text_classification', *SHORT, *network, *where, TEACHERS)
    words = (r.path/'words.txt').read_text(encoding='utf-8').split('\n')
    net = weights(r, 'teacher_0')
    assert words[0] == '<unk>' and net['embed.weight'].shape == (len(words), 16)
    assert net['lstm.weight_hh_l1_reverse'].shape == (64, 16)

@reads_pickles
def test_a_foreign_checkpoint_with_other_words_is_refused(tmp_path):
    words = load_text('sentences', num_train=300, num_test=101).words
    net = build_classifier('lstm', 2, num_words=len(words), embedding_size=16, lstm_cell_size=16)
    torch.save(net.state_dict(), tmp_path/'teacher_0.ckpt')
    with pytest.raises(ConfigError, match=r"^teacher\.ckpt_dir: .*'embed.weight' has shape"):
        texts(tmp_path, 'dataset.min_freq=30', 'teacher.ckpt_dir=.')

def test_two_splits_are_all_texts(tmp_path, learners):
    texts(tmp_path, 'dataset.subsample.ratio=0.4', 'distill_loader.splits=[0,1]', 'distill_loader.temp=[1,2]')
    dl = learners['student'][0].dls.train
    assert len(learners['teacher'][0].dls.train.dataset) == 120
    assert [len(o.dataset) for o in dl.parts] == [120, 180]
    train = load_text('sentences', num_train=300, num_test=101).train
    seen, rows = [], 0
    for x, y, temp in dl:
        assert x.shape[1] == len(y) == len(temp) and len(x) == 1 + x[0].max()
        assert not any(x[1 + n:, i].any() for i, n in enumerate(x[0]))       # padding is 0
        seen += [(*c[1:1 + c[0]], t) for c, t in zip(x.T.tolist(), y.tolist())]
        rows += (temp == 1).sum().item()
    places = zip(train.starts.tolist(), train.lengths.tolist(), train.targets.tolist())
    assert rows == 120 and sorted(seen) == sorted((*train.ids[s:s + n].tolist(), t) for s, n, t in places)

def test_missing_reviews_are_one_line_and_exit_status_1(tmp_path):
    p = script('text_classification', cwd=tmp_path)
    assert p.returncode == 1 and len(p.stderr.splitlines()) == 1
    where = 'data/datasets/imdb/aclImdb'
    assert p.stderr.startswith(f'error: IMDB is missing or damaged: looked for train/pos in {where}')
    assert not states_below(tmp_path)
