"""Check, build and render the site, and list the package's public names.

Quarto exits with success on a missing sidebar target, an unmatched glob, an unknown theme or a misspelled key. So the
site can be broken while its build is green. The checks here find those faults and need no Quarto. Neither do the pages
that `render_pages` builds in memory: they prove that the filter can read every notebook.

    python -m tools.website          check the site and build every page in memory
    python -m tools.website render   check the site and render it with Quarto (`make docs`)"""

import ast
import contextlib
import os
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from urllib.parse import unquote

import nbformat
import yaml

from tools.nbfilter import apply_options, filter_notebook
from tools.notebooks import cell_sources, exported_sources, notebook_problems, page_title, read_notebook

ROOT = Path(__file__).resolve().parent.parent
RUNS = "results/*/runs"
STAGED = "_proc"  # what Quarto renders; ignored by git
NO_QUARTO = (
    "Quarto is not on the path: install it from https://quarto.org/docs/get-started/ "
    "(in a workflow: quarto-dev/quarto-actions/setup)"
)
# The top-level keys of a website project. Quarto ignores any other, so a misspelled `ipynb-filters` would silently take
# the API documentation off the site. Inside `project` and `website` Quarto itself refuses unknown keys.
KEYS = {
    "project", "website", "format", "execute", "ipynb-filters", "filters", "shortcodes", "metadata-files",
    "profile", "engines", "jupyter", "lang", "language", "title", "subtitle", "author", "date", "toc", "toc-depth",
    "theme", "css", "html-math-method", "number-sections", "bibliography", "csl", "crossref", "editor", "brand",
}
THEMES = {
    "none", "pandoc", "default", "cerulean", "cosmo", "cyborg", "darkly", "flatly", "journal", "litera", "lumen",
    "lux", "materia", "minty", "morph", "pulse", "quartz", "sandstone", "simplex", "sketchy", "slate", "solar",
    "spacelab", "superhero", "united", "vapor", "yeti", "zephyr",
}
_ELSEWHERE = re.compile(r"[a-zA-Z][\w+.-]*:|//|---")
_LINK = re.compile(r"\]\(\s*<?([^)\s>]+)|^\[[^^\]][^\]]*\]:\s*(\S+)", re.MULTILINE)
_HREF = re.compile(r'<a\b[^>]*\shref="([^"#]+)')
_DIRECTIVE = re.compile(r'(?:<p>|<span class="c1">)(#\|[^<]*)')
_NAVIGATION = ("left", "right", "tools", "menu", "href", "file", "contents")


# _quarto.yml


def read_config(root: Path) -> dict:
    """Return the `_quarto.yml` in `root`. An empty file is a site with nothing in it.

    Raises `FileNotFoundError`, or `ValueError` if the file is not valid YAML."""
    try:
        config = yaml.safe_load((root / "_quarto.yml").read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"_quarto.yml is not valid YAML: {' '.join(str(error).split())}") from error
    return config if isinstance(config, dict) else {}


def site_pages(root: Path, config: dict) -> list[Path]:
    "Return the notebooks under `root` that the render list of `config` matches, in its order, each once."
    globs = _at(config, "project", "render") or []
    found = dict.fromkeys(path for glob in globs for path in _matches(root, glob))
    return [path for path in found if path.suffix == ".ipynb"]


def _at(config: dict, *keys: str):
    "Return what `config` holds under the nested `keys`, or None if a level is absent or a plain string."
    for key in keys:
        config = config.get(key) if isinstance(config, dict) else None
    return config


def _matches(root: Path, glob: str) -> list[Path]:
    "Return the files under `root` that `glob` matches, sorted. Like Quarto, skip names that start with `.` or `_`."
    found = sorted(root.glob(glob))
    return [path for path in found if not any(part[0] in "._" for part in path.relative_to(root).parts)]


def config_problems(root: Path, config: dict) -> Iterator[str]:
    "Yield unknown keys, a missing render list, globs in it that match no file, and themes that do not exist."
    yield from (f"_quarto.yml: unknown key {key!r}" for key in config if key not in KEYS)
    globs = _at(config, "project", "render") or []
    if not globs:
        yield "_quarto.yml: no list of files under project: render"
    for glob in globs:
        if not _matches(root, glob):
            yield f"_quarto.yml: render glob {glob!r} matches no file"
    for theme in _strings([config.get("theme"), _at(config, "format", "html", "theme")]):
        if theme not in THEMES and not (root / theme).is_file():
            yield f"_quarto.yml: unknown theme {theme!r}"


