"""Model folders from untrusted sources: none runs code, and every problem is reported in a sentence."""

from __future__ import annotations

import ast
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, ByT5Tokenizer

import cascli
from cascli import chat, load_pair
from cascli.chat import encode
from cascli.errors import CascliError, ConfigError, PairWarning, RunError, UsageError
from cascli.models.tokenizer import byte_tokenizer
from cascli.weights import untrusted
from cascli.weights.gguf.file import GgufFile
from tests.pairs import pair
from tests.weights.tiny import Tiny

EVIL = """
from pathlib import Path
Path({mark!r}).write_text("ran")
from transformers import {base} as Base
class Evil(Base):
    model_type = "evil"
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A good model folder; every load has a standard input that answers yes."""
    monkeypatch.setenv("CASCLI_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 50))
    place = tmp_path / "model"
    loaded = load_pair(pair(300))
    AutoModelForCausalLM.from_config(loaded.target.model.config).save_pretrained(place)
    byte_tokenizer().save_pretrained(place)
    return place


def load(folder: Path) -> Any:
    source = {"source": {"path": str(folder)}}
    return load_pair({"draft": source, "target": source})


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def said(folder: Path) -> str:
    """The error of loading the folder, or nothing: some odd files do no harm."""
    try:
        load(folder)
    except CascliError as error:
        return str(error)
    return ""


def refused(folder: Path) -> str:
    with pytest.raises(CascliError) as caught:
        load(folder)
    message = str(caught.value)
    assert len(message.splitlines()) <= 2 and len(message) < 700, message
    return message


def test_the_unmodified_folder_loads(folder: Path) -> None:
    assert load(folder).vocab == 257


@pytest.mark.parametrize("remote", ["", "some/one--"])
@pytest.mark.parametrize(
    ("file", "values", "base"),
    [
        ("config.json", {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil"}}, "PretrainedConfig"),
        (
            "config.json",
            {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}},
            "PretrainedConfig",
        ),
        (
            "tokenizer_config.json",
            {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}},
            "PreTrainedTokenizerFast",
        ),
        ("processor_config.json", {"auto_map": {"AutoProcessor": "evil.Evil"}}, "ProcessorMixin"),
        ("generation_config.json", {"custom_generate": "evil.py"}, "PretrainedConfig"),
    ],
)
def test_no_code_of_a_folder_runs(
    file: str, values: dict[str, Any], base: str, remote: str, folder: Path, tmp_path: Path
) -> None:
    mark = tmp_path / "mark"
    (folder / "evil.py").write_text(EVIL.format(mark=str(mark), base=base))
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(EVIL.format(mark=str(mark), base=base))
    place = folder / file
    place.touch()
    place.write_text(place.read_text() or "{}")
    text = json.dumps(values).replace('"evil.Evil"', f'"{remote}evil.Evil"')
    change(place, **json.loads(text))
    assert len(said(folder).splitlines()) <= 2
    assert not mark.exists()
    assert sys.stdin.tell() == 0, "it asked, and read the answer"


def test_custom_model_code_is_refused_with_a_reason(folder: Path) -> None:
    (folder / "evil.py").write_text("")
    change(folder / "config.json", model_type="evil", auto_map={"AutoConfig": "evil.Evil"})
    assert "running its own code (auto_map), which cascli never does" in refused(folder)


def test_loaders_are_called_in_one_place() -> None:
    """A call in another file could prompt on standard input again."""
    root, found = Path(cascli.__file__).parent, []
    for file in root.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "from_pretrained":
                words = {each.arg for each in node.keywords}
                found.append((file.name, node.func.value.id, "trust_remote_code" in words))
    assert {name for name, owner, _ in found if owner != "GenerationConfig"} == {"untrusted.py"}
    assert all(safe for _, owner, safe in found if owner != "GenerationConfig")


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_pointer_of_git_lfs_is_named(folder: Path, name: str) -> None:
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12\n")
    assert f"{name}: a Git LFS pointer instead of the file; 'git lfs pull'" in refused(folder)


@pytest.mark.parametrize("left", [[], ["tokenizer_config.json"]])
def test_a_folder_without_a_tokenizer_says_so(folder: Path, left: list[str]) -> None:
    for path in folder.glob("*token*"):
        if path.name not in left:
            path.unlink()
    assert "no tokenizer.json, nor files that can be converted to one.\nCopy its files" in refused(folder)


@pytest.mark.parametrize("kind", ["qwen2", "gpt2", "t5", "xglm"])
@pytest.mark.parametrize("other", [None, "vocab.bpe.txt", "o200k.tiktoken", "added_vocab.json"])
def test_tokenizers_that_transformers_makes_up_are_refused(folder: Path, kind: str, other: str | None) -> None:
    """For these it makes an empty vocabulary where there are no files, and every prompt is empty or unknown."""
    for path in folder.glob("*token*"):
        path.unlink()
    if other is not None:
        (folder / other).write_text("{}")
    change(folder / "config.json", model_type=kind)
    with pytest.raises(RunError, match=r"no tokenizer\.json, nor files that can be converted"):
        untrusted.tokenizer_of(folder)


def test_a_snapshot_without_a_tokenizer_names_what_fetches_it(folder: Path) -> None:
    snapshot = folder.parent / "snapshots" / "0123abc"
    snapshot.parent.mkdir()
    folder.rename(snapshot)
    for path in snapshot.glob("*token*"):
        path.unlink()
    assert "'cascli pull --repair' for this pair fetches" in refused(snapshot)


def test_tokenizers_of_bytes_need_no_files(tmp_path: Path) -> None:
    ByT5Tokenizer().save_pretrained(tmp_path)
    assert len(untrusted.tokenizer_of(tmp_path)("ab")["input_ids"]) == 3


def test_an_adapter_is_not_left_out_in_silence(folder: Path) -> None:
    """Beside a model it is not applied, and on its own it is no model."""
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "x"}')
    with pytest.warns(PairWarning, match=r"its adapter is not applied: merge it into the model"):
        untrusted.config_of(folder)
    (folder / "config.json").unlink()
    assert "It has an adapter: merge it into its model" in refused(folder)


