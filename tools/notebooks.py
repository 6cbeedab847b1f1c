"""Read notebooks, and find what a page of the site must not show."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import nbformat

MACHINE = re.compile(
    r"(?<![\w./…])"
    r"/(?:root|home|Users|tmp|private|var|mnt|media|opt|usr|srv|data|work|workspace|content|kaggle)"
    r"/(?=[\w.])"
)
_EXPORTED = re.compile(r"#\|\s*exports?\b")
_FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
_IMAGES = ("image/png", "image/jpeg")
_TITLE = re.compile(r"# ([^#\s].*)\n+> (\S.*)")
_WARNING = re.compile(r"\b\w*Warning: ")


def read_notebook(path: Path) -> dict:
    "Return the JSON of the notebook in `path`, unchanged. Raises `ValueError` if it is not a valid notebook."
    try:
        nb = json.loads(path.read_text(encoding="utf-8"))
        nbformat.validate(nb)
    except (ValueError, AttributeError, nbformat.ValidationError) as error:
        raise ValueError(f"not a valid notebook: {str(error).splitlines()[0]}") from error
    return nb


def cell_sources(nb: dict, kind: str) -> Iterator[str]:
    "Yield the sources of the cells of one `kind`. Fenced code in markdown is left out: it has no headings or links."
    for cell in nb["cells"]:
        if cell["cell_type"] == kind:
            source = "".join(cell["source"])
            yield _FENCE.sub("", source) if kind == "markdown" else source


def exported_sources(nb: dict) -> list[str]:
    "Return the sources of the cells that `nb` exports to the package."
    return [source for source in cell_sources(nb, "code") if _EXPORTED.match(source)]


def page_title(nb: dict) -> tuple[str, str] | None:
    "Return the title and the one-line description of `nb`, or None if its first cell does not begin with them."
    found = _TITLE.match(next(cell_sources(nb, "markdown"), ""))
    return found and found.groups()


def notebook_problems(nb: dict) -> Iterator[str]:
    "Yield what keeps `nb` from being a page: no title, widget state, execution counts, outputs that no page may show."
    if page_title(nb) is None:
        yield "the first cell does not begin with '# title' and '> one line'"
    if "widgets" in nb["metadata"]:
        yield "widget state in its metadata"
    for number, cell in enumerate(nb["cells"]):
        if cell.get("execution_count") is not None:
            yield f"cell {number}: an execution count"
        for output in cell.get("outputs", []):
            yield from (f"cell {number}: {problem}" for problem in output_problems(output))


def output_problems(output: dict) -> Iterator[str]:
    "Yield what a saved `output` must not have: errors, stderr, widgets, warnings, machine paths, execution counts."
    if output["output_type"] == "error":
        yield f"saved error {output['ename']}: {output['evalue']}"
    if output.get("name") == "stderr":
        yield "output on stderr"
    if any("widget-view" in mime for mime in output.get("data", {})):
        yield "a widget, which a page cannot show"
    yield from _text_problems(_output_text(output))
    if output.get("execution_count") is not None:
        yield "an execution count in an output"


def _text_problems(text: str) -> Iterator[str]:
    "Yield what the `text` of an output must not have."
    if _WARNING.search(text):
        yield "a warning in an output"
    if found := MACHINE.search(text):
        yield f"a machine's path ({found[0]}) in an output"


def _output_text(output: dict) -> str:
    "Return all text in `output`. Images are left out, since anything in base64 can look like a path."
    shown = [value for mime, value in output.get("data", {}).items() if mime not in _IMAGES]
    values = [output.get("text", ""), *shown]
    return "\n".join("".join(value) if isinstance(value, list) else str(value) for value in values)
