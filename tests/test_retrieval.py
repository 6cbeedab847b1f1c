"""Retrieval: files in BEIR's layout, exact search, the metrics; and a pruned encoder inside sentence-transformers."""

import json
import math
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from conftest import FAMILIES as TOKENIZED
from conftest import TEXTS, WITHOUT_US, build, shared
from datasets import Dataset
from transformers import AutoModel, AutoTokenizer

from vocab_pruning import load, prune
from vocab_pruning.evaluate.frozen import sentence_vectors, sts_score, vector_drift
from vocab_pruning.evaluate.retrieval import bootstrap_retention, evaluate_retrieval, paraphrases, rank, read_beir, top_k, write_beir
from vocab_pruning.testing.families import tiny_model

CORPUS = {f"d{i}": text for i, text in enumerate(TEXTS)}
QUERIES = {f"q{i}": text for i, text in enumerate(TEXTS[5:15])}
QRELS = {f"q{i}": {f"d{i + 5}": 1, f"d{i}": 0} for i in range(10)}
FILES = {"corpus.jsonl": '{"_id": "a", "title": "T", "text": "x"}\n{"_id": "b", "text": "y"}\n', "queries.jsonl": '{"_id": 1, "text": "who?"}\n',
         "qrels/test.tsv": "query-id\tcorpus-id\tscore\n1\ta\t2\n"}


# Of the largest number compared: texts that share a batch with others are padded to another length, and kernels add in
# another order by shape, thread and processor; a few layers in float32 (1.2e-7) leave some 1e-6 of it.
ROUNDING = 1e-5


class Table:
    "An encoder of texts that are numbers: the rows of a matrix."

    def __init__(self, vectors):
        self.vectors = vectors

    def encode(self, texts, **kwargs):
        return self.vectors[[int(text) for text in texts]]


def write(directory, **changed):
    "`FILES`, some of them `changed` (named by the part before the first dot or slash)."
    (directory / "qrels").mkdir()
    for name, text in FILES.items():
        text = changed.get(name.split(".")[0].split("/")[0], text)
        if text is not None:
            (directory / name).write_text(text, encoding="utf-8")
    return directory


# Files


def test_files_are_read(tmp_path):
    assert read_beir(write(tmp_path)) == ({"a": "T x", "b": "y"}, {"1": "who?"}, {"1": {"a": 2}})


def test_a_byte_order_mark_is_no_text(tmp_path):
    assert read_beir(write(tmp_path, **{name.split(".")[0].split("/")[0]: "\ufeff" + text for name, text in FILES.items()}))[2] == {"1": {"a": 2}}


@pytest.mark.parametrize(("changed", "error", "message"), [
    (dict(corpus=None), FileNotFoundError, "has no corpus.jsonl"),
    (dict(qrels=None), FileNotFoundError, "has no qrels/test.tsv"),
    (dict(corpus=""), ValueError, "the corpus is empty"),
    (dict(corpus="{\n"), ValueError, "corpus.jsonl, line 1: not a JSON object"),
    (dict(corpus='{"_id": "a", "text": "x"}\n["b"]\n'), ValueError, "corpus.jsonl, line 2: not a JSON object"),
    (dict(queries='{"_id": "1"}\n'), ValueError, "queries.jsonl, line 1: .*'text'"),
    (dict(corpus='{"_id": "a", "text": "x"}\n{"_id": "a", "text": "y"}\n'), ValueError, "corpus.jsonl, line 2: the id 'a' occurs twice"),
    (dict(corpus='{"_id": "a", "text": null}\n'), ValueError, "corpus.jsonl, line 1: .*its text is None"),
    (dict(corpus='{"_id": "a", "text": ["x"]}\n'), ValueError, r"corpus.jsonl, line 1: .*its text is \['x'\]"),
    (dict(qrels="1\ta\t2\n"), ValueError, "test.tsv has no header"),
    (dict(qrels="query-id\tcorpus-id\tscore\n1\ta\n"), ValueError, "test.tsv, line 2: .* is not a query's id"),
    (dict(qrels="query-id\tcorpus-id\tscore\n1\ta\thigh\n"), ValueError, "test.tsv, line 2: .*high"),
    (dict(qrels="query-id\tcorpus-id\tscore\n1\ta\t1\n1\ta\t2\n"), ValueError, "test.tsv, line 3: the pair '1', 'a' occurs twice"),
    (dict(qrels="query-id\tcorpus-id\tscore\n2\ta\t1\n"), ValueError, "1 of the queries that qrels name, e.g. '2', are not among"),
    (dict(qrels="query-id\tcorpus-id\tscore\n1\tc\t1\n1\td\t1\n"), ValueError, "2 of the documents that qrels name, e.g. 'c', are not among"),
    (dict(qrels="query-id\tcorpus-id\tscore\n1\ta\t0\n"), ValueError, "no document relevant"),
], ids=lambda value: next(iter(value)) if isinstance(value, dict) else "")
def test_bad_files_are_named(changed, error, message, tmp_path):
    with pytest.raises(error, match=message):
        read_beir(write(tmp_path, **changed))


