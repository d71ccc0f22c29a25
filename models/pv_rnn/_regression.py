"""Error regression: online inference of the adaptive vectors of the last steps, weights fixed.

At each observation x_t, with W the window's length:

    drop the oldest vector, append a new one; the edge state becomes the one after the window's former first step;
    n times: unroll the window from the edge with z ~ q(. | a), fresh noise; one optimiser step on the vectors a for the weighted
        elbo;
    unroll K particles through the window by q and `horizon` steps further by the prior: the prediction of x_{t+1}, ...

The objective is the one of training, on the window: `inference.elbo` of the same statements (`unroll`). All arrays have the size
of the full window at once; steps before the first observation are masked, so that one compilation serves all times, and a window
that grows is one whose masked part shrinks. Cells that are not seen do not count, and behind the last seen one q is the prior.

Reference: Ahmadi and Tani 2019, arXiv:1811.01339; Matsumoto et al. 2022 (growing windows).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from ... import inference, ppl
from ...inference.fitting.storage import Checkpoint, describe_step, fingerprint, load, save
from ...ppl._calls import checked_call
from ...ppl._compat import is_concrete, typed_key
from ._network import Network, State
from ._programs import Marks, Table, has_more, unroll
from ._stream import Forecast, RegressionWindow, Stream, checked_cells, is_lost

if TYPE_CHECKING:
    import optax


class NewRow(eqx.Module):
    """The vector with which a new step of the window begins.

    Args:
        kind: "prior", that of the prior there (no divergence at the start); "copy" of the one before; "zero"; "normal", from
            N(0, 1).
        first: the vector of a sequence's first step, [2 Z] by layer, e.g. the median over training sequences; None: as `kind`
            has it.
    """

    kind: Literal["prior", "copy", "zero", "normal"] = eqx.field(default="prior", static=True)
    first: Table | None = None


class ErrorRegression(eqx.Module):
    """Online inference with fixed weights: `init`, then `observe` one observation at a time, or `run` over many.

    Args:
        network: trained weights (`pv_rnn.frozen`); they are never changed.
        window: W >= 1.
        num_iterations: optimiser steps per observation; 0 leaves new vectors as they were made.
        optimizer: of the vectors, started anew at each observation; default Adam of rate 0.09.
        w: meta-prior of the window, one number, one for each layer, or [2, layers], those of the sequence's first step and of
            the others; see `site_weights`.
        new_row: the vector of a new step, a `NewRow` or its kind.
        keep: the vectors after the "last" step, or those with the "best" value met (of one noisy draw each).
        grow: infer windows of 1, 2, ..., W - 1 observations too, or wait for W of them.
        horizon: number of steps predicted.
        num_particles: K.

    Raises:
        ValueError: a number is too small, a weight negative or not finite, `new_row` or `keep` is unknown, or `new_row.first`
            has other shapes than the layers' vectors; all problems at once.

    Validity: an approximation of the filter, whose error no number here measures: q is local, the past before the edge is one
    draw, and the optimiser stops early. Means of q lie in (-1, 1) (`latent_law`): latents far out are not found. Predictions
    use observations up to t only. Scores of the K-particle mixture are those of that mixture. The objective has no term for
    cells that are not seen, which integrates them out: given the latents they are independent of all else.

    The weights may come from training with any guide.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from lapilli.models import pv_rnn
        >>> net = pv_rnn.Network([(10, 1)], pv_rnn.Gaussian(2), key=jax.random.key(0))
        >>> er = pv_rnn.ErrorRegression(net, window=4, num_iterations=3, num_particles=8)
        >>> stream, prediction = er.observe(er.init(jax.random.key(1)), jnp.array([0.1, -0.3]))
        >>> pv_rnn.mean(net, prediction.emitted).shape
        (1, 2)
    """

    network: Network
    w: Array
    window: int = eqx.field(static=True)
    num_iterations: int = eqx.field(static=True)
    optimizer: PyTree = eqx.field(static=True)
    new_row: NewRow
    keep: str = eqx.field(static=True)
    grow: bool = eqx.field(static=True)
    horizon: int = eqx.field(static=True)
    num_particles: int = eqx.field(static=True)

    def __init__(
        self,
        network: Network,
        *,
        window: int,
        num_iterations: int = 20,
        optimizer: optax.GradientTransformation | None = None,
        w: float | Sequence[float] | Array = 1.0,
        new_row: Literal["prior", "copy", "zero", "normal"] | NewRow = "prior",
        keep: Literal["last", "best"] = "last",
        grow: bool = True,
        horizon: int = 1,
        num_particles: int = 32,
    ) -> None:
        counts = {"window": window, "horizon": horizon, "num_particles": num_particles}
        problems = [f"{name} must be >= 1, got {n}" for name, n in counts.items() if n < 1]
        if num_iterations < 0:
            problems.append(f"num_iterations must be >= 0, got {num_iterations}")
        new_row = new_row if isinstance(new_row, NewRow) else NewRow(new_row)
        if new_row.kind not in ("prior", "copy", "zero", "normal"):
            problems.append(
                f"new_row is {new_row.kind!r}; choose 'prior', 'copy', 'zero' or 'normal'"
            )
        sizes = [(2 * layer.num_latents,) for layer in network.layers]
        if new_row.first is not None and [jnp.shape(row) for row in new_row.first] != sizes:
            found = [jnp.shape(row) for row in new_row.first]
            problems.append(f"new_row.first has shapes {found}; the layers' vectors have {sizes}")
        if is_concrete(w) and not (np.isfinite(w).all() and (np.asarray(w) >= 0).all()):
            problems.append(f"w must be finite and >= 0, got {w}")
        if keep not in ("last", "best"):
            problems.append(f"keep is {keep!r}; choose 'last' or 'best'")
        if problems:
            raise ValueError(f"ErrorRegression: {'; '.join(problems)}.")
        import optax  # on use: a tenth of a second

        self.network = network
        self.w = jnp.broadcast_to(jnp.asarray(w, float), (2, len(network.layers)))
        self.window, self.num_iterations = window, num_iterations
        self.optimizer = optax.adam(0.09) if optimizer is None else optimizer
        self.new_row, self.keep, self.grow = jax.tree.map(jnp.asarray, new_row), keep, grow
        self.horizon, self.num_particles = horizon, num_particles

    def init(self, key: Array) -> Stream:
        """The stream before its first observation."""
        net, window = self.network, self.window
        kind = float if hasattr(net.output, "scale") else int
        zero = net.initial_state()
        vectors = tuple(jnp.zeros((window, 2 * layer.num_latents)) for layer in net.layers)
        return Stream(
            jax.random.key_data(typed_key(key)), jnp.int32(0), vectors,
            jnp.zeros((window, net.output.size), kind), jnp.zeros((window, net.output.size), bool),
            zero, zero, zero,
        )  # fmt: skip

    def observe(self, stream: Stream, x: Array, seen: PyTree = None) -> tuple[Stream, Forecast]:
        """Take in one observation; compiled once.

        Args:
            stream: what is known so far.
            x: the observation, [size]. What stands in cells that are not seen is never read.
            seen: boolean, a number or by cell, [size]: what of it is seen; a step of which nothing is goes by all the same.
                None: all.

        Returns:
            The stream, and the prediction of what follows.

        Raises:
            ValueError: a shape does not fit; a cell that counts as seen is not finite, or is no symbol of the output. Under a
                transformation of JAX values are not known, and such a cell makes NaN of all that follows.
        """
        return _observe(self, stream, *checked_cells(self.network.output, x, seen, 1))

    def run(self, stream: Stream, xs: Array, seen: PyTree = None) -> tuple[Stream, Forecast]:
        """`observe` for each row, in one compiled scan; predictions are stacked along the first axis.

        Args:
            stream: what is known so far.
            xs: observations, [steps, size].
            seen: by step or by cell, boolean [steps] or [steps, size]; None: all.

        Returns:
            The stream, and the predictions.

        Raises:
            ValueError: as `observe`.
        """
        return _run(self, stream, *checked_cells(self.network.output, xs, seen, 2))

    @checked_call
    def save(self, path: str | os.PathLike, stream: Stream) -> None:
        """Write a stream to a file, whole or not at all.

        Args:
            path: where.
            stream: of this regression.

        Raises:
            OSError: the file cannot be written.
        """
        save(
            path, Checkpoint(int(stream.num_seen), stream, np.zeros(0), self._description(), False)
        )

    @checked_call
    def load(
        self, path: str | os.PathLike, *, resume: Literal["same", "changed"] = "same"
    ) -> Stream:
        """Read a stream that `save` wrote.

        Args:
            path: the file.
            resume: "same": it must be of a regression with the same weights, options and optimiser. "changed": of one with the
                same sizes.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is none of `save`, or of another regression; each difference is named.
        """
        like = self.init(jax.random.key(0))
        return load(path, like, self._description(), resume=resume).carry

    def _description(self) -> dict[str, PyTree]:
        """What a stream belongs to."""
        plain = "window num_iterations keep grow horizon num_particles".split()
        own = {name: getattr(self, name) for name in plain}
        own |= {"new_row": self.new_row.kind, "w": str(np.asarray(self.w).tolist())}
        trees = {"network": self.network, "first_row": self.new_row.first}
        arrays = {n: eqx.filter(tree, eqx.is_array) for n, tree in trees.items()}
        hashes = {n: str(fingerprint(jax.tree.leaves(tree))) for n, tree in arrays.items()}
        x = jnp.zeros(self.network.output.size)
        step = lambda stream, x: _step(self, stream, x, jnp.ones(x.shape, bool))
        belongs = describe_step({"regression": own | hashes}, step, self.init(jax.random.key(0)), x)
        return {"belongs to": belongs}


@eqx.filter_jit
def _run(er: ErrorRegression, stream: Stream, xs: Array, seen: Array) -> tuple[Stream, Forecast]:
    return jax.lax.scan(lambda s, inputs: _step(er, s, *inputs), stream, (xs, seen))


@eqx.filter_jit
def _observe(er: ErrorRegression, stream: Stream, x: Array, seen: Array) -> tuple[Stream, Forecast]:
    return _step(er, stream, x, seen)


def _step(er: ErrorRegression, stream: Stream, x: Array, seen: Array) -> tuple[Stream, Forecast]:
    _, fit_key, window_key, ahead_key = _keys(stream)
    moved = shift(er, stream, x, seen)
    slots = jnp.arange(er.window)
    start = er.window - moved.num_seen
    window = RegressionWindow(moved.x, moved.seen, moved.edge, slots == start, slots >= start, er.w)
    is_ready = jnp.asarray(er.grow) | (moved.num_seen >= er.window)
    adaptive, value = _regress(er, fit_key, moved.adaptive, window, is_ready)
    moved = eqx.tree_at(lambda s: s.adaptive, moved, adaptive)
    # States of K particles through the window by q, [W, K, D] by layer.
    states = ppl.guide_of(_window).simulate(
        window_key, er.network, window, adaptive, er.num_particles
    ).retval  # fmt: skip
    last = tuple(h[-1] for h in states)
    ahead = ppl.Program(_ahead).simulate(
        ahead_key, er.network, last, jnp.zeros(er.horizon, bool), er.num_particles, er.horizon
    ).retval  # fmt: skip
    # The past that later windows build on is one draw, that of the first particle.
    moved = eqx.tree_at(
        lambda s: (s.after_first, s.last), moved,
        (tuple(h[0, 0] for h in states), tuple(h[0] for h in last)),
    )  # fmt: skip
    prediction = Forecast(er.network.emit(ahead), er.network.emit(states), value, is_ready)
    return moved, prediction


def _keys(stream: Stream) -> Array:
    """Keys of the step that follows: of the new row, of the fit, of the window's particles, of those ahead."""
    key = jax.random.fold_in(jax.random.wrap_key_data(stream.key), stream.num_seen)
    return jax.random.split(key, 4)


