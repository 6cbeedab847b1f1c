"""Models of several parts, tables or losses: what a cut cannot follow is refused by name, and the rest is exact."""

import json

import numpy as np
import pytest
import torch
import transformers
from conftest import Unread
from test_checkpoint import TEXTS
from tokenizers import AddedToken, Tokenizer

from vocab_pruning import load, prune
from vocab_pruning.core import CannotPrune
from vocab_pruning.data.stats import token_stats
from vocab_pruning.models.checkpoint import prune_checkpoint
from vocab_pruning.models.inspecting import cut_facts
from vocab_pruning.testing.families import BART, BRACKET_ROLES, DECODER, SIZES, tiny_model, tiny_tokenizer

UNIGRAM = tiny_tokenizer("XLMRobertaTokenizer")
SPECIAL = dict(vocab_size=len(UNIGRAM), pad_token_id=1, bos_token_id=0, eos_token_id=2)
CUT = dict(ratio=0.4, base="vocab")


def drawn(name: str, config):
    "A model of the class `name` with large random weights, so that a wrong row shows."
    torch.manual_seed(0)
    model = getattr(transformers, name)(config).eval()
    with torch.no_grad():
        for part in model.parameters():
            part.normal_(std=0.3)
    return model


# A decoder reads the labels that were given, pruned ones included; the loss does without those.

TRANSLATORS = ["Bart", "Blenderbot", "BlenderbotSmall", "M2M100", "Marian", "MBart", "NllbMoe", "Pegasus"]


@pytest.mark.parametrize("family", TRANSLATORS)
def test_a_decoder_reads_pruned_labels(family):
    config = getattr(transformers, f"{family}Config")(**SPECIAL, **BART, decoder_start_token_id=2)
    name = next(name for name in (f"{family}ForConditionalGeneration", f"{family}MTModel") if hasattr(transformers, name))
    model = drawn(name, config)
    p = prune(model, UNIGRAM, TEXTS, **CUT | dict(ratio=0.8), oov="int8")
    ids = next(ids for text in TEXTS if not p.remap.kept[ids := UNIGRAM(text, return_tensors="pt")["input_ids"]].all())
    with torch.no_grad():
        as_labels = model(input_ids=ids, labels=ids).logits
        shifted = [torch.tensor([[2]]), ids[:, :-1]] if family != "MBart" else [ids[:, -1:], ids[:, :-1]]
        assert torch.equal(as_labels, model(input_ids=ids, decoder_input_ids=torch.cat(shifted, 1)).logits)
        ours = p.model(input_ids=ids, labels=ids).logits
        theirs = p.model(input_ids=ids, decoder_input_ids=torch.cat(shifted, 1)).logits
    assert torch.equal(ours, theirs)


# A plain model knows its new number of tokens wherever it was written down.

@pytest.mark.parametrize("family", ["Gemma2", "Gemma3Text", "Llama", "Mixtral", "OPT"])
def test_a_plain_model_has_a_loss_before_it_is_saved(family, tmp_path):
    config = getattr(transformers, f"{family}Config")(**DECODER | SPECIAL)
    model = drawn(transformers.AutoModelForCausalLM._model_mapping[type(config)].__name__, config)
    p = prune(model, UNIGRAM, TEXTS, **CUT, oov="resegment")
    ids = p.tokenizer(TEXTS[0], return_tensors="pt")["input_ids"]
    p.save_pretrained(tmp_path / "out")
    with torch.no_grad():
        ours, theirs = (pruned(input_ids=ids, labels=ids).loss for pruned in (p.model, load(tmp_path / "out").model))
    assert ours.isfinite() and torch.equal(ours, theirs)


# A second table that ids read would keep its old numbers.

def gemma4(per_layer: int):
    config = transformers.Gemma4TextConfig(
        **DECODER | SPECIAL, global_head_dim=8, vocab_size_per_layer_input=per_layer, hidden_size_per_layer_input=8,
        num_kv_shared_layers=0, layer_types=["sliding_attention", "full_attention"])
    return drawn("Gemma4ForCausalLM", config)


