"""What a rule would do along recorded prefixes, and which alphas meet a budget: plain data. No torch."""

from __future__ import annotations

from collections.abc import Sequence

from cascli.analysis import theory
from cascli.trace import Data


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
