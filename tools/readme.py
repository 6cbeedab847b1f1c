"""Write the README: the home page as Markdown, with the figures and the table of results in it.

`nbdev_readme` does this with Quarto and offers no part that works without, so nbconvert does it here.

    python -m tools.readme   run nbs/index.ipynb, then write README.md and its figures (`make readme`)"""

import base64
import os
import re
from pathlib import Path

import nbformat

from tools.nbfilter import apply_options
from tools.notebooks import read_notebook
from tools.publish import NO_RESULTS, percent, run_page, write_whole
from vocab_pruning.models.card import markdown_table
from vocab_pruning.report.summary import (
    at_cut,
    averages,
    check_provenance,
    cut_label,
    cuts,
    evaluations,
    score_means,
    sort_columns,
    task_title,
)
from vocab_pruning.report.tables import method_order
from vocab_pruning.runs.record import read_rows

# Each figure of the README, with the page that shows it and its place among that page's figures.
FIGURES = {
    "nbs/images/method.svg": ("nbs/guide/method.ipynb", 0),
    "nbs/images/bytes_against_retention.png": ("nbs/results/remaps.ipynb", 1),
}


def readme_text(index: Path) -> str:
    "Return the Markdown of the notebook `index` as a reader sees it, with links that start at the folder above."
    from nbconvert import MarkdownExporter

    nb = nbformat.reads(index.read_text(encoding="utf-8"), as_version=4)
    nb.metadata["language_info"] = {"name": "python"}
    shown = [cell for cell in nb.cells if not re.match(r"#\|\s*hide\b", cell.source)]
    nb.cells = [apply_options(cell) for cell in shown]
    text = _relinked(MarkdownExporter().from_notebook_node(nb)[0], index.parent.name)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def _relinked(text: str, folder: str) -> str:
    "Return Markdown `text` of a page in `folder` with relative links that start at the folder above."
    return re.sub(r"\]\((?![a-z]+:|#)([^)]+)\)", lambda link: f"]({os.path.normpath(f'{folder}/{link[1]}')})", text)


def page_figures(notebook: str | Path) -> list[bytes]:
    "Return the figures that `notebook` shows, in order: PNG, or SVG where there is no PNG."
    cells = read_notebook(Path(notebook))["cells"]
    shown = [output["data"] for cell in cells for output in cell.get("outputs", []) if "data" in output]
    images = (data.get("image/png") or data.get("image/svg+xml") for data in shown)
    texts = ["".join(image) for image in images if image]
    return [text.encode() if text.startswith("<") else base64.b64decode(text) for text in texts]


def readme_files(root: str | Path = ".") -> dict[str, bytes]:
    "Return what the README of the project in `root` and its figures must be, by path."
    root = Path(root)
    figures = {name: page_figures(root / page)[number] for name, (page, number) in FIGURES.items()}
    return {"README.md": readme_text(root / "nbs" / "index.ipynb").encode()} | figures


def write_readme(root: str | Path = "."):
    "Write README and figures of the project in `root`."
    for name, content in readme_files(root).items():
        write_whole(Path(root) / name, content)


def readme_results(results: str | Path) -> str:
    """Return the README's paragraph and table of the sweep in `results`: the cut with most runs, a mean over the seeds.

    Returns one sentence if the sweep has no cut. Raises `ValueError` for rows that differ in model, data or recipe,
    since they do not belong in one table."""
    rows = read_rows(Path(results).absolute() / "rows")
    if "ratio" not in rows or rows.ratio.isna().all():
        return NO_RESULTS
    check_provenance(rows)
    lines = evaluations(rows)
    made = cuts(lines)
    if not made:
        return NO_RESULTS
    (base, ratio), *_ = made
    seeds = ", ".join(map(str, sorted(rows.seed.unique())))
    return (
        f"Retention with {cut_label(base, ratio)} removed: the pruned model's dev score in per cent of the full "
        f"model's, same weights, data, recipe and seed (`{rows.model_id[0]}`, {rows.data_id[0]}, seeds {seeds}; more "
        f"than one is a mean).\n\n{_results_table(at_cut(lines, base, ratio))}"
    )


def _results_table(lines) -> str:
    "Return Markdown with the retention of each method in `lines`, all of one cut, by task, and its mean over tasks."
    kept = score_means(lines, "retention").pivot(index="label", columns="column", values="mean")
    sizes = averages(lines).set_index("label")
    columns = sort_columns(kept)
    cells = []
    for label, size in sizes.loc[sorted(kept.index, key=method_order)].iterrows():
        removed, mebibytes = f"{size.params_removed:.0%}", f"{size.bytes / 2**20:.1f}"
        cells.append([label, removed, mebibytes, *map(percent, kept.loc[label, columns]), percent(size["mean"])])
    return markdown_table(["method", "parameters removed", "MiB", *map(task_title, columns), "mean"], cells)


if __name__ == "__main__":
    run_page("nbs/index.ipynb")
    write_readme()
