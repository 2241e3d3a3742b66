"""Drafts k tokens, always."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cascli.stops.base import Stop


@dataclass(frozen=True)
class Never(Stop):
    """Every round drafts k tokens, in one call."""

    summary: ClassVar[str] = "always drafts k tokens"
