"""Where pruned tokens may go, what options take, and searches and clusters at every size."""

import math
from dataclasses import fields

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import Unread
from safetensors.torch import load_file
from transformers import BertConfig
from transformers.modeling_outputs import BaseModelOutput

from vocab_pruning import load, prune
from vocab_pruning.algorithms.clusters import SAMPLE_ROWS, centroids, cluster_rows, kmeans_clusters, medoids
from vocab_pruning.algorithms.codebooks import second_moment
from vocab_pruning.algorithms.linkage import cluster_sums
from vocab_pruning.algorithms.pursuit import Products, Residuals, _pursue_block, pursue
from vocab_pruning.core import minilm_directory
from vocab_pruning.data.stats import token_stats
from vocab_pruning.models.anatomy import PLACEHOLDER, reserved_mask, special_mask
from vocab_pruning.models.checkpoint import prune_checkpoint
from vocab_pruning.models.sensitivity import LEAST, embedding_metric
from vocab_pruning.remaps.codes import product_codes
from vocab_pruning.remaps.kinds import OPTIONS, REMAPS, ROW_METRICS, Plan, check_remap, nearest_rows, remap_to_product_codes
from vocab_pruning.remaps.pieces import splitter
from vocab_pruning.testing.families import FAMILIES, tiny_model

TEXTS = ["the cat sat on the mat", "a dog ran away"] * 20
TARGETS = {"nearest": {}, "sparse": dict(m=3), "cluster": dict(n_clusters=4), "dbscan": dict(n_clusters=4)}


@pytest.fixture(scope="module")
def minilm_rows() -> torch.Tensor:
    if minilm_directory() is None:
        pytest.skip("MiniLM is not installed")
    return load_file(minilm_directory() / "model.safetensors")["embeddings.word_embeddings.weight"]


@pytest.fixture(scope="module")
def padded():
    "A tiny BERT with placeholders among its words, and three rows that no token has."
    model, tokenizer = tiny_model("BERT")
    names = ["[unused0]", "<unused1>", "<extra_id_2>", "<|reserved_special_token_3|>"]
    tokenizer.add_tokens(names)
    torch.manual_seed(0)
    model.resize_token_embeddings(len(tokenizer) + 3)
    rows = model.get_input_embeddings().weight.data
    rows.normal_()
    tempting = [*tokenizer.convert_tokens_to_ids(names), *range(len(tokenizer), len(rows)), *tokenizer.all_special_ids]
    rows[tempting] = rows.mean(dim=0) + 1e-3 * torch.randn(len(tempting), rows.shape[1])  # near to the middle of all
    return model, tokenizer, np.isin(np.arange(len(rows)), tempting)


def read_rows(p) -> np.ndarray:
    "The original ids whose rows pruned ids read."
    index = p.remap.index[~p.remap.kept]
    read = index[p.remap.weight[~p.remap.kept] != 0].unique().long()
    return p.remap.keep[read].numpy()


# Reserved rows


def test_reserved_rows_are_found(padded):
    model, tokenizer, reserved = padded
    assert np.array_equal(reserved_mask(model, tokenizer), reserved)


@pytest.mark.parametrize("name", FAMILIES)
def test_words_are_not_reserved(name):
    model, tokenizer = tiny_model(name)
    more = reserved_mask(model, tokenizer) & ~special_mask(model, tokenizer)
    assert all(i not in tokenizer.get_vocab().values() or PLACEHOLDER.fullmatch(tokenizer.convert_ids_to_tokens(int(i)))
               for i in np.flatnonzero(more))
    assert more.sum() < len(more) / 2


@pytest.mark.parametrize("oov", TARGETS)
def test_no_reserved_row_is_read(padded, oov):
    "Not even where reserved rows rank first, so that nearly all of what is kept is reserved."
    model, tokenizer, reserved = padded
    for scores in (reserved.astype(float), -reserved.astype(float)):
        p = prune(model, tokenizer, TEXTS, rows_ratio(reserved, 12), "vocab", oov=oov, scores=scores, **TARGETS[oov])
        assert not reserved[read_rows(p)].any() and len(read_rows(p)) > 1
        assert np.isin(np.flatnonzero(special_mask(model, tokenizer)), p.keep).all()


def rows_ratio(reserved: np.ndarray, n_ordinary: int, n_special: int = 5) -> float:
    "The ratio of base `vocab` that keeps the reserved rows and `n_ordinary` more."
    return 1 - (reserved.sum() - n_special + n_ordinary) / (len(reserved) - n_special)


