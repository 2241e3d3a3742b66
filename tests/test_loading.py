"""Pairs that load, and pairs that are rejected."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path

import pytest
import torch

from cascli import Run, load_pair
from cascli.errors import ConfigError, PairWarning, RunError, UsageError
from cascli.models.tokenizer import byte_tokenizer
from tests.commands import invoke
from tests.pairs import model, pair


def test_dtype_precedence_is_flag_then_model_then_default(tmp_path: Path, clean_env: pytest.MonkeyPatch) -> None:
    mixed = pair(300) | {"defaults": {"dtype": "bfloat16"}}
    mixed["draft"] = mixed["draft"] | {"dtype": "float32"}
    assert [load_pair(mixed).info.draft.dtype, load_pair(mixed).info.target.dtype] == ["float32", "bfloat16"]
    assert load_pair(mixed, dtype="auto").info.target.dtype == "float32"
    file = tmp_path / "mixed.yaml"
    file.write_text(json.dumps(mixed))
    run = Run.from_json(invoke("generate", "hi", "-c", str(file), "--json", "--max-new-tokens", "2").stdout)
    assert [run.pair.draft.dtype, run.pair.target.dtype] == ["float32", "bfloat16"]
    with pytest.raises(UsageError, match="dtype"):
        load_pair(mixed, dtype="fp32")
    with pytest.raises(UsageError, match="device"):
        load_pair(mixed, device="gpu")


def test_ids_that_one_tokenizer_lacks_are_masked(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, LlamaConfig

    from cascli.models.tokenizer import byte_tokenizer

    values = {key: value for key, value in model(1, 300)["source"]["random"].items() if key != "model_type"}
    for name, extra in (("draft", []), ("target", ["<a>", "<b>"])):
        AutoModelForCausalLM.from_config(LlamaConfig(**values)).save_pretrained(tmp_path / name)
        tokenizer = byte_tokenizer()
        tokenizer.add_tokens(extra)
        tokenizer.save_pretrained(tmp_path / name)
    both = load_pair({name: {"source": {"path": str(tmp_path / name)}} for name in ("draft", "target")})
    assert (both.vocab, both.info.masked_rows) == (257, (43, 43))


@pytest.mark.parametrize(
    "change",
    [
        {"vocab_size": "8"},
        {"num_attention_heads": 0},
        {"hidden_size": 33, "num_attention_heads": 4},
        {"num_hidden_layers": 0},
        {"pad_token_id": 999},
        {"rope_theta": "x"},  # only detected when the weights are made
    ],
)
def test_random_models_of_impossible_shape_are_config_errors(change: dict) -> None:
    with pytest.raises(ConfigError, match=r"^pair: draft\.source: random: "):
        load_pair({"draft": model(1, 300, **change), "target": model(2, 300)})


def test_the_error_for_a_bad_shape_includes_the_reason() -> None:
    """The library gives the reason in its second line, after a colon."""
    with pytest.raises(
        ConfigError, match=r"random: .*: .*33.* not a multiple of the number of attention heads"
    ) as told:
        load_pair({"draft": model(1, 300, hidden_size=33, num_attention_heads=4), "target": model(2, 300)})
    assert len(str(told.value).splitlines()) == 1


def test_sources_of_the_wrong_type_are_refused() -> None:
    for source in ("random", {}, 3):
        with pytest.raises(ConfigError, match=r"pair: draft\.source: needs exactly one of"):
            load_pair(pair(8) | {"draft": {"source": source}})


def test_a_pair_from_the_hub_records_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Branches move: without the commit, nobody could load the same weights again."""
    commit = "c0ffee" + "0" * 34
    load_pair(pair(300)).target.model.save_pretrained(tmp_path / commit)
    byte_tokenizer().save_pretrained(tmp_path / commit)
    monkeypatch.setattr("cascli.weights.hub.cached_snapshot", lambda source: tmp_path / commit)
    main, pinned = {"source": {"hub": "some/model"}}, {"source": {"hub": "some/model", "revision": commit}}
    found = load_pair({"draft": main, "target": pinned}, offline=True)
    assert found.info.draft.source == f"hub:some/model@main#{commit}"
    assert found.info.target.source == f"hub:some/model@{commit}"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize(
    ("change", "tensor", "stored", "required"),
    [
        ({"vocab_size": 310}, r"[a-z._]*weight", [300, 32], [310, 32]),
        ({"num_key_value_heads": 2}, r"model\.layers\.0\.self_attn\.[kv]_proj\.weight", [16, 32], [32, 32]),
        ({"intermediate_size": 48}, r"model\.layers\.0\.mlp\.[a-z_]+\.weight", None, None),
    ],
)
def test_weights_of_another_shape_than_the_config_are_refused(
    tmp_path: Path, dtype: str, change: dict, tensor: str, stored: list | None, required: list | None
) -> None:
    """Layers take any matrix: the model failed at its first token, or ran with other sizes than it reported."""
    load_pair(pair(300)).target.model.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    shapes = [r"\[\d+, \d+\]" if each is None else re.escape(str(each)) for each in (stored, required)]
    said = f"'{tensor}' has shape {shapes[0]}, but the folder's config.json requires {shapes[1]}"
    with pytest.raises(RunError, match=said):
        load_pair({"target": {"source": {"path": str(tmp_path)}}}, dtype=dtype)


