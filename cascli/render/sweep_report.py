"""One self-contained HTML page: the picture, the table, the environment and the exact command."""

from __future__ import annotations

import html
from collections.abc import Sequence

from cascli.render.numbers import number, tv
from cascli.sweep.records import Header
from cascli.sweep.table import SweepRow

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #1c1917; }
table { border-collapse: collapse; font-size: 13px; } th, td { padding: .25rem .6rem; text-align: right; }
th:first-child, td:first-child { text-align: left; font-family: ui-monospace, monospace; }
thead { border-bottom: 2px solid #a8a29e; } tbody tr:nth-child(even) { background: #f5f5f4; }
pre { background: #f5f5f4; padding: .8rem; overflow-x: auto; } svg { max-width: 100%; height: auto; }
@media (prefers-color-scheme: dark) { body { background: #1c1917; color: #e7e5e4; } pre { background: #292524; }
tbody tr:nth-child(even) { background: #292524; } svg { background: white; } }
"""
_HEADINGS = (
    "strategy", "T", "quality", "95%", "against target", "95%", "tokens/s", "speed", "target calls / token",
    "GFLOP / token", "rejected", "deferred", "mean TV", "log p", "answers", "failed",
)  # fmt: skip


def report(header: Header, rows: Sequence[SweepRow], svg: str | None) -> str:
    """The page as text; `svg` is the picture, if one could be drawn."""
    plan = header.plan
    title = html.escape(f"cascli sweep: {plan.pair}, {plan.task.kind}, {header.metric}")
    picture = svg[svg.index("<svg") :] if svg else "<p>No picture: matplotlib was not installed.</p>"
    facts = {"command": header.command, "cascli": header.version, **header.environment}
    about = "\n".join(f"{key}: {value}" for key, value in facts.items() if value)
    head = "".join(f"<th>{name}</th>" for name in _HEADINGS)
    body = "\n".join(_line(row) for row in rows)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style></head><body>
<h1>{title}</h1>
{picture}
<table><thead><tr>{head}</tr></thead><tbody>
{body}
</tbody></table>
<h2>How it was made</h2>
<pre>{html.escape(about)}</pre>
<pre>{html.escape(plan.model_dump_json(indent=2))}</pre>
</body></html>
"""


def _line(row: SweepRow) -> str:
    gigaflops = None if row.flops_per_token is None else row.flops_per_token / 1e9
    cells = (
        row.strategy,
        f"{row.temperature:g}",
        number(row.quality, 3),
        _range(row.quality_interval),
        number(row.quality_vs_target, 3),
        _range(row.quality_vs_target_interval),
        number(row.tokens_per_second),
        number(row.speed_vs_target, 2, "x"),
        number(row.target_calls_per_token),
        number(gigaflops),
        number(row.rejection_rate),
        number(row.deferral_rate),
        tv(row.mean_tv),
        number(row.log_likelihood, 3),
        str(row.answers),
        str(row.errors),
    )
    return "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>"


def _range(bounds: tuple[float, float] | None) -> str:
    return "" if bounds is None else f"{bounds[0]:.2f} to {bounds[1]:.2f}"
