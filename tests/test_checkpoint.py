"""From files to files: the same tensors and tokenizers as in memory, for every family and remap, and no model class."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from conftest import Unread, assert_near
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from vocab_pruning import core, load, prune
from vocab_pruning.data.stats import token_stats
from vocab_pruning.data.tasks import documents, load_task
from vocab_pruning.models import bare, checkpoint
from vocab_pruning.models.anatomy import special_mask
from vocab_pruning.models.bare import read_bare
from vocab_pruning.models.checkpoint import COUNTS_FROM_PADDING, find_vocabulary, prune_checkpoint, read_checkpoint
from vocab_pruning.models.tensors import check_header
from vocab_pruning.models.tokenizer import changed
from vocab_pruning.remaps.kinds import REMAPS
from vocab_pruning.remaps.resegmenting import rows_for_lossless
from vocab_pruning.scorers.registry import SCORERS, compute_token_scores
from vocab_pruning.testing.families import FAMILIES, tiny_model

TEXTS = documents(load_task("cola", "sample")["train"])[:8]
BARE, CLASSIFIER, MASKED, CAUSAL, BOTH = (f"AutoModel{what}" for what in ("", "ForSequenceClassification", "ForMaskedLM", "ForCausalLM", "ForSeq2SeqLM"))
CLASSES = {
    BARE: [*FAMILIES],
    CLASSIFIER: [*FAMILIES],
    MASKED: ["BERT", "DistilBERT", "ELECTRA", "MPNet", "ModernBERT", "RoBERTa", "DeBERTa", "XLM-R", "ALBERT", "DeBERTa-v3"],
    CAUSAL: ["GPT-2", "Llama", "Qwen 3", "Gemma 3", "XLNet"],
    BOTH: ["BART", "T5"],
}
PAIRS = [(name, auto) for auto, names in CLASSES.items() for name in names]
KINDS = [name for name in REMAPS if name not in ("dbscan", "resegment")]
OPTIONS = {"pq": dict(n_bytes=4, graded=True), "cluster": dict(n_clusters=5, representative="mean"), "sparse": dict(m=2), "nearest": dict(only_seen=True)}


def saved(directory: Path, name: str, auto: str = CLASSIFIER, dtype=None):
    "A tiny model and its tokenizer, saved to `directory` and read again as its own class."
    model, tokenizer = tiny_model(name, auto)
    with torch.no_grad():
        for buffer_name, buffer in model.named_buffers():
            if buffer_name.endswith("final_logits_bias"):
                buffer.normal_()
    model.to(dtype).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    cls = getattr(transformers, type(model).__name__)
    return cls.from_pretrained(directory), transformers.AutoTokenizer.from_pretrained(directory)


def tensors(directory: Path) -> dict[str, torch.Tensor]:
    "All tensors of a directory by name."
    return {name: tensor for file in sorted(directory.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def differing(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> list[str]:
    "Names of the tensors that differ in dtype, shape or a bit."
    def bits(tensor):
        return tensor.dtype, tensor.shape, tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return [name for name in one.keys() | other.keys() if name not in one or name not in other or bits(one[name]) != bits(other[name])]


def config_of(directory: Path, file: str = "config.json") -> dict:
    "A configuration, without what the class of a model writes at random or anew."
    config = json.loads((directory / file).read_text())
    return {key: value for key, value in config.items() if key not in ("transformers_version", "dtype", "_from_model_config")}


def same_directory(ours: Path, theirs: Path):
    "Assert that two directories hold the same tensors, tokenizer, configuration, and facts."
    assert differing(tensors(ours), tensors(theirs)) == []
    tokenizers = [transformers.AutoTokenizer.from_pretrained(directory) for directory in (ours, theirs)]
    assert changed(*tokenizers) is None and type(tokenizers[0]) is type(tokenizers[1])
    assert config_of(ours) == config_of(theirs)
    if (theirs / "generation_config.json").is_file():
        assert config_of(ours, "generation_config.json") == config_of(theirs, "generation_config.json")
    about, known = (json.loads((directory / "vocab_pruning.json").read_text()) for directory in (ours, theirs))
    assert {key: value for key, value in about.items() if key != "left_out"} == known
    assert (ours / "README.md").read_text() == (theirs / "README.md").read_text()


def lossless_ratio(model, tokenizer) -> float:
    "The ratio of the rows that leaves what TEXTS need."
    special = special_mask(model, tokenizer)
    rows = rows_for_lossless(tokenizer, token_stats(TEXTS, tokenizer, len(special)), special=special, texts=TEXTS)
    return 1 - (rows - special.sum()) / (len(special) - special.sum())


# What a family decides (class of the tokenizer, names of tensors, place of the head) and what a kind decides (the table, what is
# added) meet in the head alone. So every family is pruned in each of its classes by the two kinds that differ most, in turn by one
# more, and by all of them where there is a head.
EVERY_KIND = [("BERT", MASKED), ("BART", BOTH), ("GPT-2", CAUSAL), ("Gemma 3", CAUSAL), ("XLM-R", CLASSIFIER)]
ALONE = [kind for kind in KINDS if kind != "int8"]


@pytest.mark.parametrize("name, auto", PAIRS)
def test_the_same_as_in_memory(name, auto, tmp_path):
    "Tensors, tokenizer, configuration, facts and card."
    model, tokenizer = saved(tmp_path / "full", name, auto)
    kinds = KINDS if (name, auto) in EVERY_KIND else ["int8", ALONE[PAIRS.index((name, auto)) % len(ALONE)]]
    asked = {kind: dict(ratio=0.4, base="vocab") | OPTIONS.get(kind, {}) for kind in kinds}
    asked |= {"resegment": dict(ratio=lossless_ratio(model, tokenizer), base="vocab")}
    if tokenizer.unk_token_id is None:
        asked.pop("unk", None)
        asked.get("nearest", {}).pop("only_seen", None)
    for kind, choices in asked.items():
        both_ways(model, tokenizer, tmp_path, kind, oov=kind, **choices)


def both_ways(model, tokenizer, home: Path, name: str, texts=TEXTS, **choices) -> dict:
    "Prune the model in memory, and its files in `home`/full; assert that both are the same; return `info`."
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prune(model, tokenizer, texts, **choices).save_pretrained(home / name, verify=False)
        info = prune_checkpoint(home / "full", texts, home / f"{name} of files", **choices)
    same_directory(home / f"{name} of files", home / name)
    assert info == json.loads((home / f"{name} of files" / "vocab_pruning.json").read_text())
    return info


def test_a_checkpoint_that_lacks_what_its_class_has(tmp_path):
    "An encoder saved without its pooler is pruned, verified and loaded; a tensor that was lost since is missed."
    model, tokenizer = saved(tmp_path / "full", "BERT", BARE)
    weights = {name: tensor for name, tensor in load_file(tmp_path / "full" / "model.safetensors").items() if "pooler" not in name}
    save_file(weights, tmp_path / "full" / "model.safetensors", {"format": "pt"})
    info = prune_checkpoint(tmp_path / "full", TEXTS, tmp_path / "pruned", ratio=0.2, oov="nearest", verify="forward")
    p = load(tmp_path / "pruned")
    assert info["tensors"] == len(weights) + len(["keep", "index"]) and p.model.pooler is not None
    fewer = load_file(tmp_path / "pruned" / "model.safetensors")
    fewer.pop("encoder.layer.0.output.dense.bias")
    save_file(fewer, tmp_path / "pruned" / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="lack 3 tensors, e.g. encoder.layer.0.output.dense.bias; save the model again"):
        load(tmp_path / "pruned")


@pytest.mark.parametrize("kind", ["nearest", "resegment"])
@pytest.mark.parametrize("name", ["BERT", "MPNet", "RoBERTa"])
def test_an_encoders_weights_under_the_name_of_a_masked_lm(name, kind, tmp_path):
    "As many sentence encoders are published: verified, and the head that the files lack has the embedding's ids."
    saved(tmp_path / "full", name, BARE)
    file = tmp_path / "full" / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"architectures": [config["architectures"][0].replace("Model", "ForMaskedLM")]}))
    prune_checkpoint(tmp_path / "full", TEXTS, tmp_path / "pruned", ratio=0.2, base="vocab", oov=kind, verify="forward")
    p = load(tmp_path / "pruned")
    head, embedding = p.model.get_output_embeddings(), p.model.get_input_embeddings()
    assert kind == "resegment" or torch.equal(head.keep, embedding.keep)
    assert p.model(**p.tokenizer(TEXTS[0], return_tensors="pt")).logits.isfinite().all()


@pytest.mark.parametrize("name", ["BERT", "RoBERTa", "ALBERT", "MPNet", "DeBERTa"])
def test_each_bias_of_an_untied_head_is_its_own(name, tmp_path):
    model, tokenizer = tiny_model(name, MASKED)
    model.config.tie_word_embeddings = False
    model = type(model)(model.config).eval()
    for parameter in model.parameters():
        parameter.data.normal_(std=0.3)
    model.save_pretrained(tmp_path / "full")
    tokenizer.save_pretrained(tmp_path / "full")
    model, tokenizer = held(tmp_path)
    both_ways(model, tokenizer, tmp_path, "pruned", ratio=0.2, base="vocab", oov="nearest")
    pruned, ids = load(tmp_path / "pruned of files"), tokenizer(TEXTS[0], return_tensors="pt")["input_ids"]
    kept = torch.tensor([[i for i in ids[0].tolist() if i in set(pruned.keep.tolist())]])
    assert_near(pruned.model(kept).logits[..., pruned.keep], model(kept).logits[..., pruned.keep])


def test_a_tokenizer_without_its_configuration(tmp_path):
    saved(tmp_path / "full", "BERT")
    (tmp_path / "full" / "tokenizer_config.json").unlink()
    prune_checkpoint(tmp_path / "full", TEXTS, tmp_path / "pruned", ratio=0.2, base="vocab", oov="nearest")
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "full")
    assert load(tmp_path / "pruned").tokenizer(TEXTS)["input_ids"] == again(TEXTS)["input_ids"]


@pytest.mark.parametrize("kind", ["pq", "resegment"])
def test_code_of_its_own(kind, tmp_path):
    "As `save_pretrained` writes it; what transformers loads anyway needs none; other classes are refused before a text is read."
    model, tokenizer = saved(tmp_path / "full", "BERT", CLASSIFIER)
    choices = dict(ratio=0.2, base="vocab", oov=kind) | OPTIONS.get(kind, {})
    prune(model, tokenizer, TEXTS, **choices).save_pretrained(tmp_path / "memory", verify=False, self_contained=True)
    prune_checkpoint(tmp_path / "full", TEXTS, tmp_path / "files", self_contained=True, **choices)
    same_directory(tmp_path / "files", tmp_path / "memory")
    code = [tmp_path / name / "modeling_vocab_pruning.py" for name in ("files", "memory")]
    assert [file.exists() for file in code] == [kind == "pq"] * 2
    assert kind != "pq" or code[0].read_text() == code[1].read_text()


@pytest.mark.parametrize("change", [dict(auto_map={"AutoModel": "mine.Model"}), dict(architectures=["Mine"]), dict(model_type="mine")])
def test_code_of_its_own_for_another_class_is_refused(change, tmp_path):
    saved(tmp_path / "full", "BERT", CLASSIFIER)
    file = tmp_path / "full" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ValueError, match="self_contained=True: .* is not one of transformers' classes; leave it out"):
        prune_checkpoint(tmp_path / "full", Unread(), tmp_path / "files", ratio=0.2, base="vocab", oov="nearest", self_contained=True)
    assert not (tmp_path / "files").exists()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions(dtype, tmp_path):
    model, tokenizer = saved(tmp_path / "full", "XLM-R", MASKED, dtype)
    for kind in ("resegment", "nearest", "pq", "int8", "int4"):
        both_ways(model, tokenizer, tmp_path, kind, oov=kind, ratio=0.2, base="vocab", **OPTIONS.get(kind, {}))


CHOICES = {
    "ratio of the parameters": dict(ratio=0.2), "no target": {}, "rows": dict(rows=250, keep=["re:^[a-f]$", 200, ["an unseen text"]]),
    "coverage": dict(coverage=0.97, keep="script:Latin", oov="cluster", n_clusters=5), "least count": dict(min_count=2, oov="pieces"),
    "seen": dict(ratio=0.1, base="seen", scorer="frequency"), "random": dict(ratio=0.3, base="vocab", scorer="random", seed=3),
    "clusters": dict(ratio=0.1, scorer="clustering", scorer_options={"method": "kmeans"}),
    "padding rows": dict(coverage=0.9, oov="resegment", pad_to_multiple_of=8, keep=[210]),
    "letters inside": dict(rows=280, oov="resegment", lossless=False), "scores": dict(rows=280, oov="unk", scores=np.arange(304.0) % 7),
}


@pytest.mark.parametrize("case", CHOICES)
def test_choices_mean_the_same(case, full):
    "Targets, keep lists, scorers and scores, and why each row stays."
    home = full("BERT", MASKED)
    info = both_ways(*held(home), home, case, **dict(oov="int8") | CHOICES[case])
    kept = len(info.get("original_ids", range(info["after"]["rows"])))
    assert sum(info["provenance"]["counts"].values()) == kept <= info["after"]["rows"]


def test_choices_mean_the_same_where_sides_share_a_table(full):
    "BART's final bias lies outside its head and its rows in the second dimension; padding rows are never predicted."
    home = full("BART", BOTH)
    both_ways(*held(home), home, "padded", ratio=0.2, oov="resegment", pad_to_multiple_of=8)
    both_ways(*held(home), home, "rows", rows=400, keep="re:^[0-9]$", oov="int4")


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    "The home of a full model, in its directory `full`, by family and class: made once, for tests that only read it."

    @cache
    def home(name: str, auto: str) -> Path:
        saved((made := tmp_path_factory.mktemp("home")) / "full", name, auto)
        return made

    return home


def held(home: Path):
    "The model and the tokenizer of `full`."
    cls = json.loads((home / "full" / "config.json").read_text())["architectures"][0]
    return getattr(transformers, cls).from_pretrained(home / "full"), transformers.AutoTokenizer.from_pretrained(home / "full")


def sharded(directory: Path, name: str = "BERT", auto: str = MASKED) -> Path:
    "A model saved to `directory` in several files."
    model, tokenizer = tiny_model(name, auto)
    model.save_pretrained(directory, max_shard_size="8KB")
    tokenizer.save_pretrained(directory)
    assert len([*directory.glob("*.safetensors")]) > 2
    return directory


def test_what_holds_no_vocabulary_is_copied_while_texts_are_counted(tmp_path, monkeypatch):
    "Its files are whole before the count ends; where the count fails, nothing is left, neither of the directories above."
    source, out = sharded(tmp_path / "full"), tmp_path / "new" / "out"
    found = find_vocabulary(read_checkpoint(source))
    touched = {tensor.file.name for tensor in found.all}
    others = {file.name: file.stat().st_size for file in source.glob("*.safetensors") if file.name not in touched}
    count, copied = checkpoint.count_tokens, {}

    def counted(*args):
        for _ in range(1000):
            copied.update((file.name, file.stat().st_size) for file in out.parent.glob(".out.*/*.safetensors"))
            if copied == others:
                return count(*args)
            time.sleep(0.02)
        raise AssertionError((others, copied))

    monkeypatch.setattr(checkpoint, "count_tokens", counted)
    prune_checkpoint(source, TEXTS, out, 0.3, oov="resegment")
    assert others and {file.name for file in out.glob("*.safetensors")} == {file.name for file in source.glob("*.safetensors")}
    with pytest.raises(ZeroDivisionError):
        prune_checkpoint(source, (1 // 0 for _ in TEXTS), tmp_path / "other" / "out", 0.3, scorer="frequency", oov="unk")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "new"]


@pytest.mark.parametrize("kind", ["resegment", "pq", "sparse"])
def test_shards(kind, tmp_path):
    "The index names every tensor and adds up; the directory loads; metadata stays."
    source = sharded(tmp_path / "full")
    model = transformers.AutoModelForMaskedLM.from_pretrained(source)
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    choices = dict(ratio=0.3, base="vocab", oov=kind) | OPTIONS.get(kind, {})
    p = prune(model, tokenizer, TEXTS, **choices)
    p.save_pretrained(tmp_path / "memory", verify=False)
    prune_checkpoint(source, TEXTS, tmp_path / "files", **choices)
    ours = tensors(tmp_path / "files")
    assert differing(ours, tensors(tmp_path / "memory")) == []
    index = json.loads((tmp_path / "files" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in ours.values())
    assert index["metadata"]["total_parameters"] == sum(tensor.numel() for tensor in ours.values())
    for name, file in index["weight_map"].items():
        with safe_open(tmp_path / "files" / file, "pt") as weights:
            assert name in weights.keys() and weights.metadata() == {"format": "pt"}  # noqa: SIM118
    assert index["weight_map"].keys() == ours.keys()
    again = load(tmp_path / "files")
    state = p.model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.model.state_dict().items())
    if kind == "resegment":
        transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "files")


def test_tensors_that_are_stored_twice(tmp_path):
    "A tied head and a second table, as old checkpoints hold them: pruned along, counted once; a remap drops the second table."
    saved(tmp_path / "full", "T5", BOTH)
    file = tmp_path / "full" / "model.safetensors"
    held = load_file(file)
    twice = {"encoder.embed_tokens.weight": held["shared.weight"].clone(), "lm_head.weight": held["shared.weight"].clone()}
    shutil.copytree(tmp_path / "full", tmp_path / "twice")
    save_file(held | twice, tmp_path / "twice" / "model.safetensors", {"format": "pt"})
    for kind in ("resegment", "int8"):
        one, other = (prune_checkpoint(tmp_path / name, TEXTS, tmp_path / f"{name} {kind}", 0.1, oov=kind) for name in ("full", "twice"))
        for size in ("rows", "params", "embedding_params"):
            assert (one["before"][size], one["after"][size]) == (other["before"][size], other["after"][size])
        ours = tensors(tmp_path / f"twice {kind}")
        assert torch.equal(ours["lm_head.weight"], ours["shared.weight"]) and ("encoder.embed_tokens.weight" in ours) == (kind == "resegment")
        assert differing({name: tensor for name, tensor in ours.items() if name not in twice}, tensors(tmp_path / f"full {kind}")) == []
    held["encoder.embed_tokens.weight"] = held["shared.weight"] + 1
    save_file(held, tmp_path / "twice" / "model.safetensors", {"format": "pt"})
    with pytest.raises(core.CannotPrune, match="encoder.embed_tokens.weight has rows of its own"):
        prune_checkpoint(tmp_path / "twice", TEXTS, tmp_path / "out", 0.1, oov="int8")
    prune_checkpoint(tmp_path / "twice", TEXTS, tmp_path / "out", 0.1, oov="resegment")
    ours = tensors(tmp_path / "out")
    assert torch.equal(ours["encoder.embed_tokens.weight"], ours["shared.weight"] + 1)


def resized(directory: Path, rows: int) -> Path:
    "Let the configuration in `directory` name another size of the vocabulary."
    (directory / "config.json").write_text(json.dumps(config_of(directory) | dict(vocab_size=rows)))
    return directory


def custom(directory: Path, model_type: str = "giant") -> Path:
    "A checkpoint whose class is in a file of its own that cannot be imported, and that transformers does not know."
    saved(directory, "BERT", BARE)
    config = json.loads((directory / "config.json").read_text())
    places = {f"Auto{what}": f"modeling_giant.Giant{what}" for what in ("Model", "Config")}
    config |= dict(model_type=model_type, architectures=["GiantModel"], auto_map=places)
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "modeling_giant.py").write_text("raise RuntimeError('imported')\n")
    return directory


def test_a_class_that_cannot_be_imported(tmp_path):
    "It is carried along, and nothing is imported, by the command neither: not it, nor transformers, nor torch but for a remap that computes with it."
    sources = {model_type: custom(tmp_path / model_type, model_type) for model_type in ("giant", "bert")}
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    code = f"""
import sys
from vocab_pruning.cli import app
from vocab_pruning.models.checkpoint import prune_checkpoint
for oov in ("resegment", "unk", "int8", "int4", "pq"):
    assert not {{"torch", "transformers", "pandas"}} & sys.modules.keys(), oov
    for name in ("giant", "bert"):
        options = dict(n_bytes=4) if oov == "pq" else {{}}
        prune_checkpoint(f"{tmp_path}/{{name}}", {[*TEXTS]!r}, f"{tmp_path}/{{oov}} {{name}}", 0.2, "vocab", oov=oov, **options)
    if oov == "int4":
        app(["prune", "{tmp_path}/bert", "{tmp_path}/texts.txt", "{tmp_path}/command", "--rows", "90", "--oov", "resegment"], standalone_mode=False)
