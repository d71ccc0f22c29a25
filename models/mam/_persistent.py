"""Objectives that learn from persistent chains of the model they train, and from particles that have not seen it.

State between steps: tokens of all chains, the number of moves, and the particles. Each step first moves the chains by one block
Gibbs move of the present conditional network, then estimates value and gradient with the chains, and some of the particles, as a
constant: no derivative passes through how they came about.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from ... import ppl
from ...inference import AbstractObjective, Objective
from ...ppl._types import Key
from . import _chain, _gibbs
from ._orders import random_orders
from .networks import Networks


class ChainState(NamedTuple):
    """State of an objective with persistent chains.

    Attributes:
        tokens: of the chains, [chains, D].
        num_moves: moves they have made.
        baselines: state of the objective's baselines.
        particles: tokens to be replayed, [particles, D]; None where none are.
    """

    tokens: Int[Array, "chains variables"]
    num_moves: Int[Array, ""]
    baselines: Any
    particles: Int[Array, "particles variables"] | None = None


class TemperedConditionals(Networks):
    """Conditionals to a power, normalised anew; marginals as they are, which no longer belong to them."""

    networks: Networks
    power: Array
    num_variables: int = eqx.field(static=True)
    num_values: int = eqx.field(static=True)

    def __init__(self, networks: Networks, power: Array) -> None:
        self.networks, self.power = networks, power
        self.num_variables, self.num_values = networks.num_variables, networks.num_values

    def log_marginal(self, tokens: Int[Array, " variables"]) -> Float[Array, ""]:
        return self.networks.log_marginal(tokens)

    def log_conditionals(
        self, tokens: Int[Array, " variables"]
    ) -> Float[Array, "variables values"]:
        return jax.nn.log_softmax(self.power * self.networks.log_conditionals(tokens))


@dataclasses.dataclass(frozen=True)
class PersistentChains:
    """How the chains are run.

    Args:
        networks: from parameters to the networks that drive the chains.
        count: from the objective's arguments to the number of chains.
        block_size: variables redrawn by one move.
        refresh_every: moves after which all chains are drawn anew along whole orders; None for never.
        powers: one number for each of the last chains; they draw from the conditionals to that power, normalised anew. 1 is the
            network's own law, 0 the uniform one, above 1 lies what is likely, below 0 what is unlikely.
    """

    networks: Callable[[PyTree], Networks]
    count: Callable[..., int]
    block_size: int
    refresh_every: int | None
    powers: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name, value in (("block_size", self.block_size), ("refresh_every", self.refresh_every)):
            if name == "refresh_every" and value is None:
                continue
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"Chains: {name} must be an integer >= 1, got {value!r}.")

    def start(self, params: PyTree, key: Array, *args: PyTree) -> Array:
        """Independent draws along random orders."""
        return self._draw(self.networks(params), key, self._powers(self.count(*args)))

    def advance(self, params: PyTree, key: Array, tokens: Array, num_moves: Array) -> Array:
        """One move of every chain, or fresh draws when their time has come."""
        networks, powers = self.networks(params), self._powers(len(tokens))
        evidence = jnp.zeros(tokens.shape[1], tokens.dtype)

        def move(_: None) -> Array:
            keys = jax.random.split(key, len(tokens))
            one = lambda power, key, row: _gibbs.move(
                TemperedConditionals(networks, power), key, row, evidence, self.block_size
            )[0]
            return jax.vmap(one)(powers, keys, tokens)

        if self.refresh_every is None:
            return move(None)
        is_due = (num_moves + 1) % self.refresh_every == 0
        fresh = lambda _: self._draw(networks, key, powers)
        return jax.lax.cond(is_due, fresh, move, None)

    def _powers(self, count: int) -> Array:
        return jnp.array([*[1.0] * (count - len(self.powers)), *self.powers])

    @staticmethod
    def _draw(networks: Networks, key: Array, powers: Array) -> Array:
        order_key, draw_key = jax.random.split(key)
        empty = jnp.zeros((len(powers), networks.num_variables), int)
        orders = random_orders(order_key, empty > 0)
        one = lambda power, *row: _chain.generate(TemperedConditionals(networks, power), *row)[0]
        return jax.vmap(one)(powers, jax.random.split(draw_key, len(powers)), empty, orders)


@dataclasses.dataclass(frozen=True)
class RowReplay:
    """Rows that do not come from the model.

    Args:
        count: rows of a step.
        draw: from a key to the tokens that they are drawn from, [particles, D], once for a training.
    """

    count: int
    draw: Callable[[Array], Array]

    def pick(self, key: Array, particles: Array) -> Array:
        """Rows of one step, drawn with replacement."""
        return particles[jax.random.randint(key, (self.count,), 0, len(particles))]


@dataclasses.dataclass(frozen=True, eq=False)
class PersistentObjective(AbstractObjective):
    """An objective with persistent chains; `inference.fit` runs it like any other. Made by `distil` and `energy`.

    Attributes:
        inner: the objective of `(rows, *args)`, rows being the chains with those that are replayed behind them.
        chains: how chains are run.
        replay: rows that do not come from the model; None for none.
        judge: `([params, ...], key, rows that each has seen) -> [text or None, ...]`, what is wrong with results; None: nothing
            is looked for.
    """

    inner: Objective
    chains: PersistentChains
    replay: RowReplay | None = None
    judge: Callable[[list[PyTree], Array, int], list[str | None]] | None = None

    @property
    def direction(self) -> Any:
        """That of the inner objective."""
        return self.inner.direction

    @property
    def name(self) -> str:
        """That of the inner objective."""
        return self.inner.name

    @property
    def model(self) -> ppl.Program:
        """The program of `(chains, *args)`."""
        return self.inner.model

    guide = None
    strategies = None

    def init(self, key: Key, *args: PyTree) -> ppl.Params:
        """Initial parameters."""
        return self.inner.init(key, self._blank(*args), *args)

    def init_state(self, params: PyTree, key: Key, *args: PyTree) -> ChainState:
        """Chains drawn along whole orders, and the particles."""
        tokens, particles, rows = self._start(params, key, *args)
        baselines = self.inner.init_state(params, key, rows, *args)
        return ChainState(tokens, jnp.int32(0), baselines, particles)

    def step(
        self, params: PyTree, state: ChainState, key: Key, *args: PyTree
    ) -> tuple[Array, PyTree, ChainState]:
        """Move the chains, then value, gradient and next state."""
        move_key, key = jax.random.split(key)
        tokens = self.chains.advance(params, move_key, state.tokens, state.num_moves)
        rows = self._rows(tokens, state.particles, move_key)
        value, grads, baselines = self.inner.step(params, state.baselines, key, rows, *args)
        return value, grads, ChainState(tokens, state.num_moves + 1, baselines, state.particles)

    def value_and_grad(self, params: PyTree, key: Key, *args: PyTree) -> tuple[Array, PyTree]:
        """Value and gradient with fresh chains and particles."""
        row_key, key = jax.random.split(key)
        rows = self._start(params, row_key, *args)[2]
        return self.inner.value_and_grad(params, key, rows, *args)

    def plan(self, params: PyTree, *args: PyTree) -> ppl.Plan:
        """That of the inner objective."""
        return self.inner.plan(params, self._blank(*args), *args)

    def plate_sizes(self, *args: PyTree) -> dict[str, int]:
        """Plates and their numbers of rows under these arguments."""
        return self.inner.plate_sizes(self._blank(*args), *args)

    def with_plate_sizes(self, sizes: Mapping[str, int]) -> PersistentObjective:
        """This objective for minibatches."""
        return dataclasses.replace(self, inner=self.inner.with_plate_sizes(sizes))

    def verdict(self, result: Any, key: Key | None) -> str | None:
        """That of `judge`."""
        return self._judged([result.params], result, key)[0]

    def verdicts(self, result: Any, key: Key) -> list[str | None]:
        """Those of `judge`, which looks at all seeds together."""
        several = [result.seed(i).params for i in range(result.num_seeds)]
        return self._judged(several, result, key)

    def _judged(self, several: list[Any], result: Any, key: Any) -> list[str | None]:
        if self.judge is None:
            return [None] * len(several)
        return self.judge(several, key, result.steps * self._num_rows(*result.args))

    def site_report(self, params: PyTree, key: Key, *args: PyTree) -> dict[str, dict[str, Array]]:
        """Value and log-prob of every site of one run with fresh chains and particles."""
        row_key, key = jax.random.split(key)
        rows = self._start(params, row_key, *args)[2]
        return self.inner.site_report(params, key, rows, *args)

    def _start(
        self, params: PyTree, key: Array, *args: PyTree
    ) -> tuple[Array, Array | None, Array]:
        """Fresh chains and particles, and the rows of a step with both."""
        tokens = self.chains.start(params, key, *args)
        # Folded: the chains use the key itself, `_rows` another one.
        particles = None if self.replay is None else self.replay.draw(jax.random.fold_in(key, 2))
        return tokens, particles, self._rows(tokens, particles, key)

    def _rows(self, tokens: Array, particles: Array | None, key: Array) -> Array:
        """The chains, and behind them the rows that are replayed."""
        if self.replay is None or particles is None:
            return tokens
        # Folded: the chains use the key itself.
        return jnp.concatenate([tokens, self.replay.pick(jax.random.fold_in(key, 1), particles)])

    def _num_rows(self, *args: PyTree) -> int:
        return self.chains.count(*args) + (0 if self.replay is None else self.replay.count)

    def _blank(self, *args: PyTree) -> Array:
        return jnp.ones((self._num_rows(*args), self.chains.networks({}).num_variables), int)
