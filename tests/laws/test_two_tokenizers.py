"""A draft model with another tokenizer: laws are exact, with q conditioned on the tokens that both can produce.

The target has a, b, c and ab; the draft b, a, bc, c, and the byte of a as a duplicate. So a corresponds to two of the
draft's tokens, bc and ab can never be drafted, and ab is read as two tokens.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cascli import Pair, generate, load_pair
from cascli.models.runner import Runner
from cascli.models.translated_runner import TranslatedRunner
from cascli.models.translation import Translation
from tests.laws.models import PROMPT, engine_law
from tests.laws.tables import target
from tests.reference import process
from tests.reference.distributions import softmax, total_variation, warp
from tests.reference.process import Law, Target, Tokens, distance
from tests.reference.rules import RULES
from tests.two_tokenizers import byte_level, pair_of, pieces

TARGET = ["a", "b", "c", "ab"]
DRAFT = ["b", "a", "bc", "c", "<0x61>"]
SAID = {0: 1, 1: 0, 3: 2, 4: 0}
"""The target's token for each of the draft's."""
READ = {0: [1], 1: [0], 2: [3], 3: [1, 0]}
"""The draft's tokens for each of the target's."""
READ_PROMPT = [2]
"""The prompt, b and c, as the draft reads it: one token."""
EXACT = 1e-12
PLAIN: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
WARPED: dict[str, Any] = {"temperature": 0.7, "top_k": 3, "top_p": 0.95}
GREEDY: dict[str, Any] = {"temperature": 0.0, "top_k": 0, "top_p": 1.0}
BOTH = pytest.mark.parametrize("sampling", [PLAIN, WARPED], ids=["plain", "warped"])
ALPHAS = [("chow", 0.3), ("diff", 0.1), ("opt", 0.3), ("token-v1", 0.3), ("token-v3", 0.6)]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    shape = {"hidden_size": 16, "intermediate_size": 32, "initializer_range": 0.6, "max_position_embeddings": 128}
    config = pair_of(tmp_path_factory.mktemp("two"), pieces(DRAFT, prefix=False), byte_level(TARGET), seed=9, **shape)
    loaded = load_pair(config)
    for each in (loaded.draft, loaded.target):
        each.model.double()
        each.model.lm_head.weight.mul_(0.6)
    return loaded


@pytest.fixture(autouse=True)
def in_the_engine(two: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.laws.models.tiny_pair", lambda *_: two)


class Reference:
    """The two models by full forwards without a cache, translated with the tables above."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.logits = cache(self._logits)

    def _logits(self, prefix: Tokens) -> tuple[np.ndarray, np.ndarray, float]:
        own = [*READ_PROMPT, *(token for each in prefix for token in READ[each])]
        mass = np.zeros(len(TARGET))
        for ours, prob in enumerate(softmax(self._after(self.pair.draft.model, own))):
            if ours in SAID:
                mass[SAID[ours]] += prob
        with np.errstate(divide="ignore"):
            return np.log(mass), self._after(self.pair.target.model, [*PROMPT, *prefix]), float(mass.sum())

    @staticmethod
    def _after(model: Any, ids: list[int]) -> np.ndarray:
        with torch.inference_mode():
            return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].numpy()

    def tables(self, **sampling: Any) -> process.Tables:
        def of(prefix: Tokens) -> process.Pair:
            x, y, _ = self.logits(prefix)
            return process.Pair(warp(x, **sampling), warp(y, **sampling), softmax(x), softmax(y))

        return of

    def law(self, rule: Target, length: int, **sampling: Any) -> Law:
        return process.sequential_law(self.tables(**sampling), rule, length)


@pytest.fixture(scope="module")
def reference(two: Pair) -> Reference:
    return Reference(two)


def law(strategy: str, length: int, **sampling: Any) -> Law:
    return engine_law(strategy, length, len(TARGET), **sampling)


def test_the_models_are_worth_testing(reference: Reference) -> None:
    """The models disagree; tokens that cannot be drafted matter to both, the last token but one to the draft."""
    tables = reference.tables(**PLAIN)
    prefixes: list[Tokens] = [(), (0,), (1,), (2,), (3,), (3, 1), (1, 1)]
    assert np.mean([total_variation(tables(each).q, tables(each).p) for each in prefixes]) > 0.1
    shares = [reference.logits(each)[2] for each in prefixes]
    assert min(shares) < 0.2 and 0.8 < max(shares) < 0.99
    assert max(tables(each).p[3] for each in prefixes) > 0.2
    assert all(tables(each).q[3] == 0 for each in prefixes)
    assert np.abs(tables((3, 1)).q - tables((1, 1)).q).max() > 1e-3


