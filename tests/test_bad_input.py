"""What cannot work is refused early: the message names the value, nothing is written, and the given model stays as it was."""

import math
import shutil
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import FAMILIES, ODD_FAMILIES, TEXTS, Unread, build, files, same, state
from datasets import Dataset
from transformers import ByT5Tokenizer, FNetConfig, FNetForSequenceClassification

import vocab_pruning
from vocab_pruning import load
from vocab_pruning.data.stats import token_stats
from vocab_pruning.evaluate.drift import coverage_of
from vocab_pruning.evaluate.preflight import preflight
from vocab_pruning.scorers.budget import max_ratio, model_size
from vocab_pruning.scorers.registry import SCORERS, compute_token_scores

prune = partial(vocab_pruning.prune, oov="cluster")  # codebooks would cost more than these tiny vocabularies hold


@pytest.fixture(autouse=True)
def empty_directory(tmp_path, monkeypatch):
    "Each test runs in an empty directory of its own."
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def model():
    return build("wordpiece")


@pytest.fixture
def tokenizer():
    return FAMILIES["wordpiece"].tokenizer


@contextmanager
def refused(error: type[Exception], *named: str, directory, model=None):
    "The block raises `error`, its message holds all of `named`; the files in `directory` and the model are the same afterwards."
    before = files(directory), model and (state(model), model.config.to_dict())
    with pytest.raises(error) as caught:
        yield
    missing = [name for name in named if name not in str(caught.value)]
    assert not missing, f"{missing} not named in: {caught.value}"
    assert files(directory) == before[0]
    assert model is None or same(before[1][0], model.state_dict()) == [] and before[1][1] == model.config.to_dict()


def scores_with(value: float, row: int = 5) -> np.ndarray:
    "One score per row of the WordPiece model, that of `row` being `value`."
    scores = np.ones(FAMILIES["wordpiece"].config().vocab_size)
    scores[row] = value
    return scores


