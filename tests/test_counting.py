"""Counting by chunks gives what counting whole texts gives, in any order, after a kill and in shards."""

import gzip
import os
import random
import shutil
import signal
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from conftest import FAMILIES, TEXTS
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer

from vocab_pruning import prune
from vocab_pruning.core import minilm_directory
from vocab_pruning.data import stats as stats_module
from vocab_pruning.data.chunks import ChunkEncoder, CrossesWords, choose_encoder, is_word_local
from vocab_pruning.data.corpora import Source, find_sources
from vocab_pruning.data.stats import TokenStats, backend, cells, coverage, from_parts, in_parts, sum_by_row, token_stats, tokenizer_fingerprint
from vocab_pruning.evaluate.drift import coverage_of
from vocab_pruning.models.bare import read_bare
from vocab_pruning.models.checkpoint import prune_checkpoint
from vocab_pruning.remaps.resegmenting import rewrite_tokenizer
from vocab_pruning.runs import counting
from vocab_pruning.runs.counting import count_corpora
from vocab_pruning.scorers.tfidf import tfidf_scores
from vocab_pruning.testing.families import tiny_model, tiny_tokenizer

LOCAL = ["BertTokenizer", "RobertaTokenizer", "GPT2Tokenizer", "XLMRobertaTokenizer"]
ODD = ["\u00a0", "\u200b", "\u200c", "\u2009", "\u3000", "\u0085", "\x00", "\x1c", "\ufeff", "\u00ad", "\u0301", "\u0338", "\u00b4", "\u2581",
       "\ufffd", "\u0600", "\u0d4e", "\u0345", "\u037a", "\ufdfa", "\ufe0f", "😀", "中", "é", "ß", "İ", "Σ", "½", "”", "‘", "'s", "'", "’"]
PIECES = [" ", "  ", "\t", "\n", "\r\n", "the", "The", "student", "ab", "A1", "2", ",", ".", "-", "_", "[", "]", "[MASK]", "<mask>", "<s>", "[UNK]", *ODD]


def encode(encoder, texts: list[str], **options) -> list[list[int]]:
    "The ids of texts put together from their chunks; of the proof, only the first text is left."
    chunks = ChunkEncoder(encoder, sample=1, **options)
    ids, lengths = chunks.join(chunks.encode(chunks.cut(texts)))
    return [part.tolist() for part in np.split(ids, lengths.cumsum()[:-1])]


@cache
def local_encoder(name: str):
    "A batch encoder that works word by word."
    encoder = make_encoder(name)
    assert is_word_local(encoder)
    return encoder


def make_encoder(name: str):
    "MiniLM's batch encoder, or a tiny one with some parts replaced."
    if name.startswith("MiniLM"):
        encoder = backend(AutoTokenizer.from_pretrained(minilm_directory()))
        if name.endswith("single words"):
            encoder.add_tokens([AddedToken("thestudent", single_word=True), AddedToken("abA1", single_word=True, normalized=False)])
        encoder.encode_special_tokens = name.endswith("special tokens as text")
        return encoder
    encoder = backend(tiny_tokenizer("GPT2Tokenizer" if name == "runs of spaces" else name.partition(", ")[0]))
    if name.endswith("a space in front"):
        encoder.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    if name == "runs of spaces":
        encoder.normalizer = normalizers.NFC()
        encoder.add_tokens([AddedToken("   ", normalized=True), AddedToken("  ", normalized=True), AddedToken("[unused0]", normalized=True)])
    if name.endswith("e5's normalizer"):
        spaces = normalizers.Replace(Regex(r"[\s\u200b]+"), " ")
        encoder.normalizer, encoder.pre_tokenizer = normalizers.Sequence([normalizers.NFKC(), spaces]), pre_tokenizers.Metaspace()
    return encoder


@pytest.mark.parametrize("name", [
    *LOCAL, "MiniLM", "MiniLM, single words", "MiniLM, special tokens as text", "runs of spaces", "GPT2Tokenizer, a space in front",
    "XLMRobertaTokenizer, e5's normalizer"])
