"""Speculation that records both models' distributions at every position of its answers, in a compact form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from cascli.decoding.plugin_checks import applied
from cascli.engine import StreamEvent
from cascli.errors import RunError
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
"""Acceptance at or above which no rejection is expected."""
LIKELIEST = 1024
"""Number of tokens kept at a position: the likeliest under either model."""
SPLITS = 4
"""Columns that tokens with the same ratio are distributed over, so that no column looks like a likely token."""
OCTAVES, STEPS = 8, 4
"""Ratios of the models' probabilities are resolved in quarter octaves, up to a factor of 2 ** 8 either way."""
LUMPS = 2 * 2 * OCTAVES * STEPS * SPLITS
"""Columns for all other tokens, by the ratio p1 / q1 and by which of p and q is larger."""


@dataclass(frozen=True)
class Watching(Rule):
    """Wraps a rule, and records the distributions it is given and the pi it returns."""

    formula: ClassVar[str] = Exact.formula
    capturable: ClassVar[bool] = False

    rule: Rule = field(default_factory=Exact)
    seen: list[tuple[Dists, Tensor]] = field(default_factory=list)

    def apply(self, d: Dists) -> Tensor:
        """Apply the wrapped rule, and record its input and output."""
        pi = applied(self.rule, d)
        self.seen.append((d, pi))
        return pi


@dataclass(frozen=True)
class Recording(Speculating):
    """`speculative`, or a speculative cascade with any rule, that records what the rule sees."""

    rule: Rule = field(default_factory=Exact)
    seen: list[tuple[Dists, Tensor]] = field(default_factory=list)
    """Per round: the distributions and pi; rows beyond the round's emitted tokens are for prefixes not visited."""

    @property
    def name(self) -> str:
        """`speculative`, whatever the rule."""
        return "speculative"

    @property
    def params(self) -> dict[str, Any]:
        """The parameters that `speculative` would have."""
        return {"k": self.k}

    @property
    def verification_rule(self) -> Rule:
        """The rule, wrapped in `Watching`."""
        return Watching(self.rule, self.seen)


class Compact(Dists):
    """Distributions with fewer columns than tokens; their entropies are those of the full distributions."""

    entropies: dict[str, Tensor]

    @classmethod
    def of(cls, parts: Sequence[Tensor], entropies: dict[str, Tensor]) -> Compact:
        """Build from the four distributions, and the entropies `[n, 1]` by name."""
        made = cls(*parts)
        made.entropies = entropies
        return made

    def entropy(self, of: Literal["q", "p", "q1", "p1"]) -> Tensor:
        """Entropy of one of the full distributions, in nats, `[n, 1]`."""
        return self.entropies[of]


def compact(d: Dists) -> Compact:
    """Reduce distributions `[n, V]` to the likeliest tokens and lumps of all others, `[n, LIKELIEST + LUMPS]`.

    A lump holds tokens that both models rate alike: their ratios p1 / q1 differ by less than a quarter of an octave,
    and p > q holds for all of them or for none. TV(p, q) and the overlap are therefore unchanged, and divergences
    nearly so; entropies are stored separately. Rules on whole distributions are then exact; for rules on single tokens,
    the lumped mass bounds the error.
    """
    entropies = {name: d.entropy(name) for name in ("q", "p", "q1", "p1")}
    if d.q.shape[-1] <= LIKELIEST + LUMPS:
        return Compact.of(d, entropies)
    best = torch.maximum(d.q1, d.p1)
    for rows in (d.q1, d.p1):  # each model's likeliest token is in the head, however flat the distributions
        best = best.scatter(-1, rows.argmax(dim=-1, keepdim=True), 2.0)
    head = best.topk(LIKELIEST, dim=-1).indices
    lump = _lumps(d).scatter_(-1, head, LUMPS)  # kept tokens go to an extra column that is dropped

    def cut(rows: Tensor) -> Tensor:
        kept = rows.gather(-1, head)
        sums = rows.new_zeros((*rows.shape[:-1], LUMPS + 1)).scatter_add_(-1, lump, rows)
        return torch.cat([kept, sums[..., :LUMPS]], dim=-1)

    return Compact.of([cut(rows) for rows in d], entropies)


