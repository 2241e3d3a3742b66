"""From a pair file to a loaded pair: weights, precision, device, and the check that the two models fit together."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from cascli.models.pair import LoadedModel, Pair
from cascli.models.placement import BYTES, DTYPES, choose_device, choose_dtype
from cascli.models.size import is_large, weights_of
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
    bars = notebook.bars() if report is None and on_stage is unseen else None
    if bars is not None:
        report, on_stage = bars.report, bars.stage
    with bars or nullcontext():
        return _load(source, draft, target, device, dtype, offline, cuda_graphs, compile, report, on_stage)


def _load(
    source: str | Path | Mapping[str, Any] | PairConfig | None,
    draft: str | Path | None,
    target: str | Path | None,
    device: str | None,
    dtype: str | None,
    offline: bool | None,
    cuda_graphs: bool | None,
    compile: bool | None,
    report: Report | None,
    on_stage: OnStage,
) -> Pair:
    checked({key: value for key, value in (("device", device), ("dtype", dtype)) if value is not None})
    config = _config(source, draft, target)
    defaults = config.defaults
    where = choose_device(device or defaults.device or "auto")
    offline = defaults.offline or False if offline is None else offline
    description = describe(config, offline=offline, report=report, on_stage=on_stage)
    folders, configs = description.folders, description.configs
    tokenizer, vocab = description.tokenizer, description.vocab
    stages = Stages(on_stage)
    graphs = defaults.cuda_graphs is not False if cuda_graphs is None else cuda_graphs
    compiler = "inductor" if (defaults.compile if compile is None else compile) else None
    whole = {role: model for role, model in config.models.items() if role in configs}
    dtypes = {
        role: _precision(role, model, configs[role], dtype, defaults.dtype, where) for role, model in whole.items()
    }
    cuts = {} if config.draft is None else _cuts(config.draft, description)
    stores = {
        role: store_for(folders[role], precision, cuts[role].digest if role in cuts else "")
        for role, precision in dtypes.items()
        if where.type == "cpu"
    }
    works = [_work(role, model, configs[role], dtypes[role], stores.get(role)) for role, model in whole.items()]
    draft_config, head = config.draft, description.head
    if draft_config is not None and head is not None:
        dtypes["draft"] = precision_of(draft_config, head, dtype, defaults.dtype, where)
        works.append(work_of(head, dtypes["draft"]))
    stages.plan(works)
    models = {}
    for role, model in whole.items():
        stages.begin()
        module = _load_model(
            model, configs[role], folders[role], dtypes[role], where, cuts.get(role), stores.get(role), stages
        )
        if head is None:
            runner, why = choose_runner(module, description.vocab_of(role), where, graphs=graphs, compiler=compiler)
        else:
            runner, why = (
                TappedRunner(module, vocab, where, head.taps),
                TAPPED_IS_EAGER if where.type == "cuda" else None,
            )
        rows = configs[role].get_text_config().vocab_size
        models[role] = LoadedModel(module, runner, _name(model, folders[role]), dtypes[role], where, rows, why)
        if role == "draft" and description.translation is not None:
            models[role].runner = TranslatedRunner(runner, description.translation, context_of(configs[role]))
        stages.end()
    target_model = models["target"]
    eos_ids = _eos_ids(target_model.model, tokenizer if folders["target"] else None)
    if description.translation is None:
        _check_rows(models, len(tokenizer) if tokenizer is not None else target_model.rows, vocab, eos_ids)
    if draft_config is not None and head is not None:
        stages.begin()
        name, head_folder = EAGLE3_PREFIX + _name(draft_config, folders["draft"]), require_folder(folders["draft"])
        models["draft"] = load_head(
            draft_config, name, head_folder, head, dtypes["draft"], target_model, vocab, stages.reached
        )
        stages.end()
    return Pair(
        config=config,
        draft=models.get("draft"),
        target=target_model,
        tokenizer=tokenizer,
        vocab=vocab,
        translation=description.translation,
        eos_ids=eos_ids,
        context=description.context,
        graphs=graph_cache_for(target_model.device, *(model.eager_because for model in models.values())),
    )


def _config(
    source: str | Path | Mapping[str, Any] | PairConfig | None, draft: str | Path | None, target: str | Path | None
) -> PairConfig:
    """The pair that the arguments of `load_pair` specify."""
    if draft is None and target is None:
        return source if isinstance(source, PairConfig) else load_config(DEFAULT_PAIR if source is None else source)
    named = [None if each is None else str(each) for each in (draft, target)]
    return pair_of_models(named[0], named[1], source)


def _precision(
    role: str,
    model: ModelConfig,
    config: PreTrainedConfig,
    override: str | None,
    default: str | None,
    device: torch.device,
) -> str:
    """A model's precision: from the flag, else from its own entry in the pair's file, else the pair's default."""
    requested = override or (model.dtype if model.dtype != "auto" else default or "auto")
    with explained(model):
        large = requested == "auto" and role == "draft" and is_large(config)
    overflows = None if not config.is_encoder_decoder else f"models of type '{config.model_type}'"
    return choose_dtype(requested, device, may_round=large, overflows=overflows)


