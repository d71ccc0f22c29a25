"""Rows of a law known up to its constant that come to it by temperature, and have not seen any model of it."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float, Int, PyTree

from ... import inference, ppl
from ...inference import TemperedResult
from ...ppl._checks import check_counts, log_number

LogTarget = Callable[[Int[Array, " variables"]], Float[Array, ""]]
NUM_MOVES = 2  # Gibbs sweeps at each temperature


def unnormalised(log_target: LogTarget, num_variables: int, num_values: int) -> ppl.Program:
    """F as a program: a uniform row "x" and the factor "target", log f(x) + D log K, so that its evidence is Z.

    For `inference.tempered_smc(program, key, kernel=moves.Gibbs(), ...)`: the law at temperature beta is f^beta, normalised.

    Args:
        log_target: log f of one row `[D] -> scalar`, nats.
        num_variables: D.
        num_values: K.

    Raises:
        ValueError: D below 1, or K below 2.

    Example:
        >>> import jax
        >>> from lapilli import inference
        >>> from lapilli.models import ising, mam
        >>> lattice = ising.Ising(3, 3, coupling=0.2, field=0.2)
        >>> program = mam.unnormalised(lattice.log_density, 9, 2)
        >>> gibbs = inference.particles.moves.Gibbs()
        >>> run = inference.tempered_smc(program, jax.random.key(0), num_particles=2000, kernel=gibbs)
        >>> bool(abs(run.log_evidence - lattice.log_partition()) < 0.1)
        True
    """
    check_counts("unnormalised", num_variables=num_variables)
    check_counts("unnormalised", 2, num_values=num_values)

    @ppl.model
    def target() -> Array:
        logits = jnp.zeros((num_variables, num_values))
        x = ppl.sample("x", dist.CategoricalLogits(logits).to_event(1))
        value = log_number("log_target", log_target(x))
        ppl.factor("target", value + num_variables * math.log(num_values))
        return x

    return target


def tempered_rows(
    log_target: LogTarget, num_variables: int, num_values: int, key: Array, **options: PyTree
) -> TemperedResult:
    """Tempered SMC from the uniform law to f / Z, moved by Gibbs sweeps at each temperature.

    Args:
        log_target: log f of one row, nats.
        num_variables: D.
        num_values: K.
        key: PRNG key.
        options: of `inference.tempered_smc`; two sweeps by default, D (K - 1) evaluations of f for each particle and sweep.

    Returns:
        Its result; particles "x" are rows of values 0 to K - 1, [particles, D].
    """
    program = unnormalised(log_target, num_variables, num_values)
    options = {"num_moves": NUM_MOVES, "kernel": inference.particles.moves.Gibbs()} | options
    return inference.tempered_smc(program, key, **options)
