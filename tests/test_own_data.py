"""Tables of one's own become tasks, whatever their cells hold; what cannot be used stops the load with one line that says where."""

import bz2
import copy
import gzip
import io
import json
import lzma
import math
import os
from decimal import Decimal
from enum import Enum, IntEnum
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pyarrow
import pytest
import torch
from conftest import FAMILIES, WORDS, build, make_texts, same
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForTokenClassification, BartConfig, BartForSequenceClassification

from vocab_pruning import load_task, prune
from vocab_pruning.data.corpora import read_texts
from vocab_pruning.data.stats import token_stats
from vocab_pruning.data.table import read_table
from vocab_pruning.data.tasks import (
    TASKS,
    Task,
    _with_every_class,
    data_fingerprint,
    get_task,
    load_texts,
    own_task,
    resolve_data,
)
from vocab_pruning.evaluate.benchmark import text_batches
from vocab_pruning.evaluate.finetune import METRICS, finetune, load_classifier, make_recipe, tokenize_split
from vocab_pruning.runs.record import full_model_facts, record_run, run_name, shared_parameters, subset
from vocab_pruning.testing.families import tiny_model

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
    from vocab_pruning.data import tasks as data

    assert sorted(name for names in data._METRICS.values() for name in names) == sorted(METRICS)


@pytest.mark.parametrize("name", ["own.csv", "own.txt"])
def test_texts_without_labels(name, tmp_path):
    path = text_file(tmp_path, "text\na b\n\n\"c\"\n", name, "utf-8-sig")
    assert load_texts(path) == (["a b", "c"] if name.endswith("csv") else ["text", "a b", '"c"'])


# Quotes: each format's own rule, and never fewer texts than there are

ODD = ['"starts with a quote', "second line", 'third" line', "fourth"]
AS_TSV = {  # lines below the header -> texts; None: refused
    "the reported file": (ODD, ODD),
    "a quote that is never closed": (['"open', "b"], ['"open', "b"]),
    "whole cells in quotes": (['"great"', "b", '"c"'], ['"great"', "b", '"c"']),
    "quotes inside": (['he said "no"', "b"], ['he said "no"', "b"]),
    "a writer's quotes": (['"he said ""no"""', "b"], ['he said "no"', "b"]),
    "a writer's and others": (['"he said ""no"""', '"b'], ['"he said ""no"""', '"b']),
    "two texts or one": (['"a', 'b"', "c"], None),
    "blank lines": (["a", "", "b", ""], ["a", "b"]),
}


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"], ids=["lf", "crlf", "cr"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("what", AS_TSV)
def test_quotes_of_a_tsv_of_one_column(what, encoding, newline, tmp_path):
    lines, texts = AS_TSV[what]
    path = text_file(tmp_path, newline.join(["text", *lines]), "own.TSV", encoding)
    if texts is None and newline != "\r":
        with pytest.raises(ValueError, match=r"^own\.TSV cannot be read: line 2 begins a cell in quotes that [^\n]*$"):
            load_texts(path)
    elif texts is not None:
        assert load_texts(path) == texts


def test_quotes_of_a_tsv_of_two_columns(tmp_path):
    "A line that is no row by itself belongs to a cell in quotes; lines that are rows are not swallowed."
    one = text_file(tmp_path, 'text\tlabel\n"a\nb ""c"""\tyes\nd\tno\n', "own.tsv")
    assert read_table(one).to_dict("list") == {"text": ['a\nb "c"', "d"], "label": ["yes", "no"]}
    other = text_file(tmp_path, 'text\tlabel\n"a\tyes\n"b\tno\nc"\tno\n', "own.tsv")
    assert read_table(other).to_dict("list") == {"text": ['"a', '"b', 'c"'], "label": ["yes", "no", "no"]}
    refuses("own.tsv cannot be read: line 2 begins a cell",
            text_file(tmp_path, 'text\tlabel\n"a\tyes\nb"\tno\n', "own.tsv"))
    refuses("own.tsv cannot be read: Expected 2 fields in line 3, saw 3",
            text_file(tmp_path, 'text\tlabel\n"a\tyes\nb\tc\tno\n', "own.tsv"))
    refuses("row 1 (from 0), column 'label' is empty",
            text_file(tmp_path, 'text\tlabel\n"a\tyes\nb\nc\tno\n', "own.tsv"))


