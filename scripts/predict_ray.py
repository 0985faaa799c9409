"""Answer many files on many machines with Ray Data: `python scripts/predict_ray.py MODEL rows/ --output answers/`.

Every worker loads the model once and answers one file at a time, as `hf-mtl predict` does: the answers to `rows/a.csv`
go to `answers/a.jsonl`. A file is written whole when its last row is answered, and its finished parts are kept beside
it until then; so the file of a worker that dies is gone on with by another, and the same command goes on after all of
them were killed. Files and answers must lie where all machines reach them under the same path. To spread one large
file, cut it first: `split -n l/64 --additional-suffix=.jsonl rows.jsonl rows/`.

Without `--address` a cluster of this machine alone is started. Needs `pip install "hf-mtl[ray]"`.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hf_mtl.errors import HfMtlError, MissingExtraError, OutputError
from hf_mtl.inference.files import INPUT_ENDINGS


class FilePredictor:
    """Answers one file after the other in a process of its own.

    Args:
        model: id on the Hub, or a folder that every machine reaches.
        cpus: threads of a worker without a GPU.
        options: passed to `predict_file`.
    """

    def __init__(self, model: str, cpus: int, options: dict[str, Any]) -> None:
        import torch

        from hf_mtl.cli._terminal import quiet_libraries
        from hf_mtl.inference.loading import load_model

        quiet_libraries()
        torch.set_num_threads(cpus)
        self.model, self.tokenizer = load_model(model)
        self.options = options

    def __call__(self, row: dict[str, str]) -> dict[str, Any]:
        """Answer `row["source"]` to `row["target"]`; an `error` says why a file could not be answered."""
        from hf_mtl.inference.bulk import predict_file

        if Path(row["target"]).exists():  # the worker that wrote it died before it could say so
            return {**row, "rows": 0, "errors": 0, "continued": 0, "error": ""}
        try:
            done = predict_file(self.model, self.tokenizer, row["source"], row["target"], **self.options)
        except HfMtlError as error:
            return {**row, "rows": 0, "errors": 0, "continued": 0, "error": str(error)}
        return {**row, "rows": done.rows, "errors": done.errors, "continued": done.continued, "error": ""}


def find_files(given: list[Path]) -> Iterator[Path]:
    """Yield the files that are named, and those with rows in the folders that are."""
    for path in given:
        if path.is_dir():
            found = (file for file in sorted(path.iterdir()) if not file.name.startswith("."))
            yield from (file for file in found if Path(file.name.removesuffix(".gz")).suffix in INPUT_ENDINGS)
        else:
            yield path


def pair_files(sources: list[Path], output: Path, ending: str | None) -> list[dict[str, str]]:
    """Pair each file with the one its answers go to.

    Raises:
        OutputError: two files would have their answers in one, or a file would be its own answers.
    """
    pairs = [(source, output / (source.name.split(".")[0] + ending_of(source, ending))) for source in sources]
    names = Counter(target for _, target in pairs)
    for source, target in pairs:
        if names[target] > 1 or source.resolve() == target.resolve():
            raise OutputError(
                f"the answers to {source} would be mixed with others", where=str(target), mend="rename files"
            )
    return [{"source": str(source.resolve()), "target": str(target.resolve())} for source, target in pairs]


def ending_of(source: Path, ending: str | None) -> str:
    """Return the ending of a file's answers: what was asked for, else parquet for parquet and jsonl for the rest."""
    return f".{ending}" if ending else ".parquet" if source.suffix.lower() == ".parquet" else ".jsonl"


def answer_files(files: list[dict[str, str]], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Answer files on a cluster, one at a time on each worker; results in the order in which they are done."""
    # Nothing of a run is reported to anybody.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError("ray", extra="ray") from error
    local: dict[str, Any] = {"num_cpus": options.workers * options.cpus, "object_store_memory": 100_000_000}
    start = {"address": options.address} if options.address else {**local, "include_dashboard": False}
    ray.init(**start, logging_level="warning")
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = sys.stderr.isatty()
    chosen: dict[str, Any] = {"tasks": options.task, "precision": options.precision}
    dataset = ray.data.from_items(files, override_num_blocks=len(files)).map(
        FilePredictor,
        fn_constructor_args=(options.model, options.cpus, chosen),
        compute=ray.data.ActorPoolStrategy(size=min(options.workers, len(files))),
        num_cpus=options.cpus,
        num_gpus=options.gpus or None,
    )
    try:
        return dataset.take_all()
    finally:
        ray.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder or Hub id of a trained model")
    parser.add_argument("input", nargs="+", type=Path, help="files of rows, or folders of them")
    parser.add_argument("--output", type=Path, required=True, help="folder of the answers")
    parser.add_argument("--format", choices=("jsonl", "parquet"), help="of the answers; that of the rows if not given")
    parser.add_argument("--task", action="append", help="only this task; may be given several times")
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16", "fp16"))
    parser.add_argument("--workers", type=int, default=2, help="processes that each load the model")
    parser.add_argument("--cpus", type=int, default=1, help="cores of a worker")
    parser.add_argument("--gpus", type=float, default=0, help="GPUs of a worker")
    parser.add_argument("--address", help="address of a running cluster, such as 'auto'")
    parser.add_argument("--overwrite", action="store_true", help="answer files anew whose answers are there")
    options = parser.parse_args()
    if Path(options.model).is_dir():
        options.model = str(Path(options.model).resolve())
    try:
        run(options)
    except HfMtlError as error:
        sys.exit(f"error: {error}")


def run(options: argparse.Namespace) -> None:
    """Answer the files that have no answers yet, and say how many rows were answered."""
    options.output.mkdir(parents=True, exist_ok=True)
    files = pair_files(list(find_files(options.input)), options.output, options.format)
    if options.overwrite:
        for pair in files:
            Path(pair["target"]).unlink(missing_ok=True)
    waiting = [pair for pair in files if not Path(pair["target"]).exists()]
    if len(waiting) < len(files):
        print(f"{len(files) - len(waiting)} files have their answers already (--overwrite answers them anew)")
    start = time.perf_counter()
    done = answer_files(waiting, options) if waiting else []
    seconds = time.perf_counter() - start
    for file in done:
        if file["error"]:
            print(f"{file['source']}: {file['error']}", file=sys.stderr)
    counts = {name: sum(file[name] for file in done) for name in ("rows", "errors", "continued")}
    failed = sum(bool(file["error"]) for file in done)
    print(
        f"{len(done) - failed} files, {counts['rows']} rows, {counts['errors']} with an error, {counts['continued']} "
        f"from before in {seconds:.1f} s ({(counts['rows'] - counts['continued']) / seconds:,.0f} rows/s): "
        f"{options.output}"
    )
    if failed:
        sys.exit(f"error: {failed} of {len(done)} files could not be answered")


if __name__ == "__main__":
    main()
