"""What rules would do along recorded prefixes, as plain data. No torch."""

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
    """Mean q-mass that the rule defers to the target; None for a rule that does not choose between the models."""
    mean_tv: float
    """Mean TV(pi, p)."""
    max_tv: float
    target_calls_per_token: float
    """Expected target calls per token at the plan's k, from the acceptance at every token of another strategy's run."""
    mean_tail: float = 0.0
    """Mean probability of the tokens that were lumped together: how far off a token rule's numbers can be."""
    max_tail: float = 0.0


class RuleCurves(Document):
    """The estimates of `sweep --rule-curves`."""

    kind: ClassVar[str] = "list of rule curves"

    schema_name: Literal["cascli.rule-curves/1", "cascli.rule-curves/1.1"] = Field(
        "cascli.rule-curves/1.1", alias="schema"
    )
    date: str | None = None
    """Time of the estimates in UTC (ISO 8601); None in older documents."""
    command: str | None = None
    """The command line, quoted for a shell; None in older documents."""
    pair: str | None = None
    """The pair's name; None in older documents."""
    environment: dict[str, str] = Field(default_factory=dict)
    """Machine and versions, and the source and precision of each model; empty in older documents."""
    k: int = 4
    """Drafted tokens per round, used for `target_calls_per_token`."""
    estimates: list[RuleEstimate] = Field(min_length=1)

    def table(self) -> tidy.Table:
        """Return one row per estimate, with the columns shared by all tables."""
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
