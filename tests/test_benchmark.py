"What is measured, and that measuring changes nothing; no time is asserted."

import contextlib
import itertools
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import FAMILIES, TEXTS, shared, state
from safetensors.torch import load_file, save_file

from vocab_pruning import prune
from vocab_pruning.evaluate.benchmark import beside_first, bytes_on_disk, in_turn, latency, peak_memory, step_time, table3, text_batches
from vocab_pruning.models.anatomy import sizes

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

KINDS = {"unk": {}, "cluster": dict(n_clusters=7), "dbscan": dict(n_clusters=7), "nearest": {}, "sparse": dict(m=3), "pq": dict(n_bytes=4), "int8": {},
         "int4": {}, "resegment": {}}


def models_and_batches(family: str) -> tuple[dict, dict]:
    "The full classifier of a family, what every kind of pruning leaves of it, and batches with labels for each."
    full, tokenizer = shared(family, "classification"), FAMILIES[family].tokenizer
    made = {oov: prune(full, tokenizer, TEXTS, 0.02 if oov == "resegment" else 0.5, "vocab", oov=oov, share_encoder=True, **options)
            for oov, options in KINDS.items()}
    tokenizers = {"full": tokenizer} | {oov: p.tokenizer for oov, p in made.items()}
    labels = [i % 2 for i in range(len(TEXTS))]
    return {"full": full} | {oov: p.model for oov, p in made.items()}, {name: text_batches(TEXTS, t, 16, 12, labels) for name, t in tokenizers.items()}


def test_batches_hold_every_text_once(family):
    tokenizer = FAMILIES[family].tokenizer
    batches = text_batches(iter(TEXTS), tokenizer, 16, 12)
    assert [len(b["input_ids"]) for b in batches] == [16, 16, 16, 12] and "labels" not in batches[0]
    assert max(b["input_ids"].shape[1] for b in batches) == 12
    alone = [tokenizer(text, truncation=True, max_length=12).input_ids for text in TEXTS]
    assert [ids[mask.bool()].tolist() for b in batches for ids, mask in zip(b["input_ids"], b["attention_mask"], strict=True)] == alone


def test_bytes_are_those_of_the_file(family, tmp_path):
    "Tensors, remap and codes included, and a header that names them."
    for name, model in models_and_batches(family)[0].items():
        model.save_pretrained(tmp_path / name)
        file = tmp_path / name / "model.safetensors"
        assert bytes_on_disk(model) == file.stat().st_size
        assert sum(t.nbytes for t in load_file(file).values()) == sizes(model)["bytes"] < bytes_on_disk(model)


def test_shards_count_together(monkeypatch, tmp_path):
    model = shared("wordpiece", "classification")
    save = type(model).save_pretrained
    monkeypatch.setattr(type(model), "save_pretrained", lambda self, directory, **kwargs: save(self, directory, max_shard_size="20KB", **kwargs))
    monkeypatch.setattr("vocab_pruning.evaluate.benchmark.TemporaryDirectory", lambda: contextlib.nullcontext(str(tmp_path)))
    in_shards = bytes_on_disk(model)
    written = [*tmp_path.glob("*.safetensors")]
    assert len(written) > 1 and in_shards == sum(file.stat().st_size for file in written)
    assert sum(t.nbytes for file in written for t in load_file(file).values()) == sizes(model)["bytes"] < in_shards


@pytest.mark.parametrize("rounds, warm_up", [(1, 0), (4, 1), (7, 3)])
def test_every_round_calls_each_once_and_another_first(rounds, warm_up):
    called, ticks = [], itertools.count()
    calls = {name: lambda number, name=name: called.append((number, name)) for name in "abc"}
    seconds = in_turn(calls, rounds, warm_up, clock=lambda: next(ticks) ** 2)
    by_round = {number: [name for n, name in called if n == number] for number, _ in called}
    assert [*by_round] == [*range(-warm_up, rounds)] and all(sorted(names) == [*"abc"] for names in by_round.values())
    firsts = [names[0] for names in by_round.values()]
    assert all(a != b for a, b in zip(firsts, firsts[1:], strict=False))
    timed = [(number, name) for number, name in called if number >= 0]
    began = {call: 2 * rank + 3 * warm_up for rank, call in enumerate(timed)}  # readings before: one a call that warms up, two a timed one
    assert {name: taken.tolist() for name, taken in seconds.items()} == {
        name: [2 * began[number, name] + 1 for number in range(rounds)] for name in "abc"}


