"""Text that nobody counted on: what a plain model has lost of it is reported, and can be gated on."""

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from vocab_pruning import prune
from vocab_pruning.evaluate.drift import check_coverage, coverage_of

ENGLISH = ["the red fox runs over the field", "a red field and a fox", "the fox and the hen run", "over the red hen"] * 3
OTHER = {
    "emoji": ["😀😀 🦊 🎉🎉", "🦊🎉 😀 🎉"],
    "digits": ["2024 1999 31 2024", "1999 20 31"],
    "addresses": ["https://zip.example/q?k=v", "https://zip.example/k"],
    "code": ["if(x[0]!=y){z+=1;}", "z=x[0]+y[1];"],
    "Cyrillic": ["быстрая лиса бежит", "лиса бежит быстро"],
    "Chinese": ["狐狸跑过田野", "田野上的狐狸"],
}
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def word_piece():
    "Return a tokenizer of word pieces, and its trainer."
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    return backend, trainers.WordPieceTrainer(vocab_size=300, special_tokens=SPECIAL, show_progress=False)


def unigram():
    "Return a tokenizer of Unigram pieces, and its trainer."
    backend = Tokenizer(models.Unigram())
    backend.normalizer, backend.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    return backend, trainers.UnigramTrainer(vocab_size=300, special_tokens=SPECIAL, unk_token="[UNK]", show_progress=False)


def bytes_of_words():
    "Return a byte-level BPE, and its trainer."
    backend = Tokenizer(models.BPE(unk_token="[UNK]"))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return backend, trainers.BpeTrainer(vocab_size=420, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False)


@pytest.fixture(scope="module", params=[word_piece, unigram, bytes_of_words], ids=lambda make: make.__name__)
def pruned_for_english(request):
    "A tiny model pruned for English with `resegment`, and the tokenizer that knew all the texts."
    backend, trainer = request.param()
    backend.train_from_iterator(ENGLISH + [text for texts in OTHER.values() for text in texts * 3], trainer)
    roles = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL, strict=True))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **roles)
    sizes = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    model = BertModel(BertConfig(vocab_size=len(tokenizer), **sizes)).eval()
    return prune(model, tokenizer, ENGLISH, min_count=1, oov="resegment"), tokenizer


@pytest.mark.parametrize("kind", OTHER)
def test_what_is_lost_of_other_text_is_reported_and_stopped(pruned_for_english, kind):
    p, tokenizer = pruned_for_english
    found = coverage_of(p, OTHER[kind], original=tokenizer)
    lost = found["unknown"] > found["unknown_original"]
    assert found["growth"] > 1 or lost
    limit = dict(max_unknown=found["unknown_original"]) if lost else dict(max_growth=1, max_unknown=1)
    with pytest.raises(ValueError, match="unknown" if lost else "times the tokens"):
        check_coverage(found, **limit)


def test_english_passes(pruned_for_english):
    p, tokenizer = pruned_for_english
    found = coverage_of(p, ENGLISH, original=tokenizer)
    check_coverage(found, at_least=1, max_growth=1, max_unknown=found["unknown_original"])
