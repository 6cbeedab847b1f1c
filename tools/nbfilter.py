"""The filter through which Quarto reads every notebook: nbdev's own, with corrections.

Quarto runs the command under `ipynb-filters` in `_quarto.yml`, gives it a notebook on stdin, and renders what it
prints. nbdev replaces exported code by its documentation and drops hidden cells. It expects to run before Quarto, not
inside it, so this module corrects some things.

- nbdev turns the whole first cell into front matter and keeps only its title lines. The rest moves to its own cell.
- nbdev runs `exec_doc` cells only on pages that document a function. Here they run on every page.
- nbdev derives an `output-file` from a path that Quarto does not tell. It is removed: a page keeps its notebook's name.
- nbdev adds a key that is not valid in a notebook, and Quarto warns about outputs that only programs read. Both go.
- nbdev writes `__main__.` before the names of a page's own classes. That goes.
- A figure gets the sentence that leads to it as alternative text, unless its cell has a `fig-alt`.
- A cell of nothing but checks is folded. It proves the page, and teaches little.
- A heading in an output is no heading of the page, and missing in its table of contents. Such outputs become cells.
- Quarto takes the text of an image in Markdown for its caption alone. It becomes the alternative text, too.
- nbdev starts a shell for each notebook, and each waits for the end of the process to clean up, for seconds.
- Quarto loads two scripts from elsewhere for HTML in an output, which a table does not need. It becomes raw Markdown.
- An executed run is one of many alike: its page is left out of the search, folds its code and leads back to the list."""

import ast
import atexit
import contextlib
import importlib.util
import json
import re
import sys

_TITLE_LINES = re.compile(r"(?:[ \t]*(?:#[ \t].*|>.*|-[ \t]+\S.*:.*)?(?:\n|\Z))*")
_BACK = "[All runs](../../../nbs/results/runs.ipynb), with the conclusions that they support."
_OPTIONS = re.compile(r"(?:#\|[^\n:]+:[^\n]*(?:\n|\Z))*")
_IMAGE = re.compile(r"^!\[([^\]\n]+)\]\([^)\s]+\)$", re.MULTILINE)  # a paragraph of its own, without attributes
_FOLDED = '#| code-fold: true\n#| code-summary: "Checks"\n'
_RAW_END = "`" * 5
_RAW = _RAW_END + "{=html}"
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
    nb.cells = [part for cell in nb.cells for part in _unrolled(cell)]
    _describe_figures(nb.cells)
    for cell in nb.cells:
        _correct(cell)
        if is_run:
            _round_counts(cell)
        if is_run and cell.cell_type == "raw":
            cell.source = cell.source.replace("---\n", "---\nsearch: false\ncode-fold: true\n", 1)
    return json.dumps(nb2dict(nb))


def _round_counts(cell):
    "Write whole numbers in the tables of an executed run as such: early runs wrote 5,585.00."
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        if "text/markdown" in data:
            data["text/markdown"] = re.sub(r">([\d,]+)\.00<", r">\1<", "".join(data["text/markdown"]))


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

    processor = Filter().nb_proc(nb)
    try:
        processor.process()
    finally:
        for shell in filter(None, (getattr(proc, "k", None) for proc in processor.procs)):
            atexit.unregister(shell.atexit_operations)


def _unrolled(cell) -> list:
    "Return `cell` alone, or followed by its outputs as cells of their own if one of them has a heading."
    outputs = cell.get("outputs", [])
    if not any(map(_has_heading, outputs)) or "output:" in cell.source:
        return [cell]
    cell.outputs = []
    return [cell, *(_as_cell(output, f"{cell.id}-{number}") for number, output in enumerate(outputs))]


def _as_cell(output: dict, name: str):
    "Return a cell called `name` that shows what `output` does: Markdown as such, else an output without its source."
    from execnb.nbio import NbCell

    data = output.get("data", {})
    if "text/markdown" in data and "text/html" not in data:
        text = "".join(data["text/markdown"])
        return NbCell(0, dict(cell_type="markdown", id=name, metadata={}, source=text))
    shown = dict(cell_type="code", execution_count=None, id=name, metadata={}, outputs=[output])
    return NbCell(0, shown | dict(source="#| echo: false"))


def _has_heading(output: dict) -> bool:
    "Return whether an `output` is Markdown with a heading, which is one of the page only outside an output's frame."
    return bool(re.search(r"^#{2,4} ", "".join(output.get("data", {}).get("text/markdown", "")), re.MULTILINE))


