"""What cannot work is refused early: the message names the value, nothing is written, and the given model stays as it was."""

import math
import shutil
from contextlib import contextmanager
from functools import partial

import numpy as np
import pytest
import torch
from conftest import FAMILIES, ODD_FAMILIES, TEXTS, build, same, state
from transformers import ByT5Tokenizer, FNetConfig, FNetForSequenceClassification

import vocab_pruning
from vocab_pruning import load
from vocab_pruning.budget import max_ratio, model_size
from vocab_pruning.scoring import TUNED

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


def files(directory) -> dict[str, bytes]:
    "What lies below `directory`, byte for byte."
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


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


BAD_ARGUMENTS = {
    "negative ratio": (dict(ratio=-0.1), ValueError, ["-0.1", "[0, 1)"]),
    "ratio 1": (dict(ratio=1.0), ValueError, ["1.0", "[0, 1)"]),
    "ratio NaN": (dict(ratio=math.nan), ValueError, ["nan"]),
    "unknown scorer": (dict(scorer="pagerank"), ValueError, ["pagerank", "tfidf"]),
    "unknown oov": (dict(oov="subword"), ValueError, ["subword", "cluster"]),
    "unknown base": (dict(base="bytes"), ValueError, ["bytes", "params"]),
    "unknown option": (dict(n_clutsers=3), TypeError, ["n_clutsers"]),
    "option of another oov": (dict(oov="nearest", n_clusters=3), TypeError, ["n_clusters"]),
    "unknown scorer option": (dict(scorer_options={"nrom": None}), TypeError, ["nrom"]),
    "unknown norm": (dict(scorer_options={"norm": "l1"}), ValueError, ["l1", "l2"]),
    "unknown representative": (dict(representative="mode"), ValueError, ["mode", "medoid"]),
    "negative clusters": (dict(n_clusters=-1), ValueError, ["-1"]),
    "scores of another shape": (dict(scores=np.ones(3)), ValueError, ["(3,)", "(177,)"]),
    "a NaN among the scores": (dict(scores=scores_with(math.nan)), ValueError, ["row 5", "nan"]),
    "an infinity among the scores": (dict(scores=scores_with(-math.inf)), ValueError, ["row 5", "-inf"]),
    "a single string": (dict(texts="one text"), TypeError, ["single string", "[text]"]),
    "no texts": (dict(texts=[]), ValueError, ["0 texts", "no token"]),
    "empty texts": (dict(texts=["", " "]), ValueError, ["2 texts", "no token"]),
    "None among the texts": (dict(texts=["ab", None]), TypeError, ["text 1", "None"]),
    "bytes among the texts": (dict(texts=["ab", "cd", b"ef"]), TypeError, ["text 2", "ef"]),
    "a number among the texts": (dict(texts=[1.5]), TypeError, ["text 0", "1.5"]),
    "unknown clustering": (dict(scorer="clustering", scorer_options={"method": "ward"}), ValueError, ["ward", "average", "kmeans"]),
    "option of another clustering": (dict(scorer="clustering", scorer_options={"eps": 0.3}), TypeError, ["eps"]),
    "unknown pool": (dict(scorer="clustering", scorer_options={"pool": "train"}), ValueError, ["train", "seen"]),
    "a one-shot iterator with attention": (dict(scorer="attention", texts=iter(TEXTS)), ValueError, ["read again", "list"]),
    "None among the examples": (dict(scorer="vatp", examples=[("ab", "cd"), ("ab", None)]), TypeError, ["('ab', None)"]),
    "a one-shot iterator with tf-idf": (dict(texts=iter(TEXTS)), ValueError, ["second time", "list"]),
}


@pytest.mark.parametrize("arguments, error, named", BAD_ARGUMENTS.values(), ids=BAD_ARGUMENTS)
def test_bad_arguments(model, tokenizer, tmp_path, arguments, error, named):
    with refused(error, *named, directory=tmp_path, model=model):
        prune(model, tokenizer, **dict(texts=TEXTS) | arguments)


def test_a_one_shot_iterator_is_enough_where_one_pass_is(model, tokenizer):
    assert torch.equal(*(prune(model, tokenizer, texts, scorer="frequency").keep for texts in (iter(TEXTS), TEXTS)))


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
    for scorer in TUNED:
        with refused(ValueError, "FNetForSequenceClassification", "tfidf", directory=tmp_path, model=fnet):
            prune(fnet, family.tokenizer, TEXTS, 0.1, scorer=scorer)


def test_a_tokenizer_of_another_model(model, tmp_path):
    other = FAMILIES["bpe"].tokenizer
    with refused(ValueError, f"id {len(other) - 1}", f"{model.config.vocab_size} rows", directory=tmp_path, model=model):
        prune(model, other, TEXTS)


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
