"""Tiny random pairs in float64, and the reference's laws for them, from plain transformers forwards."""

from functools import cache
from typing import Any

import numpy as np
import torch

from cascli import generate, load_pair
from cascli.models.pair import LoadedModel, Pair
from cascli.models.runner import Runner
from cascli.rules import Rule
from cascli.sampling.distributions import Dists
from cascli.strategies import Strategy
from tests.laws.integration import exact_law
from tests.reference import process
from tests.reference.distributions import softmax, warp
from tests.reference.process import Law, Tables, Target, Tokens

PROMPT = (1, 2)


@cache
def tiny_pair(vocab: int = 3, layers: int = 1) -> Pair:
    """Two random llamas that disagree, in float64."""
    shape = {
        "model_type": "llama",
        "vocab_size": vocab,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 128,
        "initializer_range": 0.6,
        "eos_token_id": None,
        "bos_token_id": None,
    }
    seeds = {"draft": 5, "target": 6}
    pair = load_pair({role: {"source": {"random": shape, "seed": seed}} for role, seed in seeds.items()})
    for loaded in (pair.draft, pair.target):
        loaded.model.double()
        loaded.model.lm_head.weight.mul_(0.6)  # flatter, so that every branch of a tree of texts gets some weight
    return pair


class Remembering(Runner):
    """Computes a model's logits once per text, without a cache: an enumeration reads few texts, each of them often."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._model, self._text = loaded.model, list[int]()
        self._known: dict[Tokens, torch.Tensor] = {}

    @property
    def length(self) -> int:
        return len(self._text)

    def forward(self, ids: torch.Tensor, rows: int) -> torch.Tensor:
        self._text += ids.tolist()
        text = tuple(self._text)
        if text not in self._known:
            with torch.inference_mode():
                self._known[text] = self._model(input_ids=torch.tensor([text]), use_cache=False).logits[0]
        return self._known[text][-rows:]

    def truncate(self, length: int) -> None:
        assert 0 <= length <= len(self._text), "what was not read cannot be kept"
        del self._text[length:]


def remembering(pair: Pair) -> Pair:
    """The pair, with runners that share nothing with those of a real run but the weights."""
    return pair.with_runners({role: Remembering(loaded) for role, loaded in pair.models.items()})


@cache
def logits(vocab: int, layers: int, prefix: Tokens) -> tuple[np.ndarray, np.ndarray]:
    """Draft and target logits after the prompt and a prefix: one full forward each, without a cache."""
    pair, ids = tiny_pair(vocab, layers), torch.tensor([[*(t % vocab for t in PROMPT), *prefix]])
    with torch.inference_mode():
        x, y = (side.model(input_ids=ids, use_cache=False).logits for side in (pair.draft, pair.target))
    return x[0, -1].numpy(), y[0, -1].numpy()


def pi_of(rule: Rule) -> Target:
    """The pi of one of cascli's own rules, as a function of one pair of distributions."""

    def pi(pair: process.Pair) -> np.ndarray:
        return rule.apply(Dists(*(torch.tensor(row).unsqueeze(0) for row in pair)))[0].numpy()

    return pi


def model_tables(vocab: int, layers: int, **sampling: Any) -> Tables:
    """The reference's distributions after every prefix."""

    @cache
    def tables(prefix: Tokens) -> process.Pair:
        x, y = logits(vocab, layers, prefix)
        return process.Pair(warp(x, **sampling), warp(y, **sampling), softmax(x), softmax(y))

    return tables


def engine_law(
    strategy: str | Strategy, length: int, vocab: int = 3, layers: int = 1, *, caches: bool = True, **sampling: Any
) -> Law:
    """The exact joint law of the text that the engine writes.

    Args:
        strategy: as for `generate`.
        length: of the text.
        vocab: of the models.
        layers: of the models.
        caches: whether the models read with their real caches, which takes three times as long.
        sampling: as for `generate`.
    """
    prompt = [t % vocab for t in PROMPT]
    pair = tiny_pair(vocab, layers)
    if not caches:
        pair = remembering(pair)

    def run(uniforms: Any) -> Tokens:
        result = generate(
            pair, prompt_ids=prompt, strategy=strategy, max_new_tokens=length, uniforms=uniforms, **sampling
        )
        return tuple(result.token_ids)

    return exact_law(run)


def reference_law(target: Target, length: int, vocab: int = 3, layers: int = 1, **sampling: Any) -> Law:
    """The law of the sequential cascade by the reference."""
    return process.sequential_law(model_tables(vocab, layers, **sampling), target, length)
