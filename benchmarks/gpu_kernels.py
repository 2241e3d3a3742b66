"""What each kernel of a decoding step costs on a GPU, next to the time that its bytes take.

`python -m benchmarks.gpu_kernels`, in a minute: every kernel at the shapes of real models, with weights too large for
the cache, captured in a graph; with and without programmatic dependent launch; products next to torch's, and with other
tiles than the one chosen by `cascli.kernels.products.tile_for`. The sum over a step is next to the bytes of a step, so
the table says which kernel keeps a model from the memory bandwidth, and by how much. Layers of a real step follow each
other; here a kernel follows itself, so sums are estimates (`make bench-gpu` measures whole steps). The last line is one
JSON document.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import needs
from benchmarks.machine import facts
from benchmarks.shapes import SHAPES

PACKAGES = ("torch", "triton")
MODELS = ("qwen2.5-7b", "qwen2.5-0.5b", "qwen2.5-1.5b", "gemma2-9b", "qwen2.5-32b")
ROWS = (1, 5)
"""A step of one token, and the check of a block of four drafts."""
BEYOND_CACHE = 300_000_000
"""Bytes of weights that are read before the first of them again."""
LAST = "head"
"""The last kernel of a step."""
_REPEATS = 10


class Piece(NamedTuple):
    """A kernel at a model's shape."""

    name: str
    launch: Callable[[int], object]
    """Launches it on the weights or states with this number."""
    copies: int
    """Number of such weights or states."""
    bytes: int
    """Read from memory by each launch; small inputs and results are not counted."""
    per_step: int = 0
    """Launches in a step of the model; 0 if it belongs to no step."""
    stock: Callable[[int], object] | None = None
    """The same in torch's operations."""
    tiles: Callable[..., object] | None = None
    """Launches it with another `tile`."""


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=SHAPES, default=MODELS, metavar="NAME", help=", ".join(SHAPES))
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS, help="of a step: tokens read at a time")
    parser.add_argument("--context", type=int, nargs="+", default=[128, 2048], help="tokens before them")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shrink", type=int, default=1, help="divide all sizes, to try the program out")
    parser.add_argument("--seconds", type=float, default=60, help="start nothing more after this long")
    parser.add_argument("--no-tiles", action="store_true", help="leave out other tiles of products")
    parser.add_argument("-o", "--output", type=Path, help="also write the JSON document here")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print one JSON document."""
    options = arguments(argv)
    needs.check(["cuda"] * options.device.startswith("cuda"))
    import torch

    from cascli.render.numbers import counted

    end = time.monotonic() + options.seconds
    device = numbered(torch.device(options.device))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    document: dict[str, Any] = {"schema": "cascli.gpu-kernels/1", **facts(PACKAGES), "device": name}
    with torch.inference_mode():
        document["ceilings"] = ceilings(device, options.shrink)
        document["rows"], document["left_out"] = [], []
        for model in options.models:
            for rows in options.rows:
                if time.monotonic() > end:
                    document["left_out"].append(f"{model}, {counted(rows, 'row')}")
                    continue
                for found in measured(model, rows, options, device):
                    document["rows"].append(found)
                    if options.output:  # a run that is cut off leaves what it has measured
                        options.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
                    if time.monotonic() > end:
                        document["left_out"].append(f"{model}, {counted(rows, 'row')}: what follows {found['kernel']}")
                        break
    show(document)
    print(json.dumps(document), flush=True)


def numbered(device: Any) -> Any:
    """The device with its number, as tensors on it have: of these, it is asked whether kernels are launched early."""
    import torch

    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def ceilings(device: Any, shrink: int) -> dict[str, float]:
    """Return bytes per second of a copy (read and written) and of a sum (read), and microseconds of a node."""
    import torch

    x = torch.ones(2**30 // shrink**3, dtype=torch.bfloat16, device=device)
    y, small = torch.empty_like(x), torch.zeros(1536, dtype=torch.bfloat16, device=device)
    copied, read = seconds(lambda: y.copy_(x), device), seconds(lambda: x.sum(dtype=torch.float32), device)

    def chain() -> None:
        for _ in range(500):
            small.add_(1)

    return {
        "copy_bytes_per_second": 2 * x.nbytes / copied,
        "read_bytes_per_second": x.nbytes / read,
        "node_us": 1e6 * seconds(chain, device) / 500,
    }


def seconds(work: Callable[[], object], device: Any) -> float:
    """Return the median of the seconds that a replay of this work takes; on a CPU, the work itself."""
    import torch

    if device.type != "cuda":
        start = time.perf_counter()
        work()
        return time.perf_counter() - start
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        work()
        work()
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        kept = work()
    times = []
    for _ in range(_REPEATS + 2):
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record()
        graph.replay()
        after.record()
        after.synchronize()
        times.append(before.elapsed_time(after) / 1e3)
    del kept
    return sorted(times[2:])[_REPEATS // 2]


def measured(model: str, rows: int, options: argparse.Namespace, device: Any) -> Iterator[dict[str, Any]]:
    """Yield an entry per kernel of a model."""
    from cascli.kernels import early

    shape = shrunk(SHAPES[model], options.shrink)
    for piece in pieces(shape, rows, options, device):
        found: dict[str, Any] = {"model": model, "rows": rows, "kernel": piece.name, "per_step": piece.per_step}
        found["bytes"] = piece.bytes
        found["us"] = attempt(piece.launch, piece.copies, device)
        if early.used(device):
            early.switch(device, on=False)
            try:
                found["without_pdl_us"] = attempt(piece.launch, piece.copies, device)
            finally:
                early.switch(device, on=True)
        if piece.stock:
            found["torch_us"] = attempt(piece.stock, piece.copies, device)
        if piece.tiles and not options.no_tiles:
            found["tiles_us"] = {
                "/".join(map(str, tile)): attempt(partial(piece.tiles, tile=tile), piece.copies, device)
                for tile in other_tiles(options.dtype)
            }
        yield found


def attempt(launch: Callable[[int], object], copies: int, device: Any) -> float | str:
    """Return microseconds of a launch, or why it failed: some tiles need more memory than a GPU has."""
    copies = copies if device.type == "cuda" else 1
    try:
        return 1e6 * seconds(lambda: [launch(i) for i in range(copies)], device) / copies
    except Exception as error:
        return f"{type(error).__name__}: {error}".splitlines()[0][:200]


def other_tiles(dtype: str) -> list[Any]:
    """Return tiles to try."""
    from cascli.kernels.products import Tile

    if dtype == "float32":
        return [Tile(16, 32, 4, 3), Tile(32, 64, 4, 3)]
    return [
        Tile(16, 128, 4, 6), Tile(16, 256, 4, 4), Tile(16, 512, 4, 3), Tile(32, 128, 4, 5), Tile(32, 256, 4, 3),
        Tile(64, 64, 4, 6), Tile(64, 128, 4, 4), Tile(64, 128, 8, 4), Tile(128, 64, 8, 4),
    ]  # fmt: skip


def shrunk(shape: dict[str, Any], by: int) -> dict[str, Any]:
    """Return a smaller shape with as many heads."""
    heads = shape["num_attention_heads"]
    width = shape.get("head_dim", shape["hidden_size"] // heads)
    smaller = {key: shape[key] // by for key in ("hidden_size", "intermediate_size", "vocab_size")}
    return shape | smaller | {"head_dim": max(16, width // by)}


def pieces(shape: dict[str, Any], rows: int, options: argparse.Namespace, device: Any) -> Iterator[Piece]:
    """Yield the kernels of a step in their order, then those of a round; each is freed before the next."""
    import torch
    import torch.nn.functional as F

    from cascli.kernels import Norm
    from cascli.kernels.norms import add_norm
    from cascli.kernels.products import product

    dtype = getattr(torch, options.dtype)
    width, heads, shared = shape["head_dim"], shape["num_attention_heads"], shape["num_key_value_heads"]
    hidden, inner, layers = shape["hidden_size"], shape["intermediate_size"], shape["num_hidden_layers"]
    gemma = shape["model_type"] == "gemma2"
    random = torch.Generator(device).manual_seed(0)

    def some(*size: int) -> Any:
        return torch.randn(*size, generator=random, device=device, dtype=dtype)

    def linear(name: str, n: int, k: int, per_step: int, *, bias: bool = False, activation: str | None = None) -> Piece:
        n *= 2 if activation else 1
        size = n * k * dtype.itemsize
        copies = max(2, min(64, BEYOND_CACHE // options.shrink**3 // size + 1))
        weights, x = [some(n, k) for _ in range(copies)], some(rows, k)
        added = some(n) if bias else None

        def stock(i: int) -> Any:
            out = F.linear(x, weights[i], added)
            if activation is None:
                return out
            gate, up = out.chunk(2, dim=-1)
            return (F.gelu(gate, approximate="tanh") if gemma else F.silu(gate)) * up

        return Piece(
            name,
            lambda i: product(x, weights[i], added, activation=activation),
            copies,
            size,
            per_step,
            stock,
            lambda i, tile: product(x, weights[i], added, activation=activation, tile=tile),
        )

    yield linear("queries, keys, values", (heads + 2 * shared) * width, hidden, layers, bias=not gemma)
    capacity = max(options.context) + 64
    caches = [some(2, 1, shared, capacity, width) for _ in range(16)]
    states, angles = some(rows, (heads + 2 * shared) * width), some(2, capacity, width)
    for at in options.context:
        before = torch.tensor(at, device=device)
        if at == options.context[0]:
            stores = partial(stored, states, angles, before, caches)
            yield Piece("rotation and cache", stores, len(caches), 0, layers)
        yield attention(some(1, heads, rows, width), caches, before, at, 50.0 if gemma else 0.0, options, layers)
    yield linear("output", hidden, heads * width, layers)
    x, residual, norm = some(rows, hidden), some(rows, hidden), Norm(some(hidden), 1e-6, gemma)
    yield Piece(
        "residual and norm", lambda _: add_norm(x, residual, norm, norm if gemma else None), 16, 0, 2 * layers + 1
    )
    activation = "gelu_pytorch_tanh" if gemma else "silu"
    yield linear("gate, up, activation", inner, hidden, layers, activation=activation)
    yield linear("down", hidden, inner, layers)
    yield linear(LAST, shape["vocab_size"], hidden, 1)
    yield from of_a_round(shape["vocab_size"], rows, dtype, device)


def stored(states: Any, angles: Any, before: Any, caches: Sequence[Any], i: int) -> Any:
    """Rotate and write to a cache."""
    from cascli.kernels.rotation import rotate_and_store

    return rotate_and_store(states, *angles, before, *caches[i])


def attention(
    query: Any, caches: Sequence[Any], before: Any, at: int, cap: float, options: argparse.Namespace, layers: int
) -> Piece:
    """Return attention after this many tokens."""
    from cascli.kernels.attention import attend

    scale = query.shape[-1] ** -0.5
    states = 2 * caches[0].shape[2] * (at + query.shape[2]) * query.shape[-1] * query.dtype.itemsize
    in_step = layers if at == options.context[0] else 0  # a step has one context
    name = f"attention after {at}"
    return Piece(name, lambda i: attend(query, *caches[i], before, scale=scale, cap=cap), 16, states, in_step)


def of_a_round(vocab: int, rows: int, dtype: Any, device: Any) -> Iterator[Piece]:
    """Yield draws and the verification of a block."""
    import torch

    from cascli.kernels.draws import draw
    from cascli.kernels.verification import EXACT, FusedRule, verify

    logits = torch.randn(rows, vocab, device=device, dtype=dtype)
    u = torch.rand(rows, device=device, dtype=torch.float64)
    size = logits.nbytes
    yield Piece("draw", lambda _: draw(logits, 1.0, u, with_base=False), 4, size)
    yield Piece("draw, top-p 0.95", lambda _: draw(logits, 1.0, u, with_base=False, top_p=0.95), 4, size)
    if rows > 1:
        q = torch.softmax(torch.randn(rows - 1, vocab, device=device), dim=-1)
        tokens = torch.zeros(rows - 1, dtype=torch.long, device=device)
        yield Piece(
            "verification",
            lambda _: verify(logits, tokens, q, q, u[1:], u, temperature=1.0, rule=FusedRule(EXACT)),
            4,
            size + q.nbytes,
        )


def steps(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Return, per model and number of rows, the sum of a step's kernels, and the time that its bytes take.

    Steps of which a kernel failed, or was left out for lack of time, have no sum.
    """
    speed = document["ceilings"]["read_bytes_per_second"]
    found = []
    for model, rows in dict.fromkeys((each["model"], each["rows"]) for each in document["rows"]):
        parts = [row for row in document["rows"] if (row["model"], row["rows"]) == (model, rows) and row["per_step"]]
        whole = any(row["kernel"] == LAST for row in parts)
        if not whole or any(isinstance(row["us"], str) for row in parts):
            continue
        sums = {name: sum(row["per_step"] * row[name] for row in parts) for name in ("us", "bytes")}
        found.append(
            {
                "model": model,
                "rows": rows,
                "ms": sums["us"] / 1e3,
                "ms_of_bytes": sums["bytes"] / speed * 1e3,
                "kernels": sum(row["per_step"] for row in parts),
            }
        )
    return found


