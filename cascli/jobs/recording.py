"""Speculation that keeps what it saw: the distributions of both models at every position of its answers, made small."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from cascli.decoding.plugin_checks import applied
from cascli.engine import StreamEvent
from cascli.jobs.generate import converse
from cascli.models.pair import Pair
from cascli.notebook import OnProgress
from cascli.prompts import Prompt
from cascli.rules.base import Exact, Rule
from cascli.sampling import distributions
from cascli.sampling.distributions import Dists
from cascli.settings import Resolved
from cascli.strategies.base import Speculating
from cascli.trace import Handover, Run

CERTAIN = 1 - 1e-6
"""Acceptance from which on no rejection is to be expected."""
LIKELIEST = 1024
"""Tokens that are kept at a position: the likeliest of either model."""
SPLITS = 4
"""Columns that tokens of the same ratio are dealt to, so that no column looks like a likely token."""
OCTAVES, STEPS = 8, 4
"""Ratios of the models' probabilities are told apart up to a factor of 2 ** 8 either way, in quarters of an octave."""
LUMPS = 2 * 2 * OCTAVES * STEPS * SPLITS
"""Columns for all other tokens: by the ratio p1 / q1, and by which of p and q is larger."""


@dataclass(frozen=True)
class Watching(Rule):
    """A rule, which keeps all that it is given, and what it makes of it."""

    formula: ClassVar[str] = Exact.formula
    capturable: ClassVar[bool] = False

    rule: Rule = field(default_factory=Exact)
    seen: list[tuple[Dists, Tensor]] = field(default_factory=list)

    def apply(self, d: Dists) -> Tensor:
        """That of the rule."""
        pi = applied(self.rule, d)
        self.seen.append((d, pi))
        return pi


@dataclass(frozen=True)
class Recording(Speculating):
    """`speculative`, or a cascade by any rule, watched."""

    rule: Rule = field(default_factory=Exact)
    seen: list[tuple[Dists, Tensor]] = field(default_factory=list)
    """By round: the distributions and pi; rows beyond the round's emitted tokens are of prefixes not visited."""

    @property
    def name(self) -> str:
        """As the strategy that it mostly is."""
        return "speculative"

    @property
    def params(self) -> dict[str, Any]:
        """Those of `speculative`."""
        return {"k": self.k}

    @property
    def verification_rule(self) -> Rule:
        """The rule, watched."""
        return Watching(self.rule, self.seen)


class Compact(Dists):
    """Distributions of fewer columns than there are tokens, whose entropies are those of the whole ones."""

    entropies: dict[str, Tensor]

    @classmethod
    def of(cls, parts: Sequence[Tensor], entropies: dict[str, Tensor]) -> Compact:
        """From its four distributions, and the entropies `[n, 1]` by name."""
        made = cls(*parts)
        made.entropies = entropies
        return made

    def entropy(self, of: Literal["q", "p", "q1", "p1"]) -> Tensor:
        """Of one of the whole distributions, in nats, `[n, 1]`."""
        return self.entropies[of]


def compact(d: Dists) -> Compact:
    """Distributions `[n, V]` cut to the likeliest tokens and lumps of all others, `[n, LIKELIEST + LUMPS]`.

    A lump holds tokens that both models see alike: their ratios p1 / q1 differ by less than a quarter of an octave, and
    none has p > q where another has not. So TV(p, q) and the overlap stay what they are, divergences nearly so, and
    entropies are kept beside. Rules about whole distributions are then exact; of rules about single tokens the lumped
    mass is the error bound.
    """
    entropies = {name: d.entropy(name) for name in ("q", "p", "q1", "p1")}
    if d.q.shape[-1] <= LIKELIEST + LUMPS:
        return Compact.of(d, entropies)
    best = torch.maximum(d.q1, d.p1)
    for rows in (d.q1, d.p1):  # which of them is in the head however flat the other model is
        best = best.scatter(-1, rows.argmax(dim=-1, keepdim=True), 2.0)
    head = best.topk(LIKELIEST, dim=-1).indices
    lump = _lumps(d).scatter_(-1, head, LUMPS)  # what is kept goes to a column that is not

    def cut(rows: Tensor) -> Tensor:
        kept = rows.gather(-1, head)
        sums = rows.new_zeros((*rows.shape[:-1], LUMPS + 1)).scatter_add_(-1, lump, rows)
        return torch.cat([kept, sums[..., :LUMPS]], dim=-1)

    return Compact.of([cut(rows) for rows in d], entropies)


