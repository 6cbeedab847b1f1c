"""A rewritten tokenizer emits only kept tokens, reads every text as before where it says so, and lives like any other."""

import json
import os
import subprocess
import sys
from functools import cache

import numpy as np
import pytest
from conftest import FAMILIES, ODD_FAMILIES, TEXTS, WITHOUT_US, WORDS, make_texts, wordpiece
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import RobertaProcessing
from tokenizers.processors import Sequence as Processors
from transformers import (
    AlbertTokenizer,
    AutoTokenizer,
    BertTokenizer,
    DebertaV2Tokenizer,
    GPT2Tokenizer,
    MPNetTokenizer,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaTokenizer,
    T5Tokenizer,
    XLMRobertaTokenizer,
)

from vocab_pruning.core import CannotPrune, minilm_directory
from vocab_pruning.data.stats import TokenStats, backend, token_stats
from vocab_pruning.data.tasks import documents, load_task
from vocab_pruning.remaps import resegmenting as surgery
from vocab_pruning.remaps.resegmenting import alphabet, closure, derivation, parts_of_words, resegment, rewrite_tokenizer, rows_for_lossless, token_kind

NEW = {**FAMILIES, **ODD_FAMILIES}
LETTERS = "abcdefghijklmnopqrstuvwxyz"
UNICODE = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=30)
WORDY = st.lists(st.one_of(st.sampled_from(WORDS), st.text("abeino '", max_size=9), UNICODE), max_size=8).map(" ".join)
CORPUS = st.lists(WORDY, min_size=1, max_size=12).filter(lambda texts: any(text.strip() for text in texts))
FRESH_PROCESS = WITHOUT_US + """
import json, sys
from transformers import AutoTokenizer
texts = json.load(sys.stdin)
found = {}
for directory in sys.argv[1:]:
    t = AutoTokenizer.from_pretrained(directory)
    roles = {role: [getattr(t, role), getattr(t, role + "_id")] for role in ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token", "bos_token")}
    found[directory] = {"ids": [t(text).input_ids for text in texts], "pairs": dict(t(texts, texts[::-1], truncation=True, max_length=12, padding=True)),
                        "roles": roles, "side": t.padding_side, "length": t.model_max_length, "class": type(t).__name__}
print(json.dumps(found))
"""


def facts(t, texts) -> dict:
    "What a fresh process reports of a tokenizer, reported here."
    roles = {role: [getattr(t, role), getattr(t, role + "_id")] for role in ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token", "bos_token")}
    return {"ids": [t(text).input_ids for text in texts], "pairs": dict(t(texts, texts[::-1], truncation=True, max_length=12, padding=True)),
            "roles": roles, "side": t.padding_side, "length": t.model_max_length, "class": type(t).__name__}


def fresh(directories, texts) -> dict:
    "`facts` of saved tokenizers, as a process finds them that can import neither this library nor skeletoken."
    run = subprocess.run([sys.executable, "-c", FRESH_PROCESS, *map(str, directories)], input=json.dumps(texts), capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    return json.loads(run.stdout.splitlines()[-1])


def tokens(tokenizer, texts) -> list[list[tuple]]:
    "Tokens of `texts` and where each stands, without special tokens and truncation."
    names = tokenizer.convert_ids_to_tokens
    return [list(zip(names(e.ids), e.offsets, strict=True)) for e in backend(tokenizer).encode_batch(list(texts), add_special_tokens=False)]


def sound(merges) -> list[tuple[str, str]]:
    "Those of `merges` whose halves are letters or made before."
    made, kept = set("abc"), []
    for a, b in merges:
        if {a, b} <= made:
            kept, made = [*kept, (a, b)], made | {a + b}
    return kept


def special_of(tokenizer, n_rows: int | None = None) -> np.ndarray:
    "Mask of the named special tokens."
    return np.isin(np.arange(n_rows or len(tokenizer)), tokenizer.all_special_ids)


def ranked(stats, special, seed: int | None = None) -> np.ndarray:
    "Ids by count, or in random order; specials first."
    score = stats.counts if seed is None else np.random.default_rng(seed).permutation(stats.n_rows)
    return np.lexsort((np.arange(stats.n_rows), -score, ~special))


def run(tokenizer, texts, n_keep: int | None = None, seed=None, n_rows: int | None = None, lossless: bool = True):
    "`resegment` by count or at random; `n_keep` None: what losslessness takes."
    stats = token_stats(texts, tokenizer, n_rows or len(tokenizer))
    special = special_of(tokenizer, n_rows)
    n_keep = n_keep or rows_for_lossless(tokenizer, stats, special=special, texts=texts, lossless=lossless)
    return resegment(tokenizer, ranked(stats, special, seed), n_keep, stats, special=special, texts=texts, lossless=lossless)


def check(old, r, texts, other=()):
    """Ids are 0 .. K - 1, each is the token that `rows` says, nothing else is emitted, and a lossless result reads `texts` as before.

    `other`: texts that the statistics have not seen."""
    assert sorted(r.tokenizer.get_vocab().values()) == list(range(len(r.rows))) == list(range(len(r.tokenizer)))
    assert r.tokenizer.convert_ids_to_tokens(range(len(r.rows))) == old.convert_ids_to_tokens(r.rows.tolist())
    assert len(set(r.rows.tolist())) == len(r.rows)
    before, after = tokens(old, texts), tokens(r.tokenizer, [*texts, *other])
    assert {token for text in after for token, _ in text} <= set(old.convert_ids_to_tokens(r.rows.tolist()))
    if r.lossless:
        assert before == after[: len(before)]
    return before == after[: len(before)]


def tiny_bpe(merges, extra=(), **options) -> PreTrainedTokenizerFast:
    "Byte-level BPE with the given merges, and before all others tokens `extra` that no merge makes."
    names = dict.fromkeys([*extra, *sorted(pre_tokenizers.ByteLevel.alphabet()), *(a + b for a, b in merges)])
    bpe = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, list(merges), **options))
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="[PAD]", unk_token="[UNK]")


