from __future__ import annotations

import gc
import math
import os
from collections.abc import Iterator

import pytest
import torch

if not torch.cuda.is_available():
    # Read when Triton is imported, which any import of torch or transformers may do: set it before all of them.
    os.environ["TRITON_INTERPRET"] = "1"

from cascli import Pair, load_pair
from tests import chromium
from tests.pairs import pair

torch.set_num_threads(1)


def pytest_collection_finish() -> None:
    """Leave what was imported and collected out of the collector's work, which was one part in thirty of the time."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Let everything be freed at exit: libraries report what is not as leaks."""
    gc.unfreeze()


@pytest.fixture(scope="session")
def text_pair() -> Pair:
    """A pair with bytes as tokens and no end-of-text id."""
    return load_pair(pair(300))


@pytest.fixture(scope="session")
def id_pair() -> Pair:
    """A pair with eight tokens, too few for text."""
    return load_pair(pair(8))


@pytest.fixture(scope="module")
def chrome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[chromium.Browser]:
    """A headless Chromium with an empty profile."""
    with chromium.browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture
def clean_env(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Keep the machine's cascli and colour variables out of a test."""
    for name in list(os.environ):
        if name.startswith("CASCLI_") or name in ("NO_COLOR", "FORCE_COLOR", "CLICOLOR_FORCE", "TTY_COMPATIBLE"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "100")
    return monkeypatch


@pytest.fixture
def any_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Name causes however far timings differ: runs of tiny models are as noisy as the machine they run on."""
    monkeypatch.setattr("cascli.analysis.explanation.TOO_NOISY", math.inf)


@pytest.fixture
def asked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make eager rounds request q after every block, as captured rounds do."""
    for module in ("cascli.decoding.speculation", "cascli.jobs.candidates"):
        monkeypatch.setattr(f"{module}.asks_late", lambda *_, **__: False)
