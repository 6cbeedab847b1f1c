"""A pruned model lives like any other: saved, loaded elsewhere, trained, copied, converted, put into pipelines."""

import copy
import itertools
import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import FAMILIES, TASKS, TEXTS, WORDS, batch, build, draw_ids, outputs, same, shared, state
from safetensors.torch import load_file, save_file
from tokenizers.processors import TemplateProcessing
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments, pipeline

from vocab_pruning import PrunedModel, load, prune
from vocab_pruning.core import CannotPrune, library_versions
from vocab_pruning.evaluate.drift import coverage_of, spending
from vocab_pruning.evaluate.preflight import preflight
from vocab_pruning.models.checkpoint import prune_checkpoint
from vocab_pruning.models.embedding import PrunedEmbedding, rebuild_model_with_vocab
from vocab_pruning.remaps.kinds import REMAPS
from vocab_pruning.remaps.resegmenting import parts_of_words
from vocab_pruning.remaps.table import Remap
from vocab_pruning.scorers.attention import attention_received
from vocab_pruning.testing.families import tiny_model

ROOT = Path(__file__).resolve().parent.parent
FRESH_PROCESS = """
import sys
from pathlib import Path
import torch
from safetensors.torch import load_file, save_file
from tokenizers.processors import TemplateProcessing
import vocab_pruning
for case in Path(sys.argv[1]).iterdir():
    try:
        model = vocab_pruning.load(case / "model").model
    except Exception as error:
        (case / "error.txt").write_text(repr(error))
        continue
    with torch.no_grad():
        out = model(**load_file(case / "inputs.safetensors"))
    save_file({name: value.contiguous() for name, value in out.items()}, case / "fresh.safetensors")
"""


def pruned(family: str, task: str = "classification", tie: bool = True, **options) -> PrunedModel:
    "The shared model of a kind, pruned by half of what can go."
    options = dict(ratio=0.6, base="vocab", oov="cluster", n_clusters=7) | options
    return prune(shared(family, task, tie), FAMILIES[family].tokenizer, TEXTS, **options)


def mixed(family: str, task: str = "classification") -> PrunedModel:
    "The shared model of a kind whose pruned ids read the mean of their own mapped row and that of [UNK]."
    model, tokenizer, remap = shared(family, task), FAMILIES[family].tokenizer, pruned(family, task).remap
    unk = remap.index[tokenizer.unk_token_id].expand_as(remap.index)
    mix = torch.where(remap.kept[:, None], torch.tensor([1.0, 0.0]), torch.tensor([0.5, 0.5]))
    return PrunedModel(rebuild_model_with_vocab(model, Remap(remap.keep, torch.cat([remap.index, unk], 1), mix)), tokenizer)


def examples(p: PrunedModel, n: int = 8) -> list[dict[str, torch.Tensor]]:
    "Training examples of any ids, the last one half padding; labels are classes, or the ids themselves for a masked-LM model."
    V, pad = p.model.config.vocab_size, p.model.config.pad_token_id
    rows = batch(draw_ids(torch.arange(V), 0, (n, 10)), pad, 5)
    labels = torch.arange(n) % 3 if p.model.get_output_embeddings() is None else rows["input_ids"]
    return [dict(zip([*rows, "labels"], row, strict=True)) for row in zip(*rows.values(), labels, strict=True)]


def arguments(directory, **options) -> TrainingArguments:
    "Training on the CPU, in silence."
    quiet = dict(report_to="none", use_cpu=True, disable_tqdm=True, save_strategy="no", logging_strategy="no")
    return TrainingArguments(str(directory), per_device_train_batch_size=4, learning_rate=1e-2, **quiet | options)


def trained(family: str, task: str, directory) -> PrunedModel:
    "A pruned model after one training step."
    p = pruned(family, task)
    before = state(p.model)
    Trainer(p.model, arguments(directory, max_steps=1), train_dataset=examples(p)).train()
    p.model.eval()
    assert "embed" in " ".join(same(before, p.model.state_dict()))
    return p


def any_ids(p: PrunedModel) -> dict[str, torch.Tensor]:
    "Inputs of any ids, kept or not."
    return batch(draw_ids(torch.arange(p.model.config.vocab_size), 3), p.model.config.pad_token_id, 4)


