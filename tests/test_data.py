"""Every task loads from GLUE's own files, from the hub's layout and from the sample, and a broken file is named."""

from pathlib import Path

import datasets
import pytest
import yaml

from vocab_pruning.data.sample import make_sample
from vocab_pruning.data.tasks import GLUE, SAMPLE, TASKS, GeneratedText, data_fingerprint, documents, load_task, load_texts

MNLI_PARSES = ["sentence1_binary_parse", "sentence2_binary_parse", "sentence1_parse", "sentence2_parse"]
MNLI = ["index", "promptID", "pairID", "genre", *MNLI_PARSES, "sentence1", "sentence2"]
STSB = ["index", "genre", "filename", "year", "old_index", "source1", "source2", "sentence1", "sentence2", "score"]
HEADERS = {  # as GLUE's files have them; CoLA's have none, and MNLI's dev files three more labels than its train file
    "cola": {"": ["source", 1, "star", 3]},
    "sst2": {"": ["sentence", "label"]},
    "mrpc": {"": ["Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"]},
    "stsb": {"": STSB},
    "qqp": {"": ["id", "qid1", "qid2", "question1", "question2", "is_duplicate"]},
    "mnli": {"": [*MNLI, "label1", "label2", "label3", "label4", "label5", "gold_label"], "train": [*MNLI, "label1", "gold_label"]},
    "qnli": {"": ["index", "question", "sentence", "label"]},
    "rte": {"": ["index", "sentence1", "sentence2", "label"]},
    "wnli": {"": ["index", "sentence1", "sentence2", "label"]},
}
NAMED = {"mnli", "qnli", "rte"}  # tasks whose files hold the label's name, not its number
TEXTS = ['He said "no', '"all of it" is \'quoted\'', "None", "NA", "naïve café — 数", " two  spaces, a \\t and a # "]


def rows(task: str, split: str) -> list[dict]:
    "Rows with the hub's column names: every awkward text in every field, each label at least once."
    fields, n = TASKS[task].fields, TASKS[task].num_labels
    texts = [dict.fromkeys(fields, f"{split} {text}" if i % 2 else text) for i, text in enumerate(TEXTS)]
    return [row | {"label": i % n if TASKS[task].labels else 0.8 * i} for i, row in enumerate(texts)]


def lines(task: str, split: str) -> list[list[str]]:
    "The cells of one of GLUE's files, header line included."
    header = HEADERS[task].get(split, HEADERS[task][""])
    *columns, label = TASKS[task].columns
    named = dict(enumerate(TASKS[task].labels)) if task in NAMED else {}
    cells = [dict(zip(columns, [row[f] for f in TASKS[task].fields], strict=True)) | {label: named.get(row["label"], row["label"])}
             for row in rows(task, split)]
    body = [[str(row.get(column, f"{column} {i}")) for column in header] for i, row in enumerate(cells)]
    return body if task == "cola" else [header, *body]


def write_tsv(path: Path, table: list[list[str]], newline: str = "\n", encoding: str = "utf-8"):
    "Write `table` as GLUE does: tabs between cells, nothing quoted."
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join("\t".join(row) + newline for row in table).encode(encoding))


def glue_directory(root: Path, task: str, **style) -> Path:
    "`root` with the files of `task` in GLUE's layout."
    for split, file in TASKS[task].files.items():
        write_tsv(root / TASKS[task].folder / file, lines(task, split), **style)
    return root


def expected(task: str) -> dict[str, list[dict]]:
    "Rows by split with our column names."
    names = dict(zip(TASKS[task].fields, ("text", "text_pair"), strict=False)) | {"label": "label"}
    return {split: [{names[k]: v for k, v in row.items()} for row in rows(task, split)] for split in TASKS[task].splits}


def label_type(task: str):
    "The type of the label column: the class names in the hub's order, or a number."
    return datasets.Value("float32") if TASKS[task].labels is None else datasets.ClassLabel(names=list(TASKS[task].labels))


def assert_loaded(loaded: datasets.DatasetDict, task: str, wanted: dict[str, list[dict]]):
    "Splits, column types and every value of `loaded`."
    assert loaded["train"].features["label"] == label_type(task)
    assert all(dataset.features == loaded["train"].features for dataset in loaded.values())
    if TASKS[task].labels is None:
        wanted = {split: [row | {"label": pytest.approx(row["label"], rel=1e-6)} for row in some] for split, some in wanted.items()}
    assert {split: dataset.to_list() for split, dataset in loaded.items()} == wanted


# GLUE's own files


@pytest.mark.parametrize("style", [{}, {"newline": "\r\n"}, {"encoding": "utf-8-sig"}], ids=["unix", "crlf", "bom"])
@pytest.mark.parametrize("task", TASKS)
def test_every_task_from_a_directory(task, style, tmp_path):
    assert_loaded(load_task(task, str(glue_directory(tmp_path, task, **style))), task, expected(task))


