"""What is known of a pair before any weights are read: folders, configurations, and the shared vocabulary."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from transformers import CONFIG_MAPPING, AutoConfig, GenerationConfig, PreTrainedConfig

from cascli.config import DraftConfig, ModelConfig, PairConfig, RandomSource
from cascli.errors import CascliError, ConfigError, first_line, suggestion
from cascli.models.cache import check_supported
from cascli.models.contents import Contents
from cascli.models.eagle3.layout import Layout, layout_of
from cascli.models.stages import OnStage, Stage, unseen
from cascli.models.tokenizer import byte_tokenizer, ids_of, same_file, shared_ids, special_ids
from cascli.models.translation import Translation, Vocabulary, file_for
from cascli.weights import untrusted

if TYPE_CHECKING:
    from cascli.weights.store import Report


class Description(NamedTuple):
    """A pair whose weights are on this machine, but not loaded yet."""

    folders: dict[str, Path | None]
    """Folders by role; None for random weights."""
    configs: dict[str, PreTrainedConfig]
    tokenizer: Any | None
    """None for a random pair whose vocabulary is too small for one."""
    vocab: int
    """Number of ids that both models and the tokenizer share; the target's if the draft has its own tokenizer."""
    context: int | None
    """Longest text in tokens that both models accept, or the target if their tokenizers differ; None if unspecified."""
    translation: Translation | None = None
    """Translation between the models' tokenizers, if they differ."""
    head: Layout | None = None
    """Layout of the EAGLE-3 head that drafts instead of a model; the head has no entry in `configs`."""

    def vocab_of(self, role: str) -> int:
        """Number of rows of a model's output matrix that stand for tokens."""
        return self.translation.draft.size if self.translation is not None and role == "draft" else self.vocab

    def special_of_draft(self) -> set[int]:
        """The draft's tokens with a role, such as end of text."""
        if self.translation is not None:
            return self.translation.draft.special
        special = set() if self.tokenizer is None else special_ids(self.tokenizer)
        return special.union(*(ids_of(config.get_text_config().eos_token_id) for config in self.configs.values()))


def describe(
    config: PairConfig, *, offline: bool = False, report: Report | None = None, on_stage: OnStage = unseen
) -> Description:
    """Download missing files, read the configurations, and compare the tokenizers.

    Raises:
        ConfigError: a model of an unsupported kind, or two models that have hardly any tokens in common.
        RunError: weights that are not available.
    """
    if config.draft is not None and config.draft.eagle3 is not None:
        return _with_head(config, config.draft, offline, report, on_stage)
    folders = {role: _folder(model, offline, report) for role, model in config.models.items()}
    configs = {}
    for role, model in config.models.items():
        with model.located():
            configs[role] = _model_config(model, folders[role])
    on_stage(Stage("reading the tokenizer"))
    tokenizer, vocab, translation = _vocabulary(config, folders, configs, offline)
    if translation is not None and configs["draft"].is_encoder_decoder:
        raise ConfigError(
            f"a '{configs['draft'].model_type}' draft reads prompts with its encoder, which cannot take translated"
            " ones;\nchoose a draft with the target's own tokenizer."
        )
    context = context_of(*configs.values()) if translation is None else context_of(configs["target"])
    return Description(folders, configs, tokenizer, vocab, context, translation)


def _with_head(
    config: PairConfig, draft: DraftConfig, offline: bool, report: Report | None, on_stage: OnStage
) -> Description:
    """Describe the target as if it were alone, together with the head that was trained for it."""
    folder = _folder(draft, offline, report)
    alone = describe(config.model_copy(update={"draft": None}), offline=offline, report=report, on_stage=on_stage)
    with draft.located():
        head = layout_of(require_folder(folder), alone.configs["target"])
    return alone._replace(folders={"draft": folder, **alone.folders}, head=head)


def _vocabulary(
    config: PairConfig, folders: Mapping[str, Path | None], configs: Mapping[str, PreTrainedConfig], offline: bool
) -> tuple[Any | None, int, Translation | None]:
    """The tokenizer, the number of ids that it and both models share, and a translation if the tokenizers differ.

    Random models have no tokenizer if their vocabulary is too small for it or if they are configured without one.
    """
    rows = {role: each.get_text_config().vocab_size for role, each in configs.items()}
    least = min(rows.values())
    sources = [model.source for model in config.models.values()]
    if any(isinstance(source, RandomSource) and source.tokenizer is False for source in sources):
        return None, least, None
    tokenizers = _tokenizer_folders(config, folders)
    if not tokenizers:
        tokenizer = byte_tokenizer()
        return (tokenizer, len(tokenizer), None) if len(tokenizer) <= least else (None, least, None)
    tokenizer = untrusted.tokenizer_of(tokenizers.get("target") or tokenizers["draft"], offline=offline)
    if len(tokenizers) == 2 and not same_file(tokenizers["draft"], tokenizers["target"]):
        draft = untrusted.tokenizer_of(tokenizers["draft"], offline=offline)
        shared = shared_ids(draft, tokenizer)
        if shared is None:
            ours, theirs = (
                Vocabulary(Contents(each, rows[role]), _ends(configs[role], folders[role]))
                for role, each in (("draft", draft), ("target", tokenizer))
            )
            translation = Translation(ours, theirs, file_for(tokenizers["draft"], tokenizers["target"], (ours, theirs)))
            return tokenizer, translation.target.size, translation
    else:
        shared = len(tokenizer)
    if len(tokenizer) > least and not any(folders.values()):
        return None, least, None
    return tokenizer, min(least, shared), None


