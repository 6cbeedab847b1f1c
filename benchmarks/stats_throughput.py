"""How much faster counting is than tokenizing: beside the bare batch encoder, as the corpus grows; and peak memory.

Ratios are taken within a round, where the machine is the same for both; their median over the rounds is what counts.
The ratio of processor time hardly depends on what else the machine does."""

import argparse
import json
import os
import subprocess
import sys
from itertools import islice
from pathlib import Path

import numpy as np
from transformers import AutoTokenizer

from vocab_pruning.core import MINILM, library_versions, minilm_directory, resolve_model
from vocab_pruning.data.stats import AT_ONCE, backend, token_batches, token_stats
from vocab_pruning.evaluate.benchmark import both_clocks, in_turn, process_peak

MIB, MILLION = 2**20, 1_000_000


def load_tokenizer(name: str) -> tuple:
    "`(tokenizer, rows V)` of a directory, a hub name or MiniLM's own."
    where = str(minilm_directory()) if name == MINILM and minilm_directory() else resolve_model(name)[0]
    tokenizer = AutoTokenizer.from_pretrained(where)
    return tokenizer, max(tokenizer.get_vocab().values()) + 1


def texts_of(path: Path, most: int | None = None):
    "The lines of a file, at most so many."
    with path.open(encoding="utf-8") as lines:
        yield from (line.rstrip("\n") for line in islice(lines, most))


def encode_only(texts: list[str], tokenizer):
    "The batch encoder alone; what it returns is dropped."
    encoder = backend(tokenizer)
    for i in range(0, len(texts), AT_ONCE):
        encoder.encode_batch_fast(texts[i : i + AT_ONCE], add_special_tokens=False)


def lines_by_tokens(path: Path, tokenizer, millions: list[int]) -> list[int]:
    "How many lines of the file make up so many millions of tokens."
    lengths = np.concatenate([lengths for _, lengths in token_batches(texts_of(path), tokenizer)])
    return [int(np.searchsorted(lengths.cumsum(), size * MILLION)) for size in millions]


def same_as_plain(texts: list[str], tokenizer, n_rows: int) -> bool:
    "Whether counting by chunks gives the statistics of whole texts, to the last bit."
    ours, plain = (vars(token_stats(texts, tokenizer, n_rows, whole=whole)) for whole in (False, True))
    return all(np.array_equal(ours[name], plain[name]) for name in plain)


def peak(name: str, path: Path, lines: int) -> float:
    "Peak memory, in MiB, of a fresh process that counts the first lines of the file."
    command = [sys.executable, __file__, str(path), "--tokenizer", name, "--stream", str(lines)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure(name: str, path: Path, options: argparse.Namespace) -> list[dict]:
    "A row for each size of the corpus, printed as it comes."
    tokenizer, n_rows = load_tokenizer(name)
    rows = []
    for size, lines in zip(options.millions, lines_by_tokens(path, tokenizer, options.millions), strict=True):
        texts = list(texts_of(path, lines))
        work = dict(bare=lambda _, texts=texts: encode_only(texts, tokenizer),
                    ours=lambda _, texts=texts: token_stats(texts, tokenizer, n_rows))
        seconds = in_turn(work, options.rounds, warm_up=0, clock=both_clocks)
        times, processor_times = np.median(seconds["bare"] / seconds["ours"], axis=0).round(2).tolist()
        row = dict(tokenizer=Path(name).name, million_tokens=size, texts=lines, times_faster=times, times_faster_processor=processor_times)
        row["seconds"] = {work: taken.round(2).tolist() for work, taken in seconds.items()}
        if size in options.check:
            row |= dict(same=same_as_plain(texts, tokenizer, n_rows))
        if size >= 10:
            row |= dict(peak_mib=round(peak(name, path, lines)))
        print(json.dumps(row), flush=True)
        rows.append(row)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", type=Path, help="a text file; each line is a document")
    parser.add_argument("--tokenizer", action="append", help=f"directory or hub name; may be repeated (default: {MINILM})")
    parser.add_argument("--millions", type=int, nargs="+", default=[1, 3, 10, 30], help="tokens (default: %(default)s)")
    parser.add_argument("--check", type=int, nargs="+", default=[10], help="sizes compared with whole texts (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    parser.add_argument("--stream", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    names = options.tokenizer or [MINILM]
    if options.stream:
        token_stats(texts_of(options.corpus, options.stream), *load_tokenizer(names[0]))
        return print(process_peak() / MIB)
    print(f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}, {options.rounds} rounds")
    rows = [row for name in names for row in measure(name, options.corpus, options)]
    if options.json:
        machine = dict(cpus=os.cpu_count(), versions=library_versions())
        options.json.write_text(json.dumps(dict(machine=machine, rows=rows), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
