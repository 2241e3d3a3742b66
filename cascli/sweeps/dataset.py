"""Prompts from a Hugging Face dataset, given by name, folder or file. The library is an extra, imported when used."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cascli.errors import RunError, UsageError, first_line
from cascli.prompts import Prompt
from cascli.sweeps.plan import TaskConfig

SAVED = ("dataset_dict.json", "state.json")
"""Files that identify a folder written by `save_to_disk`."""


def dataset_prompts(task: TaskConfig, here: Path, limit: int | None, *, offline: bool = False) -> list[Prompt]:
    """Return rows of a split as prompts with references: the first rows or, with `shuffle`, random ones.

    Args:
        task: a task of kind `dataset`.
        here: the folder that relative paths start from; a local path takes precedence over the hub.
        limit: number of rows; all by default.
        offline: use what was downloaded before, or fail.

    Raises:
        UsageError: the library is not installed, or a requested column does not exist.
        RunError: there is no such dataset, subset or split, or it cannot be fetched.
    """
    rows = _rows(task, here, offline)
    indices = list(range(len(rows)))
    if task.shuffle is not None:
        random.Random(task.shuffle).shuffle(indices)
    indices = indices[:limit]
    return [_prompt(task, index, row) for index, row in zip(indices, rows.select(indices), strict=True)]


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Keep the hub's warnings of every retry off the terminal; the error that they end with is reported."""
    from huggingface_hub.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


@contextmanager
def downloads_forbidden(offline: bool) -> Iterator[None]:
    """Let Hugging Face datasets use only what was downloaded before, if `offline`.

    The library reads its own switch at every call and has no argument for it.
    """
    import datasets

    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = before or offline
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before


def _rows(task: TaskConfig, here: Path, offline: bool) -> Any:
    try:
        import datasets
    except ImportError:
        raise UsageError("a task of kind dataset needs Hugging Face datasets: pip install 'cascli[datasets]'") from None
    datasets.disable_progress_bars()
    try:
        with downloads_forbidden(offline), _without_warnings():
            return _loaded(datasets, task, here / Path(str(task.path)).expanduser())
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise RunError(f"dataset '{task.path}': {reason(error)}") from None


def reason(error: BaseException) -> str:
    """Why documents cannot be read: the library may say only that an error occurred, and its cause says more."""
    first = last = error
    while last.__cause__ is not None:
        last = last.__cause__
    return first_line(first) if last is first else f"{first_line(first)}: {first_line(last)}"


def _loaded(datasets: Any, task: TaskConfig, local: Path) -> Any:
    """Load the split from a file, a folder of either kind, or the hub."""
    if local.is_file():  # the library infers its format from the suffix
        files = {task.split.partition("[")[0]: local.name}
        return datasets.load_dataset(str(local.parent), data_files=files, split=task.split)
    if any((local / name).is_file() for name in SAVED):
        saved = datasets.load_from_disk(str(local))
        splits = saved if isinstance(saved, datasets.DatasetDict) else {task.split: saved}
        if task.split not in splits:
            raise ValueError(f"it has no split '{task.split}'; it has: {', '.join(splits)}")
        return splits[task.split]
    if local.is_dir():
        # A folder of plain files has no subsets, so it is treated as the requested one.
        plain = task.subset is not None and datasets.get_dataset_config_names(str(local)) == ["default"]
        return datasets.load_dataset(str(local), None if plain else task.subset, split=task.split)
    return datasets.load_dataset(str(task.path), task.subset, revision=task.revision, split=task.split)


def _prompt(task: TaskConfig, number: int, row: Mapping[str, Any]) -> Prompt:
    extra = {} if task.reference is None else {"reference": _filled("reference", task.reference, row)}
    text, category = _filled("prompt", task.prompt, row), row.get("category")
    return Prompt((text,), f"{task.split}-{number}", category if isinstance(category, str) else "", extra)


def _filled(key: str, template: str, row: Mapping[str, Any]) -> str:
    try:
        return template.format_map(row)
    except KeyError as error:
        columns = ", ".join(row)
        raise UsageError(f"task.{key}: the dataset has no column {error}; it has: {columns}") from None
    except (ValueError, IndexError) as error:
        raise UsageError(f"task.{key}: '{template}': {error}; write {{{{ for a literal brace") from None
