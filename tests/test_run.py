"""nbs/run.ipynb: a row comes out, a second run reads it, text is read as it was meant, bad parameters write nothing.

The model is random and narrow, with MiniLM's tokenizer. papermill executes what only it can show; other runs are made
in this process."""

import inspect
import json
import re
from pathlib import Path

import matplotlib
import nbformat
import pandas as pd
import papermill
import pytest
import torch
from conftest import run_notebook
from matplotlib import pyplot
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, BertModel

from tools.publish import page_name
from vocab_pruning.core import minilm_directory
from vocab_pruning.runs.after import evaluate_grid
from vocab_pruning.runs.recipe import run_parameters
from vocab_pruning.runs.record import asked_for, pack_runs, read_rows, row_of_notebook, run_directory, run_name, summarize_notebook, unpack_runs
from vocab_pruning.runs.spec import RunSpec, parameter_defaults
from vocab_pruning.runs.sweep import sweep_cells

ROOT = Path(__file__).parent.parent
QUICK = dict(task="cola", ratio=0.45, oov="nearest", data="sample", max_train_examples=64, epochs=1, seed=7, look_first=False)
TEXT = dict(task="cola", ratio="45%", oov="nearest", data="sample", max_train_examples="64", epochs="1", seed="7",
            look_first="False", save_model="true", baseline="yes", oov_options="{}", scorer_options="null",
            learning_rate="None")
WIDTH = 16

needs_minilm = pytest.mark.skipif(minilm_directory() is None, reason="needs the extra `offline` (MiniLM weights)")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    "Directory of a random encoder of one layer; its weights are large enough that texts are told apart."
    place = tmp_path_factory.mktemp("model")
    tokenizer = AutoTokenizer.from_pretrained(minilm_directory())
    config = BertConfig(vocab_size=len(tokenizer), hidden_size=WIDTH, num_hidden_layers=1, num_attention_heads=2,
                        intermediate_size=WIDTH, initializer_range=0.5)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(config).save_pretrained(place)
    tokenizer.save_pretrained(place)
    return str(place)


def run(out: Path, **parameters) -> Path:
    "Execute the run notebook with papermill, its output under `out`; returns the executed notebook."
    executed = out / "executed.ipynb"
    given = dict(out=str(out / "runs"), **parameters)
    papermill.execute_notebook(ROOT / "nbs" / "run.ipynb", executed, given, progress_bar=False, cwd=str(ROOT / "nbs"))
    return executed


def cells() -> tuple[list[str], int]:
    "Sources of the run notebook's code cells, and which of them holds the parameters."
    found = [cell["source"] for cell in nbformat.read(ROOT / "nbs" / "run.ipynb", 4).cells if cell.cell_type == "code"]
    return found, next(i for i, source in enumerate(found) if source.startswith("task = "))


def run_here(last: int | None = None, **parameters) -> dict:
    "Execute the run notebook in this process, `last` cells after the parameters (None: all); returns its variables."
    matplotlib.use("agg")
    (sources, asked), names = cells(), {}
    with matplotlib.rc_context(), pd.option_context("display.float_format", None):
        exec(sources[asked], names)
        exec(sources[asked - 1], names)
        names |= parameters
        for source in sources[asked + 1:][:last]:
            exec(source, names)
    pyplot.close("all")
    return names


@pytest.fixture(scope="module")
def first(tmp_path_factory, model) -> Path:
    "Where papermill made a run whose parameters are text."
    out = tmp_path_factory.mktemp("first")
    run(out, model=model, **TEXT)
    return out


def rows(out: Path) -> dict[str, dict]:
    return {p.parent.name: json.loads(p.read_text()) for p in (out / "runs").glob("*/result.json")}


@needs_minilm
def test_a_run_leaves_a_complete_row(first):
    found = rows(first)
    assert len(found) == 2, "one for the full model, one for the pruned"
    row = row_of_notebook(first / "executed.ipynb")
    assert row == found[row["run"]]
    needed = {"score", "full_score", "retention", "retention_reason", "rows", "embedding_params", "params", "bytes", "break_even", "train_tokens_pruned",
              "dev_share_remapped", "seconds_train", "model_fingerprint", "data_fingerprint", "version_transformers", "seed", "precision"}
    assert needed <= row.keys()
    assert row["rows_full"] - row["rows"] == int(0.45 * row["params_full"] / WIDTH)
    full = next(r for r in found.values() if r["method"] == "full")
    assert row["full_score"] == full["score"]
    assert full["params"] == row["params_full"]
    assert row["retention"] == pytest.approx(row["score"] / full["score"]) if full["score"] > 0 else row["retention"] is None