@cache
def minilm():
    return AutoTokenizer.from_pretrained(minilm_directory())


@cache
def modernbert():
    if not (directory := os.environ.get("MODERNBERT_TOKENIZER")):
        pytest.skip("MODERNBERT_TOKENIZER does not name a directory with ModernBERT's tokenizer")
    return AutoTokenizer.from_pretrained(directory)


# Every family


@pytest.mark.parametrize("name", NEW)
@pytest.mark.parametrize("lossless", [True, False])
def test_a_budget_is_met_and_only_kept_tokens_are_emitted(name, lossless):
    old, others = NEW[name].tokenizer, make_texts(40, seed=9)
    needed = len(run(old, TEXTS, lossless=lossless).rows)
    for n_keep in {needed, needed - 1, needed - 20, len(old) - 1, len(old)}:
        for seed in (None, 1):
            r = run(old, TEXTS, n_keep, seed, lossless=lossless)
            assert len(r.rows) <= n_keep and (name == "bpe" or len(r.rows) == n_keep)
            check(old, r, TEXTS, others)
            if seed is None:
                assert r.lossless == (n_keep >= needed) == (tokens(old, TEXTS) == tokens(r.tokenizer, TEXTS))


@settings(max_examples=12)
@given(texts=CORPUS, more=CORPUS, seed=st.integers(0, 99), share=st.floats(0, 1), lossless=st.booleans())
@pytest.mark.parametrize("name", NEW)
def test_any_texts_ranking_and_budget(name, texts, more, seed, share, lossless):
    old = NEW[name].tokenizer
    try:
        stats = token_stats(texts, old, len(old))
    except ValueError:  # no token at all
        return
    special = special_of(old)
    least = len(surgery.find_needs(old, stats, special, texts, lossless).always)
    n_keep = least + round(share * (len(old) - least))
    r = resegment(old, ranked(stats, special, seed), n_keep, stats, special=special, texts=texts, lossless=lossless)
    check(old, r, texts, more)
    full = run(old, texts, lossless=lossless)
    assert full.lossless or name == "wordpiece"
    check(old, full, texts)


@pytest.mark.parametrize("name", NEW)
def test_the_same_twice(name):
    a, b = (run(NEW[name].tokenizer, TEXTS) for _ in range(2))
    assert a.tokenizer.backend_tokenizer.to_str() == b.tokenizer.backend_tokenizer.to_str() and (a.rows == b.rows).all() and a.n_closure == b.n_closure


@pytest.mark.parametrize("name", NEW)
def test_the_old_tokenizer_is_not_changed(name):
    old = NEW[name].tokenizer
    before = old.backend_tokenizer.to_str(), dict(old.init_kwargs)
    run(old, TEXTS)
    assert (old.backend_tokenizer.to_str(), old.init_kwargs) == before


@pytest.mark.parametrize("name", NEW)
def test_what_has_no_ids_is_carried_over(name):
    old = NEW[name].tokenizer
    new = run(old, TEXTS).tokenizer
    before, after = (json.loads(t.backend_tokenizer.to_str()) for t in (old, new))
    for part in ("normalizer", "pre_tokenizer", "decoder", "truncation"):
        assert before[part] == after[part]
    flags = [[{**token, "id": None} for token in part["added_tokens"]] for part in (before, after)]
    assert any(token["special"] for token in flags[1]) and all(token in flags[0] for token in flags[1])


