"""nbs/run.ipynb under papermill: a row comes out, a second run reads it, and bad parameters stop it before anything is written."""

import json
from pathlib import Path

import nbformat
import papermill
import pytest
from conftest import run_notebook

from vocab_pruning.core import minilm_directory
from vocab_pruning.results import row_of_notebook, summarize_notebook

ROOT = Path(__file__).parent.parent
QUICK = dict(task="cola", ratio=0.45, oov="nearest", data="sample", max_train_examples=64, epochs=1, seed=7, look_first=False)
LEARNING = QUICK | dict(batch_size=4, learning_rate=3e-3)  # a narrow model then predicts both classes

pytestmark = pytest.mark.skipif(minilm_directory() is None, reason="needs the extra `offline` (MiniLM weights)")


def run(out: Path, **parameters) -> Path:
    "Execute the run notebook with its output under `out`; returns the executed notebook."
    return run_notebook("run.ipynb", out / "executed.ipynb", out=str(out / "runs"), **parameters)


@pytest.fixture(scope="module")
def first(narrow_minilm, tmp_path_factory) -> Path:
    "Under a kernel, as users run it; the others run in this process."
    out = tmp_path_factory.mktemp("first")
    run(out, kernel=True, **LEARNING | dict(model=narrow_minilm, save_model=True, look_first=True))
    return out


def rows(out: Path) -> dict[str, dict]:
    return {p.parent.name: json.loads(p.read_text()) for p in (out / "runs").glob("*/result.json")}


def test_a_run_leaves_a_complete_row(first):
    found = rows(first)
    assert len(found) == 2, "one for the full model, one for the pruned"
    row = row_of_notebook(first / "executed.ipynb")
    assert row == found[row["run"]]
    needed = {"score", "full_score", "retention", "retention_reason", "rows", "embedding_params", "params", "bytes", "break_even", "train_tokens_pruned",
              "dev_share_remapped", "seconds_train", "model_fingerprint", "data_fingerprint", "version_transformers", "seed", "precision"}
    assert needed <= row.keys()
    assert row["rows_full"] - row["rows"] == int(0.45 * row["params_full"] / 16)
    full = next(r for r in found.values() if r["method"] == "full")
    assert row["full_score"] == full["score"]
    assert full["params"] == row["params_full"]
    assert row["retention"] == pytest.approx(row["score"] / full["score"]) if full["score"] > 0 else row["retention"] is None


def test_predictions_give_the_score(first):
    import pandas as pd
    from sklearn.metrics import matthews_corrcoef

    row = row_of_notebook(first / "executed.ipynb")
    guesses = pd.read_csv(first / "runs" / row["run"] / "predictions.csv")
    assert set(guesses.prediction) == {0, 1}
    assert matthews_corrcoef(guesses.label, guesses.prediction) == pytest.approx(row["score"])


def test_the_saved_model_gives_the_predictions(first):
    import pandas as pd
    import torch

    from vocab_pruning import load, load_task

    row = row_of_notebook(first / "executed.ipynb")
    saved = load(first / "runs" / row["run"] / "model")
    texts = load_task("cola", "sample")["dev"]["text"][:32]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=row["precision"] == "bf16"):
        logits = saved.model(**saved.tokenizer(texts, padding=True, return_tensors="pt")).logits
    guesses = pd.read_csv(first / "runs" / row["run"] / "predictions.csv").prediction[:32]
    assert logits.argmax(1).tolist() == guesses.tolist()


def test_the_report_holds_no_path_and_no_warning(first, narrow_minilm):
    outputs = [o for c in json.loads((first / "executed.ipynb").read_text())["cells"] for o in c.get("outputs", [])]
    assert not [o for o in outputs if o.get("name") == "stderr"]
    assert str(Path.home()) not in json.dumps(outputs)
    assert narrow_minilm not in json.dumps(outputs)


def test_a_run_that_is_there_is_read(first, narrow_minilm):
    before = {p: p.stat().st_mtime_ns for p in (first / "runs").rglob("*") if p.is_file()}
    executed = run(first, model=narrow_minilm, save_model=True, **LEARNING)
    assert {p: p.stat().st_mtime_ns for p in (first / "runs").rglob("*") if p.is_file()} == before
    assert "was there already" in executed.read_text()
    assert "retention" in summarize_notebook(executed)


def test_attention_reads_the_baseline(first, narrow_minilm):
    "The baseline's model was not saved, so it is made once more and kept; a second run with attention reads it."
    asked = LEARNING | dict(model=narrow_minilm, base="seen", ratio=0.3)
    row = row_of_notebook(run(first, **asked, scorer="attention"))
    full = first / "runs" / next(name for name, r in rows(first).items() if r["method"] == "full")
    assert row["seconds_scores"] > json.loads((full / "result.json").read_text())["seconds_train"] > 0
    assert row["train_tokens_pruned"] > 0
    before = {p: p.stat().st_mtime_ns for p in full.rglob("*") if p.is_file()}
    assert full / "model" / "model.safetensors" in before
    other = row_of_notebook(run(first, **asked, scorer="vatp"))
    assert {p: p.stat().st_mtime_ns for p in full.rglob("*") if p.is_file()} == before
    assert (other["scorer"], other["full_score"]) == ("vatp", row["full_score"])


