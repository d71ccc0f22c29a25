"""Score-function estimators with a control variate at relaxed draws: REBAR and RELAX.

A discrete draw is a threshold of a continuous one. Per element, with logit a and logistic noise, z = a + noise and
b = 1[z > 0]; with log-probabilities a_k and Gumbel noise, z_k = a_k + noise_k and b = argmax_k z_k. For any function c that is
continuous and piecewise smooth in the element's z, and depends on nothing else that b can influence,

    d E[f(b)] = E[(f(b) - c(z)) d log p(b) + c'(z) (dz - dz|b)].

dz is the derivative of z at fixed noise, dz|b that of a draw of z given b at fixed noise of its own (the position of z
within its side of the threshold), which is z itself here: one relaxed value serves all three places. In closed form

    Bernoulli     dz - dz|b = (1 - p(b) (1 - exp(-|z|))) da,
    categorical   dz_k - dz_k|b = exp(z_k - max z) da_k.

What c is may be learned: its weights and optimiser are state, trained to lower the mean square of the estimate in
the element's logits. The mean of the estimate does not depend on c.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import PyTree

from ..jaxprs import Analysis, mark, with_true_derivatives
from ._strategy import Downstream, Draw, Strategy, element, stop

Array = jax.Array
BERNOULLI = frozenset({"BernoulliProbs", "BernoulliLogits"})
CATEGORICAL = frozenset({"CategoricalProbs", "CategoricalLogits"})
ONE_HOT = frozenset({"OneHotCategorical"})


class ControlVariate(Strategy):
    """Abstract: score function with a control variate at the relaxed draw; a subclass says which in `control`."""

    optimizer: PyTree
    served = BERNOULLI | CATEGORICAL | ONE_HOT

    @abc.abstractmethod
    def initial_weights(self) -> PyTree:
        """The control variate's initial weights."""

    @abc.abstractmethod
    def control(self, weights: Array, local: PyTree, downstream: Downstream) -> tuple[Array, Array]:
        """(c, derivative of each element's c in the element's z), both times the probability of the states upstream."""

    def refuse(self, distribution: dist.Distribution) -> str | None:
        name = type(distribution).__name__
        if name in self.served:
            return None
        hint = ""
        if name in CATEGORICAL:
            hint = " (write the site as ppl.distributions.OneHotCategorical, whose values can be relaxed)"
        return f"is for {sorted(self.served)} sites, not for {name}{hint}"

    def uniforms(
        self, distribution: dist.Distribution, key: Array, shape: tuple[int, ...]
    ) -> Array:
        """The uniform numbers behind the draw, in (0, 1), shape `shape`; a subclass may bring its own."""
        return jax.random.uniform(key, shape, minval=jnp.finfo(jnp.result_type(float)).tiny)

    def draw(self, fn: dist.Distribution, key: Array) -> Array:
        base, shape = element(fn)
        z = self._relaxed(base, key, shape)[1]
        name = type(base).__name__
        if name in BERNOULLI:
            return (z > 0).astype(jnp.result_type(int))
        k = jnp.argmax(z, -1)
        return k if name in CATEGORICAL else jax.nn.one_hot(k, z.shape[-1], dtype=z.dtype)

    def local(self, draw: Draw) -> Any:
        logits, z = self._relaxed(draw.distribution, draw.key, draw.shape)
        return {"logits": logits, "z": z, "active": jnp.ones(draw.shape)}

    def surrogate(self, local: PyTree, downstream: Downstream) -> Array:
        # stop(g) (a - stop(a)): zero in value, with g as the derivative in the logits a.
        weights = jax.tree.map(stop, downstream.state["weights"])
        logits = local["logits"]
        return stop(self._slope(weights, local, downstream)) * (logits - stop(logits))

    def init_state(self) -> PyTree:
        weights = self.initial_weights()
        return {
            "weights": weights,
            "optimizer": self.optimizer.init(weights) if self.optimizer else (),
        }

    def update(self, local: PyTree, downstream: Downstream) -> PyTree:
        state = downstream.state
        if self.optimizer is None:
            return state

        def mean_square(weights: Array) -> Array:
            slope = self._slope(weights, local, downstream)
            active = local["active"].reshape(
                local["active"].shape + (1,) * _event(local, downstream)
            )
            return jnp.sum(active * slope**2) / jnp.maximum(active.sum(), 1.0)

        grads = jax.grad(mean_square)(state["weights"])
        updates, optimizer = self.optimizer.update(grads, state["optimizer"], state["weights"])
        weights = jax.tree.map(lambda w, u: w + u, state["weights"], updates)
        return {"weights": weights, "optimizer": optimizer}

    def _relaxed(
        self, base: dist.Distribution, key: Array, shape: tuple[int, ...]
    ) -> tuple[Array, Array]:
        """Logits (log-probabilities of categories, last axis), and the relaxed draw, without gradient."""
        logits = jnp.asarray(getattr(base, "logits"))  # noqa: B009, not every distribution has them
        if type(base).__name__ in BERNOULLI:
            logits = jnp.broadcast_to(logits, shape)
            u = jnp.reshape(self.uniforms(base, key, shape), shape)
            return logits, stop(logits) + jnp.log(u) - jnp.log1p(-u)  # Logistic(0, 1) = logit(u)
        # A class of probability zero gets one that is never drawn, so that its logit is finite.
        least = math.log(jnp.finfo(logits.dtype).tiny)
        logits = jnp.maximum(jax.nn.log_softmax(logits), least)
        logits = jnp.broadcast_to(logits, shape + logits.shape[-1:])
        u = jnp.reshape(self.uniforms(base, key, logits.shape), logits.shape)
        return logits, stop(logits) - jnp.log(-jnp.log(u))  # Gumbel(0, 1)

    def _slope(self, weights: Array, local: PyTree, downstream: Downstream) -> Array:
        """The estimate in each element's logits."""
        logits, z = stop(local["logits"]), local["z"]
        c, slope = self.control(weights, local, downstream)
        # (f - c) d log p(b) / d logits + dc/dz (dz - dz|b), the two closed forms of the module's head.
        signal = downstream.cost - c
        if _event(local, downstream):
            score = jax.nn.one_hot(jnp.argmax(z, -1), z.shape[-1], dtype=z.dtype)
            # d log p_k / d log p = onehot_k, the logits being log-probabilities that are normalised outside.
            return signal[..., None] * score + jnp.exp(z - z.max(-1, keepdims=True)) * slope
        p = jax.nn.sigmoid(logits)
        own = jnp.where(z > 0, p, 1 - p)
        return signal * ((z > 0) - p) + (1 + own * jnp.expm1(-jnp.abs(z))) * slope


