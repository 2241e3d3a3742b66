"""Compile kernels, in the variants that decoding uses, without a GPU: `python -m ... [all | NAME ...]`.

Prints one line per variant; fails if one does not compile, needs more registers or shared memory than available, or
lacks what the interpreter cannot show, as it runs programs one after the other and always in float32 (`lacking`).
Without names, the kernels near these limits (attention and products) are compiled for every GPU. The other variants are
compiled for one GPU each, in turn, so that every kernel is still compiled for all of them. With `all`, so are those of
small models, of the largest vocabularies and of other precisions, which takes minutes.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from cascli.kernels import attention, draws, norms, products, rotation, rows, truncation, verification

CAPABILITIES = (80, 90, 100)
HEAVY = (attention._attend, products._product)
SHARED = 101_376
"""Bytes of shared memory available to a program on every GPU since Ampere."""
NEGLIGIBLE = 32
"""Bytes per thread; the attention kernels spilled up to 1380 where strides were not known to be even."""


class Variant(NamedTuple):
    kernel: Any
    types: dict[str, str]
    """Types of the arguments that are not 32-bit integers: `*bf16` is a pointer."""
    constants: dict[str, Any]
    stages: int = 3
    warps: int = 4
    even: tuple[str, ...] = ("width",)
    """Arguments, besides strides, that are multiples of 16."""


def variants() -> Iterator[Variant]:
    yield from of_attention()
    yield from of_rotation()
    yield from of_products()
    yield from of_norms()
    yield from of_rows()
    yield from of_truncation()
    yield from of_verification()


PARTIAL = dict.fromkeys(("sums", "maxima", "totals"), "*fp32")


def of_attention() -> Iterator[Variant]:
    for states, width in (("bf16", 64), ("bf16", 128), ("bf16", 256), ("fp16", 128), ("fp32", 128), ("fp32", 256)):
        for height in (16, 32):
            for bounded in (False, True) if states == "bf16" else (True,):
                yield attend(states, width, height, bounded)
    yield attend("bf16", 128, 32, bounded=False, whole=False)  # heads of width 80 or 96
    for states, width in (("bf16", 64), ("bf16", 128), ("bf16", 256), ("fp32", 128)):
        yield attend(states, width, 32, bounded=width == 256, texts=True)


def attend(states: str, width: int, height: int, bounded: bool, whole: bool = True, texts: bool = False) -> Variant:
    """A variant with both a window and a cap (`bounded`), or with neither."""
    types = PARTIAL | dict.fromkeys(("query", "key", "value", "out"), f"*{states}")
    types |= {"counters": "*i32", "at": "*i64", "places": "*i64", "scale": "fp32", "cap": "fp32"}
    block, warps, stages = attention.shape_of(width, exact=states == "fp32")
    flags = {"WINDOW": bounded, "CAP": bounded, "EXACT": states == "fp32", "WHOLE": whole, "TEXTS": texts}
    constants = {"PARTS": 32, "ROWS": height, "WIDTH": width, "BLOCK": block} | flags
    return Variant(attention._attend, types, constants, stages, warps)


def of_rotation() -> Iterator[Variant]:
    for states, width in (("bf16", 64), ("bf16", 256), ("fp16", 128), ("fp32", 128)):
        types = dict.fromkeys(("query", "key", "cos", "sin", "query_out", "key_out"), f"*{states}")
        yield Variant(rotation._rotate, types, {"WIDTH": width})
        types = dict.fromkeys(("states", "cos", "sin", "query", "key", "value", "norms"), f"*{states}")
        for norm in (False, True):
            constants = {"WIDTH": width, "NORM": norm, "OFFSET": float(norm)}
            yield Variant(rotation._rotate_and_store, types | {"at": "*i64", "epsilon": "fp32"}, constants, warps=1)


def of_products() -> Iterator[Variant]:
    small, large, gated = (896, 0, True), (152_064, 0, False), (18_944, 2, True)
    for states, layers in (
        ("bf16", (small, (16_384, 0, False), large, (4864, 1, False), gated)),
        ("fp16", (large,)),
        ("fp32", (small, gated)),
    ):
        types = dict.fromkeys(("x", "weight", "bias", "out"), f"*{states}")
        exact = states == "fp32"
        for n, gate, bias in layers:
            columns, depth, warps, stages = products.tile_for(n, exact=exact, gated=gate > 0)
            shape = {"ROWS": products.ROWS, "COLUMNS": columns, "DEPTH": depth}
            for whole in (True, False) if n == 896 else (True,):
                flags = {"BIAS": bias, "GATE": gate, "WHOLE": whole, "EXACT": exact}
                yield Variant(products._product, types, shape | flags, stages, warps, ("n", "k"))


def of_norms() -> Iterator[Variant]:
    for states, padded in (("bf16", 1024), ("bf16", 8192), ("fp32", 8192)):
        types = dict.fromkeys(("x", "residual", "after", "weight", "summed", "out"), f"*{states}") | {"epsilon": "fp32"}
        for after in (False, True):
            constants = {"WIDTH": padded, "ADD": True, "AFTER": after, "OFFSET": float(after)}
            yield Variant(norms._add_norm, types, constants, warps=norms.warps_of(padded))


ROWS = {"logits": "*bf16", "first": "*i32", "temperature": "fp32", "cuts": "*fp64"}
ROWS |= dict.fromkeys(("top", "base", "warped", "base_sums", "warped_sums", "probs", "max_logit"), "*fp32")
SHAPE = {"PADDED": 256, "PER": 1024, "BLOCK": 1024}
KEPT = (rows.ALL, rows.FIRST_BEST, rows.ABOVE_CUT)


def of_rows() -> Iterator[Variant]:
    yield Variant(rows._row_sums, ROWS, {"PER": 1024, "BLOCK": 1024})
    for kept in KEPT:
        flags = {"KEPT": kept, "BASE": True}
        yield Variant(draws._distributions, ROWS | {"masses": "*fp64"}, SHAPE | flags)
    types = {"probs": "*fp32", "masses": "*fp64", "u": "*fp64", "out": "*i64"}
    yield Variant(draws._token, types, SHAPE)


def of_truncation() -> Iterator[Variant]:
    types = ROWS | dict.fromkeys(("space", "states", "limits"), "*fp64") | {"goal": "i64"}
    for by_count, within in ((True, False), (False, False), (False, True)):
        how = SHAPE | {"BY_COUNT": by_count, "WITHIN": within}
        for stage in range(3):
            yield Variant(truncation._bins, types, how | {"STAGE": stage}, warps=truncation._WARPS)
        yield Variant(truncation._limit, types, how)


def of_verification() -> Iterator[Variant]:
    types = ROWS | dict.fromkeys(("q", "q1"), "*fp32") | dict.fromkeys(("space", "u_accept", "u_next", "out"), "*fp64")
    types |= dict.fromkeys(("constant", "of_best_p1", "of_disagreement", "forced"), "fp32") | {"tokens": "*i64"}
    for kind, of_draft, tv in (
        (0, True, False),
        (1, True, True),
        *((kind, of_draft, False) for kind in (2, 3) for of_draft in (True, False)),
    ):
        # The other two values of KEPT add the same to the remaining kinds as to these.
        for kept in KEPT if tv or (kind, of_draft) == (3, True) else KEPT[:1]:
            how = SHAPE | {"KEPT": kept, "KIND": kind, "OF_DRAFT": of_draft, "TV": tv}
            mass = [verification._mass_not_kept]
            passes = {1: [verification._confidence], 2: mass, 3: mass}.get(kind, [])
            for kernel in passes:
                yield Variant(kernel, types, how)
            for by_block in (False, True):
                yield Variant(verification._excess, types, how | {"BY_BLOCK": by_block})
                yield Variant(verification._draw, types, how | {"ROWS": 8, "BY_BLOCK": by_block})
            for forced in (False, True):
                yield Variant(verification._tests, types, how | {"FORCED": forced})


def rare() -> Iterator[Variant]:
    """Variants that differ from the others in one number, which a model or a request determines."""
    for width in (16, 32):
        for states in ("bf16", "fp32"):
            yield attend(states, width, 16, bounded=False)
    one_part, long_parts = {"PADDED": 1, "parts": 1}, {"PER": 2048}  # a small vocabulary, and 262,208 tokens
    for variant in variants():
        names = variant.kernel.arg_names
        for name, values in (("PARTS", (1, 4, 16)), ("ADD", (False,)), ("BASE", (False,)), ("ROWS", (2, 32, 128))):
            if name in variant.constants and (name != "ROWS" or variant.kernel is verification._draw):
                for value in values:
                    yield variant._replace(constants=variant.constants | {name: value})
        for shape in (one_part, long_parts) if "PADDED" in variant.constants else ():
            known = {name: value for name, value in shape.items() if name in names}
            yield variant._replace(constants=variant.constants | known)
        for logits in ("*fp32", "*fp16") if "logits" in names else ():
            yield variant._replace(types=variant.types | {"logits": logits}, even=())


def build(variant: Variant, capability: int) -> Any:
    names = variant.kernel.arg_names
    signature = {name: variant.types.get(name, "i32") for name in names}
    signature |= dict.fromkeys([*variant.constants, "EARLY"] if "EARLY" in names else variant.constants, "constexpr")
    # The launcher finds these out automatically: pointers and strides are multiples of 16.
    strides = ("_place", "_head", "_row", "stride")
    even = [name for name in names if signature[name].startswith("*") or name.endswith(strides) or name in variant.even]
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in even}
    options = {"num_warps": variant.warps, "num_stages": variant.stages}
    constants = variant.constants
    if "EARLY" in names:
        constants = constants | {"EARLY": capability >= 90}
        options["launch_pdl"] = constants["EARLY"]
    source = ASTSource(variant.kernel, signature, constants, attributes)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def spilled(cubin: bytes) -> int:
    """Bytes of a thread's values that did not fit into registers."""
    tool = next(Path(triton.__file__).parent.rglob("bin/cuobjdump"))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin)
        done = subprocess.run([tool, "--dump-resource-usage", file], capture_output=True, text=True, check=True)
    return sum(int(each) for each in re.findall(r"(?:STACK|LOCAL):(\d+)", done.stdout))