@BOTH
@pytest.mark.parametrize(("name", "alpha"), ALPHAS)
def test_the_alphas_are_worth_testing(name: str, alpha: float, sampling: dict[str, Any], reference: Reference) -> None:
    """Each rule both defers and keeps somewhere."""
    tables = reference.tables(**sampling)
    prefixes = [(), *((token,) for token in range(len(TARGET)))]
    seen = np.concatenate([np.ravel(RULES[name](*tables(prefix), alpha).defer) for prefix in prefixes])
    assert seen.any() and not seen.all()


@BOTH
@pytest.mark.parametrize("strategy", ["speculative:k=1", "speculative:k=3", "speculative:k=2,verify=block"])
def test_speculation_is_lossless(strategy: str, sampling: dict[str, Any], reference: Reference) -> None:
    assert distance(law(strategy, 2, **sampling), reference.law(target("exact"), 2, **sampling)) < EXACT


@BOTH
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize(("name", "alpha"), ALPHAS)
def test_rules_that_read_q_follow_their_pi_wherever_rounds_begin(
    name: str, alpha: float, k: int, sampling: dict[str, Any], reference: Reference
) -> None:
    wanted = reference.law(target(name, alpha), 2, **sampling)
    assert distance(law(f"speculative-cascade:rule={name},alpha={alpha},k={k}", 2, **sampling), wanted) < EXACT


@pytest.mark.parametrize(("name", "alpha"), [("exact", 0.0), ("opt", 0.3)])
def test_three_tokens_across_rounds(name: str, alpha: float, reference: Reference) -> None:
    """Tokens that the draft reads as two, among others, in rounds that are rejected anywhere."""
    wanted = reference.law(target(name, alpha), 3, **PLAIN)
    strategy = "speculative:k=2" if name == "exact" else f"speculative-cascade:rule={name},alpha={alpha},k=2"
    assert distance(law(strategy, 3, **PLAIN), wanted) < EXACT


