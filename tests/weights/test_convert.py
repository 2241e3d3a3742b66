"""Conversion writes the right weights, config and tokenizer, completely or not at all."""

import errno
import json
import os
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from packaging.version import Version
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from cascli.errors import RunError
from cascli.weights.gguf import stock, tensors
from cascli.weights.gguf.convert import convert
from cascli.weights.manifest import is_whole
from tests.weights.tiny import Kind, Tiny, vocabulary

MODELS = {
    "qwen2-q4_k": Tiny("qwen2", Kind.Q4_K),
    "qwen2-q6_k-tied": Tiny("qwen2", Kind.Q6_K, tied=True),
    "qwen2-q5_0": Tiny("qwen2", Kind.Q5_0, hidden=64),
    "qwen2-q5_k": Tiny("qwen2", Kind.Q5_K),
    "llama-q8_0": Tiny("llama", Kind.Q8_0, hidden=64, pre="smollm"),
    "llama-q4_k-tied": Tiny("llama", Kind.Q4_K, tied=True, pre="smollm"),
    "llama-f16": Tiny("llama", Kind.F16, hidden=64, pre="smollm"),
}
TEXTS = [
    "hello world 12 123  4",
    "don't I'LL   x\n\n\ty\r\n",
    "naïve 日本語 👩‍👩‍👧 Ω",
    "<|im_start|>user\nhi<|im_end|>\n<tool>{}",
    "a" * 20 + " " * 9 + "!?",
    "",
    " ",
]


@pytest.fixture(scope="module", params=MODELS)
def made(request, tmp_path_factory):
    """A GGUF file and the folder it was converted to."""
    tiny, place = MODELS[request.param], tmp_path_factory.mktemp("convert")
    convert(tiny.write(place / "tiny.gguf"), place / "model", source="test", sha256="0" * 64)
    return SimpleNamespace(tiny=tiny, gguf=place / "tiny.gguf", folder=place / "model")


def test_weights_equal_those_of_the_gguf_package(made):
    found = load_file(made.folder / "model.safetensors")
    assert found.keys() == made.tiny.expected.keys()
    for name, expected in made.tiny.expected.items():
        assert torch.equal(found[name], expected), name


def test_folder_loads_without_arguments_and_gives_the_same_logits(made):
    model = AutoModelForCausalLM.from_pretrained(made.folder)
    assert model.dtype == torch.bfloat16
    assert model.config.tie_word_embeddings == made.tiny.tied
    ids = torch.arange(24).reshape(1, -1)
    with torch.no_grad():
        assert torch.equal(model(ids).logits, made.tiny.reference()(ids).logits)


def test_agrees_with_the_stock_loading(made):
    pytest.importorskip("accelerate", reason="transformers loads a GGUF model only with accelerate installed")
    stock = AutoModelForCausalLM.from_pretrained(made.gguf.parent, gguf_file=made.gguf.name, dtype=torch.float32)
    ours = AutoModelForCausalLM.from_pretrained(made.folder).state_dict()
    for name, value in stock.state_dict().items():
        assert torch.equal(value.to(torch.bfloat16), ours[name]), name


def test_tokenizer_agrees_with_the_stock_loading(made):
    ours = AutoTokenizer.from_pretrained(made.folder)
    chat = [{"role": "user", "content": "hello"}]
    assert all(ours.decode(ours(text).input_ids) == text for text in TEXTS)
    # transformers 5.17's own loading fails on files without a BOS id and ignores user-defined tokens: no reference
    # there.
    if Version(transformers.__version__) >= Version("5.23"):
        stock = AutoTokenizer.from_pretrained(made.gguf.parent, gguf_file=made.gguf.name)
        if made.tiny.pre == "qwen2":  # the stock loading drops smollm's digit split
            assert all(ours(text).input_ids == stock(text).input_ids for text in TEXTS)
        template = {"add_generation_prompt": True, "tokenize": False}
        assert ours.apply_chat_template(chat, **template) == stock.apply_chat_template(chat, **template)
    assert ours.eos_token == "<|im_end|>"
    assert ours.pad_token == "<|endoftext|>"
    assert ours.decode(ours("<|im_start|>a<tool>").input_ids, skip_special_tokens=True) == "a<tool>"


