"""A deterministic bound: the draws are fixed once, and what is left is ordinary optimisation.

With S keys k_1, ..., k_S the function

    L_S(params) = 1 / S sum_s value(params; k_s, data)

has no noise: L-BFGS climbs it to the top without a learning rate, the end is where the gradient vanishes, and its Hessian H
there gives two covariances that stochastic steps do not give. `standard_errors`: how far the top would move with other draws.
`linear_response`: posterior covariances, as the change of means under a tilt of the log-density, which a mean-field guide has
right where its own variances are too small.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, PyTree

from ...ppl._calls import checked_call
from ...ppl._checks import check_counts
from ...ppl._compat import typed_key
from ...ppl._precision import full_precision
from ...ppl._types import Key
from ...ppl.language import as_arguments
from ...ppl.strategies import as_strategy
from .._abstract_objective import AbstractObjective, ObjectiveSum
from .._arguments import Arguments
from ..objectives import Objective
from ._choose import check_programs
from ._fit_result import Fit

Array = jax.Array
_MAX_PARAMETERS = 5000  # of a dense Hessian


@dataclasses.dataclass(frozen=True)
class FixedDrawsFit(Fit):
    """A fit with fixed draws; else as `Fit`, and saved and loaded as one, without the draws and what is computed from them.

    Made by `fitting.fit_fixed_draws`.

    `history` has the value of the best start at each step of L-BFGS.

    Attributes:
        key: of the draws.
        num_draws: S.
        gradient_norm: at the end, root of the sum of squares, nats per unit.
        values: where each start ended, nats, [num_starts]; the parameters are those of the best.
    """

    key: Key | None = None
    num_draws: int = 0
    gradient_norm: float = 0.0
    values: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0))

    def standard_errors(self) -> PyTree:
        """Standard error of each parameter, from S draws in place of infinitely many; the tree of `params`.

        The sandwich H^-1 C H^-1 / S, C the covariance of the gradients of single draws. Where it is not small beside what the
        parameter does (the scale of its site, say), `num_draws` is too small.

        Raises:
            ValueError: H is not definite, so the end is no maximum; or there are too many parameters.
        """
        bound = _FixedDrawsBound.of(self)
        flat, unflatten = jax.flatten_util.ravel_pytree(self.params)
        inverse = bound.inverse_hessian(flat, unflatten)
        grads = bound.gradients(flat, unflatten)
        with full_precision():
            covariance = jnp.atleast_2d(jnp.cov(grads, rowvar=False)) / self.num_draws
            return unflatten(jnp.sqrt(jnp.diag(inverse @ covariance @ inverse)))

    def linear_response(
        self, fn: Callable[[Mapping[str, PyTree]], Array], key: Key, *, num_samples: int = 1000
    ) -> Array:
        """Posterior covariance of functions of the latent sites, by linear response.

            cov(f) = J H^-1 J^T,   J = d E_q[f(z)] / d params,

        H the Hessian of -L_S at its top: what the means of f do if the log-density is tilted by f.

        Args:
            fn: latent sites by name -> numbers [d] (or a scalar), differentiable; the sites are drawn from the guide pathwise.
            key: PRNG key of the draws that estimate J.
            num_samples: their number.

        Returns:
            [d, d] (or a scalar), in the units of f squared.

        Raises:
            ValueError: as `standard_errors`; the objective is not the evidence lower bound; a site is summed out.

        Validity: exact for a Normal posterior, also where the guide is mean field; else as good as the guide's means are under
            small tilts of the density.
        Reference: Giordano, Broderick and Jordan 2018, arXiv:1709.02536; with fixed draws Giordano, Ingram and Broderick 2024,
        arXiv:2304.05527.
        """
        bound, guide = _FixedDrawsBound.of(self), self.objective.guide
        if self.objective.name != "elbo":
            raise ValueError(
                f"FixedDrawsFit: linear response is of the evidence lower bound, not of {self.objective.name}: only its top "
                "moves with a tilt as the posterior's means do. Fit inference.elbo(model, guide)."
            )
        assert isinstance(self.objective, Objective)
        plan = self.objective.plan(self.params, *(self.args or ()))
        summed = [s.site for s in plan.sites if as_strategy(s.strategy).kind == "enumerated"]
        if summed:
            raise ValueError(
                f"FixedDrawsFit: linear response draws the sites pathwise, and {summed} are summed out, so that a draw does not "
                "move with the parameters. Sum them out of the model, ppl.eliminate(model, sites)."
            )
        flat, unflatten = jax.flatten_util.ravel_pytree(self.params)
        keys = jax.random.split(typed_key(key), num_samples)
        split, arrays = bound.split, bound.arrays

        def mean(flat: Array) -> Array:
            def one(key: Key) -> Array:
                trace = guide.bind(unflatten(flat)).simulate(key, *split.join(arrays))
                return jnp.ravel(fn(trace.choices))

            return jax.vmap(one)(keys).mean(0)

        jacobian = jax.jit(jax.jacobian(mean))(flat)
        inverse = bound.inverse_hessian(flat, unflatten)
        with full_precision():
            found = jacobian @ inverse @ jacobian.T
        return found[0, 0] if found.shape == (1, 1) else found


@checked_call
def fit_fixed_draws(
    objective: AbstractObjective,
    args: tuple | Mapping[str, PyTree],
    *,
    key: Key,
    num_draws: int = 30,
    num_starts: int = 1,
    params: PyTree = None,
    max_steps: int = 1000,
    tolerance: float = 1e-3,
    unobserved: Literal["raise", "allow"] = "raise",
) -> FixedDrawsFit:
    """Fit by L-BFGS with the draws fixed once: no learning rate, no noise, an end that is one.

    Args:
        objective: whose sites all have a pathwise gradient or are summed out (strategies "reparam", "enum"), and whose gradient
            is that of its value.
        args: all data, a tuple or a dict.
        key: PRNG key of the draws and of the starts.
        num_draws: S. More than there are coordinates of a full-rank guide: with fewer, L_S has no top.
        num_starts: independent initialisations; the best end is kept.
        params: the start, in place of the objective's own.
        max_steps: of L-BFGS for each start.
        tolerance: the norm of the gradient at which to stop, nats per unit.
        unobserved: "allow" fits a model that observes nothing, too, as in `inference.fit`.

    Returns:
        A `FixedDrawsFit`: a `Fit` with standard errors and linear response. Its `stop_reason` is "settled", or "num_steps" where
        `max_steps` ended a run that had not.

    Raises:
        ValueError: a site has another strategy; the gradient at the end is not that of the value (a jump, a detached term).

    Validity: the top of L_S is that of L up to `standard_errors`; L_S itself is too high there by the optimism of the draws that
        it was fitted to, so judge the bound by fresh draws, `objective.value`.
    Reference: Giordano, Ingram and Broderick 2024, Black box variational inference with a deterministic objective,
    arXiv:2304.05527; Burroni, Domke and Sheldon 2023, arXiv:2304.00141.
    """
    check_counts("fit_fixed_draws", 2, num_draws=num_draws)
    check_counts("fit_fixed_draws", num_starts=num_starts, max_steps=max_steps)
    draw_key, start_key = jax.random.split(typed_key(key))
    arguments: tuple = as_arguments(args, objective.model)
    check_programs("fit_fixed_draws", objective, arguments, may_be_prior=unobserved == "allow")
    first = objective.init(start_key, *arguments) if params is None else params
    _check_strategies(objective, first, arguments)
    bound = _FixedDrawsBound(objective, arguments, draw_key, num_draws)
    starts = [first]
    if params is None:
        keys = jax.random.split(start_key, num_starts)
        starts += [objective.init(k, *arguments) for k in keys[1:]]
    run = jax.jit(lambda params: climb(bound.loss, params, max_steps, tolerance))
    runs = [run(start) for start in starts]
    ends = [float(r[1]) for r in runs]
    if np.isnan(ends).all():
        raise ValueError(
            "fit_fixed_draws: the value is NaN at the end of every start. Look for NaN in the data and in the log-densities at "
            "the start: objective.value(params, key, *args)."
        )
    best = int(np.nanargmin(ends))
    params, _, norm, steps, losses = runs[best]
    sign = 1.0 if objective.direction == "max" else -1.0
    _check_gradient(bound, params)
    return FixedDrawsFit(
        objective=objective, params=params, last_params=params,
        state=objective.init_state(params, start_key, *arguments),
        history={"value": -sign * np.asarray(losses)[: int(steps)]},
        args=arguments, steps=int(steps), num_skipped=0, num_seeds=None,
        stop_reason="settled" if float(norm) <= tolerance else "num_steps",
        key=draw_key, num_draws=num_draws, gradient_norm=float(norm),
        values=-sign * np.array([float(r[1]) for r in runs]),
    )  # fmt: skip


class _FixedDrawsBound:
    """-L_S (or L_S, if it is minimised) and its derivatives."""

    def __init__(self, objective: AbstractObjective, args: tuple, key: Key, num_draws: int) -> None:
        self.objective, self.split = objective, Arguments(args)
        self.arrays = [jnp.asarray(x) for x in self.split.arrays(args)]
        self.keys = jax.random.split(key, num_draws)
        self.sign = -1.0 if objective.direction == "max" else 1.0

    @classmethod
    def of(cls, fit: FixedDrawsFit) -> _FixedDrawsBound:
        if fit.args is None:
            raise ValueError(
                "FixedDrawsFit: the data are gone; fit again, or load the fit with args=."
            )
        if fit.key is None:
            raise ValueError(
                "FixedDrawsFit: a file holds no draws, so a loaded fit has neither standard errors nor linear response. Repeat "
                "fit_fixed_draws(..., params=loaded.params) with the key of old."
            )
        return cls(fit.objective, fit.args, fit.key, fit.num_draws)

    def one(self, params: PyTree, key: Key) -> Array:
        return self.sign * self.objective.value(params, key, *self.split.join(self.arrays))

    def loss(self, params: PyTree) -> Array:
        return jax.vmap(lambda key: self.one(params, key))(self.keys).mean()

    def gradients(self, flat: Array, unflatten: Callable[[Array], PyTree]) -> Array:
        """Gradients of single draws, [S, parameters]."""
        grad = jax.grad(lambda flat, key: self.one(unflatten(flat), key))
        return jax.jit(jax.vmap(grad, (None, 0)))(flat, self.keys)

    @full_precision
    def inverse_hessian(self, flat: Array, unflatten: Callable[[Array], PyTree]) -> Array:
        if flat.size > _MAX_PARAMETERS:
            raise ValueError(
                f"FixedDrawsFit: {flat.size} parameters are more than the {_MAX_PARAMETERS} of which a Hessian is made. Use a "
                "guide with fewer, or calibrate the posterior by inference.diagnostics.calibrate."
            )
        hessian = jax.jit(jax.hessian(lambda flat: self.loss(unflatten(flat))))(flat)
        values, vectors = np.linalg.eigh(np.asarray(hessian, float))
        if not values[0] > 1e-6 * max(values[-1], 0.0):
            raise ValueError(
                f"FixedDrawsFit: the Hessian has eigenvalues from {values[0]:.3g} to {values[-1]:.3g}: the end is no strict "
                "optimum. Take more draws or steps, or a guide without superfluous parameters."
            )
        return jnp.asarray((vectors / values) @ vectors.T, flat.dtype)


def climb(
    loss: Callable[[PyTree], Array], params: PyTree, max_steps: int, tolerance: float
) -> tuple[PyTree, ArrayLike, ArrayLike, ArrayLike, Array]:
    """(params, loss, norm of the gradient, steps, losses) after L-BFGS."""
    import optax

    solver = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(loss)

    def body(carry: PyTree) -> PyTree:
        params, state, _, _, step, losses = carry
        value, grad = value_and_grad(params, state=state)
        updates, state = solver.update(grad, state, params, value=value, grad=grad, value_fn=loss)
        params = optax.apply_updates(params, updates)
        value, grad = value_and_grad(params, state=state)
        return params, state, value, optax.tree.norm(grad), step + 1, losses.at[step].set(value)

    start = params, solver.init(params), jnp.inf, jnp.inf, 0, jnp.zeros(max_steps)
    goes_on = lambda c: (c[4] < max_steps) & ~(c[3] <= tolerance)
    params, _, value, norm, steps, losses = jax.lax.while_loop(goes_on, body, start)
    return params, value, norm, steps, losses


def _check_strategies(objective: Any, params: PyTree, args: tuple) -> None:
    if isinstance(objective, ObjectiveSum):
        for _, part in objective.terms:
            _check_strategies(part, params, args)
        return
    if getattr(objective, "gradient", "full") != "full":
        raise ValueError(
            f"fit_fixed_draws: gradient='{objective.gradient}' is not the derivative of the value at fixed draws. Leave it "
            "'full'."
        )
    for site in objective.plan(params, *args).sites:
        kind = as_strategy(site.strategy).kind
        if kind not in ("pathwise", "enumerated") or site.is_biased:
            raise ValueError(
                f"fit_fixed_draws: site '{site.site}' has the strategy '{site.strategy}', under which the value at fixed draws "
                "does not lead its gradient. Reparameterise it, sum it out (strategy 'enum', ppl.eliminate), or use "
                "inference.fit."
            )


def _check_gradient(bound: _FixedDrawsBound, params: PyTree) -> None:
    """Refuse a value whose derivative is not that of its differences, tried in one direction."""
    flat, unflatten = jax.flatten_util.ravel_pytree(params)
    flat, dtype = np.asarray(flat, float), flat.dtype
    direction = np.random.default_rng(0).choice([-1.0, 1.0], size=flat.size)
    loss = jax.jit(lambda flat: bound.loss(unflatten(flat)))
    grad = jax.jit(jax.grad(lambda flat: bound.loss(unflatten(flat))))
    near = [jnp.asarray(flat + step * direction, dtype) for step in (-1e-2, 1e-2)]
    slope = (float(loss(near[1])) - float(loss(near[0]))) / 2e-2
    claimed = [float((np.asarray(grad(x), float) * direction).sum()) for x in near]
    spread = abs(claimed[1] - claimed[0])
    scale = max(abs(float(loss(near[0]))) * 1e-4, 1e-2) + 0.3 * spread
    if not abs(slope - np.mean(claimed)) <= scale:
        raise ValueError(
            f"fit_fixed_draws: along one direction the value changes by {slope:.4g} nats per unit, and its gradient says "
            f"{np.mean(claimed):.4g}. A term is detached or jumps; use inference.fit."
        )
