"""The real site holds, its pages can be built, and each fault that Quarto passes over in silence is found."""

import ast
import html
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import nbformat
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from tools.nbfilter import apply_options, filter_notebook, split_title
from tools.notebooks import cell_sources, notebook_problems, output_problems, page_title, read_notebook
from tools.publish import results_listing
from tools.website import (
    api_listing,
    check_site,
    config_problems,
    heading_anchor,
    main,
    navigation_problems,
    navigation_targets,
    page_anchors,
    page_html,
    page_links,
    public_names,
    read_config,
    render_pages,
    render_site,
    site_pages,
    stage_site,
)
from vocab_pruning._modidx import d as index
from vocab_pruning.runs.spec import RunSpec

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent


# The real site


def test_the_site_has_no_problem():
    assert check_site(ROOT) == []


@pytest.fixture(scope="module")
def pages():
    "All pages but for published runs, which are pages of one notebook: one of them."
    return render_pages(ROOT, runs=1)


def test_every_notebook_becomes_a_page(pages):
    runs = sorted(ROOT.glob("results/*/runs/*.ipynb"))
    assert set(runs) < {*site_pages(ROOT, read_config(ROOT))}
    assert set(pages) == {path.relative_to(ROOT).as_posix() for path in (*ROOT.glob("nbs/**/[!._]*.ipynb"), *runs[:1])}


def test_no_page_shows_a_directive_or_a_traceback(pages):
    for name, page in pages.items():
        text = html.unescape(re.sub(r"<[^>]+>", "", page))
        assert not re.search(r"^\s*#\|", text, re.MULTILINE), name
        assert "Traceback (most recent call last)" not in text, name


def test_every_image_has_an_alternative_text(pages):
    "Apart from drawings: nbconvert drops theirs, and Quarto takes it from the cell."
    for name, page in pages.items():
        for image in re.findall(r"<img(?![^>]*data:image/svg)[^>]*>", page):
            assert re.search(r'alt="[^"]{8,}"', image) and "No description has been provided" not in image, name


ONLY_PYTHON_READS = {
    "a default of typer": "OptionInfo",
    "a page's own module": r"__main__\.",
    "a control character": "[\x08\x0b\x1b]",
    "a dataclass": r"Found\(ratio",
    "a whole number with decimals": r">\d{1,3}(,\d{3})+\.0+<",
    "a ratio to six places": r"row_heading[^>]*>0\.\d*000<",
    "NaN under a gradient": r"background-color: #000000;\s+color: #f1f1f1;\s+}",
    "a script from elsewhere": r"<script[^>]* src=",
}


@pytest.mark.parametrize("shown", ONLY_PYTHON_READS.values(), ids=ONLY_PYTHON_READS.keys())
def test_no_page_shows_what_only_python_reads(pages, shown):
    assert [name for name, page in pages.items() if re.search(shown, html.unescape(page))] == []


def ends_in_a_value(source: str) -> bool:
    "Whether a page shows what this cell ends in. Calls are left out, since they may return None."
    if re.search(r"^#\| *(hide|exports?|exec_doc|eval: *false)\b", source, re.MULTILINE) or source.rstrip().endswith(";"):
        return False
    last = ast.parse(re.sub(r"^[%!].*", "pass", source, flags=re.MULTILINE)).body[-1:]
    return bool(last) and isinstance(last[0], ast.Expr) and not isinstance(last[0].value, ast.Call)


@pytest.mark.parametrize("path", sorted({*ROOT.glob("nbs/**/[!._]*.ipynb")} - {ROOT / "nbs" / "run.ipynb"}), ids=lambda path: path.stem)
def test_what_a_page_shows_has_been_run(path):
    "Its outputs are committed, but for those of the page that papermill fills in."
    cells = [cell for cell in read_notebook(path)["cells"] if cell["cell_type"] == "code"]
    assert [source for cell in cells if ends_in_a_value(source := "".join(cell["source"])) and not cell["outputs"]] == []


def test_the_page_of_the_command_line_has_the_help_of_every_command(pages):
    from vocab_pruning.cli import app

    for command in app.registered_commands:
        assert f"Usage: vocab-prune {command.name} [OPTIONS]" in pages["nbs/cli.ipynb"]


def test_the_page_of_a_run_has_every_parameter_in_a_table():
    cells = read_notebook(ROOT / "nbs" / "run.ipynb")["cells"]
    table = re.findall(r"^\| `(\w+)` \| `(.*?)` \| (.*) \|$", "\n".join("".join(cell["source"]) for cell in cells), re.MULTILINE)
    given = RunSpec()
    assert table == [(field.name, repr(getattr(given, field.name)), field.metadata["says"]) for field in fields(RunSpec)]