@needs_minilm
def test_predictions_give_the_score(first):
    from sklearn.metrics import matthews_corrcoef

    row = row_of_notebook(first / "executed.ipynb")
    guesses = pd.read_csv(first / "runs" / row["run"] / "predictions.csv")
    assert matthews_corrcoef(guesses.label, guesses.prediction) == pytest.approx(row["score"])


def guesses_of_saved(directory: Path) -> list[int]:
    "What the model saved with a run predicts for the first texts of dev; it must be what the run recorded."
    from vocab_pruning import load, load_task

    saved, row = load(directory / "model"), json.loads((directory / "result.json").read_text())
    texts = load_task("cola", "sample")["dev"]["text"][:32]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=row["precision"] == "bf16"):
        logits = saved.model(**saved.tokenizer(texts, padding=True, return_tensors="pt")).logits
    guesses = pd.read_csv(directory / "predictions.csv").prediction[:32].tolist()
    assert logits.argmax(1).tolist() == guesses
    return guesses


@needs_minilm
def test_the_saved_model_gives_the_predictions(first):
    guesses = guesses_of_saved(first / "runs" / row_of_notebook(first / "executed.ipynb")["run"])
    assert len(set(guesses)) == 2, "a model that always answers the same would agree with any other"


@needs_minilm
def test_the_report_holds_no_path_and_no_warning(first):
    outputs = [o for c in json.loads((first / "executed.ipynb").read_text())["cells"] for o in c.get("outputs", [])]
    progress = "".join(text for o in outputs if o.get("name") == "stderr" for text in o["text"])
    assert "training" in progress and "arning" not in progress, "stderr shows how far the run is, and nothing else"
    assert str(Path.home()) not in json.dumps(outputs)
    assert str(first.parent) not in json.dumps(outputs), "where the model and the results lie"


@needs_minilm
def test_a_run_that_is_there_is_read(first, model):
    "Asked with values for what was asked with text before: it is the same run."
    before = {p: p.stat().st_mtime_ns for p in (first / "runs").rglob("*") if p.is_file()}
    again = run_here(out=str(first / "runs"), model=model, save_model=True, **QUICK)
    assert {p: p.stat().st_mtime_ns for p in (first / "runs").rglob("*") if p.is_file()} == before
    assert again["repeated"] and again["row"] == row_of_notebook(first / "executed.ipynb")
    assert "retention" in summarize_notebook(first / "executed.ipynb")


@needs_minilm
def test_text_that_says_false_is_false(tmp_path, model):
    asked = QUICK | dict(save_model="false", baseline="False", look_first="no")
    row = run_here(out=str(tmp_path / "runs"), model=model, **asked)["row"]
    directory, = (path.parent for path in (tmp_path / "runs").glob("*/result.json"))
    assert (row["run"], row["baseline"], row["full_score"]) == (directory.name, False, None)
    assert not (directory / "model").exists()


@needs_minilm
def test_attention_reads_the_baseline(first, model):
    "The baseline's model was not saved, so it is made once more and kept; a second run with attention reads it."
    asked = QUICK | dict(model=model, base="seen", ratio=0.3, out=str(first / "runs"))
    row = run_here(**asked, scorer="attention")["row"]
    full = first / "runs" / next(name for name, r in rows(first).items() if r["method"] == "full")
    assert row["seconds_scores"] >= json.loads((full / "result.json").read_text())["seconds_train"] > 0
    assert row["train_tokens_pruned"] > 0
    before = {p: p.stat().st_mtime_ns for p in full.rglob("*") if p.is_file()}
    assert full / "model" / "model.safetensors" in before
    other = run_here(**asked, scorer="vatp")["row"]
    assert {p: p.stat().st_mtime_ns for p in full.rglob("*") if p.is_file()} == before
    assert (other["scorer"], other["full_score"]) == ("vatp", row["full_score"])


AFTER = QUICK | dict(base="vocab", when="after")  # its ratio of the rows


@pytest.fixture(scope="module")
def grid(first, model) -> tuple[Path, list[dict]]:
    "A recipe of three runs that prune after fine-tuning, and their rows."
    recipe = first / "after.yaml"
    shared = {name: value for name, value in AFTER.items() if name not in ("task", "ratio", "oov", "seed", "data")}
    methods = [dict(oov="nearest"), dict(oov="unk"), dict(oov="unk", scorer="attention")]
    recipe.write_text(json.dumps(dict(
        out=str(first / "runs"), model=model, data="sample", seeds=[7], tasks=["cola"], defaults=shared,
        cuts=[dict(ratio=0.45)], methods=methods)))
    table = evaluate_grid(recipe, progress=False)
    made = table[table.get("when") == "after"]
    assert len(made) == 3
    return recipe, made.to_dict("records")


