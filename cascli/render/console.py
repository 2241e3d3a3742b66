"""Where things are printed: results on stdout, everything else on stderr; colour only where it is wanted."""

from __future__ import annotations

import errno
import io
import os
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TextIO, TypeVar

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.measure import Measurement
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from cascli.errors import plain
from cascli.render.theme import theme

Item = TypeVar("Item")


WIDEST = 100
"""Maximum width of a page in columns, however wide the terminal is."""


@dataclass(frozen=True)
class Screen:
    """The two consoles of a command, and how much to print."""

    out: Console
    err: Console
    quiet: bool = False
    verbose: bool = False
    forced: bool = False
    """Whether colour was requested explicitly, so that a pipe gets it too."""

    @property
    def colored(self) -> bool:
        """Whether results are coloured."""
        return self.out.color_system is not None

    @property
    def live(self) -> bool:
        """Whether a person watches the answer grow, on a terminal."""
        return self.out.file.isatty()

    @property
    def styled(self) -> bool:
        """Whether answers show where their tokens came from: on a terminal, or if colour was requested explicitly."""
        return self.live or self.forced

    def write(self, text: str) -> None:
        """Print part of an answer: byte for byte in a pipe, without control sequences on a terminal."""
        if self.live:
            self.out.print(Text(text), end="", soft_wrap=True)
        else:
            self.out.file.write(text)
        self.out.file.flush()

    def note(self, text: str, *, style: str = "dim", whole: bool = False) -> None:
        """Print something other than the result, unless quiet; `whole` leaves long paths in one line."""
        if not self.quiet:
            self.err.print(text, style=style, markup=False, highlight=False, soft_wrap=whole)


class SafeConsole(Console):
    """A console that text from a model or a file cannot control."""

    def __init__(self, **options: Any) -> None:
        """Takes the arguments of Rich's console."""
        super().__init__(emoji=False, **options)  # `:x:` in a name or an answer is taken literally

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Make everything printed safe here, so that untrusted text cannot control the terminal."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=plain(segment.text))

    def on_broken_pipe(self) -> None:
        """Let the command end quietly; rich itself would exit with 1, which means that a check failed."""
        raise BrokenPipeError


def _console(file: TextIO, color: str) -> Console:
    colored = color == "always" or (color == "auto" and file.isatty() and not os.environ.get("NO_COLOR"))
    if colored:
        # In a pipe, colour that was requested: no bars, which move the cursor.
        bars = None if file.isatty() else False
        common: dict[str, Any] = {"file": file, "highlight": False, "no_color": False, "force_interactive": bars}
        console = SafeConsole(**common, force_terminal=color == "always" or None)
        if color == "always" and console.color_system is None:  # TERM is not set, or is `dumb`
            console = SafeConsole(**common, force_terminal=True, color_system="256")
        return console
    return SafeConsole(file=file, highlight=False, color_system=None, no_color=True, force_terminal=file.isatty())


class _Lasting(io.FileIO):
    """A stream that discards what is written once nobody reads it any more: a closed pipe, or a closed terminal."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO) or stat.S_ISREG(os.fstat(self.fileno()).st_mode):
                raise  # a file on a failing disk is no reader that has gone
            with Path(os.devnull).open("wb") as nowhere:
                os.dup2(nowhere.fileno(), self.fileno())
            return super().write(data)


def _outlast_readers() -> None:
    """Let a command that writes files finish when its output is no longer read, as in `cascli ... | head -1`."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        buffer = getattr(stream, "buffer", None)
        # Only the process's own streams: others are captured, or replace one that was closed.
        own = stream is getattr(sys, f"__{name}__")
        if own and type(getattr(buffer, "raw", buffer)) is io.FileIO:
            stream.flush()
            lasting = _Lasting(stream.fileno(), "wb", closefd=False)
            buffered = lasting if buffer is getattr(buffer, "raw", buffer) else io.BufferedWriter(lasting)
            options = {"line_buffering": stream.line_buffering, "write_through": stream.write_through}
            setattr(sys, name, io.TextIOWrapper(buffered, stream.encoding, stream.errors, **options))