def write_cola(directory: Path, dev_suffix: str) -> Path:
    "A task in GLUE's layout from the embedded sample; each sentence of dev ends in `dev_suffix`."
    from vocab_pruning import load_task

    (directory / "CoLA").mkdir(parents=True)
    for split, suffix in (("train", ""), ("dev", dev_suffix)):
        lines = [f"sample\t{e['label']}\t\t{e['text']}{suffix}" for e in load_task("cola", "sample")[split].select(range(64))]
        (directory / "CoLA" / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    return directory


def test_what_dev_holds_changes_nothing_that_is_kept(tmp_path, narrow_minilm):
    "The canary is a token that occurs in dev alone; attention is read from a model that the run itself fine-tunes."
    from transformers import AutoTokenizer

    from vocab_pruning import load

    kept = {}
    for name, canary in (("plain", ""), ("canary", " volcano")):
        out = tmp_path / name
        asked = QUICK | dict(data=str(write_cola(out, canary)), scorer="attention", base="seen", ratio=0.3, save_model=True, model=narrow_minilm)
        kept[name] = load(out / "runs" / row_of_notebook(run(out, **asked))["run"] / "model").keep.tolist()
    assert kept["plain"] == kept["canary"]
    tokenizer = AutoTokenizer.from_pretrained(narrow_minilm)
    canary = tokenizer.convert_tokens_to_ids("volcano")
    assert canary != tokenizer.unk_token_id and canary not in kept["canary"]


def test_the_scorers_side_by_side(tmp_path, narrow_minilm):
    run(tmp_path, **QUICK | dict(model=narrow_minilm, task="mrpc", base="seen", scorer="frequency", oov="unk"))
    executed = tmp_path / "page.ipynb"
    shared = {name: QUICK[name] for name in ("data", "max_train_examples", "epochs", "seed")}
    asked = shared | dict(task="mrpc", ratio=0.3, model=narrow_minilm, out=str(tmp_path / "runs"))
    run_notebook("scorers_side_by_side.ipynb", executed, **asked)
    outputs = [o for c in json.loads(executed.read_text())["cells"] for o in c.get("outputs", [])]
    assert sum("image/png" in o.get("data", {}) for o in outputs) == 4
    assert "Warning" not in "".join("".join(o["text"]) for o in outputs if o.get("name") == "stderr")
    assert "mrpc (sample), seen 0.45, 1 epochs, first 64" in executed.read_text() and str(Path.home()) not in json.dumps(outputs)


def test_bad_parameters_stop_papermill_before_anything_is_written(tmp_path):
    with pytest.raises(papermill.PapermillExecutionError, match="at most"):
        run(tmp_path, **QUICK | dict(model=str(minilm_directory()), ratio=0.9))
    assert not (tmp_path / "runs").exists()


def start(**parameters):
    "Execute the cells of the run notebook up to the first that loads anything, in this process."
    cells = [cell["source"] for cell in nbformat.read(ROOT / "nbs" / "run.ipynb", 4).cells if cell.cell_type == "code"]
    asked = next(i for i, source in enumerate(cells) if source.startswith("task = "))
    namespace = {}
    exec(cells[asked], namespace)
    exec(cells[asked - 1], namespace)
    exec(cells[asked + 1], namespace | parameters)


@pytest.mark.parametrize(("parameters", "message"), [
    (dict(task="colla"), "unknown task 'colla'"),
    (dict(scorer="tf-idf"), "unknown scorer 'tf-idf'"),
    (dict(scorer_options={"nrom": None}), "unexpected keyword argument 'nrom'"),
    (dict(oov="closest"), "unknown oov 'closest'"),
    (dict(base="tokens"), "unknown base 'tokens'"),
    (dict(ratio=-0.1), "ratio -0.1 is outside"),
    (dict(ratio=0.9), "at most"),
    (dict(epochs=0), "epochs=0"),
    (dict(max_train_examples=0), "max_train_examples=0"),
    (dict(held_out_examples=10**6), "held_out_examples=1000000"),
    (dict(vocabulary_tasks={"colla": None}), "unknown task 'colla'"),
    (dict(vocabulary_tasks={"cola": None}, held_out_examples=8), "counts those held out"),
    (dict(data="no/such/directory"), "is not a directory"),
], ids=lambda v: next(iter(v)) if isinstance(v, dict) else "")
def test_bad_parameters_stop_in_the_first_cell(parameters, message):
    with pytest.raises((ValueError, TypeError, FileNotFoundError), match=message):
        start(**{**QUICK, "model": str(minilm_directory()), **parameters})
