"""Corpora are read as streams, and what cannot be read is named in one line before anything is written."""

import bz2
import gzip
import json
import lzma

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from vocab_pruning.cli import app
from vocab_pruning.data import corpora
from vocab_pruning.data.corpora import Source, find_sources, read_texts
from vocab_pruning.data.stats import TokenStats

TEXTS = ["The pond froze.", "naïve café — 数", 'a "quote"', " two  spaces"]


def zst(data: bytes) -> bytes:
    "Compress as a zst file does."
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


PACK = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zst}
AS_LINES = {
    ".txt": "\r\n".join([*TEXTS, "", " "]),
    ".jsonl": "\n".join(json.dumps({"n": 1, "text": text}) for text in [*TEXTS, None, " "]),
    ".csv": "text\n" + "\n".join('"' + text.replace('"', '""') + '"' for text in TEXTS),
}


@pytest.mark.parametrize("how", PACK)
@pytest.mark.parametrize("kind", AS_LINES)
def test_a_stream_gives_the_texts_of_the_whole_file(kind, how, tmp_path):
    file = tmp_path / f"a{kind}{how}"
    file.write_bytes(PACK[how](b"\xef\xbb\xbf" * (kind != ".csv") + AS_LINES[kind].encode()))
    (source,) = find_sources(file)
    assert list(source) == TEXTS == read_texts(file)
    assert list(source) == TEXTS  # a second time


@pytest.fixture
def cannot(tmp_path):
    "Files that cannot be read, by the end of the message."
    (tmp_path / "a.jsonl").write_text('{"q": "Why?"}\n{"q": 3}\n')
    (tmp_path / "b.jsonl").write_text('{"text": "Why?"}\nno\n')
    (tmp_path / "c.txt.gz").write_bytes(gzip.compress(b"many words\n" * 9999)[:-9])
    (tmp_path / "d.txt.gz").write_bytes(b"no gzip")
    (tmp_path / "e.txt").write_bytes(b"caf\xe9\n")
    (tmp_path / "f.parquet").write_bytes(b"PAR1")
    (tmp_path / "g.txt").write_text("\n")
    (tmp_path / "i.txt.gz").write_bytes(b"")
    (tmp_path / "j.jsonl").write_text('{"title": "A pond"}\n' * 3000)
    pq.write_table(pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"]), tmp_path / "l.parquet")
    damaged = tmp_path / "k.parquet"
    pq.write_table(pa.table({"text": [f"a word {i}" for i in range(999)]}), damaged, compression="none", use_dictionary=False)
    content = bytearray(damaged.read_bytes())
    content[200:5000] = b"\xff" * 4800
    damaged.write_bytes(bytes(content))
    return tmp_path


@pytest.mark.parametrize("given, said", [
    (["a.jsonl"], "a.jsonl has no column 'text'; it has 'q'"),
    (["a.jsonl", "--text", "q"], "a.jsonl, row 1 (from 0), column 'q': 3 is not a text"),
    (["b.jsonl"], "b.jsonl cannot be read: line 2 is not JSON (Expecting value at character 0)"),
    (["c.txt.gz"], "c.txt.gz cannot be read: it cannot be decompressed as .gz (Compressed file ended before the end-of-stream marker was reached)"),
    (["d.txt.gz"], "d.txt.gz cannot be read: it cannot be decompressed as .gz (Not a gzipped file"),
    (["e.txt"], "e.txt is not UTF-8"),
    (["f.parquet"], "f.parquet cannot be read: "),
    (["g.txt"], "none of the 0 texts holds a token"),
    (["h.txt"], "h.txt is neither a file nor a pattern of files"),
    (["g.txt", "--weight", "0"], "--weight 0: give a whole number, 1 or more"),
    (["e.txt", ""], "the name of a corpus is empty; name a file, a directory"),
    (["i.txt.gz"], "i.txt.gz cannot be read: it cannot be decompressed as .gz (it is empty)"),
    (["j.jsonl", "--text", "title", "--text", "bodyy", "--most", "5"], "j.jsonl has no column 'bodyy'; it has 'title'"),
    (["k.parquet"], "k.parquet cannot be read: "),
    (["l.parquet"], "l.parquet has two columns 'text'; rename one"),
    (["g.txt", "--weight", "10000000"], "--weight 10000000: give at most 1,000,000"),
    (["g.txt", "--most", "0"], "--most 0: give a whole number, 1 or more"),
    (["g.txt", "--engine", "dask"], "unknown engine 'dask'; choose one of local, ray"),
    (["hub:owner/name"], "hub:owner/name cannot be read, because the hub does not answer"),
])
def test_bad_input_is_one_line_and_writes_nothing(given, said, cannot, tiny_directory, monkeypatch):
    monkeypatch.chdir(cannot)
    before = sorted(cannot.rglob("*"))
    done = CliRunner().invoke(app, ["count", *given, "-o", "stats.npz", "--model", tiny_directory])
    assert done.exit_code == 1 and done.stderr.startswith("error: ") and said in done.stderr and done.stderr.count("\n") == 1
    assert sorted(cannot.rglob("*")) == before


# The hub


@pytest.fixture
def hub(monkeypatch):
    "A hub with one data set in two configurations, and what was asked of it."
    asked = []

    def load(name, config, **options):
        asked.append((name, config, options))
        if name != "owner/name":
            raise datasets.exceptions.DatasetNotFoundError(f"Dataset {name!r} doesn't exist\non the Hub")
        return iter([{"title": "One", "text": "The pond."}, {"title": None, "text": " "}, {"title": "Two", "text": "The frost."}])

    monkeypatch.setattr(corpora, "hub_reachable", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset", load)
    return asked


def test_a_data_set_of_the_hub_is_streamed(hub):
    (source,) = find_sources("hub:owner/name:el", ["title", "text"], split="dev", most=3, weights=[2])
    assert source == Source("hub:owner/name:el", ("title", "text"), "dev", 3, 2)
    assert list(source) == ["One", "The pond.", "Two"]
    assert hub[0] == ("owner/name", "el", dict(split="dev", streaming=True))
    assert list(find_sources("hub:owner/name")[0]) == ["The pond.", "The frost."] and hub[-1][1] is None


def test_a_data_set_that_is_not_there_is_named(hub):
    with pytest.raises(ValueError, match=r"hub:owner/other cannot be streamed \(Dataset 'owner/other' doesn't exist on the Hub\)"):
        find_sources("hub:owner/other")
    with pytest.raises(ValueError, match="hub:owner/name has no column 'body'; it has 'title', 'text'"):
        find_sources("hub:owner/name", "body")


def test_whatever_goes_wrong_on_the_hub_names_the_data_set(hub, monkeypatch):
    def breaks(*given, **options):
        yield {"text": "The pond."}
        raise RuntimeError("connection reset")

    monkeypatch.setattr(datasets, "load_dataset", breaks)
    (source,) = find_sources("hub:owner/name")
    with pytest.raises(ValueError, match=r"hub:owner/name cannot be streamed \(connection reset\)"):
        list(source)
    with pytest.raises(ValueError, match="'hub::el' names no data set; write hub:owner/name"):
        find_sources("hub::el")


# Directories and columns


def test_links_are_followed_once(tmp_path):
    for name in ("here/one", "there/two"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "a.txt").write_text(name)
    (tmp_path / "here" / "link").symlink_to(tmp_path / "there")
    (tmp_path / "there" / "back").symlink_to(tmp_path / "here")
    assert [text for source in find_sources(tmp_path / "here") for text in source] == ["there/two", "here/one"]


def test_a_row_of_jsonl_may_lack_a_column(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"a": "one"}\n{"b": "two"}\n{}\n{"a": "three", "b": null}\n')
    assert list(find_sources(tmp_path / "a.jsonl", ["a", "b"])[0]) == ["one", "two", "three"]
    assert read_texts(tmp_path / "a.jsonl", "b") == ["two"]


def test_most_counts_rows_in_every_format(tmp_path):
    (tmp_path / "a.csv").write_text("a,b\n1 one,1 two\n2 one,\n3 one,3 two\n")
    rows = [("1 one", "1 two"), ("2 one", None), ("3 one", "3 two")]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(dict(zip("ab", row, strict=True))) + "\n" for row in rows))
    for name in ("a.csv", "a.jsonl"):
        assert list(find_sources(tmp_path / name, ["a", "b"], most=3)[0]) == ["1 one", "1 two", "2 one"]


