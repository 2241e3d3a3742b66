"""From a pair file to a loaded pair: weights, precision, device, and the check that the two models fit together."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from cascli import notebook
from cascli.config import (
    DEFAULT_PAIR,
    EAGLE3_PREFIX,
    DraftConfig,
    HubSource,
    ModelConfig,
    PairConfig,
    RandomSource,
    load_config,
    pair_of_models,
)
from cascli.errors import ConfigError, PairWarning, RunError, first_line
from cascli.models import size
from cascli.models.checkpoint import open_checkpoint
from cascli.models.choose_runner import choose_runner, graph_cache_for
from cascli.models.cpu.fit import fit, store_for, working_dtype
from cascli.models.cpu.packed_linear import choose_rows
from cascli.models.cpu.packed_store import PackedStore
from cascli.models.cpu.row_attention import keep_caps
from cascli.models.cut_head import Cut, cut_head
from cascli.models.description import Description, context_of, describe, explained, require_folder
from cascli.models.eagle3.head import Network
from cascli.models.eagle3.loading import TAPPED_IS_EAGER, load_head, precision_of, work_of
from cascli.models.eagle3.runners import TappedRunner
from cascli.models.gpu.self_test import check_kernels
from cascli.models.memory import check_weights
from cascli.models.pair import LoadedModel, Pair
from cascli.models.placement import BYTES, DTYPES, choose_device, choose_dtype
from cascli.models.rotary import changes_at
from cascli.models.size import has_experts, weights_of
from cascli.models.stages import OnStage, Stages, Work, unseen
from cascli.models.tokenizer import ids_of
from cascli.models.translated_runner import TranslatedRunner
from cascli.settings import checked
from cascli.weights import untrusted

if TYPE_CHECKING:
    from cascli.weights.store import Report


def load_pair(
    source: str | Path | Mapping[str, Any] | PairConfig | None = None,
    *,
    draft: str | Path | None = None,
    target: str | Path | None = None,
    device: str | None = None,
    dtype: str | None = None,
    offline: bool | None = None,
    cuda_graphs: bool | None = None,
    compile: bool | None = None,
    report: Report | None = None,
    on_stage: OnStage = unseen,
) -> Pair:
    """Load a pair by name, by the path of a YAML file, from a mapping with the same keys, or from two models.

    Args:
        source: the pair; if neither a pair nor models are given, the default pair.
        draft: a model folder, a .gguf file or a hub repository that replaces the pair's draft model.
        target: a model folder, a .gguf file or a hub repository that replaces the pair's target; without `source`,
            give both models, or the target alone.
        device: `auto`, `cpu`, `cuda` or `cuda:1`; overrides the pair's default.
        dtype: `auto`, `float32`, `bfloat16`, `float16` or `int8` for both models; overrides the pair's default.
        offline: fail rather than download.
        cuda_graphs: capture decoding steps on a GPU where the model allows it (default).
        compile: compile these steps with torch.compile first; takes about a minute on the first start, less later.
        report: called with download and conversion progress.
        on_stage: called with the loading stage once the weights are on this machine.

    Raises:
        ConfigError: a bad pair file, or two models that have hardly any tokens in common.
        RunError: weights, memory or device are not available.
    """
    checked({key: value for key, value in (("device", device), ("dtype", dtype)) if value is not None})
    config = _config(source, draft, target)
    defaults = config.defaults
    where = choose_device(device or defaults.device or "auto")
    bars = notebook.bars() if report is None and on_stage is unseen else None
    if bars is not None:
        report, on_stage = bars.report, bars.stage
    with bars or nullcontext():
        offline = defaults.offline or False if offline is None else offline
        return _load(
            config,
            describe(config, offline=offline, report=report, on_stage=on_stage),
            where,
            dtype,
            graphs=defaults.cuda_graphs is not False if cuda_graphs is None else cuda_graphs,
            compiler="inductor" if (defaults.compile if compile is None else compile) else None,
            stages=Stages(on_stage),
        )


class _Part(NamedTuple):
    """A model of the pair, and how it is loaded."""

    role: str
    model: ModelConfig
    config: PreTrainedConfig
    folder: Path | None
    dtype: str
    device: torch.device
    cut: Cut | None
    """What its head is cut to."""
    store: PackedStore | None
    """Keeps its packed layers between starts."""
    weights: int
    """Number of its weights."""

    @classmethod
    def of(
        cls, role: str, config: PairConfig, description: Description, dtype: str | None, device: torch.device
    ) -> Self:
        """Build it; the precision is that of the flag `dtype`, else its own in the pair's file, else the pair's.

        The special tokens of a draft whose head is cut are always kept.
        """
        model, model_config, folder = config.models[role], description.configs[role], description.folders[role]
        requested = model.requested_dtype(dtype, config.defaults.dtype)
        experts = has_experts(model_config.get_text_config())
        with explained(model):
            weights = weights_of(model_config)
        models = f"models of type '{model_config.model_type}'"
        precision = choose_dtype(
            requested,
            device,
            may_round=role == "draft" and not experts and weights >= size.LARGE,
            overflows=models if model_config.is_encoder_decoder else None,
            experts_of=models if experts else None,
        )
        cut = None
        if isinstance(model, DraftConfig) and model.vocab is not None:
            rows = model_config.get_text_config().vocab_size
            cut = Cut.of(model.vocab, rows, description.special_of_draft(), model.key("vocab"))
            if description.translation is not None:
                description.translation.check_cut(cut.ids, model.key("vocab"))
        store = store_for(folder, precision, cut.digest if cut else "") if device.type == "cpu" else None
        return cls(role, model, model_config, folder, precision, device, cut, store, weights)

    @property
    def large(self) -> bool:
        """Whether its layers are worth packing."""
        return self.weights >= size.LARGE

    @property
    def work(self) -> Work:
        """The work of loading it, for progress displays."""
        packs = self.dtype == "int8" or (self.large and self.store is not None)
        verb = "packing" if packs and not (self.store is not None and self.store.is_usable) else "reading"
        return Work(self.role, verb, self.weights, BYTES[self.dtype], self.config.get_text_config().num_hidden_layers)


def _load(
    config: PairConfig,
    description: Description,
    device: torch.device,
    dtype: str | None,
    *,
    graphs: bool,
    compiler: str | None,
    stages: Stages,
) -> Pair:
    folders, vocab, tokenizer = description.folders, description.vocab, description.tokenizer
    parts = [_Part.of(role, config, description, dtype, device) for role in description.configs]
    works = [part.work for part in parts]
    draft, head, head_dtype = config.draft, description.head, ""
    if draft is not None and head is not None:
        head_dtype = precision_of(draft, head, dtype, config.defaults.dtype, device)
        works.append(work_of(head, head_dtype))
    stages.plan(works)
    if device.type == "cuda":
        rows = getattr(parts[-1].config.get_text_config(), "vocab_size", vocab)
        _test_kernels(device, vocab, DTYPES[parts[-1].dtype], rows)
    models = {}
    for part in parts:
        stages.begin()
        models[part.role] = _loaded(part, description, stages, graphs=graphs, compiler=compiler)
        stages.end()
    _check_angles(description.configs)
    target = models["target"]
    _check_generation(target)
    eos_ids = _eos_ids(target.model, tokenizer if folders["target"] else None)
    if description.translation is None:
        _check_rows(models, len(tokenizer) if tokenizer is not None else target.rows, vocab, eos_ids)
    if draft is not None and head is not None:
        stages.begin()
        name, folder = EAGLE3_PREFIX + _name(draft, folders["draft"]), require_folder(folders["draft"])
        models["draft"] = load_head(draft, name, folder, head, head_dtype, target, vocab, stages.reached)
        stages.end()
    return Pair(
        config=config,
        draft=models.get("draft"),
        target=target,
        tokenizer=tokenizer,
        vocab=vocab,
        translation=description.translation,
        eos_ids=eos_ids,
        context=description.context,
        graphs=graph_cache_for(target.device, *(model.eager_because for model in models.values())),
    )


def _test_kernels(device: torch.device, vocab: int, dtype: torch.dtype, rows: int) -> None:
    """Test the kernels before anything uses them; warn if there are none, or none that work."""
    why = check_kernels(device, vocab, dtype, rows)
    if why is not None:
        text = f"no Triton kernels, so torch's own operations are used instead (slower): {why}"
        warnings.warn(text, PairWarning, stacklevel=4)


def _loaded(
    part: _Part, description: Description, stages: Stages, *, graphs: bool, compiler: str | None
) -> LoadedModel:
    """Load a model, with the runner that decodes with it."""
    module, device = _load_model(part, stages), part.device
    if description.head is None:
        vocab = description.vocab_of(part.role)
        try:
            runner, why = choose_runner(module, vocab, device, graphs=graphs, compiler=compiler)
        except torch.OutOfMemoryError as error:
            raise RunError(f"not enough memory on {device} beside {part.model.source}: {first_line(error)}") from None
    else:
        runner = TappedRunner(module, description.vocab, device, description.head.taps)
        why = TAPPED_IS_EAGER if device.type == "cuda" else None
    if part.role == "draft" and description.translation is not None:
        runner = TranslatedRunner(runner, description.translation, context_of(part.config))
    rows = part.config.get_text_config().vocab_size
    return LoadedModel(module, runner, _name(part.model, part.folder), part.dtype, device, rows, why)


def _config(
    source: str | Path | Mapping[str, Any] | PairConfig | None, draft: str | Path | None, target: str | Path | None
) -> PairConfig:
    """The pair that the arguments of `load_pair` specify."""
    if draft is None and target is None:
        return source if isinstance(source, PairConfig) else load_config(DEFAULT_PAIR if source is None else source)
    named = [None if each is None else str(each) for each in (draft, target)]
    return pair_of_models(named[0], named[1], source)


def _load_model(part: _Part, stages: Stages) -> PreTrainedModel:
    """Load the model onto its device, with the kernels that it runs with."""
    source = part.model.source
    try:
        if part.device.type == "cpu":
            _check_memory(part)
            module = _on_cpu(part, stages)
        else:
            module = _module(part, DTYPES[part.dtype])
            if part.cut is not None:
                cut_head(module, part.cut)
    except torch.OutOfMemoryError as error:
        raise RunError(f"not enough memory on {part.device} for {source} in {part.dtype}: {error}") from None
    except ImportError as error:
        raise RunError(f"{source}: {first_line(error)}") from None
    except ConfigError:
        raise
    except Exception as error:  # a damaged file may raise anything in its readers
        if isinstance(error, RunError) or isinstance(source, RandomSource):
            raise
        raise RunError(f"{source}: the weights cannot be loaded: {first_line(error)[:300]}") from None
    module.eval().requires_grad_(False)
    keep_caps(module)
    return module


def _name(model: ModelConfig, folder: Path | None) -> str:
    """The source and, for a hub repository, the loaded commit: a branch moves, and results should not."""
    source = str(model.source)
    pinned = isinstance(model.source, HubSource) and model.source.revision == getattr(folder, "name", "")
    return f"{source}#{folder.name}" if isinstance(model.source, HubSource) and folder and not pinned else source


def _on_cpu(part: _Part, stages: Stages) -> PreTrainedModel:
    """Load the model with the fastest kernels of its precision; weights are read one by one if the folder allows it."""
    work = working_dtype(part.dtype)
    opened = None if part.folder is None else open_checkpoint(part.config, part.folder, work)
    if opened is None:
        module = _module(part, work)
        if part.cut is not None:
            cut_head(module, part.cut)
        fit(module, part.dtype, None, None, stages.reached, part.large)
        choose_rows(module)
        return module
    module, read = opened
    if part.cut is not None:
        read = cut_head(module, part.cut, read) or read
    fit(module, part.dtype, read, part.store, stages.reached, part.large)
    if part.store is not None and part.store.needs(module):
        stages.report("saving the packed weights for the next start")
        part.store.save(module)
    choose_rows(module)
    return module


def _check_memory(part: _Part) -> None:
    """Reject or warn of weights that do not fit; random ones are drawn in the precision that the model works in."""
    source, drawn = part.model.source, isinstance(part.model.source, RandomSource)
    dtype = str(working_dtype(part.dtype)).removeprefix("torch.") if drawn else part.dtype
    check_weights(source, part.weights * BYTES[dtype], dtype, drawn=drawn)


def _module(part: _Part, dtype: torch.dtype) -> PreTrainedModel:
    source, device_map = part.model.source, part.model.device_map
    if isinstance(source, RandomSource):
        with explained(part.model):
            return _random(part.config, source.seed, dtype, part.device)
    folder = require_folder(part.folder)
    if device_map is not None and part.device.type == "cuda":
        return untrusted.model_of(folder, part.config, dtype=dtype, device_map=device_map)
    return untrusted.model_of(folder, part.config, dtype=dtype).to(part.device)


def _random(config: PreTrainedConfig, seed: int, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """A model with weights drawn from `seed`; torch's global random state is restored afterwards."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.device(device):
        torch.manual_seed(seed)
        model: PreTrainedModel = untrusted.auto_class(config).from_config(config, dtype=dtype)
        return model


