"""The calls into lm-evaluation-harness: its tasks, and an evaluation of one model on them."""

from __future__ import annotations

import importlib.metadata
import io
import json
import logging
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cascli.errors import RunError, UsageError, first_line, suggestion
from cascli.sweeps.dataset import downloads_forbidden

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
        UsageError: the package is not installed, the folder does not exist, or a task is unknown.
    """
    version()
    from lm_eval.tasks import TaskManager

    if options.include_path is not None and not Path(options.include_path).is_dir():
        raise UsageError(f"--include-path {options.include_path}: no such folder")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    path = None if options.include_path is None else str(options.include_path)
    if path is not None:
        own = TaskManager(include_path=path, include_defaults=False)
        if all(name in own.all_subtasks for name in options.tasks):
            return own  # avoids searching for thousands of others
    manager = TaskManager(include_path=path)
    for name in options.tasks:
        if not manager.match_tasks([name]):
            raise UsageError(_unknown(name, manager.all_tasks, options))
    return manager


def _unknown(name: str, known: Sequence[str], options: EvaluationOptions) -> str:
    hint = suggestion(name, known, most=SHOWN, cutoff=0.5) or "."
    where = "" if options.include_path is None else f" and those in {options.include_path}"
    return f"unknown task '{name}'{hint}\nKnown: the {len(known):,} tasks of 'lm-eval ls tasks'{where}."


def evaluated(model: StrategyModel, options: EvaluationOptions, manager: Any) -> dict[str, Any]:
    """Return what `lm_eval.simple_evaluate` returns, including samples.

    Raises:
        UsageError: a task cannot be set up or scored.
        RunError: its documents cannot be fetched.
    """
    import datasets
    import jinja2
    from lm_eval import simple_evaluate

    previous = os.environ.get(ALLOW_CODE_VARIABLE)
    if options.unsafe:
        os.environ[ALLOW_CODE_VARIABLE] = "1"  # a second permission, which code metrics require
    quiet = redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO())  # hide its bars; we show our own
    try:
        with downloads_forbidden(options.offline), quiet[0], quiet[1]:
            results = simple_evaluate(
                model=model,
                tasks=manager.match_tasks(list(options.tasks)),
                num_fewshot=options.num_fewshot,
                limit=options.limit,
                apply_chat_template=options.chat,
                fewshot_as_multiturn=options.chat,
                system_instruction=options.system,
                task_manager=manager,
                confirm_run_unsafe_code=options.unsafe,
                log_samples=True,
            )
    except (OSError, datasets.exceptions.DatasetsError) as error:
        raise RunError(f"the documents of a task cannot be loaded: {first_line(error)}") from error
    except (ImportError, ValueError) as error:
        raise UsageError(_error_message(error)) from error
    except (LookupError, ArithmeticError, TypeError, AttributeError, SyntaxError, jinja2.TemplateError) as error:
        # Mistakes in a task's file that the package lets through: a missing column, a list in place of a string.
        if _is_ours(error):
            raise
        raise UsageError(_error_message(ValueError(f"{type(error).__name__}: {first_line(error)}"))) from error
    finally:
        if previous is None:
            os.environ.pop(ALLOW_CODE_VARIABLE, None)
    return dict(results)


def _is_ours(error: BaseException) -> bool:
    """Return whether an error was raised while a strategy answered, so that no task's file is to blame."""
    model = sys.modules["cascli.evaluation.model"].__file__
    return any(frame.filename == model for frame in traceback.extract_tb(error.__traceback__))


def _error_message(error: Exception) -> str:
    text = first_line(error)
    if ALLOW_CODE_VARIABLE in str(error):
        text = "a task runs model-written code."
    if "unsafe" in text or ALLOW_CODE_VARIABLE in str(error):
        return f"{text}\nUse --unsafe-code-execution to allow it: it is not sandboxed."
    return f"lm-evaluation-harness: {text}"


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
