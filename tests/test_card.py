"""The card of a saved model says what was done to it, and its code loads the directory that it lies in."""

import json
import re
from pathlib import Path

import pytest
import torch
from conftest import FAMILIES, TASKS, TEXTS, build
from huggingface_hub import ModelCard, metadata_load

from vocab_pruning import load, prune
from vocab_pruning.models.anatomy import size_change, sizes
from vocab_pruning.models.card import make_card, passed_on
from vocab_pruning.models.checkpoint import prune_checkpoint
from vocab_pruning.remaps.kinds import REMAPS
from vocab_pruning.testing.families import tiny_model

OPTIONS = {"pq": dict(n_bytes=4), "cluster": dict(n_clusters=7), "dbscan": dict(n_clusters=7), "sparse": dict(m=3)}


def pruned(oov: str = "nearest", task: str = "classification"):
    return prune(build("wordpiece", task), FAMILIES["wordpiece"].tokenizer, TEXTS, 0.2, "vocab", oov=oov, **OPTIONS.get(oov, {}))


def saved(p, directory: Path, **options) -> str:
    "The card that `p` leaves in `directory`."
    p.save_pretrained(directory, **options)
    return (directory / "README.md").read_text(encoding="utf-8")


def cells(card: str) -> dict[str, list[str]]:
    "The tables of a card, by the first cell of a line."
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in card.splitlines() if line.startswith("|")]
    return {line[0]: line[1:] for line in lines}


@pytest.mark.parametrize("oov", REMAPS)
def test_a_card_holds_the_facts_of_its_model(oov, tmp_path):
    p = pruned(oov)
    card = saved(p, tmp_path / "small", scores=dict(task="reviews", accuracy=0.5))
    data, shown = ModelCard(card).data, cells(card)
    assert (data.library_name, data.pipeline_tag) == ("transformers" if p.plain else "vocab_pruning", "text-classification")
    assert data.tags == ["vocabulary-pruning", "reviews", oov]
    before, after = p.info["before"], sizes(p.model)
    for name, number in after.items():
        assert shown[name.replace("_", " ")][:2] == [f"{before[name]:,}", f"{number:,}"]
    assert REMAPS[oov].becomes in shown["a pruned token"][0] and all(f"{k}={v}" in shown["a pruned token"][0] for k, v in OPTIONS.get(oov, {}).items())
    assert shown["accuracy"] == ["0.5000"] and shown["ratio"] == ["20.00% of the rows"] and shown["seed"] == ["0"]
    assert shown["texts"][0].startswith(f"{len(TEXTS)} documents")
    assert shown["torch version"] == [f"`{torch.__version__.split('+')[0]}`"] or torch.__version__ in shown["torch version"][0]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("oov", ["nearest", "resegment"])
def test_the_code_of_a_card_loads_its_directory(oov, task, tmp_path):
    p = pruned(oov, task)
    card = saved(p, tmp_path / "small")
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    names = {"directory": tmp_path / "small"}
    exec(code, names)
    assert type(names["model"]) is type(p.model) and ("classify" in names) == (task == "classification")
    ids = torch.arange(8)[None]
    with torch.no_grad():
        torch.testing.assert_close(names["model"].eval()(ids)[0], p.model(ids)[0])
    assert names["tokenizer"](TEXTS)["input_ids"] == p.tokenizer(TEXTS)["input_ids"]
    assert ("never predicted" in card) == (task == "masked")


def test_no_path_is_in_a_card(tmp_path):
    model, tokenizer = build("wordpiece"), FAMILIES["wordpiece"].tokenizer
    model.save_pretrained(tmp_path / "my-encoder")
    base = type(model).from_pretrained(tmp_path / "my-encoder")
    card = saved(prune(base, tokenizer, TEXTS, 0.2, "vocab", oov="nearest"), tmp_path / "small")
    assert ModelCard(card).data.base_model == "my-encoder" and str(tmp_path) not in card
    again = load(tmp_path / "small")
    assert ModelCard(saved(again, tmp_path / "again")).data.base_model == "my-encoder"


def test_what_is_not_known_is_left_out(tmp_path):
    p = pruned()
    p.info = {}
    card = saved(p, tmp_path / "small")
    assert card == make_card(json.loads((tmp_path / "small" / "vocab_pruning.json").read_text()))
    assert re.findall(r"^## (.*)", card, re.MULTILINE) == ["How to use it", "Provenance", "Limitations"]
    assert "None" not in card


