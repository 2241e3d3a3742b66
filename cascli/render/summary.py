"""The lines of numbers after an answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cascli.analysis.comparison import summarise
from cascli.errors import plain
from cascli.render.marks import ending
from cascli.render.numbers import DASH, counted, number, rate, seconds, size, tv, yes_no
from cascli.trace import ExitInfo, Run


def lines(run: Run, *, verbose: bool = False) -> Iterator[str]:
    """What a run cost and how far it was from the target, in a few lines."""
    m = run.metrics
    oracle = " (oracle)" if run.oracle else ""
    share = f", its share of a batch of {run.batch_size}" if run.batch_size > 1 else ""
    yield (
        f"{run.spec}{oracle}: {counted(len(run.token_ids), 'token')} in {seconds(m.seconds.total)}"
        f" ({number(m.tokens_per_second, 1)} tokens/s{share}), {ended_by(run)}"
    )
    if m.num_draft_tokens:
        drafted, rounds = counted(m.num_draft_tokens, "drafted token"), counted(m.num_rounds, "round")
        yield (
            f"{m.num_accepted_draft_tokens} of {drafted} accepted in {rounds}"
            f" ({rate(m.draft_acceptance_rate)}), mean acceptance length {number(m.mean_acceptance_length)}"
        )
    if m.shared_mass is not None:
        yield f"q(I), the draft's mass on tokens in both vocabularies: {number(m.shared_mass)}"
    yield (
        f"calls per token: target {number(m.target_calls_per_token)}, draft {number(m.draft_calls_per_token)}"
        f"; deferral rate {number(m.deferral_rate)}"
    )
    if run.exit is not None:
        yield exit_line(run.exit, run.batch_size)
    mean, largest = tv(m.mean_tv_to_target), tv(m.max_tv_to_target)
    rounds = "; its law depends on the rounds" if run.depends_on_rounds and not m.lossless else ""
    yield f"TV to the target: mean {mean}, max {largest}; lossless: {yes_no(m.lossless)}{rounds}"
    s = m.seconds
    yield (
        f"time: prefill {seconds(s.prefill)}, draft {seconds(s.draft)}, verify {seconds(s.verify)}, "
        f"other {seconds(s.other)}; first token after {seconds(m.ttft_seconds)}"
    )
    if run.costs is not None and not run.costs.measured:
        c = number(run.costs.c)
        yield f"{run.params.get('stop')} used assumed step costs, c = {c}; cascli bench measures them"
    cut = cut_by_context(run)
    if cut is not None:
        yield cut
    if verbose:
        yield from _details(run)


def ended_by(run: Run) -> str:
    """How an answer ended: `ended by eos`, or `ended early`."""
    return ending(run.finish_reason) if run.finish_reason == "interrupted" else f"ended by {run.finish_reason}"


def exit_line(exit: ExitInfo, batch_size: int) -> str:
    """The kind of early exit that drafts come from."""
    alone = "; in a batch each answer is drafted and checked in separate passes" if batch_size > 1 else ""
    return f"{exit.label}{alone}"


def one_line(run: Run) -> str:
    """What matters most, in one line of 80 columns; calls are per token."""
    m = run.metrics
    end = {"length": " (limit)", "interrupted": " (ended early)"}.get(run.finish_reason, "")
    length = counted(len(run.token_ids), "token") + end
    parts = [length, f"{number(m.tokens_per_second, 1)}/s"]
    if m.num_draft_tokens:
        parts.append(f"accepted {m.num_accepted_draft_tokens}/{m.num_draft_tokens}")
    parts.append(f"target calls {number(m.target_calls_per_token)}")
    return " · ".join([*parts, f"TV {tv(m.mean_tv_to_target)}"])


def title(prompt_id: str, turn: int) -> str:
    """The line above one of several answers, in the style of `head` and `tail` above one of several files."""
    name = " ".join(plain(prompt_id).split()) or "-"
    return f"==> {name}{f', turn {turn + 1}' if turn else ''} <=="


def with_newline(text: str) -> str:
    """An answer as it is printed and written: with a final newline, and nothing if it is empty."""
    return text if not text or text.endswith("\n") else text + "\n"


def prompt_label(prompt_id: str, turn: int, text: str, width: int = 60) -> str:
    """Which prompt this is, in one line."""
    short = " ".join(text.split())
    short = short if len(short) <= width else short[: width - 1] + "…"
    return f"{' '.join(prompt_id.split())}{f', turn {turn + 1}' if turn else ''}: {short}"


def cut_by_context(run: Run) -> str | None:
    """A line if an answer is shorter than allowed because the context had no room for more; None otherwise."""
    count, allowed = len(run.token_ids), run.sampling.max_new_tokens
    if run.finish_reason != "length" or count >= allowed:
        return None
    whole = run.prompt_tokens + count
    return (
        f"the context cut this answer at {count} of {allowed} tokens:"
        f" counting the prompt's {run.prompt_tokens:,} tokens, it holds {whole:,}"
    )


def totals(runs: Sequence[Run]) -> str:
    """What all answers of one strategy add up to, in two lines."""
    row = summarise([[runs]])[0]
    prompts = counted(row.num_prompts or 0, "prompt")
    answers = counted(len(runs), "answer") + (f" to {prompts}" if row.num_prompts != len(runs) else "")
    cut = f", {row.answers_cut} at the limit" if row.answers_cut else ""
    together = f", {runs[0].batch_size} at once" if runs[0].batch_size > 1 else ""
    parts = [f"target calls per token {number(row.target_calls_per_token)}", f"mean TV {tv(row.mean_tv_to_target)}"]
    if row.tested_acceptance_rate is not None:
        parts.insert(0, f"{rate(row.tested_acceptance_rate)} of the tested drafts accepted")
    return (
        f"{answers}: {row.tokens:,} {'token' if row.tokens == 1 else 'tokens'} in {seconds(row.seconds)}"
        f" ({number(row.tokens_per_second, 1)}/s{together}), {number(row.mean_answer_tokens, 1)} each{cut}\n"
        f"{', '.join(parts)}"
    )


def _details(run: Run) -> Iterator[str]:
    m = run.metrics
    if m.acceptance_histogram is not None:
        counts = ", ".join(f"{kept}: {count}" for kept, count in enumerate(m.acceptance_histogram))
        yield f"rounds by accepted tokens: {counts}"
    if m.per_position_acceptance is not None:
        yield f"acceptance by position: {', '.join(rate(share) for share in m.per_position_acceptance)}"
    pair = run.pair
    yield f"pair {pair.name}: {pair.dtypes} on {pair.target.device}"
    both = pair.draft is not None
    masked = "/".join(map(str, pair.masked_rows if both else pair.masked_rows[1:]))
    which = " (draft/target)" if both else ""
    memory = size(m.peak_memory_bytes)
    yield f"{pair.tokenizer_size} tokens, {masked} padded rows masked{which}; peak memory {memory}"
    yield from pair.limits
    yield ", ".join(f"{key} {value or DASH}" for key, value in run.environment.items())
