"""cascli bench: the speed profile of a pair on this machine, without any text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cascli.cli import common
from cascli.cli.options import LOADING, Flags, with_shared
from cascli.errors import UsageError
from cascli.render import formats
from cascli.sampling.parameters import MOST_DRAFTED

if TYPE_CHECKING:
    from cascli.prompts import Prompt

NAME = "bench"
EXAMPLE = """\
cascli bench --plot speed.png -o speed.json
cascli bench -c my-pair.yaml --context 128,2048 --longest-block 9
cascli bench -c tiny-random --synthetic-acceptance 0.8
cascli bench --batch 1,4,16 --synthetic-acceptance 0.8
cascli bench --early-exit --temperature 0 --context 128
"""


@with_shared(
    *LOADING,
    "num_speculative_tokens",
    "max_new_tokens",
    "temperature",
    "prompts",
    "limit",
    "json",
    "output",
    "format",
    "quiet",
    "color",
    written=formats.BENCH,
    prompts="Prompts for --early-exit, one JSON object per line. (default six built-in prompts)",
)
def command(
    *,
    context: Annotated[
        str | None,
        typer.Option("--context", metavar="N,N", help="Context lengths to time, e.g. 128,2048. (default 128 to 8192)"),
    ] = None,
    longest_block: Annotated[
        int | None,
        typer.Option(
            "--longest-block",
            min=2,
            max=MOST_DRAFTED + 1,
            metavar="N",
            help="Time target calls over 1 to N tokens. (default 1-9, 12, 17, 33)",
        ),
    ] = None,
    repeats: Annotated[
        int, typer.Option("--repeats", min=1, metavar="N", help="Timed calls of each kind, interleaved.")
    ] = 5,
    synthetic_acceptance: Annotated[
        float | None,
        typer.Option(
            "--synthetic-acceptance",
            min=0,
            max=1,
            metavar="RATE",
            help="Also decode with drafts accepted at this rate: speed only.",
        ),
    ] = None,
    batch: Annotated[
        str | None,
        typer.Option(
            "--batch",
            metavar="N,N",
            help="Also time batches of these sizes, e.g. 1,2,4,8,16: what speculation gains there.",
        ),
    ] = None,
    early_exit: Annotated[
        bool,
        typer.Option(
            "--early-exit",
            help="Also evaluate the target's first n layers as drafter: acceptance and speed-up, for every n.",
        ),
    ] = False,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Plot the profile to FILE (.png or .svg).")
    ] = None,
    flags: Flags,
) -> None:
    """Measure a pair's speed: step times by block and context, c, v(k), bandwidth, and what speculation can gain."""
    from cascli.render import export
    from cascli.render.bench import print_bench

    plan = common.plan(flags, writes=plot is not None)
    contexts = None if context is None else lengths(context, "--context", "128,2048")
    batches = [] if batch is None else sorted({*lengths(batch, "--batch", "1,4,16")})
    outputs = export.outputs(plan.settings, formats.BENCH)
    if plot is not None:
        check_plot(plot)
    prompts = _early_exit_prompts(plan, flags, early_exit=early_exit)
    k = flags.given.num_speculative_tokens
    pair = plan.load()
    from cascli.cli.progress import Progress
    from cascli.jobs.bench import bench
    from cascli.jobs.early_exit import requests_of
    from cascli.jobs.profile import BLOCKS

    with Progress(plan.screen, "warming up", counted=True) as progress:
        result = bench(
            pair,
            contexts=contexts,
            blocks=BLOCKS if longest_block is None else range(1, longest_block + 1),
            repeats=repeats,
            synthetic_acceptance=synthetic_acceptance,
            ks=(2, 4, 6) if k is None else (k,),
            tokens=plan.settings.max_new_tokens,
            batch_sizes=batches,
            early_exit=requests_of(pair, prompts, plan.settings) if early_exit else (),
            on_progress=progress.step,
        )
    result = common.with_command(result)
    if outputs.printed is None:
        print_bench(result, plan.screen)
    plan.note_captures(pair)
    plan.keep_steps(result.profiles[0])
    outputs.deliver(export.of_bench(result), plan.screen)
    if plot is not None:
        from cascli.render.plots import plot_bench

        plot_bench(result, plot)
        plan.screen.note(f"wrote {plot}")


def _early_exit_prompts(plan: common.Plan, flags: Flags, *, early_exit: bool) -> list[Prompt]:
    """The prompts that the target answers: those of a file, else one of each built-in category; none without exits.

    Raises:
        UsageError: a file or a number of prompts that is not used here, or a file that cannot be read.
    """
    from cascli.prompts import builtin

    for key in ("prompts", "limit"):
        if getattr(flags.given, key) is not None and not early_exit:
            raise UsageError(f"--{key}: bench takes prompts only with --early-exit.")
    if not early_exit:
        return []
    if plan.settings.prompts is not None:
        return common.prompts(None, plan, NAME)
    first = {prompt.category: prompt for prompt in reversed(builtin())}
    return [*first.values()][: plan.settings.limit]


def lengths(text: str, flag: str, example: str) -> list[int]:
    """Parse a comma-separated list such as `128,2048`.

    Raises:
        UsageError: an item is not a positive number.
    """
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = [0]
    if min(numbers) < 1:
        raise UsageError(f"{flag}: expected positive numbers separated by commas, such as {example} (got '{text}')")
    return numbers


def check_plot(plot: Path) -> None:
    """Reject a plot that could not be drawn later, before anything is measured."""
    from cascli.render import export, plots

    export.check_suffix(plot, plots.SUFFIXES, named=f"--plot {plot}")
    plots.pyplot()