def test_quotes_of_a_csv_of_one_column(tmp_path):
    "Quotes that hold a line end together do so; what is no such cell stops the load with its line."
    assert load_texts(text_file(tmp_path, 'text\n"a\nb"\nsaid "c"\n')) == ["a\nb", 'said "c"']
    with pytest.raises(ValueError, match=r"^own\.csv cannot be read: line 2: a cell begins with a quote and does not "
                       r"end with one;[^\n]*$"):
        load_texts(text_file(tmp_path, "\n".join(["text", *ODD])))


def test_quotes_of_a_txt_are_characters(tmp_path):
    assert load_texts(text_file(tmp_path, "\r\n".join(ODD + ["", " "]), "own.txt", "utf-8-sig")) == ODD


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl", ".txt"])
def test_a_long_field_is_one_text(ending, tmp_path):
    "Longer than the 131,072 characters that Python's own reader of csv takes."
    long = 'word "and" word\t, ' * 20_000 if ending != ".txt" else "word " * 50_000
    path = tmp_path / f"own{ending}"
    if ending == ".txt":
        path.write_text(f"{long}\nb\n")
    else:
        WRITE[ending](pd.DataFrame({"text": [long, "b"], "n": [1, 2]}), path)
    assert load_texts(path) == [long, "b"]


# Compressed files

PACK = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress,
        ".zst": lambda data: pyarrow.compress(data, "zstd", asbytes=True)}


@pytest.mark.parametrize("how", [*PACK, ".GZ"])
@pytest.mark.parametrize("ending", [*WRITE, ".txt", ".CSV"])
def test_compressed_files_are_read(ending, how, tmp_path):
    plain, packed = tmp_path / f"own{ending}", tmp_path / f"own{ending}{how}"
    if ending == ".txt":
        plain.write_text("a\nb\n", encoding="utf-8-sig")
    else:
        WRITE[ending.lower()](rows(), plain)
    packed.write_bytes(PACK[how.lower()](plain.read_bytes()))
    columns = None if ending == ".txt" else ["said"]
    assert load_texts(packed, columns) == load_texts(plain, columns)
    if columns:
        task = get_task(str(packed), **NAMED)
        assert task.name == "own" and data_fingerprint(task.dataset) == data_fingerprint(get_task(plain,
                                                                                                  **NAMED).dataset)


@pytest.mark.parametrize("damage",
                         [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"no archive at all"],
                         ids=["cut", "empty", "another"])
@pytest.mark.parametrize("how", PACK)
def test_a_damaged_compressed_file_is_one_line(how, damage, tmp_path):
    for name in ("own.csv", "own.txt"):
        (path := tmp_path / f"{name}{how}").write_bytes(damage(PACK[how](b"text,label\na,yes\nb,no\n" * 200)))
        with pytest.raises(ValueError,
                           match=rf"^{name}\{how} cannot be read: it cannot be decompressed as \{how} \([^\n]*$"):
            load_texts(path)


def test_a_file_that_is_no_table_is_told_what_is(tmp_path):
    for name in ("own.xlsx", "data/own", "own.zip", "own.gz", Path("own")):
        with pytest.raises(ValueError, match=r"unknown task .*choose one of cola.* a description \(\.yaml.* or a "
                           r"table \(\.csv.*\.gz"):
            get_task(name)
    with pytest.raises(ValueError, match="a txt holds texts without labels"):
        get_task(tmp_path / "own.txt.gz")
    with pytest.raises(ValueError, match=r"unknown kind of file '\.pdf'; choose one of \.txt, \.csv"):
        read_texts(tmp_path / "own.pdf")
    (tmp_path / "own").write_text("a text\n")
    with pytest.raises(ValueError, match=r"own is a file of an unknown kind; let its name end in one of \.txt, \.csv"):
        load_texts(tmp_path / "own")


