"""How to use a strategy here, and in vLLM and transformers where they have an equivalent. No torch.

Based on the documentation and code of vLLM 0.26 (`--speculative-config`) and transformers 5.24 (`generate`).
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from cascli.config import EAGLE3_PREFIX
from cascli.sampling.parameters import Sampling
from cascli.settings import TARGET
from cascli.trace import Data, PairInfo, block_length

NO_RULE = "verification is exact there, and rejects drafts that this rule would keep"
NO_ENCODER = "no support for encoder-decoder text models"
NO_STOP = "no such stop: the best fixed k is used instead"


class Use(Data):
    """How to use a strategy, in cascli and elsewhere."""

    yaml: str
    """The `defaults` section for the pair's file."""
    command: str
    """A `cascli generate` command line."""
    vllm: str | None
    """A `vllm serve` command line; None if vLLM has no equivalent."""
    vllm_note: str | None = None
    """What differs in vLLM, or why it has no equivalent."""
    transformers: str | None
    """Python code that calls `generate`; None if transformers has no equivalent."""
    transformers_note: str | None = None
    """What differs in transformers, or why it has no equivalent."""


def use(
    strategy: str,
    params: Mapping[str, Any],
    pair: PairInfo,
    models: str,
    sampling: Sampling,
    fixed_k: int,
) -> Use:
    """Return how to use a strategy, here and elsewhere.

    Args:
        strategy: the strategy with its parameters.
        params: its parameters by name.
        pair: the models.
        models: flags that select the models, such as `-c PAIR`.
        sampling: how tokens are drawn.
        fixed_k: the k that replaces a stop where stops are not supported.
    """
    temperature, top_k, top_p = sampling.temperature, sampling.top_k, sampling.top_p
    drawn = {"temperature": temperature} | ({"top_k": top_k} if top_k else {}) | ({"top_p": top_p} if top_p < 1 else {})
    nameless = [role.upper() for role, model in pair.models.items() if _model(model.source, "") == ""]
    vllm, vllm_note = _vllm(params, pair, temperature, fixed_k, plain=strategy == TARGET)
    sampled = {"do_sample": True, **asdict(sampling)} if temperature else {"do_sample": False}
    hf, hf_note = _transformers(params, pair, sampled, fixed_k, plain=strategy == TARGET)
    return Use(
        yaml="\n  ".join(
            ["defaults:", f"strategy: {json.dumps(strategy)}", *(f"{key}: {value:g}" for key, value in drawn.items())]
        )
        + "\n",
        command=" ".join(
            [
                f"cascli generate {models} -s {shlex.quote(strategy)}",
                *(f"--{key.replace('_', '-')} {value:g}" for key, value in drawn.items()),
                "PROMPT",
            ]
        ),
        vllm=vllm,
        vllm_note=_with_names(vllm, vllm_note, nameless),
        transformers=hf,
        transformers_note=hf_note,
    )


def _with_names(code: str | None, note: str | None, nameless: list[str]) -> str | None:
    """Add to a note which placeholders in the code stand for models that have no name elsewhere."""
    placeholders = [word for word in nameless if code is not None and word in code]
    hint = f"replace with your own: {' and '.join(placeholders)}" if placeholders else None
    return "; ".join(each for each in (note, hint) if each) or None


Equivalent = tuple[str | None, str | None]
"""A command line or code, and a note."""


def _vllm(params: Mapping[str, Any], pair: PairInfo, temperature: float, fixed_k: int, *, plain: bool) -> Equivalent:
    target = shlex.quote(_model(pair.target.source, "TARGET"))
    if pair.target.encoder is not None:
        return None, NO_ENCODER
    if plain:
        return f"vllm serve {target}", None
    if "rule" in params:
        return None, NO_RULE
    drafter, k = params.get("draft", "model"), _length(params, fixed_k)
    notes = [NO_STOP] if "stop" in params else []
    if drafter == "model":
        if pair.draft is not None and pair.draft.encoder is not None:
            return None, NO_ENCODER
        config, note = _drafting_model(pair, temperature)
        config["num_speculative_tokens"] = k
        notes += [note] if note else []
    elif drafter == "prompt-lookup":
        config = {
            "method": "ngram",
            "num_speculative_tokens": k,
            "prompt_lookup_max": params["max_ngram"],
            "prompt_lookup_min": params["min_ngram"],
        }
    elif drafter == "suffix":
        config = {
            "method": "suffix",
            "num_speculative_tokens": k,
            "suffix_decoding_max_tree_depth": params["max_suffix"],
            "suffix_decoding_max_cached_requests": 0,
        }
        notes.append(
            "needs arctic-inference, and drafts greedily; with more cached requests also copies from other answers"
        )
    else:
        return None, f"no drafter like '{drafter}'"
    if params.get("verify") == "block":
        config["rejection_sample_method"] = "block"
    return f"vllm serve {target} --speculative-config {shlex.quote(json.dumps(config))}", "; ".join(notes) or None


