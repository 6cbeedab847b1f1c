"""Who reads which directory: a table of consumers by kinds of directory, each cell tried.

`python -m tools.consumers` makes one directory of each kind from a tiny BERT, lets every consumer read it, with this
package imported and in a process that cannot import it, and writes `results/consumers.json`. A cell is "equal" (the
outputs are those of the model in memory), "refused: …" with the first line of the error, "–" where the question makes
no sense, or "WRONG: …", which is never committed."""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from textwrap import shorten

RESULT = Path(__file__).resolve().parent.parent / "results" / "consumers.json"
TEXTS = ["the cat sat on the mat", "a dog ran away"]
HEAD, TOKENS = "logits", "last_hidden_state"  # what is compared
MOST = 1e-4  # difference allowed, of the largest output or 1
LIBRARIES = ["torch", "transformers", "sentence-transformers", "peft", "accelerate", "onnxruntime"]


# The directories


KINDS = ("remap", "plain", "LoSparse", "ONNX", "self-contained")


def write_directories(root: Path, kinds: tuple[str, ...] = KINDS):
    "Write one directory of each kind, and beside each the outputs of its model in memory."
    import torch

    from vocab_pruning import PrunedModel, prune
    from vocab_pruning.models.lowrank import compact, split_model
    from vocab_pruning.models.onnx import export_onnx
    from vocab_pruning.testing.families import tiny_model

    some = dict(ratio=0.5, base="vocab")
    remap = prune(*tiny_model("BERT"), TEXTS, oov="pq", n_bytes=4, **some)
    plain = prune(*tiny_model("BERT"), TEXTS, oov="resegment", ratio=0.1, base="vocab")
    split = PrunedModel(compact(split_model(remap.model, 0.5)), remap.tokenizer, remap.info)
    made = {
        "remap": (remap, remap.save_pretrained),
        "plain": (plain, plain.save_pretrained),
        "LoSparse": (split, split.save_pretrained),
        "ONNX": (remap, partial(export_onnx, remap, texts=TEXTS)),
        "self-contained": (remap, partial(remap.save_pretrained, self_contained=True)),
    }
    for kind in kinds:
        pruned, write = made[kind]
        write(root / kind)
        batch = pruned.tokenizer(TEXTS, padding=True, return_tensors="pt")
        with torch.no_grad():
            hidden = pruned.model.base_model(**batch).last_hidden_state
            wanted = {HEAD: pruned.model(**batch).logits, TOKENS: hidden}
        weight = batch["attention_mask"].unsqueeze(-1)
        wanted["mean"] = (hidden * weight).sum(1) / weight.sum(1)
        wanted[TOKENS] = hidden * weight
        told = {name: value.tolist() for name, value in wanted.items()}
        (root / f"{kind}.json").write_text(json.dumps(told), encoding="utf-8")


# The consumers: each takes a directory and options of `from_pretrained`, and returns outputs by the names above


def _batch(directory: Path):
    "Return the texts as the directory's tokenizer has them."
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(directory)(TEXTS, padding=True, return_tensors="pt")


def _of_model(model, directory: Path) -> dict:
    "Return the logits of `model`."
    import torch

    with torch.no_grad():
        return {HEAD: model.eval()(**_batch(directory)).logits.tolist()}


def _open(directory: Path, **options):
    "Return the classifier that transformers loads."
    from transformers import AutoModelForSequenceClassification

    return AutoModelForSequenceClassification.from_pretrained(directory, **options)


def by_load(directory: Path, **options) -> dict:
    "`vocab_pruning.load`, which takes no code from a directory."
    from vocab_pruning import load

    return _of_model(load(directory).model, directory)


def by_transformers(directory: Path, **options) -> dict:
    "An Auto class, and another for the encoder alone."
    import torch
    from transformers import AutoModel

    batch = _batch(directory)
    with torch.no_grad():
        hidden = AutoModel.from_pretrained(directory, **options)(**batch).last_hidden_state
    return _of_model(_open(directory, **options), directory) | {TOKENS: (hidden * batch["attention_mask"].unsqueeze(-1)).tolist()}


def by_pipeline(directory: Path, **options) -> dict:
    "`pipeline`, with the scores of all labels as they are."
    from transformers import pipeline

    options = {"trust_remote_code": True} if options.pop("trust_remote_code", False) else {}
    found = pipeline("text-classification", str(directory), top_k=None, function_to_apply="none", **options)(TEXTS)
    return {HEAD: [[entry["score"] for entry in sorted(row, key=lambda e: e["label"])] for row in found]}