def assert_lossless(full, small, keep: torch.Tensor):
    "Bit-equal outputs for kept ids; test_first_law.py has the law of a masked-LM head's logits, a product of another shape."
    inputs = batch(draw_ids(keep, 0), small.config.pad_token_id, 3)
    differ = same(outputs(full, inputs), outputs(small, inputs))
    assert differ == [] or small.get_output_embeddings() is not None and differ == ["logits"]


# Save and load

MAKERS = {
    "pruned": lambda family, task, _: pruned(family, task),
    "untied": lambda family, task, _: pruned(family, task, tie=False),
    "synthetic rows": lambda family, task, _: pruned(family, task, representative="mean"),
    "mixtures": lambda family, task, _: mixed(family, task),
    "trained": trained,
}
CASES = [case for case in itertools.product(FAMILIES, TASKS, MAKERS) if case[1:] != ("bare", "trained")]


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    "Every case saved, then loaded and run by one new process: a directory each with inputs, outputs, and its outputs or error."
    root, scratch = tmp_path_factory.mktemp("fresh"), tmp_path_factory.mktemp("trainer")
    for case in CASES:
        family, task, how = case
        p, directory = MAKERS[how](family, task, scratch), root / "-".join(case)
        inputs = any_ids(p)
        p.save_pretrained(directory / "model", verify=False)  # what the new process reads is compared below
        with torch.no_grad():
            out = p.model(**inputs)
        save_file(inputs, directory / "inputs.safetensors")
        save_file({name: value.contiguous() for name, value in out.items()}, directory / "here.safetensors")
    run = subprocess.run([sys.executable, "-c", FRESH_PROCESS, str(root)], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    return root


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_a_fresh_process_gives_the_same_outputs(fresh, case):
    directory = fresh / "-".join(case)
    error = directory / "error.txt"
    assert not error.exists(), error.read_text()
    assert same(load_file(directory / "here.safetensors"), load_file(directory / "fresh.safetensors")) == []


def test_a_saved_directory_holds_data_only(tmp_path):
    pruned("unigram").save_pretrained(tmp_path / "model")
    files = [path for path in (tmp_path / "model").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".txt", ".md"}
    assert {"config.json", "model.safetensors", "tokenizer.json", "vocab_pruning.json"} <= {path.name for path in files}


def test_a_lossless_model_is_saved_without_the_full_one(tmp_path):
    p = prune(build("wordpiece"), FAMILIES["wordpiece"].tokenizer, TEXTS, min_count=1, oov="resegment")
    assert p.info["lossless"]
    p.original = None
    p.save_pretrained(tmp_path / "small")
    assert load(tmp_path / "small").verify(TEXTS)["compared"] == 0
    with pytest.raises(ValueError, match="^lossless=True compares with the full model, which is not in memory"):
        load(tmp_path / "small").verify(TEXTS, lossless=True)


@pytest.mark.parametrize("oov", ["nearest", "resegment"])
@pytest.mark.parametrize("name", ["BERT", "RoBERTa"])
def test_several_texts_for_each_answer(name, oov, tmp_path):
    model, tokenizer = tiny_model(name, "AutoModelForMultipleChoice")
    p = prune(model, tokenizer, TEXTS, 0.2, "vocab", oov=oov)
    p.save_pretrained(tmp_path / "small")
    assert p.verify(TEXTS[:4])["texts"] == 4 and not same(load(tmp_path / "small").model.state_dict(), p.model.state_dict())


@pytest.mark.parametrize("scores", [[0.9], "0.9"])
def test_scores_without_names_are_refused_and_forgotten(tmp_path, scores):
    p = prune(build("wordpiece"), FAMILIES["wordpiece"].tokenizer, TEXTS, 0.2, "vocab", oov="nearest")
    with pytest.raises(TypeError, match="^scores=.*: give a dict of metrics by name"):
        p.save_pretrained(tmp_path / "small", scores=scores)
    p.save_pretrained(tmp_path / "small", scores=dict(by_class=np.array([0.5, 0.6]), all=torch.tensor(0.5)))
    assert load(tmp_path / "small").info["scores"] == dict(by_class=[0.5, 0.6], all=0.5)


def test_companions_are_found_from_another_directory(tmp_path, monkeypatch):
    "A model that was loaded from a relative path is saved after the working directory has changed."
    prune(build("wordpiece"), FAMILIES["wordpiece"].tokenizer, TEXTS, 0.2, "vocab", oov="nearest").save_pretrained(tmp_path / "one")
    (tmp_path / "one" / "modules.json").write_text('[{"idx": 0, "name": "0", "path": "", "type": "a.Transformer"}]')
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    p = load("one")
    monkeypatch.chdir("elsewhere")
    p.save_pretrained(tmp_path / "two")
    assert (tmp_path / "two" / "modules.json").is_file()


@pytest.mark.parametrize("kind", ["WordWeights", "BoW", "SparseStaticEmbedding"])
def test_modules_that_know_tokens_by_id_need_the_ids(tmp_path, kind):
    "A rewritten tokenizer has others; a remap keeps them."
    build("wordpiece", "bare").save_pretrained(tmp_path / "full"), FAMILIES["wordpiece"].tokenizer.save_pretrained(tmp_path / "full")
    modules = [dict(idx=0, name="0", path="", type="a.Transformer"), dict(idx=1, name="1", path="1_Own", type=f"a.b.{kind}")]
    (tmp_path / "full" / "modules.json").write_text(json.dumps(modules))
    model, tokenizer = AutoModel.from_pretrained(tmp_path / "full"), AutoTokenizer.from_pretrained(tmp_path / "full")
    asked = dict(coverage=1.0, scorer="frequency")
    for make in (lambda oov: prune(model, tokenizer, TEXTS, oov=oov, **asked),
                 lambda oov: prune_checkpoint(tmp_path / "full", TEXTS, tmp_path / oov, oov=oov, **asked)):
        with pytest.raises(CannotPrune, match=f"^1_Own of full .a.b.{kind}. holds a number for each token id"):
            make("resegment")
        make("nearest")
    assert not (tmp_path / "resegment").exists()


def test_a_directory_named_like_a_library_is_none(tmp_path, monkeypatch):
    "A folder `datasets` beside the program is found like a package, and has no version."
    (tmp_path / "datasets").mkdir()
    known = metadata.version

    def version(name: str) -> str:
        if name == "datasets":
            raise metadata.PackageNotFoundError(name)
        return known(name)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("importlib.metadata.version", version)
    versions = library_versions()
    assert versions["torch"] == known("torch") and "datasets" not in versions


def test_a_second_save_and_load_changes_nothing(family, task, tmp_path):
    p = pruned(family, task)
    p.save_pretrained(tmp_path / "first")
    once = load(tmp_path / "first")
    once.save_pretrained(tmp_path / "second")
    twice = load(tmp_path / "second")
    assert same(state(p.model), state(once.model)) == [] and same(state(once.model), state(twice.model)) == []
    assert type(twice.model) is type(p.model) and twice.model.config.vocab_pruning == p.model.config.vocab_pruning
    assert torch.equal(twice.keep, p.keep) and twice.tokenizer(TEXTS)["input_ids"] == p.tokenizer(TEXTS)["input_ids"]
    assert {name: twice.info[name] for name in p.info} == p.info


def test_plain_transformers_loads_it_where_this_package_is_imported(family, task, tmp_path):
    "Weights that do not fit are no way around the remap. (What happens without the import is in test_ship.)"
    p = pruned(family, task)
    p.save_pretrained(tmp_path / "model")
    for options in ({}, dict(ignore_mismatched_sizes=True)):
        assert same(state(p.model), state(TASKS[task].from_pretrained(tmp_path / "model", **options))) == []


def test_a_classifier_from_a_pruned_encoder(family, tmp_path):
    p = pruned(family, "bare")
    p.save_pretrained(tmp_path / "model")
    q = load(tmp_path / "model", model_class=AutoModelForSequenceClassification, num_labels=3)
    inputs = any_ids(p)
    full, got = outputs(p.model, inputs), outputs(q.model, inputs)
    assert got["logits"].shape == (2, 3) and isinstance(q.model.get_input_embeddings(), PrunedEmbedding)
    assert [name for name in same(full, got) if name.startswith("layer")] == []


def test_loading_in_another_dtype(family, task, tmp_path):
    "Loaded in bfloat16 it keeps the law with the full model loaded in bfloat16."
    p, full = pruned(family, task), build(family, task)
    p.save_pretrained(tmp_path / "pruned")
    full.save_pretrained(tmp_path / "full")
    q = load(tmp_path / "pruned", dtype=torch.bfloat16).model
    full = TASKS[task].from_pretrained(tmp_path / "full", dtype=torch.bfloat16).eval()
    assert same(state(p.model.to(torch.bfloat16)), state(q)) == []
    assert_lossless(full, q, p.keep)


# Tokens without a row


def with_a_token_for_each_row(family: str):
    "The family's tokenizer, which knows as many tokens as the family's models have rows, and their number."
    tokenizer, rows = FAMILIES[family].make_tokenizer(), FAMILIES[family].config().vocab_size
    tokenizer.add_tokens([f"[spare {i}]" for i in range(rows - len(tokenizer))])
    return tokenizer, rows


def with_image_token(family: str, named: bool = False):
    "`with_a_token_for_each_row` and one token more; `named`: by a name of its own, as Gemma's image token."
    tokenizer, rows = with_a_token_for_each_row(family)
    if named:
        return type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, **tokenizer.special_tokens_map,
                               extra_special_tokens={"image_token": "<img>"}), rows
    tokenizer.add_special_tokens({"extra_special_tokens": ["<img>"]})
    return tokenizer, rows


