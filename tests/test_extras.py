"""The base install prunes and loads; whatever else is missing is named together with the extra that installs it."""

import os
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OTHERS = ["pandas", "datasets", "sklearn", "scipy", "matplotlib", "seaborn", "typer", "papermill", "accelerate", "ray", "onnx"]
BASE = """
import sys
sys.modules |= dict.fromkeys({others})  # None: they cannot be imported
import torch
from transformers import BertConfig, BertForMaskedLM, BertTokenizer
from vocab_pruning import load, prune
from vocab_pruning.remaps.kinds import REMAPS

words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghij", *(f"##{{c}}" for c in "abcdefghij"), "bad", "cafe", "edge"]
tokenizer = BertTokenizer(vocab={{word: i for i, word in enumerate(words)}})
model = BertForMaskedLM(BertConfig(vocab_size=len(words), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)).eval()
texts = ["a bad cafe", "the edge", "bad edge", "cafe"] * 3
for oov in REMAPS:
    if oov == "dbscan":
        continue  # that is scikit-learn's
    options = dict(n_bytes=4) if oov == "pq" else dict(n_clusters=2) if oov == "cluster" else {{}}
    prune(model, tokenizer, texts, 0.1, "vocab", oov=oov, **options).save_pretrained({out!r} + "/" + oov)
    print(oov, load({out!r} + "/" + oov).verify()["texts"])
"""


def run(code: str):
    return subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False,
                          env=os.environ | {"PYTHONPATH": str(ROOT)})


def test_the_base_install_prunes_and_loads(tmp_path):
    done = run(BASE.format(others=OTHERS, out=str(tmp_path)))
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split()[::2] == ["unk", "cluster", "nearest", "sparse", "pieces", "pq", "int4", "int8", "resegment"]


CASES = {
    "from vocab_pruning import load_task; load_task('cola', 'sample')": ("datasets", "data"),
    "from vocab_pruning.data.table import read_table; read_table('texts.csv')": ("pandas", "data"),
    "import torch; from vocab_pruning.algorithms.clusters import dbscan_clusters as f; f(torch.randn(9, 2), 2)": ("sklearn", "train"),
    "import vocab_pruning.report.tables": ("pandas", "report"),
    "import pandas as pd; from vocab_pruning.evaluate.preflight import plot_preflight as p; p(pd.DataFrame())": ("matplotlib", "report"),
    "import vocab_pruning.cli": ("typer", "cli"),
}


@pytest.mark.parametrize(("code", "missing"), CASES.items(), ids=lambda case: case[0] if isinstance(case, tuple) else "")
def test_what_is_missing_is_named_with_its_extra(code, missing, tmp_path, monkeypatch):
    module, extra = missing
    monkeypatch.chdir(tmp_path)
    Path("texts.csv").write_text("text\na\n")
    lines = run(f"import sys\nsys.modules[{module!r}] = None\n{code}").stderr.strip().splitlines()
    assert lines[-1].endswith(f"is not installed: pip install 'vocab_pruning[{extra}]'"), lines[-3:]


def test_every_extra_is_part_of_all_or_named_apart():
    settings = ConfigParser(delimiters=["="])
    settings.read(ROOT / "settings.ini")
    extras = {name.removesuffix("_requirements"): text for name, text in settings["DEFAULT"].items() if name.endswith("_requirements")}
    included = extras["all"].removeprefix("vocab_pruning[").removesuffix("]").split(",")
    assert {*included, "all", "dev", "cluster", "data"} == set(extras)  # `train` and `report` bring `data`