def show(document: dict[str, Any]) -> None:
    """Print a table of kernels and of sums."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from cascli.render.numbers import counted

    speed = document["ceilings"]["read_bytes_per_second"]
    console = Console(width=120)
    told = document["ceilings"]
    console.print(
        f"{document['device']}: copies {told['copy_bytes_per_second'] / 1e12:.2f} TB/s, reads {speed / 1e12:.2f} TB/s; "
        f"a small kernel in a graph takes {told['node_us']:.2f} us",
        highlight=False,
    )
    headings = ("model", "rows", "kernel", "us", "bytes' us", "without PDL", "torch", "best other tile")
    table = Table(*headings, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for column in table.columns[3:]:
        column.justify = "right"
    for row in document["rows"]:
        table.add_row(
            row["model"],
            str(row["rows"]),
            row["kernel"],
            _number(row["us"]),
            _number(row["bytes"] / speed * 1e6),
            *(_number(row.get(name)) for name in ("without_pdl_us", "torch_us")),
            _best(row.get("tiles_us", {})),
        )
    console.print(table)
    for each in steps(document):
        console.print(
            f"{each['model']}, {counted(each['rows'], 'row')}: the {each['kernels']} kernels of a step take"
            f" {each['ms']:.2f} ms in sum, {each['ms_of_bytes'] / each['ms']:.0%} of it for the bytes",
            highlight=False,
        )
    for name in document["left_out"]:
        console.print(f"no time was left for {name}", highlight=False)


def _number(us: float | str | None) -> str:
    return "" if us is None else "failed" if isinstance(us, str) else f"{us:.1f}"


def _best(tiles: dict[str, float | str]) -> str:
    timed = {name: us for name, us in tiles.items() if not isinstance(us, str)}
    if not timed:
        return ""
    name = min(timed, key=timed.__getitem__)
    return f"{timed[name]:.1f} ({name})"


if __name__ == "__main__":
    sys.exit(main())