@settings(max_examples=25)
@given(parts=st.lists(st.lists(st.sampled_from(PIECES), max_size=9).map("".join), min_size=1, max_size=6))
@example(parts=["a\u200b b", "a \u200bb", "a\u00a0 \u00a0b", "a \u0301 b", " a", "a ", "a  ", "x=\u0338y", "don't 's 'tis", "[MASK] a", "a [MASK]b",
                "a_thestudent_b, a thestudent", "said,he(abA1)_abA1_ a-abA1"])
def test_chunks_give_the_ids_of_whole_texts(name, parts):
    encoder = local_encoder(name)
    whole = [encoding.ids for encoding in encoder.encode_batch(parts, add_special_tokens=False)]
    assert encode(encoder, parts) == whole
    assert encode(encoder, parts * 2, limit=2) == whole * 2


def altered(**parts):
    "BERT's tiny batch encoder with other parts."
    encoder = backend(tiny_tokenizer("BertTokenizer"))
    encoder.add_tokens(parts.pop("added", []))
    for name, part in parts.items():
        setattr(encoder, name, part)
    return encoder


ACROSS_WORDS = {
    "Gemma": dict(normalizer=normalizers.Replace(" ", "▁"), pre_tokenizer=pre_tokenizers.Split(" ", "merged_with_previous")),
    "Llama": dict(pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme="first", split=False)),
    "no pre-tokenizer": dict(pre_tokenizer=pre_tokenizers.Sequence([])),
    "token of two words": dict(added=["New York"]),
    "token that strips": dict(added=[AddedToken("<x>", rstrip=True)]),
    "dropout": dict(model=models.BPE({"a": 0}, [], dropout=0.1)),
    "spaces that count": dict(normalizer=normalizers.StripAccents(), pre_tokenizer=pre_tokenizers.Metaspace()),
    "letters made spaces": dict(normalizer=normalizers.Replace("e", " ")),
}


@pytest.mark.parametrize("why", ACROSS_WORDS)
def test_a_tokenizer_that_looks_across_words_encodes_whole_texts(why):
    encoder = altered(**ACROSS_WORDS[why])
    assert not is_word_local(encoder) and choose_encoder(encoder, ["the student"] * 20_000) is None


def test_without_pyarrow_whole_texts_are_encoded(monkeypatch):
    monkeypatch.setattr("vocab_pruning.data.chunks.find_spec", lambda name: None)
    assert choose_encoder(altered(), ["the student"] * 20_000) is None


# What the proof on a sample is for


@pytest.fixture
def wrong(monkeypatch):
    "A tokenizer that is taken for word-local and is not."
    monkeypatch.setattr("vocab_pruning.data.chunks.LARGE", 1)
    monkeypatch.setattr("vocab_pruning.data.chunks.is_word_local", lambda encoder: True)
    tokenizer = tiny_tokenizer("BertTokenizer")
    tokenizer.add_tokens(["the student"])
    return tokenizer


def test_a_failed_proof_counts_whole_texts(wrong):
    texts = ["the student was here"] * 9 + ["another"]
    counted = token_stats(texts, wrong, len(wrong))
    assert counted.counts[wrong.convert_tokens_to_ids("the student")] == 9
    assert same(counted, token_stats(texts, wrong, len(wrong), whole=True))
    assert (tfidf_scores(counted, texts=texts, tokenizer=wrong) > 0).sum() == counted.seen.sum()


def test_a_failed_proof_ends_a_pass_that_cannot_be_repeated(wrong):
    with pytest.raises(CrossesWords, match="'the student' is tokenized differently word by word.*; give the texts as a list"):
        token_stats(iter(["the student"]), wrong, len(wrong))


def test_a_text_with_the_separator_counts_whole_texts(monkeypatch):
    monkeypatch.setattr("vocab_pruning.data.chunks.LARGE", 1)
    tokenizer, texts = tiny_tokenizer("BertTokenizer"), ["the \ufdd0 student"]
    assert same(token_stats(texts, tokenizer, len(tokenizer)), token_stats(texts, tokenizer, len(tokenizer), whole=True))


