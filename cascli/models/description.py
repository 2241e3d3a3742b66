"""What is known of a pair before any weight is read: folders, configurations, and the vocabulary that is shared."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from cascli.config import ModelConfig, PairConfig, RandomSource
from cascli.errors import CascliError, ConfigError, first_line
from cascli.models.cache import check_supported
from cascli.models.stages import OnStage, Stage, unseen
from cascli.models.tokenizer import byte_tokenizer, check_same, same_file
from cascli.weights import untrusted

if TYPE_CHECKING:
    from cascli.weights.store import Report


class Description(NamedTuple):
    """A pair whose weights are on this machine, and not yet read."""

    folders: dict[str, Path | None]
    """By role; None for random weights."""
    configs: dict[str, PreTrainedConfig]
    tokenizer: Any | None
    """None for a random pair whose vocabulary is too small for one."""
    vocab: int
    """How many ids both models and the tokenizer share."""
    context: int | None
    """Longest text in tokens that both models take; None if they do not say."""


def describe(
    config: PairConfig, *, offline: bool = False, report: Report | None = None, on_stage: OnStage = unseen
) -> Description:
    """Fetch what is not there yet, read the configurations, and compare the tokenizers.

    Raises:
        ConfigError: a model of a kind that cascli does not run, or two models whose tokenizers differ.
        RunError: weights that are not to be had.
    """
    folders = {role: _folder(model, offline, report) for role, model in config.models.items()}
    configs = {}
    for role, model in config.models.items():
        with model.located():
            configs[role] = _model_config(model, folders[role])
    on_stage(Stage("reading the tokenizer"))
    tokenizer, vocab = _vocabulary(config, folders, configs, offline)
    return Description(folders, configs, tokenizer, vocab, _context(configs.values()))


def _vocabulary(
    config: PairConfig, folders: Mapping[str, Path | None], configs: Mapping[str, PreTrainedConfig], offline: bool
) -> tuple[Any | None, int]:
    """The tokenizer, and how many ids it and both models share; none for random models too small for it, or told so."""
    rows = min(each.get_text_config().vocab_size for each in configs.values())
    sources = [model.source for model in config.models.values()]
    if any(isinstance(source, RandomSource) and source.tokenizer is False for source in sources):
        return None, rows
    tokenizer, shared = _tokenizer(config, folders, offline)
    if len(tokenizer) > rows and not any(folders.values()):
        return None, rows
    return tokenizer, min(rows, shared)


def _folder(model: ModelConfig, offline: bool, report: Report | None) -> Path | None:
    """The model's folder on disk, fetched first where needed; None for random weights."""
    if isinstance(model.source, RandomSource):
        return None
    from cascli.weights import store

    with model.located():
        return store.pull(model.source, report or store.silent, offline=offline)


def _model_config(model: ModelConfig, folder: Path | None) -> PreTrainedConfig:
    if isinstance(model.source, RandomSource):
        values = dict(model.source.random)
        kind = values.pop("model_type")
        if kind not in CONFIG_MAPPING:
            near = difflib.get_close_matches(str(kind), list(CONFIG_MAPPING.keys()), n=1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise ConfigError(f"random: transformers has no model_type '{kind}'{hint}")
        with _bad_config_is_an_error():
            untrusted.check_sizes(values, "random")
            config = AutoConfig.for_model(kind, **values)
    else:
        config = untrusted.config_of(there(folder))
    with explained(model):
        check_supported(config)
    return config


@contextmanager
def explained(model: ModelConfig) -> Iterator[None]:
    """Says what is wrong with a model that cannot be built: its values in the pair's file, or its folder; and where."""
    random = isinstance(model.source, RandomSource)
    with model.located(), _bad_config_is_an_error() if random else untrusted.damaged(Path(str(model.source))):
        yield


@contextmanager
def _bad_config_is_an_error() -> Iterator[None]:
    """Whatever a transformers config or model says of bad values is a fault of the pair's file."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, CascliError):
        raise
    except Exception as error:
        raise ConfigError(f"random: {type(error).__name__}: {first_line(error)}") from None


def _tokenizer(config: PairConfig, folders: Mapping[str, Path | None], offline: bool) -> tuple[Any, int]:
    """The pair's tokenizer, which is the target's, and how many ids the draft's has in common with it."""
    places = {}
    for role, model in config.models.items():
        place = folders[role]
        if place is None and isinstance(model.source, RandomSource) and model.source.tokenizer:
            place = Path(model.source.tokenizer)
        if place is not None:
            places[role] = place
    if not places:
        tokenizer = byte_tokenizer()
        return tokenizer, len(tokenizer)
    if len(places) == 2 and not same_file(places["draft"], places["target"]):
        draft, target = (untrusted.tokenizer_of(places[role], offline=offline) for role in ("draft", "target"))
        return target, check_same(draft, target)
    tokenizer = untrusted.tokenizer_of(places.get("target") or places["draft"], offline=offline)
    return tokenizer, len(tokenizer)


def _context(configs: Any) -> int | None:
    lengths = [getattr(cfg.get_text_config(), "max_position_embeddings", None) for cfg in configs]
    return min((length for length in lengths if length), default=None)


def there(folder: Path | None) -> Path:
    """The folder that every source but a random one has."""
    if folder is None:
        raise TypeError("a random model has no folder")
    return folder
