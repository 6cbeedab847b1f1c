"""Ids written in configurations follow the tokens they name, in memory and from files; and tokens may have no row."""

import json
from functools import partial

import pytest
import torch
import transformers
from test_checkpoint import BARE, OPTIONS, TEXTS, both_ways, edited, held, saved
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers.models.mbart.tokenization_mbart import FAIRSEQ_LANGUAGE_CODES

from vocab_pruning import prune
from vocab_pruning.models.checkpoint import prune_checkpoint
from vocab_pruning.remaps.kinds import REMAPS
from vocab_pruning.testing.families import BART, tiny_model, trained

AROUND = ["<s>", "<pad>", "</s>", "<unk>"]


def mbart():
    "The tokenizer of mBART: Unigram, and a token for each language after the words."
    after = [*FAIRSEQ_LANGUAGE_CODES, "<mask>"]
    entries = [*((token, 0.0) for token in AROUND), *trained("Unigram")["words"], *((token, 0.0) for token in after)]
    return transformers.MBartTokenizer(vocab=entries, src_lang="en_XX")


def nllb():
    "The tokenizer of NLLB: a BPE that merges letters, without bytes."
    letters = Tokenizer(models.BPE(unk_token="<unk>"))
    letters.pre_tokenizer = pre_tokenizers.Metaspace()
    letters.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=120, special_tokens=AROUND, show_progress=False))
    model = json.loads(letters.to_str())["model"]
    tokenizer = transformers.NllbTokenizer(vocab=model["vocab"], merges=[*map(tuple, model["merges"])])
    tokenizer.backend_tokenizer.normalizer = normalizers.NFKC()
    return tokenizer


def translator(directory, tokenizer, config_class, languages):
    "A tiny translator in `directory`, whose configurations name ids in every way they do in published ones."
    names = {name: tokenizer.convert_tokens_to_ids(name) for name in languages}
    first, second = names.values()
    config = config_class(vocab_size=len(tokenizer), decoder_start_token_id=2, pad_token_id=1,
                          **BART | dict(lang_code_to_id=names, my_index=first))
    torch.manual_seed(0)
    model = transformers.AutoModelForSeq2SeqLM.from_config(config)
    settings = model.generation_config
    settings.forced_bos_token_id, settings.suppress_tokens, settings.begin_suppress_tokens = first, [second], [2, first]
    settings.bad_words_ids, settings.forced_eos_token_id = [[second, 2], [first]], 2
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return type(model).from_pretrained(directory), transformers.AutoTokenizer.from_pretrained(directory)


@pytest.mark.parametrize("make, config_class, languages", [
    (mbart, transformers.MBartConfig, ["ro_RO", "de_DE"]), (nllb, transformers.M2M100Config, ["fra_Latn", "deu_Latn"]),
], ids=["mBART", "NLLB"])
def test_the_ids_of_languages_follow(make, config_class, languages, tmp_path):
    "In every form, in both configurations; a field that the caller names, too."
    model, tokenizer = translator(tmp_path / "full", make(), config_class, languages)
    cut = dict(oov="resegment", rows=len(tokenizer) - 20, renumber="my_index")
    info = both_ways(model, tokenizer, tmp_path, "out", **cut)
    new = transformers.AutoTokenizer.from_pretrained(tmp_path / "out of files")
    first, second = now = new.convert_tokens_to_ids(languages)
    assert now != tokenizer.convert_tokens_to_ids(languages) and new.convert_tokens_to_ids(AROUND) == [0, 1, 2, 3]
    config, settings = (json.loads((tmp_path / "out of files" / name).read_text())
                        for name in ("config.json", "generation_config.json"))
    assert config["lang_code_to_id"] == dict(zip(languages, now, strict=True)) and config["my_index"] == first
    named = config | settings
    assert (named["decoder_start_token_id"], named["forced_eos_token_id"], named["pad_token_id"]) == (2, 2, 1)
    assert (settings["forced_bos_token_id"], settings["suppress_tokens"]) == (first, [second])
    assert (settings["begin_suppress_tokens"], settings["bad_words_ids"]) == ([2, first], [[second, 2], [first]])
    assert info["renumber"] == ["my_index"] and not {"not_renumbered", "dropped_ids"} & info.keys()
    pairs = [[1, second], [2, None]]  # which a model in memory no longer reads
    old = [[position, i and info["original_ids"][i]] for position, i in pairs]
    edited(tmp_path / "full" / "generation_config.json", forced_decoder_ids=old)
    prune_checkpoint(tmp_path / "full", TEXTS, tmp_path / "out of files", **cut)
    assert json.loads((tmp_path / "out of files" / "generation_config.json").read_text())["forced_decoder_ids"] == pairs


@pytest.fixture(scope="module")
def wrapper(tmp_path_factory):
    "A BERT whose configuration numbers tokens under names of its own, at the top and inside another."
    home = tmp_path_factory.mktemp("wrapper")
    _, tokenizer = saved(home / "full", "BERT", BARE)
    last = len(tokenizer) - 1
    part = {"vocab_size": 9, "my_index": last, "prompt_id": last}
    file = home / "full" / "config.json"
    own = dict(image_tok_idx=last, sep_idx=3, layer_idx=3, tokens=last, other_config=part)
    file.write_text(json.dumps(json.loads(file.read_text()) | own))
    return home, last