@pytest.mark.parametrize("oov", ["nearest", "sparse"])
def test_only_reserved_rows_are_kept(padded, oov):
    model, tokenizer, reserved = padded
    with pytest.raises(ValueError, match="kept rows is an ordinary token's .* keep more rows, or choose oov='unk'"):
        prune(model, tokenizer, TEXTS, rows_ratio(reserved, 0), "vocab", oov=oov, scores=reserved.astype(float))


def test_means_leave_reserved_rows_out(padded):
    "A synthetic row is the mean of ordinary rows alone."
    model, tokenizer, reserved = padded
    p = prune(model, tokenizer, TEXTS, rows_ratio(reserved, 0), "vocab", oov="cluster", n_clusters=1, representative="mean",
              scores=np.zeros(len(reserved)))
    rows = model.get_input_embeddings().weight.detach()
    pruned = (~p.remap.kept).numpy()
    mean = rows[pruned & ~reserved].double().mean(dim=0)
    torch.testing.assert_close(p.remap.extra[0].double(), mean, rtol=1e-5, atol=1e-6)
    assert (p.remap.index[pruned] == p.remap.n_rows - 1).all()


# Rows that no text reads


@pytest.mark.parametrize("oov", [oov for oov, spec in REMAPS.items() if "only_seen" in spec.options])
def test_only_seen(padded, oov):
    "Pruned rows that no text reads read [UNK]; the others are treated as ever; what is coded is what is read."
    model, tokenizer, reserved = padded
    seen = np.zeros(len(reserved), bool)
    seen[[i for ids in tokenizer(TEXTS[:2], add_special_tokens=False)["input_ids"] for i in ids]] = True
    options = TARGETS.get(oov, {}) | (dict(n_bytes=4, graded=True) if oov == "pq" else {})
    ratio = rows_ratio(reserved, 12)
    p = prune(model, tokenizer, TEXTS, ratio, "vocab", oov=oov, scores=-seen.astype(float), only_seen=True, **options)
    pruned = (~p.remap.kept).numpy()
    unk = int((p.remap.keep == tokenizer.unk_token_id).nonzero())
    unread = pruned & ~seen
    assert unread.any() and (pruned & seen).sum() > 4 and p.info["train"]["unseen"] == unread.sum()
    assert (p.remap.index[unread][:, 0] == unk).all() and (p.remap.weight[unread][:, 0] == 1).all()
    if not REMAPS[oov].keeps_letters:  # the letters of twelve rows split little
        assert (p.remap.index[pruned & seen][:, 0] != unk).all()
    if p.remap.coded is not None:
        assert len(p.remap.coded.codes) == (pruned & seen).sum()


def test_only_seen_needs_an_unknown_token():
    model, tokenizer = tiny_model("BERT")
    tokenizer.unk_token = None
    with pytest.raises(ValueError, match="only_seen=True sends .* unknown token, which the tokenizer does not have"):
        prune(model, tokenizer, ["the"], 0.3, "vocab", oov="nearest", only_seen=True)


def test_nothing_pruned_is_read():
    "With every row that is read kept, codes are none and the model still runs."
    model, tokenizer = tiny_model("BERT")
    p = prune(model, tokenizer, ["the"], 0.3, "vocab", oov="pq", n_bytes=4, only_seen=True)
    assert p.remap.coded is None
    ids = torch.arange(model.config.vocab_size)[None]
    with torch.no_grad():
        p.model(input_ids=ids[:, :16])


# Options

WRONG = {
    "m": [2.0, 0, 1, -2, "8", True, math.nan, None, [4]],
    "n_clusters": [2.5, -1, "5", True, math.nan, None, math.inf],
    "n_bytes": [0, -1, 4.0, "4", False, math.nan],
    "representative": ["x", 1, None, math.nan, "Medoid"],
    "outside_budget": ["false", 1, None],
    "only_seen": ["no", 0, None],
    "rotate": ["no", 1, None],
    "graded": ["no", 1, 0],
    "metric": ["no", 1, True],
    "lossless": ["false", 1],
    "pad_to_multiple_of": [0, 8.0, "8", True],
}
CASES = [(oov, name) for oov, spec in REMAPS.items() for name in spec.options]