def by_sentence_transformers(directory: Path, **options) -> dict:
    "`SentenceTransformer`, which averages the vectors of tokens."
    from sentence_transformers import SentenceTransformer

    told = {"trust_remote_code": True} if options.pop("trust_remote_code", False) else {}
    return {"mean": SentenceTransformer(str(directory), device="cpu", **told).encode(TEXTS).tolist()}


def by_trainer(directory: Path, **options) -> dict:
    "A step by a Trainer at learning rate 0, its save, and what is read from there."
    from transformers import Trainer, TrainingArguments

    batch = _batch(directory)
    data = [dict(input_ids=ids, attention_mask=mask, labels=0) for ids, mask in zip(*map(batch.get, ("input_ids", "attention_mask")), strict=True)]
    with tempfile.TemporaryDirectory() as scratch:
        told = dict(report_to=[], max_steps=1, learning_rate=0.0, save_strategy="no", disable_tqdm=True, use_cpu=True)
        trainer = Trainer(_open(directory, **options), TrainingArguments(scratch, **told), train_dataset=data)
        trainer.train()
        trainer.save_model(f"{scratch}/saved")
        return _of_model(_open(Path(scratch) / "saved", **options), directory)


def by_peft(directory: Path, **options) -> dict:
    "LoRA on query and value, merged again."
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(target_modules=["query", "value"], task_type="SEQ_CLS")
    model = get_peft_model(_open(directory, **options), config)
    model(**_batch(directory)).logits.sum().backward()
    return _of_model(model.merge_and_unload(), directory)


def by_ddp(directory: Path, **options) -> dict:
    "DistributedDataParallel, with gloo."
    import torch
    from torch import distributed
    from torch.nn.parallel import DistributedDataParallel

    with tempfile.TemporaryDirectory() as scratch:
        model = _open(directory, **options)
        distributed.init_process_group("gloo", f"file://{scratch}/meet", rank=0, world_size=1)
        try:
            parallel = DistributedDataParallel(model)
            parallel(**_batch(directory), labels=torch.tensor([0, 1])).loss.backward()
            return _of_model(parallel, directory)
        finally:
            distributed.destroy_process_group()


def by_accelerate(directory: Path, **options) -> dict:
    "A device map, and `Accelerator.prepare`."
    from accelerate import Accelerator

    model = _open(directory, device_map={"": "cpu"}, **options)
    return _of_model(Accelerator(cpu=True).prepare(model), directory)


def by_export(directory: Path, **options) -> dict:
    "`torch.export`, with free batch size and length."
    import torch

    batch = dict(_batch(directory))
    sizes = {name: {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC} for name in batch}
    model = _open(directory, **options).eval()
    with torch.no_grad():
        graph = torch.export.export(model, (), batch, dynamic_shapes=sizes, strict=False)
        return {HEAD: graph.module()(**batch).logits.tolist()}


def by_onnxruntime(directory: Path, **options) -> dict:
    "onnxruntime alone, with the tokenizer of the directory."
    import onnxruntime

    session = onnxruntime.InferenceSession(directory / "model.onnx", providers=["CPUExecutionProvider"])
    batch = _batch(directory)
    return {HEAD: session.run([HEAD], {value.name: batch[value.name].numpy() for value in session.get_inputs()})[0].tolist()}


def by_transformers_js(directory: Path, **options) -> dict:
    "transformers.js in Node, which `make e2e` installs; it brings its own tokenizer."
    command = ["node", str(Path(__file__).with_name("client.mjs")), str(directory.resolve()), json.dumps(TEXTS)]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(next((line for line in run.stderr.splitlines() if "Error" in line), run.stderr[-300:]))
    return {HEAD: json.loads(run.stdout.splitlines()[-1])[HEAD]}


@dataclass(frozen=True)
class Consumer:
    """Who reads a directory.

    `reads`: a function of a directory. `kinds`: those for which the question makes sense, all where None.
    `alone`: whether it is asked without this package, too. `quick`: whether the ordinary tests try it."""

    reads: Callable
    kinds: tuple[str, ...] | None = None
    alone: bool = True
    quick: bool = False