def test_fields_that_the_caller_names_follow(wrapper, tmp_path):
    "What they name stays, wherever it ranks; under a remap, where ids do not change, it stays, too."
    home, last = wrapper
    names = ["image_tok_idx", "other_config.my_index"]
    cut = dict(ratio=0.5, base="vocab", renumber=names)
    info = both_ways(*held(home), home, "named", oov="resegment", **cut)
    config = json.loads((home / "named of files" / "config.json").read_text())
    now = info["original_ids"].index(last)
    assert now < last and config["image_tok_idx"] == config["other_config"]["my_index"] == now
    assert config["other_config"]["prompt_id"] == config["tokens"] == last and info["renumber"] == names
    card = (home / "named" / "README.md").read_text()
    assert "| renumbered on demand | `image_tok_idx`, `other_config.my_index` |" in card
    info = both_ways(*held(home), home, "remapped", oov="int8", **cut)
    config = json.loads((home / "remapped of files" / "config.json").read_text())
    assert config["image_tok_idx"] == last and info["renumber"] == names
    assert prune(*held(home), TEXTS, oov="unk", **cut).remap.keep[-1] == last


def test_fields_that_look_like_ids_are_listed(wrapper, tmp_path):
    "In the report, the card, and one warning; not those that keep their number, nor what numbers layers."
    home, last = wrapper
    cut = dict(ratio=0.5, base="vocab", oov="resegment")
    info = both_ways(*held(home), home, "listed", **cut)
    assert info["not_renumbered"] == {"image_tok_idx": last}
    assert "| look like ids, but unchanged | `image_tok_idx` |" in (home / "listed" / "README.md").read_text()
    for run in (partial(prune_checkpoint, home / "full", TEXTS, None), partial(prune, *held(home), TEXTS)):
        with pytest.warns(UserWarning, match=rf"image_tok_idx {last}; if they are, give renumber=\['image_tok_idx'\]"):
            run(**cut)


@pytest.mark.parametrize("name, message", [
    ("no_field", "no configuration has this field"), ("other_config", "not the id of one of"), ("model_type", "'bert'"),
    (7, "give a list of names"),
])
def test_a_name_that_is_no_field_is_refused(name, message, wrapper):
    home, _ = wrapper
    for run in (partial(prune_checkpoint, home / "full", TEXTS, None), partial(prune, *held(home), TEXTS)):
        with pytest.raises(ValueError, match=message) as error:
            run(renumber=name)
        assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def beyond(tmp_path_factory):
    "A BERT whose tokenizer knows a token more than there are rows, and how many these are."
    home = tmp_path_factory.mktemp("beyond")
    _, tokenizer = saved(home / "full", "BERT", BARE)
    rows = len(tokenizer)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<img>"]})
    tokenizer.save_pretrained(home / "full")
    return home, rows


@pytest.mark.parametrize("kind", REMAPS)
def test_a_token_without_a_row_is_noted_and_refused_only_where_a_text_uses_it(kind, beyond):
    "By every kind, in memory and from files alike."
    home, rows = beyond
    cut = dict(ratio=0.2, base="vocab", oov=kind) | OPTIONS.get(kind, {})
    info = both_ways(*held(home), home, kind, **cut)
    assert info["without_row"] == {"<img>": rows}
    for run in (partial(prune, *held(home)), partial(prune_checkpoint, home / "full", out=None)):
        with pytest.raises(ValueError, match=f"the tokenizer emits id {rows} but the embedding has {rows} rows"):
            run(texts=[*TEXTS, "an <img> here"], **cut)


def test_an_id_that_a_module_copied_from_its_configuration_follows(tmp_path):
    "CLIP's text model reads its sentence at the end token, whose id it keeps beside its configuration."
    _, tokenizer = tiny_model("GPT-2", BARE)
    end = tokenizer.eos_token_id
    sizes = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=64)
    config = transformers.CLIPTextConfig(vocab_size=len(tokenizer), eos_token_id=end, bos_token_id=0, pad_token_id=tokenizer.pad_token_id, **sizes)
    model = transformers.CLIPTextModel(config).eval()
    for parameter in model.parameters():
        parameter.data.normal_(std=0.3)
    ending = [(tokenizer.eos_token, end)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"$A {tokenizer.eos_token}", special_tokens=ending)
    p = prune(model, tokenizer, TEXTS, rows=len(tokenizer) - 40, oov="resegment")
    assert p.model.config.eos_token_id != end == model.eos_token_id
    pooled = [m(**t(TEXTS[0], return_tensors="pt")).pooler_output for m, t in ((model, tokenizer), (p.model, p.tokenizer))]
    torch.testing.assert_close(*pooled)
    p.save_pretrained(tmp_path / "plain")


def test_letters_that_become_unknown_are_on_the_card(tmp_path):
    "A BPE that merges letters without falling back on bytes keeps those of the texts; both ways say which it loses."
    model, tokenizer = translator(tmp_path / "full", nllb(), transformers.M2M100Config, ["fra_Latn", "deu_Latn"])
    info = both_ways(model, tokenizer, tmp_path, "out", ["dad"], oov="resegment", coverage=1.0)
    assert info["n_unknown_letters"] == len(info["unknown_letters"]) > 10 and not {*"dad"} & {*info["unknown_letters"]}
    card = (tmp_path / "out of files" / "README.md").read_text()
    assert f"| unknown letters | {info['n_unknown_letters']} become the unknown token: " in card
