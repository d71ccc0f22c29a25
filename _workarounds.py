"""Which faults of other packages lapilli mends here: a record of each, and whether it is applied."""

from __future__ import annotations

import dataclasses
from importlib.metadata import version


@dataclasses.dataclass(frozen=True)
class Workaround:
    """A fault of another package and what is done about it.

    Attributes:
        name: a short name.
        package: the package and its installed version.
        fault: what is wrong in it.
        is_applied: whether lapilli changes the package's behaviour in this process.
        reason: why it does, or does not.
    """

    name: str
    package: str
    fault: str
    is_applied: bool
    reason: str

    def __repr__(self) -> str:
        state = "applied" if self.is_applied else "not applied"
        return f"{self.name} ({self.package}): {state}. {self.fault} {self.reason}"


class Workarounds(tuple[Workaround, ...]):
    """The records, printed one a line."""

    def __repr__(self) -> str:
        return "\n".join(map(repr, self))


def workarounds() -> Workarounds:
    """The known faults of other packages, whether each was found in the installed versions, and whether it is mended.

    A mend is applied only where its fault shows: each is looked for by what the package computes, not by its version. Mends of
    NumPyro are decided at the first use of what they mend, and here at the latest. The one of XLA must be in place before JAX
    starts, and goes by release: the record says what XLA computes here. The call compiles some two dozen small programs.

    Returns:
        A tuple of `Workaround`.

    Example:
        >>> import lapilli
        >>> print(*(w.name for w in lapilli.workarounds() if w.name.startswith("numpyro")))
        numpyro-handler-stack numpyro-products numpyro-traced-arguments numpyro-lazy-modules
    """
    from . import _compiler
    from .ppl import _compat, _handler_stack, _precision, _validation
    from .ppl.distributions import mends

    numpyro = (
        _handler_stack.record(_compat.numpyro_stack()),
        _precision.record(),
        _validation.record(),
        _lazy_modules(_compat.torn_modules),
    )
    return Workarounds((*_compiler.records(), *mends.records(), *numpyro))


def _lazy_modules(torn: list[str]) -> Workaround:
    return Workaround(
        "numpyro-lazy-modules",
        f"numpyro {version('numpyro')}",
        "Where ArviZ has registered numpyro as a lazy module, its submodules may come loose from it.",
        bool(torn),
        f"Joined again: {', '.join(torn)}." if torn else "All were in their places.",
    )
