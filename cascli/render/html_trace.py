"""Traces as one HTML file to explore: all data embedded, no network, and nothing in a text can run code.

The page is `trace_page.html`, next to this module. Here runs become its data: one list of tokens per round, what the
page shows for each, and the alphas at which each rule would have kept a draft.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from typing import Any

from cascli.analysis.comparison import Comparison, Row, uncompared
from cascli.errors import plain
from cascli.render.answers import whole_texts
from cascli.render.comparison import by_prompt, notes, pair_line, remarks
from cascli.render.marks import ending, short_name, visible
from cascli.render.numbers import DASH, counted, number, rate, tv, yes_no
from cascli.render.stream import describe_handover
from cascli.render.table import speed_text
from cascli.render.trace import divergence, target_of
from cascli.render.verdict import verdict
from cascli.rules._alphas import Alphas, RuleInAlpha, rules_in_alpha
from cascli.trace import Detail, Drafted, Emitted, Likely, Round, Run, prompts_of

DATA = "<!-- data -->"
"""Placeholder for the page's data."""
DIGITS = 9
"""Significant digits of the page's numbers: all that a float32 has, so that the page rounds them only once."""
Json = dict[str, Any]


def of_comparison(comparison: Comparison, command: str | None) -> str:
    """The page of a comparison, with the command line that made it, if known."""
    lines = [*remarks(comparison, with_pair=False), *notes(comparison, verbose=False)]
    return _page(comparison.runs, comparison.summary, lines, command)


def of_runs(runs: Sequence[Run], command: str | None) -> str:
    """The page of runs that were not compared."""
    alone = uncompared(runs)
    return _page(runs, alone.summary, remarks(alone, with_pair=False), command)


def _page(runs: Sequence[Run], rows: Sequence[Row], remarks: Sequence[str], command: str | None) -> str:
    template = files("cascli.render").joinpath("trace_page.html").read_text(encoding="utf-8")
    return template.replace(DATA, embedded(data(runs, rows, remarks, command)))


