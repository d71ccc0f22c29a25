"""Attend, infer, repeat: images as a random number of objects, each with a place and a code; and its recurrent guide.

Model, for each image n of H x W pixels, with steps t = 1..T:

    more_t  | more_1 .. more_{t-1} all 1  ~ Bernoulli(p)
    where_t | more_t = 1                  ~ Normal(0, I) in R^3: size, row and column of a square window
    what_t  | more_t = 1                  ~ Normal(0, I) in R^d
    x                                     ~ Normal(sum_t write(decoder(what_t), where_t), noise^2), pixel by pixel.

The count of objects is the number of ones before the first zero: geometric, cut off at T. Sites behind the first zero have no
density (masks), in the model and in the guide.

Guide, along the same steps, with a recurrent state h_t and read(x, where) the pixels in a window:

    h_t = GRU(h_{t-1}; embed(x), where_{t-1}, what_{t-1})
    more_t ~ Bernoulli(a(h_t)),   where_t ~ Normal(m(h_t), s(h_t)),   what_t ~ Normal(encoder(read(x, where_t))).

What a step needs to know of `more` is that it was 1 so far, so the state does not read it: networks run once for all counts. Nor
is the canvas drawn anew for each of them: it is filled patch by patch, the likelihood of x is computed after each, and the count
chooses one (`ppl.distributions.Chosen`). That is what makes exact sums over the count cheap, and replays of it: they look
likelihoods up.

`read` and `write` interpolate linearly (spatial transformers, Jaderberg et al. 2015, arXiv:1506.02025): two small matrices per
window, one for rows and one for columns, continuous in `where`.

Reference: Eslami et al. 2016, arXiv:1603.08575; the size and noise of Becker et al. 2024, arXiv:2406.15742, whose model lets
objects come and go; here the prior of the count is a proper one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float, PyTree

from .. import ppl


class AIR(NamedTuple):
    """A model and its guide, both functions of the images x, shape [images, H * W].

    Attributes:
        model: sites "more_t" [images], "where_t" [images, 3], "what_t" [images, d] for t = 1..T, "x" (observed); deterministic
            "count" [images] and "canvas" [images, H * W], the mean of x.
        guide: the same latent sites; deterministic "count" and "windows" [images, T, 3], see `AttentionWindow`.
    """

    model: ppl.Program
    guide: ppl.Program


class AttentionWindow(NamedTuple):
    """Square windows in pixels, from the upper left corner of the image; arrays of one shape.

    Attributes:
        size: side.
        row: of the centre.
        column: of the centre.
    """

    size: Array
    row: Array
    column: Array


class Geometry(NamedTuple):
    """Geometry of images and windows.

    Attributes:
        shape: rows and columns of an image.
        num_cells: pixels along a side of a patch.
        size: side of the window at where = 0, in pixels of the image.
        spread: standard deviation of the logarithm of that side.
    """

    shape: tuple[int, int]
    num_cells: int
    size: float
    spread: float

    def window(self, where: Float[Array, "*batch 3"]) -> AttentionWindow:
        """The window of a standardised `where`; its centre has a standard deviation of a fifth of the image."""
        side = self.size * jnp.exp(self.spread * where[..., 0])
        row, column = ((0.5 + 0.2 * where[..., 1 + i]) * n for i, n in enumerate(self.shape))
        return AttentionWindow(side, row, column)

    def read(self, x: Float[Array, "images pixels"], where: Float[Array, "images 3"]) -> Array:
        """Pixels in the window, [images, num_cells^2]; zero outside of the image."""
        window = self.window(where)
        rows, columns = (
            _tent(self._cells(window.size, centre)[..., None] - (jnp.arange(n) + 0.5))
            for centre, n in zip(window[1:], self.shape, strict=True)
        )
        image = x.reshape(-1, *self.shape)
        return jnp.einsum("ngh,nhw,nkw->ngk", rows, image, columns).reshape(len(x), -1)

    def write(self, patch: Float[Array, "images cells"], where: Float[Array, "images 3"]) -> Array:
        """The patch at its place in an empty image, [images, pixels]."""
        window = self.window(where)
        rows, columns = (
            _tent(self._position(window.size, centre, n)[..., None] - jnp.arange(self.num_cells))
            for centre, n in zip(window[1:], self.shape, strict=True)
        )
        patch = patch.reshape(-1, self.num_cells, self.num_cells)
        return jnp.einsum("nhg,ngk,nwk->nhw", rows, patch, columns).reshape(len(patch), -1)

    def _cells(self, side: Array, centre: Array) -> Array:
        """Centres of the window's cells in pixels, [images, num_cells]."""
        offset = (jnp.arange(self.num_cells) + 0.5) / self.num_cells - 0.5
        return centre[:, None] + side[:, None] * offset

    def _position(self, side: Array, centre: Array, num_pixels: int) -> Array:
        """Centres of the image's pixels in cells of the window, [images, num_pixels]."""
        offset = jnp.arange(num_pixels) + 0.5 - centre[:, None]
        return offset * self.num_cells / side[:, None] + 0.5 * (self.num_cells - 1)


