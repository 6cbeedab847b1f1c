"""A pruned model as one graph: what `torch.export`, `torch.compile` and ONNX make of it gives what the model gives, for any batch and length."""

import copy
import json
import os
import shutil
import sys
from contextlib import nullcontext
from functools import cache, partial

import pytest
import torch
import transformers
from conftest import assert_near, same, state

from vocab_pruning import PrunedModel, prune
from vocab_pruning.data.tasks import documents, load_task
from vocab_pruning.models import onnx as export
from vocab_pruning.models.embedding import FLOOR, PrunedHead
from vocab_pruning.models.onnx import _of_text, compare_onnx, encode, export_onnx, export_program, onnx_session, run_onnx
from vocab_pruning.models.verify import difference, kept_columns, rounding, token_columns
from vocab_pruning.testing.families import tiny_model

TEXTS = documents(load_task("cola", "sample")["train"])[:20]
KINDS = {"mapped": dict(oov="nearest"), "coded": dict(oov="pq", n_bytes=4, graded=True), "int4": dict(oov="int4"), "mixed": dict(oov="sparse", m=3),
         "int8": dict(oov="int8"), "split anew": dict(oov="resegment")}
GRAPHS = [("BERT", "mapped"), ("BERT", "coded"), ("ModernBERT", "split anew"), ("RoBERTa", "int4")]
CLASSIFIER = "AutoModelForSequenceClassification"
BATCHES = [TEXTS[:1], TEXTS[3:5], TEXTS[5:12], ["a"]]


@cache
def pruned(name: str, kind: str, auto: str = CLASSIFIER) -> PrunedModel:
    "A tiny model of a family, pruned by half, or by a tenth where it is split anew; only read."
    model, tokenizer = tiny_model(name, auto)
    return prune(model, tokenizer, TEXTS, 0.1 if kind == "split anew" else 0.5, "vocab", **KINDS[kind])


def wanted(p, batch) -> dict[str, torch.Tensor]:
    "The tensors that the model gives."
    with torch.no_grad():
        return {name: value for name, value in p.model(**batch, return_dict=True).items() if torch.is_tensor(value)}


def assert_close(p, ours, theirs, batch):
    "The same outputs, at positions of the texts and for tokens that stay, up to what rounding makes of them."
    assert ours.keys() == theirs.keys()
    mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"]))
    ours, theirs = (kept_columns(outputs, token_columns(p)) for outputs in (ours, theirs))
    ours, theirs = (_of_text(outputs, mask, p.model.config.num_labels) for outputs in (ours, theirs))
    difference(ours, theirs, "the graph", rounding(p.model))


# Graphs of torch


@cache
def program(name: str, kind: str, auto: str = CLASSIFIER):
    return export_program(pruned(name, kind, auto))


@pytest.mark.parametrize("name, kind", GRAPHS)
def test_one_graph_for_every_batch(name, kind):
    p = pruned(name, kind)
    module = program(name, kind).module()
    for texts in BATCHES:
        batch = encode(p, texts)
        assert_close(p, module(batch), wanted(p, batch), batch)


def test_the_remap_is_one_lookup():
    graph = program("BERT", "mapped")
    table = next(name for name, target in graph.graph_signature.inputs_to_buffers.items() if target.endswith("embeddings.index"))
    readers = [node.target for node in graph.graph.nodes if any(getattr(given, "name", None) == table for given in node.args)]
    assert readers == [torch.ops.aten.embedding.default]


def test_a_masked_model_has_a_graph():
    p = pruned("BERT", "mapped", "AutoModelForMaskedLM")
    batch = encode(p, TEXTS[5:12])
    ours, theirs = program("BERT", "mapped", "AutoModelForMaskedLM").module()(batch), wanted(p, batch)
    assert_close(p, ours, theirs, batch)
    gone = torch.ones(theirs["logits"].shape[-1], dtype=torch.bool).index_fill_(0, p.keep, False)
    assert (ours["logits"][..., gone] == FLOOR).all()


