"""What `hf-mtl tune` searches: training arguments, and for each the values it may take.

A recipe says so under `search`:

```yaml
search:
  learning_rate: {low: 1e-5, high: 1e-3, log: true}
  num_train_epochs: {low: 2, high: 6}  # whole numbers, as both ends are written as whole numbers
  sampling: [proportional, temperature]
  sampling_kwargs.temperature: {low: 1.0, high: 5.0, when: {sampling: temperature}}
```
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from decimal import Decimal
from typing import TYPE_CHECKING, Any, cast

from hf_mtl.data.recipe import near
from hf_mtl.errors import HfMtlError, RecipeError, one_of
from hf_mtl.training.arguments import DICT_ARGUMENTS
from hf_mtl.training.recipe_arguments import accepted_arguments

if TYPE_CHECKING:
    from optuna import Trial

FIXED = ("metric_for_best_model", "greater_is_better", "output_dir")
"""Arguments that say what is searched for, and so are not searched."""


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """One training argument that is searched.

    Args:
        name: the argument; with a dot a key of an argument that is a mapping.
        values: the values it may take, instead of a range.
        low: least value; a range of whole numbers where `low`, `high` and `step` are whole numbers.
        high: greatest value.
        log: whether the logarithm is drawn evenly, for what spans orders of magnitude.
        step: distance of the values.
        when: values of other arguments, without which this one is left as it is in the recipe.

    Raises:
        RecipeError: there is no such argument, or these are no values for it.
    """

    name: str
    values: tuple[Any, ...] | None = None
    low: float | None = None
    high: float | None = None
    log: bool = False
    step: float | None = None
    when: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        if self.name in FIXED:
            raise RecipeError("it says what is searched for", mend="set it in training")
        if self.values is not None:
            self._check_values(self.values)
        else:
            self._check_range()
        for value in self.values if self.values is not None else (self.low, self.high):
            _check_argument(self.name, value)
        for name, value in self.when.items():
            _check_argument(name, value)

    def suggest(self, trial: Trial) -> Any:
        """Return the value that a trial takes."""
        if self.values is not None:
            plain = all(isinstance(value, str | int | float | None) for value in self.values)
            if plain and len(set(self.values)) == len(self.values):  # 1 and true are one to Python
                return trial.suggest_categorical(self.name, list(self.values))
            # Optuna keeps plain values only.
            texts = {json.dumps(value, sort_keys=True): value for value in self.values}
            return texts[str(trial.suggest_categorical(self.name, list(texts)))]
        low, high = cast(float, self.low), cast(float, self.high)
        if self._whole:
            return trial.suggest_int(self.name, int(low), int(high), step=int(self.step or 1), log=self.log)
        return trial.suggest_float(self.name, low, high, step=self.step, log=self.log)

    @property
    def _whole(self) -> bool:
        return all(isinstance(value, int) for value in (self.low, self.high, self.step) if value is not None)

    def _check_values(self, values: tuple[Any, ...]) -> None:
        given = [name for name in ("low", "high", "step") if getattr(self, name) is not None] + ["log"] * bool(self.log)
        if given:
            raise RecipeError(f"values and {given[0]} are both given", mend="give one of them")
        if not values:
            raise RecipeError("there are no values", mend="give a list of values, or low and high")
        texts = [json.dumps(value, sort_keys=True, default=str) for value in values]
        for value, text in zip(values, texts, strict=True):
            if texts.count(text) > 1:
                raise RecipeError(f"the value {value!r} stands twice", mend="name each value once")

    def _check_range(self) -> None:
        for name in ("low", "high", "step"):
            value = getattr(self, name)
            missing = value is None and name != "step"
            if missing or (value is not None and not _is_number(value)):
                mend = "give low and high, or a list of values" if missing else "give a number"
                raise RecipeError(f"{name} is {value!r}", mend=mend)
        low, high = cast(float, self.low), cast(float, self.high)
        if not isinstance(cast(object, self.log), bool):
            raise RecipeError(f"log is {self.log!r}", mend="give true or false")
        if low > high:
            raise RecipeError(f"low is {low!r} and high is {high!r}", mend="give the lesser as low")
        if self.log and (low <= 0 or self.step is not None):
            problem = f"log goes with low {low!r}" if low <= 0 else "log goes with step"
            raise RecipeError(problem, mend="give low above 0" if low <= 0 else "give one of them")
        if self.step is not None:
            if self.step <= 0:
                raise RecipeError(f"step is {self.step!r}", mend="give a number above 0")
            # The greatest value that steps from the least one reach: optuna would warn of another.
            start, step = Decimal(str(low)), Decimal(str(self.step))
            reached = start + (Decimal(str(high)) - start) // step * step
            object.__setattr__(self, "high", int(reached) if self._whole else float(reached))


@dataclass(frozen=True)
class Space:
    """All that is searched.

    Args:
        dimensions: the arguments; those with `when` after those it names.
    """

    dimensions: tuple[Dimension, ...]

    def suggest(self, trial: Trial, training: Mapping[str, Any]) -> dict[str, Any]:
        """Return a trial's values of the arguments searched, without those whose `when` is not met.

        Args:
            trial: the trial.
            training: the recipe's arguments, where `when` names one that is not searched.
        """
        values: dict[str, Any] = {}
        for dimension in self.dimensions:
            known = {**training, **values}
            if all(known.get(name) == wanted for name, wanted in dimension.when.items()):
                values[dimension.name] = dimension.suggest(trial)
        return values


def read_space(search: Mapping[str, Any]) -> Space:
    """Read a recipe's `search`.

    Args:
        search: per argument a list of values, or a mapping with the keys of `Dimension`.

    Raises:
        RecipeError: it cannot be understood; names the argument and the mend.

    Example:
        >>> [one.name for one in read_space({"weight_decay": {"low": 0, "high": 0.1}}).dimensions]
        ['weight_decay']
    """
    dimensions: dict[str, Dimension] = {}
    for name, given in search.items():
        try:
            dimensions[name] = _dimension(name, given)
        except HfMtlError as error:
            raise error.at(f"search, {name}") from None
    for name, dimension in dimensions.items():
        for other in dimension.when:
            if other == name or (other in dimensions and dimensions[other].when):
                raise RecipeError(
                    f"when names {other!r}", where=f"search, {name}", mend="name an argument without a 'when'"
                )
    return Space(tuple(sorted(dimensions.values(), key=lambda dimension: bool(dimension.when))))


def with_values(training: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return training arguments with some of them changed.

    Args:
        training: the arguments.
        values: the changes; a name with a dot changes one key of a mapping.

    Example:
        >>> with_values({"seed": 1, "sampling_kwargs": {"a": 1}}, {"seed": 2, "sampling_kwargs.temperature": 3})
        {'seed': 2, 'sampling_kwargs': {'a': 1, 'temperature': 3}}
    """
    changed = dict(training)
    for name, value in values.items():
        argument, dot, key = name.partition(".")
        changed[argument] = {**(changed.get(argument) or {}), key: value} if dot else value
    return changed


