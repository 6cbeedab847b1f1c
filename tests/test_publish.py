"""Executed runs become pages, rows become tables, and the README is made from both."""

import base64
import io
import json
import re
import shutil
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient.exceptions import CellExecutionError
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from tools.publish import (
    MAX_BYTES,
    NO_RESULTS,
    clean_outputs,
    is_noise,
    main,
    page_name,
    percent,
    publish_rows,
    publish_run,
    relink,
    results_listing,
    results_problems,
    run_page,
    run_title,
    runs_listing,
    small_png,
    strip_paths,
    write_whole,
)
from tools.readme import page_figures, readme_results, readme_text, write_readme
from vocab_pruning.report.kept import COMPARED
from vocab_pruning.runs.record import PACKED_ROWS, shown_row

BAR = new_output("display_data", {"text/html": "<progress value='3'></progress>", "text/plain": "<HTML>"})
WIDGET = new_output("display_data", {"application/vnd.jupyter.widget-view+json": {}, "text/plain": "0%"})
ERROR = new_output("error", ename="ZeroDivisionError", evalue="division by zero")
FAILED = new_notebook(cells=[new_code_cell("1 / 0", outputs=[ERROR])])
ROW = dict(
    run="cola-tfidf+pq-seen-0.2-minilm-42-0123abcd",
    task="cola",
    method="tfidf+pq",
    base="seen",
    ratio=0.2,
    seed=42,
    metric="matthews",
    score=0.25,
    full_score=0.2,
    retention=1.25,
    rows=4473,
    rows_full=30522,
    params_removed=0.44,
    bytes=5e7,
    model_id="minilm",
    data_id="glue",
    epochs=3,
)


def variant(**changes) -> dict:
    "`ROW` of another run."
    new = ROW | changes
    return new | {"run": "{task}-{method}-{base}-{ratio}-{seed}".format(**new)}


SWEEP = [
    variant(task="cola", ratio=0.2, retention=1.25),
    variant(task="cola", ratio=0.5, retention=0.9),
    variant(task="rte", ratio=0.5, retention=None),
    variant(task="cola", seed=43, ratio=0.5, retention=0.8),
    variant(method="full", base=None, ratio=None, retention=None),
]
ROOT = Path(__file__).resolve().parent.parent
BOTH = [
    variant(task="cola", score=0.45, full_score=0.5),
    variant(task="cola", seed=43, score=0.4, full_score=0.5),
    variant(task="rte", score=0.35, full_score=0.5, params_removed=0.4),
]


def executed_run(row: dict, *outputs):
    "An executed run notebook as papermill leaves it, showing `row` and more `outputs`."
    slow = new_output("stream", name="stderr", text="x.py: UserWarning: slow")
    shown = new_output("display_data", {"application/json": row})
    cells = [
        new_markdown_cell("# One run\n\n> One task, one ratio.\n\n- skip_exec: true"),
        new_code_cell('out = "/home/me/runs"', metadata={"tags": ["injected-parameters"]}, execution_count=1),
        new_code_cell("train()", execution_count=2, outputs=[BAR, slow, *outputs]),
        new_code_cell("row", execution_count=3, outputs=[shown]),
    ]
    return new_notebook(cells=cells, metadata={"papermill": {"output_path": "/home/me/out.ipynb"}})


def write_results(results: Path, rows: list[dict], published=lambda row: True) -> Path:
    "Write a directory of results as a sweep leaves it: `rows`, and the pages of those that are `published`."
    for row in rows:
        (made := results / "rows" / row["run"]).mkdir(parents=True)
        (made / "result.json").write_text(json.dumps(row))
        (made / "predictions.csv").write_text("split,label,prediction\n")
        if published(row):
            nbformat.write(executed_run(row), executed := results / "executed.ipynb")
            publish_run(executed, results / "runs")
            executed.unlink()
    return results


def png(pixels) -> str:
    "An array of pixels as a PNG in base64."
    Image.fromarray(pixels).save(file := io.BytesIO(), "png")
    return base64.b64encode(file.getvalue()).decode()


PLOT = png(np.random.default_rng(0).integers(0, 256, (64, 256, 3), dtype=np.uint8))


# What stays of a notebook


@pytest.mark.parametrize(
    ("output", "noise"),
    [
        (BAR, True),
        (WIDGET, True),
        (new_output("stream", name="stderr", text="hm"), True),
        (new_output("display_data", {"text/html": ""}), True),
        (new_output("stream", text="3"), False),
        (new_output("display_data", {"text/markdown": "**3**"}), False),
    ],
)
def test_what_is_noise(output, noise):
    assert is_noise(output) == noise


