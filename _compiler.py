"""Keep XLA's CPU compiler from returning wrong sums, and tell where it folds constants wrongly.

From jaxlib 0.10.2 on, XLA:CPU fuses reductions through YNNPACK. Two of its rewrites are wrong:
- a folded `iota` is cached without its length, so that a sum over `arange(3) * x` may read past the buffer of
an earlier `arange(2)` (from jaxlib 0.12 on);
- a product with a broadcast constant followed by a sum over the broadcast axis counts the wrong axis
  (`(x @ ones((2, 4))).sum(1)` gives 4 instead of 8 on ones).
Any program may meet them. Switching the fusions off is the only remedy that reaches every compiled program,
and it must happen before JAX starts its backend: too early to see whether the fault is there, so that the release decides.
tests/test_compiler.py holds both programs and fails in a release whose sums are right; drop this module when all are.

Its folding of constants mixes up axes (`constants_are_right`). Sums over states hide these from it (`ppl/estimation/_sweep.py`).
"""

from __future__ import annotations

import os
import sys
import warnings
from importlib.metadata import PackageNotFoundError, version

from ._workarounds import Workaround

FLAG = "--xla_cpu_experimental_ynn_fusion_type="
# First release with the fusions, and the end of the range of releases in which the flag is known to exist.
FIRST, END = (0, 10, 2), (0, 13)
_FAULTY = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"}
# Whether the sums are known to be right or the user to be warned; and who set the flag.
_checked: list[bool] = []
_flag_is_ours: list[bool] = []


def _is_concerned() -> bool:
    try:
        release = tuple(int(part) for part in version("jaxlib").split(".")[:3] if part.isdigit())
    except PackageNotFoundError:
        return False
    return FIRST <= release < END


def switch_off_wrong_fusions() -> None:
    """Add the flag to XLA_FLAGS, unless it is set already or this jaxlib is not concerned."""
    flags = os.environ.get("XLA_FLAGS", "")
    if _is_concerned() and FLAG not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {FLAG}".strip()
        _flag_is_ours.append(True)
        if not _may_have_started():
            _checked.append(True)


def _may_have_started() -> bool:
    """Whether JAX may have started a backend, which then does not read the flag: yes, where that cannot be told."""
    if "jax" not in sys.modules:
        return False
    bridge = sys.modules.get(
        "jax._src.xla_bridge"
    )  # before JAX may be imported, and so in front of `ppl/_compat.py`
    return bool(getattr(bridge, "backends_are_initialized", lambda: True)())


def sums_are_right(options: dict[str, str] | None = None) -> bool:
    """Compile a sum for the CPU and look: 0.1 s. `options`: of the compiler, in place of what XLA_FLAGS says."""
    import jax
    import jax.numpy as jnp

    with jax.ensure_compile_time_eval(), jax.default_device(jax.local_devices(backend="cpu")[0]):
        x = jnp.ones((20_000, 2), jnp.float32)
        total = jax.jit(lambda x: (x @ jnp.ones((2, 4), jnp.float32)).sum(1))
        return float(total.lower(x).compile(options)(x)[0]) == 8.0


def warn_of_wrong_fusions() -> None:
    """Warn, once per process, if sums are wrong after all: JAX had started before `import lapilli`.

    Where this is not known from the import, it compiles a sum and looks.
    """
    if _checked:
        return
    _checked.append(True)
    import jax

    if jax.default_backend() == "cpu" and not sums_are_right():
        warnings.warn(
            "JAX had started its CPU backend before lapilli was imported, and this jaxlib computes some "
            f"sums wrongly (see lapilli/_compiler.py). Import lapilli first, or set XLA_FLAGS={FLAG} in "
            "the environment.",
            RuntimeWarning,
            stacklevel=2,
        )


def constants_are_right() -> bool:
    """Whether the compiler folds gamma functions of a constant that `vmap` has transposed as it should: a small compilation."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    table = np.arange(1, 9, dtype=np.float32).reshape(2, 4)

    def column(x: jax.Array) -> jax.Array:
        return jax.lax.lgamma(jnp.where(x >= 8, 1.0, x))

    columns = jax.vmap(column, in_axes=1)
    folded = jax.jit(lambda: columns(jnp.asarray(table)))()
    return bool(np.allclose(folded, jax.jit(columns)(table), atol=1e-4))


def records() -> tuple[Workaround, ...]:
    """What was found and done, after two compilations or three."""
    found = "The fault does not show here" if constants_are_right() else "The fault shows here"
    folding = Workaround(
        "xla-folded-constants",
        f"jaxlib {version('jaxlib')}",
        "XLA folds gamma functions of constants that vmap has transposed wrongly: columns get each other's values.",
        True,
        f"{found}; the states that are summed are no constants to it in any release.",
    )
    return record(), folding


def record() -> Workaround:
    """What was found of the sums, after one compilation or two."""
    is_applied = False
    if not _is_concerned():
        reason = "This release is not concerned."
    elif not sums_are_right():
        reason = "Sums are wrong: JAX had started first, or XLA_FLAGS asks for the fusions. Import lapilli before JAX starts."
    elif sums_are_right(_FAULTY):
        reason = "The fault does not show on this processor."
    else:
        is_applied = bool(_flag_is_ours)
        by = "lapilli" if is_applied else "the user"
        reason = (
            f"XLA_FLAGS, as set by {by}, keeps the fusions out; with them the sums are wrong here."
        )
    return Workaround(
        "xla-cpu-sums",
        f"jaxlib {version('jaxlib')}",
        "XLA's CPU compiler fuses some sums wrongly: (x @ ones((2, 4))).sum(1) counts the wrong axis.",
        is_applied,
        reason,
    )
