"""Step times measured once and kept on this machine, so that later commands can forecast how long they will take.

No torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from cascli.analysis.profile import Profile
from cascli.config import PairConfig
from cascli.files import write
from cascli.trace import Data
from cascli.weights.home import cache_home


class StepTimes(Data):
    """A profile and the date it was measured."""

    date: str
    profile: Profile


class RunOptions(NamedTuple):
    """How a pair is run, as requested; None means the pair's own value, or torch's."""

    device: str | None = None
    dtype: str | None = None
    threads: int | None = None
    cuda_graphs: bool = True
    compile: bool = False


def save_step_times(config: PairConfig, options: RunOptions, profile: Profile) -> None:
    """Save a pair's step times, replacing older ones; do nothing if the file cannot be written."""
    step_times = StepTimes(date=datetime.now(UTC).date().isoformat(), profile=profile)
    path = _file(config, options)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, step_times.model_dump_json())


def load_step_times(config: PairConfig, options: RunOptions) -> StepTimes | None:
    """Return the last step times saved for a pair run this way on this machine, or None."""
    try:
        return StepTimes.model_validate_json(_file(config, options).read_bytes())
    except (OSError, ValidationError):
        return None


def _file(config: PairConfig, options: RunOptions) -> Path:
    """Path of the file, named by a hash of everything known before loading that step times depend on."""
    models = {role: model.model_dump(mode="json") for role, model in config.models.items()}
    own = config.defaults
    resolved = options._replace(
        device=options.device or own.device or "auto", dtype=options.dtype or own.dtype or "auto"
    )
    key_parts = [models, *resolved, os.environ.get("OMP_NUM_THREADS"), _vocab_hash(config)]
    key = hashlib.sha256(json.dumps(key_parts, sort_keys=True).encode()).hexdigest()[:16]
    return cache_home() / "steps" / f"{key}.json"


def _vocab_hash(config: PairConfig) -> str | None:
    """Hash of the file of token ids that the draft's head is cut to, as its content may change; None without one."""
    vocab = None if config.draft is None else config.draft.vocab
    if not isinstance(vocab, str):
        return None
    with contextlib.suppress(OSError):
        return hashlib.sha256(Path(vocab).read_bytes()).hexdigest()
    return None
