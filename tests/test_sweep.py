"""Sweeps: killed and resumed, side by side, with runs that fail, without room, and on Ray. Runs are those of a stand-in, but for one."""

import json
import shutil
import sys
import threading
import time
from concurrent.futures import Future
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from tools.publish import publish_run
from vocab_pruning.core import parse_yaml
from vocab_pruning.data.tasks import get_task
from vocab_pruning.evaluate.finetune import FineTuned
from vocab_pruning.runs import record as results
from vocab_pruning.runs.cells import CELL, PAGE, _error_of
from vocab_pruning.runs.languages import language_cuts
from vocab_pruning.runs.record import read_row, read_rows, record_run
from vocab_pruning.runs.sweep import _keep_recipe, _outcome, sweep, sweep_cells, sweep_status

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
from kill_sweep import RECIPE, killed_sweep, write_recipe, write_stand_in  # noqa: E402

ROW_OF = """
import json, os
from pathlib import Path

place, name = Path(out), f"{task}-{scorer}-{seed}"
"""
WRITE = """
(place / name).mkdir()
row = dict(run=name, task=task, scorer=scorer, seed=seed, score=0.5, seconds_train=os.times().elapsed % 1)
(place / name / "result.json").write_text(json.dumps(row))
display({"application/json": row}, raw=True)
"""
TWO = """
out: sweep
tasks: [cola]
methods: [{{scorer: frequency}}, {{scorer: tfidf}}]
cuts: [{{base: vocab, ratio: 0.9}}]
seeds: {seeds}
"""

ONE = TWO.replace("{{scorer: frequency}}, ", "")


@pytest.fixture
def two(tmp_path, monkeypatch):
    "A function that writes a recipe of two runs, whose rows go below the working directory, and a stand-in that does `work` before it writes its row."
    monkeypatch.chdir(tmp_path)

    def write(work: str = "", seeds: int = 1, text: str = TWO) -> dict:
        return dict(recipe=write_recipe(tmp_path / "recipe.yml", seeds, text), notebook=write_stand_in(tmp_path / "stand_in.ipynb", ROW_OF + work + WRITE))
    return write


@pytest.mark.slow
def test_a_sweep_that_is_killed_and_resumed_by_two_at_once_has_every_row_once(tmp_path):
    found = killed_sweep(tmp_path, seeds=1, kills=2, seed=3, at_once=2, recipe=RECIPE.replace(", rte", ""))
    assert (found["runs"], found["rows"], found["names"], found["done"]) == (4, 4, 4, 4)
    assert not any(found[name] for name in ("made_twice", "overlaps", "half_made_cells", "alive")), found


FAULTS = """
import signal, time
if not (place / "mended").exists() and scorer == "frequency":
    raise RuntimeError("no room\\nat all")
if not (place / "mended").exists():
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(60)  # the kernel notices that it is alone, and ends
"""


def test_runs_that_fail_are_recorded_and_made_again_only_when_asked(two, tmp_path):
    given = two(FAULTS)
    for _ in range(2):
        with pytest.warns(UserWarning, match="2 of 2 runs failed, cola-frequency-vocab-0.9-0-"):
            assert sweep(**given, progress=False).empty
        status = sweep_status(**given)
        assert status.error.tolist() == ["RuntimeError: no room at all", "the process was killed by signal 9 (perhaps memory ran out)"]
        assert "RuntimeError" in (next(iter(sweep_cells(**given))) / PAGE).read_text()
        (tmp_path / "sweep" / "mended").touch()
    assert len(sweep(**given, progress=False, retry=True)) == 2
    assert sweep_status(**given).state.tolist() == ["done", "done"]


def test_a_full_disk_stops_the_sweep_and_leaves_the_rows(two, tmp_path):
    given = two('raise OSError(28, "No space left on device")')
    (tmp_path / "sweep" / "earlier").mkdir(parents=True)
    (tmp_path / "sweep" / "earlier" / "result.json").write_text('{"run": "earlier"}')
    with pytest.raises(OSError, match="cannot write to .*No space left on device.*the rows there are intact") as error:
        sweep(**given, workers=1, progress=False)
    assert error.value.errno == 28
    assert read_rows(tmp_path / "sweep").run.tolist() == ["earlier"]
    assert sweep_status(**given).state.tolist() == ["missing", "missing"]


def test_a_page_that_a_full_disk_cut_off_tells_nothing(tmp_path):
    (page := tmp_path / "page.ipynb").write_text('{"cells": [{"outp')
    assert _error_of(page, "Traceback …\nOSError: [Errno 28] No space left on device\n", 1) == "OSError: [Errno 28] No space left on device"