assert "torch" in sys.modules and "transformers" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for model_type, source in sources.items():
        before = tensors(source)
        for kind in ("resegment", "pq"):
            out = tmp_path / f"{kind} {model_type}"
            assert (out / "modeling_giant.py").read_bytes() == (source / "modeling_giant.py").read_bytes()
            config, after = json.loads((out / "config.json").read_text()), tensors(out)
            assert config["auto_map"]["AutoModel"] == "modeling_giant.GiantModel" and config["model_type"] == model_type
            assert {name for name in after if name in before and torch.equal(after[name], before[name])} == before.keys() - {TABLE}
            if kind == "resegment":
                info = json.loads((out / "vocab_pruning.json").read_text())
                assert torch.equal(after[TABLE], before[TABLE][info["original_ids"]])
                assert len(transformers.PreTrainedTokenizerFast.from_pretrained(out)) == config["vocab_size"] == len(after[TABLE])


def test_only_what_holds_the_old_vocabulary_is_left_out(tmp_path):
    source, out = tmp_path / "full", tmp_path / "out"
    saved(source, "BERT", BARE)
    along = ["modeling_x.py", "notes.txt", "1_Pooling/config.json", "assets/config.json", "chat_template.jinja"]
    stale = ["pytorch_model.bin", "model.onnx", "onnx/model.onnx", "tf_model.h5", "vocab.txt", "training_args.bin"]
    for name in [*along, *stale]:
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text(name)
    (source / "modules.json").write_text("[]")
    info = prune_checkpoint(source, TEXTS, out, 0.2, oov="resegment")
    assert all((out / name).read_text() == name for name in along) and (out / "modules.json").is_file()
    assert info["left_out"] == sorted(stale) and not any((out / name).exists() for name in stale)
    info = prune_checkpoint(source, TEXTS, out, 0.2, oov="unk")
    assert (out / "vocab.txt").is_file() and (out / "modules.json").is_file()


