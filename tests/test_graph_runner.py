"""GraphCache steps, with a tape in place of CUDA graphs: see `tests.tape`."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from cascli import generate, load_pair, rules
from cascli.audit.numerics import BLOCK, numerics
from cascli.decoding import speculation
from cascli.decoding.clock import Clock
from cascli.engine import Decoding, Request
from cascli.errors import UsageError
from cascli.models.calls import Calls, Write
from cascli.models.choose_runner import BY_FLAG, choose_runner, why_eager
from cascli.models.eager_runner import EagerRunner
from cascli.models.gpu.capture import Uncaptured
from cascli.models.gpu.decode_attention import can_decode
from cascli.models.gpu.graph_cache import GraphCache
from cascli.models.gpu.graph_runner import LONGEST, MOST_SAMPLERS, GraphRunner
from cascli.models.gpu.static_cache import bucket_for
from cascli.models.pair import Pair
from cascli.sampling.autoregressive import Sampler
from cascli.sampling.parameters import Sampling
from cascli.strategies import parse
from tests.laws.of_recorded import CASES, DEEP, MIDDLE, SHAPE, alarms
from tests.pairs import ARCHITECTURES, answers_of_many_kinds, pair
from tests.reference.process import Target
from tests.tape import TapeCapture


def recorded(loaded: Pair) -> Pair:
    """The pair, with its runners replaced by recorded steps."""
    for model in (loaded.draft, loaded.target):
        runner, why = choose_runner(model.model, loaded.vocab, model.device, graphs=True, capture=TapeCapture())
        assert why is None
        model.runner = runner
    return loaded


@pytest.fixture(params=[*ARCHITECTURES, "llama by buckets", "gemma3_text by buckets"])
def two(request: pytest.FixtureRequest) -> tuple[Pair, Pair]:
    """The same pair with its own runners, and with recorded steps."""
    name, _, buckets = request.param.partition(" ")
    if buckets:
        request.getfixturevalue("by_buckets")
    # Gemma scales attention scores by a separate parameter, which need not match the width of its heads.
    scale = {"query_pre_attn_scalar": 24} if name.startswith("gemma") else {}
    config = pair(**ARCHITECTURES[name] | scale)
    return load_pair(config, dtype="float32"), recorded(load_pair(config, dtype="float32"))


def test_recorded_steps_equal_eager_ones_for_every_block_and_after_rewinds(two: tuple[Pair, Pair]) -> None:
    plain, taped = (each.target.runner for each in two)
    rng, text = random.Random(0), torch.randint(0, two[0].vocab, (250,), generator=torch.Generator().manual_seed(0))
    taped.prepare(20, 230, Calls(reads=[(n, n) for n in range(6, 0, -1)]))
    made = taped.graphs
    plain.forward(text[:20], 1), taped.forward(text[:20], 1)
    for n in [1, 2, 3, 4, 5, 6] * 6:
        start = rng.randint(max(plain.length - 7, 20), plain.length)
        plain.truncate(start), taped.truncate(start)
        wanted, found = (runner.forward(text[start : start + n], n) for runner in (plain, taped))
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
        assert taped.length == plain.length == start + n
    assert taped.graphs == made


def test_early_exits_write_the_targets_text_alongside_recorded_steps(two: tuple[Pair, Pair]) -> None:
    """Early exits write the target's text across two buckets, and with recorded target steps before and after."""
    ask: dict[str, Any] = {"prompt_ids": [5] * 240, "temperature": 0.0, "max_new_tokens": 20}
    exits = "speculative:draft=early-exit,layers=1,k=3"
    for loaded in two:
        texts = [generate(loaded, strategy=each, **ask).token_ids for each in ("target", exits, "target", exits)]
        assert texts == [texts[0]] * 4
    with pytest.raises(UsageError, match="the model has"):
        generate(two[1], strategy="speculative:draft=early-exit,layers=9", **ask)


