"""How much counting costs on top of tokenizing: throughput beside the bare batch encoder, and peak memory of a stream.

Ratios are taken within a round, where the machine is the same for all; their median over the rounds is what counts.
The ratio of processor time is what perfect overlap would give, and hardly depends on what else the machine does."""

import argparse
import inspect
import json
import os
import subprocess
import sys
import tempfile
from itertools import islice
from pathlib import Path

import numpy as np
from transformers import AutoTokenizer

from vocab_pruning.core import MINILM, library_versions, minilm_directory, resolve_model
from vocab_pruning.data.stats import backend, token_batches, token_stats
from vocab_pruning.data.tasks import SAMPLE, TASKS, documents, load_task
from vocab_pruning.evaluate.benchmark import both_clocks, in_turn, process_peak

GOALS = {"counts": 0.9, "everything": 0.8}  # of the bare encoder's throughput
MEMORY_GOAL = 50  # MiB that ten times the text may add
BATCH_SIZE = inspect.signature(token_stats).parameters["batch_size"].default
COPIES = 3  # of SST-2's train texts: over two million tokens
MIB = 2**20


# What is measured


def encode_only(texts, tokenizer, n_rows: int, batch_size: int):
    "The batch encoder alone; what it returns is dropped."
    encoder, stream = backend(tokenizer), iter(texts)
    for chunk in iter(lambda: tuple(islice(stream, batch_size)), ()):
        encoder.encode_batch_fast(chunk, add_special_tokens=False)


def count_only(texts, tokenizer, n_rows: int, batch_size: int):
    "The library's batches, and how often each row occurs."
    counts = np.zeros(n_rows, np.int64)
    for ids, _ in token_batches(texts, tokenizer, batch_size):
        counts += np.bincount(ids, minlength=n_rows)


WORK = {"bare encoder": encode_only, "counts": count_only, "everything": token_stats}


# Corpora and tokenizers


def load_texts() -> tuple[list[str], str]:
    "SST-2's train texts where GLUE_DIR has them, else the sample's repeated to the same number; and what they are."
    sst2 = Path(os.environ.get("GLUE_DIR", "")) / TASKS["sst2"].folder / "train.tsv"
    if os.environ.get("GLUE_DIR") and sst2.is_file():
        return documents(load_task("sst2", os.environ["GLUE_DIR"])["train"]) * COPIES, f"SST-2 train, {COPIES} times over"
    drawn = [text for task in TASKS if task != "wnli" for text in documents(load_task(task, SAMPLE)["train"])]
    copies = 1 + 200_000 // len(drawn)
    return drawn * copies, f"the embedded sample's train texts, {copies} times over (GLUE_DIR has no SST-2)"


def load_tokenizer(name: str) -> tuple:
    "`(tokenizer, name without a path, rows V)` of a directory, a hub name or MiniLM's own."
    where, shown = (str(minilm_directory()), MINILM) if name == MINILM and minilm_directory() else resolve_model(name)
    tokenizer = AutoTokenizer.from_pretrained(where)
    return tokenizer, shown, max(tokenizer.get_vocab().values()) + 1


# Throughput


def throughput_rows(seconds: dict[str, np.ndarray], n_tokens: int) -> list[dict]:
    "A row for each kind of work: tokens per second, ratios to the bare encoder, the goal and whether it is met; `seconds` by both clocks (rounds, 2)."
    bare, rows = seconds["bare encoder"], []
    for name, taken in seconds.items():
        (ratio, processor_ratio), goal = np.median(bare / taken, axis=0).tolist(), GOALS.get(name)
        middle, best = n_tokens / np.median(taken[:, 0]), n_tokens / taken[:, 0].min()
        rows.append(dict(work=name, tokens_per_s=float(middle), best_tokens_per_s=float(best), ratio=ratio,
                         best_ratio=float(bare[:, 0].min() / taken[:, 0].min()), processor_ratio=processor_ratio,
                         goal=goal, met=None if goal is None else ratio >= goal))
    return rows


# Memory


def stream_file(path: str, tokenizer_name: str, batch_size: int) -> dict:
    "Tokens and peak memory of `token_stats` over the lines of a text file; for a process of its own."
    tokenizer, _, n_rows = load_tokenizer(tokenizer_name)
    with Path(path).open(encoding="utf-8") as lines:
        stats = token_stats((line.rstrip("\n") for line in lines), tokenizer, n_rows, batch_size)
    return dict(tokens=stats.n_tokens, peak_mib=process_peak() / MIB)


