"""What only a GPU can show of batches: graphs over rows of several texts, compared with each text alone."""

from __future__ import annotations

import warnings
from functools import partial

import pytest
import torch

from cascli import Pair, generate, load_pair
from cascli.models.batch.reader import DraftRequest, ReadRequest
from cascli.models.calls import Calls, Write
from cascli.models.gpu.batch_reader import GraphReader, graph_reader
from cascli.models.gpu.graph_runner import GraphRunner
from cascli.sampling.autoregressive import Sampler
from cascli.sampling.parameters import Sampling
from tests.batch.divergence import explained
from tests.batch.test_lanes import PROMPTS, in_lanes
from tests.laws.of_recorded import MIDDLE
from tests.pairs import ARCHITECTURES, pair

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize("strategy", ["target", "speculative:k=3"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_greedy_answers_differ_only_by_rounding(name: str, dtype: str, strategy: str) -> None:
    """With another number of rows, products are summed in another order; only this may make answers diverge."""
    loaded = load_pair(pair(300, **ARCHITECTURES[name]), dtype=dtype, device="cuda")
    ask = {"strategy": strategy, "temperature": 0.0, "max_new_tokens": 40}
    work = [partial(generate, prompt_ids=ids, **ask) for ids in PROMPTS]
    together, lanes = in_lanes(loaded, 4, work)
    assert not lanes.alone_because
    for ids, job, run in zip(PROMPTS, work, together, strict=True):
        model, alone = loaded.target.model, job(loaded)
        assert explained(model, ids, alone.token_ids, run.token_ids, loaded.vocab), (alone.token_ids, run.token_ids)


@pytest.mark.parametrize("strategy", ["speculative:k=4", "speculative-cascade:rule=token-v3,alpha=0.3,k=5"])
def test_sampled_answers_equal_those_alone(strategy: str) -> None:
    loaded = load_pair(pair(12, **MIDDLE), dtype="float32", device="cuda")
    ask = {"prompt_ids": [1, 2], "strategy": strategy, "max_new_tokens": 7, "temperature": 1.0}
    work = [partial(generate, seed=seed, **ask) for seed in range(40)]
    together, _ = in_lanes(loaded, 8, work)
    same = sum(run.token_ids == job(loaded).token_ids for run, job in zip(together, work, strict=True))
    assert same >= 39, same  # a draw at the very edge of a token's interval may fall on the other side


@pytest.fixture
def loaded() -> Pair:
    return load_pair(pair(300), dtype="bfloat16", device="cuda")


def test_a_pass_does_not_synchronize(loaded: Pair) -> None:
    """Row positions are copied to the device while its earlier work is still running."""
    assert isinstance(loaded.target.runner, GraphRunner)
    reader = graph_reader(loaded.target.runner, 4)
    assert isinstance(reader, GraphReader)
    law, ids = Sampler(Sampling(), reads_base=True), torch.tensor([3], device="cuda")
    u = torch.full((3,), 0.5, dtype=torch.float64, device="cuda")
    reader.prepare(0, 5, 100, Calls(reads=[(1, 1)], writes=[Write(1, 3)]), law)
    torch.cuda.set_sync_debug_mode("error")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            reader.read([ReadRequest(place, ids, 1) for place in range(3)])
            reader.write([DraftRequest(place, ids, law, u, False) for place in range(3)])
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_times_of_lanes_add_up_to_those_of_the_batch(loaded: Pair) -> None:
    """Lanes wait for a pass before dividing its time, so the models' time is not counted as time between them."""
    work = [partial(generate, prompt_ids=[5], strategy="target", seed=i, max_new_tokens=64) for i in range(8)]
    in_lanes(loaded, 8, work)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    together, lanes = in_lanes(loaded, 8, work)
    end.record()
    end.synchronize()
    seconds = [run.metrics.seconds for run in together]
    assert sum(each.total for each in seconds) < start.elapsed_time(end) / 1000
    # Without waiting it would be the time of launching one graph, a hundredth; the models are tiny, and Python is not.
    assert sum(each.verify for each in seconds) > 0.1 * sum(each.total for each in seconds)
    assert lanes.passes["target"] == 64