def test_pages_document_what_they_export(pages):
    assert "<h3" in pages["nbs/core.ipynb"] and "resolve_model" in pages["nbs/core.ipynb"]
    assert "show_doc(" not in pages["nbs/core.ipynb"]


def test_the_api_page_has_every_public_name_one_click_away(pages, tmp_path):
    listing = api_listing(ROOT, "nbs")
    named = re.findall(r"^\| \[(\w+)\]", listing, re.MULTILINE)
    documented = [name.removeprefix(f"{module}.") for module, names in index["syms"].items() for name in names]
    assert sorted(named) == sorted(name for name in documented if "." not in name and name[0] != "_")
    links = {
        "prune": "models/pruning.ipynb#prune",
        "PrunedModel": "models/saving.ipynb#prunedmodel",
        "tfidf_scores": "scorers/tfidf.ipynb#tfidf_scores",
    }
    for name, page in links.items():
        assert name in named and f'href="{page}"' in pages["nbs/api.ipynb"], name


@pytest.mark.parametrize("listing", [api_listing, results_listing], ids=lambda f: f.__name__)
def test_what_a_generated_list_links_to_is_there(listing):
    for name, _, anchor in re.findall(r"\]\(([^)#]+)(#([^)]+))?\)", listing(ROOT, "nbs")):
        path = (ROOT / "nbs" / name).resolve()
        assert path in site_pages(ROOT, read_config(ROOT)), name
        assert not anchor or anchor in page_anchors(json.loads(path.read_text(encoding="utf-8"))), f"{name}#{anchor}"


def test_introductions_stay_on_their_pages(pages):
    "Left to itself, nbdev drops what stands below the title in the title's cell."
    for name, page in pages.items():
        first = json.loads((ROOT / name).read_text(encoding="utf-8"))["cells"][0]
        openings = re.findall(r"^[A-Z][a-z]+ [a-z]+ [a-z]+\b", "".join(first["source"]), re.MULTILINE)
        assert all(opening in page for opening in openings), name


@pytest.mark.skipif(not shutil.which("quarto"), reason="Quarto is not on PATH")
def test_quarto_renders_without_a_warning(capfd):
    assert render_site(ROOT) == 0, capfd.readouterr().err
    assert (ROOT / "_site" / "nbs" / "core.html").is_file()


def test_the_home_page_comes_first():
    "Quarto leads the site's root to the first page that it renders."
    assert site_pages(ROOT, read_config(ROOT))[0] == ROOT / "nbs" / "index.ipynb"


def test_the_site_has_what_visitors_expect():
    "Both themes, a way to the source, and the files that the configuration names."
    config = read_config(ROOT)
    look, website = config["format"]["html"], config["website"]
    assert {*look["theme"]} == {"light", "dark"}
    assert website["repo-url"] and website["site-url"] and website["page-footer"] and "source" in website["repo-actions"]
    for name in (look["css"], website["favicon"], website["open-graph"]["image"], "404.qmd"):
        assert (ROOT / name).is_file()
    assert "404.qmd" in config["project"]["render"]


def test_the_bar_leads_to_the_five_parts():
    texts = [item["text"] for item in read_config(ROOT)["website"]["navbar"]["left"]]
    assert texts == ["Home", "Guide", "The method", "API", "Results"]


# The filter


DEMO = [
    new_markdown_cell("# demo\n\n> A page.\n\nWhy it is here."),
    new_code_cell("#| export\ndef double(x: int) -> int:\n    'Twice `x`.'\n    return 2 * x"),
    new_code_cell("#| hide\nassert double(2) == 4"),
    new_code_cell("double(21)"),
]


def filtered(*cells):
    "The notebook of `cells` as the filter documents it."
    nb = nbformat.reads(filter_notebook(nbformat.writes(new_notebook(cells=[*cells]))), as_version=4)
    nbformat.validate(nb)
    return nb


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        (
            "# title\n\n> one line\n- toc: false\n\nWhy.\n\n> Quoted.",
            ["# title\n\n> one line\n- toc: false\n\n", "Why.\n\n> Quoted."],
        ),
        ("# title\n> one line", ["# title\n> one line"]),
    ],
)
def test_an_introduction_moves_to_a_cell_of_its_own(source, parts):
    assert [cell["source"] for cell in split_title({"cells": [new_markdown_cell(source)]})["cells"]] == parts


def test_a_notebook_without_cells_has_no_title_to_split():
    assert split_title({"cells": []}) == {"cells": []}


