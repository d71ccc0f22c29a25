"""Inner programs: from the prior's mean to a point near the mode of a local site's posterior, all rows at once.

Terms: U_i(x) = l_i(x) + (x - loc)' P (x - loc) / 2 with l_i the loss of row i and N(loc, P^-1) its prior. An inner program makes
a fixed number of steps on U and returns where it ends, [*batch, d]; `SGLD` also returns the spread of its draws. The loop is a
scan: its length costs time, and memory only if a gradient is taken through it.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ...ppl._checks import check_counts
from ...ppl._show import shown
from ._local_site import NormalPrior, Potential, posterior

Array = jax.Array


class InnerProblem(NamedTuple):
    """What an inner program sees.

    Attributes:
        prior: N(loc, P^-1) of every row.
        gradient: `x -> [*batch, d]`, gradient of each row's loss.
        potential: `x -> Potential`, each row's second-order expansion of the loss at x.
    """

    prior: NormalPrior
    gradient: Callable[[Array], Array]
    potential: Callable[[Array], Potential]

    def full_gradient(self, x: Array) -> Array:
        """Gradient of U."""
        return self.gradient(x) + self.prior.precision_times(x - self.prior.loc)


@shown
class InnerResult(NamedTuple):
    """Where an inner program ended.

    Attributes:
        point: [*batch, d].
        variance: of the draws of a sampler, [*batch, d]; None for an optimiser.
    """

    point: Array
    variance: Array | None = None


class Inner(abc.ABC):
    """Abstract: an inner program."""

    @abc.abstractmethod
    def run(self, problem: InnerProblem, key: Array) -> InnerResult:
        """Run from the prior's mean."""


@dataclasses.dataclass(frozen=True)
class Newton(Inner):
    """x <- x + damping (m(x) - x), m(x) the mean of the posterior under the loss expanded at x with the chosen curvature.

    Newton's method with curvature="hessian", the (damped) Gauss-Newton method with a Gauss-Newton curvature. A diagonal curvature
    ignores the coupling of the coordinates, and its steps may diverge for networks: use `Descent` there.

    Ten full steps end at the mode, to many digits, of up to a hundred Bernoulli observations of a row, whatever they are, under
    normal priors of their logit as wide as 5. There one step may end three posterior standard deviations away, and take a
    curvature tens of times too large. Where the loss is quadratic in the site one step is exact; where it is steeper than its
    expansion tells, as that of large counts far from the prior's mean, full steps overshoot: give a damping, or `Descent`.

    Args:
        num_steps: number of steps, at least 0.
        damping: step length, 0 < damping <= 1.

    Raises:
        ValueError: `damping` is outside of (0, 1], or `num_steps` negative.
    """

    num_steps: int = 10
    damping: float = 1.0

    def __post_init__(self) -> None:
        check_counts(type(self).__name__, 0, num_steps=self.num_steps)
        if not 0 < self.damping <= 1:
            raise ValueError(
                f"Newton: damping is {self.damping}, but a step length lies in (0, 1]. Give 1 for the full step, "
                "less for shorter ones."
            )

    def run(self, problem: InnerProblem, key: Array) -> InnerResult:
        def step(x: Array, _: PyTree) -> tuple[Array, None]:
            mean = posterior(problem.prior, problem.potential(x)).mean
            return x + self.damping * (mean - x), None

        return InnerResult(jax.lax.scan(step, problem.prior.loc, None, self.num_steps)[0])


@dataclasses.dataclass(frozen=True)
class Descent(Inner):
    """Gradient steps of an optax optimiser on U, e.g. `Descent(optax.sgd(1e-2), 5)` or `Descent(optax.adam(1e-2), 20)`.

    Args:
        optimizer: an optax transformation.
        num_steps: number of steps, at least 0.
    """

    optimizer: PyTree
    num_steps: int

    def __post_init__(self) -> None:
        check_counts(type(self).__name__, 0, num_steps=self.num_steps)

    def run(self, problem: InnerProblem, key: Array) -> InnerResult:
        def step(carry: PyTree, _: PyTree) -> tuple[PyTree, None]:
            x, state = carry
            update, state = self.optimizer.update(problem.full_gradient(x), state, x)
            return (x + update, state), None

        start = problem.prior.loc
        carry = (start, self.optimizer.init(start))
        return InnerResult(jax.lax.scan(step, carry, None, self.num_steps)[0][0])


@dataclasses.dataclass(frozen=True)
class SGLD(Inner):
    """Langevin steps x <- x - step_size / 2 grad U(x) + sqrt(step_size) noise; mean and variance after `burn_in`.

    For U(x) = a x^2 / 2 the draws have variance 1 / (a (1 - step_size a / 4)) and the steps are stable where step_size a < 4: the
    curvature that they estimate is too small by the factor 1 - step_size a / 4.

    Args:
        step_size: step size.
        num_steps: number of steps, `burn_in` included.
        burn_in: steps that are dropped; at least two have to remain.

    Raises:
        ValueError: fewer than two draws are left after `burn_in`, which may not be negative; `step_size` is not positive.

    Reference: Welling and Teh 2011, Bayesian learning via stochastic gradient Langevin dynamics.
    """

    step_size: float
    num_steps: int
    burn_in: int = 0

    def __post_init__(self) -> None:
        check_counts(type(self).__name__, 0, num_steps=self.num_steps)
        if self.num_steps - self.burn_in < 2 or self.burn_in < 0 or self.step_size <= 0:
            raise ValueError(
                f"SGLD: {self.num_steps} steps of size {self.step_size} with burn_in {self.burn_in}; a variance needs at least "
                "two draws after a burn-in that is not negative, and steps of positive size."
            )

    def run(self, problem: InnerProblem, key: Array) -> InnerResult:
        start = problem.prior.loc

        def step(carry: PyTree, t: Array) -> tuple[PyTree, None]:
            x, mean, squares = carry
            noise = jax.random.normal(jax.random.fold_in(key, t), x.shape, x.dtype)
            x = x - 0.5 * self.step_size * problem.full_gradient(x) + self.step_size**0.5 * noise
            # Welford's running mean and sum of squares, over the draws after the burn-in.
            count = t - self.burn_in + 1
            change = x - mean
            new_mean = mean + change / jnp.maximum(count, 1)
            new_squares = squares + change * (x - new_mean)
            kept = count >= 1
            return (x, jnp.where(kept, new_mean, mean), jnp.where(kept, new_squares, squares)), None

        carry = (start, jnp.zeros_like(start), jnp.zeros_like(start))
        _, mean, squares = jax.lax.scan(step, carry, jnp.arange(self.num_steps))[0]
        return InnerResult(mean, squares / (self.num_steps - self.burn_in - 1))
