"""How each origin of a token looks: a colour, and a mark that survives without colour."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

from rich.text import Text

from cascli.trace import Drafted, Emitted, Round


@dataclass(frozen=True)
class Look:
    """Style of a state, what is put around its token without colour, and its name in a legend."""

    style: str
    before: str
    after: str
    name: str

    def marked(self, text: str) -> str:
        """The token with its mark."""
        return f"{self.before}{text}{self.after}"


LOOKS: dict[str, Look] = {
    "accepted": Look("green", "", "", "drafted and accepted"),
    "residual": Look("bold yellow", "[", "]", "drawn after a rejection"),
    "bonus": Look("cyan", "+", "", "bonus"),
    "draft": Look("blue", "", "", "draft model"),
    "target": Look("magenta", "^", "", "target model"),
    "rejected": Look("red strike", "~", "~", "drafted and rejected"),
    "deferred": Look("underline", "", "°", "the rule deferred to the target here"),
}
HEADING_WIDTH = 24
_SIGNS = {"\n": "⏎", "\t": "⇥", "\r": "␍", "\x7f": "␡"}


def heading(spec: str, oracle: bool) -> str:
    """A strategy's name, and its parameters in lines below it."""
    name, _, params = spec.partition(":")
    label = name + (" (oracle)" if oracle else "")
    return "\n".join([label, *textwrap.wrap(params.replace(",", " "), HEADING_WIDTH, break_on_hyphens=False)])


def visible(text: str) -> str:
    """A token's text with spaces kept and everything unprintable made visible; never empty."""
    if text and not text.strip(" "):
        return "␣" * len(text)
    return "".join(_sign(char) for char in text) or "∅"


def _sign(char: str) -> str:
    code = ord(char)
    if char in _SIGNS:
        return _SIGNS[char]
    if code < 0x20:
        return chr(0x2400 + code)  # the Unicode picture of a control character
    return char if char.isprintable() else "·"


def is_deferred(step: Round, place: int) -> bool:
    """Whether an accepted token stands although the rule had turned this very token over to the target.

    Of a bonus token nobody has asked the rule.
    """
    return step.emitted[place].event == "accepted" and place < len(step.drafted) and step.drafted[place].deferred


def token_text(token: Emitted | Drafted, event: str, *, colored: bool, shown: str | None = None) -> Text:
    """A token as it looks in a trace."""
    look = LOOKS[event]
    text = visible(token.text) if shown is None else shown
    return Text(text, style=look.style) if colored else Text(look.marked(text))


def legend(events: set[str], *, colored: bool) -> Text:
    """What the looks of these events mean, in one line."""
    parts = [
        Text(look.name, style=look.style) if colored else Text(f"{look.marked('token')} {look.name}")
        for event, look in LOOKS.items()
        if event in events
    ]
    return Text.assemble((" · ", "dim")).join(parts)
