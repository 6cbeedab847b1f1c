"""What share of the dev occurrences of tokens unseen in train do the first unseen rows catch, by id and by resemblance?

    GLUE_DIR=… TASKS_DIR=… python benchmarks/unseen_rows.py [--model DIRECTORY --languages de zh]

Prints a table. Nothing is random."""

import argparse
import os

import numpy as np
import pandas as pd
from transformers import AutoModel, AutoTokenizer

from vocab_pruning.core import minilm_directory
from vocab_pruning.data.stats import token_stats
from vocab_pruning.data.tasks import documents, load_task
from vocab_pruning.models.anatomy import reserved_rows, special_mask
from vocab_pruning.runs.languages import read_pairs
from vocab_pruning.scorers.keeping import Tokens
from vocab_pruning.scorers.unseen import resemblance

TASKS = ["cola", "mrpc", "rte", "stsb", "sst2", *(f"recipes/tasks/{name}.yaml" for name in ("trec", "banking77", "subj"))]
FIRST = (500, 2000, 5000)

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", default=minilm_directory())
parser.add_argument("--languages", nargs="*")
given = parser.parse_args()

model, tokenizer = AutoModel.from_pretrained(given.model), AutoTokenizer.from_pretrained(given.model)
rows = model.get_input_embeddings().weight.detach()
reserved = reserved_rows(special_mask(model, tokenizer), tokenizer)
tokens = Tokens(tokenizer, len(rows), reserved)


def corpora():
    "Yield the name, the train texts and the dev texts of each corpus."
    if given.languages:
        for language in given.languages:
            pairs = read_pairs(f"{os.environ['TASKS_DIR']}/sts", language)
            yield language, pairs.train, pairs.first + pairs.second
    else:
        for task in TASKS:
            splits = load_task(task)
            yield task, documents(splits["train"]), documents(splits["dev"])


table = []
for name, train, dev in corpora():
    stats, later = (token_stats(texts, tokenizer, len(rows)) for texts in (train, dev))
    unseen = np.flatnonzero(~stats.seen & ~reserved)
    likely = resemblance(stats, lambda: (some.numpy() for some in rows.split(4096)), tokens)
    orders = dict(id=unseen, resemblance=unseen[np.lexsort((unseen, -likely[unseen]))])
    caught = {f"{n} by {how}": later.counts[order[:n]].sum() / later.counts[unseen].sum()
              for n in FIRST for how, order in orders.items()}
    table.append(dict(corpus=name, unseen=len(unseen), share=later.counts[unseen].sum() / later.n_tokens) | caught)
print(pd.DataFrame(table).round(3).to_string(index=False))
