"""`cascli verify` on a device with kernels audits the kernels: it fails if they are broken."""

from __future__ import annotations

import pytest
import torch

from cascli import Pair
from cascli.audit import rounds, tables
from cascli.kernels import verification
from cascli.sampling.parameters import Sampling
from cascli.strategies import parse

if torch.cuda.is_available():
    pytest.skip("on a GPU tests/gpu does this", allow_module_level=True)

STRATEGIES = [
    parse("speculative:k=2"),
    *(parse(f"speculative-cascade:rule={name},alpha=0.3,k=2") for name in ("token-v3", "head")),
]


@pytest.fixture
def tree(text_pair: Pair, where: torch.device, monkeypatch: pytest.MonkeyPatch) -> tables.Tree:
    """Computed by the plain path; everything after it runs through the kernels."""
    tree = tables.tabulate(text_pair, [72, 105], width=6, depth=1)
    monkeypatch.setattr("cascli.kernels.serve", lambda _: True)
    monkeypatch.setattr(rounds, "SEEDS", 3)
    monkeypatch.setattr(rounds, "WHOLE_VOCABULARY_ROUNDS", [(4, 0)])
    monkeypatch.setattr(rounds, "LONG_ROUNDS", [(8, 10)])
    monkeypatch.setattr(rounds, "SAMPLINGS", (Sampling(1.0),))
    return tree


def test_the_kernels_pass(text_pair: Pair, tree: tables.Tree) -> None:
    found = list(rounds.rounds(text_pair, tree, STRATEGIES))
    assert [check.status for check in found] == ["pass"] * 3
    assert all(", kernels" in check.detail for check in found)


def test_truncated_rounds_pass(text_pair: Pair, tree: tables.Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a few, as each takes a dozen more kernels; a kernel that keeps too many tokens fails."""
    monkeypatch.setattr(rounds, "LONGEST", 2)
    monkeypatch.setattr(rounds, "LONG_ROUNDS", [])
    monkeypatch.setattr(rounds, "WHOLE_VOCABULARY_ROUNDS", [(2, 0)])
    monkeypatch.setattr(rounds, "SAMPLINGS", (Sampling(0.9, top_k=4, top_p=0.8),))
    [check] = rounds.rounds(text_pair, tree, STRATEGIES[:1])
    assert check.status == "pass"
    right = verification.verify
    monkeypatch.setattr(verification, "verify", lambda *given, **how: right(*given, **how | {"top_k": 0}))
    [check] = rounds.rounds(text_pair, tree, STRATEGIES[:1])
    assert check.status == "fail"


def test_a_misread_uniform_fails(text_pair: Pair, tree: tables.Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the third and later tests are wrong, which no joint law of two or three tokens would show."""
    right = verification.verify

    def misread(*given: torch.Tensor, **how: object) -> torch.Tensor:
        logits, tokens, q, q1, u_accept, u_next = given
        wrong = torch.cat([u_accept[:2], u_next[: max(len(u_accept) - 2, 0)]])
        return right(logits, tokens, q, q1, wrong, u_next, **how)

    monkeypatch.setattr(verification, "verify", misread)
    assert [check.status for check in rounds.rounds(text_pair, tree, STRATEGIES)] == ["fail"] * 3
