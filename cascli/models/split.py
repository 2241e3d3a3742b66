"""One model run in two parts: its first n layers read ahead, the others once a block is to be checked.

The exit after n layers, through the model's own final norm and head, is a draft model without weights or a cache of
its own: the keys and values of the first layers are the target's, and so are the hidden states h_n from which the
other layers continue. transformers' own forward runs both parts, including masks, positions and head, while the
unused layers are bypassed. (LayerSkip, Elhoushi et al. 2024, shares them in the same way; transformers'
`assistant_early_exit` computes the first layers twice.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cascli.errors import RunError, UsageError, first_line
from cascli.models.calls import Calls
from cascli.models.runner import NOT_IN_PARTS, Runner
from cascli.models.taps import check_layer, decoder_layers
from cascli.sampling.autoregressive import Sampler
from cascli.trace import ExitInfo

if TYPE_CHECKING:
    from cascli.models.pair import LoadedModel

_TRIED: WeakKeyDictionary[nn.Module, dict[int, bool]] = WeakKeyDictionary()
"""Exit layers after which a model was found to continue from hidden states alone, and whether layers return tuples."""
_TEST_TOKENS = 3
"""Number of tokens of this test."""


@contextmanager
def bypass(
    layers: Sequence[nn.Module], last_output: Callable[[Tensor], Tensor], *, tuples: bool = False
) -> Iterator[None]:
    """Bypass consecutive decoder layers: each returns its input unchanged, the last one `last_output` of its input.

    Not thread-safe: other threads that use the module inside the block see the bypassed layers. `tuples` is whether
    layers return tuples.
    """

    def returning(output_of: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
        def forward(hidden_states: Tensor, *args: object, **more: object) -> Any:
            del args, more
            return (output_of(hidden_states), None) if tuples else output_of(hidden_states)

        return forward

    before = [vars(each).get("forward") for each in layers]
    try:
        for layer in layers[:-1]:
            layer.forward = returning(lambda hidden: hidden)
        layers[-1].forward = returning(last_output)
        yield
    finally:
        for layer, wrapper in zip(layers, before, strict=True):
            del layer.forward
            if wrapper is not None:  # accelerate's wrapper, which moves inputs between devices
                layer.forward = wrapper


class SplitRunner(Runner):
    """The whole model, whose first layers may have read more tokens than the others.

    Every pass of a part sets the number of tokens that it follows, so that rewinding is setting one number for all
    layers. Passes of the whole model, prompts above all, go through its own runner.
    """

    def __init__(self, model: PreTrainedModel, own: Runner, after: int) -> None:
        """Split a model after its first `after` layers; `own` is the runner of the model and has the caches.

        Raises:
            UsageError: the model does not have more layers than that, or its runner can only run it as a whole.
            RunError: the model is not a sequence of layers.
        """
        if not own.in_parts:
            raise UsageError(NOT_IN_PARTS)
        layers = decoder_layers(model)
        check_layer(model, after, len(layers) - 1)
        self._model, self._own, self._after = model, own, after
        self._first, self._others = list(layers)[:after], list(layers)[after:]
        self._tuples = False
        self._length = 0
        self._hidden: Tensor | None = None
        """h_n, `[.., m, width]`, of the m latest tokens, which only the first layers have read."""

    @property
    def length(self) -> int:
        """Number of tokens that all layers have read."""
        return self._length

    @property
    def length_of_first(self) -> int:
        """Number of tokens that the first layers have read."""
        return self._length + (0 if self._hidden is None else self._hidden.shape[-2])

    @torch.inference_mode()
    def forward(self, ids: Tensor, rows: int) -> Tensor:
        """Read `ids` `[n]`; tokens that the first layers have already read continue from their hidden states."""
        ahead, start = self.length_of_first - self._length, self._length
        if ahead == 0:
            self._own.truncate(start)
            logits = self._own.forward(ids, rows)
        else:
            if ids.shape[0] > ahead:
                self.read_first(ids[ahead:], 0)
            hidden, self._hidden = self._hidden, None
            logits = self._read_others(hidden, ids, rows)
        self._length = start + ids.shape[0]
        return logits

    @torch.inference_mode()
    def read_first(self, ids: Tensor, rows: int) -> Tensor:
        """Read `ids` through the first layers only; return the exit's logits `[rows, vocab]` (`rows` may be 0)."""
        new_states = list[Tensor]()

        def keep(hidden: Tensor) -> Tensor:
            new_states.append(hidden)
            return hidden

        with bypass(self._others, keep, tuples=self._tuples):
            logits = self._own.read_at(self.length_of_first, ids, rows)
        self._hidden = torch.cat(new_states if self._hidden is None else [self._hidden, *new_states], dim=-2)
        return logits

    def _read_others(self, hidden: Tensor | None, ids: Tensor, rows: int) -> Tensor:
        if hidden is None or hidden.shape[-2] != ids.shape[0]:
            raise ValueError("the first layers have read different tokens from those that the others are to read")
        with bypass(self._first, lambda _: hidden, tuples=self._tuples):
            return self._own.read_at(self._length, ids, rows)

    @torch.inference_mode()
    def through_head(self, hidden: Tensor, start: int, ids: Tensor) -> Tensor:
        """Logits `[n, vocab]` of the final norm and head for hidden states `[n, width]` after any layer.

        `ids` `[n]` are their tokens, which follow `start` others; caches are not changed.
        """
        with bypass([*self._first, *self._others], lambda _: hidden.unsqueeze(0), tuples=self._tuples):
            return self._own.read_at(start, ids, ids.shape[0])

    def truncate(self, length: int) -> None:
        """Forget everything after the first `length` tokens, in all layers."""
        ahead = max(length - self._length, 0)
        self._length = min(length, self._length)
        if self._hidden is not None:
            self._hidden = self._hidden[..., :ahead, :] if ahead else None

    def place(self, length: int) -> None:
        """Act as if all layers had read `length` tokens, which the runner's own cache holds."""
        self._length, self._hidden = length, None

    def prepare(self, prompt: int, answer: int, calls: Calls, sampler: Sampler | None = None) -> None:
        """Make room, and test once whether the model can be split like this; nothing is captured."""
        del calls, sampler
        self._own.prepare(prompt, answer, Calls())
        known = _TRIED.setdefault(self._model, {})
        if self._after not in known:
            self._try()
            known[self._after] = self._tuples
        self._tuples = known[self._after]
        self.reset()

    def _try(self) -> None:
        """Run a few tokens as a whole and in two parts, which is the same work for every layer.

        Raises:
            RunError: the results differ, because later layers need more than the hidden states.
        """
        kinds = list[type]()
        hook = self._first[0].register_forward_hook(lambda _module, _args, output: kinds.append(type(output)))
        ids = torch.zeros(_TEST_TOKENS, dtype=torch.long)
        with torch.inference_mode():
            try:
                whole = self._own.read_at(0, ids, _TEST_TOKENS).clone()
            finally:
                hook.remove()
            self._tuples = kinds == [tuple]
            self.reset()
            try:
                self.read_first(ids, 0)
                parts, why = self.forward(ids, _TEST_TOKENS), "its later layers need more than hidden states"
            except Exception as error:  # a layer may raise anything for missing inputs
                parts, why = None, first_line(error)
        if parts is None or not torch.allclose(parts, whole, rtol=1e-3, atol=1e-3, equal_nan=True):
            kind = self._model.config.model_type
            raise RunError(f"model type '{kind}' cannot exit early after {self._after} layers: {why}.")


