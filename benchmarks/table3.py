"""The paper's Table 3 at full size: ModernBERT-base with random weights and 20 % of its parameters removed; and MiniLM with 77.3 % of its rows removed.

Sizes are counted, peaks are those of fresh processes, times are taken in turn in one run. Fine-tuning steps are timed beside the full model as well."""

import argparse
import os
import shlex
import sys
from pathlib import Path
from time import perf_counter, process_time

import numpy as np
import pandas as pd
import torch

from vocab_pruning.core import MINILM, minilm_directory
from vocab_pruning.data.tasks import documents, load_task, resolve_data
from vocab_pruning.evaluate.benchmark import step_time, table3, text_batches
from vocab_pruning.evaluate.finetune import load_classifier
from vocab_pruning.models.embedding import rebuild_model_with_vocab
from vocab_pruning.models.pruning import prune, size_with
from vocab_pruning.remaps.kinds import Plan, get_remap
from vocab_pruning.runs.record import provenance
from vocab_pruning.scorers.budget import count_rows

CLOCKS = {"wall": perf_counter, "processor": process_time}


def modernbert(options) -> tuple[dict, list]:
    "ModernBERT-base with random weights, what is left of it, and batches of random ids."
    from transformers import ModernBertConfig, ModernBertForSequenceClassification

    torch.manual_seed(options.seed)
    full = ModernBertForSequenceClassification(ModernBertConfig()).eval()
    rows, special = full.get_input_embeddings().weight.detach(), np.zeros(full.config.vocab_size, bool)
    special[[i for name, i in full.config.to_dict().items() if name.endswith("_token_id") and isinstance(i, int)]] = True
    order = np.random.default_rng(options.seed).permutation(len(rows))
    order = np.concatenate([order[special[order]], order[~special[order]]])
    kept = {oov: count_rows(0.2, "params", size_with(full, oov), special, special) for oov in options.oovs}
    remaps = {oov: get_remap(oov).make(Plan(rows, order, n_keep, special, seed=options.seed)) for oov, n_keep in kept.items()}
    draw = torch.Generator().manual_seed(options.seed)
    batches = [dict(input_ids=torch.randint(len(rows), (options.batch, options.length), generator=draw), labels=torch.arange(options.batch) % 2)
               for _ in range(4)]
    return {"full": full} | {oov: rebuild_model_with_vocab(full, remap, share_encoder=True) for oov, remap in remaps.items()}, batches


def minilm(options) -> tuple[dict, dict]:
    "A classifier on MiniLM, what is left of it for CoLA's texts, and batches of CoLA's dev sentences."
    full, tokenizer = load_classifier(minilm_directory(), "cola", options.seed)
    data = load_task("cola")
    made = {oov: prune(full, tokenizer, documents(data["train"]), 0.773, "vocab", "frequency", oov, options.seed, share_encoder=True)
            for oov in (*options.oovs, "resegment")}
    dev = data["dev"].select(range(256))
    texts, tokenizers = documents(dev), {"full": tokenizer} | {oov: p.tokenizer for oov, p in made.items()}
    batches = {name: text_batches(texts, t, 32, labels=dev["label"][:]) for name, t in tokenizers.items()}
    return {"full": full} | {oov: p.model for oov, p in made.items()}, batches


BASES = {"modernbert": modernbert, "minilm": minilm}
TITLES = {"modernbert": "ModernBERT-base, random weights", "minilm": MINILM}


def measure(base: str, options) -> pd.DataFrame:
    "`table3` of the models of `base`, with the time of fine-tuning steps beside it and where it was measured."
    models, batches = BASES[base](options)
    clock = CLOCKS[options.clock]
    table = table3(models, batches, options.rounds, clock=clock)
    steps = step_time({name: models[name] for name in ("full", options.oovs[0])}, batches, options.steps, 1, clock).add_prefix("step_")
    table.insert(0, "base", TITLES[base])
    batch = (batches["full"] if isinstance(batches, dict) else batches)[0]["input_ids"]
    here, size, read = provenance(), " x ".join(map(str, batch.shape)), f"cola from {resolve_data()[1]}, " if base == "minilm" else ""
    settings = (f"{torch.get_num_threads()} threads, {read}batch {size}, seed {options.seed}, {options.rounds} rounds, {options.steps} of steps, "
                f"{options.clock} clock")
    versions = ", ".join(f"{name} {here[f'version_{name}']}" for name in ("torch", "transformers", "vocab_pruning"))
    where = dict(machine=f"{here['machine']}, {os.cpu_count()} cores", settings=settings, finished=here["finished"],
                 command=shlex.join(["python", *sys.argv]), versions=versions)
    return table.join(steps, on="model").assign(**where)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("results/table3.csv"), help="the file to write (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=20, help="rounds of forward passes (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=8, help="rounds of fine-tuning steps (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=4, help="ModernBERT's texts of a batch (default: %(default)s)")
    parser.add_argument("--length", type=int, default=64, help="tokens of each (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, ids and remaps (default: %(default)s)")
    parser.add_argument("--oovs", nargs="+", default=["cluster", "pq"],
                        help="remaps measured, the first in fine-tuning steps, too, with resegment for MiniLM (default: %(default)s)")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="processor where other processes are busy (default: %(default)s)")
    parser.add_argument("--bases", nargs="+", choices=BASES, default=[*BASES], help="models measured (default: all)")
    options = parser.parse_args()
    table = pd.concat([measure(base, options) for base in options.bases], ignore_index=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(options.out, index=False, float_format="%.6g")
    print(table.drop(columns=["command", "versions"]).set_index(["base", "model"]).T.to_string())


if __name__ == "__main__":
    main()