def _ends(config: PreTrainedConfig, folder: Path | None) -> frozenset[int]:
    """The ids that end a model's texts, from its config and, for a folder, also from its generation config."""
    ends = ids_of(config.get_text_config().eos_token_id)
    if folder is not None and (folder / "generation_config.json").is_file():
        ends |= ids_of(GenerationConfig.from_pretrained(folder).eos_token_id)
    return ends


def _folder(model: ModelConfig, offline: bool, report: Report | None) -> Path | None:
    """The model's folder on disk, downloaded first if needed; None for random weights."""
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
            hint = suggestion(str(kind), CONFIG_MAPPING.keys())
            raise ConfigError(f"random: transformers has no model_type '{kind}'{hint}")
        with _bad_config_is_an_error():
            untrusted.check_sizes(values, "random")
            config = AutoConfig.for_model(kind, **values)
            _check_keys(values, config)
    else:
        config = untrusted.config_of(require_folder(folder))
    with explained(model):
        check_supported(config)
    return config


_COMMON = {
    *("attention_bias", "attention_dropout", "dtype", "head_dim", "hidden_act", "hidden_size", "initializer_range"),
    *("intermediate_size", "layer_types", "max_position_embeddings", "mlp_bias", "num_attention_heads"),
    *("num_hidden_layers", "num_key_value_heads", "rms_norm_eps", "rope_scaling", "rope_theta", "sliding_window"),
    *("torch_dtype", "use_cache", *vars(GenerationConfig())),
}
"""Keys that many families share, always accepted: values written for one family may be tried with another."""
_PUBLISHED = {"auto_map", "n_ctx", "n_positions", "quantization_config", "task_specific_params", "tokenizer_class"}
"""Further keys that published config.json files have and nothing reads."""


def _check_keys(values: Mapping[str, Any], config: PreTrainedConfig) -> None:
    """Reject keys that a family's config does not have: transformers would store them and build the default model.

    A key is known if the default config has it, or if setting it changes another key of the config.

    Raises:
        ConfigError: there is an unknown key.
    """
    config_class = type(config)
    known = {*config_class.attribute_map, *inspect.signature(config_class.__init__).parameters, *_COMMON, *_PUBLISHED}
    for key in values:
        if key in known or key.startswith("_"):
            continue
        rest = AutoConfig.for_model(
            config_class.model_type, **{each: value for each, value in values.items() if each != key}
        )
        without, with_key = vars(rest), vars(config)
        if key in without or any(with_key.get(each) != without.get(each) for each in {*with_key, *without} - {key}):
            continue
        hint = suggestion(key, {*without, *known})
        raise ConfigError(f"random: a config of '{config_class.model_type}' has no key '{key}'{hint}")


@contextmanager
def explained(model: ModelConfig) -> Iterator[None]:
    """Report a model that cannot be built as an error located in the pair's file (random weights) or its folder."""
    random = isinstance(model.source, RandomSource)
    with model.located(), _bad_config_is_an_error() if random else untrusted.damaged(Path(str(model.source))):
        yield


@contextmanager
def _bad_config_is_an_error() -> Iterator[None]:
    """Turn any error that transformers raises for bad values into an error of the pair's file."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, CascliError):
        raise
    except Exception as error:
        raise ConfigError(f"random: {type(error).__name__}: {first_line(error)}") from None


def _tokenizer_folders(config: PairConfig, folders: Mapping[str, Path | None]) -> dict[str, Path]:
    """Folders of the models' tokenizers, for the models that have one."""
    tokenizers = {}
    for role, model in config.models.items():
        folder = folders[role]
        if folder is None and isinstance(model.source, RandomSource) and model.source.tokenizer:
            folder = Path(model.source.tokenizer)
        if folder is not None:
            tokenizers[role] = folder
    return tokenizers


def context_of(*configs: PreTrainedConfig) -> int | None:
    """The longest text in tokens that all of these models accept; None if none of them specifies it."""
    lengths = (_context(each.get_text_config()) for each in configs)
    return min((length for length in lengths if length), default=None)


_CONTEXT = ("max_position_embeddings", "max_seq_len", "max_target_positions")
"""Keys of configs for the longest text; the last two are MPT's and Whisper's."""


def _context(config: PreTrainedConfig) -> int | None:
    return next((length for key in _CONTEXT if (length := getattr(config, key, None))), None)


def require_folder(folder: Path | None) -> Path:
    """Return the folder, which every source except a random one has."""
    if folder is None:
        raise TypeError("a random model has no folder")
    return folder