def _describe_figures(cells: list):
    "Give each figure in `cells` the last paragraph or heading before it as `fig-alt`, unless its cell has one."
    before = ""
    for cell in cells:
        if cell.cell_type == "markdown":
            before = plain_text(cell.source) or before
        elif cell.cell_type == "raw" and (title := re.search(r"^title: (.*)$", cell.source, re.MULTILINE)):
            before = title[1]
        elif cell.cell_type == "code" and "fig-alt:" not in cell.source and (alts := _descriptions(cell, before)):
            shown = json.dumps(alts if len(alts) > 1 else alts[0], ensure_ascii=False)
            cell.source = f"#| fig-alt: {shown}\n{cell.source}"


def _descriptions(cell: dict, before: str) -> list[str]:
    "Return for each image that `cell` shows the last text before it, which is `before` at the start of the cell."
    found = []
    for output in cell.outputs:
        data = output.get("data", {})
        if any(map(_is_image, data)):
            found.append(before)
        elif "text/markdown" in data:
            before = plain_text("".join(data["text/markdown"])) or before
    return found


def _is_image(kind: str) -> bool:
    "Return whether an output of this `kind` is an image."
    return kind.startswith("image/")


def plain_text(markdown: str, length: int = 300) -> str:
    "Return the last paragraph or heading of `markdown` that holds words, without marks; whole words, up to `length`."
    blocks = [block.strip() for block in re.split(r"\n\s*\n|^#+ .*$", markdown, flags=re.MULTILINE)]
    prose = [block for block in blocks if block and not re.match(r"[|<`>$]|:::", block)]
    headings = re.findall(r"^#+ (.*)$", markdown, re.MULTILINE)
    last = (prose or headings or [""])[-1]
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", last)
    text = " ".join(re.sub(r"[`*]|\{#[^}]*\}", "", text).split())
    return text if len(text) <= length else text[:length].rpartition(" ")[0] + " …"


def _correct(cell):
    "Change in a filtered `cell` of execnb what Quarto must not see, or would show badly."
    cell.pop("has_sd", None)
    if cell.cell_type == "raw":
        cell.source = re.sub(r"^output-file: .*\n", "", cell.source, flags=re.MULTILINE)
    elif cell.cell_type == "markdown":
        cell.source = _IMAGE.sub(_with_alternative, cell.source)
    elif cell.cell_type == "code":
        cell.outputs = [output for output in cell.outputs if _is_shown(output)]
        if only_checks(cell.source):
            cell.source = f"{_FOLDED}{cell.source}"
        for output in cell.outputs:
            _correct_output(output, documents="show_doc(" in cell.source)


def _with_alternative(image: re.Match) -> str:
    "Return an image in Markdown with its text as `fig-alt`."
    text = image[1].replace('"', "&quot;")
    return f'{image[0]}{{fig-alt="{text}"}}'


def only_checks(source: str) -> bool:
    "Return whether `source` holds assertions and calls of `test_…`, and apart from them at most imports."
    try:
        nodes = ast.parse(source).body
    except SyntaxError:  # a magic
        return False
    rest = [node for node in nodes if not isinstance(node, ast.Import | ast.ImportFrom)]
    return bool(rest) and all(map(_is_check, rest))


def _is_check(node: ast.stmt) -> bool:
    "Return whether a statement is an assertion or a call of `test_…`."
    called = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and node.value.func
    return isinstance(node, ast.Assert) or isinstance(called, ast.Name) and called.id.startswith("test_")


def _correct_output(output: dict, documents: bool):
    "Change the data of an `output`: its HTML, and in the output of a cell that `documents` the names of classes."
    data = output.get("data", {})
    if documents and "text/markdown" in data:
        data["text/markdown"] = "".join(data["text/markdown"]).replace("__main__.", "")
    if "text/html" in data:
        data["text/markdown"] = f"{_RAW}\n{''.join(data.pop('text/html')).strip()}\n{_RAW_END}\n"


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
        _apply_to_outputs(cell["outputs"], re.search(r"^#\| fig-alt: (.*)$", options, re.MULTILINE))
    return cell


def _apply_to_outputs(outputs: list, described: re.Match | None):
    "Turn raw Markdown in `outputs` back into HTML, and give their images the alternative text `described`."
    import yaml

    alts = yaml.safe_load(described[1]) if described else []
    alts = iter([alts] if isinstance(alts, str) else alts)
    for output in outputs:
        data = output.get("data", {})
        text = "".join(data.get("text/markdown", ""))
        if text.startswith(_RAW):
            data["text/html"] = text.removeprefix(_RAW).strip().removesuffix(_RAW_END)
            del data["text/markdown"]
        if any(map(_is_image, data)):
            output["metadata"]["alt"] = next(alts, "")


def main():
    "Filter the notebook on stdin to stdout. Exits with 1 and one line on stderr if nbdev is not installed."
    if importlib.util.find_spec("nbdev") is None:
        sys.exit(NO_NBDEV)
    print(filter_notebook(sys.stdin.buffer.read().decode("utf-8")))


if __name__ == "__main__":
    main()
