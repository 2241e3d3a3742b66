"""Prompts from a Hugging Face dataset, by name or from a folder. The library is an extra, imported when used."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cascli.errors import RunError, UsageError, first_line
from cascli.prompts import Prompt
from cascli.sweeps.plan import TaskConfig


def dataset_prompts(task: TaskConfig, here: Path, limit: int | None, *, offline: bool = False) -> list[Prompt]:
    """The first rows of a split, as prompts with their references.

    Args:
        task: of kind `dataset`.
        here: where relative folders begin.
        limit: how many rows; all by default.
        offline: use what was downloaded before, or fail.

    Raises:
        UsageError: the library is not installed, or a column that is asked for is not there.
        RunError: there is no such dataset, subset or split, or it cannot be fetched.
    """
    rows = _rows(task, here, limit, offline)
    return [_prompt(task, number, row) for number, row in enumerate(rows)]


def _rows(task: TaskConfig, here: Path, limit: int | None, offline: bool) -> Any:
    try:
        import datasets
    except ImportError:
        raise UsageError("a task of kind dataset needs Hugging Face datasets: pip install 'cascli[datasets]'") from None
    path = str(task.path)
    local = here / Path(path).expanduser()
    split = task.split if limit is None or "[" in task.split else f"{task.split}[:{limit}]"
    datasets.disable_progress_bars()
    online = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = online or offline  # read at each call; there is no argument for it
    try:
        return datasets.load_dataset(str(local) if local.exists() else path, task.subset, split=split)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise RunError(f"dataset '{path}': {first_line(error)}") from None
    finally:
        datasets.config.HF_HUB_OFFLINE = online


def _prompt(task: TaskConfig, number: int, row: Mapping[str, Any]) -> Prompt:
    extra = {} if task.reference is None else {"reference": _filled("reference", task.reference, row)}
    asked, category = _filled("prompt", task.prompt, row), row.get("category")
    return Prompt((asked,), f"{task.split}-{number}", category if isinstance(category, str) else "", extra)


def _filled(key: str, template: str, row: Mapping[str, Any]) -> str:
    try:
        return template.format_map(row)
    except KeyError as error:
        columns = ", ".join(row)
        raise UsageError(f"task.{key}: the dataset has no column {error}; it has: {columns}") from None
    except (ValueError, IndexError) as error:
        raise UsageError(f"task.{key}: '{template}': {error}; write {{{{ for a brace itself") from None