def test_recorded_drafting_equals_single_steps_for_every_call_and_after_rewinds(two: tuple[Pair, Pair]) -> None:
    """Covers prepared drafts (one recording), others (token by token), rewinds to the prompt, and two buckets."""
    plain, taped = (each.draft.runner for each in two)
    law, rng, generator = Sampler(Sampling(), reads_base=True), random.Random(0), torch.Generator().manual_seed(0)
    writes = [Write(1, 3, True), Write(2, 3), Write(1, 3), Write(1, 1), Write(2, 1)]
    taped.prepare(20, 230, Calls(writes=writes), law)
    made, text = taped.graphs, torch.randint(0, two[0].vocab, (250,), generator=generator)
    plain.forward(text[:20], 1), taped.forward(text[:20], 1)
    others = [Write(1, 0, True), Write(3, 2, True), Write(2, 0, True), Write(4, 1), Write(90, 2)]
    for unread, drawn, read_last in [*writes, *others] * 5:
        start = rng.randint(20, plain.length)
        plain.truncate(start), taped.truncate(start)
        u = torch.rand(drawn, generator=generator, dtype=torch.float64)
        ids = text[start : start + unread]
        wanted, found = (runner.write(ids, law, u, read_last=read_last) for runner in (plain, taped))
        assert found.tokens.tolist() == wanted.tokens.tolist()
        for mine, theirs in zip(found[1:], wanted[1:], strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
        assert taped.length == plain.length == start + unread + drawn + read_last - 1
    assert taped.graphs == made


@pytest.mark.usefixtures("asked_at_once")
def test_strategies_write_the_same_with_recorded_steps(two: tuple[Pair, Pair]) -> None:
    rules = ("chow,alpha=0.9", "token-v3,alpha=0.3")
    cascades = [f"{kind}:rule={rule}" for kind in ("token-cascade", "speculative-cascade") for rule in rules]
    for strategy in ("target", "draft", "cascade:threshold=9", "speculative:k=3", *cascades):
        for temperature in (0.0, 1.0):
            wanted, found = (
                generate(each, prompt_ids=[5, 6, 7], strategy=strategy, temperature=temperature, max_new_tokens=12)
                for each in two
            )
            assert found.token_ids == wanted.token_ids, (strategy, temperature)
            for name in ("draft_calls", "target_calls", "total_flops", "weight_bytes_read"):
                assert getattr(found.metrics, name) == getattr(wanted.metrics, name), name
            assert found.metrics.mean_tv_to_target == pytest.approx(wanted.metrics.mean_tv_to_target, abs=1e-4)


@pytest.mark.parametrize("rule", rules.names())
@pytest.mark.parametrize(
    "sampling", [{"temperature": 0.0}, {}, {"temperature": 0.7, "top_k": 20, "top_p": 0.9}], ids=str
)
@pytest.mark.usefixtures("asked_at_once")
def test_a_recorded_round_equals_the_eager_round(rule: str, sampling: dict) -> None:
    plain, taped = (load_pair(pair(), dtype="float32") for _ in range(2))
    taped.graphs = GraphCache(TapeCapture())
    for seed in range(2):  # the second repeats what the first recorded
        wanted, found = (
            generate(
                each,
                prompt_ids=[5, 6, 7],
                strategy=f"speculative-cascade:rule={rule},k=3",
                max_new_tokens=16,
                seed=seed,
                **sampling,
            )
            for each in (plain, taped)
        )
        assert [step.model_copy(update={"seconds": None}) for step in found.rounds] == [
            step.model_copy(update={"seconds": None}) for step in wanted.rounds
        ]


@pytest.mark.parametrize(("strategy", "rule", "sampling"), CASES, ids=[case[0] for case in CASES])
def test_recorded_rounds_follow_their_law(strategy: str, rule: Target, sampling: dict) -> None:
    """The law test that a GPU passes with CUDA graphs passes with tapes too."""
    loaded = recorded(load_pair(pair(5, **SHAPE)))
    loaded.graphs = GraphCache(TapeCapture())
    assert alarms(loaded, strategy, rule, sampling, 300) == []


@pytest.mark.slow
def test_five_tokens_of_recorded_rounds_follow_their_law() -> None:
    """Covers rounds of four drafts and all shorter ones at the end; prepared rounds copy their random numbers."""
    loaded = recorded(load_pair(pair(3, **MIDDLE)))
    loaded.graphs = GraphCache(TapeCapture())
    strategy, rule, sampling = DEEP[0]
    assert alarms(loaded, strategy, rule, sampling, 400, length=5) == []


def test_a_recordings_result_is_valid_until_another_recording_runs() -> None:
    """Running another recording overwrites the result of the first, as in the memory that CUDA graphs share."""
    capture, x = TapeCapture(), torch.tensor([1.0])
    one, two = (capture(partial(torch.mul, x, factor)) for factor in (1, 2))
    first = one()
    assert first.item() == 1 and one().item() == 1
    assert two().item() == 2 and first.isnan()
    assert one().item() == 1 and first.item() == 1


def test_a_recording_is_made_once_for_a_key_and_shapes() -> None:
    capture = TapeCapture()
    recorded = GraphCache(capture)

    def times(factor: int) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda x: factor * x

    one, two = torch.tensor([1.0]), torch.tensor([1.0, 2.0])
    asked = (2, one), (2, one), (2, two), (3, one), (2, one.double())
    new = [recorded.capture(key, times(key), x) for key, x in asked]
    assert new == [True, False, True, True, True] and capture.recordings == 4 and recorded.seconds > 0
    first = recorded.run(2, times(2), torch.tensor([5.0]))
    assert recorded.run(2, times(2), two).tolist() == [2, 4]
    assert recorded.run(3, times(3), one).tolist() == [3]
    assert first.tolist() == [10]  # unchanged by other recordings
    exact = 1 + torch.tensor([2.0**-40], dtype=torch.float64)
    assert torch.equal(recorded.run(2, times(2), exact), 2 * exact)
    assert recorded.run(4, times(4), one).tolist() == [4] and capture.recordings == 4  # not prepared, so not recorded


def test_a_recording_is_used_only_for_what_it_was_made_for() -> None:
    """A recording is never used for another strategy, rule parameter or sampling: one pair runs each twice, in turn."""
    config = pair(12, **MIDDLE)
    plain, taped = load_pair(config, dtype="float32"), recorded(load_pair(config, dtype="float32"))
    taped.graphs = GraphCache(TapeCapture())
    specs = ["speculative:k=3", "speculative:k=3,verify=block", "target"]
    specs += [f"speculative-cascade:rule=token-v3,k=3,alpha={alpha}" for alpha in (0.0, 0.4, 0.9)]
    asked = [(spec, {}) for spec in specs]
    asked += [
        (specs[0], how) for how in ({"top_k": 2}, {"top_p": 0.5}, {"temperature": 0.5}, {"top_k": 2, "top_p": 0.5})
    ]
    asked.append(("speculative-cascade:rule=token-v1,k=3,alpha=0.2", {"temperature": 0.5}))  # reads q at temperature 1
    for seed in range(2):
        found, wanted = (
            [
                generate(each, prompt_ids=[1, 2], strategy=spec, max_new_tokens=16, seed=seed, **how).token_ids
                for spec, how in asked
            ]
            for each in (taped, plain)
        )
        assert found == wanted
        assert len(set(map(tuple, wanted))) > len(wanted) - 3


def test_the_number_of_recordings_kept_is_limited() -> None:
    capture = TapeCapture()
    recorded = GraphCache(capture, most=2)
    new = [recorded.capture(key, lambda x: x, torch.tensor([1.0])) for key in "abacb"]
    assert new == [True, True, False, True, True]  # a and b are both dropped to make room for c: see CudaCapture
    assert capture.renewals == 1


@pytest.fixture
def taped() -> Pair:
    return recorded(load_pair(pair(max_position_embeddings=4096), dtype="float32"))


def test_a_round_is_recorded_once_for_all_texts(taped: Pair) -> None:
    ask = {"strategy": "speculative:k=3", "max_new_tokens": 24}
    generate(taped, prompt_ids=[5] * 9, **ask)
    made = [model.runner.graphs for model in (taped.draft, taped.target)]
    assert made == [4, 4]  # draft: blocks and single draws, after one and two tokens; target: one to four tokens
    generate(taped, prompt_ids=[8] * 12, seed=1, **ask)
    assert [model.runner.graphs for model in (taped.draft, taped.target)] == made


@pytest.fixture
def by_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use buckets, as for a model whose attention does not read the length itself."""
    monkeypatch.setattr("cascli.models.gpu.decode_attention.can_decode", lambda _: False)


@pytest.mark.usefixtures("by_buckets")
def test_a_model_whose_code_cannot_call_another_attention_keeps_its_own() -> None:
    """Otherwise its steps would count as recorded for every length, with an attention that reads one bucket."""
    config = pair(300, model_type="falcon", alibi=False)
    plain, taped = load_pair(config, dtype="float32"), recorded(load_pair(config, dtype="float32"))
    assert not can_decode(plain.target.model) and can_decode(load_pair(pair(300)).target.model)
    for length in (5, 120):
        ask: dict[str, Any] = {"prompt_ids": [7 * i % 250 for i in range(length)], "max_new_tokens": 20}
        one, other = (generate(each, strategy="speculative:k=3", temperature=0, **ask) for each in (plain, taped))
        assert one.token_ids == other.token_ids


def test_longer_texts_move_to_larger_buckets_and_keep_their_states(taped: Pair) -> None:
    plain = load_pair(pair(max_position_embeddings=4096), dtype="float32").target.runner
    runner = taped.target.runner
    text = torch.randint(0, taped.vocab, (600,), generator=torch.Generator().manual_seed(1))
    runner.prepare(250, 6, Calls(reads=[(5, 5)]))
    plain.forward(text[:250], 1), runner.forward(text[:250], 1)
    for start in (250, 255, 260):
        wanted, found = (each.forward(text[start : start + 5], 5) for each in (plain, runner))
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert runner.graphs == 1  # the one for 512; the smaller one was dropped with the buffers it was made for
    wanted, found = (each.forward(text[265:], 3) for each in (plain, runner))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_recording_in_the_middle_of_a_text_does_not_change_the_text(taped: Pair) -> None:
    """Trial runs of a recording write to the cache: they must write after the text read so far, where there is room."""
    plain = load_pair(pair(max_position_embeddings=4096), dtype="float32").target.runner
    runner, law = taped.target.runner, Sampler(Sampling(), reads_base=False)
    text, u = torch.arange(300) % taped.vocab, torch.full((40,), 0.5, dtype=torch.float64)
    runner.prepare(250, 6, Calls())
    plain.forward(text[:250], 1), runner.forward(text[:250], 1)
    for drawn in (3, 40, 1):
        wanted, found = (each.write(text[250:251], law, u[:drawn], read_last=False) for each in (plain, runner))
        assert found.tokens.tolist() == wanted.tokens.tolist()
    runner.prepare(200, 56, Calls(writes=[Write(1, 64)]), law)  # the last text ended too near the end for this
    assert runner.length == 0


def test_a_recordings_trial_run_finds_room_even_in_full_buffers(taped: Pair) -> None:
    """A recording finds room for its trial run even if the previous text ended at the end of the buffers."""
    runner, law = taped.target.runner, Sampler(Sampling(), reads_base=False)
    runner.prepare(250, 6, Calls())
    for ids in torch.arange(255).split(250):
        runner.forward(ids, 1)
    runner.prepare(100, 100, Calls(writes=[Write(1, 64)]), law)
    assert runner.graphs == 1 and runner._cache.capacity == 256
    made = runner._capture.recordings
    runner.prepare(156, 100, Calls(writes=[Write(1, 64)]), law)  # a text that ends exactly where the buffers do
    assert runner._capture.recordings == made


def test_buffers_that_were_full_keep_their_last_state(taped: Pair) -> None:
    runner, text = taped.target.runner, torch.arange(260) % taped.vocab
    runner.prepare(200, 56, Calls())
    runner.forward(text[:256], 1)
    before = [each.clone() for layer in runner._cache.layers for each in (layer.keys, layer.values)]
    runner.forward(text[256:], 1)
    after = [each[:, :, :256] for layer in runner._cache.layers for each in (layer.keys, layer.values)]
    assert runner._cache.capacity == 512 and before[0].shape[2] == 256 and before[0][:, :, 255].any()
    assert all(map(torch.equal, before, after))


@pytest.mark.usefixtures("by_buckets")
def test_a_recorded_draft_uses_a_bucket_that_covers_all_it_writes(taped: Pair) -> None:
    """A draft that crosses the end of a bucket needs the next bucket from its first token."""
    plain = load_pair(pair(max_position_embeddings=4096), dtype="float32").target.runner
    runner, law = taped.target.runner, Sampler(Sampling(), reads_base=False)
    text, u = torch.arange(300) % taped.vocab, torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    runner.prepare(250, 20, Calls(writes=[Write(1, 3)]), law)
    plain.forward(text[:252], 1), runner.forward(text[:252], 1)
    for start in range(252, 258):
        wanted, found = (each.write(text[start : start + 1], law, u, read_last=False) for each in (plain, runner))
        assert found.tokens.tolist() == wanted.tokens.tolist()
        torch.testing.assert_close(found.probs, wanted.probs, rtol=1e-4, atol=1e-5)
        plain.truncate(start + 1), runner.truncate(start + 1)


def test_recordings_for_many_sampling_settings_are_not_all_kept(taped: Pair) -> None:
    for i in (*range(MOST_SAMPLERS), 0, *range(MOST_SAMPLERS, MOST_SAMPLERS + 3)):  # a known one drops nothing
        law = Sampler(Sampling(1 + i / 8), reads_base=False)
        taped.draft.runner.prepare(10, 30, Calls(writes=[Write(1, 2)]), law)
    assert taped.draft.runner.graphs == 3  # all are dropped together: see CudaCapture
    assert taped.draft.runner._capture.renewals == 1 + 1  # the first one because there was no room yet


def test_recordings_that_are_dropped_take_nothing_with_them(taped: Pair) -> None:
    taped.graphs = GraphCache(TapeCapture(), most=7)
    assert answers_of_many_kinds(taped) == answers_of_many_kinds(load_pair(taped.config, dtype="float32"))


def test_nothing_is_recorded_while_the_clock_is_running(taped: Pair) -> None:
    """Whatever was decoded before: other rules, block lengths and settings, and texts that outgrew the buffers."""
    taped.graphs = GraphCache(TapeCapture(), most=7)
    captures = [taped.graphs._capture, *(model.runner._capture for model in (taped.draft, taped.target))]
    specs = ["target", "speculative:k=2", "token-cascade:rule=diff"]
    specs += [f"speculative-cascade:rule={rule},k={2 + 2 * (i % 2)}" for i, rule in enumerate(rules.names())]
    for prompt, sampling in ((3, Sampling()), (12, Sampling(0.7)), (300, Sampling())):
        for spec in specs:
            steps = Decoding(taped, parse(spec), Request([5] * prompt, sampling, 17)).steps()
            next(steps)
            made = [capture.recordings for capture in captures]
            assert len(list(steps)) > 1
            assert [capture.recordings for capture in captures] == made, (spec, prompt)
    assert all(capture.renewals for capture in captures)
    seconds = taped.info.target.capture_seconds
    assert seconds == taped.target.runner.capture_seconds + taped.graphs.seconds > taped.graphs.seconds > 0


@pytest.mark.parametrize("captured", [True, False])
@pytest.mark.parametrize("spec", ["speculative:k=3", "speculative:k=2,verify=block", "speculative-cascade:k=2"])
def test_decisions_of_every_length_are_made_before_the_clock_starts(
    spec: str, captured: bool, text_pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernels are compiled at their first call, for what the distance between rows of logits is a multiple of."""
    ready, running = set[Any](), set[Any]()
    where, decide = [ready], speculation.decide_round

    def seen(rule: Any, sampling: Any, logits: torch.Tensor, drafted: torch.Tensor, *more: Any, **how: Any) -> Any:
        where[-1].add((logits.shape, logits.stride(), logits.dtype, drafted.shape))
        return decide(rule, sampling, logits, drafted, *more, **how)

    class Started(Clock):
        def __init__(self, *given: Any) -> None:
            where.append(running)
            super().__init__(*given)

    monkeypatch.setattr(speculation, "decide_round", seen)
    monkeypatch.setattr("cascli.engine.Clock", Started)
    assert text_pair.target.rows > text_pair.vocab, "rows of logits are longer than what is read of them"
    cache = GraphCache(Uncaptured()) if captured else GraphCache(compiles=True)
    loaded = replace(text_pair, graphs=cache)
    list(Decoding(loaded, parse(spec), Request([5] * 9, Sampling(), 12)).steps())
    lengths = {drafted[0] for *_, drafted in running}
    assert 0 in lengths and len(lengths) > 1
    assert running <= ready
    where.append(again := set[Any]())
    list(Decoding(loaded, parse(spec), Request([5] * 9, Sampling(), 12)).steps())
    assert not again, "once is enough"


def test_a_recorded_pair_passes_its_audit(two: tuple[Pair, Pair]) -> None:
    checks = list(numerics(two[1], 12))
    assert len(checks) == 4 and all(check.status == "pass" for check in checks), checks
    assert all(model.runner.graphs == BLOCK for model in (two[1].draft, two[1].target))


def test_buckets_are_powers_of_two() -> None:
    assert [bucket_for(n) for n in (1, 256, 257, 512, 513, 4097)] == [256, 256, 512, 512, 1024, 8192]


def test_one_recording_serves_every_length(taped: Pair) -> None:
    taped.target.runner.prepare(100, 900, Calls(reads=[(2, 2), (1, 1)]))
    assert taped.target.runner.graphs == 2
    assert load_pair(pair()).target.model.config._attn_implementation != taped.target.model.config._attn_implementation


def test_prepare_records_every_bucket_on_the_way(by_buckets: None, taped: Pair) -> None:
    taped.target.runner.prepare(100, 900, Calls(reads=[(2, 2), (1, 1)]))
    assert taped.target.runner.graphs == 2 * 3
    assert taped.target.runner.capture_seconds > 0


def test_fill_cache_sets_the_length(taped: Pair) -> None:
    runner = taped.target.runner
    runner.fill_cache(300)
    runner.truncate(301)
    assert runner.length == 300 and runner.forward(torch.tensor([1, 2]), 2).shape == (2, taped.vocab)


def test_a_long_prompt_is_read_without_a_recording(taped: Pair) -> None:
    runner = taped.target.runner
    runner.forward(torch.zeros(LONGEST + 1, dtype=torch.long), LONGEST + 1)
    for n, rows in ((1, 1), (5, 1), (7, 7)):  # sizes that were not prepared
        runner.forward(torch.zeros(n, dtype=torch.long), rows)
    assert runner.graphs == 0 and runner.length == LONGEST + 14


def test_a_host_read_during_recording_fails_as_on_a_gpu() -> None:
    number = torch.tensor(3.0)
    with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
        TapeCapture()(lambda: number * float((number + 1).item()))


def test_reasons_for_not_recording_a_model() -> None:
    loaded = load_pair(pair(), dtype="float32")
    model, cpu = loaded.target.model, torch.device("cpu")
    assert why_eager(model) is None
    assert isinstance(choose_runner(model, 9, cpu, graphs=True)[0], EagerRunner)
    runner, why = choose_runner(model, 9, cpu, graphs=False, capture=TapeCapture())
    assert isinstance(runner, EagerRunner) and not isinstance(runner, GraphRunner) and why == BY_FLAG
    model.hf_device_map = {"a": 0, "b": 1}
    assert why_eager(model) == "it is spread over 2 devices"
    model.hf_device_map = {"": 0}
    runner, why = choose_runner(model, 9, torch.device("meta"), graphs=True, capture=TapeCapture())
    assert isinstance(runner, EagerRunner) and why == "it is on cpu, and the rest of a round on meta"
    model.config.rope_parameters = {"rope_type": "dynamic", "factor": 2.0}
    assert "dynamic position encoding" in str(why_eager(model))
    model.config.rope_parameters = {"full_attention": {"rope_type": "longrope"}, "sliding_attention": {}}
    assert "longrope" in str(why_eager(model))