@needs_minilm
def test_after_fine_tuning_nothing_is_trained(first, model, grid):
    "A row holds what the fine-tuned model predicts when it is pruned as it is."
    from vocab_pruning import load_task, prune
    from vocab_pruning.data.tasks import documents

    full = next(r for r in rows(first).values() if r["method"] == "full")
    guesses = {row["run"]: pd.read_csv(first / "runs" / row["run"] / "predictions.csv").prediction for row in [full, *grid[1]]}
    row = next(row for row in grid[1] if row["method"] == "tfidf+unk")
    tuned = AutoModelForSequenceClassification.from_pretrained(first / "runs" / full["run"] / "model")
    data = load_task("cola", "sample")
    pruned = prune(tuned, AutoTokenizer.from_pretrained(model), documents(data["train"].select(range(64))), 0.45,
                   base="vocab", oov="unk")
    with torch.no_grad():
        logits = pruned.model(**pruned.tokenizer(data["dev"]["text"][:], padding=True, return_tensors="pt")).logits
    assert logits.argmax(1).tolist() == guesses[row["run"]].tolist()
    assert row["agreement"] == (guesses[row["run"]] == guesses[full["run"]]).mean() < 1
    assert (row["seconds_train"], row["full_score"]) == (0, full["score"])


@needs_minilm
def test_the_run_notebook_and_the_grid_read_each_others_rows(first, model, grid):
    before = {p: p.stat().st_mtime_ns for p in first.rglob("*.json")}
    row = run_here(out=str(first / "runs"), model=model, **AFTER)["row"]
    evaluate_grid(grid[0], progress=False)
    assert {p: p.stat().st_mtime_ns for p in first.rglob("*.json")} == before
    assert row["run"] in [one["run"] for one in grid[1]]


@needs_minilm
def test_a_grid_says_what_is_not_possible(first, grid):
    asked = json.loads(grid[0].read_text())
    (other := first / "other.yaml").write_text(json.dumps(asked | dict(cuts=[dict(base="params", ratio=0.99)], methods=[dict(oov="unk")])))
    with pytest.warns(UserWarning, match="not possible: 1 of the runs; the first: cola, tfidf[+]unk, params 0.99: "):
        evaluate_grid(other, progress=False)
    asked["defaults"]["when"] = "before"
    other.write_text(json.dumps(asked))
    with pytest.raises(ValueError, match="when='before': these runs prune after fine-tuning; put `when: after`"):
        evaluate_grid(other, progress=False)


@needs_minilm
def test_packed_runs_are_continued_only_where_they_were_unpacked(first, grid, tmp_path):
    "A row that is made beside a packed file would never be read."
    pack_runs(first / "runs", tmp_path / "packed")
    asked = json.loads(grid[0].read_text()) | dict(out=str(tmp_path / "packed"))
    (recipe := tmp_path / "asked.yaml").write_text(json.dumps(asked))
    with pytest.raises(FileExistsError, match="rows.jsonl holds packed runs; continue from those that unpack_runs"):
        evaluate_grid(recipe, progress=False)
    assert {path.name for path in (tmp_path / "packed").iterdir()} <= {"rows.jsonl", "predictions.parquet"}


@needs_minilm
def test_a_full_model_that_is_trained_again_must_decide_as_its_row_says(first, grid, tmp_path):
    "Packed runs have no weights, so a grid that goes on from them trains the full model again."
    pack_runs(first / "runs", tmp_path / "packed")
    for name in ("same", "other"):
        unpack_runs(tmp_path / "packed", tmp_path / name)
        asked = json.loads(grid[0].read_text()) | dict(out=str(tmp_path / name), methods=[dict(oov="int8")])
        (tmp_path / f"{name}.yaml").write_text(json.dumps(asked))
    full = next(r["run"] for r in rows(first).values() if r["method"] == "full")
    before = (tmp_path / "same" / full / "result.json").read_text()
    made = evaluate_grid(tmp_path / "same.yaml", progress=False)
    assert json.loads((tmp_path / "same" / full / "result.json").read_text()) == json.loads(before)
    assert (made.oov == "int8").sum() == 1 and (tmp_path / "same" / full / "model").is_dir()
    table = pd.read_csv(file := tmp_path / "other" / full / "predictions.csv")
    table.loc[:1, "prediction"] = 1 - table.loc[:1, "prediction"]
    table.to_csv(file, index=False)
    with pytest.warns(UserWarning, match=rf"not possible: 1 of the runs; .*{full} was trained again and decides otherwise than its row says \(dev: 2 of"):
        evaluate_grid(tmp_path / "other.yaml", progress=False)


