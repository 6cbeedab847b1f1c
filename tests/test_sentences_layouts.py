"""Models of sentence-transformers whose files lie elsewhere, or that are no `SentenceTransformer`."""

import json
import shutil

import pytest
import torch
from test_checkpoint import TEXTS
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

from vocab_pruning import load, prune
from vocab_pruning.models.hub import companions
from vocab_pruning.testing.families import tiny_model

st = pytest.importorskip("sentence_transformers", reason="needs the extra `sentence`")
CUT = dict(ratio=0.3, base="vocab")


def encoder(directory, auto: str = "AutoModel"):
    "The directory of a tiny BERT."
    model, tokenizer = tiny_model("BERT", auto)
    model.save_pretrained(directory), tokenizer.save_pretrained(directory)
    return str(directory)


@pytest.mark.parametrize("oov", ["int8", "resegment"])
def test_a_model_in_a_folder_of_its_own_is_at_the_top_of_a_save(oov, tmp_path):
    "As sentence-transformers once wrote: what is loaded is the pruned model, with its pooling and length."
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    part = Transformer(encoder(tmp_path / "bert"), max_seq_length=7)
    st.SentenceTransformer(modules=[part, Pooling(16, pooling_mode="cls")]).save_pretrained(str(tmp_path / "new"))
    old = shutil.copytree(tmp_path / "new", tmp_path / "old")
    (old / "0_Transformer").mkdir()
    modules = json.loads((old / "modules.json").read_text())
    for file in [file for file in old.iterdir() if file.is_file() and file.name not in ("modules.json", "config_sentence_transformers.json", "README.md")]:
        file.rename(old / "0_Transformer" / file.name)
    modules[0]["path"] = "0_Transformer"
    (old / "modules.json").write_text(json.dumps(modules))
    made = []
    for directory, where in ((tmp_path / "new", {}), (old, dict(subfolder="0_Transformer"))):
        model, tokenizer = AutoModel.from_pretrained(directory, **where), AutoTokenizer.from_pretrained(directory, **where)
        out = tmp_path / f"{directory.name}-out"
        prune(model, tokenizer, TEXTS, **CUT, oov=oov).save_pretrained(out)
        assert not (out / "0_Transformer").exists()
        made.append(st.SentenceTransformer(str(out), device="cpu"))
    assert made[1].max_seq_length == 7
    vectors = [torch.from_numpy(one.encode(TEXTS[:8])) for one in made]
    assert torch.equal(*vectors)
    new, full = (sum(part.numel() for part in one.parameters()) for one in (made[1], st.SentenceTransformer(str(old), device="cpu")))
    assert new < full


@pytest.mark.parametrize("oov", ["int8", "resegment"])
def test_pooling_is_found_from_another_working_directory(oov, tmp_path, monkeypatch):
    "Where the model was loaded by a relative path: pooling and modules go along, whenever they are asked for."
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    from vocab_pruning.models.sentences import sentence_transformer

    part = Transformer(encoder(tmp_path / "bert"))
    st.SentenceTransformer(modules=[part, Pooling(16, pooling_mode="cls")]).save_pretrained(str(tmp_path / "full"))
    monkeypatch.chdir(tmp_path)
    model, tokenizer = AutoModel.from_pretrained("full"), AutoTokenizer.from_pretrained("full")
    p = prune(model, tokenizer, TEXTS, **CUT, oov=oov)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    p.save_pretrained("out")
    for made in (sentence_transformer(p), st.SentenceTransformer("out", device="cpu")):
        assert made[1].pooling_mode == "cls"
    assert model.name_or_path == "full" and p.info["base_model"] == "full"


@pytest.mark.parametrize("oov", ["int8", "resegment"])
def test_what_gives_other_vectors_is_refused(oov, tmp_path):
    from vocab_pruning.models.sentences import sentence_transformer

    st.SparseEncoder(encoder(tmp_path / "bert", "AutoModelForMaskedLM"), device="cpu").save_pretrained(str(tmp_path / "sparse"))
    model, tokenizer = (auto.from_pretrained(tmp_path / "sparse") for auto in (AutoModelForMaskedLM, AutoTokenizer))
    p = prune(model, tokenizer, TEXTS, **CUT, oov=oov)
    with pytest.raises(ValueError, match="this model is made for a SparseEncoder, .* open the directory with sentence_transformers.SparseEncoder"):
        sentence_transformer(p)
    p.save_pretrained(tmp_path / "out")
    assert load(tmp_path / "out") and st.SparseEncoder(str(tmp_path / "out"), device="cpu").encode(TEXTS[:2]).shape[0] == 2


def test_modules_that_hold_modules_stay_where_they_are(tmp_path):
    (tmp_path / "modules.json").write_text(json.dumps([dict(idx=0, name="0", path="", type="sentence_transformers.models.Router")]))
    with pytest.warns(UserWarning, match="is of several models for sentence-transformers .*Router.*put it in their place yourself"):
        assert companions(str(tmp_path)) == []
