"""Does the real engine write the answers that follow from their definition? Compared given the same random numbers.

`round` compares single decisions. Here whole answers are compared, and with them everything between the decisions:
which random numbers decide what, which q belongs to which draft, what is read again after a rejection, rounds at the
end of an answer, temperature and truncation, and where an answer ends. Both models answer with logits of a tree, chosen
by the whole text before a position: a token too many or too few in either model's text changes everything after it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from cascli.audit import by_definition
from cascli.audit.joint import OF_LAYERS, rule_of
from cascli.audit.report import Check, check_of, skipped
from cascli.audit.rounds import Rows, drawn_together, has_rounds, of_tree
from cascli.audit.tables import THINKING, Tree, answering, path_of
from cascli.decoding import thinking
from cascli.decoding.session import Session
from cascli.decoding.speculation import Block
from cascli.drafters.base import Drafter
from cascli.drafters.model import Model
from cascli.engine import Decoding, Request
from cascli.models.pair import Pair
from cascli.rules.base import Rule
from cascli.sampling.parameters import Sampling
from cascli.sampling.uniforms import LookingAhead, Uniforms, seed_of
from cascli.stops.never import Never
from cascli.strategies import Strategy
from cascli.strategies.base import Speculating
from cascli.trace import Round

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]

LENGTH = 20
"""Tokens of an answer that does not end earlier: more than two blocks of eight."""
SAMPLINGS = (Sampling(1.0), Sampling(0.6, top_k=10, top_p=0.95))
PROMPT = (2, 3, 2, 0, 2, 3)
"""It repeats itself, so that lookups draft, and opens the thinking that some rules are limited to."""
END_AT = 11
"""Half of the answers are written again with the token of this position as one that ends the text: all of them end."""
BOUND = 0.0
"""Answers of a strategy that may differ."""
NUDGE = 1e-4
"""How far all numbers are moved, both ways, before an answer counts as different.

One of some thousand numbers is at the very edge of a token or a test in float32, and everything after it is different
then. No rounding comes near this far, except in a law of what is left over that has next to no mass.
"""


class Proposal(NamedTuple):
    """A drafter's tokens `[n]` and its distributions `[n, V]` or `[n + 1, V]`, as they were during a run."""

    start: int
    tokens: list[int]
    q: Array
    q1: Array


@dataclass
class Counts:
    """What happened in the answers compared, so that a check states what it has seen."""

    tokens: int = 0
    tested: int = 0
    rejected: int = 0
    whole: int = 0
    ends: int = 0

    def __str__(self) -> str:
        seen = f"{self.tokens} tokens, {self.ends} ends"
        if not self.tested:
            return seen
        return f"{seen}; {self.tested} drafts tested, {self.rejected} rejected, {self.whole} blocks kept whole"


