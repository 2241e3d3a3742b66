"""A stand-in for CUDA graphs where there is no GPU: operations are recorded with their addresses, and replayed.

Numbers that Python computed are baked in, results are written where they were when recorded, and reading a value back
while recording is an error: a runner that relies on anything but data at fixed addresses gives wrong logits here too.
Recordings of one capture also share their memory: none has a result before it is replayed, nor after another one was.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from cascli.rules import mentored


class Tape(TorchDispatchMode):
    """Records every operation that runs below it."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, Any]] = []
        self._made: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default):
            raise RuntimeError("operation not permitted when stream is capturing")
        result = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, result))
        given = {_memory(each) for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)}
        self._made += [each for each in tree_leaves(result) if isinstance(each, Tensor) and _memory(each) not in given]
        return result

    @torch.inference_mode()
    def overwrite(self) -> None:
        """Overwrite what was made while recording, as its memory is shared with other recordings."""
        for each in self._made:
            each.fill_(torch.nan if each.is_floating_point() else -1)

    def repeat(self) -> None:
        for func, args, kwargs, result in self.operations:
            for old, new in zip(tree_leaves(result), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _with_launches(tape: Tape) -> AbstractContextManager[Any]:
    """Also records what Triton's interpreter runs: a kernel with the addresses and numbers it was given."""
    try:
        from triton.runtime.interpreter import GridExecutor
    except ImportError:
        return nullcontext()
    launch = GridExecutor.__call__

    def recorded(grid: Any, *args: Any, **kwargs: Any) -> None:
        with _disable_current_modes():
            launch(grid, *args, **kwargs)
        tape.operations.append((partial(launch, grid), args, kwargs, None))

    return patch.object(GridExecutor, "__call__", recorded)


class TapeCapture:
    """A `Capture` for the CPU."""

    def __init__(self) -> None:
        self.recordings = 0
        self.renewals = 0
        self._last: Tape | None = None
        """The tape whose results are valid."""

    def __call__(self, compute: Callable[[], Tensor]) -> Callable[[], Tensor]:
        compute()
        settled = patch.object(mentored, "settled", lambda *_: False)  # as on a GPU, which must not be queried
        with Tape() as tape, _with_launches(tape), settled:
            result = compute()
        self.recordings += 1
        self._stands(None)
        tape.overwrite()
        renewals = self.renewals

        def replay() -> Tensor:
            assert renewals == self.renewals, "this recording was to be dropped"
            self._stands(tape)
            tape.repeat()
            return result

        return replay

    def _stands(self, tape: Tape | None) -> None:
        if self._last is not None and self._last is not tape:
            self._last.overwrite()
        self._last = tape

    def renew(self) -> None:
        """Nothing recorded so far may be replayed: a GPU may have reused its memory."""
        self.renewals += 1

    def fresh(self) -> TapeCapture:
        """A new capture, independent of this one's recordings."""
        return TapeCapture()
