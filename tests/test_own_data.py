"""Tables of one's own become tasks, whatever their cells hold; what cannot be used stops the load with one line that says where."""

import io
import json
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import FAMILIES, WORDS, build, make_texts
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BartConfig, BartForSequenceClassification

from vocab_pruning import load_task, prune
from vocab_pruning.data import TASKS, Task, data_fingerprint, get_task, load_texts, own_task, resolve_data
from vocab_pruning.finetune import METRICS, finetune, load_classifier, make_recipe
from vocab_pruning.results import record_run, run_name, shared_parameters
from vocab_pruning.table import read_table

AWKWARD = ['He said "no", twice', "first line\nsecond, line", "None", "NA", "naïve café — 数", "007", " two  spaces ", "'single'", "a\ttab", "nan", "1e5"]
CLASSES = ["bad", "good", "so, so"]


def rows(n: int = 33, classes=CLASSES) -> pd.DataFrame:
    "Awkward texts, pairs of them, and a class each."
    texts = [AWKWARD[i % len(AWKWARD)] + (f" {i}" if i >= len(AWKWARD) else "") for i in range(n)]
    return pd.DataFrame({"id": range(n), "said": texts, "answer": texts[::-1], "verdict": [classes[i % len(classes)] for i in range(n)]})


WRITE = {
    ".csv": lambda frame, path: frame.to_csv(path, index=False),
    ".tsv": lambda frame, path: frame.to_csv(path, index=False, sep="\t"),
    ".jsonl": lambda frame, path: frame.to_json(path, orient="records", lines=True, force_ascii=False),
    ".parquet": lambda frame, path: frame.to_parquet(path),
}
NAMED = dict(text="said", label="verdict")


def written(directory, name: str, frame: pd.DataFrame):
    "`frame` as the file `name`."
    path = directory / name
    WRITE[path.suffix](frame, path)
    return path


def text_file(directory, text: str, name: str = "own.csv", encoding: str = "utf-8"):
    path = directory / name
    path.write_bytes(text.encode(encoding))
    return path


def refuses(message: str, *args, error=ValueError, **options):
    "`own_task` raises `error`; its one line holds `message`."
    with pytest.raises(error) as caught:
        own_task(*args, **options)
    assert message in str(caught.value), str(caught.value)
    assert "\n" not in str(caught.value)


# What works


@pytest.mark.parametrize("pair", [None, "answer"], ids=["single", "pair"])
@pytest.mark.parametrize("ending", WRITE)
def test_every_cell_comes_through_every_format(ending, pair, tmp_path):
    frame = rows()
    path = written(tmp_path, f"own{ending}", frame)
    loaded = load_task(own_task(path, path, pair=pair, **NAMED))
    columns = {"said": "text"} | ({"answer": "text_pair"} if pair else {})
    expected = frame[[*columns]].rename(columns=columns).assign(label=frame["verdict"].map(CLASSES.index))
    assert all(split.to_list() == expected.to_dict("records") for split in loaded.values())
    assert loaded["train"].features["label"] == datasets.ClassLabel(names=CLASSES)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_marks_and_line_ends_of_a_csv(encoding, newline, tmp_path):
    text = newline.join(["text,label", '"a ""b"",', 'c",yes', "d,no", ""])
    task = own_task(path := text_file(tmp_path, text, encoding=encoding), path)
    assert task.dataset["train"].to_list() == [{"text": f'a "b",{newline}c', "label": 1}, {"text": "d", "label": 0}]


