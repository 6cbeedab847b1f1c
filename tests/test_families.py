"""Any encoder: tiny models of each family with the tokenizer of their own class, mapped and split anew, saved and loaded, and held to the first law."""

import pytest
import torch
import transformers
from conftest import same, state

from vocab_pruning import load, prune
from vocab_pruning.budget import special_mask
from vocab_pruning.data import documents, load_task
from vocab_pruning.families import FAMILIES, tiny_model
from vocab_pruning.rebuild import PrunedEmbedding, rebuild_model_with_vocab, rebuild_plain
from vocab_pruning.stats import token_stats
from vocab_pruning.surgery import rows_for_lossless

TEXTS = documents(load_task("cola", "sample")["train"])[:8]
CLASSIFIER, BARE, MASKED, CAUSAL, BOTH = (f"AutoModel{what}" for what in ("ForSequenceClassification", "", "ForMaskedLM", "ForCausalLM", "ForSeq2SeqLM"))
HEADS = {
    MASKED: ["BERT", "DistilBERT", "ELECTRA", "MPNet", "ModernBERT", "RoBERTa", "DeBERTa", "XLM-R", "ALBERT", "DeBERTa-v3"],
    CAUSAL: ["GPT-2", "Llama", "Qwen 3", "Gemma 3", "XLNet"],
    BOTH: ["BART", "T5"],
    BARE: ["BART", "T5", "Gemma 3"],
    "AutoModelForTextEncoding": ["T5"],
}
HEADED = [(name, auto) for auto, names in HEADS.items() for name in names]
CUTS = ["mapped", "coded", "split anew"]


def pruned(model, tokenizer, how: str):
    "`model` with what TEXTS need and not one row more."
    if how == "mapped":
        return prune(model, tokenizer, TEXTS, 0, "seen", oov="nearest")
    if how == "coded":
        return prune(model, tokenizer, TEXTS, 0.4, "vocab", oov="pq", n_bytes=4)
    special = special_mask(model, tokenizer)
    rows = rows_for_lossless(tokenizer, token_stats(TEXTS, tokenizer, len(special)), special=special, texts=TEXTS)
    return prune(model, tokenizer, TEXTS, 1 - (rows - special.sum()) / (len(special) - special.sum()), "vocab", oov="resegment")


def everything(model, tokenizer, text: str) -> dict[str, torch.Tensor]:
    "Hidden states and outputs for one text; a decoder reads the same ids."
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    decoder = model.config.is_encoder_decoder or getattr(model, "decoder", None) is not None
    inputs = dict(input_ids=ids, output_hidden_states=True) | (dict(decoder_input_ids=ids) if decoder else {})
    with torch.no_grad():
        result = model(**inputs)
    hidden = {f"{side}{i}": h for side in ("", "encoder_", "decoder_") for i, h in enumerate(result.get(f"{side}hidden_states") or ())}
    return hidden | {name: value for name, value in result.items() if torch.is_tensor(value)}


def check_law(model, tokenizer, p):
    "Every text that lost nothing gives bit for bit what it gave; a head's columns up to rounding, as its product has another shape."
    compared = 0
    for text in TEXTS:
        before, after = tokenizer(text)["input_ids"], p.tokenizer(text)["input_ids"]
        if p.plain and p.keep[after].tolist() != before or not set(before) <= set(p.keep.tolist()):
            continue
        compared += 1
        full, ours = everything(model, tokenizer, text), everything(p.model, p.tokenizer, text)
        if model.get_output_embeddings() is not None:
            theirs, own = full.pop("logits")[..., p.keep], ours.pop("logits")
            torch.testing.assert_close(own[..., : len(p.keep)] if p.plain else own[..., p.keep], theirs, rtol=1e-5, atol=1e-5)
        assert same(full, ours) == []
    return compared


