"""The filter through which Quarto reads every notebook: nbdev's own, with corrections.

Quarto runs the command under `ipynb-filters` in `_quarto.yml`, gives it a notebook on stdin, and renders what it
prints. nbdev replaces exported code by its documentation and drops hidden cells. It expects to run before Quarto, not
inside it, so this module corrects five things.

- nbdev turns the whole first cell into front matter and keeps only its title lines. The rest moves to its own cell.
- nbdev runs `exec_doc` cells only on pages that document a function. Here they run on every page.
- nbdev derives an `output-file` from a path that Quarto does not tell. It is removed: a page keeps its notebook's name.
- nbdev adds a key that is not valid in a notebook, and Quarto warns about outputs that only programs read. Both go.
- An executed run is one of many alike: its page is left out of the search, folds its code and leads back to the list."""

import contextlib
import importlib.util
import json
import re
import sys

_TITLE_LINES = re.compile(r"(?:[ \t]*(?:#[ \t].*|>.*|-[ \t]+\S.*:.*)?(?:\n|\Z))*")
_BACK = "[All runs](../../../nbs/results/runs.ipynb), with the conclusions that they support."
_OPTIONS = re.compile(r"(?:#\|[^\n:]+:[^\n]*(?:\n|\Z))*")
NO_NBDEV = "vocab-pruning-filter needs nbdev: pip install vocab_pruning[dev]"


def filter_notebook(text: str) -> str:
    """Return notebook JSON `text` as nbdev documents it, with `show_doc` for exported code and without hidden cells.

    Runs the exported cells, the imports and the cells marked `exec_doc` in the working directory. What they print goes
    to stderr. Raises `ModuleNotFoundError` without nbdev."""
    from execnb.nbio import dict2nb, nb2dict

    given = split_title(json.loads(text))
    is_run = shows_row(given)
    if is_run:
        given["cells"].insert(1, {"cell_type": "markdown", "id": "back", "metadata": {}, "source": _BACK})
    nb = dict2nb(given)
    nb.path_ = "notebook.ipynb"
    with contextlib.redirect_stdout(sys.stderr):
        _document(nb)
    for cell in nb.cells:
        _correct(cell)
        if is_run and cell.cell_type == "raw":
            cell.source = cell.source.replace("---\n", "---\nsearch: false\ncode-fold: true\n", 1)
    return json.dumps(nb2dict(nb))


def shows_row(nb: dict) -> bool:
    "Return whether `nb` is an executed run: it displays its result row as JSON."
    outputs = [output for cell in nb["cells"] for output in cell.get("outputs", [])]
    return any("application/json" in output.get("data", {}) for output in outputs)


def split_title(nb: dict) -> dict:
    "Return `nb` with what follows the title lines of its first markdown cell in a cell of its own."
    at = next((i for i, cell in enumerate(nb["cells"]) if cell["cell_type"] == "markdown"), None)
    if at is None:
        return nb
    source = "".join(nb["cells"][at]["source"])
    end = _TITLE_LINES.match(source).end()
    title, rest = source[:end], source[end:]
    if title and rest:
        nb["cells"][at]["source"] = title
        nb["cells"].insert(at + 1, {"cell_type": "markdown", "id": "introduction", "metadata": {}, "source": rest})
    return nb


def _document(nb):
    "Run nbdev's filter over `nb`, a notebook of execnb, and the cells marked `exec_doc` whatever else is on the page."
    from nbdev.process import Processor
    from nbdev.processors import FilterDefaults

    class Marked(Processor):
        def begin(self):
            self.nb.has_docs_ = bool(self.nb.has_docs_) or any("exec_doc" in cell.directives_ for cell in self.nb.cells)

    class Filter(FilterDefaults):
        def base_procs(self):
            procs = super().base_procs()
            at = [proc.__name__ for proc in procs].index("exec_show_docs")
            return [*procs[:at], Marked, *procs[at:]]

    Filter()(nb)


def _correct(cell):
    "Remove from a filtered `cell` of execnb what Quarto must not see."
    cell.pop("has_sd", None)
    if cell.cell_type == "raw":
        cell.source = re.sub(r"^output-file: .*\n", "", cell.source, flags=re.MULTILINE)
    elif cell.cell_type == "code":
        cell.outputs = [output for output in cell.outputs if _is_shown(output)]


def _is_shown(output: dict) -> bool:
    "Return whether a page can show anything of `output`: JSON alone is for programs."
    displayed = output["output_type"] in ("display_data", "execute_result")
    return not displayed or bool(output["data"].keys() - {"application/json"})


def apply_options(cell: dict) -> dict:
    "Do Quarto's part on a filtered `cell`: turn front matter into a heading, obey `echo: false`, drop option lines."
    import yaml

    if cell["cell_type"] == "raw" and cell["source"].startswith("---\n"):
        front = yaml.safe_load(cell["source"].strip().strip("-"))
        cell["cell_type"] = "markdown"
        cell["source"] = f"# {front['title']}\n\n> {front.get('description', '')}"
    elif cell["cell_type"] == "code":
        options = _OPTIONS.match(cell["source"])[0]
        hidden = re.search(r"^#\|\s*echo:\s*false", options, re.MULTILINE)
        cell["source"] = cell["source"].removeprefix(options)
        cell["metadata"]["transient"] = {"remove_source": bool(hidden)}
    return cell


def main():
    "Filter the notebook on stdin to stdout. Exits with 1 and one line on stderr if nbdev is not installed."
    if importlib.util.find_spec("nbdev") is None:
        sys.exit(NO_NBDEV)
    print(filter_notebook(sys.stdin.buffer.read().decode("utf-8")))


if __name__ == "__main__":
    main()