# Options that a branch does not read are refused

UNREAD = {
    "a column of a GLUE task": (lambda path: load_task("cola", "sample", text="zzz"),
                                "text='zzz' does not apply to task 'cola'"),
    "a setting of a description": (lambda path: get_task(path / "own.yaml", epochs=9),
                                   "epochs=9 does not apply to the description own.yaml"),
    "a setting of a task": (lambda path: get_task(own_task(rows(), **NAMED), seed=3),
                            "seed=3 does not apply to task 'own'"),
    "a size beside a dev table": (lambda path: own_task(rows(), rows(), dev_size=0.2, **NAMED),
                                  "dev_size=0.2: there is a dev table"),
    "a seed beside a dev table": (lambda path: own_task(rows(), rows(), seed=0, **NAMED),
                                  "seed=0: there is a dev table"),
    "a size beside a dev split": (lambda path: own_task(dict(train=rows(), dev=rows()), dev_size=0.2, **NAMED),
                                  "dev_size=0.2: there is a dev table"),
    "columns of a txt": (lambda path: load_texts(path / "own.txt", ["said"]),
                         "columns=['said']: own.txt is a txt and has none"),
    "a split of a file": (lambda path: load_texts(path / "own.txt", split="train"),
                          "split='train': own.txt is a file of texts"),
    "a place of a file": (lambda path: load_texts(path / "own.txt", data="sample"),
                          "data='sample': own.txt is a file of texts"),
    "columns of a task": (lambda path: load_texts("cola", "said", data="sample"), "columns said are for a file"),
}


@pytest.mark.parametrize("what", UNREAD)
def test_an_option_that_would_be_ignored_is_refused(what, tmp_path):
    text_file(tmp_path, "a\nb\n", "own.txt")
    text_file(tmp_path, "train: own.csv\n", "own.yaml")
    ask, message = UNREAD[what]
    with pytest.raises(ValueError) as caught:
        ask(tmp_path)
    assert message in str(caught.value) and "\n" not in str(caught.value)


# Classes: rare ones, and labels of every type


@pytest.mark.parametrize(("counts", "dev_size"),
                         [((998, 2), 0.1), ((2, 998), 0.9), ((500, 3, 2, 2), 0.01), ((3, 3, 2, 2), 0.4),
                          ((40, 2, 2), 0.9)])
@pytest.mark.parametrize("seed", range(3))
def test_every_class_is_in_both_parts(counts, dev_size, seed):
    names = [f"class {i}" for i, n in enumerate(counts) for _ in range(n)]
    frame = pd.DataFrame(dict(text=[f"text {i}" for i in range(len(names))], label=names))
    first, again = (own_task(frame, dev_size=dev_size, seed=seed).dataset for _ in range(2))
    found = {split: np.bincount(part["label"], minlength=len(counts)) for split, part in first.items()}
    assert (found["train"] > 0).all() and (found["dev"] > 0).all()
    assert (found["train"] + found["dev"]).tolist() == list(counts)
    assert found["dev"].sum() == math.ceil(dev_size * len(names))
    assert sorted(first["train"]["text"][:] + first["dev"]["text"][:]) == sorted(frame.text)
    assert data_fingerprint(first) == data_fingerprint(again)


def test_proportions_stay_where_every_class_is_there_anyway():
    "The split is then the plain stratified one."
    labels = [i % 3 for i in range(60)]
    assert _with_every_class([*range(12, 60)], [*range(12)], labels) == ([*range(12, 60)], [*range(12)])


class Grade(Enum):
    GOOD = 1
    BAD = 2


class Score(IntEnum):
    LOW = 1
    HIGH = 2