@pytest.mark.parametrize("name", NEW)
def test_pruned_tokens_and_their_merges_are_removed_as_skeletoken_removes_them(name):
    "The typed removal of every token at once, which takes minutes of a large vocabulary, is the reference."
    from skeletoken import TokenizerModel

    old = NEW[name].tokenizer
    r = run(old, TEXTS, lossless=False)
    kept = set(r.tokenizer.get_vocab())
    typed = TokenizerModel.from_tokenizer(old.backend_tokenizer)
    theirs = typed.remove_tokens_from_vocabulary([token for token in typed.vocabulary if token not in kept]).model
    ours = json.loads(r.tokenizer.backend_tokenizer.to_str())["model"]
    if name in ("unigram", "bytes"):
        assert (ours["vocab"], ours["unk_id"]) == ([list(piece) for piece in theirs.vocab.root], theirs.unk_id)
    else:
        outside = r.tokenizer.get_added_vocab().keys() - ours["vocab"].keys()
        assert ours["vocab"] == {token: i for token, i in theirs.vocab.root.items() if token not in outside}
    if "merges" in ours:
        assert ours["merges"] == [list(pair) for pair in theirs.merges.root]


# Byte-level BPE


def test_closure_is_what_the_merges_make():
    old = FAMILIES["bpe"].tokenizer
    ranks = surgery._merge_ranks(surgery.read_tokenizer(old))
    for token, i in old.get_vocab().items():
        if i not in old.added_tokens_decoder and i % 3 == 0:
            made = derivation(token, ranks)
            assert set(old.convert_ids_to_tokens(closure(old, [i]))) == set(made) and made[-1] == token
    with pytest.raises(ValueError, match="the merges never make the token 'xyz'"):
        odd = tiny_bpe([("x", "y")], ["xyz"])
        closure(odd, odd.convert_tokens_to_ids(["xyz"]))


@settings(max_examples=60)
@given(st.text("abc", min_size=1, max_size=9), st.permutations([("a", "b"), ("b", "c"), ("ab", "c"), ("a", "bc"), ("a", "a"), ("aa", "a"), ("abc", "a")]))
def test_derivation_is_what_the_tokenizer_does(word, merges):
    merges = sound(merges)
    old = tiny_bpe(merges, [word])
    made = derivation(word, {pair: rank for rank, pair in enumerate(merges)})
    whole = [part.value for part in old.backend_tokenizer.model.tokenize(word)] == [word]
    assert whole == (made is not None)


@settings(max_examples=40)
@given(st.lists(st.text("abc", min_size=1, max_size=7), min_size=1, max_size=8),
       st.permutations([("a", "b"), ("b", "c"), ("ab", "c"), ("a", "a"), ("c", "ab"), ("ab", "ab")]),
       st.lists(st.text("abc", min_size=3, max_size=5), max_size=4), st.integers(0, 12), st.booleans(), st.booleans())
def test_words_that_no_merge_makes(words, merges, extra, spare, ignore, lossless):
    "A token that merges never make may not appear from nowhere; where the old tokenizer found it as a whole word already, it stays."
    merges = sound(merges)
    old = tiny_bpe(merges, [e for e in extra if e not in {a + b for a, b in merges}], ignore_merges=ignore)
    texts = [" ".join(words), *words]
    r = run(old, texts, lossless=lossless)
    assert r.lossless and check(old, r, texts)
    stats, special = token_stats(texts, old, len(old)), special_of(old)
    more = resegment(old, ranked(stats, special), len(r.rows) + spare, stats, special=special, texts=texts, lossless=lossless)
    assert more.lossless and check(old, more, texts)


@settings(max_examples=60)
@given(UNICODE)
def test_any_text_survives_the_round_trip(text):
    for r in _small_bpes():
        assert r.tokenizer.decode(r.tokenizer(text, add_special_tokens=False).input_ids) == text


@cache
def _small_bpes():
    old = FAMILIES["bpe"].tokenizer
    return [run(old, TEXTS, n_keep) for n_keep in (262, 270, None)]


def test_parts_of_words():
    old = FAMILIES["bpe"].make_tokenizer()
    texts = make_texts(30, seed=4)
    parts = np.zeros(len(old), bool)
    for text in texts:
        e = old.backend_tokenizer.encode(text, add_special_tokens=False)
        for i, word in zip(e.ids, e.word_ids, strict=True):
            parts[i] |= e.word_ids.count(word) > 1
    assert (parts_of_words(iter(texts), old) == parts).all() and 0 < parts.sum() < len(parts)
    assert parts_of_words([], old, n_rows=500).shape == (500,)
    with pytest.raises(TypeError, match="single string"):
        parts_of_words("a text", old)


def test_unreachable_tokens_are_refused_by_name():
    old = tiny_bpe([("a", "b"), ("ab", "c")], ["xyz"])
    base = set(alphabet(old, np.zeros(len(old), bool)).tolist()) | set(old.all_special_ids)
    abc, xyz = old.convert_tokens_to_ids(["abc", "xyz"])
    with pytest.raises(ValueError, match="'abc'"):
        rewrite_tokenizer(old, base | {abc})
    for ignore in (False, True):
        with pytest.raises(ValueError, match="'xyz'"):
            rewrite_tokenizer(old, base | {xyz}, ignore_merges=ignore)
    new, _ = rewrite_tokenizer(old, base | {abc}, ignore_merges=True)
    assert new.tokenize("abc abcab") == ["abc", "Ġ", "a", "b", "c", "a", "b"]
    assert tokens(rewrite_tokenizer(old, base | set(closure(old, [abc]).tolist()))[0], ["abcab"]) == tokens(old, ["abcab"])


