"""Runs all checks of an audit, one after the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from cascli import rules
from cascli.audit import answers, drafts, draws, files, joint, law, numerics, parity, rounds, tables, tokens
from cascli.audit.report import Audit, Check, failed, skipped
from cascli.chat import encode
from cascli.config import PairConfig
from cascli.engine import environment
from cascli.errors import RunError
from cascli.jobs.usable import usable_rules, works_over
from cascli.models.pair import Pair
from cascli.notebook import OnProgress
from cascli.plugins import is_own
from cascli.prompts import builtin
from cascli.rules.base import ThresholdRule
from cascli.strategies import Strategy, parse
from cascli.trace import by_block, now

LIKELIEST = 16
DEEPER = 3
"""Factor by which fewer tokens are tabulated for the law of three tokens."""


@dataclass(frozen=True)
class Effort:
    """How much work an audit does."""

    trees: int
    runs: int
    deep: bool
    prompts: int
    tokens: int
    rewinds: int
    answers: int


QUICK = Effort(trees=1, runs=3000, deep=False, prompts=2, tokens=20, rewinds=6, answers=3)
FULL = Effort(trees=3, runs=15_000, deep=True, prompts=6, tokens=40, rewinds=24, answers=8)


REPRESENTATIVE_RULE = "lenience"
"""Represents the rules that no kernel implements."""
LOOKUP = "speculative:draft=prompt-lookup,k=3"
WITH_OPTIONS = [
    "speculative-cascade:rule=token-v3,tail=exact,k=2",
    "speculative-cascade:rule=token-v2,alpha=0.8,top=3,where=thinking,k=2",
]
BY_BLOCK = "speculative:k=3,verify=block"


def default_strategies(*, draft: bool = True, head: bool = False) -> list[str]:
    """Speculation with small and large blocks, and rules with and without speculation.

    Without a draft model, drafts come from prompt lookup, with the rules that do not read the draft's confidence. A
    head is not run without speculation.
    """
    if not draft:
        kinds = [name for name in sampled() if not rules.load(name).reads_confidence]
        return ["target", LOOKUP, *(f"speculative-cascade:rule={name},draft=prompt-lookup,k=2" for name in kinds)]
    cascades = [f"speculative-cascade:rule={name},k=2" for name in sampled()]
    sequential = [] if head else [f"token-cascade:rule={name}" for name in sampled()]
    return ["target", "speculative:k=1", "speculative:k=3", BY_BLOCK, LOOKUP, *sequential, *cascades, *WITH_OPTIONS]


def sampled() -> list[str]:
    """The rules whose texts are sampled by default; the law of every rule is computed exactly.

    These are the rules that a kernel verifies, third-party rules that work over as few tokens as an audit tabulates,
    and one of the remaining rules, which share one code path.
    """
    kinds = {name: rules.load(name) for name in usable_rules()}
    return [
        name
        for name, kind in kinds.items()
        if name == REPRESENTATIVE_RULE
        or issubclass(kind, ThresholdRule)
        or (not is_own(kind) and all(works_over(kind, n) for n in (LIKELIEST, LIKELIEST // DEEPER)))
    ]


def audit(
    pair: Pair,
    strategies: Sequence[Strategy] | None = None,
    *,
    quick: bool = False,
    on_progress: OnProgress = lambda *_: None,
    on_check: Callable[[Check], None] = lambda _: None,
    config: PairConfig | None = None,
) -> Audit:
    """Check a pair on this machine.

    Args:
        pair: from `load_pair`.
        strategies: whose laws to check; all kinds by default.
        quick: use a smaller sample of everything.
        on_progress: called with what is being checked, the number of checks made, and the total.
        on_check: called with each check as it is made.
        config: where the pair came from; if given, its files are checked too.
    """
    start, date = time.perf_counter(), now()
    effort = QUICK if quick else FULL
    if pair.device.type == "cuda":  # where a run of two tokens waits for the host longer than it computes
        effort = replace(effort, runs=effort.runs // 3)
    counter = _CheckCounter(on_progress, planned(pair, strategies, deep=effort.deep, config=config))
    checks: list[Check] = []
    for check in chain(_weights(config, counter), _checks(pair, strategies, effort, counter)):
        checks.append(check)
        on_check(check)
        counter.increment()
    return Audit(
        date=date,
        pair=pair.info,
        passed=all(check.status != "fail" for check in checks),
        seconds=time.perf_counter() - start,
        checks=checks,
        environment=environment(pair.device, *_chosen(pair, strategies)),
    )


class _CheckCounter:
    """Counts the checks made, and reports them with the current description."""

    def __init__(self, on_progress: OnProgress, total: int) -> None:
        self._on_progress, self._total = on_progress, total
        self._text, self._done = "", 0

    def __call__(self, text: str) -> None:
        self._text = text
        self._on_progress(text, self._done, self._total)

    def increment(self) -> None:
        """Count a check that was made."""
        self._done += 1
        self(self._text)


def planned(
    pair: Pair, strategies: Sequence[Strategy] | None, *, deep: bool = False, config: PairConfig | None = None
) -> int:
    """The number of checks that an audit will make."""
    chosen = _chosen(pair, strategies)
    laws = {"speculative", *usable_rules()}
    if strategies:
        laws &= set(_rule_names(chosen))
    count = len(config.models) if config is not None else 0
    count += tokens.num_checks(pair) + 3 * len(pair.models) + len(laws)
    count += sum(by_block(strategy.params) for strategy in chosen)
    count += sum(rounds.has_rounds(strategy) for strategy in chosen) + len(chosen) * (4 if deep else 2)
    count += sum(map(answers.compares, chosen)) + len(drafts.drafters(chosen))
    return count + 1  # parity


def _chosen(pair: Pair, strategies: Sequence[Strategy] | None) -> list[Strategy]:
    default = default_strategies(draft=pair.draft is not None, head=pair.by_head)
    return list(strategies) if strategies else [parse(text) for text in default]


def _weights(config: PairConfig | None, on_progress: Callable[[str], None]) -> Iterator[Check]:
    """Check the files, which are read whole: gigabytes, at the speed of the disk."""
    if config is not None:
        on_progress("weights on disk")
        yield from files.files(config)


def _checks(
    pair: Pair, strategies: Sequence[Strategy] | None, effort: Effort, on_progress: Callable[[str], None]
) -> Iterator[Check]:
    on_progress("tokenizer")
    yield from tokens.tokens(pair)
    on_progress("cache and blocks")
    numerical = list(numerics.numerics(pair, effort.rewinds))
    yield from numerical
    on_progress("drafts")
    yield from draws.draws(pair)
    yield from _laws(pair, strategies, effort, on_progress)
    if pair.tokenizer is None:
        yield skipped("parity", f"{parity.speculation(pair)} against target", "no tokenizer for the built-in prompts")
        return
    on_progress("greedy parity")
    prompts = builtin()[:: max(30 // effort.prompts, 1)][: effort.prompts]
    compared = parity.parity(pair, prompts, effort.tokens, _tolerance(pair, numerical))
    yield from _or_failed("parity", f"{parity.speculation(pair)} against target", compared)


def _laws(
    pair: Pair, strategies: Sequence[Strategy] | None, effort: Effort, on_progress: Callable[[str], None]
) -> Iterator[Check]:
    """Exact laws on the likeliest tokens, then sampled joint laws on the same trees."""
    chosen = _chosen(pair, strategies)
    names = None if not strategies else _rule_names(chosen)
    on_progress("tabulating the models' distributions")
    trees = [tables.tabulate(pair, ids, LIKELIEST, 1) for ids in _prompts(pair, effort.trees)]
    yield from law.worst_of(trees, names)
    yield from law.of_blocks(trees, chosen)
    on_progress("rounds of every length")
    yield from rounds.rounds(pair, trees[0], chosen)
    on_progress("whole answers")
    for strategy in chosen:
        yield from _or_failed("answer", strategy.spec, answers.answers(pair, trees[0], [strategy], effort.answers))
    on_progress("drafters")
    for strategy in drafts.drafters(chosen):
        yield from _or_failed("drafter", strategy.spec, drafts.drafts(pair, strategy))
    on_progress("joint law of two tokens")
    yield from _joint_laws(pair, trees[0], chosen, effort.runs)
    if effort.deep:
        on_progress("joint law of three tokens")
        deep = tables.tabulate(pair, _prompts(pair, 1)[0], LIKELIEST // DEEPER, 2)
        yield from _joint_laws(pair, deep, chosen, effort.runs)


def _joint_laws(pair: Pair, tree: tables.Tree, strategies: Sequence[Strategy], runs: int) -> Iterator[Check]:
    for strategy in strategies:
        yield from _or_failed(joint.TEXT_BY_TEXT, strategy.spec, joint.joint_laws(pair, tree, [strategy], runs))


def _or_failed(kind: str, subject: str, checks: Iterator[Check]) -> Iterator[Check]:
    """The checks; an error of a run, such as logits that are not numbers, is a failed check, and the audit goes on."""
    try:
        yield from checks
    except RunError as problem:
        yield failed(kind, subject, str(problem))


def _rule_names(strategies: Sequence[Strategy]) -> list[str]:
    """The rules that the strategies use; `speculative` stands for the exact test."""
    return [str(strategy.params.get("rule", strategy.name)) for strategy in strategies]


def _prompts(pair: Pair, count: int) -> list[list[int]]:
    """Prompts to take real distributions from."""
    if pair.tokenizer is None:
        return [[(7 * i + j) % pair.vocab for j in range(4)] for i in range(count)]
    return [encode(pair, prompt.turns[0]) for prompt in builtin()[::7][:count]]


def _tolerance(pair: Pair, numerical: Sequence[Check]) -> float:
    """The logit margin that rounding may close: fixed in float32, otherwise twice what the block check measured."""
    if pair.target.dtype == "float32":
        return parity.REAL_IN_FLOAT32
    seen = [
        check.statistic or 0.0 for check in numerical if check.kind == "block" and check.subject.startswith("target")
    ]
    return max(parity.REAL_IN_FLOAT32, 2 * max(seen, default=0.0) * numerics.LOGIT_SCALE)