@pytest.mark.parametrize("change", ["one tensor", "two layers", "no head"])
def test_weights_that_are_missing_are_not_drawn_at_random(change: str, tmp_path: Path) -> None:
    """transformers draws them without a word: texts would differ from one load to the next."""
    own = load_pair(pair(300, tie_word_embeddings=False), dtype="float32").target.model
    weights = {name: value.clone() for name, value in own.state_dict().items()}
    if change == "no head":
        del weights["lm_head.weight"]
    if change == "one tensor":
        del weights["model.layers.1.mlp.up_proj.weight"]
    own.save_pretrained(tmp_path / "model", state_dict=weights)
    byte_tokenizer().save_pretrained(tmp_path / "model")
    if change == "two layers":
        config = json.loads((tmp_path / "model" / "config.json").read_text())
        (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}))
    with pytest.raises(RunError, match=r"model: [\d,]+ tensors of a 'llama' are missing, such as '.*weight'"):
        load_pair(target=tmp_path / "model")


def test_stored_weights_that_are_not_used_are_named(tmp_path: Path) -> None:
    own = load_pair(pair(300), dtype="float32").target.model
    own.save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    with pytest.warns(PairWarning, match=r"\d+ stored tensors are not part of this 'llama', such as 'model.layers.1"):
        load_pair(target=tmp_path / "model")


def test_angles_that_change_within_the_context_are_warned_of() -> None:
    """Those of Phi-3 with 128k tokens; transformers reads the whole text again where they change."""
    factors = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    phi = {"model_type": "phi3", "rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4, **factors}}
    shorter = {"original_max_position_embeddings": 20, "pad_token_id": 0}
    with pytest.warns(PairWarning, match="target model's position encoding changes at 20 tokens"):
        loaded = load_pair(pair(40, **phi, **shorter))
    text = torch.arange(30)
    with warnings.catch_warnings():
        warnings.simplefilter("error", PairWarning)
        load_pair(pair(40, **phi, **shorter | {"original_max_position_embeddings": 256}))
    # Both sides of the change are right as long as a text does not cross it.
    for length in (12, 30):
        loaded.target.runner.reset()
        own = loaded.target.runner.forward(text[:length], length)
        whole = loaded.target.model(input_ids=text[None, :length], use_cache=False).logits[0]
        torch.testing.assert_close(own, whole, rtol=1e-4, atol=1e-4)


def test_a_random_model_that_cannot_fit_is_refused_before_it_is_made() -> None:
    """The bug: sizes left out are those of 7B models, and the system ended the process without a word."""
    config = pair(8)
    for role in ("draft", "target"):
        config[role]["source"]["random"] = {"model_type": "llama", "vocab_size": 8, "hidden_size": 2**17}
    with pytest.raises(RunError, match=r"its weights take \S+ GB in float32, but \S+ GB of memory are available; give"):
        load_pair(config)


def test_a_model_on_disk_that_hardly_fits_is_loaded_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its weights may be read from the file again, so that it can run, slowly."""
    saved = load_pair(pair(300))
    for role, loaded in saved.models.items():
        loaded.model.save_pretrained(tmp_path / role)
        saved.tokenizer.save_pretrained(tmp_path / role)
    monkeypatch.setattr("cascli.models.memory.available", lambda _: 1000)
    monkeypatch.setattr("cascli.models.memory._MACHINE", tmp_path / "none")
    folders = {role: {"source": {"path": str(tmp_path / role)}} for role in saved.models}
    with pytest.warns(PairWarning, match="the system may end this command"):
        load_pair({"name": "folders", **folders})
