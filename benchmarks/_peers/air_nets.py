"""Attend, infer, repeat for every system of systems.py: one set of networks and constants, for any array library.

The model is that of `lapilli.models.air`: at most three objects; "more" says whether there is one more; absent ones have no
density. Arrays may have any leading axes; images lie on the last of them.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

SIDE, STEPS, CELLS, WHAT, HIDDEN = 50, 3, 12, 16, 96
MORE_PROB, NOISE, WINDOW, SPREAD = 0.3, 0.3, 23.0, 0.1
SHAPES = {
    "embed": (SIDE**2, HIDDEN),
    "cell_image": (HIDDEN, 3 * HIDDEN),
    "cell_where": (3, 3 * HIDDEN),
    "cell_what": (WHAT, 3 * HIDDEN),
    "cell_state": (HIDDEN, 3 * HIDDEN),
    "attend": (HIDDEN, 6),
    "read_1": (CELLS**2, HIDDEN),
    "read_2": (HIDDEN, 2 * WHAT),
    "write_1": (WHAT, HIDDEN),
    "write_2": (HIDDEN, CELLS**2),
    "count": (HIDDEN, 1),
}
DECODER = ("write_1", "write_2")  # parameters of the model; the others are the guide's


class Backend(NamedTuple):
    """An array library: its module, and functions that have other names in each."""

    xp: Any
    sigmoid: Any
    softplus: Any
    relu: Any


class Nets(NamedTuple):
    """Networks over parameters: name -> {"weight": [in, out], "bias": [out]}."""

    backend: Backend
    params: Any

    def dense(self, name: str, x: Any) -> Any:
        return x @ self.params[name]["weight"] + self.params[name]["bias"]

    def silu(self, x: Any) -> Any:
        return x * self.backend.sigmoid(x)

    def embed(self, x: Any) -> Any:
        return self.silu(self.dense("embed", x))

    def next_state(self, state: Any, embedded: Any, where: Any, what: Any) -> Any:
        """A gated recurrent unit."""
        xp, n = self.backend.xp, HIDDEN
        a = self.dense("cell_image", embedded)
        a = a + self.dense("cell_where", where) + self.dense("cell_what", what)
        b = self.dense("cell_state", state)
        reset = self.backend.sigmoid(a[..., :n] + b[..., :n])
        update = self.backend.sigmoid(a[..., n : 2 * n] + b[..., n : 2 * n])
        new = xp.tanh(a[..., 2 * n :] + reset * b[..., 2 * n :])
        return (1 - update) * new + update * state

    def more(self, state: Any, so_far: Any) -> Any:
        """Probability of one more object; a constant where it is out of the question.

        A draw without density still moves what follows, as far as a system can know, and so has a score in those that leave out
        only what provably has no effect; it has none in a parameter that its law does not see.
        """
        probs = self.backend.sigmoid(self.dense("count", state)[..., 0])
        return self.backend.xp.where(so_far, probs, 0.5)

    def where(self, state: Any) -> tuple[Any, Any]:
        return self.mean_and_scale(self.dense("attend", state), 3)

    def what(self, x: Any, where: Any) -> tuple[Any, Any]:
        glimpse = self.read(x, where)
        out = self.dense("read_2", self.silu(self.dense("read_1", glimpse)))
        return self.mean_and_scale(out, WHAT)

    def mean_and_scale(self, out: Any, size: int) -> tuple[Any, Any]:
        return out[..., :size], self.backend.softplus(out[..., size:]) + 1e-3

    def patch(self, what: Any) -> Any:
        hidden = self.silu(self.dense("write_1", what))
        return self.backend.sigmoid(self.dense("write_2", hidden))

    def read(self, x: Any, where: Any) -> Any:
        """Pixels in the window, [..., CELLS^2], by linear interpolation."""
        xp, offset = self.backend.xp, (self.backend.xp.arange(CELLS) + 0.5) / CELLS - 0.5
        side, centres = self.window(where)
        pixels = xp.arange(SIDE) + 0.5
        rows, columns = (
            self.tent((c[..., None] + side[..., None] * offset)[..., None] - pixels)
            for c in centres
        )
        image = x.reshape(*x.shape[:-1], SIDE, SIDE)
        found = xp.einsum("...gh,...hw,...kw->...gk", rows, image, columns)
        return found.reshape(*found.shape[:-2], CELLS**2)

    def write(self, patch: Any, where: Any) -> Any:
        """The patch at its place in an empty image, [..., SIDE^2]."""
        xp = self.backend.xp
        side, centres = self.window(where)
        pixels, cells = xp.arange(SIDE) + 0.5, xp.arange(CELLS)
        rows, columns = (
            self.tent(
                ((pixels - c[..., None]) * CELLS / side[..., None] + 0.5 * (CELLS - 1))[..., None]
                - cells
            )
            for c in centres
        )
        patch = patch.reshape(*patch.shape[:-1], CELLS, CELLS)
        image = xp.einsum("...hg,...gk,...wk->...hw", rows, patch, columns)
        return image.reshape(*image.shape[:-2], SIDE**2)

    def window(self, where: Any) -> tuple[Any, tuple[Any, Any]]:
        """Side, and row and column of the centre, in pixels."""
        side = WINDOW * self.backend.xp.exp(SPREAD * where[..., 0])
        return side, tuple((0.5 + 0.2 * where[..., 1 + i]) * SIDE for i in (0, 1))

    def tent(self, distance: Any) -> Any:
        """Weights of linear interpolation."""
        return self.backend.relu(1 - self.backend.xp.abs(distance))


def normal_log_prob(xp: Any, x: Any, loc: Any, scale: Any) -> Any:
    """Of a vector, nats."""
    z = (x - loc) / scale
    terms = -0.5 * z * z - xp.log(scale) - 0.5 * math.log(2 * math.pi)
    return terms.sum(-1)
