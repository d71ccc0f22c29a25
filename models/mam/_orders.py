"""Orders in which variables are generated, and random permutations as a distribution.

An order is a permutation of 0, ..., D - 1: order[0] is generated first.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.scipy.special import gammaln
from jaxtyping import Array, ArrayLike, Bool, Float, Int
from numpyro.distributions import constraints

from ...ppl._checks import check_event
from ...ppl._compat import is_concrete
from ...ppl._types import Key


class UniformOrder(dist.Distribution):
    """All D! orders of D variables with the same probability.

    As a site of its own next to `MaM.with_order` it makes any-order sampling a program with an exact density.

    Args:
        num_variables: D.

    Example:
        >>> import jax
        >>> from lapilli.models import mam
        >>> sorted(mam.UniformOrder(4).sample(jax.random.key(0)).tolist())
        [0, 1, 2, 3]
    """

    arg_constraints: dict[str, Any] = {}
    pytree_aux_fields = ("num_variables",)

    def __init__(self, num_variables: int, *, validate_args: bool | None = None) -> None:
        self.num_variables = num_variables
        super().__init__((), (num_variables,), validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=1)  # pyright: ignore[reportArgumentType]
    def support(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Integers 0 to D - 1; what is no permutation has density 0."""
        return constraints.independent(constraints.integer_interval(0, self.num_variables - 1), 1)

    def sample(self, key: Key, sample_shape: tuple[int, ...] = ()) -> Array:
        """Permutations, [*sample_shape, D]."""
        return random_orders(key, jnp.zeros((*sample_shape, self.num_variables), bool))

    def log_prob(self, value: Int[Array, "*batch variables"]) -> Float[Array, "*batch"]:
        """-log D!, -inf for what is no permutation.

        Raises:
            ValueError: an order has another length than D.
        """
        check_event("UniformOrder: an order", value, self.event_shape)
        return jnp.where(is_order(value), -gammaln(self.num_variables + 1.0), -jnp.inf)


def random_orders(
    key: Array, first: Bool[Array, "*batch variables"]
) -> Int[Array, "*batch variables"]:
    """A uniformly random order for each row, in which the variables marked `first` come before the others."""
    ranks = jax.random.uniform(key, first.shape)
    return jnp.argsort(jnp.where(first, ranks - 1.0, ranks), -1)


def is_order(order: ArrayLike) -> Bool[Array, "*batch"]:
    """Whether each row is a permutation of 0, ..., D - 1; NumPy's answer where the values are known."""
    xp = np if is_concrete(order) else jnp
    return (xp.sort(order, -1) == np.arange(np.shape(order)[-1])).all(-1)  # pyright: ignore[reportReturnType]


def order_error(label: str, order: ArrayLike, num_variables: int) -> Float[Array, "*batch"] | float:
    """0 for each order; NaN where values that become known later are none.

    Raises:
        ValueError: orders of another length, or known values that are no permutation. `label` says whose they are.
    """
    check_event(label, order, (num_variables,))
    found = is_order(order)
    if not is_concrete(found):
        return jnp.where(found, 0.0, jnp.nan)
    if not found.all():
        wrong = np.asarray(order)[~np.asarray(found)][0]
        raise ValueError(
            f"{label} holds {wrong.tolist()}, which is no permutation of 0 to {num_variables - 1}: a variable would count twice "
            "or never, and the density would be no law's. Give each variable once, numbered from 0."
        )
    return 0.0
