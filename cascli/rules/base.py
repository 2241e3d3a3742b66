"""Base classes of deferral rules, which turn the two models' distributions into the one to sample from.

Rules do not import torch when loaded, so that the command line can list and check them quickly.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import Field

if TYPE_CHECKING:
    from torch import Tensor

    from cascli.sampling.distributions import Dists


LEAST = 1e-9
"""Start of a logarithmic scale whose end is not positive."""
Alpha = Annotated[float, Field(ge=-1, le=1)]
"""The trade-off of most rules: 1 keeps every draft; a value below 0 (or exactly -1) keeps none."""
OPTION = "option"
"""Metadata key of a parameter that a strategy's string includes only if it differs from the default."""


def option(default: Any) -> Any:
    """A field marked with `OPTION`; keyword-only, since it precedes the fields of subclasses."""
    return field(default=default, kw_only=True, metadata={OPTION: True})


class Dial(NamedTuple):
    """The parameter that moves a rule from the target to the draft model, or a control to fewer tokens.

    Searches go from the strict end to the loose one in equal steps on its scale: `log` starts at 1e-9 if an end is not
    positive, `sinh` is for ranges that are unbounded on both sides of 0, and `integer` is `log`, rounded.
    """

    parameter: str
    strict: float
    loose: float
    scale: Literal["linear", "log", "sinh", "integer"] = "linear"
    lossless: bool = True
    """Whether pi = p at the strict end, whatever the distributions."""
    draft_only: bool = True
    """Whether pi = q at the loose end, whatever the distributions."""

    def at(self, place: float) -> float:
        """The parameter's value, to four digits, at a place between 0 (the strict end) and 1 (the loose end)."""
        if place <= 0 or place >= 1:
            return self.strict if place <= 0 else self.loose
        if self.scale == "linear":
            value = self.strict + place * (self.loose - self.strict)
        elif self.scale == "sinh":
            value = math.sinh((1 - place) * math.asinh(self.strict) + place * math.asinh(self.loose))
        else:
            value = max(self.strict, LEAST) ** (1 - place) * max(self.loose, LEAST) ** place
        return round(value) if self.scale == "integer" else float(f"{value:.4g}")

    def __str__(self) -> str:
        strict, loose = (f"{end:,}" if isinstance(end, int) else f"{end:g}" for end in (self.strict, self.loose))
        ends = f"{strict}{' (pi = p)' * self.lossless} to {loose}{' (pi = q)' * self.draft_only}"
        return f"{self.parameter} from {ends}"


@dataclass(frozen=True)
class Rule(ABC):
    """A deferral rule; subclasses are frozen dataclasses whose fields are the rule's parameters."""

    formula: ClassVar[str] = ""
    source: ClassVar[str] = ""
    lossless_when: ClassVar[str] = "not known in advance; the run computes TV(pi, p)"
    greedy: ClassVar[str] = ""
    """What the rule does at temperature 0."""
    relatives: ClassVar[str] = ""
    """The rules that it is compared with, or equivalent to."""
    reads_target: ClassVar[bool] = True
    """Whether the decision needs p: if so, a sequential token cascade can use the rule only as an oracle."""
    reads_draft: ClassVar[bool] = True
    """Whether pi depends on q: if so, a bonus token costs a draft step at the position after the block."""
    reads_base: ClassVar[bool] = True
    """Whether the decision tests q1 or p1; if not, they are not computed, and q and p take their place."""
    reads_confidence: ClassVar[bool] = False
    """Whether the decision depends on the draft's confidence, which is the same for every one-hot draft."""
    capturable: ClassVar[bool] = True
    """Whether `apply` depends only on its argument and the rule's parameters, and reads nothing back to the host."""
    dial: ClassVar[Dial | None] = None
    """The parameter that moves the rule from the target towards the draft model; None if it has none."""

    @property
    def chooses(self) -> bool:
        """Whether pi chooses between the models: a kept draft token is used as it is, else a token is drawn from p."""
        return False

    @property
    def thinking_only(self) -> bool:
        """Whether the rule applies only to thinking, between two tokens that the pair defines; elsewhere pi = p."""
        return False

    @abstractmethod
    def apply(self, d: Dists) -> Tensor:
        """pi `[n, V]`, the distribution that the output must follow; must not change its inputs."""

    def deferred(self, d: Dists) -> Tensor | None:
        """bool `[n, 1]` or `[n, V]`: where (for which tokens) a choice defers to the target; None for other rules."""
        del d
        return None


