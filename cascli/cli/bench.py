"""cascli bench: the speed profile of a pair on this machine, without any text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cascli.cli import common
from cascli.cli.options import Flags, with_shared
from cascli.errors import UsageError
from cascli.render import formats

NAME = "bench"
EXAMPLE = (
    "Example: cascli bench --plot speed.png -o speed.json[bold] · [/]"
    "cascli bench -c my-random-pair.yaml --synthetic-acceptance 0.8"
)


@with_shared(
    "config",
    "device",
    "dtype",
    "cuda_graphs",
    "compile",
    "offline",
    "num_speculative_tokens",
    "max_new_tokens",
    "json",
    "output",
    "format",
    "quiet",
    "color",
    output=formats.help_of(formats.BENCH),
)
def command(
    *,
    context: Annotated[
        str | None,
        typer.Option("--context", help="Text lengths before a step, e.g. 128,2048. (default 128 to 8192)"),
    ] = None,
    longest_block: Annotated[
        int | None,
        typer.Option(
            "--longest-block", min=2, max=65, help="Time target calls over 1 to this many. (default 1-9, 12, 17, 33)"
        ),
    ] = None,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Timed calls of each kind, interleaved.")] = 5,
    synthetic_acceptance: Annotated[
        float | None,
        typer.Option(
            "--synthetic-acceptance", min=0, max=1, help="Also decode with drafts accepted at this rate: speed only."
        ),
    ] = None,
    plot: Annotated[Path | None, typer.Option("--plot", help="Draw the profile into this .png or .svg file.")] = None,
    flags: Flags,
) -> None:
    """Measure a pair's speed: steps by block and context, c, v(k), bandwidth, and what speculation can gain."""
    from cascli.render import export
    from cascli.render.bench import print_bench

    plan = common.plan(flags)
    contexts = None if context is None else lengths(context)
    outputs = export.outputs(plan.settings, formats.BENCH)
    if plot is not None:
        check_plot(plot)
    k = flags.given.num_speculative_tokens
    pair = plan.load()
    from cascli.cli.progress import Progress
    from cascli.jobs.bench import bench
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
            on_progress=progress.step,
        )
    result = common.with_command(result)
    if outputs.printed is None:
        print_bench(result, plan.screen)
    plan.note_captures(pair)
    outputs.deliver(export.of_bench(result), plan.screen)
    if plot is not None:
        from cascli.render.plots import plot_bench

        plot_bench(result, plot)
        plan.screen.note(f"wrote {plot}")


def lengths(text: str) -> list[int]:
    """The numbers of a list such as `128,2048`.

    Raises:
        UsageError: something in it is not a positive number.
    """
    try:
        contexts = [int(part) for part in text.split(",")]
    except ValueError:
        contexts = [0]
    if min(contexts) < 1:
        raise UsageError(f"--context: expected positive numbers with commas between, such as 128,2048 (got '{text}')")
    return contexts


def check_plot(plot: Path) -> None:
    """Refuse before anything is measured a picture that could not be drawn afterwards."""
    from cascli.render import export, plots

    export.check_suffix(plot, plots.SUFFIXES, flag="--plot")
    plots.pyplot()
