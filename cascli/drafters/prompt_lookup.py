"""Copies what followed an earlier occurrence of the text's last tokens: no model, no cost.

Of the n-grams that end the text, the longest that occurred before is used, at its latest occurrence. What followed it
is the draft; a copy that reaches the end of the text continues in what it has copied, as a repetition does. Answers
that repeat their prompt (edits, summaries, code) benefit; others only pay for a wider block of the target.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from cascli.drafters import _earlier
from cascli.drafters.base import Drafter
from cascli.errors import UsageError

if TYPE_CHECKING:
    from cascli.decoding.session import Session
    from cascli.decoding.speculation import Block
    from cascli.rules.base import Rule


@dataclass(frozen=True)
class PromptLookup(Drafter):
    """Draft the continuation of the longest n-gram that occurred before; q is certain of it."""

    summary: ClassVar[str] = "copies what followed the last n tokens at an earlier place in prompt or answer"
    source: ClassVar[str] = "Saxena 2023 (prompt lookup decoding)"
    one_hot: ClassVar[bool] = True
    by_prefix: ClassVar[bool] = False

    max_ngram: Annotated[int, Field(ge=1, le=64)] = 3
    min_ngram: Annotated[int, Field(ge=1, le=64)] = 1

    def __post_init__(self) -> None:
        """Check that `min_ngram` is at most `max_ngram`."""
        if self.min_ngram > self.max_ngram:
            raise UsageError(f"min_ngram: {self.min_ngram} is more than max_ngram, {self.max_ngram}")

    def propose(self, s: Session, n: int, rule: Rule) -> Block:
        """Copy up to n tokens, and one more for q at the bonus position if the rule reads it."""
        from cascli.decoding.speculation import Block

        text = [*s.prompt_ids, *s.answer_ids]
        copied = continuation(text, n + rule.reads_draft, s.eos_ids, self.max_ngram, self.min_ngram)
        return Block.certain(s, copied, n)


def continuation(
    text: Sequence[int], count: int, eos_ids: Collection[int], max_ngram: int = 3, min_ngram: int = 1
) -> list[int]:
    """Up to `count` tokens that followed an earlier occurrence of the text's last n-gram; cut before any `eos_ids`."""
    start = _continuation_start(text, max_ngram, min_ngram)
    if start is None:
        return []
    whole = list(text)
    for place in range(start, start + count):
        if whole[place] in eos_ids:
            break
        whole.append(whole[place])
    return whole[len(text) :]


def _continuation_start(text: Sequence[int], max_ngram: int, min_ngram: int) -> int | None:
    """Position after the latest earlier occurrence of the longest possible last n-gram; None if there is none."""
    data = _earlier.packed(text)
    lengths = range(min(max_ngram, len(text) - 1), min_ngram - 1, -1)
    return next((place for n in lengths for place in _earlier.places(data, n)), None)
