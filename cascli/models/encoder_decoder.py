"""A runner of encoder-decoder models (T5): the prompt is read once by the encoder, the answer written by the decoder.

The encoder's states, and the keys and values that every decoder layer computes from them, are kept from `begin` until
the next prompt; rewinding only affects the decoder's own cache. The decoder's input begins with its start token, so an
answer is empty at first, whatever the prompt.
"""

from __future__ import annotations

import inspect

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from cascli.errors import RunError
from cascli.models.cache import RewindCache, cache_name
from cascli.models.runner import Runner


class EncoderDecoderRunner(Runner):
    """Counts the prompt's tokens and the decoder's in its length, because a step attends to all of them.

    `vocab` limits the logits to those of the tokenizer's tokens.
    """

    def __init__(self, model: PreTrainedModel, vocab: int, device: torch.device) -> None:
        """Wrap a model prepared by `ready`."""
        self.model = model
        self.vocab = vocab
        self.device = device
        self._input_device = model.get_input_embeddings().weight.device
        self._start = torch.tensor([start_token(model)], device=device)
        self._written = RewindCache(model.decoder.config)
        self._cache_name = cache_name(inspect.signature(model.forward).parameters)
        self._forget()

    def _forget(self) -> None:
        self._states: Tensor | None = None
        """The encoder's states, `[1, n, width]`."""
        self._caches = EncoderDecoderCache(self._written, DynamicCache())
        self._is_filled = False

    def fresh(self) -> EncoderDecoderRunner:
        """Another runner of the same weights."""
        return EncoderDecoderRunner(self.model, self.vocab, self.device)

    @property
    def encoded(self) -> int:
        """Number of prompt tokens that the encoder has read."""
        return 0 if self._states is None else self._states.shape[1]

    @property
    def length(self) -> int:
        """Number of tokens read by the encoder and by the decoder, including its start token."""
        return self.encoded + self._written.length

    @torch.inference_mode()
    def begin(self, prompt_ids: Tensor) -> Tensor:
        """Forget everything, run the encoder on a prompt `[n]`, and return the decoder's start token `[1]`."""
        self.reset()
        ids = prompt_ids.to(self._input_device).unsqueeze(0)
        self._set_states(self.model.encoder(input_ids=ids).last_hidden_state)
        return self._start

    def _set_states(self, states: Tensor) -> None:
        """Store the encoder's states `[1, n, width]`, and compute each decoder layer's keys and values from them."""
        cross_attention = DynamicCache()
        for index, block in enumerate(self.model.decoder.block):
            attention = block.layer[1].EncDecAttention
            shape = (*states.shape[:2], -1, attention.key_value_proj_dim)
            keys, values = (each(states).view(shape).transpose(1, 2) for each in (attention.k, attention.v))
            cross_attention.update(keys, values, index)
        # Passed as an already filled cache, so that no layer computes them again.
        self._states, self._caches = states, EncoderDecoderCache(self._written, cross_attention)

    @torch.inference_mode()
    def forward(self, ids: Tensor, rows: int) -> Tensor:
        """Let the decoder read `ids` `[n]`; return the logits `[rows, vocab]` of the last rows.

        Raises:
            ValueError: there is no prompt yet.
        """
        if self._states is None:
            raise ValueError("the decoder has nothing to attend to: start with a prompt")
        batch = ids.to(self._input_device).unsqueeze(0)
        output = self.model(
            decoder_input_ids=batch, encoder_outputs=(self._states,), use_cache=True, **{self._cache_name: self._caches}
        )
        logits: Tensor = output.logits[0, -rows:, : self.vocab]
        return logits.to(self.device)

    def truncate(self, length: int) -> None:
        """Forget everything after the first `length` tokens.

        Raises:
            ValueError: `length` ends inside the prompt, which was read as a whole.
        """
        if length == 0:
            self._written.truncate(0)
            self._forget()
        elif length >= self.encoded:
            self._written.truncate(length - self.encoded)
        elif self._is_filled:
            self._written.truncate(0)
            self._fill(length)
        else:
            raise ValueError(f"{length} tokens end inside the prompt, which is read as a whole")

    @torch.inference_mode()
    def fill_cache(self, length: int) -> None:
        """Act as if `length` tokens had been read, all of them by the encoder."""
        self.begin(torch.zeros(1, dtype=torch.long, device=self.device))
        self._fill(length)
        self._is_filled = True

    def _fill(self, length: int) -> None:
        """Make the decoder attend to `length` copies of the encoder's first state."""
        if self._states is not None:
            self._states = self._states[:, :1].expand(1, length, -1)
        for layer in self._caches.cross_attention_cache.layers:
            keys, values = layer.keys, layer.values
            layer.keys, layer.values = (each[:, :, :1].repeat(1, 1, length, 1) for each in (keys, values))


def start_token(model: PreTrainedModel) -> int:
    """The token that a decoder starts from, as in transformers' `generate`; a list of one token is that token.

    It is the generation config's start or beginning of text; if there is neither, the config's start or padding.

    Raises:
        RunError: there is no such token, or it is outside the vocabulary.
    """
    candidates = (
        getattr(model.generation_config, "decoder_start_token_id", None),
        getattr(model.generation_config, "bos_token_id", None),
        getattr(model.config, "decoder_start_token_id", None),
        model.config.pad_token_id,
    )
    token = next((each for each in candidates if each is not None), None)
    if isinstance(token, list) and len(token) == 1:
        token = token[0]
    if not isinstance(token, int) or not 0 <= token < model.config.vocab_size:
        raise RunError(f"decoder_start_token_id: {token} is not a token that the decoder can start from.")
    return token


class _Unread(nn.Module):
    """Hides a layer's weights from readers, because a packed layer would unpack them at every step."""

    weight = None

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, input: Tensor) -> Tensor:
        """Call the layer."""
        output: Tensor = self.layer(input)
        return output


def ready(model: PreTrainedModel) -> PreTrainedModel:
    """Prepare a loaded model, in place: share one embedding table, and hide packed weights that T5 would read.

    At every step, T5 reads the weights of each feed-forward layer's second matrix only to find out their precision.
    """
    model.set_input_embeddings(model.get_input_embeddings())
    for module in list(model.modules()):
        layer = getattr(module, "wo", None)
        if isinstance(layer, nn.Module) and hasattr(layer, "weight_count"):
            module.wo = _Unread(layer)
    return model
