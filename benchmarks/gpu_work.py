"""GPU work of a strategy per round: kernels, and transfers to and from the host."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from cascli import Pair, generate

_SHORT, _LONG = 4, 36
"""Tokens of two runs that differ only in rounds: one-time costs of a run, mainly its prompt, are in both."""


def work_of(pair: Pair, strategy: str, prompt: list[int]) -> dict[str, float] | None:
    """Return the profiler's counts per round; None if the longer run had no more rounds than the shorter.

    Raises:
        RuntimeError: the profiler saw no kernel on a GPU, as happens with graphs that were captured before it began.
    """
    few, many = (_counted(pair, strategy, prompt, tokens) for tokens in (_SHORT, _LONG))
    if pair.device.type == "cuda" and many["kernels"] <= few["kernels"]:
        raise RuntimeError(f"the profiler saw {few['kernels']} and {many['kernels']} kernels in the two runs")
    rounds = many["rounds"] - few["rounds"]
    if rounds < 1:
        return None
    return {"rounds": rounds} | {
        name: (many[name] - few[name]) / rounds for name in ("kernels", "to_host", "from_host")
    }


def _counted(pair: Pair, strategy: str, prompt: list[int], tokens: int) -> Counter[str]:
    ask: dict[str, Any] = {"strategy": strategy, "max_new_tokens": tokens, "temperature": 1.0}
    generate(pair, prompt_ids=prompt, **ask)  # captures all graphs
    on_gpu = pair.device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as seen:
        run = generate(pair, prompt_ids=prompt, **ask)
    return count(seen.events() or []) + Counter(rounds=len(run.rounds))


def count(events: Iterable[Any]) -> Counter[str]:
    """Count the kernels and transfers in a profile; the host calls that launch them are events too and are skipped."""
    found: Counter[str] = Counter()
    for event in events:
        if event.device_type != DeviceType.CUDA or getattr(event, "is_user_annotation", False):
            continue
        if event.name.startswith("Memcpy"):
            found["to_host"] += "DtoH" in event.name
            found["from_host"] += "HtoD" in event.name
        elif not event.name.startswith("Memset"):
            found["kernels"] += 1
    return found
