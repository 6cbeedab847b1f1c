"""The notebooks are the source: exported, committed clean, and of readable size."""

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tools.readme import readme_text

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted(p for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)


def sources(notebook: Path) -> list[str]:
    return ["".join(c["source"]) for c in json.loads(notebook.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"]


def exported(notebook: Path) -> list[str]:
    return [s for s in sources(notebook) if s.startswith("#| export")]


def lines(cell: str) -> int:
    return sum(bool(line.strip()) for line in cell.splitlines())


def modules(project: Path) -> dict[Path, str]:
    "The modules of the package in `project`, by their paths in it."
    return {p.relative_to(project): p.read_text(encoding="utf-8") for p in (project / "vocab_pruning").rglob("*.py")}


@pytest.fixture(scope="module")
def processed(tmp_path_factory) -> Path:
    "A copy of the project, cleaned, and exported into an empty package, for an export deletes no module."
    copy = tmp_path_factory.mktemp("project")
    for name in ("nbs", "vocab_pruning"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    for name in ("settings.ini", "README.md"):
        shutil.copy(ROOT / name, copy)
    for name in modules(copy):
        if name != Path("vocab_pruning/__init__.py"):
            (copy / name).unlink()
    scripts = Path(sys.executable).parent
    for command in ("nbdev_export", "nbdev_clean"):
        subprocess.run([scripts / command], cwd=copy, check=True, capture_output=True)
    return copy


def test_package_is_what_the_notebooks_export(processed):
    assert modules(processed) == modules(ROOT), "run nbdev_export; remove a module that no notebook exports any more"


@pytest.mark.parametrize("name", ["stale.py", "scorers/stale.py", "wing/__init__.py"])
def test_a_module_that_no_notebook_exports_is_found(name, processed, tmp_path):
    shutil.copytree(processed / "vocab_pruning", tmp_path / "vocab_pruning")
    stale = tmp_path / "vocab_pruning" / name
    stale.parent.mkdir(exist_ok=True)
    stale.write_text('"An earlier export."\n', encoding="utf-8")
    assert modules(tmp_path).keys() - modules(processed).keys() == {Path("vocab_pruning") / name}


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.relative_to(ROOT / "nbs").as_posix())
def test_notebook_is_committed_clean(notebook, processed):
    assert notebook.read_text(encoding="utf-8") == (processed / notebook.relative_to(ROOT)).read_text(encoding="utf-8"), "run nbdev_clean"


def test_readme_is_the_index():
    assert (ROOT / "README.md").read_text(encoding="utf-8") == readme_text(ROOT / "nbs" / "index.ipynb"), "run make readme"


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.relative_to(ROOT / "nbs").as_posix())
def test_exported_cells_are_short(notebook):
    assert max(map(lines, exported(notebook)), default=0) <= 40


def test_expected_errors_are_really_expected():
    "fastcore's `expect_fail` is a context manager: called any other way it checks nothing (`test_fail` is the one to call)."
    cells = ["".join(cell["source"]) for n in NOTEBOOKS for cell in json.loads(n.read_text())["cells"] if cell["cell_type"] == "code"]
    assert not [line for cell in cells for line in cell.splitlines() if "expect_fail(" in line and not line.lstrip().startswith("with ")]


def test_package_does_not_import_its_development_tools():
    for module in (ROOT / "vocab_pruning").rglob("*.py"):
        imported = [n for n in ast.parse(module.read_text()).body if isinstance(n, ast.Import | ast.ImportFrom)]
        names = {alias.name for n in imported for alias in n.names} | {getattr(n, "module", None) or "" for n in imported}
        assert not {n.split(".")[0] for n in names} & {"fastcore", "nbdev", "execnb", "nbformat", "pytest"}, module
