"""The `cascli` program."""

from __future__ import annotations

from typing import Annotated

import typer

from cascli import __version__
from cascli.cli import compare, generate, pairs, pull, show, strategies, verify
from cascli.cli.errors import reported

app = typer.Typer(
    name="cascli",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

DECODE, CHECK, LOOK = "Decode", "Check", "Look things up"
for module, panel in (
    (generate, DECODE),
    (compare, DECODE),
    (show, DECODE),
    (verify, CHECK),
    (pairs, LOOK),
    (pull, LOOK),
    (strategies, LOOK),
):
    app.command(name=module.NAME, rich_help_panel=panel, epilog=module.EXAMPLE)(reported(module.command))


def _version(value: bool) -> None:
    if value:
        print(f"cascli {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Compare decoding strategies for a draft and a target language model.

    A cascade lets the small model answer when it is confident. Speculative decoding lets it write ahead while
    the large model checks. A speculative cascade checks by a more lenient rule, and trades quality against cost.
    """


def main() -> None:
    """Entry point."""
    app()
