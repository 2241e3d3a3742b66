"""cascli verify: the statistical and numerical audit of a pair on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cascli.cli import common
from cascli.cli.options import LOADING, Flags, with_shared
from cascli.errors import CheckFailed
from cascli.render import formats

if TYPE_CHECKING:
    from cascli.audit.report import Check

NAME = "verify"
EXAMPLE = """\
cascli verify --quick
cascli verify -c tiny-random --quick
cascli verify -c my-pair.yaml -s speculative-cascade:rule=opt -o audit.json
"""


@with_shared(
    *LOADING,
    *("strategy", "num_speculative_tokens", "json", "output", "format", "quiet", "color"),
    written=formats.AUDIT,
    quiet="Print only the verdict.",
)
def command(
    *,
    quick: Annotated[bool, typer.Option("--quick", help="Use smaller samples throughout.")] = False,
    flags: Flags,
) -> None:
    """Check that this pair on this machine follows the output distributions it claims; exit 1 if it does not."""
    from cascli.cli.progress import Progress
    from cascli.render import export

    plan = common.plan(flags)
    chosen = common.parse_strategies(flags.given.strategy or [], plan.settings.num_speculative_tokens)
    outputs = export.outputs(plan.settings, formats.AUDIT)
    pair = plan.load()
    from cascli.render.audit import heading, row, verdict  # imports torch: only now, since loading shows that

    shown = outputs.printed is None
    out, rows, quiet = plan.screen.out, shown and not plan.screen.quiet, shown and plan.screen.quiet
    with Progress(plan.screen, "verifying", counted=True) as progress:
        from cascli.audit import audit

        def show(check: Check) -> None:
            if rows:
                progress.above(lambda: out.print(row(check, out)))

        if rows:
            progress.above(lambda: out.print(heading(out)))
        result = audit(pair, chosen or None, quick=quick, on_progress=progress.step, on_check=show, config=plan.config)
    result = common.with_command(result)
    if quiet:
        print(verdict(result))
    outputs.deliver(export.of_audit(result), plan.screen)
    if not result.passed:
        if quiet:
            raise typer.Exit(CheckFailed.exit_code)  # the verdict has been printed
        raise CheckFailed(verdict(result))
    plan.screen.note(verdict(result))
