"""cascli generate: one answer, streamed, with its tokens marked by where they came from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cascli.cli import common
from cascli.cli.options import Flags, with_shared
from cascli.errors import CheckFailed, UsageError

if TYPE_CHECKING:
    from cascli.models.pair import Pair
    from cascli.prompts import Prompt
    from cascli.strategies import Strategy
    from cascli.trace import Run

NAME = "generate"
EXAMPLE = """\
cascli generate "Who is Buzz Aldrin?"
cascli generate "Who is Buzz Aldrin?" -s speculative:k=4 -v
cascli generate hi -s speculative-cascade:rule=opt,alpha=0.3,k=4
echo "Name three moons." | cascli generate -q -o run.json
"""


@with_shared(output="Also write the answer to FILE: .json (with its trace), .html (a page), .txt (its text).")
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
    from cascli.settings import default_strategy

    plan = common.plan(flags)
    default = default_strategy(draft=plan.config.draft is not None)
    wanted = common.chosen(plan.settings.strategy or [default], plan.settings.num_speculative_tokens)
    if len(wanted) > 1:
        raise UsageError("generate runs one strategy; use compare for several.")
    if plan.settings.output:
        check_output(Path(plan.settings.output))
    prompts = common.prompts(prompt, plan.settings, NAME)
    pair = plan.load()
    runs = [run for item in prompts for run in _answer(plan, pair, wanted[0], item)]
    _deliver(plan, runs)
    plan.note_captures(pair)
    if require_lossless and not all(run.metrics.lossless for run in runs):
        raise CheckFailed("the run was not lossless (--require-lossless): see mean_tv_to_target in its metrics.")


def check_output(path: Path) -> None:
    """Refuse an output place that cannot work before anything is computed."""
    from cascli.render.export import check_suffix

    check_suffix(path, (".html", ".json", ".txt"))


def _answer(plan: common.Plan, pair: Pair, strategy: Strategy, prompt: Prompt) -> list[Run]:
    """Answer one conversation, streaming it unless JSON was asked for."""
    from cascli.jobs.generate import OnRound, converse
    from cascli.render.stream import AnswerStream
    from cascli.render.summary import lines

    done: list[Run] = []
    view = AnswerStream(plan.screen, tentative=strategy.tentative, mixed=strategy.name not in ("draft", "target"))

    on_round: OnRound | None = None if plan.settings.json_output else view.event
    for run in converse(pair, strategy, prompt, plan.settings, on_round):
        done.append(run)
        if not plan.settings.json_output:
            view.end()
            for line in lines(run, verbose=plan.screen.verbose):
                plan.screen.note(line)
    return done


def as_file(runs: list[Run], document: str, suffix: str) -> str:
    """The runs as the text of a file of this kind; `document` is their JSON."""
    if suffix == ".html":
        from cascli.render import html_trace

        return html_trace.of_runs(runs, common.command_line())
    return document + "\n" if suffix == ".json" else "\n".join(run.text for run in runs) + "\n"


def _deliver(plan: common.Plan, runs: list[Run]) -> None:
    """Print JSON if it was asked for, and write the output file."""
    from cascli import files
    from cascli.render import export

    text = runs[0].to_json() if len(runs) == 1 else export.several(runs)
    if plan.settings.json_output:
        print(text)
    if plan.settings.output:
        path = Path(plan.settings.output)
        files.write(path, as_file(runs, text, path.suffix))
        plan.screen.note(f"wrote {path}")