@pytest.mark.parametrize("oov", REMAPS)
def test_a_token_without_a_row_that_no_text_uses(family, oov, tmp_path):
    "It is listed; remaps leave the tokenizer as it is, a rewritten one does not know it and has a row for each id."
    tokenizer, rows = with_image_token(family)
    p = prune(shared(family), tokenizer, TEXTS, 0.1, "vocab", oov=oov)
    assert p.info["without_row"] == {"<img>": rows}
    p.save_pretrained(tmp_path / "model")
    q = load(tmp_path / "model")
    assert q.info["without_row"] == {"<img>": rows}
    for t in (p.tokenizer, q.tokenizer):
        if oov == "resegment":
            assert max(t.get_vocab().values()) < len(p.keep)
            assert "<img>" not in t.get_vocab() and "<img>" not in t.all_special_tokens
        else:
            assert t.get_vocab() == tokenizer.get_vocab()
            assert t("<img>", add_special_tokens=False)["input_ids"] == [rows]


def test_a_named_token_without_a_row(family, tmp_path):
    "As Gemma 3 has one for images."
    tokenizer, rows = with_image_token(family, named=True)
    assert tokenizer.image_token_id == rows
    for oov in ("nearest", "resegment"):
        p = prune(shared(family), tokenizer, TEXTS, 0.1, "vocab", oov=oov)
        p.save_pretrained(tmp_path / oov)
        assert p.info["without_row"] == {"<img>": rows}
        assert getattr(load(tmp_path / oov).tokenizer, "image_token", None) == ("<img>" if oov == "nearest" else None)