FREQUENCY, AVERAGE, ATTENTION = (dict(scorer=name) for name in ("frequency", "clustering", "attention"))
BAD_CHOICES = {
    "negative ratio": (dict(ratio=-0.1), ValueError, ["-0.1", "below 1"]),
    "ratio 1": (dict(ratio=1.0), ValueError, ["1.0", "below 1"]),
    "ratio NaN": (dict(ratio=math.nan), ValueError, ["nan"]),
    "ratio as text": (dict(ratio="0.2"), TypeError, ["ratio='0.2'", "give a number"]),
    "ratio True": (dict(ratio=True), TypeError, ["ratio=True"]),
    "ratio in a list": (dict(ratio=[0.2]), TypeError, ["ratio=[0.2]"]),
    "unknown base": (dict(base="bytes"), ValueError, ["bytes", "params"]),
    "base in a list": (dict(base=["params"]), ValueError, ["['params']", "vocab"]),
    "seed as text": (dict(seed="x"), ValueError, ["seed='x'"]),
    "seed of a fraction": (dict(seed=1.5), ValueError, ["seed=1.5"]),
    "seed None": (dict(seed=None), ValueError, ["seed=None"]),
    "negative seed": (dict(seed=-1), ValueError, ["seed=-1"]),
    "share_encoder as text": (dict(share_encoder="no"), ValueError, ["share_encoder='no'"]),
    "progress None": (dict(progress=None), ValueError, ["progress=None"]),
    "unknown oov": (dict(oov="subword"), ValueError, ["subword", "cluster"]),
    "oov None": (dict(oov=None), ValueError, ["None", "resegment"]),
    "unknown option": (dict(n_clutsers=3), TypeError, ["n_clutsers"]),
    "option of another oov": (dict(oov="nearest", n_clusters=3), TypeError, ["n_clusters"]),
    "more rows in a sum than numbers in a row": (dict(oov="sparse", m=10**6), ValueError, ["m=1000000", "give at most"]),
    "lossless as text": (dict(oov="resegment", lossless="yes"), ValueError, ["lossless='yes'"]),
    "multiple of a fraction": (dict(oov="resegment", pad_to_multiple_of=8.0), ValueError, ["pad_to_multiple_of=8.0"]),
    "multiple True": (dict(oov="resegment", pad_to_multiple_of=True), ValueError, ["pad_to_multiple_of=True"]),
    "unknown scorer": (dict(scorer="pagerank"), ValueError, ["pagerank", "tfidf"]),
    "scorer None": (dict(scorer=None), ValueError, ["None", "tfidf"]),
    "scorer options as text": (dict(scorer_options="norm"), TypeError, ["scorer_options", "'norm'", "dict"]),
    "scorer options in a list": (dict(scorer_options=[("norm", None)]), TypeError, ["scorer_options", "dict"]),
    "unknown scorer option": (dict(scorer_options={"nrom": None}), TypeError, ["nrom", "norm"]),
    "option of a scorer without any": (dict(FREQUENCY, scorer_options={"norm": None}), TypeError, ["norm", "no option"]),
    "a number as option": (dict(scorer_options={3: None}), TypeError, ["3", "norm"]),
    "unknown norm": (dict(scorer_options={"norm": "l1"}), ValueError, ["l1", "l2"]),
    "unknown clustering": (dict(AVERAGE, scorer_options={"method": "ward"}), ValueError, ["ward", "average", "kmeans"]),
    "clustering in a list": (dict(AVERAGE, scorer_options={"method": ["dbscan"]}), ValueError, ["['dbscan']"]),
    "option of another clustering": (dict(AVERAGE, scorer_options={"eps": 0.3}), TypeError, ["eps", "pool"]),
    "a distance as text": (dict(AVERAGE, scorer_options={"method": "dbscan", "eps": "0.3"}), ValueError, ["eps='0.3'"]),
    "unknown pool": (dict(AVERAGE, scorer_options={"pool": "train"}), ValueError, ["train", "seen"]),
    "a batch of a fraction": (dict(ATTENTION, scorer_options={"batch_size": 2.0}), ValueError, ["batch_size=2.0"]),
    "a flag as text": (dict(scorer="attention", scorer_options={"divide": "no"}), ValueError, ["divide='no'"]),
    "what vatp is": (dict(scorer="vatp", scorer_options={"by_value": False}), TypeError, ["by_value", "divide"]),
    **{f"{name} as scorer option": (dict(AVERAGE, scorer_options={name: 5}), TypeError, [repr(name), "it takes method and pool"])
       for name in ("stats", "model", "n_rows", "seed", "texts", "tokenizer", "special", "examples")},
    "scores of another shape": (dict(scores=np.ones(3)), ValueError, ["(3,)", "(177,)"]),
    "a NaN among the scores": (dict(scores=scores_with(math.nan)), ValueError, ["row 5", "nan"]),
    "an infinity among the scores": (dict(scores=scores_with(-math.inf)), ValueError, ["row 5", "-inf"]),
    "scores as text": (dict(scores="high"), TypeError, ["scores are 'high'"]),
    "scores and scorer options": (dict(scores=np.ones(177), scorer_options={"norm": None}), ValueError, ["'norm'"]),
}
BAD_TEXTS = {
    "unknown representative": (dict(representative="mode"), ValueError, ["mode", "medoid"]),
    "negative clusters": (dict(n_clusters=-1), ValueError, ["-1"]),
    "a single string": (dict(texts="one text"), TypeError, ["single string", "[text]"]),
    "bytes": (dict(texts=b"one text"), TypeError, ["b'one text'", "decoded"]),
    "a path": (dict(texts=Path("texts.txt")), TypeError, ["texts.txt", "read it first"]),
    "a dict": (dict(texts={"text": TEXTS}), TypeError, ["'text'", "dict", "columns"]),
    "a data frame": (dict(texts=pd.DataFrame({"text": TEXTS})), TypeError, ["DataFrame", "columns"]),
    "a data set": (dict(texts=Dataset.from_dict({"text": TEXTS})), TypeError, ["Dataset", "columns"]),
    "nothing": (dict(texts=None), TypeError, ["texts is None"]),
    "a number": (dict(texts=3), TypeError, ["texts is 3"]),
    "no texts": (dict(texts=[]), ValueError, ["0 texts", "holds a token"]),
    "empty texts": (dict(texts=["", " "]), ValueError, ["2 texts", "holds a token"]),
    "None among the texts": (dict(texts=["ab", None]), TypeError, ["text 1", "None"]),
    "bytes among the texts": (dict(texts=["ab", "cd", b"ef"]), TypeError, ["text 2", "ef"]),
    "a number among the texts": (dict(texts=[1.5]), TypeError, ["text 0", "1.5"]),
    "a path as examples": (dict(scorer="vatp", examples=Path("pairs.txt")), TypeError, ["examples is", "pairs.txt"]),
    "None among the examples": (dict(scorer="vatp", examples=[("ab", "cd"), ("ab", None)]), TypeError, ["('ab', None)"]),
}