def test_added_tokens_may_go_or_stay():
    "Non-special added tokens, in the vocabulary and outside it; one that is a word of its own only with `single_word`."
    from tokenizers import AddedToken
    old = tiny_bpe([("a", "b"), ("ab", "c")], ["zzz"])
    old.add_tokens([AddedToken("zzz", single_word=True), AddedToken("   "), AddedToken("qqq"), AddedToken("ab")])
    texts = ["abc   zzz abzzz", "qqq1 zzz1 ab"]
    r = run(old, texts)
    assert r.lossless and check(old, r, texts, ["zzz_a (zzz) zzz1"])
    few = run(old, ["abc"])
    assert "   " not in few.tokenizer.get_vocab() and len(few.tokenizer.added_tokens_decoder) < len(old.added_tokens_decoder)
    assert few.lossless and check(old, few, ["abc"], texts)


def vocabulary_of(family: str) -> list | tuple[list, list]:
    "The model of a family's tokenizer, as classes take it: its vocabulary without special tokens, and merges but for Unigram."
    model = json.loads(FAMILIES[family].tokenizer.backend_tokenizer.to_str())["model"]
    if family == "unigram":
        return [tuple(piece) for piece in model["vocab"][5:]]
    return [token for token in model["vocab"] if not token.startswith("[")], [tuple(pair) for pair in model.get("merges", [])]


def numbered(*tokens) -> dict[str, int]:
    return {token: i for i, token in enumerate(tokens)}


def zero(*tokens) -> list[tuple[str, float]]:
    return [(token, 0.0) for token in tokens]