def test_the_filter_shows_documentation_and_hides_what_is_marked():
    nb = filtered(*DEMO)
    assert nb.cells[0].source == "---\ndescription: A page.\ntitle: demo\n\n---\n\n"
    assert "Why it is here." in [cell.source for cell in nb.cells]
    shown = next(cell for cell in nb.cells if "show_doc(double)" in cell.source)
    assert "### double" in shown.outputs[0].data["text/markdown"]
    assert not any("assert" in cell.source for cell in nb.cells)


def test_a_marked_cell_runs_on_a_page_that_documents_nothing():
    source = "#| exec_doc\n#| echo: false\nfrom IPython.display import Markdown\n\nMarkdown('- ' + 'one')"
    nb = filtered(new_markdown_cell("# made\n\n> A list."), new_code_cell(source))
    assert "".join(nb.cells[-1].outputs[0].data["text/markdown"]) == "- one"


def test_an_output_that_only_programs_read_is_left_out():
    row = new_output("display_data", {"application/json": {"score": 1}})
    nb = filtered(new_markdown_cell("# made\n\n> A row."), new_code_cell("row", outputs=[row]))
    assert nb.cells[-1].outputs == []


def test_a_figure_is_described_by_the_text_before_it_unless_its_cell_says_more():
    drawn = new_output("display_data", {"image/png": "aQ=="})
    prose = new_markdown_cell("## Curves\n\nFirst.\n\nOne `line` [for](a.ipynb) each method:")
    two = [new_output("display_data", {"text/markdown": "**The front**"}), drawn, drawn]
    own = '#| fig-alt: "A rising line."\nplot(2)'
    cells = [prose, new_code_cell("plot(1)", outputs=[drawn]), new_code_cell(own, outputs=[drawn]), new_code_cell("both()", outputs=two)]
    nb = filtered(new_markdown_cell("# demo\n\n> A page."), *cells)
    sources = [cell.source for cell in nb.cells if cell.cell_type == "code"]
    assert sources[0] == '#| fig-alt: "One line for each method:"\nplot(1)'
    assert sources[1].count("fig-alt") == 1 and "A rising line." in sources[1]
    assert sources[2] == '#| fig-alt: ["The front", "The front"]\nboth()'
    shown = [output.metadata.get("alt") for cell in nb.cells[2:] for output in apply_options(cell).get("outputs", [])]
    assert shown == ["One line for each method:", "A rising line.", None, "The front", "The front"]


def test_headings_tables_and_checks_are_as_the_page_needs_them():
    heading = new_output("display_data", {"text/markdown": "## Table 1"})
    drawn = new_output("display_data", {"image/png": "aQ=="})
    table = new_output("execute_result", {"text/html": "<table></table>", "text/plain": "t"})
    cells = [new_code_cell("show()", outputs=[heading, drawn]), new_code_cell("table", outputs=[table]),
             new_code_cell("from a import b\ntest_eq(b, 1)\nassert b"), new_code_cell("b = 2\nassert b")]
    nb = filtered(new_markdown_cell("# demo\n\n> A page."), *cells)
    shown = [cell for cell in nb.cells if cell.cell_type == "code"]
    assert [cell.source for cell in nb.cells if cell.cell_type == "markdown"][-1] == "## Table 1"
    assert [cell.source for cell in shown[:2]] == ["show()", '#| fig-alt: "Table 1"\n#| echo: false']
    shown = shown[1:]
    assert shown[1].outputs[0].data["text/markdown"] == "`````{=html}\n<table></table>\n`````\n"
    assert ["code-fold: true" in cell.source for cell in shown] == [False, False, True, False]
    assert apply_options(shown[1]).outputs[0].data["text/html"].strip() == "<table></table>"


def test_the_text_of_an_image_is_its_alternative_too():
    nb = filtered(new_markdown_cell("# demo\n\n> A page."), new_markdown_cell('![A "bar"](a.png)\n\n![b](b.png){width=3}'))
    assert nb.cells[-1].source == '![A "bar"](a.png){fig-alt="A &quot;bar&quot;"}\n\n![b](b.png){width=3}'


def test_a_notebook_leaves_nothing_for_the_end_of_the_process(monkeypatch):
    "A shell of IPython registers itself there, and a site has hundreds."
    left = []
    monkeypatch.setattr("atexit.register", lambda call, *_, **__: left.append(call))
    monkeypatch.setattr("atexit.unregister", lambda call: left.remove(call))
    filtered(new_markdown_cell("# demo\n\n> A page."), new_code_cell("#| exec_doc\n1"))
    assert [call for call in left if "atexit_operations" in str(call)] == []


