"""cascli eval: lm-evaluation-harness tasks, with strategies as the model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cascli.cli import common
from cascli.cli.options import LOADING, Flags, batch_size_option, with_shared
from cascli.errors import UsageError, located

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cascli.evaluation.run import Evaluating
    from cascli.render.console import Screen
    from cascli.strategies import Strategy

NAME = "eval"
EXAMPLE = """\
cascli eval --tasks gsm8k --limit 50 -s target -s speculative:k=4
cascli eval --tasks mine --include-path ./tasks -c tiny-random -o out
cascli eval --tasks gsm8k,ifeval --apply-chat-template --batch-size 8
"""


@with_shared(
    *LOADING,
    *("strategy", "num_speculative_tokens", "max_new_tokens", "temperature", "top_k", "top_p", "seed", "stop"),
    *("system", "limit", "output", "json", "quiet", "color"),
    strategy="Name and parameters as one string; may be repeated. (default target and generate's)",
    max_new_tokens="Longest answer; overrides the task's.",
    temperature="0 is greedy; overrides the task's.",
    top_k="Keep the N most likely tokens; overrides the task's.",
    top_p="Keep the smallest set of this mass; overrides the task's.",
    seed="Seed of the runs' random numbers; overrides the task's. (default 0)",
    stop="Also end answers before this text; may be repeated.",
    system="System prompt for every prompt.",
    limit="Use only the first N documents of each task.",
    folder=True,
    output="Results folder: eval.json, and lm-evaluation-harness's own files for each strategy.",
)
def command(
    *,
    tasks: Annotated[
        list[str], typer.Option("--tasks", metavar="NAMES", help="Tasks, separated by commas; may be repeated.")
    ],
    include_path: Annotated[
        Path | None, typer.Option("--include-path", metavar="DIR", help="A folder with your own task files.")
    ] = None,
    num_fewshot: Annotated[
        int | None,
        typer.Option("--num-fewshot", min=0, metavar="N", help="Examples per prompt; overrides the task's."),
    ] = None,
    apply_chat_template: Annotated[
        bool,
        typer.Option("--apply-chat-template", help="Use the chat template, with examples as earlier turns."),
    ] = False,
    batch_size: Annotated[int, batch_size_option("per strategy")] = 1,
    unsafe_code_execution: Annotated[
        bool,
        typer.Option("--unsafe-code-execution", help="Let tasks run model-written code, without a sandbox."),
    ] = False,
    flags: Flags,
) -> None:
    """Run lm-evaluation-harness tasks: each strategy's scores, and what its answers cost."""
    from cascli.cli.progress import Progress
    from cascli.settings import default_strategy

    plan = common.plan(flags)
    strategies = plan.strategies(["target", default_strategy(plan.config)])
    common.import_torch(plan.screen)
    from cascli.evaluation.harness import EvaluationOptions, task_manager
    from cascli.evaluation.run import Evaluating, check_folder

    folder = None if plan.settings.output is None else Path(plan.settings.output)
    if folder is not None:
        with located(plan.elsewhere("output")):
            check_folder(folder)
    given = common.requested_settings(flags)  # the pair's file was not written for these tasks
    request = EvaluationOptions(
        tasks=_names(tasks),
        include_path=include_path,
        limit=given.limit,
        num_fewshot=num_fewshot,
        chat=apply_chat_template,
        system=given.system,
        unsafe=unsafe_code_execution,
        offline=plan.settings.offline,
    )
    with Progress(plan.screen, "finding tasks"):
        manager = task_manager(request)
    pair = plan.load()
    common.note_cautions(plan, strategies)
    evaluating = Evaluating(pair, request, manager, given, batch_size, folder, common.command_line())
    _run(evaluating, strategies, plan.screen, as_json=plan.settings.json_output)


def _names(given: list[str]) -> list[str]:
    """The tasks, each once.

    Raises:
        UsageError: no task was named.
    """
    names = list(dict.fromkeys(name.strip() for each in given for name in each.split(",") if name.strip()))
    if not names:
        raise UsageError("--tasks: name at least one, such as --tasks gsm8k.")
    return names


def _run(evaluating: Evaluating, strategies: list[Strategy], screen: Screen, *, as_json: bool) -> None:
    """Evaluate and show the results, even those of an interrupted evaluation."""
    from cascli.cli.progress import Progress
    from cascli.render.evaluation import print_evaluation
    from cascli.render.marks import short_name

    evaluating.check(strategies)
    try:
        with Progress(screen, "evaluating", counted=True) as progress:
            for strategy in strategies:
                evaluating.run(strategy, progress.step)
    except KeyboardInterrupt:
        left = [short_name(each.spec, fancy=False) for each in strategies if each.spec not in evaluating.results]
        screen.note(f"interrupted: no results are kept for {', '.join(left)}")
        raise
    finally:
        if evaluating.results:
            evaluation = evaluating.evaluation()
            if as_json:
                print(evaluation.to_json())
            else:
                print_evaluation(evaluation, screen)
            for line in _written(evaluating):
                screen.note(line)


def _written(evaluating: Evaluating) -> Iterator[str]:
    """Which results the folder holds, and which could not be saved there; nothing without a folder."""
    from cascli.render.marks import short_name

    if evaluating.folder is None:
        return
    if evaluating.saved:
        yield f"wrote eval.json and lm-evaluation-harness's files in {evaluating.folder}"
    lost = [short_name(spec, fancy=False) for spec in evaluating.results if spec not in evaluating.saved]
    if lost:
        yield f"not saved in {evaluating.folder}: the results of {', '.join(lost)}"
