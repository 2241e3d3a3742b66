"""cascli generate: one answer, streamed, with its tokens marked by origin."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from cascli.cli import common
from cascli.cli.options import Flags, batch_size_option, with_shared
from cascli.errors import CheckFailed, UsageError
from cascli.render import formats

if TYPE_CHECKING:
    from cascli.models.pair import Pair
    from cascli.prompts import Prompt
    from cascli.render.console import Screen
    from cascli.render.export import Outputs
    from cascli.render.stream import AnswerStream
    from cascli.strategies import Strategy
    from cascli.trace import Run

NAME = "generate"
EXAMPLE = """\
cascli generate "Who is Buzz Aldrin?"
cascli generate "Who is Buzz Aldrin?" -s speculative:k=4 -v
cascli generate hi -s speculative-cascade:rule=opt,alpha=0.3,k=4
echo "Name three moons." | cascli generate -q -o run.json
cascli generate --prompts builtin --batch-size 8 -o answers.jsonl
"""


@with_shared(written=formats.RUNS)
def command(
    prompt: Annotated[
        str | None, typer.Argument(help="The prompt; if - or omitted, stdin is read.", show_default=False)
    ] = None,
    *,
    batch_size: Annotated[int, batch_size_option("with --prompts")] = 1,
    require_lossless: Annotated[
        bool, typer.Option("--require-lossless", help="Exit 1 if the run was not lossless.", rich_help_panel="Checks")
    ] = False,
    flags: Flags,
) -> None:
    """Answer a prompt with one strategy: the answer on stdout, statistics on stderr."""
    from cascli.render import export
    from cascli.settings import default_strategy

    plan = common.plan(flags)
    default = default_strategy(plan.config)
    strategy = plan.single_strategy(
        default, "generate runs one strategy: choose it with -s, or use compare for several."
    )
    if batch_size > 1 and not plan.prompts_from_file(prompt):
        raise UsageError("--batch-size is for several prompts: give --prompts, or leave it out.")
    outputs = export.outputs(plan.settings, formats.RUNS)
    prompts = common.prompts(prompt, plan, NAME)
    pair = plan.load()
    common.note_cautions(plan, [strategy])
    runs: list[Run] = []
    writers = partial(export.of_runs, runs, several=plan.prompts_from_file(prompt))
    try:
        if batch_size > 1 and len(prompts) > 1:
            _answers_in_batches(plan, pair, strategy, prompts, outputs, batch_size, runs)
        else:
            _answers(plan, pair, strategy, prompts, outputs, runs)
    except BaseException as error:  # if the command is interrupted or fails, the answers so far are written
        with suppress(Exception):
            if runs:
                if not isinstance(error, BrokenPipeError):
                    _note_end(plan.screen, prompts, runs, error)
                outputs.deliver(writers(), plan.screen, streamed=True)
        raise
    _note_end(plan.screen, prompts, runs)
    outputs.deliver(writers(), plan.screen, streamed=True)
    plan.note_captures(pair)
    if require_lossless:
        known = [run.metrics.lossless for run in runs]
        if False in known:
            raise CheckFailed("the run was not lossless (--require-lossless): see mean_tv_to_target in its metrics.")
        if None in known:
            raise CheckFailed("cannot tell whether the run was lossless (--require-lossless): the target was not used.")


def _answers(
    plan: common.Plan, pair: Pair, strategy: Strategy, prompts: list[Prompt], outputs: Outputs, runs: list[Run]
) -> None:
    """Answer all prompts into `runs`; if JSON Lines are written, write each answer as soon as it is available."""
    from cascli.jobs.generate import Answering
    from cascli.render.marks import is_mixed
    from cascli.render.stream import AnswerStream
    from cascli.trace import Run

    stream = AnswerStream(plan.screen, tentative=strategy.tentative, mixed=is_mixed(strategy.name))
    view = None if outputs.printed else stream  # stdout is used for the result
    notes = _AnswerNotes(plan.screen, view, prompts)
    with outputs.lines() as add, _line_ended(view):

        def keep(run: Run) -> None:
            run = common.with_command(run)
            notes.end(run)
            add(run)
            runs.append(run)

        for prompt in prompts:
            answering = Answering(pair, strategy, prompt, plan.settings)
            notes.begin(prompt, 0)
            try:
                for event in answering:
                    if isinstance(event, Run):
                        keep(event)
                        if event.turn + 1 < len(prompt.turns):
                            notes.begin(prompt, event.turn + 1)
                    elif view is not None:
                        view.event(event)
            except KeyboardInterrupt:
                with suppress(Exception):  # if the reader is gone too, this is still an interruption
                    run = answering.interrupt()
                    if run is not None:
                        keep(run)
                raise


@contextmanager
def _line_ended(view: AnswerStream | None) -> Iterator[None]:
    """Let an error begin on a line of its own."""
    try:
        yield
    except Exception:
        with suppress(Exception):
            if view is not None:
                view.end()
        raise


def _answers_in_batches(
    plan: common.Plan,
    pair: Pair,
    strategy: Strategy,
    prompts: list[Prompt],
    outputs: Outputs,
    size: int,
    runs: list[Run],
) -> None:
    """Answer all prompts into `runs`, several concurrently: each is written when finished, and shown in their order."""
    from cascli.cli.progress import Progress
    from cascli.jobs.batch import check_all, converse_many

    check_all(pair, strategy, prompts, plan.settings)
    done: dict[int, list[Run]] = {}
    unfinished: dict[int, list[Run]] = {}
    answers = converse_many(pair, strategy, prompts, plan.settings, size, unfinished)
    with outputs.lines() as add:

        def keep(place: int, ended: list[Run]) -> None:
            done[place] = [common.with_command(run) for run in ended]
            for run in done[place]:
                add(run)

        try:
            with Progress(plan.screen, "answering", counted=True) as progress, closing(answers):
                for ended in answers:
                    keep(ended.place, ended.result)
                    progress.step("answers", len(done), len(prompts))
        except BaseException as error:  # as one by one: finished turns, and what an interrupted answer has so far
            for place, so_far in sorted(unfinished.items()):
                whole = [run for run in so_far if run.finish_reason != "interrupted"]
                keep(place, so_far if isinstance(error, KeyboardInterrupt) else whole)
            raise
        finally:  # what is finished is shown even if the command was interrupted
            notes = _AnswerNotes(plan.screen, None, prompts)
            for place in sorted(done):
                for run in done[place]:
                    notes.begin(prompts[place], run.turn)
                    if outputs.printed is None:
                        notes.answer(run)
                    notes.end(run)
                    runs.append(run)


def _note_end(screen: Screen, prompts: list[Prompt], runs: list[Run], ended_by: BaseException | None = None) -> None:
    """Of several answers, print the totals and, if the command was ended early, how many prompts are answered."""
    from cascli.render.summary import totals

    if not _several(prompts):
        return
    lines = [totals(runs)]
    if ended_by is not None:
        turns = Counter(run.prompt_id for run in runs if run.finish_reason != "interrupted")
        answered = sum(turns[prompt.id] == len(prompt.turns) for prompt in prompts)
        part = len({run.prompt_id for run in runs}) - answered
        why = "interrupted" if isinstance(ended_by, KeyboardInterrupt) else "failed"
        in_part = f", {part} in part" if part else ""
        lines.insert(0, f"{why}: {answered} of {len(prompts)} prompts are answered{in_part}")
    screen.note("\n" + "\n".join(lines))


def _several(prompts: list[Prompt]) -> bool:
    """Whether there is more than one answer to print."""
    return sum(len(prompt.turns) for prompt in prompts) > 1


class _AnswerNotes:
    """Prints the notes around answers: which of several it is, and the numbers of each."""

    def __init__(self, screen: Screen, view: AnswerStream | None, prompts: list[Prompt]) -> None:
        self._screen, self._view, self._places = screen, view, [prompt.id for prompt in prompts]
        self._several = _several(prompts)
        self._separator, self._first = "", True

    def begin(self, prompt: Prompt, turn: int) -> None:
        from cascli.render.summary import prompt_label, title

        if not self._several:
            return
        where = f"[{self._places.index(prompt.id) + 1}/{len(self._places)}]"
        self._screen.note(f"{self._separator}{where} {prompt_label(prompt.id, turn, prompt.turns[turn])}", style="bold")
        self._separator = "\n"
        if self._view is not None:
            self._view.heading(title(prompt.id, turn))

    def answer(self, run: Run) -> None:
        """Print an answer that was not streamed."""
        from cascli.render.run import print_rounds
        from cascli.render.summary import title, with_newline

        if not self._screen.live:
            self._screen.write(f"{'' if self._first else chr(10)}{title(run.prompt_id, run.turn)}\n")
        self._first = False
        self._screen.write(with_newline(run.text))
        if self._screen.verbose:
            print_rounds(run, self._screen)

    def end(self, run: Run) -> None:
        from cascli.render.summary import cut_by_context, lines, one_line

        if self._view is not None:
            self._view.end()
            self._view.known |= self._view.seen
        if self._several and not self._screen.verbose:
            notes = [one_line(run), cut_by_context(run)]
        else:
            notes = [cut_by_context(run)] if self._view is None else [*lines(run, verbose=self._screen.verbose)]
        for line in notes:
            if line is not None:
                self._screen.note(line)
