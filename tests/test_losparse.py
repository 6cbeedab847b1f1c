"""LoSparse: both forms of the layer, the choice of rows beside a slow computation, budgets at full size, a run that is cut off, and bad input."""

import copy
import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import FAMILIES, TEXTS, assert_near, build, draw_ids, outputs, run_notebook, same, shared, state
from safetensors import safe_open
from transformers import (
    AutoModel,
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2Model,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from vocab_pruning import PrunedModel, load
from vocab_pruning.core import minilm_directory
from vocab_pruning.data.tasks import load_task
from vocab_pruning.evaluate.finetune import finetune, make_recipe
from vocab_pruning.evaluate.losparse import LoSparseCallback, add_losparse, combine, entries_kept, losparse_settings, most_important, vocabulary_ratio
from vocab_pruning.models.anatomy import sizes
from vocab_pruning.models.lowrank import compact, encoder_linears, install_losparse, losparse_linears, rank_of, split_model
from vocab_pruning.runs.record import row_of_notebook, subset
from vocab_pruning.runs.spec import METHODS, RunSpec

needs_minilm = pytest.mark.skipif(minilm_directory() is None, reason="needs the extra `offline` (MiniLM weights)")


# Relative to the largest output: another factorization of every weight is another order of float32 sums, which each of four layers
# passes on. Ten times what a weight is allowed; a row or a rank too few changes outputs by whole percents.
THROUGH_LAYERS = 1e-4


class Examples(torch.utils.data.Dataset):
    "24 random inputs of 8 tokens with their labels."

    def __init__(self, rows: int, n: int = 24):
        self.ids = torch.randint(5, rows, (n, 8), generator=torch.Generator().manual_seed(0))
        self.labels = self.ids.sum(1) % 3

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> dict:
        return dict(input_ids=self.ids[i], labels=self.labels[i])


def train(model, out: Path, callbacks, steps: int = 20, resume: str | None = None, rows: int | None = None, **options):
    "Train a tiny classifier for `steps` with batches of 4."
    quiet = dict(save_strategy="no", logging_strategy="no", report_to="none", disable_tqdm=True)
    options = quiet | dict(max_steps=steps, per_device_train_batch_size=4, learning_rate=1e-2, seed=3, use_cpu=True) | options
    arguments = TrainingArguments(output_dir=str(out), **options)
    Trainer(model, arguments, train_dataset=Examples(rows or model.config.vocab_size), callbacks=callbacks).train(resume_from_checkpoint=resume)


def tiny_settings(family: str = "wordpiece", encoder_left: float = 0.5):
    "A tiny classifier and settings that leave `encoder_left` of its linears."
    model = build(family)
    params, weights = sizes(model)["params"], sum(part.weight.numel() for part in encoder_linears(model).values())
    return model, losparse_settings(model, (1 - encoder_left) * weights / params)


# The layer


@pytest.mark.parametrize("task", ["bare", "classification", "masked"])
def test_a_split_model_is_the_model(family, task):
    model = shared(family, task)
    before, inputs = state(model), dict(input_ids=draw_ids(torch.arange(5, model.config.vocab_size), 0))
    split = split_model(model, 0.3)
    assert not same(before, state(model)) and encoder_linears(model).keys() == losparse_linears(split).keys()
    full, got = outputs(model, inputs), outputs(split, inputs)
    for name, part in losparse_linears(split).items():
        assert_near(part.weight, encoder_linears(model)[name].weight)
    for name, value in full.items():
        assert_near(got[name], value, THROUGH_LAYERS)


def test_low_rank_part_is_the_best_of_its_rank():
    linear = next(iter(encoder_linears(shared("bpe")).values()))
    part = next(iter(losparse_linears(split_model(shared("bpe"), 0.4)).values()))
    values = torch.linalg.svdvals(linear.weight.detach())
    rank = rank_of(0.4, *linear.weight.shape)
    assert part.v.shape[0] == rank == math.ceil(0.4 * linear.weight.numel() / sum(linear.weight.shape))
    assert float(part.s.detach().norm()) == pytest.approx(float(values[rank:].norm()), rel=1e-5)


# Schedule, average and threshold, each the slow way


def test_schedule_is_the_cubic():
    for step in range(0, 120):
        share = 1.0 if step <= 10 else 0.0 if step >= 80 else (1 - (step - 10) / 70) ** 3
        assert entries_kept(step, 10, 80, 1000, 137) == 137 + math.floor((1000 - 137) * share + 1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_one_threshold_for_rows_of_all_layers(seed):
    generator = np.random.default_rng(seed)
    importance, widths, budget = generator.integers(0, 6, 60).astype(np.float32), generator.choice([16, 24], 60), int(generator.integers(16, 900))
    kept, spent = set(), 0
    for row in sorted(range(60), key=lambda i: (-importance[i], i)):
        spent += widths[row]
        if spent > budget:
            break
        kept.add(row)
    assert set(most_important(torch.tensor(importance), torch.tensor(widths), budget).nonzero().flatten().tolist()) == kept


class Spy(TrainerCallback):
    "Writes down |w * gradient| of every entry at every step, before the callback under test sees it, and every mask after."

    def __init__(self):
        self.seen, self.masks = [], []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.seen.append([(part.s * part.s.grad).abs().detach().double().numpy().copy() for part in losparse_linears(model).values()])

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.masks.append([part.mask.numpy().copy() for part in losparse_linears(model).values()])
        assert all(not part.s[~part.mask].any() for part in losparse_linears(model).values())


@pytest.mark.parametrize("family", ["wordpiece", "bpe"])
def test_a_training_prunes_what_a_slow_computation_prunes(family, tmp_path):
    model, settings = tiny_settings(family)
    split, spy = split_model(model, settings.rho), Spy()
    train(split, tmp_path, [spy, LoSparseCallback(settings, beta=0.7, window=3, warmup=0.2, final=0.25)], steps=20)
    widths = [part.shape[1] for part in spy.seen[0]]
    average, window = [np.zeros_like(part) for part in spy.seen[0]], [np.zeros_like(part) for part in spy.seen[0]]
    alive, total = [np.ones(len(part), bool) for part in spy.seen[0]], sum(part.size for part in spy.seen[0])
    for step, (seen, masks) in enumerate(zip(spy.seen, spy.masks, strict=True), 1):
        window = [w + part for w, part in zip(window, seen, strict=True)]
        if step % 3 == 0:
            average, window = [0.7 * a + 0.3 * w / 3 for a, w in zip(average, window, strict=True)], [np.zeros_like(w) for w in window]
        if 4 < step <= 15 and (step % 3 == 0 or step == 15):
            left = settings.budget + int((total - settings.budget) * (1 - (step - 4) / 11) ** 3)
            rows = sorted((-average[i][j].mean(), i, j) for i in range(len(widths)) for j in range(len(average[i])) if alive[i][j])
            for part in alive:
                part[:] = False
            for _, i, j in rows:
                if left < widths[i]:
                    break
                left, alive[i][j] = left - widths[i], True
        assert all(np.array_equal(a, b) for a, b in zip(alive, masks, strict=True)), step
    assert settings.budget - max(widths) < sum(part.s.numel() for part in losparse_linears(split).values()) <= settings.budget


# Budgets at full size


def compacted_params(model, settings, seed: int = 0) -> int:
    "Parameters of `model` (whose weights are never made) compacted with rows of random importance."
    shapes = [part.weight.shape for part in encoder_linears(model).values()]
    widths = torch.cat([torch.full((h,), w) for h, w in shapes])
    importance = torch.rand(len(widths), generator=torch.Generator().manual_seed(seed))
    kept = most_important(importance, widths, settings.budget).split([h for h, _ in shapes])
    with torch.device("meta"):
        install_losparse(small := copy.deepcopy(model), settings.rho, [int(part.sum()) for part in kept])
    return sizes(small)["params"]


@pytest.mark.parametrize("ratio", [0.05, 0.1, 0.15, 0.2016, 0.3, 0.5])
def test_modernbert_at_full_size_meets_the_ratio(ratio):
    with torch.device("meta"):
        model = ModernBertForSequenceClassification(ModernBertConfig())
    full = sizes(model)["params"]
    assert full == 149_606_402
    settings = losparse_settings(model, ratio)
    params = compacted_params(model, settings)
    assert abs(params - (1 - ratio) * full) < 0.001 * full
    assert 0 <= settings.params - params < 1152, "within one row"


@needs_minilm
def test_minilm_on_disk_meets_the_ratio(tmp_path, ratio=0.3):
    model = AutoModel.from_pretrained(minilm_directory())
    full, settings = sizes(model)["params"], losparse_settings(model, ratio)
    assert sum(part.weight.numel() for part in encoder_linears(model).values()) / full == pytest.approx(0.467, abs=1e-3)
    split = split_model(model, settings.rho)
    parts = [*losparse_linears(split).values()]
    importance = torch.cat([part.s.detach().norm(dim=1) for part in parts])
    kept = most_important(importance, torch.cat([torch.full((len(part.s),), part.in_features) for part in parts]), settings.budget)
    for part, mask in zip(parts, kept.split([len(part.s) for part in parts]), strict=True):
        part.mask.copy_(mask)
    PrunedModel(compact(split)).save_pretrained(tmp_path / "small", verify=False)
    with safe_open(tmp_path / "small" / "model.safetensors", "pt") as file:
        tensors = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        params = sum(math.prod(t.get_shape()) for t in tensors.values() if t.get_dtype() == "F32")
    assert abs(params - (1 - ratio) * full) < 0.001 * full
    assert params == sizes(split)["params"]


@needs_minilm
def test_minilm_at_every_ratio():
    with torch.device("meta"):
        model = BertModel(BertConfig.from_pretrained(minilm_directory()))
    for percent in range(5, 31, 5):
        settings = losparse_settings(model, percent / 100)
        assert 0 <= settings.params - compacted_params(model, settings) < 1536


# Compact, saved, loaded


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    "A tiny classifier after training, in training form."
    model, settings = tiny_settings("bpe")
    split = split_model(model, settings.rho)
    train(split, tmp_path_factory.mktemp("trained"), [LoSparseCallback(settings, window=2, compact_after=False)])
    return split.eval()


def test_compact_gives_what_was_trained(trained):
    inputs = dict(input_ids=draw_ids(torch.arange(5, trained.config.vocab_size), 1))
    small = compact(copy.deepcopy(trained))
    assert sizes(small)["params"] < sizes(trained)["params"] and sizes(small)["bytes"] < sizes(trained)["bytes"]
    for name, value in outputs(trained, inputs).items():
        assert_near(outputs(small, inputs)[name], value, THROUGH_LAYERS)
    again = compact(copy.deepcopy(small))
    assert not same(state(again), state(small))


def test_a_layer_may_lose_all_its_rows(trained):
    bare = copy.deepcopy(trained)
    part = next(iter(losparse_linears(bare).values()))
    with torch.no_grad():
        part.mask[:] = False
        part.s.zero_()
    inputs = dict(input_ids=draw_ids(torch.arange(5, trained.config.vocab_size), 1))
    before = outputs(bare, inputs)
    assert compact(bare).config.losparse["rows"][0] == 0
    for name, value in outputs(bare, inputs).items():
        assert_near(value, before[name], THROUGH_LAYERS)


def test_both_forms_go_to_disk_and_back(trained, tmp_path):
    for name, model in {"training": trained, "compact": compact(copy.deepcopy(trained))}.items():
        PrunedModel(model).save_pretrained(tmp_path / name)
        again = load(tmp_path / name)
        assert not same(state(again.model), state(model))
        assert again.keep.tolist() == list(range(model.config.vocab_size))
    bare = load(tmp_path / "compact", model_class=AutoModel)
    assert losparse_linears(bare.model).keys() == losparse_linears(trained).keys()


@pytest.mark.parametrize("oov", ["nearest", "int8", "resegment"])
def test_combined_models_go_to_disk_and_back(oov, tmp_path):
    family = FAMILIES["wordpiece"]
    model = build("wordpiece", hidden_size=32, intermediate_size=64)
    before = state(model)
    both, settings = combine(model, family.tokenizer, TEXTS, 0.25, 0.4, oov=oov)
    assert not same(before, state(model))
    train(both.model, tmp_path / "t", [LoSparseCallback(settings)], steps=6, rows=len(both.keep))
    assert 0 <= settings.params - sizes(both.model)["params"] < 64
    assert sizes(both.model)["params"] == pytest.approx(0.75 * sizes(model)["params"], abs=64)
    both.save_pretrained(tmp_path / "both")
    again = load(tmp_path / "both")
    assert not same(state(again.model), state(both.model))
    assert again.info["after"] == sizes(both.model)
    card = (tmp_path / "both" / "README.md").read_text()
    assert "25.00% of all parameters" in card and "It needs the package `vocab_pruning`" in card


@pytest.mark.parametrize("oov", ["nearest", "resegment"])
def test_a_combined_model_encodes_sentences(oov, tmp_path):
    "Its layers are this library's, also where its embedding is a plain one."
    pytest.importorskip("sentence_transformers")
    from vocab_pruning.evaluate.frozen import sentence_vectors
    from vocab_pruning.models.sentences import sentence_transformer

    both, settings = combine(build("wordpiece", hidden_size=32, intermediate_size=64), FAMILIES["wordpiece"].tokenizer, TEXTS, 0.25, 0.4, oov=oov)
    train(both.model, tmp_path, [LoSparseCallback(settings)], steps=6, rows=len(both.keep))
    expected = sentence_vectors(both.model, both.tokenizer, TEXTS, max_length=40)
    made = sentence_transformer(both, max_seq_length=40).encode(TEXTS, convert_to_tensor=True, device="cpu")
    assert_near(made.cpu(), expected, THROUGH_LAYERS)


def test_a_compacted_model_has_an_onnx_graph(tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from vocab_pruning.models.onnx import export_onnx

    both, settings = combine(build("wordpiece", hidden_size=32, intermediate_size=64), FAMILIES["wordpiece"].tokenizer, TEXTS, 0.25, 0.4, oov="nearest")
    train(both.model, tmp_path / "t", [LoSparseCallback(settings)], steps=6, rows=len(both.keep))
    made = export_onnx(both, tmp_path / "graph", TEXTS[:4])
    inputs = dict(both.tokenizer(TEXTS[:4], padding=True, return_tensors="pt"))
    assert made["max_difference"] < THROUGH_LAYERS * float(outputs(both.model, inputs)["logits"].abs().max())


def test_the_vocabulary_bears_its_share():
    assert vocabulary_ratio(0.2, 0.5) == pytest.approx(0.15)
    assert vocabulary_ratio(0.4, 0.2586, 0.5) == pytest.approx(0.1293)
    with pytest.raises(ValueError, match="vocab_share=0: give a number"):
        vocabulary_ratio(0.2, 0.5, 0)
    with pytest.raises(ValueError, match="the vocabulary can give up nothing"):
        combine(shared("wordpiece"), FAMILIES["wordpiece"].tokenizer, TEXTS, 0.2, oov="pq")
    with pytest.raises(ValueError, match="leaves nothing of ratio=0.2"):
        combine(shared("wordpiece"), FAMILIES["wordpiece"].tokenizer, TEXTS, 0.2, 1, oov="unk")
    with pytest.raises(ValueError, match="ratio=0.97: the encoder's linear layers can give up at most"):
        combine(shared("wordpiece"), FAMILIES["wordpiece"].tokenizer, TEXTS, 0.97, oov="unk")
    for target in (dict(base="vocab"), dict(rows=200), dict(coverage=0.9), dict(min_count=2)):
        with pytest.raises(ValueError, match=f"{next(iter(target))}=.*: a combination removes a share of all parameters"):
            combine(shared("wordpiece"), FAMILIES["wordpiece"].tokenizer, TEXTS, 0.2, oov="unk", **target)


# Cut off and resumed


class Kill(TrainerCallback):
    "Ends the process, as far as the Trainer can tell, right after a step."

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def test_a_run_that_was_killed_prunes_the_same_rows(tmp_path):
    model, settings = tiny_settings()
    asked = dict(save_strategy="steps", save_steps=5)
    whole = split_model(model, settings.rho)
    train(whole, tmp_path / "whole", [LoSparseCallback(settings, window=4, warmup=0.2)], **asked)
    with pytest.raises(KeyboardInterrupt):
        train(split_model(model, settings.rho), tmp_path / "killed", [LoSparseCallback(settings, window=4, warmup=0.2), Kill(13)], **asked)
    checkpoint = tmp_path / "killed" / "checkpoint-10"
    saved = load(checkpoint).model
    parts = losparse_linears(saved).values()
    assert any(part.window.any() for part in parts) and any(part.importance.any() for part in parts), "cut off within a window"
    assert not all(part.mask.all() for part in parts), "and after the first rows went"
    resumed = split_model(model, settings.rho)
    train(resumed, tmp_path / "killed", [LoSparseCallback(settings, window=4, warmup=0.2)], resume=str(checkpoint), **asked)
    assert resumed.config.losparse == whole.config.losparse
    assert not same(state(whole), state(resumed))


# Bad input


class Poison(TrainerCallback):
    "Makes the head NaN after a step, and so the next loss."

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step == 7:
            with torch.no_grad():
                model.classifier.weight.fill_(torch.nan)


def test_a_loss_that_is_not_finite_stops_training(tmp_path):
    model, settings = tiny_settings()
    split = split_model(model, settings.rho)
    with pytest.raises(ValueError, match="not finite at step 8"):
        train(split, tmp_path, [LoSparseCallback(settings), Poison()], save_strategy="steps", save_steps=3)
    assert [path.name for path in sorted(tmp_path.glob("checkpoint-*"))] == ["checkpoint-3", "checkpoint-6"]
    assert all(value.isfinite().all() for value in load(tmp_path / "checkpoint-6").model.parameters())
    assert all(part.s.isfinite().all() for part in losparse_linears(split).values())


def test_a_step_that_overflows_in_float16_is_left_out():
    "As the loss scaler does; where it never ends, the loss is not finite."
    model, settings = tiny_settings()
    callback, split, args = LoSparseCallback(settings), split_model(model, settings.rho), SimpleNamespace(fp16=True, learning_rate=1)
    state = SimpleNamespace(max_steps=20, global_step=0)
    callback.on_train_begin(args, state, None, model=split)
    for value in (1, math.inf):
        for part in callback.parts:
            part.s.grad = torch.full_like(part.s, value)
        callback.on_pre_optimizer_step(args, state, None)
    assert all(torch.equal(part.window, part.s.detach().abs().mean(1)) for part in callback.parts)
    with pytest.raises(ValueError, match="not finite at step 1"):
        for _ in range(30):
            callback.on_pre_optimizer_step(args, state, None)


def test_an_earlier_model_brought_back_is_refused(tmp_path):
    "The best one may be from before the last rows went."
    model, settings = tiny_settings()
    best = dict(load_best_model_at_end=True, eval_strategy="steps", save_strategy="steps", eval_steps=4, save_steps=4, metric_for_best_model="first")
    split = split_model(model, settings.rho)
    arguments = dict(max_steps=20, report_to="none", disable_tqdm=True, use_cpu=True, per_device_train_batch_size=4) | best
    steps = iter(range(10))
    trainer = Trainer(split, TrainingArguments(str(tmp_path), **arguments), train_dataset=Examples(177), eval_dataset=Examples(177, 4),
                      callbacks=[LoSparseCallback(settings)], compute_metrics=lambda _: {"first": -next(steps)})
    with pytest.raises(ValueError, match="brought back at the end has .* load_best_model_at_end=False"):
        trainer.train()


def test_a_frozen_layer_stays_frozen_and_is_refused(tmp_path):
    model, settings = tiny_settings()
    model.base_model.encoder.layer[0].requires_grad_(False)
    split = split_model(model, settings.rho)
    assert [name for name, p in split.named_parameters() if not p.requires_grad] == [name for name, _ in split.named_parameters() if "layer.0." in name]
    with pytest.raises(ValueError, match="is frozen"):
        train(split, tmp_path, [LoSparseCallback(settings)])


def test_a_loss_that_is_not_finite_is_an_error_without_losparse_too(tmp_path):
    data, recipe = subset(load_task("cola", "sample"), 40), make_recipe("cola", epochs=1, batch_size=4)
    with pytest.raises(ValueError, match="training loss is nan after 1 epochs; lower learning_rate"):
        finetune(build("wordpiece"), FAMILIES["wordpiece"].tokenizer, data, "cola", recipe, tmp_path, callbacks=[Poison()])


class Stop(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == 5


def test_training_that_ends_early_or_is_too_short_is_refused(tmp_path):
    model, settings = tiny_settings()
    with pytest.raises(ValueError, match="ended at step 5, before the last rows go at step 14"):
        train(split_model(model, settings.rho), tmp_path, [LoSparseCallback(settings), Stop()])
    with pytest.raises(ValueError, match="1 steps are too few"):
        train(split_model(model, settings.rho), tmp_path, [LoSparseCallback(settings)], steps=1)
    with pytest.raises(ValueError, match="no LoSparse layer in training form"):
        train(copy.deepcopy(model), tmp_path, [LoSparseCallback(settings)])


def test_ratios_that_cannot_be_had():
    model = shared("wordpiece")
    with pytest.raises(ValueError, match="ratio=0.95: the encoder.s linear layers can give up at most"):
        losparse_settings(model, 0.95)
    with pytest.raises(ValueError, match="ratio=1.5: give the fraction"):
        losparse_settings(model, 1.5)
    with pytest.raises(ValueError, match="nothing is left for LoSparse"):
        losparse_settings(model, 0)
    with pytest.raises(ValueError, match="low_rank=1: give a number"):
        losparse_settings(model, 0.2, low_rank=1)
    params = sizes(model)["params"]
    weights = sum(part.weight.numel() for part in encoder_linears(model).values())
    with pytest.raises(ValueError, match="less than one row"):
        losparse_settings(model, 0.6 * weights / params, low_rank=0.999)


def test_the_largest_ratio_is_the_one_named():
    model = shared("wordpiece")
    with pytest.raises(ValueError) as error:
        losparse_settings(model, 0.9)
    most = float(str(error.value).split("at most ")[1].split("%")[0]) / 100
    with pytest.raises(ValueError, match="at most"):
        losparse_settings(model, most + 1e-4)
    assert losparse_settings(model, most - 2e-3, low_rank=1e-6).budget >= 24


def test_models_without_linears_or_with_bad_weights():
    with pytest.raises(ValueError, match="GPT2Model has no nn.Linear in a list of layers .*Conv1D"):
        encoder_linears(GPT2Model(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=50)))
    split = split_model(shared("wordpiece"), 0.2)
    with pytest.raises(ValueError, match="LoSparseLinear"):
        split_model(split, 0.2)
    broken = build("wordpiece")
    with torch.no_grad():
        next(iter(encoder_linears(broken).values())).weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match="holds NaN"):
        split_model(broken, 0.2)
    for part in losparse_linears(split).values():
        part.mask[:] = False
    with pytest.raises(ValueError, match="no row of any S is left"):
        compact(split)


def test_adding_to_what_cannot_bear_it_changes_nothing():
    pruned = PrunedModel(build("wordpiece"), info={"after": {}})
    model = pruned.model
    with pytest.raises(ValueError, match="can give up at most"):
        add_losparse(pruned, 0.99)
    assert pruned.model is model and pruned.info == {"after": {}}


@pytest.mark.parametrize(("parameters", "message"), [
    (dict(method="lossy"), "unknown method 'lossy'; choose one of vocab, losparse, combine"),
    (dict(method="losparse", base="seen"), "base 'seen'"),
    (dict(method="losparse", vocabulary_tasks={"cola": None}), "keeps the whole vocabulary"),
    (dict(method="combine", vocab_share=0), "vocab_share=0: give a number"),
    (dict(method="losparse", losparse_options={"low_rank": 2}), "low_rank=2: give a number"),
    (dict(method="losparse", losparse_options={"warmup": 0.9}), "warmup=0.9"),
    (dict(method="losparse", losparse_options={"betas": 0.9}), "unexpected keyword argument 'betas'"),
])
def test_runs_that_cannot_be_made_are_refused(parameters, message):
    asked = dict(task="cola", ratio=0.2, base="params", scorer="tfidf", oov="unk")
    with pytest.raises((ValueError, TypeError), match=message):
        RunSpec.parse(**asked | parameters).check()


# Runs


def test_methods_name_rows():
    assert METHODS["vocab"].format(scorer="tfidf", oov="pq") == "tfidf+pq"


@pytest.mark.parametrize("method", ["losparse", "combine"])
def test_a_run(method, tiny_directory, tmp_path):
    quick = dict(data="sample", max_train_examples=64, epochs=1, batch_size=16, baseline=False, look_first=False)
    asked = quick | dict(task="cola", ratio=0.4, method=method, oov="nearest", model=tiny_directory, save_model=True)
    run_notebook("run.ipynb", tmp_path / "run.ipynb", **asked, out=str(tmp_path / "runs"))
    row = row_of_notebook(tmp_path / "run.ipynb")
    assert row["method"] == {"losparse": "losparse", "combine": "tfidf+nearest+losparse"}[method]
    assert 0 <= row["params_full"] - row["params"] - int(0.4 * row["params_full"]) < 64, "within one row of the widest linear"
    assert row["params_removed"] == 1 - row["params"] / row["params_full"]
    assert (row["rows"] < row["rows_full"]) == (method == "combine")
    saved = load(tmp_path / "runs" / row["run"] / "model")
    assert {name: row[name] for name in ("rows", "embedding_params", "params", "bytes")} == sizes(saved.model)
    pages = json.loads((tmp_path / "run.ipynb").read_text())["cells"]
    said = "".join("".join(o["text"]) for cell in pages for o in cell.get("outputs", []) if o.get("name") == "stderr")
    assert "Warning" not in said