def _lumps(d: Dists) -> Tensor:
    """Which lump `[n, V]` a token belongs to."""
    least = torch.finfo(d.q1.dtype).tiny
    ratio = (d.p1.clamp_min(least) / d.q1.clamp_min(least)).log2()
    ratio = (ratio.clamp_(-OCTAVES, OCTAVES - 1 / STEPS).add_(OCTAVES) * STEPS).int()  # all positive: the floor
    ratio.add_(d.p > d.q, alpha=2 * OCTAVES * STEPS)
    deal = torch.arange(d.q.shape[-1], dtype=torch.int32, device=d.q.device) % SPLITS
    return ratio.mul_(SPLITS).add_(deal).long()


class Seen(NamedTuple):
    """What both models thought at the N positions of some answers, one after the other."""

    d: Dists
    """`[N, V']`, of the whole vocabulary or compacted."""
    passed: Tensor
    """The probability `[N]` with which the token that was written had been drafted and passed: min(1, q / pi) of it."""
    expected: Tensor
    """Its mean `[N]` over the tokens that might have been written, sum min(q, pi)."""
    tail: Tensor
    """The larger one of both models' lumped masses `[N]`: no acceptance and no TV is off by more."""
    lengths: tuple[int, ...]
    """Tokens of each answer; they add up to N."""
    calls: int = 0
    """Target calls that the answers took."""
    runs: tuple[Run, ...] = ()
    """The answers."""

    def passing(self, acceptance: Tensor) -> list[list[float]]:
        """The probability that a draft passes, answer by answer, for a rule that accepts with these `[N]` on average.

        A token that was likely to be rejected here is so under other rules, in proportion. Without that, drafts that
        pass would not be followed by such as pass more easily than others, and too many rounds would be predicted.
        """
        scale = ((1 - acceptance) / (1 - self.expected)).where(self.expected < CERTAIN, torch.zeros_like(acceptance))
        passes = (1 - (1 - self.passed) * scale).clamp(0, 1).where(self.expected < CERTAIN, acceptance)
        return [part.tolist() for part in passes.split(self.lengths)]


def record(
    pair: Pair,
    prompts: Sequence[Prompt],
    settings: Resolved,
    k: int,
    rule: Rule | None = None,
    on_progress: OnProgress | None = None,
) -> Seen:
    """Answer every prompt once by speculation in blocks of k; what was seen at all visited positions.

    Args:
        pair: answers.
        prompts: whose turns are answered one after the other.
        settings: of the answers.
        k: drafted tokens a round.
        rule: towards whose distribution; by default it is speculative decoding.
        on_progress: told which prompt is answered.
    """
    recording = Recording(k=k, rule=rule or Exact())
    kept: list[tuple[Compact, Tensor, Tensor]] = []

    def keep(event: StreamEvent | Handover) -> None:
        if isinstance(event, StreamEvent):
            kept.append(_visited(*recording.seen.pop(), [token.id for token in event.round.emitted]))

    runs: list[Run] = []
    for number, prompt in enumerate(prompts):
        if on_progress is not None:
            on_progress(f"{prompt.id} at temperature {settings.temperature:g}", number, len(prompts))
        runs += converse(pair, recording, prompt, settings, keep)
    parts, passed, expected = zip(*kept, strict=True)
    return Seen(
        d=(d := joined(parts)),
        passed=torch.cat(passed),
        expected=torch.cat(expected),
        tail=mass_in_lumps(d),
        lengths=tuple(len(run.token_ids) for run in runs),
        calls=sum(run.metrics.target_calls for run in runs),
        runs=tuple(runs),
    )


def _visited(d: Dists, pi: Tensor, ids: Sequence[int]) -> tuple[Compact, Tensor, Tensor]:
    """Of the positions of the tokens that a round has emitted: distributions, and how these tokens passed."""
    n = len(ids)
    d, pi, tokens = Dists(*(rows[:n] for rows in d)), pi[:n], torch.tensor(ids, device=pi.device)
    passed = (distributions.at(d.q, tokens) / distributions.at(pi, tokens)).clamp(max=1)
    return compact(d), passed, distributions.overlap(d.q, pi)


def joined(parts: Sequence[Compact]) -> Compact:
    """The positions of all parts, one after the other."""
    entropies = {name: torch.cat([each.entropies[name] for each in parts]) for name in parts[0].entropies}
    return Compact.of([torch.cat(each) for each in zip(*parts, strict=True)], entropies)


def mass_in_lumps(d: Dists) -> Tensor:
    """The larger one of both models' masses in the lumps of compacted distributions."""
    if d.q.shape[-1] != LIKELIEST + LUMPS:
        return d.q.new_zeros(d.q.shape[0])
    return torch.maximum(d.q[:, LIKELIEST:].sum(dim=-1), d.p[:, LIKELIEST:].sum(dim=-1))