def test_ids_that_the_class_supplies_follow(tmp_path):
    "A configuration without them names them once they move; padding that positions are counted from may not move."
    source = custom(tmp_path / "full")
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    words = tokenizer["model"]["vocab"]
    last = max(words.values())
    other = next(word for word, i in words.items() if i == last)
    words["[PAD]"], words[other] = last, 0
    for token in tokenizer["added_tokens"]:
        token["id"] = words[token["content"]]
    tokenizer["added_tokens"].sort(key=lambda token: token["id"])
    (source / "tokenizer.json").write_text(json.dumps(tokenizer))
    about = json.loads((source / "tokenizer_config.json").read_text()) | dict(tokenizer_class="PreTrainedTokenizerFast")
    (source / "tokenizer_config.json").write_text(json.dumps(about))
    config = {key: value for key, value in json.loads((source / "config.json").read_text()).items() if not key.endswith("_token_id") and key != "vocab_size"}
    (source / "config.json").write_text(json.dumps(config))
    info = prune_checkpoint(source, TEXTS, tmp_path / "out", 0.2, oov="resegment")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["pad_token_id"] == info["original_ids"].index(last) and config["vocab_size"] == info["after"]["rows"]
    (source / "modeling_giant.py").write_text("mask = ids.ne(padding_idx)\npositions = mask.cumsum(1)\n")
    with pytest.raises(core.CannotPrune, match=f"padding id, which would move from {last}"):
        prune_checkpoint(source, TEXTS, tmp_path / "other", 0.2, oov="resegment")