@pytest.mark.parametrize("arguments, error, named", BAD_CHOICES.values(), ids=BAD_CHOICES)
def test_bad_choices_are_refused_before_a_text_is_read(model, tokenizer, tmp_path, arguments, error, named):
    with refused(error, *named, directory=tmp_path, model=model):
        prune(model, tokenizer, **dict(texts=Unread()) | arguments)


@pytest.mark.parametrize("arguments, error, named", BAD_TEXTS.values(), ids=BAD_TEXTS)
def test_bad_texts(model, tokenizer, tmp_path, arguments, error, named):
    with refused(error, *named, directory=tmp_path, model=model):
        prune(model, tokenizer, **dict(texts=TEXTS) | arguments)


def test_texts_of_every_kind_of_iterable(model, tokenizer):
    "What is a column of a table or an array is as good as a list, also where it is read twice."
    column = Dataset.from_dict({"text": TEXTS})["text"]
    for texts in (tuple(TEXTS), np.array(TEXTS), pd.Series(TEXTS), dict.fromkeys(TEXTS).keys(), column):
        assert len(prune(model, tokenizer, texts).sample) == 16


# Texts that can be read only once


class Same:
    "Iterates over the same iterator each time, though it is none itself."

    def __init__(self, texts):
        self.texts = iter(texts)

    def __iter__(self):
        return self.texts


def opened(directory) -> object:
    (directory / "texts.txt").write_text("".join(f"{text}\n" for text in TEXTS))
    return (directory / "texts.txt").open()


ONE_SHOT = {
    "generator": lambda directory: (text for text in TEXTS),
    "map": lambda directory: map(str, TEXTS),
    "file": opened,
    "the same iterator": lambda directory: Same(TEXTS),
}
READERS = {
    "tf-idf": (dict(scorer="tfidf"), "scorer 'tfidf'"),
    "attention": (dict(scorer="attention"), "scorer 'attention'"),
    "vatp": (dict(scorer="vatp"), "scorer 'vatp'"),
    "resegment": (dict(scorer="frequency", oov="resegment"), "oov='resegment'"),
}


@pytest.mark.parametrize("make", ONE_SHOT.values(), ids=ONE_SHOT)
@pytest.mark.parametrize("arguments, reader", READERS.values(), ids=READERS)
def test_texts_that_can_be_read_only_once_are_not_read_in_vain(model, tokenizer, tmp_path, make, arguments, reader):
    texts = make(tmp_path)
    with refused(ValueError, reader, "reads texts a second time", "give a list", directory=tmp_path, model=model):
        prune(model, tokenizer, texts, **arguments)
    assert len(list(texts)) == len(TEXTS)


def test_examples_that_can_be_read_only_once(model, tokenizer, tmp_path):
    with refused(ValueError, "scorer 'attention' reads examples a second time", directory=tmp_path, model=model):
        prune(model, tokenizer, Unread(), scorer="attention", examples=iter([("a", "b")]))


@pytest.mark.parametrize("make", ONE_SHOT.values(), ids=ONE_SHOT)
def test_other_readers_of_texts_refuse_them_at_once(model, tokenizer, tmp_path, make):
    once, stats = make(tmp_path), token_stats(TEXTS, tokenizer, 177)
    plain = prune(model, tokenizer, TEXTS, 0.1, oov="resegment")
    for read in (lambda: preflight(model, tokenizer, once, TEXTS), lambda: preflight(model, tokenizer, TEXTS, once),
                 lambda: coverage_of(plain, once, original=tokenizer),
                 lambda: compute_token_scores(stats, texts=once, tokenizer=tokenizer)):
        with pytest.raises(ValueError, match="second time"):
            read()
    assert len(list(once)) == len(TEXTS)


