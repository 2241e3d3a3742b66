"""The `--help` of every command: lines that wrap at the terminal's width, and examples that can be copied whole.

The pages are built here because typer's take longer to import than to print, show `<bool>`, and cut long text.
"""

from __future__ import annotations

import inspect
import os
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import Enum
from typing import Any

from typer.core import TyperCommand, TyperGroup

from cascli.cli.options import ON_BY_DEFAULT
from cascli.errors import UsageError, unknown

WIDEST = 100
"""Maximum width of a page in columns, however wide the terminal is."""
FIRST_COLUMN = 26
"""Maximum width of an option's names in columns; longer ones get a line of their own."""
Row = tuple[str, str]


class Command(TyperCommand):
    """A command with this kind of help page."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the page in one piece, so that a reader who leaves early (`| head`) causes no further write."""
        formatter.write(page(self, ctx))

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """Completions for a shell, with descriptions."""
        return _described(super().shell_complete(ctx, incomplete))


class Group(TyperGroup):
    """The program, or a command with subcommands, with this kind of help page."""

    def get_params(self, ctx: Any) -> list[Any]:
        """The options, with absent switches off instead of None: for None, typer would import pydantic."""
        params = super().get_params(ctx)
        for param in params:
            if getattr(param, "is_flag", False) and param.default is None and not param.secondary_opts:
                param.default = False
        return params

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that the first argument names.

        Raises:
            UsageError: there is none; the message lists the commands.
        """
        command_named(args[0], self.commands)
        return super().resolve_command(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the page in one piece."""
        formatter.write(page(self, ctx))

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """Completions for a shell, with descriptions."""
        return _described(super().shell_complete(ctx, incomplete))


def command_named(name: str, commands: Mapping[str, Any]) -> Any:
    """The command of a group that has this name.

    Raises:
        UsageError: there is none; the message lists those that help shows.
    """
    if name not in commands:
        raise UsageError(unknown("command", name, (each for each in commands if not commands[each].hidden)))
    return commands[name]


def _described(items: list[Any]) -> list[Any]:
    """Use a typographic apostrophe in descriptions: typer's zsh script drops the straight one, which quotes."""
    for item in items:
        if item.help:
            item.help = item.help.replace("'", "’")
    return items


def page(command: Any, ctx: Any) -> str:
    """The whole help page of a command."""
    width = min(shutil.get_terminal_size().columns, WIDEST)
    bold = _bold if sys.stdout.isatty() and not os.environ.get("NO_COLOR") else str
    parts = [_usage(command, ctx, width), _paragraphs(command.help or "", width)]
    params = [param for param in command.get_params(ctx) if not getattr(param, "hidden", False)]
    sections: dict[str, list[Row]] = {}
    for param in params:
        sections.setdefault(_panel(param), []).append(row_of(param))
    own = {name: sections.pop(name) for name in ("Arguments", "Options") if name in sections}
    # A command's own options come before those that many commands share.
    sections = _commands(command, ctx) | sections | own if isinstance(command, TyperGroup) else own | sections
    column = min(max((len(names) for rows in sections.values() for names, _ in rows), default=0), FIRST_COLUMN)
    parts += [f"{bold(title + ':')}\n{_table(rows, column, width)}" for title, rows in sections.items()]
    parts += [_epilog(command.epilog, bold, width)] if command.epilog else []
    return "\n\n".join(part for part in parts if part) + "\n"


def _bold(text: str) -> str:
    return f"\x1b[1m{text}\x1b[0m"


def _usage(command: Any, ctx: Any, width: int) -> str:
    path = ctx.command_path
    pieces = [*([command.options_metavar] if command.options_metavar else [])]
    pieces += [_argument(param) for param in command.get_params(ctx) if param.param_type_name == "argument"]
    pieces += [command.subcommand_metavar] if isinstance(command, TyperGroup) else []
    return textwrap.fill(f"Usage: {path} {' '.join(pieces)}", width, subsequent_indent=" " * 8, break_on_hyphens=False)