def test_an_index_without_files_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text("{}")
    assert "it has no 'weight_map'" in refused(folder)


def test_pickles_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    said = (
        "pytorch_model.bin is a pickle, which can run code and is not read; there are no safetensors.\nIf you trust it,"
    )
    assert said in refused(folder)
    with pytest.raises(RunError, match="is a pickle"):  # as init reads it, before any weights
        untrusted.config_of(folder)


def test_pickles_beside_safetensors_are_no_obstacle(folder: Path) -> None:
    torch.save({}, folder / "training_args.bin")
    assert untrusted.config_of(folder).model_type


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_hidden_layers", 10**9),
        ("num_hidden_layers", 1e9),
        ("vocab_size", 10**12),
        ("hidden_size", 2**40),
        ("layer_types", ["full_attention"] * 5000),
        ("num_key_value_heads", 10**10),
    ],
)
def test_implausible_sizes_are_refused(key: str, value: Any, folder: Path) -> None:
    change(folder / "config.json", **{key: value})
    assert key in refused(folder)
    with pytest.raises(ConfigError, match=key):
        load_pair(pair(300, **{key: value}))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_size", "wide"),
        ("num_attention_heads", 0),
        ("rope_parameters", [1]),
        ("model_type", 7),
        ("model_type", None),
        ("hidden_act", "none of these"),
    ],
)
def test_configs_with_wrong_values_give_a_clear_error(key: str, value: Any, folder: Path) -> None:
    change(folder / "config.json", **{key: value})
    assert "unexpected" not in refused(folder)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": 1}', "\x00\x01", "[" * 100_000])
@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_files_of_the_wrong_format_give_a_short_error(file: str, text: str, folder: Path) -> None:
    (folder / file).write_text(text)
    assert len(said(folder).splitlines()) <= 2


@pytest.mark.parametrize("cut", [0, 4, 8, 200])
def test_truncated_weights_give_a_clear_error(cut: int, folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:cut])
    assert "cannot be loaded" in refused(folder)


