"""Models on the hub, by name: a process of its own talks to a stand-in on loopback, because `HF_ENDPOINT` is read once, at import."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

AT_THE_HUB = '''
import json, os, sys, warnings
from pathlib import Path
from stand_in_hub import TOKEN, Hub

root, hub = Path(sys.argv[1]), Hub()
os.environ |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(root / "home"), "HF_HUB_DISABLE_XET": "1"}
import torch
from transformers.utils import logging
logging.set_verbosity_error(); logging.disable_progress_bar()
from transformers import AutoModel, AutoModelForSequenceClassification, pipeline
import vocab_pruning
from vocab_pruning import load, prune
from vocab_pruning.models.hub import snapshot, upload
from vocab_pruning.core import hub_reachable
from vocab_pruning.testing.families import tiny_model

told = {}
texts = ["the cat sat on the mat", "a dog ran away"]


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def line(call, *args, **options):
    try:
        return repr(call(*args, **options))
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def made(oov):
    p = prune(*tiny_model("BERT"), texts, 0.5, "vocab", oov=oov)
    p.info["base_model"] = "someone/base"
    return p


p, q = made("nearest"), made("int8")
scores = {"task": "cola", "matthews": 0.5}
told["refused"] = line(p.push_to_hub, "user/model")
told["nothing"] = line(upload, root, "user/model", token=TOKEN)
told["address"] = p.push_to_hub("user/model", token=TOKEN, scores=scores)
told["branch"] = q.push_to_hub("user/model", token=TOKEN, revision="eight-bits")
p.push_to_hub("user/private", token=TOKEN, private=True)
hub.commits[hub.models["user/model"]["main"]] |= {"notes.txt": b"ours", "model-00001-of-00002.safetensors": b"of an earlier push"}
p.push_to_hub("user/model", token=TOKEN, scores=scores)
told["files"] = sorted(hub.commits[hub.models["user/model"]["main"]])

asked = len(hub.asked)
told["load"] = same(load("user/model").model, p.model)
told["fetched"] = [request for request in hub.asked[asked:] if "resolve" in request and "GET" in request]
commit = hub.models["user/model"]["eight-bits"]
told["revisions"] = [same(load("user/model", revision=name).model, q.model) for name in ("eight-bits", commit)]
told["no revision"] = line(load, "user/model", revision="v9")
told["no model"] = line(load, "user/other")
told["no token"] = line(load, "user/private")
told["wrong token"] = line(load, "user/private", token="hf_wrong")
told["token"] = same(load("user/private", token=TOKEN).model, p.model)
told["auto"] = same(AutoModelForSequenceClassification.from_pretrained("user/model"), p.model)
told["auto private"] = same(AutoModelForSequenceClassification.from_pretrained("user/private", token=TOKEN), p.model)
told["base"] = same(AutoModel.from_pretrained("user/model", revision=commit), q.model.bert)
ours = pipeline("text-classification", p.model, tokenizer=p.tokenizer)(texts)
told["pipeline"] = pipeline("text-classification", "user/model")(texts) == ours

from huggingface_hub import ModelCard
from huggingface_hub.utils import get_session

session = get_session()
post = session.post  # before release 2, validate asks huggingface.co, whatever HF_ENDPOINT says
session.post = lambda url, **given: post(url.replace("https://huggingface.co", os.environ["HF_ENDPOINT"]), **given)
card = ModelCard.load("user/model")
card.validate()
told["card"] = [(r.task_type, r.dataset_name, r.metric_type, r.metric_value) for r in card.data.eval_results]

if "sentence" in sys.argv:
    from sentence_transformers import SentenceTransformer
    from vocab_pruning.models.sentences import sentence_transformer

    s = prune(*tiny_model("BERT", "AutoModel"), texts, 0.5, "vocab", oov="nearest")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        encoder = sentence_transformer(s)
    encoder.save(str(root / "sentences"))
    upload(root / "sentences", "user/private-sentences", private=True, token=TOKEN)
    again = SentenceTransformer("user/private-sentences", token=TOKEN, trust_remote_code=True)
    told["sentences"] = bool((again.encode(texts) == encoder.encode(texts)).all())

hub.stop()
hub_reachable.cache_clear()
told["offline"] = same(load("user/model").model, p.model)
told["offline revision"] = same(load("user/model", revision="eight-bits").model, q.model)
told["offline private"] = same(load("user/private").model, p.model)
told["offline auto"] = same(AutoModelForSequenceClassification.from_pretrained("user/model", local_files_only=True), p.model)
told["offline other"] = line(load, "user/other")
print(json.dumps(told))
'''


def at_the_hub(root: Path, *what: str) -> dict:
    "Return what `AT_THE_HUB` found."
    here = [str(Path(__file__).parent), str(Path(__file__).parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    run = subprocess.run([sys.executable, "-c", AT_THE_HUB, str(root), *what], capture_output=True, text=True,
                         env=clean | {"PYTHONPATH": os.pathsep.join(here)})
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> dict:
    return at_the_hub(tmp_path_factory.mktemp("hub"))


def test_a_push_is_one_save(told):
    "It replaces what an earlier push left, and nothing else; another branch is made."
    assert "/user/model/commit/" in told["address"] and told["branch"] != told["address"]
    names = ["README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab_pruning.json"]
    assert told["files"] == sorted([*names, "notes.txt"])
    assert told["card"] == [["text-classification", "cola", "matthews_correlation", 0.5]]


@pytest.mark.parametrize("what", ["load", "token", "auto", "auto private", "base", "pipeline", "offline", "offline revision",
                                  "offline private", "offline auto"])
def test_a_name_gives_what_was_pushed(what, told):
    assert told[what] is True


def test_a_revision_is_a_branch_or_a_commit(told):
    assert told["revisions"] == [True, True]


WHERE = "neither a directory that holds a config.json nor a model that the hub gives"
REFUSALS = {
    "refused": "OSError: user/model was not uploaded (the hub answers 401: it does not exist, or is private and needs token=…",
    "nothing": "holds no vocab_pruning.json; give a directory that save_pretrained wrote",
    "no revision": f"FileNotFoundError: user/model is {WHERE} (404 Client Error. Revision Not Found",
    "no model": f"FileNotFoundError: user/other is {WHERE} (the hub answers 401: it does not exist, or is private",
    "no token": f"FileNotFoundError: user/private is {WHERE} (the hub answers 401: it does not exist, or is private",
    "wrong token": f"FileNotFoundError: user/private is {WHERE} (the hub answers 401: it does not exist, or is private",
    "offline other": f"FileNotFoundError: user/other is {WHERE} (not in the cache, and the hub was not asked)",
}


@pytest.mark.parametrize("what", REFUSALS)
def test_a_refusal_is_one_line(what, told):
    assert REFUSALS[what] in told[what] and "\n" not in told[what]


@pytest.mark.slow
def test_a_sentence_encoder_by_name(tmp_path):
    "The hub's copy is private; sentence-transformers asks for trust before it imports a module that is not its own."
    pytest.importorskip("sentence_transformers")
    assert at_the_hub(tmp_path, "sentence")["sentences"] is True
