"""Training by others' means: two processes, the Trainer's losses, adapters, pickles, other libraries' layers."""

import copy
import io
import os
import pickle

import pytest
import torch
import torch.multiprocessing as mp
import torch.nn.functional as F
import transformers
from conftest import same, state
from torch import nn

from vocab_pruning import load, prune
from vocab_pruning.models.embedding import FLOOR, PrunedEmbedding, PrunedHead
from vocab_pruning.models.lowrank import compact, split_model
from vocab_pruning.models.plain import rebuild_plain
from vocab_pruning.remaps.kinds import REMAPS
from vocab_pruning.testing.families import FAMILIES, tiny_model

TEXTS = ["the cat sat on the mat", "a dog ran away", "the committee postponed it"]
CLASSIFIER, MASKED, CAUSAL, BOTH = (
    f"AutoModelFor{what}" for what in ("SequenceClassification", "MaskedLM", "CausalLM", "Seq2SeqLM")
)
SOME = {"cluster": dict(n_clusters=3), "dbscan": dict(n_clusters=3), "sparse": dict(m=2), "pq": dict(n_bytes=4, graded=True)}
LM = [
    *((name, MASKED) for name in ("BERT", "ModernBERT", "DistilBERT")),
    *((name, CAUSAL) for name in ("GPT-2", "Gemma 3", "XLNet")),
    ("T5", BOTH),
    ("BART", BOTH),
]


def pruned(name: str = "BERT", auto: str = CLASSIFIER, oov: str = "nearest", ratio: float = 0.5):
    "A tiny pruned model of the family `name`."
    return prune(*tiny_model(name, auto), TEXTS, ratio, "vocab", oov=oov, **SOME.get(oov, {}))


def ids_of(p, kept: bool, n: int = 6) -> torch.Tensor:
    "`n` ids that are kept and ordinary, or pruned: int64 (1, n)."
    found = (p.remap.kept if kept else ~p.remap.kept).nonzero().flatten()
    return found[found > 10][:n][None]


# Two processes


def parallel_models() -> dict:
    "A model of each remap, a rewritten tokenizer, split layers, each kind of head, rows in several places: by name."
    models = {oov: pruned(oov=oov).model for oov in REMAPS}
    models |= {
        f"{name}, {auto}": pruned(name, auto).model
        for name, auto in (("BERT", MASKED), ("T5", BOTH), ("BART", BOTH), ("Gemma 3", CAUSAL))
    }
    models["losparse"] = split_model(pruned(oov="pq").model, 0.3)
    models["losparse, compact"] = compact(split_model(pruned().model, 0.3))
    return models


