"""Independent runs of one particle method, and what they say together."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ....ppl._calls import checked_call
from ....ppl._checks import check_counts
from ....ppl._compat import typed_key
from ....ppl._show import shown
from ....ppl._types import Key


@shown
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Replicates:
    """Independent runs side by side; a pytree.

    Attributes:
        runs: the runs' results, every array with a leading axis of runs.
        log_evidence: log (1/R) sum_r exp(log_evidence_r), nats; its exponential is unbiased if that of each run is.
        log_evidence_std_error: standard error of `log_evidence` from the runs' spread, nats.
    """

    runs: Any
    log_evidence: Array
    log_evidence_std_error: Array

    @property
    def particles(self) -> Any:
        """The particles of all runs (and their islands), [runs * particles, ...]."""
        axes = self.runs.log_weights.ndim
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[axes:]), self.runs.particles)

    @property
    def log_weights(self) -> Array:
        """Their weights, each run's in proportion to its evidence; normalised, nats, [runs * particles]."""
        shares = jax.nn.log_softmax(self.runs.log_evidence)
        weights = self.runs.log_weights
        return (shares[:, None] + weights.reshape(len(shares), -1)).reshape(-1)


@checked_call
def replicate(
    run: Callable[[Array], PyTree], key: Key, num_runs: int, *, batch_size: int | None = None
) -> Replicates:
    """Independent runs, their evidence combined.

    With Z_r the evidence estimates and p_r = Z_r / sum_s Z_s

        log_evidence = log (1/R) sum_r Z_r,   log_evidence_std_error = sqrt((R sum_r p_r^2 - 1) / (R - 1)).

    Args:
        run: key -> `SMCResult`, `TemperedResult` or another pytree with a number `log_evidence`.
        key: PRNG key of either kind.
        num_runs: R, at least 2.
        batch_size: runs at once (`jax.vmap`), the batches one after the other; None for all.

    Returns:
        `Replicates`. If a run has lost all its particles its evidence counts as 0.

    Raises:
        ValueError: fewer than two runs.
        TypeError: the result of `run` has no `log_evidence`.

    Validity: the exponential of `log_evidence` is unbiased if that of each run is; `log_evidence` itself is too low by about
    half its squared standard error. The standard error is first order in 1/R, and too small where few runs hold most of the
    evidence.

    Example:
        >>> from lapilli import inference
        >>> import jax
        >>> half = inference.FeynmanKac(jax.random.normal, lambda key, x, t: x, lambda _, x, t: -x**2, 0)
        >>> runs = inference.particles.replicate(lambda key: inference.smc(half, key, num_particles=100), jax.random.key(0), 50)
        >>> round(float(jax.numpy.exp(runs.log_evidence) * 3**0.5), 1)
        1.0
    """
    check_counts("replicate", 2, num_runs=num_runs)
    check_counts("replicate", batch_size=1 if batch_size is None else batch_size)
    keys = jax.random.split(typed_key(key), num_runs)
    results = jax.vmap(run)(keys) if batch_size is None else jax.lax.map(run, keys, batch_size=batch_size)  # fmt: skip
    log_z: Float[Array, " runs"] | None = getattr(results, "log_evidence", None)
    if log_z is None:
        raise TypeError(
            f"replicate: the run returned {type(results).__name__}, which has no log_evidence. Return the result of smc or "
            "tempered_smc."
        )
    concentration = jnp.exp(jax.nn.logsumexp(2 * jax.nn.log_softmax(log_z)))
    return Replicates(
        results,
        jax.nn.logsumexp(log_z) - jnp.log(num_runs),
        jnp.sqrt(jnp.maximum(num_runs * concentration - 1, 0) / (num_runs - 1)),
    )