def test_ratios_are_taken_within_a_round():
    base = np.array([1.0, 10, 2, 5, 3, 8, 4])
    table = beside_first({"full": base, "half": base / 2, "odd": base * [1, 2, 1, 1, 3, 0.5, 1]})
    assert table.ratio.tolist() == [1, 0.5, 1] and table.ms.tolist() == [4000, 2000, 4000]
    assert (table.loc["half", ["low", "high"]] == 0.5).all() and table.loc["odd", ["low", "high"]].tolist() == [0.5, 3]


def test_the_interval_holds_the_median_as_often_as_it_says():
    draw = np.random.default_rng(0)
    held = [table.low["b"] <= 1.2 <= table.high["b"] for table in (beside_first({"a": np.ones(9), "b": 1.2 + draw.standard_cauchy(9)}) for _ in range(400))]
    assert np.mean(held) > 0.93


def test_without_a_batch_nothing_is_timed(family):
    with pytest.raises(ValueError, match="^there is no batch for 'full'; give at least one"):
        latency({"full": shared(family)}, [])
    with pytest.raises(ValueError, match="^batch_size=0: give a whole number"):
        text_batches(TEXTS, FAMILIES[family].tokenizer, batch_size=0)


@pytest.mark.parametrize("rounds", [1, 5])
def test_too_few_rounds_have_no_interval(rounds):
    with pytest.raises(ValueError, match=f"{rounds} rounds are too few"):
        beside_first({"full": np.ones(rounds)})


def test_every_kind_is_measured_and_left_as_it_was(family):
    models, batches = models_and_batches(family)
    models["full"].train()
    before = {name: (state(model), model.training) for name, model in models.items()}
    for measured in (latency(models, batches, 6, 1), step_time(models, batches, 6, 0)):
        assert measured.index.tolist() == [*models] and measured.columns.tolist() == ["ms", "ratio", "low", "high"]
        assert (measured.ms > 0).all() and ((measured.low <= measured.ratio) & (measured.ratio <= measured.high)).all()
    for name, model in models.items():
        kept, training = before[name]
        assert all(torch.equal(kept[key], tensor) for key, tensor in state(model).items()) and model.training == training
        assert all(p.grad is None for p in model.parameters())
    models["full"].eval()


def test_batches_come_round(monkeypatch):
    "Round i runs batch i, of each model its own, without gradients."
    models, batches = models_and_batches("wordpiece")
    models, seen = {name: models[name] for name in ("full", "resegment")}, []
    for model in models.values():
        forward = model.forward
        monkeypatch.setattr(model, "forward", lambda *args, forward=forward, **inputs: (seen.append((inputs["input_ids"], torch.is_grad_enabled())),
                                                                                         forward(*args, **inputs))[1])
    latency(models, batches, 6, 0)
    assert len(seen) == 12 and not any(grad for _, grad in seen)
    for number in range(6):
        ran = [ids for ids, _ in seen[2 * number : 2 * number + 2]]
        ours = [batches[name][number % 4]["input_ids"] for name in (["full", "resegment"] if number % 2 == 0 else ["resegment", "full"])]
        assert all(torch.equal(a, b) for a, b in zip(ran, ours, strict=True))


def test_a_step_trains_what_is_not_frozen(monkeypatch):
    import vocab_pruning.evaluate.benchmark as benchmark

    models, batches = models_and_batches("bpe")
    trained, real = {}, benchmark._step
    monkeypatch.setattr(benchmark, "_step", lambda model, given: (trained.setdefault(len(trained), model), real(model, given))[1])
    for part in models["full"].base_model.parameters():
        part.requires_grad_(False)
    step_time({"full": models["full"], "unk": models["unk"]}, batches, 6, 0)
    for original, copied in zip((models["full"], models["unk"]), trained.values(), strict=True):
        moved = {name for name, p in copied.named_parameters() if not torch.equal(p, dict(original.named_parameters())[name])}
        assert moved and moved <= {name for name, p in original.named_parameters() if p.requires_grad}
    for part in models["full"].base_model.parameters():
        part.requires_grad_(True)


def test_memory_is_that_of_a_fresh_process(monkeypatch):
    "It reads the model and the batch from a directory, and what it says is what comes back; one that fails says why."
    import vocab_pruning.evaluate.benchmark as benchmark

    models, batches = models_and_batches("wordpiece")
    programs, real = [], benchmark.subprocess.run
    monkeypatch.setattr(benchmark.subprocess, "run", lambda program, **how: programs.append(program) or real(program, **how))
    found = peak_memory(models["cluster"], batches["cluster"][0], "cpu")
    assert found.keys() == {"memory_bytes", "before_bytes"} and 0 < found["before_bytes"] <= found["memory_bytes"]
    (program,) = programs
    assert program[0] == sys.executable and program[-1] == "cpu" and not Path(program[-2]).exists(), "the directory goes with the process"