def test_options_are_obeyed_where_quarto_is_missing():
    cell = apply_options(new_code_cell("#| echo: false\n#| output: asis\nshow_doc(double)"))
    assert (cell.source, cell.metadata.transient.remove_source) == ("show_doc(double)", True)
    assert not apply_options(new_code_cell("1")).metadata.transient.remove_source


# The filter as a command


def run_filter(text, **kwargs):
    "The command as Quarto runs it: found on PATH, in the folder of a notebook, with this Python in front."
    path = os.pathsep.join([str(ROOT / "tools"), str(BIN), os.environ["PATH"]])
    command = ["sh", "-c", "vocab-pruning-filter"]
    env = os.environ | {"PATH": path}
    return subprocess.run(command, check=False, input=text, capture_output=True, encoding="utf-8", env=env, **kwargs)


def test_the_filter_command_documents_a_notebook():
    done = run_filter((ROOT / "nbs" / "core.ipynb").read_text(encoding="utf-8"), cwd=ROOT / "nbs")
    assert done.returncode == 0, done.stderr
    nb = nbformat.reads(done.stdout, as_version=4)
    nbformat.validate(nb)
    shown = [cell for cell in nb.cells if "show_doc(resolve_model)" in cell.source]
    assert len(shown) == 1 and "### resolve_model" in shown[0].outputs[0].data["text/markdown"]
    assert nb.cells[0].cell_type == "raw" and "title: core\n" in nb.cells[0].source
    assert not any("output-file" in cell.source for cell in nb.cells)


def test_what_a_notebook_prints_stays_off_stdout():
    cells = [new_markdown_cell("# noisy\n\n> It prints."), new_code_cell("#| export\nprint('noise')\ndef f(): pass")]
    done = run_filter(nbformat.writes(new_notebook(cells=cells)), cwd=ROOT / "nbs")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["nbformat"] == 4


def test_the_filter_command_fails_where_exported_code_fails():
    cells = [new_markdown_cell("# broken\n\n> It fails."), new_code_cell("#| export\nundefined_name")]
    done = run_filter(nbformat.writes(new_notebook(cells=cells)), cwd=ROOT / "nbs")
    assert done.returncode == 1 and done.stdout == "" and "undefined_name" in done.stderr


def test_without_nbdev_the_filter_says_what_to_install():
    code = "import sys; sys.modules['nbdev'] = None; from tools.nbfilter import main; main()"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=False, cwd=ROOT, input="{}", capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.strip().splitlines() == ["vocab-pruning-filter needs nbdev: pip install vocab_pruning[dev]"]


# One fault at a time, in a small site


@pytest.fixture
def site(tmp_path):
    "A site of two pages without a problem."
    parts = {"section": "Parts", "contents": ["nbs/00_part.ipynb"]}
    config = {
        "project": {"type": "website", "render": ["nbs/index.ipynb", "nbs/0*.ipynb"]},
        "format": {"html": {"theme": ["cosmo", "look.scss"]}},
        "website": {
            "navbar": {"left": [{"text": "More", "menu": ["nbs/index.ipynb", {"href": "https://example.org"}]}]},
            "sidebar": [{"title": "All", "contents": ["nbs/index.ipynb", "---", parts]}],
        },
    }
    (tmp_path / "nbs").mkdir()
    (tmp_path / "look.scss").write_text("")
    (tmp_path / "_quarto.yml").write_text(yaml.safe_dump(config))
    part = [
        new_markdown_cell("# part\n\n> One."),
        new_code_cell("#| export\nclass Thing:\n    pass"),
        new_markdown_cell("## The `end` of it"),
    ]
    nbformat.write(new_notebook(cells=part), tmp_path / "nbs" / "00_part.ipynb")
    links = "[a](00_part.ipynb) [b](00_part.ipynb#thing) [c](/nbs/00_part.ipynb#the-end-of-it) [d](../look.scss) <https://example.org>"
    home = new_markdown_cell(f"# home\n\n> All.\n\n{links}")
    nbformat.write(new_notebook(cells=[home]), tmp_path / "nbs" / "index.ipynb")
    assert check_site(tmp_path) == []
    return tmp_path


def edit(site, old, new):
    text = (site / "_quarto.yml").read_text()
    assert old in text
    (site / "_quarto.yml").write_text(text.replace(old, new))


def append(site, *cells):
    path = site / "nbs" / "index.ipynb"
    nb = nbformat.read(path, as_version=4)
    nb.cells += cells
    nbformat.write(nb, path)


def test_a_removed_sidebar_target_is_found(site):
    (site / "nbs" / "00_part.ipynb").rename(site / "nbs" / "01_part.ipynb")
    problems = check_site(site)
    assert "_quarto.yml: sidebar target 'nbs/00_part.ipynb' does not exist" in problems
    assert "nbs/01_part.ipynb: neither in the sidebar nor in the navbar" in problems