CLASSES = {
    BertTokenizer: lambda: dict(vocab=numbered("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *vocabulary_of("wordpiece")[0])),
    MPNetTokenizer: lambda: dict(vocab=numbered("<s>", "<pad>", "</s>", "<unk>", "<mask>", "[UNK]", *vocabulary_of("wordpiece")[0])),
    XLMRobertaTokenizer: lambda: dict(vocab=zero("<s>", "<pad>", "</s>", "<unk>") + vocabulary_of("unigram")),
    AlbertTokenizer: lambda: dict(vocab=zero("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]") + vocabulary_of("unigram")),
    DebertaV2Tokenizer: lambda: dict(vocab=zero("[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]") + vocabulary_of("unigram")),
    T5Tokenizer: lambda: dict(vocab=zero("<pad>", "</s>", "<unk>") + vocabulary_of("unigram")),
    RobertaTokenizer: lambda: dict(vocab=numbered("<s>", "<pad>", "</s>", "<unk>", *vocabulary_of("bpe")[0], "<mask>"), merges=vocabulary_of("bpe")[1]),
    GPT2Tokenizer: lambda: dict(vocab=numbered(*vocabulary_of("bpe")[0], "<|endoftext|>"), merges=vocabulary_of("bpe")[1]),
}


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("lossless", [True, False])
def test_classes_that_build_their_own_backend(kind, lossless, tmp_path):
    """Loaded, they are what was saved, beside a model's configuration too.

    RobertaTokenizer and GPT2Tokenizer forget `ignore_merges`; with it, the rewritten tokenizer is of the general class."""
    old, texts = kind(**CLASSES[kind]()), [*TEXTS, "Ünïcode, 東京  q"]
    r = run(old, texts, lossless=lossless)
    assert r.lossless and check(old, r, texts)
    general = lossless and kind in (RobertaTokenizer, GPT2Tokenizer)
    r.tokenizer.save_pretrained(tmp_path)
    RobertaConfig().save_pretrained(tmp_path)
    for new in (r.tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        assert type(new) is (PreTrainedTokenizerFast if general else kind)
        assert (new.special_tokens_map, new.model_input_names) == (old.special_tokens_map, old.model_input_names)
        for text in texts:
            before, after = old(text, texts[3]), new(text, texts[3])
            assert [r.rows[i] for i in after.input_ids] == before.input_ids
            assert {**after, "input_ids": 0} == {**before, "input_ids": 0}


# WordPiece and Unigram


def test_words_that_wordpiece_does_not_know():
    "With its longest piece gone, a word may be split that was unknown before. That is said, where the texts are there to see it."
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "##b", "ab", "##bc", "d"]
    old = BertTokenizer(vocab={piece: i for i, piece in enumerate(pieces)})
    texts = ["abc a b d", "a d"]
    assert old.tokenize("abc") == ["[UNK]"]
    stats, special = token_stats([*texts, "b"], old, len(old)), special_of(old)
    order = np.array([0, 1, 2, 3, 4, 9, 5, 6, 7, 10, 8])
    given, without = (resegment(old, order, 10, stats, special=special, texts=t) for t in (texts, None))
    assert given.tokenizer.tokenize("abc") == ["a", "##bc"] and not given.lossless and not without.lossless
    assert resegment(old, np.arange(11), 11, stats, special=special, texts=texts).lossless
    assert resegment(old, order, 10, token_stats(["a d"], old, 11), special=special).lossless


def test_the_cost_of_an_unknown_letter_stays():
    "Unigram derives it from the lowest score: if that piece went, the best path through `abc` would change."
    scored = [("<unk>", 0.0), ("▁", -1.0), ("ab", -1.0), ("a", -15.0), ("bc", -15.0), ("rare", -60.0)]
    unigram = Tokenizer(models.Unigram(scored, unk_id=0))
    unigram.pre_tokenizer, unigram.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    old = PreTrainedTokenizerFast(tokenizer_object=unigram, unk_token="<unk>", pad_token="<pad>")
    r = run(old, ["abc a"])
    assert r.lossless and check(old, r, ["abc a"]) and old.tokenize("abc") == ["▁", "a", "bc"]
    assert "rare" in r.tokenizer.get_vocab()


def test_an_unknown_piece_that_is_not_first():
    scored = [("x", -1.0), ("y", -2.0), ("▁", -1.0), ("<unk>", 0.0), ("z", -1.5)]
    unigram = Tokenizer(models.Unigram(scored, unk_id=3))
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    old = PreTrainedTokenizerFast(tokenizer_object=unigram, unk_token="<unk>", pad_token="<pad>")
    r = run(old, ["z z?"])
    assert r.lossless and check(old, r, ["z z?"]) and r.tokenizer.tokenize("x z")[-2:] == ["▁", "z"]
    assert r.tokenizer.convert_tokens_to_ids("<unk>") == r.tokenizer("?", add_special_tokens=False).input_ids[-1]


# Everything around the backend


def test_padding_truncation_sides_and_templates_carry_over(tmp_path):
    old = AutoTokenizer.from_pretrained(minilm_directory(), padding_side="left", truncation_side="left", chat_template="{{ messages }}")
    old.backend_tokenizer.enable_padding(length=9, pad_id=0, pad_token="[PAD]", direction="left")
    old.backend_tokenizer.enable_truncation(7)
    new = run(old, TEXTS).tokenizer
    new.save_pretrained(tmp_path)
    for t in (new, AutoTokenizer.from_pretrained(tmp_path)):
        assert t.backend_tokenizer.padding == {**old.backend_tokenizer.padding, "pad_id": t.pad_token_id}
        assert t.backend_tokenizer.truncation == old.backend_tokenizer.truncation
        assert (t.padding_side, t.truncation_side, t.chat_template, t.model_max_length) == ("left", "left", "{{ messages }}", old.model_max_length)


def test_what_was_set_later_is_saved_too(tmp_path):
    old = wordpiece()
    old.padding_side, old.model_max_length = "left", 17
    new = run(old, TEXTS).tokenizer
    new.save_pretrained(tmp_path)
    for t in (new, AutoTokenizer.from_pretrained(tmp_path)):
        assert (t.padding_side, t.model_max_length) == ("left", 17)


def test_padding_with_a_token_that_moves():
    "The padding token stands among the words, though no merge makes it; where one before it goes, it moves, and its id with it."
    old = tiny_bpe([("a", "b"), ("b", "c")], ["zz", "[PAD]"])
    old.backend_tokenizer.enable_padding(length=5, pad_id=old.pad_token_id, pad_token="[PAD]")
    r = run(old, ["abc bc"])
    assert old.pad_token_id == 1 and r.tokenizer.pad_token_id == r.tokenizer.backend_tokenizer.padding["pad_id"] == 0
    assert r.tokenizer.backend_tokenizer.encode("b").ids[1:] == [r.tokenizer.pad_token_id] * 4


@pytest.mark.parametrize("normalizer", [None, normalizers.NFKC()])
def test_special_tokens_stay_in_place(normalizer):
    "RoBERTa counts positions from the padding's id. Only a normalizer can make a special token of other letters: then it goes behind the words."
    old = tiny_bpe([("a", "b"), ("b", "c")], ["zz", "[PAD]"])
    old.backend_tokenizer.normalizer = normalizer
    old.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    texts = ["abc bc", "［PAD］", "a[PAD]b"]
    r = run(old, texts)
    assert r.lossless and check(old, r, texts) and (r.tokenizer.pad_token_id == 0) == (normalizer is None)


def test_a_sequence_of_post_processors():
    old = tiny_bpe([("a", "b")])
    old.add_special_tokens({"cls_token": "<s>", "sep_token": "</s>"})
    frame = RobertaProcessing(("</s>", old.sep_token_id), ("<s>", old.cls_token_id), add_prefix_space=False)
    old.backend_tokenizer.post_processor = Processors([frame])
    r = run(old, ["ab a", "b"])
    assert [r.rows[i] for i in r.tokenizer("ab", "b").input_ids] == old("ab", "b").input_ids


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    "Every family's rewritten tokenizer and the real ones that are there, saved; and what a fresh process finds."
    root, made = tmp_path_factory.mktemp("saved"), {}
    olds = {**{name: family.tokenizer for name, family in NEW.items()}, "minilm": minilm()}
    if os.environ.get("MODERNBERT_TOKENIZER"):
        olds["modernbert"] = modernbert()
    for name, old in olds.items():
        made[name] = (old, run(old, TEXTS))
        made[name][1].tokenizer.save_pretrained(root / name)
    return root, made, fresh([root / name for name in made], TEXTS[:20])


@pytest.mark.parametrize("name", [*NEW, "minilm", "modernbert"])
def test_saved_and_loaded_in_a_fresh_process(name, saved, tmp_path):
    root, made, found = saved
    if name not in made:
        pytest.skip("MODERNBERT_TOKENIZER does not name a directory with ModernBERT's tokenizer")
    old, r = made[name]
    there = found[str(root / name)]
    here = json.loads(json.dumps(facts(r.tokenizer, TEXTS[:20])))
    assert there == here
    before = json.loads(json.dumps(facts(old, TEXTS[:20])))
    rows = r.rows.tolist()
    assert [[rows[i] for i in ids] for ids in there["ids"]] == before["ids"]
    assert there["pairs"] == before["pairs"] | {"input_ids": there["pairs"]["input_ids"]}
    assert [[rows[i] for i in ids] for ids in there["pairs"]["input_ids"]] == before["pairs"]["input_ids"]
    assert {role: token for role, (token, _) in there["roles"].items()} == {role: token for role, (token, _) in before["roles"].items()}
    assert all(i is None or rows[i] == before["roles"][role][1] for role, (_, i) in there["roles"].items())
    assert [there[k] for k in ("side", "length", "class")] == [before[k] for k in ("side", "length", "class")]
    AutoTokenizer.from_pretrained(root / name).save_pretrained(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {p.name for p in (root / name).iterdir()}
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (root / name / path.name).read_bytes(), path.name


def test_entries_of_the_tokenizer_config(tmp_path):
    minilm().save_pretrained(tmp_path / "old")
    run(minilm(), TEXTS).tokenizer.save_pretrained(tmp_path / "new")
    old, new = (json.loads((tmp_path / which / "tokenizer_config.json").read_text()) for which in ("old", "new"))
    assert old == new


# Real tokenizers


def test_minilm_on_unseen_texts():
    texts = list(documents(load_task("sst2", "sample")["train"]))
    r, tight = run(minilm(), texts), run(minilm(), texts, 200)
    assert r.lossless and check(minilm(), r, texts, ["Symphonies, naïveté & 東京 🎬"])
    assert not tight.lossless and len(tight.rows) == 200
    check(minilm(), tight, texts)
    assert "[UNK]" not in tight.tokenizer.tokenize("some film text")


def test_modernbert_on_texts_of_its_own():
    old = modernbert()
    texts = [*TEXTS, "def f(x):\n        return x  # 東京 🎬 naïve", "a     b\t\tc"]
    r, fresh_texts = run(old, texts, n_rows=len(old) + 16), ["any\n\n   text 東京", "[unused3] <|endoftext|> |||EMAIL_ADDRESS|||"]
    assert r.lossless and check(old, r, texts, fresh_texts)
    assert [r.tokenizer.decode(r.tokenizer(t, add_special_tokens=False).input_ids, clean_up_tokenization_spaces=False) for t in fresh_texts] == fresh_texts


@pytest.mark.skipif(not os.environ.get("GLUE_DIR"), reason="GLUE_DIR does not name a directory with GLUE's data")
def test_rows_that_cola_takes():
    "All 8,551 texts are read as before with 6,895 rows; closing every token takes 8,765; not closing any re-reads nine of ten texts."
    old, texts = modernbert(), list(documents(load_task("cola", "auto")["train"]))
    stats, special = token_stats(texts, old, len(old)), special_of(old)
    assert (len(texts), stats.seen.sum(), parts_of_words(texts, old).sum()) == (8551, 6364, 2048)
    assert rows_for_lossless(old, stats, special=special, lossless=False) == 8765
    r, short = (resegment(old, ranked(stats, special), n, stats, special=special, texts=texts) for n in (6895, 6894))
    assert len(r.rows) == 6895 and r.lossless and check(old, r, texts) and not short.lossless


# Bad input


def test_tokenizers_that_cannot_be_resegmented():
    def fast(model, **steps):
        tokenizer = Tokenizer(model)
        for name, step in steps.items():
            setattr(tokenizer, name, step)
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer)

    level = pre_tokenizers.ByteLevel()
    for model, steps, why in [
        (models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"), {}, "a WordLevel tokenizer .* no parts .* oov='sparse'"),
        (models.BPE({"a": 0}, []), {"pre_tokenizer": pre_tokenizers.Whitespace()}, "does not work on bytes"),
        (models.BPE({"a": 0}, [], dropout=0.1), {"pre_tokenizer": level}, "dropout"),
        (models.BPE({"a": 0}, [], end_of_word_suffix="</w>"), {"pre_tokenizer": level}, "end_of_word_suffix"),
    ]:
        with pytest.raises(ValueError, match=why):
            token_kind(fast(model, **steps))
    assert token_kind(fast(models.BPE({"a": 0}, []), normalizer=normalizers.ByteLevel())) == "BPE"
    assert token_kind(fast(models.BPE({"a": 0}, []), pre_tokenizer=pre_tokenizers.Sequence([pre_tokenizers.Digits(), level]))) == "BPE"
    with pytest.raises(TypeError, match="slow tokenizer"):
        token_kind(object())
    assert [token_kind(f.tokenizer) for f in NEW.values()] == ["WordPiece", "BPE", "Unigram", "Unigram", "BPE"]


def test_bad_arguments():
    old = FAMILIES["bpe"].tokenizer
    V = len(old)
    stats, special = token_stats(TEXTS, old, V), special_of(old)
    order = ranked(stats, special)
    call = lambda order=order, n_keep=V, stats=stats, special=special, texts=TEXTS: resegment(old, order, n_keep, stats, special=special, texts=texts)  # noqa: E731
    for bad, why in [
        (dict(n_keep=261 - 1), "take 261 rows, more than the 260 to keep"),
        (dict(order=order[1:]), "not a ranking"),
        (dict(order=np.zeros(V, np.int64)), "not a ranking"),
        (dict(special=special[1:]), "do not belong together"),
        (dict(stats=TokenStats.empty(V - 1), special=special[1:]), "do not belong together"),
        (dict(texts=None), "give texts=..., or lossless=False"),
        (dict(texts=[*TEXTS, "東京"]), "has?v?e? not seen"),
    ]:
        with pytest.raises(ValueError, match=why):
            call(**bad)
    with pytest.raises(TypeError, match="single string"):
        call(texts="a text")
    everything = range(V)
    without = lambda i: set(everything) - {i}  # noqa: E731
    for keep, why in [([*everything, V], f"no token has the id {V}"), (without(old.cls_token_id), r"'\[CLS\]'"), (without(7), "of the alphabet")]:
        with pytest.raises(ValueError, match=why):
            rewrite_tokenizer(old, keep)


def test_nothing_is_said_on_the_way(capfd, caplog):
    run(FAMILIES["bpe"].tokenizer, TEXTS)
    assert "missing added token" not in capfd.readouterr().err and not caplog.records


def test_only_the_texts_are_left_to_read_once():
    old = FAMILIES["bpe"].tokenizer
    stats, special = token_stats(TEXTS, old, len(old)), special_of(old)
    r = resegment(old, ranked(stats, special), len(old), stats, special=special, texts=(text for text in TEXTS))
    assert r.lossless

# BPE on letters, as Gemma has it

TRICKY = ["日本語 と 12345", "runs   of    spaces", "naïve café 🙂👩‍💻", "<0x41> is no byte", "▁ \n\n tab\t"]
ANY = st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="▁"), max_size=30)


@cache
def gemma(fallback: bool = True) -> PreTrainedTokenizerFast:
    "A tiny tokenizer of the structure of Gemma's tokenizer.json."
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    units = [f"<0x{byte:02X}>" for byte in range(256)] if fallback else []
    bpe = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=fallback))
    bpe.normalizer = normalizers.Replace(" ", "▁")
    bpe.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    to_bytes = [decoders.ByteFallback()] if fallback else []
    bpe.decoder = decoders.Sequence([decoders.Replace("▁", " "), *to_bytes, decoders.Fuse()])
    bpe.train_from_iterator([*TEXTS, *TRICKY], trainers.BpeTrainer(vocab_size=700, special_tokens=special + units, show_progress=False))
    parts = json.loads(bpe.to_str())
    parts["pre_tokenizer"] = json.loads(pre_tokenizers.Split(" ", "merged_with_previous").__getstate__())
    parts["added_tokens"] = [token for token in parts["added_tokens"] if token["content"] in special]
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(parts)), pad_token="<pad>", eos_token="<eos>",
                                   bos_token="<bos>", unk_token="<unk>", mask_token="<mask>")


