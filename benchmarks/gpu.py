"""Pairs at real shapes on a GPU, with random weights: `python -m benchmarks.gpu --help`, `make bench-gpu`.

By pair: step times, c against the ratio of bytes, v, share of the memory bandwidth, speculation at chosen acceptance
rates against theory, and transformers on the same weights. transformers cannot be told how many drafts to accept: its
assisted generation is timed by the round, and its speed at an acceptance rate is what that many tokens a round would
come to. No network is needed. The GPU tests run last. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.contestants import of_transformers
from benchmarks.machine import facts
from cascli import Pair, load_pair, theory
from cascli.bench import Bench
from cascli.jobs.bench import bench
from cascli.memory import peak
from cascli.models.graph_runner import GraphRunner

QWEN = {"model_type": "qwen2", "vocab_size": 151936, "max_position_embeddings": 4096, "tie_word_embeddings": True}
GEMMA = {"model_type": "gemma2", "vocab_size": 256000, "max_position_embeddings": 4096, "head_dim": 256}


def _shape(base: dict[str, Any], hidden: int, inner: int, layers: int, heads: int, shared: int, **more: Any) -> Any:
    return base | {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": shared,
        **more,
    }


SHAPES = {
    "qwen2.5-0.5b": _shape(QWEN, 896, 4864, 24, 14, 2),
    "qwen2.5-1.5b": _shape(QWEN, 1536, 8960, 28, 12, 2),
    "qwen2.5-7b": _shape(QWEN, 3584, 18944, 28, 28, 4, tie_word_embeddings=False),
    "qwen2.5-32b": _shape(QWEN, 5120, 27648, 64, 40, 8, tie_word_embeddings=False),
    "gemma2-2b": _shape(GEMMA, 2304, 9216, 26, 8, 4),
    "gemma2-9b": _shape(GEMMA, 3584, 14336, 42, 16, 8),
    "gemma2-27b": _shape(GEMMA, 4608, 36864, 46, 32, 16, head_dim=128),
}
PAIRS = [
    ("qwen2.5-0.5b", "qwen2.5-1.5b"),
    ("qwen2.5-0.5b", "qwen2.5-7b"),
    ("gemma2-2b", "gemma2-9b"),
    ("qwen2.5-0.5b", "qwen2.5-32b"),
    ("gemma2-2b", "gemma2-27b"),
]
ACCEPTANCES = (0.6, 0.8, 0.9)
PROMPT = [7] * 32


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-c", "--config", help="a pair with real weights instead: name or YAML file")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("-k", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--context", type=int, nargs="+", default=[128, 2048])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--pairs", type=int, nargs="*", help="only those with these numbers, from 0")
    parser.add_argument("--shrink", type=int, default=1, help="divide widths and layers, to try the program out")
    parser.add_argument("--seconds", type=float, default=420, help="begin no further pair after this long")
    parser.add_argument("--no-tests", action="store_true")
    parser.add_argument("-o", "--output", type=Path, help="also write the JSON document here, pair by pair")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, and print one JSON document."""
    options, start = arguments(argv), time.perf_counter()
    document: dict[str, Any] = {"schema": "cascli.gpu/1", **facts(), "device": _name(options.device), "pairs": []}
    for config in _configs(options):
        if time.perf_counter() - start > options.seconds:
            document["pairs"].append({"name": _title(config), "skipped": "out of time"})
            continue
        try:
            found = of_pair(config, options)
        except (RuntimeError, ValueError) as error:  # one pair's failure must not cost the others
            found = {"name": _title(config), "error": f"{type(error).__name__}: {error}"[:2000]}
        document["pairs"].append(found)
        print(json.dumps(found), file=sys.stderr)
        _write(document, options.output)
        _free()
    if not options.no_tests:
        document["tests"] = run_tests()
    _write(document, options.output)
    show(document)
    print(json.dumps(document))


def _configs(options: argparse.Namespace) -> list[Any]:
    if options.config:
        return [options.config]
    chosen = PAIRS if options.pairs is None else [PAIRS[number] for number in options.pairs]
    return [_config(draft, target, options.shrink) for draft, target in chosen]


