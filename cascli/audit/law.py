"""Is the output law of one verification step the pi that the rule promises? Exact, no sampling.

For every drafted token, the probability of keeping it and the distribution drawn from otherwise are taken from the code
that decodes; together they give the law of the emitted token. If all drafts are kept, a bonus token follows, whose law
is pi itself at the next position. With block verification, the law of two tokens is computed from all blocks of two
drafts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import fields
from itertools import product
from typing import Any

import torch
from torch import Tensor

from cascli import rules
from cascli.audit.report import Check, check_of, skipped, worst
from cascli.audit.tables import Text, Tree
from cascli.errors import UsageError, raised
from cascli.jobs.usable import broken_rules, usable_rules
from cascli.plugins import is_own
from cascli.rules.base import Exact, Rule
from cascli.sampling import rejection
from cascli.sampling.distributions import Dists
from cascli.sampling.parameters import Sampling
from cascli.strategies import Strategy
from cascli.strategies.base import Speculating, validated

BOUND = 1e-12
ALPHAS = (-0.5, 0.0, 0.1, 0.3, 0.6, 0.9, 1.0)
OPTIONS: tuple[dict[str, Any], ...] = ({}, {"tail": "exact"}, {"top": 3})
SAMPLINGS = (Sampling(1.0), Sampling(0.6, top_k=10, top_p=0.95))


def one_step(pi: Tensor, q: Tensor) -> Tensor:
    """The exact law `[n, V]` of the first token of a round at n positions: accepted mass plus residual mass."""
    n, width = q.shape
    tokens = torch.arange(width)
    keep = torch.stack(
        [rejection.acceptance(pi[i].expand(width, -1), q[i].expand(width, -1), tokens) for i in range(n)]
    )
    kept = torch.where(q > 0, q * keep, torch.zeros_like(q))
    rejected = (q - kept).sum(dim=-1, keepdim=True)
    return kept + rejected * rejection.residual(pi, q)


def two_tokens(pi: Tensor, q: Tensor) -> Tensor:
    """The exact law `[V, V]` of the first two tokens under block verification of two drafts.

    Args:
        pi: `[1 + V, V]`: for the first token, then after each possible first token.
        q: the draft's distributions, `[1 + V, V]` in the same layout.
    """
    width = q.shape[1]
    law = torch.zeros(width, width, dtype=q.dtype)
    for first, second in product(range(width), repeat=2):
        drafted, rows = torch.tensor([first, second]), torch.tensor([0, 1 + first, 0])  # the last is for a third token
        chance = q[0, first] * q[1 + first, second]
        if chance == 0:
            continue
        passing, laws = rejection.prefix_tests(pi[rows], q[rows[:2]], drafted)
        for tests in product((True, False), repeat=2):
            u = torch.tensor([-1.0 if passes else 2.0 for passes in tests], dtype=q.dtype)
            kept = int(rejection.verify_prefixes(pi[rows], q[rows[:2]], drafted, u, pi.new_zeros(3)).num_accepted)
            weight = chance * torch.where(torch.tensor(tests), passing, 1 - passing).prod()
            if kept == 0:
                law += weight * laws[0].unsqueeze(1) * pi[1:]
            elif kept == 1:
                law[first] += weight * laws[1]
            else:
                law[first, second] += weight
    return law


def of_blocks(trees: Sequence[Tree], strategies: Sequence[Strategy]) -> Iterator[Check]:
    """One check for each strategy with block verification: the largest |law - pi| of two tokens."""
    for strategy in strategies:
        if not (isinstance(strategy, Speculating) and strategy.by_block):
            continue
        error = worst(_of_block(tree, strategy.verification_rule, sampling) for tree in trees for sampling in SAMPLINGS)
        blocks = len(trees) * trees[0].width ** 2
        yield check_of(
            "law", strategy.spec, error, BOUND, 0.0, f"{blocks} blocks of 2 drafts x {len(SAMPLINGS)} samplings"
        )


def _of_block(tree: Tree, rule: Rule, sampling: Sampling) -> float:
    texts = [(), *((token,) for token in range(tree.width))]
    draft, target = (torch.stack([table[text] for text in texts]) for table in (tree.draft, tree.target))
    d = Dists.of_logits(draft, target, sampling)
    pi = rule.apply(d)
    return float((two_tokens(pi, d.q) - pi[0].unsqueeze(1) * pi[1:]).abs().max())


def all_rules(names: Sequence[str] | None = None) -> Iterator[tuple[str, Rule]]:
    """Every rule at every alpha in its range, with each option that it accepts, and plain speculative decoding."""
    if names is None or "speculative" in names:
        yield "speculative", Exact()
    for name in usable_rules():
        if names is None or name in names:
            yield from ((name, rule) for rule in _settings(rules.load(name)))


def _settings(rule_class: Any) -> Iterator[Rule]:
    """The rule with every alpha and option that it accepts."""
    parameters = {field.name for field in fields(rule_class)}
    alphas = [{"alpha": alpha} for alpha in ALPHAS] if "alpha" in parameters else [{}]
    for values in (alpha | option for option in OPTIONS if option.keys() <= parameters for alpha in alphas):
        with contextlib.suppress(UsageError):
            yield validated(rule_class, values)


def worst_of(trees: Sequence[Tree], names: Sequence[str] | None = None) -> Iterator[Check]:
    """One check per rule: the largest |law - pi| over positions, settings and samplings.

    Third-party rules that fail, or that do not work over so few tokens, are reported as skipped.
    """
    errors: dict[str, float] = {}
    tried: dict[str, int] = {}
    broken = broken_rules()
    draft, target = (torch.cat([torch.stack(list(table.values())) for table in tables]) for tables in _tables(trees))
    for name, rule in all_rules(names):
        tried[name] = tried.get(name, 0) + 1
        for sampling in SAMPLINGS:
            d = Dists.of_logits(draft, target, sampling)
            try:
                pi = rule.apply(d)
            except Exception as problem:
                if is_own(rule):
                    raise
                broken[name] = f"of {d.q.shape[-1]} tokens: {raised(problem)}"
                break
            error = float((one_step(pi, d.q) - pi).abs().max())
            errors[name] = worst([errors.get(name, 0.0), error])
    for name in sorted(broken):
        if names is None or name in names:
            yield skipped("law", name, broken[name])
    for name, error in errors.items():
        if name in broken:
            continue
        settings = f" x {tried[name]} settings" if tried[name] > 1 else ""
        yield check_of("law", name, error, BOUND, 0.0, f"{len(draft)} positions x {len(SAMPLINGS)} samplings{settings}")


def _tables(trees: Sequence[Tree]) -> tuple[list[dict[Text, Tensor]], list[dict[Text, Tensor]]]:
    return [tree.draft for tree in trees], [tree.target for tree in trees]