def test_what_is_written_is_read_and_nothing_else_is_overwritten(tmp_path):
    write_beir(tmp_path / "set", CORPUS, QUERIES, QRELS, split="dev")
    assert read_beir(tmp_path / "set", split="dev") == (CORPUS, QUERIES, QRELS)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError):
        write_beir(tmp_path / "other", CORPUS, QUERIES, QRELS)
    with pytest.raises(FileExistsError, match=r"holds dev.tsv, which would be lost"):
        write_beir(tmp_path / "set", CORPUS, QUERIES, QRELS, split="test")
    write_beir(tmp_path / "set", CORPUS, QUERIES, QRELS, split="dev")
    with pytest.raises(ValueError, match="the corpus is empty"):
        write_beir(tmp_path / "empty", {}, QUERIES, QRELS)
    assert not (tmp_path / "empty").exists()


def test_paraphrases_are_to_be_found_among_other_texts():
    corpus, queries, qrels = paraphrases(("mrpc", "stsb"), "sample")
    assert qrels.keys() == queries.keys() and all(qrels.values())
    assert len(set(corpus.values())) == len(corpus) > 1000 and not set(corpus.values()) & set(queries.values())


# Search and metrics


@pytest.mark.parametrize("block", [1, 64, 1000])
def test_search_is_exact(block):
    torch.manual_seed(0)
    queries, corpus = torch.randn(1100, 8), torch.randn(130, 8)
    values, index = (queries @ corpus.T).sort(dim=1, descending=True)
    found, places = top_k(queries, corpus, 10, block)
    torch.testing.assert_close(found, values[:, :10], rtol=0, atol=ROUNDING * values.max().item())
    assert (places == index[:, :10]).float().mean() > 0.999
    torch.testing.assert_close((queries[:, None] * corpus[places]).sum(-1), found, rtol=0,
                               atol=ROUNDING * values.max().item())


def test_the_metrics_are_what_their_names_say():
    "Against their formulas, on random vectors and graded relevance."
    pytest.importorskip("ir_measures")
    torch.manual_seed(1)
    vectors = F.normalize(torch.randn(330, 4), dim=1)
    corpus, queries = {f"d{i}": str(i) for i in range(300)}, {f"q{i}": str(300 + i) for i in range(30)}
    qrels = {q: {f"d{j}": int(torch.randint(4, ())) for j in torch.randperm(300)[:12].tolist()} | {"d0": 1} for q in queries}
    table = evaluate_retrieval(Table(vectors), corpus, queries, qrels)
    for query, row in table.iterrows():
        order = (vectors[:300] @ vectors[int(queries[query])]).argsort(descending=True).tolist()
        gains = [qrels[query].get(f"d{j}", 0) for j in order]
        discounted, ideal = (sum(g / math.log2(i + 2) for i, g in enumerate(some[:10])) for some in (gains, sorted(qrels[query].values(), reverse=True)))
        first = next((i for i, g in enumerate(gains[:10]) if g), None)
        expected = [discounted / ideal, sum(g > 0 for g in gains[:100]) / sum(g > 0 for g in gains), 0 if first is None else 1 / (first + 1)]
        assert row.tolist() == pytest.approx(expected, rel=1e-12)  # sums of a few float64; 0 is 0