@pytest.mark.parametrize("fewer", [0, 16])
def test_a_second_table_of_tokens_is_refused(fewer, tmp_path):
    model = gemma4(len(UNIGRAM) - fewer)
    model.save_pretrained(tmp_path / "full")
    UNIGRAM.save_pretrained(tmp_path / "full")
    with pytest.raises(CannotPrune, match="embed_tokens_per_layer of Gemma4ForCausalLM has a row for each token, too"):
        prune(model, UNIGRAM, TEXTS, **CUT, oov="resegment")
    with pytest.raises(ValueError, match="second table of tokens|has the vocabulary's size"):
        prune_checkpoint(tmp_path / "full", TEXTS, tmp_path / "out", **CUT, oov="resegment")
    assert not (tmp_path / "out").exists()
    assert prune(model, UNIGRAM, TEXTS, **CUT, oov="nearest").verify()["compared"]  # ids stay, and so does the table


# Models of several parts: what their class cannot hold is refused before a text is read, and plain ones are written.

WORDPIECE = tiny_tokenizer("BertTokenizer", **BRACKET_ROLES)
PICTURES = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8)
WORDS = SIZES | dict(vocab_size=len(WORDPIECE))


def captioner():
    text = transformers.BertConfig(**WORDS, is_decoder=True, add_cross_attention=True)
    parts = transformers.ViTConfig(**PICTURES), text
    return drawn("VisionEncoderDecoderModel", transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(*parts))


def blip():
    text = dict(vocab_size=len(WORDPIECE), hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
                encoder_hidden_size=16, pad_token_id=0, bos_token_id=2, eos_token_id=3, sep_token_id=3)
    return drawn("BlipForConditionalGeneration", transformers.BlipConfig(text_config=text, vision_config=PICTURES))


@pytest.mark.parametrize("make", [captioner, blip])
def test_models_of_several_parts_from_files(make, tmp_path):
    model = make()
    model.save_pretrained(tmp_path / "full")
    WORDPIECE.save_pretrained(tmp_path / "full")
    with pytest.raises(CannotPrune, match=f"{type(model).__name__} cannot hold a remapped embedding"):
        prune_checkpoint(tmp_path / "full", Unread(), tmp_path / "out", **CUT, oov="nearest")
    info = prune_checkpoint(tmp_path / "full", TEXTS, tmp_path / "out", **CUT, oov="resegment")
    again = type(model).from_pretrained(tmp_path / "out")
    assert info["after"]["rows"] == again.config.get_text_config(decoder=True).vocab_size < len(WORDPIECE)
    old, new = model.state_dict(), again.state_dict()
    rows = torch.tensor(info["original_ids"])
    for name, tensor in new.items():
        expected = old[name][rows] if old[name].shape != tensor.shape else old[name]
        assert torch.equal(tensor, expected), name


def test_a_model_that_nobody_can_give_an_embedding_is_refused_in_memory():
    with pytest.raises(TypeError, match="VisionEncoderDecoderModel lets nobody replace its embedding"):
        prune(captioner(), WORDPIECE, TEXTS, **CUT)


def test_outputs_are_compared_only_with_code_that_is_trusted(tmp_path):
    model, tokenizer = tiny_model("BERT", "AutoModel")
    model.config.auto_map = {"AutoModel": "mine.Mine"}
    model.save_pretrained(tmp_path / "full")
    tokenizer.save_pretrained(tmp_path / "full")
    with pytest.raises(ValueError, match=r"verify='forward' would run the code in .*: give trust_remote_code=True"):
        prune_checkpoint(tmp_path / "full", TEXTS, tmp_path / "out", **CUT, oov="unk", verify="forward")
    prune_checkpoint(tmp_path / "full", TEXTS, tmp_path / "out", **CUT, oov="unk")
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_padding_rows_are_no_tokens_that_must_split():
    "A byte-level BPE has no unknown token, and rows without a token need none."
    tokenizer = tiny_tokenizer("GPT2Tokenizer")
    model = drawn("GPT2LMHeadModel", transformers.GPT2Config(vocab_size=len(tokenizer) + 4, n_embd=16, n_layer=1, n_head=2))
    p = prune(model, tokenizer, TEXTS, **CUT, oov="pieces")
    assert len(p.keep) < len(tokenizer) and p.verify()["texts"]


