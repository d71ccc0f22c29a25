"""`MaM`: a marginalization model as a NumPyro distribution, with every number named after the law it belongs to.

Two networks say what they know of one law, and need not agree with each other:

    l      the marginal network: log p(x_S) for any S, one pass. Not normalised exactly.
    c      the conditional network: p(x_i | x_S). A draw follows c along an order; its law given the order is exact, D passes.

A draw of c weighted by l is the trap: the weight is off by the consistency error, and nothing in the result shows it. Hence:

    density      log_prob(x)                                 passes   law of `sample`?
    "chain"      sum_d c(x_order(d) | x_before) for one order    D    yes; a random order has to be a site of its own
    "ensemble"   log mean over E orders of the same             E D   yes, of draws that choose one of the E orders
    "marginal"   l(x) - l(evidence)                              1    no, and `sample` is refused
    "amortised"  as "marginal"                                   1    no: draws are the chain's, weights are biased by the
                                                                      consistency error, which this name accepts

With evidence every number is conditional on it: evidence is clamped in draws, and a value that contradicts it has density 0.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PyTree
from numpyro.distributions import constraints

from ...ppl._checks import check_event
from ...ppl._compat import is_concrete, typed_key
from ...ppl._types import Key
from . import _chain
from ._orders import order_error, random_orders
from .networks import Networks

Density = Literal["chain", "ensemble", "marginal", "amortised"]
_DENSITIES = ("chain", "ensemble", "marginal", "amortised")


class OrderedDraw(NamedTuple):
    """Draws of the conditional network along an order, and their exact law.

    Attributes:
        value: values 0 to K - 1, [*shape, D].
        order: the order each draw was made in, [*shape, D].
        log_prob: log p(value | order, evidence) in nats, [*shape]. With a target extended by the law of the order, f(value)
            exp(-log_prob) is an unbiased estimate of sum_x f(x) over the x that agree with the evidence.
    """

    value: Int[Array, "*shape variables"]
    order: Int[Array, "*shape variables"]
    log_prob: Float[Array, "*shape"]


class MaM(dist.Distribution):
    """A marginalization model over D variables with values 0 to K - 1; event shape (D,), a pytree.

    Args:
        networks: a `Networks`: a `Pair` of any two networks (`residual_mlps`), or exact `Tables`.
        density: what `log_prob` is, see the table above.
        orders: for "chain" one order, [*batch, D], or None: each draw has its own, uniformly random. For "ensemble" E orders,
            [E, D]. Otherwise the order of draws, as for "chain".
        evidence: tokens of what is observed, integers [*batch, D], 0 for unknown and v + 1 for the value v; None for no
            evidence. See `condition`.

    Raises:
        ValueError: unknown density, orders or evidence of the wrong shape, orders that are no permutations, or tokens that are
            none. Where these become known under jit only, densities are NaN and draws -1.

    Validity: "chain" and "ensemble" densities are normalised and exact; "marginal" is as good as the training of l, see
    `consistency_residual`. Exactly unbiased uses of a trained model: `draw` with its log_prob, "chain" with the order as a
    site, "ensemble", `gibbs_kernel` with a target, and `feynman_kac`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from lapilli.models import mam
        >>> model = mam.MaM(mam.residual_mlps(4, 2, width=8, key=jax.random.key(0)))
        >>> x = jnp.array([0, 1, 1, 0])
        >>> observed = jnp.array([True, False, False, True])
        >>> float(jnp.exp(model.log_marginal(x, observed)))  # uniform before training
        0.25
        >>> model.condition(x, observed).sample(jax.random.key(1), (3,))[:, [0, 3]].tolist()
        [[0, 0], [0, 0], [0, 0]]

    As a guide, with the order as a site of its own in guide and model:

        >>> from lapilli import ppl
        >>> def guide():
        ...     order = ppl.sample("order", mam.UniformOrder(4))
        ...     ppl.sample("x", model.with_order(order))

    Reference: Liu, Ramadge and Adams 2024, Generative Marginalization Models, arXiv:2310.12920.
    """

    arg_constraints: dict[str, Any] = {}
    pytree_data_fields = ("_arrays", "orders", "evidence")
    pytree_aux_fields = ("_static", "density")

    def __init__(
        self,
        networks: Networks,
        *,
        density: Density = "chain",
        orders: Int[Array, "*batch variables"] | None = None,
        evidence: Int[Array, "*batch variables"] | None = None,
        validate_args: bool | None = None,
    ) -> None:
        # Functions among the leaves of a network are no data of a pytree that crosses jit.
        self._arrays, self._static = eqx.partition(networks, eqx.is_array)
        self.density = density
        self.orders = None if orders is None else jnp.asarray(orders)
        self.evidence = None if evidence is None else jnp.asarray(evidence)
        self._check(networks)
        lead = [] if self.evidence is None else [self.evidence.shape[:-1]]
        if self.orders is not None and density != "ensemble":
            lead.append(self.orders.shape[:-1])
        batch_shape = jnp.broadcast_shapes(*lead)
        super().__init__(batch_shape, (networks.num_variables,), validate_args=validate_args)

    def _check(self, networks: Networks) -> None:
        num_variables, num_values = networks.num_variables, networks.num_values
        if self.density not in _DENSITIES:
            raise ValueError(f"MaM: density must be one of {_DENSITIES}, got {self.density!r}.")
        for name, tokens in (("orders", self.orders), ("evidence", self.evidence)):
            if tokens is not None:
                check_event(f"MaM: {name}", tokens, (num_variables,))
        if self.density == "ensemble" and (self.orders is None or self.orders.ndim != 2):
            got = "none" if self.orders is None else f"orders of shape {self.orders.shape}"
            raise ValueError(
                f"MaM: density='ensemble' is the mixture of a fixed set of orders, and got {got}. Give orders=[E, "
                f"{num_variables}], e.g. UniformOrder({num_variables}).sample(key, (5,))."
            )
        if self.orders is not None:
            order_error("MaM: orders", self.orders, num_variables)
        if self.evidence is not None and is_concrete(self.evidence):
            tokens = np.asarray(self.evidence)
            is_bad = ~_are_tokens(tokens, num_values)
            if is_bad.any():
                raise ValueError(
                    f"MaM: evidence holds {tokens[is_bad][0]}, which is no token: 0 is unknown, and v + 1 the value v of 0 to "
                    f"{num_values - 1}. A token beyond them would be read as another one. Give integers of 0 to {num_values}, "
                    "or use `condition`."
                )

    @property
    def networks(self) -> Networks:
        """The two networks."""
        return eqx.combine(self._arrays, self._static)

    @property
    def num_variables(self) -> int:
        """D."""
        return self.event_shape[0]

    @property
    def num_values(self) -> int:
        """K."""
        return self.networks.num_values

    @constraints.dependent_property(is_discrete=True, event_dim=1)  # pyright: ignore[reportArgumentType]
    def support(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Integers 0 to K - 1."""
        return constraints.independent(constraints.integer_interval(0, self.num_values - 1), 1)

    # Densities.

    def log_prob(
        self, value: Int[Array, "*shape variables"], intermediates: PyTree = None
    ) -> Float[Array, "*shape"]:
        """The log-density that `density` names, in nats; -inf outside of the support or against the evidence.

        Raises:
            ValueError: density "chain" in random order, where a value alone has no density of reasonable cost; the last axis is
                not that of the D variables.
        """
        if self.density in ("marginal", "amortised"):
            return self.log_marginal(value, jnp.ones(self.num_variables, bool))
        if self.density == "ensemble":
            assert self.orders is not None
            each = jax.vmap(lambda order: self._log_chain(value, order))(self.orders)
            return jax.nn.logsumexp(each, 0) - jnp.log(len(self.orders))
        (order,) = intermediates or (self.orders,)
        if order is None:
            raise ValueError(
                f"MaM: with density='chain' in random order a value has a density given its order only (the mixture has "
                f"{self.num_variables}! terms). Make the order a site, order = ppl.sample('order', UniformOrder("
                f"{self.num_variables})), and use with_order(order); or give orders=, or density='ensemble'; `draw` returns "
                "values with order and log_prob."
            )
        return self._log_chain(value, order)

    def log_marginal(
        self, value: Int[Array, "*shape variables"], observed: Bool[Array, "*shape variables"]
    ) -> Float[Array, "*shape"]:
        """Log p(x_S | evidence) by the marginal network, for any S in each row, in one pass (two with evidence).

        Args:
            value: values; those outside S are not read.
            observed: true in S, [*shape, D], or one truth value for all; the axes before the last broadcast.

        Returns:
            l(x_S, evidence) - l(evidence) in nats; -inf where x_S is impossible.

        Raises:
            ValueError: the last axis of an array is not that of the D variables.
        """
        tokens, is_possible = self._observe(value, observed)
        level = self._level(tokens)
        if self.evidence is not None:
            level = level - self._level(self.evidence)
        return jnp.where(is_possible, level, -jnp.inf) + self._error()

    def log_conditional(
        self,
        value: Int[Array, "*shape variables"],
        target: Bool[Array, "*shape variables"],
        given: Bool[Array, "*shape variables"],
    ) -> Float[Array, "*shape"]:
        """Log p(x_target | x_given, evidence) = l(both) - l(given) by the marginal network, in one batch of two rows.

        Normalised over x_target up to the consistency error.

        Raises:
            ValueError: as `log_marginal`.
        """
        joint, is_possible = self._observe(value, self._mask(target) | self._mask(given))
        condition, _ = self._observe(value, given)
        levels = self._level(jnp.stack(jnp.broadcast_arrays(joint, condition)))
        return jnp.where(is_possible, levels[0] - levels[1], -jnp.inf) + self._error()

    def conditional_logits(
        self, value: Int[Array, "*shape variables"], observed: Bool[Array, "*shape variables"]
    ) -> Float[Array, "*shape variables values"]:
        """Log p(x_i = k | x_S, evidence) by the conditional network for all i and k, in one pass; normalised over k.

        Rows of observed variables are 0 at their value and -inf elsewhere; all is NaN where x_S contradicts the evidence.

        Raises:
            ValueError: as `log_marginal`.
        """
        tokens, is_possible = self._observe(value, observed)
        log_probs = _chain.by_row(_chain.log_conditionals, self.networks, tokens)
        is_value = tokens[..., None] == jnp.arange(1, self.num_values + 1)
        certain = jnp.where(is_value, 0.0, -jnp.inf)
        filled = jnp.where(tokens[..., None] > 0, certain, log_probs)
        is_possible = is_possible & (self._error() == 0)
        return jnp.where(is_possible[..., None, None], filled, jnp.nan)

    def consistency_residual(
        self, key: Array, value: Int[Array, "*shape variables"]
    ) -> Float[Array, "*shape"]:
        """One residual l(x_S, x_i) - l(x_S) - c(i, x_i | x_S) per row, for a random order and a random step of it (nats).

        Zero for all x, S, i exactly if l and c are the marginals and conditionals of one law. Steps that the evidence has taken
        already do not occur (0 if it has taken all).

        Raises:
            ValueError: a value lies outside of the support or contradicts the evidence (a RuntimeError under jit).
        """
        tokens, evidence = self._whole("MaM.consistency_residual", value)
        order_key, step_key = jax.random.split(typed_key(key))
        order = random_orders(order_key, evidence > 0)
        first = (evidence > 0).sum(-1)
        step = first + jax.random.randint(
            step_key, first.shape, 0, jnp.maximum(self.num_variables - first, 1)
        )
        step = jnp.minimum(step, self.num_variables - 1)
        return _chain.by_row(
            _chain.residual, self.networks, tokens, evidence, order, scalars=(step,)
        )

    def consistency_residuals(
        self, value: Int[Array, "*shape variables"], order: Int[Array, "*shape variables"]
    ) -> Float[Array, "*shape variables"]:
        """The residuals of all D steps along an order, nats. Their sum is l(x) minus the chain's log-density in that order.

        A mean over rows that is not zero at some steps adds up in log p(x); look at it by step.

        Raises:
            ValueError: a value lies outside of the support or contradicts the evidence (a RuntimeError under jit), or an order is
                no permutation (NaN under jit).
        """
        tokens, evidence = self._whole("MaM.consistency_residuals", value)
        error = self._error("MaM.consistency_residuals: order", order)
        found = _chain.by_row(_chain.residuals, self.networks, tokens, evidence, jnp.asarray(order))
        return found + jnp.asarray(error)[..., None]

    def log_steps(
        self, value: Int[Array, "*shape variables"], order: Int[Array, "*shape variables"]
    ) -> Float[Array, "*shape variables"]:
        """Log c(order(d), x_order(d) | x_before) of all D steps along an order, nats, 0 for evidence; see `regress`.

        Sums over the first steps are what the chain says of partial rows; the sum over all is `with_order(order).log_prob`.

        Raises:
            ValueError: a value lies outside of the support or contradicts the evidence (a RuntimeError under jit), or an order is
                no permutation (NaN under jit).
        """
        tokens, evidence = self._whole("MaM.log_steps", value)
        error = self._error("MaM.log_steps: order", order)
        found = _chain.by_row(_chain.log_steps, self.networks, tokens, evidence, jnp.asarray(order))
        return found + jnp.asarray(error)[..., None]

    # Draws.

    def sample(
        self, key: Key, sample_shape: tuple[int, ...] = ()
    ) -> Int[Array, "*shape variables"]:
        """Values drawn variable by variable from the conditional network, D passes.

        Raises:
            ValueError: density "marginal", which is not the law of these draws.
        """
        if self.density == "marginal":
            raise ValueError(
                "MaM: density='marginal' is the marginal network's, and draws follow the conditional network: log_prob would "
                "not be the law of what was drawn, and weights made of it are biased. Use density='chain' with a site for "
                "the order, or 'ensemble'; `draw`, which returns the exact law; or density='amortised' to accept the "
                "consistency error."
            )
        return self.draw(key, sample_shape).value

    def sample_with_intermediates(
        self, key: Key, sample_shape: tuple[int, ...] = ()
    ) -> tuple[Array, list[PyTree]]:
        """Values, and for density "chain" the order, with which `log_prob` is the exact law given the order."""
        value, order, _ = self.draw(key, sample_shape)
        if self.density == "marginal":
            self.sample(key)  # refuses
        return value, [order] if self.density == "chain" else []

    def draw(self, key: Array, sample_shape: tuple[int, ...] = ()) -> OrderedDraw:
        """Any-order draws with their order and their exact log-probability given it, whatever `density` is.

        Args:
            key: PRNG key.
            sample_shape: leading shape of the result, before the batch shape.
        """
        order_key, value_key = jax.random.split(typed_key(key))
        shape = (*sample_shape, *self.batch_shape, self.num_variables)
        evidence = self._evidence(shape)
        order = self._draw_orders(order_key, evidence)
        keys = jax.random.split(value_key, shape[:-1])
        tokens, log_prob = _chain.by_row(
            _chain.generate, self.networks, evidence, order, scalars=(keys,)
        )
        error = self._error("MaM: orders", order)
        # No value at all where the order or the evidence is none: the density of -1 is 0.
        value = jnp.where(jnp.isnan(jnp.asarray(error))[..., None], -1, tokens - 1)
        return OrderedDraw(value, order, log_prob + error)

    def _draw_orders(self, key: Array, evidence: Array) -> Array:
        if self.orders is None:
            return random_orders(key, evidence > 0)
        if self.density != "ensemble":
            return jnp.broadcast_to(self.orders, evidence.shape)
        index = jax.random.randint(key, evidence.shape[:-1], 0, len(self.orders))
        return self.orders[index]

    # Other models of the same networks.

    def with_order(self, order: Int[Array, "*batch variables"]) -> MaM:
        """The model with density "chain" in a given order, [*batch, D]: an exact law."""
        return MaM(self.networks, density="chain", orders=order, evidence=self.evidence)

    def condition(
        self, value: Int[Array, "*batch variables"], observed: Bool[Array, "*batch variables"]
    ) -> MaM:
        """The model given x_S, on top of the evidence there is. Draws keep x_S; densities are conditional on it.

        Args:
            value: values; those outside S are not read.
            observed: true in S, a mask for each row if it has a batch shape.

        Raises:
            ValueError: x_S lies outside of the support or contradicts the evidence (a RuntimeError under jit).
        """
        tokens = self._refuse_impossible("MaM.condition", *self._observe(value, observed))
        return MaM(self.networks, density=self.density, orders=self.orders, evidence=tokens)

    def marginal(self, observed: Bool[Array, "*batch variables"]) -> ObservedMarginal:
        """The law of the observed variables alone, by the marginal network: a likelihood for rows with missing values."""
        return ObservedMarginal(self, observed)

    # Coding.

    def _evidence(self, shape: PyTree) -> Array:
        evidence = jnp.zeros(self.num_variables, int) if self.evidence is None else self.evidence
        return jnp.broadcast_to(evidence, shape)

    def _mask(self, observed: PyTree) -> Array:
        """A mask by variable, or one truth value for all."""
        observed = jnp.asarray(observed, bool)
        if observed.ndim:
            check_event("MaM: a mask", observed, self.event_shape)
        return observed

    def _observe(self, value: ArrayLike, observed: PyTree) -> tuple[Array, Array]:
        """Tokens of the observed values and the evidence together, and whether they can be had together."""
        value, observed = jnp.asarray(value), self._mask(observed)
        check_event("MaM: a value", value, self.event_shape)
        lead = () if self.evidence is None else self.evidence.shape
        shape = jnp.broadcast_shapes(value.shape, observed.shape, lead, self.event_shape)
        evidence = self._evidence(shape)
        # Missing values may be NaN.
        value = jnp.where(observed, value, 0)
        tokens = value.astype(evidence.dtype) + 1
        # A fraction or NaN is no value, whatever it would be rounded to.
        inside = (tokens >= 1) & (tokens <= self.num_values) & (value == tokens - 1)
        fits = inside & ((evidence == 0) | (evidence == tokens))
        return jnp.where(observed & fits, tokens, evidence), (fits | ~observed).all(-1)

    def _whole(self, name: str, value: PyTree) -> tuple[Array, Array]:
        """Tokens of whole rows and of their evidence."""
        tokens = self._refuse_impossible(name, *self._observe(value, True))
        return tokens, self._evidence(tokens.shape)

    def _refuse_impossible(self, name: str, tokens: Array, is_possible: Array) -> Array:
        is_bad = ~is_possible.all()
        text = f"{name}: a value lies outside of 0 to {self.num_values - 1}, or contradicts the evidence there is. "
        text += "Give integers of that range for what is observed."
        if is_concrete(is_bad) and bool(is_bad):
            raise ValueError(text)
        return eqx.error_if(tokens, is_bad, text)

    def _error(self, label: str = "", order: PyTree = None) -> Array | float:
        """0 for each row; NaN where evidence or an order, not known before, holds what is none. Refuses a known order."""
        error = 0.0 if order is None else order_error(label, order, self.num_variables)
        if self.evidence is None or is_concrete(self.evidence):
            return error  # refused when the model was made
        is_known = _are_tokens(self.evidence, self.num_values).all(-1)
        return error + jnp.where(is_known, 0.0, jnp.nan)

    def _level(self, tokens: Array) -> Array:
        return _chain.by_row(_chain.log_marginal, self.networks, tokens)

    def _log_chain(self, value: Array, order: PyTree) -> Array:
        tokens, is_possible = self._observe(value, True)
        evidence = self._evidence(tokens.shape)
        log_prob = _chain.by_row(_chain.score, self.networks, tokens, evidence, jnp.asarray(order))
        return jnp.where(is_possible, log_prob, -jnp.inf) + self._error("MaM: order", order)


