"""Are the weights on disk still those that were fetched?"""

from __future__ import annotations

from collections.abc import Iterator

from cascli.audit.report import Check, check_of, skipped
from cascli.config import PairConfig, RandomSource
from cascli.weights import store


def files(config: PairConfig) -> Iterator[Check]:
    """Read every file of both models and compare it with its recorded sha256, if any."""
    for role, model in config.models.items():
        if isinstance(model.source, RandomSource):
            yield skipped("weights", role, "random weights are not on disk")
            continue
        changed = store.changed(model.source)
        if changed is None:
            yield skipped("weights", role, "no sha256 was recorded for these files")
        else:
            yield check_of("weights", role, len(changed), 0, 0.0, ", ".join(changed))