@pytest.mark.parametrize("make", ONE_SHOT.values(), ids=ONE_SHOT)
@pytest.mark.parametrize("arguments", [dict(scorer="frequency"), dict(scorer_options={"norm": None}),
                                       dict(scorer="frequency", oov="resegment", lossless=False),
                                       dict(scorer="attention", examples=TEXTS)], ids=str)
def test_once_is_enough_where_one_pass_is(model, tokenizer, tmp_path, make, arguments):
    once, twice = (prune(model, tokenizer, texts, **arguments) for texts in (make(tmp_path), TEXTS))
    assert torch.equal(once.keep, twice.keep) and once.sample == [] and twice.sample


def test_a_ratio_above_the_maximum(model, tokenizer, tmp_path):
    "The message names the ratio and the most that can go."
    size = model_size(model)
    most = max_ratio(size, len(tokenizer.all_special_ids))
    prune(model, tokenizer, TEXTS, most)
    for ratio in (most + size.row_cost / size.params, 0.99):
        with refused(ValueError, f"{ratio}", f"{most:.4%}", directory=tmp_path, model=model):
            prune(model, tokenizer, TEXTS, ratio)


# Models and tokenizers


def test_a_zero_row_cannot_be_clustered(model, tokenizer, tmp_path):
    row = tokenizer.convert_tokens_to_ids("a")
    with torch.no_grad():
        model.get_input_embeddings().weight[row] = 0
    with refused(ValueError, f"row {row} of the embedding", "length 0.0", directory=tmp_path, model=model):
        prune(model, tokenizer, ["a b c d e"], 0.2, "seen", "clustering", oov="unk")


def test_a_model_that_shows_no_attention(tmp_path):
    family = FAMILIES["wordpiece"]
    fnet = FNetForSequenceClassification(FNetConfig(vocab_size=family.config().vocab_size, hidden_size=16, intermediate_size=24, num_hidden_layers=1))
    for scorer in [name for name, spec in SCORERS.items() if spec.tuned]:
        with refused(ValueError, "FNetForSequenceClassification", "tfidf", directory=tmp_path, model=fnet):
            prune(fnet, family.tokenizer, TEXTS, 0.1, scorer=scorer)


def test_a_tokenizer_of_another_model(model, tmp_path):
    other = FAMILIES["bpe"].tokenizer
    with refused(ValueError, f"id {len(other) - 1}", f"{model.config.vocab_size} rows", directory=tmp_path, model=model):
        prune(model, other, TEXTS)


def test_what_is_no_model_or_no_tokenizer(model, tokenizer, tmp_path):
    with refused(TypeError, "model='bert-base-uncased' is a str", directory=tmp_path):
        prune("bert-base-uncased", tokenizer, Unread())
    for other in ("bert-base-uncased", None):
        with refused(TypeError, type(other).__name__, "give a fast one", directory=tmp_path, model=model):
            prune(model, other, Unread())


def test_a_model_without_weights(tokenizer, tmp_path):
    with torch.device("meta"):
        model = build("wordpiece")
    with refused(ValueError, "word_embeddings.weight", "meta", directory=tmp_path):
        prune(model, tokenizer, Unread())


def test_a_slow_tokenizer(tmp_path):
    slow, model = ByT5Tokenizer(extra_ids=0), build("bpe")
    with refused(TypeError, "ByT5Tokenizer", "slow", directory=tmp_path, model=model):
        prune(model, slow, TEXTS)


def test_a_tokenizer_without_unk(tmp_path):
    "`unk` cannot be had, nor `cluster` of no clusters, which falls back on it; all else works, and `unk` too where nothing is pruned."
    family = ODD_FAMILIES["no unk"]
    model, tokenizer = build(family), family.tokenizer
    for options in (dict(oov="unk"), dict(oov="cluster", n_clusters=0)):
        with refused(ValueError, "no unknown token", "'unk'", "'nearest'", directory=tmp_path, model=model):
            prune(model, tokenizer, TEXTS, **options)
    for options in (dict(oov="nearest"), dict(oov="cluster"), dict(oov="unk", ratio=0)):
        prune(model, tokenizer, TEXTS, **options)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_row_that_is_not_finite(model, tokenizer, tmp_path, value):
    with torch.no_grad():
        model.get_input_embeddings().weight[7, 3] = value
    with pytest.raises(ValueError, match="row 7 holds NaN or infinity"):
        prune(model, tokenizer, TEXTS)
    assert files(tmp_path) == {}


