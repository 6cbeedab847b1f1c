"What several benchmarks need."

import json
import subprocess
import sys


def child(*call):
    "What the function of this program named by the first of `call` gives in a fresh process of it, called with the others."
    run = subprocess.run([sys.executable, sys.argv[0], "--child", json.dumps(call)], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(run.stdout)


def met(value: float, goal: float | None, at_least: bool = False) -> str:
    "The goal and whether it is met, in brackets."
    return "" if goal is None else f" (goal {goal}: {'met' if (value >= goal if at_least else value <= goal) else 'missed'})"
