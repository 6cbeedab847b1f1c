"""How long does a multilingual encoder take for 1,000 sentences, pruned for their language with each remap?

    TASKS_DIR=… python benchmarks/encoding_speed.py DIRECTORY [--language de --rows 16000 4000]

The full model and the pruned ones encode the same dev sentences of STS-B in turn, on one thread, round after round.
Prints a line for each: seconds per 1,000 sentences, and the median of its ratios to the full model's in the same round."""

import argparse
import os
from statistics import median
from time import perf_counter

import pandas as pd
import torch
from tqdm.auto import tqdm
from transformers import AutoModel, AutoTokenizer

from vocab_pruning import prune
from vocab_pruning.evaluate.frozen import sentence_vectors
from vocab_pruning.runs.languages import read_pairs

REMAPS = ("resegment", "unk", "nearest", "pieces", "sparse", "pq", "int4", "int8")

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("model")
parser.add_argument("--language", default="de")
parser.add_argument("--rows", type=int, nargs="+", default=[16000, 4000])
parser.add_argument("--remaps", nargs="+", default=REMAPS)
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--prefix", default="query: ")
given = parser.parse_args()

torch.set_num_threads(1)
full, tokenizer = AutoModel.from_pretrained(given.model), AutoTokenizer.from_pretrained(given.model)
pairs = read_pairs(f"{os.environ['TASKS_DIR']}/sts", given.language)
sentences = [given.prefix + text for text in (pairs.first + pairs.second)[:1000]]
models = {("full", len(full.get_input_embeddings().weight)): (full, tokenizer)}
for rows in given.rows:
    for oov in tqdm(given.remaps, desc=f"{rows:,} rows"):
        p = prune(full, tokenizer, pairs.train, rows=rows, oov=oov, share_encoder=True)
        models[oov, rows] = p.model, p.tokenizer

taken = {name: [] for name in models}
for _ in tqdm(range(given.rounds + 1), desc="rounds"):  # the first only warms up
    for name, (model, own) in models.items():
        start = perf_counter()
        sentence_vectors(model, own, sentences)
        taken[name].append(perf_counter() - start)
whole = taken[next(iter(models))]
print(pd.DataFrame([dict(remap=oov, rows=rows, seconds=median(times[1:]),
                         times=median(t / f for t, f in zip(times[1:], whole[1:], strict=True)))
                    for (oov, rows), times in taken.items()]).round(3).to_string(index=False))