@dataclasses.dataclass(frozen=True, eq=False)
class Relax(ControlVariate):
    """RELAX: the control variate is a function of the relaxed draw alone, e.g. a network. No further evaluations.

    Args:
        control_fn: `(weights, z) -> scalar`, continuous and piecewise smooth in z. z holds the relaxed values of one
            element (for categorical sites with an axis of classes), or with `num_joint_axes` of a whole row. With
            `inputs` it is `(weights, z, row of inputs) -> scalar`.
        weights: initial weights, a pytree of arrays.
        optimizer: an optax transformation; None keeps the weights.
        num_joint_axes: trailing axes of the site's statement that one value of the control variate sees together; it is mapped
            over all other axes.
        inputs: array known before the draw, e.g. the data; its leading axes are those that are mapped over in the
            statement.

    For Bernoulli, Categorical and OneHotCategorical sites.
    Validity: unbiased for any weights, also where the cost jumps. Jumps of `control_fn` in z are searched for at trace
    time and refused.
    Reference: Grathwohl et al. 2018, arXiv:1711.00123, equation 8, with the two noises coupled.
    """

    control_fn: Callable[..., Array]
    weights: PyTree
    optimizer: PyTree = None
    _: dataclasses.KW_ONLY
    num_joint_axes: int = 0
    inputs: PyTree = None
    name = "relax"

    def initial_weights(self) -> PyTree:
        return jax.tree.map(jnp.asarray, self.weights)

    def local(self, draw: Draw) -> Any:
        num_mapped = len(draw.shape) - self.num_joint_axes
        if num_mapped < 0:
            raise ValueError(
                f"Relax: num_joint_axes is {self.num_joint_axes}, but the elements of the {type(draw.distribution).__name__} "
                f"statement have shape {draw.shape} (axes of scans and particles do not count). Use at most {len(draw.shape)}."
            )
        inputs = None
        if self.inputs is not None:
            inputs = jnp.asarray(self.inputs)
            inputs = jnp.broadcast_to(inputs, draw.shape[:num_mapped] + inputs.shape[num_mapped:])
        local = super().local(draw) | {"inputs": inputs}
        rows = [local["z"]] if inputs is None else [local["z"], inputs]
        _check_continuous(self.control_fn, self.weights, [x.shape[num_mapped:] for x in rows])
        return local

    def control(self, weights: Array, local: PyTree, downstream: Downstream) -> tuple[Array, Array]:
        z, event = local["z"], _event(local, downstream)
        num_mapped = z.ndim - event - self.num_joint_axes
        lead = z.shape[:num_mapped]
        args = [z] if local["inputs"] is None else [z, local["inputs"]]
        rows = [x.reshape(-1, *x.shape[num_mapped:]) for x in args]
        control = with_true_derivatives(self.control_fn)  # or value and slope were of two functions
        each = jax.vmap(jax.value_and_grad(control, argnums=1), (None, *(0 for _ in rows)))
        c, slope = each(weights, *rows)
        c = c.reshape(lead + (1,) * self.num_joint_axes)
        weight = downstream.weight
        weight_of_slope = weight.reshape(weight.shape + (1,) * event)
        return weight * c, weight_of_slope * slope.reshape(z.shape)