def test_an_engine_that_fails_leaves_what_another_sweep_made(two):
    given, future = two(), Future()
    future.set_exception(RuntimeError("the worker died"))
    sweep(**given, progress=False)
    (done, run), (missing, _) = sweep_cells(**given).items()
    shutil.rmtree(missing)
    assert (_outcome(future, done, run), _outcome(future, missing, run)) == ("done", "failed")
    assert sweep_status(**given).error.dropna().tolist() == ["RuntimeError: the worker died"]


def test_a_run_on_what_auto_was_is_made_again(two, monkeypatch):
    "`auto` takes the data at hand; when there is more, an earlier run is not the one that was asked for."
    given = two("data_id = os.environ['GLUE_DIR']\nname += data_id\n", text=ONE)
    given["notebook"].write_text(given["notebook"].read_text().replace("seed=seed, score", "seed=seed, data_id=data_id, score"))
    for there in ("sample", "glue-directory"):
        monkeypatch.setenv("GLUE_DIR", there)
        monkeypatch.setattr("vocab_pruning.runs.cells.resolve_data", lambda there=there: (there, there))
        assert sweep_status(**given).state.tolist() == ["missing"]
        sweep(**given, progress=False)
        assert sweep_status(**given).state.tolist() == ["done"]
    monkeypatch.setattr("vocab_pruning.runs.cells.resolve_data", lambda: ("sample", "sample"))  # what is better than what is at hand stays
    assert sweep_status(**given).state.tolist() == ["done"]


def test_a_directory_that_cannot_be_written_is_an_error(two, tmp_path):
    (tmp_path / "sweep").write_text("a file")
    with pytest.raises(OSError, match="cannot write to .*sweep"):
        sweep(**two(), progress=False)
    assert (tmp_path / "sweep").read_text() == "a file"


def test_the_recipe_is_kept_through_a_link_and_past_what_a_killed_sweep_left(two, tmp_path):
    given = two()
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "recipe.yml").symlink_to(tmp_path / "kept.yml")
    (tmp_path / "sweep" / ".recipe.yml.new").write_text("out: swe")
    (tmp_path / ".kept.yml.new").write_text("out: swe")
    _keep_recipe(given["recipe"], tmp_path / "sweep")
    assert (tmp_path / "kept.yml").read_text() == given["recipe"].read_text()
    assert (tmp_path / "sweep" / "recipe.yml").is_symlink() and not (tmp_path / ".kept.yml.new").exists()


def test_half_made_runs_are_no_rows(tmp_path):
    (tmp_path / ".run.0a1b2c3d.new").mkdir()
    (tmp_path / ".run.0a1b2c3d.new" / "result.json").write_text('{"run": ')
    assert read_rows(tmp_path).empty


def test_a_run_that_two_want_is_made_once(tmp_path, monkeypatch):
    made = []

    def slow(*args):
        made.append(time.sleep(0.3))
        labels = {"dev": np.zeros(2)}
        return FineTuned(dict(matthews=0.5), labels, labels, [], dict(train=0.3))

    monkeypatch.setattr(results, "finetune", slow)
    monkeypatch.setattr(results, "sizes", lambda model: dict(params=1))
    asked = (tmp_path / "run", dict(task="cola", seed=1), None, None, None, {})
    both = [threading.Thread(target=record_run, args=asked) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert len(made) == 1 and read_row(tmp_path / "run")["score"] == 0.5


LANGUAGES = ROOT / "recipes" / "languages.yaml"


@pytest.mark.parametrize("recipe", sorted({*(ROOT / "recipes").glob("*.yaml")} - {LANGUAGES}), ids=lambda path: path.stem)
def test_the_recipes_of_the_project_can_be_run(recipe):
    assert len(sweep_cells(recipe)) > 100


def test_the_recipe_of_languages_can_be_run():
    assert len(language_cuts(parse_yaml(LANGUAGES.read_text(encoding="utf-8"))["grids"])) > 100


OWN = "text,label\n" + "".join(f"text {i},{('no', 'yes')[i % 2]}\n" for i in range(20))


@pytest.fixture
def own(tmp_path, monkeypatch):
    "A function that gives the cells of a recipe of the task whose texts and description lie in data/."
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "reviews.csv").write_text(OWN)
    (tmp_path / "data" / "reviews.yaml").write_text("train: reviews.csv")
    monkeypatch.chdir(tmp_path)

    def cells(place: str = "data/reviews.yaml") -> dict:
        return sweep_cells(write_recipe(tmp_path / "recipe.yml", 3, TWO.replace("[cola]", f"[{place}]")), ROOT / "nbs" / "run.ipynb")
    return cells