def _drafting_model(pair: PairInfo, temperature: float) -> tuple[dict[str, Any], str | None]:
    """How vLLM is told of the draft model, and what differs there."""
    source = (pair.draft or pair.target).source
    if source.startswith(EAGLE3_PREFIX):
        config: dict[str, Any] = {"method": "eagle3", "model": _model(source.removeprefix(EAGLE3_PREFIX), "DRAFT")}
        greedy = "drafts are the head's best tokens there, and drawn here, so acceptance differs"
        return config, greedy if temperature else None
    config = {"method": "draft_model", "model": _model(source, "DRAFT")}
    if pair.draft_tokenizer_size is not None:
        config["use_heterogeneous_vocab"] = True
        return config, "models with different tokenizers: greedy drafts only, in versions that support it"
    if temperature:
        config["draft_sample_method"] = "probabilistic"
    return config, None


def _transformers(
    params: Mapping[str, Any], pair: PairInfo, sampled: Mapping[str, Any], fixed_k: int, *, plain: bool
) -> Equivalent:
    arguments = dict(sampled)
    if plain:
        return f"target.generate(**inputs, {_keywords(arguments)})", None
    drafter, notes = params.get("draft", "model"), list[str]()
    if "rule" in params:
        if params["rule"] != "mixture" or drafter != "model" or not 0 < params["target_weight"] < 1:
            return None, NO_RULE
        arguments["assistant_ensemble_weight"] = params["target_weight"]
        notes.append("its bonus token follows the target, not the mixture")
    if params.get("verify") == "block":
        notes.append("no block verification: tokens are verified one by one")
    if drafter == "prompt-lookup":
        arguments |= {"prompt_lookup_num_tokens": _length(params, fixed_k)}
        arguments |= {"max_matching_ngram_size": params["max_ngram"]}
        notes += _lookup_differs(params, pair)
        return f"target.generate(**inputs, {_keywords(arguments)})", "; ".join(notes)
    why_not = _no_assistant(drafter, pair)
    if why_not is not None:
        return None, why_not
    drafting, more = _assistant(params, fixed_k)
    assistant, assistant_argument = "assistant", "assistant_model=assistant"
    if drafter == "early-exit":
        assistant, assistant_argument = "target", f"assistant_early_exit={params['layers']}"
        notes.append("the layers before the exit have a separate cache there, and read every token twice")
    elif pair.draft_tokenizer_size is not None:
        notes.append("models with different tokenizers: it drafts differently there (tokenizer=, assistant_tokenizer=)")
    lines = [
        "# read from the assistant's own config, not from generate's arguments",
        f"{assistant}.generation_config.update({_keywords(drafting)})",
        f"target.generate(**inputs, {assistant_argument}, {_keywords(arguments)})",
    ]
    return "\n".join(lines), "; ".join([*notes, *more]) or None


def _lookup_differs(params: Mapping[str, Any], pair: PairInfo) -> list[str]:
    """Return how prompt lookup in transformers differs."""
    alone = ["searches the decoder's text only"] if pair.target.encoder is not None else []
    first = "copies from the first occurrence of the n-gram, not the latest"
    return [*([NO_STOP] if "stop" in params else []), first, *alone]


def _no_assistant(drafter: str, pair: PairInfo) -> str | None:
    """Return why transformers has no assistant for a drafter; None if it has one."""
    if drafter not in ("model", "early-exit"):
        return f"no drafter like '{drafter}'"
    if drafter == "model" and pair.draft is not None and pair.draft.source.startswith(EAGLE3_PREFIX):
        return "no drafting with an EAGLE-3 head"
    if drafter == "model" and pair.draft is not None and (pair.draft.encoder is None) != (pair.target.encoder is None):
        return "no drafting between an encoder-decoder and a decoder-only model"
    return None


def _assistant(params: Mapping[str, Any], fixed_k: int) -> tuple[dict[str, Any], list[str]]:
    """Return the settings with which an assistant drafts, and notes on what differs."""
    constant = {"num_assistant_tokens_schedule": "constant", "assistant_confidence_threshold": 0.0}
    stop = params.get("stop")
    if stop == "heuristic":
        schedule = {"num_assistant_tokens_schedule": "heuristic_transient"}
        return {"num_assistant_tokens": params["start"]} | constant | schedule, []
    if stop == "confidence":
        most = {"num_assistant_tokens": block_length(params)}
        threshold = {"assistant_confidence_threshold": params["least_q"]}
        return most | constant | threshold, ["the threshold adapts automatically where scikit-learn is installed"]
    return {"num_assistant_tokens": _length(params, fixed_k)} | constant, [NO_STOP] if stop else []


def _length(params: Mapping[str, Any], fixed_k: int) -> int:
    """Return a fixed k: the strategy's own, or `fixed_k` if a stop chooses the length."""
    return fixed_k if "stop" in params else int(params["k"])


def _model(source: str, missing: str) -> str:
    """Return a model's name in other tools, or the placeholder `missing` if it has none there."""
    kind, _, name = source.partition(":")
    return name.partition("@")[0] if kind == "hub" else name if kind == "path" else missing


def _keywords(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value!r}" for key, value in values.items())