@pytest.mark.parametrize(("name", "config"), [
    ("MarianMTModel", lambda: transformers.MarianConfig(**SPECIAL, **BART, decoder_start_token_id=2)),
    ("XLMWithLMHeadModel", lambda: transformers.XLMConfig(**SPECIAL, emb_dim=16, n_layers=2, n_heads=2)),
])
def test_whatever_holds_the_number_of_tokens_follows(name, config, tmp_path):
    torch.manual_seed(0)
    p = prune(getattr(transformers, name)(config()).eval(), UNIGRAM, TEXTS, **CUT, oov="resegment")
    ids = p.tokenizer(TEXTS[0], return_tensors="pt")["input_ids"]
    p.save_pretrained(tmp_path / "out")
    p.original[0].save_pretrained(tmp_path / "full"), UNIGRAM.save_pretrained(tmp_path / "full")
    named = dict(include=["transformer.embeddings.weight", "pred_layer.proj.*"]) if name.startswith("XLM") else {}
    prune_checkpoint(tmp_path / "full", TEXTS, tmp_path / "files", **CUT, oov="resegment", **named)
    with torch.no_grad():
        losses = [model(input_ids=ids, labels=ids).loss for model in (p.model, load(tmp_path / "out").model, load(tmp_path / "files").model)]
    assert losses[0].isfinite() and losses[0] == losses[1] == losses[2]


@pytest.mark.parametrize("oov", ["pq", "resegment"])
def test_logits_of_several_names_are_compared(oov, tmp_path):
    model = drawn("BertForPreTraining", transformers.BertConfig(**SPECIAL, **SIZES))
    p = prune(model, UNIGRAM, TEXTS, **CUT, oov=oov, **dict(n_bytes=4) if oov == "pq" else {})
    p.save_pretrained(tmp_path / "out")
    assert p.verify()["compared"]
    with torch.no_grad():
        p.original[0].cls.predictions.bias.add_(1)
    with pytest.raises(ValueError, match="prediction_logits differs"):
        p.verify(directory=tmp_path / "out")


@pytest.mark.parametrize("oov", ["int8", "resegment"])
@pytest.mark.parametrize(("name", "config", "told"), [
    ("MobileBertForMaskedLM", lambda: transformers.MobileBertConfig(
        **SPECIAL, hidden_size=16, embedding_size=8, true_hidden_size=16, intra_bottleneck_size=16, num_hidden_layers=1,
        num_attention_heads=2, intermediate_size=24), "its weight has a number for each token, too"),
    ("DebertaForMaskedLM", lambda: transformers.DebertaConfig(**SPECIAL, **SIZES, legacy=False), "has 16 rows, not"),
])
def test_heads_that_do_not_follow_are_refused(name, config, told, oov):
    with pytest.raises(CannotPrune, match=f"^the output head of {name} cannot be pruned: .*{told}"):
        prune(drawn(name, config()), UNIGRAM, Unread(), **CUT, oov=oov)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_mixture_keeps_its_weights_in_another_dtype(dtype, tmp_path):
    model, tokenizer = tiny_model("BERT")
    p = prune(model, tokenizer, TEXTS, **CUT, oov="sparse")
    before = p.model.get_input_embeddings().mix.clone()
    p.model.to(dtype)
    assert torch.equal(p.model.get_input_embeddings().mix, before)
    p.save_pretrained(tmp_path / "out")
    assert torch.equal(load(tmp_path / "out").model.get_input_embeddings().mix, before)


def test_a_configuration_that_names_no_class_is_that_of_an_encoder(tmp_path):
    model, tokenizer = tiny_model("BERT", "AutoModel")
    model.save_pretrained(tmp_path / "full"), tokenizer.save_pretrained(tmp_path / "full")
    config = tmp_path / "full" / "config.json"
    config.write_text(config.read_text().replace('"architectures"', '"other"'))
    prune_checkpoint(tmp_path / "full", TEXTS, tmp_path / "out", **CUT, oov="int8", verify="forward")
    assert type(load(tmp_path / "out").model) is type(model)


