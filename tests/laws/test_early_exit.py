"""Drafts from the target's own first layers: the law of texts by enumeration, caches after rejections, planted bugs.

The reference's q is a plain transformers forward over the whole text, without a cache, through a model of only n
layers; the engine shares keys, values and hidden states between the exit and the target.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cascli import compare, generate, generate_many, load_pair
from cascli.decoding import speculation
from cascli.drafters.early_exit import EarlyExit
from cascli.engine import Decoding, Request
from cascli.errors import RunError, UsageError
from cascli.models import split
from cascli.models.cache import RewindCache
from cascli.models.calls import Calls
from cascli.models.split import SplitRunner
from cascli.models.taps import decoder_layers
from cascli.sampling.parameters import Sampling
from cascli.strategies import parse
from tests.laws.models import PROMPT, engine_law, logits, tiny_pair
from tests.laws.tables import target
from tests.pairs import ARCHITECTURES, model, pair
from tests.reference import lossy, process
from tests.reference.distributions import softmax, warp
from tests.reference.process import Law, Tokens, distance, sequential_law

EXACT = 1e-12
VISIBLE = 1e-3
PLAIN = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
WARPED = {"temperature": 0.7, "top_k": 2, "top_p": 0.95}
VOCAB, DEPTH = 3, 3
RULES = [("exact", 0.0), ("head", 0.3), ("token-v3", 0.3), ("opt", 0.3)]


def left_early(whole: nn.Module, n: int) -> nn.Module:
    """A model of only the first n layers, with the norm and the head of the whole."""
    part = copy.deepcopy(whole)
    layers = decoder_layers(part)
    del layers[n:]
    part.config.get_text_config().num_hidden_layers = n
    return part


@cache
def exit_logits(n: int, prefix: Tokens) -> np.ndarray:
    ids = torch.tensor([[*(t % VOCAB for t in PROMPT), *prefix]])
    with torch.inference_mode():
        return left_early(tiny_pair(VOCAB, DEPTH).target.model, n)(input_ids=ids, use_cache=False).logits[0, -1].numpy()


def wanted_law(rule: str, alpha: float, n: int, length: int, **sampling: Any) -> Law:
    @cache
    def tables(prefix: Tokens) -> process.Pair:
        x, y = exit_logits(n, prefix), logits(VOCAB, DEPTH, prefix)[1]
        return process.Pair(warp(x, **sampling), warp(y, **sampling), softmax(x), softmax(y))

    pi = target(rule, alpha) if rule != "head" else lambda pair: lossy.head(*pair, alpha)
    return sequential_law(tables, pi, length)


def law(rule: str, alpha: float, n: int, k: int, length: int, more: str = "", **sampling: Any) -> Law:
    name = "speculative:" if rule == "exact" else f"speculative-cascade:rule={rule},alpha={alpha},"
    return engine_law(f"{name}draft=early-exit,layers={n},k={k}{more}", length, VOCAB, DEPTH, **sampling)


@pytest.mark.parametrize(("n", "sampling"), [(1, PLAIN), (2, PLAIN), (2, WARPED)], ids=["1", "2", "2 warped"])
@pytest.mark.parametrize(("rule", "alpha"), RULES)
def test_texts_follow_the_law_of_the_rule(rule: str, alpha: float, n: int, sampling: dict[str, Any]) -> None:
    """The target's law where the rule is exact; otherwise that of pi, computed from the exit's q at every position."""
    assert distance(law(rule, alpha, n, 2, 3, **sampling), wanted_law(rule, alpha, n, 3, **sampling)) < EXACT


@pytest.mark.parametrize("more", [",verify=block", ",stop=max-q,least_q=0.45", ",stop=confidence,least_q=0.5"])
@pytest.mark.parametrize(("rule", "alpha"), [("exact", 0.0), ("head", 0.3)])
def test_blocks_and_stops_also_follow_the_law(rule: str, alpha: float, more: str) -> None:
    assert distance(law(rule, alpha, 1, 2, 3, more, **PLAIN), wanted_law(rule, alpha, 1, 3, **PLAIN)) < EXACT


def test_the_cases_disagree_in_the_middle() -> None:
    """Keeps the laws above sensitive: drafts pass with any probability, after every rejection."""
    chances, kept = [], set()
    for seed in range(40):
        run = generate(
            tiny_pair(VOCAB, DEPTH), prompt_ids=[1, 2], strategy="speculative:draft=early-exit,layers=1,k=3",
            max_new_tokens=6, seed=seed, **PLAIN,
        )  # fmt: skip
        chances += [token.accept_prob for step in run.rounds for token in step.drafted]
        kept |= {(len(step.drafted), len(step.emitted) - 1) for step in run.rounds}
    assert {(3, 0), (3, 1), (3, 2), (3, 3)} <= kept
    assert sum(0.1 < chance < 0.9 for chance in chances) > len(chances) / 3


# ---------------------------------------------------------------- planted bugs


def not_cut(patch: pytest.MonkeyPatch, which: int) -> None:
    """One layer's cache keeps the rejected tokens and continues after them."""

    def place(self: RewindCache, length: int) -> None:
        for layer in self.layers:
            if length == 0 or layer is not self.layers[which] or layer.length < length:
                layer.length = length

    patch.setattr(RewindCache, "place", place)
    patch.setattr(RewindCache, "truncate", place)


