"""Discrete diffusion: tokens that are masked or replaced at random, as a program, and the bound of masked diffusion.

Terms and kernels are those of `inference.diffusion.tokens`. Along 1 = t_0 > ... > t_N = 0, with a network's p(x_i = k | tokens
at t), the chain's weight along a noised path is, by variable,

    log p(path) - log q(path | x) = log p(x_{t_0}) + sum_n log rho_n(x_{t_{n+1}} | x_{t_n}),

since q(x_t | x_s) stands in both. In masked diffusion a variable's terms come to log p(x_i | x_t) of the step that unmasks it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from ...inference.diffusion.tokens import (
    Kind,
    Network,
    asked,
    log_ratios,
    log_reference,
    noised,
    refuse_logits,
)
from ...ppl._checks import check_counts
from ...ppl._compat import typed_key
from ...ppl.densities import StochasticProgram
from ...ppl.traces import BoundParams, Trace
from .._categories import value_error
from ._law import OneSiteLaw


class TokenLaw(OneSiteLaw):
    """The law of what a discrete diffusion model's chain ends with. Made by `token_law`."""

    kind_shown = "TokenChain"

    def __init__(
        self,
        network: Callable[..., PyTree],
        shape: tuple[int, int],
        num_steps: int,
        kind: Kind,
        name: str,
    ) -> None:
        super().__init__(f"{kind} diffusion law[{name}]", {})
        self.network, self.shape, self.num_steps = network, shape, num_steps
        self.kind: Kind = kind
        self.name = name

    def _with_parts(self, parts: Mapping[str, object]) -> StochasticProgram:
        return TokenLaw(self.network, self.shape, self.num_steps, self.kind, self.name)

    def _draw(self, *args: PyTree, **kwargs: PyTree) -> Trace:
        network, size = self._network(args, kwargs), self.shape[0]
        keys = jax.random.split(self.own_key(), self.num_steps + 1)
        first = jnp.zeros(size, int)
        if self.kind == "uniform":
            first = jax.random.randint(keys[0], (size,), 1, self.shape[1] + 1)

        @jax.checkpoint
        def step(carry: tuple[Array, Array], inputs: PyTree) -> PyTree:
            (tokens, total), (t, s, key) = carry, inputs
            ratios, logits = self._reverse(network, tokens, t, s)
            then = jax.random.categorical(key, logits)
            at = jnp.take_along_axis(ratios, then[:, None], 1)
            return (then, total + at.sum()), None

        grid = self._grid()
        start = first, self._log_prior()
        (tokens, total), _ = jax.lax.scan(step, start, (grid[:-1], grid[1:], keys[1:]))
        return self._trace(tokens - 1, total)

    def _score(self, choices: Mapping[str, PyTree], *args: PyTree, **kwargs: PyTree) -> Trace:
        x = self._value(choices)
        network = self._network(args, kwargs)
        if x.shape != self.shape[:1]:
            raise ValueError(
                f"{self.label}: the value of '{self.name}' has shape {x.shape}, and a row has ({self.shape[0]},). Give one row."
            )

        @jax.checkpoint
        def step(carry: tuple[Array, Array], inputs: PyTree) -> PyTree:
            (tokens, total), (t, s, key) = carry, inputs
            before = noised(key, tokens, (1 - t) / (1 - s), self.kind, self.shape[1])
            ratios, _ = self._reverse(network, before, t, s)
            at = jnp.take_along_axis(ratios, tokens[:, None], 1)
            return (before, total + at.sum()), None

        grid, keys = self._grid(), jax.random.split(self.own_key(), self.num_steps)
        start = x.astype(int) + 1, self._log_prior()
        (_, total), _ = jax.lax.scan(step, start, (grid[-2::-1], grid[:0:-1], keys))
        is_inside = ((x >= 0) & (x < self.shape[1]) & (x == x.astype(int))).all()
        return self._trace(x, jnp.where(is_inside, total, -jnp.inf))

    def _network(self, args: PyTree, kwargs: PyTree) -> Network:
        with BoundParams(self.params or {}):
            network = self.network(*args, **kwargs)
        size, num_values = self.shape
        refuse_logits(self.label, network, size, self.kind, num_values)
        return lambda tokens, t: asked(self.label, network, tokens, t, self.kind, num_values)

    def _grid(self) -> Array:
        return jnp.arange(self.num_steps, -1, -1) / self.num_steps

    def _log_prior(self) -> Array:
        size, num_values = self.shape
        return jnp.asarray(0.0 if self.kind == "masked" else -size * math.log(num_values))

    def _reverse(self, network: Network, tokens: Array, t: Array, s: Array) -> tuple[Array, Array]:
        """For each token at s: log rho, and the log of its probability; [D, K + 1]."""
        ratios = log_ratios(network(tokens, t), tokens, t, s, self.kind)
        return ratios, log_reference(tokens, t, s, self.kind, self.shape[1]) + ratios