def test_settings_that_a_class_supplies_are_those_of_transformers():
    for name, settings in bare.SETTINGS_OF_CLASS.items():
        cls = getattr(transformers, name)
        found = {setting: getattr(cls, setting) for setting in settings}
        assert {setting: sorted(value) for setting, value in found.items()} == {setting: sorted(value) for setting, value in settings.items()}


@pytest.mark.parametrize("family", ["BERT", "RoBERTa", "XLM-R"])
def test_a_tokenizer_whose_files_name_no_roles(family, tmp_path):
    "They are those that its class supplies; a configuration with old ids of added tokens does not bring them back."
    _, tokenizer = tiny_model(family)
    tokenizer.save_pretrained(tmp_path)
    named = read_bare(tmp_path)
    assert (named.special_tokens_map, named.all_special_ids, named.unk_token_id) == (
        tokenizer.special_tokens_map, tokenizer.all_special_ids, tokenizer.unk_token_id)
    about = {"tokenizer_class": type(tokenizer).__name__, "added_tokens_decoder": {"0": {"content": "old"}}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(about))
    unnamed = read_bare(tmp_path)
    assert {*unnamed.all_special_tokens} == {*tokenizer.all_special_tokens}
    assert "added_tokens_decoder" not in unnamed.with_backend(unnamed.backend_tokenizer).config
    assert [unnamed.encode(text) for text in TEXTS] == [tokenizer(text)["input_ids"] for text in TEXTS]


