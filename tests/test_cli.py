"""The command line: what each command prints and leaves, its exit code, and its errors in one line."""

import gzip
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import torch
from conftest import FAMILIES, TEXTS, WORDS, build, make_texts, shared
from nbformat.v4 import new_code_cell, new_notebook
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from typer.testing import CliRunner

from vocab_pruning import load, prune
from vocab_pruning.cli import app
from vocab_pruning.data.stats import token_stats
from vocab_pruning.evaluate.drift import coverage_of, spending
from vocab_pruning.models.anatomy import sizes

COMMANDS = ["inspect", "preflight", "prune", "check", "run", "sweep", "report"]
CUT = ["--ratio", "0.4", "--base", "vocab"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    "A model's directory, and texts as a file of lines and as a column of a csv."
    place = tmp_path_factory.mktemp("tiny")
    build("wordpiece").save_pretrained(place / "model")
    FAMILIES["wordpiece"].tokenizer.save_pretrained(place / "model")
    texts = [text for text in TEXTS if text.strip()]
    (place / "texts.txt").write_text("\n".join(texts))
    pd.DataFrame({"said": texts, "n": range(len(texts))}).to_csv(place / "texts.csv", index=False)
    (place / "today.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in make_texts(40, seed=9)))
    return place


def call(*args, code: int = 0):
    "The result of a command, which exits with `code`."
    result = CliRunner().invoke(app, [str(arg) for arg in args], prog_name="vocab-prune")
    assert result.exit_code == code, (result.output, result.stderr, result.exception)
    return result


def refused(*args) -> str:
    "The one line in which a command is refused; notes may come before it."
    result = call(*args, code=1)
    (line,) = [line for line in result.stderr.splitlines() if not line.startswith("note: ")]
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


# Help


def test_every_command_is_listed():
    listed = call("--help").output
    assert all(re.search(rf"^  {name} ", listed, re.MULTILINE) for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_examples_that_parse(name):
    "Each example is a command line whose options exist: it fails later, for want of its files, if at all."
    shown = call(name, "--help").output
    examples = re.findall(rf"^\s+vocab-prune ({name}.*)$", shown, re.MULTILINE)
    assert examples
    for example in examples:
        wrong = CliRunner().invoke(app, [*re.sub(r"'[^']*'", "x", example).split(), "--no-such-option"])
        assert wrong.exit_code == 2 and "--no-such-option" in wrong.stderr
        options = set(re.findall(r"\s(--?[a-z][a-z-]*)", re.sub(r"'[^']*'", "x", example)))
        assert all(option in shown for option in options)


def test_help_waits_for_nothing_heavy():
    code = "import sys; from vocab_pruning.cli import app; print({'torch', 'transformers', 'datasets', 'pandas', 'numpy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


@pytest.mark.parametrize(("args", "named"), [
    (["prnue"], "prnue"), (["prune"], "MODEL"), (["prune", "m", "t", "out", "--ratio", "much"], "'--ratio'"),
    (["prune", "m", "t", "out", "--rato", "1"], "--rato"),
    (["prune", "m", "t", "out", "-o", "m:3"], "'m:3' is not name=value"),
    (["prune", "m", "t", "out", "-o", "m=[3"], "cannot be read as YAML"),
    (["prune", "m", "t", "out", "-o", "m=3", "-o", "m=4"], "'m' is given twice"),
    (["prune", "m", "t", "out", "--seed", "-1"], "'--seed'"), (["run", "cola", "--seed", "1.5"], "'--seed'"),
    (["sweep", "r.yaml", "--workers", "0"], "'--workers'"), (["check", "m", "t", "--top", "-1"], "'--top'"),
    (["run", "cola", "-p", "oov_options={m: 8"], "oov_options='{m: 8' cannot be read as YAML"),
], ids=lambda v: " ".join(v) if isinstance(v, list) else "")
def test_a_wrong_command_line_exits_with_2(args, named):
    result = call(*args, code=2)
    assert named.lower() in result.stderr.lower() and "Traceback" not in result.stderr


# Each command calls the library


def test_inspect(tiny):
    model, tokenizer = build("wordpiece"), FAMILIES["wordpiece"].tokenizer
    alone = json.loads(call("inspect", tiny / "model", "--json").output)
    assert alone == spending(model, tokenizer)
    texts = (tiny / "texts.txt").read_text().splitlines()
    expected = spending(model, tokenizer, token_stats(texts, tokenizer, alone["rows"]))
    assert json.loads(call("inspect", tiny / "model", tiny / "texts.txt", "--json").output) == expected
    assert json.loads(call("inspect", tiny / "model", tiny / "texts.csv", "--text", "said", "--json").output) == expected
    lines = dict(line.split("  ", 1) for line in call("inspect", tiny / "model", tiny / "texts.txt").output.splitlines())
    assert lines["rows"].strip() == str(alone["rows"]) and float(lines["break even (vocab)"]) == pytest.approx(expected["break_even"]["vocab"], rel=1e-3)


def test_preflight(tiny, tmp_path):
    table = tmp_path / "cuts.csv"
    cuts = ["--base", "vocab", "--ratio", 0.3, "--ratio", 0.5]
    shown = call("preflight", tiny / "model", tiny / "texts.txt", *cuts, "--oov", "nearest", "--oov", "unk", "--csv", table).output
    rows = pd.read_csv(table)
    assert rows[["ratio", "oov"]].values.tolist() == [[0.3, "nearest"], [0.3, "unk"], [0.5, "nearest"], [0.5, "unk"]]
    assert rows.rows.notna().all() and len(shown.splitlines()) == 5
    call("preflight", tiny / "model", tiny / "texts.csv", "-t", "said", "--held-out", tiny / "texts.csv", *cuts, "--oov", "unk", "--csv", table)
    again = pd.read_csv(table).iloc[0]
    assert again.coverage_held_out == again.coverage_train


@pytest.mark.parametrize(("oov", "options"), [("nearest", []), ("sparse", ["-o", "m=3"]), ("resegment", ["-o", "lossless=false"])])
def test_prune_then_check(oov, options, tiny, tmp_path):
    shown = call("prune", tiny / "model", tiny / "texts.csv", tmp_path / "small", "--text", "said", *CUT, "--oov", oov, *options, "--seed", 3).output
    pruned = load(tmp_path / "small")
    assert (pruned.info["task"], pruned.info["oov"], pruned.info["ratio"], pruned.info["seed"]) == ("texts", oov, 0.4, 3)
    assert type(pruned.model).__name__ == "BertForSequenceClassification"
    assert f"→ {sizes(pruned.model)['rows']}" in shown
    assert "vocabulary pruned for texts" in (tmp_path / "small" / "README.md").read_text()
    asked = ["check", tmp_path / "small", tiny / "today.jsonl"]
    original = ["--original", tiny / "model"] if oov == "resegment" else []
    found = json.loads(call(*asked, *original, "--json").output)
    today = [text for text in make_texts(40, seed=9) if text.strip()]
    assert found == coverage_of(pruned, today, original=FAMILIES["wordpiece"].tokenizer)
    assert "documents" in call(*asked).output
    if oov == "resegment":
        assert "give --original" in refused(*asked, "--max-growth", 1.5)
        assert "times the tokens, more than 1.00" in refused(*asked, *original, "--max-growth", 1.0)
    else:
        assert found["kept"] < 1
        call(*asked, "--at-least", found["kept"] - 0.01)
        assert "of the tokens have a row of their own, less than 100.00%; prune again" in refused(*asked, "--at-least", 1)


@pytest.fixture(scope="module")
def english(tiny):
    "MiniLM's kind of failure, small: a model re-segmented for texts of half of the letters, and texts of the others."
    latin = [text for text in TEXTS if set(text) <= set("abcdefghijklm ")] or ["abc", "ab cab", "lima made"]
    (tiny / "latin.txt").write_text("\n".join(["abc dab cab", "made lame", *latin]))
    cut = ["--ratio", 0.8, "--base", "vocab", "--oov", "resegment", "-o", "lossless=false"]
    call("prune", tiny / "model", tiny / "latin.txt", tiny / "latin", *cut)
    (tiny / "foreign.txt").write_text("zoo quux\nwxyz\n\nsturz von\nprost\n")
    return tiny


def test_texts_that_read_unknown_are_no_gain(english):
    "They take fewer tokens than before, each unknown; every limit of growth was met."
    asked = ["check", english / "latin", english / "foreign.txt", "--original", english / "model"]
    seen = call(*asked, "--json")
    found = json.loads(seen.stdout)
    assert found["growth"] < 0.5 and found["unknown"] > 0.7 and found["unknown_original"] == 0
    assert found["kept"] == 1 - found["unknown"] and found["touched"] == 1
    assert {"token": "wxyz", "occurrences": 1, "reads": "[UNK]"} in found["lost"]
    assert "of the tokens are unknown, 0.00% before" in seen.stderr and "a loss, not a gain" in seen.stderr
    limited = call(*asked, "--max-growth", 1.1, code=1).stderr
    assert "of the tokens are unknown (the original's: 0.00%), more than 1.00%; prune again" in limited
    assert "more than 50.00%" in call(*asked, "--max-unknown", 0.5, code=1).stderr
    call(*asked, "--max-growth", 1.1, "--max-unknown", 1)
    alone = ["check", english / "latin", english / "foreign.txt"]
    assert "more than 2.00%; prune again" in refused(*alone, "--max-unknown", 0.02)
    home = ["check", english / "latin", english / "latin.txt", "--original", english / "model"]
    assert call(*home, "--max-unknown", 0, "--max-growth", 3).stderr == ""


@pytest.mark.parametrize(("option", "value"), [
    ("--at-least", "1.5"), ("--at-least", "nan"), ("--max-unknown", "-0.1"), ("--max-unknown", "nan"),
    ("--max-growth", "0.0"), ("--max-growth", "inf"), ("--max-growth", "nan")])
def test_a_limit_that_is_none_is_refused_before_anything_is_read(option, value):
    said = refused("check", "no-such-model", "no-such-texts.txt", option, value)
    assert said.startswith(f"{option} {value}: give")


def test_what_a_pruned_model_covers_is_counted(tiny, tmp_path):
    "By hand: a token is covered if its row is kept."
    call("prune", tiny / "model", tiny / "texts.txt", tmp_path / "small", *CUT, "--oov", "nearest")
    pruned = load(tmp_path / "small")
    today, kept = make_texts(40, seed=9), set(pruned.keep.tolist())
    ids = [pruned.tokenizer(text, add_special_tokens=False)["input_ids"] for text in today]
    flat = [i for some in ids for i in some]
    found = coverage_of(pruned, iter(today), n_lost=1000)
    assert (found["documents"], found["tokens"]) == (40, len(flat))
    assert found["kept"] == pytest.approx(sum(i in kept for i in flat) / len(flat))
    assert found["touched"] == sum(bool(set(some) - kept) for some in ids) / 40
    assert found["unknown"] == flat.count(pruned.tokenizer.unk_token_id) / len(flat)
    assert sum(token["occurrences"] for token in found["lost"]) == sum(i not in kept for i in flat)
    train = [text for text in (tiny / "texts.txt").read_text().splitlines()]
    assert coverage_of(pruned, train)["kept"] == pytest.approx(found["kept_train"])


def test_a_vocabulary_may_have_gaps():
    "Its largest id is not its number of tokens."
    tokenizer = FAMILIES["wordpiece"].tokenizer
    pruned = prune(shared("wordpiece"), tokenizer, TEXTS, 0.2, "vocab", oov="resegment")
    told = json.loads(tokenizer.backend_tokenizer.to_str())
    told["model"]["vocab"][next(word for word in WORDS if word not in pruned.tokenizer.get_vocab())] = 10_000
    gaps = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(told)))
    assert coverage_of(pruned, TEXTS, original=gaps) == coverage_of(pruned, TEXTS, original=tokenizer)
    with pytest.raises(ValueError, match="the original tokenizer .* is not that of the model that was pruned"):
        coverage_of(pruned, TEXTS, original=FAMILIES["unigram"].tokenizer)


def test_a_glue_task_gives_texts(tiny):
    shown = json.loads(call("inspect", tiny / "model", "rte", "--data", "sample", "--json").output)
    assert shown["documents"] == 3000


# One line for what is refused


@pytest.mark.parametrize(("args", "message"), [
    (["{model}", "{texts}", "{out}", "--ratio", "1.5"], "--ratio 1.5: give the fraction to remove, at least 0 and below 1"),
    (["{model}", "{texts}", "{out}", "--oov", "closest"], "unknown oov 'closest'; choose one of unk"),
    (["{model}", "{texts}", "{out}", "--oov", "nearest", "-o", "m=3"], "got an unexpected option 'm'"),
    (["{model}", "{texts}", "{out}", "--scorer", "tf"], "unknown scorer 'tf'"), (["{model}", "no.txt", "{out}"], "no.txt is not a file"),
    (["{model}", "{place}/texts.csv", "{out}"], "texts.csv has no column 'text'; it has 'said', 'n'"), (["{model}", "colla", "{out}"], "unknown task 'colla'"),
    (["{model}", "{model}", "{out}"], "is a directory; name a file of texts, or count it first"),
    (["nothere", "{texts}", "{out}"], "nothere is neither a directory"),
    (["{place}/nowhere", "{texts}", "{out}"], "is not a directory; give an existing one"),
    (["{model}", "{texts}", "{place}"], "exists and is not an earlier save"),
], ids=lambda v: v if isinstance(v, str) else "")
def test_prune_refuses_in_one_line(args, message, tiny, tmp_path):
    names = dict(model=tiny / "model", texts=tiny / "texts.txt", out=tmp_path / "small", place=tiny)
    before = sorted(tiny.rglob("*"))
    assert message in refused("prune", *(arg.format(**names) for arg in args))
    assert sorted(tiny.rglob("*")) == before and not (tmp_path / "small").exists()


def test_other_commands_refuse_in_one_line(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "holds a model that is not pruned" in refused("check", tiny / "model", tiny / "texts.txt")
    assert "holds no config.json" in refused("check", tmp_path, tiny / "texts.txt")
    assert "unknown task 'colla'" in refused("run", "colla")
    assert "does not exist; start inside the project, or give --notebook" in refused("run", "cola")
    assert "unknown method 'lowrank'" in refused("run", "cola", "-p", "method=lowrank")
    assert "unknown task 'colla'" in refused("run", "cola", "-p", "vocabulary_tasks={colla: null}")
    assert "unknown base 'tokens'" in refused("preflight", tiny / "model", tiny / "texts.txt", "--base", "tokens", "--ratio", 0.3, "--oov", "unk")
    assert "unknown oov 'pg'" in refused("preflight", tiny / "model", tiny / "texts.txt", "--oov", "pg")


@pytest.mark.parametrize(("args", "message"), [
    (["run", "cola", "-p", "save_model=flase"], "save_model='flase': give true or false"),
    (["run", "cola", "-p", "epochs=three"], "epochs='three': give a number above 0"),
    (["run", "cola", "-p", "oov_options=8"], "oov_options=8: give a mapping, as in {m: 8}"),
    (["run", "cola", "-p", "max_train_examples=2.5"], "max_train_examples=2.5: give a whole number"),
    (["run", "cola", "-p", "ratio=a fifth"], "--ratio 'a fifth': give a fraction, as in 0.2 or 20%"),
    (["run", "cola", "--scorer", "tf"], "unknown scorer 'tf'"),
    (["run", "cola", "--ratio", "2"], "--ratio 2.0: give the fraction"),
    (["prune", "no-model", "no.txt", "out", "--ratio", "nan"], "--ratio nan: give the fraction"),
    (["prune", "no-model", "no.txt", "out", "--base", "tokens"], "unknown base 'tokens'"),
    (["prune", "no-model", "no.txt", "out", "--scorer", "tf"], "unknown scorer 'tf'"),
    (["preflight", "no-model", "no.txt", "--ratio", "1.5"], "--ratio 1.5: give the fraction"),
    (["preflight", "no-model", "no.txt", "--scorer", "tf"], "unknown scorer 'tf'"),
    (["preflight", "no-model", "no.txt", "--csv", "no/such/place.csv"], "no/such/place.csv cannot be written"),
    (["sweep", "recipe.yaml", "--engine", "slurm"], "unknown engine 'slurm'; choose one of local, ray"),
    (["sweep", "recipe.yaml", "-o", "gpus=1"], "the engine 'local' has no option 'gpus'"),
    (["report", "out", "--format", "pdf"], "unknown format 'pdf'; choose one of md, tex, html"),
], ids=lambda v: "" if isinstance(v, str) else " ".join(v))
def test_a_bad_value_is_refused_before_anything_is_read(args, message, tmp_path, monkeypatch):
    "Neither model nor texts exist, so they cannot have been read; and nothing is written."
    monkeypatch.chdir(tmp_path)
    assert message in refused(*args)
    assert not list(tmp_path.iterdir())


def test_home_is_what_a_tilde_means(tiny, tmp_path, monkeypatch):
    "A shell leaves it in `--csv=~/x`; a directory of that name is nobody's wish."
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    call("prune", tiny / "model", tiny / "texts.txt", "~/small", *CUT, "--oov", "unk")
    call("check", "~/small", tiny / "texts.txt")
    call("preflight", tiny / "model", tiny / "texts.txt", "--ratio", 0.3, "--oov", "unk", "--csv", "~/cuts.csv")
    assert sorted(path.name for path in (tmp_path / "home").iterdir()) == ["cuts.csv", "small"]
    assert not list((tmp_path / "work").iterdir())


def test_debug_shows_where(tiny):
    result = CliRunner().invoke(app, ["check", str(tiny / "model"), str(tiny / "texts.txt"), "--debug"])
    assert isinstance(result.exception, ValueError) and "error:" not in result.stderr


# A run of a notebook


NAMES = ["task", "ratio", "base", "scorer", "oov", "model", "data", "seed", "out", "save_model", "extra"]
PARAMETERS = "\n".join(f"{name} = None" for name in NAMES)
ROW = """assert ratio < 0.9, "too much"
names = "method metric score full_score retention rows params bytes rows_full params_full bytes_full model_id data_id".split()
row = dict.fromkeys(names, ratio) | dict(run=f"{task}-0", task=task, extra=extra, saved=save_model)
display({"application/json": row}, raw=True)"""


@pytest.fixture
def notebook(tmp_path):
    "A notebook that only shows a row, with the parameters it was given."
    cells = [new_code_cell(PARAMETERS, metadata=dict(tags=["parameters"])), new_code_cell(ROW)]
    kernel = dict(name="python3", display_name="python3", language="python")
    nbformat.write(new_notebook(cells=cells, metadata=dict(kernelspec=kernel)), tmp_path / "small.ipynb")
    return tmp_path / "small.ipynb"


def test_run_executes_the_notebook_and_keeps_its_page(notebook, tmp_path):
    asked = ["--ratio", 0.25, "--notebook", notebook, "--out", tmp_path / "runs", "-p", "extra={m: 8}", "-p", "save_model=true"]
    shown = call("run", "cola", *asked).output
    page = tmp_path / "runs" / "notebooks" / "cola-0.ipynb"
    from vocab_pruning.runs.record import row_of_notebook

    row = row_of_notebook(page)
    assert (row["score"], row["extra"], row["saved"]) == (0.25, {"m": 8}, True)
    assert str(page) in shown and "0.25" in shown


def test_a_run_that_fails_says_why_in_one_line(notebook, tmp_path):
    assert refused("run", "cola", "--ratio", 0.95, "--notebook", notebook, "--out", tmp_path / "runs") == "AssertionError: too much"
    assert "small.ipynb has no parameter 'extar'; it has task, ratio" in refused("run", "cola", "--notebook", notebook, "-p", "extar=1")
    assert not (tmp_path / "runs").exists()


# Sweeps and reports


def test_a_sweep_and_its_failures(monkeypatch, tmp_path):
    "The command hands its options on, shows every run, and fails where one failed."
    sweeps = pytest.importorskip("vocab_pruning.runs.sweep")
    asked = {}
    monkeypatch.setattr(sweeps, "sweep", lambda recipe, *args, **options: asked.update(args=args, options=options))
    states = pd.DataFrame(dict(cell=["a", "b"], state=["done", "done"], run=["a-0", "b-0"], seconds=[1.0, 2.0], error=[None, None]))
    monkeypatch.setattr(sweeps, "sweep_status", lambda recipe, notebook: states)
    monkeypatch.setattr(sweeps, "sweep_cells", lambda recipe, notebook: {"a": dict(model="auto")})
    shown = call("sweep", "recipe.yaml", "--engine", "ray", "--workers", 3, "--retry", "-o", "gpus=0.5", "--notebook", "other.ipynb").output
    assert asked == dict(args=("ray", 3, True), options=dict(progress=False, notebook=Path("other.ipynb"), gpus=0.5)) and "a-0" in shown
    local = call("sweep", "recipe.yaml")
    assert local.stderr.startswith("note: the model 'auto' is ") and len(local.stderr.splitlines()) == 1
    states.loc[1, ["state", "error"]] = "failed", "too much"
    assert "1 of 2 runs failed, first b: too much" in refused("sweep", "recipe.yaml")
    monkeypatch.undo()
    assert "no.yaml" in refused("sweep", tmp_path / "no.yaml")


def test_a_report_of_no_runs_is_refused(tmp_path):
    pytest.importorskip("vocab_pruning.report.build")
    (tmp_path / "runs").mkdir()
    refused("report", tmp_path / "report", "--runs", tmp_path / "runs")
    assert not (tmp_path / "report").exists()


# What could pass unseen


@pytest.fixture(scope="module")
def small(tiny):
    "A pruned model's directory, and that of a plain one."
    call("prune", tiny / "model", tiny / "texts.txt", tiny / "small", *CUT)
    call("prune", tiny / "model", tiny / "texts.txt", tiny / "plain", *CUT, "--oov", "resegment")
    return tiny


@pytest.mark.parametrize("command", [["inspect"], ["preflight"], ["prune"]], ids=str)
def test_a_pruned_model_is_not_read_as_a_full_one(small, command):
    args = {"inspect": [small / "texts.txt"], "preflight": [small / "texts.txt"], "prune": [small / "texts.txt", small / "again"]}[command[0]]
    assert "holds a pruned model; give the full model" in refused(*command, small / "small", *args)
    assert not (small / "again").exists()


def test_a_pruned_model_is_not_trained_as_a_full_one(small):
    from vocab_pruning.evaluate.finetune import load_classifier

    with pytest.raises(ValueError, match="holds a pruned model"):
        load_classifier(str(small / "small"), "cola")


@pytest.mark.parametrize("name", ["small", "plain"])
def test_inspect_says_how_a_directory_was_made(small, name, tmp_path):
    "Sizes, reasons, and of every row its token and why it stays."
    pruned = load(small / name)
    shown = call("inspect", small / name, "--csv", tmp_path / "rows.csv", "--top", 2).output
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "rows.csv", keep_default_na=False), pruned.provenance)
    told = json.loads(call("inspect", small / name, "--json").output)
    assert told["kept rows"] == pruned.info["provenance"]["counts"] and told["kept tokens"] == pruned.provenance.to_dict("records")
    assert f"→ {pruned.info['after']['rows']}" in shown and len(shown.split("kept tokens:\n")[-1].splitlines()) <= 7
    assert "--csv is for the directory of a pruned model" in call("inspect", small / "model", "--csv", tmp_path / "no.csv", code=2).stderr


