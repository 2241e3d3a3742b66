"""EAGLE-3 heads: laws by enumeration with their true q, which depends on where the round began.

The reference takes the target's hidden states from a full transformers forward, and computes the head in NumPy from
the tensors that were written to disk.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cascli import Pair, generate, load_pair
from cascli.models.eagle3 import reading, runners
from cascli.models.eagle3.runners import Eagle3Runner, TappedRunner
from tests.eagle3 import LAYER, pair_with_head, write_head
from tests.laws.models import PROMPT, engine_law
from tests.laws.tables import target
from tests.reference import process
from tests.reference.distributions import softmax, total_variation, warp
from tests.reference.eagle3 import Head
from tests.reference.lossy import mentored
from tests.reference.process import Law, Target, Tokens, distance, round_outcomes, sequential_law
from tests.reference.rules import RULES

VOCAB, IDS, TAPS = 4, [0, 2, 3], [1, 3]
EXACT = 1e-12
PLAIN: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
WARPED: dict[str, Any] = {"temperature": 0.7, "top_k": 3, "top_p": 0.95}
GREEDY: dict[str, Any] = {"temperature": 0.0, "top_k": 0, "top_p": 1.0}
RULES_HERE = [("token-v3", 0.3), ("opt", 0.5), ("mentored", 0.3)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("head")


@pytest.fixture(scope="module")
def weights(folder: Path) -> dict[str, torch.Tensor]:
    return write_head(folder, VOCAB, IDS, taps=TAPS, scale=0.7, norm_before_residual=True)


def load(folder: Path) -> Pair:
    pair = load_pair(pair_with_head(folder, VOCAB, num_hidden_layers=3))
    pair.target.model.double().lm_head.weight.mul_(0.6)
    pair.draft.model.double()
    return pair


@pytest.fixture(scope="module")
def pair(folder: Path, weights: dict[str, torch.Tensor]) -> Pair:
    return load(folder)


@pytest.fixture(autouse=True)
def in_the_engine(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.laws.models.tiny_pair", lambda *_: pair)


class Reference:
    """Both models from scratch; `tables(start, prefix)` belongs to a round that began after `start`."""

    def __init__(self, pair: Pair, weights: dict[str, torch.Tensor]) -> None:
        self._model = pair.target.model
        self._head = Head(weights, LAYER, norm_before_residual=True)
        self.logits = cache(self._logits)
        self._target = cache(self._of_target)

    def _of_target(self, text: Tokens) -> tuple[np.ndarray, np.ndarray]:
        with torch.inference_mode():
            found = self._model(input_ids=torch.tensor([text]), use_cache=False, output_hidden_states=True)
        # transformers normalises the last of its hidden states; the head reads it before that norm.
        taps = [found.hidden_states[n] if n < 3 else self._last(text) for n in TAPS]
        return found.logits[0, -1].numpy(), torch.stack([tap[0] for tap in taps], dim=1).numpy()

    def _last(self, text: Tokens) -> torch.Tensor:
        seen: list[torch.Tensor] = []
        hook = self._model.model.norm.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        with torch.inference_mode():
            self._model(input_ids=torch.tensor([text]), use_cache=False)
        hook.remove()
        return seen[0]

    def _logits(self, start: Tokens, prefix: Tokens) -> tuple[np.ndarray, np.ndarray]:
        text, read = (*PROMPT, *prefix), (*PROMPT, *start)[:-1]
        states = self._target(read)[1]
        return self._head.logits(text, states, VOCAB)[-1], self._target(text)[0]

    def tables(self, start: Tokens, prefix: Tokens, **sampling: Any) -> process.Pair:
        x, y = self.logits(start, prefix)
        return process.Pair(warp(x, **sampling), warp(y, **sampling), softmax(x), softmax(y))

    def law(self, rule: Target, length: int, k: int, start: Tokens = (), **sampling: Any) -> Law:
        """The law of rounds of k drafts, each with the head's own q."""
        if length == 0:
            return {(): 1.0}
        law: Law = defaultdict(float)
        here = partial(self.tables, start, **sampling)
        for emitted, weight in round_outcomes(here, rule, start, min(k, length - 1)):
            if weight > 0:
                tails = self.law(rule, length - len(emitted), k, start + emitted, **sampling)
                for tail, more in tails.items():
                    law[emitted + tail] += weight * more
        return dict(law)


@pytest.fixture(scope="module")
def reference(pair: Pair, weights: dict[str, torch.Tensor]) -> Reference:
    return Reference(pair, weights)


def law(strategy: str, length: int, **sampling: Any) -> Law:
    return engine_law(strategy, length, VOCAB, **sampling)


PREFIXES: list[Tokens] = [(), (0,), (1,), (2,), (3,), (1, 2), (3, 1)]


