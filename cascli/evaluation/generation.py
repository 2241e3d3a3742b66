"""How to generate an answer to a task: the task's own settings, and flags that take precedence. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from cascli.files import printed
from cascli.sampling.parameters import Sampling
from cascli.settings import Settings

LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""Names of the maximum answer length; the first one that is set counts."""
DEFAULT_LENGTH = 256
"""The maximum length if a task sets none, as in lm-evaluation-harness."""
HONOURED = (*LENGTHS, "until", "do_sample", "temperature", "top_k", "top_p", "seed")
NEUTRAL = {"repetition_penalty": 1.0, "num_beams": 1, "min_p": 0.0, "use_cache": True, "num_return_sequences": 1}
"""Values of other settings that change nothing."""


@dataclass(frozen=True)
class Generation:
    """The settings for one answer."""

    sampling: Sampling
    max_new_tokens: int
    stop: tuple[str, ...]
    seed: int
    not_honoured: tuple[str, ...]
    """Settings of the task that strategies do not support, as `name=value`."""

    @classmethod
    def of(cls, task: Mapping[str, Any], given: Settings) -> Self:
        """Build from a task's `generation_kwargs` and the flags.

        Greedy unless the task sets `do_sample: true`, or a temperature without `do_sample: false`.

        Raises:
            TypeError, ValueError, AttributeError: a value of the task is not what it must be.
            UsageError: a number is out of range.
        """
        length = next((task[name] for name in LENGTHS if task.get(name) is not None), DEFAULT_LENGTH)
        return cls(
            sampling=Sampling(
                temperature=_first(given.temperature, _temperature(task)),
                top_k=_first(given.top_k, max(int(task.get("top_k") or 0), 0)),
                top_p=_first(given.top_p, float(task.get("top_p") or 1.0)),
            ),
            max_new_tokens=_first(given.max_new_tokens, int(length)),
            stop=(*_stop(task.get("until")), *(given.stop or ())),
            seed=_first(given.seed, int(task.get("seed") or 0)),
            not_honoured=tuple(
                f"{name}={value}"
                for name, value in task.items()
                if name not in HONOURED and value is not None and NEUTRAL.get(name, ...) != value
            ),
        )


def _stop(until: object) -> list[str]:
    texts = [text for text in (until if isinstance(until, list | tuple) else [until]) if text]
    stop = [text for text in texts if isinstance(text, str)]
    if len(stop) < len(texts):
        raise TypeError(f"until: expected a text or a list of them (got {printed(until)})")
    return stop


def _temperature(task: Mapping[str, Any]) -> float:
    sample = task.get("do_sample")
    if sample is False:
        return 0.0
    return float(task.get("temperature", 1.0 if sample else 0.0))


def _first(given: Any, otherwise: Any) -> Any:
    return otherwise if given is None else given
