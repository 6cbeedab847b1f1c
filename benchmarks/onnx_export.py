"""A pruned model in ONNX: bytes on disk beside the full model's, outputs beside torch's on real texts, and time beside torch's in one interleaved run.

MiniLM has its own weights, ModernBERT-base random ones; both are classifiers. Vocabularies are pruned for the train texts of a task; the texts
compared and timed are those of its dev split. Needs the extra `onnx`."""

import argparse
import json
import os
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter

CUTS = {"mapped": dict(oov="nearest"), "coded": dict(oov="pq"), "split anew": dict(oov="resegment", lossless=True)}


def full_model(name: str):
    "(classifier, tokenizer): MiniLM, or a ModernBERT-base of random weights."
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, ModernBertConfig, ModernBertForSequenceClassification

    from vocab_pruning.core import MODERNBERT, minilm_directory

    torch.manual_seed(0)
    if name == "minilm":
        return AutoModelForSequenceClassification.from_pretrained(minilm_directory()).eval(), AutoTokenizer.from_pretrained(minilm_directory())
    tokenizer = AutoTokenizer.from_pretrained(os.environ.get("MODERNBERT_TOKENIZER", MODERNBERT))
    return ModernBertForSequenceClassification(ModernBertConfig()).eval(), tokenizer


def timed(kinds: dict, sessions: dict, texts: list[str], rounds: int) -> dict[str, float]:
    "Milliseconds for one batch of `texts` by kind and runtime, each the median of `rounds`."
    import torch

    from vocab_pruning.evaluate.benchmark import in_turn
    from vocab_pruning.models.onnx import encode, run_onnx

    calls = {}
    for kind, p in kinds.items():
        batch = encode(p, texts)
        calls[f"{kind}, torch"] = lambda number, p=p, batch=batch: p.model(**batch)
        calls[f"{kind}, onnx"] = lambda number, kind=kind, batch=batch: run_onnx(sessions[kind], batch)
    with torch.inference_mode():
        return {name: 1e3 * median(seconds) for name, seconds in in_turn(calls, rounds, warm_up=1).items()}


def measure(name: str, options) -> dict:
    import torch

    from vocab_pruning import PrunedModel, prune
    from vocab_pruning.data.tasks import documents, load_task, resolve_data
    from vocab_pruning.evaluate.benchmark import bytes_on_disk
    from vocab_pruning.models.onnx import compare_onnx, export_onnx, onnx_session

    torch.set_num_threads(options.threads)
    task, (full, tokenizer) = load_task(options.task), full_model(name)
    train, dev = documents(task["train"]), documents(task["dev"])[: options.texts]
    kinds = {"full": PrunedModel(full, tokenizer)}
    kinds |= {kind: prune(full, tokenizer, train, options.ratio, share_encoder=True, **cut) for kind, cut in CUTS.items() if kind in options.cuts}
    result, sessions = {}, {}
    with TemporaryDirectory() as scratch:
        for kind, p in kinds.items():
            start = perf_counter()
            report = export_onnx(p, Path(scratch) / kind, dev[:1])
            seconds, sessions[kind] = perf_counter() - start, onnx_session(Path(scratch) / kind, options.threads)
            torch_bytes, rows = bytes_on_disk(p.model), len(p.model.get_input_embeddings().weight)
            result[kind] = dict(data=resolve_data()[1], rows=rows, bytes=report["bytes"], torch_bytes=torch_bytes, seconds=seconds, texts=len(dev),
                                max_difference=compare_onnx(p, sessions[kind], dev))
            print(f"{name}, {kind}: {rows:,} rows, {report['bytes'] / 2**20:.2f} MiB, in safetensors {torch_bytes / 2**20:.2f} MiB, "
                  f"written in {seconds:.0f} s, differs by {result[kind]['max_difference']:.1e} on {len(dev)} texts of "
                  f"{options.task} ({result[kind]['data']})", flush=True)
        for batch in options.batches:
            times = timed(kinds, sessions, dev[:batch], options.rounds)
            for kind in kinds:
                result[kind][f"ms, batch {batch}"] = times[f"{kind}, torch"], times[f"{kind}, onnx"]
                print(f"{name}, {kind}, batch {batch}: torch {times[f'{kind}, torch']:.2f} ms, ONNX {times[f'{kind}, onnx']:.2f} ms", flush=True)
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=["minilm", "modernbert"], default=["minilm"])
    parser.add_argument("--cuts", nargs="+", choices=list(CUTS), default=list(CUTS))
    parser.add_argument("--task", default="cola")
    parser.add_argument("--ratio", type=float, default=0.2)
    parser.add_argument("--texts", type=int, default=200)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 32])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    results = {name: measure(name, options) for name in options.models}
    if options.out:
        options.out.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
