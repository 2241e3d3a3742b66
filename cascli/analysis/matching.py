"""Rule settings that meet a budget, and how they were found, as plain data. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field, model_validator

from cascli.trace import Data

MISS = 0.03
"""Largest relative distance from a budget at which it counts as met."""
EVEN = 0.0005
"""Difference in target calls per token below which settings are not distinguished."""


class Matched(Data):
    """The setting that brings a rule nearest to a budget of target calls per token, at one temperature."""

    rule: str
    alpha: float | None = None
    """Value of alpha for rules that are tuned by it; None for others."""
    parameter: str = "alpha"
    """The parameter by which the rule is tuned."""
    value: float
    temperature: float
    k: int
    budget: float
    predicted: float
    """Predicted target calls per token on the calibration prompts, computed as in `RuleEstimate`."""
    met: bool
    """Whether the budget is met: `predicted` is within 3% of it."""
    least: float | None = None
    """Fewest target calls per token predicted for any setting of the rule; None in older documents."""
    most: float | None = None
    """Most target calls per token predicted for any setting of the rule; None in older documents."""
    strategy: str | None = None
    """The strategy with all its parameters; None in older documents, where rule, alpha and k are its only ones."""

    @model_validator(mode="before")
    @classmethod
    def _older(cls, data: Any) -> Any:
        """Read older documents, in which every rule has an alpha."""
        return {"value": data["alpha"]} | data if isinstance(data, dict) and "alpha" in data else data

    @property
    def spec(self) -> str:
        """The strategy with its parameters."""
        return self.strategy or f"speculative-cascade:rule={self.rule},alpha={self.alpha},k={self.k}"

    @property
    def setting(self) -> str:
        """The setting as text, such as `alpha = 0.3`."""
        return f"{self.parameter} = {self.value:.10g}"

    def __str__(self) -> str:
        return f"{self.rule} at temperature {self.temperature:g}: {self.why}"

    @property
    def why(self) -> str:
        """Why the budget is not met, and what comes nearest."""
        near = f"nearest is {self.predicted:.3f} at {self.setting}"
        if self.least is None or self.most is None:
            return f"no {self.parameter} gives {self.budget:g} target calls; {near}"
        if self.most - self.least < EVEN:
            return f"{self.most:.3f} target calls at every {self.parameter}, not {self.budget:g}"
        if not self.least <= self.budget <= self.most:
            end = f"at most {self.most:.3f}" if self.budget > self.most else f"at least {self.least:.3f}"
            return f"uses {end} target calls, not {self.budget:g}; {near}"
        return f"jumps over {self.budget:g} target calls; {near}"


def met(calls: float, budget: float) -> bool:
    """Return whether a number of calls is near enough to a budget to meet it."""
    return abs(calls - budget) <= MISS * budget


def strategies_of(matches: Sequence[Matched]) -> dict[str, list[float]]:
    """Return the strategies that meet a budget, each with the temperatures at which it does."""
    chosen: dict[str, list[float]] = {}
    for each in matches:
        if each.met and each.temperature not in chosen.setdefault(each.spec, []):
            chosen[each.spec].append(each.temperature)
    return chosen


class Matching(Data):
    """How a comparison's settings were found: each rule's nearest to each budget, on calibration prompts."""

    name: Literal["target_calls_per_token"] = "target_calls_per_token"
    """The quantity that is budgeted."""
    matched: list[Matched]
    """One entry for each rule at each budget."""
    lossless: float
    """Target calls per token predicted for lossless speculation."""
    prompts: list[str]
    """Ids of the calibration prompts, none of which was measured."""
    tokens: int
    """Total number of tokens in the answers to the calibration prompts."""
    mean_tail: float = 0.0
    """Mean probability of the tokens that were lumped together."""
    without_dial: list[str] = Field(default_factory=list)
    """Rules that were left out because they do not declare a range to search."""
