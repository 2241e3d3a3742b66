"""Answers in lanes equal those of each prompt alone: tokens, numbers and counts, whatever runs concurrently."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch

from cascli import Pair, Run, generate, load_pair
from cascli.errors import RunError
from cascli.models.batch.lanes import Lanes
from cascli.models.cpu import batch_reader
from cascli.models.cpu.packed_linear import can_pack
from cascli.models.eager_runner import EagerRunner
from tests.pairs import ARCHITECTURES, EVERY_ARCHITECTURE, float32_by_rows, pair, torch_version

# Prompts and answers of different lengths, so that lanes begin, accept and end at different times.
PROMPTS = [[5, 6, 7][: 1 + i % 3] * (1 + i) for i in range(7)]
SPECS = [
    ("target", 1.0),
    ("speculative:k=3", 1.0),
    ("speculative:k=2,verify=block", 1.0),
    ("speculative-cascade:rule=opt,alpha=0.3,k=4", 0.7),
    ("speculative:draft=prompt-lookup,k=5", 0.0),
    ("speculative:draft=suffix,k=4", 1.0),
    ("speculative:stop=max-q,k=6", 1.0),
    ("token-cascade", 1.0),
    ("cascade:threshold=-3", 1.0),
]


def jobs(spec: str, temperature: float, **more: Any) -> list[Callable[[Pair], Run]]:
    return [
        partial(
            generate, prompt_ids=ids, strategy=spec, temperature=temperature, seed=i, max_new_tokens=6 + 3 * i, **more
        )
        for i, ids in enumerate(PROMPTS)
    ]


def found(run: Run) -> tuple[Any, ...]:
    """Everything except times."""
    times = {"seconds", "ttft_seconds", "tokens_per_second", "seconds_per_token"}
    counts = run.metrics.model_dump(exclude=times)
    return run.token_ids, [each.model_dump(exclude={"seconds"}) for each in run.rounds], counts


def in_lanes(loaded: Pair, size: int, work: Sequence[Callable[[Pair], Run]]) -> tuple[list[Run], Lanes]:
    lanes = Lanes(loaded, size)
    done = {ended.place: ended.result for ended in lanes.run(work)}
    return [done[place] for place in range(len(work))], lanes


@pytest.mark.parametrize("name", EVERY_ARCHITECTURE)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_answers_equal_those_generated_alone(name: str, dtype: str) -> None:
    if dtype == "bfloat16" and not can_pack(torch.bfloat16):
        pytest.skip("this processor has no bfloat16 units")
    if dtype == "float32" and not float32_by_rows():
        pytest.skip("not promised for this processor with this torch")
    loaded = load_pair(pair(300, **EVERY_ARCHITECTURE[name]), dtype=dtype)
    every = name == "qwen2" and dtype == "int8"  # one precision is enough: what a strategy does does not depend on it
    some = SPECS[:2] if dtype == "int8" else SPECS[1:2]  # speculation reads single tokens, too
    for spec, temperature in SPECS if every else SPECS[:4] if name == "qwen2" else some:
        work = jobs(spec, temperature)
        alone = [job(loaded) for job in work]
        # Before torch 2.13, oneDNN uses another kernel for unpacked float32 with 11 or more rows; two texts of 4 stay
        # below.
        together, _ = in_lanes(loaded, 2 if dtype == "float32" and torch_version() < (2, 13) else 3, work)
        assert [found(run) for run in together] == [found(run) for run in alone], spec


def test_texts_moved_to_longer_buffers_keep_their_contents() -> None:
    loaded = load_pair(pair(300, max_position_embeddings=700))
    work = [
        partial(generate, prompt_ids=[3, 4] * n, strategy="speculative:k=3", seed=n, max_new_tokens=20)
        for n in (4, 120, 150, 290)
    ]
    together, _ = in_lanes(loaded, 3, work)
    assert [run.token_ids for run in together] == [job(loaded).token_ids for job in work]


def test_lanes_share_passes() -> None:
    loaded = load_pair(pair(300))
    work = [partial(generate, prompt_ids=[5], strategy="target", seed=i, max_new_tokens=12) for i in range(6)]
    _, lanes = in_lanes(loaded, 6, work)
    assert lanes.passes == {"draft": 0, "target": 12}
    work = [partial(generate, prompt_ids=[5], strategy="speculative:k=2", seed=i, max_new_tokens=12) for i in range(6)]
    together, lanes = in_lanes(loaded, 6, work)
    # No lane makes the others wait, so the number of passes is that of the longest answer.
    assert lanes.passes["target"] == max(run.metrics.target_calls for run in together)
    assert lanes.passes["draft"] <= 2 * lanes.passes["target"]


def test_models_that_cannot_share_passes_report_the_reason() -> None:
    loaded = load_pair(pair(300, **ARCHITECTURES["gemma2"]))
    _, lanes = in_lanes(loaded, 2, jobs("target", 1.0)[:2])
    assert lanes.passes["target"] == 0
    assert "attention" in lanes.alone_because["target"]


def test_the_time_of_a_pass_is_divided_among_lanes_by_token_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only passes take time: six seconds each."""
    now = [0.0]
    monkeypatch.setattr("cascli.models.batch.lanes.time.perf_counter", lambda: now[0])
    read = batch_reader.RowReader.read

    def slow(self: Any, wanted: Any) -> Any:
        now[0] += 6.0
        return read(self, wanted)

    monkeypatch.setattr(batch_reader.RowReader, "read", slow)
    loaded, spent = load_pair(pair(300)), {}

    def asks(given: Pair, name: str, n: int, times: int) -> str:
        start, runner = given.timer(), given.target.runner
        for _ in range(times):
            runner.forward(torch.arange(n), 1)
        spent[name] = given.timer() - start
        return name

    work = [partial(asks, name=name, n=n, times=times) for name, n, times in (("a", 1, 2), ("b", 4, 1), ("c", 1, 1))]
    assert {ended.result for ended in Lanes(loaded, 3).run(work)} == {"a", "b", "c"}
    # One pass of 1, 4 and 1 tokens, and one of the first lane alone.
    assert spent == {"a": pytest.approx(1.0 + 6.0), "b": pytest.approx(4.0), "c": pytest.approx(1.0)}
    assert sum(spent.values()) == pytest.approx(now[0])