def embedded(values: Json) -> str:
    """JSON that is safe inside a script element: ASCII alone, and no character that could end the element."""
    text = json.dumps(values, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def data(runs: Sequence[Run], rows: Sequence[Row], remarks: Sequence[str], command: str | None) -> Json:
    """Everything that the page shows."""
    builder = _Builder()
    groups = list(by_prompt(list(runs)))
    asked = prompts_of([group[0] for group in groups])
    numbers = {prompt: number for number, prompt in enumerate(dict.fromkeys(asked), 1)}
    prompts = [builder.prompt(group, numbers[key]) for group, key in zip(groups, asked, strict=True)]
    first = runs[0]
    return {
        "pair": pair_line(first),
        "facts": list(_facts(first, command)),
        "verdict": verdict(rows),
        "said": list(remarks),
        "table": _table(runs, rows),
        "rules": [_rule(name, line) for name, line in builder.rules.items()],
        "detail": builder.has_detail,
        "prompts": prompts,
        "asked": len(numbers),
        "batch": max(run.batch_size for run in runs),
        "texts": builder.texts,
    }


def _facts(run: Run, command: str | None) -> Iterator[tuple[str, str]]:
    """How the page's data was made: command line and date if known, sampling, environment."""
    if command is not None:
        yield "command", plain(command)
    if run.date is not None:
        yield "date", plain(run.date)
    yield "pair", plain(f"{run.pair.name}: {run.pair.dtypes}")
    for role, model in run.pair.models.items():
        yield role, plain(f"{model.source}, {model.dtype} on {model.device}")
    sampling = run.sampling.model_dump(exclude_defaults=True)
    yield "sampling", ", ".join(f"{key} {plain(str(value))}" for key, value in sampling.items())
    yield "environment", ", ".join(f"{key} {plain(value or DASH)}" for key, value in run.environment.items())


def _rule(name: str, line: RuleInAlpha) -> Json:
    return {
        "name": name,
        "formula": line.kind.formula,
        "low": _finite(line.allowed.low),
        "high": _finite(line.allowed.high),
    }


def _table(runs: Sequence[Run], rows: Sequence[Row]) -> Json:
    headings = [
        "strategy", "tokens/s", "speed vs target", "tokens", "ended by", "target calls per token", "drafts passed",
        "mean TV", "lossless", "same text as target",
    ]  # fmt: skip
    return {"headings": headings, "rows": [_row(row, _of(row, runs)) for row in rows]}


def _of(row: Row, runs: Sequence[Run]) -> list[Run]:
    return [run for run in runs if run.spec == row.strategy]


def _row(row: Row, runs: Sequence[Run]) -> list[str]:
    return [
        short_name(row.strategy, oracle=row.oracle),
        number(row.tokens_per_second),
        speed_text(row),
        str(row.tokens),
        _endings(runs),
        number(row.target_calls_per_token),
        rate(row.tested_acceptance_rate),
        tv(row.mean_tv_to_target),
        yes_no(row.lossless),
        yes_no(row.same_as_target),
    ]


def _endings(runs: Sequence[Run]) -> str:
    reasons = [ending(run.finish_reason) for run in runs]
    if len(reasons) == 1:
        return reasons[0]
    return ", ".join(f"{reason} {reasons.count(reason)}" for reason in dict.fromkeys(reasons))


class _Builder:
    """Collects the page's prompts, and the data they share."""

    def __init__(self) -> None:
        self.rules = rules_in_alpha()
        self.texts: dict[int, str] = {}
        """What the page shows for each token id."""
        self.has_detail = False
        self._chooses = False
        """Whether the rule of the run chooses between the models."""
        self._whole: Iterator[str] = iter(())
        """The texts of the run's remaining tokens, with whole characters."""

    def prompt(self, runs: Sequence[Run], number: int) -> Json:
        """One prompt or turn of it with the answers of all strategies; `number` counts prompts, not turns."""
        first = runs[0]
        target = target_of(runs)
        # Later turns are read after each strategy's own answers.
        fewest, most = (end(run.prompt_tokens for run in runs) for end in (min, max))
        return {
            "prompt": _text(first.prompt if first.prompt is not None else "(token ids)"),
            "system": None if first.system is None else _text(first.system),
            "number": number,
            "turn": first.turn,
            "tokens": counted(most, "token") if fewest == most else f"{fewest} to {most} tokens",
            "runs": [self.run(run, target) for run in runs],
        }

    def run(self, run: Run, target: Run | None) -> Json:
        """One answer: its tokens round by round."""
        seconds = run.metrics.seconds.total
        shown = [round_.seconds.total for round_ in run.rounds]
        withdrawn = run.handover is not None and run.handover.deferred
        diverges = divergence(run, target)
        # A rule that does not choose between the models neither keeps nor defers a token.
        self._chooses = any(token.deferral is not None for token in run.emitted)
        self._whole = iter(whole_texts(run.rounds, diverges, run.text))
        return {
            "name": run.strategy + (" (oracle)" if run.oracle else ""),
            "params": {key: str(value) for key, value in run.params.items()},
            "text": _text(run.text),
            "count": len(run.token_ids),
            "ended": run.finish_reason,
            "batch": run.batch_size,
            "seconds": _short(seconds),
            # The trace omits the rounds of a withdrawn answer but includes their time.
            "before": _short(max(seconds - sum(shown), 0.0)) if withdrawn else 0.0,
            "diverges": diverges,
            "speculates": run.metrics.num_draft_tokens > 0,
            "decision": None if run.handover is None else describe_handover(run.handover),
            "withdrawn": _text(run.handover.draft_text) if run.handover is not None and withdrawn else None,
            "rounds": [self.round(round_) for round_ in run.rounds],
        }

    def round(self, round_: Round) -> Json:
        """One round: its tokens in reading order, each struck-out one before its replacement."""
        kept = [token for token in round_.emitted if token.event == "accepted"]
        tokens = [self._emitted(token, draft) for token, draft in zip(kept, round_.drafted, strict=False)]
        fates = ["rejected", *["untested"] * len(round_.drafted)]
        dropped = round_.drafted[len(kept) :]
        tokens += [self._dropped(draft, fate) for draft, fate in zip(dropped, fates, strict=False)]
        for token in round_.emitted[len(kept) :]:
            tokens += self._written(token)
        return {"seconds": _short(round_.seconds.total), "tokens": tokens}

    def _emitted(self, token: Emitted, draft: Drafted | None = None) -> Json:
        """A token of the answer; for an accepted draft, also the result of its test."""
        values = {
            **self._named(token.id, token.text, token.event),
            **self._spelled(token.text),
            "q": _short(token.q),
            "p": _short(token.p),
            "tv": _short(token.tv),
            "deferral": _short(token.deferral),
            **self._seen(token.detail, judged=token.event in ("accepted", "draft")),
        }
        if token.event == "draft" and token.deferral is not None:
            values["deferred"] = False
        return values if draft is None else values | self._test(draft)

    def _dropped(self, draft: Drafted, fate: str) -> Json:
        return {**self._named(draft.id, draft.text, fate), **self._test(draft), **self._seen(draft.detail, judged=True)}

    def _written(self, token: Emitted) -> Iterator[Json]:
        """A token that was not drafted, after the draft model's token that was turned down for it, if any."""
        instead, written = token.turned_down, self._emitted(token)
        if instead is not None:
            judged = {"deferred": self._chooses, **self._seen(instead.detail, judged=True)}
            if instead.id == token.id:
                written |= {"same": True, **judged}
            else:
                yield {**self._named(instead.id, instead.text, "turned-down"), **judged}
        yield written

    def _named(self, token: int, text: str, how: str) -> Json:
        self.texts.setdefault(token, block(text))
        return {"id": token, "how": how}

    def _spelled(self, own: str) -> Json:
        """What an emitted token shows if not its own text: the whole character that it ends, or nothing of one."""
        shown = next(self._whole)
        return {} if shown == own else {"text": block(shown) if shown else ""}

    def _test(self, draft: Drafted) -> Json:
        """The result of a drafted token's test and, if there is a decision, that of the rule."""
        numbers: Mapping[str, float] = {"q": draft.q, "p": draft.p, "pi": draft.pi, "accept_prob": draft.accept_prob}
        decided = {"deferred": draft.deferred} if self._chooses else {}
        return {name: _short(value) for name, value in numbers.items()} | decided

    def _seen(self, detail: Detail | None, *, judged: bool) -> Json:
        """What the models predicted for a token and, if it is a draft, the alphas at which rules keep it."""
        if detail is None:
            return {}
        self.has_detail = True
        values: Json = {
            "seen": {
                name: _short(getattr(detail, name))
                for name in ("q1", "p1", "draft_rank", "target_rank", "max_q1", "max_p1", "disagreement")
            }
            | {"draft_top": self._likeliest(detail.draft_top), "target_top": self._likeliest(detail.target_top)}
        }
        if judged:
            values["alphas"] = {name: _interval(line.keeps(detail)) for name, line in self.rules.items()}
        return values

    def _likeliest(self, tokens: Sequence[Likely] | None) -> list[list[float | None]] | None:
        if tokens is None:
            return None
        for token in tokens:
            self.texts.setdefault(token.id, block(token.text))
        return [[token.id, _short(token.prob)] for token in tokens]


def _interval(alphas: Alphas | None) -> list[float | None] | None:
    """Both ends, None where unbounded; an empty list if no alpha keeps the draft; None if that is unknown.

    Never rounded: an alpha between an end and its rounded value would be said to keep a draft that it defers.
    """
    if alphas is None:
        return None
    return [] if alphas.empty else [_finite(alphas.low), _finite(alphas.high)]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _short(value: float | None) -> float | None:
    if value is None or isinstance(value, int):
        return value
    short = float(f"{value:.{DIGITS}g}")
    return value if short.is_integer() else short  # whole numbers are shown as exact


def block(text: str) -> str:
    """The text of a token in lines, with everything unprintable made visible, line ends included."""
    parts = text.split("\n")
    return "⏎\n".join(visible(part) if part else "" for part in parts) or "∅"


def _text(text: str) -> str:
    """A text to be read and copied: as on a terminal, only what could control it is made visible."""
    return plain(text) or "∅"
