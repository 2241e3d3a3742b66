"""What a rule would do along recorded prefixes, and which alphas meet a budget: plain data. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field

from cascli.analysis import theory, tidy
from cascli.trace import Data, Document


class RuleEstimate(Data):
    """One rule at one alpha, estimated analytically at every visited position."""

    rule: str
    alpha: float
    temperature: float
    acceptance: float
    """Mean probability that a drafted token would pass: sum over tokens of min(q, pi)."""
    deferral_rate: float | None
    """Mean q-mass that the rule turns over to the target; None for a rule that is no choice between the models."""
    mean_tv: float
    """Mean TV(pi, p)."""
    max_tv: float
    target_calls_per_token: float
    """By theory, from the acceptance at the plan's k: estimated along the prefixes of another strategy's run."""
    mean_tail: float = 0.0
    """Mean probability of the tokens that were lumped together: how far a token rule's numbers can be off."""
    max_tail: float = 0.0


class RuleCurves(Document):
    """The estimates of `sweep --rule-curves`."""

    kind: ClassVar[str] = "list of rule curves"

    schema_name: Literal["cascli.rule-curves/1", "cascli.rule-curves/1.1"] = Field(
        "cascli.rule-curves/1.1", alias="schema"
    )
    date: str | None = None
    """When they were made, in UTC as ISO 8601 has it; None in older documents."""
    command: str | None = None
    """The command line, quoted for a shell; None in older documents."""
    pair: str | None = None
    """The pair's name; None in older documents."""
    environment: dict[str, str] = Field(default_factory=dict)
    """As that of a sweep."""
    k: int = 4
    """Drafted tokens a round, for the calls."""
    estimates: list[RuleEstimate] = Field(min_length=1)

    def table(self) -> tidy.Table:
        """One row an estimate, with the columns of every table."""
        shared = tidy.Circumstances.of_loaded(self.pair, self.environment, self.date).columns()
        return tidy.table("curves", [shared | self._columns(each) for each in self.estimates])

    def _columns(self, each: RuleEstimate) -> tidy.Record:
        values = each.model_dump(exclude={"acceptance", "mean_tv", "max_tv"})
        values |= tidy.strategy_columns(f"speculative-cascade:rule={each.rule},alpha={each.alpha},k={self.k}")
        return values | {
            "tested_acceptance_rate": each.acceptance,
            "mean_tv_to_target": each.mean_tv,
            "max_tv_to_target": each.max_tv,
        }


class Matched(Data):
    """The alpha with which a rule comes nearest to a budget of target calls per token, at one temperature."""

    rule: str
    alpha: float
    temperature: float
    k: int
    budget: float
    predicted: float
    """Target calls per token, as `RuleEstimate` has them."""
    met: bool
    """Whether that is near enough to speak of this budget."""

    @property
    def spec(self) -> str:
        """The strategy."""
        return f"speculative-cascade:rule={self.rule},alpha={self.alpha},k={self.k}"

    def __str__(self) -> str:
        near = f"nearest is {self.predicted:.3f} at alpha = {self.alpha:g}"
        return f"{self.rule} at temperature {self.temperature:g}: no alpha for {self.budget:g} target calls; {near}"


def predicted_calls(acceptance: float, k: int) -> float:
    """Target calls per token of blocks of k, if every draft passes with this probability."""
    return 1 / theory.expected_tokens(acceptance, k)


def strategies_of(matches: Sequence[Matched]) -> dict[str, list[float]]:
    """The strategies that meet a budget, each with the temperatures at which it does."""
    chosen: dict[str, list[float]] = {}
    for each in matches:
        if each.met and each.temperature not in chosen.setdefault(each.spec, []):
            chosen[each.spec].append(each.temperature)
    return chosen
