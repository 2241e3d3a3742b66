"""Whole runs with the kernels in place of torch's operations: the same trace, round by round."""

from __future__ import annotations

import pytest
import torch

from cascli import Run, generate, load_pair, rules
from tests.pairs import pair

if torch.cuda.is_available():
    pytest.skip("on a GPU tests/gpu does this", allow_module_level=True)

OPTIONS = ("token-v1,tail=exact", "token-v3,tail=exact", "token-v2,top=3", "head,top=2,where=thinking")
SPECULATIVE = [f"speculative-cascade:rule={name},k=3" for name in (*rules.names(), *OPTIONS)]
BY_BLOCK = [f"{name},k=3,verify=block" for name in ("speculative:draft=model", "speculative-cascade:rule=token-v3")]


def trace(strategy: str, temperature: float) -> Run:
    return generate(
        load_pair(pair() | {"thinking": [7, 9]}),
        prompt_ids=[5, 6, 7],
        strategy=strategy,
        temperature=temperature,
        max_new_tokens=9,
        seed=3,
    )


@pytest.mark.usefixtures("where")
@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("strategy", ["target", "cascade:threshold=9", "speculative:k=3", *SPECULATIVE, *BY_BLOCK])
def test_runs_are_the_same_with_kernels(strategy: str, temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = trace(strategy, temperature)
    monkeypatch.setattr("cascli.kernels.serve", lambda _: True)
    found = trace(strategy, temperature)
    assert found.token_ids == wanted.token_ids and len(found.rounds) == len(wanted.rounds)
    for ours, plain in zip(found.rounds, wanted.rounds, strict=True):
        for a, b in zip([*ours.drafted, *ours.emitted], [*plain.drafted, *plain.emitted], strict=True):
            mine, theirs = ({k: v for k, v in each if isinstance(v, (int, float))} for each in (a, b))
            assert mine == pytest.approx(theirs, rel=1e-4, abs=1e-6)


@pytest.mark.usefixtures("where")
@pytest.mark.parametrize("strategy", ["draft", "speculative:k=3", "speculative-cascade:rule=token-v3,k=3"])
def test_detail_changes_no_token_with_kernels(strategy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cascli.kernels.serve", lambda _: True)
    without, with_top = (
        generate(load_pair(pair()), prompt_ids=[5, 6, 7], strategy=strategy, temperature=0.8, max_new_tokens=9, top=top)
        for top in (0, 2)
    )
    assert without.token_ids == with_top.token_ids
    assert all(token.detail is not None for token in with_top.emitted)
