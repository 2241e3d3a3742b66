"""The tensors of a GGUF file, dequantised in parallel straight into one safetensors file.

The file is laid out first, then row chunks are dequantised and written where they belong, so memory
holds a few chunks and never the whole model.
"""

from __future__ import annotations

import json
import os
import threading
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from gguf.constants import MODEL_ARCH_NAMES
from gguf.tensor_mapping import get_tensor_name_map

from cascli.errors import RunError
from cascli.weights.gguf.dequantise import to_bfloat16
from cascli.weights.gguf.file import GgufFile, TensorInfo
from cascli.weights.report import Report

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PretrainedConfig

CHUNK = 1 << 20  # values: a chunk and its result roughly fit in the processor's cache
TASK = 1 << 24  # values: small enough for smooth progress and a prompt Ctrl-C
BYTES = 2  # of one bfloat16


class Placed(NamedTuple):
    """A parameter of the model, the tensor that it comes from and where its bytes begin in the file."""

    name: str
    tensor: TensorInfo
    offset: int


class Task(NamedTuple):
    """Some rows of one tensor, in the model's order, and where they go in the file."""

    tensor: TensorInfo
    rows: NDArray[np.intp] | slice
    offset: int
    bytes: int


def safetensors_bytes(gguf: GgufFile) -> int:
    """Bytes that the tensors of `gguf` take as bfloat16."""
    return sum(prod(tensor.shape) * BYTES for tensor in gguf.tensors.values())


def write_safetensors(gguf: GgufFile, config: PretrainedConfig, path: Path, report: Report) -> None:
    """Write every parameter of the model that `config` describes to `path`, in bfloat16.

    Raises:
        RunError: the GGUF file lacks a parameter, or has it in another shape or an unknown type.

    """
    layout = _layout(gguf, config)
    start = _write_header(path, layout)
    tasks = [task for placed in layout for task in _tasks(placed, start, config)]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the pool below is the parallelism; each chunk is too small to be split further
    try:
        _run(tasks, path, report)
    finally:
        torch.set_num_threads(threads)


def _layout(gguf: GgufFile, config: PretrainedConfig) -> list[Placed]:
    family = next(arch for arch, text in MODEL_ARCH_NAMES.items() if text == gguf.architecture)
    names = get_tensor_name_map(family, config.num_hidden_layers)
    offset, layout = 0, []
    for name, shape in _parameters(config).items():
        tensor = gguf.tensors.get(names.get_name(name, try_suffixes=(".weight", ".bias")) or name)
        if tensor is None:
            raise RunError(
                f"{gguf.path}: the GGUF file has no tensor for {name}.\nFetch a complete file of this model."
            )
        if tensor.shape != shape:
            raise RunError(f"{gguf.path}: {tensor.name} has shape {tensor.shape}, but {name} needs {shape}.")
        layout.append(Placed(name, tensor, offset))
        offset += prod(shape) * BYTES
    return layout


def _parameters(config: PretrainedConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes as transformers has them, from a model without storage."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    if config.tie_word_embeddings:
        shapes.pop("lm_head.weight", None)
    return shapes


def _write_header(path: Path, layout: list[Placed]) -> int:
    """Write the table of contents and reserve the whole file; returns where the data begins."""
    table: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor, offset in layout:
        end = offset + prod(tensor.shape) * BYTES
        table[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [offset, end]}
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format requires aligned data
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return 8 + len(text)


def _row_order(name: str, rows: int, config: PretrainedConfig) -> NDArray[np.intp] | None:
    """Row order for a llama query or key projection, where GGUF interleaves the halves of each head; else None."""
    if config.model_type != "llama" or not (".q_proj." in name or ".k_proj." in name):
        return None
    heads = config.num_attention_heads if ".q_proj." in name else config.num_key_value_heads
    return np.arange(rows).reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1)


def _tasks(placed: Placed, start: int, config: PretrainedConfig) -> list[Task]:
    tensor = placed.tensor
    order = _row_order(placed.name, tensor.shape[0], config)
    if order is not None and len(tensor.shape) == 1:
        tensor = tensor.by_rows(tensor.shape[0])
    count = tensor.rows
    width = prod(tensor.shape) // count * BYTES
    tasks = []
    for first in range(0, count, step := max(1, TASK * BYTES // width)):
        last = min(first + step, count)
        rows = slice(first, last) if order is None else order[first:last]
        tasks.append(Task(tensor, rows, start + placed.offset + first * width, (last - first) * width))
    return tasks


def _run(tasks: list[Task], path: Path, report: Report) -> None:
    done, total = 0, sum(task.bytes for task in tasks)
    stop = threading.Event()
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        pending = {pool.submit(_convert, task, path, stop): task for task in tasks}
        waiting = set(pending)
        try:
            while waiting:
                report("convert", done, total)
                finished, waiting = wait(waiting, timeout=0.2, return_when=FIRST_EXCEPTION)
                for future in finished:
                    future.result()
                    done += pending[future].bytes
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)
    report("convert", total, total)


def _convert(task: Task, path: Path, stop: threading.Event) -> None:
    rows = _read(task)
    step = max(1, CHUNK * BYTES * len(rows) // task.bytes)
    with path.open("r+b") as file:
        file.seek(task.offset)
        for first in range(0, len(rows), step):
            if stop.is_set():
                return
            values = to_bfloat16(rows[first : first + step], task.tensor.kind)
            file.write(values.view(torch.uint8).numpy().data)


def _read(task: Task) -> NDArray[np.uint8]:
    if isinstance(task.rows, slice):
        return task.tensor.read(task.rows.start, task.rows.stop)
    first, last = int(task.rows.min()), int(task.rows.max()) + 1
    return task.tensor.read(first, last)[task.rows - first]