def test_a_page_nobody_can_reach_is_found(site):
    edit(site, "- nbs/00_part.ipynb", "- nbs/index.ipynb")
    assert check_site(site) == ["nbs/00_part.ipynb: neither in the sidebar nor in the navbar"]


def test_a_link_that_a_cell_writes_to_no_file_is_found(site):
    "Only the built page shows it: check_site reads what is written."
    lists = "#| exec_doc\nfrom IPython.display import Markdown\nMarkdown('[runs](nbs/00_part.ipynb)')"
    append(site, new_code_cell(lists))
    assert check_site(site) == []
    with pytest.raises(ValueError, match="nbs/index.ipynb: the page has a link to nbs/00_part.ipynb: no such file"):
        render_pages(site)


def test_a_target_that_is_not_rendered_is_found(site):
    shutil.copy(site / "nbs" / "00_part.ipynb", site / "nbs" / "10_part.ipynb")
    edit(site, "- href: https://example.org", "- nbs/10_part.ipynb")
    assert check_site(site) == [
        "_quarto.yml: navbar target 'nbs/10_part.ipynb' is not rendered",
        "nbs/10_part.ipynb: not in the render list",
    ]


def test_a_published_run_that_is_not_rendered_is_found(site):
    (runs := site / "results" / "minilm" / "runs").mkdir(parents=True)
    shutil.copy(site / "nbs" / "00_part.ipynb", runs / "cola.ipynb")
    assert check_site(site) == ["results/minilm/runs/cola.ipynb: not in the render list"]
    edit(site, "- nbs/0*.ipynb", "- nbs/0*.ipynb\n  - results/*/runs/*.ipynb")
    assert check_site(site) == []


def test_a_warning_of_the_tools_stops_a_page(site):
    append(site, new_code_cell("import os\nhome = os.sep"), new_code_cell("#| export\ndef f(): pass"))
    with pytest.raises(Exception, match="cells containing imports and other code"):
        render_pages(site)


@pytest.mark.parametrize(
    ("link", "fault"),
    [
        ("gone.ipynb", "no such file"),
        ("../../outside.txt", "no such file"),
        ("00_part.ipynb#the-start", "no such heading"),
        ("#nowhere", "no such heading"),
        ("../notes.md", "not a page of the site"),
    ],
)
def test_a_broken_internal_link_is_found(site, link, fault):
    (site.parent / "outside.txt").touch()
    (site / "notes.md").touch()
    code = new_markdown_cell("Not `[this](other.md)`, nor\n```\n[this](code.md)\n```")
    append(site, new_markdown_cell(f"See [this]({link})."), code)
    assert check_site(site) == [f"nbs/index.ipynb: link to {link}: {fault}"]


def test_an_unmatched_render_glob_is_found(site):
    edit(site, "nbs/0*.ipynb", "nbs/0*.ipynb\n  - docs/*.ipynb")
    assert check_site(site) == ["_quarto.yml: render glob 'docs/*.ipynb' matches no file"]


@pytest.mark.parametrize("key", ["ipynb-filter", "executes", "formats"])
def test_a_misspelt_top_level_key_is_found(site, key):
    edit(site, "website:", f"{key}: {{}}\nwebsite:")
    assert check_site(site) == [f"_quarto.yml: unknown key '{key}'"]


@pytest.mark.parametrize("theme", ["cosmic", "gone.scss"])
def test_an_unknown_theme_is_found(site, theme):
    edit(site, "look.scss", theme)
    (site / "look.scss").touch()
    assert check_site(site) == [f"_quarto.yml: unknown theme '{theme}'"]


@pytest.mark.parametrize(
    ("output", "fault"),
    [
        (new_output("error", ename="ValueError", evalue="no", traceback=["…"]), "saved error ValueError: no"),
        (new_output("stream", name="stderr", text="hm"), "output on stderr"),
        (new_output("stream", text="FutureWarning: soon"), "a warning in an output"),
        (new_output("display_data", {"text/html": "<i>/home/me/x</i>"}), "a machine's path (/home/) in an output"),
        (new_output("execute_result", {"text/plain": "1"}, execution_count=1), "an execution count in an output"),
    ],
)
def test_an_output_not_fit_to_be_shown_is_found(site, output, fault):
    append(site, new_code_cell("1", outputs=[output]))
    assert check_site(site) == [f"nbs/index.ipynb: cell 1: {fault}"]


def test_an_execution_count_is_found(site):
    append(site, new_code_cell("1", execution_count=3))
    assert check_site(site) == ["nbs/index.ipynb: cell 1: an execution count"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"cells": []}'])
