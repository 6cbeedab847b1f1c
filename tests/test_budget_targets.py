"""Targets beside a ratio (rows, coverage, least count), keep lists, and why each kept row stays: for every family, for each kind of remap."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from conftest import Unread
from typer.testing import CliRunner

from vocab_pruning import load, prune
from vocab_pruning.cli import app
from vocab_pruning.core import CannotPrune
from vocab_pruning.data.stats import token_stats
from vocab_pruning.data.tasks import documents, load_task
from vocab_pruning.models.anatomy import special_mask
from vocab_pruning.models.pruning import prune_with_stats
from vocab_pruning.remaps.resegmenting import alphabet, closure, token_kind
from vocab_pruning.scorers.budget import rank_rows
from vocab_pruning.scorers.keeping import REASONS, from_ranges, read_keep, to_ranges
from vocab_pruning.scorers.registry import compute_token_scores
from vocab_pruning.testing.families import FAMILIES, tiny_model

TEXTS = documents(load_task("cola", "sample")["train"])[:60]
KINDS = {"unk": {}, "cluster": dict(n_clusters=7), "nearest": {}, "pieces": {}, "pq": dict(n_bytes=2), "int8": {}, "resegment": {}}
FEW = ["BERT", "RoBERTa", "XLM-R"]  # one for each kind of tokenizer
# What a target adds to a cut depends on the tokenizer, not on the layers: all remaps for one family of each kind, two for the others.
PAIRS = [(family, oov) for place, family in enumerate(FAMILIES) for oov in KINDS
         if family in FEW or oov in ("resegment", [*KINDS][place % len(KINDS)])]
TARGETS = [dict(ratio=0.1, base="vocab"), dict(coverage=0.9), dict(coverage=0.9995), dict(min_count=3)]


@cache
def full(family: str):
    "The model, its tokenizer, and the statistics of TEXTS."
    model, tokenizer = tiny_model(family)
    return model, tokenizer, token_stats(TEXTS, tokenizer, len(model.get_input_embeddings().weight))


def cut(family: str, oov: str = "nearest", **asked):
    model, tokenizer, _ = full(family)
    if oov == "unk" and tokenizer.unk_token_id is None:
        pytest.skip("no unknown token")
    return prune(model, tokenizer, TEXTS, oov=oov, **KINDS[oov], **asked)


def fewest(counts: np.ndarray, order: np.ndarray, least: int, share: float) -> int:
    "Rows from the top of `order` until they make up `share` of all occurrences, one at a time; not below `least`."
    covered = 0
    for n, i in enumerate(order.tolist(), start=1):
        covered += int(counts[i])
        if n >= least and covered >= share * counts.sum():
            return n


def names(*entries, family: str = "BERT") -> list[str]:
    "The tokens that `entries` of a keep list name."
    _, tokenizer, stats = full(family)
    return tokenizer.convert_ids_to_tokens(np.flatnonzero(read_keep(entries, tokenizer, stats.n_rows).rows))


# Targets


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("share", [0.5, 0.95, 0.9995, 1])
def test_coverage_is_what_a_direct_computation_gives(family, share):
    model, tokenizer, stats = full(family)
    special, asked = special_mask(model, tokenizer), np.isin(np.arange(stats.n_rows), [150, 160])
    order = rank_rows(compute_token_scores(stats, texts=TEXTS, tokenizer=tokenizer), stats, special | asked)
    n = fewest(stats.counts, order, int((special | asked).sum()), share)
    p = cut(family, coverage=share, keep=[150, 160])
    assert sorted(p.keep.tolist()) == sorted(order[:n].tolist())
    assert p.info["train"]["share"] <= 1 - share + 1e-12 and p.info["coverage"] == share and "ratio" not in p.info


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("least", [1, 2, 5])
def test_every_token_seen_often_enough_stays_whatever_its_score(family, least):
    model, tokenizer, stats = full(family)
    p = cut(family, min_count=least)
    assert set(p.keep.tolist()) == set(np.flatnonzero(special_mask(model, tokenizer) | (stats.counts >= least)).tolist())


@pytest.mark.parametrize(("family", "oov"), PAIRS)
def test_rows_is_the_number_of_rows(family, oov):
    n = full(family)[2].n_rows - 30
    p = cut(family, oov, rows=n)
    assert len(p.model.get_input_embeddings().weight) == p.info["after"]["rows"] == p.info["rows"] == n


@pytest.mark.parametrize("family", FEW)
@pytest.mark.parametrize("oov", KINDS)
@pytest.mark.parametrize("asked", [dict(coverage=0.9), dict(min_count=3)], ids=str)
def test_what_a_remap_needs_comes_on_top_of_the_tokens_named(family, oov, asked):
    plain, p = cut(family, "nearest", **asked), cut(family, oov, **asked)
    assert set(plain.keep.tolist()) <= set(p.keep.tolist())
    assert p.info["train"]["share"] <= plain.info["train"]["share"]
    on_top = {"cluster": ["representative"], "pieces": ["alphabet"], "resegment": ["alphabet", "closure"]}.get(oov, [])
    assert len(p.keep) <= len(plain.keep) + sum(p.info["provenance"]["counts"].get(reason, 0) for reason in on_top)


@pytest.mark.parametrize("base", ["params", "vocab", "seen"])
def test_a_ratio_is_what_it_was(base):
    p = cut("BERT", ratio=0.1, base=base)
    assert (p.info["ratio"], p.info["base"]) == (0.1, base) and not {"rows", "coverage", "min_count", "keep"} & set(p.info)


def test_without_a_target_a_fifth_of_the_parameters_goes():
    model, tokenizer, _ = full("BERT")
    assert prune(model, tokenizer, TEXTS, oov="nearest").info == prune(model, tokenizer, TEXTS, 0.2, oov="nearest").info


@pytest.mark.parametrize("scorer", ["clustering", "random"])
def test_a_scorer_that_asks_how_many_rows_stay_gets_an_answer(scorer):
    p = cut("BERT", coverage=0.9, scorer=scorer)
    assert 1 - p.info["train"]["share"] >= 0.9


@pytest.mark.parametrize("multiple", [8, 64])
def test_a_coverage_is_reached_where_rows_are_padded(multiple):
    model, tokenizer, _ = full("BERT")
    asked = dict(coverage=0.97, oov="resegment")
    plain, padded = (prune(model, tokenizer, TEXTS, **asked, pad_to_multiple_of=n) for n in (1, multiple))
    assert padded.keep.tolist() == plain.keep.tolist() and padded.info["after"]["rows"] % multiple == 0


def test_statistics_and_scores_serve_any_target():
    model, tokenizer, stats = full("BERT")
    p = prune_with_stats(model, tokenizer, stats, stats.counts, coverage=0.9, keep="script:Latin", oov="nearest")
    assert p.info["coverage"] == 0.9 and p.info["keep"] == ["script:Latin"]


# Keep lists


@pytest.mark.parametrize(("family", "oov"), PAIRS)
def test_what_is_asked_for_stays(family, oov):
    _, tokenizer, stats = full(family)
    unseen = np.flatnonzero(~stats.seen)[-20:].tolist()
    p = cut(family, oov, min_count=4, keep=[*unseen, ["An unseen text about zebras."]])
    wanted = read_keep([*unseen, ["An unseen text about zebras."]], tokenizer, stats.n_rows).rows
    left_out = p.info.get("keep_without_token", [])
    assert set(np.flatnonzero(wanted).tolist()) - set(left_out) <= set(p.keep.tolist()) and not left_out
    text = "An unseen text about zebras."
    assert p.verify([text])["nothing_lost"] == 1


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("oov", ["nearest", "cluster", "resegment"])
def test_a_keep_list_beyond_the_budget_is_refused_with_the_number_it_needs(family, oov):
    model, tokenizer, stats = full(family)
    asked = dict(keep="re:.", oov=oov, **KINDS[oov])
    with pytest.raises(ValueError, match="keep") as refused:
        prune(model, tokenizer, TEXTS, rows=stats.n_rows // 2, **asked)
    needed = int((special_mask(model, tokenizer) | read_keep("re:.", tokenizer, stats.n_rows).rows).sum())
    assert f"need {needed:,} rows" in str(refused.value) and f"rows={needed}" in str(refused.value) and "\n" not in str(refused.value)
    prune(model, tokenizer, TEXTS, rows=needed, **asked)


@pytest.mark.parametrize("family", ["RoBERTa", "GPT-2"])
def test_the_merges_of_a_keep_list_count_inside_the_budget(family):
    model, tokenizer, stats = full(family)
    ids = np.flatnonzero(~stats.seen & ~special_mask(model, tokenizer))[-40:].tolist()
    with pytest.raises(ValueError, match=r"the keep list with its merges take \d+ rows") as refused:
        cut(family, "resegment", rows=300, keep=ids)
    needed = int(str(refused.value).split(" take ")[1].split()[0])
    p = cut(family, "resegment", rows=needed, keep=ids)
    assert len(p.keep) == needed and set(closure(tokenizer, ids).tolist()) <= set(p.keep.tolist())
    words = tokenizer.convert_ids_to_tokens(ids)
    assert all(p.tokenizer.tokenize(tokenizer.convert_tokens_to_string([word])) == [word] for word in words if word.isascii())


def test_what_the_tokenizer_never_emits_is_left_out_and_listed():
    model, tokenizer, _ = full("RoBERTa")
    written = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    fewer = type(tokenizer)(vocab=written["vocab"], merges=[tuple(merge) for merge in written["merges"][:150]])
    stats = token_stats(TEXTS, fewer, len(model.get_input_embeddings().weight))
    a, b = (fewer.convert_tokens_to_ids("".join(written["merges"][rank])) for rank in (149, 150))
    for oov, left_out in (("nearest", None), ("resegment", [b])):
        p = prune_with_stats(model, fewer, stats, stats.counts, min_count=2, keep=[a, b], oov=oov, texts=TEXTS)
        assert p.info.get("keep_without_token") == left_out and a in p.keep.tolist() and (b in p.keep.tolist()) == (oov == "nearest")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_script_is_that_of_all_letters_of_an_ordinary_token(family):
    _, tokenizer, stats = full(family)
    latin = names("script:Latin", family=family)
    assert latin and all(tokenizer.convert_tokens_to_string([token]).strip(" #").isascii() for token in latin)
    assert set(latin) == set(names("script:Latin,Greek", family=family))
    with pytest.raises(ValueError, match="keep='script:Cherokee': no token matches"):
        read_keep("script:Cherokee", tokenizer, stats.n_rows)
    reserved = np.ones(stats.n_rows, bool)
    with pytest.raises(ValueError, match="no token matches"):
        read_keep("script:Latin", tokenizer, stats.n_rows, reserved)


def test_scripts_of_a_byte_level_tokenizer_are_those_of_its_text():
    _, tokenizer, stats = full("RoBERTa")
    tokenizer = type(tokenizer)(vocab={**tokenizer.get_vocab(), "ÐĴ": len(tokenizer), "æĹ¥": len(tokenizer) + 1, "Ð": len(tokenizer) + 2},
                                merges=[])
    rows = {script: read_keep(f"script:{script}", tokenizer, len(tokenizer)).rows for script in ("Cyrillic", "Han", "Latin")}
    assert [tokenizer.convert_ids_to_tokens(np.flatnonzero(rows[script])) for script in ("Cyrillic", "Han")] == [["ÐĴ"], ["æĹ¥"]]
    assert not (rows["Latin"] & (rows["Cyrillic"] | rows["Han"])).any()


def test_entries_name_what_they_say(tmp_path):
    (tmp_path / "names.txt").write_text("the\n")
    word = names(["the"])
    assert names(f"texts:{tmp_path}/names.txt") == names(["the"]) and names(*word) == names(*(f"token:{token}" for token in word)) == word
    _, tokenizer, stats = full("BERT")
    ids = tokenizer.convert_tokens_to_ids(word)
    assert names(*ids) == names(*map(np.int64, ids)) == names(*(f"id:{i}" for i in ids)) == word
    assert set(names("re:^##.$")) == {token for token in tokenizer.get_vocab() if len(token) == 3 and token.startswith("##")}
    assert read_keep(np.array(ids), tokenizer, stats.n_rows).said == tuple(f"id:{i}" for i in ids)


# Why each row stays


@pytest.mark.parametrize(("family", "oov"), PAIRS)
def test_provenance_adds_up_to_the_rows_kept(family, oov, tmp_path):
    model, tokenizer, stats = full(family)
    seen_last = int(np.flatnonzero(~stats.seen)[-1])
    for asked in TARGETS:
        p = cut(family, oov, keep=[seen_last], **asked)
        counts, ids = p.info["provenance"]["counts"], p.info["provenance"]["ids"]
        table = p.provenance
        assert sum(counts.values()) == len(p.keep) == len(table) and set(counts) <= set(REASONS) and "rank" not in ids
        assert table.reason.value_counts().to_dict() == counts and table.id.tolist() == p.keep.tolist()
        assert table.token.tolist() == tokenizer.convert_ids_to_tokens(table.id.tolist())
        assert table["count"].tolist() == stats.counts[table.id].tolist() and sorted(table["rank"]) == sorted(set(table["rank"]))
        special = special_mask(model, tokenizer)
        assert special[table.id[table.reason == "special"]].all() or oov == "resegment"
        assert table.id[table.reason == "asked for"].tolist() in ([seen_last], [])
        if oov == "resegment":
            assert set(table.id[table.reason == "alphabet"]) <= set(alphabet(tokenizer, stats.seen).tolist())
            assert "closure" not in counts or token_kind(tokenizer) == "BPE"


@pytest.mark.parametrize("family", FEW)
@pytest.mark.parametrize("oov", ["cluster", "resegment"])
def test_provenance_survives_a_save(family, oov, tmp_path):
    p = cut(family, oov, coverage=0.9, keep=["re:^.$|^zzz$"])
    p.save_pretrained(tmp_path / "small")
    again = load(tmp_path / "small")
    assert again.info["provenance"] == p.info["provenance"] == json.loads((tmp_path / "small" / "vocab_pruning.json").read_text())["provenance"]
    assert again.provenance.equals(p.provenance[["token", "id", "reason"]])
    card = (tmp_path / "small" / "README.md").read_text(encoding="utf-8")
    assert "| target | 90 % of the occurrences |" in card and "| must stay | `re:^.$\\|^zzz$` |" in card
    reasons = ", ".join(f"{reason} {number:,}" for reason, number in p.info["provenance"]["counts"].items())
    assert f"| rows by reason | {reasons} |" in card
    assert p.verify()["target"] == "90 % of the occurrences"


def test_a_model_that_says_nothing_says_so():
    p = cut("BERT", rows=250)
    del p.info["provenance"]
    with pytest.raises(ValueError, match="nothing is known of why these rows stay"):
        _ = p.provenance


@pytest.mark.parametrize("ids", [[], [3], [0, 1, 2], [5, 9, 7, 8, 20]])
def test_ranges_are_read_as_they_were_written(ids):
    assert from_ranges(to_ranges(ids)).tolist() == sorted(ids)


# What is refused, in one line


BAD = {
    "two targets": (dict(rows=200, coverage=0.9), ValueError, "rows=200 and coverage=0.9: give only one of ratio, rows, coverage, min_count"),
    "a target and the default's value": (dict(ratio=0.2, min_count=2), ValueError, "ratio=0.2 and min_count=2: give only one"),
    "a base without a ratio": (dict(rows=200, base="seen"), ValueError, "base='seen' is for a ratio"),
    "an unknown base": (dict(rows=200, base="sen"), ValueError, "unknown base 'sen'"),
    "no row": (dict(rows=0), ValueError, "rows=0: give a whole number, 1 or more"),
    "half a row": (dict(rows=200.5), ValueError, "rows=200.5: give a whole number"),
    "True rows": (dict(rows=True), ValueError, "rows=True: give a whole number"),
    "more rows than there are": (dict(rows=10**6), ValueError, "rows=1000000: the embedding has"),
    "fewer rows than are special": (dict(rows=2), ValueError, "rows=2 keeps 2 rows, but the special rows alone are 5; give rows=5"),
    "per cent": (dict(coverage=99.95), ValueError, "coverage=99.95: give a share of the occurrences, above 0 and at most 1"),
    "no coverage": (dict(coverage=0), ValueError, "coverage=0: give a share"),
    "coverage as text": (dict(coverage="0.9"), ValueError, "coverage='0.9': give a share"),
    "NaN": (dict(coverage=float("nan")), ValueError, "coverage=nan: give a share"),
    "a count of nothing": (dict(min_count=0), ValueError, "min_count=0: give a whole number, 1 or more"),
    "no such token": (dict(keep=["zebra"]), ValueError, "keep='zebra': the tokenizer has no such token"),
    "a slip of a kind": (dict(keep="text:a.txt"), ValueError, "keep='text:a.txt': the tokenizer has no such token with a row; give texts:a.txt"),
    "no such id": (dict(keep=[10**6]), ValueError, "keep='id:1000000': give an id, 0 .. "),
    "a negative id": (dict(keep=[-1]), ValueError, "keep='id:-1': give an id, 0 .. "),
    "a bad pattern": (dict(keep="re:(a"), ValueError, "keep='re:(a': give a regular expression (missing ) at position 2)"),
    "a pattern of nothing": (dict(keep="re:^zebra$"), ValueError, "keep='re:^zebra$': no token matches"),
    "no such script": (dict(keep="script:Klingon"), ValueError, "keep='script:Klingon': give Unicode scripts by name"),
    "no script": (dict(keep="script:"), ValueError, "keep='script:': give Unicode scripts by name"),
    "a file that is not there": (dict(keep="texts:no/such.txt"), OSError, "such.txt"),
    "a fraction": (dict(keep=[0.5]), TypeError, "keep=0.5, a float: give tokens, ids, token:…, id:…"),
    "True": (dict(keep=True), TypeError, "keep=True, a bool"),
    "a dict": (dict(keep={"a": 1}), TypeError, "keep={'a': 1}, a dict"),
    "texts that are none": (dict(keep=[["a", None]]), TypeError, "keep: text 1 is None"),
    "texts without a token": (dict(keep=[[""]]), ValueError, "none of the 1 texts holds a token"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_is_refused_in_one_line_before_a_text_is_read(case):
    asked, error, told = BAD[case]
    model, tokenizer, _ = full("BERT")
    with pytest.raises(error) as refused:
        prune(model, tokenizer, Unread(), oov="nearest", **asked)
    assert told in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("oov", ["nearest", "resegment"])
def test_a_count_that_no_token_has(oov):
    "Special tokens alone make no model; a keep list without frequent tokens does."
    model, tokenizer, stats = full("BERT")
    texts, most = TEXTS, int(stats.counts.max())
    with pytest.raises(CannotPrune, match=f"min_count={most + 1}: no token occurs so often; the most frequent one occurs {most} times"):
        prune(model, tokenizer, texts, min_count=int(most) + 1, oov=oov)
    assert prune(model, tokenizer, texts, min_count=most, oov=oov)
    assert prune(model, tokenizer, texts, min_count=most + 1, keep="re:.", oov=oov)


# The command


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    "A directory with a model and texts."
    home = tmp_path_factory.mktemp("targets")
    model, tokenizer, _ = full("BERT")
    model.save_pretrained(home / "model")
    tokenizer.save_pretrained(home / "model")
    (home / "texts.txt").write_text("\n".join(TEXTS))
    (home / "names.txt").write_text("zebra\n")
    return home


def call(*args, code: int = 0):
    result = CliRunner().invoke(app, ["prune", *map(str, args)])
    assert result.exit_code == code, result.output + result.stderr
    return result


@pytest.mark.parametrize(("options", "target", "info"), [
    (["--rows", 250], "250 rows", dict(rows=250)),
    (["--coverage", 0.99], "99 % of the occurrences", dict(coverage=0.99)),
    (["--min-count", 3], "every token that occurs 3 times or more", dict(min_count=3)),
    (["--ratio", 0.3, "--base", "vocab"], "30.00% of the rows removed", dict(ratio=0.3, base="vocab")),
])
def test_the_command_takes_every_target(options, target, info, saved, tmp_path):
    shown = call(saved / "model", saved / "texts.txt", tmp_path / "small", *options, "--keep", "id:150", "--keep", f"texts:{saved}/names.txt",
                 "--oov", "nearest").output
    p = load(tmp_path / "small")
    assert info.items() <= p.info.items() and p.info["keep"] == ["id:150", "texts:names.txt"]
    assert target in shown and all(f"kept rows ({reason})" in shown for reason in p.info["provenance"]["counts"])
    assert 150 in p.keep.tolist() and set(p.tokenizer("zebra")["input_ids"]) <= set(p.keep.tolist())


@pytest.mark.parametrize("out", [["small"], []])
def test_a_dry_run_says_what_a_run_says_and_writes_nothing(out, saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = [saved / "model", saved / "texts.txt", *out, "--rows", 250, "--oov", "resegment"]
    before = sorted(saved.rglob("*"))
    dry = call(*asked, "--dry-run").output.splitlines()
    assert [*tmp_path.iterdir()] == [] and sorted(saved.rglob("*")) == before
    assert "nothing" in dry[0]
    if out:
        assert call(*asked).output.splitlines()[1:] == dry[1:] and (tmp_path / "small").is_dir()


@pytest.mark.parametrize(("options", "told"), [
    (["small", "--rows", 250, "--ratio", 0.2], "--ratio 0.2 and --rows 250: give only one"),
    (["small", "--rows", 10**6], "--rows 1000000: the embedding has"),
    (["small", "--rows", 10, "--keep", "re:."], "those of keep need"),
    (["small", "--coverage", 2], "--coverage 2.0: give a share"),
    (["small", "--keep", "zebra"], "--keep zebra: the tokenizer has no such token"),
])
@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_the_command_refuses_in_one_line(options, told, dry, saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = call(saved / "model", saved / "texts.txt", *options, *dry, code=1)
    assert told in result.stderr and len(result.stderr.strip().splitlines()) == 1 and [*tmp_path.iterdir()] == []


def test_a_directory_is_needed_where_something_is_written(saved):
    assert "give OUT" in " ".join(call(saved / "model", saved / "texts.txt", "--rows", 250, code=2).stderr.split())


def test_statistics_of_another_tokenizer_are_refused():
    "Also where scores are given: by their rows, and by the tokenizer that they name."
    model, tokenizer, stats = full("BERT")
    with pytest.raises(ValueError, match="counted with another tokenizer"):
        prune_with_stats(model, tokenizer, replace(stats, tokenizer="another"), stats.counts, 0.2)
    with pytest.raises(ValueError, match=f"stats are over {stats.n_rows + 7} rows but the embedding has {stats.n_rows}"):
        prune_with_stats(model, tokenizer, token_stats(TEXTS, tokenizer, stats.n_rows + 7), stats.counts, 0.2)
    with pytest.raises(ValueError, match="scores have shape"):
        prune_with_stats(model, tokenizer, stats, stats.counts[:-1], 0.2, "vocab")
