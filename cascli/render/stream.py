"""The answer as it grows: coloured by origin on a terminal, bare text in a pipe."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from cascli.render.console import Screen
from cascli.render.marks import LOOKS, token_text
from cascli.render.numbers import number
from cascli.trace import Emitted, Handover, Round


class AnswerStream:
    """Prints rounds while they are decided."""

    def __init__(self, screen: Screen, *, tentative: bool, mixed: bool) -> None:
        self._screen = screen
        self._holds = self._hold = tentative and not screen.live
        self._mixed = mixed
        self._held: list[str] = []
        self._last = "\n"

    def round(self, step: Round, pieces: Sequence[str]) -> None:
        """Show what a round added."""
        if self._screen.live:
            for i, (token, piece) in enumerate(zip(step.emitted, pieces, strict=True)):
                self._rejected_before(step, i)
                self._say(self._look(token, piece))
        elif self._hold:
            self._held += pieces
        else:
            self._write("".join(pieces))

    def _rejected_before(self, step: Round, place: int) -> None:
        """With -v, the drafted token that a residual token replaced, struck through."""
        if self._screen.verbose and step.emitted[place].event == "residual" and place < len(step.drafted):
            self._say(token_text(step.drafted[place], "rejected", colored=self._screen.colored))

    def _look(self, token: Emitted, piece: str) -> Text:
        look = LOOKS[token.event]
        if self._screen.colored:
            return Text(piece.replace("\x1b", "␛"), style=look.style)
        return Text(look.marked(piece) if self._mixed and piece.strip() else piece)

    def _say(self, text: Text) -> None:
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
        elif not decision.deferred:
            self._write("".join(self._held))
        self._held, self._hold = [], False
        self._screen.note(describe_handover(decision))

    def _end_line(self) -> None:
        if self._last != "\n":
            self._write("\n")

    def end(self) -> None:
        """Finish the line, ready for the next answer."""
        self._end_line()
        self._hold = self._holds


def describe_handover(decision: Handover) -> str:
    """The cascade's decision in one sentence."""
    sign, verb = ("<", "handed over to the target") if decision.deferred else (">=", "the draft model's answer stands")
    return f"confidence {decision.score} {number(decision.value)} {sign} threshold {decision.threshold:g}: {verb}"
