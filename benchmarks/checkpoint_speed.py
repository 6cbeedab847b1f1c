"""How long does a pruned checkpoint take to write, and how much memory, beside `cp -r` and beside trimbed?

    GLUE_DIR=… MODERNBERT_TOKENIZER=… python benchmarks/checkpoint_speed.py [--also DIRECTORY …] [--trimbed PYTHON]
    GLUE_DIR=… python benchmarks/checkpoint_speed.py --sharded TOKENIZER

Whole processes in turn, all for CoLA's train texts: a plain directory of the tokens that occur in them, and the same
rows with `pq`. The models are MiniLM, a ModernBERT-base with random weights, and what `--also` names. `--trimbed` is an
interpreter that has trimbed. With `--sharded`, a plain directory is made of a random checkpoint of 4 GB in nine files,
with the tokenizer in that directory. Nothing is random but those weights."""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter

OURS = Path(sys.executable).with_name("vocab-prune")
TRIMBED = """
import json, sys
from trimbed.cli.__main__ import main
model, texts, out, *options = sys.argv[1:]
corpus = [{"path": "json", "data_files": texts, "split": "train"}]
sys.argv = ["trimbed", "trim", "--model", model, "--output-dir", out, "--min-count", "1", "--quiet", *options,
            f"corpus.datasets={json.dumps(corpus)}"]
main()
"""
UNVERIFIED = "trimbed, not verified"  # its comparison takes a classifier's outputs for a vocabulary's, and fails


def write_texts(out: Path):
    "Write CoLA's train texts as a JSON object a line."
    from vocab_pruning.data.tasks import documents, load_task

    lines = (json.dumps({"text": text}) + "\n" for text in documents(load_task("cola")["train"]))
    (out / "texts.jsonl").write_text("".join(lines), encoding="utf-8")


def write_sharded(out: Path, tokenizer: Path):
    "Write a random checkpoint of bfloat16: 262,144 rows of 768, and 112 matrices of 8192 x 2048, in nine files."
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    out.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer / name, out)
    config = dict(architectures=["GiantModel"], model_type="giant", hidden_size=768, vocab_size=262144, pad_token_id=1)
    (out / "config.json").write_text(json.dumps(config))
    files = [{"model.embed_tokens.weight": (262144, 768)}]
    files += [{f"model.layers.{layer}.{i}.weight": (8192, 2048) for i in range(14)} for layer in range(8)]
    places = {}
    for number, shapes in enumerate(files, 1):
        name = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        tensors = {key: torch.randn(*shape, dtype=torch.bfloat16) for key, shape in shapes.items()}
        save_file(tensors, out / name, {"format": "pt"})
        places |= dict.fromkeys(shapes, name)
    (out / "model.safetensors.index.json").write_text(json.dumps(dict(metadata={}, weight_map=places)))


def write_models(out: Path):
    "Write MiniLM and ModernBERT-base."
    import torch
    from transformers import AutoTokenizer, ModernBertConfig, ModernBertForSequenceClassification

    from vocab_pruning.core import MODERNBERT, minilm_directory

    torch.manual_seed(0)
    (out / "MiniLM").symlink_to(minilm_directory(), target_is_directory=True)
    ModernBertForSequenceClassification(ModernBertConfig()).save_pretrained(out / "ModernBERT-base")
    tokenizer = AutoTokenizer.from_pretrained(os.environ.get("MODERNBERT_TOKENIZER", MODERNBERT))
    tokenizer.save_pretrained(out / "ModernBERT-base")


def write_inputs(out: Path, sharded: Path | None):
    "Write the texts and the models to `out`; `sharded` is the directory of the tokenizer."
    write_texts(out)
    write_sharded(out / "sharded", sharded) if sharded else write_models(out)


def commands(model: Path, texts: Path, out: Path, given) -> dict[str, list]:
    "Return the programs that are compared, by name; each writes to `out`."
    ours = [OURS, "prune", model, texts, out, "--min-count", "1", "--oov"]
    result = {"cp -r": ["cp", "-rL", model, out], "ours, resegment": [*ours, "resegment"]}
    if not given.sharded:
        result["ours, pq"] = [*ours, "pq"]
    if given.trimbed:
        result["trimbed"] = [given.trimbed, "-c", TRIMBED, model, texts, out]
        result[UNVERIFIED] = [*result["trimbed"], "--no-verify-model"]
    return result


def measured(command: list) -> dict:
    "Return seconds, processor seconds and peak MiB of `command` as a process of its own, and whether it failed."
    start = perf_counter()
    quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    process = subprocess.Popen([*map(str, command)], **quiet)
    _, status, used = os.wait4(process.pid, 0)
    processor = used.ru_utime + used.ru_stime
    return dict(seconds=perf_counter() - start, processor=processor, mib=used.ru_maxrss / 1024, failed=status != 0)


def embedding_rows(directory: Path) -> int | None:
    "Return the rows of the embedding in `directory`, from its configuration."
    config = directory / "config.json"
    return json.loads(config.read_text())["vocab_size"] if config.is_file() else None


def compare(model: Path, texts: Path, given) -> list[dict]:
    "Return a row for each program: medians over the rounds, and the medians of the ratios to trimbed, or to `cp -r`."
    taken, rows = {}, {}
    for number in range(given.rounds):
        programs = [name for name in commands(model, texts, Path("out"), given) if number == 0 or name in taken]
        for name in programs[:: -1 if number % 2 else 1]:
            with TemporaryDirectory(dir=texts.parent) as scratch:
                out = Path(scratch) / "out"
                taken.setdefault(name, []).append(measured(commands(model, texts, out, given)[name]))
                rows[name] = embedding_rows(out)
        if number == 0 and given.trimbed:  # go on with the one that works
            taken.pop(UNVERIFIED if not taken["trimbed"][0]["failed"] else "trimbed")
    rival = next((name for name in taken if name.startswith("trimbed")), "cp -r")
    return [summary(model.name, name, rows[name], runs, rival, taken[rival]) for name, runs in taken.items()]


def summary(model: str, name: str, rows: int | None, runs: list[dict], rival: str, theirs: list[dict]) -> dict:
    "Return the row of the program `name`, compared with `rival`."
    row = dict(model=model, program=name, rows=rows, failed=sum(run["failed"] for run in runs))
    for what in ("seconds", "processor", "mib"):
        row[what] = round(median(run[what] for run in runs), 2)
        ratio = median(run[what] / other[what] for run, other in zip(runs, theirs, strict=True))
        row[f"{what} / {rival}"] = round(ratio, 3)
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--also", nargs="*", type=Path, default=[])
    parser.add_argument("--trimbed", metavar="PYTHON")
    parser.add_argument("--sharded", metavar="TOKENIZER", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write-inputs", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.write_inputs:
        return write_inputs(given.write_inputs, given.sharded)
    with TemporaryDirectory() as scratch:  # in a process of its own, so that this one stays small
        subprocess.run([sys.executable, __file__, "--write-inputs", scratch, *sys.argv[1:]], check=True)
        names = ["sharded"] if given.sharded else ["MiniLM", "ModernBERT-base"]
        for model in (*(Path(scratch) / name for name in names), *given.also):
            for row in compare(model, Path(scratch) / "texts.jsonl", given):
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