def test_two_tasks_of_one_name_are_refused(tmp_path):
    for language in ("de", "en"):
        (tmp_path / language).mkdir()
        (tmp_path / language / "train.csv").write_text(OWN)
    tasks = ", ".join(str(tmp_path / language / "train.csv") for language in ("de", "en"))
    with pytest.raises(ValueError, match="it is called 'train', and so is .*de/train.csv; give one of them another name"):
        sweep_cells(write_recipe(tmp_path / "two.yml", 1, TWO.replace("[cola]", f"[{tasks}]")), ROOT / "nbs" / "run.ipynb")


@pytest.mark.parametrize("place", ["data/reviews.csv", "{here}/data/reviews.csv"])
def test_the_cells_of_an_own_task_lie_below_out(tmp_path, own, place):
    assert {cell.parent for cell in own(place.format(here=tmp_path))} == {tmp_path / "sweep" / "cells"}


def test_the_cells_of_an_own_task_are_those_of_its_files(tmp_path, own):
    seen, data = own().keys(), tmp_path / "data"
    assert own().keys() == seen and len(seen) == 6
    for file, text in (("reviews.csv", OWN.replace("text 3", "another")), ("reviews.yaml", "{train: reviews.csv, metrics: [f1]}"),
                       ("reviews.yaml", "{train: reviews.csv, metrics: [f1], epochs: 9}")):
        (data / file).write_text(text)
        assert not own().keys() & seen
        seen |= own().keys()


def test_an_own_task_is_read_once(own, monkeypatch):
    read = []
    monkeypatch.setattr("vocab_pruning.runs.recipe.get_task", lambda task: read.append(task) or get_task(task))
    monkeypatch.setattr("vocab_pruning.runs.record.get_task", lambda task: read.append(task) or get_task(task))
    own()
    assert [task for task in read if isinstance(task, str)] == ["data/reviews.yaml"]


@pytest.mark.parametrize(("old", "new", "message"), [
    ("tasks: [cola]", "tasks: []", "recipe.yml: tasks is empty"),
    ("seeds:", "seed:", "unknown key 'seed'; choose one of out, model, data"),
    ("methods: [", "methods: [{{}}, [], ", r"methods\[1\]: \[\] is not a mapping"),
    ("ratio: 0.9", "ratio: 0.9, rows: 3", r"cuts\[0\]: unknown parameter 'rows'; choose one of task"),
    ("cuts: [", "# cuts: [", r"methods\[0\] has no cuts"),
    ("tfidf", "tf-idf", "unknown scorer 'tf-idf'; choose one of random"),
    ("tfidf", "frequency", "frequency-vocab-0.9-0: it is listed twice"),
    ("ratio: 0.9", "ratio: most", r"recipe.yml: cuts\[0\]: ratio='most': give a fraction"),
    ("ratio: 0.9", "ratio: 0.9, epochs: three", r"recipe.yml: cuts\[0\]: epochs='three': give a number above 0"),
    ("tfidf", "tfidf, save_model: flase", r"recipe.yml: methods\[1\]: save_model='flase': give true or false"),
    ("tfidf", "tfidf, oov_options: 8", r"recipe.yml: methods\[1\]: oov_options=8: give a mapping"),
    ("tfidf", "tfidf, cuts: [0.9]", r"recipe.yml: methods\[1\].cuts\[0\]: 0.9 is not a mapping"),
    ("tasks: [cola]", "tasks: [[cola]]", r"recipe.yml: task=\['cola'\]: give the name of a task"),
    ("{seeds}", "[first]", "recipe.yml: seeds: seed='first': give a whole number"),
    ("seeds:", "model: [null]\nseeds:", "recipe.yml: model: model=None: give a name or a path"),
    ("out: {out}", "out:", "recipe.yml: out=None: give a name or a path"),
    ("out: {out}", "out: [a]", r"recipe.yml: out=\['a'\]: give a name or a path"),
])
def test_a_recipe_that_cannot_be_run_writes_nothing(tmp_path, old, new, message):
    changed = TWO.replace("out: sweep", "out: {out}").replace(old, new)
    assert old in TWO.replace("out: sweep", "out: {out}"), "else the recipe would be run"
    recipe = write_recipe(tmp_path / "recipe.yml", 1, changed)
    with pytest.raises(ValueError, match=message):
        sweep(recipe, notebook=ROOT / "nbs" / "run.ipynb")
    assert not (tmp_path / "sweep").exists()


