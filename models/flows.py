"""Normalising flows as the laws of guides: RealNVP, conditional on data or not.

All names, by task:

    RealNVP             an equinox module whose `law(context)` is a distribution on R^d
    AffineCoupling      one of its layers, a NumPyro transform

A flow stands where a guide's Normal would be, inside a program:

    flow = ppl.module("flow", flows.RealNVP(2, key=ppl.rng_key("init")))
    ppl.sample("z", flow.law())

Draws have a pathwise gradient, densities are exact, and both cost one pass through the networks. NumPyro's `AutoIAFNormal` and
`AutoBNAFNormal` serve as guides, too; the densities of given values cost `AutoIAFNormal` d passes.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float
from numpyro.distributions import constraints
from numpyro.distributions.transforms import Transform

__all__ = ["RealNVP", "AffineCoupling"]

_LARGEST_LOG_SCALE = (
    3.0  # of one layer: exp of more than that is a step too far for float32 over several layers
)


class AffineCoupling(Transform):
    """y = x where `kept`, else x exp(s) + t with s, t = net([x where kept, context]).

    Args:
        net: from R^(k + c) to R^(2 (d - k)), k coordinates being kept; s = 3 tanh(s' / 3) of its first half.
        kept: booleans [d], NumPy.
        context: what the law depends on, [*batch, c], or None.

    Reference: Dinh, Sohl-Dickstein and Bengio 2017, arXiv:1605.08803, equations 7 and 8.
    """

    domain = constraints.real_vector  # pyright: ignore[reportAssignmentType]
    codomain = constraints.real_vector  # pyright: ignore[reportAssignmentType]

    def __init__(self, net: Any, kept: np.ndarray, context: Array | None = None) -> None:
        self.net, self.kept, self.context = net, kept, context
        self._moved = np.flatnonzero(~kept)

    def __call__(self, x: Array) -> Array:
        """The value y of a draw x, [*batch, d]."""
        log_scale, shift = self._scale_and_shift(x)
        return x * jnp.exp(log_scale) + shift

    def _inverse(self, y: Array) -> Array:
        log_scale, shift = self._scale_and_shift(y)
        return (y - shift) * jnp.exp(-log_scale)

    def log_abs_det_jacobian(self, x: Array, y: Array, intermediates: Any = None) -> Array:
        """The sum of s, [*batch]."""
        return self._scale_and_shift(x)[0].sum(-1)

    def _scale_and_shift(self, x: Array) -> tuple[Array, Array]:
        seen = x[..., np.flatnonzero(self.kept)]
        if self.context is not None:
            shape = np.broadcast_shapes(seen.shape[:-1], self.context.shape[:-1])
            parts = [jnp.broadcast_to(a, (*shape, a.shape[-1])) for a in (seen, self.context)]
            seen = jnp.concatenate(parts, -1)
        out = jnp.vectorize(self.net, signature="(i)->(o)")(seen)
        log_scale, shift = jnp.split(out, 2, -1)
        log_scale = _LARGEST_LOG_SCALE * jnp.tanh(log_scale / _LARGEST_LOG_SCALE)
        whole = lambda part: (
            jnp.zeros((*part.shape[:-1], len(self.kept))).at[..., self._moved].set(part)
        )
        return whole(log_scale), whole(shift)

    def tree_flatten(self) -> Any:
        """As NumPyro's transforms."""
        arrays, static = eqx.partition(self.net, eqx.is_array)
        names = ("arrays", "context")
        return (arrays, self.context), (names, {"static": static, "kept": tuple(self.kept)})

    @classmethod
    def tree_unflatten(cls, aux: Any, leaves: Any) -> AffineCoupling:
        """The inverse of `tree_flatten`."""
        arrays, context = leaves
        known = aux[1]
        return cls(eqx.combine(arrays, known["static"]), np.array(known["kept"]), context)


class RealNVP(eqx.Module):
    """A standard Normal on R^d through affine coupling layers, then scaled and shifted coordinate by coordinate.

    It begins as the standard Normal: the last layers of its networks are zero at first.

    Args:
        size: d, at least 2.
        key: PRNG key of the networks.
        context_size: c, the length of the context; 0 for none.
        num_layers: couplings; coordinates 0, 2, ... and 1, 3, ... are kept in turn.
        width: of the networks' hidden layers, of which there are `depth`.
        depth: see `width`.

    Raises:
        ValueError: there are fewer than two coordinates.
    """

    nets: list[eqx.nn.MLP]
    loc: Array
    log_scale: Array
    size: int = eqx.field(static=True)
    context_size: int = eqx.field(static=True)

    def __init__(
        self,
        size: int,
        *,
        key: Any,
        context_size: int = 0,
        num_layers: int = 6,
        width: int = 32,
        depth: int = 2,
    ) -> None:
        if size < 2:
            raise ValueError(
                f"RealNVP: size is {size}, but a coupling moves some coordinates by others, so two are needed. Use a Normal, or "
                "another law, for a single one."
            )
        self.size, self.context_size = size, context_size
        self.loc, self.log_scale = jnp.zeros(size), jnp.zeros(size)
        keys = jax.random.split(key, num_layers)
        self.nets = [self._net(k, i, width, depth) for i, k in enumerate(keys)]

    def law(self, context: Float[Array, "*batch context"] | None = None) -> dist.Distribution:
        """The distribution, of batch shape that of the context, event shape (d,).

        Raises:
            ValueError: the context has another length than `context_size`.
        """
        length = 0 if context is None else jnp.shape(context)[-1]
        if length != self.context_size:
            raise ValueError(
                f"RealNVP: the context has length {length}, and the flow was made for context_size={self.context_size}. Pass "
                "what it was made for."
            )
        batch = () if context is None else jnp.shape(context)[:-1]
        base = dist.Normal(jnp.zeros((*batch, self.size)), 1.0).to_event(1)
        couplings = [AffineCoupling(net, self._kept(i), context) for i, net in enumerate(self.nets)]
        last = dist.transforms.IndependentTransform(
            dist.transforms.AffineTransform(self.loc, jnp.exp(self.log_scale)), 1
        )
        return dist.TransformedDistribution(base, [*couplings, last])

    def _kept(self, layer: int) -> np.ndarray:
        return np.arange(self.size) % 2 == layer % 2

    def _net(self, key: Any, layer: int, width: int, depth: int) -> eqx.nn.MLP:
        kept = int(self._kept(layer).sum())
        moved = self.size - kept
        net = eqx.nn.MLP(
            kept + self.context_size, 2 * moved, width, depth, activation=jax.nn.tanh, key=key
        )
        last = lambda net: (net.layers[-1].weight, net.layers[-1].bias)
        return eqx.tree_at(last, net, tuple(jnp.zeros_like(x) for x in last(net)))
