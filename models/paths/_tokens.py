"""Paths of tokens, discrete flow matching: variables that pass, each on its own, from one end to the other."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.special import ndtri
from jaxtyping import Array, ArrayLike, Float, Int, PyTree

from ...inference.diffusion.tokens import Kind
from ...ppl._checks import check_counts
from ...ppl._types import Key
from ._path import Path, Sites, VectorField


@dataclasses.dataclass(frozen=True, init=False)
class TokenPath(Path):
    """A path of rows of values 0 to K - 1, -1 for masked, each variable on its own. Made by `tokens`.

        p_t(x | x_0, x_1) = prod_i ((1 - t) [x_i = x_0i] + t [x_i = x_1i]),
        u_i(v) = ([v = x_1i] - [v = x_ti]) / (1 - t),   the rate at which variable i goes to v.

    b_i(v | x) = E[u_i(v) | x_t = x] = (p(x_1i = v | x) - [v = x_i]) / (1 - t): the Markov chain with these rates has the
    marginals of x_t, whatever the coupling of the ends is.

    Reference: Campbell et al. 2024, arXiv:2402.04997; Gat et al. 2024, arXiv:2407.15595, theorem 2.
    """

    num_values: int
    kind: Kind

    def __init__(self, num_values: int, kind: Kind) -> None:
        object.__setattr__(self, "num_values", num_values)
        object.__setattr__(self, "kind", kind)
        super().__init__(lambda t, start, end, z: jnp.where(z < ndtri(t), end, start), True)

    def at(
        self, t: ArrayLike, start: Array, end: Array, z: Array | None = None
    ) -> tuple[Int[Array, " variables"], Float[Array, "variables values"]]:
        """The row x_t and the rates u of one pair of ends.

        Args:
            t: time in [0, 1).
            start: x_0.
            end: x_1.
            z: standard normal noise, which says what has passed.

        Raises:
            ValueError: ends of different shapes; no noise; rows that are not integers.
        """
        t = jnp.asarray(t, float)
        _check_integers(start, end)
        x = self.position(t, *self.checked(start, end, z))
        return x, self.rates(t, x, jax.nn.one_hot(end, self.num_values))

    def rates(
        self, t: ArrayLike, x: Int[Array, " variables"], probs: Float[Array, "variables values"]
    ) -> Float[Array, "variables values"]:
        """The rates (probs - [v = x_i]) / (1 - t) towards all values, at one row x.

        Args:
            t: time in [0, 1).
            x: the row.
            probs: p(x_1i = v | x_t = x).

        Raises:
            ValueError: x is not of integers.
        """
        _check_integers(x)
        own = jax.nn.one_hot(x, self.num_values)
        # What is shown stays, whatever a network says of it: its loss does not ask.
        if self.kind == "masked":
            probs = jnp.where((x < 0)[..., None], probs, own)
        return (probs - own) / (1 - jnp.asarray(t, float))

    def begin(self, key: Key, shape: tuple[int, ...]) -> Int[Array, "*shape"]:
        """Rows of x_0 from noise: all masked, or drawn evenly."""
        if self.kind == "masked":
            return jnp.full(shape, -1)
        return jax.random.randint(key, shape, 0, self.num_values)

    def sites(
        self, network: Callable[..., PyTree], t: Array, start: Array, end: Array, z: Array, context: PyTree
    ) -> Sites:  # fmt: skip
        """The likelihood of x_1 given x_t, of what is not shown: the network's cross-entropy."""
        x, _ = jax.vmap(self.at)(t, start, end, z)
        found = jax.vmap(network)(x + 1, t, context)
        want = (*end.shape, self.num_values)
        if jnp.shape(found) != want:
            raise ValueError(
                f"flow_matching: the network returned {jnp.shape(found)[1:]} for a row of tokens. Return {want[1:]}, "
                "log-probabilities of the values of each variable."
            )
        is_open = (x < 0) | (self.kind == "uniform")
        law = dist.CategoricalLogits(found)
        return {"x_1": (dist.Independent(dist.MaskedDistribution(law, is_open), 1), end)}


def _check_integers(*rows: Array) -> None:
    for row in rows:
        if not jnp.issubdtype(jnp.result_type(row), jnp.integer):
            raise ValueError(
                f"TokenPath: rows are of integers, and this one is of {jnp.result_type(row)}. Give integers; "
                "paths.diffuse draws them."
            )


def tokens(num_values: int, kind: Kind = "masked") -> TokenPath:
    """The path of discrete flow matching, from noise or from other rows to rows of values 0 to num_values - 1.

    In `flow_matching` the network is called with tokens, 0 for masked and v + 1 for the value v, with t and a context, and
    returns log p(x_1i = v | x_t), [variables, values], normalised or not. x_0 need not be given where it is noise. The field of
    `from_network` has rates, which `diffuse` follows, and `log_probs`, the network of `diffusion.token_law`, whose steps are
    exact and whose density is estimated without bias, and of `inference.diffusion.fkc_tokens`, which guides soundly.

    Args:
        num_values: K.
        kind: "masked": x_0 is masked, -1 at each variable; "uniform": x_0 is drawn evenly, or what `start=` or pairs of data say.

    Raises:
        ValueError: another kind, or no values.

    Reference: Gat et al. 2024, arXiv:2407.15595, equations 6 and 24; Sahoo et al. 2024, arXiv:2406.07524 (masked).
    """
    check_counts("tokens", num_values=num_values)
    if kind not in ("masked", "uniform"):
        raise ValueError(f"paths.tokens: kind must be 'masked' or 'uniform', got {kind!r}.")
    return TokenPath(num_values, kind)


def jump(
    velocity: VectorField, key: Key, start: Int[Array, "rows variables"], num_steps: int
) -> Int[Array, "rows variables"]:
    """Rows at t = 1 of the Markov chain with these rates: in a step variables jump independently (Gat et al., algorithm 1)."""

    def step(x: Array, n: Array) -> tuple[Array, None]:
        rates = jax.vmap(lambda x: velocity(n / num_steps, x))(x)
        moves = jnp.where(jax.nn.one_hot(x, rates.shape[-1], dtype=bool), 0.0, rates / num_steps)
        moves = jnp.maximum(moves, 0.0)
        stays = jnp.maximum(1 - moves.sum(-1, keepdims=True), 0.0)
        chosen = jax.random.categorical(
            jax.random.fold_in(key, n), jnp.log(jnp.concatenate([moves, stays], -1))
        )
        return jnp.where(chosen == rates.shape[-1], x, chosen), None

    return jax.lax.scan(step, jnp.asarray(start), jnp.arange(num_steps))[0]
