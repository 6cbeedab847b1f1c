"""What the scorers that need the model cost: clustering whole vocabularies, and reading a corpus's attention.

Every peak of memory is that of a fresh process that does one thing. Times that are compared are taken in turn within one process; the median of
their ratios is what counts."""

import argparse
import json
import os
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import torch
from common import child, met

from vocab_pruning.algorithms.clusters import CLUSTERINGS, cluster_rows
from vocab_pruning.algorithms.linkage import average_linkage
from vocab_pruning.core import library_versions, minilm_directory
from vocab_pruning.data.tasks import examples, load_task, resolve_data
from vocab_pruning.evaluate.benchmark import process_peak
from vocab_pruning.scorers.attention import _batches, attention_received

GOALS = {"average, modernbert": 60, "average, minilm": 15}  # seconds on two cores
MEMORY_GOAL = 2048  # MiB of the whole process
FASTER_GOAL = 5  # than scikit-learn at 8,000 rows
SLOWER_GOAL, LARGER_GOAL = 1.3, 1.2  # than a plain eager forward pass


def embedding_rows(model: str) -> torch.Tensor:
    "All rows of MiniLM's embedding, or of a ModernBERT-base with random weights."
    from transformers import AutoModel, ModernBertConfig, ModernBertModel

    made = AutoModel.from_pretrained(minilm_directory()) if model == "minilm" else ModernBertModel(ModernBertConfig())
    return made.get_input_embeddings().weight.detach()


# One thing each, for a process of its own


def cluster(model: str, method: str) -> dict:
    "A quarter as many clusters as there are rows."
    rows = embedding_rows(model)
    rows = rows[rows.norm(dim=1) > 0]
    start = perf_counter()
    labels = cluster_rows(rows, len(rows) // 4, method)
    return dict(rows=len(rows), width=rows.shape[1], wanted=len(rows) // 4, got=len(np.unique(labels)), seconds=perf_counter() - start,
                peak_mib=process_peak() / 2**20)


def beside_scikit_learn(n: int, rounds: int) -> dict:
    "The same rows by scikit-learn and by this library, in turn."
    from sklearn.cluster import AgglomerativeClustering

    rows = embedding_rows("minilm")
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:n]]
    average_linkage(rows[:1000])
    theirs, ours = [], []
    for _ in range(rounds):
        start = perf_counter()
        AgglomerativeClustering(n // 4, metric="cosine", linkage="average").fit(rows.numpy())
        theirs.append(perf_counter() - start)
        start = perf_counter()
        average_linkage(rows)
        ours.append(perf_counter() - start)
    return dict(rows=n, scikit_learn=median(theirs), average_linkage=median(ours), faster=median(t / o for t, o in zip(theirs, ours, strict=True)))


def _classifier(device: str):
    "MiniLM with eager attention, and its tokenizer."
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    directory = minilm_directory()
    model = AutoModelForSequenceClassification.from_pretrained(directory, attn_implementation="eager", dtype=torch.float32)
    return model.to(device).eval(), AutoTokenizer.from_pretrained(directory)


@torch.inference_mode()
def forward(model, tokenizer, corpus: list):
    "A plain forward pass over the same batches."
    for inputs in _batches(corpus, tokenizer, 32, 128):
        model(**{name: tensor.to(model.device) for name, tensor in inputs.items()})
    if model.device.type == "cuda":
        torch.cuda.synchronize()


PASSES = {
    "plain eager forward": forward,
    "attention": lambda *args: attention_received(*args, 30522),
    "vatp": lambda *args: attention_received(*args, 30522, by_value=True),
}


def attention_seconds(task: str, rounds: int, device: str) -> dict:
    "Seconds of each pass over a task's train split, in turn."
    (model, tokenizer), corpus, seconds = _classifier(device), examples(load_task(task)["train"]), {name: [] for name in PASSES}
    for run in PASSES.values():
        run(model, tokenizer, corpus[:256])
    for number in range(rounds):
        for name in [*PASSES][number % 3 :] + [*PASSES][: number % 3]:
            start = perf_counter()
            PASSES[name](model, tokenizer, corpus)
            seconds[name].append(perf_counter() - start)
    plain = seconds["plain eager forward"]
    ratios = {name: median(a / b for a, b in zip(taken, plain, strict=True)) for name, taken in seconds.items()}
    return dict(data=resolve_data()[1], examples=len(corpus)) | {name: dict(seconds=median(taken), ratio=ratios[name]) for name, taken in seconds.items()}


def attention_memory(task: str, name: str, device: str) -> dict:
    "Peak memory of one pass: the process's, and on a GPU the allocator's."
    model, tokenizer = _classifier(device)
    PASSES[name](model, tokenizer, examples(load_task(task)["train"]))
    return dict(peak_mib=process_peak() / 2**20) | (dict(gpu_mib=torch.cuda.max_memory_allocated() / 2**20) if device == "cuda" else {})


# What is shown


def measure_clusterings() -> dict:
    results = {}
    for method in CLUSTERINGS:
        for model in ("minilm", "modernbert"):
            name = f"{method}, {model}"
            r = results[name] = child("cluster", model, method)
            print(f"{name}: {r['rows']:,} x {r['width']} into {r['got']:,} clusters of {r['wanted']:,} wanted, "
                  f"{r['seconds']:.1f} s{met(r['seconds'], GOALS.get(name))}, peak {r['peak_mib']:,.0f} MiB{met(r['peak_mib'], MEMORY_GOAL)}", flush=True)
    r = results["beside scikit-learn"] = child("beside_scikit_learn", 8000, 5)
    print(f"{r['rows']:,} rows: scikit-learn {r['scikit_learn']:.2f} s, average_linkage {r['average_linkage']:.2f} s, "
          f"{r['faster']:.1f} times faster{met(r['faster'], FASTER_GOAL, at_least=True)}", flush=True)
    return results


def measure_attention(task: str, rounds: int, device: str) -> dict:
    seconds = child("attention_seconds", task, rounds, device)
    memory = {name: child("attention_memory", task, name, device) for name in PASSES}
    kind = "gpu_mib" if device == "cuda" else "peak_mib"
    for name in PASSES:
        times, larger = seconds[name]["ratio"], memory[name][kind] / memory["plain eager forward"][kind]
        print(f"{name} over {seconds['examples']:,} examples of {task} ({seconds['data']}) on {device}: {seconds[name]['seconds']:.1f} s, "
              f"{times:.2f} times plain{met(times, SLOWER_GOAL)}, "
              f"peak {memory[name][kind]:,.0f} MiB, {larger:.2f} times plain{met(larger, LARGER_GOAL)}", flush=True)
    return dict(seconds=seconds, memory=memory)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="*", default=["clustering", "attention"], help="clustering, attention (default: both)")
    parser.add_argument("--task", default="cola", help="whose train split is read (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="for attention (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        function, *arguments = options.child
        return print(json.dumps(globals()[function](*arguments)))
    machine = dict(cpus=os.cpu_count(), load_at_start=round(os.getloadavg()[0], 2), versions=library_versions())
    print(f"{machine['cpus']} CPUs, load {machine['load_at_start']}")
    results = dict(machine=machine)
    if "clustering" in options.what:
        results["clustering"] = measure_clusterings()
    if "attention" in options.what:
        results["attention"] = measure_attention(options.task, options.rounds, options.device)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