def test_outputs_tags_and_the_kernel_stay():
    three = new_output("execute_result", {"text/plain": "3"}, execution_count=7)
    cell = new_code_cell("3", execution_count=7, outputs=[BAR, three])
    cell.metadata = {"tags": ["parameters"], "papermill": {"duration": 1.0}}
    nb = new_notebook(cells=[cell], metadata={"papermill": {"output_path": "/home/me/out.ipynb"}})
    cleaned = nbformat.from_dict(clean_outputs(nb))
    nbformat.validate(cleaned)
    (cell,) = cleaned.cells
    assert [output.data["text/plain"] for output in cell.outputs] == ["3"]
    assert (cell.execution_count, cell.outputs[0].execution_count) == (None, None)
    assert cell.metadata == {"tags": ["parameters"]} and list(cleaned.metadata) == ["kernelspec"]


def test_a_saved_error_is_no_result():
    with pytest.raises(ValueError, match="cell 0 failed with ZeroDivisionError"):
        clean_outputs(FAILED)


@pytest.mark.parametrize(
    ("value", "stripped"),
    [
        (
            {"source": ['out = "/home/me/main/runs/v2"\n', "see https://example.org/home/x"], "image/png": "A/tmp/B"},
            {"source": ['out = "…/v2"\n', "see https://example.org/home/x"], "image/png": "A/tmp/B"},
        ),
        ("in /tmp/a/b.csv.", "in …/b.csv"),
        (["runs/x", 3, None], ["runs/x", 3, None]),
    ],
)
def test_a_path_keeps_its_last_part(value, stripped):
    assert strip_paths(value) == stripped


def test_links_to_other_notebooks_work_from_the_page():
    text = "See [LoSparse](evaluate/losparse.ipynb), [tf-idf](scorers/tfidf.ipynb), [nbdev](https://nbdev.fast.ai/x.ipynb)."
    (cell,) = relink(new_notebook(cells=[new_markdown_cell(text)]))["cells"]
    assert cell["source"] == (
        "See [LoSparse](../../../nbs/evaluate/losparse.ipynb), [tf-idf](../../../nbs/scorers/tfidf.ipynb), "
        "[nbdev](https://nbdev.fast.ai/x.ipynb)."
    )


def test_a_picture_gets_smaller_and_keeps_its_size():
    after = small_png(PLOT)
    with Image.open(io.BytesIO(base64.b64decode(after))) as image:
        assert image.size == (256, 64) and len(image.getcolors()) <= 64
    assert len(after) < len(PLOT)


def test_a_picture_never_gets_larger():
    dot = png(np.zeros((1, 1, 3), np.uint8))
    assert len(small_png(dot)) <= len(dot)


# A page for each run


def test_a_title_says_which_run_it_is():
    title, _, line = run_title(ROW).splitlines()
    assert title == "# CoLA: tf-idf + pq, 20 % of the rows that train uses removed, seed 42"
    assert line == "> matthews 0.2500, 125.0% of the full model's 0.2000; 4,473 rows."


def test_a_page_shows_the_run_and_nothing_of_the_machine(tmp_path):
    figure = new_output("display_data", {"image/png": PLOT, "text/plain": "<Figure>"})
    nbformat.write(executed_run(ROW, figure), tmp_path / "out.ipynb")
    page = publish_run(tmp_path / "out.ipynb", tmp_path / "runs")
    text, nb = page.read_text(encoding="utf-8"), nbformat.read(page, 4)
    nbformat.validate(nb)
    assert page.name == "cola-tfidf-pq-seen-0.2-minilm-42-0123abcd.ipynb"
    assert not any(noise in text for noise in ("/home/", "papermill", "UserWarning", "<progress"))
    assert nb.cells[0].source == f"{run_title(ROW)}\n" and nb.cells[1].source == 'out = "…/runs"'
    assert shown_row(nb) == ROW
    assert [list(output.data) for output in nb.cells[2].outputs] == [["image/png", "text/plain"]]


