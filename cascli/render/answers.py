"""Answers side by side as running text: each token in the colour of its origin, rejected ones struck through.

The same cells are shown while answers are written, cut to the last lines that fit, and whole when they are done.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, groupby

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cascli.decoding.detokenizer import BROKEN
from cascli.errors import plain
from cascli.render.console import WIDEST, unicode_ok
from cascli.render.marks import LOOKS, ending, is_deferred, is_mixed, legend, replaced, simple, visible
from cascli.render.theme import COLORS
from cascli.trace import Round, Run

BLOCK = 64
"""Rounds of a long answer that are left out at a time."""
CELL = 24
"""Minimum number of characters in a line of an answer."""


@dataclass
class AnswerCell:
    """One strategy's answer so far."""

    name: str
    mixed: bool
    """Whether its tokens come from more than one model; only then are they marked if there is no colour."""
    rounds: list[Round] = field(default_factory=list)
    note: str = ""
    """Text next to the name."""
    end: str = ""
    """Text after the answer."""
    diverges: int | None = None
    """Index of the first token that differs from the target's; None if none does or it is unknown."""
    answer: str | None = None
    """The answer's text; None while it is being written."""

    @classmethod
    def of(cls, run: Run, name: str, note: str = "", diverges: int | None = None) -> AnswerCell:
        """A finished answer."""
        ends = "" if run.finish_reason == "eos" else f"({ending(run.finish_reason)})"
        return cls(name, is_mixed(run.strategy), list(run.rounds), note, ends, diverges, run.text)

    def text(self, console: Console, most: int | None = None) -> Text:
        """The answer: plain up to the first token that differs from the target's, and bold from there.

        Args:
            console: determines whether there are colours and Unicode symbols.
            most: the approximate number of rounds shown, the last ones; all by default. Rounds are left out a block at
                a time, so that lines do not wrap differently after every round.
        """
        skipped = 0 if most is None else max(len(self.rounds) - most, 0) // BLOCK * BLOCK
        painter = _Painter(console, self, sum(len(each.emitted) for each in self.rounds[:skipped]))
        for round_ in self.rounds[skipped:]:
            painter.round(round_)
        if self.end:
            painter.result.append(" ").append(self.end, style="dim")
        return painter.result


def whole_texts(rounds: Sequence[Round], diverges: int | None, answer: str) -> list[str]:
    """The texts of an answer's tokens, with whole characters.

    Tokens look alike if nothing is shown between them and their marks are the same.

    Args:
        rounds: the answer's rounds.
        diverges: index of the first token that differs from the target's, which is marked.
        answer: what the tokens spell together.
    """
    tokens, shown_between = list[tuple[str, Hashable]](), 0
    for round_ in rounds:
        for i, token in enumerate(round_.emitted):
            shown_between += replaced(round_, i) is not None or len(tokens) == diverges
            tokens.append((token.text, (token.event, is_deferred(round_, i), shown_between)))
    return whole_characters([text for text, _ in tokens], [look for _, look in tokens], answer)


def whole_characters(texts: Sequence[str], looks: Sequence[Hashable], answer: str) -> list[str]:
    """Texts of an answer's tokens with characters in place of what each token alone spells of them.

    A character of several tokens is shown at the one that completes it. Which one that is can be unknown; then they are
    joined only if they look the same, and otherwise keep their replacement characters, as do all tokens from where the
    tokens do not spell the answer.

    Args:
        texts: what each token spells alone.
        looks: how each is shown.
        answer: what they spell together.
    """
    found, at = list(texts), 0
    for broken, group in groupby(range(len(texts)), lambda i: BROKEN in texts[i]):
        places = list(group)
        if not broken:
            for i in places:
                # Some tokenizers drop the leading space of a token that is spelled alone.
                spaced = " " if texts[i] and not answer.startswith(texts[i], at) else ""
                if answer.startswith(spaced + texts[i], at):
                    found[i] = spaced + texts[i]
                    at += len(found[i])
                elif texts[i] in answer:  # markup is not, and is left as it is
                    return found
            continue
        own = [texts[i] for i in places]
        after = next((texts[i] for i in range(places[-1] + 1, len(texts)) if texts[i]), "")
        spelled = _spelled("".join(own), answer, at, after)
        if spelled is None:
            return found
        at += len(spelled)
        parts = _by_bytes(own, spelled)
        if parts is None and (len(spelled) == 1 or len({looks[i] for i in places}) == 1):
            parts = [""] * (len(own) - 1) + [spelled]
        if parts is not None:
            found[places[0] : places[-1] + 1] = parts
    return found


def _spelled(broken: str, answer: str, at: int, after: str) -> str | None:
    """What tokens that spell `broken` add to the answer there, before the next token; None if that is not clear."""
    start, pieces = at, re.split(f"{BROKEN}+", broken)
    if not pieces[0] and answer.startswith(" ", at):
        at += 1
    if not answer.startswith(pieces[0], at):
        return None
    at += len(pieces[0])
    for piece in pieces[1:]:
        end = answer.find(piece or after or "\0", at + 1)
        if not piece:  # the last one
            end = len(answer) if end < 0 else end
            end = at + len(answer[at:end].rstrip(" "))
        if end <= at or any(char.isascii() for char in answer[at:end]):
            return None
        at = end + len(piece)
    return answer[start:at]


