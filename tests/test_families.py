"""Any encoder: tiny models of each family with the tokenizer of their own class, mapped and split anew, saved and loaded, and held to the first law."""

import copy

import pytest
import torch
import transformers
from conftest import same, state

from vocab_pruning import load, prune
from vocab_pruning.data.stats import token_stats
from vocab_pruning.data.tasks import documents, load_task
from vocab_pruning.models.anatomy import special_mask
from vocab_pruning.models.embedding import PrunedEmbedding, rebuild_model_with_vocab
from vocab_pruning.models.plain import rebuild_plain
from vocab_pruning.remaps.resegmenting import rows_for_lossless
from vocab_pruning.testing.families import FAMILIES, tiny_model

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


# Ids in configurations


def with_ids(name: str, auto: str, how: str):
    "A model whose configurations hold ids in each form: of tokens that stay (`here`, `also`) and of one that is `gone`."
    model, tokenizer = tiny_model(name, auto)
    keep = set(pruned(model, tokenizer, how).keep.tolist())
    special = set(special_mask(model, tokenizer).nonzero()[0].tolist())
    here, also = sorted(keep - special)[-2:]
    gone = max(set(range(len(tokenizer))) - keep)
    settings = model.generation_config
    settings.suppress_tokens, settings.begin_suppress_tokens = [here, gone], [gone]
    settings.bad_words_ids = [[here], [also, gone], [also, here]]
    settings.force_words_ids = [[[here, also], [gone]], [[gone]]]
    settings.sequence_bias = {(here,): 2.0, (gone, here): -2.0}
    settings.forced_decoder_ids = [[1, here], [2, gone], [3, None]]
    settings.lang_to_id = {"<|en|>": here, "<|de|>": gone}
    settings.forced_bos_token_id = also
    settings.eos_token_id = [tokenizer.sep_token_id or tokenizer.eos_token_id, here]
    settings.num_beams, settings.max_length, settings.min_new_tokens = 1, here, gone
    model.config.image_token_ids = [also, here]
    of_task = dict(forced_bos_token_id=here, max_length=gone, bad_words_ids=[[gone], [here]])
    model.config.task_specific_params = {"summarization": of_task}
    return model, tokenizer, here, also, gone


@pytest.mark.parametrize("name, auto", [("BART", BOTH), ("GPT-2", CAUSAL), ("Llama", CAUSAL)])
def test_ids_in_configurations_are_those_of_the_tokens_they_were(name, auto, tmp_path):
    "Renumbered in every form; those that are gone are dropped, noted and said. Other numbers stay."
    model, tokenizer, here, also, gone = with_ids(name, auto, "split anew")
    with pytest.warns(UserWarning, match="dropped from the configuration") as told:
        p = pruned(model, tokenizer, "split anew")
    (line,) = [str(warning.message) for warning in told if "dropped" in str(warning.message)]
    assert "\n" not in line and f"suppress_tokens {gone}" in line
    new = {old: i for i, old in enumerate(p.keep.tolist())}
    a, b, settings = new[here], new[also], p.model.generation_config
    assert gone not in new and tokenizer.convert_ids_to_tokens(here) == p.tokenizer.convert_ids_to_tokens(a)
    assert (settings.suppress_tokens, settings.begin_suppress_tokens) == ([a], None)
    assert settings.bad_words_ids == [[a], [b, a]]
    assert (settings.force_words_ids, settings.sequence_bias) == ([[[a, b]]], {(a,): 2.0})
    assert (settings.forced_decoder_ids, settings.lang_to_id) == ([[1, a], [3, None]], {"<|en|>": a})
    assert settings.forced_bos_token_id == b and settings.eos_token_id[1] == a
    assert (settings.num_beams, settings.max_length, settings.min_new_tokens) == (1, here, gone)
    assert p.model.config.image_token_ids == [b, a]
    of_task = p.model.config.task_specific_params["summarization"]
    assert of_task == dict(forced_bos_token_id=a, max_length=gone, bad_words_ids=[[a]])
    assert p.info["dropped_ids"]["bad_words_ids"] == [[also, gone]]
    assert p.info["dropped_ids"]["suppress_tokens"] == [gone]
    assert model.generation_config.suppress_tokens == [here, gone]  # the original's stay
    p.verify()
    settings.force_words_ids = settings.forced_decoder_ids = settings.lang_to_id = None  # generate takes them no longer
    p.original = None
    p.save_pretrained(tmp_path / "model", verify=False)
    again = load(tmp_path / "model").model.generation_config
    assert (again.suppress_tokens, again.bad_words_ids) == ([a], [[a], [b, a]])