def test_rewritten_without_it_a_tokenizer_is_that_of_one_that_never_knew_it(family, tmp_path):
    for name, make in {"with": with_image_token, "without": with_a_token_for_each_row}.items():
        p = prune(shared(family), make(family)[0], TEXTS, 0.1, "vocab", oov="resegment")
        p.tokenizer.save_pretrained(tmp_path / name)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "with" / file).read_bytes() == (tmp_path / "without" / file).read_bytes()


@pytest.mark.parametrize("oov", ["nearest", "resegment"])
def test_a_text_that_uses_a_token_without_a_row(family, oov):
    tokenizer, rows = with_image_token(family)
    model, used = shared(family), [*TEXTS, "ab <img>"]
    p = prune(model, tokenizer, TEXTS, 0.1, "vocab", oov=oov)
    for read in (lambda: prune(model, tokenizer, used, 0.1, "vocab", oov=oov),
                 lambda: coverage_of(PrunedModel(model, tokenizer), used),
                 lambda: preflight(model, tokenizer, TEXTS, used), lambda: parts_of_words(used, tokenizer, n_rows=rows),
                 lambda: attention_received(model, tokenizer, used, rows)):
        with pytest.raises(ValueError, match=f"emits id {rows} but the embedding has {rows} rows"):
            read()
    assert coverage_of(p, TEXTS)["kept"] > 0.3 and spending(model, tokenizer)["rows"] == rows
    assert preflight(model, tokenizer, TEXTS, TEXTS, [0.1], "vocab", oovs=[oov]).reason.isna().all()