_GLOBAL = re.compile(r"\b(?:ld|st|red|atom)\.(?:\w+\.)*global|cp\.async\.\w+\.shared")
"""Accesses of global memory in PTX."""
_LOW_PRECISION = re.compile(r"\.tf32|\bmma\.sync\S*\.col\.f16|\bwgmma\.mma\S*m\d+n\d+k\d+\.f16")
"""Products that round float32 operands, or sum in float16."""


def lacking(variant: Variant, capability: int, ptx: str) -> list[str]:
    """What a kernel needs on a GPU, and its PTX lacks, in words."""
    lines = [line for line in ptx.splitlines() if not line.lstrip().startswith("//")]
    accesses = [number for number, line in enumerate(lines) if _GLOBAL.search(line)]
    found = []
    if any(_LOW_PRECISION.search(line) for line in lines):
        found.append("products in full precision")
    if "EARLY" in variant.kernel.arg_names and capability >= 90:
        waits = [number for number, line in enumerate(lines) if "griddepcontrol.wait" in line]
        if not waits or waits[0] > accesses[0]:
            found.append("a wait for the previous kernel before the first access")
    if variant.kernel is attention._attend:
        [counts] = [number for number in accesses if "atom." in lines[number]]
        sums = max(number for number in accesses if number < counts)  # the last partial sums that are stored
        if "acq_rel" not in lines[counts] or not any("bar.sync" in line for line in lines[sums:counts]):
            found.append("partial sums that are visible before they are counted")
    return found


