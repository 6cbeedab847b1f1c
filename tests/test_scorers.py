"""The scorers that need the model: clustering at any size, and what a fine-tuned model attends to."""

import os
from itertools import combinations

import numpy as np
import pytest
import torch
from conftest import FAMILIES, TEXTS, build, make_texts, shared
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import AgglomerativeClustering
from sklearn.metrics import adjusted_rand_score
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForSequenceClassification, AutoTokenizer, EuroBertConfig, EuroBertForSequenceClassification

from vocab_pruning import prune
from vocab_pruning.algorithms.clusters import CLUSTERINGS, cluster_rows
from vocab_pruning.algorithms.linkage import average_linkage, cut_linkage, unit_rows
from vocab_pruning.core import minilm_directory
from vocab_pruning.data.stats import token_stats
from vocab_pruning.data.tasks import examples, load_task
from vocab_pruning.evaluate.frozen import sentence_vectors
from vocab_pruning.models.anatomy import special_mask
from vocab_pruning.scorers.attention import attention_received, compute_attention_scores, vatp_scores
from vocab_pruning.scorers.registry import SCORERS, compute_token_scores
from vocab_pruning.testing.families import tiny_model

CLOSE = 1e-5  # of distances 1 - cosine, whose scale is 1: some tens of float32's unit there
ATTENTION = 1e-4  # relative, of sums of attention: float32 rounds a logit of some tens by 1e-6 to 1e-5, so its exp
needs_minilm = pytest.mark.skipif(minilm_directory() is None, reason="needs the extra `offline` (MiniLM weights)")
needs_glue = pytest.mark.skipif("GLUE_DIR" not in os.environ, reason="needs GLUE's files: set GLUE_DIR")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(scope="module")
def minilm_rows() -> torch.Tensor:
    from safetensors.torch import load_file

    rows = load_file(minilm_directory() / "model.safetensors")["embeddings.word_embeddings.weight"]
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]


# Average linkage


def apart(tree: np.ndarray, k: int) -> int:
    "The number of clusters next to `k` where the last merge done and the first one left differ most in height."
    merges = np.arange(max(1, len(tree) + 1 - k - 10), min(len(tree), len(tree) + 1 - k + 10))
    return len(tree) + 1 - int(merges[np.diff(tree[:, 2])[merges - 1].argmax()])


