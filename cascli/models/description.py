"""What is known of a pair before any weight is read: folders, configurations, and the vocabulary that is shared."""

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
    """A pair whose weights are on this machine, and not yet read."""

    folders: dict[str, Path | None]
    """By role; None for random weights."""
    configs: dict[str, PreTrainedConfig]
    tokenizer: Any | None
    """None for a random pair whose vocabulary is too small for one."""
    vocab: int
    """How many ids both models and the tokenizer share; the target's, where the draft has a tokenizer of its own."""
    context: int | None
    """Longest text in tokens that both models take, a draft with tokens of its own aside; None if they do not say."""
    translation: Translation | None = None
    """Between the models' tokenizers, where they differ."""
    head: Layout | None = None
    """Of the EAGLE-3 head that drafts in the place of a model, which has no config here."""

    def vocab_of(self, role: str) -> int:
        """How many rows of a model's output matrix stand for tokens."""
        return self.translation.draft.size if self.translation is not None and role == "draft" else self.vocab

    def special_of_draft(self) -> set[int]:
        """The draft's tokens with a role, such as to end texts."""
        if self.translation is not None:
            return self.translation.draft.special
        special = set() if self.tokenizer is None else special_ids(self.tokenizer)
        return special.union(*(ids_of(config.get_text_config().eos_token_id) for config in self.configs.values()))


def describe(
    config: PairConfig, *, offline: bool = False, report: Report | None = None, on_stage: OnStage = unseen
) -> Description:
    """Fetch what is not there yet, read the configurations, and compare the tokenizers.

    Raises:
        ConfigError: a model of a kind that cascli does not run, or two models that have hardly a token in common.
        RunError: weights that are not to be had.
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
            f"a '{configs['draft'].model_type}' draft reads prompts with its encoder, which takes no translated ones;\n"
            "choose a draft with the target's own tokenizer."
        )
    context = context_of(*configs.values()) if translation is None else context_of(configs["target"])
    return Description(folders, configs, tokenizer, vocab, context, translation)


def _with_head(
    config: PairConfig, draft: DraftConfig, offline: bool, report: Report | None, on_stage: OnStage
) -> Description:
    """The target as if it stood alone, and the head that was made for it."""
    folder = _folder(draft, offline, report)
    alone = describe(config.model_copy(update={"draft": None}), offline=offline, report=report, on_stage=on_stage)
    with draft.located():
        head = layout_of(there(folder), alone.configs["target"])
    return alone._replace(folders={"draft": folder, **alone.folders}, head=head)


def _vocabulary(
    config: PairConfig, folders: Mapping[str, Path | None], configs: Mapping[str, PreTrainedConfig], offline: bool
) -> tuple[Any | None, int, Translation | None]:
    """The tokenizer, how many ids it and both models share, and a translation where they do not share them.

    No tokenizer for random models too small for it, or told so.
    """
    rows = {role: each.get_text_config().vocab_size for role, each in configs.items()}
    least = min(rows.values())
    sources = [model.source for model in config.models.values()]
    if any(isinstance(source, RandomSource) and source.tokenizer is False for source in sources):
        return None, least, None
    places = _places(config, folders)
    if not places:
        tokenizer = byte_tokenizer()
        return (tokenizer, len(tokenizer), None) if len(tokenizer) <= least else (None, least, None)
    tokenizer = untrusted.tokenizer_of(places.get("target") or places["draft"], offline=offline)
    if len(places) == 2 and not same_file(places["draft"], places["target"]):
        draft = untrusted.tokenizer_of(places["draft"], offline=offline)
        shared = shared_ids(draft, tokenizer)
        if shared is None:
            ours, theirs = (
                Vocabulary(Contents(each, rows[role]), _ends(configs[role], folders[role]))
                for role, each in (("draft", draft), ("target", tokenizer))
            )
            translation = Translation(ours, theirs, file_for(places["draft"], places["target"], (ours, theirs)))
            return tokenizer, translation.target.size, translation
    else:
        shared = len(tokenizer)
    if len(tokenizer) > least and not any(folders.values()):
        return None, least, None
    return tokenizer, min(least, shared), None


def _ends(config: PreTrainedConfig, folder: Path | None) -> frozenset[int]:
    """The ids that end a model's texts, by its config and, of a folder, by how it is said to generate."""
    ends = ids_of(config.get_text_config().eos_token_id)
    if folder is not None and (folder / "generation_config.json").is_file():
        ends |= ids_of(GenerationConfig.from_pretrained(folder).eos_token_id)
    return ends


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
            hint = suggestion(str(kind), CONFIG_MAPPING.keys())
            raise ConfigError(f"random: transformers has no model_type '{kind}'{hint}")
        with _bad_config_is_an_error():
            untrusted.check_sizes(values, "random")
            config = AutoConfig.for_model(kind, **values)
            _check_keys(values, config)
    else:
        config = untrusted.config_of(there(folder))
    with explained(model):
        check_supported(config)
    return config


_COMMON = {
    *("attention_bias", "attention_dropout", "dtype", "head_dim", "hidden_act", "hidden_size", "initializer_range"),
    *("intermediate_size", "layer_types", "max_position_embeddings", "mlp_bias", "num_attention_heads"),
    *("num_hidden_layers", "num_key_value_heads", "rms_norm_eps", "rope_scaling", "rope_theta", "sliding_window"),
    *("torch_dtype", "use_cache", *vars(GenerationConfig())),
}
"""Names that many families share: shapes that are written for one are tried with others, which have no use for some."""
_PUBLISHED = {"auto_map", "n_ctx", "n_positions", "quantization_config", "task_specific_params", "tokenizer_class"}
"""What published config.json files have beside these, and nothing reads."""


def _check_keys(values: Mapping[str, Any], config: PreTrainedConfig) -> None:
    """Refuse what a family's config does not have: transformers keeps it, and builds the default in its place.

    A key is known if the config has it without being told, or is another one with it.

    Raises:
        ConfigError: there is a key that is neither.
    """
    kind = type(config)
    known = {*kind.attribute_map, *inspect.signature(kind.__init__).parameters, *_COMMON, *_PUBLISHED}
    for key in values:
        if key in known or key.startswith("_"):
            continue
        rest = AutoConfig.for_model(kind.model_type, **{each: value for each, value in values.items() if each != key})
        without, told = vars(rest), vars(config)
        if key in without or any(told.get(each) != without.get(each) for each in {*told, *without} - {key}):
            continue
        hint = suggestion(key, {*without, *known})
        raise ConfigError(f"random: a config of '{kind.model_type}' has no key '{key}'{hint}")


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


def _places(config: PairConfig, folders: Mapping[str, Path | None]) -> dict[str, Path]:
    """Where the models' tokenizers are, of those that name one."""
    places = {}
    for role, model in config.models.items():
        place = folders[role]
        if place is None and isinstance(model.source, RandomSource) and model.source.tokenizer:
            place = Path(model.source.tokenizer)
        if place is not None:
            places[role] = place
    return places


def context_of(*configs: PreTrainedConfig) -> int | None:
    """The longest text in tokens that all of these models take; None if none of them says."""
    lengths = [getattr(each.get_text_config(), "max_position_embeddings", None) for each in configs]
    return min((length for length in lengths if length), default=None)


def there(folder: Path | None) -> Path:
    """The folder that every source but a random one has."""
    if folder is None:
        raise TypeError("a random model has no folder")
    return folder