def _tent(distance: Array) -> Array:
    """Weights of linear interpolation."""
    return jnp.maximum(0.0, 1.0 - jnp.abs(distance))


class GuideNetworks(eqx.Module):
    """The guide's networks.

    Args:
        num_pixels: pixels of an image.
        num_cells: pixels along a side of a patch.
        num_what: numbers that describe a patch.
        num_hidden: width of the recurrent cell and of the patch encoder.
        key: PRNG key of the initial weights.
    """

    embed: eqx.nn.Linear
    cell: eqx.nn.GRUCell
    head: eqx.nn.Linear
    encoder: eqx.nn.MLP

    def __init__(
        self, num_pixels: int, num_cells: int, num_what: int, num_hidden: int, *, key: Array
    ) -> None:
        keys = jax.random.split(key, 4)
        self.embed = eqx.nn.Linear(num_pixels, num_hidden, key=keys[0])
        self.cell = eqx.nn.GRUCell(num_hidden + 3 + num_what, num_hidden, key=keys[1])
        # At first windows are near the prior's mean, and narrower than the prior.
        bias = jnp.array([0.0, 0.0, 0.0, -0.5, -0.5, -0.5])
        self.head = _starting(eqx.nn.Linear(num_hidden, 6, key=keys[2]), 0.1, bias)
        self.encoder = eqx.nn.MLP(
            num_cells**2, 2 * num_what, num_hidden, 1, activation=jax.nn.silu, key=keys[3]
        )

    def attend(self, hidden: Array) -> tuple[Array, Array]:
        """Mean and scale of an object's place."""
        loc, raw_scale = jnp.split(self.head(hidden), 2)
        return loc, jax.nn.softplus(raw_scale) + 1e-3

    def encode(self, glimpse: Array) -> tuple[Array, Array]:
        """Mean and scale of an object's code."""
        loc, raw_scale = jnp.split(self.encoder(glimpse), 2)
        return loc, jax.nn.softplus(raw_scale) + 1e-3


