"""What computed a number, as the interpreter saw it: the function that was asked, and all functions that ran for it.

Two routes to a number count as two if they share no function of this project from the model to the number. A string
could say anything, so `measure` watches the calls, by the standard library's profiler.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from cProfile import Profile
from dataclasses import dataclass
from types import CodeType
from typing import Any, Generic, TypeVar

T = TypeVar("T")

WATCHED = ("lorantk", "experiments", "checks")
"""Packages whose functions are recorded; what `evidence` does comes after the number."""

BESIDE = {
    *(f"lorantk.{name}" for name in ("models", "lora", "layers", "batches")),
    "experiments.data",
    "experiments.training",
    "checks.tolerance",
}
"""Modules that all routes start from or end in: they make the model, its adapters and its data, check arguments, and
hold a number against its law."""


@dataclass(frozen=True)
class Measured(Generic[T]):
    """A value, the functions that were asked for it, and the names of all functions that ran.

    Parameters
    ----------
    value : anything
    route : tuple of str
        Qualified names of the functions handed to `measure`, in order.
    code : frozenset of str
        Qualified names of the functions of `WATCHED` that ran but for those of `BESIDE`, and those in `route`.
    """

    value: T
    route: tuple[str, ...]
    code: frozenset[str]

    def shares(self, other: Measured[Any]) -> frozenset[str]:
        """Names of functions that both used."""
        return self.code & other.code


def measure(function: Callable[..., T], *args: Any, **kwargs: Any) -> Measured[T]:
    """Call a function and record what ran; arguments that were measured themselves hand their route and code on.

    A lambda may pick a number out of measured arguments: it has no name in the route, what it calls has.
    """
    given = [a for a in (*args, *kwargs.values()) if isinstance(a, Measured)]
    watch = Profile(builtins=False, subcalls=False)
    before = sys.getprofile()
    watch.enable()
    try:
        value = function(*map(_plain, args), **{key: _plain(a) for key, a in kwargs.items()})
    finally:
        watch.disable()
        before.enable() if isinstance(before, Profile) else sys.setprofile(before)
    files = {getattr(m, "__file__", None): name for name, m in sys.modules.items() if name.split(".")[0] in WATCHED}
    codes = [entry.code for entry in watch.getstats() if isinstance(entry.code, CodeType)]
    seen = {_watched(code, files[code.co_filename]) for code in codes if code.co_filename in files}
    own = () if "<lambda>" in getattr(function, "__qualname__", "") else (_name(function),)
    route = tuple(dict.fromkeys([name for a in given for name in a.route] + list(own)))
    if not route:
        raise ValueError("function must have a name, or be given what was measured; got a lambda alone")
    code = frozenset().union(seen - {""}, own, *(a.code for a in given))
    return Measured(value, route, code)


def _plain(argument: Any) -> Any:
    return argument.value if isinstance(argument, Measured) else argument


def _name(function: Callable[..., Any]) -> str:
    module = getattr(function, "__module__", None) or type(function).__module__
    name = str(getattr(function, "__qualname__", None) or getattr(function, "__name__", type(function).__qualname__))
    return f"{module}.{name.split('.<locals>')[0]}"


def _watched(code: CodeType, module: str) -> str:
    """Name of a function of a module, what is defined inside it included; "" if it has no name or is in `BESIDE`."""
    name = code.co_qualname
    if module in BESIDE or "<lambda>" in name or name.startswith("<"):
        return ""
    return f"{module}.{name.split('.<locals>')[0]}"