def test_a_model_that_is_pruned_already(model, tokenizer, tmp_path):
    p = prune(model, tokenizer, TEXTS)
    with refused(TypeError, "PrunedEmbedding", directory=tmp_path, model=p.model):
        prune(p.model, tokenizer, TEXTS)


def test_resizing_a_pruned_model(model, tokenizer, tmp_path):
    p = prune(model, tokenizer, TEXTS)
    for part in (p.model, p.model.base_model):
        with refused(ValueError, "resize_token_embeddings", "pruned model", directory=tmp_path, model=p.model):
            part.resize_token_embeddings(200)
    p.save_pretrained("model")
    with refused(ValueError, "resize_token_embeddings", directory=tmp_path):
        load("model").model.resize_token_embeddings(200)
    model.resize_token_embeddings(200)


# Directories


@pytest.fixture
def saved(model, tokenizer, tmp_path):
    "A pruned model and the directory it is saved in."
    p = prune(model, tokenizer, TEXTS)
    p.save_pretrained(tmp_path / "model")
    return p, tmp_path / "model"


def test_an_output_directory_with_something_else_in_it(saved, tmp_path):
    p, _ = saved
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    (tmp_path / "file").write_text("not a directory")
    for name in ("thesis", "file"):
        with refused(FileExistsError, name, "choose another path", directory=tmp_path, model=p.model):
            p.save_pretrained(tmp_path / name)


def test_an_earlier_save_and_an_empty_directory_are_replaced(saved, tmp_path):
    "What an earlier save left goes, files of others stay."
    p, directory = saved
    (directory / "model-00001-of-00002.safetensors").write_text("from before")
    (directory / "stray.txt").write_text("from somebody else")
    (tmp_path / "empty").mkdir()
    before = files(directory).keys() - {"model-00001-of-00002.safetensors"}
    for path in (directory, tmp_path / "empty"):
        p.save_pretrained(path)
        assert same(state(load(path).model), state(p.model)) == []
        assert files(path).keys() == (before if path == directory else before - {"stray.txt"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "model"]


def test_a_save_that_fails_half_way_leaves_what_was_there(saved, tmp_path, monkeypatch):
    p, directory = saved

    def fail(*args, **kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr(p.tokenizer, "save_pretrained", fail)
    for path in (directory, tmp_path / "new"):
        with refused(OSError, "no space", directory=tmp_path, model=p.model):
            p.save_pretrained(path)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("part", [0, 0.001, 0.5, 0.999])
def test_truncated_weights(saved, tmp_path, part):
    weights = saved[1] / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: int(part * len(whole))])
    with refused(ValueError, str(saved[1]), "damaged", directory=tmp_path):
        load(saved[1])


def test_missing_weights(saved, tmp_path):
    (saved[1] / "model.safetensors").unlink()
    with refused((OSError, ValueError), str(saved[1]), directory=tmp_path):
        load(saved[1])


def test_weights_of_another_size(saved, model, tokenizer, tmp_path):
    "The weights of one pruned model under the configuration of another."
    prune(model, tokenizer, TEXTS, 0.1).save_pretrained(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "model.safetensors", saved[1])
    with refused(ValueError, str(saved[1]), directory=tmp_path):
        load(saved[1])


def test_loading_what_is_not_a_pruned_model(model, tmp_path):
    (tmp_path / "nothing").mkdir()
    model.save_pretrained(tmp_path / "whole")
    for name, error, reason in (("absent", FileNotFoundError, "config.json"), ("nothing", FileNotFoundError, "config.json"),
                                ("whole", ValueError, "not pruned")):
        with refused(error, name, reason, directory=tmp_path, model=model):
            load(tmp_path / name)