TYPED = {
    "Categorical of floats": (pd.Categorical([1.0, 2.0] * 20), ("1", "2")),
    "Categorical of ints": (pd.Categorical([2, 1] * 20), ("1", "2")),
    "Categorical of bools": (pd.Categorical([True, False] * 20), ("False", "True")),
    "Categorical in its order": (pd.Categorical(["good ", "bad"] * 20, categories=["good ", "bad", "never"]),
                                 ("good", "bad", "never")),
    "Categorical of intervals": (pd.cut(pd.Series([1, 9] * 20), [0, 5, 10]), ("(0, 5]", "(5, 10]")),
    "floats": (np.array([1.0, 2.0] * 20), ("1", "2")),
    "float32 objects": (pd.Series([np.float32(1), np.float32(2)] * 20, dtype=object), ("1", "2")),
    "int8": (np.array([1, 2] * 20, dtype=np.int8), ("1", "2")),
    "bools": (np.array([True, False] * 20), ("False", "True")),
    "nullable Int64": (pd.array([1, 2] * 20, dtype="Int64"), ("1", "2")),
    "nullable boolean": (pd.array([True, False] * 20, dtype="boolean"), ("False", "True")),
    "string dtype": (pd.array(["1", "2"] * 20, dtype="string"), ("1", "2")),
    "decimals": (pd.Series([Decimal("1.0"), Decimal(2)] * 20), ("1", "2")),
    "an Enum": (pd.Series([Grade.GOOD, Grade.BAD] * 20, dtype=object), ("BAD", "GOOD")),
    "an IntEnum": (pd.Series([Score.LOW, Score.HIGH] * 20, dtype=object), ("1", "2")),
}


@pytest.mark.parametrize("what", TYPED)
def test_labels_of_every_type_have_one_name(what):
    values, names = TYPED[what]
    frame = pd.DataFrame(dict(text=[f"text {i}" for i in range(40)], label=values))
    found = own_task(frame, frame)
    assert found.labels == names
    assert len(set(found.dataset["train"]["label"][:2])) == 2
    assert own_task(frame, frame, labels=names).dataset["dev"]["label"][:] == found.dataset["dev"]["label"][:]


@pytest.mark.parametrize("labels",
                         [[1, 2], [1.0, 2.0], ("1", "2"), np.array([1, 2]), pd.Index(["1", "2"]),
                          [Score.LOW, Score.HIGH]], ids=repr)
@pytest.mark.parametrize("values", [["1", "2"], [1, 2], [1.0, 2.0], ["1.0", "2.0"]], ids=str)
def test_classes_may_be_given_as_names_or_numbers(values, labels):
    frame = pd.DataFrame(dict(text=[*"abcd"], label=pd.Series(values * 2, dtype=object)))
    task = own_task(frame, frame, labels=labels)
    assert task.labels == ("1", "2") and task.dataset["dev"]["label"][:] == [0, 1, 0, 1]


@pytest.mark.parametrize("missing", [math.nan, None, pd.NA, pd.NaT])
@pytest.mark.parametrize("dtype", [object, "category", "Float64"])
def test_a_missing_label_is_named_by_its_row(missing, dtype):
    frame = pd.DataFrame(dict(text=[*"abcd"],
                              label=pd.Series([1.0, 2.0, None if missing is pd.NaT else missing, 1.0], dtype=dtype)))
    refuses("the DataFrame, row 2 (from 0), column 'label' is empty, as 1 of 4 rows are", frame, frame)


@pytest.mark.parametrize("value", [[1, 0], b"yes", {"a": 1}, np.array([1, 2])], ids=repr)
def test_a_label_that_is_several_is_named_by_its_row(value):
    frame = pd.DataFrame(dict(text=[*"abc"], label=pd.Series(["yes", value, "no"], dtype=object)))
    refuses("the DataFrame, row 1 (from 0), column 'label': ", frame, frame)
    refuses("is not one label", frame, frame)


def test_a_quantity_that_float32_cannot_hold():
    refuses("row 1 (from 0), column 'label': 1e+39 is not a finite number",
            pd.DataFrame(dict(text=[*"ab"], label=[1.0, 1e39])), regression=True)


# What cannot be used


