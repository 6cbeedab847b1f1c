"""What LoSparse costs: a training step and its memory beside plain fine-tuning, a forward pass of the compacted model beside the full one.

`size`, which has to be asked for, counts the parameters of a full-size ModernBERT on disk. Models take turns within one process; the median of the
ratios of a round is what counts. Every peak of memory is that of a fresh process that does one thing."""

import argparse
import json
import math
import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from common import child
from safetensors import safe_open
from transformers import ModernBertConfig, ModernBertForSequenceClassification

from vocab_pruning import PrunedModel
from vocab_pruning.core import library_versions, minilm_directory
from vocab_pruning.evaluate.benchmark import both_clocks, in_turn, process_peak
from vocab_pruning.evaluate.finetune import load_classifier
from vocab_pruning.evaluate.losparse import close_window, losparse_settings, mask_rows, most_important, observe, zero_rows
from vocab_pruning.models.anatomy import sizes
from vocab_pruning.models.lowrank import compact, encoder_linears, install_losparse, losparse_linears, split_model


def minilm():
    "MiniLM as a classifier, from a seed."
    return load_classifier(str(minilm_directory()), "cola", seed=0)[0]


def batch(device: str, size: int = 16, length: int = 128) -> dict:
    ids = torch.randint(1000, 30000, (size, length), generator=torch.Generator().manual_seed(0))
    return dict(input_ids=ids.to(device), attention_mask=torch.ones_like(ids).to(device), labels=(torch.arange(size) % 2).to(device))


def peak_mib(device: str) -> float:
    "The most memory held so far, in MiB: the allocator's on a GPU, else the process's."
    return (torch.cuda.max_memory_allocated() if device == "cuda" else process_peak()) / 2**20


def split_of(ratio: float, compacted: bool = False):
    "MiniLM split for `ratio`, with random rows pruned to the budget and compacted where that is wanted."
    model = minilm()
    settings = losparse_settings(model, ratio)
    split = split_model(model, settings.rho)
    if compacted:
        for part in losparse_linears(split).values():
            part.importance.uniform_()
        mask_rows(losparse_linears(split).values(), settings.budget)
        zero_rows(losparse_linears(split).values())
        compact(split)
    return split


