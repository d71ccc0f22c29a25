"""Diffusion models of signals that are never seen themselves, only through a known forward model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ...inference.diffusion import Noising
from ._contexts import one_context
from ._training import prediction


class Through(eqx.Module):
    """A network that says what a signal is, made to say what a view of it is: forward(network(x, level, context), context).

    Rows of data are views O = forward(S, context) of signals S that nobody sees; the context tells how this one was looked at,
    and holds what else is known of S, an earlier view of it. `score_matching(Through(network, forward), noising,
    predicts="data")` makes forward(S_hat) the mean of O given the noised O and the context; `from_network` has the law of O given
    the context, and at the end of a draw `signal` has S.

    Args:
        network: as `score_matching` takes it, with a context of arrays; it returns a signal.
        forward: `(signal, context) -> view`, of the shape of a row of data.

    Validity: a draw's S has the law of S given the context's view as far as the two views determine S. What neither of them shows
        has no error to learn from: it is, at best, a function of what they show, without a spread of its own, and whatever the
        network makes of it if no row of data ever shows it (`unseen`). Choose the views of training so that context and target
        together show all.

    Reference: Tewari et al. 2023, arXiv:2306.11719, equations 4 to 6.
    """

    network: Callable[..., PyTree]
    forward: Callable[[Array, PyTree], Array] = eqx.field(static=True)
    takes_context: ClassVar[bool] = True

    def __call__(
        self, x: Float[Array, " *shape"], level: Array, context: PyTree
    ) -> Float[Array, " *shape"]:
        """The view that is expected at one noised view x."""
        if context is None:
            raise ValueError(
                "Through: a view is taken as its context says, and this row has none. Give contexts, with drop_context=0."
            )
        return self.forward(self.network(x, level, context), context.value)

    def signal(
        self, noising: Noising, x: Float[Array, " *shape"], t: Array, context: PyTree
    ) -> Float[Array, " *signal"]:
        """The signal behind a view that a sampler has brought to the noising time t, near 0.

        Args:
            noising: that of the training.
            x: the view, at t.
            t: last time of the sampler, not 0.
            context: of this view.
        """
        return prediction(self.network, noising, x, t, one_context("signal", self, context))

    def unseen(
        self, contexts: Iterable[PyTree], signal: Float[Array, " *signal"], *, rtol: float = 1e-5
    ) -> Float[Array, " directions *signal"]:
        """Directions in which a signal may move without moving any of its views: what no data of these contexts can tell.

        Args:
            contexts: of the views.
            signal: where the forward model is taken for linear; any, if it is.
            rtol: singular values of the views' slopes below this share of the largest one count as none.

        Returns:
            Orthonormal directions, none if the views determine the signal.
        """
        signal = jnp.asarray(signal, float)
        flat = lambda s, c: self.forward(s.reshape(signal.shape), c).ravel()
        slopes = [jax.jacobian(lambda s, c=c: flat(s, c))(signal.ravel()) for c in contexts]
        _, values, vectors = jnp.linalg.svd(jnp.concatenate(slopes))
        rank = int(jnp.sum(values > rtol * values[0]))
        return vectors[rank:].reshape(-1, *signal.shape)
