"""cascli verify: the statistical and numerical audit of a pair on this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from cascli.cli import common
from cascli.cli.options import Flags, with_shared
from cascli.errors import CheckFailed
from cascli.render import formats

NAME = "verify"
EXAMPLE = (
    "Example: cascli verify --quick[bold] · [/]cascli verify -c my-pair.yaml -s speculative-cascade:rule=opt --json"
)


@with_shared(
    *("config", "device", "dtype", "cuda_graphs", "compile", "offline", "strategy", "num_speculative_tokens"),
    *("json", "output", "format", "quiet", "color"),
    output=formats.help_of(formats.AUDIT),
)
def command(
    *,
    quick: Annotated[bool, typer.Option("--quick", help="A smaller sample of everything.")] = False,
    flags: Flags,
) -> None:
    """Check that this pair on this machine follows the output distributions it claims; exit 1 if it does not."""
    from cascli.cli.progress import Progress
    from cascli.render import export
    from cascli.render.audit import audit_table, verdict

    plan = common.plan(flags)
    chosen = common.chosen(flags.given.strategy or [], plan.settings.num_speculative_tokens)
    outputs = export.outputs(plan.settings, formats.AUDIT)
    pair = plan.load()
    with Progress(plan.screen, "verifying", counted=True) as progress:
        from cascli.audit import audit

        result = audit(pair, chosen or None, quick=quick, on_progress=progress.say, config=plan.config)
    result = common.with_command(result)
    if outputs.printed is None and not plan.screen.quiet:
        plan.screen.out.print(audit_table(result.checks, plan.screen.out))
    outputs.deliver(export.of_audit(result), plan.screen)
    if not result.passed:
        raise CheckFailed(verdict(result))
    plan.screen.note(verdict(result))
