"""cascli pull: fetch and convert a pair's weights; a no-op when they are there."""

from __future__ import annotations

from typing import Annotated

import typer

from cascli.cli import complete
from cascli.cli.common import pair_name
from cascli.cli.options import Flags, with_shared
from cascli.config import RandomSource, load_config
from cascli.render.console import screen
from cascli.settings import from_environment, resolve

NAME = "pull"
EXAMPLE = "Example: cascli pull qwen2.5-coder"


@with_shared("offline", "quiet", "color")
def command(
    pair: Annotated[
        str | None,
        typer.Argument(help="Pair name or YAML file; without one the default pair.", autocompletion=complete.pairs),
    ] = None,
    *,
    flags: Flags,
) -> None:
    """Fetch and convert a pair's weights, with progress; interrupted pulls go on where they were."""
    from cascli.cli.progress import Progress
    from cascli.weights import store

    config = load_config(pair_name(pair))
    settings = resolve(flags.given, from_environment(), config.defaults)
    view = screen(settings.color or "auto", quiet=bool(settings.quiet))
    for role, model in (("draft", config.draft), ("target", config.target)):
        if isinstance(model.source, RandomSource):
            view.note(f"{role}: random weights, nothing to fetch")
            continue
        with Progress(view, f"{role}: {model.source}") as progress:
            folder = store.pull(model.source, progress.report, offline=bool(settings.offline))
        view.note(f"{role}: {folder}")