@needs_minilm
def test_a_grid_saves_the_models_that_are_asked_for(first, grid):
    "A row that is there without its model is made again, and then the model predicts what the row holds."
    asked = json.loads(grid[0].read_text())
    asked |= dict(methods=[dict(oov="unk", save_model=True)])
    (saving := first / "saving.yaml").write_text(json.dumps(asked))
    name = next(row["run"] for row in grid[1] if row["method"] == "tfidf+unk")
    assert not (first / "runs" / name / "model").exists()
    evaluate_grid(saving, progress=False)
    assert guesses_of_saved(first / "runs" / name)


@needs_minilm
@pytest.mark.parametrize("unseen", ["likely", "id"])
def test_unseen_rows_are_ranked_as_the_run_says(tmp_path, model, unseen):
    "The rows are those that `prune` keeps; the two ways keep different ones, and their runs have different names."
    from vocab_pruning import load_task, prune
    from vocab_pruning.data.tasks import documents

    names = run_here(out=str(tmp_path / "runs"), model=model, **QUICK | dict(baseline=False, unseen=unseen))
    texts = documents(load_task("cola", "sample")["train"].select(range(64)))
    full = AutoModelForSequenceClassification.from_pretrained(model)
    kept = {way: prune(full, AutoTokenizer.from_pretrained(model), texts, 0.45, oov="nearest", unseen=way).keep.tolist()
            for way in ("likely", "id")}
    assert names["pruned"].keep.tolist() == kept[unseen] and kept["likely"] != kept["id"]
    assert names["row"].get("unseen") == {"likely": "likely", "id": None}[unseen]


def test_what_must_train_is_not_pruned_after_fine_tuning():
    with pytest.raises(ValueError, match="when='after' trains nothing, and method 'losparse' must train"):
        RunSpec(when="after", method="losparse").check()
    with pytest.raises(ValueError, match="unknown precision 'fp16'"):
        RunSpec(precision="fp16").check()


def write_cola(directory: Path, dev_suffix: str) -> Path:
    "A task in GLUE's layout from the embedded sample; each sentence of dev ends in `dev_suffix`."
    from vocab_pruning import load_task

    (directory / "CoLA").mkdir(parents=True)
    for split, suffix in (("train", ""), ("dev", dev_suffix)):
        lines = [f"sample\t{e['label']}\t\t{e['text']}{suffix}" for e in load_task("cola", "sample")[split].select(range(64))]
        (directory / "CoLA" / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    return directory


@needs_minilm
def test_what_dev_holds_changes_nothing_that_is_kept(tmp_path, model):
    "The canary is a token that occurs in dev alone; attention is read from a model that the run itself fine-tunes."
    kept = {}
    for name, canary in (("plain", ""), ("canary", " volcano")):
        out = tmp_path / name
        asked = QUICK | dict(data=str(write_cola(out, canary)), scorer="attention", base="seen", ratio=0.3, model=model)
        kept[name] = run_here(out=str(out / "runs"), **asked)["pruned"].keep.tolist()
    assert kept["plain"] == kept["canary"]
    tokenizer = AutoTokenizer.from_pretrained(minilm_directory())
    canary = tokenizer.convert_tokens_to_ids("volcano")
    assert canary != tokenizer.unk_token_id and canary not in kept["canary"]


@needs_minilm
def test_the_scorers_side_by_side(tmp_path, model):
    asked = QUICK | dict(task="mrpc", base="seen", scorer="frequency", oov="unk")
    run_here(out=str(tmp_path / "runs"), model=model, **asked)
    shared = {name: QUICK[name] for name in ("data", "max_train_examples", "epochs", "seed")}
    asked = shared | dict(task="mrpc", ratio=0.3, model=model, out=str(tmp_path / "runs"))
    executed = run_notebook("results/scorers.ipynb", tmp_path / "page.ipynb", **asked)
    outputs = [o for c in json.loads(executed.read_text())["cells"] for o in c.get("outputs", [])]
    assert sum("image/png" in o.get("data", {}) for o in outputs) == 3
    assert "Warning" not in "".join("".join(o["text"]) for o in outputs if o.get("name") == "stderr")
    assert "occurrences in dev lost" in json.dumps(outputs[-1]) and str(Path.home()) not in json.dumps(outputs)


def test_home_is_what_a_tilde_means(tmp_path, monkeypatch):
    "Where rows are written, and where they are read."
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "runs" / "a").mkdir(parents=True)
    (tmp_path / "runs" / "a" / "result.json").write_text('{"run": "a"}')
    assert run_directory("~/runs", dict(task="cola")).parent == tmp_path / "runs"
    assert read_rows("~/runs").run.tolist() == ["a"]
    recipe = tmp_path / "recipe.yml"
    recipe.write_text("{out: ~/runs, tasks: cola, methods: {scorer: tfidf}, cuts: {ratio: 0.5}}")
    cell, = sweep_cells("~/recipe.yml", ROOT / "nbs" / "run.ipynb")
    assert cell.parent == tmp_path / "runs" / "cells"


