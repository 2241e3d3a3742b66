"""How each origin of a token looks: a colour, and a mark that survives without colour."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, fields

from rich.text import Text

from cascli import drafters, rules, stops
from cascli.errors import UsageError
from cascli.render.theme import COLORS
from cascli.trace import Drafted, Round, params_of


@dataclass(frozen=True)
class Look:
    """Style of a token's state, the marks around it without colour, and its name in a legend."""

    style: str
    before: str
    after: str
    name: str

    def marked(self, text: str) -> str:
        """The text with its marks."""
        return f"{self.before}{text}{self.after}"


LOOKS: dict[str, Look] = {
    "accepted": Look(COLORS["accepted"], "", "", "drafted and accepted"),
    "residual": Look(f"bold {COLORS['residual']}", "[", "]", "drawn after a rejection"),
    "bonus": Look(COLORS["bonus"], "+", "", "bonus"),
    "draft": Look(COLORS["draft"], "", "", "draft model"),
    "target": Look(COLORS["target"], "^", "", "target model"),
    "rejected": Look(f"{COLORS['rejected']} strike", "~", "~", "drafted and rejected"),
    "deferred": Look("underline", "", "°", "the rule deferred to the target here"),
}
_LEADING_ZERO = re.compile(r"^(-?)0[.]")
SHORT = {"speculative-cascade": "spec-cascade"}
_LETTERS = {
    "alpha": ("α", "a"),
    "epsilon": ("ε", "eps"),
    "delta": ("δ", "delta"),
    "target_weight": ("w", "w"),
    "lenience": ("l", "l"),
    "threshold": ("t", "t"),
}
"""Parameters that have a letter in formulas, with and without Greek."""
HEADING_WIDTH = 24
_SIGNS = {"\n": "⏎", "\t": "⇥", "\r": "␍", "\x7f": "␡"}
_SIMPLE = (("┌", ">"), ("≠", "!="), ("·", "-"), ("⏎", "\\n"), ("⇥", "\\t"), ("∅", "(none)"), ("␣", "_"))


def heading(spec: str, oracle: bool) -> str:
    """A strategy's name, and its parameters in lines below it."""
    name, _, params = spec.partition(":")
    label = name + (" (oracle)" if oracle else "")
    return "\n".join([label, *textwrap.wrap(params.replace(",", " "), HEADING_WIDTH, break_on_hyphens=False)])


def short_name(spec: str, *, oracle: bool = False, fancy: bool = True) -> str:
    """A strategy in one line, such as `spec-cascade token-v3 α=.3 k=4`.

    Default parameters of a drafter or a stop are left out, as are those of a rule other than its dial.
    """
    name, params = spec.partition(":")[0], params_of(spec)
    words = [SHORT.get(name, name), *([params["rule"]] if "rule" in params else [])]
    if "rule" in params:
        _drop(params, _defaults_but_dial(params.pop("rule")))
    if "score" in params and "threshold" in params:
        words.append(f"{params.pop('score')}{'≥' if fancy else '>='}{params.pop('threshold')}")
    if "draft" in params:
        words.append(f"by {params['draft']}")
        _drop(params, _defaults(drafters.load, params.pop("draft")))
    if "stop" in params:
        _drop(params, _defaults(stops.load, params["stop"]))
    letters = {name: _LETTERS[name] for name in params if name in _LETTERS}
    short = {
        greek if fancy else plain: _LEADING_ZERO.sub(r"\1.", params.pop(n)) for n, (greek, plain) in letters.items()
    }
    words += [f"{key}={value}" for key, value in (short | params).items()]
    return " ".join(words) + (" (oracle)" if oracle else "")


def _drop(params: dict[str, str], defaults: dict[str, str]) -> None:
    for key, value in defaults.items():
        if params.get(key) == value:
            del params[key]


def _defaults_but_dial(rule: str) -> dict[str, str]:
    """The default parameters of a rule other than its dial; none for an unknown rule."""
    try:
        kind = rules.load(rule)
    except UsageError:
        return {}
    dial = None if kind.dial is None else kind.dial.parameter
    return {field.name: str(field.default) for field in fields(kind) if dial and field.name != dial}


def _defaults(load: Callable[[str], type], name: str) -> dict[str, str]:
    """The default parameters of a drafter or a stop; none for an unknown one."""
    try:
        kind = load(name)
    except UsageError:
        return {}
    return {field.name: str(field.default) for field in fields(kind)}


def ending(reason: str) -> str:
    """Why an answer ended; only that it ended early where it was interrupted, by the user or by an error."""
    return "ended early" if reason == "interrupted" else reason


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


def simple(text: str) -> str:
    """Replace marks and symbols for a terminal that has only ASCII."""
    for fancy, ascii_ in _SIMPLE:
        text = text.replace(fancy, ascii_)
    return text.encode("ascii", "replace").decode()


def is_mixed(spec: str) -> bool:
    """Whether the tokens of a strategy's answers come from more than one model; only then do marks say something."""
    return spec.partition(":")[0] not in ("draft", "target")


def is_deferred(round_: Round, place: int) -> bool:
    """Whether a token was accepted although the rule had deferred it to the target.

    Never so for a bonus token, for which the rule is not consulted.
    """
    return round_.emitted[place].event == "accepted" and place < len(round_.drafted) and round_.drafted[place].deferred


def replaced(round_: Round, place: int) -> Drafted | None:
    """The rejected draft that a token of a round was drawn in place of; None for any other token."""
    is_residual = round_.emitted[place].event == "residual" and place < len(round_.drafted)
    return round_.drafted[place] if is_residual else None


def marked(text: str, event: str, *, colored: bool) -> Text:
    """A token's text as it looks in a trace."""
    look = LOOKS[event]
    return Text(text, style=look.style) if colored else Text(look.marked(text))


def legend(events: set[str], *, colored: bool) -> Text:
    """The legend for these events, in one line; without colour, two with the same mark share an entry."""
    looks = [look for event, look in LOOKS.items() if event in events]
    if colored:
        parts = [Text(look.name, style=look.style) for look in looks]
    else:
        names: dict[str, list[str]] = {}
        for look in looks:
            names.setdefault(look.marked("token"), []).append(look.name)
        parts = [Text(f"{mark} {' or '.join(same)}") for mark, same in names.items()]
    return Text.assemble((" · ", "dim")).join(parts)