LONG = [[3 + (7 * i + j) % 290 for j in range(20 + 9 * i)] for i in range(3)]
"""Prompts that are read on their own, as blocks."""


def asked_twice() -> list[Callable[[Pair], Run]]:
    """Two strategies run the same prompts with different random numbers; short prompts run between them."""
    asked = [*LONG, *PROMPTS[:2], *reversed(LONG), *PROMPTS[:2]]
    specs = ["speculative:k=3"] * 5 + ["speculative-cascade:rule=opt,alpha=0.3,k=2"] * 5
    return [
        partial(generate, prompt_ids=ids, strategy=spec, temperature=1.0, seed=i, max_new_tokens=9)
        for i, (ids, spec) in enumerate(zip(asked, specs, strict=True))
    ]


@pytest.mark.parametrize("name", ["qwen2", "mistral"])
def test_a_kept_prompt_is_read_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, work, blocks = load_pair(pair(300, **ARCHITECTURES[name])), asked_twice(), list[int]()
    alone = [job(loaded) for job in work]
    forward = EagerRunner.forward
    monkeypatch.setattr(
        EagerRunner, "forward", lambda self, ids, rows: blocks.append(len(ids)) or forward(self, ids, rows)
    )
    lanes = Lanes(loaded, 3, keep_prompts=True)
    for _ in range(2):
        together = {ended.place: ended.result for ended in lanes.run(work)}
        assert [found(together[place]) for place in range(len(work))] == [found(run) for run in alone]
    assert sorted(blocks) == sorted(2 * [len(ids) - 1 for ids in LONG])  # once by each model