# What is refused


@needs_minilm
def test_a_misspelt_parameter_stops_papermill_before_anything_is_written(tmp_path, model):
    "papermill itself only warns of it, and the run would go on without what was asked."
    with pytest.raises(papermill.PapermillExecutionError, match="unknown parameter 'save_modle'; choose one of task"):
        run(tmp_path, **QUICK | dict(model=model, save_modle=True))
    assert not (tmp_path / "runs").exists()


@needs_minilm
@pytest.mark.parametrize(("parameters", "message"), [
    (dict(task="colla"), "unknown task 'colla'"),
    (dict(scorer="tf-idf"), "unknown scorer 'tf-idf'"),
    (dict(scorer_options={"nrom": None}), "unexpected option 'nrom'"),
    (dict(scorer_options={"texts": []}), "scorer 'tfidf' got an unexpected option 'texts'"),
    (dict(oov="closest"), "unknown oov 'closest'"),
    (dict(oov_options="{n: 8}"), "oov='nearest' got an unexpected option 'n'"),
    (dict(unseen="first"), "unseen='first': give 'likely' or 'id'"),
    (dict(base="tokens"), "unknown base 'tokens'"),
    (dict(ratio=-0.1), "ratio=-0.1: give the fraction"),
    (dict(ratio="120%"), "ratio=1.2: give the fraction"),
    (dict(ratio=0.99), "at most"),
    (dict(epochs=0), "epochs=0"),
    (dict(max_train_examples=0), "max_train_examples=0"),
    (dict(held_out_examples=10**6), "held_out_examples=1000000"),
    (dict(vocabulary_tasks={"colla": None}), "unknown task 'colla'"),
    (dict(vocabulary_tasks={"cola": None}, held_out_examples=8), "includes held-out ones"),
    (dict(data="no/such/directory"), "is not a directory"),
], ids=lambda v: next(iter(v)) if isinstance(v, dict) else "")
def test_bad_parameters_stop_in_the_first_cell(parameters, message, tmp_path, model):
    with pytest.raises((ValueError, TypeError, FileNotFoundError), match=message):
        run_here(last=1, **{**QUICK, "model": model, "out": str(tmp_path / "runs"), **parameters})
    assert not (tmp_path / "runs").exists()


NO_VALUES = {  # of each parameter, values that it does not take, whatever its others are
    "task": [None, "", 3, ["cola"]], "ratio": ["much", None, "", True, "nan", "20%%", [0.2]], "method": [None, 1],
    "when": [None, 1, ""], "precision": [None, 16, ""], "vocab_share": ["most", None, True], "losparse_options": ["warmup", 3, "[1]"], "base": [None, 0.5],
    "scorer": [None, 1], "scorer_options": ["m=8", [1], "{1: 2}"], "oov": [None, True],
    "oov_options": ["m", 8, "{m: 8"], "unseen": [None, 0, ""], "model": [None, 7, ""], "data": [None, 1.5],
    "seed": ["random", -1, 2**32, 1.5, None, True], "epochs": ["three", -1, "0", "inf", True, "1 000"],
    "learning_rate": ["fast", 0, "-1e-5", "nan"], "batch_size": ["big", 0, 2.5, "8.5", True],
    "max_train_examples": ["few", 0, "-3", 1.5, "1e999"], "held_out_examples": ["rest", 0, "0", "20%"],
    "vocabulary_tasks": ["cola", ["cola"], {"cola": 0}, {"cola": "all of them"}, 3],
    "look_first": ["maybe", 2, None, ""], "baseline": ["n", "None", 0.0, []], "save_model": ["flase", "", None, "2"],
    "out": [None, "", 2024],
}


