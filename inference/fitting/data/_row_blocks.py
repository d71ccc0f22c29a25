"""All rows of files that are mapped into memory, some at a time: a log-density of all of them, of which few are ever held.

With n_b of N rows in block b, and the terms of the plate's rows scaled by N / n_b,

    log p_b = prior + N / n_b (terms of the rows in b),      log p = sum_b n_b / N log p_b,

exactly, and so are gradients and Hessians.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ..._arguments import Arguments

BLOCK_BYTES = 2**25  # of rows, as they are given


class RowBlocks:
    """The rows of a plate in blocks of two sizes at most, which differ by one.

    Args:
        args: arguments of a program.
        plate: name.
        size: its rows, N.
        is_cut: of each array of the arguments, whether its rows are the plate's.

    Attributes:
        sizes: plate -> N, for `ppl.rescale_plates`.
        size: numbers in the largest array.
        first: the arguments with the first block's rows.
    """

    def __init__(self, args: tuple, plate: str, size: int, is_cut: Sequence[bool]) -> None:
        self.split = Arguments(args)
        arrays = self.split.arrays(args)
        self._is_cut = list(is_cut)
        self._arrays = [x if cut else jnp.asarray(x) for x, cut in zip(arrays, is_cut, strict=True)]
        self.sizes = {plate: size}
        self.size = max(int(np.size(x)) for x in arrays)
        row = sum(x[:1].nbytes for x, cut in zip(arrays, is_cut, strict=True) if cut)
        number = min(size, -(-size * row // BLOCK_BYTES))
        self._ends = np.arange(number + 1) * size // number

    @property
    def first(self) -> tuple:
        """Arguments."""
        return self.split.join(self._block(0))

    def __iter__(self) -> Iterator[tuple[float, list[Array]]]:
        """Share of each block in all rows, and the arrays of its arguments."""
        for b, length in enumerate(np.diff(self._ends)):
            yield length / self._ends[-1], self._block(b)

    def _block(self, b: int) -> list[Array]:
        rows = slice(self._ends[b], self._ends[b + 1])
        return [
            jnp.asarray(np.asarray(x[rows], jax.dtypes.canonicalize_dtype(x.dtype)))
            if is_cut
            else x
            for x, is_cut in zip(self._arrays, self._is_cut, strict=True)
        ]