def default_search(num_datasets: int, training: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is searched where the recipe does not say: learning rate, batch size and sampling.

    Args:
        num_datasets: number of datasets that are trained on; a single one is not sampled.
        training: the recipe's arguments; sampling is left alone where it has options of a strategy.
    """
    search: dict[str, Any] = {
        "learning_rate": {"low": 2e-5, "high": 5e-4, "log": True},
        "per_device_train_batch_size": [16, 32, 64],
    }
    if num_datasets > 1 and not training.get("sampling_kwargs"):
        search["sampling"] = ["auto", "proportional", "temperature", "uniform"]
    return search


def _dimension(name: str, given: Any) -> Dimension:
    if isinstance(given, list):
        return Dimension(name=name, values=tuple(cast(list[Any], given)))
    if not isinstance(given, Mapping):
        raise RecipeError(f"it is {given!r}", mend="give a list of values, or low and high")
    options = dict(cast(Mapping[str, Any], given))
    known = [f.name for f in fields(Dimension) if f.name != "name"]
    for key in options:
        if key not in known:
            raise RecipeError(f"unknown key {key!r}", mend=near(key, known))
    if options.get("values") is not None:
        if not isinstance(options["values"], list):
            raise RecipeError(f"values is {options['values']!r}", mend="give a list")
        options["values"] = tuple(options["values"])
    if not isinstance(options.get("when", {}), dict):
        raise RecipeError(f"when is {options['when']!r}", mend="give a mapping of arguments and their values")
    return Dimension(name=name, **options)


def _check_argument(name: str, value: Any) -> None:
    argument, dot, key = name.partition(".")
    try:
        accepted_arguments({argument: {key: value} if dot else value})
    except RecipeError as error:
        known = dot and argument not in DICT_ARGUMENTS
        problem = f"{argument!r} is no argument with keys" if known else error.problem
        raise RecipeError(problem, mend=f"use one of {one_of(DICT_ARGUMENTS)}" if known else error.mend) from None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def shown_values(values: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """Return values as a table shows them, `-` where a trial has none."""
    return [_shown(values[name]) if name in values else "-" for name in names]


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value)
