"""The answer as it grows: coloured by origin on a terminal or on request, otherwise plain text for a pipe."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rich.text import Text

from cascli.render.console import Screen
from cascli.render.marks import LOOKS, is_deferred, legend, marked, replaced, visible
from cascli.render.numbers import number
from cascli.trace import Emitted, Handover, Round


class AnswerStream:
    """Prints rounds as they are decided."""

    def __init__(self, screen: Screen, *, tentative: bool, mixed: bool) -> None:
        self._screen = screen
        self._holds = self._hold = tentative and not screen.live
        self._mixed = mixed
        self._held: list[Text | str] = []
        self._last = "\n"
        self._begun = False
        self._shown: set[str] = set()
        self.seen: set[str] = set()
        """The origins that were shown, for a legend."""
        self.known: set[str] = set()
        """The origins whose legend was shown before, and is not repeated."""

    def event(self, event: Any) -> None:
        """Show what a run did: a round with its texts (`StreamEvent`), or a cascade's decision."""
        if isinstance(event, Handover):
            self.handover(event)
        else:
            self.round(event.round, event.pieces)

    def round(self, round_: Round, pieces: Sequence[str]) -> None:
        """Show what a round added."""
        parts: list[Text | str] = [*self._looks(round_, pieces)] if self._screen.styled else ["".join(pieces)]
        if self._hold:
            self._held += parts
        else:
            self._put(parts)

    def _looks(self, round_: Round, pieces: Sequence[str]) -> Iterator[Text]:
        for i, (token, piece) in enumerate(zip(round_.emitted, pieces, strict=True)):
            yield from self._rejected_before(round_, i)
            yield self._look(token, piece, deferred=is_deferred(round_, i))

    def _rejected_before(self, round_: Round, place: int) -> Iterator[Text]:
        """With -v, the drafted token that a residual token replaced, struck through."""
        rejected = replaced(round_, place)
        if self._screen.verbose and rejected is not None:
            self.seen.add("rejected")
            yield marked(visible(rejected.text), "rejected", colored=self._screen.colored)

    def _put(self, parts: Sequence[Text | str]) -> None:
        for part in parts:
            if isinstance(part, Text):
                self._print_styled(part)
            else:
                self._write(part)

    def _look(self, token: Emitted, piece: str, *, deferred: bool) -> Text:
        look = LOOKS[token.event]
        self.seen |= {token.event} | ({"deferred"} if deferred else set())
        if self._screen.colored:
            style = look.style + (" underline" if deferred else "")
            return Text(piece, style=style)
        marked = look.marked(LOOKS["deferred"].marked(piece) if deferred else piece)
        return Text(marked if self._mixed and piece.strip() else piece)

    def _print_styled(self, text: Text) -> None:
        if text.plain:
            self._screen.out.print(text, end="", soft_wrap=True)
            self._screen.out.file.flush()
            self._last = text.plain[-1]

    def _write(self, text: str) -> None:
        if text:
            self._screen.write(text)
            self._last = text[-1]

    def handover(self, decision: Handover) -> None:
        """Show what a sequence-level cascade decided."""
        if self._screen.live:
            self._end_line()
        elif decision.deferred:
            self.seen &= self._shown  # a withdrawn answer needs no legend
        else:
            self._put(self._held)
        self._held, self._hold = [], False
        self._screen.note(describe_handover(decision))

    def heading(self, text: str) -> None:
        """Print which of several answers comes next, in a pipe only: on a terminal, notes show it."""
        if not self._screen.live:
            self._write(f"\n{text}\n" if self._begun else f"{text}\n")
        self._begun = True

    def _end_line(self) -> None:
        if self._last != "\n":
            self._write("\n")

    def end(self) -> None:
        """Finish the line, ready for the next answer, and print a legend of new origins."""
        self._end_line()
        self._hold = self._holds
        self._shown = set(self.seen)
        new = self.seen - self.known
        if self._screen.styled and self._mixed and not self._screen.quiet and new:
            self._screen.err.print(legend(new, colored=self._screen.colored))


def describe_handover(decision: Handover) -> str:
    """The cascade's decision in one sentence."""
    sign, verb = ("<", "deferred to the target") if decision.deferred else (">=", "the draft model's answer is kept")
    return f"confidence {decision.score} {number(decision.value)} {sign} threshold {decision.threshold:g}: {verb}"