@pytest.mark.parametrize("oov", ["unk", "resegment"])
def test_texts_that_are_counted_for_pruning_are_counted_for_coverage(monkeypatch, oov):
    monkeypatch.setattr("vocab_pruning.data.chunks.LARGE", 1)
    texts = ["the \ufdd0 student", "the student was here"]
    p = prune(*tiny_model("BERT"), texts, min_count=1, oov=oov)
    assert coverage_of(p, texts)["documents"] == 2


@pytest.mark.parametrize("n, share", [(1, 100), (4, 25), (5, 20), (6, 100 / 3), (10, 20)])
def test_the_top_fifth_is_a_fifth(n, share):
    "Of n tokens that occur once each: rounded up, so that it holds a token."
    stats = TokenStats.empty(20)
    stats.counts[:n], stats.n_tokens = 1, n
    assert coverage(stats)["top20_pct"] == pytest.approx(share)


# Order, batches and shards do not matter


def same(a: TokenStats, b: TokenStats) -> bool:
    "Whether two statistics are equal, bit for bit."
    return all(np.array_equal(a.numbers[name], b.numbers[name]) for name in a.numbers)


@given(values=st.lists(st.floats(0, 1), min_size=1, max_size=20), seed=st.integers(0, 9))
def test_sums_of_parts_do_not_depend_on_order(values, seed):
    shuffled = random.Random(seed).sample(values, len(values))
    sums = [from_parts(in_parts(np.array(order)).sum(axis=1, keepdims=True)) for order in (values, shuffled)]
    assert sums[0] == sums[1]
    np.testing.assert_allclose(sums[0], sum(values), rtol=1e-14, atol=len(values) * 2.0**-56)


def test_cells_are_counted_by_hand():
    row, document, count = cells(np.array([5, 2, 5, 2]), np.array([3, 0, 1]), 6)
    assert list(zip(row, document, count, strict=True)) == [(2, 0, 1), (2, 2, 1), (5, 0, 2)]
    assert sum_by_row(row, np.stack([count, -count]), 6).tolist() == [[0, 0, 2, 0, 0, 2], [0, 0, -2, 0, 0, -2]]


@pytest.mark.parametrize("batch_size", [None, 7])
def test_shuffled_texts_keep_the_same_rows(family, monkeypatch, batch_size):
    monkeypatch.setattr("vocab_pruning.data.chunks.LARGE", 1)
    tokenizer, V = FAMILIES[family].tokenizer, FAMILIES[family].config().vocab_size
    texts = [*TEXTS, "", *TEXTS[::2]]
    plain = token_stats(texts, tokenizer, V, whole=True)
    scores = tfidf_scores(plain, texts=texts, tokenizer=tokenizer)
    for seed in range(2):
        shuffled = random.Random(seed).sample(texts, len(texts))
        counted = token_stats(shuffled, tokenizer, V, batch_size)
        assert same(counted, plain)
        np.testing.assert_array_equal(tfidf_scores(counted, texts=shuffled, tokenizer=tokenizer), scores)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    "A directory of three files, and the texts in it."
    root = tmp_path_factory.mktemp("shards")
    for number in range(3):
        (root / f"{number}.txt").write_text("\n".join(TEXTS[number::3]))
    return root


def counted(shards, out=None, **options) -> TokenStats:
    "The statistics of the shards, for the WordPiece family."
    return count_corpora(find_sources(shards), FAMILIES["wordpiece"].tokenizer, FAMILIES["wordpiece"].config().vocab_size, out, **options)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the test forks")