def test_an_invalid_notebook_is_found(site, text):
    (site / "nbs" / "00_part.ipynb").write_text(text)
    assert [p for p in check_site(site) if p.startswith("nbs/00_part.ipynb: not a valid notebook")]


@pytest.mark.parametrize("text", ["project: [", "", "- a", "just text"])
def test_a_broken_site_file_is_a_problem_not_a_crash(site, text):
    (site / "_quarto.yml").write_text(text)
    assert check_site(site)


def test_a_missing_site_file_is_a_problem_not_a_crash(tmp_path):
    assert len(check_site(tmp_path)) == 1


def test_second_headings_of_a_name_are_numbered():
    nb = new_notebook(cells=[new_markdown_cell("# t\n## A b\n### A b\n## A b")])
    assert page_anchors(nb) == {"a-b", "a-b-1", "a-b-2"}


def test_the_command_lists_problems_and_fails(site):
    edit(site, "website:", "ipynb-filter: []\nwebsite:")
    command = [sys.executable, "-m", "tools.website"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, check=False, cwd=site, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "_quarto.yml: unknown key 'ipynb-filter'\n")


def test_the_command_says_how_many_pages_it_built(site, capsys):
    main(site)
    assert capsys.readouterr().out == "site: 2 pages, 0 problems\n"


# Part by part: `_quarto.yml`


@pytest.mark.parametrize(("text", "config"), [("", {}), ("just text", {}), ("format: html", {"format": "html"})])
def test_what_a_site_file_reads_as(tmp_path, text, config):
    (tmp_path / "_quarto.yml").write_text(text)
    assert read_config(tmp_path) == config


def test_a_site_file_that_is_not_yaml_is_refused(tmp_path):
    (tmp_path / "_quarto.yml").write_text("project: [")
    with pytest.raises(ValueError, match="not valid YAML"):
        read_config(tmp_path)


def test_an_empty_site_file_has_no_pages(site):
    (site / "_quarto.yml").write_text("")
    assert check_site(site) == ["_quarto.yml: no list of files under project: render"]


def test_hidden_and_private_notebooks_are_no_pages(site):
    edit(site, "- nbs/0*.ipynb", "- nbs/**/*.ipynb")
    (hidden := site / "nbs" / ".ipynb_checkpoints").mkdir()
    (hidden / "index-checkpoint.ipynb").touch()
    (site / "nbs" / "_draft.ipynb").touch()
    assert [page.name for page in site_pages(site, read_config(site))] == ["index.ipynb", "00_part.ipynb"]


def test_a_theme_may_be_a_string_a_list_or_one_for_each_mode(site):
    config = {"project": {"render": ["nbs/*.ipynb"]}}
    for theme in ("cosmo", ["cosmo", "look.scss"], {"light": ["flatly", "look.scss"], "dark": "darkly"}):
        assert list(config_problems(site, config | {"format": {"html": {"theme": theme}}})) == []
        assert list(config_problems(site, config | {"format": "html", "theme": theme})) == []
    wrong = {"theme": {"light": ["flatly", "gone.scss"], "dark": "dusk"}}
    assert [problem.split()[-1] for problem in config_problems(site, config | wrong)] == ["'gone.scss'", "'dusk'"]


def test_all_problems_of_a_site_file_are_found_at_once(site):
    config = {"formats": {}, "project": {"render": ["nbs/*.ipynb", "docs/*.ipynb"]}, "theme": "cosmic"}
    assert list(config_problems(site, config)) == [
        "_quarto.yml: unknown key 'formats'",
        "_quarto.yml: render glob 'docs/*.ipynb' matches no file",
        "_quarto.yml: unknown theme 'cosmic'",
    ]


# Part by part: navigation


def test_targets_are_the_files_of_the_site(site):
    website = read_config(site)["website"]
    assert list(navigation_targets(website["navbar"])) == ["nbs/index.ipynb"]
    assert list(navigation_targets(website["sidebar"])) == ["nbs/index.ipynb", "nbs/00_part.ipynb"]


def test_a_target_that_exists_but_is_no_page_is_found(site):
    config = read_config(site) | {"project": {"render": ["nbs/index.ipynb"]}}
    assert list(navigation_problems(site, config, site_pages(site, config))) == [
        "_quarto.yml: sidebar target 'nbs/00_part.ipynb' is not rendered",
        "nbs/00_part.ipynb: not in the render list",
    ]


# Part by part: notebooks