@pytest.mark.parametrize("role", ["pad_token", "unk_token", "cls_token", "sep_token", "mask_token"])
def test_a_token_without_a_row_that_the_tokenizer_needs(role):
    tokenizer, model = FAMILIES["wordpiece"].make_tokenizer(), shared("wordpiece")
    tokenizer.add_special_tokens({role: "<late>"})
    for oov in ("nearest", "resegment"):
        with pytest.raises(ValueError, match="'<late>' has id 177 but .* 177 rows, and the tokenizer itself uses it"):
            prune(model, tokenizer, TEXTS, oov=oov)


def test_a_token_without_a_row_that_frames_every_text():
    tokenizer, model = FAMILIES["wordpiece"].make_tokenizer(), shared("wordpiece")
    tokenizer.add_special_tokens({"extra_special_tokens": ["<late>"]})
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing("<late> $A", special_tokens=[("<late>", 177)])
    with pytest.raises(ValueError, match="token '<late>' has id 177"):
        prune(model, tokenizer, TEXTS, oov="nearest")


def test_a_token_without_a_row_that_a_configuration_names():
    tokenizer, model = FAMILIES["wordpiece"].make_tokenizer(), build("wordpiece")
    tokenizer.add_special_tokens({"extra_special_tokens": ["<late>"]})
    model.config.image_token_id = 177
    with pytest.raises(ValueError, match="'<late>' has id 177 .* the configuration names it as image_token_id"):
        prune(model, tokenizer, TEXTS, oov="nearest")


# Copies and dtypes


@pytest.mark.parametrize("make", [pruned, mixed])
def test_bfloat16(family, task, make):
    "The law holds in bfloat16, too, and the table stays a table."
    p, full = make(family, task), build(family, task).to(torch.bfloat16)
    rows = p.model.to(torch.bfloat16).get_input_embeddings()
    assert rows.index.dtype == torch.int32 and rows.weight.dtype == torch.bfloat16
    assert_lossless(full, p.model, p.keep)


@pytest.mark.parametrize("oov", REMAPS)
def test_a_seed_set_before_holds_after(oov, tmp_path):
    "Pruning, saving and loading draw from generators of their own, so what the caller drew next stays the same."
    model, before = build("wordpiece", "masked"), (torch.get_rng_state(), np.random.get_state()[1].copy())
    prune(model, FAMILIES["wordpiece"].tokenizer, TEXTS, 0.4, base="vocab", oov=oov).save_pretrained(tmp_path / "p")
    load(tmp_path / "p")
    assert torch.equal(torch.get_rng_state(), before[0]) and (np.random.get_state()[1] == before[1]).all()


@pytest.mark.parametrize("make", [pruned, mixed])
def test_deepcopy(family, task, make):
    p = make(family, task)
    twin, inputs = copy.deepcopy(p.model), any_ids(p)
    before = outputs(p.model, inputs)
    assert same(before, outputs(twin, inputs)) == []
    with torch.no_grad():
        twin.get_input_embeddings().weight.add_(1)
        twin.get_input_embeddings().index.zero_()
    assert same(before, outputs(p.model, inputs)) == []
    with pytest.raises(ValueError, match="resize_token_embeddings"):
        twin.resize_token_embeddings(7)


# Labels and gradients


@pytest.mark.parametrize("how", ["here", "copied", "loaded"])
def test_pruned_labels_do_not_count(family, how, tmp_path):
    "The loss is that of the kept labels alone, by keyword or by position, and the caller's labels stay as they are."
    p = pruned(family, "masked")
    if how == "loaded":
        p.save_pretrained(tmp_path / "model")
    model = {"here": lambda: p.model, "copied": lambda: copy.deepcopy(p.model), "loaded": lambda: load(tmp_path / "model").model}[how]()
    inputs = any_ids(p)
    labels = inputs["input_ids"].clone()
    labels[0, 0] = -100
    kept = labels.where(torch.isin(labels, p.keep), -100)
    assert (kept != labels).any() and (kept >= 0).any()
    with torch.no_grad():
        given, expected = (model(**inputs, labels=some) for some in (labels, kept))
    logits = expected.logits[..., p.keep]
    by_hand = torch.nn.functional.cross_entropy(logits[kept >= 0], torch.searchsorted(p.keep, kept[kept >= 0]))
    assert torch.equal(given.loss, expected.loss)
    torch.testing.assert_close(given.loss, by_hand, rtol=1e-5, atol=0)  # float32, sums over V columns beside K
    assert torch.equal(labels, inputs["input_ids"].where(torch.arange(labels.numel()).view_as(labels) > 0, -100))