@pytest.mark.parametrize("how", CUTS)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_classifier_of_each_family(name, how, tmp_path):
    model, tokenizer = tiny_model(name, CLASSIFIER)
    before = state(model)
    p = pruned(model, tokenizer, how)
    assert len(p.model.get_input_embeddings().weight) < len(model.get_input_embeddings().weight) and type(p.model) is type(model)
    assert check_law(model, tokenizer, p) == len(TEXTS) or how == "coded"
    assert same(before, state(model)) == []
    p.save_pretrained(tmp_path / "model", verify=False)
    again = load(tmp_path / "model")
    assert same(state(p.model), state(again.model)) == [] and again.tokenizer(TEXTS) == p.tokenizer(TEXTS)
    for text in TEXTS[:2]:
        ours, theirs = everything(p.model, p.tokenizer, text), everything(again.model, again.tokenizer, text)
        assert ours.keys() == theirs.keys() and all(torch.allclose(ours[k], theirs[k], rtol=1e-5, atol=1e-5) for k in ours)
    if how == "split anew":
        plain = getattr(transformers, CLASSIFIER).from_pretrained(tmp_path / "model")
        assert p.info["lossless"] and not isinstance(plain.get_input_embeddings(), PrunedEmbedding)
        assert same(state(p.model), state(plain)) == []
        assert transformers.AutoTokenizer.from_pretrained(tmp_path / "model")(TEXTS)["input_ids"] == p.tokenizer(TEXTS)["input_ids"]


@pytest.mark.parametrize("how", ["mapped", "split anew"])
@pytest.mark.parametrize("name, auto", HEADED)
def test_heads_and_bare_models_of_each_family(name, auto, how, tmp_path):
    "Head and embedding shrink together, tied or not; saved, verified and loaded."
    model, tokenizer = tiny_model(name, auto)
    p = pruned(model, tokenizer, how)
    assert check_law(model, tokenizer, p) == len(TEXTS)
    head, small = model.get_output_embeddings(), p.model.get_output_embeddings()
    assert head is None or (small.weight is p.model.get_input_embeddings().weight) == (head.weight is model.get_input_embeddings().weight)
    p.sample = TEXTS[:2]
    p.save_pretrained(tmp_path / "model")
    again = load(tmp_path / "model").model
    assert same(state(p.model), state(again)) == [] and again.get_input_embeddings().padding_idx == p.model.get_input_embeddings().padding_idx


@pytest.mark.parametrize("name", ["T5", "BART"])
def test_one_table_in_several_places(name, tmp_path):
    "It is one module, saved under one name, and `load_state_dict` finds it for all; a part of the model alone saves its own."
    model, tokenizer = tiny_model(name)
    p = pruned(model, tokenizer, "mapped")
    places = [n for n, part in p.model.named_modules(remove_duplicate=False) if isinstance(part, PrunedEmbedding)]
    saved = p.model.state_dict()
    assert len(places) == 3 and [n for n in saved if n.endswith(".keep")] == [f"{places[0]}.keep"]
    other = pruned(tiny_model(name, seed=1)[0], tokenizer, "mapped").model
    assert other.load_state_dict(saved).missing_keys == [] and same(state(other), state(p.model)) == []
    inner = p.model.base_model.encoder
    assert [n for n in inner.state_dict() if n.endswith("keep")] == ["embed_tokens.keep"]


@pytest.mark.parametrize("name", ["T5", "BART"])
def test_a_decoder_reads_the_labels_that_do_not_count(name):
    "Its inputs are the labels shifted, pruned ones included."
    model, tokenizer = tiny_model(name, "AutoModelForSeq2SeqLM")
    small = pruned(model, tokenizer, "mapped").model
    labels = torch.arange(5, model.config.vocab_size)[None, :40]
    kept = small.get_input_embeddings().is_kept(labels)
    assert kept.any() and not kept.all()
    with torch.no_grad():
        wanted = small(input_ids=labels, decoder_input_ids=model.prepare_decoder_input_ids_from_labels(labels=labels), labels=labels.masked_fill(~kept, -100))
        assert torch.equal(small(input_ids=labels, labels=labels).loss, wanted.loss) and wanted.loss.isfinite()