WRONG = {
    "epochs='three'": dict(epochs="three"), "epochs=0": dict(epochs=0), "epochs=-1": dict(epochs=-1),
    "epochs=nan": dict(epochs=math.nan), "epochs=None": dict(epochs=None),
    "learning_rate='fast'": dict(learning_rate="fast"), "learning_rate=0": dict(learning_rate=0),
    "learning_rate=nan": dict(learning_rate=math.nan), "learning_rate=inf": dict(learning_rate=math.inf),
    "batch_size='eight'": dict(batch_size="eight"), "batch_size=0": dict(batch_size=0),
    "batch_size=1.5": dict(batch_size=1.5), "batch_size=True": dict(batch_size=True),
    "metrics=5": dict(metrics=5), "metric 'acc'": dict(metrics="acc"), "metrics={'f1': 1}": dict(metrics={"f1": 1}),
    "metrics={'f1'}": dict(metrics={"f1"}), "labels='yes'": dict(labels="yes"), "labels=[]": dict(labels=[]),
    "labels: the class 'a'": dict(labels=["a", "b", "a"]), "labels={0: 'no'}": dict(labels={0: "no"}),
    "dev_size='half'": dict(dev_size="half"), "dev_size=nan": dict(dev_size=math.nan),
    "seed='one'": dict(seed="one"), "seed=-1": dict(seed=-1), "seed=1.5": dict(seed=1.5),
    "drop_missing='false'": dict(drop_missing="false"), "regression='no'": dict(regression="no"),
    "name=''": dict(name=""), "name=7": dict(name=7), "text=['said', 'answer']": dict(text=["said", "answer"]),
    "pair='said'": dict(pair="said"), "label='said'": dict(label="said"),
}


@pytest.mark.parametrize("named", WRONG)
def test_an_option_of_the_wrong_kind_is_named_with_its_value(named):
    refuses(named, rows(), **NAMED | WRONG[named])


def test_options_are_checked_before_a_file_is_read(tmp_path):
    for named in ("epochs='three'", "batch_size=0", "labels=[]", "seed=-1"):
        refuses(named, tmp_path / "absent.csv", **NAMED | WRONG[named])


def test_one_metric_is_one():
    assert own_task(rows(), metrics="accuracy", **NAMED).metrics == ("accuracy",)
    task = own_task(rows(), epochs="2", learning_rate="2e-5", batch_size="8", **NAMED)
    assert (task.epochs, task.learning_rate, task.batch_size) == (2, 2e-5, 8)