@dataclass(frozen=True)
class ChoiceRule(Rule):
    """A rule that decides which tokens of the draft model are kept.

    Whole-distribution rules decide once per position (`keep` is `[n, 1]`): pi = q if kept, else p.
    Token rules decide for every token (`[n, V]`): pi(v) = q(v) keep(v) + p(v) * (q-mass not kept),
    Narasimhan et al. 2025, eq. 11.
    """

    @property
    def chooses(self) -> bool:
        """True unless a subclass defines its own pi."""
        return type(self).apply in (ChoiceRule.apply, KeepRule.apply, TokenRule.apply)

    @abstractmethod
    def keep(self, d: Dists) -> Tensor:
        """Bool `[n, 1]` or `[n, V]`: where the draft model's distribution is kept."""

    def apply(self, d: Dists) -> Tensor:
        """pi from `keep`.

        Raises:
            TypeError: `keep` has neither one value per position nor one per token.
        """
        keep = self.keep(d)
        if keep.shape not in ((*d.q.shape[:-1], 1), d.q.shape):
            raise TypeError(f"{type(self).__name__}.keep: expected shape [n, 1] or [n, V] (got {[*keep.shape]})")
        if keep.shape[-1] == 1:
            return d.q.where(keep, d.p)
        deferred_mass = (d.q * ~keep).sum(dim=-1, keepdim=True)
        return d.q * keep + d.p * deferred_mass

    def deferred(self, d: Dists) -> Tensor | None:
        """The complement of `keep`; None if a subclass defines its own pi."""
        return ~self.keep(d) if self.chooses else None


@dataclass(frozen=True)
class TokenRule(ChoiceRule):
    """A choice rule over tokens (`keep` is `[n, V]`), whose `tail` decides what happens to drafts that are not kept.

    `cut` redraws them from p (eq. 11). `exact` does not choose between the models: a draft outside `keep` passes with
    min(1, p / q), and a rejected one is replaced from norm(max(0, p - q)), so that pi is q where kept and min(q, p)
    elsewhere, plus that residual. It never accepts fewer drafts than `cut`, and is never farther from p.
    """

    tail: Literal["cut", "exact"] = option("cut")

    @property
    def chooses(self) -> bool:
        """Whether drafts that are not kept are redrawn from p."""
        return self.tail == "cut" and super().chooses

    def apply(self, d: Dists) -> Tensor:
        """pi from `keep` and `tail`."""
        from cascli.rules._tail import completed

        if self.tail == "cut":
            return super().apply(d)
        return completed(d.q.where(self.keep(d), d.q.minimum(d.p)), d)


@dataclass(frozen=True)
class KeepRule(ChoiceRule):
    """A choice rule with the parameter alpha."""

    alpha: Alpha = 0.3


class Threshold(NamedTuple):
    """What a probability at temperature 1 must reach for the draft model to be kept: a sum of terms at a position."""

    tests: Literal["best q1", "q1", "p1"]
    """The draft's best probability, for the whole distribution; or each token's probability under draft or target."""
    constant: float = 0.0
    of_best_p1: float = 0.0
    """Factor of max p1."""
    of_disagreement: float = 0.0
    """Factor of TV(p, q) of the warped distributions."""
    likeliest: int = 0
    """Keep only this many tokens, the target's likeliest, and ties with the last; 0: no limit."""


@dataclass(frozen=True)
class ThresholdRule(KeepRule):
    """A rule that compares a probability with a threshold; on a GPU, fused verification kernels compute it."""

    @abstractmethod
    def threshold(self) -> Threshold:
        """The tested probability and what it must reach."""

    def keep(self, d: Dists) -> Tensor:
        """Bool `[n, 1]` or `[n, V]`: tested >= threshold."""
        t = self.threshold()
        tested = d.best("q1") if t.tests == "best q1" else d.per_token(t.tests)
        least = t.of_best_p1 * d.best("p1") + t.constant
        if t.of_disagreement:
            least = least + t.of_disagreement * d.disagreement()
        if not t.likeliest:
            return tested >= least
        return (tested >= least) & (d.per_token("p1") >= d.nth_largest("p1", t.likeliest))


@dataclass(frozen=True)
class RelaxedRule(TokenRule, ThresholdRule):
    """A rule that keeps tokens nearly as likely as the target's best one, with the options of relaxed acceptance."""

    top: Annotated[int, Field(ge=1)] | None = option(None)
    """Keep only this many of the target's likeliest tokens."""
    where: Literal["thinking"] | None = option(None)
    """Where the rule applies; everywhere by default."""

    @property
    def thinking_only(self) -> bool:
        """Whether `where` is `thinking`."""
        return self.where == "thinking"


@dataclass(frozen=True)
class Exact(Rule):
    """The rule of plain speculative decoding: pi = p, always."""

    formula: ClassVar[str] = "pi = p"
    source: ClassVar[str] = "Leviathan et al. 2023"
    lossless_when: ClassVar[str] = "always"
    reads_draft: ClassVar[bool] = False
    reads_base: ClassVar[bool] = False

    def apply(self, d: Dists) -> Tensor:
        """Follow the target at every position."""
        return d.p