@pytest.mark.parametrize("name", parameter_defaults())
def test_a_value_that_a_parameter_does_not_take_is_refused_by_name(name):
    for value in NO_VALUES[name]:
        with pytest.raises(ValueError, match=f"^{name}={re.escape(repr(value))}: give (a|an|the|each|true) "):
            RunSpec.parse(**{name: value})


@pytest.mark.parametrize(("name", "text", "meant"), [
    ("ratio", "20%", 0.2), ("ratio", " 12.5 %", 0.125), ("ratio", "77.34%", 0.7734), ("ratio", "0.2", 0.2),
    ("ratio", "2e-1", 0.2), ("ratio", "0", 0), ("vocab_share", "75%", 0.75), ("save_model", "false", False),
    ("save_model", "No", False), ("save_model", "0", False), ("baseline", "TRUE", True), ("look_first", "on", True),
    ("seed", "07", 7), ("seed", "1e3", 1000), ("epochs", "0.5", 0.5), ("epochs", "None", None),
    ("epochs", "null", None),
    ("learning_rate", "2e-5", 2e-5), ("batch_size", "16", 16), ("max_train_examples", "64", 64),
    ("max_train_examples", "none", None), ("held_out_examples", "~", None), ("oov_options", "{m: 8}", {"m": 8}),
    ("oov_options", '{"lossless": false}', {"lossless": False}), ("oov_options", "None", {}),
    ("vocabulary_tasks", "{cola: null, sst2: 128}", {"cola": None, "sst2": 128}), ("vocabulary_tasks", "None", None),
    ("model", "all-MiniLM-L6-v2", "all-MiniLM-L6-v2"), ("out", "my runs", "my runs"), ("out", Path("a"), "a"),
])
def test_text_is_read_as_it_was_meant(name, text, meant):
    read = getattr(RunSpec.parse(**{name: text}), name)
    assert read == meant and type(read) is type(meant)


# One list of parameters


def test_every_list_of_the_parameters_is_the_same():
    "The notebook's cell, what make hands on, and the command's options, with the defaults of each."
    from vocab_pruning.cli import app

    defaults = parameter_defaults()
    assert run_parameters(ROOT / "nbs" / "run.ipynb") == defaults
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    listed = re.search(r"^PARAMETERS := (.*)$", makefile, re.MULTILINE)[1].split()
    assert listed == list(defaults)
    command = next(one.callback for one in app.registered_commands if one.name == "run")
    options = inspect.signature(command).parameters
    own = {name: one.default for name, one in options.items() if name in defaults and name != "task"}
    assert len(own) == 8 and own == {name: defaults[name] for name in own}


BY_ID = dict(unseen="id")  # how runs ranked unseen rows before they had a parameter for it
SHIPPED = sorted((ROOT / "results" / "minilm" / "rows").glob("*/result.json"))


def asked_of(run: str) -> dict:
    "The parameters that the page of a shipped `run` was executed with."
    given = {}
    for cell in nbformat.read(SHIPPED[0].parents[2] / "runs" / page_name(run), 4).cells:
        if set(cell.metadata.get("tags", [])) & {"parameters", "injected-parameters"}:
            exec(cell.source, given)
    return {name: value for name, value in given.items() if name in parameter_defaults()}


@pytest.mark.parametrize("write", [lambda value: value, json.dumps, str], ids=["value", "json", "text"])
def test_shipped_rows_are_named_after_their_parameters(write):
    "However the parameters of a page are written, the run that they ask for has the name of the page's row."
    named = 0
    for path in SHIPPED:
        row = json.loads(path.read_text(encoding="utf-8"))
        if row["method"] == "full":
            continue
        given = asked_of(row["run"])
        written = {name: value if isinstance(value, str) else write(value) for name, value in given.items()}
        spec, names = RunSpec.parse(**BY_ID | written), list(row)
        shared = {name: row[name] for name in names[1:names.index("method")]}
        if spec.held_out_examples:
            shared["held_out_examples"] = spec.held_out_examples
        vocabulary = spec.vocabulary_tasks and dict(vocabulary_tasks=spec.vocabulary_tasks,
                                                    vocabulary_fingerprint=row["vocabulary_fingerprint"])
        assert run_name(asked_for(shared, spec, vocabulary)) == row["run"]
        named += 1
    assert named > 100