def test_a_graph_leaves_the_model_as_it_was():
    "Mode, weights and the tokenizer's padding; a model in training is exported as it predicts."
    model, tokenizer = tiny_model("BERT")
    p = prune(model, tokenizer, TEXTS, 0.5, "vocab", oov="nearest")
    p.model.train()
    before, wrote = state(p.model), tokenizer.backend_tokenizer.to_str()
    module = export_program(p).module()
    assert p.model.training and same(before, state(p.model)) == [] and tokenizer.backend_tokenizer.to_str() == wrote
    batch = encode(p, TEXTS[:3])
    assert torch.equal(module(batch)["logits"], module(batch)["logits"])


def test_what_has_no_graph_says_so(tmp_path):
    p = prune(*tiny_model("BERT", "AutoModelForMultipleChoice"), TEXTS, 0.5, "vocab", oov="nearest")
    with pytest.raises(ValueError, match="^a BertForMultipleChoice reads several texts for each answer"):
        export_program(p)
    with pytest.raises(TypeError, match="^texts is "):
        export_onnx(pruned("BERT", "mapped"), tmp_path / "graph", texts="a cat")
    with pytest.raises(FileNotFoundError, match="holds no model.onnx, nor onnx/model.onnx"):
        onnx_session(tmp_path)


def test_a_model_without_a_tokenizer():
    with pytest.raises(ValueError, match="without its tokenizer"):
        export_program(PrunedModel(pruned("BERT", "mapped").model))


def test_compiled_as_one_graph():
    p = pruned("BERT", "coded")
    compiled = torch.compile(p.model, backend="aot_eager", fullgraph=True, dynamic=True)
    for texts in BATCHES[1:3]:
        batch = encode(p, texts)
        assert_close(p, wanted(PrunedModel(compiled), batch), wanted(p, batch), batch)
    torch.compiler.reset()


def test_rows_with_weights_compile_as_one_graph():
    "The embedding alone, which is what another kind of remap changes."
    rows = pruned("BERT", "mixed").model.get_input_embeddings()
    compiled = torch.compile(rows, backend="aot_eager", fullgraph=True, dynamic=True)
    ids = torch.arange(len(rows.index))
    with torch.no_grad():
        for some in (ids[None], ids[:60].view(3, 20)):
            assert torch.equal(compiled(some), rows(some))
    torch.compiler.reset()


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler for inductor")
@pytest.mark.skipif(os.environ.get("ATEN_CPU_CAPABILITY") == "default", reason="inductor writes vectors without their header there")
def test_a_pruned_head_compiled_to_machine_code():
    "Its columns and its gradients: inductor is the back end that users get, and the only one that writes in place."
    head = PrunedHead(3, 4, 8, 3)
    torch.nn.init.orthogonal_(head.weight)
    head.keep.copy_(torch.tensor([1, 4, 6]))
    compiled, found = torch.compile(head), []
    for one in (head, compiled):
        hidden = torch.linspace(-1, 1, 8).view(1, 2, 4).requires_grad_()
        logits = one(hidden)
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.tensor([4, 6])).backward()
        found.append((logits[..., head.keep.long()].detach(), hidden.grad))
        assert (logits[..., [0, 2, 3, 5, 7]] == FLOOR).all()
    for expected, actual in zip(*found, strict=True):
        assert_near(actual, expected)
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler for inductor")
def test_compiled_to_machine_code():
    "The embedding, which is what pruning exchanges: codes and lookups."
    rows = pruned("BERT", "coded").model.get_input_embeddings()
    ids = torch.arange(len(rows.index))[None]
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(rows, fullgraph=True)(ids), rows(ids))
    torch.compiler.reset()


# ONNX


@pytest.fixture(scope="module", params=GRAPHS, ids=" ".join)
def exported(request, tmp_path_factory):
    "(pruned model, directory, report) of each of the GRAPHS."
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
    p, directory = pruned(*request.param), tmp_path_factory.mktemp("onnx") / "model"
    return p, directory, export_onnx(p, directory)


def test_onnx_gives_what_the_model_gives(exported):
    p, directory, report = exported
    largest = max(float(value.abs().max()) for value in wanted(p, encode(p, p.sample)).values())
    assert 0 <= report["max_difference"] <= rounding(p.model) * max(largest, 1)
    assert report["texts"] == len(p.sample) == 16
    session = onnx_session(directory, threads=1)
    for texts in BATCHES:
        batch = encode(p, texts)
        assert_close(p, run_onnx(session, batch), wanted(p, batch), batch)


