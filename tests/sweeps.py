"""A sweep that was never run: records with known differences, and a folder that contains them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cascli.sweeps.plan import SweepPlan
from cascli.sweeps.records import Header, Record, Records

HOSTILE = (
    "</pre></script><script>window.hacked = 1</script><img src=x onerror='window.hacked=2'>\x1b[31m\u202e\x00$\\frac$"
)
STRATEGIES = [
    "target",
    "draft",
    {"speculative": {"k": [2, 4]}},
    {"token-cascade": {"rule": "chow", "alpha": [0.1, 0.5]}},
    {"speculative-cascade": {"rule": ["opt", "token-v3"], "alpha": [0.5, 0.1, 0.3], "k": [2, 4]}},
]


def plan_of(**more: Any) -> SweepPlan:
    """A plan whose pair and task are files at some path."""
    values = {
        "pair": "/home/somebody/pairs/mine.yaml",
        "strategies": STRATEGIES,
        "temperatures": [0.0, 1.0],
        "task": {"kind": "jsonl", "path": "/home/somebody/asked.jsonl", "metric": "f1"},
    }
    return SweepPlan.model_validate(values | more)


def header_of(plan: SweepPlan, **more: Any) -> Header:
    """The header of the records: what they were made from."""
    values = {
        "date": "2026-03-01T10:00:00Z",
        "command": "cascli sweep plan.yaml",
        "environment": {"device": "x86_64 cpu", "target": "path:/home/somebody/models/large int8"},
    }
    return Header(fingerprint=plan.fingerprint(), plan=plan, metric="f1", **(values | more))


def records_of(plan: SweepPlan, prompts: int = 8, text: str = "answer") -> list[Record]:
    """Every strategy's answers: a larger alpha is cheaper and, on every second prompt, worse and a different text."""
    specs = plan.specs()
    return [
        _record(cell, specs.index(cell.strategy), number, text) for cell in plan.cells() for number in range(prompts)
    ]


def _record(cell: Any, place: int, number: int, text: str) -> Record:
    drafts = cell.strategy.startswith("spec")
    differs = place > 0 and cell.strategy != "speculative:k=2" and number % 2 == 1
    return Record(
        cell=cell,
        problem=f"p{number}",
        category=("writing", "maths")[number % 2],
        quality=max(0.9 - 0.05 * number - (0.02 * place if differs else 0.0) - 0.1 * cell.temperature, 0.0),
        text=f"{text} {number}" + (f", as {place} has it" if differs else ""),
        token_ids=[1] * 10,
        finish_reason="eos",
        seconds=1 + 0.03 * place,
        target_calls=10 if place == 0 else 3 + place % 5,
        drafted=40 if drafts else 0,
        accepted=20 if drafts else 0,
        tested=30 if drafts else 0,
        rounds=10 if drafts else 0,
        deferral_rate=0.1 if "rule=" in cell.strategy else None,
        mean_tv=0.01 * place,
    )


def folder_of(folder: Path, header: Header, records: list[Record]) -> Path:
    """Write the folder as a sweep leaves it."""
    kept = Records(folder)
    kept.open(header, resume=False, anyway=False)
    for record in records:
        kept.add(record)
    return folder
