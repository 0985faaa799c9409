"""`Explanation`: what each word of one text did for one task's answer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from hf_mtl.errors import DataError, SpecError, one_of
from hf_mtl.explain.text import Unit
from hf_mtl.model.targets import Target
from hf_mtl.writing import to_json

if TYPE_CHECKING:
    from hf_mtl.explain.subject import Subject
    from hf_mtl.explain.text import ExplainedText
    from hf_mtl.explain.verification import Verification


@dataclass(frozen=True, eq=False)
class Origin:
    """What an explanation was made from, which it needs to be checked; not part of its JSON.

    Args:
        subject: the model.
        text: the text.
        target: the target.
    """

    subject: Subject
    text: ExplainedText
    target: Target


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """An attribution of one task's answer to the words of a text.

    Args:
        task: name of the task.
        method: the attribution method.
        text: the text; tokens joined, where tokens were given.
        text_pair: the second text of a pair, or the choices as they are read, with what stands between them.
        units: the words or tokens with their character offsets.
        scores: what each unit contributes to the target's score, one per unit: differences of logits, or the label's
            unit for regression.
        signed: whether scores tell for from against.
        predicted: what the model answers.
        target: what is explained: a label, `A rather than B`, `type: 'span'`, or `value`.
        probability: mean probability of the target's label, or the value predicted.
        measure: which of the two: `"probability"` or `"value"`.
        own: indices of the units that are the target themselves, for tagging.
        baseline: what the text is compared with, in words.
        convergence: by how much the scores miss the sum they promise, relative to it; `None` without a promise.
        seed: seed of a method that draws at random.
        notes: what a reader should know.
        origin: what is needed to verify the explanation; `None` in one that was read from JSON.
    """

    task: str
    method: str
    text: str
    text_pair: str | None = None
    units: tuple[Unit, ...]
    scores: tuple[float, ...]
    signed: bool = True
    predicted: str
    target: str
    probability: float
    measure: str = "probability"
    own: tuple[int, ...] = ()
    baseline: str = ""
    convergence: float | None = None
    seed: int | None = None
    notes: tuple[str, ...] = ()
    origin: Origin | None = field(default=None, repr=False, compare=False)

    @property
    def words(self) -> tuple[str, ...]:
        """The units as text."""
        return tuple(unit.text for unit in self.units)

    @property
    def offsets(self) -> tuple[tuple[int, int], ...]:
        """Character offsets `[start, end)` of the units in their text."""
        return tuple((unit.start, unit.end) for unit in self.units)

    @property
    def own_score(self) -> float:
        """What the words of the target contribute themselves; 0 where the whole text is the target."""
        return float(sum(self.scores[place] for place in self.own))

    @property
    def context_score(self) -> float:
        """What all other words contribute."""
        return float(sum(self.scores)) - self.own_score

    @property
    def context_share(self) -> float:
        """Share of the context in the scores, without their signs, in [0, 1]."""
        sizes = np.abs(np.array(self.scores))
        total = float(sizes.sum())
        return 1.0 - float(sizes[list(self.own)].sum()) / total if total else 0.0

    def ranked(self) -> list[int]:
        """Return the indices of the units, the largest contribution first; ties in their order in the text."""
        return np.argsort(-np.array(self.scores), kind="stable").tolist()

    def verify(self, perturb: tuple[str, ...] | str = ("delete", "mask"), *, top: int = 5) -> Verification:
        """Take the top words away and measure what happens: `hf_mtl.explain.verification.verify`."""
        from hf_mtl.explain.verification import verify

        return verify(self, perturb, top=top)

    def report(self, format: str = "text", language: str = "en") -> str:
        """Say in plain sentences why, each checked by intervention: `hf_mtl.explain.report.report`."""
        from hf_mtl.explain.report import report

        return report(self, format=format, language=language)

    def require_origin(self) -> Origin:
        """Return what the explanation was made from.

        Raises:
            SpecError: it was read from JSON, which holds no model.
        """
        if self.origin is None:
            raise SpecError(
                "the explanation was read from JSON, without its model",
                mend="explain the text again, with hf_mtl.explain.explainer.Explainer",
            )
        return self.origin

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "origin"}
        return {**values, "units": [asdict(unit) for unit in self.units], "scores": list(self.scores),
                "own": list(self.own), "notes": list(self.notes)}  # fmt: skip

    def to_json(self, *, indent: int | None = None) -> str:
        """Write the explanation as JSON; `from_json` gives an equal one, without `origin`."""
        return to_json(self.to_dict(), indent=indent)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Explanation:
        """Make an explanation from plain values.

        Raises:
            DataError: a key is missing or unknown.
        """
        known = {f.name for f in fields(cls)} - {"origin"}
        wrong = sorted(set(values) ^ known)
        if wrong:
            raise DataError(f"{wrong[0]!r} is missing or unknown", where="explanation", mend=f"use {one_of(known)}")
        units = tuple(Unit(**unit) for unit in values["units"])
        lists: dict[str, Any] = {key: tuple(values[key]) for key in ("scores", "own", "notes")}
        given: dict[str, Any] = {**values, **lists, "units": units}
        return cls(**given)

    @classmethod
    def from_json(cls, text: str) -> Explanation:
        """Read an explanation; errors as in `from_dict`."""
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise DataError(f"no JSON ({error})", where="explanation", mend="give what to_json wrote") from error
        if not isinstance(values, dict):
            raise DataError("no mapping", where="explanation", mend="give what to_json wrote")
        return cls.from_dict(cast(dict[str, Any], values))

    def _repr_html_(self) -> str:
        from hf_mtl.explain.rendering import explanation_html

        return explanation_html(self)
