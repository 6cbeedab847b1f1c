"""A Unigram tokenizer that is loaded for a few texts encodes them as the whole one does, and writes the same files."""

import json
import re
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from conftest import FAMILIES, TEXTS, build, files
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from vocab_pruning.data import chunks
from vocab_pruning.models import checkpoint
from vocab_pruning.models.abridged import Abridged, read_for
from vocab_pruning.models.bare import BareTokenizer, read_bare
from vocab_pruning.models.checkpoint import prune_checkpoint
from vocab_pruning.remaps.resegmenting import read_tokenizer

LETTERS = "aabbé▁<>xK "
NORMALIZERS = {"none": None, "NFKC": normalizers.NFKC(), "lowercase": normalizers.Lowercase(),
               "sentencepiece": normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(" ", "▁")])}
SPLITTERS = {"none": None, "metaspace": pre_tokenizers.Metaspace(), "first": pre_tokenizers.Metaspace(prepend_scheme="first"),
             "white space": pre_tokenizers.WhitespaceSplit()}
# Sums of few different scores tie often, and some of them have digits that the package reads as a neighboring number.
SCORES = st.sampled_from([-1.1, -2.2, -3.3, -12.033200263977051, -8.123456789012345, -10.323255777359009])


def made(pieces: list, unk: bool, fallback: bool, normalizer: str, splitter: str, added: list) -> Tokenizer:
    "A Unigram tokenizer of the given parts."
    vocabulary = ([("<unk>", 0.0)] if unk else []) + pieces
    vocabulary += [(f"<0x{byte:02X}>", -9.0) for byte in range(256)] if fallback else []
    tokenizer = Tokenizer(models.Unigram(vocabulary, 0 if unk else None, fallback))
    if NORMALIZERS[normalizer] is not None:
        tokenizer.normalizer = NORMALIZERS[normalizer]
    if SPLITTERS[splitter] is not None:
        tokenizer.pre_tokenizer = SPLITTERS[splitter]
    for token in added:
        (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])
    return tokenizer


def ids_of(tokenizer, text: str) -> list[int] | str:
    "The ids of `text`, or why it has none."
    try:
        return tokenizer.encode(text)
    except Exception as error:
        return str(error)


flags = st.booleans()
added_tokens = st.builds(AddedToken, st.text("abx<>", min_size=2, max_size=4), single_word=flags, lstrip=flags, rstrip=flags,
                         normalized=flags, special=flags)
pieces_of_any_kind = st.lists(st.tuples(st.text(LETTERS, min_size=1, max_size=4), SCORES), min_size=1, max_size=20, unique_by=lambda piece: piece[0])


@given(pieces=pieces_of_any_kind, unk=flags, fallback=flags, normalizer=st.sampled_from([*NORMALIZERS]), splitter=st.sampled_from([*SPLITTERS]),
       added=st.lists(added_tokens, max_size=3, unique_by=lambda token: token.content), split=flags,
       texts=st.lists(st.text(LETTERS + "中ﬁ", max_size=12), min_size=1, max_size=5))
@example(pieces=[("ab", -2.2), ("a", -1.1), ("b", -1.1), ("zzz", -30.5)], unk=True, fallback=False, normalizer="NFKC", splitter="metaspace",
         added=[AddedToken("<x>")], split=False, texts=["ab<x>ab ba", "a<x", "", "<unk>"])
def test_few_texts_are_encoded_as_by_the_whole_tokenizer(pieces, unk, fallback, normalizer, splitter, added, split, texts):
    with TemporaryDirectory() as scratch:
        directory = Path(scratch)
        made(pieces, unk, fallback, normalizer, splitter, added).save(str(directory / "tokenizer.json"))
        (directory / "tokenizer_config.json").write_text(json.dumps({"split_special_tokens": split}))
        small, whole = read_for(directory, texts), read_bare(directory)
    assert isinstance(small, Abridged)
    assert [ids_of(small, text) for text in texts] == [ids_of(whole, text) for text in texts]
    assert small.get_vocab() == whole.get_vocab()
    assert (small.special_tokens_map, small.all_special_ids) == (whole.special_tokens_map, whole.all_special_ids)
    assert read_tokenizer(small).parts == read_tokenizer(whole).parts


