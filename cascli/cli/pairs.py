"""cascli pairs: list the built-in pairs, what is on disk and what each needs; find or remove the weights of one."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cascli.cli import complete
from cascli.cli.options import Flags, with_shared
from cascli.errors import RunError, UsageError

if TYPE_CHECKING:
    from cascli.config import PairConfig
    from cascli.weights.held import Held

NAME = "pairs"
EXAMPLE = """\
cascli pairs
cascli pairs path smollm2 draft
cascli pairs rm smollm2
"""
HINT = (
    'cascli generate "hi" -c NAME uses another pair; cascli pull NAME fetches it\n'
    "cascli pairs path NAME prints its folders; cascli pairs rm NAME frees its space"
)
Name = Annotated[str, typer.Argument(help="Pair name or YAML file.", autocompletion=complete.pairs)]


@with_shared(
    *("json", "quiet", "verbose", "color"), quiet="Print only names.", verbose="Also show where the models come from."
)
def command(ctx: typer.Context, *, flags: Flags) -> None:
    """List the built-in pairs: size, licence, gated or not, memory needed, what is on disk."""
    from cascli.config import DEFAULT_PAIR, pair_files
    from cascli.render.console import screen
    from cascli.render.pairs import pairs_list
    from cascli.settings import from_environment, resolve

    if ctx.invoked_subcommand is not None:
        return
    settings = resolve(flags.given, from_environment())
    rows = [describe(name) for name in pair_files()]
    if settings.json_output:
        print(json.dumps({"schema": "cascli.pairs/1", "default": DEFAULT_PAIR, "pairs": rows}))
    elif settings.quiet:
        print("\n".join(row["name"] for row in rows))
    else:
        view = screen(settings.color, verbose=settings.verbose)
        view.out.print(pairs_list(rows, DEFAULT_PAIR, view.out, verbose=view.verbose))
        if view.live:  # a person, who may want a next step
            view.note(HINT)


@with_shared("json")
def path(
    pair: Name,
    role: Annotated[str | None, typer.Argument(help="draft or target: print only its folder.")] = None,
    *,
    flags: Flags,
) -> None:
    """Print the folders that hold a pair's weights."""
    from cascli.config import RandomSource, load_config
    from cascli.weights import store

    config = load_config(pair)
    if role is not None and role not in config.models:
        raise UsageError(f"{pair}: has no '{role}'; it has {' and '.join(config.models)}.")
    sources = {name: model.source for name, model in config.models.items() if role in (None, name)}
    folders = {
        name: None if isinstance(source, RandomSource) else store.locate(source) for name, source in sources.items()
    }
    if flags.given.json_output:
        paths = {name: None if folder is None else str(folder) for name, folder in folders.items()}
        print(json.dumps({"schema": "cascli.pair-paths/1", **paths}))
        return
    for name, folder in folders.items():
        if folder is None:
            raise RunError(_nowhere(pair, name, config))
        print(folder if role is not None else f"{name}: {folder}")


def _nowhere(pair: str, role: str, config: PairConfig) -> str:
    from cascli.config import RandomSource

    if isinstance(config.models[role].source, RandomSource):
        return f"{pair}: the {role} model has random weights, which are not on disk."
    return f"{pair}: the weights of its {role} model are not on this machine. Run 'cascli pull {pair}' first."


@with_shared("quiet", "color")
def rm(
    pair: Name,
    *,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    flags: Flags,
) -> None:
    """Remove a pair's weights from this disk, except what another pair here needs; asks for confirmation first."""
    from cascli.config import load_config, pair_files
    from cascli.render.console import screen
    from cascli.render.numbers import size
    from cascli.settings import from_environment, resolve
    from cascli.weights.held import held, removal, remove

    settings = resolve(flags.given, from_environment())
    view = screen(settings.color, quiet=settings.quiet)
    config = load_config(pair)
    others = {name: load_config(name) for name in pair_files() if name != pair}
    models = held(config, others)
    for model in models:
        if model.used_by:
            view.note(f"{model.role}: kept, because {', '.join(model.used_by)} needs it too")
    removable = [model for model in models if model.removable]
    if not removable:
        view.note(f"{pair}: nothing to remove")
        return
    for model in removable:
        for line in _places(model):
            view.note(line, whole=True)
    planned = removal(removable)
    if not yes and not _agreed(f"Remove {size(planned.bytes)}?"):
        view.note("nothing was removed")
        return
    remove(planned)
    print(f"removed {planned.bytes:,} bytes ({size(planned.bytes)})")


def _places(model: Held) -> list[str]:
    """Where a model is stored, one line per place."""
    lines = [
        f"{model.role}: {path}" + (" (a link; what it leads to is kept)" if path.is_symlink() else "")
        for path in model.paths
    ]
    if model.snapshot is not None:
        lines.append(f"{model.role}: {model.snapshot} (in the hub's cache, which other programs use too)")
    return lines


def _agreed(question: str) -> bool:
    """Ask the user for confirmation.

    Raises:
        UsageError: stdin is not a terminal.
    """
    if sys.stdin is None or not sys.stdin.isatty():
        raise UsageError("cannot ask for confirmation: stdin is not a terminal; use --yes to remove without asking.")
    return typer.confirm(question, err=True)


COMMANDS = {"path": path, "rm": rm}
"""The subcommands for one pair."""
EXAMPLES = {
    "path": "cascli pairs path smollm2\ncascli pairs path smollm2 draft",
    "rm": "cascli pairs rm smollm2\ncascli pairs rm smollm2 --yes",
}


def describe(name: str) -> dict[str, Any]:
    """The facts about one built-in pair."""
    from cascli.config import PypiSource, load_config

    config = load_config(name)
    pypi_sources = [model.source for model in config.models.values() if isinstance(model.source, PypiSource)]
    return {
        "name": name,
        **{role: str(model.source) for role, model in config.models.items()},
        **(
            {"about_sources": f"each of {' and '.join(each.pypi for each in pypi_sources)} {PypiSource.about}"}
            if pypi_sources
            else {}
        ),
        "download_gb": config.about.download_gb,
        "memory_gb": config.about.memory_gb,
        "licence": config.about.licence,
        "gated": config.about.gated,
        "on_disk_bytes": {role: _on_disk(config, role) for role in config.models},
        "note": config.about.note,
    }


def _on_disk(config: PairConfig, role: str) -> int | None:
    """Bytes of a model on disk; None for random weights, which need none."""
    from cascli.config import RandomSource
    from cascli.weights import store

    source = config.models[role].source
    return None if isinstance(source, RandomSource) else store.disk_bytes(source)
