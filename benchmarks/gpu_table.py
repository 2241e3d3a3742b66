"""The table of `benchmarks.gpu`: one line per row, and below it what is missing from the table and why."""

from __future__ import annotations

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

HEADINGS = (
    "pair",
    "target ms",
    "bandwidth",
    "c",
    "c / bytes",
    "v(5)",
    "gain at 0.8",
    "/ predicted",
    "outside",
    "x generate",
    "x assisted",
    "recording",
)


def show(document: dict[str, Any]) -> None:
    """Print the table and the results of the tests."""
    table = Table(title=document["device"], title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for name in HEADINGS:
        table.add_column(name, justify="left" if name == "pair" else "right", no_wrap=True)
    for pair in document["pairs"]:
        table.add_row(*line_of(pair))
    console = Console(width=160)
    console.print(table)
    console.print(*notes(document), sep="\n", markup=False, highlight=False)
    if "tests" in document:
        console.print(*tests_lines(document["tests"]), sep="\n", markup=False, highlight=False)


GENERATE = "x generate: target beside transformers' generate; of compiled rows with a static cache, which it compiles."


def notes(document: dict[str, Any]) -> list[str]:
    """Return the lines below the table."""
    return [GENERATE, *(line for pair in document["pairs"] for line in notes_of(pair))]


def notes_of(pair: dict[str, Any]) -> list[str]:
    """Return which parts of a row were not measured, and why."""
    name = name_of(pair)
    lines = [f"{name}: no time was left for {', '.join(pair['left_out'])}"] if pair.get("left_out") else []
    lines += [f"{name}: {part} failed: {why.splitlines()[0]}" for part, why in pair.get("failed", {}).items()]
    for field, what in (("why_eager", "is not captured"), ("why_unfused", "uses its own layers")):
        lines += [f"{name}: the {role} {what}: {why}" for role, why in pair.get(field, {}).items() if why]
    if "skipped" in pair and "error" not in pair:
        lines.append(f"{name}: no time was left")
    if "error" in pair:
        said = pair["error"].splitlines()
        lines.append(f"{name}: {'; '.join(dict.fromkeys([said[0], said[-1]]))}")
    return lines


def name_of(pair: dict[str, Any]) -> str:
    """Return the name of a row."""
    return pair["name"] + (" (compiled)" if pair["compiled"] else "")


def tests_lines(tests: dict[str, Any]) -> list[str]:
    """Return the counts, and the names of tests that did not pass."""
    counts = ", ".join(f"{tests[name]} {name}" for name in ("passed", "failed", "skipped"))
    names = [f"failed: {name}" for name in tests["failures"]]
    return [f"tests: {counts}", *names, *(f"out of time: {name}" for name in tests["out_of_time"])]


def line_of(pair: dict[str, Any]) -> list[str]:
    """Return the cells of a row, or why it was not measured."""
    name = name_of(pair)
    if "profiles" not in pair:
        return [name, pair.get("skipped") or "failed", *[""] * (len(HEADINGS) - 2)]
    recording = [each["capture_seconds"] for each in pair["graphs"].values() if each]
    return [name, *_steps(pair["profiles"][0]), *_gains(pair), _seconds(recording)]


def _steps(at: dict[str, Any]) -> list[str]:
    return [
        f"{at['target_ms']['1']:.2f}",
        _percent(at["bandwidth_share"]["target"]),
        f"{at['c']:.2f}",
        "" if at["c_over_ratio_of_bytes"] is None else f"{at['c_over_ratio_of_bytes']:.2f}",
        f"{at['v'].get('5', float('nan')):.2f}",
    ]


def _gains(pair: dict[str, Any]) -> list[str]:
    """Return the cells at the middle acceptance rate; empty if there was no time for it."""
    mid = next((each for each in pair["speculation"] if each["chosen_acceptance"] == 0.8), None)
    if mid is None:
        return [""] * 5
    peer = pair["transformers"] or {}
    generate = peer.get("static_tokens_per_second", peer.get("generate_tokens_per_second"))
    return [
        f"{mid['measured_speed_up']:.2f}x",
        f"{mid['measured_speed_up'] / mid['predicted_speed_up']:.2f}",
        _percent(mid["outside_the_models"]),
        _times(mid["target_tokens_per_second"] / generate if generate else None),
        _times(mid.get("ratio_to_assisted_at_this_acceptance")),
    ]


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.1f}x"


def _seconds(several: list[float]) -> str:
    return f"{sum(several):.0f} s" if several else ""


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.0f}%"