@pytest.mark.parametrize(
    ("output", "problems"),
    [
        (new_output("stream", name="stdout", text="https://example.org/home/ is no path"), []),
        (new_output("display_data", {"image/png": "A/tmp/B", "application/json": {"a": 1}}), []),
        (new_output("stream", text="File '/tmp/x.py'"), ["a machine's path (/tmp/) in an output"]),
        (
            new_output("stream", name="stderr", text="x.py:3: UserWarning: slow\n"),
            ["output on stderr", "a warning in an output"],
        ),
        (new_output("error", ename="KeyError", evalue="'a'", traceback=[]), ["saved error KeyError: 'a'"]),
        (
            new_output("execute_result", {"text/plain": ["1\n", "2"]}, execution_count=4),
            ["an execution count in an output"],
        ),
        (
            new_output("display_data", {"application/vnd.jupyter.widget-view+json": {}}),
            ["a widget, which a page cannot show"],
        ),
    ],
)
def test_what_an_output_must_not_have(output, problems):
    assert list(output_problems(output)) == problems


def test_what_a_notebook_must_not_have():
    demo = new_notebook(cells=DEMO)
    assert list(notebook_problems(demo)) == []
    assert list(notebook_problems(demo | {"metadata": {"widgets": {}}})) == ["widget state in its metadata"]
    untitled = new_notebook(cells=[new_markdown_cell("# # title"), new_code_cell("1", execution_count=1)])
    assert list(notebook_problems(untitled)) == [
        "the first cell does not begin with '# title' and '> one line'",
        "cell 1: an execution count",
    ]


def test_a_title_has_a_line_below_it():
    assert page_title(new_notebook(cells=DEMO)) == ("demo", "A page.")
    assert page_title(new_notebook()) is None


@pytest.mark.parametrize("cells", [None, [{"cell_type": "prose", "id": "a"}]])
def test_a_file_that_is_no_notebook_is_refused(tmp_path, cells):
    nb = {"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": cells} if cells else {}
    (tmp_path / "wrong.ipynb").write_text(json.dumps(nb))
    with pytest.raises(ValueError, match="not a valid notebook"):
        read_notebook(tmp_path / "wrong.ipynb")


def test_fenced_code_is_no_prose():
    nb = new_notebook(cells=[new_markdown_cell("a\n```\nb\n```\nc"), *DEMO[1:]])
    assert list(cell_sources(nb, "markdown")) == ["a\n\nc"]


# Part by part: links


@pytest.mark.parametrize(
    ("heading", "anchor"),
    [
        ("2. Is there a `hub`?", "is-there-a-hub"),
        ("See [the paper](https://example.org), v3.1", "see-the-paper-v3.1"),
        ("Results {#table-1 .wide}", "table-1"),
    ],
)
def test_anchors_are_those_of_pandoc(heading, anchor):
    assert heading_anchor(heading) == anchor


def test_exported_names_and_headings_outside_code_are_anchors():
    twice = new_notebook(cells=[new_markdown_cell("# title\n## Why?\n```\n## code\n```\n## Why?"), *DEMO])
    assert page_anchors(twice) == {"why", "why-1", "double"}


def test_links_are_those_that_stay_inside():
    text = "[a](a.ipynb#b) `[no](code)` ![c](<c%20d.png>) [out](https://example.org) [r][1]"
    text += "\n\n[1]: ../e.md\n\n[^1]: note"
    assert page_links(new_notebook(cells=[new_markdown_cell(text)])) == ["a.ipynb#b", "c d.png", "../e.md"]


# Part by part: pages


def test_a_page_is_built_in_its_folder(tmp_path):
    nbformat.write(new_notebook(cells=DEMO), tmp_path / "demo.ipynb")
    page = page_html(tmp_path / "demo.ipynb")
    assert all(text in page for text in ("<h1", "Why it is here.", "Twice"))
    assert "assert" not in page and "show_doc" not in page


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (new_code_cell("x = 1\n#| hide\ny = 2"), "nbs/index.ipynb: the page shows the directive '#| hide'"),
        (
            new_code_cell("1", outputs=[new_output("stream", text="Traceback (most recent call last)")]),
            "shows a traceback",
        ),
        (new_code_cell("#| export\n1 / 0"), "1 / 0"),
    ],
)
def test_a_page_that_shows_a_fault_is_refused(site, cell, message):
    append(site, cell)
    with pytest.raises(Exception, match=re.escape(message)):
        render_pages(site)