def memory_rows(texts: list[str], tokenizer_name: str, batch_size: int) -> list[dict]:
    "Peak memory of a fresh process that streams a file of the corpus once, and ten times over."
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for times in (1, 10):
            path = Path(folder) / f"{times}.txt"
            with path.open("w", encoding="utf-8") as file:
                for _ in range(times):
                    file.writelines(f"{text}\n" for text in texts)
            arguments = ["--stream", path, "--tokenizer", tokenizer_name, "--batch-size", str(batch_size)]
            child = subprocess.run([sys.executable, __file__, *arguments], check=True, capture_output=True, text=True)
            rows.append(dict(corpus=f"{times}x", file_mib=path.stat().st_size / MIB) | json.loads(child.stdout))
    return rows


# What is shown


def table(rows: list[dict], columns: dict[str, str]) -> str:
    "Rows as aligned text; `columns` gives each column's format."
    cells = [list(columns), *(["" if row[c] is None else format(row[c], form) for c, form in columns.items()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in cells)


def measure(name: str, texts: list[str], options: argparse.Namespace) -> dict:
    "Everything about one tokenizer, printed as it comes."
    tokenizer, shown, n_rows = load_tokenizer(name)
    n_tokens = token_stats(texts, tokenizer, n_rows, options.batch_size).n_tokens
    print(f"\n{shown}: {n_rows:,} rows, {n_tokens:,} tokens")
    works = {name: lambda _, work=work: work(texts, tokenizer, n_rows, options.batch_size) for name, work in WORK.items()}
    seconds = in_turn(works, options.rounds, warm_up=1, clock=both_clocks)
    shown_seconds = {name: taken.tolist() for name, taken in seconds.items()}
    result = dict(tokenizer=shown, rows=n_rows, tokens=n_tokens, seconds=shown_seconds, throughput=throughput_rows(seconds, n_tokens))
    speeds, ratios = ("tokens_per_s", "best_tokens_per_s"), ("ratio", "best_ratio", "processor_ratio")
    print(table([row | {"met": {True: "yes", False: "no"}.get(row["met"])} for row in result["throughput"]],
                {"work": "", **dict.fromkeys(speeds, ",.0f"), **dict.fromkeys(ratios, ".3f"), "goal": "", "met": ""}))
    if not options.no_memory:
        result["memory"] = memory_rows(texts, name, options.batch_size)
        growth = result["memory"][1]["peak_mib"] - result["memory"][0]["peak_mib"]
        print(table(result["memory"], dict(corpus="", file_mib=",.1f", tokens=",", peak_mib=",.1f")))
        print(f"ten times the text: {growth:+.1f} MiB (goal: at most {MEMORY_GOAL}) {'met' if growth <= MEMORY_GOAL else 'missed'}")
    return result


def parse_arguments() -> argparse.Namespace:
    "The command line."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokenizer", action="append", help=f"directory or hub name; may be repeated (default: {MINILM})")
    parser.add_argument("--rounds", type=int, default=9, help="interleaved rounds (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=BATCH_SIZE, help="documents a batch (default: %(default)s)")
    parser.add_argument("--no-memory", action="store_true", help="leave peak memory out")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    parser.add_argument("--stream", help=argparse.SUPPRESS)
    return parser.parse_args()


def main():
    options = parse_arguments()
    tokenizers = options.tokenizer or [MINILM]
    if options.stream:
        return print(json.dumps(stream_file(options.stream, tokenizers[0], options.batch_size)))
    texts, corpus = load_texts()
    machine = dict(cpus=os.cpu_count(), load_at_start=round(os.getloadavg()[0], 2), versions=library_versions())
    print(f"{corpus}: {len(texts):,} texts; {options.rounds} rounds, batches of {options.batch_size:,}; "
          f"{machine['cpus']} CPUs, load {machine['load_at_start']}")
    results = [measure(name, texts, options) for name in tokenizers]
    if options.json:
        machine["load_at_end"] = round(os.getloadavg()[0], 2)
        settings = dict(corpus=corpus, texts=len(texts), rounds=options.rounds, batch_size=options.batch_size)
        report = settings | dict(machine=machine, results=results)
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