def _are_tokens(tokens: PyTree, num_values: int) -> PyTree:
    return (tokens >= 0) & (tokens <= num_values) & (tokens % 1 == 0)


class ObservedMarginal(dist.Distribution):
    """The law of the observed part of a row, log p(x_S | evidence) by the marginal network in one pass. Made by `MaM.marginal`.

    Hidden variables are integrated out, not masked: their entries in a value are not read.

    Args:
        mam: the model of the whole row.
        observed: true in S, [*batch, D].

    Raises:
        ValueError: the last axis of `observed` is not of length D.

    Validity: as good as the training of the marginal network. Drawing is refused: no draw has this law.
    """

    arg_constraints: dict[str, Any] = {}
    pytree_data_fields = ("mam", "observed")

    def __init__(
        self,
        mam: MaM,
        observed: Bool[Array, "*batch variables"],
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.mam, self.observed = mam, jnp.asarray(observed, bool)
        check_event("MaM.marginal: observed", self.observed, mam.event_shape)
        batch_shape = jnp.broadcast_shapes(self.observed.shape[:-1], mam.batch_shape)
        super().__init__(batch_shape, mam.event_shape, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=1)  # pyright: ignore[reportArgumentType]
    def support(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        """That of the whole row."""
        return self.mam.support

    def log_prob(
        self, value: Int[Array, "*shape variables"], intermediates: PyTree = None
    ) -> Float[Array, "*shape"]:
        """Log p(x_S | evidence) in nats."""
        return self.mam.log_marginal(value, self.observed)

    def sample(self, key: Key, sample_shape: tuple[int, ...] = ()) -> Array:
        """Refused.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "MaM.marginal is a density of observed values; no draw has its law. Observe this site, and draw whole rows with "
            "MaM.draw or density='chain'."
        )
