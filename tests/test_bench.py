"""cascli bench, and decoding at a synthetic acceptance rate."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cascli import Pair, generate, load_pair
from cascli.analysis.batches import BatchRun
from cascli.analysis.bench import Bench
from cascli.analysis.profile import Profile, timing
from cascli.analysis.prospects import prospects
from cascli.analysis.tidy import of_bench
from cascli.errors import UsageError
from cascli.jobs.bench import bench, synthetic_context, synthetic_runs
from cascli.jobs.profile import profile
from cascli.jobs.synthetic import Synthetic
from cascli.models.choose_runner import choose_runner
from cascli.models.gpu.capture import Uncaptured
from cascli.render.bench import print_bench
from cascli.render.plots import plot_bench
from tests.pairs import pair
from tests.test_screen import screen


@pytest.mark.parametrize("acceptance", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_synthetic_acceptance_matches_the_requested_rate(
    text_pair: Pair, acceptance: float, temperature: float
) -> None:
    tested = passed = 0
    for seed in range(12):
        run = generate(
            text_pair,
            "hello",
            strategy=Synthetic(acceptance=acceptance, k=4),
            max_new_tokens=60,
            seed=seed,
            temperature=temperature,
        )
        assert run.strategy == "synthetic-acceptance" and run.params == {"acceptance": acceptance, "k": 4}
        assert run.metrics.lossless is False
        for step in run.rounds:
            kept = sum(token.accepted for token in step.drafted)
            tested += kept + (kept < len(step.drafted))
            passed += kept
    deviation = math.sqrt(acceptance * (1 - acceptance) / tested)
    assert abs(passed / tested - acceptance) <= 5 * deviation  # a false alarm has probability 6e-7


def test_bench_results_are_complete_and_round_trip(text_pair: Pair, tmp_path: Path) -> None:
    found = bench(
        text_pair, contexts=[20, 50], blocks=(1, 2, 3), repeats=2, synthetic_acceptance=0.7, ks=(2,), tokens=12
    )
    assert [each.context for each in found.profiles] == [20, 50]
    assert found.copy_bytes_per_second > 1e8
    assert found.ratio_of_bytes == 1.0
    share = found.bandwidth_share("target", found.profiles[0])
    assert share is not None and 0 < share < 1
    assert found.synthetic is not None and found.synthetic.accounts[0].k == 2
    assert Bench.from_json(found.to_json()) == found
    gains = [each.speed_up for each in prospects(found.profiles[0])]
    assert gains == sorted(gains)
    for suffix in (".png", ".svg"):
        plot_bench(found, tmp_path / f"plot{suffix}")
        assert (tmp_path / f"plot{suffix}").stat().st_size > 5000
    assert "synthetic" in (tmp_path / "plot.svg").read_text()
    dollars = found.model_copy(update={"pair": found.pair.model_copy(update={"name": "5$ \\frac$ \u4e2d\x1b"})})
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of characters that the font lacks
        plot_bench(dollars, tmp_path / "plot.svg")


def test_bench_refuses_contexts_beyond_the_pair(text_pair: Pair) -> None:
    with pytest.raises(UsageError, match="exceed the pair's context of 256"):
        bench(text_pair, contexts=[250])
    assert [each.context for each in bench(text_pair, repeats=1).profiles] == [128]


def test_steps_that_were_measured_serve_several_replays(text_pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = profile(text_pair, synthetic_context(12), blocks=range(1, 4), repeats=1)
    monkeypatch.setattr("cascli.jobs.bench.profile", lambda *_, **__: pytest.fail("measured again"))
    for acceptance in (0.2, 0.9):
        found = synthetic_runs(text_pair, acceptance, ks=(2,), tokens=12, repeats=1, steps=steps)
        assert found.acceptance == acceptance and found.accounts[0].c == steps.c


def test_long_blocks_can_be_replayed(text_pair: Pair) -> None:
    """Blocks longer than those that steps are otherwise timed for."""
    found = synthetic_runs(text_pair, 0.5, ks=(2, 12), tokens=14, repeats=1)
    assert [each.k for each in found.accounts] == [2, 12] and len(found.models_share) == 2


def test_nothing_is_recorded_twice() -> None:
    """If the cache grew between two contexts, what was recorded and compiled for the first would be dropped."""
    loaded = load_pair(pair(300))
    made: list[Callable[[], Any]] = []

    class Counting(Uncaptured):
        def __call__(self, compute: Callable[[], Any]) -> Callable[[], Any]:
            made.append(compute)
            return super().__call__(compute)

    for model in (loaded.draft, loaded.target):
        model.runner, _ = choose_runner(model.model, 300, model.device, graphs=True, capture=Counting())
    made.clear()  # what self-tests captured
    bench(loaded, contexts=[20, 200], repeats=1)  # the longest round exceeds a cache of 256
    assert len(made) == sum(model.runner.graphs for model in (loaded.draft, loaded.target)) > 0


def test_a_round_costs_the_same_late_in_a_long_answer() -> None:
    """Nothing outside the models may grow with the answer: no copied cache, no list of all tokens per round."""
    loaded = load_pair(pair(300, max_position_embeddings=4096))
    run = generate(loaded, "hello", strategy="speculative:k=2", max_new_tokens=2400, seed=1)
    outside = [step.seconds.total - step.seconds.draft - step.seconds.verify for step in run.rounds]
    tenth = len(outside) // 10
    early, late = sorted(outside[tenth : 2 * tenth]), sorted(outside[-tenth:])
    assert late[tenth // 2] < 2 * early[tenth // 2]


def test_numbers_are_printed_under_their_headings(text_pair: Pair) -> None:
    """Readers look up block costs, predictions and measurements in these columns."""
    made = bench(text_pair, contexts=[16], blocks=(1, 2, 3), repeats=1, synthetic_acceptance=0.7, ks=(2,), tokens=8)
    steps = Profile(context=16, draft={1: timing([0.5])}, target={1: timing([2.0]), 2: timing([2.5]), 3: timing([3.5])})
    assert made.synthetic is not None
    told = {"tokens_per_round": 2.1, "c": 0.25, "v": 1.75, "predicted_speed_up": 1.3, "measured_speed_up": 1.2}
    told |= {"measured_over_predicted": 0.92, "overhead": 0.05}
    account = made.synthetic.accounts[0].model_copy(update=told)
    rates = [
        BatchRun(batch_size=size, k=k, tokens_per_second=is_, predicted_tokens_per_second=was)
        for size, k, is_, was in ((1, 0, 6.0, 6.0), (3, 0, 15.0, 16.0), (3, 2, 30.0, 20.0))
    ]
    shown = {"profiles": [steps], "batches": [steps.model_copy(update={"batch_size": 3})], "batch_runs": rates}
    shown |= {"synthetic": made.synthetic.model_copy(update={"accounts": [account]}), "batch_memory": None}
    view = screen(200, color=False)
    print_bench(made.model_copy(update=shown), view)
    lines = [" ".join(line.split()) for line in view.out.file.getvalue().splitlines()]
    assert "16 500 ms 2.0 s 0.25 1.25 1.75" in lines  # the context, both steps, c, and v of 2 and of 3 tokens
    assert "2 2.10 0.25 1.75 1.30x 1.20x 0.92 0.05" in lines
    assert "k=2, batch 3 30.0 20.0 1.50 2.00x" in lines
    batches = [row for row in of_bench(made.model_copy(update=shown)).records if row["predicted_tokens_per_second"]]
    assert [row["speed_vs_target"] for row in batches] == [1.0, 1.0, 2.0]  # relative to the target at that batch size
