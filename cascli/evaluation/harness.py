"""The calls into lm-evaluation-harness: its tasks, and an evaluation of one model on them."""

from __future__ import annotations

import importlib.metadata
import io
import json
import logging
import os
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cascli.errors import CascliError, RunError, UsageError, first_line, raised, suggestion
from cascli.sweeps.dataset import downloads_forbidden, reason

if TYPE_CHECKING:
    from cascli.evaluation.model import StrategyModel

INSTALL = "cascli eval needs lm-evaluation-harness: pip install 'cascli[eval]'"
ALLOW_CODE_VARIABLE = "HF_ALLOW_CODE_EVAL"
"""Environment variable that allows `evaluate`'s code metrics to run code."""
SHOWN = 3
"""Number of names that are suggested in place of an unknown one."""


@dataclass(frozen=True)
class EvaluationOptions:
    """What every strategy is evaluated on, and how."""

    tasks: Sequence[str]
    include_path: Path | str | None = None
    """A folder of task files, in addition to those of the package."""
    limit: int | None = None
    """Maximum number of documents per task."""
    num_fewshot: int | None = None
    chat: bool = False
    """Whether prompts go through the pair's chat template, with examples as earlier turns."""
    system: str | None = None
    unsafe: bool = False
    """Whether tasks may run code that models write."""
    offline: bool = False
    """Whether to use only documents that were fetched before."""


def version() -> str:
    """Return the version of lm-evaluation-harness.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import lm_eval  # noqa: F401 - only checks that it is installed
    except ImportError as error:
        missing = error.name or ""
        if missing.partition(".")[0] == "lm_eval":
            raise UsageError(INSTALL) from None
        raise UsageError(f"{INSTALL}\nlm_eval is installed, but not {missing}, which it needs.") from None
    return importlib.metadata.version("lm_eval")


def task_manager(options: EvaluationOptions) -> Any:
    """Return the manager of the available tasks, including those of `include_path`.

    Raises:
        UsageError: the package is not installed, the folder does not exist or cannot be listed, or a task is unknown.
    """
    version()
    if options.include_path is not None and not Path(options.include_path).is_dir():
        raise UsageError(f"--include-path {options.include_path}: no such folder")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    path = None if options.include_path is None else str(options.include_path)
    if path is not None:
        own = _listed(path, include_defaults=False)
        if all(name in own.all_subtasks for name in options.tasks):
            return own  # avoids searching for thousands of others
    manager = _listed(path)
    for name in options.tasks:
        if not manager.match_tasks([name]):
            raise UsageError(_unknown(name, manager.all_tasks, options))
    return manager


def _listed(path: str | None, **how: bool) -> Any:
    """Return a manager that has read the names of all tasks."""
    from lm_eval.tasks import TaskManager

    try:
        return TaskManager(include_path=path, **how)
    except TypeError as error:  # it sorts the names
        if path is None:
            raise
        raise UsageError(f"--include-path {path}: the name of a task, group or tag is not a text.") from error


def _unknown(name: str, known: Sequence[str], options: EvaluationOptions) -> str:
    hint = suggestion(name, known, most=SHOWN, cutoff=0.5) or "."
    where = "" if options.include_path is None else f" and those in {options.include_path}"
    return f"unknown task '{name}'{hint}\nKnown: the {len(known):,} tasks of 'lm-eval ls tasks'{where}."


def evaluated(model: StrategyModel, options: EvaluationOptions, manager: Any) -> dict[str, Any]:
    """Return what `lm_eval.simple_evaluate` returns, including samples.

    Raises:
        UsageError: a task cannot be set up or scored.
        RunError: its documents cannot be read.
    """
    from lm_eval import simple_evaluate

    previous = os.environ.get(ALLOW_CODE_VARIABLE)
    if options.unsafe:
        os.environ[ALLOW_CODE_VARIABLE] = "1"  # a second permission, which code metrics require
    quiet = redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO())  # hide its bars; we show our own
    try:
        with downloads_forbidden(options.offline), quiet[0], quiet[1], _reported():
            results = simple_evaluate(
                model=model,
                tasks=_set_up(manager, options.tasks),
                num_fewshot=options.num_fewshot,
                limit=options.limit,
                apply_chat_template=options.chat,
                fewshot_as_multiturn=options.chat,
                system_instruction=options.system,
                task_manager=manager,
                confirm_run_unsafe_code=options.unsafe,
                log_samples=True,
            )
    finally:
        if previous is None:
            os.environ.pop(ALLOW_CODE_VARIABLE, None)
    return dict(results)


def _set_up(manager: Any, names: Sequence[str]) -> list[Any]:
    """Return the tasks and groups of these names, set up one by one, so that an error can name the one it is about."""
    found: list[Any] = []
    for name in manager.match_tasks(list(names)):
        with _reported(name):
            loaded = manager.load([name])
            if not loaded["tasks"]:
                raise UsageError(f"task {name}: this is a group or tag without any tasks.")
        groups = list(loaded["groups"].values())  # the group of this name first; a tag is several tasks
        found += groups[:1] or loaded["tasks"].values()
    return found


@contextmanager
def _reported(setting_up: str | None = None) -> Iterator[None]:
    """Raise what goes wrong in a task's files or its Python, which may be anything, as an error that names the task.

    Args:
        setting_up: the task that is set up, which reads its documents; otherwise it is found in the error.

    Raises:
        UsageError: the task cannot be set up or scored.
        RunError: its documents, or a file or address that it needs, cannot be read.
    """
    import datasets

    try:
        yield
    except (Exception, SystemExit) as error:
        if isinstance(error, CascliError | MemoryError) or _is_ours(error):
            raise
        outside = isinstance(error, OSError | datasets.exceptions.DatasetsError)
        if outside and setting_up is not None:
            raise RunError(f"the documents of task {setting_up} cannot be loaded: {reason(error)}") from error
        raise (RunError if outside else UsageError)(_error_message(error, setting_up or _task_of(error))) from error


def _is_ours(error: BaseException) -> bool:
    """Return whether an error was raised while a strategy answered, so that no task's file is to blame."""
    model = sys.modules["cascli.evaluation.model"].__file__
    return any(frame.filename == model for frame in traceback.extract_tb(error.__traceback__))