def test_the_pair_is_worth_testing(reference: Reference) -> None:
    """The models disagree, tokens that cannot be drafted matter, and q depends on where the round began."""
    at = [reference.tables(prefix, prefix, **PLAIN) for prefix in PREFIXES]
    assert 0.15 < np.mean([total_variation(each.q, each.p) for each in at]) < 0.8
    assert all(each.q[1] == 0 for each in at) and max(each.p[1] for each in at) > 0.2
    for start, text in [((), (0, 2)), ((0,), (0, 2)), ((), (1,))]:
        apart = total_variation(reference.tables(start, text, **PLAIN).q, reference.tables(text, text, **PLAIN).q)
        assert apart > 0.02


@pytest.mark.parametrize(("name", "alpha"), RULES_HERE[:2])
def test_the_alphas_are_worth_testing(name: str, alpha: float, reference: Reference) -> None:
    seen = [np.ravel(RULES[name](*reference.tables(each, each, **PLAIN), alpha).defer) for each in PREFIXES]
    assert np.concatenate(seen).any() and not np.concatenate(seen).all()


@pytest.mark.parametrize(
    ("strategy", "sampling"),
    [("speculative:k=3", PLAIN), ("speculative:k=3", WARPED), ("speculative:k=2,verify=block", PLAIN)],
)
def test_speculation_is_lossless(strategy: str, sampling: dict[str, Any], reference: Reference) -> None:
    wanted = sequential_law(lambda prefix: reference.tables((), prefix, **sampling), target("exact"), 3)
    assert distance(law(strategy, 3, **sampling), wanted) < EXACT


@pytest.mark.parametrize(
    ("name", "alpha", "k", "sampling"),
    [(*RULES_HERE[0], 1, PLAIN), (*RULES_HERE[0], 2, WARPED), *((*rule, 2, PLAIN) for rule in RULES_HERE)],
)
def test_rules_follow_the_q_of_their_round(
    name: str, alpha: float, k: int, sampling: dict[str, Any], reference: Reference
) -> None:
    rule = rule_of(name, alpha)
    ours = law(f"speculative-cascade:rule={name},alpha={alpha},k={k}", 3, **sampling)
    assert distance(ours, reference.law(rule, 3, k, **sampling)) < (EXACT if name != "mentored" else 1e-9)


def rule_of(name: str, alpha: float) -> Target:
    if name != "mentored":
        return target(name, alpha)
    return lambda pair: mentored(pair.q, pair.p, 1 - alpha)


def test_the_law_depends_on_the_rounds(pair: Pair, reference: Reference) -> None:
    """The run reports this, unless it is lossless or its rule does not read q."""
    one, two = (reference.law(target("token-v3", 0.3), 3, k, **PLAIN) for k in (1, 2))
    assert distance(one, two) > 1e-3
    for strategy, depends in [("speculative", False), ("speculative-cascade:rule=token-v3", True)]:
        run = generate(pair, prompt_ids=PROMPT, strategy=strategy, max_new_tokens=3, **PLAIN)
        assert run.depends_on_rounds is depends
    lookup = "speculative-cascade:rule=min-p,draft=prompt-lookup"
    assert not generate(pair, prompt_ids=PROMPT, strategy=lookup, max_new_tokens=3, **PLAIN).depends_on_rounds


@pytest.mark.parametrize("stop", ["max-q,least_q=0.4", "svip"])
def test_a_stop_leaves_speculation_lossless(stop: str, reference: Reference) -> None:
    wanted = sequential_law(lambda prefix: reference.tables((), prefix, **PLAIN), target("exact"), 3)
    assert distance(law(f"speculative:stop={stop},k=2", 3, **PLAIN), wanted) < EXACT


@pytest.mark.parametrize("k", [1, 3, 5])
def test_greedy_speculation_writes_the_targets_own_tokens(k: int, pair: Pair) -> None:
    ours, theirs = (
        generate(pair, prompt_ids=PROMPT, strategy=strategy, max_new_tokens=60, **GREEDY)
        for strategy in (f"speculative:k={k}", "target")
    )
    assert ours.token_ids == theirs.token_ids
    drafted = [token for step in ours.rounds for token in step.drafted]
    assert {token.id for token in drafted} <= set(IDS) and any(token.accepted for token in drafted)
    assert ours.metrics.draft_calls == len(drafted)


# ---------------------------------------------------------------- positions beyond the head's own


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("short")
    write_head(
        folder, VOCAB, IDS, taps=TAPS, scale=0.7, norm_before_residual=True, layer={"max_position_embeddings": 6}
    )
    return load(folder)


