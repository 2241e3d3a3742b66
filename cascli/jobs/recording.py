"""Speculation that records both models' distributions at every position of its answers, in a compact form."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, get_args

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
from cascli.sampling.distributions import Dists, Divergence, Which
from cascli.settings import Resolved
from cascli.strategies.base import Speculating
from cascli.trace import Handover, Run

CERTAIN = 1 - 1e-6
"""Acceptance at or above which no rejection is expected."""
LIKELIEST = 1024
"""Number of tokens kept at a position: the likeliest under either model."""
OF_EACH = 128
"""Number of each model's likeliest tokens that are always kept, however likely the other model's are."""
SPLITS = 4
"""Columns that tokens with the same ratio are distributed over, so that few are as likely as a kept token: plug-ins may
compare columns."""
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
    """Distributions with fewer columns than tokens, and numbers of the full ones that these do not determine."""

    entropies: dict[Which, Tensor]
    """Entropies of the full distributions, `[n, 1]`."""
    divergences: dict[Divergence, Tensor]
    """Divergences between the full q1 and p1, `[n, 1]`."""
    counts: Tensor
    """Number of tokens in each column, `[n, V']`."""

    @classmethod
    def of(
        cls,
        parts: Iterable[Tensor],
        counts: Tensor,
        entropies: dict[Which, Tensor],
        divergences: dict[Divergence, Tensor],
    ) -> Compact:
        """Build from the four reduced distributions, and what they do not determine."""
        made = cls(*parts)
        made.counts, made.entropies, made.divergences = counts, entropies, divergences
        return made

    def entropy(self, of: Which) -> Tensor:
        """Entropy of one of the full distributions, in nats, `[n, 1]`."""
        return self.entropies[of]

    def divergence(self, by: Divergence) -> Tensor:
        """Divergence between the full q1 and p1, `[n, 1]`."""
        return self.divergences[by]

    def per_token(self, of: Which) -> Tensor:
        """Mean probability of the tokens of each column of one of them, `[n, V']`: a lump counts as its mean token."""
        probs: Tensor = getattr(self, of)
        return probs / self.counts

    def best(self, of: Which) -> Tensor:
        """Largest probability of one of the full distributions, `[n, 1]`: that token is kept."""
        return self._single(of).amax(dim=-1, keepdim=True)

    def likeliest(self, of: Which) -> Tensor:
        """Column of the likeliest token of one of the full distributions, the first of equals, `[n, 1]`."""
        return self._single(of).argmax(dim=-1, keepdim=True)

    def nth_largest(self, of: Which, n: int) -> Tensor:
        """The n-th largest probability of one of them, `[n, 1]`: exact up to `OF_EACH`, then lumps count as means."""
        probs, order = self.per_token(of).sort(dim=-1, descending=True)
        before = (self.counts.gather(-1, order).cumsum(dim=-1) < n).sum(dim=-1, keepdim=True)
        return probs.gather(-1, before.clamp_max(probs.shape[-1] - 1))

    def _single(self, of: Which) -> Tensor:
        """One of them without its lumps, `[n, V']`."""
        probs: Tensor = getattr(self, of)
        return probs.where(self.counts == 1, 0.0)


def compact(d: Dists) -> Compact:
    """Reduce distributions `[n, V]` to the likeliest tokens and lumps of all others, `[n, LIKELIEST + LUMPS]`.

    A lump holds tokens that both models rate alike: their ratios p1 / q1 differ by less than a quarter of an octave,
    and p > q holds for all of them or for none. TV(p, q) and the overlap are therefore unchanged. Every distribution's
    likeliest token is kept, and entropies and divergences are stored separately. Rules on whole distributions are then
    exact. Rules on single tokens decide as on the full distributions for kept tokens (a limit to the n likeliest, up to
    n = `OF_EACH`; `top-p` nearly so), but for a lump all at once, by its mean token: the lumped mass bounds the error
    of acceptance, deferral and TV, or for controls, which rescale p on a set, that mass over the mass of the set.
    """
    entropies = {name: d.entropy(name) for name in get_args(Which)}
    divergences = {name: d.divergence(name) for name in get_args(Divergence)}
    if d.q.shape[-1] <= LIKELIEST + LUMPS:
        return Compact.of(d, torch.ones_like(d.q), entropies, divergences)
    order = torch.maximum(d.q1, d.p1)
    for rows in (d.q1, d.p1):
        order = order.scatter(-1, rows.topk(OF_EACH, dim=-1).indices, 2.0)
    for rows in d:  # the first of equals, which topk need not choose
        order = order.scatter(-1, rows.argmax(dim=-1, keepdim=True), 3.0)
    head = order.topk(LIKELIEST, dim=-1).indices.sort(dim=-1).values  # in the order of ids, for the first of equals
    lump = _lumps(d).scatter_(-1, head, LUMPS)  # kept tokens go to an extra column that is dropped

    def cut(rows: Tensor) -> Tensor:
        kept = rows.gather(-1, head)
        sums = rows.new_zeros((*rows.shape[:-1], LUMPS + 1)).scatter_add_(-1, lump, rows)
        return torch.cat([kept, sums[..., :LUMPS]], dim=-1)

    counts = cut(torch.ones_like(d.q)).clamp_min(1)
    return Compact.of([cut(rows) for rows in d], counts, entropies, divergences)


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
    """The larger of both models' lumped masses `[N]`: bounds errors as `compact` says."""
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
    first = parts[0]
    return Compact.of(
        (torch.cat(each) for each in zip(*parts, strict=True)),
        torch.cat([each.counts for each in parts]),
        {name: torch.cat([each.entropies[name] for each in parts]) for name in first.entropies},
        {name: torch.cat([each.divergences[name] for each in parts]) for name in first.divergences},
    )


def mass_in_lumps(d: Compact) -> Tensor:
    """The larger of both models' masses in the lumps of compacted distributions."""
    return torch.maximum(*((rows * (d.counts > 1)).sum(dim=-1) for rows in (d.q, d.p)))
