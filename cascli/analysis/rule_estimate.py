"""What a rule would do along recorded prefixes: plain data. No torch."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from cascli.analysis import tidy
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
    """Expected at the plan's k from the acceptance at every token: along the prefixes of another strategy's run."""
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
