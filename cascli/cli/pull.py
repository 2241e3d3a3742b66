"""cascli pull: fetch and convert a pair's weights; a no-op when they are there."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from cascli.cli import complete
from cascli.cli.common import pair_asked
from cascli.cli.options import Flags, with_shared
from cascli.config import DEFAULT_PAIR, RandomSource, load_config
from cascli.errors import CheckFailed
from cascli.render.console import screen
from cascli.settings import from_environment, resolve

if TYPE_CHECKING:
    from cascli.config import Source
    from cascli.render.console import Screen

NAME = "pull"
EXAMPLE = "Example: cascli pull qwen2.5-coder[bold] · [/]cascli pull --check"


@with_shared("draft", "target", "offline", "quiet", "color")
def command(
    pair: Annotated[
        str | None,
        typer.Argument(help="Pair name or YAML file; without one the default pair.", autocompletion=complete.pairs),
    ] = None,
    *,
    check: Annotated[
        bool, typer.Option("--check", help="Fetch nothing: read what is there and compare it with its sha256.")
    ] = False,
    flags: Flags,
) -> None:
    """Fetch and convert a pair's weights, with progress; interrupted pulls go on where they were."""
    from cascli.cli.progress import Progress
    from cascli.weights import store

    config = pair_asked(replace(flags, config=pair)) or load_config(DEFAULT_PAIR)
    settings = resolve(flags.given, from_environment(), config.defaults)
    view = screen(settings.color, quiet=settings.quiet)
    changed = []
    for role, model in config.models.items():
        if isinstance(model.source, RandomSource):
            view.note(f"{role}: random weights, nothing to fetch")
        elif check:
            changed += _changed(role, model.source, view)
        else:
            with Progress(view, f"{role}: {model.source}") as progress, model.located():
                folder = store.pull(model.source, progress.report, offline=settings.offline)
            view.note(f"{role}: {folder}")
    if changed:
        raise CheckFailed(
            f"changed since they were fetched: {', '.join(changed)}.\nRemove these folders and run 'cascli pull' again."
        )


def _changed(role: str, source: Source, view: Screen) -> list[str]:
    """The files on the disk that are no longer what was fetched.

    Raises:
        RunError: nothing is there.
    """
    from cascli.cli.progress import Progress
    from cascli.weights import store

    with Progress(view, f"{role}: reading {source}"):
        changed, folder = store.changed(source), store.locate(source)
    if changed is None:
        view.note(f"{role}: {folder}: no sha256 was recorded (a folder of your own, or made by an older cascli)")
    elif not changed:
        view.note(f"{role}: {folder}: as it was fetched")
    return [f"{folder}/{name}" for name in changed or []]
