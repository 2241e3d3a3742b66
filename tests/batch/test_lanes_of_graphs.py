"""Lanes of captured passes, with a tape in place of CUDA's graphs: see `tests.tape`."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from cascli import Pair, generate, load_pair
from cascli.models.choose_runner import choose_runner
from cascli.models.gpu import batch_draft, batch_reader
from cascli.models.gpu.batch_reader import GraphReader, bucket_of, buckets_upto
from cascli.models.gpu.graph_cache import GraphCache
from tests.batch.test_lanes import SPECS, in_lanes, jobs
from tests.pairs import ARCHITECTURES, pair
from tests.tape import TapeCapture


def taped(config: dict[str, Any], *, decisions: bool = False) -> Pair:
    """The pair with captured steps, and with captured rounds if they are wanted."""
    loaded = load_pair(config, dtype="float32")
    for model in loaded.models.values():
        model.runner, why = choose_runner(model.model, loaded.vocab, model.device, graphs=True, capture=TapeCapture())
        assert why is None
    if decisions:
        loaded.graphs = GraphCache(TapeCapture())
    return loaded


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_answers_are_those_of_each_alone(name: str) -> None:
    config = pair(300, **ARCHITECTURES[name])
    plain, loaded = load_pair(config, dtype="float32"), taped(config)
    for spec, temperature in SPECS if name == "gemma2" else SPECS[:2]:
        work = jobs(spec, temperature)
        alone = [job(plain) for job in work]
        together, lanes = in_lanes(loaded, 3, work)
        assert not lanes.alone_because
        assert [run.token_ids for run in together] == [run.token_ids for run in alone], spec
        for mine, theirs in zip(together, alone, strict=True):
            assert mine.metrics.draft_calls == theirs.metrics.draft_calls
            assert mine.metrics.mean_tv_to_target == pytest.approx(theirs.metrics.mean_tv_to_target, abs=1e-4)
