"""Recurrent networks learned on sequences, and how each predicts the steps to come (for motions.py, lost_cells.py, patterns.py).

A predictor gives, for a sequence [steps, channels], a key, and the cells that are seen (None: all), what K particles emit for
x_{t+1} .. x_{t+H} once what is seen of x_1 .. x_t is known: [steps, H, K, channels], where row t - 1 stands for t steps.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax

from lapilli import inference, ppl
from lapilli.models import pv_rnn
from lapilli.models.pv_rnn import ErrorRegression, Gaussian, Layer, Network

LAYERS = (Layer(24, 3, 2.0), Layer(12, 2, 8.0))
HORIZON, WARM_UP, CHANNELS, NUM_GRU_UNITS = 5, 10, 6, 48

Predictor = Callable[..., jax.Array]  # (sequence, key, seen=None)


class Config(NamedTuple):
    """Sizes of the experiment."""

    length: int = 50
    num_tests: int = 40
    num_seeds: int = 3
    betas: tuple[float, ...] = (0.25, 1.0, 4.0)
    decays: tuple[float, ...] = (1.0, 4.0, 16.0)
    num_steps: int = 2000
    batch_size: int = 10
    window: int = 10
    num_iterations: int = 20
    num_particles: int = 32
    num_filter_particles: int = 100
    stride: int = 1  # of the steps that are scored
    batch_rows: int = 10  # sequences that are predicted at once


class Fits(NamedTuple):
    """Networks trained side by side, one for each pair of a setting and a seed.

    Attributes:
        params: parameters, a leading axis of fits.
        settings: the number that is chosen on validation sequences, [fits].
        programs: their model and guide; for a GRU the model alone.
        networks: the generative networks of a PV-RNN with a leading axis of fits; None for a GRU.
    """

    params: Any
    settings: jax.Array
    programs: Any
    networks: Network | None


def meta_prior(network: Network, beta: Any) -> jax.Array:
    """The w with w_l / Z_l = beta / O: divergences count beta times."""
    return beta * jnp.array([layer.num_latents / CHANNELS for layer in network.layers])


def ascend(
    value_and_grad: Callable[..., Any],
    params: Any,
    optimizer: Any,
    config: Config,
    x: Any,
    key: Any,
) -> Any:
    """Parameters after `config.num_steps` steps on `config.batch_size` sequences each, and the value at the end.

    `value_and_grad(params, key, x, rows)`.
    """

    def step(carry: Any, t: jax.Array) -> Any:
        params, state = carry
        rows_key, key_t = jax.random.split(jax.random.fold_in(key, t))
        rows = jax.random.choice(rows_key, len(x), (config.batch_size,), replace=False)
        value, grads = value_and_grad(params, key_t, x[rows], rows)
        updates, state = optimizer.update(jax.tree.map(jnp.negative, grads), state, params)
        return (optax.apply_updates(params, updates), state), value

    start = (params, optimizer.init(params))
    carry, values = jax.lax.scan(step, start, jnp.arange(config.num_steps))
    return carry[0], values[-100:].mean()


def side_by_side(name: str, one: Any, settings: Any, config: Config, x: Any, key: Any) -> Any:
    """`one(key, setting) -> (params, value)` for every setting and seed; tells the value per step."""
    start = time.perf_counter()
    by_fit = jnp.repeat(jnp.array(settings), config.num_seeds)
    keys = jnp.tile(jax.random.split(key, config.num_seeds), len(settings))
    params, values = jax.block_until_ready(jax.jit(jax.vmap(one))(keys, by_fit))
    per_step = np.asarray(values).reshape(len(settings), -1).mean(1) / (x.shape[0] * x.shape[1])
    print(
        f"{name}: objective per step and channel at {settings}: {np.round(per_step, 3)} nats, "
        f"{time.perf_counter() - start:.0f} s",
        flush=True,
    )
    return params, by_fit


def dropped(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Cells that are left, [rows, steps, channels]: each row loses a share of its own, between nothing and 0.8, at random."""
    rate_key, key = jax.random.split(key)
    rate = jax.random.uniform(rate_key, (shape[0], 1, 1), maxval=0.8)
    return jax.random.uniform(key, shape) > rate