@pytest.mark.parametrize("family", ["BERT", "RoBERTa", "Llama"])
def test_parameters_are_counted_from_files_as_in_memory(family, tmp_path):
    model, tokenizer = tiny_model(family, "AutoModel")
    model.save_pretrained(tmp_path / "full"), tokenizer.save_pretrained(tmp_path / "full")
    for oov, options in (("pq", dict(n_bytes=4)), ("pq", dict(n_bytes=4, graded=True)), ("pq", dict(n_bytes=4, rotate=False)), ("int4", {}), ("sparse", {})):
        info = prune_checkpoint(tmp_path / "full", TEXTS * 20, tmp_path / "out", rows=40, oov=oov, **options)
        p = load(tmp_path / "out")
        assert info["after"]["params"] == sum(part.numel() for part in p.model.parameters())


@pytest.mark.parametrize("oov", ["int8", "resegment"])
def test_what_a_chat_template_writes_stays(oov, tmp_path):
    "Added tokens that are not special, such as <think>; those that no template names are tokens like all others."
    model, tokenizer = tiny_model("GPT-2", "AutoModelForCausalLM")
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in ("<think>", "<aside>")])
    tokenizer.chat_template = "{% for m in messages %}<think>{{ m.content }}{% endfor %}"
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(tmp_path / "full"), tokenizer.save_pretrained(tmp_path / "full")
    p = prune(model, tokenizer, TEXTS, rows=len(tokenizer) - 60, oov=oov, unseen="id")
    info = prune_checkpoint(tmp_path / "full", TEXTS, tmp_path / "out", rows=len(tokenizer) - 60, oov=oov, unseen="id")
    think, aside = map(tokenizer.convert_tokens_to_ids, ("<think>", "<aside>"))
    assert think in p.keep.tolist() and aside not in p.keep.tolist()
    assert torch.equal(load(tmp_path / "out").keep, p.keep) and info["provenance"] == p.info["provenance"]
    if oov == "resegment":
        assert p.tokenizer.tokenize("<think>") == ["<think>"] and len(p.tokenizer.tokenize("<aside>")) > 1


# A head that caps its logits, weights of two types, a quantized part

CAUSAL = "AutoModelForCausalLM"


@pytest.mark.parametrize("return_dict", [True, False])
def test_no_temperature_brings_a_pruned_token_back(return_dict, tmp_path):
    "Gemma 2 caps its logits, a pruned token's among them; kept columns stay what they were."
    model = drawn("Gemma2ForCausalLM", transformers.Gemma2Config(**DECODER | SPECIAL))
    assert model.config.final_logit_softcapping
    p = prune(model, UNIGRAM, TEXTS, **CUT | dict(ratio=0.8), oov="nearest")
    p.save_pretrained(tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "pipeline_tag: text-generation" in card and "A pruned token is never predicted." in card
    ids = p.keep.long()[None, 3:11]
    for pruned in (p.model, load(tmp_path / "out").model):
        with torch.no_grad():
            loss, logits = pruned(input_ids=ids, labels=ids, return_dict=return_dict, use_cache=False)[:2]
            full = model(input_ids=ids).logits
        assert loss.isfinite() and torch.equal(logits[..., p.keep], full[..., p.keep])
        assert (logits[..., ~p.remap.kept] == -1e4).all()


def test_weights_of_two_types_are_named_where_they_cannot_be_read_back(tmp_path):
    model, tokenizer = tiny_model("Llama", CAUSAL)
    model.bfloat16().model.norm.float()
    p = prune(model, tokenizer, TEXTS, **CUT, oov="nearest")
    with pytest.raises(ValueError, match=r"^model\.norm\.weight is torch\.float32, and is read back as torch\.bfloat16, .*model\.to\(torch\.bfloat16\)"):
        p.save_pretrained(tmp_path / "out")
    p.model.to(torch.bfloat16)
    p.save_pretrained(tmp_path / "out", verify=False)


@pytest.mark.filterwarnings("ignore")  # torch deprecates what it is refused for
def test_a_quantized_model_is_refused_before_a_text_is_read():
    model, tokenizer = tiny_model("BERT", "AutoModel")
    quantized = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
    with pytest.raises(TypeError, match=r"quantized part \(Linear\): prune it first, then quantize"):
        prune(quantized, tokenizer, Unread(), **CUT, oov="unk")


def test_rows_that_were_trained_alone_are_saved_on_request(tmp_path):
    model, tokenizer = tiny_model("BERT", "AutoModel")
    p = prune(model, tokenizer, TEXTS, **CUT, oov="nearest")
    with torch.no_grad():
        p.model.get_input_embeddings().weight.mul_(2)
    with pytest.raises(ValueError, match="if rows were changed on purpose, e.g. trained, pass verify=False"):
        p.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    p.save_pretrained(tmp_path / "out", verify=False)


def test_a_state_space_model_from_files_is_that_of_memory(tmp_path):
    "Mamba's embedding is called `embeddings` alone."
    model = drawn("MambaForCausalLM", transformers.MambaConfig(**SPECIAL, hidden_size=16, num_hidden_layers=1, state_size=4))
    model.save_pretrained(tmp_path / "full")
    UNIGRAM.save_pretrained(tmp_path / "full")
    for oov in ("resegment", "nearest"):
        prune_checkpoint(tmp_path / "full", TEXTS, tmp_path / oov, **CUT, oov=oov)
        ours, theirs = prune(model, UNIGRAM, TEXTS, **CUT, oov=oov).model.state_dict(), load(tmp_path / oov).model.state_dict()
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours), oov