def test_only_a_scorer_that_runs_the_model_loads_it(small, tmp_path, monkeypatch):
    "And says so; the forward pass is compared on demand."
    asked = [small / "model", small / "texts.txt", tmp_path / "out", *CUT]
    with monkeypatch.context() as patch:
        patch.setattr("vocab_pruning.cli._load_pretrained", lambda name: pytest.fail("the model was loaded"))
        assert call("prune", *asked).stderr == ""
        call("prune", *asked, "--verify", "forward")
        assert "--verify twice: give 'files' or 'forward'" in refused("prune", *asked, "--verify", "twice")
        call("count", small / "texts.txt", "--model", small / "model", "-o", tmp_path / "s.npz")
        told = refused("prune", small / "model", tmp_path / "none", "--stats", tmp_path / "s.npz", *CUT, "--scorer", "attention")
        assert told == "--scorer attention runs the model on the texts; give TEXTS, too, or choose another"
    assert call("prune", *asked, "--scorer", "attention").stderr == "note: the model is loaded, because the scorer 'attention' runs it\n"
    assert load(tmp_path / "out").info["scorer"] == "attention"


@pytest.mark.parametrize("scorer", ["tfidf", "attention"])
def test_code_of_its_own_is_written_on_demand(small, scorer, tmp_path):
    "From files and from memory."
    call("prune", small / "model", small / "texts.txt", tmp_path / "out", *CUT, "--scorer", scorer, "--self-contained")
    assert (tmp_path / "out" / "modeling_vocab_pruning.py").is_file() and load(tmp_path / "out").info["self_contained"]