def shift(er: ErrorRegression, stream: Stream, x: Array, seen: Array) -> Stream:
    """The stream with one observation more, before its vectors are inferred."""
    is_full = stream.num_seen >= er.window
    edge = tuple(
        jnp.where(is_full, a, b) for a, b in zip(stream.after_first, stream.edge, strict=True)
    )
    rows = tuple(
        jnp.concatenate([old[1:], jnp.where(is_lost(x), jnp.nan, _new_row(er, stream, l))[None]])
        for l, old in enumerate(stream.adaptive)
    )
    xs = jnp.concatenate([stream.x[1:], x[None].astype(stream.x.dtype)])
    cells = jnp.concatenate([stream.seen[1:], seen[None]])
    return Stream(
        stream.key, stream.num_seen + 1, rows, xs, cells, edge, stream.after_first, stream.last
    )


def _new_row(er: ErrorRegression, stream: Stream, l: int) -> Array:
    """The vector of layer l with which the step after `stream` starts."""
    net, before = er.network, stream.adaptive[l][-1]
    if er.new_row.kind == "prior":
        row = net.prior(l, stream.last, stream.num_seen == 0) - net.from_state(l, stream.last)
    elif er.new_row.kind == "normal":
        row = jax.random.normal(jax.random.fold_in(_keys(stream)[0], l), before.shape)
    else:
        row = before if er.new_row.kind == "copy" else jnp.zeros_like(before)
    first = er.new_row.first
    return row if first is None else jnp.where(stream.num_seen == 0, first[l], row)


