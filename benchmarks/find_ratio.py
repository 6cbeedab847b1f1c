"""The smallest MiniLM for a wanted retention on CoLA and STS-B: the answer, what it took, and a curve to check it against."""

import argparse
import json
from pathlib import Path

from vocab_pruning.core import library_versions
from vocab_pruning.runs.search import find_ratio


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tasks", nargs="*", default=["cola", "stsb"], help="tasks to search (default: cola stsb)")
    parser.add_argument("--retention", type=float, default=0.99, help="what is to be kept of the full model's score (default: %(default)s)")
    parser.add_argument("--max-runs", type=int, default=5, help="pruned models that are trained at most (default: %(default)s)")
    parser.add_argument("--when", default="before", choices=["before", "after"], help="prune before or after fine-tuning (default: %(default)s)")
    parser.add_argument("--base", default="vocab", help="what the ratio is a fraction of (default: %(default)s)")
    parser.add_argument("--oov", default="pq", help="what becomes of pruned tokens (default: %(default)s)")
    parser.add_argument("--scorer", default="tfidf", help="who ranks the rows (default: %(default)s)")
    parser.add_argument("--step", type=float, default=0.01, help="how fine the ratios are (default: %(default)s)")
    parser.add_argument("--epochs", type=float, help="default: the task's")
    parser.add_argument("--max-train-examples", type=int, help="default: all")
    parser.add_argument("--held-out-examples", type=int, help="examples of train that retention is measured on (default: none, it is dev)")
    parser.add_argument("--model", default="auto", help="a name or directory (default: MiniLM where it is installed)")
    parser.add_argument("--data", default="auto", help="a directory in GLUE's layout (default: GLUE_DIR)")
    parser.add_argument("--seed", type=int, default=42, help="default: %(default)s")
    parser.add_argument("--out", default="runs", help="where the runs are, and are read again (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    return parser.parse_args()


def main():
    options = vars(parse_options())
    tasks, file, results = options.pop("tasks"), options.pop("json"), {"versions": library_versions()}
    for task in tasks:
        found = find_ratio(task, **options, progress=True)
        print(f"{task}: {found}\n{found.curve.to_string(index=False, na_rep='')}", flush=True)
        results[task] = vars(found) | {"curve": json.loads(found.curve.to_json(orient="records"))}
        if file:
            file.write_text(json.dumps(results | {"options": options}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
