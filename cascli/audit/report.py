"""The findings of an audit, as plain data. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import ClassVar, Literal

from pydantic import Field

from cascli.analysis.tidy import Circumstances, Table, table
from cascli.trace import Data, Document, PairInfo

Status = Literal["pass", "fail", "skipped"]


class Check(Data):
    """One question and its result."""

    kind: str
    """weights, law, joint law, joint fit, round, answer, drafter, draw, parity, cache, block or tokenizer."""
    subject: str
    status: Status
    statistic: float | None = None
    bound: float | None = None
    false_alarm: float | None = None
    """An upper bound on the probability that correct code fails this check; 0 if no chance is involved."""
    detail: str = ""


class Audit(Document):
    """All checks of a pair on one machine."""

    kind: ClassVar[str] = "audit"

    schema_name: Literal["cascli.verify/1", "cascli.verify/1.1", "cascli.verify/1.2"] = Field(
        "cascli.verify/1.2", alias="schema"
    )
    date: str | None = None
    """When the audit started, in UTC as ISO 8601; None in older documents."""
    command: str | None = None
    """The command line, quoted for a shell; None if run from Python."""
    pair: PairInfo
    passed: bool
    seconds: float
    checks: list[Check]
    environment: dict[str, str]


def tidy_checks(audit: Audit) -> Table:
    """One row per check, with the columns shared by all tables."""
    shared = Circumstances.of(audit.pair, audit.environment, audit.date).columns()
    return table("verify", [shared | check.model_dump() for check in audit.checks])


def check_of(kind: str, subject: str, statistic: float, bound: float, false_alarm: float, detail: str = "") -> Check:
    """A check that passes if its statistic is a number and does not exceed its bound."""
    return Check(
        kind=kind,
        subject=subject,
        status="pass" if statistic <= bound else "fail",
        statistic=statistic,
        bound=bound,
        false_alarm=false_alarm,
        detail=detail,
    )


def failed(kind: str, subject: str, why: str) -> Check:
    """A check that ended with an error, which no bound can excuse."""
    return Check(kind=kind, subject=subject, status="fail", detail=why)


def worst(statistics: Iterable[float]) -> float:
    """The largest of some statistics of 0 or more; NaN if one of them is, which `max` may pass over."""
    found = 0.0
    for statistic in statistics:
        if math.isnan(statistic):
            return statistic
        found = max(found, statistic)
    return found


def skipped(kind: str, subject: str, why: str) -> Check:
    """A check that could not be made, and why."""
    return Check(kind=kind, subject=subject, status="skipped", detail=why)