def test_a_count_goes_on_after_a_kill(shards, tmp_path, monkeypatch):
    "SIGKILL, in the second file, after some of its texts were counted; the result is that of a count in one go."
    monkeypatch.setattr(counting, "SECONDS", 0)
    monkeypatch.setattr(stats_module, "MOST_DOCUMENTS", 1)
    read, texts_of = [], Source.__iter__

    def dies(source):
        for text in texts_of(source):
            read.append(text)
            if len(read) == 3 + len(TEXTS[0::3]) + 4:  # three are the first texts, which are read to check the sources
                os.kill(os.getpid(), signal.SIGKILL)
            yield text

    if not (child := os.fork()):
        try:
            Source.__iter__ = dies
            counted(shards, tmp_path / "stats.npz")
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    left = [file.name.partition(".")[2] for file in (tmp_path / ".stats.npz.parts").iterdir()]
    assert sorted(left) == ["begun.npz", "json", "npz"]
    tokenized, batches = [], counting.token_batches

    def noted(texts, *given, **named):
        return batches((tokenized.append(text) or text for text in texts), *given, **named)

    monkeypatch.setattr(counting, "token_batches", noted)
    again = counted(shards, tmp_path / "stats.npz")
    assert len(tokenized) < len(TEXTS[1::3]) + len(TEXTS[2::3])
    assert same(again, counted(shards)) and same(TokenStats.load(tmp_path / "stats.npz"), again)
    assert [file.name for file in tmp_path.iterdir()] == ["stats.npz"]


def test_another_tokenizer_starts_anew(shards, tmp_path):
    other = FAMILIES["unigram"]
    parts = counting._open_parts(tmp_path / "stats.npz", other.tokenizer, other.config().vocab_size)
    for source in find_sources(shards):
        TokenStats.empty(other.config().vocab_size).save(counting._part_of(source, parts))
    assert same(counted(shards, tmp_path / "stats.npz"), counted(shards))


def test_sources_that_were_counted_are_kept(shards, tmp_path, monkeypatch):
    "A file that cannot be read does not cost the others; neither does one that is added, or a new weight."
    shards = shutil.copytree(shards, tmp_path / "texts")
    bad = shards / "bad.txt.gz"
    bad.write_bytes(gzip.compress("\n".join(map(str, random.Random(0).sample(range(10**9), 20_000))).encode())[:-20])
    for _ in range(2):
        with pytest.raises(ValueError, match="bad.txt.gz"):
            counted(shards, tmp_path / "stats.npz")
    bad.write_bytes(gzip.compress(b"a\n"))
    tokenized, batches = [], counting.token_batches

    def noted(texts, *given, **named):
        return batches((tokenized.append(text) or text for text in texts), *given, **named)

    monkeypatch.setattr(counting, "token_batches", noted)
    found = counted(shards, tmp_path / "stats.npz")
    assert tokenized == ["a"] and same(found, counted(shards))
    assert sorted(file.name for file in tmp_path.iterdir() if file.name.startswith((".", "s"))) == ["stats.npz"]


def test_two_processes_do_not_count_into_one_file(shards, tmp_path):
    with counting._alone(tmp_path / "stats.npz"), pytest.raises(TimeoutError, match="another process is counting into .*stats.npz"):
        counted(shards, tmp_path / "stats.npz")
    counted(shards, tmp_path / "stats.npz")
    assert [file.name for file in tmp_path.iterdir()] == ["stats.npz"]


def test_ray_counts_what_one_process_counts(shards, tmp_path):
    if find_spec("ray") is None:
        pytest.skip("needs the extra `cluster` (Ray)")
    assert same(counted(shards, tmp_path / "stats.npz", engine="ray"), counted(shards))


