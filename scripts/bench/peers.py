"""Other libraries side by side: `python scripts/bench/peers.py DATA --encoder FOLDER`.

Each of them is installed into an environment of its own, and trains a classifier on the same rows of sst2, one epoch in
batches of 32, with all else as it has it by default; so do ours and the stock Trainer. They take turns, several rounds
in one run. Speed is in tokens of the rows, without padding, over the seconds of the training call. One that cannot be
installed, or cannot train without fetching something, stands in the table with the reason. Prints the table, and writes
`peers.json` to the output folder.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import torch
from machine import describe
from transformers import AutoTokenizer

PEERS: dict[str, list[str]] = {
    "adapters": ["adapters", "accelerate"],
    "tasknet": ["tasknet"],
    "machamp": ["machamp"],
    "flair": ["flair"],
}
"""What is asked of the package index, by the name of the job."""
ABSENT = {"machamp": "the package index has no such package: it runs from a clone of its repository"}
"""Why one is known not to be installable."""
OF_PEERS = {"adapters": "an adapter and a head; the encoder is frozen"}
"""What one trains, where it is not the whole model."""
JOBS = Path(__file__).with_name("peer_jobs.py")


def install(name: str, folder: Path, limit: float) -> str | None:
    """Make an environment with a library, if it does not stand there; return why it cannot be made."""
    if name in ABSENT:
        return ABSENT[name]
    if (folder / "ready").is_file():
        return None
    venv.create(folder, with_pip=True, clear=True)
    # The torch that is measured with, so that the libraries differ and not what they stand on.
    command = [folder / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check"]
    wanted = [f"torch=={torch.__version__.partition('+')[0]}", *PEERS[name]]
    reason = run([*map(str, command), *wanted], limit)[1]
    if reason is None:
        (folder / "ready").touch()
    return None if reason is None else f"cannot be installed: {reason}"


def run(command: list[str], limit: float) -> tuple[str, str | None]:
    """Return what a command printed, and why it failed, if it did."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return "", f"not done in {limit:.0f} s"
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    if done.returncode == 0:
        return done.stdout, None
    errors = [line for line in lines if "Error" in line] or lines or ["no reason given"]  # not a bar of progress
    return done.stdout, errors[-1].strip()[:200]


def measure(name: str, python: str, job: Path, limit: float) -> tuple[float, str | None]:
    """Run a job; return its seconds, or why there are none."""
    output, reason = run([python, str(JOBS), name, str(job)], limit)
    return (0.0, f"cannot train: {reason}") if reason else (json.loads(output.splitlines()[-1])["seconds"], None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--encoder", type=Path, required=True, help="a folder")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    parser.add_argument("--rows", type=int, default=1600)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--install-limit", type=float, default=1800, help="seconds")
    parser.add_argument("--run-limit", type=float, default=900, help="seconds")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/bench"))
    options = parser.parse_args()

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    folder = options.output_dir.absolute() / "peers"
    folder.mkdir(parents=True, exist_ok=True)
    lines = (options.data / "sst2" / "train.jsonl").read_text(encoding="utf-8").splitlines()[: options.rows]
    rows = [{key: json.loads(line)[key] for key in ("text", "label")} for line in lines]
    job = folder / "job.json"
    job.write_text(json.dumps({"encoder": str(options.encoder.resolve()), "rows": rows}), encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(options.encoder)
    encoded = tokenizer([row["text"] for row in rows], truncation=True, max_length=min(512, tokenizer.model_max_length))
    tokens = sum(map(len, encoded["input_ids"]))

    pythons = {name: str(folder / name / "bin" / "python") for name in options.peers}
    skipped: dict[str, str] = {}
    for name in options.peers:
        reason = install(name, folder / name, options.install_limit)
        if reason:
            skipped[name] = reason
        print(f"{name}: {reason or 'installed'}", flush=True)
    pythons = {"ours": sys.executable, "stock": sys.executable} | pythons
    speeds: dict[str, list[float]] = {name: [] for name in pythons}
    for number in range(options.rounds):
        for name, python in pythons.items():
            if name not in skipped:
                seconds, reason = measure(name, python, job, options.run_limit)
                if reason:
                    skipped[name] = reason
                else:
                    speeds[name].append(tokens / seconds)
                print(f"round {number + 1}: {name}: {reason or f'{speeds[name][-1]:,.0f} tokens/s'}", flush=True)

    medians = {name: statistics.median(own) for name, own in speeds.items() if name not in skipped}
    report: dict[str, Any] = {
        "machine": describe(),
        "rounds": options.rounds,
        "rows": len(rows),
        "trains": OF_PEERS,
        "tokens_per_second": medians,
        "skipped": skipped,
        "runs": speeds,
        "ratios": {
            f"ours/{name}": statistics.median(a / b for a, b in zip(speeds["ours"], speeds[name], strict=True))
            for name in medians
            if name != "ours"
        },
    }
    options.output_dir.mkdir(parents=True, exist_ok=True)
    (options.output_dir / "peers.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"\n{describe()}; medians of {options.rounds} rounds, {len(rows)} rows, {tokens} tokens\n")
    print("| library | tokens/s | ours over it | trains |\n|---|---:|---:|---|")
    for name in pythons:
        if name in medians:
            ratio = f"{report['ratios'][f'ours/{name}']:.2f}" if name != "ours" else ""
            print(f"| {name} | {medians[name]:,.0f} | {ratio} | {OF_PEERS.get(name, 'the whole model')} |")
        else:
            print(f"| {name} | skipped: {skipped[name]} | | |")


if __name__ == "__main__":
    main()
