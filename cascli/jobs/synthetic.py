"""Speculation at a chosen acceptance rate, only for measuring speed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from cascli.rules._forced import Forced
from cascli.rules.base import Rule
from cascli.strategies.base import Speculating


@dataclass(frozen=True)
class Synthetic(Speculating):
    """`speculative` with a chosen acceptance rate; its text is meaningless."""

    acceptance: Annotated[float, Field(ge=0, le=1)] = 0.8

    @property
    def name(self) -> str:
        """Name that marks the numbers of these runs wherever they are shown."""
        return "synthetic-acceptance"

    @property
    def verification_rule(self) -> Rule:
        """Rule that accepts drafts at the chosen rate."""
        return Forced(self.acceptance)