def examples_of(model) -> list[dict[str, torch.Tensor]]:
    "Two batches, one for each process, of ids from everywhere."
    ids = torch.arange(5, 25).view(2, 1, 10) * (len(model.get_input_embeddings().weight) // 30)
    labels = ids if model.get_output_embeddings() is not None else torch.tensor([[0], [2]])
    return [dict(input_ids=i, labels=label) for i, label in zip(ids, labels, strict=True)]


def step(model, *batches: dict):
    "One step of gradient descent along the mean of the losses of `batches`."
    for batch in batches:
        (model(**batch).loss / len(batches)).backward()
    torch.optim.SGD(model.parameters(), 0.1).step()


class InOrder(transformers.Trainer):
    "A Trainer that takes its examples in their order."

    def _get_train_sampler(self, *args, **kwargs):
        return torch.utils.data.SequentialSampler(self.train_dataset)


def arguments(directory: str, **options) -> transformers.TrainingArguments:
    "Arguments of a Trainer on the CPU that writes nothing and reports each step's loss as it is."
    quiet = dict(use_cpu=True, report_to=[], save_strategy="no", logging_steps=1, disable_tqdm=True)
    return transformers.TrainingArguments(
        directory, **quiet, logging_nan_inf_filter=False, remove_unused_columns=False, **options
    )


def train_by_trainer(model, directory: str, **options) -> list[float]:
    "The losses of four steps of a Trainer on a masked-LM `model`; in the first batch all labels are pruned."
    rows = model.get_input_embeddings()
    kept = rows.is_kept(torch.arange(len(rows.index)))
    ids = torch.stack(
        [
            torch.cat([some] * 6)[:6]
            for some in [(~kept).nonzero()[20:26, 0]] * 2 + [kept.nonzero()[i : i + 6, 0] for i in range(6)]
        ]
    )
    data = [dict(input_ids=row, labels=row) for row in ids]
    trainer = InOrder(
        model, arguments(directory, learning_rate=0.1, lr_scheduler_type="constant", **options), train_dataset=data
    )
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def work(rank: int, directory: str, models: dict, masked):
    "One of two processes: a step of a copy of each model, and a Trainer of `masked`; the results go into `directory`."
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": "0",
    }
    torch.distributed.init_process_group("gloo", f"file://{directory}/meet", rank=rank, world_size=2)
    found = {}
    for name, model in models.items():
        model = copy.deepcopy(model)  # whose numbers are shared
        step(nn.parallel.DistributedDataParallel(model), examples_of(model)[rank])
        found[name] = state(model)
    masked = copy.deepcopy(masked)
    losses = train_by_trainer(
        masked, f"{directory}/run", per_device_train_batch_size=1, max_steps=4, ddp_backend="gloo"
    )
    found["Trainer"] = state(masked)
    torch.save((found, losses), f"{directory}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    "What two processes made of `parallel_models`, and the models after one step here, on both examples."
    directory, models = tmp_path_factory.mktemp("two"), parallel_models()
    mp.spawn(work, (str(directory), models, pruned(auto=MASKED).model), nprocs=2)
    for model in models.values():
        step(model, *examples_of(model))
    return *(torch.load(directory / f"{rank}.pt") for rank in (0, 1)), {
        name: state(model) for name, model in models.items()
    }


def test_data_parallel_of_every_remap(two):
    "Both processes hold the same weights: those of one that saw both examples, up to the order of addition."
    (first, _), (second, _), here = two
    before = {name: state(model) for name, model in parallel_models().items()}
    for name, wanted in here.items():
        assert same(first[name], second[name]) == [], name
        assert same(before[name], first[name]) != [], name
        for key, tensor in wanted.items():
            torch.testing.assert_close(first[name][key], tensor, rtol=1e-4, atol=1e-5, msg=f"{name}: {key}")


def test_a_trainer_in_two_processes(two):
    "Equal weights; a batch of pruned labels alone costs nothing."
    (first, losses), (second, _), _ = two
    assert same(first["Trainer"], second["Trainer"]) == []
    assert len(losses) == 4 and losses[0] == 0 and 0 < losses[1] < 100


def test_every_tensor_can_be_broadcast():
    "gloo and NCCL know these types and no other integers."
    known = {
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.int32,
        torch.int64,
        torch.uint8,
        torch.int8,
        torch.bool,
    }
    for name, model in parallel_models().items():
        assert {tensor.dtype for tensor in (*model.parameters(), *model.buffers())} <= known, name
    assert all(pruned(oov=oov).model.get_input_embeddings().index.dtype == torch.int32 for oov, spec in REMAPS.items()
               if not spec.rewrites_tokenizer)


# Losses


def gradients(model) -> dict[str, torch.Tensor]:
    "The gradients of all parameters that have one."
    return {name: part.grad.clone() for name, part in model.named_parameters() if part.grad is not None}


@pytest.mark.parametrize("counted", [False, True], ids=["mean", "counted"])
@pytest.mark.parametrize("named", [True, False], ids=["output", "tuple"])
@pytest.mark.parametrize(("name", "auto"), LM)
def test_a_batch_without_a_kept_label(name, auto, named, counted):
    "Its loss is 0, and so are its gradients, which are there."
    p = pruned(name, auto)
    gone = ids_of(p, kept=False)
    more = dict(num_items_in_batch=torch.tensor(0)) if counted and name in ("ModernBERT", "GPT-2", "Gemma 3") else {}
    loss = p.model(input_ids=gone, labels=gone, return_dict=named, **more)[0]
    loss.backward()
    assert loss.item() == 0 and p.model.get_input_embeddings().weight.grad is not None
    assert gradients(p.model) and not any(grad.any() for grad in gradients(p.model).values())


@pytest.mark.parametrize(("name", "auto"), LM)
def test_a_batch_with_one_kept_label(name, auto):
    "Its loss is that label's, wherever it stands; a causal model never reads the first."
    p = pruned(name, auto)
    gone, kept = ids_of(p, kept=False), ids_of(p, kept=True)
    for at in (0, 3):
        labels = gone.clone()
        labels[0, at] = kept[0, at]
        out = p.model(input_ids=gone, labels=labels)
        shifted = name in ("GPT-2", "Gemma 3")
        wanted = (
            -out.logits[0, at - shifted].float().log_softmax(-1)[labels[0, at]]
            if at or not shifted
            else torch.tensor(0.0)
        )
        torch.testing.assert_close(out.loss.detach(), wanted.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("name", "auto"), [("BERT", MASKED), ("GPT-2", CAUSAL)])
def test_a_real_nan_stays(name, auto):
    "Broken weights are not hidden by a batch without labels."
    p = pruned(name, auto)
    gone = ids_of(p, kept=False)
    next(part for part in p.model.modules() if isinstance(part, nn.LayerNorm)).weight.data[0] = torch.nan
    assert p.model(input_ids=gone, labels=gone).loss.isnan()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_losses_outside_the_model_are_finite(dtype):
    "Cross-entropy, label smoothing and KL over V columns; their gradients are those of the same loss over K columns."
    p = pruned(auto=MASKED)
    head, ids = p.model.get_output_embeddings(), torch.cat([ids_of(p, kept=False), ids_of(p, kept=True)], 1)
    head = copy.deepcopy(head).to(dtype)
    hidden = (
        torch.randn(1, ids.shape[1], head.in_features, generator=torch.Generator().manual_seed(0))
        .to(dtype)
        .requires_grad_()
    )
    teacher = torch.randn(1, ids.shape[1], head.n_ids, generator=torch.Generator().manual_seed(1))
    logits = head(hidden)
    assert logits.isfinite().all() and (logits.softmax(-1)[..., ~p.remap.kept] == 0).all()
    logits = (
        logits if dtype == torch.float64 else logits.float()
    )  # as losses are taken; sums over V columns do not fit into half precision
    few, labels = head.kept_columns(logits, ids)
    target = teacher.to(logits.dtype).softmax(-1)
    losses = {
        "cross-entropy": (
            F.cross_entropy(logits[0], ids[0], reduction="sum"),
            F.cross_entropy(few[0], labels[0], reduction="sum"),
        ),
        "KL": (
            F.kl_div(logits.log_softmax(-1), target, reduction="sum"),
            F.kl_div(few.log_softmax(-1), target[..., p.keep], reduction="sum"),
        ),
        "smoothing": (F.cross_entropy(logits[0], ids[0], label_smoothing=0.1, reduction="sum"), None),
    }
    for name, (ours, narrow) in losses.items():
        assert ours.isfinite(), name
        grad = torch.autograd.grad(ours, hidden, retain_graph=True)[0]
        assert grad.isfinite().all(), name
        if narrow is not None and dtype in (torch.float32, torch.float64):
            torch.testing.assert_close(
                grad, torch.autograd.grad(narrow, hidden, retain_graph=True)[0], rtol=1e-3, atol=1e-4, msg=name
            )


def test_a_pruned_token_has_one_logit():
    "The same in every mode and place; kept columns are what the product gives."
    p = pruned(auto=MASKED)
    ids = ids_of(p, kept=True)
    with torch.no_grad():
        still = p.model(input_ids=ids).logits
    moving = p.model(input_ids=ids).logits
    assert torch.equal(still, moving.detach()) and (still[..., ~p.remap.kept] == FLOOR).all()
    assert p.remap.kept[still.argmax(-1)].all()


def test_columns_of_kept_tokens():
    p = pruned(auto=MASKED)
    head, ids = (
        p.model.get_output_embeddings(),
        torch.cat([ids_of(p, kept=True), ids_of(p, kept=False), torch.tensor([[-100]])], 1),
    )
    with torch.no_grad():
        logits = p.model(input_ids=ids.clamp(min=0)).logits
    few, labels = head.kept_columns(logits, ids)
    assert few.shape[-1] == len(p.keep) and torch.equal(few, logits[..., p.keep])
    assert torch.equal(p.keep[labels[0, :6]], ids[0, :6]) and (labels[0, 6:] == -100).all()


def test_label_smoothing_by_a_trainer(tmp_path):
    "Finite, and it learns: the loss less the constant that pruned columns add falls."
    p = pruned(auto=MASKED)
    losses = train_by_trainer(
        p.model, str(tmp_path), per_device_train_batch_size=8, max_steps=12, label_smoothing_factor=0.1
    )
    assert all(torch.tensor(losses).isfinite()) and losses[-1] < losses[0] - 0.5
    assert all(part.isfinite().all() for part in p.model.parameters())


def test_a_loss_of_ones_own_by_a_trainer(tmp_path):
    "`compute_loss_func` on kept columns alone has no constant in it."
    p = pruned(auto=MASKED)
    head = p.model.get_output_embeddings()

    def loss(outputs, labels, num_items_in_batch=None):
        few, kept = head.kept_columns(outputs.logits, labels)
        return F.cross_entropy(few.flatten(0, 1), kept.flatten(), label_smoothing=0.1)

    ids = torch.cat([ids_of(p, kept=True), ids_of(p, kept=False)], 1)[0]
    data = [dict(input_ids=ids, labels=ids)] * 8
    trainer = transformers.Trainer(
        p.model, arguments(str(tmp_path), max_steps=2), compute_loss_func=loss, train_dataset=data
    )
    trainer.train()
    assert all(0 < entry["loss"] < 50 for entry in trainer.state.log_history if "loss" in entry)


def test_rows_that_fill_up_leave_a_smoothed_loss_finite():
    "A plain head's spare rows have the same floor."
    model, _ = tiny_model("BERT", MASKED)
    plain = rebuild_plain(model, torch.arange(50).numpy(), 64)
    ids = torch.arange(5, 15)[None]
    logits = plain(input_ids=ids).logits
    loss = F.cross_entropy(logits[0], ids[0], label_smoothing=0.1)
    loss.backward()
    assert loss.isfinite() and int(logits.argmax(-1).max()) < 50
    assert all(part.grad.isfinite().all() for part in plain.parameters() if part.grad is not None)


# Adapters


@pytest.fixture(scope="module")
def peft():
    "The library of adapters; one of this project's development requirements, so it is there."
    import peft

    return peft


def run(model, ids: torch.Tensor) -> torch.Tensor:
    "The logits for `ids`, in evaluation mode."
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits


def nudge(model, part: str = "lora_"):
    "Give every parameter whose name holds `part` some numbers, so that the adapter does something."
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.named_parameters():
        if part in name:
            tensor.data += 0.3 * torch.randn(tensor.shape, generator=generator)


@pytest.mark.parametrize("kind", ["LoraConfig", "LoHaConfig", "LoKrConfig", "IA3Config", "VeraConfig"])
@pytest.mark.parametrize(
    ("auto", "target"), [(CLASSIFIER, "word_embeddings"), (MASKED, "word_embeddings"), (MASKED, "decoder")]
)
def test_an_adapter_around_rows_is_refused(peft, auto, target, kind):
    "In one line that says what to do, when it is made. Kinds without an adapter for embeddings refuse by themselves."
    p = pruned(auto=auto)
    options = dict(feedforward_modules=[]) if kind == "IA3Config" else {}
    with pytest.raises((TypeError, ValueError)) as caught:
        peft.get_peft_model(p.model, getattr(peft, kind)(target_modules=[target], **options))
    own = "target the encoder's linears" in str(caught.value)
    assert own if kind == "LoraConfig" else own or "supported" in str(caught.value) or "compatible" in str(caught.value)
    assert not own or "\n" not in str(caught.value)


def test_a_model_is_as_it_was_after_a_refusal(peft):
    p = pruned()
    before = run(p.model, ids_of(p, kept=False))
    with pytest.raises(TypeError, match="modules_to_save"):
        peft.get_peft_model(p.model, peft.LoraConfig(target_modules=["word_embeddings"]))
    assert torch.equal(run(p.model, ids_of(p, kept=False)), before)


@pytest.mark.parametrize("target", [["query", "value"], "all-linear"], ids=str)
@pytest.mark.parametrize("auto", [CLASSIFIER, MASKED])
def test_adapters_on_linears(peft, auto, target):
    "They train, do what they do on the full model with the same rows, and are merged without a difference."
    p = pruned(auto=auto)
    ids = torch.cat([ids_of(p, kept=False), ids_of(p, kept=True)], 1)
    before = run(p.model, ids)
    adapted = peft.get_peft_model(copy.deepcopy(p.model), peft.LoraConfig(r=4, target_modules=target))
    torch.testing.assert_close(run(adapted, ids), before, rtol=1e-5, atol=1e-5)
    nudge(adapted)
    wanted = run(adapted, ids)
    assert not torch.allclose(wanted, before, rtol=1e-3, atol=1e-3)
    adapted.train()(input_ids=ids, labels=ids if auto == MASKED else torch.tensor([1])).loss.backward()
    assert all(grad.isfinite().all() for grad in gradients(adapted).values()) and any(
        "lora_B" in name for name in gradients(adapted)
    )
    merged = adapted.merge_and_unload()
    torch.testing.assert_close(run(merged, ids), wanted, rtol=1e-4, atol=1e-4)
    assert type(merged) is type(p.model) and isinstance(merged.get_input_embeddings(), PrunedEmbedding)


@pytest.mark.parametrize("verify", [True, False])
def test_a_model_with_an_adapter_in_it_is_not_saved(peft, verify, tmp_path):
    "Its weights have names of the adapter's, under which `load` would not find them and draw others."
    p = pruned()
    adapted = peft.get_peft_model(p.model, peft.LoraConfig(target_modules=["query", "value"]))
    with pytest.raises(ValueError, match="query holds an adapter; save the adapter on its own .*, or merge it first"):
        p.save_pretrained(tmp_path / "small", verify=verify)
    assert not (tmp_path / "small").exists()
    p.model = adapted.merge_and_unload()
    p.save_pretrained(tmp_path / "small", verify=verify)
    assert not same(load(tmp_path / "small").model.state_dict(), p.model.state_dict())


def test_labels_of_an_adapted_model(peft):
    "Pruned labels do not count, with an adapter neither; a batch of them alone costs nothing."
    p = pruned(auto=MASKED)
    adapted = peft.get_peft_model(
        copy.deepcopy(p.model), peft.LoraConfig(target_modules=["query"], modules_to_save=["word_embeddings"])
    )
    gone, kept = ids_of(p, kept=False), ids_of(p, kept=True)
    both = torch.cat([gone, kept], 1)
    with torch.no_grad():
        assert torch.equal(adapted.eval()(input_ids=both, labels=both).loss, p.model(input_ids=both, labels=both).loss)
    loss = adapted(input_ids=gone, labels=gone).loss
    loss.backward()
    assert loss.item() == 0 and gradients(adapted)


def test_rows_trained_whole(peft):
    "`modules_to_save` trains a copy of the rows, which is the embedding after merging."
    p = pruned()
    ids = torch.cat([ids_of(p, kept=False), ids_of(p, kept=True)], 1)
    adapted = peft.get_peft_model(
        copy.deepcopy(p.model), peft.LoraConfig(target_modules=["query"], modules_to_save=["word_embeddings"])
    )
    nudge(adapted, "modules_to_save.default.weight")
    wanted = run(adapted, ids)
    merged = adapted.merge_and_unload()
    rows = merged.get_input_embeddings()
    assert isinstance(rows, PrunedEmbedding) and not torch.equal(rows.weight, p.model.get_input_embeddings().weight)
    assert torch.equal(rows.index, p.model.get_input_embeddings().index)
    torch.testing.assert_close(run(merged, ids), wanted, rtol=1e-5, atol=1e-5)


def test_a_plain_model_takes_any_adapter(peft):
    "Its embedding is one like any other."
    p = pruned(oov="resegment")
    ids = torch.arange(len(p.keep))[None, :40]
    adapted = peft.get_peft_model(p.model, peft.LoraConfig(r=4, target_modules=["word_embeddings"]))
    nudge(adapted)
    wanted = run(adapted, ids)
    torch.testing.assert_close(run(adapted.merge_and_unload(), ids), wanted, rtol=1e-4, atol=1e-4)


# Other libraries' layers


def test_dynamic_quantization_leaves_rows_and_head_alone():
    "It exchanges plain linears only, so kept tokens are still in their columns."
    p = pruned(auto=MASKED)
    kinds = {
        nn.Linear: torch.ao.quantization.default_dynamic_qconfig,
        nn.Embedding: torch.ao.quantization.float_qparams_weight_only_qconfig,
    }
    with pytest.warns(DeprecationWarning):
        small = torch.ao.quantization.quantize_dynamic(p.model, kinds)
    assert isinstance(small.get_output_embeddings(), PrunedHead) and isinstance(
        small.get_input_embeddings(), PrunedEmbedding
    )
    ids = torch.cat([ids_of(p, kept=True), ids_of(p, kept=False)], 1)
    full, ours = run(p.model, ids), run(small, ids)
    assert ours.shape == full.shape and (ours[..., ~p.remap.kept] == FLOOR).all()
    cosine = F.cosine_similarity(ours[..., p.keep], full[..., p.keep], dim=-1)
    assert (cosine > 0.9).all()  # eight bits in every layer of a random model


def test_a_head_that_was_exchanged_is_refused():
    "By its columns' number alone nobody could tell."
    p = pruned(auto=MASKED)
    p.model.set_output_embeddings(nn.Linear(16, len(p.keep)))
    with pytest.raises(TypeError, match="replaced by a Linear.* leave the head out"):
        p.model(input_ids=ids_of(p, kept=True))


# Pickles and processes


def check_same(model, again, ids: torch.Tensor):
    "`again` is a model of its own with the same class, parts, weights and outputs."
    assert type(again) is type(model) and type(again.get_input_embeddings()) is type(model.get_input_embeddings())
    assert (
        same(state(model), state(again)) == []
        and again.get_input_embeddings().padding_idx == model.get_input_embeddings().padding_idx
    )
    assert not {part.data_ptr() for part in model.parameters()} & {part.data_ptr() for part in again.parameters()}
    decoder = dict(decoder_input_ids=ids) if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        torch.testing.assert_close(
            again(input_ids=ids, **decoder)[0], model(input_ids=ids, **decoder)[0], rtol=1e-5, atol=1e-6
        )


def round_trips(model) -> list:
    "What comes back of a pickle, a copy and a file of torch."
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return [pickle.loads(pickle.dumps(model)), copy.deepcopy(model), torch.load(file, weights_only=False)]


@pytest.mark.parametrize("oov", ["nearest", "sparse", "pq", "int8", "resegment"])
@pytest.mark.parametrize("name", FAMILIES)
def test_pickles_of_each_family(name, oov, tmp_path):
    "Made here or loaded; a head's labels are still looked after."
    p = pruned(name, dict(LM).get(name, CLASSIFIER), oov, 0.3)
    ids = torch.arange(5, 20)[None]
    p.save_pretrained(tmp_path / "model", verify=False)
    for model in (p.model, load(tmp_path / "model").model):
        for again in round_trips(model):
            check_same(model, again, ids)
            if oov != "resegment" and model.get_output_embeddings() is not None:
                gone = ids_of(p, kept=False)
                assert float(again(input_ids=gone, labels=gone).loss.detach()) == 0
            if oov != "resegment":
                with pytest.raises(ValueError, match="would break its remap"):
                    again.resize_token_embeddings(7)


def test_a_pruned_model_as_a_whole_is_pickled():
    "With its tokenizer, its original and what is known of it."
    p = pruned("Gemma 3")
    again = pickle.loads(pickle.dumps(p))
    assert again.info == p.info and again.tokenizer.get_vocab() == p.tokenizer.get_vocab()
    assert again.verify(TEXTS) == p.verify(TEXTS)