@pytest.mark.parametrize("fallback", [True, False])
@settings(max_examples=3, deadline=None)
@given(texts=st.lists(st.one_of(ANY, st.sampled_from([*TEXTS[:20], *TRICKY])), min_size=1, max_size=6), fresh=ANY,
       spare=st.integers(0, 60), seed=st.integers(0, 9))
def test_a_letter_bpe_reads_train_texts_as_before_and_others_as_themselves(fallback, texts, fresh, spare, seed):
    old, texts = gemma(fallback), [*texts, "a"]
    stats, special = token_stats(texts, old, len(old)), special_of(old)
    n_keep = min(rows_for_lossless(old, stats, special=special) + spare, len(old))
    full = run(old, texts, n_keep)
    assert full.lossless and check(old, full, texts, [fresh])
    least = len(surgery.find_needs(old, stats, special, None, True).always)
    few = resegment(old, ranked(stats, special, seed), min(least + spare, len(old)), stats, special=special)
    check(old, few, texts, [fresh])
    for r in (full, few):
        for text in [*texts, fresh]:
            ids = r.tokenizer(text, add_special_tokens=False).input_ids
            if r.tokenizer.unk_token_id not in ids and "▁" not in text:
                assert r.tokenizer.decode(ids) == text
            assert not fallback or r.tokenizer.unk_token_id not in ids
        assert bool(r.unknown) <= (not fallback) and not set(r.unknown) & set(r.tokenizer.get_vocab())