def _task_of(error: BaseException) -> str | None:
    """Return the task whose methods an error passed through; None if it came from the requests of all of them."""
    from lm_eval.api.model import LM
    from lm_eval.api.task import Task

    found = None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if isinstance(frame.f_locals.get("self"), LM):
            return None
        found = next((each.task_name for each in frame.f_locals.values() if isinstance(each, Task)), found)
    return found


def _error_message(error: BaseException, task: str | None) -> str:
    text = first_line(error)
    if ALLOW_CODE_VARIABLE in str(error):
        text = f"{'a task' if task is None else f'task {task}'} runs model-written code."
    if "unsafe" in text or ALLOW_CODE_VARIABLE in str(error):
        return f"{text}\nUse --unsafe-code-execution to allow it: it is not sandboxed."
    where = "lm-evaluation-harness" if task is None else f"task {task}"
    if isinstance(error, ImportError | ValueError):  # raised to be read; others are Python's
        return f"{where}: {text}"
    return f"{where}: {raised(error)}\nCASCLI_DEBUG=1 shows where this happened."


def as_json(results: Mapping[str, Any], about: Mapping[str, str]) -> str:
    """Return an evaluation in the format of lm-evaluation-harness's results file; `about` has the model's arguments."""
    from lm_eval.utils import handle_non_serializable

    document = {key: value for key, value in results.items() if key != "samples"}
    document["config"] = {**results["config"], "model": "cascli", "model_args": dict(about)}
    document |= {"model_source": "cascli", "model_name": about["strategy"]}
    return json.dumps(document, indent=2, default=handle_non_serializable, ensure_ascii=False)


def samples_as_jsonl(samples: Sequence[Mapping[str, Any]]) -> str:
    """Return the answers to a task as lm-evaluation-harness logs them, one per line."""
    from lm_eval.utils import handle_non_serializable, sanitize_list

    lines = []
    for sample in samples:
        named_arguments = {
            f"gen_args_{i}": {f"arg_{j}": each for j, each in enumerate(arguments)}
            for i, arguments in enumerate(sample["arguments"])
        }
        responses = {name: sanitize_list(sample[name]) for name in ("resps", "filtered_resps")}
        logged = {**sample, **responses, "arguments": named_arguments, "target": str(sample["target"])}
        lines.append(json.dumps(logged, default=handle_non_serializable, ensure_ascii=False) + "\n")
    return "".join(lines)
