"""A drift of its own for each step, fitted so that the weights vary little.

Along any drift u(x, t) beyond that of `_fkc` the target is reached as well, if the rate of the weights gains

    div u + u . grad log p_t.

Over step n let u = sum_i c_ni b_i, with functions b_i of place and time. A pilot run solves a least-squares problem with as many
unknowns as functions for c_n, from its own particles (weights W_k) before the step: the least

    variance under W of   rate(x) + sum_i c_i (div b_i + b_i . grad log p_n)(x).

Why the particles of the pilot are not those of the result. A step's weight holds the backward kernel, and this the control; so
the weight's mean given where a step starts,

    r_c(x) = integral p_{n+1}(y) B_{n,c}(x | y) dy / p_n(x),

depends on c: only its mean over p_n does not. If c is a function of the very particles whose r_c enters the estimate, the two are
not independent, and E[exp(log_evidence)] in general differs from Z, by a term of order 1/K. With c from an independent run it is
Z, for each value of c. With one backward kernel for all c the proposal might follow its particles without a bias; but that leaves
the rate as it is and adds noise to the weights.

Where weights are ratios of kernels, u enters by the means of both, and no divergence occurs in them. That in the fit may be
rough: it only chooses c.

Reference: Ren et al. 2025, arXiv:2509.21655 (variance-controlling guidance, there from the particles themselves).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from ...ppl._checks import check_counts
from ...ppl._compat import is_concrete, typed_key
from ...ppl._precision import full_precision
from ..particles.engine import Cloud, Moved, Settings
from ..particles.resampling import Resampled, as_resampling, ess_below
from . import _points as points
from ._composition import Composition
from ._corrector import AddedDrift, Corrector, Diffused

Basis = Literal["scores", "reward"] | Callable[[Any, Array], Any]
MOST_COORDINATES = 64  # beyond, a divergence by as many derivatives is not worth it
RIDGE = 1e-4  # on correlations: functions that are alike share their coefficient
STREAM = 0x5C0B  # of the pilot's keys, which the run itself may have been given as well


@dataclasses.dataclass(frozen=True, eq=False)
class DriftControl:
    """Fit a drift for each step by a pilot run, so that the weights of `fkc` vary little: `fkc(..., control=DriftControl(key))`.

    Args:
        key: PRNG key of the pilot run.
        num_particles: of the pilot run. The coefficients are few; some hundreds suffice.
        bases: functions that the drift is a sum of: "scores", those of all models; "reward", the reward's gradient where there is
            a reward; functions `(x, t) -> b(x, t)` of the structure of x. (The gradient of the weights' rate, as a further one,
            gained nothing beside the scores on mixtures.)

    Raises:
        ValueError: fewer than 2 particles, no or an unknown basis.

    Validity: the coefficients are numbers to the run, so that everything said of `fkc` holds for each value of them: with "exact"
    weights E[exp(log_evidence)] is the integral for every grid, however rough the pilot was. The pilot draws numbers of its own
    from the key, so that `smc` may get the same one.

    Reference: Ren et al. 2025, arXiv:2509.21655.
    """

    key: Array
    num_particles: int = 500
    bases: Sequence[Basis] = ("scores", "reward")

    def __post_init__(self) -> None:
        check_counts("DriftControl", 2, num_particles=self.num_particles)
        object.__setattr__(self, "key", typed_key(self.key))
        unknown = [b for b in self.bases if not callable(b) and b not in ("scores", "reward")]
        if unknown or not self.bases or isinstance(self.bases, str):
            raise ValueError(
                f"DriftControl: bases must be a list of 'scores', 'reward' and functions (x, t) -> b(x, t), got {self.bases!r}."
            )


def planned(control: DriftControl, composition: Composition, num_steps: int, is_euler: bool) -> AddedDrift:  # fmt: skip
    """The control before its fit, all coefficients 0; refuses Euler's weights in many coordinates."""
    size = points.size_of(composition.models[0].shape)
    if is_euler and size > MOST_COORDINATES:
        raise ValueError(
            f"fkc: weights='euler' hold the divergence of the control's drift, by a derivative for each of the {size} "
            f"coordinates, which is done up to {MOST_COORDINATES}; an estimate of it within exp(log_weight) would bias the "
            "weights. Use weights='rne' or 'exact' and a positive zeta, which need no divergence, or leave out control=."
        )
    functions = tuple(b for b in control.bases if callable(b))
    has_reward = "reward" in control.bases and composition.reward is not None
    num_scores = len(composition.models) if "scores" in control.bases else 0
    num = num_scores + has_reward + len(functions)
    if num == 0:
        raise ValueError(
            "DriftControl: bases=['reward'] without a reward is no function at all. Use 'scores', or functions (x, t) -> b(x, t)."
        )
    return AddedDrift(num_scores, has_reward, functions, jnp.zeros((num_steps, num)))


