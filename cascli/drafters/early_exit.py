"""The target's own first layers write ahead: its final norm and head, asked after n of its layers.

No second model: weights, keys and values are the target's, and the target goes on from what its first layers have made
of the drafted tokens. Models that were not trained for it say little that early; `cascli bench --early-exit` shows how
much, for every n. Checkpoints that were (LayerSkip) are known by what names them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from cascli.drafters.model import Model
from cascli.models.calls import Calls, Role

if TYPE_CHECKING:
    from cascli.models.pair import Pair
    from cascli.models.runner import Runner
    from cascli.rules.base import Rule


@dataclass(frozen=True)
class EarlyExit(Model):
    """One pass through the target's first layers a token; q is what its norm and head make of it."""

    summary: ClassVar[str] = "the target's first n layers, followed by its own norm and head"
    source: ClassVar[str] = "Elhoushi et al. 2024 (LayerSkip), which trains for it"
    needs_model: ClassVar[bool] = False
    cost: ClassVar[float] = 0.0

    layers: Annotated[int, Field(ge=1, le=1024)] = 1

    def calls(self, rule: Rule, k: int) -> Calls:
        """Nothing is captured: its passes are the model's own layers."""
        del rule, k
        return Calls()

    def runners(self, pair: Pair) -> Mapping[Role, Runner]:
        """The target split after its first layers, and its exit there.

        Raises:
            UsageError: the target has no more layers than that.
            RunError: it is not built of layers that follow each other.
        """
        from cascli.models.split import ExitRunner, SplitRunner, exit_info

        whole = SplitRunner(pair.target.model, pair.target.runner, self.layers)
        return {"draft": ExitRunner(whole, exit_info(pair.target, self.layers)), "target": whole}