def test_a_scale_is_the_models_own():
    "BART's and Gemma's rows are multiplied as before, in the class that does it."
    for name in ("BART", "Gemma 3"):
        model, tokenizer = tiny_model(name)
        full = model.get_input_embeddings()
        for how in ("mapped", "split anew"):
            p = pruned(model, tokenizer, how)
            rows = p.model.get_input_embeddings()
            ids = torch.arange(len(p.keep)) if p.plain else p.keep
            assert isinstance(rows, type(full)) and torch.equal(rows(ids), full(p.keep)) and not torch.equal(rows(ids), full.weight[p.keep])


def test_an_embedding_that_set_input_embeddings_does_not_reach():
    "Two parts read one set of rows, or one is replaced that had rows of its own: refused by name, in both manners."
    model, tokenizer = tiny_model("BERT")
    p = pruned(model, tokenizer, "mapped")
    model.second = torch.nn.Embedding(1, 1)
    model.second.weight = model.get_input_embeddings().weight
    with pytest.raises(ValueError, match="'second'.*load the encoder alone"):
        rebuild_model_with_vocab(model, p.remap)
    with pytest.raises(ValueError, match="'second'"):
        rebuild_plain(model, p.keep.numpy())
    t5, tokenizer = tiny_model("T5")
    t5.transformer.decoder.embed_tokens = torch.nn.Embedding(*t5.transformer.shared.weight.shape)
    with pytest.raises(ValueError, match="decoder.embed_tokens"):
        prune(t5, tokenizer, TEXTS, 0, "seen", oov="unk")


def test_an_embedding_that_is_more_than_rows():
    model, tokenizer = tiny_model("BERT")
    model.get_input_embeddings().more = torch.nn.Linear(2, 2)
    with pytest.raises(TypeError, match="Embedding.*rows alone"):
        prune(model, tokenizer, TEXTS)


@pytest.mark.parametrize("how", ["mapped", "split anew"])
def test_a_text_model_inside_another(how, tmp_path):
    "Token ids and the size of the vocabulary stand in a configuration of the text part; both follow."
    _, tokenizer = tiny_model("Llama")
    sizes = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24)
    text = transformers.LlamaConfig(**sizes, vocab_size=len(tokenizer), head_dim=8, pad_token_id=tokenizer.pad_token_id,
                                    bos_token_id=tokenizer.cls_token_id, eos_token_id=tokenizer.sep_token_id, tie_word_embeddings=True)
    vision = transformers.CLIPVisionConfig(**sizes, image_size=8, patch_size=4)
    config = transformers.LlavaConfig(vision_config=vision, text_config=text, image_token_id=tokenizer.mask_token_id, tie_word_embeddings=True)
    model = transformers.LlavaForConditionalGeneration(config).eval()
    p = pruned(model, tokenizer, how)
    assert check_law(model, tokenizer, p) == len(TEXTS)
    p.sample = TEXTS[:2]
    p.save_pretrained(tmp_path / "model")
    assert same(state(p.model), state(load(tmp_path / "model").model)) == []
    if how == "split anew":
        inner = p.model.config.text_config
        ids = [p.model.config.image_token_id, inner.pad_token_id, inner.bos_token_id, inner.eos_token_id]
        assert p.tokenizer.convert_ids_to_tokens(ids) == ["[MASK]", "[PAD]", "[CLS]", "[SEP]"] and inner.vocab_size == len(p.tokenizer)


def test_a_model_without_rows_for_tokens():
    "A model of characters says that it has none."
    config = transformers.CanineConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, num_hash_buckets=8)
    with pytest.raises(TypeError, match="CanineModel has no input embedding .* nothing to prune"):
        prune(transformers.CanineModel(config), tiny_model("BERT")[1], TEXTS)