def test_a_process_is_measured_before_and_after_the_model(monkeypatch, tmp_path, capsys):
    "Every tensor is read, and the batch runs, between the two readings."
    import vocab_pruning.evaluate.benchmark as benchmark

    models, batches = models_and_batches("wordpiece")
    models["cluster"].save_pretrained(tmp_path)
    save_file(batches["cluster"][0], tmp_path / "batch.tensors")
    events, real = [], benchmark.read_model

    def read(*args):
        model = real(*args)
        model.register_forward_hook(lambda *_: events.append("forward"))
        events.append("read")
        return model

    monkeypatch.setattr(benchmark, "read_model", read)
    monkeypatch.setattr(benchmark, "process_peak", lambda: events.append("peak") or len(events))
    benchmark._measure_peak(str(tmp_path), "cpu")
    assert events == ["peak", "read", "forward", "peak"]
    assert json.loads(capsys.readouterr().out) == dict(before_bytes=1, memory_bytes=4)


def test_a_measurement_that_fails_says_why(tmp_path, monkeypatch):
    import vocab_pruning.evaluate.benchmark as benchmark

    model, batch = shared("wordpiece"), dict(input_ids=torch.full((1, 3), 10_000))
    model.save_pretrained(tmp_path)
    save_file(batch, tmp_path / "batch.tensors")
    with pytest.raises(IndexError, match="index out of range"):
        benchmark._measure_peak(str(tmp_path), "cpu")
    failed = SimpleNamespace(returncode=1, stderr="x" * 600 + "IndexError: index out of range in self")
    monkeypatch.setattr(benchmark.subprocess, "run", lambda *args, **how: failed)
    with pytest.raises(RuntimeError, match="the measured process failed: x+IndexError: index out of range"):
        peak_memory(model, batch, "cpu")


def test_table3_has_a_line_for_each_model(monkeypatch):
    models, batches = models_and_batches("unigram")
    asked = []
    monkeypatch.setattr("vocab_pruning.evaluate.benchmark.peak_memory", lambda model, batch: (asked.append(batch), dict(memory_bytes=2, before_bytes=1))[1])
    table = table3(models, batches, rounds=6, warm_up=0)
    assert table.model.tolist() == [*models] and table.latency_ratio[0] == 1 and (table.memory_bytes == 2).all()
    assert all(asked[i] is batches[name][0] for i, name in enumerate(models))
    for line in table.to_dict("records"):
        counted = sizes(models[line["model"]])
        assert all(line[name] == counted[name] for name in ("rows", "params", "embedding_params"))
        assert line["bytes"] == bytes_on_disk(models[line["model"]])
    assert "memory_bytes" not in table3(models, batches, rounds=6, warm_up=0, memory=False)


# Programs in benchmarks/


def test_a_search_that_fails_leaves_the_answers_before_it(tmp_path, monkeypatch):
    import find_ratio

    def search(task: str, **options):
        if task == "stsb":
            raise ValueError("no ratio passes")
        return SimpleNamespace(ratio=0.5, curve=pd.DataFrame(dict(ratio=[0.5])))

    monkeypatch.setattr(find_ratio, "find_ratio", search)
    monkeypatch.setattr(sys, "argv", ["find_ratio.py", "cola", "stsb", "--json", str(tmp_path / "found.json")])
    with pytest.raises(ValueError, match="no ratio passes"):
        find_ratio.main()
    assert json.loads((tmp_path / "found.json").read_text())["cola"] == dict(ratio=0.5, curve=[dict(ratio=0.5)])


def test_steps_are_timed_of_the_first_remap_that_is_asked_for(monkeypatch):
    import table3 as program

    models, batches = models_and_batches("wordpiece")
    made = {name: models[name] for name in ("full", "pq")}
    monkeypatch.setitem(program.BASES, "minilm", lambda options: (made, batches))
    monkeypatch.setattr(program, "table3", lambda *args, **options: table3(*args, memory=False, **options))
    monkeypatch.setattr(program, "resolve_data", lambda: ("sample", "sample"))
    table = program.measure("minilm", SimpleNamespace(oovs=["pq"], rounds=6, steps=6, seed=0, clock="wall"))
    assert table.step_ms.notna().all() and "cola from sample" in table.settings[0]
