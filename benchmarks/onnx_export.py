"""What does an exported graph weigh, how fast is it beside torch, and what does dynamic quantization leave of it?

    GLUE_DIR=… python benchmarks/onnx_export.py [--threads 2 --rounds 20 --out onnx.csv]

Prints a row for each model: MiniLM whole and pruned to 5 % of its rows. Texts and counts are a task's."""

import argparse
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import torch
from onnxruntime.quantization import quantize_dynamic
from transformers import AutoModel, AutoTokenizer

from vocab_pruning import PrunedModel, prune
from vocab_pruning.core import minilm_directory
from vocab_pruning.data.tasks import documents, load_task
from vocab_pruning.evaluate.benchmark import bytes_on_disk, in_turn
from vocab_pruning.models.onnx import encode, export_onnx, onnx_session, run_onnx

REMAPS = ("pq", "int8", "int4", "resegment")
MIB = 2**20

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--task", default="cola")
parser.add_argument("--rows", type=int, default=1526)
parser.add_argument("--texts", type=int, default=200)
parser.add_argument("--batches", nargs="+", type=int, default=[1, 32])
parser.add_argument("--rounds", type=int, default=20)
parser.add_argument("--threads", type=int, default=1)
parser.add_argument("--out", type=Path)
given = parser.parse_args()


def export(name: str, pruned: PrunedModel, texts: list[str], scratch: Path) -> tuple[dict, dict]:
    "Return what is known of the exported model, and its sessions: the graph's, and that of the quantized graph."
    whole, small = scratch / name, scratch / f"{name}-quantized"
    report = export_onnx(pruned, whole, texts[:8], every_id=True)
    small.mkdir()
    quantize_dynamic(whole / "model.onnx", small / "model.onnx")
    sessions = {"ONNX": onnx_session(whole, given.threads), "quantized": onnx_session(small, given.threads)}
    row = {
        "rows": len(pruned.model.get_input_embeddings().weight),
        "MiB, safetensors": bytes_on_disk(pruned.model) / MIB,
        "MiB, ONNX": report["bytes"] / MIB,
        "MiB, quantized": (small / "model.onnx").stat().st_size / MIB,
        "difference": report["max_difference"],
        "cosine, quantized": cosine(pruned, sessions["quantized"], texts),
    }
    return row, sessions


def cosine(pruned: PrunedModel, session, texts: list[str]) -> float:
    "Return the mean cosine between the mean-pooled outputs of `session` and of the model."
    batch = encode(pruned, texts)
    mask = batch["attention_mask"].unsqueeze(-1)
    with torch.inference_mode():
        outputs = run_onnx(session, batch), pruned.model(**batch)
    ours, theirs = ((output["last_hidden_state"] * mask).sum(1) for output in outputs)
    return torch.cosine_similarity(ours, theirs).mean().item()


def calls_of(name: str, pruned: PrunedModel, sessions: dict, texts: list[str]) -> dict:
    "Return the calls to be timed, by model and runtime."
    batch = encode(pruned, texts)
    run = {"torch": lambda number: pruned.model(**batch)}
    run |= {runtime: partial(lambda session, number: run_onnx(session, batch), s) for runtime, s in sessions.items()}
    return {(name, runtime): call for runtime, call in run.items()}


torch.set_num_threads(given.threads)
model = AutoModel.from_pretrained(minilm_directory()).eval()
tokenizer = AutoTokenizer.from_pretrained(minilm_directory())
task = load_task(given.task)
train, dev = documents(task["train"]), documents(task["dev"])[: given.texts]
kinds = {"full": PrunedModel(model, tokenizer)}
kinds |= {oov: prune(model, tokenizer, train, rows=given.rows, oov=oov) for oov in REMAPS}
with TemporaryDirectory() as scratch, torch.inference_mode():
    rows, sessions = {}, {}
    for name, pruned in kinds.items():
        rows[name], sessions[name] = export(name, pruned, dev, Path(scratch))
    for size in given.batches:
        calls = {}
        for name, pruned in kinds.items():
            calls |= calls_of(name, pruned, sessions[name], dev[:size])
        for (name, runtime), seconds in in_turn(calls, given.rounds, warm_up=1).items():
            rows[name][f"ms, {runtime}, {size}"] = 1e3 * sorted(seconds)[len(seconds) // 2]
table = pd.DataFrame(rows).T
print(table.round(4).T.to_string())
if given.out:
    table.to_csv(given.out)
