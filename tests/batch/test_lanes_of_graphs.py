"""Lanes of captured passes, with a tape in place of CUDA graphs: see `tests.tape`."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import pytest
import torch

from cascli import Pair, generate, load_pair
from cascli.errors import PairWarning, RunError
from cascli.jobs.batch_profile import batch_profiles
from cascli.models.batch.lanes import Lanes
from cascli.models.batch.reader import DraftRequest, ReadRequest
from cascli.models.calls import Calls, Write
from cascli.models.choose_runner import choose_runner
from cascli.models.gpu import batch_draft, batch_reader
from cascli.models.gpu.batch_reader import GraphReader, bucket_of, buckets_up_to, graph_reader
from cascli.models.gpu.fused_rotation import restore_rotation
from cascli.models.gpu.graph_cache import GraphCache
from cascli.models.gpu.graph_runner import LONGEST, GraphRunner
from cascli.models.gpu.self_test import StepTest
from cascli.sampling.autoregressive import Sampler
from cascli.sampling.parameters import Sampling
from tests.batch.test_lanes import SPECS, in_lanes, jobs
from tests.pairs import ARCHITECTURES, pair
from tests.tape import TapeCapture

LONG = pair(300, max_position_embeddings=2048)


@pytest.fixture
def without_self_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use passes over several texts as they are."""
    monkeypatch.setattr(StepTest, "failure_of_texts", lambda *_: None)


def taped(config: dict[str, Any]) -> Pair:
    """The pair with captured steps and rounds."""
    loaded = load_pair(config, dtype="float32")
    for model in loaded.models.values():
        model.runner, why = choose_runner(model.model, loaded.vocab, model.device, graphs=True, capture=TapeCapture())
        assert why is None
    loaded.graphs = GraphCache(TapeCapture())
    return loaded


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.usefixtures("asked_at_once")
def test_answers_equal_those_generated_alone(name: str) -> None:
    """Equal to eager passes over one text up to rounding, so the tokens are the same."""
    config = pair(300, **ARCHITECTURES[name])
    plain, loaded = load_pair(config, dtype="float32"), taped(config)
    for spec, temperature in SPECS if name == "gemma2" else SPECS[:2]:
        work = jobs(spec, temperature)
        alone = [job(plain) for job in work]
        together, lanes = in_lanes(loaded, 3, work)
        assert not lanes.alone_because
        assert [run.token_ids for run in together] == [run.token_ids for run in alone], spec
        for mine, theirs in zip(together, alone, strict=True):
            for count in ("draft_calls", "target_calls", "total_flops", "weight_bytes_read"):
                assert getattr(mine.metrics, count) == getattr(theirs.metrics, count), count
            assert mine.metrics.mean_tv_to_target == pytest.approx(theirs.metrics.mean_tv_to_target, abs=1e-4)


def test_a_whole_draft_of_all_lanes_is_one_graph() -> None:
    loaded = taped(pair(300))
    ask = {"prompt_ids": [5], "strategy": "speculative:k=3", "max_new_tokens": 13}
    together, lanes = in_lanes(loaded, 4, [partial(generate, seed=i, **ask) for i in range(4)])
    rounds = max(run.metrics.target_calls for run in together)
    assert lanes.passes["target"] == rounds and lanes.passes["draft"] <= 3 * rounds
    draft, target = (lanes.readers[role] for role in ("draft", "target"))
    assert draft.graphs == len(buckets_up_to(4)) == 2  # for one text, and for two to four
    assert target.graphs == len(buckets_up_to(4 * 4)) == 4
    before = [each.capture_seconds for each in (draft, target)]
    list(lanes.run([partial(generate, seed=9, **ask)]))
    assert [each.capture_seconds for each in (draft, target)] == before and min(before) > 0
    assert together[0].pair.target.capture_seconds > 0


