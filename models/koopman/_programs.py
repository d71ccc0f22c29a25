"""Model and guide of a Koopman autoencoder, and the messages by which the guide's states are drawn."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float, PyTree
from numpyro.distributions import constraints

from ... import ppl
from ...ppl._precision import full_precision
from ._networks import Decoder, Encoder
from ._spectrum import Spectrum, transition


class Koopman(NamedTuple):
    """A model and its guide, programs of (x, seen, num_series).

    x: [series, steps, channels], or None to draw them. seen: marks the cells that are observed; None: all. num_series: how many
    to draw where x is None. Steps behind the last seen one are forecast: the guide draws their states from the law of states.

    Attributes:
        model: sites "z" [steps, series, states] and "x" [steps, series, channels]; returns the channels' means, [steps, series,
            channels].
        guide: the site "z".
    """

    model: ppl.Program
    guide: ppl.Program


def programs(spectrum: Spectrum, decoder: Decoder, encoder: Encoder, *, num_steps: int) -> Koopman:
    """The model of the package's text, and its guide.

    The guide is the posterior of the states under made-up observations y_t = z_t + e_t, e_t ~ N(0, D_t^{-1}), of the encoder:

        q(z) ~ p(z) prod_t N(y_t; z_t, D_t^{-1}) = q(z_1) prod_t q(z_{t+1} | z_t),

    whose factors are normal, with means affine in the state before. So it has the prior's dynamics where nothing is seen.

    Parameters: those of `transition`, "innovation" and "start" (triangular roots of Q and P), "noise" [channels], "decoder",
    "encoder". The guide shares the law of states with the model.

    Args:
        spectrum: of the law of states.
        decoder: initial weights.
        encoder: initial weights.
        num_steps: steps of every series.

    Raises:
        ValueError: series of another length, or a spectrum that fits no real matrix.

    Validity: if the encoder's observations are the likelihood's, which an affine decoder has, the guide is the posterior and
    every importance weight is the evidence.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from lapilli import inference
        >>> from lapilli.models import koopman
        >>> decoder = koopman.Decoder(4, 2, 16, key=jax.random.key(0))
        >>> encoder = koopman.Encoder(2, 4, 8, key=jax.random.key(1))
        >>> model, guide = koopman.programs(koopman.Spectrum(4, num_on_circle=1), decoder, encoder, num_steps=6)
        >>> bound = inference.elbo(model, guide)
        >>> sorted(bound.init(jax.random.key(2), jnp.zeros((3, 6, 2))))
        ['decoder', 'encoder', 'innovation', 'noise', 'start', 'transition_angle', 'transition_modulus']
    """
    spectrum.check()
    num_states = spectrum.num_states

    def law_of_states() -> tuple[Array, Array, Array]:
        root = jnp.eye(num_states)
        a = transition("transition", spectrum)
        q = ppl.param("innovation", 0.3 * root, constraint=constraints.lower_cholesky)
        p = ppl.param("start", root, constraint=constraints.lower_cholesky)
        return a, q, p

    @ppl.model
    def koopman(x: PyTree, seen: PyTree = None, num_series: int | None = None) -> PyTree:
        num = _num_series(x, seen, num_series, num_steps)
        net = ppl.module("decoder", decoder)
        num_channels = net.mlp.out_size
        noise = ppl.param("noise", 0.3 * jnp.ones(num_channels), constraint=constraints.positive)
        a, q, p = law_of_states()

        def step(z: Array, inputs: tuple[Array, ...]) -> tuple[Array, Array]:
            row, cells, first = inputs
            with full_precision():
                loc = z @ a.T
            law = dist.MultivariateNormal(loc, scale_tril=jnp.where(first, p, q))
            z = ppl.sample("z", law)
            mean = net(z)
            channels = dist.Normal(mean, noise)
            if cells is not None:
                channels = channels.mask(cells)
            ppl.sample("x", channels.to_event(1), obs=row)
            return z, mean

        with ppl.plate("series", num):
            inputs = (_by_step(x), _by_step(seen), jnp.arange(num_steps) == 0)
            return ppl.scan(step, jnp.zeros((num, num_states)), inputs, num_steps)[1]

    @ppl.model
    def guide(x: PyTree, seen: PyTree = None, num_series: int | None = None) -> None:
        num = _num_series(x, seen, num_series, num_steps)
        cells = jnp.ones(jnp.shape(x), bool) if seen is None else jnp.asarray(seen, bool)
        at, precision = ppl.module("encoder", encoder)(jnp.asarray(x), cells)
        a, q, p = law_of_states()
        roots, infos = jax.vmap(lambda y, d: _messages(a, q, p, y, d), out_axes=1)(at, precision)

        def step(z: Array, inputs: tuple[Array, ...]) -> tuple[Array, None]:
            root, info, first = inputs
            with full_precision():
                pull = jax.scipy.linalg.cho_solve((jnp.where(first, p, q), True), (z @ a.T).T).T
                # S = root root', mean = S (info + Q^{-1} A z).
                mean = jnp.einsum("nij,nkj,nk->ni", root, root, info + pull)
            return ppl.sample("z", dist.MultivariateNormal(mean, scale_tril=root)), None

        with ppl.plate("series", num):
            inputs = (roots, infos, jnp.arange(num_steps) == 0)
            ppl.scan(step, jnp.zeros((num, num_states)), inputs, num_steps)

    return Koopman(koopman, guide)


@full_precision
def _messages(
    a: Float[Array, "d d"],
    q: Float[Array, "d d"],
    p: Float[Array, "d d"],
    y: Float[Array, "t d"],
    precision: Float[Array, "t d"],
) -> tuple[Float[Array, "t d d"], Float[Array, "t d"]]:
    """The triangular root of the covariance S_t of q(z_t | z_{t-1}), and its information but for the pull of z_{t-1}.

    With W = Q^{-1} and the message N(eta, Lam) of y_t, ..., y_T on z_t in information form, backwards

        Lam_t = D_t + A' Lam_{t+1} S_{t+1} W A,   eta_t = D_t y_t + A' W S_{t+1} eta_{t+1},   S_t = (W + Lam_t)^{-1}.
    """
    eye = jnp.eye(a.shape[0])
    inverse = lambda root: jax.scipy.linalg.cho_solve((root, True), eye)
    root_of_inverse = lambda matrix: dist.MultivariateNormal(precision_matrix=matrix).scale_tril
    w, start = inverse(q), inverse(p)

    def back(later: tuple[Array, ...], inputs: tuple[Array, ...]) -> tuple[PyTree, PyTree]:
        lam, eta = later
        here, d = inputs
        lam, eta = lam + jnp.diag(d), eta + d * here
        root = root_of_inverse(w + lam)
        solved = root @ (root.T @ w @ a)
        earlier = a.T @ lam @ solved  # symmetric but for rounding, and without a difference
        return ((earlier + earlier.T) / 2, solved.T @ eta), (lam, eta, root)

    zero = (jnp.zeros_like(w), jnp.zeros(a.shape[0]))
    _, (lams, etas, roots) = jax.lax.scan(back, zero, (y, precision), reverse=True)
    return roots.at[0].set(root_of_inverse(start + lams[0])), etas


def _by_step(x: np.ndarray) -> PyTree:
    return None if x is None else jnp.swapaxes(jnp.asarray(x), 0, 1)


def _num_series(x: np.ndarray, seen: PyTree, num_series: int | None, num_steps: int) -> int:
    if x is None:
        if num_series is None:
            raise ValueError("koopman: x=None draws series, and num_series says how many. Give it.")
        return num_series
    if len(jnp.shape(x)) != 3 or jnp.shape(x)[1] != num_steps:
        raise ValueError(
            f"koopman: x has shape {jnp.shape(x)}, but [series, {num_steps} steps, channels] was declared. Give x this shape, or "
            "the programs the number of steps of the data."
        )
    if seen is not None and jnp.shape(seen) != jnp.shape(x):
        raise ValueError(
            f"koopman: seen has shape {jnp.shape(seen)}, and x {jnp.shape(x)}: cells would be paired with others. Give one truth "
            "value for each cell."
        )
    return jnp.shape(x)[0]