def test_the_table_of_models_that_count_from_padding_is_that_of_transformers():
    root = Path(transformers.__file__).parent / "models"
    found = {file.parent.name.replace("_", "") for file in root.glob("*/modeling_*.py") if "create_position_ids_from_input_ids" in file.read_text("utf-8")}
    assert found and all(name.startswith(COUNTS_FROM_PADDING) for name in found)
    assert all(any(name.startswith(known) for name in found) for known in COUNTS_FROM_PADDING)


def edited(file: Path, **changes):
    "Change entries of a JSON file; None removes one."
    held = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in held.items() if value is not None}))


def with_tensor(directory: Path, **added):
    "Add tensors to the weights of `directory`."
    save_file(load_file(directory / "model.safetensors") | added, directory / "model.safetensors", {"format": "pt"})


ROWS = 304
TABLE = "embeddings.word_embeddings.weight"
BAD = {
    "no config.json": lambda d: (d / "config.json").unlink(),
    "holds no weights: give a directory with model.safetensors": lambda d: (d / "model.safetensors").unlink(),
    "only pytorch_model.bin, a pickle, which is not opened": lambda d: (d / "model.safetensors").rename(d / "pytorch_model.bin"),
    "holds no tokenizer.json": lambda d: (d / "tokenizer.json").unlink(),
    "tokenizer.json has no model": lambda d: edited(d / "tokenizer.json", model=None),
    "tokenizer.json is not JSON": lambda d: (d / "tokenizer.json").write_text("{"),
    "holds no mapping": lambda d: (d / "config.json").write_text("[]"),
    "holds a pruned model": lambda d: edited(d / "config.json", vocab_pruning={}),
    "model.safetensors is damaged": lambda d: (d / "model.safetensors").write_bytes((d / "model.safetensors").read_bytes()[:-1]),
    "rows in two dimensions": lambda d: with_tensor(d, square=torch.zeros(ROWS, ROWS)),
    "positions .* has the vocabulary's size, 304, but not the name": lambda d: with_tensor(d, positions=torch.zeros(ROWS, 2)),
    "row 7 of .* holds NaN": lambda d: with_tensor(d, **{TABLE: torch.zeros(ROWS, 16).index_fill_(0, torch.tensor(7), torch.nan)}),
    "has dtype I8: prune the model first": lambda d: with_tensor(d, **{TABLE: torch.zeros(ROWS, 16, dtype=torch.int8)}),
    "vocab_size=304, but .*word_embeddings.weight has 3 rows": lambda d: with_tensor(d, **{TABLE: torch.zeros(3, 16)}),
    "do not match": lambda d: with_tensor(resized(d, 3), **{TABLE: torch.zeros(3, 16)}),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_one_line_and_nothing_is_written(message, tmp_path, full):
    shutil.copytree(full("BERT", BARE) / "full", tmp_path / "full")
    BAD[message](tmp_path / "full")
    for kind in ("resegment", "unk"):
        with pytest.raises((ValueError, FileNotFoundError), match=message) as raised:
            prune_checkpoint(tmp_path / "full", Unread(), tmp_path / "out", 0.2, oov=kind)
        assert "\n" not in str(raised.value) and [path.name for path in tmp_path.iterdir()] == ["full"]


REFUSED = {
    "rows=305: the embedding has 304 rows": dict(rows=305), "rows=5 keeps 5 rows, but the special rows and those of keep need": dict(rows=5, keep="re:."),
    "coverage=2: give a share": dict(coverage=2), "ratio=0.2 and rows=3: give only one of": dict(ratio=0.2, rows=3),
    "keep='zebra': the tokenizer has no such token": dict(keep="zebra"), "verify='all': give": dict(verify="all"),
    "give one score per embedding row": dict(scores=[1.0, 2.0]), "unexpected option 'm'": dict(m=3, oov="unk"),
    **{f"scorer='{name}' runs the model": dict(scorer=name) for name, spec in SCORERS.items() if spec.tuned},
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_is_refused_before_a_text_is_read(message, tmp_path, full):
    source = full("BERT", BARE) / "full"
    with pytest.raises((ValueError, TypeError), match=message.replace("(", "[(]")) as raised:
        prune_checkpoint(source, Unread(), tmp_path / "out", **dict(oov="int8") | REFUSED[message])
    assert "\n" not in str(raised.value) and [*tmp_path.iterdir()] == []


def test_a_full_disk(tmp_path, full, monkeypatch):
    "It is known beforehand, or met on the way; nothing is left behind."
    source, asked = full("BERT", BARE) / "full", dict(rows=250, oov="unk")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 0))
        with pytest.raises(OSError, match="has room for 0.0 MiB, and the weights take another"):
            prune_checkpoint(source, TEXTS, tmp_path / "out", **asked)

    def full_disk(file, parts, metadata):
        file.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))

    monkeypatch.setattr(checkpoint, "write_tensors", full_disk)
    with pytest.raises(OSError, match="No space left on device"):
        prune_checkpoint(source, TEXTS, tmp_path / "out", **asked)
    assert [*tmp_path.iterdir()] == []