def test_values_of_a_recipe_that_are_text_name_the_cells_of_what_they_mean(tmp_path):
    "Cells are named by a hash of their parameters, so `20%` and 0.2 must be one parameter."
    meant = "defaults: {{epochs: 2, save_model: false, oov_options: {{}}}}\n" + TWO
    text = "defaults: {{epochs: '2', save_model: 'no', oov_options: ''}}\n" + TWO.replace("0.9", "90%")
    recipes = [write_recipe(tmp_path / f"{i}.yml", 1, recipe) for i, recipe in enumerate((meant, text))]
    first, second = (sweep_cells(recipe, ROOT / "nbs" / "run.ipynb") for recipe in recipes)
    assert first == second and len(first) == 2


def test_a_recipe_that_is_no_text_is_named(tmp_path):
    (tmp_path / "recipe.yml").write_bytes(b"out: caf\xe9")
    with pytest.raises(ValueError, match="^recipe.yml: 'utf-8' codec can't decode"):
        sweep_cells(tmp_path / "recipe.yml", ROOT / "nbs" / "run.ipynb")


CELLS_OF_MINILM = {"sst2-tfidf-unk-vocab-0.95-42-c808971f", "sst2-tfidf-int4-vocab-0.95-42-6030c3fb",
                   "sst2-losparse-params-0.4-42-e876b6d8", "sst2-tfidf-unk-seen-0-42-2863b6a0",
                   "sst2-tfidf-pq-vocab-0.95-42-d249e476"}


def test_the_cells_of_the_shipped_recipe_keep_their_names():
    "A sweep that was begun must find its cells again: the names of some, as they have been since the recipe says how unseen rows are ranked."
    names = {cell.name for cell in sweep_cells(ROOT / "recipes" / "minilm.yaml", ROOT / "nbs" / "run.ipynb")}
    assert names >= CELLS_OF_MINILM and len(names) == 765


def test_other_engines_and_missing_ones(two, monkeypatch):
    with pytest.raises(ValueError, match="unknown engine 'dask'; choose one of local, ray"):
        sweep(**two(), engine="dask")
    for room in (dict(workers=0), dict(workers="two"), dict(threads=0), dict(workers=True)):
        (name, value), = room.items()
        with pytest.raises(ValueError, match=f"{name}={value!r}: give a whole number, 1 or more"):
            sweep(**two(), **room)
    with pytest.raises(ValueError, match="the engine 'local' has no option 'gpus'; it takes no options"):
        sweep(**two(), gpus=1)
    for option in (dict(gpus="all"), dict(gpus=-1), dict(max_retries=1.5)):
        (name, value), = option.items()
        with pytest.raises(ValueError, match=f"{name}={value!r}: give "):
            sweep(**two(), engine="ray", **option)
    assert not Path("sweep").exists()
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"vocab_pruning\[cluster\]"):
        sweep(**two(), engine="ray", progress=False)


def test_the_run_notebook_in_a_sweep(tmp_path, tiny_directory):
    recipe = write_recipe(tmp_path / "recipe.yml", 1, TWO.replace("{{scorer: tfidf}}", "").replace("out: sweep", "out: {out}") + f"""
model: {tiny_directory}
data: sample
defaults: {{{{epochs: 1, max_train_examples: 64, learning_rate: 2e-5, oov: unk}}}}
""")
    rows = sweep(recipe, progress=False, notebook=ROOT / "nbs" / "run.ipynb")
    assert rows.method.tolist() == ["frequency+unk", "full"] and set(rows.learning_rate) == {2e-5} and set(rows.model_id) == {"tiny"}
    (cell,) = sweep_cells(recipe, ROOT / "nbs" / "run.ipynb")
    assert json.loads((cell / CELL).read_text())["run"] == rows.run[0]
    page = publish_run(cell / PAGE, tmp_path / "pages").read_text()
    assert str(tmp_path) not in page and str(ROOT) not in page


# On Ray


@pytest.fixture
def ray_at_hand():
    if find_spec("ray") is None:
        pytest.skip("needs the extra `cluster` (Ray)")


def times_aside(rows):
    return rows.drop(columns=[name for name in rows if name.startswith("seconds")])


def test_ray_gives_the_rows_that_local_gives(two, tmp_path, ray_at_hand):
    given = two()
    local = sweep(**given, progress=False)
    (tmp_path / "sweep").rename(tmp_path / "local")
    assert times_aside(sweep(**given, progress=False, engine="ray")).equals(times_aside(local))


def test_the_run_of_a_ray_worker_that_dies_is_made_by_another(two, tmp_path, ray_at_hand):
    given = two("""
import psutil, signal
if scorer == "frequency" and not (place / "killed").exists():
    (place / "killed").touch()
    psutil.Process(psutil.Process(os.getppid()).ppid()).kill()
    import time
    time.sleep(60)
""")
    assert len(sweep(**given, progress=False, engine="ray")) == 2
    assert sweep_status(**given).state.tolist() == ["done", "done"] and (tmp_path / "sweep" / "killed").exists()