def first_layers_keep_rejected_drafts(patch: pytest.MonkeyPatch) -> None:
    not_cut(patch, 0)


def later_layers_keep_rejected_drafts(patch: pytest.MonkeyPatch) -> None:
    not_cut(patch, -1)


def hidden_states_of_the_next_position(patch: pytest.MonkeyPatch) -> None:
    right = SplitRunner._read_others

    def read(self: SplitRunner, hidden: Tensor, ids: Tensor, rows: int) -> Tensor:
        return right(self, hidden.roll(-1, -2), ids, rows)

    patch.setattr(SplitRunner, "_read_others", read)


def rejected_hidden_states_stay(patch: pytest.MonkeyPatch) -> None:
    """No h_n of a block is dropped when a text is rewound."""
    right = SplitRunner._read_others

    def read(self: SplitRunner, hidden: Tensor, ids: Tensor, rows: int) -> Tensor:
        old = getattr(self, "old", hidden[..., :0, :])
        self.old = torch.cat([old, hidden], dim=-2)
        return right(self, self.old[..., : ids.shape[0], :], ids, rows)

    patch.setattr(SplitRunner, "_read_others", read)


def a_layer_too_early(patch: pytest.MonkeyPatch) -> None:
    """The target continues from h_n as if it were h_(n+1), so one layer is skipped."""
    right = SplitRunner.__init__

    def init(self: SplitRunner, *given: Any) -> None:
        right(self, *given)
        layers = decoder_layers(self._model)
        self._first = layers[: self._after + 1]

    patch.setattr(SplitRunner, "__init__", init)
    patch.setattr(SplitRunner, "_try", lambda self: None)
    patch.setattr(split, "_TRIED", {})


def last_token_is_read_as_if_drafted(patch: pytest.MonkeyPatch) -> None:
    """The last drafted token has no h_n of its own; that of the token before it is used."""
    right = SplitRunner.read_first

    def read(self: SplitRunner, ids: Tensor, rows: int) -> Tensor:
        before = self._hidden
        found = right(self, ids, rows)
        if rows == 0 and before is not None:
            self._hidden = torch.cat([before, before[..., -1:, :]], dim=-2)
        return found

    patch.setattr(SplitRunner, "read_first", read)


def q_after_another_norm(patch: pytest.MonkeyPatch) -> None:
    """The exit skips the final norm, but drafts still follow the q that is reported: only a lossy rule shows it."""
    right = SplitRunner.read_first

    def read(self: SplitRunner, ids: Tensor, rows: int) -> Tensor:
        found = right(self, ids, rows)
        return self._model.lm_head(self._hidden[..., -rows:, :])[0] if rows else found

    patch.setattr(SplitRunner, "read_first", read)


def q_is_not_what_was_drawn_from(patch: pytest.MonkeyPatch) -> None:
    right = EarlyExit.propose

    def propose(*given: Any) -> speculation.Block:
        block = right(*given)
        flatter = block.q.sqrt()
        return block._replace(q=flatter / flatter.sum(dim=-1, keepdim=True))

    patch.setattr(EarlyExit, "propose", propose)


