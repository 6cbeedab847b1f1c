"""What preflight checks as prune does, what it takes for a reason, and what it raises."""

import inspect
import math

import pytest
import torch
from conftest import FAMILIES, ODD_FAMILIES, TEXTS, build, make_texts, shared

from vocab_pruning import cli, preflight, prune
from vocab_pruning.core import CannotPrune
from vocab_pruning.evaluate.preflight import quick_remaps
from vocab_pruning.models.checkpoint import prune_checkpoint
from vocab_pruning.runs.spec import RunSpec

HELD_OUT = make_texts(20, seed=5)


def look(model=None, tokenizer=None, **options):
    "`preflight` of the small WordPiece model with one mild cut, unless asked otherwise."
    model, tokenizer = model or shared("wordpiece"), tokenizer or FAMILIES["wordpiece"].tokenizer
    given = dict(texts=TEXTS, held_out=HELD_OUT, ratios=[0.3], base="vocab", oovs=["nearest"], scorer="frequency")
    return preflight(model, tokenizer, **given | options)


def test_without_ratios_each_cut_is_what_prune_makes_of_the_same_numbers():
    "Both count a ratio of all parameters where no base is given."
    model, tokenizer = shared("wordpiece"), FAMILIES["wordpiece"].tokenizer
    table = preflight(model, tokenizer, TEXTS, HELD_OUT, oovs="unk", scorer="frequency")
    assert len(table) == 4 and table.reason.isna().all() and set(table.base) == {"params"}
    for cut in table.itertuples():
        assert prune(model, tokenizer, TEXTS, cut.ratio, oov=cut.oov, scorer="frequency").info["after"]["rows"] == cut.rows


def test_a_ratio_has_one_base_unless_another_is_given():
    counting = (prune, prune_checkpoint, preflight, cli._prune_command, cli._preflight_command, cli._run_command)
    assert [inspect.signature(one).parameters["base"].default for one in counting] == ["params"] * 6
    assert RunSpec().base == "params"


def damaged(value: float):
    "A model with `value` in row 7."
    model = build("wordpiece")
    with torch.no_grad():
        model.get_input_embeddings().weight[7, 3] = value
    return model


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_row_that_is_not_finite_is_raised_as_prune_does(value):
    model, tokenizer = damaged(value), FAMILIES["wordpiece"].tokenizer
    said = []
    for ask in (lambda: look(model), lambda: prune(model, tokenizer, TEXTS, 0.3, "vocab", oov="nearest")):
        with pytest.raises(ValueError, match="row 7 holds NaN or infinity") as caught:
            ask()
        said.append(str(caught.value))
    assert len(set(said)) == 1


def test_a_model_that_is_pruned_already_is_raised():
    pruned = prune(build("wordpiece"), FAMILIES["wordpiece"].tokenizer, TEXTS, 0.3, "vocab", oov="nearest")
    with pytest.raises(TypeError, match="PrunedEmbedding"):
        look(pruned.model)


RAISED = {
    "ratio=1.5": dict(ratios=[0.3, 1.5]), "ratio=-0.1": dict(ratios=-0.1), "ratio='0.2'": dict(ratios=["0.2"]),
    "unknown base 'tokens'": dict(base="tokens"), "unknown oov 'pg'": dict(oovs=["unk", "pg"]),
    "unknown oov 'p'": dict(oovs="p"), "unknown scorer 'pagerank'": dict(scorer="pagerank"),
    "ratios=[]": dict(ratios=[]),
    "oovs=5": dict(oovs=5), "reads texts a second time": dict(texts=iter(TEXTS)),
    "reads held_out a second time": dict(held_out=(text for text in TEXTS)),
}


@pytest.mark.parametrize("message", RAISED)
def test_a_wrong_argument_is_no_reason(message):
    with pytest.raises((TypeError, ValueError)) as caught:
        look(**RAISED[message])
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not isinstance(caught.value, CannotPrune)


class Hidden:
    "Gives the same iterator again and again, and is none itself."

    def __init__(self, texts):
        self.texts = iter(texts)

    def __iter__(self):
        return self.texts


def test_what_gives_its_texts_once_is_found_out_whatever_it_is():
    with pytest.raises(ValueError, match="reads texts a second time"):
        look(texts=Hidden(TEXTS))


@pytest.mark.parametrize("texts", ["one text", b"bytes", {"text": TEXTS}, 5, None],
                         ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("name", ["texts", "held_out"])
def test_what_holds_no_texts_is_raised(name, texts):
    with pytest.raises(TypeError, match=f"^{name} is "):
        look(**{name: texts})


def test_an_error_of_a_program_is_no_reason(monkeypatch):
    from importlib import import_module

    def fail(*args, **options):
        raise ValueError("a fault of our own")

    monkeypatch.setattr(import_module("vocab_pruning.evaluate.preflight"), "prune_with_stats", fail)
    with pytest.raises(ValueError, match="a fault of our own"):
        look()


def test_a_cut_that_cannot_be_had_is_a_row_with_its_reason():
    "A ratio above the maximum, codebooks that cost more than there is, a tokenizer without an unknown token."
    table = look(ratios=[0.01, 0.99], oovs=["nearest", "pq", "resegment"], base="params").set_index(["ratio", "oov"])
    assert "more than the embedding holds" in table.reason[0.99, "nearest"]
    assert "this remap adds more parameters than the vocabulary can give up" in table.reason[0.01, "pq"]
    assert math.isnan(table.rows[0.99, "nearest"]) and table.rows[0.01, "nearest"] > 0
    odd = ODD_FAMILIES["no unk"]
    table = look(build(odd), odd.tokenizer, oovs=["unk", "nearest"]).set_index("oov")
    assert "no unknown token" in table.reason["unk"] and table.rows["nearest"] > 0
    with pytest.raises(CannotPrune, match="no unknown token"):
        prune(build(odd), odd.tokenizer, TEXTS, 0.3, "vocab", oov="unk")


def test_a_single_ratio_and_kind_are_one():
    one = look(ratios=0.3, oovs="nearest")
    assert len(one) == 1 and one.equals(look())


def test_every_quick_remap_is_looked_at_unless_asked_otherwise():
    table = look(oovs=None, ratios=[0.4, 0.6])
    assert table.oov.tolist() == quick_remaps() * 2 and {"pq", "cluster"} < {*table.oov} and table.rows.notna().all()
    for _, cuts in table.groupby("oov"):
        assert cuts.rows.is_monotonic_decreasing and cuts.coverage_held_out.is_monotonic_decreasing


def test_held_out_texts_of_a_task_are_its_dev_split(tmp_path):
    "And the columns that are given beside it are those of the file."
    from typer.testing import CliRunner

    from vocab_pruning.cli import app
    from vocab_pruning.data.tasks import load_texts

    build("wordpiece").save_pretrained(tmp_path / "model")
    FAMILIES["wordpiece"].tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "train.csv").write_text("said\n" + "\n".join(text for text in TEXTS if text) + "\n")
    for split in ("dev", "train"):
        (tmp_path / f"{split}.txt").write_text("\n".join(load_texts("cola", split=split, data="sample")))

    def shown(*held_out: str) -> str:
        arguments = ["preflight", str(tmp_path / "model"), str(tmp_path / "train.csv"), "-t", "said"]
        arguments += ["--ratio", "0.3", "--oov", "nearest", "--scorer", "frequency", "--held-out", *held_out]
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
        return result.output

    given = ("cola", "--data", "sample"), [str(tmp_path / "dev.txt")], [str(tmp_path / "train.txt")]
    task, dev, train = (shown(*held) for held in given)
    assert task == dev != train
