"""The law of the observed part of a row under a marginalization model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Bool, Float, Int
from numpyro.distributions import constraints

if TYPE_CHECKING:
    from ._distribution import MaM


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
        if self.observed.shape[-1:] != mam.event_shape:
            raise ValueError(
                f"MaM.marginal: observed has shape {self.observed.shape}, and the last axis must be the {mam.num_variables} "
                "variables."
            )
        batch_shape = jnp.broadcast_shapes(self.observed.shape[:-1], mam.batch_shape)
        super().__init__(batch_shape, mam.event_shape, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=1)  # pyright: ignore[reportArgumentType]
    def support(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        """That of the whole row."""
        return self.mam.support

    def log_prob(
        self, value: Int[Array, "*shape variables"], intermediates: list[Any] | None = None
    ) -> Float[Array, "*shape"]:
        """Log p(x_S | evidence) in nats."""
        return self.mam.log_marginal(value, self.observed)

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Array:
        """Refused.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "MaM.marginal is a density of observed values; no draw has its law. Observe this site, and draw whole rows with "
            "MaM.draw or density='chain'."
        )