def test_nothing_is_written_without_a_place(full):
    "The facts are those of a run that writes."
    home = full("BERT", MASKED)
    for kind in ("resegment", "int8"):
        there = sorted(home.iterdir())
        dry = prune_checkpoint(home / "full", TEXTS, None, coverage=0.95, oov=kind)
        assert sorted(home.iterdir()) == there
        info = prune_checkpoint(home / "full", TEXTS, home / f"wet {kind}", coverage=0.95, oov=kind)
        assert {name: info[name] for name in dry} == json.loads(json.dumps(dry)) and info.keys() - dry.keys() <= {"versions", "left_out"}


@pytest.mark.parametrize("kind", ["resegment", "int8"])
def test_outputs_are_compared_on_demand(kind, tmp_path, full, monkeypatch):
    "As transformers computes them; a layer that has changed is found, and nothing is left behind."
    source, asked = full("BERT", MASKED) / "full", dict(min_count=1, oov=kind, verify="forward")
    prune_checkpoint(source, TEXTS, tmp_path / "out", **asked)
    monkeypatch.setattr(checkpoint, "check_written", lambda *args: None)
    write = checkpoint.write_tensors

    def another_layer(file, parts, metadata):
        write(file, parts, metadata)
        held = load_file(file)
        held["bert.encoder.layer.0.output.dense.weight"] *= 2
        save_file(held, file, metadata)

    monkeypatch.setattr(checkpoint, "write_tensors", another_layer)
    with pytest.raises(ValueError, match="a weight outside of the vocabulary is not the full model.s"):
        prune_checkpoint(source, TEXTS, tmp_path / "other", **asked)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("task", ["cola", "sst2", "rte", "mrpc", "stsb"])