@needs_minilm
@pytest.mark.parametrize("n, tile", [(500, None), (1200, (64, 256))], ids=["whole", "tiles"])
def test_the_partition_is_scikit_learns(minilm_rows, n, tile, monkeypatch):
    "Cut where two merges are apart by more than rounding; more rows than fit into a tile, too."
    if tile:
        monkeypatch.setattr("vocab_pruning.algorithms.linkage.TILE", tile)
    tree = average_linkage(minilm_rows[:n])
    for k in (2, n // 20, n // 2):
        k = apart(tree, k)
        assert np.diff(tree[:, 2])[n - k - 1] > 10 * CLOSE
        theirs = AgglomerativeClustering(k, metric="cosine", linkage="average").fit_predict(minilm_rows[:n].numpy())
        assert adjusted_rand_score(cut_linkage(tree, k), theirs) == 1


def check_greedy(rows: torch.Tensor):
    "The definition: each merge joins a nearest pair of the clusters that stand before it, by all pairs of rows."
    distance = 1 - (unit_rows(rows) @ unit_rows(rows).T).numpy()
    members, tree = {i: [i] for i in range(len(rows))}, average_linkage(rows)
    for number, (a, b, height, size) in enumerate(tree, len(rows)):
        nearest = min(distance[np.ix_(p, q)].mean() for p, q in combinations(members.values(), 2))
        got = distance[np.ix_(members[a], members[b])].mean()
        assert got == pytest.approx(height, abs=1e-12)  # sums and heights are float64
        assert got == pytest.approx(nearest, abs=CLOSE)  # neighbours are found in float32
        members[number] = members.pop(a) + members.pop(b)
        assert len(members[number]) == size
    assert (np.diff(tree[:, 2]) >= 0).all()


@settings(max_examples=60)
@given(st.lists(st.tuples(*[st.integers(-2, 2)] * 3).filter(any), min_size=1, max_size=14))
def test_every_merge_joins_a_nearest_pair(rows):
    "Small whole numbers: duplicates, opposite rows and exact ties abound."
    check_greedy(torch.tensor(rows).float())


def test_many_rows_around_one():
    "A row near to all others draws them in one by one, which makes long chains of merges."
    generator = torch.Generator().manual_seed(0)
    centre = torch.randn(32, generator=generator)
    check_greedy(torch.cat([centre[None], centre + 1.5 * torch.randn(60, 32, generator=generator)]))


def test_a_circle_of_pointers_is_broken():
    "Where rounding left no two clusters pointing at each other, the nearest pair is joined."
    from vocab_pruning.algorithms.linkage import _Clusters, _reciprocal_pairs

    clusters = _Clusters(unit_rows(torch.tensor([[1.0, 0, 0], [0.1, 1, 0], [0, 0.2, 1]])), torch.ones(3))
    clusters.nearest = torch.tensor([1, 2, 0])
    a, b = _reciprocal_pairs(clusters)
    assert (a.tolist(), b.tolist()) == ([1], [2])


def test_the_same_tree_with_other_tiles(monkeypatch):
    "Without ties, which another kernel may round the other way, the tree is the same to the merge."
    rows = torch.randn(200, 5, generator=torch.Generator().manual_seed(3))
    whole = average_linkage(rows)
    monkeypatch.setattr("vocab_pruning.algorithms.linkage.TILE", (7, 13))
    np.testing.assert_allclose(average_linkage(rows), whole, rtol=0, atol=1e-12)


class Largest(TorchDispatchMode):
    "While it is on, `numbers` is how many the largest tensor held that any operation made."

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **kwargs or {})
        for tensor in made if isinstance(made, (tuple, list)) else [made]:
            if isinstance(tensor, torch.Tensor):
                self.numbers = max(self.numbers, tensor.untyped_storage().nbytes() // tensor.element_size())
        return made


def test_memory_grows_with_the_rows_not_with_their_square(monkeypatch):
    "No tensor holds more than the rows or a tile do, where the distances of all pairs would be 250,000 numbers."
    monkeypatch.setattr("vocab_pruning.algorithms.linkage.TILE", (16, 64))
    monkeypatch.setattr("vocab_pruning.algorithms.linkage.BATCH", 16)
    rows = torch.randn(500, 8, generator=torch.Generator().manual_seed(0))
    with Largest() as largest:
        average_linkage(rows)
    assert 500 * 8 <= largest.numbers <= 2 * 500 * 8


@needs_gpu
@needs_minilm
def test_clusters_on_a_gpu(minilm_rows):
    some = minilm_rows[:3000]
    for method in ("average", "dbscan"):
        assert adjusted_rand_score(cluster_rows(some, 700, method), cluster_rows(some.cuda(), 700, method)) == 1


@needs_minilm
@pytest.mark.parametrize("method", CLUSTERINGS)
def test_exactly_as_many_rows_as_asked_for(method):
    directory = minilm_directory()
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(directory), AutoTokenizer.from_pretrained(directory)
    texts = load_task("sst2", "sample")["train"]["text"][:300]
    p = prune(model, tokenizer, texts, 0.5, "seen", "clustering", "unk", scorer_options={"method": method})
    stats, special = token_stats(texts, tokenizer, 30522), special_mask(model, tokenizer)
    assert len(p.keep) == int(0.5 * (stats.seen & ~special).sum()) + special.sum()
    assert (stats.seen | special)[p.keep].all()


@pytest.mark.parametrize("method", CLUSTERINGS)
def test_a_vocabulary_of_one_row(method):
    assert cluster_rows(torch.ones(1, 4), 1, method).tolist() == [0]
    with pytest.raises(ValueError, match="n_clusters=2: give a whole number from 1 to 1"):
        cluster_rows(torch.ones(1, 4), 2, method)
    with pytest.raises(ValueError, match="n_clusters=0: give a whole number"):
        cluster_rows(torch.ones(1, 4), 0, method)


def test_one_token_seen():
    "Where the texts use a single token, it is the one that stays."
    model, tokenizer = shared("wordpiece"), FAMILIES["wordpiece"].tokenizer
    p = prune(model, tokenizer, ["a a a"], 0.0, "seen", "clustering", "unk")
    special = special_mask(model, tokenizer)
    assert sorted(p.keep.tolist()) == sorted([*np.flatnonzero(special), tokenizer.convert_tokens_to_ids("a")])


# Attention


@torch.no_grad()
def plainly(model, tokenizer, pairs: list[tuple], n_rows: int, by_value: bool, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    "All matrices of a batch at once, and a loop over examples and tokens."
    total, count = np.zeros(n_rows), np.zeros(n_rows, int)
    model.set_attn_implementation("eager")
    for first in range(0, len(pairs), batch_size):
        inputs = tokenizer(*map(list, zip(*pairs[first : first + batch_size], strict=True)), padding=True, truncation=True, max_length=48, return_tensors="pt")
        values = []
        hooks = [layer.register_forward_hook(lambda layer, args, output, to=values: to.append(value_states(layer, output))) for layer in value_layers(model)]
        matrices = model.eval()(**inputs, output_attentions=True).attentions
        for hook in hooks:
            hook.remove()
        for example, (ids, mask) in enumerate(zip(inputs["input_ids"].tolist(), inputs["attention_mask"].tolist(), strict=True)):
            real = [i for i, m in enumerate(mask) if m]
            for layer, matrix in enumerate(matrices):
                given = matrix[example].double()[:, real].sum(1)  # (heads, keys)
                if by_value:
                    given = given * values[layer][example].double().abs().sum(-1)
                for i in real:
                    total[ids[i]] += given[:, i].sum()
            for i in real:
                count[ids[i]] += 1
    return total, count


def value_layers(model) -> list:
    "The linear layers that make values."
    return [part for name, part in model.named_modules() if name.endswith(("attention.self.value", "attn.Wqkv", "self_attn.v_proj"))]


def value_states(layer, output: torch.Tensor) -> torch.Tensor:
    "Values (batch, heads, length, d) from the layer's output; every model here has two heads but MiniLM, with twelve."
    width = output.shape[-1] if layer.out_features == layer.in_features else output.shape[-1] // 3
    heads = 12 if width == 384 else 2
    return output[..., -width:].unflatten(-1, (heads, width // heads)).transpose(1, 2)


@pytest.mark.parametrize("by_value", [False, True], ids=["attention", "vatp"])
@pytest.mark.parametrize("padded", [False, True], ids=["alone", "padded"])
def test_what_is_received_is_the_plain_sum(family, padded, by_value):
    model, tokenizer = build(family), FAMILIES[family].tokenizer
    texts = make_texts(80, seed=4)
    pairs, size = list(zip(texts[:40], texts[40:], strict=True)), 16 if padded else 1
    got, occurrences = attention_received(model, tokenizer, pairs, model.config.vocab_size, by_value, size, 48)
    total, count = plainly(model, tokenizer, pairs, model.config.vocab_size, by_value, size)
    np.testing.assert_allclose(got, total, rtol=ATTENTION)
    np.testing.assert_array_equal(occurrences, count)


@needs_minilm
@pytest.mark.parametrize("by_value", [False, True], ids=["attention", "vatp"])
@pytest.mark.parametrize("data", ["sample", pytest.param("auto", marks=needs_glue)])
def test_minilm_on_real_pairs(data, by_value):
    "Twelve heads, trained weights; batches of other sizes, so other float32 kernels: hence ten times the tolerance."
    directory = minilm_directory()
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(directory), AutoTokenizer.from_pretrained(directory)
    pairs = examples(load_task("mrpc", data)["train"].select(range(40)))
    got, _ = attention_received(model, tokenizer, pairs, 30522, by_value, 16, 48)
    total, _ = plainly(model, tokenizer, pairs, 30522, by_value, 11)
    np.testing.assert_allclose(got, total, rtol=10 * ATTENTION)


def test_padding_changes_nothing(family):
    model, tokenizer = shared(family), FAMILIES[family].tokenizer
    alone, together = (attention_received(model, tokenizer, TEXTS, model.config.vocab_size, batch_size=size)[0] for size in (1, 60))
    np.testing.assert_allclose(alone, together, rtol=10 * ATTENTION)  # products of other shapes, other float32 kernels


def test_pairs_and_single_texts_do_not_mix():
    with pytest.raises(ValueError, match=r"^examples \('a',\) and \('b', 'c'\) differ in the number of texts"):
        attention_received(shared("wordpiece"), FAMILIES["wordpiece"].tokenizer, ["a", ("b", "c")], 177)


def test_the_side_of_padding_does_not_matter():
    tokenizer = FAMILIES["wordpiece"].make_tokenizer()
    right = attention_received(shared("wordpiece"), tokenizer, TEXTS, 177)[0]
    tokenizer.padding_side = "left"
    np.testing.assert_array_equal(attention_received(shared("wordpiece"), tokenizer, TEXTS, 177)[0], right)


def test_heads_that_share_their_values():
    "Grouped queries: two heads for each set of values count as two."
    config = EuroBertConfig(vocab_size=177, hidden_size=32, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                            max_position_embeddings=64, pad_token_id=0)
    model, tokenizer = EuroBertForSequenceClassification(config).eval(), FAMILIES["wordpiece"].tokenizer
    values = []
    hooks = [layer.self_attn.v_proj.register_forward_hook(lambda layer, args, output: values.append(output)) for layer in model.model.layers]
    inputs = tokenizer(TEXTS[1], return_tensors="pt")
    model.set_attn_implementation("eager")
    with torch.no_grad():
        matrices = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], output_attentions=True).attentions
    for hook in hooks:
        hook.remove()
    size = [v[0].unflatten(-1, (2, 8)).abs().sum(-1).T[[0, 0, 1, 1]] for v in values]  # (heads, keys)
    wanted = sum((matrix[0].sum(1) * norm).sum(0) for matrix, norm in zip(matrices, size, strict=True))
    got, count = attention_received(model, tokenizer, [TEXTS[1]], 177, by_value=True)
    np.testing.assert_allclose(got, np.bincount(inputs["input_ids"][0], wanted, minlength=177), rtol=ATTENTION)


@pytest.mark.parametrize("name", ["BART", "T5"])
def test_of_a_model_with_a_decoder_the_encoder_is_read(name):
    "Whose positions are those of the text; the decoder's are shifted by one."
    model, tokenizer = tiny_model(name)
    inputs, n_rows = tokenizer(TEXTS[1], return_tensors="pt"), model.config.vocab_size
    model.set_attn_implementation("eager")
    with torch.no_grad():
        matrices = model(**inputs, output_attentions=True).encoder_attentions
    wanted = sum(matrix[0].sum((0, 1)) for matrix in matrices)
    got, _ = attention_received(model, tokenizer, [TEXTS[1]], n_rows)
    np.testing.assert_allclose(got, np.bincount(inputs["input_ids"][0], wanted, minlength=n_rows), rtol=ATTENTION)


def test_half_precision(family):
    model, tokenizer = build(family).bfloat16(), FAMILIES[family].tokenizer
    got, count = attention_received(model, tokenizer, TEXTS, model.config.vocab_size)
    layers, heads = model.config.num_hidden_layers, model.config.num_attention_heads
    assert got.sum() == pytest.approx(count.sum() * layers * heads, rel=0.01)  # bfloat16's 8 bits: 0.4 % of a weight


def test_model_and_tokenizer_are_left_as_they_were(family):
    model, tokenizer = build(family).train(), FAMILIES[family].make_tokenizer()
    before, cut = model.config._attn_implementation, tokenizer.backend_tokenizer.to_str()
    stats = token_stats(TEXTS, tokenizer, model.config.vocab_size)
    with pytest.raises(TypeError, match=r"example \(3,\) holds something that is not a string"):
        compute_attention_scores(stats, model=model, tokenizer=tokenizer, texts=[3])
    vatp_scores(stats, model=model, tokenizer=tokenizer, texts=TEXTS)
    sentence_vectors(model, tokenizer, TEXTS)
    assert (model.config._attn_implementation, model.training, tokenizer.backend_tokenizer.to_str()) == (before, True, cut)


def test_a_watch_that_fails_leaves_the_model_as_it_was():
    from vocab_pruning.scorers.attention import watch_attention

    model = build("wordpiece").train()
    before = model.config._attn_implementation
    with pytest.raises(ZeroDivisionError), watch_attention(model, lambda *shown: 1 / 0):
        model(input_ids=torch.tensor([[2, 3]]))
    assert (model.config._attn_implementation, model.training) == (before, True)


# All scorers


@pytest.mark.parametrize("scorer", SCORERS)
def test_no_scorer_is_given_the_dev_split(family, scorer):
    "A token that is in dev alone is scored as any token that is nowhere."
    model, tokenizer = shared(family), FAMILIES[family].tokenizer
    canary = "zqx"
    ids = {*tokenizer(canary, add_special_tokens=False)["input_ids"]}
    train = [text for text in TEXTS if not ids & {*tokenizer(text)["input_ids"]}]
    stats = token_stats(train, tokenizer, model.config.vocab_size)
    scores = compute_token_scores(stats, scorer, model=model, n_rows=40, texts=train, tokenizer=tokenizer, special=special_mask(model, tokenizer))
    assert not stats.counts[[*ids]].any()
    if scorer != "random":
        assert not scores[[*ids]].any() and scores[stats.seen].any()
