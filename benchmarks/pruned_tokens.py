"""What pruned tokens cost: finding their mixtures and codes, reading them in a forward pass, and writing a plain model, beside trimbed.

Every peak of memory is that of a fresh process that does one thing. Times that are compared are taken in turn; the median of their ratios is what counts."""

import argparse
import json
import os
import resource
import subprocess
import sys
from itertools import product
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter

from common import met

PRUNED = {"sparse": {"m": 4}, "pq": {"n_bytes": 32}, "int8": {}, "int4": {}}
FOUND = ("sparse", "pq")
SECONDS_GOAL, MEMORY_GOAL = {"sparse": 60}, 2048  # on two cores; MiB of the whole process
FORWARD_GOAL = 1.03  # times the full model
BESIDE_GOAL = 0.8  # of trimbed's time and of its memory
MEASURED = ("seconds", "processor_seconds", "peak_mib")
UNVERIFIED = "ours, not verified"  # beside a trimbed that does not compare either

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


def write_inputs(directory: str, task: str):
    "MiniLM and a ModernBERT-base with random weights, each with its tokenizer, and the task's train texts, a JSON object a line."
    from transformers import AutoTokenizer

    from vocab_pruning.core import MODERNBERT, minilm_directory
    from vocab_pruning.data.tasks import documents, load_task, resolve_data

    (Path(directory) / "minilm").symlink_to(minilm_directory(), target_is_directory=True)
    full_model("modernbert").save_pretrained(Path(directory) / "modernbert")
    AutoTokenizer.from_pretrained(os.environ.get("MODERNBERT_TOKENIZER", MODERNBERT)).save_pretrained(Path(directory) / "modernbert")
    texts = documents(load_task(task)["train"])
    (Path(directory) / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return dict(task=task, data=resolve_data()[1], texts=len(texts))


def look(directory: str, model: str, result: str) -> dict:
    "Rows of what was written as plain transformers loads it, and how many of the texts its tokenizer segments as the original does."
    from transformers import AutoModel, AutoTokenizer

    pruned = AutoModel.from_pretrained(result)
    encoders = [AutoTokenizer.from_pretrained(path).backend_tokenizer for path in (Path(directory) / model, result)]
    texts = [json.loads(line)["text"] for line in (Path(directory) / "texts.jsonl").read_text(encoding="utf-8").splitlines()]
    before, after = ([encoded.tokens for encoded in encoder.encode_batch(texts)] for encoder in encoders)
    return dict(rows=len(pruned.get_input_embeddings().weight), texts=len(texts), as_before=sum(b == a for b, a in zip(before, after, strict=True)))


# Whole programs, ours and the rival's

OURS = """
import json, sys, transformers
from vocab_pruning.models.anatomy import special_mask
from vocab_pruning.models.pruning import SAMPLE, prune_with_stats
from vocab_pruning.data.stats import token_stats
from vocab_pruning.remaps.resegmenting import rows_for_lossless
directory, texts, result, verify = sys.argv[1:]
with open(texts, encoding="utf-8") as lines:
    texts = [json.loads(line)["text"] for line in lines]
model_class = getattr(transformers, transformers.AutoConfig.from_pretrained(directory).architectures[0])
model, tokenizer = model_class.from_pretrained(directory), transformers.AutoTokenizer.from_pretrained(directory)
stats, special = token_stats(texts, tokenizer, model.get_input_embeddings().num_embeddings), special_mask(model, tokenizer)
rows = rows_for_lossless(tokenizer, stats, special=special, texts=texts)
ratio = (stats.n_rows - rows) / (stats.n_rows - int(special.sum()))
pruned = prune_with_stats(model, tokenizer, stats, stats.counts.astype(float), ratio, "vocab", "resegment", texts=texts, share_encoder=True)
pruned.sample = texts[:SAMPLE]
assert pruned.info["lossless"]
pruned.save_pretrained(result, verify=verify == "yes")
"""
TRIMBED = """
import json, sys
from trimbed.cli.__main__ import main
directory, texts, result, verify = sys.argv[1:]
corpus = [{"path": "json", "data_files": texts, "split": "train"}]
sys.argv = ["trimbed", "trim", "--model", directory, "--output-dir", result, "--min-count", "1", "--quiet", *["--no-verify-model"] * (verify == "no"),
            f"corpus.datasets={json.dumps(corpus)}"]
main()
"""
IMPORTS = "import torch, transformers\ntransformers.BertModel, transformers.ModernBertForSequenceClassification"
PEAK = "\nprint(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"


def measured(python: str, code: str, *arguments) -> dict:
    "Seconds, on the clock and of the processor, and peak MiB of a fresh process of `python` that runs `code`."
    start, before = perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    alone = os.environ | {"HF_HUB_OFFLINE": "1"}
    run = subprocess.run([python, "-c", code + PEAK, *map(str, arguments)], check=True, capture_output=True, text=True, env=alone)
    seconds, after = perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return dict(seconds=seconds, processor_seconds=processor, peak_mib=int(run.stdout.split()[-1]) / 1024)


# What is shown


def child(*call) -> dict:
    "What the function named by the first of `call` gives in a fresh process, called with the others, with that process's own seconds and peak."
    code = "import os, runpy, sys; del sys.argv[0]; sys.path[0] = os.path.dirname(sys.argv[0]); runpy.run_path(sys.argv[0], run_name='__main__')" + PEAK
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


def run_once(scratch: Path, model: str, name: str, options, models_compared: bool, look: bool = False) -> dict:
    "One run of the program `name` on `model`: `measured`, or with `look` what `look` says about its result."
    python, code = (options.trimbed, TRIMBED) if name == "trimbed" else (options.ours, OURS)
    with TemporaryDirectory(dir=scratch) as directory:
        result = Path(directory) / "pruned"
        run = measured(python, code, scratch / model, scratch / "texts.jsonl", result, "yes" if models_compared else "no")
        return child("look", str(scratch), model, str(result)) if look else run


def first_run(scratch: Path, model: str, name: str, options) -> dict:
    "What comes of the program `name`, in a run that is not timed; trimbed goes without comparing the models where that fails."
    if name == UNVERIFIED:
        return dict(models_compared=False, why="as trimbed's") | run_once(scratch, model, name, options, False, look=True)
    try:
        return dict(models_compared=True) | run_once(scratch, model, name, options, True, look=True)
    except subprocess.CalledProcessError as error:
        if name == "ours":
            raise SystemExit(error.stderr) from error
        return dict(models_compared=False, why=error.stderr.splitlines()[-1]) | run_once(scratch, model, name, options, False, look=True)


def measure_model(scratch: Path, model: str, options) -> dict:
    "What each program makes of `model`, and its runs in turn."
    results = {name: first_run(scratch, model, name, options) | dict(runs=[]) for name in (["trimbed"] if options.trimbed else []) + ["ours"]}
    if options.trimbed and not results["trimbed"]["models_compared"]:
        results[UNVERIFIED] = first_run(scratch, model, UNVERIFIED, options) | dict(runs=[])
    names = list(results)
    for number in range(options.rounds):
        for name in names[:: -1 if number % 2 else 1]:
            results[name]["runs"].append(run_once(scratch, model, name, options, results[name]["models_compared"]))
    for r in results.values():
        r |= {what: median(run[what] for run in r["runs"]) for what in MEASURED}
    return results


def show_written(model: str, results: dict):
    "A line for each program, and the medians of the ratios where there is a rival."
    for name, r in results.items():
        compared = "" if r["models_compared"] else f", without comparing the models ({r['why']})"
        print(f"{model}, {name}: {r['seconds']:.1f} s, {r['processor_seconds']:.1f} s of the processor, peak {r['peak_mib']:,.0f} MiB; {r['rows']:,} rows, "
              f"{r['as_before']:,} of {r['texts']:,} texts segmented as before{compared}", flush=True)
    rival = results.get("trimbed")
    for name, what in product(results.keys() - {"trimbed"} if rival else (), MEASURED):
        of = results[name][f"{what}_of_trimbed"] = median(ours[what] / theirs[what] for ours, theirs in zip(results[name]["runs"], rival["runs"], strict=True))
        print(f"  {what} of {name}: {of:.2f} of trimbed's{met(of, BESIDE_GOAL)}", flush=True)


def measure_writing(options) -> dict:
    pythons = {"ours": options.ours} | ({"trimbed": options.trimbed} if options.trimbed else {})
    results = {f"imports, {name}": measured(python, IMPORTS) for name, python in pythons.items()}
    for name, r in results.items():
        print(f"{name}: torch and transformers alone {r['seconds']:.1f} s, peak {r['peak_mib']:,.0f} MiB", flush=True)
    with TemporaryDirectory() as scratch:
        r = results["texts"] = child("write_inputs", scratch, options.task)
        print(f"{r['texts']:,} train texts of {r['task']} ({r['data']})", flush=True)
        for model in options.models:
            results[model] = measure_model(Path(scratch), model, options)
            show_written(model, results[model])
    return results


MEASURES = {"finding": measure_finding, "forward": measure_forward, "writing": measure_writing}


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="*", default=[*MEASURES], help=f"{', '.join(MEASURES)} (default: all)")
    parser.add_argument("--models", nargs="+", default=["minilm", "modernbert"], help="minilm, modernbert (default: both)")
    parser.add_argument("--rows", type=int, default=50368, help="rows of the random embedding (default: %(default)s)")
    parser.add_argument("--width", type=int, default=768, help="its width (default: %(default)s)")
    parser.add_argument("--kept", type=int, default=11000, help="how many of the rows are kept; models keep the same share (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=16, help="texts of a forward pass (default: %(default)s)")
    parser.add_argument("--length", type=int, default=128, help="tokens of each (default: %(default)s)")
    parser.add_argument("--task", default="cola", help="whose train texts a model is pruned for (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds (default: %(default)s)")
    parser.add_argument("--ours", default=sys.executable, metavar="PYTHON", help="the interpreter that writes ours (default: this one)")
    parser.add_argument("--trimbed", metavar="PYTHON", help="an interpreter with trimbed; without it ours is written alone")
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
    if options.trimbed:
        names = "import json, importlib.metadata as m; print(json.dumps({n: m.version(n) for n in ('trimbed', 'torch', 'transformers', 'tokenizers')}))"
        machine["beside"] = json.loads(subprocess.run([options.trimbed, "-c", names], check=True, stdout=subprocess.PIPE, text=True).stdout)
    print(f"{machine['cpus']} CPUs, load {machine['load_at_start']}, {machine['versions']}, beside {machine.get('beside', 'nothing')}")
    results = dict(machine=machine) | {what: MEASURES[what](options) for what in options.what}
    print(json.dumps(results))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
