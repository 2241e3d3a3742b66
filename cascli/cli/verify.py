"""cascli verify: the statistical and numerical audit of a pair on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cascli.cli import common
from cascli.cli.options import Flags, with_shared
from cascli.errors import CheckFailed

if TYPE_CHECKING:
    from cascli.audit.report import Check

NAME = "verify"
EXAMPLE = """\
cascli verify --quick
cascli verify -c tiny-random --quick
cascli verify -c my-pair.yaml -s speculative-cascade:rule=opt -o audit.json
"""


@with_shared(
    *("config", "device", "dtype", "cuda_graphs", "compile", "offline", "strategy", "num_speculative_tokens"),
    *("json", "output", "quiet", "color"),
    output="Also write all checks to FILE (.json).",
    quiet="Print the verdict alone.",
)
def command(
    *,
    quick: Annotated[bool, typer.Option("--quick", help="A smaller sample of everything.")] = False,
    flags: Flags,
) -> None:
    """Check that this pair on this machine follows the output distributions it claims; exit 1 if it does not."""
    from pathlib import Path

    from cascli import files
    from cascli.cli.progress import Progress
    from cascli.render import export
    from cascli.render.audit import heading, row, verdict

    plan = common.plan(flags)
    chosen = common.chosen(flags.given.strategy or [], plan.settings.num_speculative_tokens)
    if plan.settings.output:
        export.check_suffix(Path(plan.settings.output), (".json",))
    pair = plan.load()
    out, rows = plan.screen.out, not (plan.settings.json_output or plan.screen.quiet)
    with Progress(plan.screen, "verifying", counted=True) as progress:
        from cascli.audit import audit

        def show(check: Check) -> None:
            if rows:
                progress.above(lambda: out.print(row(check, out)))

        if rows:
            progress.above(lambda: out.print(heading(out)))
        result = audit(pair, chosen or None, quick=quick, on_progress=progress.step, on_check=show, config=plan.config)
    if plan.settings.json_output:
        print(result.to_json())
    elif plan.screen.quiet:
        print(verdict(result))
    if plan.settings.output:
        files.write(Path(plan.settings.output), result.to_json() + "\n")
    if not result.passed:
        if plan.screen.quiet and not plan.settings.json_output:
            raise typer.Exit(CheckFailed.exit_code)  # the verdict has been printed
        raise CheckFailed(verdict(result))
    plan.screen.note(verdict(result))
