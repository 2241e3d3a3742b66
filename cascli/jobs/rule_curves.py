"""Estimate every rule and setting from one speculative run, at the positions that the run visited.

Estimates hold along the recorded prefixes; a lenient rule would have written, and continued from, different ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch

from cascli import rules
from cascli.analysis.matching import Matched, met
from cascli.analysis.rule_estimate import RuleEstimate
from cascli.analysis.theory import expected_rounds
from cascli.blame import blamed
from cascli.decoding.plugin_checks import applied, decided
from cascli.errors import UsageError
from cascli.jobs.recording import Seen
from cascli.jobs.usable import left_out_if_it_fails, usable_rules
from cascli.rules.base import Dial, Exact, Rule, ThresholdRule
from cascli.sampling import distributions
from cascli.strategies import parse
from cascli.strategies.base import validated

ALPHAS = tuple(round(i / 32, 5) for i in range(33))
GRID = 32
"""Number of equal steps over a rule's dial in the initial grid of a search."""
HALVINGS = 20
"""Maximum number of bisections of a grid step that brackets a budget."""
NEAR = 0.001
"""Relative distance from a budget at which a search stops."""


def rule_estimates(seen: Seen, k: int, temperature: float) -> list[RuleEstimate]:
    """Estimate every threshold rule that chooses between the models, at every alpha."""
    found = list[RuleEstimate]()
    for name in usable_rules():
        kind = rules.load(name)
        if not issubclass(kind, ThresholdRule):
            continue
        with left_out_if_it_fails(kind):
            if validated(kind, {}).chooses:
                settings = [validated(kind, {"alpha": alpha}) for alpha in ALPHAS]
                found += [rule_estimate(name, rule, seen, k, temperature) for rule in settings]
    return found


def rule_estimate(name: str, rule: ThresholdRule, seen: Seen, k: int, temperature: float) -> RuleEstimate:
    """Estimate one threshold rule at one alpha."""
    pi, defer = decided(rule, seen.d)
    accepted = _acceptance(pi, seen)
    tv = distributions.total_variation(pi, seen.d.p)
    return RuleEstimate(
        rule=name,
        alpha=rule.alpha,
        temperature=temperature,
        acceptance=float(accepted.mean()),
        deferral_rate=None if defer is None else float((seen.d.q * defer).sum(dim=-1).mean()),
        mean_tv=float(tv.mean()),
        max_tv=float(tv.max()),
        target_calls_per_token=_calls(accepted, seen, k),
        mean_tail=float(seen.tail.mean()),
        max_tail=float(seen.tail.max()),
    )


def predicted_calls(rule: Rule, seen: Seen, k: int) -> float:
    """Predict a rule's target calls per token at these positions, in blocks of k."""
    return _calls(_acceptance(applied(rule, seen.d), seen), seen, k)


def _acceptance(pi: torch.Tensor, seen: Seen) -> torch.Tensor:
    """Probability `[N]` that a drafted token passes: sum over tokens of min(q, pi)."""
    return distributions.overlap(pi, seen.d.q)


def _calls(acceptance: torch.Tensor, seen: Seen, k: int) -> float:
    return sum(expected_rounds(each, k) for each in seen.passing(acceptance)) / sum(seen.lengths)


def with_dial(names: Sequence[str] | None = None) -> Iterator[tuple[str, type[Rule], Dial]]:
    """Yield name, class and dial of the named rules; by default of every rule that declares a dial.

    Raises:
        UsageError: a named rule does not exist, or declares no dial.
    """
    for name in usable_rules() if names is None else names:
        kind = rules.load(name)
        if kind.dial is not None:
            yield name, kind, kind.dial
        elif names is not None:
            raise UsageError(f"rule '{name}' declares no `dial`, so it cannot be matched; leave it out of the rules")


def match(
    seen: Seen,
    budgets: Sequence[float],
    k: int,
    temperature: float,
    names: Sequence[str] | None = None,
    *,
    requested: bool | None = None,
) -> list[Matched]:
    """Find the setting nearest to each budget within each rule's range; `met` is false if that still misses it.

    Third-party rules that fail are left out, unless they were `requested` by name (by default, if names are given).
    """
    found, raises = list[Matched](), names is not None if requested is None else requested
    for name, kind, dial in with_dial(names):
        with blamed(kind) if raises else left_out_if_it_fails(kind):
            found += list(_match_rule(name, kind, dial, seen, budgets, k, temperature))
    return found


def lossless_calls(seen: Seen, k: int) -> float:
    """Predict the target calls per token of speculative decoding."""
    return predicted_calls(Exact(), seen, k)


def _match_rule(
    name: str, kind: type[Rule], dial: Dial, seen: Seen, budgets: Sequence[float], k: int, temperature: float
) -> Iterator[Matched]:
    known: dict[float, float] = {}

    def calls(place: float) -> float:
        if place not in known:
            known[place] = predicted_calls(validated(kind, {dial.parameter: dial.at(place)}), seen, k)
        return known[place]

    for i in range(GRID + 1):
        calls(i / GRID)
    for budget in budgets:
        for low, high in pairwise(sorted(known)):
            if (known[low] - budget) * (known[high] - budget) >= 0:
                continue
            for _ in range(HALVINGS):
                middle = (low + high) / 2
                if abs(calls(middle) - budget) <= NEAR * budget or dial.at(middle) in (dial.at(low), dial.at(high)):
                    break
                same = (known[middle] - budget) * (known[low] - budget) > 0
                low, high = (middle, high) if same else (low, middle)
        # The strictest of the settings that are near enough.
        place = min(sorted(known), key=lambda each: max(abs(known[each] - budget) / budget, NEAR))
        value = dial.at(place)
        yield Matched(
            rule=name,
            alpha=value if dial.parameter == "alpha" else None,
            parameter=dial.parameter,
            value=value,
            temperature=temperature,
            k=k,
            budget=budget,
            predicted=known[place],
            met=met(known[place], budget),
            least=min(known.values()),
            most=max(known.values()),
            strategy=parse(f"speculative-cascade:rule={name},{dial.parameter}={value},k={k}").spec,
        )
