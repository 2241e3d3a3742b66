"""Reading third-party files: configs, tokenizers and weights of a model folder, none of which may run code.

All loaders of transformers are called here and nowhere else: by default they would ask on standard input whether a
folder's own code may run, and accept a piped "y" as the answer. Whatever a loader raises for a damaged file becomes an
error of one sentence.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cascli.errors import CascliError, ConfigError, PairWarning, RunError, first_line
from cascli.files import MEGABYTE, json_of, text_of
from cascli.weights.home import cache_home

MOST_LAYERS = 1000
_UNREADABLE = "damaged, or not a supported model:"
LARGEST = 2**24
"""Limit for any other size in a config: far above any existing model's, but too small to hang a loader."""
_CONFIG_BYTES = 64 * MEGABYTE
_COUNTS = ("layer", "block", "depth")
_SIZES = ("size", "width", "dim", "heads", "experts", "n_embd", "n_head", "n_inner", "d_model", "d_ff")
_PICKLES = (".bin", ".pt", ".pth")
_POINTER, _POINTER_BYTES = b"version https://git-lfs", 1024
_TOKENIZER_SECONDS = 60
_MADE_UP = 8
"""Number of tokens apart from special ones of the largest vocabulary that transformers makes without a file."""
_TOKENIZER_BYTES = 4 << 30
# A tokenizer file can make the process that reads it abort, panic or hang, so it is first tried in a child process.
_TRY = """
import resource, sys
try:
    resource.setrlimit(resource.RLIMIT_AS, ({most}, {most}))
except (ValueError, OSError):
    pass  # macOS has no such limit, and one that is lower already is as good
from tokenizers import Tokenizer
Tokenizer.from_file(sys.argv[1]).encode("a" * 40 + " 12 the end.\\n")
"""


def config_of(folder: Path) -> Any:
    """The config of a model folder.

    Raises:
        RunError: it is damaged, describes no model that transformers knows, or has sizes that no model has.
    """
    from transformers import AutoConfig

    with damaged(folder / "config.json"):
        _check_files(folder)
        values = json_of(text_of(folder / "config.json", _CONFIG_BYTES), str(folder / "config.json"))
        check_sizes(values)
        if "speculators_model_type" in values:
            raise RunError(f"{folder}: this drafts for a target and is not a model on its own: name it with 'eagle3:'.")
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)


def tokenizer_of(place: Path, *, offline: bool = False) -> Any:
    """The tokenizer of a model folder or hub name.

    Raises:
        RunError: there is none, or it is damaged.
    """
    with damaged(place, "no tokenizer in"):
        try_tokenizer(place / "tokenizer.json")
        tokenizer = any_tokenizer(place, local_files_only=offline)
        # Values of a wrong type fail at their first use: make that happen here, where the file is known.
        tokenizer.decode(tokenizer("a b")["input_ids"], skip_special_tokens=True)
        if _is_made_up(tokenizer, place):
            raise _without_tokenizer(place)
        if not tokenizer.chat_template:
            tokenizer.chat_template = _template_of_processor(place)
        return tokenizer


def _is_made_up(tokenizer: Any, folder: Path) -> bool:
    """Whether a tokenizer knows hardly more than special tokens: where files are missing, transformers makes these."""
    own = tokenizer.get_vocab().keys() - tokenizer.get_added_vocab().keys() - set(tokenizer.all_special_tokens)
    return len(own) <= _MADE_UP and not (folder / "tokenizer.json").exists()


def _without_tokenizer(place: Path) -> RunError:
    cached = place.parent.name == "snapshots"  # in the hub's cache
    advice = "Copy its files from the model that this one was made from."
    if cached:
        advice = "'cascli pull --repair' for this pair fetches what else the hub has of it."
    return RunError(
        f"no tokenizer in {place}: there is no tokenizer.json, nor files that can be converted to one.\n{advice}"
    )


def _template_of_processor(place: Path) -> str | None:
    """The chat template that older folders of models for images keep beside their tokenizer; None if there is none.

    Raises:
        ValueError: the file holds no template.
    """
    file = place / "chat_template.json"
    if not file.is_file():
        return None
    values = json_of(text_of(file, _CONFIG_BYTES), str(file))
    template = values.get("chat_template") if isinstance(values, Mapping) else None
    if not isinstance(template, str):
        raise ValueError(f"{file.name} has no text named 'chat_template'")
    return template


