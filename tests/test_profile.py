"""Step times of a pair, and what they imply for block lengths."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cascli import Pair, generate, load_pair
from cascli.analysis.profile import interpolated
from cascli.analysis.prospects import prospects
from cascli.config import load_config
from cascli.jobs.profile import blocks_for, profile
from cascli.jobs.step_times import RunOptions, load_step_times, save_step_times
from tests.pairs import EVERY_ARCHITECTURE, pair, profile_of


def test_v_is_interpolated_and_extrapolated() -> None:
    found = profile_of(0.2, {2: 1.0, 4: 2.0})
    assert [found.v(n) for n in (1, 2, 3, 4, 8)] == [1.0, 1.0, 1.5, 2.0, 4.0]
    assert found.c == 0.2 and found.longest == 4
    assert profile_of(0.2, {9: 1.0}).v(33) == 1.0, "flat costs stay flat, whatever the block"
    assert profile_of(0.2, {8: 1.4, 9: 1.3}).v(33) == 1.3, "noise must not make blocks cheaper for ever"
    assert profile_of(0.2, {}).v(5) == 1.0
    assert interpolated({2: 5.0, 4: 7.0}, 1) == 4.0


@pytest.mark.parametrize(("c", "a", "k", "gain"), [(0.1, 0.9, 10, 3.43), (0.05, 0.9, 13, 4.67), (0.02, 0.9, 19, 6.37)])
def test_prospects_extend_only_as_far_as_the_timed_blocks(c: float, a: float, k: int, gain: float) -> None:
    """The papers' case, v = 1: if timed up to 33 tokens, the best k is theirs; up to 9, it may be longer."""
    far, near = (
        next(each for each in prospects(profile_of(c, dict.fromkeys(blocks, 1.0))) if each.acceptance == a)
        for blocks in ((9, 12, 17, 33), range(2, 10))
    )
    assert (far.best_k, far.or_more) == (k, False) and far.speed_up == pytest.approx(gain, abs=0.005)
    assert (near.best_k, near.or_more) == (8, True)


def test_no_k_is_advised_where_none_gains() -> None:
    found = prospects(profile_of(0.9, {2: 1.5, 9: 4.0}))
    assert [each.best_k for each in found] == [None] * len(found)
    assert all(each.speed_up < 1 for each in found)


def test_every_block_that_ran_is_timed() -> None:
    assert blocks_for([4, 16, 40], None) == (1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 17, 33, 41)
    assert blocks_for([16], 15) == (1, 2, 3, 4, 5, 6, 7, 8, 9, 12)


def test_profile_measures_every_block_and_leaves_the_pair_unchanged(text_pair: Pair) -> None:
    before = generate(text_pair, "hello", max_new_tokens=12, seed=3)
    told: list[tuple[int, int]] = []
    found = profile(
        text_pair, 40, blocks=(1, 3, 5), repeats=2, on_progress=lambda _, done, total: told.append((done, total))
    )
    assert sorted(found.target) == [1, 2, 3, 5]
    assert sorted(found.draft) == [1, 2]
    assert all(0 < each.low <= each.median <= each.high for each in (*found.target.values(), *found.draft.values()))
    assert told == [(0, 3), (1, 3), (2, 3)]
    after = generate(text_pair, "hello", max_new_tokens=12, seed=3)
    assert after.token_ids == before.token_ids
    assert [token.p for token in after.emitted] == [token.p for token in before.emitted]


@pytest.mark.parametrize("name", EVERY_ARCHITECTURE)
def test_synthetic_contexts_have_the_requested_length(name: str) -> None:
    loaded = load_pair(pair(300, **EVERY_ARCHITECTURE[name]))
    runner = loaded.target.runner
    runner.fill_cache(100)
    assert runner.length == 100
    assert torch.isfinite(runner.forward(torch.arange(3), 3)).all()
    assert runner.length == 103
    runner.reset()


def test_profile_leaves_global_random_state_alone(text_pair: Pair) -> None:
    before = torch.random.get_rng_state()
    profile(text_pair, 5, repeats=1)
    assert torch.equal(before, torch.random.get_rng_state())


def test_step_times_are_reused_only_for_the_same_configuration(tmp_path: Path, clean_env: pytest.MonkeyPatch) -> None:
    """Step times of another precision, device, thread count, graph setting or vocabulary cut are not used."""
    clean_env.setenv("CASCLI_HOME", str(tmp_path / "home"))
    ids = tmp_path / "ids.txt"
    ids.write_text("1\n2\n")
    made = pair()
    config = load_config(made | {"draft": made["draft"] | {"vocab": str(ids)}})
    save_step_times(config, RunOptions(dtype="int8", threads=2), profile_of(0.2, {2: 1.0}))
    found = load_step_times(config, RunOptions(dtype="int8", threads=2))
    assert found is not None and found.profile == profile_of(0.2, {2: 1.0})
    others = [
        RunOptions(),
        RunOptions(dtype="int8"),
        RunOptions(threads=2),
        RunOptions("cpu", "int8", 2),
        RunOptions(None, "int8", 2, cuda_graphs=False),
    ]
    assert [load_step_times(config, how) for how in others] == [None] * 5
    ids.write_text("1\n3\n")
    assert load_step_times(config, RunOptions(dtype="int8", threads=2)) is None