def wanting_alignment() -> list[str]:
    """Pointers into an answer's uniforms or ids whose alignment would make a kernel compile again.

    Rounds at the end of an answer, which no graph replays, read them at any offset, in steps of 8 bytes; Triton
    compiles a separate kernel for pointers that are multiples of 16.
    """
    anywhere = {
        verification._tests: ("tokens", "u_accept"),
        verification._draw: ("u_accept", "u_next"),
        draws._token: ("u",),
    }
    return [
        f"{kernel.__name__}: {param.name}"
        for kernel, names in anywhere.items()
        for param in kernel.params
        if param.name in names and not param.do_not_specialize_on_alignment
    ]


def main() -> None:
    asked = [name for name in sys.argv[1:] if name != "all"]
    if wanting := wanting_alignment():
        raise SystemExit(f"compiled anew wherever these begin: {', '.join(wanting)}")
    common = [*variants()]
    for number, variant in enumerate([*common, *(rare() if "all" in sys.argv else ())]):
        if asked and variant.kernel.__name__ not in asked:
            continue
        in_turn = CAPABILITIES[number % len(CAPABILITIES)]
        heavy = variant.kernel in HEAVY and number < len(common)
        for capability in CAPABILITIES if asked or heavy else (in_turn,):
            made = build(variant, capability)
            bytes_spilled, shared = spilled(made.asm["cubin"]), made.metadata.shared
            name = f"{variant.kernel.__name__} {capability} {variant.constants}"
            print(f"{name} spilled {bytes_spilled} shared {shared}")
            if bytes_spilled > NEGLIGIBLE or shared > SHARED:
                raise SystemExit(1)
            if missing := lacking(variant, capability, made.asm["ptx"]):
                raise SystemExit(f"{name} lacks {', '.join(missing)}")


if __name__ == "__main__":
    main()
