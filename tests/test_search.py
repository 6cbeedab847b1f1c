"""The search for the smallest model: with stand-ins for what a ratio does, then with a tiny model, which is trained."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import FAMILIES, TASKS, run_notebook
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModel, AutoTokenizer

from vocab_pruning import load_task, prune
from vocab_pruning.core import CannotPrune
from vocab_pruning.data.tasks import documents
from vocab_pruning.runs import search as module
from vocab_pruning.runs.record import read_row
from vocab_pruning.runs.search import Found, aim, find_ratio, last_within, rises, run_interval, search

QUICK = dict(retention=0.5, max_runs=2, base="vocab", scorer="frequency", oov="unk", step=0.1, data="sample", max_train_examples=32, held_out_examples=48,
             n_texts=16, epochs=1)


# The search


def counted(values):
    "A function of a number that notes what it was asked."
    asked = []

    def at(number: int) -> float:
        asked.append(number)
        return float(values[number])

    at.asked = asked
    return at


falling = st.lists(st.floats(0, 0.2), min_size=1, max_size=60).map(lambda steps: 1 - np.cumsum(steps))
rising = st.lists(st.floats(0, 1), min_size=60, max_size=60).map(lambda steps: np.cumsum(steps) * 10)


@given(falling, rising, st.floats(0.3, 1))
def test_the_answer_is_that_of_looking_at_all(kept, drifts, wanted):
    kept = np.where(drifts[: len(kept)] <= 1e-9, 1.0, kept)
    retention_at = counted(kept)
    low, high, measured = search(len(kept), drifts.__getitem__, retention_at, wanted, max_runs=len(kept))
    passing = np.flatnonzero(kept >= wanted)
    assert low == (passing.max() if len(passing) else -1) and high == low + 1
    assert len(retention_at.asked) == len(set(retention_at.asked)) == len(measured)


@given(falling, rising, st.integers(1, 4))
def test_few_measurements_leave_a_true_bracket(kept, drifts, max_runs):
    kept = np.where(drifts[: len(kept)] <= 1e-9, 1.0, kept)
    low, high, measured = search(len(kept), drifts.__getitem__, kept.__getitem__, 0.9, max_runs)
    assert len(measured) <= max_runs and low < high
    assert low < 0 or kept[low] >= 0.9
    assert high == len(kept) or kept[high] < 0.9


@given(st.lists(st.floats(-0.3, 0.3), min_size=40, max_size=40), st.floats(0.5, 1))
def test_noise_neither_hangs_nor_breaks_the_bracket(noise, wanted):
    kept = np.linspace(1, 0, 40) + noise
    low, high, measured = search(40, lambda i: float(i + 1), kept.__getitem__, wanted, 40)
    assert high == low + 1 and len(measured) <= 40
    assert (low < 0 or kept[low] >= wanted) and (high == 40 or kept[high] < wanted)


def test_a_cliff_in_a_fine_grid_takes_few_measurements():
    "Drift tells where the cliff is: a hundred times as many candidates cost a handful of trainings more."
    ratios = np.linspace(0.0001, 1, 10000)
    kept = 1 - 0.4 * ratios**6
    low, high, measured = search(10000, lambda i: ratios[i] ** 6, kept.__getitem__, 0.99, 100)
    assert low == np.flatnonzero(kept >= 0.99).max() and high == low + 1
    assert len(measured) <= 12


def test_what_does_not_drift_is_not_trained():
    retention_at = counted([0.0] * 10)
    low, high, measured = search(10, lambda i: max(0.0, i - 4.0), retention_at, 0.99, 5)
    assert (low, high) == (4, 5) and min(retention_at.asked) == 5 and measured.keys() == set(retention_at.asked)


def test_bisection_finds_the_last_within():
    drifts = [0, 0, 1, 1, 2, 5]
    assert [last_within(drifts.__getitem__, 0, 6, most) for most in (-1, 0, 1, 4, 9)] == [-1, 1, 3, 4, 5]
    assert last_within(drifts.__getitem__, 3, 3, 9) == 2


def test_where_to_look_next_is_between():
    assert aim(0.99, (0.0, 1.0), None) == pytest.approx(0.01, rel=1e-12)
    assert 0.02 <= aim(0.99, (0.01, 1.2), None) <= 0.04
    for left in (-1.0, 0.5, 0.98):
        assert 0.1 < aim(0.99, (0.1, 0.995), (0.2, left)) < 0.2


def test_noise_is_what_rises():
    assert rises({}) == 0 and rises({0.1: 1.0, 0.5: 0.5}) == 0
    assert rises({0.3: 0.95, 0.1: 0.9, 0.2: 0.92}) == pytest.approx(0.05, rel=1e-12)


# A tiny model


def test_a_fine_ratio_is_shown_as_it_is():
    found = Found(0.945, 0.99, 0.99, "vocab", 0.95, 3, 0.0, pd.DataFrame(dict(retention=[None, 0.99, 0.97])))
    assert str(found).startswith("Found(ratio 0.945 of vocab: retention 0.990, wanted 0.99; 0.95 fails;")
    assert found.in_words() == ("**94.5 %** of the rows can go: retention is 0.990, and 0.99 was wanted; a cut of 95 % failed. "
                                "3 models were trained.")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> str:
    "The directory of a small random BERT."
    family, directory = FAMILIES["wordpiece"], tmp_path_factory.mktemp("models") / "tiny"
    TASKS["bare"].from_config(family.config(max_position_embeddings=160, initializer_range=0.02)).save_pretrained(directory)
    family.tokenizer.save_pretrained(directory)
    return str(directory)


@pytest.fixture(scope="module")
def first(tiny, tmp_path_factory):
    "What a search finds, and where its runs are."
    out = tmp_path_factory.mktemp("runs")
    return find_ratio("sst2", model=tiny, out=out, **QUICK), out


def written(out: Path) -> dict[Path, int]:
    "When each file under `out` was written; 0 for locks, which old releases of filelock touch."
    files = [path for path in out.rglob("*") if path.is_file()]
    return {path: 0 if path.suffix == ".lock" else path.stat().st_mtime_ns for path in files}


def test_what_was_found_is_in_the_rows(first):
    found, out = first
    trained = found.curve.dropna(subset="retention")
    assert found.trainings == len(trained) + 1 == len([*out.glob("*/result.json")]) <= QUICK["max_runs"] + 1
    full = next(row for path in out.glob("*/result.json") if (row := read_row(path.parent))["method"] == "full")
    for line in trained.itertuples():
        row = read_row(out / line.run)
        assert (row["ratio"], row["rows"], row["accuracy_from_train"]) == (line.ratio, line.rows, line.score)
        assert line.retention == row["accuracy_from_train"] / full["accuracy_from_train"]
        assert line.low <= line.retention <= line.high
    assert found.curve.ratio.is_monotonic_increasing and found.curve.rows.is_monotonic_decreasing and found.ratio in set(found.curve.ratio)
    assert "models were trained; noise" in repr(found)


@pytest.mark.parametrize("scorer", ["frequency", "attention"])
def test_after_fine_tuning_one_model_serves_the_whole_search(tiny, tmp_path, scorer):
    "Nothing but the full model is trained, the search ends, and what it measured are rows of runs that prune after."
    asked = QUICK | dict(scorer=scorer, when="after", step=0.05, retention=0.9)
    found = find_ratio("sst2", model=tiny, out=tmp_path, **asked)
    measured = found.curve.dropna(subset="retention")
    rows = [read_row(tmp_path / run) for run in measured.run]
    assert found.trainings == 1 and len(rows) and {(row["when"], row["seconds_train"]) for row in rows} == {("after", 0)}
    assert "one model was trained, and " in repr(found) and " scored; " in repr(found)
    assert found.fails_at is None or round(found.fails_at - found.ratio, 9) == 0.05, "the answer is exact"
    again = written(tmp_path)
    assert find_ratio("sst2", model=tiny, out=tmp_path, **asked).curve.equals(found.curve) and written(tmp_path) == again


def test_runs_that_are_there_are_read(first, tiny):
    found, out = first
    before = written(out)
    again = find_ratio("sst2", model=tiny, out=out, **QUICK)
    assert written(out) == before
    assert again.curve.equals(found.curve) and (again.ratio, again.trainings) == (found.ratio, found.trainings)


def test_a_search_that_was_cut_off_goes_on(first, tiny, tmp_path):
    found, out = first
    shutil.copytree(out, tmp_path / "runs")
    lost = tmp_path / "runs" / found.curve.dropna(subset="retention").run.iloc[-1]
    shutil.rmtree(lost)
    kept = written(tmp_path / "runs")
    again = find_ratio("sst2", model=tiny, out=tmp_path / "runs", **QUICK)
    after = written(tmp_path / "runs")
    assert again.ratio == found.ratio and {path: after[path] for path in kept} == kept
    assert {path.parent for path in after.keys() - kept.keys()} == {lost}


def test_the_run_notebook_reads_its_runs(first, tiny, tmp_path):
    found, out = first
    before, ratio = written(out), float(found.curve.dropna(subset="retention").ratio.iloc[0])
    shared = {name: QUICK[name] for name in ("base", "scorer", "oov", "data", "max_train_examples", "held_out_examples", "epochs")}
    asked = dict(task="sst2", ratio=ratio, model=tiny, out=str(out), look_first=False)
    run_notebook("run.ipynb", tmp_path / "run.ipynb", **asked, **shared)
    assert written(out) == before
    assert "was there already" in (tmp_path / "run.ipynb").read_text()


def test_the_interval_is_that_of_the_examples(first, tmp_path):
    found, out = first
    line = found.curve.dropna(subset="retention").iloc[0]
    full = next(path.parent.name for path in out.glob("*/result.json") if read_row(path.parent)["method"] == "full")
    assert run_interval("sst2", full, full, out, "dev_from_train") == (1, 1)
    assert run_interval("sst2", line.run, full, out, "dev_from_train") == (line.low, line.high)
    with pytest.raises(ValueError, match="no predictions on 'test'"):
        run_interval("sst2", full, full, out, "test")


def test_a_vocabulary_that_holds_few_of_the_parameters(tmp_path):
    "Less than the fifth that goes where no ratio is given: the search must not ask for it."
    family = FAMILIES["wordpiece"]
    wide = family.config(max_position_embeddings=160, intermediate_size=2048)
    TASKS["bare"].from_config(wide).save_pretrained(tmp_path / "wide")
    family.tokenizer.save_pretrained(tmp_path / "wide")
    asked = QUICK | dict(when="after", retention=0.5, base="params", step=0.005, oov="unk")
    assert 0 < find_ratio("sst2", model=str(tmp_path / "wide"), out=tmp_path / "runs", **asked).ratio < 0.1


@pytest.mark.parametrize("when", ["before", "after"])
def test_ratios_that_cannot_be_are_no_candidates(when, tiny, tmp_path):
    "A rewritten tokenizer needs rows for its alphabet, so the hardest multiples of the step are refused."
    asked = QUICK | dict(when=when, retention=0.01, base="vocab", step=0.05, oov="resegment", max_runs=2)
    found = find_ratio("sst2", model=tiny, out=tmp_path / "runs", **asked)
    model, tokenizer = AutoModel.from_pretrained(tiny), AutoTokenizer.from_pretrained(tiny)
    texts = documents(load_task("sst2", QUICK.get("data", "auto"))["train"].select(range(QUICK["max_train_examples"])))
    with pytest.raises(CannotPrune):
        prune(model, tokenizer, texts, found.ratio + 0.05, base="vocab", oov="resegment")
    assert found.fails_at is None


@pytest.mark.parametrize(("options", "message"), [
    (dict(scorer="attention"), "has no fixed ranking"),
    (dict(scorer="clustering"), "has no fixed ranking"),
    (dict(retention=0), "above 0 and at most 1"),
    (dict(retention=1.5), "above 0 and at most 1"),
    (dict(max_runs=0), "max_runs=0: give a whole number, 1 or more"),
    (dict(step=0), "step=0"),
    (dict(step="small"), "step='small': give a number"),
    (dict(retention="0.9"), "retention='0.9': give a number"),
    (dict(max_runs=2.0), "max_runs=2.0: give a whole number, 1 or more"),
    (dict(n_texts=0), "n_texts=0: give a whole number, 1 or more"),
    (dict(seed="one"), "seed='one': give a whole number, 0 or more"),
    (dict(max_train_examples="64"), "max_train_examples='64': give a whole number, 1 or more, or None"),
    (dict(max_train_examples=0), "max_train_examples=0: give a whole number, 1 or more, or None"),
    (dict(held_out_examples=-3), "held_out_examples=-3: give a whole number, 1 or more, or None"),
    (dict(epochs="three"), "epochs='three': give a number above 0"),
    (dict(batch_size=1.5), "batch_size=1.5: give a whole number above 0"),
    (dict(oov="closest"), "unknown oov"),
    (dict(held_out_examples=10**6), "held_out_examples=1000000"),
], ids=lambda value: "-".join(map(str, next(iter(value.items())))) if isinstance(value, dict) else "")
def test_bad_arguments_stop_before_anything_is_trained(options, message, tiny, tmp_path):
    with pytest.raises(ValueError, match=message):
        find_ratio("sst2", model=tiny, out=tmp_path / "runs", **QUICK | options)
    assert not (tmp_path / "runs").exists()


def test_no_ratio_passes(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "full_row", lambda case, save: {"accuracy_from_train": 0.8, "score": 0.8})
    monkeypatch.setattr(module, "_measure", lambda ranked, ratio, full: {ranked.metric: 0.4, "run": "none", "rows": 9, "dev_drift": 0.1})
    with pytest.raises(ValueError, match=r"none of the . ratios measured keeps 0\.9 of accuracy_from_train 0\.8000; the mildest, 0\.\d+, keeps 0\.5000"):
        find_ratio("sst2", model=tiny, out=tmp_path, **QUICK | dict(retention=0.9, max_runs=4, base="seen"))


def test_a_full_model_that_learned_nothing_has_nothing_to_retain(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "full_row", lambda case, save: {"matthews_from_train": -0.02, "score": -0.02})
    with pytest.raises(ValueError, match=r"matthews_from_train is -0\.0200, not above 0"):
        find_ratio("cola", model=tiny, out=tmp_path, **QUICK)


def test_without_held_out_examples_dev_is_what_counts(tiny, tmp_path):
    found = find_ratio("sst2", model=tiny, out=tmp_path, **QUICK | dict(held_out_examples=None, max_runs=1))
    row = json.loads((tmp_path / found.curve.dropna(subset="retention").run.iloc[0] / "result.json").read_text())
    assert found.curve.dropna(subset="retention").score.iloc[0] == row["score"] == row["accuracy"]