def test_what_an_onnx_directory_holds(exported):
    "Graph, configuration, tokenizer and how it was made; the original tokenizer's ids go in, by name, in any number."
    import onnx

    p, directory, report = exported
    names = {path.name for path in directory.iterdir()}
    assert {"model.onnx", "config.json", "tokenizer.json", "vocab_pruning.json"} <= names and not any(name.endswith(".data") for name in names)
    assert report["bytes"] == (directory / "model.onnx").stat().st_size
    told = json.loads((directory / "vocab_pruning.json").read_text())
    assert told["onnx"] == report and told["oov"] == p.info["oov"]
    assert transformers.AutoTokenizer.from_pretrained(directory)(TEXTS) == p.tokenizer(TEXTS)
    assert transformers.AutoConfig.from_pretrained(directory).num_labels == 3
    graph = onnx.load(directory / "model.onnx").graph
    sizes = {value.name: [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim] for value in [*graph.input, *graph.output]}
    assert sizes.pop("logits") == ["batch", 3] and all(size == ["batch", "sequence"] for size in sizes.values()) and "input_ids" in sizes
    tables = [tensor for tensor in graph.initializer if tensor.name.endswith("embeddings.index")]
    assert len(tables) == (0 if p.plain else 1)
    for table in tables:
        assert table.dims[0] == len(p.tokenizer) and [node.op_type for node in graph.node if table.name in node.input] == ["Gather"]


@pytest.mark.parametrize("kind", ["int8", "mixed"])
def test_every_id_is_read_as_the_model_reads_it(kind, tmp_path):
    pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
    import onnx

    p = pruned("BERT", kind)
    report = export_onnx(p, tmp_path / "graph", TEXTS[:2], every_id=True, folder="onnx")
    assert report["max_difference"] <= rounding(p.model) * 10
    nodes = [node.op_type for node in onnx.load(tmp_path / "graph" / "onnx" / "model.onnx").graph.node]
    assert not (tmp_path / "graph" / "model.onnx").exists() and report["bytes"] > 1000
    assert nodes.count("DequantizeLinear") == (kind == "int8")
    other = copy.deepcopy(p)
    other.model.get_input_embeddings().index[-1] = 0
    with pytest.raises(ValueError, match="differs by"):
        compare_onnx(other, onnx_session(tmp_path / "graph"), TEXTS[:2], every_id=True)


def test_onnx_with_pairs_of_texts(exported):
    p, directory, _ = exported
    pairs = [(TEXTS[i], TEXTS[-i]) for i in range(1, 4)]
    assert compare_onnx(p, onnx_session(directory), pairs) <= rounding(p.model) * 10  # no logit is as large as 10


def test_a_graph_and_a_model_do_not_replace_each_other(exported, tmp_path):
    p, directory, _ = exported
    p.save_pretrained(tmp_path / "model", verify=False)
    with pytest.raises(FileExistsError, match=r"holds model.safetensors, a save of another kind"):
        export_onnx(p, tmp_path / "model")
    with pytest.raises(FileExistsError, match=r"holds model.onnx, a save of another kind"):
        p.save_pretrained(directory)
    assert (tmp_path / "model" / "model.safetensors").is_file() and (directory / "model.onnx").is_file()


def test_a_graph_in_a_folder_of_its_own_is_not_replaced(tmp_path):
    (tmp_path / "onnx").mkdir()
    for name in ("onnx/model.onnx", "vocab_pruning.json"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(FileExistsError, match=r"holds model.onnx, a save of another kind"):
        pruned("BERT", "mapped").save_pretrained(tmp_path)


def test_onnx_whole_or_not_at_all(tmp_path):
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
    p = pruned("BERT", "mapped")
    with pytest.raises(ValueError, match="the ONNX graph compared with the model, .*: logits differs by"):
        export_onnx(p, tmp_path / "model", TEXTS[:1], tolerance=-1)
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "thesis.txt").write_text("all of it")
    with pytest.raises(FileExistsError, match="not an earlier save"):
        export_onnx(p, tmp_path / "else")
    with pytest.raises(ValueError, match="no text"):
        export_onnx(p, tmp_path / "model", [])
    with pytest.raises(ValueError, match="folder='graphs'"):
        export_onnx(p, tmp_path / "else", TEXTS[:1], folder="graphs")
    with pytest.raises(ValueError, match=r"bfloat16.*float\(\)"):
        export_onnx(PrunedModel(pruned("BERT", "coded").model.__class__(p.model.config).to(torch.bfloat16), p.tokenizer), tmp_path / "model", TEXTS)
    assert [path.name for path in tmp_path.iterdir()] == ["else"] and [path.name for path in (tmp_path / "else").iterdir()] == ["thesis.txt"]