def test_placeholders_are_not_part_of_the_tokenizer(made):
    tokens, types = vocabulary()
    assert len(AutoTokenizer.from_pretrained(made.folder)) == len(tokens) - types.count(5)
    assert AutoConfig.from_pretrained(made.folder).vocab_size == len(tokens)


def test_every_id_that_ends_an_answer_is_in_the_generation_config(made):
    tokens, _ = vocabulary()
    found = GenerationConfig.from_pretrained(made.folder).eos_token_id
    assert found == [tokens.index("<|im_end|>"), tokens.index("<|endoftext|>")]


def test_manifest_lists_what_was_written(made):
    manifest = json.loads((made.folder / "cascli.json").read_text())
    files = {path.name: path.stat().st_size for path in made.folder.iterdir() if path.name != "cascli.json"}
    assert manifest["files"] == files
    assert (manifest["source"], manifest["sha256"]) == ("test", "0" * 64)
    assert is_whole(made.folder)


def test_qwen_text_is_composed(tmp_path):
    """The published tokenizer does this (NFC); the stock GGUF loading does not."""
    convert(Tiny(hidden=64).write(tmp_path / "a.gguf"), tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert tokenizer.decode(tokenizer("e\u0301").input_ids) == "\u00e9"


def test_smollm_splits_digits(tmp_path):
    """As the published tokenizer and llama.cpp do; the stock GGUF loading does not."""
    convert(Tiny("llama", hidden=64, pre="smollm").write(tmp_path / "a.gguf"), tmp_path / "model")
    assert AutoTokenizer.from_pretrained(tmp_path / "model").tokenize("12  1") == ["1", "2", "ĠĠ", "1"]


def llama3_divisors(factor: float, high: float = 4.0) -> list[float]:
    """What llama.cpp writes for Llama 3 with head width 16 and base 10000, by its own loop."""
    found = []
    for i in range(8):
        wavelength = 2 * np.pi * 10000.0 ** (2 * i / 16)
        smooth = (8192 / wavelength - 1) / (high - 1)
        found.append(
            1.0 if wavelength < 8192 / high else factor if wavelength > 8192 else 1 / ((1 - smooth) / factor + smooth)
        )
    return found


def test_llama3_rope_scaling_is_recognised(tmp_path):
    convert(
        Tiny("llama", hidden=64, rope_divisors=llama3_divisors(32.0)).write(tmp_path / "a.gguf"), tmp_path / "model"
    )
    rope = AutoConfig.from_pretrained(tmp_path / "model").rope_parameters
    assert (rope["rope_type"], rope["factor"], rope["rope_theta"]) == ("llama3", 32.0, 10000.0)
    other = Tiny("llama", hidden=64, rope_divisors=[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]).write(tmp_path / "b.gguf")
    with pytest.raises(RunError, match=r"rope_freqs\.weight is not Llama 3's"):
        convert(other, tmp_path / "other")


@pytest.mark.parametrize(
    ("scaling", "expected"),
    [
        ({"type": "linear", "factor": 2.0}, {"rope_type": "linear", "factor": 2.0}),
        (
            {"type": "yarn", "factor": 4.0, "original_context_length": 32},
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
        ),
    ],
)
def test_rope_scaling_is_kept(scaling, expected, tmp_path):
    settings = {f"qwen2.rope.scaling.{key}": value for key, value in scaling.items()}
    convert(Tiny(hidden=64, settings=settings).write(tmp_path / "a.gguf"), tmp_path / "model")
    rope = AutoConfig.from_pretrained(tmp_path / "model").rope_parameters
    assert expected.items() <= rope.items()


def test_unknown_rope_scaling_is_refused(tmp_path):
    settings = {"qwen2.rope.scaling.type": "longrope"}
    with pytest.raises(RunError, match="rotary scaling 'longrope'"):
        convert(Tiny(hidden=64, settings=settings).write(tmp_path / "a.gguf"), tmp_path / "model")


def test_a_missing_tensor_is_named(tmp_path):
    gguf = Tiny(hidden=64, skip="blk.1.ffn_up").write(tmp_path / "a.gguf")
    with pytest.raises(RunError, match=r"no tensor for model\.layers\.1\.mlp\.up_proj\.weight"):
        convert(gguf, tmp_path / "model")
    assert list(tmp_path.iterdir()) == [gguf]


def test_other_families_are_left_to_transformers(tmp_path, monkeypatch):
    gguf = Tiny(hidden=64).write(tmp_path / "a.gguf")
    gguf.write_bytes(gguf.read_bytes().replace(b"qwen2", b"qwenX"))

    def refuse(*_, **__):
        raise ValueError("GGUF model with architecture qwenX is not supported yet.\nmore")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", refuse)
    with pytest.raises(
        RunError, match=r"cannot load this GGUF file \(qwenX\): GGUF model with .* yet\.\nUse the model's"
    ):
        convert(gguf, tmp_path / "model")


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
def test_an_interrupted_conversion_leaves_nothing(stop, tmp_path, monkeypatch):
    gguf = Tiny(hidden=64).write(tmp_path / "a.gguf")
    threads = torch.get_num_threads()

    def fail(*_):
        raise stop

    monkeypatch.setattr(tensors, "to_bfloat16", fail)
    with pytest.raises(RunError if isinstance(stop, OSError) else KeyboardInterrupt):
        convert(gguf, tmp_path / "model")
    assert list(tmp_path.iterdir()) == [gguf]
    assert torch.get_num_threads() == threads


def test_too_little_disk_space_is_reported_before_anything_is_written(tmp_path, monkeypatch):
    gguf = Tiny(hidden=64).write(tmp_path / "a.gguf")
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=10_000_000))
    with pytest.raises(RunError, match=r"about 0\.1 GB are needed and 0\.0 GB are free"):
        convert(gguf, tmp_path / "model")
    assert list(tmp_path.iterdir()) == [gguf]


