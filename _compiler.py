"""Keep XLA's compiler from two wrong rewrites, and warn where that comes too late.

From jaxlib 0.10.2 on, XLA:CPU fuses reductions through YNNPACK. Two of its rewrites are wrong:
- a folded `iota` is cached without its length, so that a sum over `arange(3) * x` may read past the buffer of
an earlier `arange(2)` (from jaxlib 0.12 on);
- a product with a broadcast constant followed by a sum over the broadcast axis counts the wrong axis
  (`(x @ ones((2, 4))).sum(1)` gives 4 instead of 8 on ones).

From jaxlib 0.12 on, XLA folds gamma, zeta and Bessel functions of constants that `vmap` or a transposition has turned as if they
had not been: columns get each other's values. Data that a program closes over are such constants.

Any program may meet them. Flags are the only remedy that reaches every compiled program, and they must be set before JAX starts
its backend: too early to see whether a fault is there, so that the release decides. tests/test_compiler.py holds the programs and
fails in a release that is right; drop this module when all are.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple

from ._workarounds import Workaround

Release = tuple[int, ...]


def sums_are_right(options: dict[str, str] | None = None) -> bool:
    """Where JAX computes on a CPU compile a sum and look: 0.1 s. `options`: of the compiler, in place of what XLA_FLAGS says."""
    import jax
    import jax.numpy as jnp

    if jax.default_backend() != "cpu":
        return True
    with jax.ensure_compile_time_eval():
        x = jnp.ones((20_000, 2), jnp.float32)
        total = jax.jit(lambda x: (x @ jnp.ones((2, 4), jnp.float32)).sum(1))
        return float(total.lower(x).compile(options)(x)[0]) == 8.0


def constants_are_right(options: dict[str, str] | None = None) -> bool:
    """Compile a log-gamma function of a constant table, column by column, and look: 0.1 s. `options` as in `sums_are_right`."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    table = np.arange(1, 9, dtype=np.float32).reshape(2, 4)

    def column(x: jax.Array) -> jax.Array:
        return jax.lax.lgamma(jnp.where(x >= 8, 1.0, x))

    columns = jax.vmap(column, in_axes=1)
    # Not in `ensure_compile_time_eval`, which would leave nothing to fold.
    folded = jax.jit(lambda: columns(jnp.asarray(table))).lower().compile(options)()
    given = jax.jit(columns).lower(table).compile()(table)
    return bool(np.allclose(folded, given, atol=1e-4))


class Fault(NamedTuple):
    """A wrong rewrite of the compiler.

    Attributes:
        name: of its record among the workarounds.
        what: a sentence about it.
        flag: what keeps it out, name and value.
        first: the first release that has it.
        end: of the range of releases in which the flag is known to help.
        is_right: whether what it makes wrong is right here, with the options of the compiler that are given.
        faulty: options under which it shows, whatever XLA_FLAGS says.
    """

    name: str
    what: str
    flag: tuple[str, str]
    first: Release
    end: Release
    is_right: Callable[[dict[str, str] | None], bool]
    faulty: dict[str, str]

    @property
    def is_in_release(self) -> bool:
        """Whether the installed jaxlib has it, as far as its number tells."""
        try:
            release = tuple(int(p) for p in version("jaxlib").split(".")[:3] if p.isdigit())
        except PackageNotFoundError:
            return False
        return self.first <= release < self.end


FAULTS = (
    Fault(
        "xla-cpu-sums",
        "XLA's CPU compiler fuses some sums wrongly: (x @ ones((2, 4))).sum(1) counts the wrong axis.",
        ("--xla_cpu_experimental_ynn_fusion_type", ""), (0, 10, 2), (0, 13), sums_are_right,
        {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"},
    ),
    Fault(
        "xla-folded-constants",
        "XLA folds gamma functions of constants that vmap has transposed wrongly: columns get each other's values.",
        ("--xla_disable_hlo_passes", "constant_folding"), (0, 12), (0, 13), constants_are_right,
        {"xla_disable_hlo_passes": ""},
    ),
)  # fmt: skip

# Faults that are known to be kept out or that the user was warned of, and those whose flag this package has set: by name.
_checked: set[str] = set()
_ours: set[str] = set()


def keep_out_faults() -> None:
    """Add the flags to XLA_FLAGS, unless they are set already, as by a parent process, or this jaxlib is not concerned."""
    for fault in (f for f in FAULTS if f.is_in_release):
        flags, (name, value) = os.environ.get("XLA_FLAGS", ""), fault.flag
        if f"{name}=" not in flags:
            os.environ["XLA_FLAGS"] = flags = f"{flags} {name}={value}".strip()
            _ours.add(fault.name)
        if f"{name}={value}" in flags.split() and not _may_have_started():
            _checked.add(fault.name)


def _may_have_started() -> bool:
    """Whether JAX may have started a backend, which then does not read the flags: yes, where that cannot be told."""
    if "jax" not in sys.modules:
        return False
    bridge = sys.modules.get(
        "jax._src.xla_bridge"
    )  # before JAX may be imported, and so in front of `ppl/_compat.py`
    return bool(getattr(bridge, "backends_are_initialized", lambda: True)())


def warn_of_faults() -> None:
    """Warn, once per process, of what is computed wrongly after all: JAX had started before `import lapilli`.

    Where this is not known from the import, it compiles a small program and looks.
    """
    if len(_checked) == len(FAULTS):
        return
    wrong = [
        f for f in FAULTS if f.name not in _checked and f.is_in_release and not f.is_right(None)
    ]
    _checked.update(fault.name for fault in FAULTS)
    for fault in wrong:
        warnings.warn(
            f"JAX had started before lapilli was imported, or XLA_FLAGS asks for it: {fault.what} Import lapilli first, or set "
            f"XLA_FLAGS={'='.join(fault.flag)} in the environment (see lapilli/_compiler.py).",
            RuntimeWarning,
            stacklevel=2,
        )


def records() -> tuple[Workaround, ...]:
    """What was found of each fault, after a compilation or two."""
    return tuple(map(_record, FAULTS))


def _record(fault: Fault) -> Workaround:
    is_applied = False
    if not fault.is_in_release:
        reason = "This release is not concerned."
    elif not fault.is_right(None):
        reason = "It shows here: JAX had started first, or XLA_FLAGS asks for it. Import lapilli before JAX starts."
    elif fault.is_right(fault.faulty):
        reason = "It does not show on this processor."
    else:
        is_applied = fault.name in _ours
        by = "lapilli" if is_applied else "the user"
        reason = f"XLA_FLAGS, as set by {by}, keeps it out; without them it shows here."
    return Workaround(fault.name, f"jaxlib {version('jaxlib')}", fault.what, is_applied, reason)