def _paragraphs(text: str, width: int) -> str:
    """Rewrap paragraphs: line breaks in the source mean nothing."""
    parts = inspect.cleandoc(text).split("\n\n")
    return "\n\n".join(textwrap.fill(" ".join(part.split()), width, break_on_hyphens=False) for part in parts)


def _panel(param: Any) -> str:
    named = getattr(param, "rich_help_panel", None)
    return named or ("Arguments" if param.param_type_name == "argument" else "Options")


def _argument(param: Any) -> str:
    name = param.metavar or param.name.upper()
    if param.nargs != 1:
        name += "..."
    return name if param.required else f"[{name}]"


def row_of(param: Any) -> Row:
    """The names and value of an argument or option, and its help text."""
    help_text = " ".join((getattr(param, "help", None) or "").split())
    if param.param_type_name == "argument":
        return _argument(param), help_text
    is_switch = getattr(param, "is_flag", False)
    on = is_switch and (param.default is True or param.name in ON_BY_DEFAULT)
    names = param.secondary_opts if on and param.secondary_opts else param.opts
    short, long = ([name for name in names if name.startswith("--") is is_long] for is_long in (False, True))
    if long == ["--help"]:
        help_text = "Show this page and exit."
    label = ", ".join([*short, *long]) if short else "    " + ", ".join(long)
    if not is_switch:
        label += f" {_value(param)}"
        help_text += _default(param)
    return label, help_text


def _value(param: Any) -> str:
    # Where typer keeps the choices depends on its release.
    kinds: list[Any] = [getattr(param, name, None) for name in ("type_descriptor", "type")]
    choices = next((kind.choices for kind in kinds if getattr(kind, "choices", None)), ())
    return "|".join(str(_plain(each)) for each in choices) or str(param.metavar or "VALUE")


def _default(param: Any) -> str:
    """The default, unless the help text states it itself."""
    if param.default in (None, (), []) or callable(param.default) or not getattr(param, "show_default", True):
        return ""
    value = _plain(param.default)
    return f" (default {value:g})" if isinstance(value, float) else f" (default {value})"


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value


def _commands(group: Any, ctx: Any) -> dict[str, list[Row]]:
    """A group's commands with their first paragraph, by panel."""
    panels: dict[str, list[Row]] = {}
    for name in group.list_commands(ctx):
        command = group.get_command(ctx, name)
        if command is not None and not command.hidden:
            panel = getattr(command, "rich_help_panel", None) or "Commands"
            summary = inspect.cleandoc(command.short_help or command.help or "").split("\n\n")[0]
            panels.setdefault(panel, []).append((name, " ".join(summary.split())))
    return panels


def _table(rows: Iterable[Row], column: int, width: int) -> str:
    return "\n".join(line for row in rows for line in _row(row, column, width))


def _row(row: Row, column: int, width: int) -> Iterator[str]:
    """Names and help text side by side, or below each other if the names are long."""
    names, text = row
    lines = textwrap.wrap(text, max(width - column - 4, 24), break_on_hyphens=False) or [""]
    if len(names) > column:
        yield f"  {names}".rstrip()
    else:
        yield f"  {names:{column}}  {lines.pop(0)}".rstrip()
    yield from (f"{'':{column + 4}}{line}" for line in lines)


def _epilog(text: str, bold: Any, width: int) -> str:
    """Examples, one per line and never wrapped, so that each can be copied; wrapped paragraphs with a heading."""
    parts = []
    for part in text.strip().split("\n\n"):
        head, *lines = part.splitlines()
        if head.endswith(":"):
            parts.append("\n".join([bold(head), *_listed(lines, width)]))
        else:
            parts.append("\n".join([bold("Examples:"), *(f"  {line.strip()}" for line in (head, *lines))]))
    return "\n\n".join(parts)


def _listed(lines: Sequence[str], width: int) -> Iterator[str]:
    """Lines of `name  description`, aligned, and lines of text, wrapped."""
    rows = [tuple(part.strip() for part in line.strip().partition("  ")[::2]) for line in lines]
    column = max((len(name) for name, text in rows if text), default=0)
    for name, text in rows:
        if text:
            yield from _row((name, text), column, width)
        else:
            yield from textwrap.wrap(
                name, width, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False, break_long_words=False
            )
