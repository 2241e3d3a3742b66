"""Logits that are not finite, the time to the first token, and which time is counted."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from cascli import Pair, generate, load_pair
from cascli.decoding.clock import Clock
from cascli.engine import Decoding, Request
from cascli.errors import RunError
from cascli.sampling.parameters import Sampling
from cascli.strategies import parse
from cascli.trace import RoundSeconds
from tests.pairs import pair


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("strategy", ["target", "speculative", "speculative-cascade", "token-cascade"])
def test_non_finite_logits_are_an_error(strategy: str, temperature: float) -> None:
    broken = load_pair(pair(300))
    with torch.no_grad():
        broken.target.model.lm_head.weight[7] = float("nan")
    with pytest.raises(RunError, match="target model's logits are not finite"):
        generate(broken, "hello", strategy=strategy, temperature=temperature, max_new_tokens=5)


def test_first_token_of_a_deferred_cascade_is_the_targets(text_pair: Pair) -> None:
    m = generate(text_pair, "hello", strategy="cascade:threshold=99", max_new_tokens=20).metrics
    assert m.ttft_seconds is not None
    assert m.ttft_seconds > m.seconds.draft


@pytest.mark.parametrize(
    ("strategy", "behind"),
    [
        ("target", 1),
        ("speculative:k=2", 1),
        ("cascade:threshold=-99", 6),  # the draft's answer can be read only once it is final: all of it
        ("cascade:threshold=99", 7),  # if it was withdrawn, the target's first token counts
    ],
)
def test_time_to_first_token_is_when_a_token_becomes_readable(
    text_pair: Pair, monkeypatch: pytest.MonkeyPatch, strategy: str, behind: int
) -> None:
    """The first token can be read after `behind` rounds of the run, and before the next one ends."""
    ends: list[float] = []
    lap = Clock.lap

    def noted(clock: Clock) -> RoundSeconds:
        seconds = lap(clock)
        ends.append(clock.elapsed())
        return seconds

    monkeypatch.setattr(Clock, "lap", noted)
    run = generate(text_pair, "hello", strategy=strategy, max_new_tokens=6)
    before, after = ends[behind - 1], [*ends, run.metrics.seconds.total][behind]
    assert run.metrics.ttft_seconds is not None and before <= run.metrics.ttft_seconds <= after


def test_calls_are_timed_on_the_card_they_run_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a pair on each of two cards, the last one loaded is on the current card, which need not be the run's."""
    recorded: list[object] = []

    class Event:
        def __init__(self, *, enable_timing: bool) -> None:
            assert enable_timing

        def record(self, stream: object = "the current card's") -> None:
            recorded.append(stream)

        def elapsed_time(self, end: object) -> float:
            return 250.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: recorded.append(f"waited for {device}"))
    clock = Clock(torch.device("cuda", 1))
    with clock.span("draft"):
        pass
    assert clock.lap().draft == 0.25
    assert clock.finish().draft == 0.25
    assert recorded == ["waited for cuda:1", *["stream of cuda:1"] * 2, "waited for cuda:1"]


def test_time_spent_in_callbacks_is_not_counted(text_pair: Pair) -> None:
    m = generate(text_pair, "hello", strategy="target", max_new_tokens=4, on_round=lambda _: time.sleep(0.2)).metrics
    assert m.seconds.total < 0.4


def test_an_answer_whose_score_equals_the_threshold_is_kept(text_pair: Pair) -> None:
    """The condition is `score >= threshold`, as in the strategy's formula: a score equal to the threshold passes."""
    first = generate(text_pair, "hello", strategy="cascade:threshold=-99", max_new_tokens=4).handover
    assert first is not None
    above = math.nextafter(first.value, 0.0)
    for threshold, deferred in ((first.value, False), (above, True)):
        run = generate(text_pair, "hello", strategy=f"cascade:threshold={threshold!r}", max_new_tokens=4)
        assert run.handover is not None and run.handover.deferred is deferred


@pytest.mark.parametrize("spec", ["target", "speculative:k=2", "token-cascade:rule=diff"])
def test_on_a_gpu_only_the_time_of_callbacks_is_excluded(
    spec: str, text_pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is computed for detail is launched there while the device works, so the host's time for it is no loss."""
    pauses = list[None]()

    class OnGpu(Clock):
        def __init__(self, device: torch.device, now: Any) -> None:
            super().__init__(device, now)
            self._device = torch.device("cuda", 0)

        @contextmanager
        def paused(self) -> Iterator[None]:
            pauses.append(None)
            with super().paused():
                yield

    monkeypatch.setattr("cascli.engine.Clock", OnGpu)
    events = list(Decoding(text_pair, parse(spec), Request([5, 6, 7], Sampling(), 9, top=3)).steps())
    assert len(events) == len(pauses) > 1