def test_auto_reads_the_directory_that_the_environment_names(tmp_path, monkeypatch):
    monkeypatch.setenv("GLUE_DIR", str(glue_directory(tmp_path, "rte")))
    assert_loaded(load_task("rte"), "rte", expected("rte"))


@pytest.mark.parametrize("newline", ["\n", "\r\n"], ids=["unix", "crlf"])
@pytest.mark.parametrize("task", TASKS)
def test_a_short_line_is_dropped(task, newline, tmp_path):
    "A line that ends before its last column; where it stands does not matter."
    glue_directory(tmp_path, task)
    table = lines(task, "train")
    write_tsv(tmp_path / TASKS[task].folder / "train.tsv", [*table[:3], table[1][:-1], *table[3:], table[2][:1], [""]], newline)
    assert_loaded(load_task(task, str(tmp_path)), task, expected(task))


def test_cells_beyond_the_header_never_shift_the_columns(tmp_path):
    "Were the first cell taken for a row's name, the second would be read as the text."
    write_tsv(glue_directory(tmp_path, "sst2") / "SST-2" / "train.tsv", [["sentence", "label"], ["good", "1", "0"], ["bad", "0", "1"]])
    assert load_task("sst2", str(tmp_path))["train"].to_list() == [{"text": "good", "label": 1}, {"text": "bad", "label": 0}]


# What is wrong is named


def test_missing_file(tmp_path):
    glue_directory(tmp_path, "cola")
    (tmp_path / "CoLA" / "dev.tsv").unlink()
    with pytest.raises(FileNotFoundError, match=r"CoLA/dev\.tsv is missing"):
        load_task("cola", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="RTE"):
        load_task("rte", str(tmp_path))


