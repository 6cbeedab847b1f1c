"""One entry in a table is all that a new remap or scorer takes: everything else finds it there."""

from dataclasses import fields

import matplotlib as mpl
import numpy as np
import pytest
from conftest import FAMILIES, TEXTS, build
from typer.testing import CliRunner

from vocab_pruning import preflight, prune
from vocab_pruning.cli import app
from vocab_pruning.core import at_least
from vocab_pruning.models.card import make_card
from vocab_pruning.remaps.kinds import REMAPS, RemapSpec, add_remap
from vocab_pruning.remaps.table import table_of
from vocab_pruning.report.figures import figure_1, method_style
from vocab_pruning.report.summary import evaluations, method_label
from vocab_pruning.runs.spec import RunSpec
from vocab_pruning.scorers.registry import SCORERS, ScorerSpec, add_scorer
from vocab_pruning.testing.runs import example_runs


def first_row(plan, *, shift: int = 0):
    "Every pruned id reads the kept row number `shift`."
    return table_of(plan.keep, len(plan.order), rest=shift)


@pytest.fixture
def toy_remap():
    add_remap(RemapSpec("toy", "reads the first row that stays", first_row, {"shift": at_least(0)}, marker="p", color="#123456"))
    yield "toy"
    del REMAPS["toy"]


@pytest.fixture
def toy_scorer():
    add_scorer(ScorerSpec("rare", "by how rarely they occur", lambda given, floor=1: -np.maximum(given.stats.counts, floor).astype(float),
                          {"floor": at_least(1)}, label="rarity"))
    yield "rare"
    del SCORERS["rare"]


@pytest.fixture
def model():
    return build("wordpiece"), FAMILIES["wordpiece"].tokenizer


def help_of(command: str) -> str:
    return " ".join(CliRunner().invoke(app, [command, "--help"]).output.split())


def test_a_new_remap_is_found_everywhere(toy_remap, model, tmp_path):
    p = prune(*model, TEXTS, 0.5, "vocab", oov="toy", shift=2)
    assert (p.remap.index[~p.remap.kept] == 2).all() and p.info["oov_options"] == {"shift": 2}
    with pytest.raises(TypeError, match="oov='toy' got an unexpected option 'm'; it takes shift"):
        prune(*model, TEXTS, 0.5, "vocab", oov="toy", m=2)
    with pytest.raises(ValueError, match="shift=-1: give a whole number, 0 or more"):
        prune(*model, TEXTS, 0.5, "vocab", oov="toy", shift=-1)
    table = preflight(*model, TEXTS, TEXTS[:20], 0.5, "vocab")
    assert "toy" in set(table.oov) and table[table.oov == "toy"].reason.isna().all()
    p.save_pretrained(tmp_path / "small")
    assert "reads the first row that stays: `toy` (shift=2)" in (tmp_path / "small" / "README.md").read_text()
    RunSpec.parse(oov="toy", oov_options="{shift: 1}").check()
    for command in ("prune", "run"):
        assert "toy" in help_of(command)


def test_a_new_scorer_is_found_everywhere(toy_scorer, model):
    p = prune(*model, TEXTS, 0.5, "vocab", scorer="rare", scorer_options={"floor": 2})
    assert p.info["scorer"] == "rare" and "`rare` (floor=2)" in make_card(p.info)
    with pytest.raises(TypeError, match="scorer 'rare' got an unexpected option 'norm'; it takes floor"):
        prune(*model, TEXTS, 0.5, "vocab", scorer="rare", scorer_options={"norm": None})
    table = preflight(*model, TEXTS, TEXTS[:20], 0.5, "vocab", scorer="rare", oovs="unk")
    assert table.reason.isna().all()
    RunSpec.parse(scorer="rare", scorer_options="{floor: 2}").check()
    assert "rare" in help_of("prune")


def test_both_are_in_the_legend_of_a_report(toy_remap, toy_scorer, tmp_path):
    pytest.importorskip("seaborn")
    mpl.use("agg")
    assert method_label(dict(method="rare+toy", scorer="rare", oov="toy", base="vocab", ratio=0.5)) == "rarity + toy"
    assert (method_style("rarity + toy")["marker"], method_style("tf-idf + toy")["color"]) == ("p", "#123456")
    rows = example_runs(tmp_path, methods=("tfidf+unk", "tfidf+toy"), seeds=(1, 2), n_dev=60)
    figure = figure_1(evaluations(rows))
    shown = {text.get_text() for ax in figure.axes for legend in ax.findobj(mpl.legend.Legend) for text in legend.get_texts()}
    assert any("tf-idf + toy" in label for label in shown)


def test_names_are_taken_once(toy_remap, toy_scorer):
    with pytest.raises(ValueError, match="there is a remap 'toy' already"):
        add_remap(REMAPS["toy"])
    with pytest.raises(ValueError, match="there is a scorer 'rare' already"):
        add_scorer(SCORERS["rare"])


@pytest.mark.parametrize("spec", [*REMAPS.values(), *SCORERS.values()], ids=lambda spec: spec.name)
def test_every_spec_says_all_there_is_to_say(spec):
    phrase = spec.becomes if isinstance(spec, RemapSpec) else spec.says
    assert phrase and phrase[0].islower() and phrase[-1] != "."
    assert all(getattr(spec, field.name) is not None for field in fields(spec) if field.name not in ("make", "by_row"))