def test_an_index_may_not_name_files_outside(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").rename(tmp_path / "outside.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../outside.safetensors"}}))
    assert "outside its folder" in refused(folder)


def panics(file: Path) -> None:
    """A tokenizer whose post-processor names a missing token: the library panics instead of raising an Exception."""
    data = json.loads(file.read_text())
    data["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "[NONE]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {},
    }
    file.write_text(json.dumps(data))


def test_a_tokenizer_that_crashes_ends_only_a_child_process(folder: Path) -> None:
    panics(folder / "tokenizer.json")
    message = refused(folder)
    assert "tokenizer.json: damaged" in message and "Traceback" not in message


def test_a_tokenizer_that_never_finishes_times_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(untrusted, "_TRY", "import time\ntime.sleep(60)  # {most}")
    monkeypatch.setattr(untrusted, "_TOKENIZER_SECONDS", 1)
    assert "did not finish within 1 s" in refused(folder)


def test_a_tokenizer_is_tried_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load(folder)
    monkeypatch.setattr(untrusted.subprocess, "run", lambda *_, **__: pytest.fail("tried again"))
    load(folder)


def test_panics_are_handled_like_other_errors() -> None:
    class PanicException(BaseException):
        pass

    with pytest.raises(RunError, match=r"x: damaged, or not a supported model: .*damaged tokenizer file"), \
            untrusted.damaged(Path("x")):  # fmt: skip
        raise PanicException("a very\nlong story")


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
    ],
)
def test_an_endless_template_ends(template: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "TEMPLATE_SECONDS", 0.5)
    loaded = load(folder)
    loaded.tokenizer.chat_template = template
    with pytest.raises(UsageError, match=r"did not finish within 0.5 s"):
        encode(loaded, "hi")
    loaded.tokenizer.chat_template = "{{ messages[0].content }}"
    assert encode(loaded, "hi") == [104, 105]


def test_the_template_of_a_processor_is_used_if_the_tokenizer_has_none(folder: Path) -> None:
    """Older folders of models for images keep it in a file of its own."""
    assert encode(load(folder), "hi") == [104, 105]
    file = folder / "chat_template.json"
    file.write_text(json.dumps({"chat_template": "{% for m in messages %}<{{ m.content }}>{% endfor %}"}))
    assert encode(load(folder), "hi") == [*b"<hi>"]
    change(folder / "tokenizer_config.json", chat_template="[{{ messages[0].content }}]")
    assert encode(load(folder), "hi") == [*b"[hi]"]
    change(folder / "tokenizer_config.json", chat_template=None)
    file.write_text(json.dumps({"chat_template": 7}))
    assert "chat_template" in refused(folder)


def test_a_template_that_leaves_out_the_prompt_is_refused(folder: Path) -> None:
    """Some take only lists of parts; the characters of a text are none of them."""
    template = "{% for m in messages %}{% for part in m.content if part.type == 'text' %}{{ part.text }}{% endfor %}."
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template + "{% endfor %}"}))
    loaded = load(folder)
    with pytest.raises(UsageError, match=r"leaves out what the last message says.\nTry --raw."):
        encode(loaded, "hi")
    assert encode(loaded, "hi", raw=True) == [104, 105]


def test_a_template_that_escapes_the_prompt_is_used(folder: Path) -> None:
    loaded = load(folder)
    loaded.tokenizer.chat_template = "{{ messages[0].content | upper }}"
    assert encode(loaded, "hi") == [*b"HI"]


def test_a_gguf_with_more_blocks_than_it_holds_is_refused(tmp_path: Path) -> None:
    from cascli.weights.gguf.convert import convert

    file = Tiny().write(tmp_path / "a.gguf")
    count = b"qwen2.block_count" + (4).to_bytes(4, "little")
    data = file.read_bytes()
    assert count in data
    right, wrong = (count + n.to_bytes(4, "little") for n in (2, 1_000_000))
    file.write_bytes(data.replace(right, wrong))
    with pytest.raises(RunError, match="block_count is 1000000, but it holds 2 blocks"):
        convert(file, tmp_path / "out")


def test_a_gguf_of_odd_alignment_is_refused(tmp_path: Path) -> None:
    file = Tiny().write(tmp_path / "a.gguf")
    data = file.read_bytes()
    key = b"general.alignment"
    entry = len(key).to_bytes(8, "little") + key + (4).to_bytes(4, "little") + (0).to_bytes(4, "little")
    pairs = int.from_bytes(data[16:24], "little") + 1
    file.write_bytes(data[:16] + pairs.to_bytes(8, "little") + entry + data[24:])
    with pytest.raises(RunError, match=r"general.alignment is 0"):
        GgufFile(file)


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_a_tokenizer_is_tried_even_if_memory_is_already_limited(tmp_path: Path) -> None:
    """Where no memory limit can be set (as on macOS), failing to set one must not count as a damaged file."""
    Tokenizer(WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>")).save(str(tmp_path / "tokenizer.json"))
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30));"
        "from pathlib import Path; from cascli.weights.untrusted import try_tokenizer;"
        f"try_tokenizer(Path({str(tmp_path / 'tokenizer.json')!r}))"
    )
    environment = os.environ | {"CASCLI_HOME": str(tmp_path / "home")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