def token_law(
    network: Callable[..., Network],
    num_variables: int,
    num_values: int,
    num_steps: int,
    *,
    kind: Kind = "masked",
    name: str = "x",
) -> TokenLaw:
    """The law of a discrete diffusion model's last tokens as a program with one site; its density, the chain's, is estimated.

    simulate(key): the chain along the even grid of `num_steps`, and a w with E[exp(-w) | x] = 1 / p(x).
    estimate_log_density(key, {name: x}): w = log p(path, x) - log q(path | x) along noised tokens; E[exp w] = p(x).

    Args:
        network: function of the program's arguments that returns a function (tokens [D], t) -> log p(x_i = k | tokens at t),
            [D, K], tokens 0 for masked and v + 1 for v; it may declare its parameters by `ppl.module`. An any-order network of
            `mam`: `lambda: lambda tokens, t: networks.log_conditionals(tokens)`.
        num_variables: D.
        num_values: K.
        num_steps: N; in a step of "masked" several variables may be unmasked, independently of each other.
        kind: "masked" (absorbing) or "uniform".
        name: of its site, integers 0 to K - 1, [D].

    Returns:
        A program, as `law` makes one.

    Raises:
        ValueError: another kind; a value of another shape.

    Validity: both identities hold at every N. Derivatives of an estimate in the network's parameters are exact; tokens of a draw
    jump as these move, which objectives refuse.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from lapilli.models import diffusion
        >>> even = lambda: lambda tokens, t: jnp.full((3, 2), -jnp.log(2.0))
        >>> law = diffusion.token_law(even, 3, 2, 4)
        >>> round(float(law.estimate_log_density(jax.random.key(0), {"x": jnp.array([0, 1, 1])})), 4)  # -3 log 2
        -2.0794

    Reference: Austin et al. 2021, arXiv:2107.03006, equations 3 and 4; Sahoo et al. 2024, arXiv:2406.07524, equation 7.
    """
    if kind not in ("masked", "uniform"):
        raise ValueError(f"token_law: kind must be 'masked' or 'uniform', got {kind!r}.")
    check_counts(
        "token_law", num_variables=num_variables, num_values=num_values, num_steps=num_steps
    )
    return TokenLaw(network, (num_variables, num_values), num_steps, kind, name)


def masked_bound(
    network: Network, x: Int[Array, "*batch variables"], key: Array, *, num_times: int = 16
) -> Float[Array, "*batch"]:
    """An unbiased estimate of masked diffusion's lower bound on log p(x) in continuous time, nats.

        E_t[ 1/t sum_{i masked at t} log p(x_i | x_t) ],   t uniform in [0, 1], each variable masked with probability t.

    Args:
        network: function (tokens [D], t) -> log p(x_i = k | tokens), [D, K].
        x: values 0 to K - 1, with any leading axes.
        key: PRNG key; the same key masks the same variables for another network.
        num_times: times drawn for each row, stratified.

    Returns:
        One number for each row; under jit NaN for one with values that are none.

    Raises:
        ValueError: known values that are no integers from 0 to K - 1.

    Validity: for a network that does not look at t the mean is that of any-order autoregression, E_order[sum_d log p(x_order(d) |
    x_before)], whatever the masking rates were: a bound of the mixture of all orders, and exact where its conditionals are those
    of one law.

    Reference: Sahoo et al. 2024, arXiv:2406.07524, equation 10; Ou et al. 2024, arXiv:2406.03736, theorem 2; Uria et al. 2014,
    arXiv:1310.1757, equation 7.
    """
    check_counts("masked_bound", num_times=num_times)
    *batch, size = np.shape(x)
    found = jax.eval_shape(network, jnp.zeros(size, int), jnp.ones(()))
    num_values = found.shape[-1] if found.ndim else 0
    refuse_logits("masked_bound", network, size, "masked", num_values)
    error, x = value_error("masked_bound: x", x, num_values), jnp.asarray(x).astype(int)

    def one(x: Array, key: Array) -> Array:
        time_key, mask_key = jax.random.split(key)
        t = (jnp.arange(num_times) + jax.random.uniform(time_key, (num_times,))) / num_times
        t = jnp.maximum(t, jnp.finfo(t.dtype).tiny)
        is_masked = jax.random.uniform(mask_key, (num_times, size)) < t[:, None]

        def at(t: Array, is_masked: Array) -> Array:
            tokens = jnp.where(is_masked, 0, x + 1)
            log_probs = asked("masked_bound", network, tokens, t, "masked", num_values)
            chosen = jnp.take_along_axis(log_probs, x[:, None], 1)[:, 0]
            return jnp.sum(jnp.where(is_masked, chosen, 0.0)) / t

        return jax.vmap(at)(t, is_masked).mean()

    flat = x.reshape(math.prod(batch), size)
    keys = jax.random.split(typed_key(key), len(flat))
    return jax.vmap(one)(flat, keys).reshape(batch) + error
