"""Where answers end, what is counted, and that runs are repeatable and leave no state behind."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import threading
from typing import Any

import pytest
import torch

from cascli import Pair, Run, generate, load_pair
from cascli.analysis import metrics
from cascli.chat import Conversation, encode
from cascli.decoding.answer import Answer
from cascli.decoding.detokenizer import Speller
from cascli.engine import Decoding, Request
from cascli.errors import ConfigError, RunError, UsageError
from cascli.models.runner import Runner
from cascli.sampling.parameters import Sampling
from cascli.strategies import parse
from cascli.trace import Drafted, Emitted, Round
from tests.pairs import model, pair

ALL = [
    "target",
    "draft",
    "cascade:threshold=-99",
    "cascade:threshold=99",
    "token-cascade",
    "token-cascade:rule=token-v1",
    "speculative:k=1",
    "speculative:k=5",
    "speculative-cascade:rule=opt,k=3",
    "speculative-cascade:rule=token-v3",
]


@pytest.mark.parametrize("strategy", ALL)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_every_strategy_writes_what_it_reports(text_pair: Pair, strategy: str, temperature: float) -> None:
    run = generate(text_pair, "hello", strategy=strategy, max_new_tokens=17, temperature=temperature, seed=5)
    assert len(run.token_ids) == 17
    assert run.finish_reason == "length"
    assert [token.id for token in run.emitted] == run.token_ids
    m = run.metrics
    assert m.num_rounds == len(run.rounds)
    assert m.num_draft_tokens == sum(len(step.drafted) for step in run.rounds)
    parts = m.seconds
    assert parts.prefill + parts.draft + parts.verify + parts.other == pytest.approx(parts.total, abs=1e-9)
    assert Run.from_json(run.to_json()) == run


def test_one_target_call_per_round_and_none_for_the_draft_strategy(text_pair: Pair) -> None:
    run = generate(text_pair, "hello", strategy="speculative:k=3", max_new_tokens=20, temperature=0)
    assert run.metrics.target_calls == run.metrics.num_rounds
    assert generate(text_pair, "hello", strategy="draft", max_new_tokens=9).metrics.target_calls == 0
    run = generate(text_pair, "hello", strategy="target", max_new_tokens=9)
    assert run.metrics.target_calls_per_token == 1
    assert run.metrics.draft_calls == 0
    assert run.metrics.draft_acceptance_rate is None


def test_numbers_that_were_not_computed_are_null(text_pair: Pair) -> None:
    for strategy in ("draft", "cascade:threshold=-99"):
        m = generate(text_pair, "hello", strategy=strategy, max_new_tokens=5).metrics
        assert (m.mean_tv_to_target, m.lossless, m.draft_acceptance_rate) == (None, None, None)
    m = generate(text_pair, "hello", strategy="speculative", max_new_tokens=5).metrics
    assert (m.mean_tv_to_target, m.lossless, m.deferral_rate) == (0, True, None)


def test_a_deferred_cascade_pays_for_both_answers(text_pair: Pair) -> None:
    target = generate(text_pair, "hello", strategy="target", max_new_tokens=6, temperature=0)
    run = generate(text_pair, "hello", strategy="cascade:threshold=99", max_new_tokens=6, temperature=0)
    assert run.token_ids == target.token_ids
    assert (run.metrics.draft_calls, run.metrics.target_calls, run.metrics.deferral_rate) == (6, 6, 1.0)
    assert run.handover is not None
    draft = generate(text_pair, "hello", strategy="draft", max_new_tokens=6, temperature=0)
    assert run.handover.draft_token_ids == draft.token_ids
    assert run.handover.draft_text == draft.text
    kept = generate(text_pair, "hello", strategy="cascade:threshold=-99", max_new_tokens=6, temperature=0)
    assert kept.token_ids == draft.token_ids


@pytest.mark.parametrize(
    ("temperature", "threshold", "known"),
    [(0.0, "-0.01", True), (1.0, "-0.01", False), (1.0, "0.1", True), (0.3, "-0.01", False)],
)
def test_a_deferral_that_depends_on_a_random_draft_is_not_known_to_be_lossless(
    text_pair: Pair, temperature: float, threshold: str, known: bool
) -> None:
    """Over runs, the prompt's law is a mixture of both models' (`test_sequence_cascade`), whatever happens in one."""
    spec = f"cascade:threshold={threshold}"
    run = generate(text_pair, "hello", strategy=spec, max_new_tokens=6, temperature=temperature, seed=1)
    assert run.handover is not None and run.handover.deferred and run.metrics.deferral_rate == 1
    wanted = (0.0, 0.0, True) if known else (None, None, None)
    assert (run.metrics.mean_tv_to_target, run.metrics.max_tv_to_target, run.metrics.lossless) == wanted
    assert {token.kl for token in run.emitted} == {0.0 if known else None}
    assert all(token.p is not None and token.q is None for token in run.emitted)


@pytest.mark.parametrize(
    "strategy", ["target", "speculative:k=4", "speculative-cascade:rule=diff,alpha=1,k=4", "draft"]
)
def test_end_of_text_ends_inside_a_block(strategy: str) -> None:
    free = load_pair(pair(300))
    ids = generate(free, "hello", strategy=strategy, max_new_tokens=20, temperature=1, seed=2).token_ids
    place = next(i for i in range(2, 20) if ids[i] not in ids[:i])
    ended = load_pair(pair(300, eos_token_id=[ids[place], 299]))
    run = generate(ended, "hello", strategy=strategy, max_new_tokens=20, temperature=1, seed=2)
    assert run.token_ids == ids[: place + 1]
    assert run.finish_reason == "eos"


def test_the_histogram_excludes_tokens_after_the_end() -> None:
    alike = pair(300)
    alike["target"] = alike["draft"]
    ids = generate(load_pair(alike), "hi", strategy="speculative:k=5", max_new_tokens=6, temperature=0).token_ids
    alike["target"] = model(1, 300, eos_token_id=ids[1])
    run = generate(load_pair(alike), "hi", strategy="speculative:k=5", max_new_tokens=6, temperature=0)
    assert run.finish_reason == "eos"
    kept = len(run.token_ids)
    assert kept <= 2
    assert run.metrics.acceptance_histogram == [int(j == kept) for j in range(6)]
    assert (run.metrics.draft_acceptance_rate, run.metrics.mean_acceptance_length) == (1.0, 1.0 + kept)


@pytest.mark.parametrize("strategy", ALL)
def test_stop_strings_cut_the_text(text_pair: Pair, strategy: str) -> None:
    whole = generate(text_pair, "hello", strategy=strategy, max_new_tokens=30, temperature=1, seed=1, top_k=20)
    text = whole.text
    stop = text[5:7]
    run = generate(text_pair, "hello", strategy=strategy, max_new_tokens=30, temperature=1, seed=1, top_k=20, stop=stop)
    if not strategy.startswith("cascade"):
        assert run.finish_reason == "stop"
        assert run.text == text[: text.index(stop)]
        assert len(run.token_ids) < len(whole.token_ids)


def test_streamed_pieces_are_the_text(text_pair: Pair) -> None:
    said: list[str] = []
    run = generate(
        text_pair,
        "hi",
        strategy="speculative-cascade:rule=opt",
        max_new_tokens=40,
        seed=3,
        on_round=lambda step: said.extend(step.pieces),
    )
    assert "".join(said) == run.text


def test_same_seed_same_tokens_across_processes(text_pair: Pair) -> None:
    code = (
        "from cascli import generate, load_pair; from tests.pairs import pair; import torch; torch.set_num_threads(1);"
        "print(generate(load_pair(pair(300)), 'hello', strategy='speculative-cascade', seed=11).token_ids)"
    )
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    here = generate(text_pair, "hello", strategy="speculative-cascade", seed=11).token_ids
    assert there.strip() == str(here)
    assert here != generate(text_pair, "hello", strategy="speculative-cascade", seed=12).token_ids


def test_global_random_state_is_left_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    generate(load_pair(pair(300)), "hello", strategy="speculative-cascade", temperature=1)
    assert torch.equal(before, torch.get_rng_state())


def test_strategies_share_their_random_numbers(text_pair: Pair) -> None:
    """With draft = target, strategies write the same answer.

    The exceptions are token rules, whose pi is not p even then, and a cascade's own draft answer, which must not
    share the random numbers of the answer that may replace it.
    """
    twins = pair(300)
    twins["target"] = twins["draft"]
    both = load_pair(twins)
    alike = [strategy for strategy in ALL if "token-v" not in strategy and strategy != "cascade:threshold=-99"]
    assert len(alike) == 7
    answers = {
        tuple(generate(both, "hello", strategy=s, temperature=1, seed=4, max_new_tokens=12).token_ids) for s in alike
    }
    assert len(answers) == 1


def test_prompts_that_cannot_be_run(text_pair: Pair, id_pair: Pair) -> None:
    with pytest.raises(UsageError, match="empty"):
        generate(text_pair, prompt_ids=[])
    with pytest.raises(UsageError, match="outside the vocabulary"):
        generate(id_pair, prompt_ids=[1, 8])
    with pytest.raises(UsageError, match="context is 256; shorten"):
        generate(text_pair, "x" * 300)
    for shorter in ("draft", "target"):
        config = pair()
        config[shorter]["source"]["random"] |= {"max_position_embeddings": 64}
        with pytest.raises(UsageError, match=f"context is 64, that of the {shorter} model; shorten"):
            generate(load_pair(config), "x" * 70)
    with pytest.raises(UsageError, match="either a prompt or prompt_ids"):
        generate(text_pair)
    with pytest.raises(UsageError, match="too small for text"):
        generate(id_pair, "hello")
    with pytest.raises(UsageError, match="max_new_tokens"):
        generate(text_pair, "hello", max_new_tokens=0)


def test_the_context_limits_the_answer() -> None:
    run = generate(
        load_pair(pair(300, max_position_embeddings=16)), "x" * 10, max_new_tokens=64, strategy="speculative"
    )
    assert len(run.token_ids) == 6
    assert run.finish_reason == "length"


def test_small_vocabularies_print_token_ids(id_pair: Pair) -> None:
    run = generate(id_pair, prompt_ids=[1, 2], max_new_tokens=3, strategy="target", temperature=0)
    assert run.text == "".join(f"<{token}>" for token in run.token_ids)
    assert id_pair.tokenizer is None


def test_padded_rows_are_masked_in_both_models() -> None:
    padded = load_pair(pair(400, draft_vocab=330))
    assert padded.info.tokenizer_size == 257
    assert padded.info.masked_rows == (330 - 257, 400 - 257)
    for strategy in ALL:
        run = generate(padded, "hello", strategy=strategy, temperature=3, max_new_tokens=30)
        assert max(run.token_ids) < 257


def test_tokenizers_that_differ_in_one_id_are_translated(tmp_path) -> None:
    from transformers import AutoModelForCausalLM, LlamaConfig

    from cascli.models.tokenizer import byte_tokenizer

    config = LlamaConfig(**{k: v for k, v in pair(300)["draft"]["source"]["random"].items() if k != "model_type"})
    for name in ("a", "b"):
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / name)
        byte_tokenizer().save_pretrained(tmp_path / name)
    same = {role: {"source": {"path": str(tmp_path / name)}} for role, name in (("draft", "a"), ("target", "b"))}
    assert load_pair(same).info.tokenizer_size == 257
    file = tmp_path / "b" / "tokenizer.json"
    file.write_text(
        file.read_text().replace('"A": 65', '"A": 66').replace('"B": 66', '"B": 65', 1).replace('"B": 65', '"B": 65')
    )
    other = load_pair(same)
    assert other.info.shared_tokens == 257
    assert (other.translation.read(65), other.translation.read(66)) == ((66,), (65,))


def test_unsupported_devices_and_models_are_refused() -> None:
    if not torch.cuda.is_available():
        with pytest.raises(RunError, match="sees 0 CUDA devices"):
            load_pair(pair(8), device="cuda")
    with pytest.raises(ConfigError, match="lama"):
        load_pair({"draft": {"source": {"random": {"model_type": "lama"}}}, "target": model(1, 8)})
    with pytest.raises(RunError, match="'bart' is an encoder-decoder; the only ones cascli runs are t5"):
        load_pair({"draft": {"source": {"random": {"model_type": "bart", "vocab_size": 8}}}, "target": model(1, 8)})
    with pytest.raises(RunError, match="cannot be rewound"):
        load_pair({"draft": {"source": {"random": {"model_type": "mamba", "vocab_size": 8}}}, "target": model(1, 8)})


def test_conversations_include_all_earlier_turns(text_pair: Pair) -> None:
    talk = Conversation("be brief", (("a", "b"),))
    assert [m["role"] for m in talk.messages("c")] == ["system", "user", "assistant", "user"]
    assert Conversation("").messages("c")[0] == {"role": "system", "content": ""}  # not the template's default
    assert [m["role"] for m in Conversation().messages("c")] == ["user"]
    assert bytes(encode(text_pair, "c", talk)) == b"be brief\na\nb\nc"


def test_a_prefix_goes_before_every_turn_unless_raw(text_pair: Pair) -> None:
    told = dataclasses.replace(text_pair, config=text_pair.config.model_copy(update={"prefix": "summarize: "}))
    talk = Conversation("be brief", (("a", "b"),))
    assert bytes(encode(told, "c", talk)) == b"be brief\nsummarize: a\nb\nsummarize: c"
    assert bytes(encode(told, "c", talk, raw=True)) == b"be brief\na\nb\nc"
    run = generate(told, "c", strategy="target", max_new_tokens=1)
    assert run.prompt == "c", "what the user said, without the prefix"
    assert bytes(run.prompt_token_ids) == b"summarize: c"


def ended(text: list[int], drafts: int, kept: int, end: int) -> Round:
    """A round with `drafts` drafted tokens, `kept` of them accepted, as added to an answer that `end` ends."""
    drafted = [
        Drafted(id=token, text="", q=0.5, p=0.5, pi=0.5, accept_prob=1.0, accepted=i < kept, deferred=False)
        for i, token in enumerate(text[:drafts])
    ]
    events = ["accepted"] * kept + ["bonus" if kept == drafts else "residual"]
    emitted = [Emitted(id=token, text="", event=event) for token, event in zip(text, events, strict=False)]
    answer = Answer(Speller(None), {end}, (), 99)
    return answer.add(Round(drafted=drafted, emitted=emitted))[0]


def test_drafts_after_the_end_of_the_text_are_excluded_from_all_rates() -> None:
    """Whether the models agree beyond the end changes nothing; a rejection before it still counts."""
    agree, differ = ended([1, 2, 0, 4, 5], 4, 4, end=0), ended([1, 2, 0, 4, 5], 4, 3, end=0)
    assert agree == differ
    assert [token.id for token in agree.drafted] == [1, 2, 0]
    assert (metrics.accepted_count(agree), metrics.tested_count(agree)) == (3, 3)
    residual = ended([1, 0, 3], 3, 1, end=0)
    assert [len(residual.drafted), metrics.accepted_count(residual), metrics.tested_count(residual)] == [3, 1, 2]


def test_a_pair_answers_one_at_a_time(text_pair: Pair) -> None:
    """From several threads, every answer is right or rejected; otherwise they would mix their cache states."""
    ask = {"strategy": "speculative:k=3", "max_new_tokens": 12, "temperature": 1.0}
    right = {text: generate(text_pair, text, **ask).token_ids for text in "abcdef"}
    wrong, refused = [], []

    def answer(text: str) -> None:
        for _ in range(6):
            try:
                if generate(text_pair, text, **ask).token_ids != right[text]:
                    wrong.append(text)
            except RunError as error:
                refused.append(str(error))

    threads = [threading.Thread(target=answer, args=(text,)) for text in right]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert all("already answering" in each for each in refused)
    assert generate(text_pair, "a", **ask).token_ids == right["a"]


def test_a_nested_run_is_refused_and_does_no_harm(text_pair: Pair) -> None:
    ask = {"strategy": "speculative:k=3", "max_new_tokens": 12, "temperature": 1.0}
    wanted, refused = generate(text_pair, "hello", **ask).token_ids, []

    def nosy(_: object) -> None:
        with pytest.raises(RunError, match="already answering"):
            generate(text_pair, "other", **ask)
        refused.append(True)

    assert generate(text_pair, "hello", on_round=nosy, **ask).token_ids == wanted
    assert refused


@pytest.mark.parametrize("end", ["closed", "dropped", "failed"])
def test_an_abandoned_run_frees_the_pair(text_pair: Pair, end: str) -> None:
    steps = Decoding(text_pair, parse("target"), Request([1, 2], Sampling(), 9)).steps()
    next(steps)
    if end == "failed":
        with pytest.raises(KeyError):
            steps.throw(KeyError())
    elif end == "closed":
        steps.close()
    del steps
    assert generate(text_pair, "a", max_new_tokens=2).token_ids


@pytest.mark.parametrize("threshold", [-99.0, 99.0])
def test_time_to_first_token_of_a_cascade_includes_the_decision(text_pair: Pair, threshold: float) -> None:
    """Kept or not, it does not count before the decision: until then the answer may be withdrawn."""
    run = generate(text_pair, "hello", strategy=f"cascade:threshold={threshold}", max_new_tokens=40)
    m = run.metrics
    assert m.ttft_seconds is not None
    assert m.seconds.draft <= m.ttft_seconds <= m.seconds.total


class Odd(Runner):
    """A model whose logits are set by a test."""

    length = 0

    def __init__(self, row: torch.Tensor) -> None:
        self._row = row

    def forward(self, ids: torch.Tensor, rows: int) -> torch.Tensor:
        self.length += len(ids)
        return self._row.expand(rows, -1)

    def truncate(self, length: int) -> None:
        self.length = length


def odd(pair: Pair, draft: list[float], target: list[float]) -> Pair:
    models = [(pair.draft, draft), (pair.target, target)]
    ours, theirs = (dataclasses.replace(each, runner=Odd(torch.tensor(row))) for each, row in models)
    return dataclasses.replace(pair, draft=ours, target=theirs, vocab=len(draft))


@pytest.mark.parametrize("value", [float("-inf"), float("inf"), float("nan")])
@pytest.mark.parametrize("strategy", ["draft", "target", "speculative:k=2", "token-cascade:rule=diff"])
def test_non_finite_logits_are_detected(id_pair: Pair, strategy: str, value: float) -> None:
    bad, good = [value] * 4, [0.0, 1.0, 2.0, 0.5]
    broken = odd(id_pair, bad if strategy == "draft" else good, good if strategy == "draft" else bad)
    with pytest.raises(RunError, match="not finite"):
        generate(broken, prompt_ids=[1, 2], strategy=strategy, max_new_tokens=6, temperature=1.0)


def test_the_confidence_is_finite_whatever_was_drawn(id_pair: Pair) -> None:
    """A token's probability may be 0 in float32, and its logarithm is not a JSON number."""
    pair = odd(id_pair, [200.0, 0.0, 0.0, 0.0], [0.0] * 4)
    run = generate(pair, prompt_ids=[1], strategy="cascade", max_new_tokens=30, temperature=100.0, seed=1)
    assert set(run.handover.draft_token_ids) > {0}
    assert Run.from_json(run.to_json()) == run