@pytest.mark.parametrize(("oov", "name"), CASES)
def test_wrong_values_are_refused_by_name(oov, name):
    model, tokenizer = tiny_model("BERT")
    for value in WRONG[name]:
        with pytest.raises(ValueError) as refused:
            prune(model, tokenizer, Unread(), 0.3, "vocab", oov=oov, **{name: value})
        text = str(refused.value)
        assert text.startswith(f"{name}={value!r}: give ") and OPTIONS[name].takes in text and "\n" not in text


def test_every_option_has_wrong_values():
    assert OPTIONS.keys() == WRONG.keys()


@pytest.mark.parametrize("oov", REMAPS)
def test_what_prune_gives_itself_is_no_option(oov):
    "A remap's plan is made by `prune`; only its options may be asked for."
    for name in [field.name for field in fields(Plan)] + ["n_special", "width", "clusters"]:
        with pytest.raises(TypeError, match=f"oov='{oov}' got an unexpected option '{name}'; it takes "):
            check_remap(oov, {name: 0})


def test_values_of_numpy_are_values():
    check_remap("sparse", dict(m=np.int64(3)))
    check_remap("cluster", dict(n_clusters=np.int32(0), outside_budget=np.bool_(True)))


@pytest.mark.parametrize(("oov", "options", "told"), [
    ("pq", dict(n_bytes=5), "5 codes do not divide a row of 16"),
    ("pq", dict(n_bytes=1, graded=True), "n_bytes=1; give 2 or more"),
    ("pq", dict(n_bytes=32), "32 codes do not divide a row of 16"),
    ("pq", dict(metric="outputs", rotate=False), "metric='outputs' needs the matrix of the rotation; leave rotate at True"),
    ("pq", dict(metric="rows", rotate=False), "metric='rows' needs the matrix of the rotation; leave rotate at True"),
])
def test_codes_that_do_not_fit_are_refused_before_texts_are_read(oov, options, told):
    model, tokenizer = tiny_model("BERT")
    assert model.get_input_embeddings().embedding_dim == 16
    with pytest.raises(ValueError, match=told):
        prune(model, tokenizer, Unread(), 0.3, "vocab", oov=oov, **options)


