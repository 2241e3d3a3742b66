"""cascli verify: the statistical and numerical audit of a pair on this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from cascli.cli import common
from cascli.cli.options import Flags, with_shared
from cascli.errors import CheckFailed

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
    from cascli.render.audit import audit_table, verdict

    plan = common.plan(flags)
    chosen = common.chosen(flags.given.strategy or [], plan.settings.num_speculative_tokens)
    if plan.settings.output:
        export.check_suffix(Path(plan.settings.output), (".json",))
    pair = plan.load()
    with Progress(plan.screen, "verifying", counted=True) as progress:
        from cascli.audit import audit

        result = audit(pair, chosen or None, quick=quick, on_progress=progress.say, config=plan.config)
    if plan.settings.json_output:
        print(result.to_json())
    elif not plan.screen.quiet:
        plan.screen.out.print(audit_table(result.checks, plan.screen.out))
    if plan.settings.output:
        files.write(Path(plan.settings.output), result.to_json() + "\n")
    if not result.passed:
        raise CheckFailed(verdict(result))
    plan.screen.note(verdict(result))
