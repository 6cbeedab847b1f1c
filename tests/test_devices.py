"""On another device: each remap made, run, trained, saved and loaded there, by a tag on a machine that has only a CPU, and on CUDA where there is one."""

import copy

import numpy as np
import pytest
import torch
from conftest import assert_near
from transformers import PreTrainedModel

from vocab_pruning import PrunedModel, load, prune
from vocab_pruning.data.stats import token_stats
from vocab_pruning.evaluate.losparse import close_window, mask_rows, observe, zero_rows
from vocab_pruning.models.lowrank import compact, losparse_linears, split_model
from vocab_pruning.remaps.kinds import REMAPS
from vocab_pruning.scorers.attention import compute_attention_scores
from vocab_pruning.testing.devices import ELSEWHERE, another_device, fetched, moved
from vocab_pruning.testing.families import tiny_model

TEXTS = ["the cat sat on the mat", "a dog ran away", "the committee postponed it"]
CLASSIFIER, MASKED, CAUSAL = (f"AutoModelFor{what}" for what in ("SequenceClassification", "MaskedLM", "CausalLM"))
SOME = {"cluster": dict(n_clusters=3), "dbscan": dict(n_clusters=3), "sparse": dict(m=2), "pq": dict(n_bytes=4, graded=True)}
QUICK = ("sparse", "pq", "int4", "resegment")  # one of each form; CUDA tries all
KINDS = [pytest.param(oov, marks=[] if oov in QUICK else pytest.mark.slow) for oov in REMAPS]
CUDA = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")]


class Tag:
    "A tag in place of a device."

    device = ELSEWHERE

    def move(self, model):
        return moved(model)


class Cuda:
    "The first CUDA device."

    device = torch.device("cuda", 0)

    def move(self, model):
        return model.to(self.device)


@pytest.fixture(params=[Tag, pytest.param(Cuda, marks=CUDA)])
def place(request, monkeypatch):
    "A device that is not the CPU. What transformers does to save, which asks for each tensor's memory, is done from the CPU."
    if request.param is Cuda:
        yield Cuda()
        return
    save = PreTrainedModel.save_pretrained

    def save_from_the_cpu(model, *args, **options):
        fetched(model)
        save(model, *args, **options)
        moved(model)

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", save_from_the_cpu)
    with another_device():
        yield Tag()


def pruned(name: str = "BERT", auto: str = CLASSIFIER, oov: str = "nearest", move=lambda model: model) -> PrunedModel:
    "A tiny model pruned after `move`."
    model, tokenizer = tiny_model(name, auto)
    ratio = 0.1 if REMAPS[oov].rewrites_tokenizer else 0.5
    return prune(move(model), tokenizer, TEXTS, ratio, "vocab", oov=oov, **SOME.get(oov, {}))


def batch_of(p: PrunedModel, device="cpu") -> dict[str, torch.Tensor]:
    "Ids from everywhere, kept or pruned, with labels."
    ids = torch.linspace(5, p.model.config.vocab_size - 1, 16).long().view(2, 8)
    labels = torch.tensor([0, 2]) if p.model.get_output_embeddings() is None else ids
    return dict(input_ids=ids.to(device), labels=labels.to(device))


def here(tensors: dict) -> dict[str, torch.Tensor]:
    "The same on the CPU."
    return {name: tensor.detach().cpu() for name, tensor in tensors.items()}


def assert_close_to(found: dict, wanted: dict):
    "The same names, and numbers that only rounding tells apart."
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        scale = max([1, *tensor.abs().flatten().tolist()])
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-4 * scale, msg=name)


def step(model, batch: dict) -> dict[str, torch.Tensor]:
    "The loss of a step of gradient descent and the tensors after it, on the CPU."
    loss = model(**batch).loss
    loss.backward()
    torch.optim.SGD(model.parameters(), 0.1).step()
    return here(model.state_dict() | {"loss": loss})


