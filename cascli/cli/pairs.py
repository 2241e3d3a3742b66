"""cascli pairs: the ready pairs, what is on disk, and what each needs."""

from __future__ import annotations

import json
from typing import Any

from cascli.cli.options import Flags, with_shared
from cascli.config import PairConfig, RandomSource, load_config, pair_files
from cascli.settings import from_environment, resolve

NAME = "pairs"
EXAMPLE = "Example: cascli pairs[bold] · [/]cascli pull smollm2"


@with_shared("json", "quiet", "color")
def command(*, flags: Flags) -> None:
    """List the ready pairs: size, licence, gated or not, memory needed, what is on disk."""
    from cascli.render.console import screen
    from cascli.render.pairs import pairs_table

    settings = resolve(flags.given, from_environment())
    rows = [describe(name) for name in pair_files()]
    if settings.json_output:
        print(json.dumps({"schema": "cascli.pairs/1", "pairs": rows}))
    elif settings.quiet:
        print("\n".join(row["name"] for row in rows))
    else:
        view = screen(settings.color)
        view.out.print(pairs_table(rows, view.out))


def describe(name: str) -> dict[str, Any]:
    """What is known of one ready pair."""
    config = load_config(name)
    return {
        "name": name,
        **{role: str(model.source) for role, model in config.models.items()},
        "download_gb": config.about.download_gb,
        "memory_gb": config.about.memory_gb,
        "licence": config.about.licence,
        "gated": config.about.gated,
        "on_disk_bytes": {role: _on_disk(config, role) for role in config.models},
        "note": config.about.note,
    }


def _on_disk(config: PairConfig, role: str) -> int | None:
    """Bytes of a model on disk; None for random weights, which need none."""
    from cascli.weights import store

    source = getattr(config, role).source
    return None if isinstance(source, RandomSource) else store.disk_bytes(source)
