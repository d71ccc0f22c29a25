"""The two networks of a marginalization model, as one equinox module.

A partial assignment x_S of D variables with values 0, ..., K - 1 is coded as `tokens`, integers [D]: 0 where a variable is
marginalised out, v + 1 where it has the value v. Both networks take tokens of one row; `jax.vmap` makes batches.

    log_marginal(tokens)       l(x_S), meant to be log p(x_S); l of nothing observed is 0 exactly
    log_conditionals(tokens)   c(i, k | x_S), log-probabilities [D, K], meant to be log p(x_i = k | x_S) where i is not in S

c is normalised for each variable; that l and c fit together, and that c in one order fits c in another, has to be learned.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from .... import ppl
from ....ppl._types import ParamMap


class Networks(eqx.Module):
    """Abstract: what a `MaM` needs to know of a joint law.

    Attributes:
        num_variables: D.
        num_values: K.
    """

    num_variables: eqx.AbstractVar[int]
    num_values: eqx.AbstractVar[int]

    @abc.abstractmethod
    def log_marginal(self, tokens: Int[Array, " variables"]) -> Float[Array, ""]:
        """l(x_S) in nats, 0 where nothing is observed."""

    @abc.abstractmethod
    def log_conditionals(
        self, tokens: Int[Array, " variables"]
    ) -> Float[Array, "variables values"]:
        """c(i, k | x_S) in nats, normalised over k; rows of observed variables mean nothing."""


class Pair(Networks):
    """Two networks of any architecture.

        l(x_S) = g(x_S) - g(nothing) - |S| log K,        c(i, . | x_S) = log_softmax(h(x_S)_i)

    The subtraction makes l(nothing) = 0 whatever g is, so that no constant has to be learned or pinned. Outputs are relative to
    the uniform law: g = 0 and h = 0 are uniform, and g stays of the size of what is learned where log p itself is hundreds of
    nats, out of float32's reach for differences of 0.01.

    Args:
        marginal: g, `tokens -> scalar`.
        conditional: h, `tokens -> logits [D, K]`.
        num_variables: D.
        num_values: K.
    """

    marginal: Any
    conditional: Any
    num_variables: int = eqx.field(static=True)
    num_values: int = eqx.field(static=True)

    def log_marginal(self, tokens: Int[Array, " variables"]) -> Float[Array, ""]:
        num_observed = (tokens > 0).sum()
        relative = self.marginal(tokens) - self.marginal(jnp.zeros_like(tokens))
        # A batch and a single row round differently: nothing observed is 0 exactly only if said so.
        relative = jnp.where(num_observed > 0, relative, 0.0)
        return relative - num_observed * jnp.log(self.num_values)

    def log_conditionals(
        self, tokens: Int[Array, " variables"]
    ) -> Float[Array, "variables values"]:
        return jax.nn.log_softmax(self.conditional(tokens))

    def declared(self, *names: str) -> Pair:
        """Inside a program: the networks of these names ("marginal", "conditional") as its parameters, the others fixed."""
        modules = {name: ppl.module(name, getattr(self, name)) for name in names}
        return eqx.tree_at(
            lambda pair: [getattr(pair, name) for name in names], self, list(modules.values())
        )

    def with_warm_marginal(self) -> Pair:
        """The pair with a `Gathered` marginal network that starts from the layers of the conditional one, uniform again.

        What a trained conditional network has found out about the variables need not be learned again. For conditional networks
        of this package, or any with a linear layer `last`.
        """
        last = lambda network: network.last
        blank = jax.tree.map(jnp.zeros_like, last(self.conditional))
        start = Gathered(eqx.tree_at(last, self.conditional, blank))
        return dataclasses.replace(self, marginal=start)

    def with_params(self, params: ParamMap) -> Pair:
        """The networks with fitted parameters, those of "marginal", of "conditional", or both (`Fit.params`).

        Convolutions take the parameters of a grid of another size too.

        Raises:
            ValueError: the shapes are those of other networks.
        """
        fitted = self
        for name in ("marginal", "conditional"):
            if name in params:
                arrays, static = eqx.partition(getattr(self, name), eqx.is_inexact_array)
                leaves, (own, tree) = jax.tree.leaves(params[name]), jax.tree.flatten(arrays)
                needed, found = ([jnp.shape(x) for x in xs] for xs in (own, leaves))
                if needed != found:
                    raise ValueError(
                        f"Pair.with_params: '{name}' has shapes {found}, and this network needs {needed}. Make the pair with "
                        "the sizes it was trained with."
                    )
                module = eqx.combine(jax.tree.unflatten(tree, leaves), static)
                fitted = eqx.tree_at(lambda pair, n=name: getattr(pair, n), fitted, module)
        return fitted


def pair_of(make: Callable[..., PyTree], num_variables: int, num_values: int, key: Array) -> Pair:
    """A `Pair` of two separate networks of one kind, `make(num_outputs, is_summed=, key=)` with outputs at each variable."""
    marginal_key, conditional_key = jax.random.split(key)
    return Pair(
        marginal=make(1, is_summed=True, key=marginal_key),
        conditional=make(num_values, is_summed=False, key=conditional_key),
        num_variables=num_variables,
        num_values=num_values,
    )


class Gathered(eqx.Module):
    """A marginal network made of a conditional one: g(x_S) = sum_{i in S} h(x_S)[i, x_i].

    Every observed variable says its part; log p(x_S) of hundreds of nats is not for one number of the last layer to reach.

    Args:
        network: h, `tokens -> [D, K]`.
    """

    network: Any

    def __call__(self, tokens: Int[Array, " variables"]) -> Float[Array, ""]:
        """The value of g for one row."""
        parts = jnp.take_along_axis(self.network(tokens), jnp.maximum(tokens - 1, 0)[:, None], 1)
        return jnp.where(tokens > 0, parts[:, 0], 0.0).sum()


class ResidualMLP(eqx.Module):
    """h <- relu(W_0 one_hot(tokens)); h <- h + leaky_relu(W_l h), l = 1, ..., depth - 1; out = W h, zero at the start.

    Args:
        num_variables: D.
        num_values: K; the input has K + 1 symbols for each variable.
        shape: shape of the output, () or (D, K).
        width: number of hidden units.
        depth: number of hidden layers.
        key: PRNG key of the initial values.
    """

    first: eqx.nn.Linear
    blocks: tuple[eqx.nn.Linear, ...]
    last: eqx.nn.Linear
    num_symbols: int = eqx.field(static=True)
    shape: tuple[int, ...] = eqx.field(static=True)

    def __init__(
        self,
        num_variables: int,
        num_values: int,
        shape: tuple[int, ...],
        *,
        width: int,
        depth: int,
        key: Array,
    ) -> None:
        keys = jax.random.split(key, depth + 1)
        self.num_symbols, self.shape = num_values + 1, shape
        self.first = eqx.nn.Linear(num_variables * self.num_symbols, width, key=keys[0])
        self.blocks = tuple(eqx.nn.Linear(width, width, key=k) for k in keys[2:])
        size = 1
        for n in shape:
            size *= n
        last = eqx.nn.Linear(width, size, key=keys[1])
        # The uniform law at the start: nothing has to be unlearned.
        self.last = jax.tree.map(jnp.zeros_like, last)

    def __call__(self, tokens: Int[Array, " variables"]) -> Float[Array, "*shape"]:
        """The output for one row."""
        hidden = jax.nn.leaky_relu(self.first(jax.nn.one_hot(tokens, self.num_symbols).ravel()))
        for block in self.blocks:
            hidden = hidden + jax.nn.leaky_relu(block(hidden))
        return self.last(hidden).reshape(self.shape)


def residual_mlps(
    num_variables: int, num_values: int, *, width: int = 256, depth: int = 3, key: Array
) -> Pair:
    """A `Pair` of two separate residual MLPs, uniform at the start.

    Args:
        num_variables: D.
        num_values: K.
        width: hidden units of each layer.
        depth: hidden layers, at least 1.
        key: PRNG key of the initial values.

    Raises:
        ValueError: a size is not positive, or there are fewer than two values.

    Reference: Liu, Ramadge and Adams 2024, arXiv:2310.12920 (width 2048, depth 4 for the Ising model of 10 x 10).
    """
    if min(num_variables, width, depth) < 1 or num_values < 2:
        raise ValueError(
            f"residual_mlps: {num_variables} variables, {num_values} values, width {width}, depth {depth}; needs at least one "
            "variable, two values, one unit and one layer."
        )
    sizes: dict[str, int] = {"width": width, "depth": depth}
    marginal_key, conditional_key = jax.random.split(key)
    of = (num_variables, num_values)
    return Pair(
        marginal=ResidualMLP(*of, (), **sizes, key=marginal_key),
        conditional=ResidualMLP(*of, of, **sizes, key=conditional_key),
        num_variables=num_variables,
        num_values=num_values,
    )
