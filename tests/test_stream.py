"""How an answer looks on a terminal, with and without colour."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from itertools import islice

import pytest
from rich.console import Console

from cascli.decoding.session import Session
from cascli.errors import RunError
from cascli.render.console import Screen
from cascli.render.stream import AnswerStream
from cascli.strategies.target import Target
from cascli.trace import Drafted, Emitted, Round
from tests.commands import invoke


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


STEP = Round(
    drafted=[
        Drafted(id=1, text="Buzz", q=0.6, p=0.5, pi=0.6, accept_prob=1, accepted=True, deferred=False),
        Drafted(id=2, text=" was", q=0.6, p=0.5, pi=0.5, accept_prob=0.8, accepted=True, deferred=True),
        Drafted(id=3, text=" on", q=0.6, p=0.1, pi=0.1, accept_prob=0.2, accepted=False, deferred=True),
    ],
    emitted=[
        Emitted(id=1, text="Buzz", event="accepted", deferral=0.0),
        Emitted(id=2, text=" was", event="accepted", deferral=1.0),
        Emitted(id=4, text=" in", event="residual", deferral=1.0),
    ],
)


def shown(color: str | None, *, verbose: bool) -> tuple[str, str]:
    out, err = Terminal(), Terminal()
    consoles = [
        Console(file=file, color_system=color, force_terminal=True, width=120, no_color=color is None)  # type: ignore[arg-type]
        for file in (out, err)
    ]
    view = AnswerStream(Screen(*consoles, verbose=verbose), tentative=False, mixed=True)
    view.round(STEP, ["Buzz", " was", " in"])
    view.end()
    return out.getvalue(), err.getvalue()


def test_an_error_begins_on_a_line_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A draft model's context may be full in the middle of an answer."""

    def fails(self: Target, s: Session) -> Iterator[Round]:
        yield from islice(decode(self, s), 30)
        raise RunError("full")

    decode = Target.decode
    monkeypatch.setattr(Target, "decode", fails)
    ended = invoke(
        "generate", "hi", "-c", "tiny-random", "-s", "target", "--max-new-tokens", "40", "--temperature", "0"
    )
    assert ended.exit_code == 3 and ended.stderr.endswith("cascli: full\n")
    assert ended.stdout.strip() and ended.stdout.endswith("\n")


def test_every_origin_keeps_a_mark_without_colour() -> None:
    answer, legend = shown(None, verbose=True)
    assert answer == "Buzz was°~ on~[ in]\n"
    for words in ("accepted", "[token]", "~token~ drafted and rejected", "token° the rule deferred"):
        assert words in legend


def test_rejected_drafts_are_shown_on_request_only() -> None:
    assert shown(None, verbose=False)[0] == "Buzz was°[ in]\n"


def test_colours_carry_the_same() -> None:
    answer, _ = shown("standard", verbose=True)
    assert re.search(r"\x1b\[[\d;]+mBuzz", answer) and re.search(r"\x1b\[4;[\d;]+m was", answer)
    assert re.search(r"\x1b\[9;[\d;]+m on", answer) and re.search(r"\x1b\[1;[\d;]+m in", answer)