def _check_angles(configs: Mapping[str, PreTrainedConfig]) -> None:
    """Warn if a model's position encoding changes within its context."""
    for role, config in configs.items():
        length = changes_at(config.get_text_config())
        if length is not None:
            text = (
                f"the {role} model's position encoding changes at {length:,} tokens: beyond them, the answer to a"
                " shorter prompt keeps the angles of what it has read"
            )
            warnings.warn(text, PairWarning, stacklevel=4)


_FORCING = (
    *("forced_bos_token_id", "forced_eos_token_id", "suppress_tokens", "begin_suppress_tokens", "bad_words_ids"),
    *("min_length", "min_new_tokens", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "sequence_bias"),
    *("exponential_decay_length_penalty", "watermarking_config"),
)
"""Settings of a generation config that force, forbid or favour tokens, if they are set and neither 0 nor empty."""


def _check_generation(target: LoadedModel) -> None:
    """Warn if transformers' `generate` would change the target's distributions by settings in its folder.

    How to sample, including penalties of repetition, is not read from there at all, and is no reason to warn.
    """
    generation = getattr(target.model, "generation_config", None)
    found = [name for name in _FORCING if getattr(generation, name, None)]
    if found:
        text = (
            f"{target.source}: its generation_config.json sets {', '.join(found)}, which transformers' generate"
            " applies; here answers follow the model's own distributions"
        )
        warnings.warn(text, PairWarning, stacklevel=4)