@pytest.mark.parametrize(
    ("nb", "reason"),
    [
        (FAILED, "failed with ZeroDivisionError"),
        (new_notebook(cells=[new_markdown_cell("# One run")]), "shows no result row"),
        (executed_run(ROW, new_output("stream", text="FutureWarning: soon")), "a warning in an output"),
        (executed_run(ROW, new_output("stream", text="long " * 50_000)), "more than 200,000"),
    ],
    ids=["error", "no row", "warning", "large"],
)
def test_a_refused_run_writes_nothing(tmp_path, nb, reason):
    nbformat.write(nb, tmp_path / "out.ipynb")
    with pytest.raises(ValueError, match=reason):
        publish_run(tmp_path / "out.ipynb", tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_rows_and_predictions_are_copied_and_nothing_else(tmp_path):
    (run := tmp_path / "runs" / ROW["run"]).mkdir(parents=True)
    for name in ("result.json", "predictions.csv", "history.json"):
        (run / name).write_text("{}")
    (copied,) = publish_rows(run.parent, tmp_path / "results")
    assert copied == tmp_path / "results" / "rows" / ROW["run"] / "result.json"
    assert sorted(path.name for path in copied.parent.iterdir()) == ["predictions.csv", "result.json"]


def test_a_page_is_run_in_its_folder_and_saved_clean(tmp_path):
    source = "import sys\nprint(1 + 1)\nprint('hm', file=sys.stderr)"
    nbformat.write(new_notebook(cells=[new_code_cell(source)]), page := tmp_path / "page.ipynb")
    run_page(page)
    (cell,) = nbformat.read(page, 4).cells
    assert [(output.name, output.text) for output in cell.outputs] == [("stdout", "2\n")]
    assert cell.execution_count is None


def test_a_page_with_a_failing_cell_stays_as_it_was(tmp_path):
    nbformat.write(new_notebook(cells=[new_code_cell("1 / 0")]), page := tmp_path / "page.ipynb")
    before = page.read_text()
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        run_page(page)
    assert page.read_text() == before


def test_a_file_is_written_whole_and_through_a_link(tmp_path):
    (tmp_path / "link.md").symlink_to(tmp_path / "real.md")
    (tmp_path / ".real.md.new").write_text("half of an earlier o")
    write_whole(tmp_path / "link.md", b"whole")
    assert (tmp_path / "real.md").read_bytes() == b"whole" and (tmp_path / "link.md").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.md", "real.md"]


# The tables that lead to the pages


@pytest.mark.parametrize(("value", "shown"), [(0.98, "98.0"), (None, "–"), (float("nan"), "–")])
def test_a_share_is_shown_in_per_cent(value, shown):
    assert percent(value) == shown


def test_a_retention_leads_to_its_page(tmp_path):
    results = write_results(tmp_path / "results" / "minilm", SWEEP, lambda row: row["task"] == "cola")
    pages = "../results/minilm/runs/cola-tfidf-pq-seen"
    assert runs_listing(results, tmp_path / "nbs").splitlines() == [
        "#### Per cent of the rows that train uses removed",
        "",
        "| task | method | 20 | 50 |",
        "| --- | --- | ---: | ---: |",
        f"| CoLA | tf-idf + pq | [125.0]({pages}-0.2-42.ipynb) | "
        f"[90.0]({pages}-0.5-42.ipynb) · [80.0]({pages}-0.5-43.ipynb) |",
        "| RTE | tf-idf + pq |  | – |",
    ]


def test_without_rows_there_is_no_table(tmp_path):
    assert runs_listing(tmp_path / "no" / "such" / "place") == ""
    assert results_listing(tmp_path, "nbs") == NO_RESULTS


def test_every_sweep_is_listed(tmp_path):
    write_results(tmp_path / "results" / "minilm", SWEEP)
    assert results_listing(tmp_path, "nbs").splitlines()[:3] == [
        "### minilm",
        "",
        "`minilm` on glue: 5 runs. Retention in per cent of the full model's score.",
    ]


# What must hold of all that is published


@pytest.fixture
def results(tmp_path) -> Path:
    "A sweep of which every row has its page."
    write_results(results := tmp_path / "results" / "minilm", BOTH)
    assert results_problems(tmp_path) == []
    return results


def found(results: Path) -> list[str]:
    "The problems of the one sweep there is."
    return [problem.removeprefix("results/minilm: ") for problem in results_problems(results.parent.parent)]


def test_missing_predictions_are_found(results):
    (results / "rows" / BOTH[0]["run"] / "predictions.csv").unlink()
    assert found(results) == [f"{BOTH[0]['run']}: no predictions.csv"]


def test_a_page_of_another_row_is_found(results):
    (results / "rows" / BOTH[1]["run"] / "result.json").write_text(json.dumps(BOTH[1] | {"score": 0.99}))
    assert found(results) == [f"runs/{page_name(BOTH[1]['run'])}: shows another row than rows/ has"]


def test_a_row_without_its_page_and_a_page_without_its_row_are_found(results):
    (results / "runs" / page_name(BOTH[0]["run"])).rename(results / "runs" / "elsewhere.ipynb")
    assert found(results) == [f"{BOTH[0]['run']}: no page in runs/", "runs/elsewhere.ipynb: no row in rows/"]


def test_a_path_of_the_machine_is_found(results):
    page = results / "runs" / page_name(BOTH[0]["run"])
    page.write_text(page.read_text().replace("…/runs", "/home/me/runs"))
    assert found(results) == [f"runs/{page.name}: names a machine's path"]


def test_a_page_that_is_large_and_no_notebook_is_found(results):
    (results / "runs" / "broken.ipynb").write_text("{" + " " * MAX_BYTES)
    large, invalid = found(results)
    assert large == "runs/broken.ipynb: 200,001 bytes, more than 200,000: draw fewer or smaller pictures"
    assert invalid.startswith("runs/broken.ipynb: not a valid notebook")


# The command


def test_the_command_publishes_what_it_can_and_names_what_it_refuses(tmp_path, capsys):
    nbformat.write(executed_run(ROW), good := tmp_path / "good.ipynb")
    nbformat.write(FAILED, bad := tmp_path / "bad.ipynb")
    (run := tmp_path / "runs" / ROW["run"]).mkdir(parents=True)
    (run / "result.json").write_text(json.dumps(ROW))
    (run / "predictions.csv").touch()
    results = str(tmp_path / "results" / "small")
    assert main(results, str(bad), str(run.parent), str(good)) == 1
    said = capsys.readouterr()
    assert "ZeroDivisionError" in said.err and page_name(ROW["run"]) in said.out
    assert results_problems(tmp_path) == []
    assert main(results, str(good)) == 0


# The README


def test_the_readme_has_what_a_reader_sees_with_links_from_the_root(tmp_path):
    table = new_output("display_data", {"text/markdown": "[row](../results/a.ipynb)"})
    cells = [
        new_markdown_cell("# title\n\n[why](core.ipynb), [site](https://example.org)"),
        new_code_cell("#| hide\n1"),
        new_code_cell("2"),
        new_code_cell("#| echo: false\nshow()", outputs=[table]),
    ]
    (tmp_path / "nbs").mkdir()
    nbformat.write(new_notebook(cells=cells), index := tmp_path / "nbs" / "index.ipynb")
    assert readme_text(index) == (
        "# title\n\n[why](nbs/core.ipynb), [site](https://example.org)\n\n```python\n2\n```\n\n[row](results/a.ipynb)\n"
    )


def test_a_figure_of_the_readme_is_the_one_of_its_page(tmp_path, monkeypatch):
    monkeypatch.setattr("tools.readme.FIGURES", {"nbs/images/bytes_against_retention.png": ("nbs/results/remaps.ipynb", 1)})
    image = "nbs/images/bytes_against_retention.png"
    figure = new_output("display_data", {"image/png": PLOT})
    home = new_markdown_cell("# home\n\n[map](images/bytes_against_retention.png)")
    (tmp_path / "nbs" / "results").mkdir(parents=True)
    nbformat.write(new_notebook(cells=[home]), tmp_path / "nbs" / "index.ipynb")
    page = tmp_path / "nbs" / "results" / "remaps.ipynb"
    nbformat.write(new_notebook(cells=[new_code_cell("plot()", outputs=[figure, figure])]), page)
    assert page_figures(page) == [base64.b64decode(PLOT)] * 2
    write_readme(tmp_path)
    assert (tmp_path / "README.md").read_text() == f"# home\n\n[map]({image})\n"
    assert (tmp_path / image).read_bytes() == base64.b64decode(PLOT)


def packed(folder, change) -> Path:
    "Write the rows of the fine-tuned models to `folder`, each changed by `change`; None leaves one out."
    shutil.copytree(ROOT / "results" / "after", folder / "after")
    rows = [change(json.loads(line)) for line in (folder / "after" / PACKED_ROWS).read_text().splitlines()]
    (folder / "after" / PACKED_ROWS).write_text("".join(json.dumps(row) + "\n" for row in rows if row))
    return folder / "after"


def test_the_table_of_the_readme_has_every_remap_with_intervals(tmp_path):
    sentence, table = readme_results(packed(tmp_path, lambda row: row if row["seed"] == 42 else None)).split("\n\n")
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert "TREC 1" in sentence and [line[0] for line in lines[2:]] == [f"`{kind}`" for kind in COMPARED]
    for line in lines[2:]:
        for cell in line[2:]:
            mean, low, high = map(float, re.findall(r"[\d.]+", cell))
            assert low <= mean <= high <= 105 and low < high


@pytest.mark.parametrize(("change", "message"), [
    (lambda row: row | {"model_id": "bert"} if row.get("oov") == "unk" else row, "model_id is"),
    (lambda row: row | {"epochs": 9} if row.get("ratio") == 0.95 else row, "epochs is"),
    (lambda row: None if row.get("oov") == "pq" else row, "holds no task with every one of int4, pq"),
], ids=["model", "recipe", "remap"])
def test_rows_that_do_not_belong_in_the_table_of_the_readme_are_refused(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        readme_results(packed(tmp_path, change))