@pytest.mark.parametrize(
    ("bug", "rule"),
    [
        (first_layers_keep_rejected_drafts, "exact"),
        (later_layers_keep_rejected_drafts, "exact"),
        (hidden_states_of_the_next_position, "exact"),
        (rejected_hidden_states_stay, "exact"),
        (a_layer_too_early, "exact"),
        (last_token_is_read_as_if_drafted, "exact"),
        (q_is_not_what_was_drawn_from, "exact"),
        (q_after_another_norm, "head"),
    ],
)
def test_planted_bugs_are_detected(bug: Callable[..., None], rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = wanted_law(rule, 0.3, 1, 3, **PLAIN)
    bug(monkeypatch)
    assert distance(law(rule, 0.3, 1, 2, 3, **PLAIN), wanted) > VISIBLE


# ---------------------------------------------------------------- caches, texts, and what is rejected


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_split_reads_match_a_fresh_read_after_any_rejection(name: str) -> None:
    """Random drafts, some kept, over texts that outgrow sliding windows; all layers end at the same length."""
    loaded = load_pair(pair(20, **ARCHITECTURES[name])).target
    depth, rng = loaded.model.config.get_text_config().num_hidden_layers, random.Random(0)
    for n in {1, depth - 1}:
        runner = SplitRunner(loaded.model, loaded.runner, n)
        runner.prepare(3, 40, Calls())
        part, text = left_early(loaded.model, n), [3, 1, 4]
        runner.begin(torch.tensor(text))
        while len(text) < 30:
            drafted = [rng.randrange(20) for _ in range(rng.randrange(4))]
            block = [text[-1], *drafted]
            for i in range(rng.choice([0, len(drafted), len(block)])):
                out = runner.read_first(torch.tensor(block[i : i + 1]), 1)
                assert torch.allclose(out[0], fresh(part, [*text[:-1], *block[: i + 1]])[-1], atol=1e-4)
            out = runner.forward(torch.tensor(block), len(block))
            assert torch.allclose(out, fresh(loaded.model, [*text, *drafted])[-len(block) :], atol=1e-4)
            assert {layer.length for layer in loaded.runner.cache.layers} == {runner.length} == {runner.length_of_first}
            kept = rng.randrange(len(block))
            runner.truncate(len(text) + kept)
            text += [*drafted[:kept], rng.randrange(20)]


@torch.inference_mode()
def fresh(model: nn.Module, ids: list[int]) -> Tensor:
    """Logits `[n, V]` of a whole text, without a cache."""
    found: Tensor = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    return found


def test_first_layers_that_are_ahead_are_also_truncated() -> None:
    loaded = load_pair(pair(20)).target
    runner = SplitRunner(loaded.model, loaded.runner, 1)
    runner.prepare(3, 20, Calls())
    runner.begin(torch.tensor([3, 1, 4]))
    for token in (4, 5, 6):
        runner.read_first(torch.tensor([token]), 1)
    assert (runner.length, runner.length_of_first) == (2, 5)
    runner.truncate(4)
    assert (runner.length, runner.length_of_first) == (2, 4)
    out = runner.forward(torch.tensor([4, 5, 9]), 3)
    assert torch.allclose(out, fresh(loaded.model, [3, 1, 4, 5, 9])[2:], atol=1e-4)
    runner.truncate(1)
    assert (runner.length, runner.length_of_first) == (1, 1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_greedy_is_the_target(name: str, dtype: str) -> None:
    """No draft model is loaded; every round drafts, with the first layers."""
    kind = ARCHITECTURES[name] | {"initializer_range": 0.2}
    alone = load_pair({"name": "alone", "target": model(2, 300, **kind)}, dtype=dtype)
    ask = {"prompt_ids": [5, 6, 7], "max_new_tokens": 24, "temperature": 0.0}
    for k in (1, 3):
        ours = generate(alone, strategy=f"speculative:draft=early-exit,layers=1,k={k}", **ask)
        theirs = generate(alone, strategy="target", **ask)
        assert ours.token_ids == theirs.token_ids
        assert ours.metrics.draft_calls >= ours.metrics.num_draft_tokens > 0
        assert ours.exit is not None and ours.exit.layers == 1 and ours.exit.trained is None
        assert "untrained exit" in ours.exit.label and theirs.exit is None


@pytest.mark.parametrize("rule", ["exact", "token-v3"])
def test_after_a_run_the_caches_of_all_layers_hold_the_text(rule: str) -> None:
    """Also where an end of text is inside an accepted block: the states equal those of a fresh read."""
    loaded = load_pair(pair(6, num_hidden_layers=3, initializer_range=0.2))
    loaded.eos_ids = frozenset({2})
    name = "speculative:" if rule == "exact" else f"speculative-cascade:rule={rule},"
    ended = set()
    for seed in range(12):
        request = Request([5, 3, 4], Sampling(), 7, seed=seed)
        decoding = Decoding(loaded, parse(f"{name}draft=early-exit,layers=2,k=3"), request)
        for _ in decoding.steps():
            pass
        ended.add(decoding.run().finish_reason)
        cache = loaded.target.runner.cache
        (length,) = {layer.length for layer in cache.layers}
        text = [5, 3, 4, *decoding._under_way.text.tolist()][:length]
        held = [layer.states.keys[0, :, :length].clone() for layer in cache.layers]
        other = loaded.with_own_caches().target.runner
        other.begin(torch.tensor([*text, 0]))
        for ours, theirs in zip(held, other.cache.layers, strict=True):
            assert torch.allclose(ours, theirs.states.keys[0, :, :length], atol=1e-4)
    assert ended == {"eos", "length"}


@pytest.mark.parametrize("size", [2, 3])
def test_batches_give_the_same_answers_as_single_prompts(size: int) -> None:
    loaded = load_pair("tiny-random")
    ask: dict[str, Any] = {"strategy": "speculative:draft=early-exit,layers=1,k=3", "max_new_tokens": 12}
    prompts = ["one", "two words", "and three of them"]
    alone, together = (generate_many(loaded, prompts, batch_size=n, **ask) for n in (1, size))
    assert [run.token_ids for run in together] == [run.token_ids for run in alone]
    assert all(run.metrics.num_draft_tokens for run in together)


def test_several_strategies_share_the_weights_of_one_comparison() -> None:
    """They run concurrently, each with its own caches; a pass of one must never meet layers disabled for another."""
    specs = ["target", "speculative:k=2", "speculative:draft=early-exit,layers=1,k=2"]
    specs += ["speculative:draft=early-exit,layers=1,stop=rate,k=auto", "speculative:draft=prompt-lookup,k=3"]
    done = compare(
        load_pair("tiny-random"), ["hello"], strategies=specs, max_new_tokens=20, temperature=0.0, measure=False
    )
    assert len({tuple(run.token_ids) for run in done.runs}) == 1
    module = decoder_layers(load_pair("tiny-random").target.model)
    assert all("forward" not in vars(layer) for layer in module)


@pytest.mark.parametrize("layers", [2, 7])
def test_layers_out_of_range_are_refused(layers: int) -> None:
    with pytest.raises(UsageError, match=f"layers={layers}: the model has 2 layers; use 1 to 1."):
        generate(load_pair(pair()), prompt_ids=[5], strategy=f"speculative:draft=early-exit,layers={layers}")
    with pytest.raises(UsageError, match=r"layers: .*greater than or equal to 1"):
        parse("speculative:draft=early-exit,layers=0")


def test_layers_that_pass_on_more_than_hidden_states_are_refused() -> None:
    """A state that the first layer leaves for the last one is missing if they do not run in one pass."""
    loaded = load_pair(pair(num_hidden_layers=3))
    first, *_, last = decoder_layers(loaded.target.model)
    left: list[Tensor] = []
    first.register_forward_hook(lambda _module, _args, output: left.append(output))
    last.register_forward_pre_hook(lambda _module, args: (args[0] + left.pop(), *args[1:]))
    with pytest.raises(RunError, match="'llama' cannot exit early after 1 layers"):
        generate(loaded, prompt_ids=[5], strategy="speculative:draft=early-exit,layers=1", max_new_tokens=4)


def test_a_target_that_cannot_be_left_early_is_a_matter_of_usage() -> None:
    with pytest.raises(UsageError, match="needs a decoder-only target"):
        generate(load_pair("tiny-t5"), "hi", strategy="speculative:draft=early-exit,k=2", max_new_tokens=4)
