"""The models of koopman.py, trained: one interface to all.

All have states of `NUM_STATES` numbers a step, networks of `NUM_HIDDEN` units and normal noise of a scale for each channel, which
starts at 0.3.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
from _koopman_published import Published, RecurrentPrior

from lapilli import inference, ppl
from lapilli.models import koopman, pv_rnn

NUM_STATES, NUM_HIDDEN, BATCH = 8, 32, 32
KINDS = {
    "independent": "independent codes",
    "independent-recurrent": "independent codes, recurrent decoder",
    "linear": "unit disc",
    "recurrent": "recurrent prior, bound",
    "recurrent-longer": "recurrent prior, bound, twice the steps",
    "published": "recurrent prior, published",
    "pv-rnn": "PV-RNN",
}
RATES = {  # see `--validate`
    "independent": 2e-2,
    "independent-recurrent": 2e-2,
    "linear": 1e-2,
    "recurrent": 2e-2,
    "recurrent-longer": 2e-2,  # as with half the steps
    "published": 2e-2,
    "pv-rnn": 2e-2,
}


class BothWays(eqx.Module):
    """Two recurrent networks, one from each end of a series, and a layer on both: [n, t, in] -> [n, t, out]."""

    forth: eqx.nn.GRUCell
    back: eqx.nn.GRUCell
    last: eqx.nn.Linear

    def __init__(self, num_in: int, num_out: int, *, key: jax.Array) -> None:
        keys = jax.random.split(key, 3)
        self.forth = eqx.nn.GRUCell(num_in, NUM_HIDDEN, key=keys[0])
        self.back = eqx.nn.GRUCell(num_in, NUM_HIDDEN, key=keys[1])
        self.last = eqx.nn.Linear(2 * NUM_HIDDEN, num_out, key=keys[2])

    def __call__(self, x: jax.Array) -> jax.Array:
        def step(h: Any, rows: Any) -> Any:
            new = jax.vmap(self.forth)(rows[0], h[0]), jax.vmap(self.back)(rows[1], h[1])
            return new, new

        by_step = jnp.swapaxes(x, 0, 1)
        start = (jnp.zeros((len(x), NUM_HIDDEN)),) * 2
        forth, back = jax.lax.scan(step, start, (by_step, by_step[::-1]))[1]
        both = jnp.concatenate([forth, back[::-1]], -1)
        return jnp.swapaxes(jax.vmap(jax.vmap(self.last))(both), 0, 1)


class RecurrentDecoder(eqx.Module):
    """Means of channels between 0 and 1, which depend on the states of all steps, as published."""

    net: BothWays

    def __call__(self, z: jax.Array) -> jax.Array:
        return jax.nn.sigmoid(self.net(z))


class MeanField(eqx.Module):
    """Mean and scale of q(z_t | x), each [n, t, d]; missing cells are not read."""

    net: BothWays

    def __call__(self, x: jax.Array, seen: jax.Array) -> tuple[jax.Array, jax.Array]:
        given = jnp.concatenate([jnp.where(seen, x, 0.0), seen.astype(x.dtype)], -1)
        mean, log_scale = jnp.split(self.net(given), 2, -1)
        return mean, jnp.exp(log_scale)


def independent(z: jax.Array, h: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The prior N(0, I) of every step, in the place of a recurrent one."""
    return h, jnp.zeros_like(z), jnp.ones_like(z)