@pytest.fixture
def source(tmp_path) -> Path:
    "A directory with a model of XLM-RoBERTa's kind."
    build("unigram").save_pretrained(tmp_path / "full")
    FAMILIES["unigram"].tokenizer.save_pretrained(tmp_path / "full")
    return tmp_path / "full"


@pytest.mark.parametrize("oov", ["resegment", "unk", "pieces", "nearest"])
def test_a_checkpoint_is_pruned_to_the_same_files(source, tmp_path, monkeypatch, oov):
    kinds = []

    def read(*args):
        kinds.append(type(tokenizer := read_for(*args)))
        return tokenizer

    monkeypatch.setattr(checkpoint, "read_for", read)
    prune_checkpoint(source, TEXTS, tmp_path / "few", rows=60, oov=oov)
    monkeypatch.setattr(chunks, "LARGE", 1)
    prune_checkpoint(source, TEXTS, tmp_path / "many", rows=60, oov=oov)
    assert kinds == [Abridged, BareTokenizer]
    assert files(tmp_path / "few") == files(tmp_path / "many")


def test_texts_that_are_not_the_only_ones_take_the_whole_tokenizer(source, monkeypatch):
    "Where the texts may be read once, where a keep list has texts of its own, where they are many; and for another model."
    assert type(read_for(source, TEXTS)) is Abridged
    kinds = []
    monkeypatch.setattr(checkpoint, "read_for", lambda directory, texts: kinds.append(texts) or read_bare(directory))
    prune_checkpoint(source, iter(TEXTS), None, 0.2, oov="unk", scorer="frequency")
    prune_checkpoint(source, TEXTS, None, 0.2, oov="unk", keep=["id:7"])
    assert kinds == [None, None]
    monkeypatch.setattr(chunks, "MOST_DOCUMENTS", len(TEXTS))
    assert type(read_for(source, TEXTS)) is BareTokenizer
    assert type(read_for(source, [*TEXTS[:3], None])) is BareTokenizer


@pytest.mark.parametrize("old, new", [('"unk_id"', '"newer": 1, "unk_id"'), ("-9.5", "-9.50")])
def test_a_file_that_may_be_read_otherwise_is_loaded_whole(tmp_path, old, new):
    made([("a", -9.5), ("b", -1.25)], True, False, "none", "metaspace", []).save(str(tmp_path / "tokenizer.json"))
    assert type(read_for(tmp_path, ["a b"])) is Abridged
    text = (tmp_path / "tokenizer.json").read_text()
    assert old in text
    (tmp_path / "tokenizer.json").write_text(text.replace(old, new, 1))
    assert type(read_for(tmp_path, ["a b"])) is BareTokenizer


DAMAGED = {"cut": "{", "a list": '["Unigram"]', "no model": '{"model": "Unigram"}', "no vocabulary": '{"model": {"type": "Unigram"}}',
           "no scores": '{"model": {"type": "Unigram", "unk_id": 0, "vocab": [["a"], ["b"]]}}',
           "no such unknown piece": '{"model": {"type": "Unigram", "unk_id": 7, "vocab": [["a", -1.5]]}}',
           "a step unknown": '{"normalizer": {"type": "New"}, "model": {"type": "Unigram", "unk_id": 0, "vocab": [["a", -1.5]]}}'}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_is_refused_as_without_texts(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match="download or save") as whole:
        read_for(tmp_path, None)
    with pytest.raises(ValueError, match=re.escape(str(whole.value))):
        read_for(tmp_path, ["a"])


def test_a_file_that_leaves_out_what_is_usual(tmp_path):
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1.5]]}}')
    small, whole = read_for(tmp_path, ["aba"]), read_bare(tmp_path)
    assert type(small) is Abridged
    assert small.encode("aba") == whole.encode("aba") == [1, 0, 1]
    assert read_tokenizer(small).parts == read_tokenizer(whole).parts