def _regress(
    er: ErrorRegression, key: Array, vectors: Table, window: RegressionWindow, is_ready: Any
) -> tuple[Table, Array]:
    """The vectors after the optimiser's steps, and the last value met."""
    import optax

    objective = window_objective(er)

    def body(i: Array, carry: PyTree) -> PyTree:
        params, opt_state, _, best, best_value = carry
        value, grads = objective.value_and_grad(
            params, jax.random.fold_in(key, i), er.network, window
        )
        is_better = value > best_value
        best = jax.tree.map(lambda a, b: jnp.where(is_better, a, b), params, best)
        descent = jax.tree.map(jnp.negative, grads)
        updates, opt_state = er.optimizer.update(descent, opt_state, params)
        params = optax.apply_updates(params, updates)
        return params, opt_state, value, best, jnp.maximum(value, best_value)

    params = {"adaptive": vectors}
    nothing = jnp.asarray(-jnp.inf)
    start = (params, er.optimizer.init(params), nothing, params, nothing)
    num_steps = jnp.where(is_ready, er.num_iterations, 0)
    params, _, value, best, _ = jax.lax.fori_loop(0, num_steps, body, start)
    return (best if er.keep == "best" else params)["adaptive"], value


def window_objective(er: ErrorRegression) -> inference.Objective:
    """The elbo of a window under the meta-prior, in its vectors: args (network, window)."""
    network = er.network

    @ppl.model
    def model(net: Network, window: RegressionWindow) -> State:
        zeros = tuple(jnp.zeros((er.window, 2 * layer.num_latents)) for layer in network.layers)
        return _window(net, window, ppl.param("adaptive", zeros), 1)

    def weights(net: Network, window: RegressionWindow) -> dict[str, PyTree]:
        by_step = jnp.where(window.is_first[:, None], *window.w)  # [W, layers]
        latent = {
            f"z{l + 1}": by_step[:, l] / layer.num_latents for l, layer in enumerate(net.layers)
        }
        return {"x": 1 / net.output.size, **latent}

    # The statements are those of training, whose jumps have been searched for there.
    return inference.elbo(
        model, ppl.guide_of(model), kl="analytic", site_weights=weights, check_jumps=False
    )


def _window(net: Network, window: RegressionWindow, vectors: Table, num_rows: int) -> State:
    """The statements of a window, for rows that share everything but their noise."""
    rows = lambda a: jnp.broadcast_to(a, (num_rows, *a.shape))
    x, seen, edge, is_first, is_valid, _ = window
    return unroll(
        net, rows(x), lambda l, h, a: rows(a[l]), vectors, num_rows=num_rows, num_steps=len(x),
        state=tuple(rows(h) for h in edge),
        marks=Marks(is_first, is_valid, counted=rows(seen), informed=rows(has_more(seen))),
    )  # fmt: skip


def _ahead(net: Network, state: State, is_first: Any, num_rows: int, num_steps: int) -> State:
    """The statements of the steps to come, from the prior."""
    return unroll(
        net, None, None, num_rows=num_rows, num_steps=num_steps, state=state, marks=Marks(is_first)
    )
