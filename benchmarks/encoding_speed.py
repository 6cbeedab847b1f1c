"""How long does a multilingual encoder take for 1,000 sentences, pruned for their language with each remap?

    TASKS_DIR=… python benchmarks/encoding_speed.py DIRECTORY [--language de --rows 16000 4000]

The full model and the pruned ones encode the same dev sentences of STS-B in turn, on one thread, round after round.
Prints a line for each: seconds per 1,000 sentences, and the median of its ratios to the full model's in the same round."""

import argparse
import os
from functools import partial
from statistics import median

import pandas as pd
import torch
from tqdm import tqdm
from transformers import AutoModel, AutoTokenizer

from vocab_pruning import prune
from vocab_pruning.evaluate.benchmark import in_turn
from vocab_pruning.evaluate.frozen import sentence_vectors
from vocab_pruning.runs.languages import read_pairs

REMAPS = ("resegment", "unk", "nearest", "pieces", "sparse", "pq", "int4", "int8")

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("model")
parser.add_argument("--language", default="de")
parser.add_argument("--rows", type=int, nargs="+", default=[16000, 4000])
parser.add_argument("--remaps", nargs="+", default=REMAPS, choices=REMAPS)
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--prefix", default="query: ")
given = parser.parse_args()

torch.set_num_threads(1)
full, tokenizer = AutoModel.from_pretrained(given.model), AutoTokenizer.from_pretrained(given.model)
pairs = read_pairs(f"{os.environ['TASKS_DIR']}/sts", given.language)
sentences = [given.prefix + text for text in (pairs.first + pairs.second)[:1000]]


def pruned_models():
    "Yield the remap, the number of rows, the model and the tokenizer of each cut; all have the full model's encoder."
    for rows in given.rows:
        for oov in tqdm(given.remaps, desc=f"prune to {rows:,} rows"):
            p = prune(full, tokenizer, pairs.train, rows=rows, oov=oov, share_encoder=True)
            yield oov, rows, p.model, p.tokenizer


def sentences_by(model, own, round_number):
    "Encode all sentences by `model`, with its `own` tokenizer."
    sentence_vectors(model, own, sentences)


models = [("full", len(full.get_input_embeddings().weight), full, tokenizer), *pruned_models()]
calls = {(oov, rows): partial(sentences_by, model, own) for oov, rows, model, own in models}
taken = in_turn(calls, given.rounds, warm_up=1)
whole = next(iter(taken.values()))
print(pd.DataFrame([
    dict(remap=oov, rows=rows, seconds=median(seconds) * 1000 / len(sentences), times=median(seconds / whole))
    for (oov, rows), seconds in taken.items()
]).round(2).to_string(index=False))
