"""Does a concept that people can name move an answer? Concept activation vectors, refused where there is no concept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from hf_mtl.data.encoding import Inputs, read_inputs
from hf_mtl.errors import DataError, SpecError
from hf_mtl.explain.subject import Subject
from hf_mtl.model.targets import Wanted
from hf_mtl.writing import TextTable

LEAST_CONTROLS = 10
LEAST_TEXTS = 10
FOLDS = 5
MEND = "give more or clearer examples, or another layer"


@dataclass(frozen=True)
class ConceptEffect:
    """What a concept does to the answers of a task.

    Args:
        concept: its name.
        task: the task.
        target: the label it was tested on.
        layer: the layer, 0 for the embeddings.
        accuracy: cross-validated accuracy of telling the concept's texts from random ones, mean over the controls.
        accuracy_p: chance of an accuracy as high where there is nothing to tell.
        texts: number of texts whose answers were tested.
        score: share of the texts whose target rises along the concept, mean over the controls.
        scores: the same for each control.
        random_scores: the same for directions that tell random texts from random texts.
        p: chance of scores that differ as much where the concept is no more than a random one, by Welch's t-test.
        significance: what `p` has to be under.
    """

    concept: str
    task: str
    target: str
    layer: int
    accuracy: float
    accuracy_p: float
    texts: int
    score: float
    scores: tuple[float, ...]
    random_scores: tuple[float, ...]
    p: float
    significance: float

    @property
    def significant(self) -> bool:
        """Whether the concept moves the answer otherwise than random directions do."""
        return self.p < self.significance

    def table(self) -> TextTable:
        """Return the result in one line; the score is `?` where it does not differ from that of random directions."""
        random = np.array(self.random_scores)
        cells = (self.concept, f"{self.task}: {self.target}", str(self.layer), f"{self.accuracy:.2f}",
                 f"{self.score:.2f} ± {np.std(self.scores, ddof=1):.2f}" if self.significant else "?",
                 f"{random.mean():.2f} ± {random.std(ddof=1):.2f}", f"{self.p:.2g}")  # fmt: skip
        header = ("concept", "target", "layer", "accuracy", "texts it raises", "random directions", "p")
        return TextTable(f"Concept, {self.texts} texts, {len(self.scores)} controls", header, [cells])

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {**asdict(self), "significant": self.significant}


def concept_effect(
    model: Any,
    tokenizer: Any,
    concept: Sequence[Any],
    random: Sequence[Any],
    texts: Sequence[Any],
    *,
    task: str,
    target: Any = None,
    layer: int | None = None,
    name: str = "concept",
    controls: int = LEAST_CONTROLS,
    significance: float = 0.05,
    seed: int = 0,
) -> ConceptEffect:
    """Test whether a concept moves the answers of a task (TCAV).

    A text's activation is the mean of its token states in a layer, standardised over the texts of concept and pool. A
    linear classifier of the concept's texts against as many random ones has a normal `v`; the derivative of the
    target's score `S` along it is `sum_t dS/dh_t . (s * v)`, for the token states `h_t` and the deviations `s`: all
    tokens are moved alike, so their mean is. The score of a concept is the share of texts where that is above 0. It is
    compared with the scores of directions that tell random texts from random texts. Kim et al. 2018, "Interpretability
    Beyond Feature Attribution", https://arxiv.org/abs/1711.11279.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        concept: texts (or rows) that have the concept, at least 10.
        random: a pool of texts to draw the controls from, at least twice as many.
        texts: texts whose answers are tested, such as those of one label.
        task: the task.
        target: label, `"runner-up"` or pair of labels, as for `Explainer.explain`; each text's own answer where not
            given.
        layer: 0 for the embeddings, up to the number of layers; the middle layer where not given.
        name: name of the concept.
        controls: number of random draws, at least 10.
        significance: how likely chance may be, for the classifier and for the effect.
        seed: seed of the draws and of the cross-validation.

    Raises:
        SpecError: an option is out of range, or there is no such task or label.
        DataError: there are too few texts, or the concept cannot be told from random texts; names the accuracy.
    """
    _check(concept, random, texts, controls, significance)
    subject = Subject(model, tokenizer)
    if task not in [spec.name for spec in model.specs]:
        raise SpecError(f"task is {task!r}", mend=f"use one of {[spec.name for spec in model.specs]}")
    layers = int(model.encoder.config.get_text_config().num_hidden_layers)
    layer = (layers + 1) // 2 if layer is None else layer
    if not 0 <= layer <= layers:
        raise SpecError(f"layer is {layer}", mend=f"use 0 (the embeddings) to {layers}")
    own, pool = (_pooled(subject, rows, layer) for rows in (concept, random))
    mean, deviation = _standard(np.concatenate([own, pool]))
    own, pool = (own - mean) / deviation, (pool - mean) / deviation
    generator = np.random.default_rng(seed)
    draws = [generator.permutation(len(pool))[: 2 * len(own)] for _ in range(controls)]
    pairs = [(own, pool[draw[: len(own)]]) for draw in draws]
    accuracy = float(np.mean([cross_validated(*pair, seed=seed) for pair in pairs]))
    accuracy_p = chance_of(accuracy, 2 * len(own))
    if not accuracy_p < significance:
        raise DataError(
            f"the concept {name!r} cannot be told from random texts: accuracy {accuracy:.2f} over {2 * len(own)} texts,"
            f" as by chance with p = {accuracy_p:.2g}",
            where=f"layer {layer}",
            mend=MEND,
        )
    random_pairs = [(pool[draw[: len(own)]], pool[draw[len(own) :]]) for draw in draws]
    directions = np.stack([deviation * normal(*pair) for pair in (*pairs, *random_pairs)])
    gradients, shown = _gradients(subject, texts, task, Wanted.read(target), layer)
    shares = ((gradients @ directions.T) > 0).mean(axis=0)
    scores, random_scores = shares[:controls], shares[controls:]
    return ConceptEffect(
        concept=name,
        task=task,
        target=shown if target is not None else "the answer",
        layer=layer,
        accuracy=accuracy,
        accuracy_p=accuracy_p,
        texts=len(gradients),
        score=float(scores.mean()),
        scores=tuple(scores.tolist()),
        random_scores=tuple(random_scores.tolist()),
        p=_welch(scores, random_scores),
        significance=significance,
    )


def normal(concept: np.ndarray, random: np.ndarray) -> np.ndarray:
    """Return the normal of the linear classifier that tells a concept's activations from random ones.

    Args:
        concept: standardised activations, `(num_texts, hidden_size)`.
        random: the same of random texts.

    Returns:
        Towards the concept, of length 1, `(hidden_size,)`.
    """
    weights = np.asarray(_classifier().fit(*_labelled(concept, random)).coef_[0], dtype=np.float64)
    return weights / (np.linalg.norm(weights) or 1.0)


def cross_validated(concept: np.ndarray, random: np.ndarray, *, seed: int = 0) -> float:
    """Return how often the classifier is right about texts that it was not fitted on; arguments as in `normal`."""
    from sklearn.model_selection import StratifiedKFold, cross_val_score

    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    return float(cross_val_score(_classifier(), *_labelled(concept, random), cv=folds).mean())


def chance_of(accuracy: float, count: int) -> float:
    """Return how likely a coin is right at least as often, by the binomial distribution.

    Example:
        >>> round(chance_of(0.9, 10), 4)
        0.0107
    """
    from scipy.stats import binom

    return float(binom.sf(round(accuracy * count) - 1, count, 0.5))


def concept_gradient(subject: Subject, row: Any, task: str, wanted: Wanted, layer: int) -> tuple[np.ndarray, str]:
    """Return the derivative of a target's score when all token states of a layer are moved alike.

    Args:
        subject: the model.
        row: the text.
        task: the task.
        wanted: the target.
        layer: 0 for the embeddings, up to the number of layers.

    Returns:
        `sum_t dS/dh_t`, `(hidden_size,)`, and the target's name.
    """
    text = subject.read(row)
    forward = subject.forward(text, [task], gradients=True, output_hidden_states=True)
    chosen = subject.target(text, forward, task, wanted)
    states = (forward.output.hidden_states or ())[layer]
    (gradient,) = torch.autograd.grad(subject.score(text, chosen, task, forward).sum(), states)
    return gradient[0].sum(dim=0).double().cpu().numpy(), chosen.name


def _gradients(subject: Subject, texts: Sequence[Any], task: str, wanted: Wanted, layer: int) -> tuple[np.ndarray, str]:
    found = [concept_gradient(subject, row, task, wanted, layer) for row in texts]
    return np.stack([gradient for gradient, _ in found]), found[0][1]


def _pooled(subject: Subject, rows: Sequence[Any], layer: int) -> np.ndarray:
    """Return the mean token state of each text in a layer, `(num_texts, hidden_size)` float64."""
    found: list[np.ndarray] = []
    for row in rows:
        forward = subject.forward(subject.read(row), [], output_hidden_states=True)
        found.append((forward.output.hidden_states or ())[layer][0].double().mean(dim=0).cpu().numpy())
    return np.stack(found)


def _standard(activations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    deviation = activations.std(axis=0)
    return activations.mean(axis=0), np.where(deviation > 1e-6, deviation, 1.0)


def _classifier() -> Any:
    from sklearn.linear_model import LogisticRegression

    # More dimensions than texts: without a strong penalty the normal is mostly noise.
    return LogisticRegression(C=0.01, max_iter=1000)


def _labelled(concept: np.ndarray, random: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.concatenate([concept, random]), np.repeat([1, 0], [len(concept), len(random)])


def _welch(scores: np.ndarray, others: np.ndarray) -> float:
    from scipy.stats import ttest_ind_from_stats

    spread, other_spread = float(scores.std(ddof=1)), float(others.std(ddof=1))
    if spread + other_spread < 1e-12:  # the test would divide by nothing
        return 0.0 if abs(scores.mean() - others.mean()) > 1e-12 else 1.0
    # From the means and deviations: shares that are all alike would make the test on the shares itself warn.
    sides = (scores.mean(), spread, len(scores), others.mean(), other_spread, len(others))
    found: Any = ttest_ind_from_stats(*sides, equal_var=False)
    return float(found.pvalue)


def _check(
    concept: Sequence[Any], random: Sequence[Any], texts: Sequence[Any], controls: int, significance: float
) -> None:
    if controls < LEAST_CONTROLS:
        raise SpecError(f"controls is {controls}", mend=f"use {LEAST_CONTROLS} or more")
    if not 0.0 < significance < 1.0:
        raise SpecError(f"significance is {significance}", mend="use a number between 0 and 1")
    if len(concept) < LEAST_TEXTS:
        raise DataError(f"{len(concept)} texts", where="concept", mend=f"give at least {LEAST_TEXTS}")
    if len(random) < 2 * len(concept):
        raise DataError(f"{len(random)} texts", where="random", mend=f"give at least {2 * len(concept)}")
    if not texts:
        raise DataError("no texts", where="texts", mend="give the texts whose answers are tested")
    known = {_text_of(row) for row in concept}
    if any(_text_of(row) in known for row in random):
        raise DataError("a text is one of the concept, too", where="random", mend="leave it out of one of them")


def _text_of(row: Any) -> tuple[str, str | None]:
    inputs = row if isinstance(row, Inputs) else read_inputs(row)
    return inputs.text, inputs.text_pair