@pytest.mark.parametrize("how", ["mapped", "coded"])
def test_ids_in_configurations_stay_under_a_remap(how):
    "The tokenizer is the original, and so is every id; `generate` runs with them."
    model, tokenizer, here, also, gone = with_ids("GPT-2", CAUSAL, how)
    p = pruned(model, tokenizer, how)
    settings = p.model.generation_config
    assert (settings.suppress_tokens, settings.bad_words_ids) == ([here, gone], [[here], [also, gone], [also, here]])
    assert "dropped_ids" not in p.info
    p.verify()


def test_generation_after_resegmenting_suppresses_the_same_token():
    "What the full model may not say, the rewritten one does not say either."
    model, tokenizer = tiny_model("GPT-2", CAUSAL)

    def says(p) -> int:
        "The original id of the token that follows the first text."
        ids = p.tokenizer(TEXTS[0], return_tensors="pt")["input_ids"]
        return int(p.keep[p.model.generate(ids, max_new_tokens=1, do_sample=False)[0, -1]])

    p = pruned(model, tokenizer, "split anew")
    first, gone = says(p), min(set(range(len(tokenizer))) - set(p.keep.tolist()))
    settings = model.generation_config
    for name, ids in (("suppress_tokens", [first, gone]), ("bad_words_ids", [[first], [gone, first]])):
        setattr(settings, name, ids)
        with pytest.warns(UserWarning, match=f"dropped .* {name}"):
            assert says(pruned(model, tokenizer, "split anew")) != first
        setattr(settings, name, None)


WRONG = [("suppress_tokens", [3]), ("bad_words_ids", [[3]]), ("sequence_bias", {(3,): 2.0}), ("forced_bos_token_id", 3),
         ("eos_token_id", 3), ("eos_token_id", None)]


@pytest.mark.parametrize("field, wrong", WRONG)
@pytest.mark.parametrize("how", ["mapped", "split anew"])
@pytest.mark.filterwarnings("ignore:dropped from the configuration")
def test_a_wrong_id_for_generation_is_found(field, wrong, how):
    model, tokenizer, *_ = with_ids("GPT-2", CAUSAL, how)
    p = pruned(model, tokenizer, how)
    p.model.generation_config.begin_suppress_tokens = None  # a list that is taken away names no wrong token
    p.verify()
    setattr(p.model.generation_config, field, wrong)
    with pytest.raises(ValueError, match=f"{field} of the configuration.*now names another token"):
        p.verify()


def test_a_special_token_whose_row_is_gone_is_refused():
    "Before anything is copied."
    model, _ = tiny_model("BART", BOTH)
    model.generation_config.decoder_start_token_id = 40
    with pytest.raises(ValueError, match="decoder_start_token_id 40 of the configuration is not the id of a kept token"):
        rebuild_plain(model, torch.arange(30).numpy())


def test_a_model_without_numbers():
    "On the device meta, whole or in part: one line that names the tensor."
    model, tokenizer = tiny_model("BERT")
    whole = copy.deepcopy(model).to("meta")
    model.bert.encoder.layer[1].output.dense.to("meta")
    for broken, name in ((whole, "word_embeddings.weight"), (model, r"layer\.1\.output\.dense\.weight")):
        for oov in ("nearest", "resegment"):
            with pytest.raises(ValueError, match=f"{name} of BertForSequence.* on the device meta.*load the weights"):
                prune(broken, tokenizer, TEXTS, 0.3, "vocab", oov=oov)


def test_a_model_without_rows_for_tokens():
    "A model of characters says that it has none."
    config = transformers.CanineConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, num_hash_buckets=8)
    with pytest.raises(TypeError, match="CanineModel has no input embedding .* nothing to prune"):
        prune(transformers.CanineModel(config), tiny_model("BERT")[1], TEXTS)