def test_coverage_is_what_a_direct_computation_gives(task, full):
    "Count, rank and add up by hand: the fewest rows, from the top of the ranking, that make up 99.95 % of the occurrences."
    data = os.environ.get("GLUE_DIR") or "sample"  # GLUE's own texts where they are
    home, texts = full("BERT", MASKED), documents(load_task(task, data)["train"].select(range(150)))
    tokenizer = transformers.AutoTokenizer.from_pretrained(home / "full")
    ids = [i for text in texts for i in tokenizer(text, add_special_tokens=False)["input_ids"]]
    counts = np.bincount(ids, minlength=ROWS)
    scores = compute_token_scores(token_stats(texts, tokenizer, ROWS), texts=texts, tokenizer=tokenizer)
    special = np.isin(np.arange(ROWS), tokenizer.all_special_ids)
    order = sorted(range(ROWS), key=lambda i: (not special[i], -scores[i], -counts[i], i))
    covered = np.cumsum(counts[order])
    n = max(int((covered < 0.9995 * len(ids)).sum()) + 1, int(special.sum()))
    info = prune_checkpoint(home / "full", texts, None, coverage=0.9995, oov="int8")
    assert info["after"]["rows"] == n and info["train"]["occurrences"] == len(ids)
    assert info["train"]["share"] == pytest.approx(1 - covered[n - 1] / len(ids)) and info["train"]["share"] <= 0.0005


def test_shards_that_are_missing_or_lack_a_tensor(tmp_path):
    source = sharded(tmp_path / "full")
    index = json.loads((source / "model.safetensors.index.json").read_text())
    lost = max(index["weight_map"].values())
    edited(source / "model.safetensors.index.json", weight_map=index["weight_map"] | {"more": lost})
    with pytest.raises(ValueError, match=f"{lost} lacks more, which model.safetensors.index.json names"):
        prune_checkpoint(source, TEXTS, tmp_path / "out", 0.2)
    (source / lost).unlink()
    with pytest.raises(FileNotFoundError, match=f"lacks {lost}"):
        prune_checkpoint(source, TEXTS, tmp_path / "out", 0.2)
    edited(source / "model.safetensors.index.json", weight_map={"a": "../../secret.safetensors"})
    with pytest.raises(ValueError, match="no weight_map of file names"):
        prune_checkpoint(source, TEXTS, tmp_path / "out", 0.2)
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


@pytest.mark.parametrize("kind", ["resegment", "unk"])
@pytest.mark.parametrize("last", [False, True])
def test_a_tensor_that_two_shards_hold_is_written_once(kind, last, tmp_path):
    "The index says from which shard it is read; the other's goes nowhere, even if it is the embedding."
    source = sharded(tmp_path / "full")
    table, index = find_vocabulary(read_checkpoint(source)).tables[0], source / "model.safetensors.index.json"
    table.file.rename(source / "model-last.safetensors")
    places = json.loads(index.read_text())["weight_map"]
    places = {name: "model-last.safetensors" if file == table.file.name else file for name, file in places.items()}
    edited(index, weight_map=places)
    other = min(places.values())
    held = load_file(source / other)
    held["zz" if last else table.name] = torch.ones(3) if last else torch.zeros(table.shape)
    save_file(held, source / other, {"format": "pt"})
    if last:
        held = load_file(source / max(places.values()))
        save_file(held | {"zz": torch.ones(3)}, source / max(places.values()), {"format": "pt"})
    prune_checkpoint(source, TEXTS, tmp_path / "out", 0.3, oov=kind)
    names = [name for file in (tmp_path / "out").glob("*.safetensors") for name in load_file(file)]
    assert len(names) == len({*names}) and names.count(table.name) == 1


