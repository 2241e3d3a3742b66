"""Compiled steps without a GPU: torch.compile compiles every architecture whole, and only a few times."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from cascli import generate, load_pair
from cascli.errors import RunError
from cascli.models.calls import Calls, Write
from cascli.models.choose_runner import BY_FLAG, choose_runner
from cascli.models.gpu.capture import Uncaptured
from cascli.models.gpu.compiled import Compiled
from cascli.models.gpu.graph_runner import GraphRunner
from cascli.models.pair import Pair
from cascli.sampling.autoregressive import Sampler
from cascli.sampling.parameters import Sampling
from tests.pairs import ARCHITECTURES, pair


@pytest.fixture
def stock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models with torch's own layers, as on a GPU."""
    monkeypatch.setattr("cascli.models.load.fit", lambda *_: None)


def compiled(loaded: Pair, backend: object = "aot_eager") -> Pair:
    """The pair with compiled steps instead of its own runners; nothing is recorded."""
    for model in (loaded.draft, loaded.target):
        model.runner = GraphRunner(model.model, loaded.vocab, model.device, Uncaptured(), backend)
    return loaded


@pytest.mark.usefixtures("stock")
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_compiled_steps_equal_eager_ones(name: str) -> None:
    """Blocks of every length, two buckets, drafts of one to three tokens."""
    config = pair(**ARCHITECTURES[name] | {"max_position_embeddings": 600, "n_positions": 600})
    plain, made = load_pair(config).target.runner, compiled(load_pair(config)).target.runner
    text = torch.randint(0, plain.vocab, (320,), generator=torch.Generator().manual_seed(0))
    made.prepare(20, 300, Calls(reads=[(n, n) for n in range(5, 0, -1)]))
    for start in (20, 300):
        for runner in (plain, made):
            runner.reset()
            runner.forward(text[:start], 1)
        for n in (5, 1, 3, 2):
            wanted, found = (runner.forward(text[start : start + n], n) for runner in (plain, made))
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
            plain.truncate(start), made.truncate(start)


@pytest.mark.usefixtures("stock")
def test_a_model_is_compiled_only_a_few_times_for_any_lengths() -> None:
    counter = CompileCounterWithBackend("eager")
    runner = compiled(load_pair(pair(max_position_embeddings=4096)), counter).target.runner
    law = Sampler(Sampling(), reads_base=True)
    runner.prepare(20, 230, Calls([(n, n) for n in range(7, 0, -1)], [Write(1, 3), Write(1, 1)]), law)
    once = counter.frame_count
    assert once == 2  # one for a single token, one for any number of them
    runner.prepare(20, 230, Calls([(n, n) for n in range(9, 0, -1)], [Write(1, 5)]), law)
    assert counter.frame_count == once
    runner.prepare(500, 1500, Calls([(n, n) for n in range(9, 0, -1)], [Write(2, 5), Write(1, 5)]), law)
    assert counter.frame_count <= once + 4  # other buckets, and one row of two tokens
    assert 0 < runner.compile_seconds <= runner.capture_seconds


@pytest.mark.usefixtures("stock")
def test_strategies_write_the_same_with_compiled_steps() -> None:
    plain, made = load_pair(pair()), compiled(load_pair(pair()))
    for strategy in ("target", "speculative:k=3", "speculative-cascade:rule=opt,alpha=0.3,k=2", "token-cascade"):
        wanted, found = (
            generate(each, prompt_ids=[5, 6, 7], strategy=strategy, max_new_tokens=24) for each in (plain, made)
        )
        assert found.token_ids == wanted.token_ids, strategy


def test_a_model_that_cannot_be_compiled_raises_a_clear_error() -> None:
    def forward(ids: torch.Tensor, rows: int) -> torch.Tensor:
        return ids[: int(ids.sum().item())] if ids.sum() > rows else ids

    with pytest.raises(RunError, match=r"torch.compile cannot compile the model: .*\nUse --no-compile"):
        Compiled(forward, "eager")(torch.tensor([3]), 1)


def test_only_single_token_steps_are_tuned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the setting, products with one row use the library, as in uncompiled steps."""
    from torch._inductor import compile_fx, config

    asked = []

    def compile_nothing(graph: torch.fx.GraphModule, inputs: object, *, config_patches: dict, **_: object) -> object:
        asked.append((config_patches, config.coordinate_descent_tuning))
        return graph

    monkeypatch.setattr(compile_fx, "compile_fx", compile_nothing)
    step = Compiled(lambda ids, rows: ids[-rows:].float() * 2)
    assert step(torch.tensor([3]), 1).tolist() == [6] and step(torch.tensor([3, 4]), 2).tolist() == [6, 8]
    assert asked == [({"coordinate_descent_tuning": True}, False), ({}, False)]


def test_compiled_without_graphs() -> None:
    loaded, cpu = load_pair(pair()), torch.device("cpu")
    model = loaded.target.model
    runner, why = choose_runner(model, 9, cpu, graphs=False, compiler="eager", capture=Uncaptured())
    assert isinstance(runner, GraphRunner) and why == BY_FLAG and runner.compile_seconds == 0
    model.hf_device_map = {"a": 0, "b": 1}
    runner, why = choose_runner(model, 9, cpu, graphs=False, compiler="eager", capture=Uncaptured())
    assert not isinstance(runner, GraphRunner) and why == "it is spread over 2 devices"