class Training:
    "Steps of AdamW, with all that the callback does where the model is split."

    def __init__(self, model, device: str, bf16: bool):
        self.model, self.inputs, self.device, self.bf16 = model.to(device).train(), batch(device), device, bf16
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
        self.parts, self.steps = [*losparse_linears(model).values()], 0

    def step(self):
        self.steps += 1
        with torch.autocast(self.device, torch.bfloat16, enabled=self.bf16):
            loss = self.model(**self.inputs).loss
        loss.backward()
        observe(self.parts)
        self.optimizer.step()
        if self.parts and self.steps % 10 == 0:
            close_window(self.parts, 10)
            mask_rows(self.parts, sum(part.s.numel() for part in self.parts) // 2)
        zero_rows(self.parts)
        self.optimizer.zero_grad()


def compared(works: dict, rounds: int) -> dict[str, dict[str, float]]:
    "Median seconds of each of `works`, and of its ratios to the first in the same round, by the clock and of the processor."
    seconds, names = in_turn(works, rounds, warm_up=1, clock=both_clocks), ("seconds", "processor_seconds", "ratio", "processor_ratio")
    first = next(iter(seconds.values()))
    return {name: dict(zip(names, np.median(np.hstack([taken, taken / first]), axis=0).tolist(), strict=True)) for name, taken in seconds.items()}


def training_seconds(ratio: float, rounds: int, device: str, bf16: bool) -> dict:
    runs = {"plain": Training(minilm(), device, bf16), "LoSparse": Training(split_of(ratio), device, bf16)}
    return compared({name: lambda _, run=run: run.step() for name, run in runs.items()}, rounds)


def training_memory(name: str, ratio: float, device: str, bf16: bool) -> float:
    "Peak memory of three steps."
    run = Training(minilm() if name == "plain" else split_of(ratio), device, bf16)
    for _ in range(3):
        run.step()
    return peak_mib(device)


@torch.inference_mode()
def inference_seconds(ratio: float, rounds: int, device: str, bf16: bool) -> dict:
    models = {"full": minilm().to(device).eval(), "compacted": split_of(ratio, compacted=True).to(device).eval()}
    inputs = {name: tensor for name, tensor in batch(device).items() if name != "labels"}

    def forward(model):
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            return model(**inputs)

    times = compared({name: lambda _, model=model: forward(model) for name, model in models.items()}, rounds)
    return {name: taken | sizes(models[name]) for name, taken in times.items()}


def modernbert_on_disk(ratio: float) -> dict:
    "A full-size ModernBERT compacted to random rows: parameters counted from the saved file, and how far they are off the target."
    with torch.device("meta"):
        model = ModernBertForSequenceClassification(ModernBertConfig())
    settings, full = losparse_settings(model, ratio), sizes(model)
    shapes = [part.weight.shape for part in encoder_linears(model).values()]
    kept = most_important(torch.rand(sum(h for h, _ in shapes)), torch.cat([torch.full((h,), w) for h, w in shapes]), settings.budget)
    rows = [int(part.sum()) for part in kept.split([h for h, _ in shapes])]
    model = ModernBertForSequenceClassification(ModernBertConfig())
    install_losparse(model, settings.rho, rows)
    model.config.losparse = dict(rho=settings.rho, rows=rows)
    with tempfile.TemporaryDirectory() as scratch:
        PrunedModel(model).save_pretrained(Path(scratch) / "model", verify=False)
        file = Path(scratch) / "model" / "model.safetensors"
        with safe_open(file, "pt") as tensors:
            slices = [tensors.get_slice(name) for name in tensors.keys()]  # noqa: SIM118
            params = sum(math.prod(part.get_shape()) for part in slices if part.get_dtype() == "F32")
        return dict(params=params, removed=1 - params / full["params"], off=abs(params - (1 - ratio) * full["params"]) / full["params"],
                    bytes=file.stat().st_size, bytes_full=full["bytes"])


def measure(what: str, ratio: float, rounds: int, device: str, bf16: bool) -> dict:
    "One of the benchmarks, printed and returned."
    asked = f"ratio {ratio:.2%}, {device}, {'bf16' if bf16 else 'fp32'}"
    if what == "size":
        r = child("modernbert_on_disk", ratio)
        print(f"ModernBERT-base, ratio {ratio:.2%}: {r['params']:,} parameters in the file, {r['removed']:.4%} removed, {r['off']:.5%} of the total off, "
              f"{r['bytes'] / r['bytes_full']:.3f} of the bytes", flush=True)
        return r
    results = child(f"{what}_seconds", ratio, rounds, device, bf16)
    if what == "training":
        for name in results:
            results[name]["peak_mib"] = child("training_memory", name, ratio, device, bf16)
    for name, r in results.items():
        more = f", peak {r['peak_mib']:,.0f} MiB" if "peak_mib" in r else f", {r['params']:,} parameters"
        print(f"{what}, 16 x 128, {asked}: {name} {r['seconds'] * 1000:.0f} ms, {r['ratio']:.2f} times "
              f"({r['processor_seconds'] * 1000:.0f} ms, {r['processor_ratio']:.2f} times of the processor){more}", flush=True)
    return results


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="*", default=["training", "inference"], help="training, inference, size (default: the first two)")
    parser.add_argument("--ratio", type=float, nargs="+", default=[0.2], help="of all parameters (default: 0.2)")
    parser.add_argument("--rounds", type=int, default=15, help="interleaved rounds (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="default: %(default)s")
    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        function, *arguments = options.child
        return print(json.dumps(globals()[function](*arguments)))
    results = dict(cpus=os.cpu_count(), threads=torch.get_num_threads(), load_at_start=round(os.getloadavg()[0], 2), versions=library_versions())
    print(f"{results['cpus']} CPUs, {results['threads']} threads, load {results['load_at_start']}")
    for what in options.what:
        results[what] = {ratio: measure(what, ratio, options.rounds, options.device, options.bf16) for ratio in options.ratio}
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