def _strings(node) -> Iterator[str]:
    "Yield every string among the values of nested lists and mappings, as a theme may be either."
    if isinstance(node, str):
        yield node
    elif isinstance(node, (list, dict)):
        for child in node.values() if isinstance(node, dict) else node:
            yield from _strings(child)


# Navigation


def navigation_problems(root: Path, config: dict, pages: list[Path]) -> Iterator[str]:
    "Yield targets that are no page, pages that no bar leads to, and notebooks next to `pages` that are not rendered."
    yield from _target_problems(root, config, pages)
    bars = [_at(config, "website", bar) for bar in ("navbar", "sidebar")]
    listed = {_file(root, target) for target in navigation_targets(bars)}
    runs = list(root.glob(RUNS))  # the list of results leads to these pages
    for page in pages:
        if page not in listed and page.parent not in runs:
            yield f"{page.relative_to(root)}: neither in the sidebar nor in the navbar"
    for folder in dict.fromkeys([*(page.parent for page in pages), *runs]):
        for path in sorted(folder.glob("[!._]*.ipynb")):
            if path not in pages:
                yield f"{path.relative_to(root)}: not in the render list"


def _target_problems(root: Path, config: dict, pages: list[Path]) -> Iterator[str]:
    "Yield targets of navbar and sidebar that are not among `pages`."
    for bar in ("navbar", "sidebar"):
        for target in navigation_targets(_at(config, "website", bar)):
            path = _file(root, target)
            if path not in pages:
                fault = "is not rendered" if path.is_file() else "does not exist"
                yield f"_quarto.yml: {bar} target {target!r} {fault}"


def navigation_targets(node) -> Iterator[str]:
    "Yield every file of the site that a navbar or sidebar `node` points to."
    if isinstance(node, str) and not _ELSEWHERE.match(node):
        yield node
    elif isinstance(node, list):
        for item in node:
            yield from navigation_targets(item)
    elif isinstance(node, dict):
        for key in _NAVIGATION:
            yield from navigation_targets(node.get(key))


def _file(root: Path, target: str) -> Path:
    "Return the file under `root` that a navigation `target` names."
    return root / target.partition("#")[0].lstrip("/")


# Links


def heading_anchor(heading: str) -> str:
    """Return the identifier that Pandoc gives to the text of a `heading`.

    An explicit `{#name}` wins. Otherwise the text is in lower case, without punctuation and what precedes the first
    letter, and with hyphens for spaces."""
    if explicit := re.search(r"\{#([^\s}]+)[^}]*\}\s*$", heading):
        return explicit[1]
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    text = re.sub(r"\s+", "-", re.sub(r"[^\w\s.-]", "", text).strip().lower())
    return re.sub(r"^[\W\d_]+", "", text) or "section"


def page_anchors(nb: dict) -> set[str]:
    "Return every name that a link into the page of `nb` may end in. Each exported name has a heading, by `show_doc`."
    names = re.findall(r"^(?:class|def) ([a-zA-Z]\w*)", "\n".join(exported_sources(nb)), re.MULTILINE)
    names += re.findall(r"^#{2,6}\s+(.+)$", "\n".join(cell_sources(nb, "markdown")), re.MULTILINE)
    anchors = [heading_anchor(name) for name in names]
    repeated = (f"{anchor}-{anchors[:i].count(anchor)}" for i, anchor in enumerate(anchors) if anchor in anchors[:i])
    return {*anchors, *repeated}


def page_links(nb: dict) -> list[str]:
    "Return the targets of links and images in the markdown of `nb` that stay inside the site, without those in code."
    prose = re.sub(r"`[^`\n]+`", "", "\n".join(cell_sources(nb, "markdown")))
    targets = [inline or reference for inline, reference in _LINK.findall(prose)]
    return [unquote(target) for target in targets if not _ELSEWHERE.match(target)]


def linked_file(root: Path, page: Path, target: str) -> Path | None:
    "Return the file of the site in `root` that `target` names on `page`, or None where there is none."
    path = ((root if target.startswith("/") else page.parent) / target.lstrip("/")).resolve()
    return path if path.exists() and path.is_relative_to(root) else None


def link_problems(root: Path, page: Path, notebooks: dict[Path, dict]) -> Iterator[str]:
    "Yield internal links of `page` without a file, page or heading. `notebooks` holds all pages of the site in `root`."
    for target in page_links(notebooks[page]):
        name, _, anchor = target.partition("#")
        path = linked_file(root, page, name) if name else page
        if path is None:
            yield f"link to {target}: no such file"
        elif path.suffix in (".ipynb", ".md", ".qmd") and path not in notebooks:
            yield f"link to {target}: not a page of the site"
        elif anchor and path in notebooks and anchor not in page_anchors(notebooks[path]):
            yield f"link to {target}: no such heading"


