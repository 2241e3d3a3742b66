"""Good files to change: small models, and documents written by cascli itself."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

SWEEP = """
pair: tiny-random
strategies: [draft, {speculative: {k: [1, 3]}}, {speculative-cascade: {rule: token-v3, alpha: [0.1, 0.3], k: 2..3}}]
temperatures: [0.0, 1.0]
seeds: [0, 1]
match: {target_calls_per_token: [0.5], rules: [opt], k: 2}
task: {kind: builtin}
limit: 2
max_new_tokens: 8
"""


def make(home: Path) -> None:
    """Write all seeds under `home`; run in a process of its own, so that no torch thread is alive where others fork."""
    import cascli
    from cascli.config import pair_files
    from tests.pairs import pair
    from tests.weights.tiny import Tiny

    seeds = home / "seeds"
    seeds.mkdir(parents=True)
    for family in ("qwen2", "llama"):
        Tiny(family=family, hidden=64).write(seeds / f"{family}.gguf")
    loaded = cascli.load_pair(pair(300))
    loaded.target.model.save_pretrained(seeds / "model")
    from cascli.weights.gguf.convert import convert

    convert(seeds / "qwen2.gguf", seeds / "converted")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (seeds / "model" / name).write_bytes((seeds / "converted" / name).read_bytes())
    (seeds / "model" / "generation_config.json").write_text(json.dumps({"eos_token_id": [5], "temperature": 0.7}))
    (seeds / "pair.yaml").write_text(yaml.safe_dump(yaml.safe_load(pair_files()["tiny-random"].read_text())))
    (seeds / "sweep.yaml").write_text(SWEEP)
    lines = [{"prompt": "a", "id": "x", "reference": "b"}, {"turns": ["a", "b"], "question_id": 7, "category": "c"}]
    (seeds / "prompts.jsonl").write_text("\n".join(map(json.dumps, lines)))
