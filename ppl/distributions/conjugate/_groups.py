"""Elements of a vector in groups: sums over a group, and numbers of groups given to their elements."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float


@dataclasses.dataclass(frozen=True)
class Groups:
    """Which group each element belongs to; equal where the numbers are, so that it may be static under jit.

    Attributes:
        numbers: of the group of each element, 0 ... G - 1.
    """

    numbers: tuple[int, ...]

    @classmethod
    def of(
        cls, law: str, group: Sequence[int], loc: ArrayLike, others: Mapping[str, ArrayLike]
    ) -> Groups:
        """Checked for a law with `loc` [*batch, d] and other parameters [*batch, G], or numbers.

        Raises:
            ValueError: shapes do not fit, or a group has no element.
        """
        index, sizes = np.asarray(group), jnp.shape(loc)[-1:]
        is_numbers = index.ndim == 1 and index.size > 0 and np.issubdtype(index.dtype, np.integer)
        count = int(index.max()) + 1 if is_numbers else 0
        is_whole = is_numbers and set(index.tolist()) == set(range(count))
        fits = all(jnp.shape(x)[-1:] in ((), (1,), (count,)) for x in others.values())
        if not (is_whole and sizes == index.shape and fits):
            shapes = ", ".join(f"{name} {jnp.shape(x)}" for name, x in others.items())
            raise ValueError(
                f"{law}: group has shape {index.shape} and numbers {sorted(set(index.flatten().tolist()))[:6]}, loc "
                f"{jnp.shape(loc)}, {shapes}. Give group one whole number for each element of loc, 0 to G - 1 with none left "
                "out, and the others one number for each group, or one for all."
            )
        return cls(tuple(index.tolist()))

    @functools.cached_property
    def index(self) -> np.ndarray:
        """`numbers` as an array."""
        return np.asarray(self.numbers)

    @functools.cached_property
    def sizes(self) -> np.ndarray:
        """Number of elements of each group."""
        return np.bincount(self.index)

    @property
    def count(self) -> int:
        """G."""
        return len(self.sizes)

    def spread(self, x: Float[Array, "*batch groups"]) -> Float[Array, "*batch elements"]:
        """Each group's number at all of its elements."""
        return x[..., self.index]

    def total(self, x: Float[Array, "*batch elements"]) -> Float[Array, "*batch groups"]:
        """Sum over the elements of each group."""
        return jnp.zeros((*x.shape[:-1], self.count), x.dtype).at[..., self.index].add(x)