@pytest.mark.parametrize(
    ("name", "alpha", "how", "room"),
    [
        ("opt", 0.3, "k=1", 1),
        ("opt", 0.3, "k=3", 2),
        ("opt", 0.3, "k=3,stop=max-q,least_q=0.3", 2),
        ("opt", 0.3, "k=3,verify=block", 3),
        ("token-v3", 0.6, "k=2", 2),
    ],
)
def test_where_the_drafts_context_is_full_the_target_writes_alone(
    name: str,
    alpha: float,
    how: str,
    room: int,
    two: Pair,
    reference: Reference,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """That is where the text, in the draft's tokens, is longer than its context: no matter where rounds began."""
    monkeypatch.setattr(two.draft.runner, "_context", room)
    with_q, pi = reference.tables(**PLAIN), target(name, alpha)
    nothing = np.zeros(0)

    def tables(prefix: Tokens) -> process.Pair:
        fits = len(READ_PROMPT) + sum(len(READ[token]) for token in prefix) <= room
        return with_q(prefix) if fits else with_q(prefix)._replace(q=nothing, q1=nothing)

    wanted = process.sequential_law(tables, lambda pair: pi(pair) if pair.q.size else pair.p, 3)
    found = law(f"speculative-cascade:rule={name},alpha={alpha},{how}", 3, **PLAIN)
    assert distance(found, wanted) < EXACT
    assert distance(found, reference.law(pi, 3, **PLAIN)) > 1e-3


@pytest.mark.parametrize(("name", "alpha"), ALPHAS)
def test_token_cascades_have_the_same_law(name: str, alpha: float, reference: Reference) -> None:
    wanted = reference.law(target(name, alpha), 2, **WARPED)
    assert distance(law(f"token-cascade:rule={name},alpha={alpha}", 2, **WARPED), wanted) < EXACT


@BOTH
def test_the_draft_alone_writes_only_shared_tokens(sampling: dict[str, Any], reference: Reference) -> None:
    assert distance(law("draft", 3, **sampling), reference.law(lambda pair: pair.q, 3, **sampling)) < EXACT


@pytest.mark.parametrize("k", [1, 3, 5])
def test_greedy_speculation_writes_the_targets_own_tokens(k: int, two: Pair) -> None:
    ours, theirs = (
        generate(two, prompt_ids=PROMPT, strategy=strategy, max_new_tokens=40, **GREEDY)
        for strategy in (f"speculative:k={k}", "target")
    )
    assert ours.token_ids == theirs.token_ids
    assert 3 not in {token.id for step in ours.rounds for token in step.drafted}


def test_shared_mass_is_counted(two: Pair, reference: Reference) -> None:
    """q(I) is the mean over the draft's steps, which for the strategy `draft` are those of its answer."""
    run = generate(two, prompt_ids=PROMPT, strategy="draft", max_new_tokens=9, seed=3, **PLAIN)
    wanted = [reference.logits(tuple(run.token_ids[:i]))[2] for i in range(9)]
    assert run.metrics.shared_mass == pytest.approx(np.mean(wanted), abs=1e-12)
    assert run.metrics.draft_tokens_read == len(READ_PROMPT) + sum(len(READ[token]) for token in run.token_ids[:-1])
    again = generate(two, prompt_ids=PROMPT, strategy="target", max_new_tokens=9, **PLAIN)
    assert again.metrics.shared_mass is None


# ---------------------------------------------------------------- planted bugs


def masks_the_target(patch: pytest.MonkeyPatch, two: Pair) -> None:
    """The target is also restricted to the tokens that both models can produce."""
    right = two.target.runner.forward

    def forward(ids: Tensor, rows: int) -> Tensor:
        logits = right(ids, rows).clone()
        logits[:, 3] = -torch.inf
        return logits

    patch.setattr(two.target.runner, "forward", forward)


def rewinds_by_the_targets_count(patch: pytest.MonkeyPatch, two: Pair) -> None:
    """The draft's cache is truncated to the target's number of tokens."""

    def truncate(self: TranslatedRunner, length: int) -> None:
        kept = min(length, len(self._ends))
        del self._ends[length:]
        self._own.truncate(kept)

    patch.setattr(TranslatedRunner, "truncate", truncate)


def reads_one_token_for_another(patch: pytest.MonkeyPatch, two: Pair) -> None:
    """A token that the draft lacks is read as a single one of the draft's tokens, such as the unknown token."""
    right = Translation.read
    patch.setattr(Translation, "read", lambda self, token: right(self, token)[:1])


def the_later_of_two_wins(patch: pytest.MonkeyPatch, two: Pair) -> None:
    """Of two tokens with the same bytes, one is ignored instead of adding up their probabilities."""
    patch.setattr(torch, "logaddexp", lambda before, said: said)


def reads_the_prompt_in_pieces_at_its_end(patch: pytest.MonkeyPatch, two: Pair) -> None:
    """The prompt is read in full, and then its last token again."""
    right = TranslatedRunner.begin

    def begin(self: TranslatedRunner, prompt_ids: Tensor) -> Tensor:
        last = right(self, prompt_ids)
        self._last = None
        return last

    patch.setattr(TranslatedRunner, "begin", begin)


@pytest.mark.parametrize(
    ("bug", "strategy", "rule", "length"),
    [
        (masks_the_target, "speculative:k=2", target("exact"), 2),
        (rewinds_by_the_targets_count, "speculative-cascade:rule=opt,alpha=0.3,k=3", target("opt", 0.3), 4),
        (reads_one_token_for_another, "speculative-cascade:rule=opt,alpha=0.3,k=2", target("opt", 0.3), 3),
        (the_later_of_two_wins, "draft", lambda pair: pair.q, 2),
        (reads_the_prompt_in_pieces_at_its_end, "draft", lambda pair: pair.q, 2),
    ],
)
def test_planted_bugs_are_detected(
    bug: Callable[..., None],
    strategy: str,
    rule: Target,
    length: int,
    two: Pair,
    reference: Reference,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without the bug, each of these laws is exact by the tests above."""
    bug(monkeypatch, two)
    assert distance(law(strategy, length, **PLAIN), reference.law(rule, length, **PLAIN)) > 1e-3


def test_rewinding_is_exact_after_every_length(two: Pair) -> None:
    """After random reads and rewinds, the logits equal those of a runner that read the text in one go."""
    rng = np.random.default_rng(0)
    runner, fresh = two.draft.runner, two.draft.runner.fresh()
    start = runner.begin(torch.tensor(PROMPT))
    runner.forward(start, 1)
    before, text = runner.length, list[int]()
    for _ in range(60):
        kept = int(rng.integers(0, len(text) + 1))
        runner.truncate(before + kept)
        more = rng.integers(0, len(TARGET), int(rng.integers(1, 5))).tolist()
        text = text[:kept] + more
        rows = int(rng.integers(1, len(more) + 1))
        got = runner.forward(torch.tensor(more), rows)
        whole = said_at_once(fresh, text, rows)
        assert torch.allclose(got, whole, atol=1e-12) and runner.length == before + len(text)
        if len(text) > 40:
            text = []
            runner.truncate(before)


def said_at_once(runner: Runner, text: list[int], rows: int) -> Tensor:
    start = runner.begin(torch.tensor(PROMPT))
    return runner.forward(torch.cat([start, torch.tensor(text)]), rows)