def screen(color: str = "auto", *, quiet: bool = False, verbose: bool = False, lasting: bool = False) -> Screen:
    """The screen for a command's flags; `NO_COLOR` and pipes switch colour off.

    With `lasting` the command goes on when nobody reads its output any more, since it also writes files.

    Raises:
        UsageError: `CASCLI_THEME` names an unknown palette.
    """
    theme()
    if lasting:
        _outlast_readers()
    return Screen(_console(sys.stdout, color), _console(sys.stderr, color), quiet, verbose, color == "always")


@contextmanager
def undone_if_interrupted(console: Console, stop: Callable[[], None]) -> Iterator[None]:
    """While a live display starts: stop it and show the cursor again if that fails; rich does so only for errors."""
    try:
        yield
    except BaseException:
        with suppress(IndexError):  # its hook was not set yet
            stop()
        console.show_cursor()
        raise


def plain_table(console: Console) -> Table:
    """An empty table in the style of all cascli tables."""
    lines = box.SIMPLE_HEAD if unicode_ok(console) else box.ASCII2
    return Table(box=lines, show_edge=False, padding=(0, 1, 0, 0))


def fits(table: Table, console: Console, widest: int = 10_000) -> bool:
    """Whether a table fits the console and the given width without being cut."""
    return _natural_width(table, console) <= min(console.width, widest)


def _natural_width(table: Table, console: Console) -> int:
    return Measurement.get(console, console.options.update(max_width=10_000), table).maximum


def wrap_names(table: Table, console: Console, narrowest: int) -> Table:
    """Wrap the first column of a table if that makes it fit, rather than cut a number.

    Args:
        table: changed in place.
        console: gives the width.
        narrowest: minimum width of the first column; if the table does not fit even then, the width is left open.
    """
    if not fits(table, console):
        names = table.columns[0]
        names.no_wrap, names.overflow, names.width = False, "fold", narrowest
        room = console.width - _natural_width(table, console)
        names.width = narrowest + room if room >= 0 else None
    return table


def fitted(columns: Sequence[Item], draw: Callable[[Sequence[Item]], Table], console: Console) -> list[Table]:
    """As few tables as show all columns uncut: a table that is too wide is halved, and its halves again."""
    table = draw(columns)
    if len(columns) == 1 or fits(table, console):
        return [table]
    middle = (len(columns) + 1) // 2
    return [*fitted(columns[:middle], draw, console), *fitted(columns[middle:], draw, console)]


def number_tables(
    heading: str,
    names: Sequence[str],
    columns: Sequence[tuple[str, Sequence[str]]],
    console: Console,
    *,
    justify: Literal["left", "right"] = "right",
) -> list[Table]:
    """As few tables of numbers as fit uncut, each starting with the row names.

    Args:
        heading: of the row names.
        names: one per row; they wrap if there is little room.
        columns: the heading and the cells of each.
        console: gives the width.
        justify: the alignment of the row names.
    """

    def draw(some: Sequence[tuple[str, Sequence[str]]]) -> Table:
        table = plain_table(console)
        table.add_column(heading, justify=justify, no_wrap=True, vertical="top")
        for title, _ in some:
            table.add_column(title, justify="right", no_wrap=True, vertical="top")
        for place, name in enumerate(names):
            table.add_row(name, *(cells[place] for _, cells in some))
        return wrap_names(table, console, max(len(word) for text in (heading, *names) for word in text.split()))

    return fitted(columns, draw, console)


def stacked(tables: Sequence[Table]) -> Group:
    """Tables below each other, separated by an empty line."""
    parts: list[RenderableType] = [part for table in tables for part in ("", table)]
    return Group(*parts[1:])


def unicode_ok(console: Console) -> bool:
    """Whether symbols beyond ASCII can be printed."""
    return (console.encoding or "").lower().replace("-", "") in {"utf8", "utf16", "utf32"}
