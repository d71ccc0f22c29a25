"""The recurrent network of a PV-RNN: layers of leaky units with latents, and its output.

Layers l = 1 (fast, drives the output) to L (slow). State h_t^l before the nonlinearity, units d_t^l = tanh(h_t^l), latents z_t^l:

    h_t^l = (1 - 1/tau_l) h_{t-1}^l + 1/tau_l (W_d d_{t-1}^l + W_z z_t^l + W_up d^{l+1} + W_down d_{t-1}^{l-1} + b^l).

Two published connectivities: "parallel" takes both neighbours at t - 1 (Chame, Ahmadi and Tani 2020); "top_down" has no term from
below and takes the layer above at the same step t, slow layers first (Idei et al. 2022; Matsumoto et al. 2022).

A *pre-activation* a = (a_mu, a_sigma) of 2 Z numbers stands for the law N(tanh(a_mu), exp(a_sigma)^2) of Z latents. That of the
prior is linear in d_{t-1}^l; at the first step it is zero, hence N(0, 1), or (first_prior="learned") the bias alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float, PyTree

State = tuple[Array, ...]  # h of each layer, fast to slow


class Layer(NamedTuple):
    """Sizes of one layer.

    Attributes:
        num_units: D, number of deterministic units.
        num_latents: Z.
        tau: time constant >= 1 of all units, or one for each (steps).
    """

    num_units: int
    num_latents: int
    tau: float | tuple[float, ...] = 2.0


class Gaussian(NamedTuple):
    """Output x_t ~ Normal(W d_t^1 + b, scale^2) in R^size.

    Attributes:
        size: number of data dimensions O.
        scale: fixed standard deviation; None: one learned for each dimension.
    """

    size: int
    scale: float | None = None


class Categorical(NamedTuple):
    """Output of `size` independent symbols, x_t ~ Categorical(softmax(W d_t^1 + b)), each of `num_classes` values.

    Attributes:
        num_classes: values of a symbol.
        size: symbols of a step.
    """

    num_classes: int
    size: int = 1


class LayerWeights(eqx.Module):
    """Weights of one layer; each maps rows [..., in] to [..., out] as x @ W.

    Attributes:
        recurrent: [D, D].
        from_latent: [Z, D].
        from_above: [D of the layer above, D]; None in the slowest.
        from_below: [D of the layer below, D]; None in the fastest, and in "top_down".
        bias: [D].
        prior: [D, 2 Z], to the prior's pre-activation.
        prior_bias: [2 Z].
        posterior: [D, 2 Z], the share of the state in the posterior's pre-activation; None: it has none.
    """

    recurrent: Float[Array, "d d"]
    from_latent: Float[Array, "z d"]
    from_above: Float[Array, "up d"] | None
    from_below: Float[Array, "down d"] | None
    bias: Float[Array, " d"]
    prior: Float[Array, "d zz"]
    prior_bias: Float[Array, " zz"]
    posterior: Float[Array, "d zz"] | None


class Network(eqx.Module):
    """All weights of the generative model, and the posterior's use of the state.

    Args:
        layers: sizes, fast to slow.
        output: `Gaussian` or `Categorical`.
        connectivity: see the module.
        first_prior: prior of the first step, "unit": N(0, 1); "learned": from its biases.
        posterior_from_state: whether q(z_t | d_{t-1}, a_t) sees d_{t-1} (the first published form) or a_t alone.
        key: PRNG key of the initial weights, Normal(0, 1/fan-in) as in Glorot and Bengio 2010.

    Raises:
        ValueError: no layer, a size below one, a time constant below one or not one for each unit.
    """

    weights: tuple[LayerWeights, ...]
    readout: Float[Array, "d out"]
    readout_bias: Float[Array, " out"]
    log_scale: Float[Array, " size"] | None
    layers: tuple[Layer, ...] = eqx.field(static=True)
    output: Gaussian | Categorical = eqx.field(static=True)
    connectivity: str = eqx.field(static=True)
    first_prior: str = eqx.field(static=True)

    def __init__(
        self,
        layers: Sequence[Layer],
        output: Gaussian | Categorical,
        *,
        connectivity: Literal["parallel", "top_down"] = "top_down",
        first_prior: Literal["unit", "learned"] = "unit",
        posterior_from_state: bool = True,
        key: Array,
    ) -> None:
        self.layers = tuple(Layer(*layer) for layer in layers)
        if isinstance(output, Gaussian) and output.scale is not None:
            output = output._replace(scale=float(output.scale))
        self.output, self.connectivity, self.first_prior = output, connectivity, first_prior
        _check(self.layers, output, connectivity, first_prior)
        keys = iter(jax.random.split(key, 6 * len(self.layers) + 1))

        def linear(num_in: int, num_out: int) -> Array:
            return jax.random.normal(next(keys), (num_in, num_out)) / jnp.sqrt(num_in)

        sizes = [layer.num_units for layer in self.layers]
        has_below = connectivity == "parallel"
        self.weights = tuple(
            LayerWeights(
                recurrent=linear(d, d),
                from_latent=linear(z, d),
                from_above=linear(sizes[l + 1], d) if l + 1 < len(sizes) else None,
                from_below=linear(sizes[l - 1], d) if has_below and l > 0 else None,
                bias=jnp.zeros(d),
                prior=linear(d, 2 * z),
                prior_bias=jnp.zeros(2 * z),
                posterior=linear(d, 2 * z) if posterior_from_state else None,
            )
            for l, (d, z, _) in enumerate(self.layers)
        )
        is_discrete = isinstance(output, Categorical)
        num_out = output.size * (output.num_classes if is_discrete else 1)
        self.readout, self.readout_bias = linear(sizes[0], num_out), jnp.zeros(num_out)
        learned = isinstance(output, Gaussian) and output.scale is None
        self.log_scale = jnp.zeros(output.size) if learned else None

    def initial_state(self, *batch: int) -> State:
        """h_0 = 0 of every layer, [*batch, D]."""
        return tuple(jnp.zeros((*batch, layer.num_units)) for layer in self.layers)

    def prior(self, l: int, h: State, is_first: Any) -> Float[Array, "*batch zz"]:
        """Pre-activation of p(z_t^l | d_{t-1}^l); `is_first` (boolean scalar) marks the step t = 1."""
        w = self.weights[l]
        pre = jnp.tanh(h[l]) @ w.prior + w.prior_bias
        # A zero pre-activation is N(0, 1). The learned first prior is the bias, since d_0 = 0.
        return jnp.where(is_first, 0.0, pre) if self.first_prior == "unit" else pre

    def from_state(self, l: int, h: State) -> Float[Array, "*batch zz"]:
        """The share of d_{t-1}^l in the posterior's pre-activation; zeros where it has none."""
        w = self.weights[l].posterior
        if w is None:
            return jnp.zeros((*h[l].shape[:-1], 2 * self.layers[l].num_latents))
        return jnp.tanh(h[l]) @ w

    def advance(self, h: State, z: Sequence[Array]) -> State:
        """The state after one step with latents z_t, [*batch, Z] by layer."""
        d = [jnp.tanh(x) for x in h]
        new = list(h)
        for l in reversed(range(len(h))):
            w = self.weights[l]
            drive = d[l] @ w.recurrent + z[l] @ w.from_latent + w.bias
            if w.from_above is not None:
                above = jnp.tanh(new[l + 1]) if self.connectivity == "top_down" else d[l + 1]
                drive = drive + above @ w.from_above
            if w.from_below is not None:
                drive = drive + d[l - 1] @ w.from_below
            rate = 1 / jnp.asarray(self.layers[l].tau)
            new[l] = (1 - rate) * h[l] + rate * drive
        return tuple(new)

    def emit(self, h: State) -> Float[Array, "*batch out"]:
        """What the output's law is made of: means, or logits of all symbols one after the other."""
        return jnp.tanh(h[0]) @ self.readout + self.readout_bias

    def law(self, emitted: Float[Array, "*batch out"]) -> dist.Distribution:
        """The law of x_t given what was emitted: batch shape [*batch], event shape [size]."""
        output = self.output
        if isinstance(output, Categorical):
            logits = emitted.reshape(*emitted.shape[:-1], output.size, output.num_classes)
            return dist.CategoricalLogits(logits).to_event(1)
        if output.scale is not None:
            return dist.Normal(emitted, output.scale).to_event(1)
        assert self.log_scale is not None
        return dist.Normal(emitted, jnp.exp(self.log_scale)).to_event(1)


