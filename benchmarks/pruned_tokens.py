"""What pruned tokens cost: finding their mixtures and codes, and reading them in a forward pass.

Every peak of memory is that of a fresh process that does one thing. Times that are compared are taken in turn; the
median of their ratios is what counts."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from time import perf_counter

from common import met

PRUNED = {"sparse": {"m": 4}, "pq": {"n_bytes": 32}, "int8": {}, "int4": {}}
FOUND = ("sparse", "pq")
SECONDS_GOAL, MEMORY_GOAL = {"sparse": 60}, 2048  # on two cores; MiB of the whole process
FORWARD_GOAL = 1.03  # times the full model

# One thing each, for a process of its own


def find(oov: str, rows: int, width: int, kept: int) -> dict:
    "Seconds of the remap of all but `kept` of random rows."
    import numpy as np
    import torch

    from vocab_pruning.remaps.kinds import Plan, get_remap

    embedding = torch.randn(rows, width, generator=torch.Generator().manual_seed(0))
    order = np.random.default_rng(0).permutation(rows)
    start = perf_counter()
    remap = get_remap(oov).make(Plan(embedding, order, kept), **PRUNED[oov])
    return dict(rows=len(remap.index), kept=len(remap.keep), width=width, seconds=perf_counter() - start, threads=torch.get_num_threads())


def full_model(name: str):
    "MiniLM, or a ModernBERT-base classifier with random weights, in evaluation mode."
    from transformers import AutoModel, ModernBertConfig, ModernBertForSequenceClassification

    from vocab_pruning.core import minilm_directory

    return (AutoModel.from_pretrained(minilm_directory()) if name == "minilm" else ModernBertForSequenceClassification(ModernBertConfig())).eval()


def pruned_models(model, share: float) -> dict:
    "`model` and, by the name of the remap, what is left of it with `share` of its rows; all have the same encoder."
    import numpy as np

    from vocab_pruning.models.embedding import rebuild_model_with_vocab
    from vocab_pruning.remaps.kinds import Plan, get_remap

    embedding = model.get_input_embeddings()
    rows, order = embedding.weight.detach(), np.random.default_rng(0).permutation(embedding.num_embeddings)
    order = np.concatenate([[embedding.padding_idx], order[order != embedding.padding_idx]])  # [PAD] is always kept
    plan = Plan(rows, order, round(share * len(rows)))
    remaps = {oov: get_remap(oov).make(plan, **options) for oov, options in PRUNED.items()}
    return {"full": model} | {oov: rebuild_model_with_vocab(model, remap, share_encoder=True).eval() for oov, remap in remaps.items()}


def forward(name: str, share: float, batch: int, length: int, rounds: int) -> dict:
    "Milliseconds of whole models and of their embeddings alone, and how many times the full one's, on ids drawn evenly from all rows."
    import torch

    from vocab_pruning.evaluate.benchmark import in_turn

    models = pruned_models(full_model(name), share)
    embeddings = {oov: model.get_input_embeddings() for oov, model in models.items()}
    ids = torch.randint(len(embeddings["full"].weight), (batch, length), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        whole = in_turn({oov: lambda number, model=model: model(ids) for oov, model in models.items()}, rounds, warm_up=1)
        alone = in_turn({oov: lambda number, rows=rows: rows(ids) for oov, rows in embeddings.items()}, 10 * rounds, warm_up=1)
    times = {oov: median(a / b for a, b in zip(taken, whole["full"], strict=True)) for oov, taken in whole.items()}
    extra = {oov: median(a - b for a, b in zip(taken, alone["full"], strict=True)) / median(whole["full"]) for oov, taken in alone.items()}
    return dict(threads=torch.get_num_threads(), rows=len(embeddings["full"].weight), kept=len(embeddings["sparse"].weight)) | {
        oov: dict(ms=1e3 * median(whole[oov]), times=times[oov], embedding_ms=1e3 * median(alone[oov]), embedding_adds=extra[oov]) for oov in models}


# What is shown


def child(*call) -> dict:
    "Return what the function named by the first of `call` gives in a fresh process, with its own seconds and peak."
    code = (
        "import os, runpy, sys; del sys.argv[0]; sys.path[0] = os.path.dirname(sys.argv[0]); "
        "runpy.run_path(sys.argv[0], run_name='__main__')"
        "\nprint(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
    )
    start = perf_counter()
    run = subprocess.run([sys.executable, "-c", code, __file__, "--child", json.dumps(call)], check=True, stdout=subprocess.PIPE, text=True)
    told, peak = run.stdout.splitlines()[-2:]
    return json.loads(told) | dict(process_seconds=perf_counter() - start, peak_mib=int(peak) / 1024)


def measure_finding(options) -> dict:
    results = {oov: child("find", oov, options.rows, options.width, options.kept) for oov in FOUND}
    for oov, r in results.items():
        print(f"{oov} {PRUNED[oov]} for {r['rows'] - r['kept']:,} of {r['rows']:,} x {r['width']} rows, {r['threads']} threads: {r['seconds']:.1f} s, "
              f"the whole process {r['process_seconds']:.1f} s{met(r['process_seconds'], SECONDS_GOAL.get(oov))}, "
              f"peak {r['peak_mib']:,.0f} MiB{met(r['peak_mib'], MEMORY_GOAL)}", flush=True)
    return results


def measure_forward(options) -> dict:
    results = {}
    for name in options.models:
        r = results[name] = child("forward", name, options.kept / options.rows, options.batch, options.length, options.rounds)
        print(f"{name}, batch {options.batch} x {options.length}, {r['kept']:,} of {r['rows']:,} rows kept, {r['threads']} threads:", flush=True)
        for oov in ("full", *PRUNED):
            one = r[oov]
            print(f"  {oov:6} model {one['ms']:8.1f} ms, {one['times']:.3f} times full{met(one['times'], None if oov == 'full' else FORWARD_GOAL)}; "
                  f"embedding {one['embedding_ms']:6.2f} ms, adds {one['embedding_adds']:.2%} to the full model", flush=True)
    return results


MEASURES = {"finding": measure_finding, "forward": measure_forward}


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="*", default=[*MEASURES], help=f"{', '.join(MEASURES)} (default: all)")
    parser.add_argument("--models", nargs="+", default=["minilm", "modernbert"], help="minilm, modernbert (default: both)")
    parser.add_argument("--rows", type=int, default=50368, help="rows of the random embedding (default: %(default)s)")
    parser.add_argument("--width", type=int, default=768, help="its width (default: %(default)s)")
    parser.add_argument("--kept", type=int, default=11000, help="how many of the rows are kept; models keep the same share (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=16, help="texts of a forward pass (default: %(default)s)")
    parser.add_argument("--length", type=int, default=128, help="tokens of each (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    return parser.parse_args()


def main():
    options = parse_options()
    if options.child:
        function, *arguments = options.child
        return print(json.dumps(globals()[function](*arguments)))
    from vocab_pruning.core import library_versions

    machine = dict(cpus=os.cpu_count(), load_at_start=round(os.getloadavg()[0], 2), versions=library_versions())
    print(f"{machine['cpus']} CPUs, load {machine['load_at_start']}, {machine['versions']}")
    results = dict(machine=machine) | {what: MEASURES[what](options) for what in options.what}
    print(json.dumps(results))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