def programs(
    image_shape: tuple[int, int] = (28, 28),
    *,
    num_steps: int = 3,
    more_prob: float = 1e-3,
    noise: float = 0.3,
    window: float = 13.0,
    spread: float = 0.1,
    num_cells: int = 12,
    num_what: int = 16,
    num_hidden: int = 96,
    key: Array,
) -> AIR:
    """The model and guide of the module's text, with freshly initialised networks.

    Parameters: "decoder" (an equinox MLP, in the model), "reader" (`GuideNetworks`) and "counter" (a
    linear layer, a(h_t)) in the guide.
    Let the counter wait where it starts: before windows and patches mean anything a further object explains nothing,
    and a count that has learned to be one never again looks for a second.

    Args:
        image_shape: H and W.
        num_steps: T, the largest count.
        more_prob: p, the prior probability of one more object. Small: objects that cost little are soon used to refine others.
        noise: standard deviation of a pixel.
        window: side of the median window, in pixels.
        spread: standard deviation of the logarithm of that side. Narrow: with free sizes one window soon covers two objects.
        num_cells: pixels along a side of a patch.
        num_what: d.
        num_hidden: width of every hidden layer.
        key: PRNG key of the initial values.

    Returns:
        `AIR`.

    Raises:
        ValueError: `more_prob` outside of (0, 1), or a size that is not positive.

    Validity: "more_*" need a strategy for discrete sites. Under "enum" the sum over counts is exact given the other sites.

    Example:
        >>> import jax, numpy as np
        >>> from lapilli import inference
        >>> from lapilli.models import air
        >>> x = np.zeros((2, 64), np.float32)
        >>> model, guide = air.programs((8, 8), window=4.0, num_steps=2, num_cells=4, num_hidden=8, key=jax.random.key(0))
        >>> bound = inference.elbo(model, guide, strategies={"more_*": "enum"})
        >>> sorted(bound.init(jax.random.key(1), x))
        ['counter', 'decoder', 'reader']
    """
    sizes = (*image_shape, num_steps, noise, window, spread, num_cells, num_what, num_hidden)
    if not 0 < more_prob < 1 or min(sizes) <= 0:
        raise ValueError(
            f"air.programs: more_prob must lie in (0, 1) and all sizes be positive, got more_prob={more_prob} and "
            f"{image_shape=}, {num_steps=}, {noise=}, {window=}, {spread=}, {num_cells=}, {num_what=}, {num_hidden=}."
        )
    frame = Geometry(image_shape, num_cells, window, spread)
    num_pixels = image_shape[0] * image_shape[1]
    keys = jax.random.split(key, 3)
    reader_0 = GuideNetworks(num_pixels, num_cells, num_what, num_hidden, key=keys[0])
    decoder_0 = eqx.nn.MLP(
        num_what, num_cells**2, num_hidden, 1, activation=jax.nn.silu, key=keys[1]
    )
    # At first one more is as likely in every image.
    counter_0 = _starting(eqx.nn.Linear(num_hidden, "scalar", key=keys[2]), 0.0, 1.0)
    # Dark patches at first: a grey one anywhere would cost more than it explains, and the count would fall to zero.
    decoder_0 = eqx.tree_at(
        lambda net: net.layers[-1], decoder_0, replace_fn=lambda l: _starting(l, 1.0, -2.0)
    )

    def one_more(t: int, count: Array, law: PyTree) -> tuple[Array, Array]:
        """(the count, whether there is an object t)."""
        reached = count == t - 1
        more = ppl.sample(f"more_{t}", law.mask(reached))
        present = reached & (more == 1)
        return count + present, present

    @ppl.model
    def model(x: Array) -> None:
        decoder = ppl.module("decoder", decoder_0)
        with ppl.plate("images", x.shape[0]):
            count, canvases = jnp.zeros(x.shape[0], int), [jnp.zeros(x.shape)]
            for t in range(1, num_steps + 1):
                count, present = one_more(t, count, dist.Bernoulli(more_prob))
                where = _object(f"where_{t}", jnp.zeros(3), jnp.ones(3), present)
                what = _object(f"what_{t}", jnp.zeros(num_what), jnp.ones(num_what), present)
                patch = jax.nn.sigmoid(jax.vmap(decoder)(what))
                canvases.append(canvases[-1] + frame.write(patch, where))
            law = ppl.distributions.Chosen(
                dist.Normal(jnp.stack(canvases), noise).to_event(1), count
            )
            ppl.deterministic("count", count)
            ppl.deterministic("canvas", law.mean)
            ppl.sample("x", law, obs=x)

    @ppl.model
    def guide(x: Array) -> None:
        reader, counter = ppl.module("reader", reader_0), ppl.module("counter", counter_0)
        num_images = x.shape[0]
        with ppl.plate("images", num_images):
            count, windows = jnp.zeros(num_images, int), []
            embedded = jax.nn.silu(jax.vmap(reader.embed)(x))
            hidden = jnp.zeros((num_images, num_hidden))
            where, what = jnp.zeros((num_images, 3)), jnp.zeros((num_images, num_what))
            for t in range(1, num_steps + 1):
                seen = jnp.concatenate([embedded, where, what], -1)
                hidden = jax.vmap(reader.cell)(seen, hidden)
                law = dist.Bernoulli(logits=jax.vmap(counter)(hidden))
                count, present = one_more(t, count, law)
                loc, scale = jax.vmap(reader.attend)(hidden)
                where = _object(f"where_{t}", loc, scale, present)
                loc, scale = jax.vmap(reader.encode)(frame.read(x, where))
                what = _object(f"what_{t}", loc, scale, present)
                windows.append(jnp.stack(frame.window(where), -1))
            ppl.deterministic("count", count)
            ppl.deterministic("windows", jnp.stack(windows, 1))

    return AIR(model, guide)


def _object(name: str, loc: Array, scale: Array, present: Array) -> Array:
    """A vector of an object, without density where there is none."""
    return ppl.sample(name, dist.Normal(loc, scale).to_event(1).mask(present))


def _starting(layer: eqx.nn.Linear, scale: float, bias: Any) -> eqx.nn.Linear:
    """The layer with its weights scaled and another bias."""
    weight = scale * layer.weight
    return eqx.tree_at(
        lambda l: (l.weight, l.bias), layer, (weight, jnp.broadcast_to(bias, weight.shape[:1]))
    )
