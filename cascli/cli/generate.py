"""cascli generate: one answer, streamed, with its tokens marked by where they came from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cascli.cli import common
from cascli.cli.options import Flags, with_shared
from cascli.errors import CheckFailed, UsageError
from cascli.render import formats
from cascli.settings import default_strategy

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cascli.models.pair import Pair
    from cascli.prompts import Prompt
    from cascli.render.export import Outputs
    from cascli.render.stream import AnswerStream
    from cascli.strategies import Strategy
    from cascli.trace import Run

NAME = "generate"
EXAMPLE = (
    'Example: cascli generate "Who is Buzz Aldrin?" -s speculative:k=4 -v[bold] · [/]'
    "echo hi | cascli generate --json -o run.json"
)


@with_shared(output=formats.help_of(formats.RUNS))
def command(
    prompt: Annotated[
        str | None, typer.Argument(help="The prompt; - or nothing reads stdin.", show_default=False)
    ] = None,
    *,
    require_lossless: Annotated[
        bool, typer.Option("--require-lossless", help="Exit 1 if the run was not lossless.", rich_help_panel="Checks")
    ] = False,
    flags: Flags,
) -> None:
    """Answer a prompt with one strategy: the answer on stdout, statistics on stderr."""
    from cascli.render import export

    plan = common.plan(flags)
    default = default_strategy(draft=plan.config.draft is not None)
    wanted = common.chosen(plan.settings.strategy or [default], plan.settings.num_speculative_tokens)
    if len(wanted) > 1:
        raise UsageError("generate runs one strategy; use compare for several.")
    outputs = export.outputs(plan.settings, formats.RUNS)
    prompts = common.prompts(prompt, plan.settings)
    pair = plan.load()
    runs = _answers(plan, pair, wanted[0], prompts, outputs)
    outputs.deliver(export.of_runs(runs), plan.screen, streamed=True)
    plan.note_captures(pair)
    if require_lossless and not all(run.metrics.lossless for run in runs):
        raise CheckFailed("the run was not lossless (--require-lossless): see mean_tv_to_target in its metrics.")


def _answers(plan: common.Plan, pair: Pair, strategy: Strategy, prompts: list[Prompt], outputs: Outputs) -> list[Run]:
    """Answer all prompts, and keep each answer as soon as it is there where a line a run is wanted."""
    from cascli.render.stream import AnswerStream
    from cascli.render.summary import totals

    done: list[Run] = []
    several = sum(len(prompt.turns) for prompt in prompts) > 1
    view = AnswerStream(plan.screen, tentative=strategy.tentative, mixed=strategy.name not in ("draft", "target"))
    with outputs.lines() as add:
        for place, prompt in enumerate(prompts, 1):
            where = f"[{place}/{len(prompts)}]" if several else ""
            for run in _answer(plan, pair, strategy, prompt, None if outputs.printed else view, where):
                add(run)
                done.append(run)
    if several:
        plan.screen.note(totals(done))
    return done


def _answer(
    plan: common.Plan, pair: Pair, strategy: Strategy, prompt: Prompt, view: AnswerStream | None, where: str
) -> Iterator[Run]:
    """Answer one conversation, streaming it unless stdout has another use; `where` says which of several it is."""
    from cascli.jobs.generate import converse
    from cascli.render.summary import cut_by_context, lines, one_line

    _announce(plan, prompt, 0, view, where)
    on_round = None if view is None else view.event
    for turn, run in enumerate(converse(pair, strategy, prompt, plan.settings, on_round), 1):
        if view is not None:
            view.end()
            view.known |= view.seen
        if where and not plan.screen.verbose:
            said = [one_line(run), cut_by_context(run)]
        else:
            said = [*lines(run, verbose=plan.screen.verbose)] if view is not None else []
        for line in said:
            if line is not None:
                plan.screen.note(line)
        yield common.with_command(run)
        if turn < len(prompt.turns):
            _announce(plan, prompt, turn, view, where)


def _announce(plan: common.Plan, prompt: Prompt, turn: int, view: AnswerStream | None, where: str) -> None:
    """Say which of several prompts is answered now."""
    from cascli.render.summary import asked, title

    if where:
        plan.screen.note(f"{where} {asked(prompt.id, turn, prompt.turns[turn])}")
        if view is not None:
            view.heading(title(prompt.id, turn))
