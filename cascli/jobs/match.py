"""Find the setting with which each rule meets a budget, on calibration prompts, before other prompts are measured."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from cascli import rules
from cascli.analysis.matching import Matched, Matching, strategies_of
from cascli.chat import Conversation, encode
from cascli.errors import UsageError, unknown
from cascli.jobs.generate import first_ids
from cascli.jobs.recording import record
from cascli.jobs.rule_curves import lossless_calls, match, with_dial
from cascli.jobs.usable import usable_rules
from cascli.models.pair import Pair
from cascli.notebook import OnProgress
from cascli.prompts import Prompt
from cascli.settings import Resolved
from cascli.strategies import Strategy, parse

CALL_BUDGET = "target_calls_per_token"
TOKENS = 64
"""Most tokens of a calibration answer."""


class RuleRequest(NamedTuple):
    """Rules to compare, and the budgets of target calls per token; without budgets, rules use their defaults."""

    rules: tuple[str, ...]
    budgets: tuple[float, ...] = ()
    without_dial: tuple[str, ...] = ()
    """Rules left out because they declare no `dial`, so cannot be matched; none of them was requested by name."""
    by_name: bool = True
    """Whether the rules were requested by name, and not as all there are."""


def parse_budget(text: str) -> tuple[str, float]:
    """Parse the name and value of `target_calls_per_token=0.35`.

    Raises:
        UsageError: the text has any other form.
    """
    name, equals, value = (part.strip() for part in text.partition("="))
    if not equals:
        raise UsageError(f"--match: '{text}' should read {CALL_BUDGET}=0.35")
    try:
        return name, float(value)
    except ValueError:
        raise UsageError(f"--match: {name}: expected a number (got '{value}')") from None


def parse_request(budgets: Iterable[tuple[str, float]], names: str | Sequence[str] | None) -> RuleRequest:
    """Check and collect what is to be compared, before anything is loaded.

    Args:
        budgets: pairs of name and value.
        names: names of rules, as a list or separated by commas, or `all`; None (with budgets) means all.

    Raises:
        UsageError: an unknown name, a budget outside (0, 1], or a rule that cannot be matched.
    """
    values = []
    for name, value in budgets:
        if name != CALL_BUDGET:
            raise UsageError(f"match: {unknown('budget', name, [CALL_BUDGET])}")
        if not 0 < value <= 1:
            raise UsageError(f"match: {CALL_BUDGET}: expected a number above 0 and at most 1 (got {value:g})")
        values.append(value)
    if isinstance(names, str):
        names = [part.strip() for part in names.split(",") if part.strip()]
    if names is not None and not names:
        raise UsageError("rules: expected names of rules, or all.")
    every = names is None or list(names) == ["all"]
    chosen = [(name, rules.load(name)) for name in dict.fromkeys(usable_rules() if every else names or ())]
    if values and not every:
        list(with_dial([name for name, _ in chosen]))  # raises an error for one that has none
    undialled = [name for name, kind in chosen if values and kind.dial is None]
    return RuleRequest(
        tuple(name for name, _ in chosen if name not in undialled), tuple(values), tuple(undialled), not every
    )


def rule_request(budgets: Mapping[str, float] | None, names: str | Sequence[str] | None) -> RuleRequest | None:
    """Like `parse_request`, but None if neither rules nor budgets are given."""
    return None if budgets is None and names is None else parse_request((budgets or {}).items(), names)


def calibrate(
    pair: Pair,
    prompts: Sequence[Prompt],
    settings: Resolved,
    request: RuleRequest,
    on_progress: OnProgress | None = None,
) -> Matching:
    """Find each rule's setting for each budget along one speculative answer per prompt.

    Args:
        pair: the pair that answers.
        prompts: calibration prompts, not the ones that are measured.
        settings: settings of the answers, which are cut at 64 tokens.
        request: rules and budgets.
        on_progress: called with the prompt being answered, then with the rule being matched.

    Raises:
        UsageError: the pair has no draft model; rules are judged by its distributions.
    """
    check_pair(draft=pair.draft is not None)
    k = settings.num_speculative_tokens
    settings = replace(settings, max_new_tokens=min(settings.max_new_tokens, TOKENS))
    prompts = fitting(pair, prompts, settings)
    seen = record(pair, prompts, settings, k, on_progress=on_progress)
    matches: list[Matched] = []
    for number, name in enumerate(request.rules):
        if on_progress is not None:
            on_progress(f"matching {name}", number, len(request.rules))
        matches += match(seen, request.budgets, k, settings.temperature, [name], requested=request.by_name)
    return Matching(
        matched=matches,
        lossless=lossless_calls(seen, k),
        prompts=[prompt.id for prompt in prompts],
        tokens=sum(seen.lengths),
        mean_tail=float(seen.tail.mean()),
        without_dial=list(request.without_dial),
    )


def check_pair(*, draft: bool) -> None:
    """Reject a pair without a draft model, since rules are judged by its distributions.

    Raises:
        UsageError: the pair has no draft model.
    """
    if not draft:
        raise UsageError("match: rules are judged by the draft model's distributions, but this pair has none.")


def fitting(pair: Pair, prompts: Sequence[Prompt], settings: Resolved) -> list[Prompt]:
    """Return the prompts that fit the pair's context, with answers of full length to all turns.

    Raises:
        UsageError: no prompt fits.
    """
    fits = []
    for prompt in prompts:
        ids = [first_ids(pair, prompt, settings)]
        ids += [encode(pair, turn, Conversation(settings.system), raw=settings.raw) for turn in prompt.turns[1:]]
        if sum(len(each) + settings.max_new_tokens for each in ids) <= (pair.context or math.inf):
            fits.append(prompt)
    if not fits:
        raise UsageError("match: no calibration prompt fits the pair's context; use shorter answers.")
    return fits


def columns(
    request: RuleRequest, matching: Matching | None, settings: Resolved, existing: Sequence[Strategy] = ()
) -> list[Strategy]:
    """Return a strategy per rule and budget it meets, or with default parameters, unless `existing` has it."""
    k = settings.num_speculative_tokens
    specs = [f"speculative-cascade:rule={name}" for name in request.rules]
    strategies = [parse(spec, k) for spec in (specs if matching is None else strategies_of(matching.matched))]
    return [strategy for strategy in strategies if strategy not in existing]