@pytest.mark.parametrize("limit", [0, 0.9])
def test_drift_cannot_be_told_by_rows_of_a_model_split_anew(small, limit):
    assert "--max-growth" in refused("check", small / "plain", small / "today.jsonl", "--at-least", limit)


def test_an_error_leaves_the_name_of_a_path_alone(small, tmp_path):
    "Directories are named like `data=2024` in many data lakes."
    (place := tmp_path / "data=2024").mkdir()
    assert f"{place}/no.txt is not a file" in refused("prune", small / "model", place / "no.txt", tmp_path / "out")
    assert "--text col" in refused("prune", small / "model", small / "texts.txt", tmp_path / "out", "--text", "col")


def test_generated_text_says_that_it_stands_in(tiny, monkeypatch):
    monkeypatch.delenv("GLUE_DIR", raising=False)
    monkeypatch.setattr("vocab_pruning.data.tasks.hub_reachable", lambda: False)
    monkeypatch.setattr("vocab_pruning.data.tasks._glue_cached", lambda: False)
    assert "cola is replaced by generated text" in call("inspect", tiny / "model", "cola").stderr
    assert "note" not in call("inspect", tiny / "model", "cola", "--data", "sample").stderr
    call("prune", tiny / "model", "cola", tiny / "for_cola", *CUT)
    assert json.loads((tiny / "for_cola" / "vocab_pruning.json").read_text())["data_id"] == "sample"
    assert "| data | `sample` |" in (tiny / "for_cola" / "README.md").read_text()


