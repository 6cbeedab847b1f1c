"""A sweep of short runs, killed with SIGKILL at random moments and started again each time until it ends: what is there then?

Every run must have its row, once and whole, whatever the moment. The runs are those of a stand-in with the parameters of `run.ipynb` that
writes its row slowly, in two halves, and notes when it starts, when its row gets its name, and whether another process makes the same run."""

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell

from vocab_pruning.runs.cells import CELLS
from vocab_pruning.runs.recipe import read_recipe, run_notebook
from vocab_pruning.runs.sweep import sweep_status

ROOT = Path(__file__).parent.parent
WORK = """
import fcntl, json, os, time
from pathlib import Path

place, name = Path(out), f"{task}-{scorer}-{oov}-{base}-{ratio}-{seed}"

def note(what):
    with open(place / "log.txt", "a") as log:
        log.write(f"{what} {name} {os.getpid()}\\n")

note("start")
alone = open(place / f".{name}.alone", "w")
try:
    fcntl.flock(alone, fcntl.LOCK_EX | fcntl.LOCK_NB)
except OSError:
    note("overlap")
row = dict(run=name, task=task, scorer=scorer, oov=oov, base=base, ratio=ratio, seed=seed, score=1 - ratio / (2 + seed % 5), seconds_train=time.time() % 1)
if not (place / name).exists():
    new = place / f".{name}.{os.getpid()}.new"
    new.mkdir()
    text = json.dumps(row)
    with open(new / "result.json", "w") as file:
        for half in (text[:20], text[20:]):
            file.write(half)
            file.flush()
            time.sleep(0.2)
    new.rename(place / name)
    note("made")
display({"application/json": json.loads((place / name / "result.json").read_text())}, raw=True)
"""
RECIPE = """
out: {out}
model: none
data: sample
tasks: [cola, rte]
methods:
  - {{scorer: frequency, oov: unk}}
  - {{scorer: tfidf, oov: unk}}
cuts:
  - {{base: vocab, ratio: 0.773}}
  - {{base: vocab, ratio: 0.95}}
seeds: {seeds}
"""


# The sweep


def write_stand_in(path: Path, work: str = WORK) -> Path:
    "A notebook with the parameters of `run.ipynb` that does `work`."
    nb = nbformat.read(run_notebook(ROOT / "nbs" / "run.ipynb"), as_version=4)
    nb.cells = [cell for cell in nb.cells if "parameters" in cell.metadata.get("tags", [])] + [new_code_cell(work)]
    nbformat.write(nb, path)
    return path


def write_recipe(path: Path, seeds: int, recipe: str = RECIPE) -> Path:
    "A recipe of 8 runs for each of so many `seeds`, whose rows go to a directory beside it."
    path.write_text(recipe.format(out=path.parent / "sweep", seeds=list(range(seeds))))
    return path


def start_sweep(recipe: Path, notebook: Path, **options) -> subprocess.Popen:
    "A sweep in a process of its own."
    program = f"from vocab_pruning.runs.sweep import sweep; sweep({str(recipe)!r}, notebook={str(notebook)!r}, progress=False, **{options!r})"
    return subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True)


def read_log(out: Path) -> list[list[str]]:
    "What the runs noted: lists of what happened, the run's name and its process."
    log = out / "log.txt"
    return [line.split() for line in log.read_text().splitlines()] if log.exists() else []


def kill_at_random(process: subprocess.Popen, out: Path, draw: random.Random) -> str:
    "Kill `process` after some of its runs' next notes and a moment more; when that was, in words."
    seen, notes, moment, started = len(read_log(out)), draw.randint(0, 4), draw.uniform(0, 2), time.monotonic()
    while len(read_log(out)) < seen + notes and process.poll() is None:
        time.sleep(0.01)
    time.sleep(moment)
    ended = process.poll() is not None
    process.kill()
    process.communicate()
    return "had ended" if ended else f"after {time.monotonic() - started:.1f} s, {len(read_log(out)) - seen} notes"


# What is there in the end


def row_files(out: Path) -> list[Path]:
    "The files of the rows below `out`."
    return list(out.glob("[!.]*/result.json"))


def figures(recipe: Path, notebook: Path) -> dict:
    "Counts of what a sweep left: its rows, rows that are there twice or half, runs that overlapped, files of the dead."
    out, status = Path(read_recipe(recipe, notebook)["out"]), sweep_status(recipe, notebook)
    rows, log = [json.loads(path.read_text()) for path in row_files(out)], read_log(out)
    what, made = Counter(what for what, *_ in log), Counter(name for what, name, _ in log if what == "made")
    return dict(
        runs=len(status), rows=len(rows), names=len({row["run"] for row in rows}), done=int((status.state == "done").sum()), started=what["start"],
        made_twice=sum(times > 1 for times in made.values()), overlaps=what["overlap"], half_made_cells=len(list((out / CELLS).glob(".*.new"))),
        alive=sum(Path(f"/proc/{pid}").exists() for *_, pid in log))


def killed_sweep(directory: Path, seeds: int, kills: int, seed: int, workers: int = 2, at_once: int = 1, recipe: str = RECIPE,
                 report=lambda line: None) -> dict:
    "Kill a sweep of 8 runs for each of `seeds` so many times, then let it end, `at_once` sweeps at the same time; the figures."
    recipe, notebook = write_recipe(directory / "recipe.yml", seeds, recipe), write_stand_in(directory / "stand_in.ipynb")
    draw = random.Random(seed)
    for i in range(kills):
        when = kill_at_random(start_sweep(recipe, notebook, workers=workers), directory / "sweep", draw)
        report(f"kill {i + 1}: {when}; {len(row_files(directory / 'sweep'))} rows")
    started = time.monotonic()
    for process in [start_sweep(recipe, notebook, workers=workers) for _ in range(at_once)]:
        errors = process.communicate()[1]
        if process.returncode:
            raise RuntimeError(errors)
    return figures(recipe, notebook) | dict(last_seconds=round(time.monotonic() - started, 1))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path, help="an empty directory for the sweep")
    parser.add_argument("--seeds", type=int, default=3, help="8 runs each (default: 24 in all)")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    args = parser.parse_args()
    args.directory.mkdir(parents=True, exist_ok=True)
    found = killed_sweep(args.directory.resolve(), args.seeds, args.kills, args.seed, report=lambda line: print(line, flush=True))
    print(json.dumps(found))
    whole = found["runs"] == found["rows"] == found["names"] == found["done"]
    sys.exit(0 if whole and not any(found[name] for name in ("made_twice", "overlaps", "half_made_cells", "alive")) else 1)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
