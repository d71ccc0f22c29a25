"""What one run shows of the variance of its evidence: how the weight is spread over the families of the first particles.

Particles that descend from one particle of the first generation (their Eve) form a family e of weight W_e = sum_{k in e} W_k.
With K particles and R resamplings before the last weighing the variance of the log-evidence is estimated by

    v = -log(1 - sum_e W_e^2) - (R + 1) log(K / (K - 1)),

minus the log-share of the pairs of particles that are not related. It needs multinomial offspring counts. With R = 0 it is an
upper bound, also for counts that are not positively correlated, and never negative.

Of M chains that are kept whole (waste-free) a chain is the particle: its weight is the mean of those of its states, and the state
that goes on is drawn by their shares, which is part of the next chain's kernel. So the same holds with M in the place of K, and
families of chains.

Of M systems that run by themselves (islands), with shares V_m of the weight, only pairs inside one can be related:
exp(-v) = 1 - sum_m V_m^2 (1 - exp(-v_m)).

Reference: Chan and Lai 2013, arXiv:1312.5114; Lee and Whiteley 2018, arXiv:1509.00394, section 3.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ....ppl._precision import full_precision
from ....ppl._shared_jit import compiled_alone
from ....ppl._show import is_readable

Array = jax.Array
# Laws of offspring counts for which the estimate is right, and for which it is a bound.
FORMS = {"unbiased": ("multinomial",), "upper": ("multinomial", "negative")}


@compiled_alone
@full_precision
def log_apart(families: Array, log_weights: Array) -> Array:
    """log(1 - sum_e W_e^2), the log-weight of the pairs of particles of different families, given by a number each."""
    masses = jnp.zeros_like(log_weights).at[families].add(jnp.exp(log_weights))
    # With m the mass outside the largest family: 1 - (1 - m)^2 - ..., which loses no digits as m vanishes.
    others = masses.at[masses.argmax()].set(0.0)
    m = others.sum()
    return jnp.log(m * (2 - m) - jnp.vdot(others, others))


class WeighedRun(Protocol):
    """A run: its genealogy's share (None where there is none), weights, and number of resamplings before the last weighing."""

    @property
    def log_evidence(self) -> Array: ...
    @property
    def log_weights(self) -> Array: ...
    @property
    def log_apart(self) -> Array | None: ...
    @property
    def offspring(self) -> str: ...
    @property
    def _num_first(self) -> int: ...  # particles of the first generation, as families count them
    def _num_resamplings(self, read: Callable[[Array], PyTree]) -> Any: ...


def law_of(run: WeighedRun) -> str:
    """The law of the offspring counts: that of the scheme, but where nothing was resampled, known values only."""
    num = run._num_resamplings(lambda x: x)
    if run.offspring == "unknown" and is_readable(num) and not np.asarray(num).any():
        return "multinomial"  # of no draws
    return run.offspring


def family_variance(
    run: WeighedRun, form: str, read: Callable[[Array], PyTree] = lambda x: x
) -> Any:
    """The v of the module's formula, nats squared; `read` makes the arrays that it is computed of."""
    num = run._num_resamplings(read) if form == "unbiased" else 0
    apart: Any = getattr(run, "island_log_apart", run.log_apart)
    v = (num + 1) * math.log1p(-1 / run._num_first) - read(apart)
    if not np.ndim(v):
        return v
    numbers, shares = _shares(run, read)
    return -numbers.log1p((shares**2 * numbers.expm1(-v)).sum())


def family_error(run: WeighedRun, read: Callable[[Array], PyTree] = lambda x: x) -> Any | None:
    """A standard error of the log-evidence, nats; infinite where all particles are related, None where the run does not show it.

    Where families do not tell, the spread of islands does.

    The root of v, or of its bound: where the offspring counts allow no more, or v is negative by its own noise.
    """
    law, is_alone = law_of(run), run._num_first < 2
    if run.log_apart is None or is_alone or law not in FORMS["upper"]:
        return island_error(run, read)
    bound: Any = family_variance(run, "upper", read)
    numbers: PyTree = np if isinstance(bound, np.ndarray | np.generic) else jnp
    bound = numbers.maximum(bound, 0.0)  # but for rounding
    if law not in FORMS["unbiased"]:
        return numbers.sqrt(bound)
    value = family_variance(run, "unbiased", read)
    return numbers.sqrt(numbers.where(value > 0, value, bound))


def island_error(run: object, read: Callable[[Array], PyTree] = lambda x: x) -> Any | None:
    """The standard error of the mean of the islands' evidences over it, from their spread; None without islands."""
    if len(getattr(run, "island_log_evidence", ())) < 2:
        return None
    numbers, shares = _shares(run, read)
    num = len(shares)
    return numbers.sqrt(numbers.maximum(num * (shares**2).sum() - 1, 0.0) / (num - 1))


def _shares(run: Any, read: Callable[[Array], PyTree]) -> tuple[PyTree, PyTree]:
    """NumPy or its namesake, and the islands' shares of the weight."""
    log_z = read(run.island_log_evidence)
    numbers: PyTree = np if isinstance(log_z, np.ndarray) else jnp
    shares = numbers.exp(log_z - log_z.max())
    return numbers, shares / shares.sum()


def facts_with_error(run: Any, remedy: str) -> dict[str, PyTree]:
    """What a run's result prints: its fields, the log-evidence with its standard error, or what to do where it does not show."""
    facts = {f.name: getattr(run, f.name) for f in dataclasses.fields(run) if f.repr}
    for name in ("log_apart", "island_log_apart"):
        facts.pop(name, None)
    if is_readable(run.log_evidence) and np.ndim(run.log_evidence) == 0:
        told = _told(family_error(run, np.asarray), law_of(run), remedy)
        facts["log_evidence"] = f"{float(run.log_evidence):.6g} (standard error {told})"
    return facts


def _told(error: Any | None, law: str, remedy: str) -> str:
    if error is None:
        return f"unknown: {remedy}"
    if not np.isfinite(error):
        return "unknown: the particles are all related; take more"
    kind = {"unbiased": "", "upper": "at most about "}
    known = next(
        (word for form, word in kind.items() if law in FORMS[form]), "from islands, about "
    )
    return f"{known}{float(error):.2g}"