def test_missing_directory(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_task("cola", str(tmp_path / "nowhere"))


def test_missing_column(tmp_path):
    table = [["index", "sentence1", "hypothesis", "label"], ["0", "a", "b", "entailment"]]
    write_tsv(glue_directory(tmp_path, "rte") / "RTE" / "dev.tsv", table)
    with pytest.raises(ValueError, match=r"RTE/dev\.tsv has no column 'sentence2'"):
        load_task("rte", str(tmp_path))


def test_a_missing_column_is_missing_without_a_header_too(tmp_path):
    write_tsv(glue_directory(tmp_path, "cola") / "CoLA" / "dev.tsv", [["gj04", "1", ""], ["gj04", "0", ""]])
    with pytest.raises(ValueError, match=r"CoLA/dev\.tsv has no column 3"):
        load_task("cola", str(tmp_path))


@pytest.mark.parametrize("task", TASKS)
def test_empty_split(task, tmp_path):
    "A file of a header alone; CoLA, which has none, is left an empty file."
    table = lines(task, "dev")[:1] if task != "cola" else []
    write_tsv(glue_directory(tmp_path, task) / TASKS[task].folder / TASKS[task].files["dev"], table)
    with pytest.raises(ValueError, match=rf"dev.* {task} |{TASKS[task].folder}/dev"):
        load_task(task, str(tmp_path))


def test_empty_file(tmp_path):
    write_tsv(glue_directory(tmp_path, "rte") / "RTE" / "train.tsv", [])
    with pytest.raises(ValueError, match=r"RTE/train\.tsv|the train split of rte"):
        load_task("rte", str(tmp_path))


@pytest.mark.parametrize("task, bad", [("sst2", "2"), ("sst2", ""), ("rte", "maybe"), ("mnli", "-"), ("stsb", "high"), ("cola", "x")])
def test_bad_label_names_file_and_row(task, bad, tmp_path):
    glue_directory(tmp_path, task)
    table, header = lines(task, "train"), lines(task, "train")[0] if task != "cola" else HEADERS["cola"][""]
    table[-2][header.index(TASKS[task].columns[-1])] = bad
    write_tsv(tmp_path / TASKS[task].folder / "train.tsv", table)
    with pytest.raises(ValueError, match=rf"{TASKS[task].folder}/train\.tsv, row {len(TEXTS) - 2}: label '{bad}'"):
        load_task(task, str(tmp_path))


def test_a_dropped_line_does_not_shift_the_row_that_is_named(tmp_path):
    write_tsv(glue_directory(tmp_path, "rte") / "RTE" / "train.tsv",
              [HEADERS["rte"][""], ["0", "a", "b", "entailment"], ["1", "short"], ["2", "a", "b", "maybe"]])
    with pytest.raises(ValueError, match=r"RTE/train\.tsv, row 2: label 'maybe'"):
        load_task("rte", str(tmp_path))


def test_unknown_task():
    with pytest.raises(ValueError, match="unknown task 'glue'; choose one of cola, sst2"):
        load_task("glue", SAMPLE)


# Generated text never stands in unannounced


@pytest.fixture
def nowhere(monkeypatch):
    "Neither GLUE_DIR nor the hub nor its cache is at hand, and nothing has been said yet."
    from vocab_pruning.data import tasks as data

    monkeypatch.delenv("GLUE_DIR", raising=False)
    monkeypatch.setattr(data, "hub_reachable", lambda: False)
    monkeypatch.setattr(data, "_glue_cached", lambda: False)
    data._announce.cache_clear()


@pytest.mark.parametrize("load", [load_task, load_texts], ids=lambda load: load.__name__)
def test_the_sample_says_once_that_it_stands_in(load, nowhere, recwarn):
    load("cola"), load("cola"), load("rte")
    (said,) = [warning for warning in recwarn if warning.category is GeneratedText]
    assert str(said.message).startswith("neither GLUE_DIR nor the hub is available; using generated text in place of GLUE (")
    assert "\n" not in str(said.message)


def test_the_sample_that_was_asked_for_says_nothing(nowhere, recwarn, tmp_path, monkeypatch):
    load_task("cola", SAMPLE), load_texts("cola", data=SAMPLE)
    monkeypatch.setenv("GLUE_DIR", str(glue_directory(tmp_path, "rte")))
    load_task("rte")
    assert not [warning for warning in recwarn if warning.category is GeneratedText]


def test_the_command_does_not_say_it_twice(nowhere, recwarn):
    from vocab_pruning.cli import _read

    assert _read("cola", None, "auto") and _read("cola", None, "auto", "dev")
    assert not [warning for warning in recwarn if warning.category is GeneratedText]


# The hub's layout


def hub_rows(task: str) -> dict[str, list[dict]]:
    "Rows by the hub's split names, with the column `idx` and an unlabelled test split as the hub has them."
    unlabelled = [row | {"label": -1} for row in rows(task, "test")]
    splits = {theirs: rows(task, ours) for ours, theirs in TASKS[task].splits.items()} | {"test": unlabelled}
    return {split: [row | {"idx": i} for i, row in enumerate(some)] for split, some in splits.items()}


def write_hub(root: Path, tasks: list[str]) -> Path:
    "`root` laid out as `nyu-mll/glue`: a configuration per task, named in README.md, and a Parquet file per split."
    configs = []
    for task in tasks:
        texts = dict.fromkeys(TASKS[task].fields, datasets.Value("string"))
        features = datasets.Features(texts | {"label": label_type(task), "idx": datasets.Value("int32")})
        for split, some in hub_rows(task).items():
            path = root / task / f"{split}-00000-of-00001.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            datasets.Dataset.from_list(some, features=features).to_parquet(path)
        configs.append({"config_name": task, "data_files": [{"split": s, "path": f"{task}/{s}-*"} for s in hub_rows(task)]})
    (root / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': configs})}---\n", encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def hub(tmp_path_factory) -> Path:
    "A local copy of the hub's GLUE with a few rows a split."
    return write_hub(tmp_path_factory.mktemp("hub"), list(TASKS))


@pytest.mark.parametrize("task", TASKS)
def test_every_task_from_the_hub(task, hub, tmp_path, monkeypatch):
    "`load_dataset` is the real one, sent to the local copy."
    load, asked = datasets.load_dataset, []

    def local(name, config):
        asked.append((name, config))
        return load(str(hub), config, cache_dir=str(tmp_path))

    monkeypatch.setattr(datasets, "load_dataset", local)
    datasets.disable_progress_bars()
    assert_loaded(load_task(task, GLUE), task, expected(task))
    assert asked == [(GLUE, task)]


def test_hub_and_directory_are_the_same_data(hub, tmp_path, monkeypatch):
    load = datasets.load_dataset
    monkeypatch.setattr(datasets, "load_dataset", lambda _, config: load(str(hub), config, cache_dir=str(tmp_path / "cache")))
    ours = [load_task("mnli", source) for source in (GLUE, str(glue_directory(tmp_path, "mnli")))]
    assert len({data_fingerprint(dataset) for dataset in ours}) == 1


# The sample


@pytest.mark.parametrize("task", [t for t in TASKS if t != "wnli"])
def test_every_task_from_the_sample(task):
    drawn, names = make_sample(task), dict(zip(TASKS[task].fields, ("text", "text_pair"), strict=False)) | {"label": "label"}
    wanted = {split: [{ours: row[theirs] for theirs, ours in names.items()} for row in drawn[theirs]]
              for split, theirs in TASKS[task].splits.items()}
    loaded = load_task(task, SAMPLE)
    assert_loaded(loaded, task, wanted)
    assert loaded.num_rows == {split: 1500 if split == "train" else 400 for split in TASKS[task].splits}


def test_the_sample_has_no_wnli():
    with pytest.raises(ValueError, match="no sample for task 'wnli', only for cola, sst2"):
        load_task("wnli", SAMPLE)


def test_documents_are_all_texts_then_all_second_texts(tmp_path):
    split = load_task("mrpc", str(glue_directory(tmp_path, "mrpc")))["train"]
    assert documents(split) == [row[f] for f in ("text", "text_pair") for row in split.to_list()]
