"""Do whole runs of the real engine follow the joint law of the token cascade? Tested by sampling.

The joint law of the first tokens is the product of pi along every text. It is enumerated, and the engine's counts over
many seeds are compared with it, text by text and all together.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence

from cascli.audit import fit
from cascli.audit.report import Check, check_of, skipped
from cascli.audit.tables import PROMPT, THINKING, Text, Tree, tabulated
from cascli.decoding import thinking
from cascli.drafters.model import Model
from cascli.engine import Decoding, Request, StreamEvent
from cascli.models.pair import Pair
from cascli.rules.base import Exact, Rule
from cascli.sampling import distributions
from cascli.sampling.distributions import Dists
from cascli.sampling.parameters import Sampling
from cascli.stops.never import Never
from cascli.strategies import Strategy
from cascli.strategies.base import Speculating

SIGMAS, SLACK = 6.0, 5.0
TEXT_BY_TEXT, TOGETHER = "joint law", "joint fit"
OF_LAYERS = "it drafts with layers of the target, which are not tabulated"


def joint_law(tree: Tree, rule: Rule, length: int) -> dict[Text, float]:
    """The probability of every text of `length` tokens: the product of pi along it (temperature 1)."""
    law: dict[Text, float] = {(): 1.0}
    for _ in range(length):
        law = {(*text, i): mass * step for text, mass in law.items() for i, step in enumerate(_pi(tree, rule, text))}
    return law


def _pi(tree: Tree, rule: Rule, text: Text) -> list[float]:
    q, p = distributions.base(tree.draft[text].unsqueeze(0)), distributions.base(tree.target[text].unsqueeze(0))
    if rule.thinking_only and not thinking.opened([*PROMPT, *text], THINKING):
        rule = Exact()
    pi: list[float] = rule.apply(Dists(q, p, q, p))[0].tolist()
    return pi


def sampled(pair: Pair, strategy: Strategy, length: int, runs: int) -> tuple[Counter[Text], int]:
    """How often the engine wrote each text, over `runs` seeds, and how many tokens were drafted.

    With block verification, runs continue to a whole block, because what is kept depends on all drafts of a round, and
    with a stop, which has nothing to stop in a draft of one token; only the first `length` tokens are counted.
    """
    counts: Counter[Text] = Counter()
    drafted = 0
    whole = length
    if isinstance(strategy, Speculating) and (strategy.by_block or not isinstance(strategy.stop, Never)):
        whole += strategy.longest - 1
    for seed in range(runs):
        request = Request(prompt_ids=PROMPT, sampling=Sampling(1.0), max_new_tokens=whole, seed=seed)
        decoding = Decoding(pair, strategy, request)
        for event in decoding.steps():
            drafted += len(event.round.drafted) if isinstance(event, StreamEvent) else 0
        counts[tuple(decoding.token_ids[:length])] += 1
    return counts, drafted


def deviation(counts: Counter[Text], law: dict[Text, float], runs: int) -> float:
    """The largest (|count - expected| - SLACK) / sigma over all texts; infinite if an impossible text was written."""
    if any(law.get(text, 0.0) <= 0 for text in counts):
        return math.inf
    worst = 0.0
    for text, mass in law.items():
        if mass <= 0:
            continue
        sigma = math.sqrt(runs * mass * (1 - mass)) or 1e-300
        worst = max(worst, (abs(counts[text] - runs * mass) - SLACK) / sigma)
    return worst


def false_alarm(law: dict[Text, float], runs: int) -> float:
    """A Chernoff bound on the probability that correct counts are off by SIGMAS sigma + SLACK or more at any text."""
    return min(1.0, sum(_tails(mass, runs) for mass in law.values() if 0 < mass < 1))


def _tails(mass: float, runs: int) -> float:
    reach = (SIGMAS * math.sqrt(runs * mass * (1 - mass)) + SLACK) / runs
    return sum(math.exp(-runs * _divergence(share, mass)) for share in (mass + reach, mass - reach) if 0 <= share <= 1)


def _divergence(a: float, b: float) -> float:
    """Kullback-Leibler divergence between two Bernoulli distributions, in nats."""
    first = a * math.log(a / b) if a > 0 else 0.0
    return first + ((1 - a) * math.log((1 - a) / (1 - b)) if a < 1 else 0.0)


def rule_of(strategy: Strategy) -> Rule | None:
    """The rule whose law a strategy follows; None if it has no law of its own to test here."""
    if strategy.name == "target":
        return Exact()
    if isinstance(strategy, Speculating):
        return strategy.verification_rule
    rule = getattr(strategy, "rule", None)
    return rule if isinstance(rule, Rule) else None


def _not_tabulated(strategy: Strategy, rule: Rule) -> str | None:
    """Why a rule's law cannot be enumerated here (q is tabulated for the draft model only); None if it can."""
    if isinstance(strategy, Speculating) and strategy.draft.exit_layers is not None:
        return OF_LAYERS
    if not isinstance(strategy, Speculating) or isinstance(rule, Exact) or type(strategy.draft) is Model:
        return None
    if strategy.draft.by_prefix:
        return "the distributions of its drafter are not tabulated"
    return "its output distribution depends on where rounds begin"


def joint_laws(pair: Pair, tree: Tree, strategies: Sequence[Strategy], runs: int) -> Iterator[Check]:
    """Two checks per strategy on the same counts: `joint law` of each text of the tree, `joint fit` of all together."""
    length = tree.depth + 1
    small = tabulated(pair, tree)
    for strategy in strategies:
        rule = rule_of(strategy)
        why = "it follows no rule's law" if rule is None else _not_tabulated(strategy, rule)
        if rule is None or why is not None:
            yield from (skipped(kind, strategy.spec, why or "") for kind in (TEXT_BY_TEXT, TOGETHER))
            continue
        law = joint_law(tree, rule, length)
        counts, drafted = sampled(small, strategy, length, runs)
        if isinstance(strategy, Speculating) and not drafted:
            yield from (skipped(kind, strategy.spec, "nothing was drafted") for kind in (TEXT_BY_TEXT, TOGETHER))
            continue
        sample = f"{runs} runs of {length} tokens"
        worst, alarm = deviation(counts, law, runs), false_alarm(law, runs)
        yield check_of(TEXT_BY_TEXT, strategy.spec, worst, SIGMAS, alarm, f"{sample}, {len(law)} texts")
        surprise, cells = fit.surprise(counts, law, runs)
        sizes = ", ".join(map(str, cells)) or "no"
        detail = f"{sample}, {sizes} cells by prefix length, found in powers of ten"
        yield check_of(TOGETHER, strategy.spec, surprise, fit.ALARM, fit.false_alarm(length), detail)