class ExitRunner(Runner):
    """The first layers of a split model with its final norm and head, as a draft model."""

    def __init__(self, whole: SplitRunner, exit: ExitInfo) -> None:
        """Wrap the split model, whose cursor also reads the prompt, and the exit's description."""
        self._whole, self._exit = whole, exit

    @property
    def exit(self) -> ExitInfo:
        """Where it leaves the target."""
        return self._exit

    @property
    def length(self) -> int:
        """Number of tokens that the first layers have read."""
        return self._whole.length_of_first

    def forward(self, ids: Tensor, rows: int) -> Tensor:
        """Read `ids` `[n]` through the first layers; return the exit's logits `[rows, vocab]`."""
        return self._whole.read_first(ids, rows)

    def truncate(self, length: int) -> None:
        """Forget everything after the first `length` tokens, in all layers."""
        self._whole.truncate(length)


def exit_info(target: LoadedModel, layers: int) -> ExitInfo:
    """Describe the exit of a target after its first `layers` layers."""
    depth = target.model.config.get_text_config().num_hidden_layers
    uncaptured = target.device.type == "cuda" and target.eager_because is None
    return ExitInfo(layers=layers, depth=depth, trained=trained_for_exits(target), uncaptured=uncaptured)


def trained_for_exits(target: LoadedModel) -> str | None:
    """Evidence that a checkpoint was trained for early exits; None if there is none.

    The configs of Facebook's LayerSkip checkpoints are those of plain Llamas, so only their names show it; a
    generation config may also specify a layer for transformers' own `assistant_early_exit`.
    """
    named = getattr(target.model.generation_config, "assistant_early_exit", None)
    if named is not None:
        return f"its generation config exits after {named} layers"
    return "LayerSkip, by its name" if "layerskip" in target.source.lower() else None