def test_prompts_are_read_again_when_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, work = load_pair(pair(300)), asked_twice()
    alone = [found(job(loaded)) for job in work]
    monkeypatch.setattr("cascli.models.batch.lanes.available", lambda device: 8 * 40_000)
    lanes = Lanes(loaded, 3, keep_prompts=True)
    together = {ended.place: found(ended.result) for ended in lanes.run(work)}
    assert [together[place] for place in range(len(work))] == alone
    assert 0 < sum(t.nbytes for read in lanes.prompts.values() for layer in read.states for t in layer) <= 40_000
    assert not Lanes(loaded, 3).prompts


def test_a_kept_prompt_still_reports_the_time_to_read_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only reading prompts takes time, seven seconds per model; repeated prompts report it but do not wait again."""
    now = [0.0]
    monkeypatch.setattr("cascli.models.batch.lanes.time.perf_counter", lambda: now[0])
    forward = EagerRunner.forward

    def slow(self: Any, ids: Any, rows: int) -> Any:
        now[0] += 7.0 if len(ids) > batch_reader.MOST_ROWS else 0.0
        return forward(self, ids, rows)

    monkeypatch.setattr(EagerRunner, "forward", slow)
    ask = partial(generate, prompt_ids=LONG[0], strategy="speculative:k=2", max_new_tokens=4)
    lanes = Lanes(load_pair(pair(300)), 2, keep_prompts=True)
    runs = [ended.result for _ in range(2) for ended in lanes.run([ask, ask])]
    assert [run.metrics.seconds.prefill for run in runs] == pytest.approx([14.0] * 4)
    assert [run.metrics.seconds.total for run in runs] == pytest.approx([14.0] * 4)
    assert now[0] == pytest.approx(14.0)


EXAMPLES = [3 + (11 * j) % 250 for j in range(50)]
"""Common beginning of several prompts: two blocks of 20 tokens and part of a third."""


def asked_after_examples() -> list[Callable[[Pair], Run]]:
    """Prompts that begin alike; the last one has the tokens of their second block after a different first one."""
    asked = [EXAMPLES + ids for ids in LONG] + [EXAMPLES[:45], LONG[1][:20] + EXAMPLES[20:] + LONG[0]]
    return [
        partial(generate, prompt_ids=ids, strategy="speculative:k=3", temperature=1.0, seed=i, max_new_tokens=9)
        for i, ids in enumerate(asked)
    ]


@pytest.mark.parametrize("name", ["qwen2", "mistral"])
def test_a_common_prompt_prefix_is_read_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cascli.models.choose_runner.PROMPT_BLOCK", 20)
    loaded, work, blocks = load_pair(pair(300, **ARCHITECTURES[name])), asked_after_examples(), list[int]()
    alone = [found(job(loaded)) for job in work]
    forward = EagerRunner.forward
    monkeypatch.setattr(
        EagerRunner, "forward", lambda self, ids, rows: blocks.append(len(ids)) or forward(self, ids, rows)
    )
    lanes = Lanes(loaded, 2, keep_prompts=True)
    together = {ended.place: found(ended.result) for ended in lanes.run(work)}
    assert [together[place] for place in range(len(work))] == alone
    # Blocks too long to share a pass: two in common; then one, two and two for the first three prompts, none for the
    # fourth, and three for the fifth, whose second block has the common tokens after different ones.
    assert sorted(n for n in blocks if n > batch_reader.MOST_ROWS) == [18] * 2 + [20] * 18


def test_every_answer_reports_the_time_to_read_a_shared_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading takes one second per token; every prompt reports the time of all its blocks."""
    monkeypatch.setattr("cascli.models.choose_runner.PROMPT_BLOCK", 20)
    now = [0.0]
    monkeypatch.setattr("cascli.models.batch.lanes.time.perf_counter", lambda: now[0])
    forward = EagerRunner.forward

    def slow(self: Any, ids: Any, rows: int) -> Any:
        now[0] += len(ids)
        return forward(self, ids, rows)

    monkeypatch.setattr(EagerRunner, "forward", slow)
    asked = [EXAMPLES[:40] + LONG[i][:16] + [1] for i in range(3)]
    work = [partial(generate, prompt_ids=ids, strategy="target", max_new_tokens=3) for ids in asked]
    lanes = Lanes(load_pair(pair(300)), 1, keep_prompts=True)
    runs = [ended.result for ended in lanes.run(work)]
    assert [run.metrics.seconds.prefill for run in runs] == pytest.approx([56.0] * 3)
    assert now[0] == pytest.approx(40.0 + 3 * 16.0)