def test_scores_stay_with_the_model(tmp_path):
    saved(pruned(), tmp_path / "small", scores=dict(matthews=0.25))
    assert load(tmp_path / "small").info["scores"] == dict(matthews=0.25)


def test_a_card_of_layers_alone_says_nothing_of_pruned_tokens():
    info = dict(base_model="m", architecture="BertForMaskedLM", task="cola", before=dict(rows=10, params=9),
                after=dict(rows=10, params=8), losparse=dict(rho=0.5, rows=0.5), total_ratio=0.1)
    card = make_card(info)
    assert "# m, layers pruned for cola\n\nm with smaller layers and its whole vocabulary, made" in card
    assert ModelCard(card).data.tags == ["losparse", "cola"]
    for said in ("pruned token", "vocabulary rows", "those of the vocabulary", "never predicted"):
        assert said not in card and said in make_card(info | dict(oov="unk", oov_options={}, seed=0, break_even=0.1, ratio=0.5,
                                                                   base="vocab", train=dict(tokens=1, share=0.1))), said


SCORES = {  # what `save_pretrained` is given: metrics by name, or a run's
    "own": (dict(task="reviews", accuracy=0.5, matthews=-0.25), dict(accuracy=0.5, matthews_correlation=-0.25)),
    "run": (dict(task="stsb", metric="pearson", score=0.75, full_score=0.8, retention=0.9375, retention_reason=None), dict(pearsonr=0.75)),
    "none finite": (dict(task="reviews", accuracy=float("nan")), {}),
}


@pytest.mark.parametrize("given, known", SCORES.values(), ids=SCORES)
def test_the_hub_reads_the_scores_of_a_card(given, known, tmp_path):
    "A card with scores has a valid `model-index`; numbers that compare two models are not in it."
    p = pruned()
    p.info |= {"run": {"data_id": "nyu-mll/glue"}}
    saved(p, tmp_path / "small", scores=given)
    data = ModelCard.load(tmp_path / "small" / "README.md").data
    found = data.eval_results or []
    assert {result.metric_type: result.metric_value for result in found} == known and bool(data.model_name) == bool(known)
    for result in found:
        assert (result.task_type, result.task_name) == ("text-classification", given["task"])
        assert (result.dataset_type, result.dataset_name, result.dataset_config) == ("nyu-mll/glue", given["task"], given["task"])


def test_scores_of_a_task_without_a_name_are_in_the_index():
    (result,) = ModelCard(make_card(dict(scores=dict(f1=0.5)))).data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_name) == ("f1", 0.5, "unknown")


def test_a_size_that_grows_has_a_plus():
    p = prune(build("wordpiece"), FAMILIES["wordpiece"].tokenizer, TEXTS, 0, "vocab", oov="nearest")
    assert "bytes" in repr(p) and "−-" not in repr(p) + p._repr_markdown_() + make_card(p.info | {"after": sizes(p.model)})
    assert "(+" in repr(p).split("bytes")[1] and size_change(1000, 452) == "−54.8%"


def test_license_and_language_are_passed_on(tmp_path):
    "From memory and from files; what cannot be read, or is something else, is left."
    model, tokenizer = tiny_model("BERT")
    model.save_pretrained(tmp_path / "full"), tokenizer.save_pretrained(tmp_path / "full")
    (tmp_path / "full" / "README.md").write_text("---\nlicense: apache-2.0\nlanguage: [de, en]\ntags: [x]\n---\nText.")
    cut = dict(ratio=0.4, base="vocab", oov="int8")
    p = prune(type(model).from_pretrained(tmp_path / "full"), tokenizer, TEXTS, **cut)
    p.save_pretrained(tmp_path / "memory")
    prune_checkpoint(tmp_path / "full", TEXTS, tmp_path / "files", **cut)
    for name in ("memory", "files"):
        said = metadata_load(tmp_path / name / "README.md")
        assert (said["license"], said["language"], "x" in said["tags"]) == ("apache-2.0", ["de", "en"], False)
    for text in ("no header", "---\n: [\n---\n", "---\n- a\n---\n"):
        (tmp_path / "full" / "README.md").write_text(text)
        assert passed_on(tmp_path / "full" / "README.md") == {}