def autoencoder(
    prior_0: Any, decoder_0: Any, encoder_0: Any, shape: tuple[int, int]
) -> koopman.Koopman:
    """A prior of states one after the other, a decoder of them, and a guide whose states are independent given the series.

    The sites, arguments and values are those of `koopman.programs`, but that "x" is one site of all steps.
    """
    num_steps, num_channels = shape

    @ppl.model
    def model(x: Any, seen: Any = None, num_series: int | None = None) -> Any:
        num: Any = num_series if x is None else len(x)
        learned = isinstance(prior_0, eqx.Module)
        prior: Any = ppl.module("prior", prior_0) if learned else prior_0
        decoder = ppl.module("decoder", decoder_0)
        positive = dist.constraints.positive
        noise = ppl.param("noise", 0.3 * jnp.ones(num_channels), constraint=positive)

        def step(carry: Any, _: None) -> Any:
            h, mean, scale = prior(*carry)
            z = ppl.sample("z", dist.Normal(mean, scale).to_event(1))
            return (z, h), z

        with ppl.plate("series", num):
            start = jnp.zeros((num, NUM_STATES)), jnp.zeros((num, NUM_HIDDEN))
            mean = decoder(jnp.swapaxes(ppl.scan(step, start, None, num_steps)[1], 0, 1))
            law = dist.Normal(mean, noise)
            law = law if seen is None else law.mask(seen)
            ppl.sample("x", law.to_event(2), obs=x)
        return jnp.swapaxes(mean, 0, 1)

    @ppl.model
    def guide(x: Any, seen: Any = None, num_series: int | None = None) -> None:
        cells = jnp.ones(x.shape, bool) if seen is None else seen
        found = ppl.module("encoder", encoder_0)(x, cells)

        def step(carry: None, inputs: Any) -> Any:
            return None, ppl.sample("z", dist.Normal(*inputs).to_event(1))

        with ppl.plate("series", len(x)):
            ppl.scan(step, None, tuple(jnp.swapaxes(a, 0, 1) for a in found), num_steps)

    return koopman.Koopman(model, guide)


class Row(NamedTuple):
    """A model to train.

    Attributes:
        loss: the objective that it is trained by.
        bound: an objective, nats: `loss`, or where that is no bound, what its noise and guide are fitted by afterwards.
        judge: the value of the bound of twenty particles.
        plate: of series.
        arguments: of the programs, for (x, seen).
        draws: (params, key, number) -> the means of drawn series [series, steps, channels].
    """

    loss: Any
    bound: Any
    judge: Callable[..., Any]
    plate: str
    arguments: Callable[..., tuple[Any, ...]]
    draws: Callable[..., Any]


@functools.cache
def row_of(kind: str, shape: tuple[int, int], seed: int = 0) -> Row:
    """The row of that name for series of `shape`, steps and channels; `seed` is that of its initial weights."""
    keys = jax.random.split(jax.random.key(seed), 3)
    if kind == "pv-rnn":
        return of_pv_rnn(shape, keys[0], keys[1])
    loss = None
    if kind == "linear":
        decoder = koopman.Decoder(NUM_STATES, shape[1], NUM_HIDDEN, key=keys[0])
        encoder = koopman.Encoder(shape[1], NUM_STATES, NUM_HIDDEN, key=keys[1])
        spectrum = koopman.Spectrum(NUM_STATES)
        both = koopman.programs(spectrum, decoder, encoder, num_steps=shape[0])
    else:
        nets: dict[str, Any] = {
            "prior": RecurrentPrior(NUM_STATES, NUM_HIDDEN, key=keys[2]),
            "decoder": RecurrentDecoder(BothWays(NUM_STATES, shape[1], key=keys[0])),
            "encoder": MeanField(BothWays(2 * shape[1], 2 * NUM_STATES, key=keys[1])),
        }
        if kind.startswith("independent"):
            nets["prior"] = independent
        if kind == "independent":
            nets["decoder"] = koopman.Decoder(NUM_STATES, shape[1], NUM_HIDDEN, key=keys[0])
        both = autoencoder(*nets.values(), shape)
        loss = Published(*both, nets, NUM_HIDDEN) if kind == "published" else None

    def draws(params: Any, key: jax.Array, num: int) -> Any:
        means = both.model.bind(params).simulate(key, None, num_series=num).retval
        return jnp.swapaxes(means, 0, 1)

    bound = inference.elbo(*both)
    judge = inference.iwelbo(*both, num_particles=20, per="series").value
    return Row(loss or bound, bound, jax.jit(judge), "series", lambda x, seen: (x, seen), draws)


