"""The answers on a sweep's page: a few prompts that strategies answered differently, side by side."""

from __future__ import annotations

from collections.abc import Sequence

from cascli.render.html_text import text
from cascli.render.marks import short_name
from cascli.render.numbers import number
from cascli.render.sweep_words import temperature_of
from cascli.sweeps.records import Header
from cascli.sweeps.samples import Answer, Sample

NAMED = 3
"""Number of strategies named directly above a text that many of them wrote."""
LONGEST = 4000
"""Maximum number of characters shown of an answer or prompt."""
NOTE = (
    "The prompts whose answers differ most in score, the target's own answer first. The beginning that an answer"
    " shares with it is grey."
)


def samples_of(samples: Sequence[Sample], header: Header) -> str:
    """The samples; empty if no two answers differ."""
    if not samples:
        return ""
    return "\n".join([f'<p class="muted">{text(NOTE)}</p>', *(_sample(each, header) for each in samples)])


def _sample(sample: Sample, header: Header) -> str:
    prompt_text = header.prompts.get(sample.problem)
    prompt = "" if prompt_text is None else f'\n<pre class="prompt" tabindex="0">{_shown(prompt_text)}</pre>'
    words = [sample.problem, temperature_of(sample.temperature)]
    if len(header.plan.seeds) > 1 and sample.temperature:
        words.append(f"seed {sample.seed}")
    several = "s" if sample.left_out > 1 else ""
    left = f'\n<p class="muted">{sample.left_out} more text{several} not shown.</p>' if sample.left_out else ""
    answers = "\n".join(_answer(each, place == 0, header.metric) for place, each in enumerate(sample.answers))
    return f'<h3>{text(" · ".join(words))}</h3>{prompt}\n<div class="answers">\n{answers}\n</div>{left}'


def _answer(answer: Answer, targets: bool, metric: str) -> str:
    shared = 0 if targets else answer.shared
    if shared > LONGEST // 2:  # of a long shared beginning, the end is enough
        begins, shown = "… ", answer.text[shared - LONGEST // 2 : shared]
    else:
        begins, shown = "", answer.text[:shared]
    common = f'<span class="shared">{text(begins + shown)}</span>' if shared else ""
    return (
        f'<article class="answer">\n{_authors(answer.strategies)}\n'
        f'<p class="score">{text(metric.removeprefix("corpus-"))} {number(answer.quality)}</p>\n'
        f'<pre tabindex="0">{common}{_shown(answer.text[shared:])}</pre>\n</article>'
    )


def _authors(strategies: Sequence[str]) -> str:
    """The strategies that wrote a text: the first few directly, the others on demand."""
    names = [short_name(each) for each in strategies]
    first, others = names[:NAMED], names[NAMED:]
    named = f'<p class="by">{text(", ".join(first))}</p>'
    if not others:
        return named
    return f"{named}\n<details><summary>and {len(others)} more</summary>{text(', '.join(others))}</details>"


def _shown(value: str) -> str:
    """A text, cut if it is very long."""
    return text(value) if len(value) <= LONGEST else text(value[:LONGEST]) + " … (cut here)"