CELLS = {
    "missing label": ("text,label\na,yes\nb,\nc,no\n", "own.csv, row 1 (from 0), column 'label' is empty, as 1 of 3 rows are; fill it, or pass"),
    "short row": ("text,label\na,yes\nb\nc,no\n", "row 1 (from 0), column 'label' is empty"),
    "empty text": ('text,label\na,yes\nb,no\n"  ",no\n', "row 2 (from 0), column 'text' is empty"),
    "wrong column": ("txt,label\na,yes\nb,no\n", "own.csv has no column 'text'; it has 'txt', 'label'"),
    "long row": ("text,label\na,yes\nb, c,no\n", "own.csv cannot be read: Error tokenizing data. C error: Expected 2 fields in line 3, saw 3"),
    "semicolons": ("text;label\na, b;yes\n", "own.csv cannot be read: its header is separated by ';'; save it with commas"),
    "tabs": ("text\tlabel\na\tyes\n", "own.csv cannot be read: its header is separated by '\\t'; save it with commas"),
    "long first row": ("text,label\na, b,yes\nc,no\n", "own.csv cannot be read: row 0 has more cells than the header"),
    "open quote": ('text,label\na,yes\n"b,no\n',
                   "own.csv cannot be read: line 3: a cell begins with a quote and does not end with one"),
    "text behind a quote": ('text,label\n"a" b,yes\nc,no\n',
                            "own.csv cannot be read: line 2: a cell begins with a quote and does not end"),
    "swallowed rows": ('text,label\nz,no\n"a,yes\nb" c,no\n',
                       "own.csv cannot be read: line 3: a cell begins with a quote and does not end"),
    "nothing": ("", "own.csv cannot be read: No columns to parse from file"),
    "a header alone": ("text,label\n", "own.csv has no row with 'text' and 'label'"),
    "one class": ("text,label\na,yes\nb,yes\n", "own.csv, column 'label': every label is 'yes'; a classifier needs two classes"),
    "fractions": ("text,label\na,1\nb,2.5\n", "row 1 (from 0), column 'label': '2.5' is not a class number; pass regression=True, or name"),
    "one number twice": ("text,label\na,1\nb,2\nc,1.0\n", "row 2 (from 0), column 'label': '1' and '1.0' are one number"),
    "a class of one": ("text,label\na,yes\nb,no\nc,yes\n", "own.csv has 1 row of class 'no', too few for both train and dev"),
    "too few rows": ("text,label\na,yes\nb,no\nc,yes\nd,no\n", "dev_size=0.1: 1 of 4 rows are too few for 2 classes"),
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
    message = "dev.csv, row 1 (from 0), column 'label': 'maybe' is not one of the classes no, yes; correct it, or name every class: labels=[…]"
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
    refuses("unknown kind of file '.xlsx'; choose one of .csv, .tsv, .jsonl, .parquet, each also compressed (.gz, "
            ".bz2", tmp_path / "own.xlsx")
    refuses("unknown kind of file '.gz'; choose one of .csv", tmp_path / "own.gz")
    refuses("IterableDataset is not a table", datasets.Dataset.from_dict(dict(text=["a"])).to_iterable_dataset(), error=TypeError)
    some = datasets.Dataset.from_dict(dict(text=["a", "b"], label=[0, 1]))
    refuses("there is no split 'train' among 'test'", datasets.DatasetDict(test=some))
    refuses("besides train, there is 'val', and no split 'dev' or 'validation'; give dev=", datasets.DatasetDict(train=some, val=some))


@pytest.mark.parametrize(("options", "message"), [
    (dict(metrics=["f2"]), "metric 'f2' does not fit 3 classes; choose from accuracy, matthews"), (dict(metrics=["f1"]), "metric 'f1' does not fit 3 classes"),
    (dict(metrics=["pearson"]), "metric 'pearson' does not fit"), (dict(name="cola"), "'cola' is the name of a GLUE task"),
    (dict(regression=True, labels=["a"]), "give one of the two"), (dict(dev_size=0), "dev_size=0: 33 rows cannot be divided"),
    (dict(dev_size=1.5), "dev_size=1.5: 33 rows cannot be divided")])
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
    (tmp_path / "own.yaml").write_text('train: own.csv\nlabels: ["no", "yes"]\nmetrics: accuracy\nepochs: three')
    with pytest.raises(ValueError, match="^own.yaml: epochs='three': give a number above 0$"):
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


# Recipes, and what is counted


@pytest.mark.parametrize(("given", "named"), [
    (dict(epochs="three"), "epochs='three': give a number above 0"), (dict(epochs=-1), "epochs=-1: give a"),
    (dict(learning_rate=math.nan), "learning_rate=nan: give a"), (dict(learning_rate=math.inf), "learning_rate=inf"),
    (dict(batch_size=1.5), "batch_size=1.5: give a whole number above 0"), (dict(batch_size=True),
                                                                               "batch_size=True"),
    (dict(max_length=0), "max_length=0: give a whole number above 0"), (dict(epochs=[3]), "epochs=[3]: give a")])
def test_a_recipe_names_what_it_cannot_use(given, named):
    with pytest.raises(ValueError) as caught:
        make_recipe("cola", **given)
    assert str(caught.value).startswith(named)


def test_a_recipe_that_was_made_by_hand_is_told_what_it_lacks(tmp_path):
    task = own_task(rows(), **NAMED)
    with pytest.raises(ValueError, match=r"^recipe=\{'epochs': 1\} has no 'learning_rate'; make it with make_recipe$"):
        finetune(build("wordpiece"), FAMILIES["wordpiece"].tokenizer, load_task(task), task, dict(epochs=1), tmp_path)


@pytest.mark.parametrize("few", ["64", 0, -3, 2.0, True])
def test_a_number_of_examples_is_whole(few):
    for name in ("max_train_examples", "held_out_examples"):
        with pytest.raises(ValueError, match=rf"^{name}={few!r}: give a whole number, 1 or more, or None$"):
            subset(own_task(rows(), **NAMED).dataset, **dict(max_train_examples=8) | {name: few})


NO_TEXTS = [Path("a.txt"), b"abc", {"text": ["a"]}, pd.DataFrame({"text": ["a"]}), "a", 5,
            datasets.Dataset.from_dict({"text": ["a"]})]


@pytest.mark.parametrize("texts", NO_TEXTS, ids=lambda value: type(value).__name__)
def test_what_holds_no_texts_is_not_counted(texts):
    "Python would iterate over most of these, and count letters, bytes or names of columns."
    tokenizer, model = FAMILIES["wordpiece"].tokenizer, build("wordpiece")
    for ask in (lambda: token_stats(texts, tokenizer, len(tokenizer)),
                lambda: prune(model, tokenizer, texts, 0.2, "vocab", "frequency", "nearest")):
        with pytest.raises(TypeError, match="^texts is "):
            ask()


def test_a_column_of_a_table_holds_texts():
    "Of pandas, NumPy and datasets, once read or many times."
    tokenizer = FAMILIES["wordpiece"].tokenizer
    words_of = WORDS[:5]
    held = [pd.Series(words_of), np.array(words_of), datasets.Dataset.from_dict({"text": words_of})["text"],
            iter(words_of)]
    assert len({token_stats(texts, tokenizer, len(tokenizer)).n_tokens for texts in held}) == 1


# All the way


def words(n: int, seed: int) -> pd.DataFrame:
    "Texts of the tiny tokenizer, labelled by whether they hold its first word."
    texts = [text for text in make_texts(2 * n, seed) if text][:n]
    return pd.DataFrame(dict(said=texts, verdict=["yes" if WORDS[0] in text.split() else "no" for text in texts]))


@pytest.mark.parametrize("classes, kind", [(2, "single_label_classification"), (3, None), (1, "regression"), (2, "multi_label_classification")])
def test_the_head_of_a_finished_classifier_is_replaced(tmp_path, classes, kind):
    "Whatever it was fine-tuned for: the new one is drawn by the seed, and the rest is what it was."
    finished = build("wordpiece", "classification", num_labels=classes)
    finished.config.problem_type = kind
    for parameter in finished.classifier.parameters():
        torch.nn.init.constant_(parameter, 3.0)
    finished.save_pretrained(tmp_path / "finished")
    FAMILIES["wordpiece"].tokenizer.save_pretrained(tmp_path / "finished")
    for task, n in (("cola", 2), ("stsb", 1)):
        first, again, other = (load_classifier(tmp_path / "finished", task, seed)[0] for seed in (1, 1, 2))
        assert first.classifier.weight.shape[0] == n and first.config.problem_type is None
        assert torch.equal(first.classifier.weight, again.classifier.weight) and not (first.classifier.weight == 3).any()
        assert not torch.equal(first.classifier.weight, other.classifier.weight) and not first.classifier.bias.any()
        assert not same(first.base_model.state_dict(), finished.base_model.state_dict())


def test_the_head_of_another_task_is_replaced(tmp_path):
    "A tagger's has the name and, with as many labels, the shape of the new one."
    tagger = AutoModelForTokenClassification.from_config(FAMILIES["wordpiece"].config(num_labels=2))
    torch.nn.init.constant_(tagger.classifier.weight, 3.0)
    tagger.save_pretrained(tmp_path)
    FAMILIES["wordpiece"].tokenizer.save_pretrained(tmp_path)
    assert not (load_classifier(tmp_path, "cola")[0].classifier.weight == 3).any()


@pytest.mark.parametrize(("family", "trained"), [("ModernBERT", True), ("BERT", False)])
def test_what_is_trained_of_a_head_is_part_of_what_a_run_is(family, trained, tmp_path):
    "ModernBERT's classifier takes a layer of a masked language model's head; two directories that differ in it differ."
    model, tokenizer = tiny_model(family, "AutoModelForMaskedLM")
    for name, saved in (("whole", model), ("body", model.base_model)):
        saved.save_pretrained(tmp_path / name), tokenizer.save_pretrained(tmp_path / name)
    facts = {name: full_model_facts(*load_classifier(tmp_path / name, "cola")) for name in ("whole", "body")}
    assert ("head_fingerprint" in facts["whole"]) == trained and "head_fingerprint" not in facts["body"]
    facts["whole"].pop("head_fingerprint", None)
    assert facts["whole"] == facts["body"] or family == "BERT"  # whose pooler is drawn
    again, tokenizer = load_classifier(tmp_path / "whole", "cola")
    tokenizer.truncation_side = "left"
    assert full_model_facts(again, tokenizer)["truncation_side"] == "left"


def test_fine_tuning_leaves_the_tokenizer_as_it_was(tmp_path):
    tokenizer = copy.deepcopy(FAMILIES["wordpiece"].tokenizer)
    before = tokenizer.backend_tokenizer.to_str()
    tokenize_split(datasets.Dataset.from_dict(dict(text=["a b c", "b"], label=[0, 1])), tokenizer, 2)
    text_batches(["a b c", "b"], tokenizer, max_length=2)
    assert tokenizer.backend_tokenizer.to_str() == before


@pytest.mark.parametrize("name", ["pearson", "spearman"])
def test_a_single_example_has_no_correlation(name):
    assert METRICS[name](np.array([1.0]), np.array([2.0])) == 0


def test_from_a_csv_to_predictions_by_name(tmp_path):
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
    row = record_run(directory, dict(task=task.name, seed=1, method="own"), pruned.model, tokenizer, dataset, recipe, task=task,
                     save=lambda to, scores: pruned.save_pretrained(to, scores=scores))
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
    names = {run_name(shared_parameters(task, 42, "tiny", model, FAMILIES["wordpiece"].tokenizer, "own", task.dataset, {})) for task in tasks}
    assert len(names) == 3
    assert not {"metrics", "labels"} & shared_parameters("cola", 42, "tiny", model, FAMILIES["wordpiece"].tokenizer, "sample", tasks[0].dataset, {}).keys()


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


@pytest.mark.slow
def test_the_run_notebook_takes_a_description(tmp_path):
    "The row is named after the task, its data after nobody's directory, and the saved model's card has task and score."
    import papermill
    from huggingface_hub import ModelCard

    from vocab_pruning.runs.record import row_of_notebook

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


def test_a_path_of_a_description_may_begin_with_a_variable(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.csv").write_text("text,label\n" + "good,a\nbad,b\n" * 10)
    (description := tmp_path / "own.yaml").write_text("train: ${OWN_TASKS}/train.csv\n")
    with pytest.raises(ValueError, match="the environment variable OWN_TASKS is not set; export OWN_TASKS=DIRECTORY"):
        get_task(description)
    monkeypatch.setenv("OWN_TASKS", str(tmp_path / "data"))
    assert get_task(description).labels == ("a", "b")


DESCRIBED = Path(__file__).parent.parent / "recipes" / "tasks"


@pytest.mark.skipif("TASKS_DIR" not in os.environ, reason="needs TASKS_DIR, a directory with banking77, trec and subj")
@pytest.mark.parametrize(("name", "classes", "sizes"), [
    ("banking77", 77, (10_003, 3_080)), ("trec", 6, (5_452, 500)), ("subj", 2, (7_995, 2_020))])
def test_tasks_that_resolve_differences(name, classes, sizes):
    task = get_task(DESCRIBED / f"{name}.yaml")
    assert (len(task.labels), tuple(map(len, task.dataset.values()))) == (classes, sizes)