def learn_pv_rnn(
    config: Config, x: jax.Array, guide: Any, key: jax.Array, *, drops: bool = False
) -> Fits:
    """A PV-RNN for each beta and seed, with vectors ("adaptive") or an encoder as its guide.

    With `drops` each step's sequences lose cells, and the bound is of those that are left.
    """
    template = Network(LAYERS, Gaussian(CHANNELS), key=key)
    programs = pv_rnn.programs(
        template, guide=guide, num_sequences=len(x), num_steps=config.length, key=key
    )
    bound = inference.elbo(*programs, kl="analytic").with_plate_sizes({"sequences": len(x)})
    everything = (x, jnp.arange(len(x)))
    params_0 = bound.init(key, *everything)
    bound.plan(params_0, *everything)  # every check, once
    labels = {name: "local" if name == "adaptive" else "shared" for name in params_0}
    groups = {"shared": optax.adam(3e-3)}
    if guide == "adaptive":
        groups["local"] = inference.fitting.by_row(optax.adam(2e-2))
    optimizer = optax.partition(groups, type(params_0)(labels, params_0.constraints))

    def one(key: jax.Array, beta: jax.Array) -> Any:
        network_key, key = jax.random.split(key)
        params = bound.init(network_key, *everything)
        network = Network(LAYERS, Gaussian(CHANNELS), key=network_key)
        params["network"] = jax.tree.map(jnp.asarray, network)
        weights = pv_rnn.site_weights(network, meta_prior(network, beta), num_steps=config.length)
        weighted = bound.with_site_weights(weights).value_and_grad
        return ascend(
            with_drops(weighted) if drops else weighted, params, optimizer, config, x, key
        )

    name = f"{guide}, dropped cells" if drops else guide
    params, betas = side_by_side(name, one, config.betas, config, x, key)
    return Fits(params, betas, programs, pv_rnn.frozen(params, template))


def with_drops(value_and_grad: Callable[..., Any]) -> Callable[..., Any]:
    """`(params, key, x, rows)`, with cells dropped by the key."""

    def run(params: Any, key: jax.Array, x: jax.Array, rows: jax.Array) -> Any:
        drop_key, key = jax.random.split(key)
        return value_and_grad(params, key, x, rows, dropped(drop_key, x.shape))

    return run


def gru_of(key: jax.Array) -> ppl.Program:
    """x_t ~ Normal(W h_{t-1} + b, scale^2), h_t = GRU(x_t, h_{t-1}): no latents; unseen steps are drawn, and then heard.

    Returns the means of x_1 .. x_T, [steps, sequences, channels].
    """
    cell_key, readout_key = jax.random.split(key)
    cell_0 = eqx.nn.GRUCell(CHANNELS, NUM_GRU_UNITS, key=cell_key)
    readout_0 = eqx.nn.Linear(NUM_GRU_UNITS, CHANNELS, key=readout_key)

    @ppl.model
    def gru(x: jax.Array, seen: Any = None) -> jax.Array:
        cell, readout = ppl.module("cell", cell_0), ppl.module("readout", readout_0)
        scale = jnp.exp(ppl.param("log_scale", jnp.zeros(CHANNELS)))

        def step(h: jax.Array, inputs: Any) -> Any:
            x, seen = inputs
            mean = jax.vmap(readout)(h)
            x = ppl.sample("x", dist.Normal(mean, scale).to_event(1), obs=x, obs_mask=seen)
            return jax.vmap(cell)(x, h), mean

        by_time = lambda a: None if a is None else jnp.swapaxes(a, 0, 1)
        with ppl.plate("sequences", len(x)):
            h = jnp.zeros((len(x), NUM_GRU_UNITS))
            return ppl.scan(step, h, (by_time(x), by_time(seen)))[1]

    return gru


def learn_gru(config: Config, x: jax.Array, key: jax.Array) -> Fits:
    """A GRU for each weight decay and seed, by maximum likelihood."""
    model = gru_of(key)

    def one(key: jax.Array, decay: jax.Array) -> Any:
        network_key, key = jax.random.split(key)
        params = gru_of(network_key).init(network_key, x)

        def value(params: Any, key: jax.Array, x_batch: jax.Array, rows: jax.Array) -> jax.Array:
            log_density = model.bind(params).log_density({}, x_batch)
            return (
                len(x) / len(rows) * log_density / CHANNELS
            )  # as the site weights of a PV-RNN have it

        optimizer = optax.adamw(3e-3, weight_decay=decay)
        return ascend(jax.value_and_grad(value), params, optimizer, config, x, key)

    params, decays = side_by_side("GRU", one, config.decays, config, x, key)
    return Fits(params, decays, model, None)


def by_regression(config: Config, fits: Fits, params: Any, network: Any, beta: Any) -> Predictor:
    """Error regression: the vectors of the last steps by gradients, online."""
    er = ErrorRegression(
        network, window=config.window, num_iterations=config.num_iterations, w=meta_prior(network, beta),
        horizon=HORIZON, num_particles=config.num_particles,
    )  # fmt: skip
    return lambda xs, key, seen=None: er.run(er.init(key), xs, seen)[1].emitted


def by_encoder(config: Config, fits: Fits, params: Any, network: Any, beta: Any) -> Predictor:
    """Latents from q(z_t | x_t, d_{t-1}) up to t, from the prior after it: no weights."""
    guide = fits.programs.guide.bind(params)

    def predict(xs: jax.Array, key: jax.Array, seen: Any = None) -> jax.Array:
        filter_key, ahead_key = jax.random.split(key)
        copies = lambda a: (
            None if a is None else jnp.broadcast_to(a, (config.num_particles, *a.shape))
        )
        index = jnp.arange(config.num_particles)
        states = guide.simulate(filter_key, copies(xs), index, copies(seen)).retval
        return jnp.swapaxes(pv_rnn.rollout(network, ahead_key, states, HORIZON)[1], 0, 1)

    return predict


