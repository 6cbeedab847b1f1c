"""Write the README: the home page as Markdown, with the figures and the table of results in it.

`nbdev_readme` does this with Quarto and offers no part that works without, so nbconvert does it here.

    python -m tools.readme   run nbs/index.ipynb, then write README.md and its figures (`make readme`)"""

import base64
import os
import re
from collections.abc import Sequence
from pathlib import Path

import nbformat

from tools.nbfilter import apply_options
from tools.notebooks import read_notebook
from tools.publish import run_page, write_whole
from vocab_pruning.models.card import markdown_table
from vocab_pruning.report.kept import COMPARED, kept_by_rows, pruned_after, remap_of, tasks_to_average, with_interval
from vocab_pruning.report.summary import ALL_TASKS, check_provenance, evaluations, sort_columns, task_title
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


def readme_results(
    results: str | Path,  # a directory that `pack_runs` wrote
    ratios: Sequence[float] = (0.9, 0.95, 0.975),  # of the vocabulary; the second is shown in full
) -> str:
    """Return the README's paragraph and table of what fine-tuned models keep when they are pruned.

    It has the tasks that have every remap and ratio, and on which seeds score alike (`tasks_to_average`).
    Raises `ValueError` for rows that differ in model, data or recipe, and for a directory without such tasks."""
    rows = pruned_after(read_rows(Path(results).absolute()))
    check_provenance(rows)
    lines = evaluations(rows)
    columns = sort_columns(tasks_to_average(lines, ratios))
    if not columns:
        raise ValueError(f"{results} holds no task with every one of {', '.join(COMPARED)} at {ratios}; make more runs")
    kept = kept_by_rows(lines, Path(results).absolute(), columns)
    kept = kept[kept.column == ALL_TASKS].assign(remap=kept.label.map(remap_of))
    seeds = lines[lines.column.isin(columns)].groupby("column").seed.nunique()
    told = ", ".join(f"{task_title(column)} {seeds[column]}" for column in columns)
    return (f"`{rows.model_id.iloc[0]}`; a mean over tasks (seeds: {told}), with its 95 % interval over seeds and "
            f"examples.\n\n{_results_table(kept, ratios)}")


def _results_table(kept, ratios: Sequence[float]) -> str:
    "Return Markdown with the agreement of each remap at each of `ratios`, and its size and retention at the second."
    rows = []
    for kind in COMPARED:
        some = kept[kept.remap == kind].set_index(["value", "ratio"])
        agreement = [with_interval(some.loc["agreement", ratio]) for ratio in ratios]
        middle = some.loc["retention", ratios[1]]
        rows.append([f"`{kind}`", f"{middle.bytes / 2**20:.1f}", *agreement, with_interval(middle)])
    shares = [f"{1 - ratio:.1%}".replace(".0", "") for ratio in ratios]
    names = [f"agreement, {share} of rows" for share in shares] + [f"retention, {shares[1]}"]
    return markdown_table(["remap", f"MiB, {shares[1]}", *names], rows)


if __name__ == "__main__":
    run_page("nbs/index.ipynb")
    write_readme()
