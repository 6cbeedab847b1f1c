"""The report: rows that do not belong together are refused, numbers are those of the rows and of the paper, and every format holds them."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from scipy import stats

mpl.use("Agg")

from vocab_pruning.report.build import report, sections
from vocab_pruning.report.summary import (
    _verdict,
    at_cut,
    averages,
    check_provenance,
    evaluations,
    front,
    split_provenance,
    who_wins,
)
from vocab_pruning.report.tables import FORMATS, PAPER, Cell, Table, paper_numbers, table_1, table_3
from vocab_pruning.runs.record import ROW
from vocab_pruning.testing.runs import example_runs

METHODS = ("random+unk", "tfidf+unk", "tfidf+cluster", "losparse")
TASKS = ("sst2", "cola", "stsb")


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    "Generated runs: no model was trained for them."
    out = tmp_path_factory.mktemp("runs")
    example_runs(out, TASKS, METHODS, (0.773, 0.95), (1, 2, 3), n_dev=300)
    return out


@pytest.fixture(scope="module")
def rows(out) -> pd.DataFrame:
    return pd.DataFrame([json.loads(path.read_text()) for path in sorted(out.glob(f"*/{ROW}"))])


@pytest.fixture(scope="module")
def lines(rows) -> pd.DataFrame:
    return evaluations(rows)


# Provenance


@pytest.mark.parametrize(("column", "value"), [
    ("machine", "another"), ("device", "cuda"), ("precision", "bf16"), ("model_id", "other"), ("version_vocab_pruning", "0.2"), ("version_torch", "2.0"),
    ("data_fingerprint", "changed"), ("epochs", 7), ("max_train_examples", 100), ("held_out_examples", 20_000), ("model_fingerprint", "changed"),
    ("metric", "f1"), ("head_fingerprint", "trained"), ("truncation_side", "left")])
def test_one_row_of_another_provenance_is_refused_and_named(rows, column, value):
    changed = rows.assign(**{column: rows.get(column, "as it was")}).astype({column: object})
    changed.loc[changed.index[5], column] = value
    with pytest.raises(ValueError, match=rf"\b{column} is ") as error:
        check_provenance(changed)
    assert str(value) in str(error.value) and "split_provenance" in str(error.value)
    parts = split_provenance(changed)
    assert sorted(len(part) for part in parts.values()) == [1, len(rows) - 1]
    for part in parts.values():
        check_provenance(part)


def test_what_varies_by_right_is_no_difference(rows):
    check_provenance(rows.assign(threads=range(len(rows)), finished=range(len(rows)), seconds_train=range(len(rows)), python="3.12"))


def test_the_selection_in_the_message_works(rows):
    changed = rows.assign(epochs=[3.0, *[5.0] * (len(rows) - 1)])
    with pytest.raises(ValueError, match="do not belong") as error:
        check_provenance(changed)
    code = re.search(r"e\.g\. (rows\[.*?\]), or", str(error.value))[1]
    assert len(eval(code, {"rows": changed})) == len(rows) - 1  # code of our own message


def test_no_rows_is_an_error():
    with pytest.raises(ValueError, match="there are no rows"):
        check_provenance(pd.DataFrame())


# Means


def test_the_interval_is_the_textbook_s(lines):
    table = averages(lines)
    one = lines[(lines.label == "tf-idf + unk") & (lines.ratio == 0.95)]
    by_seed = one.groupby("seed").retention.mean().astype(float)
    low, high = stats.t.interval(0.95, 2, by_seed.mean(), stats.sem(by_seed))
    mine = table[(table.label == "tf-idf + unk") & (table.ratio == 0.95)].iloc[0]
    assert (mine["mean"], mine.half, mine.seeds) == pytest.approx((by_seed.mean(), (high - low) / 2, 3))


def test_an_average_over_fewer_tasks_is_none(lines):
    table = averages(lines[~((lines.label == "LoSparse") & (lines.task == "cola"))]).set_index("label")
    assert table.loc["LoSparse", "mean"].isna().all() and set(table.loc["LoSparse", "missing"]) == {"CoLA"}
    assert table.drop("LoSparse")["mean"].notna().all()


def test_a_score_of_zero_has_no_retention(rows):
    zero = rows.task.eq("cola") & rows.method.eq("full")
    lines = evaluations(rows.assign(score=rows.score.mask(zero, 0.0), retention=rows.retention.mask(rows.task.eq("cola"))))
    assert averages(lines)["mean"].isna().all()
    assert "No average, because a retention is missing" in table_1(lines, "vocab", 0.95).note


def test_two_runs_in_one_cell_are_refused(rows):
    with pytest.raises(ValueError, match="fill the same cell"):
        evaluations(pd.concat([rows, rows.tail(1)]))


def test_a_second_split_is_scored_against_the_full_model_on_it(rows):
    shifted = rows.assign(accuracy_from_train=rows.accuracy - 0.1)
    lines = evaluations(shifted)
    extra = lines[lines.column == "sst2_from_train"]
    full = shifted[(shifted.task == "sst2") & (shifted.method == "full")].set_index("seed").accuracy_from_train
    pruned = extra[extra.label != "full model"]
    assert pruned.retention.to_numpy() == pytest.approx((pruned.score / full[pruned.seed].to_numpy()).to_numpy())
    assert averages(lines)["mean"].tolist() == averages(evaluations(rows))["mean"].tolist(), "a second split counts in no average"


# Table 1


def test_cells_are_the_means_of_the_rows(rows, lines):
    table = table_1(lines, "vocab", 0.95)
    row = next(row for row in table.rows if row[0].text == "tf-idf + cluster")
    scores = rows[(rows.method == "tfidf+cluster") & (rows.ratio == 0.95) & (rows.task == "cola")].score
    assert row[table.columns.index("CoLA")].text.startswith(f"{scores.mean():.3f} ± ")
    assert row[-1].text == "3"


def test_the_best_of_each_column_is_bold_and_references_do_not_compete(lines):
    table = table_1(lines, "vocab", 0.95)
    for i, column in enumerate(table.columns[1:-3], 1):
        values = {row[0].text: float(row[i].text.split()[0].replace("−", "-")) for row in table.rows}
        bold = {row[0].text for row in table.rows if row[i].bold}
        best = max(value for label, value in values.items() if label != "full model")
        assert bold == {label for label, value in values.items() if value == best and label != "full model"}, column


def test_the_paper_stands_below_only_at_its_cut(lines):
    there, elsewhere = (table_1(lines, "vocab", ratio) for ratio in (0.773, 0.95))
    below = [{row[0].text: row[table.columns.index("CoLA")].below for row in table.rows} for table in (there, elsewhere)]
    assert below[0] == {"full model": "0.632", "LoSparse": "0.525", "random + unk": "0.470", "tf-idf + unk": "0.520", "tf-idf + cluster": "0.615"}
    assert below[1] == dict.fromkeys(below[0], "") | {"full model": "0.632"}


def test_a_cut_nobody_ran_is_refused(lines):
    with pytest.raises(ValueError, match="no row removes 30 % of the parameters; there are 77.3 % of the rows"):
        table_1(lines, "params", 0.3)


# The paper's numbers


def test_the_paper_s_numbers_are_in_the_package():
    glue = paper_numbers("table1_glue").set_index("method")
    assert glue.loc["TF-IDF Based", ["rte", "avg"]].tolist() == [0.610, 0.805], "the newest revision"
    means = glue.drop(columns="avg").astype(float).mean(axis=1)
    assert (means - glue.avg.astype(float)).abs().max() < 0.0011, "its averages are those of its cells"
    points = paper_numbers("figure1_points").set_index("method").retention_pct
    assert points.to_dict() == {"TF-IDF + OOV": 97.6, "LoSparse": 96.2}
    assert all(len(paper_numbers(name)) for name in PAPER)


def test_table_3_is_the_paper_s_at_its_own_numbers():
    paper = paper_numbers("table3_efficiency").set_index("metric")
    unit = {"params": ("params_millions", 1e6), "bytes": ("storage_mib", 2**20), "latency_ms": ("inference_ms", 1)}
    sides = {"full": "base", "pruned": "pruned"}
    measured = pd.DataFrame([dict(model=model) | {c: paper.loc[m, side] * u for c, (m, u) in unit.items()} for model, side in sides.items()])
    for row in table_3(measured).rows:
        ours, theirs = ([getattr(cell, side) for cell in row[1:]] for side in ("text", "below"))
        assert ours[:2] == theirs[:2]
        assert float(ours[2]) == pytest.approx(float(theirs[2]), abs=0.01), "the paper rounds before it divides, to two decimals"


# Formats

CELLS = ((Cell("tf_idf #1"), Cell("5 ± 1", "4 %", True), Cell("$^~\\{}<|>")), (Cell("−"), Cell("–"), Cell("…")))
ODD = Table("odd", "50 % of a_b & c", ("a_b", "x & y", "100 %"), CELLS, "R&D_1 %")


class Counter(HTMLParser):
    "Open and closed tags, and cells per line."

    def __init__(self):
        super().__init__()
        self.open, self.cells = [], []

    def handle_starttag(self, tag, attrs):
        if tag != "br":
            self.open.append(tag)
        if tag == "tr":
            self.cells.append(0)
        if tag in ("td", "th"):
            self.cells[-1] += 1

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def check_latex(text: str, columns: int):
    "Balanced braces and environments, nothing special unescaped, as many cells in every line."
    bare = re.sub(r"\\[\\&%$#_{}]", "", text)
    assert bare.count("{") == bare.count("}")
    assert re.findall(r"\\begin\{(\w+)\}", text) == re.findall(r"\\end\{(\w+)\}", text)[::-1]
    body = text[text.index(r"\toprule"): text.index(r"\bottomrule")]
    for line in (line for line in body.splitlines() if line.endswith(r" \\")):
        inner = re.sub(r"\\shortstack\{.*?\}\}", "", line)
        plain = re.sub(r"\\[&%$#_{}]", "", inner)
        assert plain.count("&") == columns - 1
        assert not re.search(r"[%#_]", plain), line
        assert plain.count("$") % 2 == 0


def test_latex_escapes_what_is_special():
    text = FORMATS["tex"](ODD)
    assert r"\caption{50 \% of a\_b \& c. R\&D\_1 \%.}" in text
    assert r"a\_b & x \& y & 100 \% \\" in text
    assert r"tf\_idf \#1 & \shortstack{\textbf{5 $\pm$ 1}\\{\scriptsize 4 \%}} & " in text
    assert r" & \$\textasciicircum{}\textasciitilde{}\textbackslash{}\{\}\textless{}|\textgreater{} \\" in text
    check_latex(text, 3)
    assert text.index(r"\toprule") < text.index(r"\midrule") < text.index(r"\bottomrule")


def test_html_is_well_formed_and_escaped():
    counter = Counter()
    counter.feed(FORMATS["html"](ODD))
    assert counter.open == [] and counter.cells == [3, 3, 3]
    assert "$^~\\{}&lt;|&gt;" in FORMATS["html"](ODD)


def test_markdown_has_as_many_cells_in_each_line():
    table = FORMATS["md"](ODD).split("\n\n")[0].splitlines()
    assert [len(re.findall(r"(?<!\\)\|", line)) for line in table] == [4] * 4


@pytest.mark.parametrize("ratio", [0.773, 0.95])
def test_every_format_shows_every_number(lines, ratio):
    table = table_1(lines, "vocab", ratio)
    numbers = [part for row in table.rows for cell in row[1:] for part in (*re.findall(r"\d+\.\d+", cell.text), cell.below) if part]
    assert len(numbers) >= 3 * len(table.rows)
    for write in FORMATS.values():
        assert all(number in write(table) for number in numbers)
    check_latex(FORMATS["tex"](table), len(table.columns))


# Who wins


def test_a_clear_winner_and_a_tie(lines, out):
    won = who_wins(lines, out, "vocab", 0.95, n_draws=300)
    two = ["random + unk", "tf-idf + cluster"]
    pair = won[won["first"].isin(two) & won.second.isin(two) & (won.column == "all tasks")].iloc[0]
    assert pair.verdict == "more than noise" and abs(pair.difference) > pair.smallest
    assert (won.low <= won.high).all() and won.smallest.to_numpy() == pytest.approx(((won.high - won.low) / 2).to_numpy())
    assert ((won.low > 0) | (won.high < 0)).eq(won.verdict == "more than noise").all()


def test_every_pair_meets_over_all_tasks_in_whatever_order_the_rows_are(lines, out):
    turned = pd.concat([some if column == "cola" else some[::-1] for column, some in lines.groupby("column")])
    pairs = [{frozenset(pair) for pair in won.loc[won.column == "all tasks", ["first", "second"]].to_numpy().tolist()}
             for won in (who_wins(some, out, "vocab", 0.95, n_draws=10) for some in (lines, turned))]
    assert pairs[0] == pairs[1] and pairs[0]


def test_a_cut_is_of_the_tasks_and_seeds_that_were_pruned_at_it(lines):
    "The full model's runs on other tasks, or with other seeds, are not compared with anything."
    kept = lines[(lines.label == "full model") | (lines.ratio == 0.95) & (lines.column != "sst2") & (lines.seed == 2)]
    there = at_cut(kept, "vocab", 0.95)
    assert set(there.column) == {"cola", "stsb"} and set(there.seed) == {2}
    assert averages(there)["mean"].notna().all()


def test_the_difference_over_all_tasks_is_that_of_the_average_retentions(lines, out):
    "With the seeds that both have, each beside the full model of its own seed."
    own = lines[lines.ratio.isin([0, 0.95]) & lines.label.isin(["full model", "tf-idf + unk", "random + unk"])]
    won = who_wins(own, out, "vocab", 0.95, reference="tf-idf + unk", n_draws=20).query("column == 'all tasks'").set_index("first")
    means = averages(own).set_index("label")["mean"]
    assert won.loc["random + unk"].difference == pytest.approx(means["random + unk"] - means["tf-idf + unk"])


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_what_does_not_differ_seldom_looks_as_if_it_did(seeds):
    "Where the noise of training is many times that of the examples."
    draw, n = np.random.default_rng(0), 2000
    wrong = sum(_verdict({s: centre + draw.normal(scale=0.1, size=51) for s, centre in enumerate(draw.normal(size=seeds))})["verdict"] == "more than noise"
                for _ in range(n))
    assert wrong / n < 0.07


def test_two_ratios_of_losparse_near_a_cut_are_not_pooled(lines):
    "The nearer one is taken, with all its seeds."
    own = lines[lines.label == "LoSparse"]
    near = own.assign(params_removed=own.params_removed + 0.004, run=own.run + "-near", ratio=own.ratio + 0.004)
    there = at_cut(pd.concat([lines, near[near.seed == 1]], ignore_index=True), "vocab", 0.95).query("label == 'LoSparse'")
    assert not there.duplicated(["column", "seed"]).any() and set(there.seed) == {1, 2, 3} and not there.run.str.endswith("near").any()


def test_losparse_at_the_cut_on_one_task_joins_it_on_another(lines):
    own = lines[(lines.label == "LoSparse") & (lines.column == "cola")]
    named = own.assign(base="vocab", ratio=0.95)
    there = at_cut(pd.concat([lines.drop(own.index), named[named.params_removed == named.params_removed.max()]], ignore_index=True), "vocab", 0.95)
    assert set(there.query("label == 'LoSparse'").column) == {"sst2", "cola", "stsb"}
    assert set(there.query("label == 'LoSparse'").ratio) == {0.95}


def test_a_run_without_the_full_model_gives_way_to_its_twin(rows, lines):
    alone = rows[rows.method == "tfidf+unk"].assign(full_score=None, retention=None, run=lambda t: t.run + "-alone")
    assert len(evaluations(pd.concat([rows, alone], ignore_index=True))) == len(lines)
    assert len(evaluations(pd.concat([rows[rows.method == "full"], alone], ignore_index=True))) == len(alone) + (rows.method == "full").sum()


def test_retention_is_beside_the_full_model_s_row(rows):
    "Not beside a score that an earlier training of it had."
    again = evaluations(rows.assign(full_score=rows.full_score * 0.9))
    full = again[again.label == "full model"].set_index(["task", "seed"]).score
    assert again.full_score.to_numpy() == pytest.approx(full.loc[pd.MultiIndex.from_frame(again[["task", "seed"]])].to_numpy())


def test_a_task_of_one_s_own_has_a_report(rows, out, tmp_path):
    "Its metric stands in the row; its name may hold an underscore."
    import shutil

    own = rows[rows.task == "cola"].assign(task="film_reviews")
    shutil.copytree(out, tmp_path / "runs")
    titles = [section.title for section in sections(own, tmp_path / "runs", reference="tf-idf + unk")]
    assert "Who wins" in titles
    table = table_1(evaluations(own), "vocab", 0.95)
    assert "film_reviews" in table.columns


def test_a_part_without_a_pruned_run_does_not_stop_the_others(rows, out, tmp_path):
    "A full model with another recipe, whose pruned run was stopped."
    alone = rows[rows.method == "full"].head(1).assign(epochs=99)
    page = report(pd.concat([rows.assign(epochs=3), alone], ignore_index=True), tmp_path / "report", runs=out, images=("png",), formats=("md",), apart=True)
    assert "The full model alone; nothing was pruned." in page.read_text() and "figure1" in page.read_text()


def test_baselines_alone_are_no_report(rows):
    with pytest.raises(ValueError, match="the full model alone"):
        sections(rows[rows.method == "full"].dropna(axis=1, how="all"))


def test_a_second_split_alone_has_no_average(lines, out):
    won = who_wins(lines[(lines.column == "cola")].assign(main=False), out, "vocab", 0.95, n_draws=10)
    assert len(won) and set(won.column) == {"cola"}


def test_the_difference_is_that_of_the_scores(lines, out):
    won = who_wins(lines, out, "vocab", 0.95, reference="tf-idf + unk", n_draws=50)
    compared = won[(won.column != "all tasks") & (won["first"] != "LoSparse")]  # whose cut has another name in `lines`
    assert set(compared.column) == set(TASKS) and compared["first"].nunique() == 3
    for one in compared.itertuples():
        task = lines[(lines.column == one.column) & lines.ratio.isin([0, 0.95])]
        first, second = (task[task.label == label].groupby("seed").score.mean() for label in (one.first, one.second))
        assert one.difference == pytest.approx((first - second).mean())


def test_more_examples_show_smaller_differences(tmp_path):
    smallest = []
    for n in (200, 3200):
        lines = evaluations(example_runs(tmp_path / str(n), ("sst2",), ("tfidf+unk", "tfidf+cluster"), (0.95,), (1,), n_dev=n))
        won = who_wins(lines, tmp_path / str(n), "vocab", 0.95, reference="tf-idf + unk", n_draws=300)
        smallest.append(won[(won["first"] == "full model") & (won.column == "sst2")].smallest.iloc[0])
    assert smallest[1] < smallest[0] / 2


def test_runs_on_other_examples_are_refused(lines, out, tmp_path):
    import shutil

    copy = tmp_path / "runs"
    shutil.copytree(out, copy)
    path = copy / lines[(lines.task == "sst2") & (lines.ratio == 0.95)].run.iloc[0] / "predictions.csv"
    pd.read_csv(path).assign(label=lambda t: 1 - t.label).to_csv(path, index=False)
    with pytest.raises(ValueError, match="different examples"):
        who_wins(lines, copy, "vocab", 0.95)


def test_the_front_is_not_beaten():
    draw = np.random.default_rng(0)
    points = pd.DataFrame(dict(bytes=draw.integers(1, 30, 200), mean=draw.random(200)))
    best = front(points)
    small, good = points.bytes.to_numpy(), points["mean"].to_numpy()
    beats = [((small <= s) & (good >= g) & ((small < s) | (good > g))).any() for s, g in zip(small, good, strict=True)]
    assert set(best.index) == {i for i, beaten in enumerate(beats) if not beaten}


# The directory


@pytest.fixture(scope="module")
def written(out, tmp_path_factory) -> Path:
    return report(out, tmp_path_factory.mktemp("report") / "report", images=("png",))


def test_the_page_holds_every_table_and_figure(written):
    page, files = written.read_text(encoding="utf-8"), {path.name for path in written.parent.iterdir()}
    assert {name for name in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page)} == {name for name in files if name.endswith(".png")}
    assert {"figure1.png", "figure2.png", "pareto.png", "heat-cola.png", "heat-sst2.png", "heat-stsb.png", "wins-vocab-0.95.png"} <= files
    for table in (path for path in written.parent.glob("*.md") if path.name != "index.md"):
        assert table.read_text(encoding="utf-8").splitlines()[0] in page, table.name
        assert {table.with_suffix(f".{end}").name for end in FORMATS} <= files
    assert "ModernBERT-base: not run here" in page
    assert not re.search(r"\bnan\b|None", page)


def test_every_latex_table_is_sound(written):
    tables = [*written.parent.glob("*.tex")]
    assert len(tables) >= 6
    for path in tables:
        text = path.read_text(encoding="utf-8")
        columns = len(re.search(r"\\begin\{tabular\}\{(l?r*)\}", text)[1])
        check_latex(text, columns)


def test_a_report_replaces_a_report_and_nothing_else(out, written, tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(FileExistsError, match="not an earlier save"):
        report(out, tmp_path, images=("png",))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_failure_leaves_what_was_there(rows, written):
    before = sorted(path.name for path in written.parent.iterdir())
    with pytest.raises(FileNotFoundError):
        report(rows, written.parent, runs=written.parent / "no runs here", images=("png",))
    assert sorted(path.name for path in written.parent.iterdir()) == before
    assert [path.name for path in written.parent.parent.iterdir()] == ["report"]


def test_a_single_run_makes_a_report_too(rows):
    few = rows[(rows.seed == 1) & (rows.task == "cola") & rows.method.isin(["full", "tfidf+unk"]) & rows.ratio.isin([0.95, np.nan])]
    made = {section.title: section for section in sections(few)}
    assert "Table 1" in made and "One seed, so no intervals" in made["Table 1"].parts[-1].note
