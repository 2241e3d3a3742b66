"""The `cascli` program."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from cascli import __version__
from cascli.cli import bench, chat, compare, generate, init, pairs, pull, show, strategies, sweep, verify
from cascli.cli.errors import INTERRUPTED, RUNTIME, USAGE, Terminated, os_message, reported, silence_stdout

app = typer.Typer(
    name="cascli",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

DECODE, CHECK, LOOK = "Decode", "Check", "Info"
for module, panel in (
    (generate, DECODE),
    (chat, DECODE),
    (compare, DECODE),
    (sweep, DECODE),
    (show, DECODE),
    (verify, CHECK),
    (bench, CHECK),
    (pairs, LOOK),
    (init, LOOK),
    (pull, LOOK),
    (strategies, LOOK),
):
    app.command(name=module.NAME, rich_help_panel=panel, epilog=module.EXAMPLE)(reported(module.command))


def _version(value: bool) -> None:
    if value:
        print(f"cascli {__version__}")
        raise typer.Exit


@app.callback(
    help="Compare decoding strategies for a draft and a target language model.\n\n"
    "A cascade lets the small model answer when it is confident. Speculative decoding lets it write ahead while the"
    " large model checks. A speculative cascade checks by a more lenient rule, and trades quality against cost."
)
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """The options before a command's name."""


def main() -> None:
    """Entry point: every error is one or two lines, whoever found it."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by whoever started this
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 - closed with the process
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    for sign in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, sign):
            signal.signal(getattr(signal, sign), _interrupt)
    sys.exit(run())


def _interrupt(*_: object) -> None:
    """End as after Ctrl-C, so that what was started ends too and what was found is kept."""
    raise Terminated


def run() -> int:
    """Run the command line and return its exit code."""
    try:
        code = app(standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except BrokenPipeError:
        silence_stdout()
        return 0
    except OSError as error:  # help and version are printed outside the commands
        silence_stdout()
        print(f"cascli: {os_message(error)}", file=sys.stderr)
        return RUNTIME
    except (KeyboardInterrupt, typer.Abort):
        print("cascli: interrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        # typer brings its own copy of click in some releases, so usage errors are known by what they can do.
        message = getattr(error, "format_message", None)
        if message is None or not message():
            show = getattr(error, "show", None)
            if show is None:
                raise
            show()
        else:
            context = getattr(error, "ctx", None)
            path = context.command_path if context is not None else "cascli"
            print(f"cascli: {message()}\nSee {path} --help.", file=sys.stderr)
        return USAGE