def test_a_document_is_not_found_by_itself():
    "A query with a document's id is that document, as in BEIR's duplicate questions."
    corpus = {str(i): str(i) for i in range(5)}
    found = rank(Table(torch.eye(5) + 0.1), corpus, corpus, k=3)
    assert all(len(documents) == 3 and query not in documents for query, documents in found.items())


def test_what_lost_nothing_finds_the_same(family):
    pytest.importorskip("ir_measures")
    model, tokenizer = shared(family), TOKENIZED[family].tokenizer
    full = evaluate_retrieval(model, CORPUS, QUERIES, QRELS, tokenizer, max_length=40)
    pruned = prune(model, tokenizer, TEXTS, 0, base="seen", oov="unk")
    assert bootstrap_retention(evaluate_retrieval(pruned, CORPUS, QUERIES, QRELS, max_length=40), full) == dict(retention=1, low=1, high=1)


def test_the_interval_holds_the_retention():
    pd = pytest.importorskip("pandas")
    draw = torch.Generator().manual_seed(0)
    full = pd.DataFrame({"nDCG@10": torch.rand(400, generator=draw, dtype=torch.float64).numpy()})
    found = bootstrap_retention(full * 0.9, full)
    assert found == pytest.approx(dict(retention=0.9, low=0.9, high=0.9), rel=1e-12)  # means of 400 float64
    other = torch.rand(400, generator=draw, dtype=torch.float64)
    noisy = bootstrap_retention(pd.DataFrame({"nDCG@10": other.numpy()}), full)
    assert noisy["low"] < 0.99 < 1.01 < noisy["high"] and noisy["low"] < noisy["retention"] < noisy["high"]
    seldom = pd.DataFrame({"nDCG@10": [0.0] * 4 + [1.0]})  # some draws leave the full model nothing
    assert bootstrap_retention(seldom * 0.5, seldom) == dict(retention=0.5, low=0.5, high=0.5)
    with pytest.raises(ValueError, match="nothing to retain"):
        bootstrap_retention(full, full * 0)


def test_without_the_library_of_metrics_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ir_measures", None)
    with pytest.raises(ImportError, match=r"vocab_pruning\[retrieval\]"):
        evaluate_retrieval(Table(torch.eye(2)), {"a": "0"}, {"q": "1"}, {"q": {"a": 1}})


def test_without_sentence_transformers_the_extra_is_named():
    code = "import sys; sys.modules['sentence_transformers'] = None\nimport vocab_pruning.evaluate.retrieval\nimport vocab_pruning.models.sentences"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode and "vocab_pruning[sentence]" in run.stderr.splitlines()[-1]


