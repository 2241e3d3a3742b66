"""The `cascli` program."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer

from cascli import __version__
from cascli.cli import (
    advise,
    bench,
    chat,
    compare,
    evaluate,
    generate,
    init,
    pairs,
    pull,
    show,
    strategies,
    sweep,
    verify,
)
from cascli.cli.environment import OWN, is_on
from cascli.cli.errors import INTERRUPTED, RUNTIME, USAGE, Terminated, complain, os_message, reported, silence_stdout
from cascli.cli.help import Command, Group, command_named
from cascli.errors import UNPARSED, CascliError

EPILOG = f"""\
cascli compare "Who is Buzz Aldrin?" -c tiny-random
cascli generate "Who is Buzz Aldrin?" -s speculative:k=4 -v
cascli strategies opt
cascli help compare

Defaults:
  The pair is qwen2.5-coder (cascli pull fetches it once, 1.6 GB); generate and chat use the strategy
  speculative-cascade:rule=token-v3,alpha=0.3,k=4
  A switch that a variable or a pair sets has a negative: --no-json overrides CASCLI_JSON.

Environment:
  CASCLI_TEMPERATURE=0.7  any common option by its long name; overrides the pair's file, flags override it
  CASCLI_STRATEGY  one or more strategies, separated by ;
{chr(10).join(f"  {name}  {meaning}" for name, meaning in OWN.items())}
  NO_COLOR  no colour; marks still show every state

Exit codes:
  0  done
  1  a requested check failed: verify, pull --check, --require, --require-lossless, --min-speedup
  2  bad usage, pair file or input
  3  runtime failure: weights, memory, disk or device
  130  interrupted
"""
"""Help text common to all commands."""

app = typer.Typer(
    name="cascli",
    cls=Group,
    invoke_without_command=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"]},
)

DECODE, CHECK, INFO = "Decode", "Check", "Info"
for module, panel in (
    (generate, DECODE),
    (chat, DECODE),
    (compare, DECODE),
    (advise, DECODE),
    (sweep, DECODE),
    (evaluate, DECODE),
    (show, DECODE),
    (verify, CHECK),
    (bench, CHECK),
    (pairs, INFO),
    (init, INFO),
    (pull, INFO),
    (strategies, INFO),
):
    if not hasattr(module, "EXAMPLES"):
        add = app.command(name=module.NAME, cls=Command, rich_help_panel=panel, epilog=module.EXAMPLE)
        add(reported(module.command))
        continue
    group = typer.Typer(cls=Group, invoke_without_command=True, rich_markup_mode=None)
    group.callback()(reported(module.command))
    for name, command in module.COMMANDS.items():
        group.command(name=name, cls=Command, epilog=module.EXAMPLES[name])(reported(command))
    app.add_typer(group, name=module.NAME, rich_help_panel=panel, epilog=module.EXAMPLE)


@app.command(name="help", cls=Command, hidden=True)
@reported
def help_(
    ctx: typer.Context, command: Annotated[list[str] | None, typer.Argument(help="One of cascli's commands.")] = None
) -> None:
    """Show the help of cascli, or of a command."""
    shown: Any = ctx.parent
    for name in command or ():
        found = command_named(name, getattr(shown.command, "commands", {}))
        shown = type(shown)(found, info_name=name, parent=shown)
    print(shown.get_help())


@app.command(name="version", cls=Command, hidden=True)
@reported
def version_() -> None:
    """Print the version."""
    _version(True)


def _version(value: bool) -> None:
    if value:
        print(f"cascli {__version__}")
        raise typer.Exit


@app.callback(
    help="Compare decoding strategies for a draft and a target language model.\n\n"
    "A cascade lets the small model answer when it is confident. Speculative decoding lets it write ahead while the"
    " large model checks. A speculative cascade checks by a more lenient rule, trading quality against cost."
)
def root(
    ctx: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", "-V", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Handle the options before a command's name; without a command, print the help and succeed."""
    del version  # its callback has already exited
    if ctx.invoked_subcommand is None:
        print(ctx.get_help())


def main() -> None:
    """Entry point: every error is printed as one or two lines, wherever it was raised."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the parent process
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 - closed with the process
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="cascli")
    for signal_name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, signal_name, None)
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores SIGHUP
            signal.signal(number, _interrupt)
    sys.exit(run())


def _interrupt(*_: object) -> None:
    """End as after Ctrl-C, so that everything started ends too and the results so far are kept."""
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
    except SystemExit as error:  # raised by typer when the reader of a help page is gone
        if not isinstance(error.__context__, BrokenPipeError):
            raise
        silence_stdout()
        return 0
    except OSError as error:  # help and version are printed outside the commands
        silence_stdout()
        complain(os_message(error))
        return RUNTIME
    except (KeyboardInterrupt, typer.Abort):
        complain("interrupted")
        return INTERRUPTED
    except Exception as error:
        if is_on("CASCLI_DEBUG"):
            traceback.print_exc()
        return _usage_error(error)


def _usage_error(error: Exception) -> int:
    """Print an error of the command line, found before a command begins, and return its exit code; raise any other."""
    if isinstance(error, CascliError):
        complain(str(error))
        return error.exit_code
    # Some releases of typer bundle their own copy of click, so usage errors are recognized by their methods.
    _suggest_longer_options(error)
    message = getattr(error, "format_message", None)
    if message is None or not message():
        show = getattr(error, "show", None)
        if show is None:
            raise error
        show()
    else:
        context = getattr(error, "ctx", None)
        path = context.command_path if context is not None else "cascli"
        complain(f"{_readable(message(), error.__cause__)}\n{_dash_hint(error, path) or f'See {path} --help.'}")
    return USAGE


def _suggest_longer_options(error: Any) -> None:
    """Suggest the options that begin with a shortened one; click suggests those of about the same length."""
    typed, context = getattr(error, "option_name", None), getattr(error, "ctx", None)
    if getattr(error, "possibilities", None) is not None and typed and context is not None:
        shown = (option for option in context.command.params if not getattr(option, "hidden", False))
        longer = [name for option in shown for name in option.opts if name.startswith(typed)]
        error.possibilities = sorted(longer) or error.possibilities


def _readable(message: str, cause: BaseException | None) -> str:
    """The message of a usage error; one that typer takes from pydantic is given the value that is wrong."""
    problems = getattr(cause, "errors", None)
    if not callable(problems):
        return message
    from cascli.files import printed

    problem = problems()[0]
    text = message.replace("Value error, ", "").partition(UNPARSED)[0]
    return text if problem["type"] == "value_error" else f"{text} (got {printed(problem['input'])})"


def _dash_hint(error: Exception, command: str) -> str:
    """A line on prompts such as `-5 + 3`, whose first word was taken for an option; empty for other errors."""
    option = getattr(error, "option_name", None)
    text = option is not None and any(f"{word} ".startswith(f"{option} ") and " " in word for word in sys.argv[1:])
    return f"Text that begins with - goes after --, as in: {command} -- '-5 + 3'" if text else ""