@dataclass
class _Definition:
    """Writes one answer by definition, in float64; the sequence of `proposals` is the drafter's, if it has one."""

    rule: Rule
    rows: Rows
    sampling: Sampling
    seed: int
    prompt: list[int]
    end: int | None
    k: int
    by_block: bool = False
    lengths: Sequence[int] | None = None
    """The rounds' numbers of drafts, if a stop decided them; at most k otherwise."""
    proposals: list[Proposal] | None = None
    nudge: float = 0.0
    """What is added to all numbers."""
    answer: list[int] = field(default_factory=list)

    def written(self, counts: Counts) -> list[int]:
        """The answer's tokens, up to the one that ends it."""
        own = Uniforms(seed_of(self.seed, "", 0), LENGTH + 1)
        numbers = LookingAhead(own) if self.by_block else own
        rounds = 0
        while len(self.answer) < LENGTH and self.end not in self.answer:
            start, room = len(self.answer), min(self.k, LENGTH - len(self.answer) - 1)
            n = room if self.lengths is None else self.lengths[rounds]
            given = self._proposed(start) if self.proposals is not None else self._drafted(numbers, start, n)
            n = len(given.tokens)
            kept, following = self._decided(given, numbers, start)
            if isinstance(numbers, LookingAhead):
                numbers.mark_used(start + n)
            self.answer += [*given.tokens[:kept], following]
            rounds += 1
            counts.tested += min(kept + 1, n)
            counts.rejected += kept < n
            counts.whole += 0 < n == kept
        ended = self.end in self.answer
        answer = self.answer[: self.answer.index(self.end) + 1] if ended and self.end is not None else self.answer
        counts.tokens += len(answer)
        counts.ends += ended
        return answer

    def _logits(self, which: Any, drafts: Sequence[int]) -> Array:
        text = [*self.prompt, *self.answer, *drafts]
        logits: Array = which[_place(text, len(which))].numpy()
        return logits

    def _drafted(self, numbers: LookingAhead | Uniforms, start: int, n: int) -> Proposal:
        """The draft model's own drafts, and its distributions up to the position after them."""
        import numpy as np

        u, tokens = self._nudged(numbers.draw(start, n)), list[int]()
        logits = [self._logits(self.rows.draft, [])]
        for number in u:
            tokens.append(by_definition.drawn(by_definition.truncated(logits[-1], self.sampling), number))
            logits.append(self._logits(self.rows.draft, tokens))
        q, q1 = (
            np.stack([by_definition.truncated(row, sampling) for row in logits])
            for sampling in (self.sampling, Sampling(1.0))
        )
        return Proposal(start, tokens, q, q1)

    def _proposed(self, start: int) -> Proposal:
        """What the drafter proposed at this position of the run; nothing if the run was never here."""
        assert self.proposals is not None
        found = next((each for each in self.proposals if each.start == start), None)
        if found is None:
            none = torch.zeros(0, self.rows.target.shape[1], dtype=torch.float64).numpy()
            return Proposal(start, [], none, none)
        self.proposals.remove(found)
        return found

    def _decided(self, given: Proposal, numbers: LookingAhead | Uniforms, start: int) -> tuple[int, int]:
        """How many drafts are kept, and the token after them."""
        import numpy as np

        n = len(given.tokens)
        logits = [self._logits(self.rows.target, given.tokens[:i]) for i in range(n + 1)]
        p, p1 = (
            np.stack([by_definition.truncated(row, sampling) for row in logits])
            for sampling in (self.sampling, Sampling(1.0))
        )
        q, q1 = given.q, given.q1
        if self.rule.reads_draft and len(q) == n:  # asked only once all are kept, or there is no proposal
            after = next((each for each in self.proposals or [] if each.start == start + n and not each.tokens), None)
            if n and after is not None and len(after.q):
                q, q1 = np.concatenate([q, after.q]), np.concatenate([q1, after.q1])
        pi = self._pi(q, p, q1, p1, given.tokens)
        decide = by_definition.of_prefixes if self.by_block else by_definition.of_tokens
        accept = np.array(self._nudged(numbers.accept(start, n)))
        kept, law = decide(pi, q[:n], given.tokens, accept)
        u = numbers.draw(start + n, 1) if kept == n else numbers.residual(start + kept, 1)
        return kept, by_definition.drawn(law, *self._nudged(u))

    def _nudged(self, numbers: Tensor) -> list[float]:
        return (numbers + self.nudge).clamp(0, 1 - 1e-12).tolist()

    def _pi(self, q: Array, p: Array, q1: Array, p1: Array, drafts: list[int]) -> Array:
        """The rule's pi `[n + 1, V]`; p where the rule does not apply, or reads a q that there is not."""
        import numpy as np

        known = len(q) if self.rule.reads_draft else len(p)
        if not self.rule.reads_draft:  # any q will do
            q, q1 = (np.concatenate([each, p[len(each) :]]) for each in (q, q1))
        base = (q1, p1) if self.rule.reads_base else (q, p)
        pi = by_definition.pi_of(self.rule, q[:known], p[:known], base[0][:known], base[1][:known])
        pi = np.concatenate([pi, p[known:]])
        if self.rule.thinking_only:
            for i in range(len(p)):
                if not thinking.opened([*self.prompt, *self.answer, *drafts[:i]], THINKING):
                    pi[i] = p[i]
        return pi


@torch.inference_mode()
def answers(pair: Pair, tree: Tree, strategies: Sequence[Strategy], seeds: int) -> Iterator[Check]:
    """One check for the target and for each strategy that speculates: the number of answers that differ.

    `seeds` is the number of answers with each sampling; each is written again with a token that ends it.
    """
    rows = drawn_together(of_tree(tree), tree.dtype)
    for strategy in strategies:
        if not compares(strategy):
            continue
        why = _left_out(strategy)
        if why is not None:
            yield skipped("answer", strategy.spec, why)
            continue
        counts, different, made = Counts(), 0, 0
        for sampling, seed in product(SAMPLINGS, range(seeds)):
            whole = _written(pair, tree, rows, strategy, sampling, None, seed)
            end = whole.token_ids[END_AT] if len(whole.token_ids) > END_AT else None
            for each in (whole, _written(pair, tree, rows, strategy, sampling, end, seed)):
                made += 1
                different += each.differs(counts)
        if isinstance(strategy, Speculating) and not counts.tested:
            yield skipped("answer", strategy.spec, "nothing was drafted")
            continue
        detail = f"{made} answers: {counts}; {path_of(pair, tree)}"
        yield check_of("answer", strategy.spec, different, BOUND, 0.0, detail)


