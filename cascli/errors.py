"""The errors a user can see, each with its exit code on the command line.

A message is one or two lines: what is wrong, where (file and key), and what to do about it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

UNPARSED = ", unable to parse"
"""Where pydantic's message about a text that is no number begins to repeat itself."""


class CascliError(Exception):
    """Base of every error that cascli raises on purpose; `exit_code` is what the process returns."""

    exit_code = 3


class CheckFailed(CascliError):
    """A check that the user asked for failed (exit code 1)."""

    exit_code = 1


class UsageError(CascliError):
    """A flag, prompt, strategy or file that cannot be used as it is (exit code 2)."""

    exit_code = 2


class ContextFull(UsageError):
    """A prompt, with the turns before it, that leaves no room for an answer."""


class ConfigError(UsageError):
    """A pair or sweep file with an unknown key, a wrong type or a value out of range (exit code 2)."""


class RunError(CascliError):
    """Weights, memory, disk or device failed while running (exit code 3)."""


@contextmanager
def located(where: str) -> Iterator[None]:
    """Put where a value was given in front of usage errors about it, unless `where` is empty."""
    try:
        yield
    except UsageError as error:
        if not where:
            raise
        raise type(error)(f"{where}: {error}") from None


_PICTURES = {
    **{code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"},
    0x7F: 0x2421,
    **dict.fromkeys([*range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)], 0xB7),
}


def plain(text: str) -> str:
    """Make text from a model, a file or a name safe to print: terminal control characters become visible symbols."""
    return text.translate(_PICTURES)


class PairWarning(UserWarning):
    """Something that users of a loaded pair should know; the command line prints it as a notice."""


def first_line(error: BaseException) -> str:
    r"""The first line of an error message, joined with the next if it ends with a colon; the type's name if empty.

    >>> first_line(ValueError("bad value:\n    3 is no name"))
    'bad value: 3 is no name'
    """
    first, *more = (str(error).strip() or type(error).__name__).splitlines()
    return f"{first} {more[0].strip()}" if more and first.endswith(":") else first


def raised(error: BaseException) -> str:
    """One line with the type and message of an error raised by third-party code."""
    if isinstance(error, SystemExit):
        return f"SystemExit: {error.code}"
    errors = getattr(error, "errors", None)
    if callable(errors) and hasattr(error, "title"):  # pydantic's, whose first line says almost nothing
        first = errors()[0]
        return f"{error.title}.{'.'.join(map(str, first['loc']))}: {first['msg']}"
    line = first_line(error)
    return line if line == type(error).__name__ else f"{type(error).__name__}: {line}"


def unknown(kind: str, name: str, known: Iterable[str], *, cutoff: float = 0.5) -> str:
    """Message that `name` is not a known `kind`, with the known names and the nearest one if it is close.

    >>> unknown("rule", "op", ["opt", "chow"])
    "unknown rule 'op'; did you mean 'opt'? Known: chow, opt"
    """
    names = sorted(known)
    return f"unknown {kind} '{name}'{suggestion(name, names, cutoff=cutoff) or '.'} Known: {', '.join(names)}"


def suggestion(name: str, known: Iterable[str], *, prefix: str = "", most: int = 1, cutoff: float = 0.6) -> str:
    """The known names nearest to a mistyped one as the end of an error message; empty if none is near.

    Args:
        name: what was typed.
        known: names without `prefix`.
        prefix: shown in front of each name, such as the slash of a command.
        most: how many names to suggest.
        cutoff: similarity in [0, 1] from which a name is near, as for `difflib.get_close_matches`.

    >>> suggestion("compre", ["compare", "system"], prefix="/")
    "; did you mean '/compare'?"
    >>> suggestion("CUDA", ["cpu", "cuda"])
    "; did you mean 'cuda'?"
    """
    folded = {each.casefold(): each for each in known}
    near = difflib.get_close_matches(name.casefold(), list(folded), n=most, cutoff=cutoff)
    names = " or ".join(f"'{prefix}{folded[each]}'" for each in near)
    return f"; did you mean {names}?" if near else ""
