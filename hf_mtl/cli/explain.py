"""`hf-mtl explain`: why a model answers a text as it does, task by task."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from hf_mtl.explain.explainer import Explainer
    from hf_mtl.explain.explanation import Explanation
    from hf_mtl.explain.method_options import Run

FORMATS = {".html": "html", ".md": "markdown", ".txt": "text", ".json": "json"}
"""Ending of a file -> what is written to it."""

TITLE_LENGTH = 80


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("explain")(explain)


def explain(
    model: Annotated[str, typer.Argument(help="Folder or Hub id of a trained model.", show_default=False)],
    text: Annotated[str, typer.Option(help="The text whose answers are explained.", show_default=False)],
    text_pair: Annotated[str | None, typer.Option(help="The second text of a pair.")] = None,
    choice: Annotated[
        list[str] | None, typer.Option(help="A choice of a multiple-choice task; given several times.")
    ] = None,
    task: Annotated[list[str] | None, typer.Option(help="Only this task; may be given several times.")] = None,
    method: Annotated[
        str, typer.Option(help="auto, accurate, or a method, perhaps with options: shapley:pairs=10.")
    ] = "auto",
    target: Annotated[str | None, typer.Option(help="Explain this label instead of the answer.")] = None,
    over: Annotated[str | None, typer.Option(help="Why rather than this label; runner-up for the second best.")] = None,
    word: Annotated[int | None, typer.Option(min=0, help="Tagging: explain this word, counted from 0.")] = None,
    span: Annotated[str | None, typer.Option(help="Tagging: explain words A to B, without B.", metavar="A:B")] = None,
    units: Annotated[str, typer.Option(help="word or token.")] = "word",
    language: Annotated[str, typer.Option(help="Language of the report: en or zh.")] = "en",
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of methods that draw at random.")] = None,
    output: Annotated[Path | None, typer.Option(help="Write .html, .md, .txt or .json instead.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps.")] = None,
    dtype: Annotated[str | None, typer.Option(help="fp32, bf16 or fp16.")] = None,
) -> None:
    """Say why a model answers a text as it does: words coloured by contribution, and sentences, each measured."""
    from hf_mtl.cli._terminal import err, quiet_libraries
    from hf_mtl.data.masking import NOT_EXPLAINED, select_unmasked
    from hf_mtl.errors import SpecError, one_of
    from hf_mtl.explain.explainer import Explainer
    from hf_mtl.explain.languages.base import language_of
    from hf_mtl.explain.method_options import read_methods
    from hf_mtl.inference.loading import load_model
    from hf_mtl.writing import check_target

    quiet_libraries()
    (run,) = read_methods([method]).values()
    language_of(language)
    wanted = _wanted(target, over, word, span)
    if output is not None:
        if output.suffix.lower() not in FORMATS:
            raise SpecError(f"--output is {str(output)!r}", mend=f"give it one of the endings {one_of(FORMATS)}")
        check_target(output)
    loaded, tokenizer = load_model(model, device=device, dtype=dtype)
    tasks = [spec.name for spec in select_unmasked(loaded.specs, task, NOT_EXPLAINED)]
    if wanted and len(tasks) > 1:
        raise SpecError(f"what to explain is given for {len(tasks)} tasks", mend=f"name one: --task {tasks[0]}")
    explainer = Explainer(loaded, tokenizer)
    given = {"text": text, "text_pair": text_pair, "choices": choice or None}
    row = {key: value for key, value in given.items() if value is not None}
    found = _explanations(explainer, row, tasks, run, wanted, units=units, seed=seed)
    if output is None:
        _show(found, language)
    else:
        _write(found, output, language)
        err().print(f"written: {output}")


def _wanted(target: str | None, over: str | None, word: int | None, span: str | None) -> dict[str, Any]:
    """Return the target as `Wanted.read` takes it, empty where the answer is explained.

    Raises:
        SpecError: a span is no pair of numbers.
    """
    from hf_mtl.errors import SpecError
    from hf_mtl.model.targets import RUNNER_UP

    wanted: dict[str, Any] = {"label": target, "over": over, "word": word}
    if target == RUNNER_UP and over is None:
        wanted |= {"label": None, "over": RUNNER_UP}
    if span is not None:
        first, _, end = span.partition(":")
        if not (first.isdecimal() and end.isdecimal()):
            raise SpecError(f"--span is {span!r}", mend="give the first word and the end, counted from 0: 2:4")
        wanted["span"] = (int(first), int(end))
    return {key: value for key, value in wanted.items() if value is not None}


def _explanations(
    explainer: Explainer,
    row: Mapping[str, Any],
    tasks: Sequence[str],
    run: Run,
    wanted: Mapping[str, Any],
    *,
    units: str,
    seed: int | None,
) -> dict[str, Explanation]:
    """Explain the tasks; a seed is given to the methods that have one."""
    from hf_mtl.explain.explainer import ACCURATE, ACCURATE_METHOD, AUTO, make_method

    groups: dict[bool, list[str]] = {}
    for task in tasks:
        names = {AUTO: explainer.subject.head(task).explained_by, ACCURATE: ACCURATE_METHOD}
        drawn = make_method(names.get(run.method, run.method)).seed is not None
        groups.setdefault(drawn, []).append(task)
    found: dict[str, Explanation] = {}
    for drawn, group in groups.items():
        options = run.options if seed is None or not drawn else {"seed": seed, **run.options}
        found |= explainer.explain(row, group, method=run.method, target=dict(wanted) or None, units=units, **options)
    return {task: found[task] for task in tasks}


def _show(found: Mapping[str, Explanation], language: str) -> None:
    from hf_mtl.cli._terminal import out
    from hf_mtl.explain.rendering import explanation_text

    for place, explanation in enumerate(found.values()):
        heading, explained, rest = explanation.report("text", language).split("\n", 2)
        if place:
            out().print()
        for part in (heading, explained, "", explanation_text(explanation), rest.rstrip("\n")):
            out().print(part)


def _write(found: Mapping[str, Explanation], output: Path, language: str) -> None:
    from hf_mtl.explain.claims import claims
    from hf_mtl.explain.rendering import page
    from hf_mtl.writing import to_json, write_text

    kind = FORMATS[output.suffix.lower()]
    if kind == "json":
        values = {
            task: {
                "explanation": explanation.to_dict(),
                "claims": [claim.to_dict() for claim in claims(explanation)],
                "report": explanation.report("text", language),
            }
            for task, explanation in found.items()
        }
        write_text(to_json(values, indent=2) + "\n", output)
        return
    reports = [explanation.report(kind, language) for explanation in found.values()]
    if kind == "html":
        text = next(iter(found.values())).text
        title = text if len(text) <= TITLE_LENGTH else text[: TITLE_LENGTH - 1] + "…"
        write_text(page(title, reports, language=language), output)
    else:
        write_text("\n".join(reports), output)