def _config(draft: str, target: str, shrink: int) -> dict[str, Any]:
    """A pair of random weights at these shapes."""
    found: dict[str, Any] = {"name": f"{draft} with {target}"}
    for role, name, seed in (("draft", draft, 1), ("target", target, 2)):
        shape = dict(SHAPES[name])
        for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size") if shrink > 1 else ():
            shape[key] = max(shape[key] // shrink, 2)
        if shrink > 1:
            shape["hidden_size"] = shape["num_attention_heads"] * 16
            shape["head_dim"] = 16
        found[role] = {"source": {"random": shape, "seed": seed}}
    return found


def of_pair(config: Any, options: argparse.Namespace) -> dict[str, Any]:
    """Everything about one pair."""
    pair = load_pair(config, device=options.device, dtype=options.dtype)
    benches = [_bench(pair, a, options) for a in ACCEPTANCES]
    first = benches[0]
    peers = transformers_beside(pair, options) if isinstance(config, dict) else None
    return {
        "name": pair.name,
        "dtype": options.dtype,
        "why_eager": {role: getattr(pair, role).eager_because for role in ("draft", "target")},
        "copy_bytes_per_second": first.copy_bytes_per_second,
        "ratio_of_bytes": first.ratio_of_bytes,
        "weight_bytes": {role: getattr(pair, role).info.weight_bytes for role in ("draft", "target")},
        "profiles": [_of_profile(first, number) for number in range(len(first.profiles))],
        "speculation": [_of_replay(found, peers, options.k) for found in benches],
        "transformers": peers,
        "graphs": {role: _graphs(pair, role) for role in ("draft", "target")},
        "peak_memory_bytes": peak(pair.device),
    }


def _bench(pair: Pair, acceptance: float, options: argparse.Namespace) -> Bench:
    return bench(
        pair,
        contexts=options.context,
        repeats=options.repeats,
        synthetic_acceptance=acceptance,
        ks=(options.k,),
        tokens=options.tokens,
    )


def _of_profile(found: Bench, number: int) -> dict[str, Any]:
    at = found.profiles[number]
    return {
        "context": at.context,
        "draft_ms": 1000 * at.draft[1].median,
        "target_ms": {n: 1000 * each.median for n, each in at.target.items()},
        "c": at.c,
        "c_over_ratio_of_bytes": at.c / found.ratio_of_bytes if found.ratio_of_bytes else None,
        "v": {n: at.v(n) for n in at.target},
        "bandwidth_share": {role: found.bandwidth_share(role, at) for role in ("draft", "target")},
    }


def _of_replay(found: Bench, peers: dict[str, Any] | None, k: int) -> dict[str, Any]:
    """One acceptance rate: measured beside predicted, and beside transformers at as many tokens a round."""
    replay = found.synthetic
    if replay is None:
        raise ValueError("the bench has no replay")
    account = replay.accounts[0]
    document: dict[str, Any] = {
        "chosen_acceptance": replay.acceptance,
        "target_tokens_per_second": replay.target_tokens_per_second,
        "tokens_per_second": replay.tokens_per_second[0],
        **account.model_dump(),
    }
    if peers is not None:
        rate = theory.expected_tokens(replay.acceptance, k) / peers["assisted_seconds_per_round"]
        document["assisted_tokens_per_second_at_this_acceptance"] = rate
        document["ratio_to_assisted_at_this_acceptance"] = replay.tokens_per_second[0] / rate
    return document


def transformers_beside(pair: Pair, options: argparse.Namespace) -> dict[str, Any]:
    """Generate and assisted generation on the pair's own weights, with transformers' own attention and cache."""
    target, draft = pair.target.model, pair.draft.model
    alone, assisted = (of_transformers(target, model, options.k, [], "") for model in (None, draft))
    calls = _Calls()
    with _stock_attention(target, draft), calls.of(target):
        for contestant in (alone, assisted):
            contestant.answer(PROMPT, 8)
        times = []
        for _ in range(3):
            calls.count = 0
            found = assisted.answer(PROMPT, options.tokens // 2)
            times.append(found.seconds / max(calls.count, 1))
            alone.take(PROMPT, options.tokens // 2)
    rates = sorted(len(each.token_ids) / each.seconds for each in alone.answers)
    return {
        "generate_tokens_per_second": rates[len(rates) // 2],
        "assisted_seconds_per_round": sorted(times)[len(times) // 2],
    }


class _Calls:
    """Counts the forwards of a model."""

    def __init__(self) -> None:
        self.count = 0

    @contextmanager
    def of(self, model: Any) -> Iterator[None]:
        """Count while this lasts."""

        def more(*_: Any) -> None:
            self.count += 1

        hook = model.register_forward_pre_hook(more)
        try:
            yield
        finally:
            hook.remove()


@contextmanager
def _stock_attention(*models: Any) -> Iterator[None]:
    """Transformers' own attention in place of cascli's."""
    before = [model.config.get_text_config()._attn_implementation for model in models]
    for model, name in zip(models, before, strict=True):
        model.set_attn_implementation("sdpa" if name.startswith("cascli") else name)
    try:
        yield
    finally:
        for model, name in zip(models, before, strict=True):
            model.set_attn_implementation(name)


def _graphs(pair: Pair, role: str) -> dict[str, float] | None:
    runner = getattr(pair, role).runner
    if not isinstance(runner, GraphRunner):
        return None
    return {"count": runner.graphs, "capture_seconds": runner.capture_seconds}


def run_tests() -> dict[str, Any]:
    """The GPU tests, in a process of their own."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "tests/gpu"], capture_output=True, text=True, check=False
    )
    return {"exit_code": done.returncode, "output": done.stdout[-3000:]}


def show(document: dict[str, Any]) -> None:
    """One line a pair."""
    table = Table(title=document["device"], title_justify="left")
    for name in (
        "pair",
        "target ms",
        "of bandwidth",
        "c",
        "c / bytes",
        "v(5)",
        "gain at 0.8",
        "of predicted",
        "x assisted",
    ):
        table.add_column(name, justify="left" if name == "pair" else "right", no_wrap=True)
    for pair in document["pairs"]:
        if "profiles" not in pair:
            table.add_row(pair["name"], pair.get("skipped") or "failed")
            continue
        at, mid = pair["profiles"][0], pair["speculation"][1]
        ratio = mid.get("ratio_to_assisted_at_this_acceptance")
        table.add_row(
            pair["name"],
            f"{at['target_ms'][1]:.2f}",
            _percent(at["bandwidth_share"]["target"]),
            f"{at['c']:.2f}",
            "" if at["c_over_ratio_of_bytes"] is None else f"{at['c_over_ratio_of_bytes']:.2f}",
            f"{at['v'].get(5, float('nan')):.2f}",
            f"{mid['measured_speed_up']:.2f}x",
            f"{mid['measured_speed_up'] / mid['predicted_speed_up']:.2f}",
            "" if ratio is None else f"{ratio:.1f}x",
        )
    Console(width=140).print(table)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.0f}%"


def _title(config: Any) -> str:
    return str(config["name"] if isinstance(config, dict) else config)


def _name(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else "cpu"


def _write(document: dict[str, Any], output: Path | None) -> None:
    if output:
        output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
