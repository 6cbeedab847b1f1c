"Files are copied whole and compared, in processes that end with their parent."

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vocab_pruning.models.copying import STEP, copy_compared, copying


@pytest.mark.parametrize("size", [0, 1, STEP - 1, STEP, STEP + 1, 3 * STEP + 7])
def test_a_copy_is_the_same(size, tmp_path):
    "Whatever the file's size; an earlier, longer file of the copy's name leaves nothing behind."
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(os.urandom(size))
    target.write_bytes(bytes(5 * STEP))
    copy_compared(source, target, size)
    assert target.read_bytes() == source.read_bytes()
    with pytest.raises(ValueError, match=f"source is damaged \\(it has {size:,} bytes, not {size + 1:,}\\)"):
        copy_compared(source, target, size + 1)


class Unlike:
    "A place whose file, when it is read, has one bit more or less than was written."

    def __init__(self, file: Path, at: int):
        self.path, self.at = file, at

    def open(self, *args, **kwargs):
        self.file = self.path.open(*args, **kwargs)
        return self

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()

    def __getattr__(self, name):
        return getattr(self.file, name)

    def readinto(self, buffer):
        start, n = self.file.tell(), self.file.readinto(buffer)
        if start <= self.at < start + n:
            buffer[self.at - start] ^= 1
        return n


@pytest.mark.parametrize("at", [0, STEP - 1, STEP, 2 * STEP, 2 * STEP + 4])
def test_a_bit_that_changes_is_found(at, tmp_path):
    "In the first and last byte of whole chunks, and of one that is not whole."
    source = tmp_path / "source"
    source.write_bytes(os.urandom(2 * STEP + 5))
    with pytest.raises(ValueError, match="read back from disk, .* has changed; nothing was written"):
        copy_compared(source, Unlike(tmp_path / "target", at), 2 * STEP + 5)


def test_many_files(tmp_path):
    "All are copied, whatever their names; none is no work."
    names = ["a", "b c", "ä", "日本", "line\nbreak", os.fsdecode(b"\xff")]
    for number, name in enumerate(names):
        (tmp_path / name).write_bytes(bytes([number]) * (number * STEP + 1))
    (tmp_path / "out").mkdir()
    with copying((tmp_path / name, tmp_path / "out" / name, i * STEP + 1) for i, name in enumerate(names)) as copied:
        assert {*copied} == {tmp_path / name for name in names}
    assert all((tmp_path / "out" / name).read_bytes() == (tmp_path / name).read_bytes() for name in names)
    with copying([]) as copied:
        assert [*copied] == []


def test_what_cannot_be_copied_is_left_to_the_caller(tmp_path):
    "Here, a file may have no more than three chunks; those before it are done, and the other process goes on."
    work, limits = [(tmp_path / str(n), tmp_path / f"to {n}", n * STEP) for n in (1, 2, 4, 3, 2)], resource.getrlimit(resource.RLIMIT_FSIZE)
    for source, _, size in work:
        source.write_bytes(bytes(size))
    resource.setrlimit(resource.RLIMIT_FSIZE, (3 * STEP, limits[1]))
    try:
        with copying(work) as copied:
            assert [file.name for file in copied] == ["1", "2", "3"]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("program", [None, "", "/no/such/python", "/bin/false", "/bin/true", "/bin/cat"])
def test_a_host_without_an_interpreter_copies_nothing_ahead(program, tmp_path, monkeypatch):
    "As where Python is part of another program, whatever that program says and does with the work."
    monkeypatch.setattr(sys, "executable", program)
    work = [(tmp_path / str(n), tmp_path / f"to {n}", n) for n in range(9)]
    for source, _, size in work:
        source.write_bytes(bytes(size))
    with copying(work) as copied:
        assert [*copied] == []


def is_alive(pid: int) -> bool:
    "Return whether the process `pid` runs, and is not only waiting to be counted as ended."
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_for(condition):
    "Wait until `condition()` holds, at most for the time in which a test would be taken for stuck."
    last = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < last
        time.sleep(0.01)


SLOW = """
import os, sys, time
from pathlib import Path
from vocab_pruning.models import copying
real = copying.subprocess.Popen
def noted(*args, **kwargs):
    process = real(*args, **kwargs)
    print(process.pid, flush=True)
    return process
copying.subprocess.Popen = noted
with copying.copying([(Path(sys.argv[1]), Path(sys.argv[2]), 0)]):
    time.sleep(600)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks /proc, and copies from a pipe")
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_the_processes_end_with_their_parent(sent, tmp_path):
    "However it ends, and though there is work left: the source is a pipe that nobody writes to."
    os.mkfifo(tmp_path / "source")
    keeps_it_open = os.open(tmp_path / "source", os.O_RDWR)
    program = [sys.executable, "-c", SLOW, tmp_path / "source", tmp_path / "target"]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as parent:
        child = int(parent.stdout.readline())
        wait_for((tmp_path / "target").exists)  # the copy has begun
        assert is_alive(child)
        parent.send_signal(sent)
    os.close(keeps_it_open)
    wait_for(lambda: not is_alive(child))


def test_an_error_ends_the_copying(tmp_path):
    "Within the block that it is raised in."
    os.mkfifo(tmp_path / "source")
    keeps_it_open = os.open(tmp_path / "source", os.O_RDWR)
    with pytest.raises(KeyError), copying([(tmp_path / "source", tmp_path / "target", 0)]):
        raise KeyError
    os.close(keeps_it_open)


INTERRUPTED = """
import os, signal, sys
from pathlib import Path
from vocab_pruning.models.copying import copying
signal.signal(signal.SIGINT, lambda *args: None)
source, target = map(Path, sys.argv[1:])
with copying([(source, target, 4)]) as copied:
    with source.open("wb") as file:  # the copy has begun
        os.killpg(0, signal.SIGINT)
        file.write(b"text")
    print(*copied)
"""


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="copies from a pipe")
def test_an_interrupt_is_for_the_parent(tmp_path):
    "One that the parent handles, and goes on after, though the terminal sends it to the whole group."
    os.mkfifo(tmp_path / "source")
    program = [sys.executable, "-c", INTERRUPTED, tmp_path / "source", tmp_path / "target"]
    done = subprocess.run(program, capture_output=True, text=True, start_new_session=True)
    assert done.stdout.strip() == str(tmp_path / "source") and done.stderr == ""
    assert (tmp_path / "target").read_bytes() == b"text"