@pytest.mark.parametrize("rule", ["speculative:k=3", "speculative-cascade:rule=token-v3,alpha=0.3,k=3"])
@pytest.mark.parametrize("prompt", [PROMPT, (1, 2, 3, 0, 1), (1, 2, 3) * 4])
def test_drafting_ends_at_the_last_position_of_the_head(rule: str, prompt: Tokens, short: Pair) -> None:
    """It reads positions 0 to 5, so it drafts tokens at positions 2 to 6."""
    for seed in range(5):
        run = generate(short, prompt_ids=prompt, strategy=rule, max_new_tokens=12, seed=seed, **PLAIN)
        assert len(run.token_ids) == 12
        place, seen = len(prompt), []
        for step in run.rounds:
            room = max(7 - place, 0)
            assert len(step.drafted) == min(3, room, 12 - (place - len(prompt)) - 1)
            seen += [place + i for i in range(len(step.drafted))]
            place += len(step.emitted)
        assert max(seen, default=0) <= 6 and (len(prompt) > 6 or seen)


def test_speculation_beyond_the_head_is_lossless(
    short: Pair, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.laws.models.tiny_pair", lambda *_: short)
    wanted = sequential_law(lambda prefix: reference.tables((), prefix, **WARPED), target("exact"), 3)
    short.draft.model.layout.layer.max_position_embeddings = 3
    assert distance(law("speculative:k=2", 3, **WARPED), wanted) < EXACT
    short.draft.model.layout.layer.max_position_embeddings = 6


def test_a_one_token_prompt_is_drafted_for_from_the_second_round(pair: Pair) -> None:
    run = generate(pair, prompt_ids=[1], strategy="speculative:k=2", max_new_tokens=8, **PLAIN)
    assert [len(step.drafted) for step in run.rounds][:2] == [0, 2]


# ---------------------------------------------------------------- planted bugs


def stale_states(patch: pytest.MonkeyPatch, fresh: Callable[[], Pair]) -> Pair:
    """Drafted tokens stay in the head's cache as they were read while drafting."""
    patch.setattr(Eagle3Runner, "length", property(lambda self: self._read))
    return fresh()


def a_map_without_places(patch: pytest.MonkeyPatch, fresh: Callable[[], Pair]) -> Pair:
    """The offsets in `d2t` are ignored: the head's i-th token is taken for the target's i-th."""
    right = reading._ids

    def ids(*given: Any) -> torch.Tensor:
        return right(*given) - torch.tensor([0, 1, 1])

    patch.setattr(reading, "_ids", ids)
    return fresh()


def the_token_itself(patch: pytest.MonkeyPatch, fresh: Callable[[], Pair]) -> Pair:
    """A state is paired with its own token's embedding, instead of the next one's."""
    pair = fresh()
    right, runner = pair.draft.runner.forward, pair.draft.runner

    def forward(ids: torch.Tensor, rows: int) -> torch.Tensor:
        before = getattr(runner, "last", ids[:1])
        runner.last = ids[-1:]
        return right(torch.cat([before, ids[:-1]]), rows)

    patch.setattr(runner, "forward", forward)
    return pair


def states_one_place_late(patch: pytest.MonkeyPatch, fresh: Callable[[], Pair]) -> Pair:
    right = TappedRunner.states
    patch.setattr(TappedRunner, "states", lambda self, start, end: right(self, start, end).roll(1, 0))
    return fresh()


class Next:
    """The states after one layer more than requested, where there is one."""

    def __init__(self, hidden: dict[int, torch.Tensor]) -> None:
        self._hidden = hidden

    def __getitem__(self, n: int) -> torch.Tensor:
        return self._hidden[min(n + 1, 3)]


def states_of_the_next_layer(patch: pytest.MonkeyPatch, fresh: Callable[[], Pair]) -> Pair:
    """Layer numbers are read as indices that start at 0."""
    right = runners.tapped

    @contextmanager
    def tapped(model: Any, after: Any) -> Any:
        with right(model, (1, 2, 3)) as hidden:
            yield Next(hidden)

    patch.setattr(runners, "tapped", tapped)
    return fresh()


@pytest.mark.parametrize(
    "bug", [stale_states, a_map_without_places, the_token_itself, states_one_place_late, states_of_the_next_layer]
)
def test_planted_bugs_are_detected(
    bug: Callable[..., Pair], folder: Path, weights: Any, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Speculation is lossless for any q, so only laws that depend on q can detect these bugs."""
    length = 3 if bug in (stale_states, states_one_place_late) else 2  # these show only in a second round
    wanted = reference.law(target("token-v3", 0.3), length, 2, **PLAIN)
    wrong = bug(monkeypatch, lambda: load(folder))
    monkeypatch.setattr("tests.laws.models.tiny_pair", lambda *_: wrong)
    assert distance(law("speculative-cascade:rule=token-v3,alpha=0.3,k=2", length, **PLAIN), wanted) > 1e-3
