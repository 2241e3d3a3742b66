"""Step times that were measured once, kept on this machine so that a later command can say how long it will take.

No torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from cascli.analysis.profile import Profile
from cascli.config import PairConfig
from cascli.files import write
from cascli.trace import Data
from cascli.weights.home import cache_home


class StepTimes(Data):
    """A profile, and when it was measured."""

    date: str
    profile: Profile


def keep(config: PairConfig, device: str | None, dtype: str | None, profile: Profile) -> None:
    """Remember a pair's step times, in place of older ones; where nothing can be written, nothing is kept.

    Args:
        config: the pair.
        device: as it was asked for; None is the pair's own.
        dtype: likewise.
        profile: what was measured.
    """
    found = StepTimes(date=datetime.now(UTC).date().isoformat(), profile=profile)
    path = _file(config, device, dtype)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, found.model_dump_json())


def kept(config: PairConfig, device: str | None, dtype: str | None) -> StepTimes | None:
    """The last step times of a pair on this machine, or None."""
    try:
        return StepTimes.model_validate_json(_file(config, device, dtype).read_bytes())
    except (OSError, ValidationError):
        return None


def _file(config: PairConfig, device: str | None, dtype: str | None) -> Path:
    """Named by everything that a step's time depends on, as far as it is known before the pair is loaded."""
    models = {role: model.model_dump(mode="json") for role, model in config.models.items()}
    asked = [models, device or config.defaults.device or "auto", dtype or config.defaults.dtype or "auto"]
    key = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]
    return cache_home() / "steps" / f"{key}.json"