def compares(strategy: Strategy) -> bool:
    """Whether there is a check for a strategy, which may turn out to be skipped."""
    return strategy.name == "target" or (has_rounds(strategy) and isinstance(strategy, Speculating))


def _left_out(strategy: Strategy) -> str | None:
    """Why a strategy's answers cannot be written by definition; None if they can."""
    if not isinstance(strategy, Speculating):
        return None
    if strategy.draft.exit_layers is not None:
        return OF_LAYERS
    if not isinstance(strategy.stop, Never) and type(strategy.draft) is not Model:
        return "its stop asks the drafter token by token"
    return None


@dataclass(frozen=True)
class _Written:
    """An answer of the engine, and all that its definition needs."""

    token_ids: list[int]
    given: dict[str, Any]
    proposals: list[Proposal] | None

    def differs(self, counts: Counts) -> bool:
        """Whether the engine wrote another answer than the definition, wherever rounding puts its numbers."""
        if self._by_definition(counts) == self.token_ids:
            return False
        return all(self._by_definition(Counts(), nudge) != self.token_ids for nudge in (NUDGE, -NUDGE))

    def _by_definition(self, counts: Counts, nudge: float = 0.0) -> list[int]:
        proposals = None if self.proposals is None else list(self.proposals)
        return _Definition(**self.given, proposals=proposals, nudge=nudge).written(counts)


def _written(
    pair: Pair, tree: Tree, rows: Rows, strategy: Strategy, sampling: Sampling, end: int | None, seed: int
) -> _Written:
    """Let the engine write an answer."""
    draft, target = (each.to(pair.device, tree.dtype) for each in rows)
    small = answering(
        pair,
        tree.width,
        lambda text: draft[_place(text, len(draft))],
        lambda text: target[_place(text, len(target))],
        ends=() if end is None else (end,),
    )
    prompt = [token % tree.width for token in PROMPT]
    proposals: list[Proposal] = []
    own_drafts = isinstance(strategy, Speculating) and type(strategy.draft) is not Model
    decoding = Decoding(
        small,
        _recording(strategy, proposals) if own_drafts else strategy,
        Request(prompt_ids=prompt, sampling=sampling, max_new_tokens=LENGTH, seed=seed),
    )
    for _ in decoding.steps():
        pass
    given = {
        "rule": rule_of(strategy),
        "rows": rows,
        "sampling": sampling,
        "seed": seed,
        "prompt": prompt,
        "end": end,
        "k": strategy.longest if isinstance(strategy, Speculating) else 0,
        "by_block": isinstance(strategy, Speculating) and strategy.by_block,
        "lengths": _lengths(decoding.run().rounds, strategy),
    }
    return _Written(decoding.token_ids, given, proposals if own_drafts else None)


def _lengths(rounds: Sequence[Round], strategy: Strategy) -> list[int] | None:
    """The number of drafts in each round, where a stop decides it."""
    if isinstance(strategy, Speculating) and not isinstance(strategy.stop, Never):
        return [*(len(each.drafted) for each in rounds), *[0] * LENGTH]
    return None


def _place(text: Sequence[int], count: int) -> int:
    """Which of `count` rows follows a text: a number that depends on all of its tokens and on their order."""
    mixed = 7
    for token in text:
        mixed = (mixed * 31 + token + 1) % 1_000_003
    return mixed % count


def _recording(strategy: Strategy, proposals: list[Proposal]) -> Strategy:
    """The strategy with a drafter that records what it proposes."""
    assert isinstance(strategy, Speculating)
    kind: type[Drafter] = type(strategy.draft)

    def propose(self: Any, s: Session, n: int, rule: Rule) -> Block:
        block = kind.propose(self, s, n, rule)
        q, q1 = (each.double().cpu().numpy().copy() for each in (block.q, block.q1))
        proposals.append(Proposal(s.length, block.tokens.tolist(), q, q1))
        return block

    recorded = copy.copy(strategy.draft)
    # Everything else is the drafter's own, its class's name included: it may be in messages.
    object.__setattr__(recorded, "__class__", type(kind.__name__, (kind,), {"propose": propose}))
    twin = copy.copy(strategy)
    object.__setattr__(twin, "draft", recorded)
    return twin
