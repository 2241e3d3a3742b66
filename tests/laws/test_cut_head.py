"""A draft model whose head is cut: q is 0 for the removed tokens, and every law is still exact."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cascli import Pair, generate, load_pair
from cascli.models.cut_head import CutHead
from tests.laws.models import PROMPT, engine_law, logits, tiny_pair
from tests.laws.tables import target
from tests.pairs import ARCHITECTURES, model
from tests.reference import process
from tests.reference.distributions import softmax, warp
from tests.reference.process import Tables, Target, Tokens, distance

VOCAB, KEPT = 5, [0, 2, 3]
EXACT = 1e-12
PLAIN: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
WARPED: dict[str, Any] = {"temperature": 0.7, "top_k": 3, "top_p": 0.95}
GREEDY: dict[str, Any] = {"temperature": 0.0, "top_k": 0, "top_p": 1.0}
BOTH = pytest.mark.parametrize("sampling", [PLAIN, WARPED], ids=["plain", "warped"])


@pytest.fixture(scope="module")
def ids(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("ids") / "ids.txt"
    file.write_text(", ".join(map(str, KEPT)))
    return file


@pytest.fixture(scope="module")
def cut(ids: Path) -> Pair:
    """The pair of `tiny_pair` with a cut draft head; all remaining weights are the same."""
    whole = tiny_pair(VOCAB, 2)
    shape = whole.config.draft.source.random
    models = {
        role: {"source": {"random": shape, "seed": seed}} | ({"vocab": str(ids)} if role == "draft" else {})
        for role, seed in (("draft", 5), ("target", 6))
    }
    pair = load_pair(models)
    for loaded, theirs in ((pair.draft, whole.draft), (pair.target, whole.target)):
        loaded.model.double()
        head = loaded.model.lm_head
        (head.layer if isinstance(head, CutHead) else head).weight.mul_(0.6)
        assert loaded.model.model.layers[0].mlp.up_proj.weight.equal(theirs.model.model.layers[0].mlp.up_proj.weight)
    return pair


@pytest.fixture
def in_the_engine(cut: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.laws.models.tiny_pair", lambda *_: cut)


def tables(**sampling: Any) -> Tables:
    """From full forwards of the whole models; removed tokens are masked out of the draft's logits here."""
    missing = [token for token in range(VOCAB) if token not in KEPT]

    def of(prefix: Tokens) -> process.Pair:
        x, y = logits(VOCAB, 2, prefix)
        x = x.copy()
        x[missing] = -np.inf
        return process.Pair(warp(x, **sampling), warp(y, **sampling), softmax(x), softmax(y))

    return of


def assert_law(strategy: str, rule: Target, length: int, sampling: dict[str, Any]) -> None:
    wanted = process.sequential_law(tables(**sampling), rule, length)
    assert distance(engine_law(strategy, length, VOCAB, 2, **sampling), wanted) < EXACT


@pytest.fixture(scope="module", autouse=True)
def reference() -> None:
    """Compute the reference's numbers before the engine gets the cut pair in place of the whole one."""
    for length in range(3):
        for prefix in np.ndindex(*([VOCAB] * length)):
            logits(VOCAB, 2, tuple(map(int, prefix)))


def test_the_removed_tokens_have_substantial_mass() -> None:
    """The removed tokens have a substantial share of the target's mass, and of the uncut draft's."""
    missing = [token for token in range(VOCAB) if token not in KEPT]
    x, y = logits(VOCAB, 2, ())
    assert 0.05 < softmax(y)[missing].sum() < 0.95
    assert softmax(x)[missing].sum() > 0.05


@BOTH
@pytest.mark.parametrize("strategy", ["speculative:k=1", "speculative:k=3", "speculative:k=2,verify=block"])
def test_speculation_is_lossless(strategy: str, sampling: dict[str, Any], in_the_engine: None) -> None:
    assert_law(strategy, target("exact"), 3, sampling)


@BOTH
@pytest.mark.parametrize(
    ("name", "alpha"), [("chow", 0.5), ("diff", 0.09), ("opt", 0.3), ("token-v1", 0.2), ("token-v3", 0.3)]
)
def test_rules_that_read_q_follow_their_pi(
    name: str, alpha: float, sampling: dict[str, Any], in_the_engine: None
) -> None:
    for strategy in (f"speculative-cascade:rule={name},alpha={alpha},k=2", f"token-cascade:rule={name},alpha={alpha}"):
        assert_law(strategy, target(name, alpha), 2, sampling)


@BOTH
def test_the_draft_alone_follows_its_remaining_distribution(sampling: dict[str, Any], in_the_engine: None) -> None:
    assert_law("draft", lambda pair: pair.q, 3, sampling)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_greedy_speculation_writes_the_targets_own_tokens(k: int, cut: Pair) -> None:
    ours, theirs = (
        generate(cut, prompt_ids=PROMPT, strategy=strategy, max_new_tokens=40, **GREEDY)
        for strategy in (f"speculative:k={k}", "target")
    )
    assert ours.token_ids == theirs.token_ids
    assert {token.id for step in ours.rounds for token in step.drafted} <= set(KEPT)


def rows_in_disorder(patch: pytest.MonkeyPatch, head: CutHead) -> None:
    """The kept rows are placed next to each other, as if the lowest ids had been kept."""
    patch.setattr(head, "_lowest", len(KEPT))


def a_floor_for_minus_infinity(patch: pytest.MonkeyPatch, head: CutHead) -> None:
    """Removed tokens get a small logit, as a cap after the head would make of minus infinity."""
    right = head.forward
    patch.setattr(head, "forward", lambda hidden: right(hidden).clamp_min(-3.0))


@pytest.mark.parametrize("bug", [rows_in_disorder, a_floor_for_minus_infinity])
def test_planted_bugs_are_detected(
    bug: Callable[..., None], cut: Pair, in_the_engine: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exact rule is lossless for any q, so only laws that depend on q can detect these bugs."""
    head = cut.draft.model.lm_head
    bug(monkeypatch, head)
    wanted = process.sequential_law(tables(**PLAIN), lambda pair: pair.q, 2)
    assert distance(engine_law("draft", 2, VOCAB, 2, **PLAIN), wanted) > 1e-3


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_family_keeps_its_logits_for_the_kept_tokens(name: str) -> None:
    """All other logits are minus infinity, even where the model caps its logits after the head."""
    more = ARCHITECTURES[name] | ({"final_logit_softcapping": 5.0} if name.startswith("gemma") else {})
    whole, few = (
        load_pair({"draft": model(1, 300, **more) | vocab, "target": model(2, 300, **more)})
        for vocab in ({}, {"vocab": 90})
    )
    text = torch.arange(7)
    ours, theirs = (pair.draft.runner.forward(text, 3) for pair in (few, whole))
    assert ours.shape == theirs.shape
    kept = [*range(90), 256]  # 256 is the byte tokenizer's end of text
    others = [token for token in range(257) if token not in kept]
    assert torch.allclose(ours[:, kept], theirs[:, kept], atol=1e-5)
    assert bool((ours[:, others] == -torch.inf).all()) and bool(theirs.isfinite().all())
    assert few.draft.info.output_parameters == few.draft.model.get_output_embeddings().layer.weight.numel() == 91 * 32
    assert few.info.draft.output_rows == 91 and whole.info.draft.output_rows == few.info.target.output_rows == 300