def test_onnx_finds_another_model(exported):
    p, directory, _ = exported
    other = PrunedModel(tiny_model("BERT", seed=1)[0], tiny_model("BERT")[1])
    if set(encode(other, TEXTS[:1])) != set(encode(p, TEXTS[:1])):
        pytest.skip("the two take other inputs")
    with pytest.raises(ValueError, match="differs by"):
        compare_onnx(other, onnx_session(directory), TEXTS[:3])


def test_onnx_logits_that_differ_are_found(monkeypatch):
    "Beside those of pruned tokens, which hold the floor, any difference is small."
    p = pruned("BERT", "mapped", "AutoModelForMaskedLM")
    for by in (0, 0.01):
        monkeypatch.setattr(export, "run_onnx", lambda session, batch, by=by: {name: v + by * (v > -1e30) for name, v in wanted(p, batch).items()})
        found = pytest.raises(ValueError, match=r"the ONNX graph compared with the model, .*: logits differs by 0\.01")
        with found if by else nullcontext():
            assert compare_onnx(p, None, TEXTS[:2]) == 0


def test_positions_of_padding_are_not_compared(monkeypatch):
    "Nobody reads them, and kernels differ most there; a position of a text is compared."
    p = pruned("BERT", "mapped", "AutoModel")
    full = {text: len(p.tokenizer(text)["input_ids"]) for text in TEXTS[:6]}
    assert len({*full.values()}) > 1

    def run(session, batch, by=1.0, padding=True):
        outputs, there = wanted(p, batch), batch["attention_mask"].bool()
        at = ~there if padding else there
        return outputs | {"last_hidden_state": outputs["last_hidden_state"] + by * at.unsqueeze(-1)}

    monkeypatch.setattr(export, "run_onnx", run)
    assert compare_onnx(p, None, [*full]) == 0
    monkeypatch.setattr(export, "run_onnx", partial(run, by=1e-3, padding=False))
    with pytest.raises(ValueError, match="last_hidden_state differs by 0.001"):
        compare_onnx(p, None, [*full])


def another_row(rows):
    rows.weight[int(rows.index[rows.keep[-1], 0]), 0] += 0.1


def two_rows_swapped(rows):
    rows.weight[[-1, -2]] = rows.weight[[-2, -1]]


def another_place(rows):
    rows.index[rows.keep[-1]] = rows.index[rows.keep[-2]].clone()


@pytest.mark.parametrize("damage", [another_row, two_rows_swapped, another_place])
@pytest.mark.parametrize("auto", ["AutoModel", CLASSIFIER, "AutoModelForMaskedLM"])
def test_damage_in_a_graph_is_found(damage, auto, monkeypatch):
    "A row that is another, two that have changed places, an id that reads another row: far more than rounding."
    p = pruned("BERT", "mapped", auto)
    other = copy.deepcopy(p.model)
    with torch.no_grad():
        damage(other.get_input_embeddings())
    monkeypatch.setattr(export, "run_onnx", lambda session, batch: wanted(PrunedModel(other), batch))
    text = p.tokenizer.decode(p.keep[-2:])
    assert {*p.keep[-2:].tolist()} <= {*p.tokenizer(text)["input_ids"]}
    with pytest.raises(ValueError, match="differs by"):
        compare_onnx(p, None, [text])


@pytest.mark.parametrize("missing", ["onnx", "onnxruntime", "onnxscript"])
def test_the_extra_is_named(missing, tmp_path, monkeypatch):
    for name in ("onnx", "onnxruntime", "onnxscript"):
        monkeypatch.setitem(sys.modules, name, None if name == missing else type(sys)(name))
    with pytest.raises(ImportError, match=rf"{missing}.*pip install 'vocab_pruning\[onnx\]'"):
        export_onnx(pruned("BERT", "mapped"), tmp_path / "model")
    assert [*tmp_path.iterdir()] == []