def test_texts_moved_to_longer_buffers_keep_their_contents() -> None:
    """A later and longer text moves those in progress to longer buffers and invalidates their graphs."""
    plain, loaded = load_pair(LONG, dtype="float32"), taped(LONG)
    work = [
        partial(generate, prompt_ids=[3, 4] * n, strategy="speculative:k=3", seed=n, max_new_tokens=12)
        for n in (4, 120, 600)
    ]
    together, _ = in_lanes(loaded, 2, work)
    assert [run.token_ids for run in together] == [job(plain).token_ids for job in work]


def test_texts_that_do_not_fit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check includes what the texts already hold, and the spare place that belongs to no text."""
    reader = graph_reader(taped(LONG).target.runner, 3)
    prepare = partial(reader.prepare, 0, answer=20, calls=Calls(), sampler=None)
    prepare(200)
    layers = reader._states
    per_token = sum(each.keys[0, :, 0].nbytes + each.values[0, :, 0].nbytes for each in layers)
    monkeypatch.setattr("cascli.models.batch.reader.available", lambda _: (3 * 512 - 4 * 256) * per_token)
    with pytest.raises(RunError, match=r"a batch of 3 does not fit: caches of 512 .*\n.*a batch of 2 or fewer"):
        prepare(400)
    monkeypatch.setattr("cascli.models.batch.reader.available", lambda _: 4 * 256 * per_token)
    prepare(400)
    assert layers[0].capacity == 512


@pytest.mark.parametrize(("blocks", "drafted"), [((1, 5), 4), ((1, 2), 1)])
def test_step_times_in_batches(blocks: tuple[int, ...], drafted: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drafts are timed as they are decoded: whole ones, and with none of them recorded while the clock runs."""
    recorded, write = list[int](), GraphReader.write

    def counted(reader: GraphReader, requests: Any) -> Any:
        graphs = reader.graphs
        result = write(reader, requests)
        assert reader.graphs == graphs and {each.write.drawn for each in requests} == {drafted}
        recorded.append(len(requests))
        return result

    monkeypatch.setattr(GraphReader, "write", counted)
    monkeypatch.setattr(StepTest, "failure_of_texts", lambda *_: None)  # it drafts too
    single, three = batch_profiles(taped(LONG), 300, (1, 3), blocks=blocks, repeats=1)
    assert single.context == three.context == 300 and three.batch_size == 3
    assert set(three.target) == set(single.target) and set(three.draft) == set(single.draft) == {1, 2}
    assert recorded == [3] * len(recorded) and len(recorded) == 2 * 3 * (len({*blocks, 2}) - 1)


@pytest.fixture
def reader() -> GraphReader:
    runner = taped(LONG).target.runner
    made = graph_reader(runner, 3)
    assert isinstance(made, GraphReader)
    return made


def test_reads_of_any_lengths_and_rewinds(reader: GraphReader) -> None:
    """Ragged blocks, texts that do not read, rows that are not requested, and blocks that were not prepared."""
    plain = [load_pair(LONG, dtype="float32").target.runner.fresh() for _ in range(3)]
    texts = torch.randint(0, 300, (3, 600), generator=torch.Generator().manual_seed(0))
    for place, prompt in enumerate((1, 40, 255)):
        reader.prepare(place, prompt, 20, Calls(reads=[(5, 5)]), None)
        for runner in (plain[place], reader.runners[place]):
            runner.forward(texts[place, :prompt], 1)
    rounds = [{0: (5, 5), 1: (1, 1), 2: (3, 2)}, {2: (5, 1)}, {1: (4, 4), 0: (2, 1)}, {0: (LONGEST, 3), 2: (1, 1)}]
    rounds += [{1: (200, 1), 0: (3, 3), 2: (90, 2)}, {0: (150, 140)}]  # prompts with rounds; more rows than are kept
    for blocks in rounds:
        wanted, expected = [], []
        for place, (n, rows) in blocks.items():
            start = max(plain[place].length - 2, 1)
            plain[place].truncate(start), reader.runners[place].truncate(start)
            ids = texts[place, start : start + n]
            wanted.append(ReadRequest(place, ids, rows))
            expected.append(plain[place].forward(ids, rows))
        for found, exact in zip(reader.read(wanted), expected, strict=True):
            torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-4)
        assert [each.length for each in reader.runners] == [each.length for each in plain]


