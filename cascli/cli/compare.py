"""cascli compare: the same prompts under several strategies, as a table and side-by-side traces."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cascli.cli import common, complete
from cascli.cli.options import Flags, batch_size_option, require_option, with_shared
from cascli.errors import CascliError, CheckFailed, UsageError, located
from cascli.render import formats

if TYPE_CHECKING:
    from cascli.analysis.comparison import Comparison
    from cascli.analysis.requirements import Requirement
    from cascli.jobs.compare import Repeats
    from cascli.render.comparison import Trace
    from cascli.render.console import Screen
    from cascli.strategies import Strategy


class Schedule(StrEnum):
    """When strategies run."""

    AUTO = "auto"
    FAIR = "fair"
    SEQUENTIAL = "sequential"


class By(StrEnum):
    """How results are broken down in addition."""

    CATEGORY = "category"


class TraceKind(StrEnum):
    """How answers are shown."""

    TEXT = "text"
    TOKENS = "tokens"
    NONE = "none"


NAME = "compare"
EXAMPLE = """\
cascli compare "Who is Buzz Aldrin?"
cascli compare "Why is the sky blue?" -s target -s speculative:k=2
cascli compare hi -s target -s speculative-cascade:rule=opt,alpha=0.1
cascli compare --prompts questions.jsonl --limit 5 --runs 3 -o table.md
cascli compare hi -s target -s speculative --min-speedup 1.2
cascli compare --prompts builtin --match target_calls_per_token=0.28
"""
CHECKS = "Checks"


@with_shared(
    written=formats.COMPARISON,
    max_new_tokens="Longest answer. (default the pair's, else 64; for several prompts at least 256)",
)
def command(
    prompt: Annotated[
        str | None, typer.Argument(help="The prompt; if - or omitted, stdin is read.", show_default=False)
    ] = None,
    *,
    runs: Annotated[int, typer.Option("--runs", min=1, metavar="N", help="Repeats; medians are shown.")] = 1,
    schedule: Annotated[
        Schedule,
        typer.Option("--schedule", help="fair: interleave all strategies in slices of equal time."),
    ] = Schedule.AUTO,
    batch_size: Annotated[int, batch_size_option("per strategy")] = 1,
    trace: Annotated[
        TraceKind,
        typer.Option("--trace", help="Show answers as text, token by token side by side, or not at all."),
    ] = TraceKind.TEXT,
    by: Annotated[By | None, typer.Option("--by", help="Also show a table for each prompt category.")] = None,
    rules: Annotated[
        str | None,
        typer.Option(
            "--rules",
            metavar="NAMES",
            help="Deferral rules, separated by commas, or all: adds a speculative cascade for each.",
            autocompletion=complete.rules,
            show_default=False,
        ),
    ] = None,
    match: Annotated[
        list[str] | None,
        typer.Option(
            "--match",
            metavar="NAME=X",
            help="Compare rules at the same number of target calls, as in target_calls_per_token=0.28.",
            show_default=False,
        ),
    ] = None,
    measure: Annotated[
        bool,
        typer.Option("--measure/--no-measure", help="Do not time the pair's steps, which explain the speed."),
    ] = True,
    require_lossless: Annotated[
        bool, typer.Option("--require-lossless", help="Exit 1 if a strategy was not lossless.", rich_help_panel=CHECKS)
    ] = False,
    min_speedup: Annotated[
        float | None,
        typer.Option(
            "--min-speedup",
            metavar="X",
            help="Exit 1 if no strategy but target is X times as fast as target.",
            rich_help_panel=CHECKS,
        ),
    ] = None,
    require: Annotated[
        list[str] | None,
        require_option("lossless, same-answer, no-loops, length<=1.05 or speedup>=1.2", CHECKS),
    ] = None,
    flags: Flags,
) -> None:
    """Race strategies on the same prompts: a verdict, a table, and side-by-side answers with each token's origin."""
    from cascli.analysis.comparison import DEFAULT_BASELINES, check_columns, default_strategies
    from cascli.analysis.requirements import Requirement
    from cascli.analysis.speculation_profile import NOTHING_DRAFTS
    from cascli.cli import matching
    from cascli.render import export
    from cascli.render.comparison import print_explanation
    from cascli.trace import block_length

    required = [Requirement.of(text, scored=False) for text in require or ()]
    plan = common.plan(flags)
    rule_request = matching.requested(match, rules, plan)
    defaults = default_strategies(plan.config) if rule_request is None else DEFAULT_BASELINES
    strategies = plan.strategies(defaults)
    with located(plan.elsewhere("strategy")):
        check_columns([each.spec for each in strategies])
    _check_speedup(strategies, min_speedup)
    if batch_size > 1 and schedule is Schedule.FAIR:
        raise UsageError("--schedule fair runs one answer per strategy at a time: leave out --batch-size.")
    outputs = export.outputs(plan.settings, formats.COMPARISON)
    if formats.PROFILE in outputs.formats and not any(block_length(each.params) for each in strategies):
        raise UsageError(NOTHING_DRAFTS)
    prompts, others = matching.prompts(prompt, plan, NAME, rule_request)
    if by is not None and len({prompt.category for prompt in prompts}) < 2:
        raise UsageError("--by category: needs prompts of two or more categories (key 'category' in their file).")
    if len(prompts) > 1:
        plan = common.for_several(plan, flags)
    pair = plan.load()
    from cascli.jobs.compare import Repeats  # imports torch: only now, since loading shows that it takes seconds

    matched = matching.find_settings(rule_request, pair, others, plan)
    strategies += matching.columns(rule_request, matched, plan.settings, strategies)
    common.note_cautions(plan, strategies)
    how: dict[str, Any] = {"runs": runs, "schedule": schedule.value, "batch_size": batch_size}
    repeats = Repeats(pair, prompts, strategies, plan.settings, matching=matched, **how)
    how = {"trace": trace.value, "by_category": by is not None, "measure": measure}
    saved = outputs.written in formats.ALL_ANSWERS
    comparison, ended_by = run_and_show(plan.screen, repeats, **how, as_json=outputs.printed is not None, saved=saved)
    comparison = common.with_command(comparison)
    if outputs.printed is None:
        try:
            print_explanation(comparison, plan.screen)
        except OSError as error:
            ended_by = ended_by or error
    _note_cuts(comparison, plan.screen)
    outputs.deliver(export.of_comparison(comparison), plan.screen)
    plan.note_captures(pair)
    if comparison.profile is not None and comparison.profile.batch_size == 1:
        plan.keep_steps(comparison.profile)
    if ended_by is not None:
        raise ended_by
    _check(comparison, require_lossless, min_speedup, required)