@dataclasses.dataclass(frozen=True, eq=False)
class Rebar(ControlVariate):
    """REBAR: the control variate is the cost itself at the softened draw, c(z) = scale * f(softened z / temperature).

    sigmoid for Bernoulli sites, softmax for OneHotCategorical ones. One evaluation and one derivative of what is downstream more.

    Args:
        scale: initial factor of the control variate.
        temperature: initial temperature.
        optimizer: an optax transformation that trains both; None keeps them.

    Raises:
        ValueError: `temperature` is not positive.

    Validity: unbiased for any scale and temperature. Where the cost stops gradients or has custom derivatives, its value is what
    is differentiated, as by every score function. The cost must be continuous and piecewise smooth in the softened
    values: jumps are searched for at trace time and refused, and so is a sampled site that depends on this one
    (enumerated and reparameterised sites may).
    Reference: Tucker et al. 2017, arXiv:1703.07370, with the two noises coupled.
    """

    scale: float = 1.0
    temperature: float = 0.5
    optimizer: PyTree = None
    name = "rebar"
    calls = ("slope",)
    served = BERNOULLI | ONE_HOT

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"Rebar: temperature must be positive, got {self.temperature}.")

    def initial_weights(self) -> PyTree:
        return {
            "scale": jnp.asarray(self.scale, float),
            "log_temperature": jnp.log(jnp.asarray(self.temperature, float)),
        }

    def draw(self, fn: dist.Distribution, key: Array) -> Array:
        return (
            super().draw(fn, key).astype(jnp.result_type(float))
        )  # the program must take softened values

    def control(self, weights: Array, local: PyTree, downstream: Downstream) -> tuple[Array, Array]:
        temperature = jnp.exp(weights["log_temperature"])
        soften = jax.nn.softmax if _event(local, downstream) else jax.nn.sigmoid
        soft, pull = jax.vjp(lambda z: soften(z / temperature), local["z"])
        c, slope = downstream.slope(soft)
        return weights["scale"] * c, weights["scale"] * pull(slope)[0]

    def cost(self, num_values: int | None, num_elements: int) -> str:
        return "2 and a derivative"


def _event(local: PyTree, downstream: Downstream) -> int:
    """1 where the last axis of z is an axis of classes, else 0."""
    return local["z"].ndim - downstream.cost.ndim


def _check_continuous(control_fn: Callable[..., Array], weights: Array, shapes: list[Any]) -> None:
    """Refuse a control variate that jumps in z: on suspicion, random segments are bisected toward the larger change."""

    def marked(z: Array, *rest: Array) -> Array:
        return control_fn(weights, mark(z, (), (), index=0), *rest)

    closed = jax.make_jaxpr(marked)(*(jnp.zeros(s) for s in shapes))
    jumps = Analysis(closed, [False] * len(shapes))[closed.jaxpr.outvars[0]].jumps
    if not jumps:
        return

    def size(key: Array) -> Array:
        k1, k2, k3 = jax.random.split(key, 3)
        a, b = 2 * jax.random.logistic(k1, (2, *shapes[0]))
        rest = [jax.random.normal(k, s) for k, s in zip(jax.random.split(k3, 4), shapes[1:])]  # noqa: B905
        weight = jax.tree.map(lambda w: w + 0.1 * jax.random.normal(k2, jnp.shape(w)), weights)
        at = lambda z: control_fn(weight, z, *rest)  # noqa: E731

        def halve(_: PyTree, ends: PyTree) -> PyTree:
            a, b = ends
            middle = (a + b) / 2
            left = jnp.abs(at(middle) - at(a)) >= jnp.abs(at(b) - at(middle))
            return jnp.where(left, a, middle), jnp.where(left, middle, b)

        a, b = jax.lax.fori_loop(0, 40, halve, (a, b))
        return jnp.abs(at(a) - at(b)) / (1 + jnp.abs(at(a)))

    with jax.ensure_compile_time_eval():
        largest = float(jnp.max(jax.jit(jax.vmap(size))(jax.random.split(jax.random.key(0), 64))))
    if not largest < 1e-3:
        raise ValueError(
            f"Relax: control_fn jumps by {largest:.3g} as a function of z (operation: {jumps[0]}), and the estimate would "
            "miss the jump. Use a continuous function, e.g. a network of softplus or relu units."
        )