def latent_law(pre: Float[Array, "*batch zz"]) -> dist.Distribution:
    """N(tanh(a_mu), exp(a_sigma)^2) for a pre-activation (a_mu, a_sigma).

    The mean lies in (-1, 1), of prior and posterior alike, as published: what lies farther out cannot be inferred as a mean. The
    weights from the latents are free, and learn to reach the data from there.

    Args:
        pre: a_mu and a_sigma, one after the other, [*batch, 2 Z].
    """
    loc, log_scale = jnp.split(pre, 2, axis=-1)
    return dist.Normal(jnp.tanh(loc), jnp.exp(log_scale)).to_event(1)


def _check(layers: Sequence[Layer], output: PyTree, connectivity: str, first_prior: str) -> None:
    problems = [] if layers else ["there is no layer"]
    for l, (units, latents, tau) in enumerate(layers, 1):
        if units < 1 or latents < 1:
            problems.append(f"layer {l} has {units} units and {latents} latents; it needs both")
        taus = tau if isinstance(tau, tuple) else (tau,)
        if any(x < 1 for x in taus) or len(taus) not in (1, units):
            problems.append(
                f"layer {l} has tau={tau}; give one time constant >= 1, or one for each of its {units} units"
            )
    if connectivity not in ("parallel", "top_down"):
        problems.append(f"connectivity is {connectivity!r}; choose 'parallel' or 'top_down'")
    if first_prior not in ("unit", "learned"):
        problems.append(f"first_prior is {first_prior!r}; choose 'unit' or 'learned'")
    if not isinstance(output, Gaussian | Categorical):
        problems.append(f"output is {output!r}; choose Gaussian(size) or Categorical(num_classes)")
    if problems:
        raise ValueError(f"Network: {'; '.join(problems)}.")