GRAPH = ("ONNX",)
CONSUMERS = {
    "vocab_pruning.load": Consumer(by_load, alone=False, quick=True),
    "transformers": Consumer(by_transformers, quick=True),
    "transformers, ignore_mismatched_sizes": Consumer(lambda d, **o: by_transformers(d, ignore_mismatched_sizes=True, **o), quick=True),
    "pipeline": Consumer(by_pipeline, quick=True),
    "sentence-transformers": Consumer(by_sentence_transformers),
    "Trainer": Consumer(by_trainer),
    "PEFT": Consumer(by_peft),
    "DistributedDataParallel": Consumer(by_ddp),
    "accelerate": Consumer(by_accelerate),
    "torch.export": Consumer(by_export),
    "onnxruntime": Consumer(by_onnxruntime, GRAPH),
    "transformers.js": Consumer(by_transformers_js, GRAPH),
}


# The table


def _sentence(error: Exception, directory: Path) -> str:
    "Return the line of a message that names this package, or the first, without what differs from machine to machine."
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    line = next((line for line in lines if "vocab_pruning" in line.replace(str(directory), "")), lines[0])
    line = line.replace(f"{directory}/", "").replace(str(directory), "directory")
    line = re.sub(r"^\w*Error: ", "", line)
    line = re.sub(r"\(<class .*", "…", line)  # which classes were tried depends on what was imported before
    return shorten(line, 200, placeholder=" …")


def try_cell(name: str, kind: str, directory: Path, package: bool) -> str:
    "Return the cell of a consumer and a kind, in this process."
    consumer = CONSUMERS[name]
    if kind not in (consumer.kinds or KINDS) or not (package or consumer.alone):
        return "–"
    wanted = json.loads(directory.with_name(f"{kind}.json").read_text(encoding="utf-8"))
    options = {"trust_remote_code": True} if kind == "self-contained" and not package else {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = consumer.reads(directory, **options)
    except Exception as error:
        return f"refused: {_sentence(error, directory)}"
    import torch

    for what, value in found.items():
        ours, theirs = torch.tensor(value), torch.tensor(wanted[what])
        if ours.shape != theirs.shape or not (ours - theirs).abs().max() <= MOST * max(float(theirs.abs().max()), 1):
            return f"WRONG: {what} differ"
    return "equal"


def try_all(root: Path, names: list[str], package: bool, kinds: tuple[str, ...] = KINDS) -> dict[str, dict[str, str]]:
    "Return the cells of the consumers `names` and `kinds`, in this process: {consumer: {kind: cell}}."
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return {name: {kind: try_cell(name, kind, root / kind, package) for kind in kinds} for name in names}


def without_the_package(root: Path, names: list[str]) -> dict[str, dict[str, str]]:
    "Return what `try_all` does, from a process that cannot import this package."
    run = subprocess.run([sys.executable, __file__, "--alone", str(root), *names], capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(run.stderr[-2000:])
    return json.loads(run.stdout.splitlines()[-1])


def make_table(root: Path, names: list[str] = tuple(CONSUMERS)) -> dict:
    "Return the whole table: `versions`, and {`with` or `without`: {consumer: {kind: cell}}}."
    import vocab_pruning  # noqa: F401, for what the import does

    write_directories(root)
    both = {"with": try_all(root, names, True), "without": without_the_package(root, names)}
    return {"versions": {name: version(name) for name in LIBRARIES}} | both


class _Refuse:
    "A finder that refuses this package."

    def find_spec(self, name: str, path=None, target=None):
        if name.split(".")[0] == "vocab_pruning":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


if __name__ == "__main__":
    options = argparse.ArgumentParser()
    options.add_argument("--alone", nargs="+")
    options = options.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if options.alone:
        sys.meta_path.insert(0, _Refuse())
        with tempfile.TemporaryDirectory() as modules:
            os.environ["HF_MODULES_CACHE"] = modules
            print(json.dumps(try_all(Path(options.alone[0]), options.alone[1:], False)))
    else:
        chosen = [name for name in CONSUMERS if name != "transformers.js" or "TRANSFORMERS_JS" in os.environ]
        with tempfile.TemporaryDirectory() as scratch:
            table = make_table(Path(scratch), chosen)
        before = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {}
        for side in ("with", "without"):
            table[side] = before.get(side, {}) | table[side]
        RESULT.write_text(json.dumps(table, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        wrong = [cell for side in ("with", "without") for row in table[side].values() for cell in row.values() if cell.startswith("WRONG")]
        sys.exit(f"{len(wrong)} cells are wrong, see {RESULT}" if wrong else 0)