def test_what_auto_is_is_said(tiny, tmp_path, monkeypatch):
    "On stderr, in one line; a model that was named needs none."
    monkeypatch.setattr("vocab_pruning.core.resolve_model", lambda name: (str(tiny / "model"), "all-MiniLM-L6-v2"))
    note = ("note: the model 'auto' is all-MiniLM-L6-v2, "
            "because no accelerator with answerdotai/ModernBERT-base is available\n")
    assert call("inspect", "auto").stderr == note
    assert call("inspect", tiny / "model").stderr == ""
    assert call("preflight", "auto", tiny / "texts.txt", "--ratio", 0.3, "--oov", "unk").stderr == note
    assert call("prune", "auto", tiny / "texts.txt", tmp_path / "small", *CUT).stderr == note
    assert call("check", tmp_path / "small", tiny / "texts.txt", "--original", "auto").stderr == note


def test_a_model_is_named_after_its_file_however_compressed(tiny, tmp_path):
    (tmp_path / "texts.csv.gz").write_bytes(gzip.compress((tiny / "texts.csv").read_bytes()))
    call("prune", tiny / "model", tmp_path / "texts.csv.gz", tmp_path / "small", "--text", "said", *CUT)
    assert load(tmp_path / "small").info["task"] == "texts"


def test_preflight_holds_out_a_described_tasks_dev_split(tiny, tmp_path):
    for split, seed in (("train", 1), ("dev", 2)):
        pd.DataFrame({"text": [text or "none" for text in make_texts(30, seed=seed)], "label": [0, 1] * 15}).to_csv(tmp_path / f"{split}.csv", index=False)
    (tmp_path / "mine.yaml").write_text("train: train.csv\ndev: dev.csv\n")
    cut = ["--ratio", 0.3, "--oov", "unk"]
    shown = call("preflight", tiny / "model", tmp_path / "mine.yaml", *cut).output
    assert shown == call("preflight", tiny / "model", tmp_path / "train.csv", "--held-out", tmp_path / "dev.csv", *cut).output


