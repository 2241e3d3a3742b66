"""cascli advise: the fastest way to decode these prompts on this machine, within a stated tolerance."""

from __future__ import annotations

import shlex
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from cascli.cli import common, complete
from cascli.cli.options import LOADING, Flags, flag_name, with_shared
from cascli.errors import CheckFailed, UsageError
from cascli.render import formats

if TYPE_CHECKING:
    from cascli.analysis.advice import Advice
    from cascli.cli.common import Plan
    from cascli.cli.scoring import Models, Scored
    from cascli.prompts import Prompt

NAME = "advise"
EXAMPLE = """\
cascli advise --prompts builtin
cascli advise -c my-pair.yaml --prompts questions.jsonl --limit 24
cascli advise --prompts questions.jsonl --temperature 1 --max-tv 0.02
cascli advise --task word-problems --max-quality-loss 0.05 --limit 100
cascli advise --prompts builtin --min-speedup 1.2 -o advice.json
"""
TOLERANCE = "Tolerance"


@with_shared(
    *LOADING,
    *("max_new_tokens", "temperature", "top_k", "top_p", "seed", "stop", "system", "raw", "prompts", "limit"),
    *("json", "output", "format", "quiet", "verbose", "color"),
    written=formats.ADVICE,
    max_new_tokens="Longest answer. (default the pair's, else 64; for several prompts at least 256)",
    limit="Use only the first N prompts. (default 12, evenly spread)",
    quiet="Print only the advice.",
    verbose="Also list every predicted strategy.",
)
def command(
    prompt: Annotated[
        str | None, typer.Argument(help="One prompt; several (--prompts) are better.", show_default=False)
    ] = None,
    *,
    lossless: Annotated[
        bool,
        typer.Option("--lossless", help="Accept lossless strategies only (the default).", rich_help_panel=TOLERANCE),
    ] = False,
    max_tv: Annotated[
        float | None,
        typer.Option(
            "--max-tv",
            metavar="X",
            help="Largest acceptable mean total variation to the target, such as 0.02.",
            rich_help_panel=TOLERANCE,
        ),
    ] = None,
    max_quality_loss: Annotated[
        float | None,
        typer.Option(
            "--max-quality-loss",
            metavar="X",
            help="Largest drop of the mean score below the target's; must be shown (--task, --metric).",
            rich_help_panel=TOLERANCE,
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            "--task",
            metavar="SWEEP",
            help="Run and score the task of a sweep (file or name), with its pair unless -c names one.",
            rich_help_panel=TOLERANCE,
            autocompletion=complete.sweeps,
        ),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            "--metric",
            metavar="NAME",
            help="Score answers to --prompts by their 'reference': number, exact-match, f1, rouge ...",
            rich_help_panel=TOLERANCE,
        ),
    ] = None,
    allow_code_execution: Annotated[
        bool,
        typer.Option(
            "--allow-code-execution",
            help="Run model-written code (--task humaneval).",
            rich_help_panel=TOLERANCE,
        ),
    ] = False,
    unsafe_code_execution: Annotated[
        bool,
        typer.Option(
            "--unsafe-code-execution",
            help="Run it even if it cannot be sandboxed.",
            rich_help_panel=TOLERANCE,
        ),
    ] = False,
    min_speedup: Annotated[
        float | None,
        typer.Option(
            "--min-speedup",
            metavar="X",
            help="Exit 1 unless the advice was measured X times as fast as target.",
            rich_help_panel="Checks",
        ),
    ] = None,
    flags: Flags,
) -> None:
    """Find the fastest way to decode these prompts here within a tolerance: measured, with settings to copy."""
    from cascli.analysis.advice import Tolerance
    from cascli.cli.progress import Progress
    from cascli.cli.scoring import models_of, scored
    from cascli.render import export
    from cascli.render.advice import print_advice

    tolerance = Tolerance.of(
        lossless=lossless,
        max_tv=max_tv,
        max_quality_loss=max_quality_loss,
        scored=task is not None or metric is not None,
        spell=flag_name,
    )
    if min_speedup is not None and not min_speedup > 0:
        raise UsageError(f"--min-speedup: expected a positive number (got {min_speedup:g})")
    models = models_of(task, flags) if task is not None else None
    plan = common.plan(flags, models.pair if models is not None else None)
    if models is not None:
        plan = replace(plan, dtype=plan.dtype or models.dtype)
    outputs = export.outputs(plan.settings, formats.ADVICE)
    code = {"allow_code": allow_code_execution, "unsafe_code": unsafe_code_execution}
    inputs = scored(prompt, plan, flags, NAME, task, metric, **code)
    plan = replace(plan, settings=inputs.settings)
    if len(inputs.prompts) > 1 and task is None:
        plan = common.for_several(plan, flags)
    pair = plan.load()
    from cascli.jobs.advise import Advising

    prompts = _prompts(inputs, plan)
    _note_broken_plugins(plan)
    with Progress(plan.screen, "recording", counted=True) as progress:
        advising = Advising(
            pair,
            prompts,
            plan.settings,
            tolerance,
            inputs.score,
            progress.step,
            models=_model_flags(flags, plan, models),
        )
        advice = common.with_command(advising.advice())
    if outputs.printed is None:
        print_advice(advice, plan.screen)
    outputs.deliver(export.of_advice(advice), plan.screen)
    plan.note_captures(pair)
    plan.keep_steps(advice.profile)
    _check(advice, min_speedup)


def _prompts(inputs: Scored, plan: Plan) -> list[Prompt]:
    """The first prompts up to `--limit`; without one, a spread of them, which is reported."""
    from cascli.jobs.advise import spread

    limit = plan.settings.limit
    if limit is not None:
        return inputs.prompts[:limit]
    prompts = spread(inputs.prompts)
    if len(prompts) < len(inputs.prompts):
        subset = f"{len(prompts)} of {len(inputs.prompts)} prompts"
        plan.screen.note(f"{subset}, evenly spread; --limit N uses the first N")
    return prompts


def _note_broken_plugins(plan: Plan) -> None:
    from cascli.cli.matching import note_left_out
    from cascli.jobs.usable import broken_rules, broken_stops

    note_left_out(plan.screen, *broken_rules().values(), *broken_stops().values())


def _model_flags(flags: Flags, plan: Plan, task: Models | None) -> str:
    """The flags that select the models, and their device and precision: as given, else as in the task's file."""
    given = {} if task is None else {"dtype": plan.dtype}
    given |= {key: value for key, value in flags.given.given().items() if key in ("device", "dtype")}
    loading = (f"{flag_name(key)} {shlex.quote(str(value))}" for key, value in given.items() if value is not None)
    return " ".join([plan.config.flags, *loading])


def _check(advice: Advice, min_speedup: float | None) -> None:
    """Raise if the advised strategy is not fast enough."""
    from cascli.analysis.digits import apart

    speed = advice.finding.speed
    if min_speedup is not None and (1.0 if speed is None else speed.of_means) < min_speedup:
        reached = (
            "is target itself" if speed is None else f"is {apart(speed.of_means, min_speedup, 2)}x as fast as target"
        )
        raise CheckFailed(f"{advice.finding.strategy} {reached}, less than {min_speedup:g}x (--min-speedup).")