CORPUS_OF_TABLE = {str(i): str(i) for i in range(5)}
WRONG = {
    "max_length=64: a Table has its own": (TypeError, dict(max_length=64)),
    "tokenizer: a Table has its own": (TypeError, dict(tokenizer=TOKENIZED["wordpiece"].tokenizer)),
    "k=0: give a whole number": (ValueError, dict(k=0)), "k=2.0: give a whole number": (ValueError, dict(k=2.0)),
    "k=5: recall@100 reads the first 100 documents": (ValueError, dict(k=5)),
    "batch_size='8': give a whole number": (ValueError, dict(batch_size="8")),
    "corpus is a list; give a dict": (TypeError, dict(corpus=["0", "1"])),
    "corpus '1' is None, not a string": (TypeError, dict(corpus=CORPUS_OF_TABLE | {"1": None})),
    "queries is a str; give a dict": (TypeError, dict(queries="0")),
    "queries: the id 0 is not a string; give ids that are strings": (TypeError, dict(queries={0: "q"})),
    "qrels 'q': the relevance of '1' is 1.0, not a whole number": (TypeError, dict(qrels={"q": {"1": 1.0}})),
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_arguments_of_retrieval_are_named(message):
    error, options = WRONG[message]
    given = dict(model=Table(torch.eye(5)), corpus=CORPUS_OF_TABLE, queries={"q": "0"}, qrels={"q": {"1": 1}})
    with pytest.raises(error, match="^" + message):
        evaluate_retrieval(**given | options)


def test_a_pruned_model_has_a_tokenizer_of_its_own():
    tokenizer = TOKENIZED["wordpiece"].tokenizer
    pruned = prune(shared("wordpiece"), tokenizer, TEXTS, 0.1, base="vocab", scorer="frequency", oov="nearest")
    with pytest.raises(TypeError, match="^tokenizer: a PrunedModel has its own; leave it out$"):
        evaluate_retrieval(pruned, CORPUS, QUERIES, QRELS, tokenizer)
    with pytest.raises(ValueError, match="^unknown metric 'nDCG'; choose one of nDCG@10"):
        bootstrap_retention(None, None, "nDCG")


@pytest.mark.parametrize("texts", ["one text", {"a": "b"}, b"ab", 5, ["a", None]], ids=repr)
def test_vectors_are_those_of_texts(texts):
    "The letters of a string would have vectors, too."
    with pytest.raises(TypeError, match="^texts"):
        sentence_vectors(shared("wordpiece"), TOKENIZED["wordpiece"].tokenizer, texts)


def test_a_text_without_a_token_has_a_vector_of_zeros():
    "A tokenizer that adds no special token finds none in an empty text, whose mean would be 0 / 0."
    model, tokenizer = tiny_model("GPT-2", "AutoModel")
    found = sentence_vectors(model, tokenizer, ["the cat sat", "", "a dog ran"], batch_size=2)
    assert not found[1].any() and found[[0, 2]].isfinite().all() and found[[0, 2]].any(dim=1).all()
    assert not sentence_vectors(model, tokenizer, ["", ""]).any()
    found = rank(model, {"empty": "", "same": "the cat sat", "other": "a dog ran"}, {"q": "the cat sat"}, tokenizer)
    assert [*found["q"]][0] == "same" and found["q"]["empty"] == 0
    p = prune(model, tokenizer, ["the cat sat"], 0.1, "vocab", oov="unk")
    assert math.isfinite(vector_drift(p, ["", "the cat sat"], sentence_vectors(model, tokenizer, ["", "the cat sat"])))
    assert vector_drift(p, ["", ""], sentence_vectors(model, tokenizer, ["", ""])) == 0


@pytest.mark.parametrize("name", ["T5", "BART"])
def test_vectors_of_an_encoder_decoder_are_its_encoders(name):
    model, tokenizer = tiny_model(name, "AutoModel")
    batch = tokenizer(["the cat sat"], return_tensors="pt")
    with torch.no_grad():
        hidden = model.get_encoder()(input_ids=batch["input_ids"]).last_hidden_state
    found = sentence_vectors(model, tokenizer, ["the cat sat"])
    torch.testing.assert_close(found, hidden.mean(1), rtol=0, atol=ROUNDING * found.abs().max().item())


def test_vectors_of_a_text_longer_than_the_model_allows():
    model, tokenizer = tiny_model("BERT", "AutoModel")
    tokenizer.model_max_length = 8
    long, cut = sentence_vectors(model, tokenizer, ["the cat sat on the mat " * 100]), sentence_vectors(
        model, tokenizer, ["the cat sat on the mat " * 100], max_length=8)
    assert torch.equal(long, cut)


def test_only_pairs_have_a_correlation():
    splits = Dataset.from_dict(dict(text=["a", "b"], label=[0.0, 1.0]))
    with pytest.raises(ValueError, match="^the split has the columns text, label; give pairs"):
        sts_score(shared("wordpiece"), TOKENIZED["wordpiece"].tokenizer, splits)


# sentence-transformers


@pytest.mark.parametrize("oov", ["unk", "sparse", "pq", "resegment"])
def test_encoding_is_mean_pooling(oov, family, tmp_path):
    "Of a model that came from nowhere: the mean alone; saved, loaded and saved again."
    st = pytest.importorskip("sentence_transformers")
    from vocab_pruning.models.sentences import sentence_transformer

    options, ratio = dict(n_bytes=4) if oov == "pq" else {}, 0.05 if oov == "resegment" else 0.2
    pruned = prune(build(family, "bare"), TOKENIZED[family].tokenizer, TEXTS, ratio, base="vocab", scorer="frequency", oov=oov, **options)
    model = sentence_transformer(pruned, max_seq_length=40)
    expected = sentence_vectors(pruned.model, pruned.tokenizer, TEXTS, max_length=40)
    torch.testing.assert_close(model.encode(TEXTS, convert_to_tensor=True, device="cpu").cpu(), expected, rtol=0,
                               atol=ROUNDING * expected.abs().max().item())
    model.save_pretrained(str(tmp_path), create_model_card=False)
    again = st.SentenceTransformer(str(tmp_path), device="cpu", trust_remote_code=oov != "resegment")
    assert again.max_seq_length == 40
    torch.testing.assert_close(again.encode(TEXTS, convert_to_tensor=True), expected, rtol=0,
                               atol=ROUNDING * expected.abs().max().item())
    if oov != "resegment":
        torch.testing.assert_close(sentence_transformer(load(tmp_path)).encode(TEXTS, convert_to_tensor=True),
                                   expected, rtol=0, atol=ROUNDING * expected.abs().max().item())


def test_a_classifier_gives_its_encoder_and_trains(family):
    pytest.importorskip("sentence_transformers")
    from vocab_pruning.models.sentences import sentence_transformer

    pruned = prune(build(family), TOKENIZED[family].tokenizer, TEXTS, 0.2, base="vocab", scorer="frequency", oov="nearest")
    model = sentence_transformer(pruned)
    model(model.preprocess(TEXTS[:4]))["sentence_embedding"].sum().backward()
    assert pruned.model.get_input_embeddings().weight.grad.abs().sum() > 0


@pytest.fixture
def encoder(tmp_path, monkeypatch):
    "A pruned model made from a sentence-transformers directory in the working directory, which pools the first token, behind a prompt, and normalizes."
    st = pytest.importorskip("sentence_transformers")
    monkeypatch.chdir(tmp_path)
    build("wordpiece", "bare").save_pretrained("parts"), TOKENIZED["wordpiece"].tokenizer.save_pretrained("parts")
    from sentence_transformers.sentence_transformer import modules as kinds

    modules = [kinds.Transformer("parts"), kinds.Pooling(16, "cls", include_prompt=False), kinds.Normalize()]
    st.SentenceTransformer(modules=modules, prompts={"query": "query"}, device="cpu").save_pretrained("full", create_model_card=False)
    return prune(AutoModel.from_pretrained("full"), AutoTokenizer.from_pretrained("full"), TEXTS, 0.2, base="vocab", scorer="frequency", oov="nearest")


def test_a_saved_model_pools_as_the_full_one(encoder, tmp_path, monkeypatch):
    "Its files say how, to sentence-transformers as well; where they are gone, a warning says so."
    st = pytest.importorskip("sentence_transformers")
    from vocab_pruning.models.sentences import sentence_transformer

    encoder.save_pretrained("small")
    made, again = sentence_transformer(encoder), sentence_transformer(load("small"))
    assert [type(part).__name__ for part in again] == ["PrunedTransformer", "Pooling", "Normalize"] and again.prompts["query"] == "query"
    wanted = torch.tensor(made.encode(TEXTS))
    torch.testing.assert_close(torch.tensor(again.encode(TEXTS)), wanted, rtol=0,
                               atol=ROUNDING * wanted.abs().max().item())
    theirs = st.SentenceTransformer("small", device="cpu")
    assert [type(part).__name__ for part in theirs] == ["Transformer", "Pooling", "Normalize"] and theirs.prompts["query"] == "query"
    torch.testing.assert_close(torch.tensor(theirs.encode(TEXTS)), wanted, rtol=0,
                               atol=ROUNDING * wanted.abs().max().item())
    (tmp_path / "small" / "modules.json").unlink()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.warns(UserWarning, match="no modules.json at .*small or full"):
        assert len(sentence_transformer(load(tmp_path / "small"))) == 2


def test_prompts_and_lengths_are_sentence_transformers_own(encoder):
    "With no row pruned the two libraries give the same; the caller's tokenizer stays as it was."
    st = pytest.importorskip("sentence_transformers")
    from vocab_pruning.models.sentences import sentence_transformer

    before, full = encoder.tokenizer.backend_tokenizer.to_str(), st.SentenceTransformer("full", device="cpu")
    ours = sentence_transformer(prune(*encoder.original, TEXTS, 0, base="vocab", scorer="frequency", oov="nearest"))
    for model in (ours, full):
        model[1].pooling_mode = "mean"
    texts = TEXTS[:8]
    short = dict(processing_kwargs={"text": {"max_length": 6}})
    for options in ({}, dict(prompt="the"), dict(max_length=5), dict(max_length=6, prompt="the"), dict(prompt="the") | short):
        wanted, got = ({name: value for name, value in model.preprocess(texts, **options).items() if name != "modality"} for model in (full, ours))
        assert wanted.keys() == got.keys() and all(torch.equal(torch.as_tensor(wanted[name]), torch.as_tensor(got[name])) for name in wanted)
    for options in ({}, dict(prompt_name="query"), dict(prompt="the"), short):
        wanted, got = (torch.tensor(model.encode(texts, **options)) for model in (full, ours))
        torch.testing.assert_close(got, wanted, rtol=0, atol=ROUNDING * wanted.abs().max().item())
    assert encoder.tokenizer.backend_tokenizer.to_str() == before


FRESH = WITHOUT_US + """
import json
from sentence_transformers import SentenceTransformer
plain, mapped, texts = json.loads(sys.argv[1])
print(json.dumps(SentenceTransformer(plain, device="cpu").encode(texts).tolist()))
for options in ({}, {"trust_remote_code": True}):
    try:
        SentenceTransformer(mapped, device="cpu", **options)
    except Exception as error:
        print(json.dumps(str(error)))
"""


def test_sentences_in_a_process_without_this_library(tmp_path):
    "The rewritten model is read there as it is; one with a table is refused, not misread."
    pytest.importorskip("sentence_transformers")
    from vocab_pruning.models.sentences import sentence_transformer

    model, tokenizer, texts = build("wordpiece",
                                    "bare"), TOKENIZED["wordpiece"].tokenizer, [text for text in TEXTS if text][:8]
    pruned = {oov: prune(model, tokenizer, TEXTS, 0.1, base="vocab", scorer="frequency",
                         oov=oov) for oov in ("resegment", "unk")}
    pruned["resegment"].save_pretrained(tmp_path / "plain")
    sentence_transformer(pruned["unk"]).save_pretrained(str(tmp_path / "mapped"), create_model_card=False)
    asked = json.dumps([str(tmp_path / "plain"), str(tmp_path / "mapped"), texts])
    run = subprocess.run([sys.executable, "-c", FRESH, asked], capture_output=True, text=True, check=True)
    vectors, untrusted, missing = (json.loads(line) for line in run.stdout.splitlines())
    expected = sentence_vectors(pruned["resegment"].model, pruned["resegment"].tokenizer, texts, max_length=40)
    torch.testing.assert_close(torch.tensor(vectors), expected, rtol=0, atol=ROUNDING * expected.abs().max().item())
    assert "trust_remote_code" in untrusted and "vocab_pruning" in missing
