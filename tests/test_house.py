"""The structure of the package: wings and the arrows between them, what `load` imports, widths, names."""

import ast
import json
import subprocess
import sys
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "vocab_pruning"
# In the order of reading: a wing imports only from wings above it, and from `core`.
WINGS = ["core", "data", "algorithms", "scorers", "remaps", "models", "evaluate", "runs", "report", "cli", "testing"]
# All that `from vocab_pruning import load` may import of ours.
RUNTIME = {"core", "remaps", "remaps.codes", "remaps.rounding", "remaps.table", "models", "models.anatomy", "models.embedding", "models.saving"}
LABORATORY = ["sklearn", "scipy", "pandas", "datasets", "matplotlib", "seaborn", "skeletoken", "typer", "transformers"]


@cache
def modules() -> dict[str, ast.Module]:
    "Every exported module by its name below the package, parsed."
    paths = [path for path in PACKAGE.rglob("*.py") if path.name not in ("__init__.py", "_modidx.py")]
    return {".".join(path.relative_to(PACKAGE).with_suffix("").parts): ast.parse(path.read_text("utf-8")) for path in paths}


def imported(name: str, tree: ast.Module, lazily: bool = True) -> set[str]:
    "Modules of ours that the module `name` imports; `lazily`: inside functions, too."
    nodes = ast.walk(tree) if lazily else tree.body
    package, found = name.split(".")[:-1], set()
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.level:
            found.add(".".join([*package[: len(package) - node.level + 1], node.module or ""]))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vocab_pruning."):
            found.add(node.module.removeprefix("vocab_pruning."))
    return found & modules().keys()


def wing(module: str) -> str:
    return module.split(".")[0]


def longest_chain(start: str) -> list[str]:
    "The longest chain of imports, those inside functions aside, from the module `start`."
    @cache
    def chain(name: str) -> tuple[str, ...]:
        below = [chain(other) for other in imported(name, modules()[name], lazily=False)]
        return (name, *max(below, key=len, default=()))

    return list(chain(start))


def test_every_module_stands_in_a_wing():
    assert {wing(module) for module in modules()} <= set(WINGS)


def test_a_wing_imports_only_from_wings_above_it(capsys):
    arrows = defaultdict(int)
    for name, tree in modules().items():
        for other in imported(name, tree):
            if wing(name) != wing(other):
                arrows[wing(name), wing(other)] += 1
    with capsys.disabled():
        if sys.stdout.isatty():
            print("\n" + "\n".join(f"{a} -> {b}: {n}" for (a, b), n in sorted(arrows.items())))
    upward = [f"{a} -> {b}" for a, b in arrows if WINGS.index(b) > WINGS.index(a)]
    assert not upward


def test_no_module_imports_itself_by_way_of_others():
    above, below = {}, {name: imported(name, tree, lazily=False) for name, tree in modules().items()}

    def visit(name: str, path: tuple[str, ...]):
        assert name not in path, f"circle: {' -> '.join([*path, name])}"
        if name not in above:
            above[name] = True
            for other in below[name]:
                visit(other, (*path, name))

    for name in below:
        visit(name, ())


def test_load_imports_the_runtime_and_nothing_else():
    code = "import sys, json; from vocab_pruning import load; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = json.loads(done.stdout)
    ours = {name.removeprefix("vocab_pruning.") for name in loaded if name.startswith("vocab_pruning.")}
    assert ours == RUNTIME
    assert not set(LABORATORY) & set(loaded)


def test_chains_of_imports_are_short():
    assert len(longest_chain("models.saving")) <= 6
    assert len(longest_chain("models.pruning")) <= 10


def test_no_module_imports_what_another_keeps_to_itself():
    private = [f"{name}: {alias.name}" for name, tree in modules().items() for node in ast.walk(tree)
               if isinstance(node, ast.ImportFrom) for alias in node.names if alias.name.strip("_") != alias.name
               and not alias.name.endswith("__")]
    assert not private


def exported_cells() -> list[tuple[str, str]]:
    cells = []
    for path in sorted((ROOT / "nbs").rglob("*.ipynb")):
        if ".ipynb_checkpoints" not in path.parts:
            for cell in json.loads(path.read_text("utf-8"))["cells"]:
                if cell["cell_type"] == "code" and "".join(cell["source"]).lstrip().startswith("#| export"):
                    cells.append((path.relative_to(ROOT).as_posix(), "".join(cell["source"])))
    return cells


def test_exported_cells_are_one_idea_each():
    long = {f"{path}: {source.splitlines()[1]}": n for path, source in exported_cells()
            if (n := sum(bool(line.strip()) for line in source.splitlines())) > 40}
    assert not long


def test_no_line_is_wider_than_120():
    wide = [f"{path}: {line}" for path, source in exported_cells() for line in source.splitlines() if len(line) > 120]
    assert not wide


def names_of(node) -> list[str]:
    "The names that a statement of a module gives to a function, a class or a value."
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [target.id for target in targets if isinstance(target, ast.Name) and target.id not in ("__all__", "_all_")]


@pytest.mark.parametrize("kind", [ast.FunctionDef, ast.ClassDef, ast.Assign | ast.AnnAssign])
def test_a_name_means_one_thing(kind):
    places = defaultdict(set)
    for module, tree in modules().items():
        for node in tree.body:
            if isinstance(node, kind):
                for name in names_of(node):
                    places[name].add(module)
    twice = {name: sorted(where) for name, where in places.items() if len(where) > 1}
    assert not twice