def _by_bytes(texts: Sequence[str], spelled: str) -> list[str] | None:
    """Give each character to the token with its last byte, if every replacement character stands for one byte."""
    ends = list(accumulate(sum(1 if char == BROKEN else _bytes(char) for char in text) for text in texts))
    if ends[-1] != _bytes(spelled):
        return None
    parts, last = [""] * len(texts), 0
    for char in spelled:
        last += _bytes(char)
        parts[bisect_left(ends, last)] += char
    return parts


def _bytes(text: str) -> int:
    return len(text.encode(errors="surrogatepass"))


class _Painter:
    def __init__(self, console: Console, cell: AnswerCell, place: int) -> None:
        self.result = Text()
        self._colored, self._fancy, self._cell = console.color_system is not None, unicode_ok(console), cell
        self._place, self._divergence_marked = place, False
        self._texts = None if cell.answer is None else whole_texts(cell.rounds, cell.diverges, cell.answer)

    def round(self, round_: Round) -> None:
        for i, token in enumerate(round_.emitted):
            rejected = replaced(round_, i)
            if rejected is not None:
                self._put(rejected.text, "rejected", "")
            text = token.text if self._texts is None else self._texts[self._place]
            self._put(text, token.event, " underline" if is_deferred(round_, i) else "")
            self._place += 1

    def _put(self, text: str, event: str, more: str) -> None:
        """Append a token with its spaces outside the style: only the word is struck through or underlined.

        Control characters are made visible before lines are wrapped, or lines would be wider than they were counted.
        """
        look, text = LOOKS[event], plain(text)
        before, word, after = self._parts(text, event, marked=bool(more or look.before or look.after))
        self.result.append(before)
        if self._place == self._cell.diverges and not self._divergence_marked:
            self._divergence_marked = True
            self.result.append("≠" if self._fancy else "!=", style=f"bold {COLORS['rejected']}")
        if not self._colored:
            marked = (event == "rejected" or self._cell.mixed) and bool(word)
            self.result.append((look.marked(word) if marked else word) + ("°" if more and word else ""))
        else:
            diverged = self._cell.diverges is not None and self._place >= self._cell.diverges and event != "rejected"
            self.result.append(word, style=f"{'bold ' if diverged else ''}{look.style}{more}")
        self.result.append(after)

    def _parts(self, text: str, event: str, *, marked: bool) -> tuple[str, str, str]:
        """Split a token into what comes before, inside and after its marks.

        Whitespace that needs a mark is shown as symbols to put it around. Rejected tokens break no lines: they are not
        part of the answer.
        """
        spaces = text[: len(text) - len(text.lstrip(" "))]
        before = "" if spaces == text else spaces
        if event == "rejected":
            return before, self._signs(text[len(before) :]), ""
        if word := text.strip():
            start = text.index(word)
            return text[:start], word, text[start + len(word) :]
        if not (text and marked and self._cell.mixed):
            return text, "", ""
        return before, self._signs(text[len(before) :]), "\n" * text.count("\n")

    def _signs(self, text: str) -> str:
        return visible(text) if self._fancy else simple(visible(text))


def side_by_side(cells: Sequence[AnswerCell], console: Console, lines: int | None = None) -> Table:
    """As many columns as fit in a row, in rows below each other.

    Args:
        cells: the answers, in order.
        console: gives the width.
        lines: the number of lines shown of each answer, the last ones; all by default.
    """
    columns = columns_of(len(cells), console)
    width = (min(console.width, WIDEST) + 2) // columns - 2
    most = None if lines is None else lines * width // 2  # at two characters a round, this fills all lines shown
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    for _ in range(columns):
        table.add_column(width=width, overflow="fold")
    for start in range(0, len(cells), columns):
        row = cells[start : start + columns]
        table.add_row(*(_heading(cell, width, live=lines is not None) for cell in row))
        table.add_row(*(_last(cell.text(console, most), width, lines, console) for cell in row))
        if start + columns < len(cells):
            table.add_row("")
    return table


def columns_of(count: int, console: Console) -> int:
    """The number of answers per row: as many as fit, with rows of about the same length."""
    fit = min(max((min(console.width, WIDEST) + 2) // (CELL + 2), 1), count)
    return -(-count // -(-count // fit))


def _heading(cell: AnswerCell, width: int, *, live: bool) -> Text:
    """Name and note: on two lines while the note changes, so that nothing moves; else on one if there is room."""
    separator = "\n" if live or len(cell.name) + len(cell.note) + 2 > width else "  "
    return Text.assemble((cell.name, "bold"), separator if cell.note or live else "", (cell.note, "dim"))


def _last(text: Text, width: int, lines: int | None, console: Console) -> Text:
    """The last lines of a text after wrapping."""
    if lines is None:
        return text
    wrapped = text.wrap(console, width)
    return Text("\n").join(wrapped[-lines:])


def _written(cell: AnswerCell) -> int:
    return sum(len(round_.emitted) for round_ in cell.rounds)


def legend_of(cells: Sequence[AnswerCell], console: Console) -> Text:
    """The legend for the styles in these answers."""
    events: set[str] = set()
    for cell in cells:
        for round_ in cell.rounds:
            events |= {token.event for token in round_.emitted}
            if any(token.event == "residual" for token in round_.emitted):
                events.add("rejected")
            if any(is_deferred(round_, i) for i in range(len(round_.emitted))):
                events.add("deferred")
    text = legend(events, colored=console.color_system is not None)
    if any(cell.diverges is not None and cell.diverges < _written(cell) for cell in cells):
        sign, dot = ("≠", " · ") if unicode_ok(console) else ("!=", " - ")
        text = Text.assemble(text, f"{dot}{sign} first token that differs from target")
    return text