def _check_rows(models: Mapping[str, LoadedModel], tokens: int, vocab: int, eos_ids: frozenset[int]) -> None:
    """Warn if a model has fewer rows than there are tokens: the tokens beyond them are cut off in both models.

    Raises:
        ConfigError: a token that ends the target's texts would be cut off.
    """
    if tokens <= vocab:
        return
    smaller = min(models, key=lambda role: models[role].rows)
    count, rows = tokens - vocab, models[smaller].rows
    cut = f"the {smaller} model has {rows} rows, so {count} tokens, from id {vocab} onwards, are cut off"
    lost = sorted(token for token in eos_ids if vocab <= token < tokens)
    if lost:
        raise ConfigError(
            f"{cut}: among them {lost[0]}, which ends the target's texts.\nChoose models that share a vocabulary."
        )
    warnings.warn(f"{cut} both models; 'lossless' and TV refer to the target without them", PairWarning, stacklevel=3)


def _eos_ids(target: Network, tokenizer: Any | None) -> frozenset[int]:
    """The ids that end a text: those at which transformers' `generate` would stop for the target.

    If a model folder specifies none, its tokenizer's is used. A random model uses its config, including transformers'
    default for the family (2 for Llama); `eos_token_id: null` disables it.
    """
    generation = getattr(target, "generation_config", None)
    eos = getattr(generation, "eos_token_id", None)
    if eos is None:
        eos = getattr(target.config.get_text_config(), "eos_token_id", None)
    if eos is None and tokenizer is not None:
        eos = tokenizer.eos_token_id
    return ids_of(eos)
