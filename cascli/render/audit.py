"""An audit as a table."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cascli.audit.report import Audit, Check
from cascli.render.console import plain_table
from cascli.render.numbers import DASH

STYLES = {"pass": "green", "fail": "bold red", "skipped": "yellow"}


def audit_table(checks: Sequence[Check], console: Console) -> Table:
    """One line a check; details of what failed or was skipped stand below it."""
    table = plain_table(console)
    table.add_column("check", no_wrap=True)
    table.add_column("of", overflow="fold")
    for heading in ("result", "statistic", "bound", "false\nalarm"):
        table.add_column(heading, no_wrap=True, justify="right" if heading != "result" else "left")
    table.add_column("what was done", overflow="fold", style="dim")
    for check in checks:
        table.add_row(
            check.kind,
            check.subject,
            Text(check.status, style=STYLES[check.status]),
            short(check.statistic),
            short(check.bound),
            short(check.false_alarm),
            check.detail,
        )
    return table


def short(value: float | None) -> str:
    """A number in at most eight characters."""
    if value is None:
        return DASH
    return "0" if value == 0 else f"{value:.2g}"


def verdict(audit: Audit) -> str:
    """The result in one sentence."""
    failed = [check for check in audit.checks if check.status == "fail"]
    count = f"{len(audit.checks)} checks in {audit.seconds:.0f} s"
    names = ", ".join(f"{check.kind} of {check.subject}" for check in failed)
    return f"{count}: failed: {names}" if failed else f"{count}: none failed"