@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_a_file_truncated_during_conversion_is_reported(family, tmp_path, monkeypatch):
    """A memory-mapped file would end the process with SIGBUS."""
    path = Tiny(family=family).write(tmp_path / "tiny.gguf")
    header, opened = tensors._write_header, []

    def cut(*arguments):
        opened.append(path.stat().st_size)
        os.truncate(path, opened[0] // 2)
        return header(*arguments)

    monkeypatch.setattr(tensors, "_write_header", cut)
    with pytest.raises(RunError, match="was cut short while it was read"):
        convert(path, tmp_path / "out")
    assert opened and not (tmp_path / "out").exists()


def test_only_a_whole_folder_is_trusted(tmp_path):
    folder = tmp_path / "model"
    convert(Tiny(hidden=64).write(tmp_path / "a.gguf"), folder)
    manifest = (folder / "cascli.json").read_text()
    for bad in (
        "",
        "{}",
        "[]",
        manifest.replace("weights/1", "weights/0"),
        manifest.replace('"converter": 1', '"converter": 0'),
    ):
        (folder / "cascli.json").write_text(bad)
        assert not is_whole(folder)
    (folder / "cascli.json").write_text(manifest)
    assert is_whole(folder)
    with (folder / "model.safetensors").open("ab") as file:
        file.write(b"x")
    assert not is_whole(folder)
    convert(tmp_path / "a.gguf", folder)
    assert is_whole(folder)


def test_progress_is_in_bytes_and_ends_at_the_total(tmp_path):
    seen = []
    convert(Tiny(hidden=64).write(tmp_path / "a.gguf"), tmp_path / "model", lambda *step: seen.append(step))
    total = sum(value.numel() * 2 for value in load_file(tmp_path / "model" / "model.safetensors").values())
    assert seen[-1] == ("convert", total, total)
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)


@pytest.mark.parametrize(
    ("settings", "tensors", "loaded", "refused"),
    [
        ({"rope.scaling.type": "yarn"}, {}, {"rope_type": "default"}, True),
        ({"rope.scaling.type": "yarn"}, {}, {"rope_type": "yarn", "factor": 4.0}, False),
        ({}, {"rope_freqs.weight": None}, {}, True),
        ({}, {}, None, False),
    ],
)
def test_scaling_that_the_stock_loading_leaves_out_is_refused(settings, tensors, loaded, refused):
    """transformers reads it for a few families; with others, every position beyond the first was wrong."""
    config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(rope_parameters=loaded))
    file = SimpleNamespace(setting=settings.get, tensors=tensors, path="a.gguf", architecture="qwen3")
    with pytest.raises(RunError, match="how positions are scaled") if refused else nullcontext():
        stock._require_scaling(file, config)
