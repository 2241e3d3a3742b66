"""`--rules` and `--match` of `cascli compare`: rules in addition to the strategies, at equal numbers of calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cascli.cli import common

if TYPE_CHECKING:
    from cascli.analysis.matching import Matching
    from cascli.cli.common import Plan
    from cascli.jobs.match import RuleRequest
    from cascli.models.pair import Pair
    from cascli.prompts import Prompt
    from cascli.render.console import Screen
    from cascli.settings import Resolved
    from cascli.strategies import Strategy


def requested(match: Sequence[str] | None, rules: str | None, plan: Plan) -> RuleRequest | None:
    """The requested rules and their budgets; None if neither is requested.

    Raises:
        UsageError: an unknown name, a value out of range, or a pair without the draft model that matching needs.
    """
    if not match and rules is None:
        return None
    common.import_torch(plan.screen)
    from cascli.jobs.match import check_pair, parse_budget, parse_request
    from cascli.jobs.usable import broken_rules

    request = parse_request([parse_budget(text) for text in match or []], rules)
    if rules is None or rules.strip() == "all":
        note_left_out(plan.screen, *broken_rules().values())
    if request.budgets:
        check_pair(draft=plan.config.draft is not None)
    return request


def note_left_out(screen: Screen, *broken: str) -> None:
    """Report why broken third-party plug-ins were left out."""
    for why in broken:
        screen.note(f"left out: {why}")


def prompts(
    argument: str | None, plan: Plan, command: str, request: RuleRequest | None
) -> tuple[list[Prompt], list[Prompt]]:
    """The prompts to measure, and others for calibration if there is a budget."""
    from cascli.prompts import split_for_calibration

    if request is None or not request.budgets:
        return common.prompts(argument, plan, command), []
    return split_for_calibration(common.prompts(argument, plan, command, whole=True), plan.settings.limit)


def find_settings(request: RuleRequest | None, pair: Pair, others: Sequence[Prompt], plan: Plan) -> Matching | None:
    """Find the settings that meet the budgets, and report the rules that meet none."""
    if request is None or not request.budgets:
        return None
    from cascli.cli.progress import Progress
    from cascli.jobs.match import calibrate

    with Progress(plan.screen, "calibrating", counted=True) as progress:
        matching = calibrate(pair, others, plan.settings, request, progress.step)
    for name in matching.without_dial:
        plan.screen.note(f"not matched: {name} declares no dial")
    for each in matching.matched:
        if not each.met:
            plan.screen.note(f"not matched: {each.rule}: {each.why}")
    return matching


def columns(
    request: RuleRequest | None, matching: Matching | None, settings: Resolved, given: Sequence[Strategy]
) -> list[Strategy]:
    """The strategies that rules add to the ones given."""
    from cascli.jobs import match

    return [] if request is None else match.columns(request, matching, settings, given)
