"""Draws from the tokens that followed earlier occurrences of the text's last tokens, in proportion to their counts.

The longest suffix of the text, drafted tokens included, that occurred before is used, as in a suffix tree of the run's
own prompt and answer; the counts of the tokens that followed it give q. Prompt lookup is certain of the latest
occurrence; this drafter uses all of them, so that q shows how sure it is. Counts go through temperature, top-k and
top-p as a model's probabilities do, and drafts are verified with the same q that they are drawn from.

The text is the run's own prompt and answer. With `remember=n`, the last n earlier texts of the same strategy (prompt
and answer) are searched too, as serving systems do: drafts then depend on the order of the prompts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, NamedTuple

from pydantic import Field

from cascli.drafters import _earlier
from cascli.drafters.base import Drafter
from cascli.errors import UsageError
from cascli.rules.base import option

if TYPE_CHECKING:
    from torch import Tensor

    from cascli.decoding.session import Session
    from cascli.decoding.speculation import Block
    from cascli.rules.base import Rule


@dataclass(frozen=True)
class Suffix(Drafter):
    """q1(v) is the share of v among the tokens that followed the longest suffix that occurred before."""

    summary: ClassVar[str] = "draws from what followed the longest suffix seen before, by frequency"
    source: ClassVar[str] = "Oliaro et al. 2024 (SuffixDecoding), which drafts greedily"

    max_suffix: Annotated[int, Field(ge=1, le=256)] = 24
    min_suffix: Annotated[int, Field(ge=1, le=256)] = 1
    remember: Annotated[int, Field(ge=0, le=1000)] = option(0)

    def __post_init__(self) -> None:
        """Check that `min_suffix` is at most `max_suffix`."""
        if self.min_suffix > self.max_suffix:
            raise UsageError(f"min_suffix: {self.min_suffix} is more than max_suffix, {self.max_suffix}")

    @property
    def remembers(self) -> int:
        """Number of earlier texts to search: `remember`."""
        return self.remember

    def _before(self, s: Session) -> Before:
        """The earlier texts, prepared once per run."""
        if self not in s.notes:
            s.notes[self] = Before.of(s.earlier[-self.remember :])
        ready: Before = s.notes[self]
        return ready

    def propose(self, s: Session, n: int, rule: Rule) -> Block:
        """Draw up to n tokens, each from the counts after the text and earlier drafts; fewer if there are none."""
        import torch

        from cascli.decoding.speculation import Block
        from cascli.sampling import distributions

        text, u = [*s.prompt_ids, *s.answer_ids], s.uniforms.draw(s.length, n)
        before = self._before(s) if self.remember else NOTHING
        q, q1, tokens = [], [], [s.text[:0]]
        for i in range(n + rule.reads_draft):
            counts = followers(text, s.eos_ids, self.max_suffix, self.min_suffix, before)
            if not counts:
                break
            logits = _logits(s, counts)
            q.append(s.warp(logits))
            q1.append(distributions.base(logits))
            if i < n:
                tokens.append(distributions.sample(q[-1], u[i : i + 1]))
                text.append(int(tokens[-1]))
        return Block(torch.cat(tokens), torch.cat(q), torch.cat(q1)) if q else Block.empty(s)


def _logits(s: Session, counts: Counter[int]) -> Tensor:
    """The logarithms of the counts, `[1, V]`."""
    import torch

    logits = torch.full((1, s.vocab), -torch.inf, dtype=torch.float32, device=s.text.device)
    ids = torch.tensor([*counts], device=s.text.device)
    logits[0, ids] = torch.tensor([*counts.values()], dtype=torch.float32, device=s.text.device).log()
    return logits


_BETWEEN = -1
"""Separator after each earlier text: not a token id, so that no suffix crosses its end."""


class Before(NamedTuple):
    """Concatenated earlier texts, prepared once per run."""

    ids: list[int]
    data: bytes

    @classmethod
    def of(cls, texts: Sequence[Sequence[int]]) -> Before:
        """Prepare texts given as token ids."""
        ids = [token for each in texts for token in (*each, _BETWEEN)]
        return cls(ids, _earlier.packed(ids))


NOTHING = Before([], b"")


def followers(
    text: Sequence[int],
    eos_ids: Collection[int],
    max_suffix: int = 24,
    min_suffix: int = 1,
    before: Before = NOTHING,
) -> Counter[int]:
    """Count the tokens that followed the text's longest suffix that occurred before, except `eos_ids`.

    Whatever follows a suffix also follows that suffix's own suffixes, so the search goes from short to long.

    Args:
        text: the text whose suffixes are searched for.
        eos_ids: tokens that are never counted.
        max_suffix: the longest suffix, in tokens.
        min_suffix: the shortest suffix, in tokens.
        before: other texts to search.
    """
    first = len(before.ids)
    data = before.data + _earlier.packed(text)
    longest: list[int] = []
    for n in range(min_suffix, min(max_suffix, len(text)) + 1):
        followed = (text[at - first] if at >= first else before.ids[at] for at in _earlier.places(data, n))
        longer = [token for token in followed if token != _BETWEEN]  # the end of an earlier text has no follower
        if not longer:
            break
        longest = longer
    return Counter(token for token in longest if token not in eos_ids)
