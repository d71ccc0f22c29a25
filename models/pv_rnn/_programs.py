"""The PV-RNN as a program, and its guides.

    p(x, z) = prod_t prod_l p(z_t^l | d_{t-1}^l) p(x_t | d_t^1),       sites "z1" .. "zL", "x" (stacked over time).

The guide is written at the statements of the latents: prior and proposal are made from one state, and that state advances
once. Three guides for one model:

- adaptive: q(z_t^l) = N(tanh, exp) of the pre-activation  a_{i,t}^l + V^l d_{t-1}^l,  a free vector a for each sequence, step and
  layer (Ahmadi and Tani 2019): no encoder; data act through gradients only.
- encoder: the pre-activation is a network of (x_t, d_{t-1}^l): the amortised twin, a VRNN (Chung et al. 2015, arXiv:1506.02216)
  whose recurrence does not see x. Cells that are not seen enter as zeros; a step of which none is has the prior.
- prior: q = p.

Vectors behind the last seen step of a sequence tell nothing, and q = p there: the exact posterior, whose divergence is zero. So
sequences of unequal lengths are padded with steps that are not seen.

With `inference.smc(model, proposal=guide)` the last two are particle filters.

Reference: Ahmadi and Tani 2019, arXiv:1811.01339.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jaxtyping import Array, ArrayLike, Bool, PyTree

from ... import ppl
from ...ppl._compat import is_concrete
from ...ppl._types import ParamMap
from ...ppl.language import InlineGuide
from .._trained import trained
from ._network import Categorical, Network, State, latent_law

Table = tuple[Array, ...]  # adaptive vectors of each layer
Proposal = Callable[
    [int, State, Any], Array
]  # (layer, state before the step, the step's data) -> pre-activation


class PVRNN(NamedTuple):
    """A model and its guide, programs of (x, index).

    x: [sequences, steps, size], floats or (for `Categorical`) integers; None for generation of `num_steps` steps. index:
    [sequences], the numbers of the sequences, whose adaptive vectors are used; other guides ignore it. A third argument marks
    what of x is seen, [sequences, steps] or by cell. The rest is drawn: a filter whose last steps are unseen forecasts them.

    Attributes:
        model: sites "z1".. [steps, sequences, Z] and "x" [steps, sequences, size]; returns the states [steps,
            sequences, D] by layer.
        guide: `ppl.guide_of(model)`.
    """

    model: ppl.Program
    guide: InlineGuide


class LayerEncoder(eqx.Module):
    """Pre-activations of all layers given x_t: a network with one hidden layer.

    Args:
        network: what is encoded for.
        num_hidden: width of the hidden layer.
        key: PRNG key.
    """

    mlp: eqx.nn.MLP
    num_classes: int | None = eqx.field(static=True)
    splits: tuple[int, ...] = eqx.field(static=True)

    def __init__(self, network: Network, num_hidden: int, *, key: Array) -> None:
        output = network.output
        self.num_classes = output.num_classes if isinstance(output, Categorical) else None
        sizes = [2 * layer.num_latents for layer in network.layers]
        self.splits = tuple(sum(sizes[: l + 1]) for l in range(len(sizes) - 1))
        num_in = output.size * (self.num_classes or 1)
        self.mlp = eqx.nn.MLP(num_in, sum(sizes), num_hidden, 1, activation=jnp.tanh, key=key)

    def __call__(self, x: Array) -> Table:
        """Pre-activations by layer for x [..., size]."""
        if self.num_classes is not None:
            x = jax.nn.one_hot(x, self.num_classes).reshape(*x.shape[:-1], -1)
        flat = jax.vmap(self.mlp)(x.reshape(-1, x.shape[-1]))
        return tuple(
            jnp.split(flat.reshape(*x.shape[:-1], flat.shape[-1]), list(self.splits), axis=-1)
        )


def adaptive_vectors(
    network: Network,
    num_sequences: int,
    num_steps: int,
    *,
    scale: float = 0.0,
    key: Array | None = None,
) -> Table:
    """Initial adaptive vectors, [num_sequences, num_steps, 2 Z] by layer: zeros, or Normal(0, scale^2).

    Args:
        network: whose layers have Z latents each.
        num_sequences: sequences of the training data.
        num_steps: steps of each.
        scale: standard deviation of the start.
        key: PRNG key, for a scale above 0.

    Raises:
        ValueError: a scale above 0 without a key.
    """
    shapes = [(num_sequences, num_steps, 2 * layer.num_latents) for layer in network.layers]
    if not scale:
        return tuple(jnp.zeros(shape) for shape in shapes)
    if key is None:
        raise ValueError("adaptive_vectors: scale > 0 draws the vectors and needs a key.")
    keys = jax.random.split(key, len(shapes))
    return tuple(scale * jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=True))


def programs(
    network: Network,
    *,
    guide: Literal["adaptive", "encoder", "prior"] = "adaptive",
    num_sequences: int | None = None,
    num_steps: int,
    num_hidden: int = 32,
    init_scale: float = 0.0,
    key: Array | None = None,
) -> PVRNN:
    """The model of the module's text with one of its guides.

    Parameters: "network"; for the adaptive guide "adaptive", [num_sequences, num_steps, 2 Z] by layer, of which a run reads the
    rows `index`; for the encoder "encoder". A number that is no row makes NaN of the objective where `index` is not known yet
    (under `jax.jit`, as in a fit).

    Args:
        network: initial weights.
        guide: which.
        num_sequences: rows of the table of adaptive vectors.
        num_steps: number of steps of every sequence.
        num_hidden: width of the encoder.
        init_scale: standard deviation of the initial adaptive vectors; 0: zeros.
        key: PRNG key of the encoder or of the adaptive vectors.

    Raises:
        ValueError: an adaptive guide without `num_sequences`, an encoder without `key`, sequences of another length or size,
            an index that is no row of the table.

    Validity: minibatches leave the rows of absent sequences alone under `inference.fitting.by_row` only; a plain Adam moves
    them by momentum.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from lapilli import inference
        >>> from lapilli.models import pv_rnn
        >>> net = pv_rnn.Network([(10, 1)], pv_rnn.Gaussian(2), key=jax.random.key(0))
        >>> model, guide = pv_rnn.programs(net, num_sequences=3, num_steps=5)
        >>> bound = inference.elbo(model, guide, kl="analytic")
        >>> sorted(bound.init(jax.random.key(1), jnp.zeros((3, 5, 2)), jnp.arange(3)))
        ['adaptive', 'network']
    """
    if guide == "adaptive" and num_sequences is None:
        raise ValueError(
            "pv_rnn.programs: the adaptive guide has a row per sequence; give num_sequences."
        )
    if guide == "encoder" and key is None:
        raise ValueError("pv_rnn.programs: the encoder is initialised at random; give key.")
    if guide not in ("adaptive", "encoder", "prior"):
        raise ValueError(
            f"pv_rnn.programs: guide is {guide!r}; choose 'adaptive', 'encoder' or 'prior'."
        )
    table_0 = encoder_0 = None
    if guide == "adaptive":
        assert num_sequences is not None
        table_0 = adaptive_vectors(network, num_sequences, num_steps, scale=init_scale, key=key)
    if guide == "encoder":
        assert key is not None
        encoder_0 = LayerEncoder(network, num_hidden, key=key)

    @ppl.model
    def pv_rnn(x: Array, index: Array, seen: PyTree = None) -> PyTree:
        net = ppl.module("network", network)
        check_data(net, x, num_steps)
        extra: Any = None
        informed: Any = None
        if table_0 is not None:
            table = ppl.param("adaptive", table_0)
            extra = tuple(jnp.swapaxes(own_rows(a, index), 0, 1) for a in table)
            informed = None if seen is None else has_more(jnp.reshape(seen, (*x.shape[:2], -1)))
        elif encoder_0 is not None:
            encoded = x
            if seen is not None:
                cells = jnp.reshape(seen, (*x.shape[:2], -1))
                encoded, informed = jnp.where(cells, x, 0), cells.any(-1)
            extra = ppl.module("encoder", encoder_0)(jnp.swapaxes(encoded, 0, 1))
        return unroll(
            net, x, None if extra is None else vectors, extra,
            num_rows=len(index), num_steps=num_steps, marks=Marks(seen=seen, informed=informed),
        )  # fmt: skip

    def vectors(l: int, h: State, extra: PyTree) -> Array:
        return extra[l]

    return PVRNN(pv_rnn, ppl.guide_of(pv_rnn))


class Marks(NamedTuple):
    """Which steps and cells are what, for `unroll`.

    Attributes:
        is_first: [steps], marks the step whose prior is that of t = 1; None: the first.
        valid: [steps]; a step that is not valid leaves the state and counts for nothing. None: all are.
        seen: observed steps [rows, steps], or cells [rows, steps, size]; the rest is drawn. None: all.
        counted: cells [rows, steps, size] that count; the others, which must be finite, are neither drawn nor add to the
            density. None: all.
        informed: [rows, steps], steps that have a posterior of their own; the others' proposal is the prior. None: all.
    """

    is_first: Array | None = None
    valid: Array | None = None
    seen: Array | None = None
    counted: Array | None = None
    informed: Array | None = None


def unroll(
    network: Network,
    x: PyTree,
    pre_activation: Proposal | None,
    extra: Any = None,
    *,
    num_rows: int,
    num_steps: int,
    state: State | None = None,
    marks: Marks | None = None,
) -> State:
    """The statements of all steps for rows in the plate "sequences"; returns the states after each step, [steps, rows, D].

    Args:
        network: weights.
        x: observations [rows, steps, size], or None to draw them.
        pre_activation: `(layer, h_{t-1}, extra_t) -> a_t`, the posterior's pre-activation without the share of the state; None:
            the proposal is the prior.
        extra: data for it, leading axis steps.
        num_rows: number of rows.
        num_steps: number of steps.
        state: h before the first step; None: zeros.
        marks: which steps and cells are observed, count, or begin a series; None: see `Marks`.
    """
    marks = Marks() if marks is None else marks
    first = jnp.arange(num_steps) == 0 if marks.is_first is None else marks.is_first

    def step(h: State, inputs: PyTree) -> tuple[State, State]:
        x, extra, seen, counted, informed, first, valid = inputs
        z = []
        for l in range(len(network.layers)):
            prior = network.prior(l, h, first)
            q = prior
            if pre_activation is not None:
                q = network.from_state(l, h) + pre_activation(l, h, extra)
                q = q if informed is None else jnp.where(informed[:, None], q, prior)
            z.append(ppl.sample(f"z{l + 1}", latent_law(prior), proposal=latent_law(q)))
        new = network.advance(h, z)
        law: Any = network.law(network.emit(new))
        law = law if counted is None else law.base_dist.mask(counted).to_event(1)
        ppl.sample("x", law, obs=x, obs_mask=seen)
        if valid is not None:
            new = tuple(jnp.where(valid, a, b) for a, b in zip(new, h, strict=True))
        return new, new

    def masked(h: State, inputs: PyTree) -> tuple[State, State]:
        if inputs[-1] is None:
            return step(h, inputs)
        with numpyro.handlers.mask(mask=inputs[-1]):
            return step(h, inputs)

    by_time = lambda a: None if a is None else jnp.swapaxes(jnp.asarray(a), 0, 1)
    h = network.initial_state(num_rows) if state is None else state
    with ppl.plate("sequences", num_rows):
        cells = (by_time(marks.seen), by_time(marks.counted), by_time(marks.informed))
        return ppl.scan(masked, h, (by_time(x), extra, *cells, first, marks.valid), num_steps)[1]


def own_rows(table: Array, index: ArrayLike) -> Array:
    """Rows of a table by number; NaN for one that it does not have, where JAX would read the last row, or count from behind."""
    size = len(table)
    if is_concrete(index):
        rows = np.asarray(index)
        wrong = rows[(rows < 0) | (rows >= size)]
        if wrong.size:
            raise ValueError(
                f"pv_rnn: index holds {wrong[0]}, but the table of adaptive vectors has rows 0 to {size - 1}, and the vectors of "
                "another sequence would be read. Give the numbers of these sequences, or more num_sequences."
            )
    index = jnp.asarray(index)
    is_row = (index >= 0) & (index < size)
    return jnp.where(is_row[:, None, None], table[index], jnp.nan)


def has_more(seen: Bool[Array, "*rows steps size"]) -> Bool[Array, "*rows steps"]:
    """Whether a cell of the step, or of a later one, is seen."""
    steps = jnp.asarray(seen, bool).any(-1).astype(jnp.int32)
    return jax.lax.cummax(steps, axis=steps.ndim - 1, reverse=True) > 0


def site_weights(
    network: Network,
    w: float | Sequence[float] | Array,
    *,
    num_steps: int,
) -> dict[str, Array]:
    """The meta-prior as site weights: 1/O for "x", seen in whole or in part, w_l / Z_l for "z<l>".

    The weighted elbo is then -F with

        F = sum_t { 1/O (-log p(x_t)) + sum_l w_{l,t} / Z_l KL[q(z_t^l) || p(z_t^l)] },

    of x_t the cells that are seen. It is an evidence bound times 1/O where w_l / Z_l = 1/O for every layer and step, and no bound
    elsewhere (`Objective.label`). For squared errors, -log p with scale sqrt(1/2), the bound is that of noise of variance
    w O / (2 Z).

    Args:
        network: sizes.
        w: meta-prior, one number, one for each layer, or [2, layers], those of the first step and of the others.
        num_steps: number of steps.
    """
    first, w = jnp.broadcast_to(jnp.asarray(w, float), (2, len(network.layers)))
    # With missing cells the sites of x are "x_observed" and "x_unobserved".
    weights: dict[str, PyTree] = {"x*": jnp.asarray(1 / network.output.size)}
    for l, layer in enumerate(network.layers):
        schedule = jnp.full(num_steps, w[l]).at[0].set(first[l])
        weights[f"z{l + 1}"] = schedule / layer.num_latents
    return weights


def check_data(network: Network, x: Array, num_steps: int) -> None:
    """Refuse observations of another length or size, and classes that are no integers."""
    if x is None:
        return
    shape, size = jnp.shape(x), network.output.size
    if len(shape) != 3 or shape[1:] != (num_steps, size):
        raise ValueError(
            f"pv_rnn: x has shape {shape}, but [sequences, {num_steps} steps, {size} dimensions] were declared. "
            "Give x this shape, or the network and the programs the sizes of the data."
        )
    is_integer = jnp.issubdtype(jnp.result_type(x), jnp.integer)
    if isinstance(network.output, Categorical) and not is_integer:
        raise ValueError(
            f"pv_rnn: x has dtype {jnp.result_type(x)}, but symbols are integers. Convert it to integers, or "
            "use the output Gaussian(size)."
        )


def frozen(params: ParamMap, network: Network) -> Network:
    """The network with fitted weights, e.g. `frozen(fit.params, network)`.

    Args:
        params: of a fit; "network" is read.
        network: the network that was declared, for its sizes.
    """
    return trained(network, params)