@pytest.mark.parametrize("told_by", ["length", "own tokens"])
def test_reusing_states_of_a_different_prefix_is_detected(told_by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: kept states are identified by length alone, or by a block's own tokens without those before it."""
    monkeypatch.setattr("cascli.models.choose_runner.PROMPT_BLOCK", 20)

    class Confused(dict[Any, Any]):
        def get(self, prompt: Any, default: Any = None) -> Any:
            def known_by(role: str, ids: Sequence[int]) -> tuple[Any, ...]:
                return role, len(ids), told_by == "length" or tuple(ids[(len(ids) - 1) // 20 * 20 :])

            return next((each for key, each in self.items() if known_by(*key) == known_by(*prompt)), default)

    loaded, work = load_pair(pair(300)), asked_after_examples()
    lanes = Lanes(loaded, 2, keep_prompts=True)
    lanes.prompts = Confused()
    together = {e.place: e.result.token_ids for e in lanes.run(work)}
    assert [together[place] for place in range(len(work))] != [job(loaded).token_ids for job in work]


def test_an_error_in_one_lane_ends_the_others_and_frees_the_pair() -> None:
    loaded = load_pair(pair(300))

    def fails(given: Pair) -> Run:
        generate(given, prompt_ids=[1], strategy="target", max_new_tokens=3)
        raise KeyError("mine")

    work = [*jobs("speculative:k=2", 1.0)[:2], fails]
    with pytest.raises(KeyError, match="mine"):
        in_lanes(loaded, 3, work)
    assert not torch.is_inference_mode_enabled()
    assert generate(loaded, prompt_ids=[1], strategy="target", max_new_tokens=3).token_ids


def test_closing_the_iterator_ends_all_lanes() -> None:
    loaded = load_pair(pair(300))
    running = Lanes(loaded, 3).run(jobs("speculative:k=2", 1.0))
    next(running)
    with pytest.raises(RunError, match="already answering"):
        generate(loaded, prompt_ids=[1], strategy="target", max_new_tokens=3)
    running.close()
    assert not torch.is_inference_mode_enabled()
    assert generate(loaded, prompt_ids=[1], strategy="target", max_new_tokens=3).token_ids


def test_kernels_that_depend_on_the_row_count_get_few_rows_per_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_reader, "most_rows", lambda dtype: 5)
    loaded = load_pair(pair(300))
    work = jobs("speculative:k=3", 1.0)
    together, _ = in_lanes(loaded, 4, work)
    assert [found(run) for run in together] == [found(job(loaded)) for job in work]


@pytest.mark.parametrize("bug", ["neighbour", "position", "length"])
def test_planted_bugs_are_seen(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    begin = batch_reader._TextsCache.begin

    def planted(self: Any, rows: Sequence[tuple[int, int]]) -> None:
        begin(self, rows)
        if bug == "neighbour":
            self.rows = [((place + 1) % 3, end) for place, end in rows]
        elif bug == "position":
            self.positions = self.positions + 1
        else:
            self.rows = [(place, end + 1) for place, end in rows]

    monkeypatch.setattr(batch_reader._TextsCache, "begin", planted)
    loaded = load_pair(pair(300))
    work = jobs("target", 1.0)
    together, _ = in_lanes(loaded, 3, work)
    assert [run.token_ids for run in together] != [job(loaded).token_ids for job in work]