def any_tokenizer(place: Path, **more: Any) -> Any:
    """`tokenizer_of` without its checks; the caller handles errors."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(place), trust_remote_code=False, **more)


def auto_class(config: Any) -> Any:
    """The transformers class that loads a text-generating model with this config."""
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    return AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM


def model_of(folder: Path, config: Any, **more: Any) -> Any:
    """Load the model of a folder with this config, from safetensors only: pickles can run code.

    Raises:
        RunError: its weights are damaged, incomplete or in another format.
    """
    with damaged(folder, "the weights cannot be loaded:"):
        kind = auto_class(config)
        given = {"use_safetensors": True, "output_loading_info": True} | more
        model, found = kind.from_pretrained(folder, trust_remote_code=False, **given)
    _require_weights(folder, model, found)
    return model


def any_model(folder: Path, **more: Any) -> Any:
    """Load a decoder-only model from the format that `more` names; the caller handles other errors.

    Raises:
        RunError: its weights are incomplete.
    """
    from transformers import AutoModelForCausalLM

    given = {"output_loading_info": True} | more
    model, found = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False, **given)
    _require_weights(folder, model, found)
    return model


def _require_weights(folder: Path, model: Any, found: Mapping[str, Any]) -> None:
    """Reject a model that transformers completed with random weights; warn of stored ones that it did not use.

    Raises:
        RunError: weights are missing; the message names the first.
    """
    missing = sorted({name for name, _ in model.named_parameters()} & set(found["missing_keys"]))
    if missing:
        raise RunError(
            f"{folder}: {len(missing):,} tensors of a '{model.config.model_type}' are missing, such as"
            f" '{missing[0]}'.\nIts config.json describes another model, or a part of its weights was not stored."
        )
    unused = sorted(found["unexpected_keys"])
    if unused:
        warnings.warn(
            f"{folder}: {len(unused):,} stored tensors are not part of this '{model.config.model_type}', such as"
            f" '{unused[0]}'; they are not used",
            PairWarning,
            stacklevel=3,
        )


@contextmanager
def damaged(place: Path, what: str = "") -> Iterator[None]:
    """Turn whatever a loader raises for a bad file into an error of one sentence.

    Raises:
        RunError: the loader failed, for any reason except lack of memory, an interrupt or cascli's own errors.
    """
    import torch

    try:
        yield
    except (CascliError, MemoryError, torch.OutOfMemoryError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        # Rust panics are not Exceptions; they are recognised by name.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        if "trust_remote_code" in str(error):
            raise RunError(
                f"{place}: it requires running its own code (auto_map), which cascli never does.\n"
                "Use a model type that transformers supports."
            ) from None
        if "convert a slow tokenizer" in str(error):
            raise _without_tokenizer(place) from None
        prefix = f"{what} {place}:" if what.startswith("no ") else f"{place}: {what or _UNREADABLE}"
        reason = first_line(error if isinstance(error, Exception) else Exception("a damaged tokenizer file"))
        name = "" if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: "
        raise RunError(f"{prefix} {name}{reason[:300]}") from None


def _check_files(folder: Path) -> None:
    """Reject files that a loader would wait for, or read forever, and those that are not there yet.

    Raises:
        RunError: the folder contains a pipe or a device, what Git LFS leaves in place of a file, or weights in pickles
            alone.
    """
    suffixes = {path.suffix: path.name for path in sorted(folder.iterdir(), reverse=True)}
    pickled = next((suffixes[suffix] for suffix in _PICKLES if suffix in suffixes), None)
    if pickled is not None and not suffixes.keys() & {".safetensors", ".gguf"}:
        raise RunError(
            f"{folder}: {pickled} is a pickle, which can run code and is not read; there are no safetensors.\n"
            "If you trust it, convert it: load the model with transformers, and save_pretrained() writes safetensors."
        )
    for path in sorted(folder.iterdir()):
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise RunError(f"{path}: not a regular file, so it does not belong in a model folder.")
        if path.is_file() and path.stat().st_size < _POINTER_BYTES and path.read_bytes().startswith(_POINTER):
            raise RunError(f"{path}: a Git LFS pointer instead of the file; 'git lfs pull' there fetches it.")
        if path.name == "adapter_config.json":
            text = f"{folder}: its adapter is not applied: merge it into the model (merge_and_unload in peft) first"
            warnings.warn(text, PairWarning, stacklevel=4)


def check_sizes(values: Any, where: str = "") -> None:
    """Reject sizes that no model has, before anything is built from them.

    Raises:
        ConfigError: a number of layers, a width or a vocabulary would hang or exhaust memory; the message names its
            key.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where or 'the config'}: expected keys and values")
    for key, value in values.items():
        name = f"{where}.{key}" if where else str(key)
        if isinstance(value, Mapping):
            check_sizes(value, name)
        most = _most(str(key))
        for each in value if isinstance(value, list) else [value]:
            if most is not None and isinstance(each, int | float) and not abs(each) <= most:
                raise ConfigError(f"{name}: {each!r} is more than any model has (at most {most:,} here)")
        if most is not None and isinstance(value, list) and len(value) > MOST_LAYERS:
            raise ConfigError(f"{name}: a list of {len(value):,} is longer than any model's")


def _most(key: str) -> int | None:
    if any(word in key for word in _COUNTS):
        return MOST_LAYERS if key.startswith(("num", "n_")) else LARGEST
    return LARGEST if any(word in key for word in _SIZES) else None


def try_tokenizer(file: Path) -> None:
    """Read a tokenizer file in a separate process, the first time it is seen.

    Raises:
        RunError: that process failed or did not end in time.
    """
    if os.name == "nt" or not file.is_file():
        return
    seen = cache_home() / "tokenizers" / hashlib.sha256(file.read_bytes()).hexdigest()
    if seen.exists():
        return
    command = [sys.executable, "-P", "-c", _TRY.format(most=_TOKENIZER_BYTES), str(file)]
    try:
        completed = subprocess.run(command, capture_output=True, timeout=_TOKENIZER_SECONDS, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        raise RunError(f"{file}: damaged: reading it did not finish within {_TOKENIZER_SECONDS} s.") from None
    if completed.returncode:
        raise RunError(f"{file}: damaged: {_last_words(completed)}")
    try:
        seen.parent.mkdir(parents=True, exist_ok=True)
        seen.touch()
    except OSError:  # a read-only cache: it is tried again the next time
        return


def _last_words(completed: subprocess.CompletedProcess[bytes]) -> str:
    if completed.returncode < 0:
        return f"the library that reads it aborted (signal {-completed.returncode})."
    lines = [line for line in completed.stderr.decode(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else f"the library that reads it failed (exit {completed.returncode})."