def of_pv_rnn(shape: tuple[int, int], network_key: jax.Array, encoder_key: jax.Array) -> Row:
    """Two layers of different pace, with an encoder of the step alone, as `pv_rnn.SeriesForecaster` is trained."""
    num_steps, num_channels = shape
    layers = (pv_rnn.Layer(NUM_HIDDEN, NUM_STATES - 2, 2.0), pv_rnn.Layer(10, 2, 8.0))
    network = pv_rnn.Network(layers, pv_rnn.Gaussian(num_channels), key=network_key)
    start = jnp.full(num_channels, np.log(0.3))
    network = eqx.tree_at(lambda net: net.log_scale, network, start)
    both = pv_rnn.programs(network, guide="encoder", num_steps=num_steps, key=encoder_key)

    def draws(params: Any, key: jax.Array, num: int) -> Any:
        net = pv_rnn.frozen(params, network)
        _, means = pv_rnn.rollout(net, key, net.initial_state(num), num_steps, is_start=True)
        return jnp.swapaxes(means, 0, 1)

    bound = inference.elbo(*both, kl="analytic", check_jumps=False)
    judge = inference.iwelbo(*both, num_particles=20, per="sequences", check_jumps=False).value
    arguments = lambda x, seen: (x, jnp.arange(len(x)), seen)
    return Row(bound, bound, jax.jit(judge), "sequences", arguments, draws)


def trained(kind: str, x: Any, seen: Any, num_steps: int, seed: int, rate: float) -> Any:
    """Parameters of a row, fitted to the seen cells of x.

    Args:
        kind: of `KINDS`.
        x: series to train on.
        seen: their cells.
        num_steps: of the optimiser.
        seed: of weights and noise.
        rate: of the optimiser.
    """
    row, key = row_of(kind, x.shape[1:]), jax.random.key(seed)
    if kind == "recurrent-longer":  # as many as the published row takes for its parts together
        num_steps *= 2
    args = row.arguments(jnp.asarray(x), jnp.asarray(seen))
    # The rate is a number of the state, so that what is compiled serves all.
    decay = optax.cosine_decay_schedule(1.0, num_steps)
    by_rate = lambda peak: optax.adam(lambda step: peak * decay(step))
    adam = optax.inject_hyperparams(by_rate)(peak=rate)
    clipped = optax.chain(optax.clip_by_global_norm(1e4), adam)
    fitted = functools.partial(
        inference.fit, args=args, num_steps=num_steps, subsample={row.plate: min(BATCH, len(x))},
        k_hat="skip", progress=False,
    )  # fmt: skip
    params: Any = row_of(kind, x.shape[1:], seed).bound.init(key, *args)
    params = fitted(row.loss, clipped, params=params, key=key).params
    if row.loss is row.bound:
        return params
    free = {n: clipped if n in ("encoder", "noise") else "frozen" for n in params}
    return fitted(row.bound, free, params=params, key=jax.random.fold_in(key, 1)).params


def loss(kind: str, params: Any, x: Any, seen: Any) -> float:
    """What is minimised to train a row, of the seen cells of x."""
    row = row_of(kind, x.shape[1:])
    args = row.arguments(jnp.asarray(x), jnp.asarray(seen))
    value = float(row.loss.value(params, jax.random.key(0), *args))
    return -value if row.loss.direction == "max" else value


def nats(kind: str, params: Any, x: Any, seen: Any, key: jax.Array) -> float:
    """Bound of the seen cells of x, nats per cell."""
    row = row_of(kind, x.shape[1:])
    args = row.arguments(jnp.asarray(x), jnp.asarray(seen))
    return float(row.judge(params, key, *args)) / float(np.sum(seen))


def draws(kind: str, params: Any, key: jax.Array, like: Any) -> np.ndarray:
    """Means of drawn series, as many and of the shape of others."""
    return np.asarray(row_of(kind, like.shape[1:]).draws(params, key, len(like)))