@pytest.mark.parametrize("how", ["no interpreter", "killed"])
def test_what_is_not_copied_ahead_is_written_all_the_same(how, tmp_path, monkeypatch):
    source = sharded(tmp_path / "full")
    prune_checkpoint(source, TEXTS, tmp_path / "expected", 0.3, oov="resegment")
    if how == "no interpreter":
        monkeypatch.setattr(sys, "executable", None)
    if how == "killed":
        monkeypatch.setattr("vocab_pruning.models.copying._PROGRAM", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    prune_checkpoint(source, TEXTS, tmp_path / "out", 0.3, oov="resegment")
    expected, ours = tensors(tmp_path / "expected"), tensors(tmp_path / "out")
    assert expected.keys() == ours.keys() and all(torch.equal(expected[name], ours[name]) for name in expected)


def test_the_header_of_a_copied_file_is_compared(tmp_path, monkeypatch):
    "One that tells of a tensor more than was there at the start is refused, and nothing is left behind."
    source = sharded(tmp_path / "full")
    monkeypatch.setattr(checkpoint, "check_header", lambda file, parts: check_header(file, parts[1:]))
    with pytest.raises(ValueError, match="read back from disk, .* holds other tensors"):
        prune_checkpoint(source, TEXTS, tmp_path / "out", 0.3, oov="resegment")
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_shards_with_other_endings(tmp_path):
    "They are weights because the index says so, and no companions."
    source = sharded(tmp_path / "full")
    index = json.loads((source / "model.safetensors.index.json").read_text())
    for name in {*index["weight_map"].values()}:
        (source / name).rename(source / f"{Path(name).stem}.weights")
    edited(source / "model.safetensors.index.json", weight_map={name: f"{Path(file).stem}.weights" for name, file in index["weight_map"].items()})
    info = prune_checkpoint(source, TEXTS, tmp_path / "out", 0.3, oov="resegment")
    files = {*json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())["weight_map"].values()}
    assert all((tmp_path / "out" / file).is_file() for file in files) and "left_out" not in info


def test_include_and_leave(tmp_path):
    "A tensor that has the size and not the name is pruned along or kept whole, as the caller says."
    saved(tmp_path / "full", "BERT", BARE)
    extra = dict(positions=torch.randn(ROWS, 2), scale=torch.randn(2, ROWS))
    with_tensor(tmp_path / "full", **extra)
    info = prune_checkpoint(tmp_path / "full", TEXTS, tmp_path / "out", 0.1, oov="resegment", include="scale", leave=["posi*"])
    ours, rows = tensors(tmp_path / "out"), info["original_ids"]
    assert torch.equal(ours["positions"], extra["positions"]) and torch.equal(ours["scale"], extra["scale"][:, rows])
    with pytest.raises(core.CannotPrune, match="scale has rows of its own"):
        prune_checkpoint(tmp_path / "full", TEXTS, tmp_path / "other", 0.1, oov="unk", include="scale", leave="positions")
    file = tmp_path / "full" / "model.safetensors"
    held = load_file(file)
    held["tokens"] = held.pop("embeddings.word_embeddings.weight")
    save_file(held, file)
    with pytest.raises(ValueError, match="no tensor is called like an input embedding"):
        find_vocabulary(read_checkpoint(tmp_path / "full"), leave=["positions", "scale"])
    assert find_vocabulary(read_checkpoint(tmp_path / "full"), "tokens", ["positions", "scale"]).tables[0].name == "tokens"


def test_what_is_written_is_read_again(tmp_path, monkeypatch):
    "A bit that changes on the way is found, by name, and nothing is left behind."
    saved(tmp_path / "full", "BERT", BARE)
    write = checkpoint.write_tensors

    def wrongly(file, parts, metadata):
        write(file, parts, metadata)
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)

    monkeypatch.setattr(checkpoint, "write_tensors", wrongly)
    for kind in ("resegment", "unk"):
        with pytest.raises(ValueError, match="read back from disk, .* has changed; nothing was written"):
            prune_checkpoint(tmp_path / "full", TEXTS, tmp_path / "out", 0.2, oov=kind)
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


MOMENTS = [(checkpoint, name) for name in (
    "read_checkpoint", "count_tokens", "by_resegmenting", "copy_companions", "write_bare", "write_weights", "write_tensors", "check_written", "write_record")]
MOMENTS += [(core, "_put_in_place"), (core, "_exchange")]


def pruned_and_killed(source: Path, out: Path, module, point: str):
    "Prune in a child process that is killed with SIGKILL when it comes to the function `point`, if it does."
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    try:
        setattr(module, point, lambda *args, **kwargs: os.kill(os.getpid(), signal.SIGKILL))
        prune_checkpoint(source, TEXTS, out, 0.3, oov="resegment")
    finally:
        os._exit(1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the test forks")
def test_a_kill_leaves_nothing_half_written(tmp_path):
    "At eleven moments: neither under the final name nor, once pruned again, next to it; an earlier save stays whole; the source is untouched."
    source, out = sharded(tmp_path / "full"), tmp_path / "out"
    before = {file.name: file.read_bytes() for file in source.iterdir()}
    for module, point in MOMENTS[:-1]:
        assert pruned_and_killed(source, out, module, point) == signal.SIGKILL
        assert not out.exists()
    prune_checkpoint(source, TEXTS, out, 0.2, oov="resegment")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "out"]
    earlier = {file.name: file.read_bytes() for file in out.iterdir()}
    for module, point in MOMENTS:
        assert pruned_and_killed(source, out, module, point) == signal.SIGKILL
        assert {file.name: file.read_bytes() for file in out.iterdir()} == earlier
    assert {file.name: file.read_bytes() for file in source.iterdir()} == before
