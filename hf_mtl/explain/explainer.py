"""`Explainer`: why a model answered as it did, for each of its tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from hf_mtl.data.masking import NOT_EXPLAINED, select_unmasked
from hf_mtl.errors import ModelError, SpecError
from hf_mtl.explain.explanation import Explanation, Origin
from hf_mtl.explain.methods.base import Attribution, AttributionMethod
from hf_mtl.explain.subject import Forward, Subject
from hf_mtl.explain.text import ExplainedText
from hf_mtl.model.modeling import MultiTaskModel
from hf_mtl.model.targets import Target, Wanted
from hf_mtl.registry import EXPLAINERS

if TYPE_CHECKING:
    from hf_mtl.explain.attention_html import AttentionView
    from hf_mtl.explain.side_by_side import SideBySide

AUTO, ACCURATE = "auto", "accurate"
ACCURATE_METHOD, FALLBACK_METHOD = "shapley", "integrated_gradients"
LITTLE_CONTEXT = 0.1
"""Share of the context in a tagging explanation below which it is said that context barely matters."""
CONTEXT_NOTE = "context barely matters"


class Explainer:
    """Explains the answers of a model.

    Args:
        model: the model.
        tokenizer: its tokenizer.

    Example:
        >>> explainer = Explainer(model, tokenizer)  # doctest: +SKIP
        >>> explainer.explain("A dull mess of a film.")["sentiment"].report()  # doctest: +SKIP
        "'dull' and 'mess' carry it: without them positive rises from 3% to 61%."
    """

    def __init__(self, model: MultiTaskModel, tokenizer: Any) -> None:
        self.subject = Subject(model, tokenizer)

    def explain(
        self,
        text: Any,
        tasks: Sequence[str] | str | None = None,
        method: str = AUTO,
        target: Any = None,
        units: str = "word",
        **options: Any,
    ) -> Any:
        """Share out a text's answers among its words.

        Args:
            text: a text, a mapping with `text` (and perhaps `text_pair`, `choices`) or `tokens`, or a list of them.
            tasks: the tasks to explain; all where not given, but those that mask tokens.
            method: name of an attribution method; `"auto"`, the one that suits the task; `"accurate"`, the most
                faithful and slowest, permutation Shapley values.
            target: what to explain instead of the answer: a label, `"runner-up"` or a pair of labels (why the first
                rather than the second), for tagging a word's index or a span `(first, end)` of words, or a mapping with
                `label`, `over`, `word` or `span`. With several tasks a mapping from task to any of these.
            units: `"word"` or `"token"`.
            options: options of the method, such as `seed`, `steps` or `pairs`.

        Returns:
            Task name -> `Explanation`; a list of such mappings for a list.

        Raises:
            SpecError: there is no such task, method, option, label or word.
            DataError: the text is longer than the model reads, or no text.
            ModelError: the method does not cover the model's architecture.
        """
        names = [tasks] if isinstance(tasks, str) else tasks
        chosen = [spec.name for spec in select_unmasked(self.subject.model.specs, names, NOT_EXPLAINED)]
        wanted = _wanted(target, chosen)
        methods = self._methods(chosen, method, options)
        if isinstance(text, list | tuple):
            rows = cast(Sequence[Any], text)
            return [self._explain(row, chosen, methods, wanted, units) for row in rows]
        return self._explain(text, chosen, methods, wanted, units)

    def compare(self, text: Any, tasks: Sequence[str] | None = None, **options: Any) -> SideBySide:
        """Lay the tasks side by side on one text: `hf_mtl.explain.side_by_side.side_by_side`."""
        from hf_mtl.explain.side_by_side import side_by_side

        return side_by_side(self, text, tasks, **options)

    def attention_view(
        self,
        text: Any,
        kind: str = "head",
        tasks: Sequence[str] | str | None = None,
        *,
        target: Any = None,
        **options: Any,
    ) -> AttentionView:
        """Draw where attention goes: `hf_mtl.explain.attention.attention_view`.

        Args:
            text: a text, or a mapping with `text` (and perhaps `text_pair`, `choices`) or `tokens`.
            kind: `"head"`, `"model"` or `"neuron"`.
            tasks: the tasks whose own weights are to be seen beside the attention that all share; none where not given.
            target: what of these tasks is explained, as in `explain`.
            options: `layers`, `heads` and `max_tokens`.
        """
        from hf_mtl.explain.attention import attention_view

        names = [tasks] if isinstance(tasks, str) else tasks
        chosen = (
            [spec.name for spec in select_unmasked(self.subject.model.specs, names, NOT_EXPLAINED)] if names else []
        )
        return attention_view(self.subject, text, kind, _wanted(target, chosen), **options)

    def _methods(
        self, tasks: Sequence[str], method: str, options: Mapping[str, Any]
    ) -> list[tuple[str, AttributionMethod, list[str], tuple[str, ...]]]:
        """Return name, method, its tasks and what is to be noted, for each method that takes part."""
        names: dict[str, list[str]] = {}
        for task in tasks:
            name = {AUTO: self.subject.head(task).explained_by, ACCURATE: ACCURATE_METHOD}.get(method, method)
            names.setdefault(name, []).append(task)
        found: list[tuple[str, AttributionMethod, list[str], tuple[str, ...]]] = []
        for name, group in names.items():
            made = make_method(name, options)
            try:
                made.check(self.subject)
            except ModelError as error:
                if method != AUTO:
                    raise
                note = f"{name} does not cover this model ({error.problem}): {FALLBACK_METHOD} took its place"
                found.append((FALLBACK_METHOD, make_method(FALLBACK_METHOD, options), group, (note,)))
            else:
                found.append((name, made, group, ()))
        return found

    def _explain(
        self,
        row: Any,
        tasks: Sequence[str],
        methods: Sequence[tuple[str, AttributionMethod, list[str], tuple[str, ...]]],
        wanted: Mapping[str, Wanted],
        units: str,
    ) -> dict[str, Explanation]:
        text = self.subject.read(row, units=units)
        found: dict[str, Explanation] = {}
        for name, method, group, notes in methods:
            forward = method.forward(self.subject, text, group)
            targets = {task: self.subject.target(text, forward, task, wanted[task]) for task in group}
            attributions = method.attribute(self.subject, text, forward, targets)
            for task in group:
                found[task] = self._explanation(
                    name, method, text, forward, task, targets[task], attributions[task], notes
                )
        return {task: found[task] for task in tasks}

    def _explanation(
        self,
        name: str,
        method: AttributionMethod,
        text: ExplainedText,
        forward: Forward,
        task: str,
        target: Target,
        attribution: Attribution,
        notes: tuple[str, ...],
    ) -> Explanation:
        spec, head = self.subject.spec(task), self.subject.head(task)
        logits = forward.logits(task).detach().float().cpu()
        summary = head.summary(spec, head.decode(spec, logits[0].numpy(), text.words))
        at_target = self.subject.at_target(text, target, logits).numpy()
        own = np.flatnonzero(text.units_of_words(target.words)) if target.words is not None else np.array([], dtype=int)
        explanation = Explanation(
            task=task,
            method=name,
            text=text.row.text,
            text_pair=text.second,
            units=text.units,
            scores=tuple(attribution.scores.astype(np.float64).tolist()),
            signed=method.signed,
            predicted="; ".join(line for line, _ in summary),
            target=target.name,
            probability=float(target.probability(head.probabilities(spec, at_target))[0]),
            measure=head.measure,
            own=tuple(own.tolist()),
            baseline=attribution.baseline,
            convergence=attribution.convergence,
            seed=method.seed,
            notes=(*notes, *attribution.notes),
            origin=Origin(self.subject, text, target),
        )
        return _with_context_note(explanation)


def make_method(name: str, options: Mapping[str, Any] | None = None) -> AttributionMethod:
    """Make an attribution method.

    Args:
        name: its name.
        options: its options.

    Raises:
        SpecError: there is no such method, or it has no such option.
    """
    kind: Any = EXPLAINERS.get(name)
    try:
        return kind(**(options or {}))
    except TypeError as error:
        raise SpecError(f"the method {name!r} has no such option ({error})", mend="see its docstring") from None


def _wanted(target: Any, tasks: Sequence[str]) -> dict[str, Wanted]:
    """Read what users want explained of each task."""
    if isinstance(target, Mapping) and target and all(key in tasks for key in cast(Mapping[str, Any], target)):
        by_task = cast(Mapping[str, Any], target)
        return {task: Wanted.read(by_task.get(task)) for task in tasks}
    if target is not None and len(tasks) > 1:
        raise SpecError(
            f"target is {target!r}, and there are {len(tasks)} tasks to explain",
            mend=f"name one task, or give a mapping from tasks to targets, such as {{{tasks[0]!r}: {target!r}}}",
        )
    return {task: Wanted.read(target) for task in tasks}


def _with_context_note(explanation: Explanation) -> Explanation:
    if not explanation.own or explanation.context_share >= LITTLE_CONTEXT:
        return explanation
    note = f"{CONTEXT_NOTE}: {explanation.context_share:.0%} of the attribution lies outside the target itself"
    return replace(explanation, notes=(*explanation.notes, note))