@pytest.mark.parametrize("with_base", [True, False])
def test_drafts_of_any_lengths(with_base: bool, reader: GraphReader) -> None:
    """Drafts that differ in every respect, of prepared shapes and of one that was not prepared."""
    plain = [load_pair(LONG, dtype="float32").target.runner.fresh() for _ in range(3)]
    law, generator = Sampler(Sampling(0.7), reads_base=with_base), torch.Generator().manual_seed(0)
    texts = torch.randint(0, 300, (3, 400), generator=generator)
    for place, prompt in enumerate((1, 40, 250)):
        reader.prepare(place, prompt, 60, Calls(writes=[Write(2, 3), Write(1, 3), Write(1, 1)]), law)
        for runner in (plain[place], reader.runners[place]):
            runner.forward(texts[place, :prompt], 1)
    kinds = [
        {0: Write(1, 3), 1: Write(2, 3), 2: Write(1, 1)},
        {2: Write(2, 0, True), 0: Write(1, 2, True)},
        {1: Write(1, 1)},
        {1: Write(4, 5, True), 2: Write(1, 1)},
    ]
    for writes in kinds:
        wanted, expected = [], []
        for place, write in writes.items():
            u = torch.rand(write.drawn, generator=generator, dtype=torch.float64)
            ids = texts[place, 300 : 300 + write.unread]
            wanted.append(DraftRequest(place, ids, law, u, write.read_last))
            expected.append(plain[place].write(ids, law, u, read_last=write.read_last))
        for found, exact in zip(reader.write(wanted), expected, strict=True):
            assert found.tokens.tolist() == exact.tokens.tolist()
            assert (found.base is found.probs) is not with_base
            for mine, theirs in zip(found[1:], exact[1:], strict=True):
                torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
        assert [each.length for each in reader.runners] == [each.length for each in plain]


def test_a_full_text_stays_within_its_buffer_during_longer_drafts(reader: GraphReader) -> None:
    """While others draft more, its tokens would be written beyond the end of its buffer."""
    law, u = Sampler(Sampling(), reads_base=False), torch.tensor([0.3, 0.6, 0.9], dtype=torch.float64)
    for place in range(2):
        reader.prepare(place, 200, 56, Calls(), None)
    for ids in torch.arange(255).split(100):
        reader.runners[0].forward(ids, 1)
    wanted = [DraftRequest(place, torch.tensor([7]), law, u[:n], False) for place, n in ((0, 1), (1, 3))]
    short, long = reader.write(wanted)
    assert (short.tokens.shape[0], long.tokens.shape[0]) == (1, 3)
    assert reader.runners[0].length == reader._states[0].capacity == 256