def _work(role: str, model: ModelConfig, config: PreTrainedConfig, dtype: str, store: PackedStore | None) -> Work:
    """The work of loading a model, for progress displays."""
    with explained(model):
        weights = weights_of(config)
    packs = dtype == "int8" or (weights >= size.LARGE and store is not None)
    verb = "packing" if packs and not (store is not None and store.is_usable) else "reading"
    return Work(role, verb, weights, BYTES[dtype], config.get_text_config().num_hidden_layers)


def _cuts(draft: DraftConfig, description: Description) -> dict[str, Cut]:
    """The cut of the draft model's head, if the pair's file specifies one; special tokens are always kept."""
    if draft.vocab is None:
        return {}
    rows = description.configs["draft"].get_text_config().vocab_size
    return {"draft": Cut.of(draft.vocab, rows, description.special_of_draft(), draft.key("vocab"))}


def _load_model(
    model: ModelConfig,
    config: PreTrainedConfig,
    folder: Path | None,
    dtype: str,
    device: torch.device,
    cut: Cut | None,
    store: PackedStore | None,
    stages: Stages,
) -> PreTrainedModel:
    """Load the model onto its device, with the kernels that it runs with."""
    try:
        if device.type == "cpu":
            module = _on_cpu(model, config, folder, dtype, cut, store, stages)
        else:
            module = _module(model, config, folder, DTYPES[dtype], device)
            if cut is not None:
                cut_head(module, cut)
    except torch.OutOfMemoryError as error:
        raise RunError(f"not enough memory on {device} for {model.source} in {dtype}: {error}") from None
    except ImportError as error:
        raise RunError(f"{model.source}: {first_line(error)}") from None
    except ConfigError:
        raise
    except Exception as error:  # a damaged file may raise anything in its readers
        if isinstance(error, RunError) or isinstance(model.source, RandomSource):
            raise
        raise RunError(f"{model.source}: the weights cannot be loaded: {first_line(error)[:300]}") from None
    module.eval().requires_grad_(False)
    keep_caps(module)
    return module


def _name(model: ModelConfig, folder: Path | None) -> str:
    """The source and, for a hub repository, the loaded commit: a branch moves, and results should not."""
    source = str(model.source)
    pinned = isinstance(model.source, HubSource) and model.source.revision == getattr(folder, "name", "")
    return f"{source}#{folder.name}" if isinstance(model.source, HubSource) and folder and not pinned else source


def _on_cpu(
    model: ModelConfig,
    config: PreTrainedConfig,
    folder: Path | None,
    dtype: str,
    cut: Cut | None,
    store: PackedStore | None,
    stages: Stages,
) -> PreTrainedModel:
    """Load the model with the fastest kernels of `dtype`; weights are read one by one if the folder allows it."""
    work = working_dtype(dtype)
    opened = None if folder is None else open_checkpoint(config, folder, work)
    if opened is None:
        module = _module(model, config, folder, work, torch.device("cpu"))
        if cut is not None:
            cut_head(module, cut)
        fit(module, dtype, None, None, stages.reached)
        choose_rows(module)
        return module
    module, read = opened
    if cut is not None:
        read = cut_head(module, cut, read) or read
    fit(module, dtype, read, store, stages.reached)
    if store is not None and store.needs(module):
        stages.report("saving the packed weights for the next start")
        store.save(module)
    choose_rows(module)
    return module


def _module(
    model: ModelConfig, config: PreTrainedConfig, folder: Path | None, dtype: torch.dtype, device: torch.device
) -> PreTrainedModel:
    if isinstance(model.source, RandomSource):
        with explained(model):
            return _random(config, model.source.seed, dtype, device)
    if model.device_map is not None and device.type == "cuda":
        return untrusted.model_of(require_folder(folder), config, dtype=dtype, device_map=model.device_map)
    return untrusted.model_of(require_folder(folder), config, dtype=dtype).to(device)


def _random(config: PreTrainedConfig, seed: int, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """A model with weights drawn from `seed`; torch's global random state is restored afterwards."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.device(device):
        torch.manual_seed(seed)
        model: PreTrainedModel = untrusted.auto_class(config).from_config(config, dtype=dtype)
        return model


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
