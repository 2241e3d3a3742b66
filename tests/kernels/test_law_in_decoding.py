"""Whole texts with the kernels, by pairs that partly agree: each token must use its own random numbers.

Rounds have up to five drafts; both prepared ones and the shorter ones at an answer's end occur. A former bug in the
third token of a round does not show in blocks of one or two tokens, nor with a pair that always or never agrees.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pytest
import torch

from cascli import Pair, Run, generate, load_pair
from cascli.kernels import verification
from cascli.models.gpu.capture import Uncaptured
from cascli.models.gpu.graph_cache import GraphCache
from cascli.sampling.uniforms import Uniforms
from tests.laws.of_recorded import MIDDLE
from tests.pairs import pair

if torch.cuda.is_available():
    pytest.skip("on a GPU tests/gpu does this", allow_module_level=True)

SPECS = [
    "speculative:k=4",
    "speculative:k=5",
    *(f"speculative-cascade:rule={name},alpha=0.1,k=4" for name in ("token-v3", "head")),
    "speculative:k=4,verify=block",
]
TOKENS = 7
SEEDS = range(6)


@pytest.fixture(scope="module")
def loaded() -> Pair:
    return load_pair(pair(12, **MIDDLE), dtype="float32")


@pytest.fixture(params=["step by step", "captured rounds"])
def either(request: pytest.FixtureRequest, loaded: Pair, monkeypatch: pytest.MonkeyPatch) -> Pair:
    """With captured rounds and without: captured rounds get copies of their inputs, as on a GPU, others do not."""
    capture = Uncaptured() if request.param == "captured rounds" else None
    monkeypatch.setattr(loaded, "graphs", GraphCache(capture))
    return loaded


def runs(loaded: Pair, strategy: str, seeds: Iterable[int] = SEEDS, **more: Any) -> list[Run]:
    ask = {"prompt_ids": [1, 2], "strategy": strategy, "max_new_tokens": TOKENS, "temperature": 1.0}
    return [generate(loaded, seed=seed, **ask | more) for seed in seeds]


def texts(found: Sequence[Run]) -> list[list[int]]:
    return [run.token_ids for run in found]


@pytest.mark.usefixtures("where")
@pytest.mark.parametrize("strategy", SPECS)
def test_each_token_uses_its_own_uniforms(
    strategy: str, either: Pair, loaded: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = runs(loaded, strategy)
    monkeypatch.setattr("cascli.kernels.serve", lambda _: True)
    assert texts(runs(either, strategy)) == texts(wanted)


TRUNCATED = [
    (5, SPECS[0], {"top_k": 4, "top_p": 0.9, "temperature": 1.3}),
    (5, SPECS[2], {"top_p": 0.7}),
    (257, SPECS[3], {"top_k": 3}),
]


@pytest.mark.usefixtures("where")
@pytest.mark.parametrize(("vocab", "strategy", "sampling"), TRUNCATED, ids=str)
def test_truncated_texts_equal_the_plain_path(
    vocab: int, strategy: str, sampling: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drafts and rounds are both truncated by the kernels, from 257 tokens to a few."""
    loaded = load_pair(pair(vocab, **MIDDLE), dtype="float32")
    ask = {"seeds": range(1), "max_new_tokens": 5, **sampling}
    wanted = runs(loaded, strategy, **ask)
    monkeypatch.setattr("cascli.kernels.serve", lambda _: True)
    monkeypatch.setattr("cascli.sampling.distributions.warp", lambda *_: pytest.fail("torch's own operations"))
    found = runs(loaded, strategy, **ask)
    assert texts(found) == texts(wanted)
    for ours, plain in zip(found, wanted, strict=True):
        a, b = ([token.p for token in run.emitted] for run in (ours, plain))
        assert a == pytest.approx(b, rel=1e-4, abs=1e-6)


def test_the_pair_disagrees_in_the_middle(loaded: Pair) -> None:
    """Keeps the tests above sensitive: acceptance at 0.1 to 0.9, rounds of many lengths."""
    found = [step for run in runs(loaded, SPECS[0]) for step in run.rounds]
    chances = [token.accept_prob for step in found for token in step.drafted]
    assert sum(0.1 < chance < 0.9 for chance in chances) > len(chances) / 4
    kept = {sum(token.accepted for token in step.drafted) for step in found}
    assert len(kept) >= 4 and {len(step.drafted) for step in found} >= {3, 4}  # full rounds, and an unprepared one


class Strided(Uniforms):
    """Uniforms as they once were stored: three columns of one table."""

    def __init__(self, seed: int, length: int, device: torch.device | str = "cpu") -> None:
        super().__init__(seed, length, device)
        table = torch.stack([self._draw, self._accept, self._residual], dim=1)
        self._draw, self._accept, self._residual = table.unbind(dim=1)


@pytest.mark.usefixtures("where")
def test_a_misread_strided_column_is_detected(either: Pair, loaded: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: the kernels read a strided column as if it were packed."""
    wanted, right = runs(loaded, SPECS[0]), verification.verify

    def misread(*given: torch.Tensor, **how: object) -> torch.Tensor:
        logits, tokens, q, q1, u_accept, u_next = given
        there = min(u_accept.shape[0], u_accept.untyped_storage().nbytes() // 8 - u_accept.storage_offset())
        wrong = torch.as_strided(u_accept, (there,), (1,), u_accept.storage_offset())
        return right(logits, tokens, q, q1, wrong, u_next, **how)

    monkeypatch.setattr("cascli.kernels.serve", lambda _: True)
    monkeypatch.setattr("cascli.engine.Uniforms", Strided)
    monkeypatch.setattr(verification, "verify", misread)
    assert texts(runs(either, SPECS[0])) != texts(wanted)
