"""Drafts with the target's own first n layers, followed by its final norm and head.

There is no second model: weights, keys and values are the target's, and the target continues from the hidden states
that its first layers computed for the drafted tokens. Models that were not trained for this predict little so early;
`cascli bench --early-exit` shows how much, for every n. Checkpoints that were (LayerSkip) are recognised by their name
or generation config.
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
    """One pass through the target's first layers per token; q comes from its final norm and head."""

    summary: ClassVar[str] = "the target's first n layers, followed by its own norm and head"
    source: ClassVar[str] = "Elhoushi et al. 2024 (LayerSkip), which trains for it"
    needs_model: ClassVar[bool] = False
    cost: ClassVar[float] = 0.0

    layers: Annotated[int, Field(ge=1, le=1024)] = 1

    @property
    def exit_layers(self) -> int:
        """Number of layers before the exit: `layers`."""
        return self.layers

    def calls(self, rule: Rule, k: int) -> Calls:
        """No calls to capture: its passes run the model's own layers."""
        del rule, k
        return Calls()

    def runners(self, pair: Pair) -> Mapping[Role, Runner]:
        """The target, split after its first layers, and its exit there.

        Raises:
            UsageError: the target does not have more than `layers` layers.
            RunError: the target is not a sequence of layers.
        """
        from cascli.models.split import ExitRunner, SplitRunner, exit_info

        whole = SplitRunner(pair.target.model, pair.target.runner, self.layers)
        return {"draft": ExitRunner(whole, exit_info(pair.target, self.layers)), "target": whole}
