"""Tiny GGUF files as llama.cpp writes them, each with the model it must become.

The expected weights come from the gguf package's own `dequantize`, and the row order from llama.cpp's
forward permutation, so nothing here shares code with what is tested.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from transformers import AutoConfig, AutoModelForCausalLM

Kind = GGMLQuantizationType
MERGES = ["h e", "l l", "he ll", "hell o", "Ġ w", "o r", "or l", "Ġw orl", "Ġworl d", "Ġ Ġ", "1 2", "a b"]
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
PADDING = 5


def byte_alphabet() -> list[str]:
    """The 256 characters in which byte-level vocabularies spell bytes."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in kept]
    return [chr(byte) for byte in kept] + [chr(256 + i) for i in range(len(others))]


def vocabulary() -> tuple[list[str], list[int]]:
    """Tokens and their GGUF types: bytes, merges, control, one user-defined, and placeholders at the end."""
    normal = [*byte_alphabet(), *(merge.replace(" ", "") for merge in MERGES)]
    tokens = [*normal, *CONTROL, "<tool>"]
    types = [1] * len(normal) + [3] * len(CONTROL) + [4]
    padding = [f"[PAD{len(tokens) + i}]" for i in range(PADDING)]
    return tokens + padding, types + [5] * PADDING


@dataclass
class Tiny:
    """What to write: a family, its sizes, and how its matrices are quantised."""

    family: str = "qwen2"
    kind: GGMLQuantizationType = Kind.Q8_0
    hidden: int = 256
    tied: bool = False
    pre: str = "qwen2"
    settings: dict[str, Any] = field(default_factory=dict)
    skip: str = ""
    rope_divisors: list[float] | None = None
    expected: dict[str, torch.Tensor] = field(default_factory=dict)

    def config(self) -> Any:
        """The transformers config of the model."""
        return AutoConfig.for_model(
            self.family, hidden_size=self.hidden, intermediate_size=2 * self.hidden, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, vocab_size=len(vocabulary()[0]),
            max_position_embeddings=128, rms_norm_eps=1e-6, tie_word_embeddings=self.tied,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        )  # fmt: skip

    def write(self, path: Path) -> Path:
        """Write the file and fill `expected` with the bfloat16 weights of the model."""
        writer = gguf.GGUFWriter(path, self.family)
        self._settings(writer)
        self._tokenizer(writer)
        self._tensors(writer)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    def reference(self) -> Any:
        """The model with the expected weights, in bfloat16."""
        # Not `.to(torch.bfloat16)`: that would round the rotary frequencies as well.
        model = AutoModelForCausalLM.from_config(self.config(), dtype=torch.bfloat16).eval()
        model.load_state_dict(self.expected, strict=not self.tied)
        return model

    def _settings(self, writer: gguf.GGUFWriter) -> None:
        writer.add_context_length(128)
        writer.add_embedding_length(self.hidden)
        writer.add_block_count(2)
        writer.add_feed_forward_length(2 * self.hidden)
        writer.add_head_count(4)
        writer.add_head_count_kv(2)
        writer.add_rope_freq_base(10000.0)
        writer.add_layer_norm_rms_eps(1e-6)
        for key, value in self.settings.items():
            add = {str: writer.add_string, float: writer.add_float32, bool: writer.add_bool, int: writer.add_uint32}
            add[type(value)](key, value)

    def _tokenizer(self, writer: gguf.GGUFWriter) -> None:
        tokens, types = vocabulary()
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(tokens)
        writer.add_token_types(types)
        writer.add_token_merges(MERGES)
        writer.add_eos_token_id(tokens.index("<|im_end|>"))
        writer.add_pad_token_id(tokens.index("<|endoftext|>"))
        writer.add_chat_template(
            "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
            "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
        )

    def _tensors(self, writer: gguf.GGUFWriter) -> None:
        random = np.random.default_rng(0)
        arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == self.family)
        names = gguf.get_tensor_name_map(arch, 2)
        for name, value in AutoModelForCausalLM.from_config(self.config()).state_dict().items():
            if self.tied and name == "lm_head.weight":
                continue
            stem, _, suffix = name.rpartition(".")
            rows, kind = self._rows(random, tuple(value.shape))
            weights = gguf.quants.dequantize(rows, kind)
            self.expected[name] = torch.from_numpy(weights.copy()).reshape(value.shape).to(torch.bfloat16)
            found = names.get_name(stem)
            if found != self.skip:
                writer.add_tensor(f"{found}.{suffix}", self._as_written(name, rows), raw_dtype=kind)
        if self.rope_divisors:
            writer.add_tensor("rope_freqs.weight", np.array(self.rope_divisors, np.float32))

    def _rows(self, random: np.random.Generator, shape: tuple[int, ...]) -> tuple[np.ndarray, GGMLQuantizationType]:
        if len(shape) == 1:
            return random.normal(1, 0.1, shape).astype(np.float32), Kind.F32
        return quantised(random, shape, self.kind), self.kind

    def _as_written(self, name: str, rows: np.ndarray) -> np.ndarray:
        """llama.cpp interleaves the two halves of each head in Llama's query and key matrices."""
        if self.family != "llama" or not (".q_proj." in name or ".k_proj." in name):
            return rows
        heads = 4 if ".q_proj." in name else 2
        shape = rows.shape
        return rows.reshape(heads, 2, shape[0] // heads // 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


def quantised(random: np.random.Generator, shape: tuple[int, ...], kind: GGMLQuantizationType) -> np.ndarray:
    """Rows of random blocks; the scales are small numbers, since random bytes could be infinities."""
    if kind in {Kind.F32, Kind.F16}:
        return random.normal(0, 0.05, shape).astype(np.float32 if kind is Kind.F32 else np.float16)
    block, size = GGML_QUANT_SIZES[kind]
    blocks = random.integers(0, 256, (int(np.prod(shape)) // block, size), dtype=np.uint8)
    scale = random.uniform(1e-4, 1e-3, (len(blocks), 2)).astype(np.float16).view(np.uint8)
    places = {Kind.Q6_K: [208], Kind.Q4_K: [0, 2], Kind.Q5_K: [0, 2], Kind.Q4_1: [0, 2], Kind.Q5_1: [0, 2]}
    for i, place in enumerate(places.get(kind, [0])):
        blocks[:, place : place + 2] = scale[:, 2 * i : 2 * i + 2]
    return blocks.reshape(shape[0], -1)
