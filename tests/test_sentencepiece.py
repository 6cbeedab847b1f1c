"""A SentencePiece file beside tokenizer.json is pruned with it and proved, or left out; never carried along stale."""

import io
import json
import shutil
import sys
from functools import cache

import pytest
import transformers

from vocab_pruning import load, prune
from vocab_pruning.data.tasks import documents, load_task
from vocab_pruning.models.checkpoint import prune_checkpoint
from vocab_pruning.models.inspecting import inspect_pruned

spm = pytest.importorskip("sentencepiece")
ALL = documents(load_task("cola", "sample")["train"])[:200]
TEXTS, CUT = ALL[:20], (0.2, "vocab")
SIZES = dict(num_hidden_layers=1, num_attention_heads=2, hidden_size=8, intermediate_size=8, max_position_embeddings=64)
AS_TEXT = dict(add_dummy_prefix=False, normalization_rule_name="identity", remove_extra_whitespaces=False)
FAMILIES = {  # tokenizer: configuration, name of the file, kind of its model, options of the training
    "XLMRobertaTokenizer": ("XLMRobertaConfig", "sentencepiece.bpe.model", "unigram", {}),
    "MBart50Tokenizer": ("XLMRobertaConfig", "sentencepiece.bpe.model", "unigram", {}),
    "T5Tokenizer": ("BertConfig", "spiece.model", "unigram", dict(pad_id=0, eos_id=1, unk_id=2, bos_id=-1)),
    "GemmaTokenizer": ("BertConfig", "tokenizer.model", "bpe", AS_TEXT | dict(
        pad_id=0, eos_id=1, bos_id=2, unk_id=3, byte_fallback=True)),
}


def trained(kind: str, options: dict) -> bytes:
    "A tiny SentencePiece model of the sample."
    file, size = io.BytesIO(), 260 if kind == "unigram" else 500
    spm.SentencePieceTrainer.train(sentence_iterator=iter(ALL), model_writer=file, vocab_size=size, model_type=kind,
                                   minloglevel=2, hard_vocab_limit=False, **options)
    return file.getvalue()


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    "A saved checkpoint of a family and its SentencePiece file; tests do not change them."
    @cache
    def make(name: str):
        directory = tmp_path_factory.mktemp(name)
        config, file, kind, options = FAMILIES[name]
        (directory / file).write_bytes(trained(kind, options))
        tokenizer = getattr(transformers, name).from_pretrained(directory)
        tokenizer.save_pretrained(directory)
        config = getattr(transformers, config)(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **SIZES)
        transformers.AutoModel.from_config(config).save_pretrained(directory)
        return directory, directory / file
    return make


def in_memory(source, oov: str = "resegment"):
    "Prune the model of a directory in memory."
    parts = (cls.from_pretrained(source) for cls in (transformers.AutoModel, transformers.AutoTokenizer))
    return prune(*parts, TEXTS, *CUT, oov=oov)


def became(directory) -> dict:
    "What a saved directory says of its SentencePiece files."
    return json.loads((directory / "vocab_pruning.json").read_text())["sentencepiece"]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_file_is_pruned_in_step(name, full, tmp_path):
    "It makes the ids of the new tokenizer, at the distance of the old one, of every text; both paths agree."
    source, file = full(name)
    prune_checkpoint(source, TEXTS, tmp_path / "files", *CUT, oov="resegment")
    in_memory(source).save_pretrained(tmp_path / "memory")
    assert became(tmp_path / "files") == became(tmp_path / "memory") == {file.name: "pruned"}
    small = (tmp_path / "files" / file.name).read_bytes()
    assert small == (tmp_path / "memory" / file.name).read_bytes() and len(small) < file.stat().st_size
    assert f"| `{file.name}` | pruned |" in (tmp_path / "files" / "README.md").read_text()
    old, new = (transformers.AutoTokenizer.from_pretrained(home) for home in (source, tmp_path / "files"))
    before, after = spm.SentencePieceProcessor(str(file)), spm.SentencePieceProcessor(model_proto=small)
    distance = old.convert_tokens_to_ids(before.id_to_piece(len(before) - 1)) - len(before) + 1
    assert distance == (name in ("XLMRobertaTokenizer", "MBart50Tokenizer"))
    assert new.pad_token_id == old.pad_token_id
    for text in [*ALL, "naïve 東京 🙂", "a  b   c"]:
        ids = [new.unk_token_id if after.is_unknown(i) else i + distance for i in after.encode(text)]
        assert new(text, add_special_tokens=False).input_ids == ids


def test_a_remap_takes_the_file_along(full, tmp_path):
    "The tokenizer is the same; and a loaded directory takes its own file along, pruned or not."
    source, file = full("XLMRobertaTokenizer")
    prune_checkpoint(source, TEXTS, tmp_path / "files", *CUT, oov="unk")
    in_memory(source, "unk").save_pretrained(tmp_path / "memory")
    prune_checkpoint(source, TEXTS, tmp_path / "pruned", *CUT, oov="resegment")
    for made, like in {"files": source, "memory": source, "pruned": tmp_path / "pruned"}.items():
        load(tmp_path / made).save_pretrained(tmp_path / "again")
        for home in (made, "again"):
            assert (tmp_path / home / file.name).read_bytes() == (like / file.name).read_bytes()


def test_a_file_that_is_not_proved_is_left_out_with_a_note(full, tmp_path, monkeypatch):
    "Without the extra, without a text, or where it is something else; an earlier save's file does not stay either."
    source, out = tmp_path / "full", tmp_path / "out"
    shutil.copytree(full("XLMRobertaTokenizer")[0], source)
    file = source / "sentencepiece.bpe.model"
    (source / "1_Pooling").mkdir()
    shutil.copy(file, source / "1_Pooling" / "spiece.model")
    (source / "modules.json").write_text('[{"path": "1_Pooling"}]')
    prune_checkpoint(source, TEXTS, out, *CUT, oov="unk")
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    info = prune_checkpoint(source, TEXTS, out, *CUT, oov="resegment")
    assert "left out: sentencepiece is not installed" in info["sentencepiece"][file.name]
    assert {file.name, "1_Pooling/spiece.model"} <= {*info["left_out"]} and not [*out.rglob("*.model")]
    assert "vocab_pruning[sentencepiece]" in (out / "README.md").read_text()
    p = in_memory(source)
    p.save_pretrained(out)
    assert became(out) == info["sentencepiece"] and not [*out.rglob("*.model")]
    monkeypatch.undo()
    p.sample = []
    p.save_pretrained(out)
    assert became(out) == {file.name: "left out: there is no text that proves it"} and not [*out.rglob("*.model")]
    file.write_bytes(b"something else")
    info = prune_checkpoint(source, TEXTS, out, *CUT, oov="resegment")
    assert info["sentencepiece"] == {file.name: "left out: it is not a SentencePiece model"}
    assert not [*out.rglob("*.model")]


def test_inspect_says_what_became_of_the_file(full, tmp_path):
    source, file = full("T5Tokenizer")
    prune_checkpoint(source, TEXTS, tmp_path / "out", *CUT, oov="resegment")
    assert inspect_pruned(tmp_path / "out")[file.name] == "pruned"