@pytest.mark.parametrize(("name", "auto", "oov"), [
    *(pytest.param("BERT", CLASSIFIER, *oov.values, marks=oov.marks) for oov in KINDS),
    ("BERT", MASKED, "pq"), ("GPT-2", CAUSAL, "nearest"), ("T5", "AutoModelForSeq2SeqLM", "pq"),
    pytest.param("BERT", MASKED, "sparse", marks=pytest.mark.slow), pytest.param("ModernBERT", CLASSIFIER, "pq", marks=pytest.mark.slow),
])
def test_a_step_of_training(name, auto, oov, place):
    p = pruned(name, auto, oov)
    wanted = step(copy.deepcopy(p.model), batch_of(p))
    assert_close_to(step(place.move(copy.deepcopy(p.model)), batch_of(p, place.device)), wanted)


@pytest.mark.parametrize("oov", KINDS)
def test_pruned_saved_and_loaded(oov, place, tmp_path):
    "There as here: the same rows and table, the same outputs, and a directory that is verified and read."
    p, q = pruned(oov=oov), pruned(oov=oov, move=place.move)
    assert {tensor.device for tensor in (*q.model.parameters(), *q.model.buffers())} == {place.device}
    assert torch.equal(p.keep, q.keep)
    with torch.no_grad():
        wanted = p.model(**batch_of(p)).logits
        assert_near(q.model(**batch_of(q, place.device)).logits.cpu(), wanted, rel=1e-3)
    q.save_pretrained(tmp_path / "model")
    assert all(tensor.device == place.device for tensor in q.model.parameters())
    assert_close_to(here(load(tmp_path / "model").model.state_dict()), here(q.model.state_dict()))
    if q.remap is not None:
        assert q.remap.index.device.type == "cpu" and q.reads(int(q.keep[-1]))


def test_low_rank_layers(place, tmp_path):
    "Split there, a step, rows chosen, compact, saved and read."
    results = []
    for move, device in ((lambda model: model, "cpu"), (place.move, place.device)):
        p = pruned(oov="pq", move=move)
        p.model = split_model(p.model, 0.3)
        parts = losparse_linears(p.model).values()
        p.model(**batch_of(p, device)).loss.backward()
        observe(parts)
        close_window(parts, 1)
        mask_rows(parts, sum(part.s.numel() for part in parts) // 2)
        zero_rows(parts)
        compact(p.model)
        with torch.no_grad():
            results.append(p.model(**batch_of(p, device)).logits.cpu())
    assert_near(*results, rel=1e-3)
    q = PrunedModel(p.model, p.tokenizer, p.info)
    q.save_pretrained(tmp_path / "model")
    assert_close_to(here(load(tmp_path / "model").model.state_dict()), here(q.model.state_dict()))


@pytest.mark.parametrize("options", [{}, dict(by_value=True)], ids=str)
def test_attention_scores(options, place):
    model, tokenizer = tiny_model("BERT")
    stats = token_stats(TEXTS, tokenizer, model.get_input_embeddings().num_embeddings)
    asked = dict(tokenizer=tokenizer, texts=TEXTS, **options)
    wanted = compute_attention_scores(stats, model=copy.deepcopy(model), **asked)
    np.testing.assert_allclose(compute_attention_scores(stats, model=place.move(model), **asked), wanted, rtol=1e-4)


def test_the_tag_finds_what_was_left_behind():
    p = pruned(oov="pq")
    rows = moved(p.model).get_input_embeddings()
    with another_device():
        p.model(**batch_of(p, ELSEWHERE))
        with pytest.raises(RuntimeError, match="is on cpu:0, one of .* is on the CPU"):
            p.model(**batch_of(p))
        rows.index = rows.index.cpu()
        with pytest.raises(RuntimeError, match="is on cpu:0, one of .* is on the CPU"):
            p.model(**batch_of(p, ELSEWHERE))
