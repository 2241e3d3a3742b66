"""Weights read from a folder one tensor at a time, into a model that has none yet.

transformers builds the whole model in the file's precision first; on a CPU, where layers are then repacked, that
would be a second copy of everything. Here a model is created without weights, and they are read layer by layer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from accelerate import init_empty_weights
from safetensors import safe_open
from torch import Tensor
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel

from cascli.errors import RunError
from cascli.models.size import no_init
from cascli.weights.untrusted import auto_class

Read = Callable[[str], Tensor]
"""Returns a parameter's stored value by its full name."""

_ONE_FILE = "model.safetensors"
_INDEX = "model.safetensors.index.json"


def open_checkpoint(config: PreTrainedConfig, folder: Path, dtype: torch.dtype) -> tuple[PreTrainedModel, Read] | None:
    """Create a model of this config without weights, and a reader for them.

    Returns None if the names of the folder's tensors are not the model's own: then transformers has to convert them.

    Raises:
        RunError: a stored tensor has another shape than the config gives it.
    """
    files = files_of(folder)
    if files is None or getattr(config, "quantization_config", None) is not None:
        return None
    with init_empty_weights(include_buffers=False), no_init():
        model = auto_class(config).from_config(config, dtype=dtype)
    # What is stored decides: configs of T5 v1.1 claim that the head is tied to the embeddings, which it is not.
    aliases = {name: other for name, other in _tied(model).items() if name not in files}
    required = {aliases.get(name, name) for name, _ in model.named_parameters(remove_duplicate=False)}
    persistent = model.state_dict()
    if required - files.keys() or files.keys() - persistent.keys():
        return None
    # Layers take whatever is read: another shape would fail at the first token, or never.
    for name, stored in _shapes(files):
        expected = [*persistent[name].shape]
        if stored != expected:
            raise RunError(f"{folder}: '{name}' has shape {stored}, but the folder's config.json requires {expected}.")
    for name, buffer in model.named_buffers():
        if name in files:
            buffer.copy_(_read(files[name], name))
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model, lambda name: _read(files[aliases.get(name, name)], aliases.get(name, name))


def files_of(folder: Path) -> dict[str, Path] | None:
    """The file of each tensor; None if the folder holds no safetensors.

    Raises:
        RunError: the index is none, or names a file outside the folder.
    """
    if (folder / _ONE_FILE).is_file():
        with safe_open(folder / _ONE_FILE, framework="pt") as file:
            return dict.fromkeys(file.keys(), folder / _ONE_FILE)
    if (folder / _INDEX).is_file():
        index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
        if not isinstance(index, dict) or not isinstance(index.get("weight_map"), dict):
            raise RunError(f"{folder / _INDEX}: it has no 'weight_map', which names the file of each tensor.")
        files = {name: folder / file for name, file in index["weight_map"].items()}
        outside = next((file for file in files.values() if file.parent != folder), None)
        if outside is not None:
            raise RunError(f"{folder / _INDEX}: names a file outside its folder: {outside}")
        return files
    return None


def _tied(model: PreTrainedModel) -> dict[str, str]:
    """Names of tied parameters, mapped to the names of those whose values they share."""
    keys = model._tied_weights_keys
    tied = getattr(model.config.get_text_config(), "tie_word_embeddings", False) and isinstance(keys, dict)
    return dict(keys) if tied else {}


def _shapes(files: Mapping[str, Path]) -> Iterator[tuple[str, list[int]]]:
    """The names and shapes of all tensors, from the files' headers alone."""
    for file in dict.fromkeys(files.values()):
        with safe_open(file, framework="pt") as opened:
            for name in (name for name, where in files.items() if where == file):
                yield name, [*opened.get_slice(name).get_shape()]


def _read(file: Path, name: str) -> Tensor:
    """Read one tensor; the file is closed right away, so that pages already read do not accumulate."""
    with safe_open(file, framework="pt") as opened:
        return opened.get_tensor(name)
