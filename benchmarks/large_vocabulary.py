"""What each remap of a large vocabulary costs: seconds, and peak memory above the model's, a row for each kind.

Every kind is measured in a fresh process that loads the model, ranks its rows at random (specials first) and makes the remap, nothing else."""

import argparse
import csv
import json
import os
import platform
import sys
from pathlib import Path
from time import perf_counter, process_time

from common import child, met

SECONDS_GOALS, MEMORY_GOAL = {"nearest": 40, "pq": 60, "sparse": 120}, 1536  # on two idle cores; MiB above the model
KINDS = ("nearest", "pq", "sparse", "cluster", "int8", "int4")


def embedding_rows(directory: str):
    "The embedding of the model in `directory`, its reserved rows and special rows, and the unknown token's id."
    from transformers import AutoModel, AutoTokenizer

    from vocab_pruning.models.anatomy import reserved_mask, special_mask

    model, tokenizer = AutoModel.from_pretrained(directory), AutoTokenizer.from_pretrained(directory)
    rows = model.get_input_embeddings().weight.detach()
    return rows, reserved_mask(model, tokenizer), special_mask(model, tokenizer), tokenizer.unk_token_id


def find(oov: str, directory: str, kept: float, seen: float | None, threads: int, seed: int) -> dict:
    "Seconds and memory of the remap `oov` of all but the share `kept` of the rows; where `seen` is given, that share of the pruned ones alone."
    import numpy as np
    import torch

    from vocab_pruning.evaluate.benchmark import process_peak
    from vocab_pruning.remaps.kinds import Plan, get_remap

    torch.set_num_threads(threads)
    rows, reserved, special, unk = embedding_rows(directory)
    draw = np.random.default_rng(seed)
    order = np.lexsort((draw.permutation(len(rows)), ~special))
    read = draw.random(len(rows)) < (1 if seen is None else seen)
    plan = Plan(rows, order, round(kept * len(rows)), special, read, reserved, unk, seed)
    options = {} if seen is None else dict(only_seen=True)
    before, start, processor = process_peak(), perf_counter(), process_time()
    remap = get_remap(oov).make(plan, **options)
    seconds, processor_seconds = perf_counter() - start, process_time() - processor
    targets = remap.index[~remap.kept].unique().long()
    barred = int(reserved[remap.keep[targets[targets < len(remap.keep)]]].sum())
    return dict(oov=oov, rows=len(rows), width=rows.shape[1], kept=len(remap.keep), pruned=int((~remap.kept).sum()), seen=seen, threads=threads,
                seconds=round(seconds, 2), processor_seconds=round(processor_seconds, 2), mib_above_model=round((process_peak() - before) / 2**20),
                reserved_targets=barred, relative_error=round(relative_error(rows, remap), 5))


def relative_error(rows, remap, block: int = 8192) -> float:
    "What is left of the pruned rows' squared length when the rows they now read are taken from them."
    import torch

    kept = torch.cat([rows[remap.keep], *([] if remap.extra is None else [remap.extra.to(rows.dtype)])])
    left = whole = 0.0
    for ids in (~remap.kept).nonzero()[:, 0].split(block):
        index = remap.index[ids].long()
        own = index[:, 0] >= len(kept)
        read = (kept[index.clamp(max=len(kept) - 1)] * remap.weight[ids][..., None]).sum(dim=1)
        if own.any():
            read[own] = remap.coded(index[own, 0] - len(kept)).detach()
        left += float((rows[ids] - read).double().square().sum())
        whole += float(rows[ids].double().square().sum())
    return left / whole


def write(path: Path, results: dict):
    "`results` as JSON, or their rows as CSV, by the ending of `path`."
    if path.suffix == ".json":
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        return
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, results["rows"][0], lineterminator="\n")
        table.writeheader()
        table.writerows(results["rows"])


def processor_name() -> str:
    "What the processor calls itself."
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", help="a directory or a hub name, e.g. intfloat/multilingual-e5-small")
    parser.add_argument("--kinds", nargs="+", default=KINDS, help="remaps (default: %(default)s)")
    parser.add_argument("--kept", type=float, default=0.1, help="the share of rows that stay (default: %(default)s)")
    parser.add_argument("--seen", type=float, help="the share of pruned rows that texts read, with only_seen=True (default: all, without it)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--out", type=Path, help="also write the results to this file, .json or .csv")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        function, *arguments = options.child
        return print(json.dumps(globals()[function](*arguments)))
    if options.model is None:
        parser.error("which model? give a directory or a hub name")
    from vocab_pruning.core import library_versions

    machine = dict(processor=processor_name(), cpus=os.cpu_count(), load_at_start=round(os.getloadavg()[0], 2), versions=library_versions())
    print(f"{machine['processor']}, {machine['cpus']} CPUs, load {machine['load_at_start']}, {options.threads} threads", flush=True)
    results = dict(machine=machine, command=" ".join(["benchmarks/large_vocabulary.py", Path(options.model).name, *sys.argv[2:]]), rows=[])
    for oov in options.kinds:
        r = child("find", oov, options.model, options.kept, options.seen, options.threads, options.seed)
        results["rows"].append(r)
        print(f"{oov}: {r['pruned']:,} of {r['rows']:,} x {r['width']} pruned, {r['seconds']:.1f} s{met(r['seconds'], SECONDS_GOALS.get(oov))}, "
              f"{r['processor_seconds']:.1f} s of the processor, {r['mib_above_model']:,} MiB above the model{met(r['mib_above_model'], MEMORY_GOAL)}, "
              f"{r['reserved_targets']} reserved targets, relative squared error {r['relative_error']:.4f}", flush=True)
        if options.out:
            write(options.out, results)


if __name__ == "__main__":
    main()
