"""Keep XLA's CPU compiler from returning wrong sums.

From jaxlib 0.10.2 on, XLA:CPU fuses reductions through YNNPACK. Two of its rewrites are wrong:
- a folded `iota` is cached without its length, so that a sum over `arange(3) * x` may read past the buffer of
an earlier `arange(2)`;
- a product with a broadcast constant followed by a sum over the broadcast axis counts the wrong axis
  (`(x @ ones((2, 4))).sum(1)` gives 4 instead of 8 on ones).
Any program may meet them. Switching the fusions off is the only remedy that reaches every compiled program,
and it must happen before JAX starts its backend. tests/test_compiler.py holds both programs; drop this module
when they pass without it.
"""

import os
import sys
import warnings
from importlib.metadata import PackageNotFoundError, version

FLAG = "--xla_cpu_experimental_ynn_fusion_type="
# First release with the fusions, and the end of the range of releases in which the flag is known to exist.
FIRST, END = (0, 10, 2), (0, 13)
_checked: list[bool] = []


def switch_off_wrong_fusions() -> None:
    """Add the flag to XLA_FLAGS, unless it is set already or this jaxlib is not concerned."""
    try:
        release = tuple(int(part) for part in version("jaxlib").split(".")[:3] if part.isdigit())
    except PackageNotFoundError:
        return
    flags = os.environ.get("XLA_FLAGS", "")
    if FIRST <= release < END and FLAG not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {FLAG}".strip()
        if not _may_have_started():
            _checked.append(True)


def _may_have_started() -> bool:
    """Whether JAX may have started its backend; no public function tells without starting it."""
    bridge = sys.modules.get("jax._src.xla_bridge")
    if bridge is None:
        return "jax" in sys.modules
    return getattr(bridge, "backends_are_initialized", lambda: True)()


def warn_of_wrong_fusions() -> None:
    """Warn, once per process, if the fusions are on after all: JAX had started before `import lapilli`.

    Where this is not known from the import, it compiles a sum and looks: 0.1 s.
    """
    if _checked:
        return
    _checked.append(True)
    import jax
    import jax.numpy as jnp

    if jax.default_backend() != "cpu":
        return
    x = jax.ShapeDtypeStruct((20_000, 3), jnp.float32)
    with jax.ensure_compile_time_eval():
        compiled = jax.jit(lambda x: x.sum(1)).lower(x).compile().as_text() or ""
    if "ynn_fusion" in compiled:
        warnings.warn(
            "JAX had started its CPU backend before lapilli was imported, and this jaxlib computes some "
            f"sums wrongly (see lapilli/_compiler.py). Import lapilli first, or set XLA_FLAGS={FLAG} in "
            "the environment.",
            RuntimeWarning,
            stacklevel=2,
        )