@pytest.mark.parametrize("loaded", [False, True], ids=["here", "loaded"])
@pytest.mark.parametrize("make", [pruned, mixed])
def test_gradients_reach_the_rows_read_and_never_the_padding_row(family, make, loaded, tmp_path):
    p = make(family)
    if loaded:
        p.save_pretrained(tmp_path / "model")
        p = load(tmp_path / "model")
    rows, pad, inputs = p.model.get_input_embeddings(), p.model.config.pad_token_id, any_ids(p)
    inputs["attention_mask"][:] = 1
    assert (inputs["input_ids"] == pad).any()
    p.model(**inputs, labels=torch.tensor([0, 1])).loss.backward()
    where, weight = rows.index[inputs["input_ids"]], p.remap.weight[inputs["input_ids"]]
    read = set(where[weight > 0].tolist()) - {int(rows.index[pad, 0])}
    assert set(rows.weight.grad.any(1).nonzero().flatten().tolist()) == read


def test_gradients_are_those_of_the_full_model(family):
    p, full = pruned(family), build(family)
    inputs = batch(draw_ids(p.keep, 0), p.model.config.pad_token_id, 3)
    for model in (p.model, full):
        model(**inputs, labels=torch.tensor([0, 1])).loss.backward()
    got, wanted = p.model.get_input_embeddings().weight.grad, full.get_input_embeddings().weight.grad[p.keep]
    close = 1e-5 * float(wanted.abs().max())  # float32's sums, relative to the largest
    torch.testing.assert_close(got, wanted, rtol=0, atol=close)


# The Trainer and pipelines


def test_best_model_of_a_trainer(family, tmp_path):
    "The first epoch is declared the best: the Trainer goes back to it, and its checkpoint loads as it lies."
    p = pruned(family)
    ranks = iter([2.0, 1.0])
    trainer = Trainer(
        p.model, train_dataset=examples(p), eval_dataset=examples(p, 4), compute_metrics=lambda _: {"rank": next(ranks)},
        args=arguments(tmp_path / "run", num_train_epochs=2, eval_strategy="epoch", save_strategy="epoch", load_best_model_at_end=True,
                       metric_for_best_model="rank", greater_is_better=True))
    trainer.train()
    first, last = (tmp_path / "run" / f"checkpoint-{step}" for step in (2, 4))
    assert Path(trainer.state.best_model_checkpoint) == first
    now = outputs(p.model.eval(), any_ids(p))
    assert same(now, outputs(load(first).model, any_ids(p))) == []
    assert same(now, outputs(load(last).model, any_ids(p))) != []
    trainer.save_model(str(tmp_path / "saved"))
    assert same(now, outputs(load(tmp_path / "saved").model, any_ids(p))) == []


@pytest.mark.parametrize("task", ["classification", "masked"])
def test_training_in_mixed_precision(family, task, tmp_path):
    "Autocast wraps the forward pass; labels that are pruned ids (as in `examples`) still do not count, else the loss would be beyond 1e30."
    p = pruned(family, task)
    loss = Trainer(p.model, arguments(tmp_path, max_steps=2, bf16=True), train_dataset=examples(p)).train().training_loss
    assert 0 < loss < 1e3 and p.model.get_input_embeddings().weight.dtype == torch.float32


def test_text_classification_pipeline(family):
    p = pruned(family)
    classify = pipeline("text-classification", model=p.model, tokenizer=p.tokenizer, device="cpu")
    results = classify(TEXTS[:8], top_k=None)
    with torch.no_grad():
        scores = [p.model(**p.tokenizer(text, return_tensors="pt")).logits.softmax(-1)[0] for text in TEXTS[:8]]
    got = [[entry["score"] for entry in sorted(result, key=lambda entry: entry["label"])] for result in results]
    np.testing.assert_allclose(got, torch.stack(scores), rtol=0, atol=1e-5)  # probabilities: float32, of scale 1


def test_fill_mask_pipeline_gives_kept_tokens(family):
    p = pruned(family, "masked")
    text = f"{WORDS[0]} {p.tokenizer.mask_token} {WORDS[1]}"
    results = pipeline("fill-mask", model=p.model, tokenizer=p.tokenizer, device="cpu")(text, top_k=len(p.keep))
    assert sorted(result["token"] for result in results) == p.keep.tolist()
    assert sum(result["score"] for result in results) == pytest.approx(1, rel=1e-4)  # some hundred float32 summands