def fitted(corrector: Corrector, control: DriftControl) -> Corrector:
    """The corrector with a pilot's coefficients."""
    table, _ = jax.jit(lambda key: pilot(corrector, key, control.num_particles))(control.key)
    if is_concrete(table) and not np.isfinite(np.asarray(table)).all():
        step = int(np.argmin(np.isfinite(np.asarray(table)).all(1)))
        raise ValueError(
            f"fkc: the pilot run of control= has no finite coefficients from step {step} on: its weights or scores there are NaN "
            "or infinite. Look for the first of them with smc and the same options without control=, or take more steps."
        )
    return _with(corrector, table)


def pilot(corrector: Corrector, key: Array, num_particles: int) -> tuple[Array, Array]:
    """Coefficients of least variance, [steps, bases], and the pilot's own log-evidence (biased, see the module's text)."""
    settings = Settings(num_particles, as_resampling("systematic").ancestors, ess_below(0.5))
    num_steps = len(corrector.grid.times) - 1
    init_key, loop_key = jax.random.split(jax.random.fold_in(key, STREAM))
    start = jax.vmap(corrector.init)(jax.random.split(init_key, num_particles))
    log_start = jax.vmap(lambda s: corrector.log_potential(s, s, jnp.zeros((), int)))(start)
    cloud, first = settings.weigh(settings.start(start), log_start)

    def step(cloud: Cloud, n: Array) -> tuple[Cloud, PyTree]:
        fit_key, resample_key, move_key = jax.random.split(jax.random.fold_in(loop_key, n), 3)

        def move(chosen: Resampled) -> Moved:
            keys = jax.random.split(fit_key, num_particles)
            terms = jax.vmap(lambda key, s: _terms(corrector, key, s, n - 1))
            c = least_variance(*terms(keys, chosen.particles), chosen.log_weights)
            steered = _with(corrector, jnp.broadcast_to(c, (num_steps, len(c))))

            def one(key: Array, old: Diffused) -> tuple[Diffused, Array]:
                new = steered.move(key, old, n)
                return new, steered.log_potential(old, new, n)

            keys = jax.random.split(move_key, num_particles)
            return Moved(*jax.vmap(one)(keys, chosen.particles), kept=c)

        cloud, (record, c, _) = settings.step(n, resample_key, cloud, move)
        return cloud, (record["increments"], c)

    steps = jnp.arange(1, num_steps + 1, dtype=jnp.int32)
    _, (increments, table) = jax.lax.scan(step, cloud, steps)
    return table, first["increments"].sum() + increments.sum()


@full_precision
def least_variance(
    rates: Float[Array, " particles"],
    terms: Float[Array, "particles bases"],
    log_weights: Float[Array, " particles"],
) -> Float[Array, " bases"]:
    """The c for which rates + terms @ c vary least under the weights; normalised log-weights."""
    shares = jnp.exp(log_weights)
    centred = lambda x: x - shares @ x
    rates, terms = centred(rates), centred(terms)
    size = jnp.sqrt(shares @ terms**2)
    unit = jnp.where(size > 0, size, 1.0)
    terms = terms / unit
    weighed = terms * shares[:, None]
    gram = weighed.T @ terms + RIDGE * jnp.eye(len(unit))
    return -jnp.linalg.solve(gram, weighed.T @ rates) / unit


def _with(corrector: Corrector, table: Array) -> Corrector:
    assert corrector.control is not None
    control = dataclasses.replace(corrector.control, coefficients=table)
    return dataclasses.replace(corrector, control=control)


def _terms(corrector: Corrector, key: Array, state: Diffused, n: Array) -> tuple[Array, Array]:
    """At a particle before step n, counting from 0: the log-weight that Euler's rate gives, and what each basis adds to it."""
    reward, t = corrector.composition.reward, corrector.grid.times[n]
    if reward is not None and state.tilt is not None:
        slope = jax.grad(lambda t: reward(state.x, t))(t)
        state = state._replace(tilt=state.tilt._replace(slope=slope))
    fn = lambda x: corrector.pushes(corrector.plain_at(x, n, None))
    size = points.size_of(corrector.composition.models[0].shape)
    divergences = (
        points.divergences(fn, state.x)
        if size <= MOST_COORDINATES
        else points.probed_divergences(key, fn, state.x)
    )
    return corrector.rate(state, n), corrector.pushed_rates(state, divergences, n)
