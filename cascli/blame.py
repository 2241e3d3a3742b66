"""Attribute errors to the plug-in of another package that caused them, so that nobody has to read a traceback."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType

from cascli.errors import CascliError, RunError, raised
from cascli.plugins import class_of, group_of, is_own, name_of


def label(plugin: object) -> str:
    """How an error message names a plug-in or its class: kind, name and defining module."""
    plugin_class = class_of(plugin)
    return f"the {kind_of(plugin_class)} '{name_of(plugin_class)}' of {plugin_class.__module__}"


def kind_of(plugin_class: type) -> str:
    """Whether it is a rule, a drafter, a stop or a strategy."""
    group = group_of(plugin_class) or ""
    return {"cascli.strategies": "strategy"}.get(group, group.rpartition(".")[2].removesuffix("s") or "plug-in")


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
        foreign = [each for each in with_parts(plugins) if not is_own(each)]
        if not foreign or getattr(error, "attributed", False):
            raise
        at_fault = _raised_in(error, foreign)
        if isinstance(error, CascliError):
            if at_fault is None or _innermost(error) != at_fault[1]:
                raise
            own_type = next(each for each in type(error).__mro__ if each.__module__ == CascliError.__module__)
            new: CascliError = own_type(f"{label(at_fault[0])}: {error}")
        elif type(error).__name__ == "OutOfMemoryError":
            raise
        elif at_fault is None:
            names = " or ".join(map(label, foreign))
            new = RunError(f"while running {names}: {raised(error)}\nCASCLI_DEBUG=1 shows where this happened.")
        else:
            new = RunError(f"{label(at_fault[0])}: {raised(error)}")
        new.attributed = True  # type: ignore[attr-defined]  # set by the innermost `blamed`
        raise new from error


def with_parts(plugins: Iterable[object]) -> Iterator[object]:
    """The plug-ins, each followed by those that it contains."""
    for plugin in plugins:
        yield plugin
        with suppress(Exception):  # another package's parts() may fail
            for name in type(plugin).parts():  # type: ignore[attr-defined]
                yield getattr(plugin, name)


def _raised_in(error: BaseException, foreign: Iterable[object]) -> tuple[object, str] | None:
    """Return the plug-in whose code raised an error, or was the last it passed through, and the module; else None."""
    modules = {base.__module__: plugin for plugin in foreign for base in class_of(plugin).__mro__ if not is_own(base)}
    for module in ("builtins", "abc", "typing"):
        modules.pop(module, None)
    current: BaseException | None = error
    while current is not None:
        for module in reversed(_modules(current.__traceback__)):
            if module in modules:
                return modules[module], module
        current = current.__cause__ or current.__context__
    return None


def _modules(trace: TracebackType | None) -> list[str]:
    names = []
    while trace is not None:
        names.append(str(trace.tb_frame.f_globals.get("__name__")))
        trace = trace.tb_next
    return names


def _innermost(error: BaseException) -> str:
    return _modules(error.__traceback__)[-1]
