"""Everything a round computes, on a device other than the CPU: code that mixes devices or waits for the host fails.

The device is torch's meta device under fake tensors, which compute only shapes and raise when a value is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from cascli import load_pair, rules
from cascli.decoding.speculation import decide_round
from cascli.decoding.thinking import inside
from cascli.kernels.layout import Field
from cascli.models.batch.reader import DraftRequest, ReadRequest
from cascli.models.calls import Calls, Write
from cascli.models.eager_runner import EagerRunner
from cascli.models.gpu.batch_reader import graph_reader
from cascli.models.gpu.capture import Uncaptured
from cascli.models.gpu.graph_runner import GraphRunner
from cascli.models.pair import Pair
from cascli.rules.base import Exact, Rule
from cascli.sampling.autoregressive import Sampler
from cascli.sampling.parameters import Sampling
from tests.pairs import ARCHITECTURES, pair

ELSEWHERE = torch.device("meta")
OPTIONS = [
    *(rules.load(name)(tail="exact") for name in ("token-v1", "typical")),
    *(rules.load(name)(top=3, where="thinking") for name in ("token-v2", "head")),
]
SAMPLINGS = [Sampling(0.0), Sampling(), Sampling(0.7, top_k=20, top_p=0.9)]


def move(model: nn.Module) -> None:
    """Replace all parameters and buffers with empty tensors on the other device."""
    for module in model.modules():
        for store in (module._parameters, module._buffers, vars(module)):
            for name, value in list(store.items()):
                if isinstance(value, torch.Tensor):
                    empty = torch.empty(value.shape, dtype=value.dtype, device=ELSEWHERE)
                    parameter = isinstance(value, nn.Parameter)
                    store[name] = nn.Parameter(empty, requires_grad=False) if parameter else empty


@pytest.fixture
def elsewhere() -> Iterator[None]:
    with FakeTensorMode(), torch.inference_mode():
        yield


@pytest.fixture(params=ARCHITECTURES)
def stock(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Pair:
    monkeypatch.setattr("cascli.models.load.fit", lambda *_: None)
    return load_pair(pair(**ARCHITECTURES[request.param]), dtype="bfloat16")


def test_recorded_steps_stay_on_the_device(stock: Pair, elsewhere: None) -> None:
    model = stock.target.model
    move(model)
    runner, law = GraphRunner(model, stock.vocab, ELSEWHERE, Uncaptured()), Sampler(Sampling(), reads_base=True)
    runner.prepare(20, 230, Calls([(4, 4), (1, 1)], [Write(1, 3, True), Write(1, 1)]), law)
    ids = torch.zeros(20, dtype=torch.long, device=ELSEWHERE)
    assert runner.forward(ids, 1).device == ELSEWHERE
    u = torch.zeros(3, dtype=torch.float64, device=ELSEWHERE)
    for drawn in (3, 2):
        written = runner.write(ids[:1], law, u[:drawn], read_last=drawn == 3)
        assert all(each.device == ELSEWHERE for each in written)
    assert runner.forward(ids[:4], 4).shape == (4, stock.vocab) and runner.length == 20 + 4 + 2 + 4


def test_passes_of_several_texts_stay_on_the_device(stock: Pair, elsewhere: None) -> None:
    model = stock.target.model
    move(model)
    reader = graph_reader(GraphRunner(model, stock.vocab, ELSEWHERE, Uncaptured()), 3)
    law, ids = Sampler(Sampling(), reads_base=True), torch.zeros(20, dtype=torch.long, device=ELSEWHERE)
    u = torch.zeros(3, dtype=torch.float64, device=ELSEWHERE)
    reader.prepare(0, 20, 230, Calls([(4, 4), (1, 1)], [Write(1, 3, True), Write(1, 1)]), law)
    reader.runners[2].forward(ids, 1)
    logits = reader.read([ReadRequest(2, ids[:4], 2), ReadRequest(0, ids[:1], 1)])
    assert [(each.device, each.shape[0]) for each in logits] == [(ELSEWHERE, 2), (ELSEWHERE, 1)]
    written = reader.write([DraftRequest(0, ids[:1], law, u, True), DraftRequest(1, ids[:1], law, u[:1], False)])
    assert all(part.device == ELSEWHERE for each in written for part in each)
    assert [each.length for each in reader.runners] == [1 + 4, 1, 20 + 4]
    reader.read([ReadRequest(1, torch.zeros(20, dtype=torch.long), 1)])  # ids in host memory, as tokens of a draft are
    assert all(place.device == ELSEWHERE for places, _ in reader._graphs._graphs.values() for place in places)


class FromHost(TorchDispatchMode):
    """Notes copies of host memory to the other device, each of which waits there for all earlier work."""

    def __init__(self) -> None:
        super().__init__()
        self.copies: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        copies = func.overloadpacket in (torch.ops.aten.to, torch.ops.aten._to_copy)
        if copies and args[0].device != result.device == ELSEWHERE:
            self.copies.append(tuple(args[0].shape))
        return result


def test_eager_passes_copy_nothing_to_the_device(stock: Pair, elsewhere: None) -> None:
    model = stock.target.model
    move(model)
    runner, ids = EagerRunner(model, stock.vocab, ELSEWHERE), torch.zeros(20, dtype=torch.long, device=ELSEWHERE)
    with FromHost() as seen:
        runner.forward(ids, 1)
        runner.forward(ids[:4], 4)
        runner.read_at(22, ids[:2], 0)
        assert not seen.copies
        runner.forward(torch.zeros(3, dtype=torch.long), 1)
    assert seen.copies == [(3,)], "a copy is seen"


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
@pytest.mark.parametrize("rule", [Exact(), *(rules.load(name)() for name in rules.names()), *OPTIONS], ids=repr)
def test_a_round_stays_on_the_device(rule: Rule, sampling: Sampling, elsewhere: None) -> None:
    n, width = 3, 50
    logits = torch.empty(n + 1, width, dtype=torch.bfloat16, device=ELSEWHERE)
    law = Sampler(sampling, rule.reads_base)
    q, q1 = (each[: n + rule.reads_draft] for each in law(logits))
    tokens = torch.zeros(n, dtype=torch.long, device=ELSEWHERE)
    u = torch.zeros(n + 1, dtype=torch.float64, device=ELSEWHERE)
    holds = [inside(tokens, True, (1, 2))] if rule.thinking_only else []
    numbers = decide_round(rule, sampling, logits, tokens, q, q1, u[:n], u, *holds)
    assert numbers.device == ELSEWHERE and numbers.shape == (len(Field), n + 1)


def test_mixed_devices_and_waits_for_the_host_are_detected(elsewhere: None) -> None:
    there = torch.zeros(3, device=ELSEWHERE)
    with pytest.raises(RuntimeError, match="device"):
        there + torch.zeros(3)
    with pytest.raises(DataDependentOutputException):
        there.sum().item()
