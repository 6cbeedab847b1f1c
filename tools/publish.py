"""Publish executed runs: what is removed, what is kept, what is checked, and the tables that lead to the pages.

A result is believed when the run behind it can be read. So executed run notebooks are committed with their outputs, one
page each, with the rows they made. What a notebook picks up on the machine that ran it (paths, progress bars, times of
day) is removed. What it found stays, to the digit.

    python -m tools.publish results/minilm runs runs/notebooks/run.ipynb …

The first argument is the sweep. The others are executed notebooks (their pages) and directories of runs (their rows). A
source that is refused is named, the others are published, and the exit code is 1."""

import base64
import io
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import nbformat

from tools.notebooks import MACHINE, notebook_problems, read_notebook
from vocab_pruning.models.card import markdown_table
from vocab_pruning.report.summary import cut_label, method_label, task_title
from vocab_pruning.runs.record import ROW, read_row, shown_row
from vocab_pruning.scorers.budget import CUTS

MAX_BYTES = 200_000  # dozens of runs stay in the repository for good
NO_RESULTS = "No sweep has been published yet."
_KERNEL = {"kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}}
_NEIGHBOR = re.compile(r"(?<=\]\()(?=[\w/]+\.ipynb)")
_PATH = re.compile(MACHINE.pattern + r"[^\s'\"<>,;:)\]`\\]*")


# What stays of a notebook


def clean_outputs(nb: dict) -> dict:
    """Remove from `nb` execution counts, outputs that are noise, and all metadata but tags and the kernel. Return it.

    Raises `ValueError` if an output is an error, since a run that failed halfway has shown nothing."""
    for number, cell in enumerate(nb["cells"]):
        tags = cell["metadata"].get("tags")
        cell["metadata"] = {"tags": tags} if tags else {}
        if cell["cell_type"] == "code":
            cell["outputs"] = _clean(cell["outputs"], number)
            cell["execution_count"] = None
    nb["metadata"] = _KERNEL
    return nb


def _clean(outputs: list[dict], number: int) -> list[dict]:
    "Return the `outputs` of cell `number` that are worth reading, without execution counts."
    for output in outputs:
        if output["output_type"] == "error":
            raise ValueError(f"cell {number} failed with {output['ename']}: {output['evalue']}; run the notebook again")
    kept = [output for output in outputs if not is_noise(output)]
    return [output | {"execution_count": None} if "execution_count" in output else output for output in kept]


def is_noise(output: dict) -> bool:
    "Return whether `output` is on stderr, a widget, a progress bar, or empty."
    data = output.get("data", {})
    html = "".join(data.get("text/html", ""))
    empty = "text/html" in data and not html.strip()
    widget = any("widget-view" in mime for mime in data)
    return output.get("name") == "stderr" or "<progress" in html or empty or widget


def strip_paths(value):
    """Return `value`, text or nested lists and mappings of it, with every machine path cut to `…/` and its last part.

    Entries of images stay as they are: in base64 anything can look like a path."""
    if isinstance(value, str):
        return _PATH.sub(lambda path: f"…/{path[0].rstrip('/.').rpartition('/')[2]}", value)
    if isinstance(value, dict):
        return {key: part if str(key).startswith("image/") else strip_paths(part) for key, part in value.items()}
    return [strip_paths(part) for part in value] if isinstance(value, list) else value


def relink(nb: dict) -> dict:
    "Rewrite the links of `nb` to other notebooks of `nbs/` so that they work from results/<sweep>/runs/. Return it."
    for cell in nb["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"] = _NEIGHBOR.sub("../../../nbs/", "".join(cell["source"]))
    return nb


def small_png(encoded: str) -> str:
    "Return a PNG in base64 with at most 64 colors, if that is smaller. Plots have few colors, so no change is visible."
    from PIL import Image

    with Image.open(io.BytesIO(base64.b64decode(encoded))) as image:
        white = Image.new("RGBA", image.size, "white")
        flat = Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    new = io.BytesIO()
    flat.quantize(64, dither=Image.Dither.NONE).save(new, "png", optimize=True)
    return min(encoded, base64.b64encode(new.getvalue()).decode() + "\n", key=len)


def _shrink(nb: dict) -> dict:
    "Make the pictures of `nb` small. Return it."
    for cell in nb["cells"]:
        for output in cell.get("outputs", []):
            if png := output.get("data", {}).get("image/png"):
                output["data"]["image/png"] = small_png("".join(png))
    return nb


# A page for each run


def page_name(run: str) -> str:
    "Return the file name of the page of `run`. A plus sign means a space in some addresses, so it is replaced."
    return f"{run.replace('+', '-')}.ipynb"


def run_title(row: dict) -> str:
    "Return title and description of the page of the run that made `row`. All runs have one notebook, hence one title."
    cut = f", {cut_label(row['base'], row['ratio'])} removed" if row.get("ratio") is not None else ""
    kept = "no retention"
    if row.get("retention") is not None:
        kept = f"{row['retention']:.1%} of the full model's {row['full_score']:.4f}"
    title = f"# {task_title(row['task'])}: {method_label(row)}{cut}, seed {row['seed']}"
    return f"{title}\n\n> {row['metric']} {row['score']:.4f}, {kept}; {row['rows']:,} rows."


def publish_run(notebook: str | Path, directory: str | Path) -> Path:
    """Write the executed run `notebook` to `directory` as a page, in place of an older one, and return its path.

    Raises `ValueError`, and writes nothing, for a notebook with a saved error, without a row, with an output that no
    page may show, or of more than `MAX_BYTES` bytes."""
    nb = _shrink(strip_paths(relink(clean_outputs(read_notebook(Path(notebook))))))
    row = shown_row(nb)
    if row is None:
        raise ValueError(f"{notebook} shows no result row; did its run end?")
    nb["cells"][0]["source"] = f"{run_title(row)}\n"
    content = _notebook_bytes(nb)
    if problems := [*notebook_problems(nb), *_size_problems(len(content))]:
        raise ValueError(f"{notebook}: {'; '.join(problems)}")
    page = Path(directory).expanduser() / page_name(row["run"])
    write_whole(page, content)
    return page


def publish_rows(out: str | Path, results: str | Path) -> list[Path]:
    """Copy row and predictions of every run below `out` to `results`/rows, and return the new rows.

    Checkpoints, logs and models stay where they are."""
    rows = []
    for directory in sorted(path.parent for path in Path(out).expanduser().glob(f"[!.]*/{ROW}")):
        new = Path(results).expanduser() / "rows" / directory.name
        for name in ("predictions.csv", ROW):  # a row is there once its predictions are
            write_whole(new / name, (directory / name).read_bytes())
        rows.append(new / ROW)
    return rows


def run_page(notebook: str | Path):
    """Run `notebook` in its folder and save it, clean, in its place.

    Raises `nbclient.exceptions.CellExecutionError` if a cell fails, and writes nothing then."""
    from nbclient import NotebookClient

    path = Path(notebook)
    nb = nbformat.read(path, as_version=4)
    kernel = nb.metadata.get("kernelspec", {})
    resources = {"metadata": {"path": str(path.parent)}}
    NotebookClient(nb, timeout=None, kernel_name="python3", resources=resources).execute()
    clean = clean_outputs(json.loads(nbformat.writes(nb)))
    clean["metadata"] = {"kernelspec": kernel} if kernel else {}
    write_whole(path, _notebook_bytes(clean))


def _notebook_bytes(nb: dict) -> bytes:
    "Return `nb` as the bytes of its file."
    return (json.dumps(nb, indent=1, ensure_ascii=False, sort_keys=True) + "\n").encode()


def write_whole(path: Path, content: bytes):
    "Write `content` to `path`, whole or not at all. Writes through a link, and over what an earlier attempt left."
    path = path.expanduser().resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    new.write_bytes(content)
    new.replace(path)


# The tables that lead to the pages


def results_listing(root: str | Path, start: str) -> str:
    "Return Markdown with the tables of every sweep below `root`/results. Links start at the folder `start` of `root`."
    root = Path(root)
    lines = []
    for results in sorted(path.parent for path in root.glob("results/*/rows")):
        rows = load_rows(results)
        models = ", ".join(sorted({f"`{row['model_id']}` on {row['data_id']}" for row in rows}))
        lines.append(f"### {results.name}")
        lines.append(f"{models}: {len(rows)} runs. Retention in per cent of the full model's score.")
        lines.append(runs_listing(results, root / start))
    return "\n\n".join(lines) or NO_RESULTS


def runs_listing(results: str | Path, start: str | Path = ".") -> str:
    """Return Markdown with the runs of the sweep in `results`: a table for each base, a line for each task and method.

    A column is a ratio. A cell holds the retention of each run, by seed, linked to its page. Links start at `start`."""
    pruned = [row for row in load_rows(results) if row.get("ratio") is not None]
    lines = []
    for (base,), rows in _grouped(pruned, "base").items():
        lines += [f"#### Per cent {CUTS[base]} removed", _base_table(rows, Path(results), Path(start))]
    return "\n\n".join(lines)


def load_rows(results: str | Path) -> list[dict]:
    "Return the rows below `results`/rows, sorted by run; an empty list if there are none."
    return [read_row(path.parent) for path in sorted(Path(results).glob(f"rows/[!.]*/{ROW}"))]


def _base_table(rows: list[dict], results: Path, start: Path) -> str:
    "Return the table of `rows`, all of one base, as `runs_listing` describes it."
    ratios = [ratio for (ratio,) in _grouped(rows, "ratio")]
    by_seed = sorted(rows, key=lambda row: row["seed"])
    named = [row | dict(task=task_title(row["task"]), method=method_label(row)) for row in by_seed]
    runs = _grouped(named, "task", "method", "ratio")
    lines = []
    for task, method in _grouped(named, "task", "method"):
        cells = [runs.get((task, method, ratio), []) for ratio in ratios]
        lines.append([task, method, *(" · ".join(_linked(row, results, start) for row in cell) for cell in cells)])
    return markdown_table(["task", "method", *(f"{100 * ratio:.4g}" for ratio in ratios)], lines, words=2)


def _grouped(rows: Iterable[dict], *names: str) -> dict[tuple, list[dict]]:
    "Return `rows` by their values of `names`, sorted by those values, None first."
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault(tuple(row.get(name) for name in names), []).append(row)
    return dict(sorted(groups.items(), key=lambda item: tuple((value is not None, value) for value in item[0])))


def _linked(row: dict, results: Path, start: Path) -> str:
    "Return the retention of `row` in per cent, linked to its page in `results` if it has one."
    page = results / "runs" / page_name(row["run"])
    shown = percent(row["retention"])
    return f"[{shown}]({Path(os.path.relpath(page, start)).as_posix()})" if page.is_file() else shown


def percent(value: float | None) -> str:
    "Return the fraction `value` in per cent, or a dash for None and NaN."
    return "–" if value is None or value != value else f"{100 * value:.1f}"


# What must hold of all that is published


def results_problems(root: str | Path = ".") -> list[str]:
    "Return the problems of the published sweeps below `root`/results, one line each."
    root = Path(root)
    sweeps = sorted({path.parent for name in ("rows", "runs") for path in root.glob(f"results/*/{name}")})
    return [f"{results.relative_to(root)}: {problem}" for results in sweeps for problem in _sweep_problems(results)]


def _sweep_problems(results: Path) -> Iterator[str]:
    "Yield the problems of the sweep in `results`."
    rows = {page_name(row["run"]): row for row in load_rows(results)}
    pages = {page.name: page for page in sorted(results.glob("runs/*.ipynb"))}
    for name, row in rows.items():
        if strip_paths(row) != row:
            yield f"{row['run']}: names a machine's path"
        if not (results / "rows" / row["run"] / "predictions.csv").is_file():
            yield f"{row['run']}: no predictions.csv"
        if row.get("ratio") is not None and name not in pages:
            yield f"{row['run']}: no page in runs/"
    for name, page in pages.items():
        yield from (f"runs/{name}: {problem}" for problem in _page_problems(page, rows.get(name)))


def _page_problems(page: Path, row: dict | None) -> Iterator[str]:
    "Yield the problems of the published `page` of the run that made `row`."
    yield from _size_problems(page.stat().st_size)
    try:
        nb = read_notebook(page)
    except ValueError as error:
        yield str(error)
        return
    if row is None:
        yield "no row in rows/"
    elif shown_row(nb) != row:
        yield "shows another row than rows/ has"
    if strip_paths(nb) != nb:
        yield "names a machine's path"
    yield from notebook_problems(nb)


def _size_problems(n: int) -> Iterator[str]:
    "Yield a problem if a page of `n` bytes is larger than `MAX_BYTES`."
    if n > MAX_BYTES:
        yield f"{n:,} bytes, more than {MAX_BYTES:,}: draw fewer or smaller pictures"


# The command


def main(results: str, *sources: str) -> int:
    """Publish `sources` to `results`, and return the exit code: 1 if a source was refused.

    Prints each new page and row, and on stderr why a source was refused."""
    refused = 0
    for source in map(Path, sources):
        try:
            rows = source.is_dir()
            print(*(publish_rows(source, results) if rows else [publish_run(source, Path(results) / "runs")]), sep="\n")
        except (OSError, ValueError) as error:
            refused += 1
            print(error, file=sys.stderr)
    return int(refused > 0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