def test_letters_that_become_unknown_are_named():
    r = run(gemma(False), ["abc"])
    assert "語" in r.facts["unknown_letters"] and r.facts["n_unknown_letters"] == len(r.unknown)
    assert r.tokenizer.unk_token_id in r.tokenizer("語").input_ids
    assert "unknown_letters" not in run(gemma(), ["abc"]).facts


# Tokenizers that few people have, and that read texts otherwise than one would think


def byte_bpe(*special: str, model: models.BPE | None = None) -> Tokenizer:
    "A byte-level BPE of the sample's words, with the `special` tokens."
    encoder = Tokenizer(model or models.BPE())
    encoder.pre_tokenizer, encoder.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=["<pad>", *special], show_progress=False,
                                  initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    encoder.train_from_iterator(TEXTS, trainer)
    return encoder


def split_anew(tokenizer, texts: list[str]):
    "The tokenizer rewritten for the tokens that `texts` use, which must read them as before if it says so."
    n_rows = max(tokenizer.get_vocab().values()) + 1
    stats = token_stats(texts, tokenizer, n_rows)
    special = np.isin(np.arange(n_rows), tokenizer.all_special_ids)
    order = np.argsort(-stats.counts, kind="stable")
    new = resegment(tokenizer, order, int(stats.seen.sum()), stats, special=special, texts=texts, on_top=True)
    assert new.lossless
    for text in texts:
        ids = new.tokenizer(text, add_special_tokens=False)["input_ids"]
        assert new.rows[ids].tolist() == tokenizer(text, add_special_tokens=False)["input_ids"]
    return new