def test_pages_are_named_after_their_notebooks(site):
    assert list(render_pages(site)) == ["nbs/index.ipynb", "nbs/00_part.ipynb"]


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("echo Output created: _site/index.html", 0),
        ("echo 'WARN: Unable to resolve link target'", 1),
        ("printf '\\033[33mWARN: Unable to resolve link target\\033[39m'", 1),
        ("echo 'ERROR: no' >&2; exit 1", 1),
        ("test -f look.scss && test -f nbs/00_part.ipynb && test -f _quarto.yml", 0),
        ("", 127),
    ],
)
def test_how_a_rendering_ends(site, monkeypatch, script, code):
    "A shell script plays Quarto's part; without one there is no Quarto."
    (quarto := site / "quarto").write_text(f"#!/bin/sh\n{script}\n")
    quarto.chmod(0o755 if script else 0o644)
    monkeypatch.setenv("PATH", str(site))
    assert render_site(site) == code


def test_quarto_reads_pages_that_are_filtered_already(site):
    "Left to start the filter itself, it would do so once for each of some two hundred pages."
    edit(site, "website:", "ipynb-filters: [a-filter]\nwebsite:")
    (site / "_proc").mkdir()
    (site / "_proc" / "left.ipynb").touch()
    staged = stage_site(site)
    files = {path.relative_to(staged).as_posix() for path in staged.rglob("*") if path.is_file()}
    assert files == {"_quarto.yml", "look.scss", "nbs/index.ipynb", "nbs/00_part.ipynb"}
    assert "show_doc(Thing)" in (staged / "nbs" / "00_part.ipynb").read_text()
    given = read_config(site)
    assert given.pop("ipynb-filters") and read_config(staged) == given


def test_what_quarto_prints_is_shown_and_its_site_is_moved_into_place(site, monkeypatch, capsys):
    (quarto := site / "quarto").write_text("#!/bin/sh\necho '[1/2] nbs/index.ipynb' >&2\nmkdir _site\necho new > _site/index.html\n")
    quarto.chmod(0o755)
    monkeypatch.setenv("PATH", f"{site}{os.pathsep}{os.environ['PATH']}")
    (site / "_site").mkdir()
    (site / "_site" / "old.html").touch()
    assert render_site(site) == 0
    assert capsys.readouterr().err == "[1/2] nbs/index.ipynb\n"
    assert [path.name for path in (site / "_site").iterdir()] == ["index.html"]


def test_a_site_with_a_problem_is_not_rendered(site, capsys):
    append(site, new_markdown_cell("[gone](gone.ipynb)"))
    assert render_site(site) == 1
    assert capsys.readouterr().err == "nbs/index.ipynb: link to gone.ipynb: no such file\n"


# Part by part: the public names


def test_public_names_are_exported_and_have_no_underscore():
    assert public_names(new_notebook(cells=DEMO)) == {"double": "Twice `x`."}
    hidden = [new_code_cell("#| export\ndef _own(): ..."), new_code_cell("def shown(): ...")]
    assert public_names(new_notebook(cells=hidden)) == {}


def test_the_listing_has_a_table_for_each_module(site):
    nb = new_notebook(cells=[DEMO[0], new_code_cell("#| default_exp parts.demo"), *DEMO[1:]])
    nbformat.write(nb, site / "nbs" / "00_part.ipynb")
    assert api_listing(site, "nbs").splitlines() == [
        "## parts",
        "",
        "### parts.demo",
        "",
        "[demo](00_part.ipynb): A page.",
        "",
        "| name | what it is |",
        "|---|---|",
        "| [double](00_part.ipynb#double) | Twice `x`. |",
    ]


def test_modules_of_no_wing_come_last(site):
    for number, module in enumerate(("command", "parts.demo")):
        nb = new_notebook(cells=[DEMO[0], new_code_cell(f"#| default_exp {module}"), *DEMO[1:]])
        nbformat.write(nb, site / "nbs" / f"0{number}_part.ipynb")
    config = read_config(site)
    config["website"]["sidebar"][0]["contents"].append("nbs/01_part.ipynb")
    (site / "_quarto.yml").write_text(yaml.safe_dump(config))
    headings = [line for line in api_listing(site, "nbs").splitlines() if line.startswith("#")]
    assert headings == ["## parts", "### parts.demo", "## outside the wings", "### command"]


def test_the_page_of_a_run_leads_back_and_is_not_searched():
    row = {"output_type": "display_data", "metadata": {}, "data": {"application/json": {"run": "a"}, "text/plain": "a"}}
    cells = [{"cell_type": "markdown", "id": "a", "metadata": {}, "source": "# A run\n\n> Its claim."},
             {"cell_type": "code", "id": "b", "metadata": {}, "source": "row", "execution_count": None, "outputs": [row]}]
    shown = json.loads(filter_notebook(json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5})))["cells"]
    front = "".join(shown[0]["source"])
    assert "search: false" in front and "code-fold: true" in front
    assert any("results/runs.ipynb" in "".join(cell["source"]) for cell in shown)