# Searches


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("n_rows", [1, 63, 64, 65, 700])
def test_the_nearest_row_is_exact(n_rows, threads):
    "With rows that are equal, opposite or differ in the last digits, and targets of zeros: as in float64, first of equals first."
    draw = torch.Generator().manual_seed(n_rows)
    rows = torch.randn(n_rows, 24, generator=draw)
    rows[n_rows // 2 :] = rows[: n_rows - n_rows // 2] * (1 + 2**-22 * torch.randint(0, 2, (n_rows - n_rows // 2, 1), generator=draw))
    queries = torch.cat([torch.randn(900, 24, generator=draw), rows, -rows, torch.zeros(1, 24)])
    unit = F.normalize(rows.double(), dim=1)
    exact = (F.normalize(queries.double(), dim=1) @ unit.T).round(decimals=12).argmax(dim=1)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert torch.equal(nearest_rows(queries, rows), exact)
        absolute = Products(unit, block=len(queries)).largest(queries, absolute=True)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(absolute, (F.normalize(queries.double(), dim=1) @ unit.T).abs().round(decimals=12).argmax(dim=1))


def test_half_precision_rows_are_searched(dtype=torch.float16):
    rows = torch.randn(50, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert nearest_rows(3 * rows, rows).tolist() == list(range(50))


def test_pursuit_by_definition():
    "Each step takes the row that explains most of what is left, and weights are those of least squares."
    draw = torch.Generator().manual_seed(0)
    rows, targets = torch.randn(200, 24, generator=draw).double(), torch.randn(40, 24, generator=draw).double()
    index, weight = pursue(targets.float(), rows.float(), m=5, block=7)
    unit = F.normalize(rows, dim=1)
    for target, picked, weights in zip(targets, index.tolist(), weight.double(), strict=True):
        left = target
        for step, row in enumerate(picked):
            products = (unit @ left).abs()
            products[picked[:step]] = -1
            assert products.argmax() == row
            chosen = rows[picked[: step + 1]].T
            left = target - chosen @ torch.linalg.lstsq(chosen, target[:, None]).solution[:, 0]
        torch.testing.assert_close(rows[picked].T @ weights, target - left, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("known", [0, 1, 400, 1200])
def test_pursuit_is_the_same_with_known_products(known, threads):
    "With rows that are equal or nearly so, targets that few rows explain wholly, and zeros: as where all is float64."
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn(1200, 24, generator=draw)
    rows[600:900], rows[900:1100], rows[1100:] = rows[:300], rows[300:500] * (1 + 2**-22), rows[500]
    targets = torch.cat([torch.randn(150, 24, generator=draw), rows[::40], -2 * rows[1:600:40] + rows[7], torch.zeros(1, 24)])
    unit, before = F.normalize(rows.double(), dim=1), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        index, weight = _pursue_block(targets, Residuals(unit, len(targets), known), 5)
    finally:
        torch.set_num_threads(before)
    assert all(len(set(row)) == 5 for row in index.tolist())
    for step in range(5):
        chosen = unit[index[:, :step]]
        left = targets.double()
        if step:
            gram = chosen @ chosen.mT + 1e-9 * torch.eye(step, dtype=torch.float64)
            left = left - (torch.linalg.solve(gram, chosen @ left[..., None]).mT @ chosen)[:, 0]
        left[left.norm(dim=1) <= 1e-7 * targets.norm(dim=1)] = 0
        products = (F.normalize(left, dim=1, eps=1e-300) @ unit.T).abs().round(decimals=12)
        assert torch.equal(products.scatter_(1, index[:, :step], -torch.inf).argmax(dim=1), index[:, step])


def test_more_targets_than_rows_are_mixed_alike(monkeypatch):
    draw = torch.Generator().manual_seed(0)
    rows, targets = torch.randn(70, 24, generator=draw), torch.randn(300, 24, generator=draw)
    whole = pursue(targets, rows)
    monkeypatch.setattr("vocab_pruning.algorithms.pursuit.KNOWN", 0)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(whole, pursue(targets, rows), strict=True))


# Clusters


def loss(rows: torch.Tensor, labels: np.ndarray) -> float:
    "Squared distances of rows to the means of their clusters."
    return float((rows.double() - centroids(rows, labels)[labels]).square().sum())


def test_kmeans_is_as_good_as_scikit_learn(minilm_rows):
    "On 6,000 rows of MiniLM; both start from random rows, and starts alone make half a per cent of difference."
    from sklearn.cluster import KMeans

    some = minilm_rows[5000:11000, :24].contiguous()
    theirs = KMeans(100, init="random", n_init=1, max_iter=25, random_state=0).fit(some.numpy()).labels_.astype(np.int64)
    ours = kmeans_clusters(some, 100, max_iter=30)
    assert loss(some, ours) < 1.005 * loss(some, theirs)
    assert len(np.unique(ours)) == 100 and np.array_equal(ours, kmeans_clusters(some, 100, max_iter=30))


def test_a_misspelt_start_is_refused(minilm_rows):
    with pytest.raises(ValueError, match=r"^unknown init 'kmeans\+\+'; choose one of random, k-means\+\+"):
        kmeans_clusters(minilm_rows[:100], 4, init="kmeans++")


def test_a_sample_is_as_good_as_all_rows():
    "Above SAMPLE_ROWS rows the centers are learnt from some; what is lost is below half a per cent."
    rows = torch.randn(2 * SAMPLE_ROWS, 4, generator=torch.Generator().manual_seed(0))
    labels = kmeans_clusters(rows, 16, max_iter=30)
    whole = kmeans_clusters(rows[:SAMPLE_ROWS], 16, max_iter=30)
    assert loss(rows, labels) / 2 < 1.005 * loss(rows[:SAMPLE_ROWS], whole)
    assert len(np.unique(labels)) == 16


@pytest.mark.parametrize("init", ["random", "k-means++"])
@pytest.mark.parametrize("k", [1, 7, 40])
def test_no_cluster_is_empty(init, k):
    "Identical rows make fewer distinct points than clusters."
    rows = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).repeat(8, 1)
    assert np.array_equal(np.unique(kmeans_clusters(rows, k, 0, init)), np.arange(k))


def test_distinct_points_are_all_found():
    "Starts that are far from one another, and centers that no row is nearest to, which move: each of 30 points gets its own cluster."
    rows = 10 * torch.randn(30, 3, generator=torch.Generator().manual_seed(0)).repeat(20, 1)
    for init in ("random", "k-means++"):
        labels = kmeans_clusters(rows, 30, 0, init, max_iter=30)
        assert loss(rows, labels) == pytest.approx(0, abs=1e-6)


def test_blocks_change_nothing(minilm_rows):
    "Sums, means and medoids of more rows than a block holds are those of all at once."
    some, labels = minilm_rows[:2500], np.arange(2500) % 40
    sums, size = cluster_sums(some, labels)
    whole = torch.zeros(40, some.shape[1], dtype=torch.float64).index_add_(0, torch.as_tensor(labels), some.double())
    assert torch.equal(sums, whole) and size.sum() == 2500
    distance = (some.double() - (whole / size[:, None])[labels]).norm(dim=1).numpy().round(12)
    assert all(distance[m] == distance[labels == cluster].min() for cluster, m in enumerate(medoids(some, labels)))


def test_codes_of_equal_rows():
    rows = torch.ones(300, 8)
    assert torch.equal(product_codes(rows, parts=4, rotate=False)(torch.arange(300)), rows)
    torch.testing.assert_close(product_codes(rows, parts=4)(torch.arange(300)), rows, rtol=0, atol=0.02)  # 8 bits of the rotation


def test_graded_codes_take_no_more_bytes_and_serve_what_ranks_first(minilm_rows):
    rows, order = minilm_rows[:2000], np.random.default_rng(0).permutation(2000)
    plan = Plan(rows, order, n_keep=200)
    even, graded = (remap_to_product_codes(plan, graded=graded) for graded in (False, True))
    n_bytes = [sum(codes.nbytes for name, codes in remap.coded.state_dict().items() if name.endswith("codes"))
               for remap in (even, graded)]
    assert n_bytes[0] - 200 < n_bytes[1] <= n_bytes[0]
    lost = [(remap.coded(remap.index[order[200:], 0] - 200) - rows[order[200:]]).square().sum(1).detach() for remap in (even, graded)]
    first = lost[1][:150].mean() / lost[0][:150].mean(), lost[1][150:].mean() / lost[0][150:].mean()
    assert first[0] < 0.5 and 1 < first[1] < 1.5


def test_codes_lose_least_where_errors_cost_most(minilm_rows):
    "With a metric, the cost of errors by it falls, their length may grow, and no byte is added."
    rows = minilm_rows[2000:5000]
    axes = torch.linalg.qr(torch.randn(384, 384, generator=torch.Generator().manual_seed(0)))[0].double()
    metric = (axes * torch.logspace(1, -1, 384, dtype=torch.float64)) @ axes.T
    plain, coded = (product_codes(rows, seed=1, max_iter=5, metric=m) for m in (None, metric))
    assert coded.describe() == plain.describe()
    errors = [(codes(torch.arange(3000)) - rows).detach().double() for codes in (plain, coded)]
    cost = [((e @ metric) * e).sum() for e in errors]
    assert cost[1] < 0.8 * cost[0] and errors[1].square().sum() > errors[0].square().sum()
    even = product_codes(rows, seed=1, max_iter=5, metric=torch.eye(384, dtype=torch.float64))(torch.arange(3000)) - rows
    assert even.detach().double().square().sum() == pytest.approx(errors[0].square().sum().item(), rel=0.02)  # rounding sends k-means another way


class Listens(torch.nn.Module):
    "A model whose answer is the sum of the first of four numbers of each token's row."

    def __init__(self):
        super().__init__()
        self.config = BertConfig(is_encoder_decoder=False)
        self.rows = torch.nn.Embedding(1000, 4)
        self.device = torch.device("cpu")

    def get_input_embeddings(self):
        return self.rows

    def forward(self, input_ids, attention_mask, **options):
        return BaseModelOutput(last_hidden_state=self.rows(input_ids) * torch.tensor([1.0, 0, 0, 0]))


def test_the_metric_is_what_the_model_listens_to():
    "One direction has all the weight: of the mean sensitivity 1 it has 4, and the others the least there is."
    metric = embedding_metric(Listens(), tiny_model("BERT")[1], ["", "a cat", "a dog"] * 40, 120)
    torch.testing.assert_close(metric, torch.diag(torch.tensor([4.0, LEAST, LEAST, LEAST], dtype=torch.float64)).sqrt())


def test_a_model_that_does_not_listen_has_no_metric():
    model, tokenizer = tiny_model("BERT", "AutoModel")
    with pytest.raises(ValueError, match="^the outputs of this model do not depend on the texts, or overflow in torch.float32; give other texts"):
        embedding_metric(model, tokenizer, [" ", ""], 2)


@pytest.mark.parametrize("auto", ["AutoModel", "AutoModelForSequenceClassification"])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_measured_and_left_as_it_was(name, auto):
    model, tokenizer = tiny_model(name, auto)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.train().requires_grad_(False)
    metric = embedding_metric(model, tokenizer, ["the cat sat", "", "a dog ran away"], 3)
    values = torch.linalg.eigvalsh(metric)
    assert values.min() >= 0.999 * LEAST**0.5 and values.max() > 1.01 * values.min()
    assert torch.equal(metric, embedding_metric(model, tokenizer, ["the cat sat", "", "a dog ran away"], 3)) or name == "XLNet"
    assert model.training and all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not model.get_input_embeddings()._forward_hooks and all(p.grad is None for p in model.parameters())


def test_without_a_pad_token_each_text_is_measured_alone():
    model, tokenizer = tiny_model("GPT-2", "AutoModel")
    tokenizer.pad_token = None
    assert embedding_metric(model, tokenizer, ["the cat sat", "a dog"], 2).shape == (16, 16)


def test_calibration_reads_texts_again_and_needs_the_model(tmp_path):
    model, tokenizer = tiny_model("BERT")
    asked = dict(ratio=0.9, base="vocab", oov="pq", n_bytes=4, metric="outputs", scorer="frequency")
    with pytest.raises(ValueError, match="oov='pq' reads texts a second time"):
        prune(model, tokenizer, iter(TEXTS), **asked)
    with pytest.raises(ValueError, match="oov='pq' reads the texts, which stats do not hold"):
        prune(model, tokenizer, stats=token_stats(TEXTS, tokenizer, len(tokenizer)), **asked)
    model.save_pretrained(tmp_path / "full"), tokenizer.save_pretrained(tmp_path / "full")
    with pytest.raises(ValueError, match="^metric='outputs' measures the model in memory on texts; use prune"):
        prune_checkpoint(tmp_path / "full", TEXTS, tmp_path / "small", **asked)
    assert not (tmp_path / "small").exists()
    p = prune(model, tokenizer, TEXTS, **asked)
    p.save_pretrained(tmp_path / "small")
    assert load(tmp_path / "small").info["oov_options"] == dict(n_bytes=4, metric="outputs")


@pytest.mark.parametrize(("n_seen", "weight"), [(10, 15), (500, 6), (1000, 4), (0, 1)])
def test_rows_that_few_texts_use_do_not_speak_for_all(n_seen, weight):
    "The metric of rows counts a seen one like those that are coded, but at most as if there were eight for each of 16 directions."
    rows, seen = torch.randn(2000, 16, generator=torch.Generator().manual_seed(0)), np.arange(2000) < n_seen
    plan = Plan(rows, np.arange(2000), 4, seen=seen)
    assert torch.equal(ROW_METRICS["rows"](plan), second_moment(rows, np.where(seen, weight, 1)))


def test_kmeans_on_unit_rows_has_the_number_wanted(minilm_rows):
    assert np.array_equal(np.unique(cluster_rows(minilm_rows[1000:3000], 500, "kmeans")), np.arange(500))


# Pieces


@pytest.mark.parametrize("family", ["BERT", "ModernBERT", "XLM-R", "T5"])
def test_pieces_are_what_the_rewritten_tokenizer_makes_of_a_token(family):
    "A pruned token reads the mean of the rows of the kept tokens that spell it, and nothing else."
    model, tokenizer = tiny_model(family)
    p = prune(model, tokenizer, TEXTS, 0.6, "vocab", oov="pieces")
    r, split, names = p.remap, splitter(tokenizer, p.keep.tolist()), tokenizer.convert_ids_to_tokens
    pruned = (~r.kept).nonzero()[:, 0].tolist()
    some = [i for i in pruned if split(i)]
    assert some
    for i in some:
        read = [int(r.keep[row]) for row, weight in zip(r.index[i], r.weight[i], strict=True) if weight]
        assert tuple(read) == split(i) and len({*r.weight[i].tolist()} - {0.0}) == 1
        assert float(r.weight[i].sum()) == pytest.approx(1, rel=1e-3)  # of float16
        assert "".join(name.removeprefix("##") for name in names(read)) == names(i).removeprefix("##")


def test_pieces_keep_the_letters_of_the_texts():
    "Every token that the texts use can be split, as long as the letters have room."
    model, tokenizer = tiny_model("BERT")
    words = [token for token in tokenizer.get_vocab() if token.isalpha()]
    p = prune(model, tokenizer, words, 0.6, "vocab", oov="pieces")
    seen = token_stats(words, tokenizer, model.config.vocab_size).seen
    unk = int((p.remap.keep == tokenizer.unk_token_id).nonzero())
    lost = seen & ~p.remap.kept.numpy()
    assert lost.any() and (p.remap.index[lost][:, 0] != unk).all()