# The check


def check_site(root: str | Path = ".") -> list[str]:
    "Return the problems of the site in `root`: of its `_quarto.yml`, of its notebooks and of their links."
    root = Path(root).resolve()
    try:
        config = read_config(root)
    except (OSError, ValueError) as error:
        return [str(error)]
    pages = site_pages(root, config)
    notebooks, problems = _read_pages(root, pages)
    problems = [*config_problems(root, config), *navigation_problems(root, config, pages), *problems]
    for page, nb in notebooks.items():
        found = [*notebook_problems(nb), *link_problems(root, page, notebooks)]
        problems += [f"{page.relative_to(root)}: {problem}" for problem in found]
    return problems


def _read_pages(root: Path, pages: list[Path]) -> tuple[dict[Path, dict], list[str]]:
    "Return the notebooks of `pages` that are valid, by path, and a problem for each of the others."
    notebooks = {}
    problems = []
    for page in pages:
        try:
            notebooks[page] = read_notebook(page)
        except ValueError as error:
            problems.append(f"{page.relative_to(root)}: {error}")
    return notebooks, problems


# The pages without Quarto


@cache
def _exporter(template: str):
    "Return nbconvert's exporter to HTML. It reads its templates once."
    from nbconvert import HTMLExporter

    return HTMLExporter(template_name=template)


def page_html(path: Path, template: str = "basic") -> str:
    """Return the page of the notebook in `path`, by nbdev's filter and nbconvert, run in the notebook's folder.

    The result is the page's body, or the whole page with a `template` such as "lab". Raises what an exported cell
    raises, and the warnings of nbdev and nbconvert, which would stand in a log that nobody reads."""
    with contextlib.chdir(path.parent), warnings.catch_warnings():
        warnings.filterwarnings("error", module=r"(nbdev|execnb|nbconvert|nbformat)\b")
        nb = nbformat.reads(filter_notebook(path.read_text(encoding="utf-8")), as_version=4)
        nb.cells = [apply_options(cell) for cell in nb.cells]
        return _exporter(template).from_notebook_node(nb)[0]


def _dead_links(root: Path, page: Path, html: str) -> Iterator[str]:
    "Yield the links in the `html` of `page` to files that are not there: those of the cells that the filter ran, too."
    for target in dict.fromkeys(unquote(target) for target in _HREF.findall(html)):
        if not _ELSEWHERE.match(target) and linked_file(root, page, target) is None:
            yield target


def render_pages(root: str | Path = ".", runs: int | None = None) -> dict[str, str]:
    """Return the HTML of every page of the site in `root`, by the notebook's path in it. Nothing is written.

    `runs` limits the published runs to the first so many, since they are pages of one notebook. Raises `ValueError` if
    a page shows a directive or a traceback or leads nowhere, and what a notebook's exported code raises."""
    root = Path(root).resolve()
    published = sorted(root.glob(f"{RUNS}/*.ipynb"))
    left_out = [] if runs is None else published[runs:]
    paths = [path for path in site_pages(root, read_config(root)) if path not in left_out]
    pages = {path.relative_to(root).as_posix(): page_html(path) for path in paths}
    for name, html in pages.items():
        if lost := next(_dead_links(root, root / name, html), None):
            raise ValueError(f"{name}: the page has a link to {lost}: no such file")
        if found := _DIRECTIVE.search(html):
            raise ValueError(f"{name}: the page shows the directive {found[1]!r}; move it to the top of its cell")
        if "Traceback (most recent call last)" in html:
            raise ValueError(f"{name}: the page shows a traceback; run the notebook again")
    return pages


# The pages with Quarto


def render_site(root: str | Path = ".") -> int:
    """Render the site in `root` with Quarto to its `_site`, and return the exit code.

    The code is 0, 1 for a problem or a warning, or 127 without Quarto. Quarto exits with success on warnings, so its
    log is read, and shown on stderr as it comes. Problems are printed there, too, one a line."""
    root = Path(root).resolve()
    if problems := check_site(root):
        print(*problems, sep="\n", file=sys.stderr)
        return 1
    quarto = shutil.which("quarto")
    if not quarto:
        print(NO_QUARTO, file=sys.stderr)
        return 127
    staged = stage_site(root)
    code, log = _run_shown([quarto, "render"], staged)
    if (staged / "_site").is_dir():
        shutil.rmtree(root / "_site", ignore_errors=True)
        (staged / "_site").rename(root / "_site")
    return int(code != 0 or "WARN" in log)