def test_peak_memory_is_per_run_or_unknown(text_pair: Pair) -> None:
    """On a CPU only the peak of the whole process is known."""
    assert generate(text_pair, "hello", max_new_tokens=3).metrics.peak_memory_bytes is None


@pytest.mark.parametrize(
    "given",
    [
        {"prompt_ids": [1.5]},
        {"prompt_ids": ["a"]},
        {"prompt_ids": 5},
        {"prompt_ids": [[1]]},
        {"prompt_ids": [10**30]},
        {"prompt": 5},
        {"prompt": "x", "strategy": 5},
        {"prompt": "x", "stop": 5},
        {"prompt": "x", "stop": [5]},
    ],
    ids=repr,
)
def test_arguments_of_the_wrong_type_are_refused(text_pair: Pair, given: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        generate(text_pair, max_new_tokens=2, **given)


def test_ids_may_be_a_tensor(text_pair: Pair) -> None:
    ids = torch.tensor([104, 105])
    run = generate(text_pair, prompt_ids=ids, max_new_tokens=2, temperature=0)
    assert run.prompt_token_ids == [104, 105]


def test_time_to_first_token_excludes_later_rounds(text_pair: Pair) -> None:
    run = generate(text_pair, "hello", strategy="target", max_new_tokens=30)
    assert run.metrics.ttft_seconds <= run.metrics.seconds.total - sum(step.seconds.total for step in run.rounds[2:])