@settings(max_examples=25)
@given(st.lists(st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0\r")).filter(str.strip), min_size=2, max_size=8))
def test_what_a_csv_writer_quotes_is_read_back(texts):
    import tempfile

    frame = pd.DataFrame({"text": texts, "label": ["yes", "no", *["yes"] * (len(texts) - 2)]})
    with tempfile.TemporaryDirectory() as directory:
        loaded = own_task(path := written(Path(directory), "own.csv", frame), path).dataset
    assert loaded["dev"]["text"][:] == texts


def test_tables_in_memory(tmp_path):
    frame = rows().drop(columns="id")
    in_memory = datasets.Dataset.from_pandas(frame)
    tasks = [own_task(table, name="own", **NAMED) for table in (written(tmp_path, "own.csv", frame), frame, in_memory)]
    assert len({data_fingerprint(load_task(task)) for task in tasks}) == 1
    both = datasets.DatasetDict(train=in_memory, validation=in_memory.select(range(6)), test=in_memory)
    loaded = load_task(both, **NAMED)
    assert (len(loaded["train"]), len(loaded["dev"])) == (33, 6)


def test_class_names_of_a_dataset_are_kept_in_their_order():
    names = ["weak", "fair", "never seen"]
    features = datasets.Features(text=datasets.Value("string"), label=datasets.ClassLabel(names=names))
    task = own_task(datasets.Dataset.from_dict(dict(text=[*"abcd"], label=[0, 1, 1, 0]), features=features), dev_size=0.5)
    assert task.labels == tuple(names)
    unlabelled = datasets.Dataset.from_dict(dict(text=[*"abcd"], label=[0, 1, -1, 0]), features=features)
    refuses("the Dataset, row 2 (from 0), column 'label' is empty", unlabelled)


@pytest.mark.parametrize(("values", "names"), [
    ([2, 10, 2, 10], ("2", "10")), ([1.0, 0.0, 1.0, 0.0], ("0", "1")), ([True, False, True, False], ("False", "True")),
    (["b", "a", 3, 3.0], ("3", "a", "b")), ([" yes", "no", "yes ", "no"], ("no", "yes"))], ids=str)
def test_names_of_classes(values, names):
    frame = pd.DataFrame(dict(text=[*"abcd"], label=pd.Series(values, dtype=object)))
    assert own_task(frame, frame).labels == names


def test_a_seeded_split_has_every_class_and_every_row_once():
    first, again, other = (own_task(rows(60), seed=seed, dev_size=0.2, **NAMED).dataset for seed in (1, 1, 2))
    assert data_fingerprint(first) == data_fingerprint(again) != data_fingerprint(other)
    assert sorted(first["train"]["text"][:] + first["dev"]["text"][:]) == sorted(rows(60).said)
    assert [np.bincount(split["label"]).tolist() for split in first.values()] == [[16] * 3, [4] * 3]


def test_regression():
    frame = pd.DataFrame(dict(text=[*"abcdefghij"], label=[0.5, "1", 2, -3, 1e3, 0, 1, 2, 3, 4]))
    task = own_task(frame, regression=True)
    assert (task.labels, task.num_labels, task.metrics) == (None, 1, ("pearson", "spearman"))
    assert task.dataset["train"].features["label"] == datasets.Value("float32")
    assert sorted(task.dataset["train"]["label"][:] + task.dataset["dev"]["label"][:]) == sorted(map(float, frame.label))


def test_rows_that_lack_a_cell_are_left_out_when_asked(tmp_path):
    path = text_file(tmp_path, "text,label\na,yes\n,no\nb,\nc,no\n  ,yes\n")
    assert own_task(path, path, drop_missing=True).dataset["train"].to_list() == [{"text": "a", "label": 1}, {"text": "c", "label": 0}]


def test_a_description_stands_for_its_task(tmp_path):
    (tmp_path / "data").mkdir()
    written(tmp_path / "data", "own.tsv", rows())
    description = dict(train="data/own.tsv", dev="data/own.tsv", text="said", label="verdict", epochs=4, metrics=["matthews"])
    (tmp_path / "verdicts.yaml").write_text("\n".join(f"{key}: {value}" for key, value in description.items()))
    (tmp_path / "verdicts.json").write_text(json.dumps(description | dict(name="other")))
    task, other = get_task(str(tmp_path / "verdicts.yaml")), get_task(tmp_path / "verdicts.json")
    assert (task.name, task.epochs, task.metrics, task.labels) == ("verdicts", 4, ("matthews",), tuple(CLASSES))
    assert other.name == "other"
    assert data_fingerprint(load_task(tmp_path / "verdicts.yaml")) == data_fingerprint(task.dataset)
    assert resolve_data("auto", task) == ("own", "own")


def test_metrics_offered_are_those_there_are():
    from vocab_pruning import data

    assert sorted(name for names in data._METRICS.values() for name in names) == sorted(METRICS)


@pytest.mark.parametrize("name", ["own.csv", "own.txt"])
def test_texts_without_labels(name, tmp_path):
    path = text_file(tmp_path, "text\na b\n\n\"c\"\n", name, "utf-8-sig")
    assert load_texts(path) == (["a b", "c"] if name.endswith("csv") else ["text", "a b", '"c"'])


# What cannot be used


CELLS = {
    "missing label": ("text,label\na,yes\nb,\nc,no\n", "own.csv, row 1 (from 0), column 'label' is empty, as 1 of 3 rows are; fill it, or pass"),
    "short row": ("text,label\na,yes\nb\nc,no\n", "row 1 (from 0), column 'label' is empty"),
    "empty text": ('text,label\na,yes\nb,no\n"  ",no\n', "row 2 (from 0), column 'text' is empty"),
    "wrong column": ("txt,label\na,yes\nb,no\n", "own.csv has no column 'text'; it has 'txt', 'label'"),
    "semicolons": ("text;label\na;yes\n", "own.csv has no column 'text'; it has 'text;label'"),
    "long row": ("text,label\na,yes\nb, c,no\n", "own.csv cannot be read: Error tokenizing data. C error: Expected 2 fields in line 3, saw 3"),
    "long first row": ("text,label\na, b,yes\nc,no\n", "own.csv cannot be read: row 0 has more cells than the header"),
    "open quote": ('text,label\na,yes\n"b,no\n', "own.csv cannot be read: Error tokenizing data. C error: EOF inside string starting at row 2"),
    "nothing": ("", "own.csv cannot be read: No columns to parse from file"),
    "a header alone": ("text,label\n", "own.csv has no row with 'text' and 'label'"),
    "one class": ("text,label\na,yes\nb,yes\n", "own.csv, column 'label': every label is 'yes'; a classifier needs two classes"),
    "fractions": ("text,label\na,1\nb,2.5\n", "row 1 (from 0), column 'label': '2.5' is no class number; pass regression=True, or name"),
    "one number twice": ("text,label\na,1\nb,2\nc,1.0\n", "row 2 (from 0), column 'label': '1' and '1.0' are one number"),
    "a class of one": ("text,label\na,yes\nb,no\nc,yes\n", "own.csv has 1 row of class 'no', too few for both train and dev"),
    "too few rows": ("text,label\na,yes\nb,no\nc,yes\nd,no\n", "dev_size 0.1 of 4 rows is 1, too few for 2 classes"),
}


@pytest.mark.parametrize("what", CELLS)
def test_a_csv_that_cannot_be_used(what, tmp_path):
    text, message = CELLS[what]
    refuses(message, text_file(tmp_path, text))


def test_a_row_keeps_its_number_when_others_are_left_out(tmp_path):
    path = text_file(tmp_path, "text,label\na,yes\n,no\nb,no\n")
    refuses("row 2 (from 0), column 'label': 'no' is not one of the classes yes, maybe", path, path, drop_missing=True, labels=["yes", "maybe"])


def test_an_unseen_class_in_dev(tmp_path):
    train, dev = text_file(tmp_path, "text,label\na,yes\nb,no\n"), text_file(tmp_path, "text,label\na,yes\nb,maybe\n", "dev.csv")
    message = "dev.csv, row 1 (from 0), column 'label': 'maybe' is not one of the classes no, yes; correct it, or name every class there is: labels=[…]"
    refuses(message, train, dev)
    assert own_task(train, dev, labels=["no", "maybe", "yes"]).dataset["dev"]["label"][:] == [2, 1]


def test_a_number_is_not_a_class_by_its_position(tmp_path):
    train, dev = text_file(tmp_path, "text,label\na,1\nb,2\n"), text_file(tmp_path, "text,label\na,0\n", "dev.csv")
    refuses("row 0 (from 0), column 'label': '0' is not one of", train, dev)


@pytest.mark.parametrize(("value", "shown"), [("high", "'high'"), ("inf", "'inf'"), ("nan", "'nan'")])
def test_regression_asks_for_numbers(value, shown, tmp_path):
    refuses(f"row 1 (from 0), column 'label': {shown} is not a finite number", text_file(tmp_path, f"text,label\na,1.5\nb,{value}\n"), regression=True)


def test_mixed_types():
    frame = pd.DataFrame(dict(text=["a", 5, "c"], label=["yes", "no", "no"]))
    refuses("the DataFrame, row 1 (from 0), column 'text': 5 is not a text", frame, frame)


@pytest.mark.parametrize(("line", "message"), [("{'a': 1}", "line 2 is not JSON"), ("[1]", "line 2 is not an object")])
def test_a_broken_line_of_json(line, message, tmp_path):
    refuses(f"own.jsonl cannot be read: {message}", text_file(tmp_path, f'{{"text": "a", "label": 1}}\n{line}\n', "own.jsonl"))


def test_other_files(tmp_path):
    refuses("own.csv is not UTF-8 (invalid continuation byte at byte 14); save it as UTF-8", text_file(tmp_path, "text,label\ncafé,yes\n", encoding="latin-1"))
    refuses("own.parquet cannot be read: ", text_file(tmp_path, "no parquet", "own.parquet"))
    refuses("own.csv is not a file", tmp_path / "no" / "own.csv", error=FileNotFoundError)
    refuses("unknown kind of file '.xlsx'; choose one of .csv, .tsv, .jsonl, .parquet", tmp_path / "own.xlsx")
    refuses("IterableDataset is not a table", datasets.Dataset.from_dict(dict(text=["a"])).to_iterable_dataset(), error=TypeError)
    refuses("there is no split 'train' among 'test'", datasets.DatasetDict(test=datasets.Dataset.from_dict(dict(text=["a"]))))


@pytest.mark.parametrize(("options", "message"), [
    (dict(metrics=["f2"]), "metric 'f2' does not fit 3 classes; choose from accuracy, matthews"), (dict(metrics=["f1"]), "metric 'f1' does not fit 3 classes"),
    (dict(metrics=["pearson"]), "metric 'pearson' does not fit"), (dict(name="cola"), "'cola' is the name of a GLUE task"),
    (dict(regression=True, labels=["a"]), "give one of the two"), (dict(dev_size=0), "dev_size 0 of 33 rows"), (dict(dev_size=1.5), "dev_size 1.5 of 33 rows")])
def test_options_that_do_not_fit(options, message):
    refuses(message, rows(), **NAMED | options)


def test_numbers_and_names_in_a_description(tmp_path):
    "YAML 1.1 takes 2e-5 for text, and yes for a truth value."
    text_file(tmp_path, "text,label\n" + "good,yes\nbad,no\n" * 10)
    (tmp_path / "own.yaml").write_text('train: own.csv\nlabels: ["no", "yes"]\nlearning_rate: 2e-5')
    assert get_task(tmp_path / "own.yaml").learning_rate == 2e-5 and get_task(tmp_path / "own.yaml").labels == ("no", "yes")
    (tmp_path / "own.yaml").write_text("train: own.csv\nlabels: [no, yes]")
    with pytest.raises(ValueError, match="put the names in quotes"):
        get_task(tmp_path / "own.yaml")


def test_a_misspelt_argument_of_a_description(tmp_path):
    path = text_file(tmp_path, "train: own.csv\nlable: verdict\n", "own.yaml")
    written(tmp_path, "own.csv", rows())
    with pytest.raises(ValueError, match=r"own\.yaml does not describe a task .*'lable'"):
        get_task(path)
    with pytest.raises(ValueError, match=r"has its own data; leave data at 'auto', not 'sample'"):
        load_task(own_task(rows(), **NAMED), "sample")
    with pytest.raises(FileNotFoundError, match=r"no\.yaml is not a file"):
        get_task(tmp_path / "no.yaml")


# All the way


def words(n: int, seed: int) -> pd.DataFrame:
    "Texts of the tiny tokenizer, labelled by whether they hold its first word."
    texts = [text for text in make_texts(2 * n, seed) if text][:n]
    return pd.DataFrame(dict(said=texts, verdict=["yes" if WORDS[0] in text.split() else "no" for text in texts]))


def test_from_a_csv_to_predictions_by_name(tmp_path):
    from conftest import FAMILIES
    from transformers import pipeline

    build("wordpiece", "bare").save_pretrained(tmp_path / "tiny")
    FAMILIES["wordpiece"].tokenizer.save_pretrained(tmp_path / "tiny")
    written(tmp_path, "words.csv", words(80, 3))
    task = own_task(tmp_path / "words.csv", batch_size=16, epochs=1, **NAMED)
    model, tokenizer = load_classifier(tmp_path / "tiny", task)
    assert model.config.id2label == {0: "no", 1: "yes"}
    dataset = load_task(task)
    pruned = prune(model, tokenizer, dataset["train"]["text"][:], ratio=0.2, base="vocab", oov="nearest")
    recipe, directory = make_recipe(task), tmp_path / "runs" / "own"
    row = record_run(directory, dict(task=task.name, seed=1, method="own"), pruned.model, tokenizer, dataset, recipe, task=task, save=pruned.save_pretrained)
    assert (row["task"], row["metric"]) == ("words", "accuracy") and 0 <= row["score"] <= 1
    from vocab_pruning import load

    saved = load(directory / "model")
    classify = pipeline("text-classification", model=saved.model, tokenizer=saved.tokenizer, device="cpu")
    texts = dataset["dev"]["text"][:]
    with torch.no_grad():
        logits = saved.model(**tokenizer(texts, padding=True, return_tensors="pt")).logits
    assert [guess["label"] for guess in classify(texts)] == [task.labels[i] for i in logits.argmax(1)]
    guesses = pd.read_csv(io.StringIO((directory / "predictions.csv").read_text())).prediction
    assert guesses.tolist() == logits.argmax(1).tolist()


def test_a_task_of_ones_own_fine_tunes_as_regression(tmp_path):
    frame = words(40, 4).assign(verdict=lambda f: f.said.str.len() / 10)
    task = own_task(frame, regression=True, epochs=1, batch_size=8, **NAMED)
    result = finetune(build("wordpiece", num_labels=1), FAMILIES["wordpiece"].tokenizer, load_task(task), task, make_recipe(task), tmp_path)
    assert set(result.metrics) == {"pearson", "spearman"}
    assert isinstance(task, Task) and task.name not in TASKS


def test_metrics_and_class_names_identify_a_run():
    model, tasks = build("wordpiece", num_labels=2), [own_task(words(40, 4), **NAMED), own_task(words(40, 4), metrics=["f1"], **NAMED),
                                                      own_task(words(40, 4).replace({"verdict": {"yes": "so"}}), **NAMED)]
    names = {run_name(shared_parameters(task, 42, "tiny", model, "own", task.dataset, {})) for task in tasks}
    assert len(names) == 3
    assert not {"metrics", "labels"} & shared_parameters("cola", 42, "tiny", model, "sample", tasks[0].dataset, {}).keys()


def test_an_encoder_with_a_decoder_is_fine_tuned(tmp_path):
    tokenizer = FAMILIES["unigram"].tokenizer
    ids = {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in ("pad", "bos", "eos")} | dict(decoder_start_token_id=tokenizer.eos_token_id)
    size = {f"{part}_{name}": n for part in ("encoder", "decoder") for name, n in (("layers", 1), ("attention_heads", 2), ("ffn_dim", 16))}
    model = BartForSequenceClassification(BartConfig(vocab_size=len(tokenizer), d_model=16, max_position_embeddings=64, num_labels=2, **ids, **size))
    task = own_task(words(40, 4), epochs=1, batch_size=8, **NAMED)
    found = finetune(model, tokenizer, load_task(task), task, make_recipe(task, max_length=48), tmp_path)
    assert len(found.predictions["dev"]) == len(task.dataset["dev"])


def test_cells_of_a_csv_are_never_converted(tmp_path):
    assert read_table(text_file(tmp_path, "a,b\n007,1.0\n1e3,\n")).to_dict("list") == {"a": ["007", "1e3"], "b": ["1.0", ""]}


def test_the_run_notebook_takes_a_description(tmp_path):
    "The row is named after the task, its data after nobody's directory, and the saved model's card has task and score."
    import papermill
    from conftest import FAMILIES
    from huggingface_hub import ModelCard

    from vocab_pruning.results import row_of_notebook

    build("wordpiece", "bare").save_pretrained(tmp_path / "tiny")
    FAMILIES["wordpiece"].tokenizer.save_pretrained(tmp_path / "tiny")
    written(tmp_path, "words.csv", words(80, 3))
    (tmp_path / "verdicts.yaml").write_text("train: words.csv\ntext: said\nlabel: verdict\nepochs: 1\n")
    asked = dict(task=str(tmp_path / "verdicts.yaml"), model=str(tmp_path / "tiny"), ratio=0.3, base="vocab", oov="nearest", look_first=False, save_model=True)
    nbs, page = Path(__file__).parent.parent / "nbs", tmp_path / "page.ipynb"
    papermill.execute_notebook(nbs / "run.ipynb", page, asked | dict(out=str(tmp_path / "runs")), progress_bar=False, cwd=str(nbs))
    row = row_of_notebook(page)
    assert (row["task"], row["data_id"], row["metric"], row["model_id"]) == ("verdicts", "own", "accuracy", "tiny")
    assert str(tmp_path) not in json.dumps(row)
    card = (tmp_path / "runs" / row["run"] / "model" / "README.md").read_text()
    assert "verdicts" in ModelCard(card).data.tags and f"| score | {row['score']:.4f} |" in card and row["data_fingerprint"] in card