def test_an_added_token_that_hides_another_stays():
    "\"new york\" is found in \"new yorker\" first, is no single word there, and hides \"new\"; pruned, it would not."
    tokenizer = AutoTokenizer.from_pretrained(minilm_directory())
    tokenizer.add_tokens([AddedToken("zor quex", single_word=True), AddedToken("zor")])
    assert "zor quex" in split_anew(tokenizer, ["the zor wave", "a zor quexer has come"]).tokenizer.get_vocab()


def test_a_special_token_that_is_read_as_text_is_not_found_in_text():
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_bpe("MASK"), pad_token="<pad>", mask_token="MASK", split_special_tokens=True)
    split_anew(tokenizer, [*TEXTS[:9], "MASK it"])


def test_without_an_unknown_piece_every_letter_stays():
    encoder = Tokenizer(models.Unigram([(piece, -1.0 - i / 9) for i, piece in enumerate(["▁", "ab", *LETTERS])], None, False))
    encoder.pre_tokenizer = pre_tokenizers.Metaspace()
    new = split_anew(PreTrainedTokenizerFast(tokenizer_object=encoder), ["ab ab", "b a"]).tokenizer
    assert new.tokenize("zeta") == ["▁", *"zeta"]


def test_an_unknown_token_that_is_no_added_token_stays():
    parts = json.loads(byte_bpe("<unk>", model=models.BPE(unk_token="<unk>")).to_str())
    parts["added_tokens"] = [token for token in parts["added_tokens"] if token["content"] != "<unk>"]
    split_anew(PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(parts)), pad_token="<pad>"), TEXTS[:9])


def test_two_tokens_with_one_id_are_refused():
    "`add_tokens` numbers from the size of the vocabulary, where ids have a gap."
    parts = json.loads(byte_bpe().to_str())
    vocabulary = parts["model"]["vocab"]
    last = max(vocabulary, key=vocabulary.get)
    before = next(token for token, i in vocabulary.items() if i == len(vocabulary) - 2)
    vocabulary[last], vocabulary[before] = len(vocabulary) + 1, len(vocabulary)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(parts)), pad_token="<pad>")
    tokenizer.add_tokens(["zzz"])
    with pytest.raises(CannotPrune, match=r"the tokens '.*' and '.*' have one id, \d+; give each an id of its own"):
        split_anew(tokenizer, TEXTS[:9])