# What a caller gives

def test_statistics_of_another_tokenizer_are_refused():
    "Two vocabularies of one size, as Llama's and Mistral's are; who counted is noted."
    model, tokenizer = tiny_model("BERT", "AutoModel")
    other = tiny_tokenizer("BertTokenizer", **BRACKET_ROLES)
    words = dict(other.get_vocab())
    a, b = sorted(word for word in words if word.isalpha())[:2]
    parts = json.loads(other.backend_tokenizer.to_str())
    parts["model"]["vocab"] |= {a: words[b], b: words[a]}
    other.backend_tokenizer.model = Tokenizer.from_str(json.dumps(parts)).model
    n_rows = len(model.get_input_embeddings().weight)
    with pytest.raises(ValueError, match="stats were counted with another tokenizer; count the corpus with this model's: token_stats"):
        prune(model, tokenizer, stats=token_stats(TEXTS, other, n_rows), **CUT, oov="unk")
    assert prune(model, tokenizer, stats=token_stats(TEXTS, tokenizer, n_rows), **CUT, oov="unk").info["train"]["occurrences"]


def test_texts_that_the_tokenizer_does_not_know_show():
    model, tokenizer = tiny_model("BERT", "AutoModel")
    known, foreign = (prune(model, tokenizer, texts, **CUT, oov="unk").info for texts in (TEXTS, [*TEXTS, "ภาษาไทย"]))
    assert known["train"]["unknown"] < foreign["train"]["unknown"] < 1
    assert cut_facts(foreign)["unknown share of the texts"] == foreign["train"]["unknown"]


def test_ids_may_be_a_tensor_and_reads_knows_its_range():
    model, tokenizer = tiny_model("BERT", "AutoModel")
    p = prune(model, tokenizer, TEXTS, **CUT, oov="nearest")
    again = prune(model, tokenizer, TEXTS, **CUT, oov="nearest", keep=p.keep)
    assert torch.equal(again.keep, p.keep)
    for wrong, message in ((-1, "token_id=-1"), (10**6, "token_id=1000000: the ids are 0 .. "), ("quartz", "token_id='quartz'")):
        with pytest.raises(ValueError, match=message):
            p.reads(wrong)
    plain = prune(model, tokenizer, TEXTS, **CUT, oov="resegment")
    for wrong, message in ((-1, "token_id=-1"), (10**6, "token_id=1000000: the original tokenizer has no token"), ("quartz", "token_id='quartz'")):
        with pytest.raises(ValueError, match=message):
            plain.reads(wrong)
    with pytest.raises(ValueError, match="scorer='frequency', but scores are given; leave out one"):
        prune(model, tokenizer, TEXTS, **CUT, scorer="frequency", scores=np.zeros(len(tokenizer)))
