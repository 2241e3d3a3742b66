"""The audit of a pair on this machine: laws, greedy parity, cache, block invariance, tokenizer."""

from __future__ import annotations

from cascli.audit.run import WITH_OPTIONS, audit, default_strategies

__all__ = ["WITH_OPTIONS", "audit", "default_strategies"]
