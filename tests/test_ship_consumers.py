"""Who reads which directory: the table on the site is what is found here, and nothing in it is silent and wrong."""

import json
import os
import subprocess
from importlib.metadata import version

import pytest
import torch
from conftest import assert_near, outputs

from tools import consumers
from vocab_pruning import prune
from vocab_pruning.models.onnx import export_onnx
from vocab_pruning.testing.families import tiny_model

QUICK = [name for name, consumer in consumers.CONSUMERS.items() if consumer.quick]
FORMS = tuple(kind for kind in consumers.KINDS if kind != "ONNX")  # whose export takes longest
PYTHON = [name for name in consumers.CONSUMERS if name != "transformers.js"]


@pytest.fixture(scope="module")
def committed() -> dict:
    return json.loads(consumers.RESULT.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    "One of each form but ONNX."
    root = tmp_path_factory.mktemp("consumers")
    consumers.write_directories(root, FORMS)
    return root


@pytest.fixture(scope="module")
def with_graph(directories):
    "One of each form."
    consumers.write_directories(directories, ("ONNX",))
    return directories


def assert_as_committed(found: dict, committed: dict, versions: dict):
    "The same cells; what others say of an error depends on their version."
    exact = all(version(name) == versions[name] for name in versions)
    for name, row in found.items():
        for kind, cell in row.items():
            there = committed[name][kind]
            assert cell == there if exact else cell.split(":")[0] == there.split(":")[0], f"{name}, {kind}: {cell!r}, {there!r} in the table"


def test_nothing_is_silent_and_wrong(committed):
    "Each cell is there, and says equal, refused or –; a directory that needs this package says so where it is not."
    for side in ("with", "without"):
        assert [*committed[side]] == [*consumers.CONSUMERS]
        for row in committed[side].values():
            assert [*row] == [*consumers.KINDS] and all(cell.split(":")[0] in ("equal", "refused", "–") for cell in row.values())
    for name, consumer in consumers.CONSUMERS.items():
        if consumer.alone and not consumer.kinds:
            assert all("pip install vocab_pruning" in committed["without"][name][kind] for kind in ("remap", "LoSparse"))
            assert {committed["without"][name][kind] for kind in ("plain", "self-contained")} == {"equal"}


def test_quick_consumers_are_as_the_table_says(directories, committed):
    found = consumers.try_all(directories, QUICK, True, FORMS)
    assert_as_committed(found, committed["with"], committed["versions"])


def test_a_wrong_cell_is_found(directories, monkeypatch):
    "Outputs are compared, and by name."
    told = consumers.Consumer(lambda directory, **options: {consumers.HEAD: [[0.0, 0.0, 0.0]] * 2})
    monkeypatch.setitem(consumers.CONSUMERS, "zeros", told)
    assert consumers.try_cell("zeros", "plain", directories / "plain", True) == "WRONG: logits differ"


@pytest.mark.slow
def test_every_consumer_is_as_the_table_says(with_graph, committed):
    assert_as_committed(consumers.try_all(with_graph, PYTHON, True), committed["with"], committed["versions"])
    assert_as_committed(consumers.without_the_package(with_graph, PYTHON), committed["without"], committed["versions"])


# transformers.js, which `make e2e` installs


@pytest.fixture(scope="module")
def js():
    if "TRANSFORMERS_JS" not in os.environ:
        pytest.skip("TRANSFORMERS_JS does not name a folder with transformers.js: make e2e")
    return os.environ["TRANSFORMERS_JS"]


@pytest.mark.slow
def test_transformers_js_is_as_the_table_says(js, with_graph, committed):
    assert_as_committed(consumers.try_all(with_graph, ["transformers.js"], True), committed["with"], committed["versions"])


@pytest.mark.slow
@pytest.mark.parametrize("oov", ["pq", "int8", "resegment"])
@pytest.mark.parametrize("name", ["BERT", "RoBERTa", "XLM-R"])
@pytest.mark.parametrize("auto", ["AutoModelForSequenceClassification", "AutoModel"])
def test_transformers_js_tokenizes_and_computes_the_same(js, auto, name, oov, tmp_path):
    "With its own tokenizer code: the same ids, and outputs within 1e-4."
    texts = [*consumers.TEXTS, "Ünïcode,  東京 q? don't"]
    p = prune(*tiny_model(name, auto), texts, 0.1 if oov == "resegment" else 0.4, "vocab", oov=oov, **{"pq": dict(n_bytes=4)}.get(oov, {}))
    export_onnx(p, tmp_path / "graph", texts=texts, folder="onnx" if auto == "AutoModel" else "")
    what = [] if auto.endswith("Classification") else ["features"]
    command = ["node", "tools/client.mjs", str(tmp_path / "graph"), json.dumps(texts), *what]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-1500:]
    told = json.loads(run.stdout.splitlines()[-1])
    batch = p.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    assert told["ids"] == batch["input_ids"].tolist()
    ours = outputs(p.model, dict(batch))
    real = batch["attention_mask"].bool()
    for key in told.keys() - {"ids"}:
        theirs = torch.tensor(told[key])
        theirs = theirs[real] if theirs.dim() == 3 else theirs
        assert_near(theirs, ours[key], rel=1e-4)