def test_tasks_are_added_as_sources_are(shards, tmp_path, monkeypatch):
    "An engine that runs tasks in this process stands for Ray."
    from concurrent.futures import Future
    from contextlib import contextmanager

    @contextmanager
    def engine(workers, threads, work):
        def submit(*given):
            future = Future()
            future.set_result(work(*given))
            return future

        yield submit

    monkeypatch.setitem(counting.ENGINES, "ray", engine)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gone.txt").write_text("a word")
    gone = find_sources("gone.txt")
    assert Path(gone[0].anywhere().name).is_absolute()  # a task may have another working directory
    (tmp_path / "gone.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match="^gone.txt is not UTF-8"):
        count_corpora(gone, FAMILIES["wordpiece"].tokenizer, 304, tmp_path / "other.npz", engine="ray")
    assert same(counted(shards, tmp_path / "stats.npz", engine="ray"), counted(shards))


# Files of statistics


def test_a_file_of_statistics_holds_no_pickle(tmp_path):
    np.savez(tmp_path / "bad.npz", **{name: np.array([{}]) for name in vars(TokenStats.empty(2))})
    with pytest.raises(ValueError, match="does not hold a TokenStats .*allow_pickle=False"):
        TokenStats.load(tmp_path / "bad.npz")
    np.savez(tmp_path / "half.npz", **vars(TokenStats.empty(2)) | dict(counts=np.array([0.5, 1])))
    with pytest.raises(ValueError, match=r"half.npz does not hold a TokenStats \(counts is float64, not int64\)"):
        TokenStats.load(tmp_path / "half.npz")
    np.save(tmp_path / "one.npy", np.arange(3))
    with pytest.raises(ValueError, match="one.npy does not hold a TokenStats"):
        TokenStats.load(tmp_path / "one.npy")
    with pytest.raises(FileNotFoundError, match="gone.npz"):
        TokenStats.load(tmp_path / "gone.npz")


def test_statistics_know_their_tokenizer(shards, tmp_path):
    "Another one with as many rows is refused, in memory and from files, and not added; a class of transformers is the same."
    model, tokenizer = tiny_model("BERT", "AutoModel")
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    stats = count_corpora(find_sources(shards), tokenizer, len(tokenizer))
    assert stats.tokenizer == tokenizer_fingerprint(read_bare(tmp_path)) == (2 * stats + stats).tokenizer
    assert prune_checkpoint(tmp_path, None, None, 0.2, "vocab", stats=stats)["train"]["occurrences"] == stats.n_tokens
    tokenizer.backend_tokenizer.normalizer = None
    other = count_corpora(find_sources(shards), tokenizer, len(tokenizer))
    for run in (partial(prune, model, AutoTokenizer.from_pretrained(tmp_path)), partial(prune_checkpoint, tmp_path, out=None)):
        with pytest.raises(ValueError, match="^stats were counted with another tokenizer; count the corpus with this model's"):
            run(texts=None, base="vocab", stats=other)
    with pytest.raises(ValueError, match="statistics of two tokenizers do not add up"):
        stats + other


def test_special_tokens_that_are_text_are_counted_as_text(tmp_path):
    "As the tokenizer reads them, whether transformers loads it or its files are read; and as the plain tokenizer reads them then."
    AutoTokenizer.from_pretrained(minilm_directory(), split_special_tokens=True).save_pretrained(tmp_path)
    tokenizer, texts = AutoTokenizer.from_pretrained(tmp_path), ["the [MASK] sat [SEP]"] * 3
    expected = np.bincount(np.concatenate([tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]), minlength=len(tokenizer))
    assert expected[tokenizer.convert_tokens_to_ids(["[MASK]", "[", "mask"])].tolist() == [0, 6, 3]
    for one in (tokenizer, read_bare(tmp_path)):
        assert (token_stats(texts, one, len(tokenizer)).counts == expected).all()
        assert rewrite_tokenizer(one, range(len(tokenizer)))[0].backend_tokenizer.encode_special_tokens


@pytest.mark.parametrize("name", LOCAL)
def test_a_fingerprint_is_that_of_the_files(name, tmp_path):
    tokenizer = tiny_tokenizer(name)
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert len({tokenizer_fingerprint(one) for one in (tokenizer, again, read_bare(tmp_path))}) == 1


def test_added_tokens_make_another_tokenizer(tmp_path):
    "They are cut from the texts before all else, so counts without them are of other tokens; special ones cut nothing of a text."
    tokenizer = tiny_tokenizer("BertTokenizer")
    before = tokenizer_fingerprint(tokenizer)
    tokenizer.add_special_tokens(dict(additional_special_tokens=["[NEW]"]))
    assert tokenizer_fingerprint(tokenizer) == before
    tokenizer.add_tokens(["pond was"])
    tokenizer.save_pretrained(tmp_path)
    assert tokenizer_fingerprint(read_bare(tmp_path)) == tokenizer_fingerprint(tokenizer) != before