def test_texts_that_are_too_few(tiny, tmp_path):
    (tmp_path / "one.txt").write_text("a line\n")
    assert "too few texts (1) to hold out a tenth" in refused("preflight", tiny / "model", tmp_path / "one.txt")


def test_where_nothing_can_be_written_nothing_is_read(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("vocab_pruning.core.os.access", lambda *args: False)
    assert "cannot be written to" in refused("prune", "no-such-model", tiny / "no-such-texts.txt", tmp_path / "out")


def test_the_module_is_the_command():
    done = subprocess.run([sys.executable, "-m", "vocab_pruning.cli", "inspect", "nothere"], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr.startswith("error: nothere is neither a directory that holds a config.json nor a model")


def test_a_scorer_that_runs_the_model_prunes_its_files_too(tiny, tmp_path):
    "What lies beside the weights goes along, and the result is that of `prune`."
    full = shutil.copytree(tiny / "model", tmp_path / "full")
    (full / "LICENSE").write_text("as it was")
    done = call("prune", full, tiny / "texts.txt", tmp_path / "out", "--ratio", "0.4", "--base", "vocab", "--scorer", "attention")
    assert done.exit_code == 0 and (tmp_path / "out" / "LICENSE").read_text() == "as it was"
    ours = load(tmp_path / "out")
    model, tokenizer = type(ours.model).from_pretrained(full), AutoTokenizer.from_pretrained(full)
    theirs = prune(model, tokenizer, (tiny / "texts.txt").read_text().splitlines(), 0.4, "vocab", "attention")
    assert ours.info["scorer"] == "attention" and torch.equal(ours.keep, theirs.keep)
