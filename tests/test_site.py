"""The real site holds, its pages can be built, and each fault that Quarto passes over in silence is found."""

import html
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from vocab_pruning._modidx import d as index
from vocab_pruning.publish import results_listing
from vocab_pruning.site import api_listing, check_site, page_anchors, read_config, render_pages, render_site, site_pages

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent


# The real site


def test_the_site_has_no_problem():
    assert check_site(ROOT) == []


@pytest.fixture(scope="module")
def pages():
    "All pages but for published runs, which are pages of one notebook: three of them."
    return render_pages(ROOT, runs=3)


def test_every_notebook_becomes_a_page(pages):
    runs = sorted(ROOT.glob("results/*/runs/*.ipynb"))
    assert set(runs) < {*site_pages(ROOT, read_config(ROOT))}
    assert set(pages) == {path.relative_to(ROOT).as_posix() for path in (*ROOT.glob("nbs/**/[!._]*.ipynb"), *runs[:3])}


def test_no_page_shows_a_directive_or_a_traceback(pages):
    for name, page in pages.items():
        text = html.unescape(re.sub(r"<[^>]+>", "", page))
        assert not re.search(r"^\s*#\|", text, re.MULTILINE), name
        assert "Traceback (most recent call last)" not in text, name


def test_pages_document_what_they_export(pages):
    assert "<h3" in pages["nbs/core.ipynb"] and "resolve_model" in pages["nbs/core.ipynb"]
    assert "show_doc(" not in pages["nbs/core.ipynb"]


def test_the_api_page_has_every_public_name_one_click_away(pages, tmp_path):
    listing = api_listing(ROOT)
    named = re.findall(r"^\| \[(\w+)\]", listing, re.MULTILINE)
    documented = [name.removeprefix(f"{module}.") for module, names in index["syms"].items() for name in names]
    assert sorted(named) == sorted(name for name in documented if "." not in name and name[0] != "_")
    for name, page in {"prune": "models/pruning.ipynb#prune", "PrunedModel": "models/saving.ipynb#prunedmodel", "tfidf_scores": "scorers/tfidf.ipynb#tfidf_scores"}.items():
        assert (f'href="{page}"' in pages["nbs/api.ipynb"]) == (name in named), name
    assert "prune" in named and "PrunedModel" in named


@pytest.mark.parametrize("listing", [api_listing, results_listing], ids=lambda f: f.__name__)
def test_what_a_generated_list_links_to_is_there(listing):
    for name, _, anchor in re.findall(r"\]\(([^)#]+)(#([^)]+))?\)", listing(ROOT)):
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


def test_the_bar_leads_to_the_five_parts():
    texts = [item["text"] for item in read_config(ROOT)["website"]["navbar"]["left"]]
    assert texts == ["Home", "Guide", "The method", "API", "Results"]


# The filter as a command


def run_filter(text, **kwargs):
    return subprocess.run([BIN / "vocab-pruning-filter"], check=False, input=text, capture_output=True, encoding="utf-8", **kwargs)


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
    noisy = new_notebook(cells=[new_markdown_cell("# noisy\n\n> It prints."), new_code_cell("#| export\nprint('noise')\ndef f(): pass")])
    done = run_filter(nbformat.writes(noisy), cwd=ROOT / "nbs")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["nbformat"] == 4


def test_the_filter_command_fails_where_exported_code_fails():
    broken = new_notebook(cells=[new_markdown_cell("# broken\n\n> It fails."), new_code_cell("#| export\nundefined_name")])
    done = run_filter(nbformat.writes(broken), cwd=ROOT / "nbs")
    assert done.returncode == 1 and done.stdout == "" and "undefined_name" in done.stderr


def test_without_nbdev_the_filter_says_what_to_install():
    code = "import sys; sys.modules['nbdev'] = None; from vocab_pruning.site import notebook_filter; notebook_filter()"
    done = subprocess.run([sys.executable, "-c", code], check=False, input="{}", capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.strip().splitlines() == ["vocab-pruning-filter needs nbdev: pip install vocab_pruning[dev]"]


# One fault at a time, in a small site


@pytest.fixture
def site(tmp_path):
    "A site of two pages without a problem."
    config = {
        "project": {"type": "website", "render": ["nbs/index.ipynb", "nbs/0*.ipynb"]},
        "format": {"html": {"theme": ["cosmo", "look.scss"]}},
        "website": {
            "navbar": {"left": [{"text": "More", "menu": ["nbs/index.ipynb", {"href": "https://example.org"}]}]},
            "sidebar": [{"title": "All", "contents": ["nbs/index.ipynb", "---", {"section": "Parts", "contents": ["nbs/00_part.ipynb"]}]}],
        },
    }
    (tmp_path / "nbs").mkdir()
    (tmp_path / "look.scss").write_text("")
    (tmp_path / "_quarto.yml").write_text(yaml.safe_dump(config))
    part = [new_markdown_cell("# part\n\n> One."), new_code_cell("#| export\nclass Thing:\n    pass"), new_markdown_cell("## The `end` of it")]
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
    assert "nbs/01_part.ipynb: not in the sidebar" in problems


def test_a_page_nobody_can_reach_is_found(site):
    edit(site, "- nbs/00_part.ipynb", "- nbs/index.ipynb")
    assert check_site(site) == ["nbs/00_part.ipynb: not in the sidebar"]


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
    append(site, new_markdown_cell(f"See [this]({link})."), new_markdown_cell("Not `[this](other.md)`, nor\n```\n[this](code.md)\n```"))
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
    assert page_anchors(new_notebook(cells=[new_markdown_cell("# t\n## A b\n### A b\n## A b")])) == {"a-b", "a-b-1", "a-b-2"}


def test_the_command_lists_problems_and_fails(site):
    edit(site, "website:", "ipynb-filter: []\nwebsite:")
    done = subprocess.run([sys.executable, "-m", "vocab_pruning.site"], check=False, cwd=site, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "_quarto.yml: unknown key 'ipynb-filter'\n")
