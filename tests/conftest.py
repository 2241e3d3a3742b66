from __future__ import annotations

import math
import os

import pytest
import torch

if not torch.cuda.is_available():
    # Read when Triton is imported, which torch and transformers may do at any import: before all others.
    os.environ["TRITON_INTERPRET"] = "1"

from cascli import Pair, load_pair
from tests.pairs import pair

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def text_pair() -> Pair:
    """Bytes as tokens; no end-of-text id."""
    return load_pair(pair(300))


@pytest.fixture(scope="session")
def id_pair() -> Pair:
    """Eight tokens, too few for text."""
    return load_pair(pair(8))


@pytest.fixture
def clean_env(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """No cascli or colour variable of the machine leaks into a test."""
    for name in list(os.environ):
        if name.startswith("CASCLI_") or name in ("NO_COLOR", "FORCE_COLOR", "CLICOLOR_FORCE", "TTY_COMPATIBLE"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "100")
    return monkeypatch


@pytest.fixture
def any_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Causes are named however far timings differ: runs of toys are as noisy as the machine beside them."""
    monkeypatch.setattr("cascli.analysis.explanation.TOO_NOISY", math.inf)


@pytest.fixture
def asked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eager rounds ask for q behind every block too, as captured ones do."""
    for module in ("cascli.decoding.speculation", "cascli.jobs.candidates"):
        monkeypatch.setattr(f"{module}.asks_late", lambda *_, **__: False)
