"""Attribute errors to the plug-in of another package that caused them, so that nobody has to read a traceback."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType

from cascli.errors import CascliError, RunError, raised
from cascli.plugins import GROUPS, class_of, is_own, name_of


def label(plugin: object) -> str:
    """How an error message names a plug-in or its class: kind, name and defining module."""
    kind = class_of(plugin)
    homes = (base.__module__.removesuffix(".base") for base in kind.__mro__)
    group = next((home for home in homes if home in GROUPS), "")
    what = {"cascli.strategies": "strategy"}.get(group, group.rpartition(".")[2].removesuffix("s") or "plug-in")
    return f"the {what} '{name_of(kind)}' of {kind.__module__}"


@contextmanager
def blamed(*plugins: object) -> Iterator[None]:
    """Name the plug-in in errors that come from another package's code.

    Args:
        plugins: the plug-ins in use here, or their classes; a strategy includes the plug-ins it contains.

    Raises:
        RunError: an error raised in one of them, or caused by what it returned; cascli's own error types raised by one
            of them keep their type.
    """
    try:
        yield
    except MemoryError:
        raise
    except (Exception, SystemExit) as error:
        strange = [each for each in _with_parts(plugins) if not is_own(each)]
        if not strange or getattr(error, "told", False):
            raise
        at_fault = _raised_in(error, strange)
        if isinstance(error, CascliError):
            if at_fault is None or _innermost(error) != at_fault[1]:
                raise
            ours = next(each for each in type(error).__mro__ if each.__module__ == CascliError.__module__)
            new: CascliError = ours(f"{label(at_fault[0])}: {error}")
        elif type(error).__name__ == "OutOfMemoryError":
            raise
        elif at_fault is None:
            whose = " or ".join(map(label, strange))
            new = RunError(f"while running {whose}: {raised(error)}\nCASCLI_DEBUG=1 shows where this happened.")
        else:
            new = RunError(f"{label(at_fault[0])}: {raised(error)}")
        new.told = True  # type: ignore[attr-defined]  # set by the innermost `blamed`
        raise new from error


def _with_parts(plugins: Iterable[object]) -> Iterator[object]:
    for plugin in plugins:
        yield plugin
        with suppress(Exception):  # another package's parts() may fail
            for name in type(plugin).parts():  # type: ignore[attr-defined]
                yield getattr(plugin, name)


def _raised_in(error: BaseException, strange: Iterable[object]) -> tuple[object, str] | None:
    """Return the plug-in whose code raised an error, or was the last it passed through, and the module; else None."""
    modules = {base.__module__: plugin for plugin in strange for base in class_of(plugin).__mro__ if not is_own(base)}
    for known in ("builtins", "abc", "typing"):
        modules.pop(known, None)
    each: BaseException | None = error
    while each is not None:
        for module in reversed(_modules(each.__traceback__)):
            if module in modules:
                return modules[module], module
        each = each.__cause__ or each.__context__
    return None


def _modules(trace: TracebackType | None) -> list[str]:
    found = []
    while trace is not None:
        found.append(str(trace.tb_frame.f_globals.get("__name__")))
        trace = trace.tb_next
    return found


def _innermost(error: BaseException) -> str:
    return _modules(error.__traceback__)[-1]
