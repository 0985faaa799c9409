"""Start-up times: `python scripts/bench/startup.py`.

Each program runs in a process of its own, in turn, several rounds in one run. Prints a table of medians, and writes
`startup.json` to the output folder.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from machine import describe

PROGRAMS = {
    "python": ["-c", "pass"],
    "import torch": ["-c", "import torch"],
    "from transformers import Trainer": ["-c", "from transformers import Trainer"],
    "import hf_mtl": ["-c", "import hf_mtl"],
    "from hf_mtl import MultiTaskTrainer": ["-c", "from hf_mtl import MultiTaskTrainer"],
    "hf-mtl --help": ["-m", "hf_mtl", "--help"],
    "hf-mtl predict --help": ["-m", "hf_mtl", "predict", "--help"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output-dir", type=Path, default=Path("runs/bench"))
    options = parser.parse_args()

    seconds: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    for number in range(options.rounds + 1):  # the first fills the caches of the disk and does not count
        for name, arguments in PROGRAMS.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
            if number:
                seconds[name].append(time.perf_counter() - start)
    report = {"machine": describe(), "seconds": {name: statistics.median(own) for name, own in seconds.items()}}
    options.output_dir.mkdir(parents=True, exist_ok=True)
    (options.output_dir / "startup.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"{describe()}; medians of {options.rounds} rounds\n\n| program | seconds |\n|---|---:|")
    for name, own in report["seconds"].items():
        print(f"| `{name}` | {own:.2f} |")


if __name__ == "__main__":
    main()