def by_filter(config: Config, fits: Fits, params: Any, network: Any, beta: Any) -> Predictor:
    """A particle filter with the fits' guide as proposal (vectors give none: the prior), whose last steps are unseen."""
    model, guide = (program.bind(params) for program in fits.programs)
    proposal = guide if "encoder" in params else None

    def emitted(xs: jax.Array, seen: jax.Array, key: jax.Array) -> jax.Array:
        run_key, draw_key = jax.random.split(key)
        result = inference.smc(
            model, run_key, xs[None], jnp.arange(1), seen[None],
            num_particles=config.num_filter_particles, proposal=proposal,
        )  # fmt: skip
        paths = result.sample(draw_key, config.num_filter_particles)
        z = tuple(paths[f"z{l + 1}"][:, :, 0].swapaxes(0, 1) for l in range(len(LAYERS)))

        def step(h: Any, z: Any) -> Any:
            h = network.advance(h, z)
            return h, network.emit(h)

        return jax.lax.scan(step, network.initial_state(config.num_filter_particles), z)[1]

    return unseen_ahead(config, emitted)


def by_gru(config: Config, fits: Fits, params: Any, network: Any, beta: Any) -> Predictor:
    """The GRU's own draws of the unseen steps."""
    model = fits.programs.bind(params)

    def emitted(xs: jax.Array, seen: jax.Array, key: jax.Array) -> jax.Array:
        copies = lambda a: jnp.broadcast_to(a, (config.num_particles, *a.shape))
        return model.simulate(key, copies(xs), copies(seen)).retval

    return unseen_ahead(config, emitted)


def unseen_ahead(config: Config, emitted: Callable[..., jax.Array]) -> Predictor:
    """Predict by `emitted(xs, seen, key)`, [steps, K, channels], which does not read what is not seen, for each end of `seen`.

    Steps that are not scored stay zero; so do steps behind the end.
    """

    def predict(xs: jax.Array, key: jax.Array, cells: Any = None) -> jax.Array:
        ends = jnp.arange(WARM_UP, len(xs), config.stride)
        seen = jnp.arange(len(xs)) <= ends[:, None]
        seen = seen if cells is None else seen[..., None] & cells
        found = jax.vmap(emitted, (None, 0, 0))(xs, seen, jax.random.split(key, len(ends)))
        found = jnp.pad(found, ((0, 0), (0, HORIZON), (0, 0), (0, 0)))
        ahead = lambda one, t: jax.lax.dynamic_slice_in_dim(one, t + 1, HORIZON)
        rows = jax.vmap(ahead)(found, ends)
        return jnp.zeros((len(xs), *rows.shape[1:])).at[ends].set(rows)

    return predict


def scores(law: Any, emitted: jax.Array, xs: jax.Array, stride: int) -> dict[str, jax.Array]:
    """Squared error per channel and -log p (nats) of one sequence at each lead n, means after the warm-up, [n].

    Args:
        law: what was emitted -> law of x.
        emitted: what a predictor gives.
        xs: the sequence, whole.
        stride: of the steps that are scored.
    """
    mse, nll = [], []
    for n in range(1, HORIZON + 1):
        made, target = emitted[WARM_UP : len(xs) - n : stride, n - 1], xs[WARM_UP + n :: stride]
        mse.append(((made.mean(-2) - target) ** 2).mean())
        log_probs = law(made).log_prob(target[:, None])
        nll.append((jnp.log(made.shape[-2]) - jax.nn.logsumexp(log_probs, -1)).mean())
    return {"mse": jnp.stack(mse), "nll": jnp.stack(nll)}


def predict(
    config: Config, fits: Fits, method: Callable[..., Predictor], xs: jax.Array, key: jax.Array, seen: Any = None
) -> dict[str, np.ndarray]:  # fmt: skip
    """Scores of every fit on every sequence, [fits, sequences, n]; `seen` are the cells that it is predicted from."""
    start = time.perf_counter()

    def one_fit(inputs: Any) -> Any:
        params, network, setting = inputs
        predictor = method(config, fits, params, network, setting)
        if network is None:
            law = lambda mean: dist.Normal(mean, jnp.exp(params["log_scale"])).to_event(1)
        else:
            law = network.law
        one = lambda row: scores(law, predictor(*row), row[0], config.stride)
        rows = (xs, jax.random.split(key, len(xs)), seen)
        return jax.lax.map(one, rows, batch_size=config.batch_rows)

    run = jax.jit(lambda inputs: jax.lax.map(one_fit, inputs))  # fit by fit: memory
    found = jax.tree.map(np.asarray, run((fits.params, fits.networks, fits.settings)))
    print(f"{method.__name__}: {time.perf_counter() - start:.0f} s with compilation", flush=True)
    return found
