"""Which settings of rules meet a budget, and how that was found: plain data. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field, model_validator

from cascli.trace import Data

MISS = 0.03
"""Relative distance from a budget up to which it is called met."""
EVEN = 0.0005
"""Target calls per token that are not told apart."""


class Matched(Data):
    """The setting with which a rule comes nearest to a budget of target calls per token, at one temperature."""

    rule: str
    alpha: float | None = None
    """The setting of a rule that is set by alpha; None for others."""
    parameter: str = "alpha"
    """By which the rule is set."""
    value: float
    temperature: float
    k: int
    budget: float
    predicted: float
    """Target calls per token, as `RuleEstimate` has them, on prompts that calibrate."""
    met: bool
    """Whether that is near enough to speak of this budget: within 3% of it."""
    least: float | None = None
    """The fewest calls that any setting of the rule is predicted; None in older documents, as all below."""
    most: float | None = None
    """The most."""
    strategy: str | None = None
    """With all its parameters; in older documents it has these alone."""

    @model_validator(mode="before")
    @classmethod
    def _older(cls, data: Any) -> Any:
        """Older documents know rules with an alpha alone."""
        return {"value": data["alpha"]} | data if isinstance(data, dict) and "alpha" in data else data

    @property
    def spec(self) -> str:
        """The strategy."""
        return self.strategy or f"speculative-cascade:rule={self.rule},alpha={self.alpha},k={self.k}"

    @property
    def setting(self) -> str:
        """`alpha = 0.3`."""
        return f"{self.parameter} = {self.value:.10g}"

    def __str__(self) -> str:
        return f"{self.rule} at temperature {self.temperature:g}: {self.why}"

    @property
    def why(self) -> str:
        """Why a budget is not met, and what comes nearest."""
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
    """Whether calls are near enough to a budget to speak of it."""
    return abs(calls - budget) <= MISS * budget


def strategies_of(matches: Sequence[Matched]) -> dict[str, list[float]]:
    """The strategies that meet a budget, each with the temperatures at which it does."""
    chosen: dict[str, list[float]] = {}
    for each in matches:
        if each.met and each.temperature not in chosen.setdefault(each.spec, []):
            chosen[each.spec].append(each.temperature)
    return chosen


class Matching(Data):
    """How the settings of a comparison were found: each rule's nearest to a budget, on prompts that calibrate."""

    name: Literal["target_calls_per_token"] = "target_calls_per_token"
    """Of what the budgets are."""
    matched: list[Matched]
    """Each rule at each budget."""
    lossless: float
    """What is predicted of speculative decoding."""
    prompts: list[str]
    """Ids of the prompts that calibrated, none of which was measured."""
    tokens: int
    """Of their answers."""
    mean_tail: float = 0.0
    """Mean probability of the tokens that were lumped together."""
    without_dial: list[str] = Field(default_factory=list)
    """Rules that say no range in which they could be searched, and were left out."""
