"""Inputs that failed before, recreated: hangs, aborts, tracebacks and long or unexpected errors of earlier versions."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

CORPUS = Path(__file__).parent / "corpus"
BOMB = "a: &a [1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{new}: &{new} [{','.join(['*' + old] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}"


def cases(home: Path) -> Iterator[tuple[str, str, bytes]]:
    """Yield target, description and file contents."""
    for file in sorted(CORPUS.glob("*/*")):
        yield file.parent.name.replace("--", " "), file.name, file.read_bytes()
    yield from _text()
    yield from _folders(home / "seeds" / "model")
    yield from _gguf(home / "seeds")


def _text() -> Iterator[tuple[str, str, bytes]]:
    for target in ("pair", "sweep"):
        yield target, "alias bomb", f"{BOMB}draft: *i\nstrategies: *i\n".encode()
        yield target, "date that is none", b"draft: 2001-99-99\nstrategies: 2001-99-99\n"
        yield target, "digits", b"draft: " + b"9" * 5000
        yield target, "deep", b"draft: " + b"[" * 5000
        yield target, "escape in a key", b'"\\e]0;x\\a": 1\n'
    random = '{"source": {"random": {"model_type": "llama", "num_hidden_layers": 1000000000}}}'
    yield "pair", "layers", f'{{"draft": {random}, "target": {random}}}'.encode()
    parts = '{"source": {"pypi": "a{1..999999999}==1.0", "file": "x", "sha256": "' + "0" * 64 + '"}}'
    yield "pair", "parts", f'{{"draft": {parts}, "target": {parts}}}'.encode()
    yield "sweep", "range", b"strategies: [{speculative: {k: 1..100000000}}]"
    yield "sweep", "runs", b"strategies: [draft]\nruns: 1000000000"
    yield "sweep", "infinite", b"strategies: [draft]\ntemperatures: [0, .inf]"
    yield "sweep", "many", b"strategies: [{speculative-cascade: {k: 1..64, alpha: [" + b"0.1," * 3000 + b"0.2]}}]"
    yield "sweep", "prompts that never end", b"strategies: [draft]\ntask: {kind: jsonl, path: /dev/zero}"
    yield "prompts", "digits", b'{"prompt": "x", "n": ' + b"9" * 5000 + b"}"
    yield "prompts", "deep", b"[" * 100_000
    yield "show", "deep", b"[" * 100_000
    yield "show", "digits", b'{"schema": "cascli.run/1", "seed": ' + b"9" * 5000 + b"}"
    yield "show", "empty bench", b'{"schema": "cascli.bench/1"}'


def _folders(model: Path) -> Iterator[tuple[str, str, bytes]]:
    def config(**values: Any) -> bytes:
        return json.dumps(json.loads((model / "config.json").read_text()) | values).encode()

    yield "folder config.json", "layers", config(num_hidden_layers=10**9)
    yield "folder config.json", "code", config(model_type="evil", auto_map={"AutoConfig": "evil.Evil"})
    yield "folder config.json", "text for a size", config(hidden_size="wide")
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    changes: dict[str, Callable[[dict[str, Any]], Any]] = {
        "charsmap": lambda t: t.update(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
        "unknown special token": lambda t: t.update(
            post_processor={
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "nobody", "type_id": 0}}],
                "pair": [],
                "special_tokens": {},
            }
        ),
        "prefix": lambda t: t["model"].update(continuing_subword_prefix="x" * 50),
        "slow pattern": lambda t: t.update(
            pre_tokenizer={"type": "Split", "pattern": {"Regex": "(a|a|aa)+$"}, "behavior": "Isolated", "invert": False}
        ),
        "id of the end of memory": lambda t: t["model"]["vocab"].update({"zz": 2**32 - 1}),
    }
    for name, change in changes.items():
        changed = json.loads(json.dumps(tokenizer))
        change(changed)
        yield "folder tokenizer.json", name, json.dumps(changed).encode()
    yield "folder tokenizer_config.json", "endless template", json.dumps({"chat_template": LOOP}).encode()
    yield "folder tokenizer_config.json", "code", b'{"auto_map": {"AutoTokenizer": ["evil.E", "evil.E"]}}'


def _gguf(seeds: Path) -> Iterator[tuple[str, str, bytes]]:
    good = (seeds / "qwen2.gguf").read_bytes()
    yield "gguf", "a million blocks", _number(good, b"qwen2.block_count", 10**6)
    yield "gguf", "no heads", _number(good, b"qwen2.attention.head_count", 0)
    yield "gguf", "wide", _number(good, b"qwen2.embedding_length", 2**31)
    yield "gguf", "other family", good.replace(b"qwen2", b"gemma")
    yield "gguf", "no merges", good.replace(b"tokenizer.ggml.merges", b"tokenizer.ggml.mergez")
    yield "gguf", "endless template", good.replace(b"{% for m in messages %}", b"{% for m in range(1)%}"[:23])


def _number(data: bytes, key: bytes, value: int) -> bytes:
    """Return the file with another number after a key: the type takes four bytes, the value the next four."""
    place = data.index(key) + len(key) + 4
    return data[:place] + value.to_bytes(4, "little") + data[place + 4 :]
