"""From files to files: the same tensors and tokenizers as in memory, for every family and remap, and no model class."""

import json
import os
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from vocab_pruning import core, load, prune
from vocab_pruning.data.stats import token_stats
from vocab_pruning.data.tasks import documents, load_task
from vocab_pruning.models import checkpoint
from vocab_pruning.models.anatomy import special_mask
from vocab_pruning.models.checkpoint import COUNTS_FROM_PADDING, find_vocabulary, prune_checkpoint, read_checkpoint
from vocab_pruning.models.tokenizer import changed
from vocab_pruning.remaps.kinds import REMAPS
from vocab_pruning.remaps.resegmenting import rows_for_lossless
from vocab_pruning.testing.families import FAMILIES, tiny_model

TEXTS = documents(load_task("cola", "sample")["train"])[:8]
BARE, CLASSIFIER, MASKED, CAUSAL, BOTH = (f"AutoModel{what}" for what in ("", "ForSequenceClassification", "ForMaskedLM", "ForCausalLM", "ForSeq2SeqLM"))
CLASSES = {
    BARE: [*FAMILIES],
    CLASSIFIER: [*FAMILIES],
    MASKED: ["BERT", "DistilBERT", "ELECTRA", "MPNet", "ModernBERT", "RoBERTa", "DeBERTa", "XLM-R", "ALBERT", "DeBERTa-v3"],
    CAUSAL: ["GPT-2", "Llama", "Qwen 3", "Gemma 3", "XLNet"],
    BOTH: ["BART", "T5"],
}
PAIRS = [(name, auto) for auto, names in CLASSES.items() for name in names]
KINDS = [name for name in REMAPS if name not in ("dbscan", "resegment")]
OPTIONS = {"pq": dict(n_bytes=4), "cluster": dict(n_clusters=5, representative="mean"), "sparse": dict(m=2), "nearest": dict(only_seen=True)}


def saved(directory: Path, name: str, auto: str = CLASSIFIER, dtype=None):
    "A tiny model and its tokenizer, saved to `directory` and read again as its own class."
    model, tokenizer = tiny_model(name, auto)
    with torch.no_grad():
        for buffer_name, buffer in model.named_buffers():
            if buffer_name.endswith("final_logits_bias"):
                buffer.normal_()
    model.to(dtype).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    cls = getattr(transformers, type(model).__name__)
    return cls.from_pretrained(directory), transformers.AutoTokenizer.from_pretrained(directory)


def tensors(directory: Path) -> dict[str, torch.Tensor]:
    "All tensors of a directory by name."
    return {name: tensor for file in sorted(directory.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def differing(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> list[str]:
    "Names of the tensors that differ in dtype, shape or a bit."
    def bits(tensor):
        return tensor.dtype, tensor.shape, tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return [name for name in one.keys() | other.keys() if name not in one or name not in other or bits(one[name]) != bits(other[name])]


def config_of(directory: Path, file: str = "config.json") -> dict:
    "A configuration, without what the class of a model writes at random or anew."
    config = json.loads((directory / file).read_text())
    return {key: value for key, value in config.items() if key not in ("transformers_version", "dtype", "_from_model_config")}


def same_directory(ours: Path, theirs: Path):
    "Assert that two directories hold the same tensors, tokenizer, configuration, and facts."
    assert differing(tensors(ours), tensors(theirs)) == []
    tokenizers = [transformers.AutoTokenizer.from_pretrained(directory) for directory in (ours, theirs)]
    assert changed(*tokenizers) is None and type(tokenizers[0]) is type(tokenizers[1])
    assert config_of(ours) == config_of(theirs)
    about, known = (json.loads((directory / "vocab_pruning.json").read_text()) for directory in (ours, theirs))
    assert {key: value for key, value in about.items() if key != "left_out"} == known
    assert (ours / "README.md").read_text() == (theirs / "README.md").read_text()


def lossless_ratio(model, tokenizer) -> float:
    "The ratio of the rows that leaves what TEXTS need."
    special = special_mask(model, tokenizer)
    rows = rows_for_lossless(tokenizer, token_stats(TEXTS, tokenizer, len(special)), special=special, texts=TEXTS)
    return 1 - (rows - special.sum()) / (len(special) - special.sum())


@pytest.mark.parametrize("name, auto", PAIRS)
def test_the_same_as_in_memory(name, auto, tmp_path):
    "For every kind: tensors, tokenizer, configuration, facts and card."
    model, tokenizer = saved(tmp_path / "full", name, auto)
    asked = {kind: dict(ratio=0.4, base="vocab") | OPTIONS.get(kind, {}) for kind in KINDS}
    asked |= {"resegment": dict(ratio=lossless_ratio(model, tokenizer), base="vocab")}
    for kind, choices in asked.items():
        if kind in ("unk", "nearest") and tokenizer.unk_token_id is None:
            choices.pop("only_seen", None)
            if kind == "unk":
                continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            prune(model, tokenizer, TEXTS, oov=kind, **choices).save_pretrained(tmp_path / kind, verify=False)
            prune_checkpoint(tmp_path / "full", TEXTS, tmp_path / f"{kind} of files", oov=kind, **choices)
        same_directory(tmp_path / f"{kind} of files", tmp_path / kind)
