"""The engines that are compared: cascli's strategies, and transformers' generate on its own copy of the weights."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from cascli import Pair, Run, generate


class Answer(NamedTuple):
    """What an engine wrote, how long it took including the prompt, and its trace if it keeps one."""

    token_ids: list[int]
    seconds: float
    run: Run | None = None


@dataclass
class Engine:
    """A named function that continues token ids greedily up to a number of tokens, and the answers so far."""

    name: str
    answer: Callable[[Sequence[int], int], Answer]
    answers: list[Answer] = field(default_factory=list)

    def take(self, prompt_ids: Sequence[int], max_new_tokens: int) -> Answer:
        """Answer and keep the answer."""
        found = self.answer(prompt_ids, max_new_tokens)
        self.answers.append(found)
        return found


def of_cascli(pair: Pair, strategy: str, label: str) -> Engine:
    """Return an engine for one of cascli's strategies."""

    def answer(prompt_ids: Sequence[int], tokens: int) -> Answer:
        start = time.perf_counter()
        run = generate(pair, prompt_ids=prompt_ids, strategy=strategy, max_new_tokens=tokens, temperature=0.0)
        return Answer(run.token_ids, time.perf_counter() - start, run)

    return Engine(f"cascli {strategy} {label}", answer)


def of_transformers(
    target: Any, draft: Any | None, k: int | None, eos_ids: Sequence[int], label: str, *, static: bool = False
) -> Engine:
    """Return an engine for transformers' generate.

    With a draft model it is assisted generation with constant k and no confidence threshold. With a `static` cache,
    which assisted generation does not support, generate compiles the model automatically on a GPU.
    """
    more: dict[str, Any] = {}
    if static:
        more = {"cache_implementation": "static"}
        name = "transformers generate, static cache"
    elif draft is not None:
        more = {"assistant_model": draft}
        name = f"transformers assisted k={k}"
    else:
        name = "transformers generate"

    def answer(prompt_ids: Sequence[int], tokens: int) -> Answer:
        if draft is not None:
            draft.generation_config.num_assistant_tokens = k
            draft.generation_config.num_assistant_tokens_schedule = "constant"
            draft.generation_config.assistant_confidence_threshold = 0.0
        ids = torch.tensor([list(prompt_ids)], device=target.device)
        start = time.perf_counter()
        with torch.inference_mode():
            out = target.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=tokens,
                eos_token_id=list(eos_ids) or None,
                pad_token_id=0,
                **more,
            )
        tokens_out = out[0, len(prompt_ids) :].tolist()  # waits for the device
        return Answer(tokens_out, time.perf_counter() - start)

    return Engine(f"{name} {label}", answer)


def load_stock(pair: Pair, dtype: torch.dtype) -> tuple[Any, Any]:
    """Return the pair's target and draft as transformers loads them, with their own copy of the weights.

    Raises:
        SystemExit: the pair's weights are not in a folder on this machine.
    """
    from cascli.weights.untrusted import model_of

    found = []
    for model in (pair.target, pair.draft):
        folder = model.model.config._name_or_path or None
        if not folder:
            raise SystemExit(f"{model.source}: only weights on disk can be loaded twice")
        found.append(model_of(Path(folder), model.model.config, dtype=dtype).to(model.device).eval())
        found[-1].generation_config.repetition_penalty = 1.0
        gc.collect()
    return found[0], found[1]