def _lumps(d: Dists) -> Tensor:
    """Index `[n, V]` of the lump that each token belongs to."""
    least = torch.finfo(d.q1.dtype).tiny
    ratio = (d.p1.clamp_min(least) / d.q1.clamp_min(least)).log2()
    ratio = (ratio.clamp_(-OCTAVES, OCTAVES - 1 / STEPS).add_(OCTAVES) * STEPS).int()  # the floor: all are >= 0
    ratio.add_(d.p > d.q, alpha=2 * OCTAVES * STEPS)
    deal = torch.arange(d.q.shape[-1], dtype=torch.int32, device=d.q.device) % SPLITS
    return ratio.mul_(SPLITS).add_(deal).long()


class Seen(NamedTuple):
    """Both models' distributions at the N positions of some answers, one answer after the other."""

    d: Dists
    """`[N, V']`, over the whole vocabulary or compacted."""
    passed: Tensor
    """Probability `[N]` that the written token was drafted and passed: min(1, q / pi) at that token."""
    expected: Tensor
    """Mean `[N]` of `passed` over the tokens that could have been written: sum min(q, pi)."""
    tail: Tensor
    """The larger of both models' lumped masses `[N]`: bounds the error of every acceptance and TV."""
    lengths: tuple[int, ...]
    """Number of tokens of each answer; they add up to N."""
    calls: int = 0
    """Number of target calls for the answers."""
    runs: tuple[Run, ...] = ()
    """The answers."""

    def passing(self, acceptance: Tensor) -> list[list[float]]:
        """Probability that each draft passes, answer by answer, under a rule with these mean acceptances `[N]`.

        A token that was likely to be rejected here is taken to be proportionally likely to be rejected under other
        rules. Otherwise the tendency of passing drafts to follow each other would be lost, and too many rounds would be
        predicted.
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
    """Answer every prompt once by speculation in blocks of k; return what was recorded at all visited positions.

    Args:
        pair: the pair that answers.
        prompts: prompts whose turns are answered in order.
        settings: settings of the answers.
        k: drafted tokens per round.
        rule: rule whose distribution the output follows; by default exact speculative decoding.
        on_progress: called with the prompt being answered.

    Raises:
        RunError: the draft model proposed nothing at some position, so that no rule can be judged there.
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
    d = joined(parts)
    return Seen(
        d=d,
        passed=torch.cat(passed),
        expected=torch.cat(expected),
        tail=mass_in_lumps(d),
        lengths=tuple(len(run.token_ids) for run in runs),
        calls=sum(run.metrics.target_calls for run in runs),
        runs=tuple(runs),
    )


def _visited(d: Dists, pi: Tensor, ids: Sequence[int]) -> tuple[Compact, Tensor, Tensor]:
    """At the positions of a round's emitted tokens: the distributions, `passed` and `expected`."""
    n = len(ids)
    if d.q.shape[0] < n:  # an EAGLE-3 head behind the last position that it was made for
        raise RunError(
            "the draft model proposes nothing this far into the text, so no rule can be judged there;\n"
            "use shorter prompts, or a smaller --max-new-tokens."
        )
    d, pi, tokens = Dists(*(rows[:n] for rows in d)), pi[:n], torch.tensor(ids, device=pi.device)
    passed = (distributions.at(d.q, tokens) / distributions.at(pi, tokens)).clamp(max=1)
    return compact(d), passed, distributions.overlap(d.q, pi)


def joined(parts: Sequence[Compact]) -> Compact:
    """Concatenate the positions of all parts."""
    entropies = {name: torch.cat([each.entropies[name] for each in parts]) for name in parts[0].entropies}
    return Compact.of([torch.cat(each) for each in zip(*parts, strict=True)], entropies)


def mass_in_lumps(d: Dists) -> Tensor:
    """The larger of both models' masses in the lumps of compacted distributions."""
    if d.q.shape[-1] != LIKELIEST + LUMPS:
        return d.q.new_zeros(d.q.shape[0])
    return torch.maximum(d.q[:, LIKELIEST:].sum(dim=-1), d.p[:, LIKELIEST:].sum(dim=-1))