def run_and_show(
    screen: Screen,
    repeats: Repeats,
    *,
    trace: Trace = "text",
    by_category: bool = False,
    measure: bool = True,
    as_json: bool = False,
    saved: bool = False,
) -> tuple[Comparison, BaseException | None]:
    """Make all runs and show the results, then time steps, which can be interrupted. Return what ended it early."""
    from cascli.cli.progress import Progress
    from cascli.render.comparison import print_results

    if measure:
        with Progress(screen, "measuring steps", counted=True) as progress:
            repeats.time_steps(progress.step)
    ended_by = _run(screen, repeats, watched=screen.live and not screen.quiet and not as_json)
    if not as_json:
        try:
            print_results(repeats.comparison(), screen, trace, by_category=by_category, saved=saved)
        except OSError as error:  # stdout may be on a full disk, and a file on another
            return repeats.comparison(), ended_by or error
    if not measure or ended_by is not None:
        return repeats.comparison(), ended_by
    try:
        with Progress(screen, "measuring steps", counted=True) as progress:
            return repeats.comparison(repeats.steps(progress.step)), None
    except KeyboardInterrupt as error:
        screen.note("interrupted while timing steps: the results are complete, but the speed is not explained")
        return repeats.comparison(), error


def _run(screen: Screen, repeats: Repeats, *, watched: bool) -> BaseException | None:
    """Make all runs, shown live if `watched`. Return what ended them early, if anything.

    Raises:
        KeyboardInterrupt: the user interrupted before any strategy had written anything.
        CascliError: a model or a plug-in failed before any strategy had written anything.
    """
    from cascli.cli.progress import Progress
    from cascli.render.race import RaceView

    try:
        with Progress(screen, "warming up"):
            repeats.warm_up()
        if watched and repeats.batch_size == 1:  # batches have no live view
            with RaceView(screen, repeats.specs) as view:
                repeats.run(view.event)
        else:
            with Progress(screen, "running", counted=True) as progress:
                repeats.run(progress.counting("answers", repeats.answers))
    except (KeyboardInterrupt, CascliError) as error:
        if not repeats.cut_short():
            raise
        from cascli.render.marks import short_name

        written = {run.spec for run in repeats.all_runs}
        left = ", ".join(short_name(spec, fancy=False) for spec in repeats.specs if spec not in written)
        why = "failed" if isinstance(error, CascliError) else "interrupted"
        screen.note(f"{why}: these are the answers so far" + (f"; none from {left}" if left else ""))
        return error
    return None


def _note_cuts(comparison: Comparison, screen: Screen) -> None:
    """Report the first answer that the context cut short, and the number of others."""
    from cascli.render.summary import cut_by_context

    cuts = [cut for cut in map(cut_by_context, comparison.runs) if cut is not None]
    if cuts:
        screen.note(cuts[0] + (f"; {len(cuts) - 1} more were cut too" if len(cuts) > 1 else ""))


def _check_speedup(strategies: list[Strategy], min_speedup: float | None) -> None:
    """Reject a speed-up that could not be checked, before anything is loaded."""
    from cascli.settings import TARGET

    specs = [strategy.spec for strategy in strategies]
    if min_speedup is not None and not (min_speedup > 0 and TARGET in specs and len(specs) > 1):
        raise UsageError("--min-speedup needs a positive number, the strategy target and at least one other.")


def _check(
    comparison: Comparison, require_lossless: bool, min_speedup: float | None, required: Sequence[Requirement]
) -> None:
    """Raise if a requested check failed."""
    from cascli.analysis.requirements import first_violation
    from cascli.settings import TARGET

    lossy = [row.strategy for row in comparison.summary if not row.lossless]
    if require_lossless and lossy:
        raise CheckFailed(f"not lossless (--require-lossless): {', '.join(lossy)}")
    if min_speedup is not None:
        speeds = [row.speed_vs_target or 0.0 for row in comparison.summary if row.strategy != TARGET]
        if max(speeds, default=0.0) < min_speedup:
            raise CheckFailed(f"no strategy reached {min_speedup}x the target's speed (--min-speedup).")
    violation = first_violation(required, comparison.summary)
    if violation is not None:
        raise CheckFailed(f"{violation} (--require).")