def test_each_draft_is_drawn_with_its_own_sampler(reader: GraphReader) -> None:
    """One shape of draft with several samplings in turn, each of which finds the graphs that others captured."""
    plain = load_pair(LONG, dtype="float32").target.runner
    ids, u = torch.tensor([7]), torch.tensor([0.3, 0.6, 0.9], dtype=torch.float64)
    samplings = (Sampling(0.7), Sampling(1.5), Sampling(0.7, 3), Sampling(0.7, 0, 0.5))
    laws = [Sampler(sampling, reads_base) for sampling in samplings for reads_base in (False, True)]
    reader.prepare(1, 1, 60, Calls(writes=[Write(1, 3, True)]), laws[0])
    for law in laws * 2:
        for runner in (plain, reader.runners[1]):
            runner.reset()
        [found], exact = reader.write([DraftRequest(1, ids, law, u, True)]), plain.write(ids, law, u, read_last=True)
        assert found.tokens.tolist() == exact.tokens.tolist()
        for mine, theirs in zip(found[1:], exact[1:], strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_results_of_one_text_survive_reads_of_another(reader: GraphReader) -> None:
    law, u = Sampler(Sampling(), reads_base=False), torch.tensor([0.3], dtype=torch.float64)
    ids = torch.tensor([7])
    [logits] = reader.read([ReadRequest(0, ids, 1)])
    [written] = reader.write([DraftRequest(0, ids, law, u, False)])
    kept = logits.clone(), written.probs.clone(), written.tokens.clone()
    reader.read([ReadRequest(1, torch.tensor([9]), 1)])
    reader.write([DraftRequest(1, torch.tensor([11]), law, 1 - u, False)])
    assert all(map(torch.equal, (logits, written.probs, written.tokens), kept))


@pytest.mark.usefixtures("without_self_test")
def test_short_prompts_share_passes_of_limited_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts of up to `_PROMPT` tokens share passes, which have at most that many rows."""
    passes = list[int]()
    of_pass = GraphReader._pass

    def counted(self: GraphReader, wanted: Any) -> list[torch.Tensor]:
        passes.append(sum(each.tokens for each in wanted))
        return of_pass(self, wanted)

    monkeypatch.setattr(GraphReader, "_pass", counted)
    monkeypatch.setattr(batch_reader, "_PROMPT", 100)
    plain, loaded = load_pair(LONG, dtype="float32"), taped(LONG)
    prompts = [[3] * n for n in (71, 71, 11, 131)]
    ask = {"strategy": "target", "temperature": 0.0, "max_new_tokens": 3}
    work = [partial(generate, prompt_ids=ids, **ask) for ids in prompts]
    together, _ = in_lanes(loaded, 4, work)
    assert [run.token_ids for run in together] == [job(plain).token_ids for job in work]
    assert passes == [70, 70 + 10]


def test_prepared_graphs_are_not_captured_again(reader: GraphReader) -> None:
    """Rounds of all texts with many rows, and a second text of the same kind; longer buffers capture all again."""
    law, calls = Sampler(Sampling(), reads_base=False), Calls(reads=[(LONGEST, LONGEST)], writes=[Write(2, 3)])
    for place in range(3):
        reader.prepare(place, 1, 100, calls, law)
    made, seconds = reader.graphs, reader.capture_seconds
    assert made == len(buckets_up_to(3 * LONGEST)) + len(buckets_up_to(3))
    u = torch.full((3,), 0.5, dtype=torch.float64)
    reader.read([ReadRequest(place, torch.arange(LONGEST), LONGEST) for place in range(3)])
    reader.write([DraftRequest(place, torch.tensor([3]), law, u, False) for place in range(3)])
    assert (reader.graphs, reader.capture_seconds) == (made, seconds)
    reader.prepare(0, 1, 900, calls, law)
    assert reader.graphs == made and reader.capture_seconds > seconds
    assert reader._states[0].capacity == 1024


def test_a_model_without_length_aware_attention_takes_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cascli.models.gpu.decode_attention.can_decode", lambda _: False)
    loaded, work = taped(pair(300)), jobs("speculative:k=2", 1.0)[:3]
    together, lanes = in_lanes(loaded, 2, work)
    assert "attention" in lanes.alone_because["target"] and not any(lanes.passes.values())
    plain = load_pair(pair(300), dtype="float32")
    assert [run.token_ids for run in together] == [job(plain).token_ids for job in work]


def test_capture_time_is_charged_to_no_lane(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs that were not prepared are captured while lanes wait; their share of the pass excludes that time."""
    lanes = Lanes(taped(pair(300)), 2)
    reader = lanes.readers["target"]
    of_pass = GraphReader._pass

    def slowly(self: GraphReader, wanted: Any) -> list[torch.Tensor]:
        self._graphs.seconds += 1000.0
        return of_pass(self, wanted)

    monkeypatch.setattr(GraphReader, "_pass", slowly)
    [logits], seconds = lanes._read("target", [ReadRequest(0, torch.tensor([3]), 1)])
    assert seconds < -900 and logits.shape[0] == 1 and reader.capture_seconds > 1000


def test_buckets() -> None:
    asked = (1, 2, 4, 5, 33, 65, 97, 128, 129, 193, 257, 2304)
    assert [bucket_of(n) for n in asked] == [1, 4, 4, 8, 64, 96, 128, 128, 160, 224, 320, 2560]
    assert buckets_up_to(80) == [96, 64, 32, 16, 8, 4, 1] and buckets_up_to(0) == []
    assert len(buckets_up_to(2304)) < 30  # of the 64 that are kept: preparing one text must not evict its own graphs


def plant(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    logits_of, inputs = GraphReader._logits, batch_draft.inputs

    def misplaced(self: GraphReader, ids: Any, places: Any, positions: Any, rows: Any) -> torch.Tensor:
        if bug == "crash":
            raise RuntimeError("an unsupported card")
        if bug == "neighbour":
            places = (places + 1) % 3
        if bug == "position":
            positions = positions + 1
        if bug == "filling":  # rows without a text write into the first text
            places = places.where(places != self._spare, 0)
        return logits_of(self, ids, places, positions, rows)

    def mixed(*args: Any) -> list[torch.Tensor]:
        ids, u, table = inputs(*args)
        shape = args[1]
        if bug == "unread" and shape.unread == 2:  # the logits after the first of two tokens that were not read yet
            table = table.clone()
            table[2 * shape.texts * shape.unread] -= 1
        return [ids, u.flip(0) if bug == "uniforms" else u, table]

    monkeypatch.setattr(GraphReader, "_logits", misplaced)
    monkeypatch.setattr(batch_reader, "inputs", mixed)


@pytest.mark.parametrize("bug", ["neighbour", "position", "filling", "uniforms"])
@pytest.mark.usefixtures("without_self_test")
def test_planted_bugs_are_seen(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(bug, monkeypatch)
    work = jobs("speculative:k=3", 1.0)[:4]
    plain = load_pair(pair(300), dtype="float32")
    together, _ = in_lanes(taped(pair(300)), 3, work)
    assert [run.token_ids for run in together] != [job(plain).token_ids for job in work]


@pytest.mark.parametrize(
    ("bug", "why"),
    [
        ("position", "their logits differ from those of the model's own layers by"),
        ("filling", "their logits differ from those of the model's own layers by"),
        ("uniforms", "their drafts are not drawn from their distributions"),
        ("unread", "the logits of their drafts differ from those of the model's own layers by"),
        ("crash", "RuntimeError: an unsupported card"),
    ],
)
def test_shared_passes_that_fail_their_self_test_are_not_used(
    bug: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each text is read by its own runner, whose layers are those that passed their own test."""
    plant(bug, monkeypatch)
    config = pair(300, initializer_range=0.15)  # with smaller weights, attention hardly changes logits
    plain, loaded, work = load_pair(config, dtype="float32"), taped(config), jobs("speculative:k=3", 1.0)[:4]
    for model in loaded.models.values():  # as where steps are fused, which leave the layers' rotation as it is
        restore_rotation(model.model)
    monkeypatch.setattr(GraphRunner, "unfused_because", None)
    expected = f"the target model reads the texts of a batch one by one: shared passes failed their self-test: {why}"
    with pytest.warns(PairWarning, match=re.escape(expected)):
        together, lanes = in_lanes(loaded, 3, work)
    assert set(lanes.alone_because) == {"draft", "target"} and not any(lanes.passes.values())
    assert [run.token_ids for run in together] == [job(plain).token_ids for job in work]
    for model in loaded.models.values():
        assert not any("forward" in vars(each) for each in model.model.modules()), "they keep the kernel"


def test_shared_passes_are_tested_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tests = list[None]()
    of_texts = StepTest._wrong_texts

    def counted(self: StepTest, reader: Any) -> str | None:
        tests.append(None)
        return of_texts(self, reader)

    monkeypatch.setattr(StepTest, "_wrong_texts", counted)
    loaded = taped(pair(300))
    before = Lanes(loaded, 2), Lanes(loaded, 3)
    assert not any(lanes.alone_because for lanes in before) and len(tests) == 2  # one per model
    assert all(reader.graphs == 0 for lanes in before for reader in lanes.readers.values()), "nothing of a test stays"