# The command


def test_count_adds_up_what_it_is_given(tmp_path, tiny_directory):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "one.txt").write_text("aa ab")
    (tmp_path / "a" / "two.jsonl").write_text('{"text": "aa"}')
    (tmp_path / "notes.txt").write_text("ab ab\nab\n")

    def count(*given) -> TokenStats:
        done = CliRunner().invoke(app, ["count", *map(str, given), "-o", f"{tmp_path}/stats.npz", "--model", tiny_directory])
        assert done.exit_code == 0, done.stderr
        return TokenStats.load(tmp_path / "stats.npz")

    folder, notes = count(tmp_path / "a"), count(tmp_path / "notes.txt")
    both = count(tmp_path / "a", f"{tmp_path}/no*.txt", "--weight", 1, "--weight", 3)
    assert (both.counts == (folder + 3 * notes).counts).all() and both.n_docs == 2 + 3 * 2
    assert count(tmp_path / "notes.txt", "--most", 1).n_docs == 1


def test_prune_takes_statistics_in_place_of_texts(tmp_path, tiny_directory):
    (tmp_path / "notes.txt").write_text("ab ab\nab\n")
    runner, counted = CliRunner(), ["--stats", f"{tmp_path}/stats.npz"]
    runner.invoke(app, ["count", f"{tmp_path}/notes.txt", "-o", counted[1], "--model", tiny_directory])
    given = ["--min-count", "1", "--oov", "nearest"]
    for source in (counted, [f"{tmp_path}/notes.txt", "--scorer", "frequency"]):
        done = runner.invoke(app, ["prune", tiny_directory, *source, *given, "--dry-run"])
        assert done.exit_code == 0, done.stderr
        assert "lost share of the texts   0" in done.stdout
    assert "give TEXTS, or --stats" in runner.invoke(app, ["prune", tiny_directory, "--dry-run"]).stderr