def stage_site(root: Path) -> Path:
    """Write what Quarto renders to `_proc` in `root`, in place of what is there, and return that folder.

    It holds the pages as nbdev documents them, the files that they show or lead to, and `_quarto.yml` without its
    filter: Quarto would start that once for each page, which takes longer than everything else."""
    config = read_config(root)
    staged = root / STAGED
    shutil.rmtree(staged, ignore_errors=True)
    for path in [*site_pages(root, config), *_other_files(root, config)]:
        copy = staged / path.relative_to(root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".ipynb":
            copy.write_text(_filtered(path), encoding="utf-8")
        else:
            shutil.copy(path, copy)
    config.pop("ipynb-filters", None)
    (staged / "_quarto.yml").write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return staged


def _filtered(path: Path) -> str:
    "Return the notebook in `path` as JSON, by the filter, which runs exported cells in the notebook's folder."
    with contextlib.chdir(path.parent):
        return filter_notebook(path.read_text(encoding="utf-8"))


def _other_files(root: Path, config: dict) -> list[Path]:
    "Return the files of the site that are no notebooks: what `config` names, what pages link to, settings of folders."
    settings = root.glob("nbs/**/_metadata.yml")
    named = [root / text for text in _strings(config)]
    linked = [page.parent / target for page in site_pages(root, config) for target in page_links(read_notebook(page))]
    rendered = [path for glob in _at(config, "project", "render") or [] for path in _matches(root, glob)]
    files = dict.fromkeys(path.resolve() for path in [*rendered, *named, *linked, *settings])
    return [path for path in files if path.is_file() and path.suffix != ".ipynb" and path.is_relative_to(root)]


def _run_shown(command: list, folder: Path) -> tuple[int, str]:
    "Run `command` in `folder`, show on stderr what it prints as it comes, and return its exit code and all of that."
    lines = []
    options = dict(text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    with subprocess.Popen(command, cwd=folder, **options) as process:
        for line in process.stdout:
            print(line, end="", file=sys.stderr, flush=True)
            lines.append(line)
    return process.returncode, "".join(lines)


# The public names


def public_names(nb: dict) -> dict[str, str]:
    "Return the public functions and classes that `nb` exports, each with the first line of its docstring."
    nodes = [node for source in exported_sources(nb) for node in ast.parse(source).body]
    defined = [node for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    public = [node for node in defined if node.name[0] != "_"]
    return {node.name: (ast.get_docstring(node) or "").partition("\n")[0] for node in public}


def api_listing(root: str | Path, start: str) -> str:
    """Return Markdown with a table for each module of the site in `root`: its public names, linked to their pages.

    Modules come wing by wing, in the order of the sidebar, and those of no wing last. Links start at the folder
    `start`."""
    root = Path(root)
    targets = dict.fromkeys(navigation_targets(_at(read_config(root), "website", "sidebar")))
    wings: dict[str, list[str]] = {}
    for target in targets:
        if target.endswith(".ipynb"):
            nb = read_notebook(root / target)
            if table := _module_table(nb, os.path.relpath(target, start)):
                wings.setdefault(_module(nb).rpartition(".")[0], []).append(table)
    alone = wings.pop("", [])
    parts = [part for wing, tables in wings.items() for part in (f"## {wing}", *tables)]
    return "\n\n".join(parts + (["## outside the wings", *alone] if alone else [])) + "\n"


def _module(nb: dict) -> str:
    "Return the name of the module that `nb` exports, without the package's; empty if it exports none."
    return next((source.split()[2] for source in cell_sources(nb, "code") if source.startswith("#| default_exp")), "")


def _module_table(nb: dict, page: str) -> str:
    "Return the heading and table of the module that `nb` exports, linked to `page`, or nothing without a public name."
    module, names = _module(nb), public_names(nb)
    if not (module and names):
        return ""
    title, description = page_title(nb)
    lines = [f"### {module}", "", f"[{title}]({page}): {description}", "", "| name | what it is |", "|---|---|"]
    for name, what in names.items():
        lines.append(f"| [{name}]({page}#{heading_anchor(name)}) | {what.replace('|', chr(92) + '|')} |")
    return "\n".join(lines)


# The command


def main(root: str | Path = "."):
    "Check the site in `root` and build its pages in memory. Exits with 1 on a problem."
    if problems := check_site(root):
        print(*problems, sep="\n")
        sys.exit(1)
    print(f"site: {len(render_pages(root))} pages, 0 problems")


if __name__ == "__main__":
    sys.exit(render_site() if sys.argv[1:] == ["render"] else main())
