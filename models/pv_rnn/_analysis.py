"""Free generation and what is measured on it: strings of symbols, diverging steps, Lyapunov exponents."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, PyTree
from numpyro.distributions.kl import kl_divergence

from ...ppl._checks import check_counts, check_probabilities
from ._network import Network, State, latent_law
from ._programs import Table


def rollout(
    network: Network,
    key: Array | None,
    state: State,
    num_steps: int,
    *,
    is_start: bool = False,
) -> tuple[State, Float[Array, "steps *batch out"]]:
    """Run the network freely: latents from the prior, or at its mean where `key` is None.

    Args:
        network: weights.
        key: PRNG key of the latents; None sets every prior's scale to zero.
        state: h before the first step, [*batch, D] by layer.
        num_steps: number of steps.
        is_start: whether the first step has the prior of t = 1.

    Returns:
        The last state, and what the output's laws are made of at each step.
    """

    def step(h: State, t: Array) -> tuple[State, Array]:
        is_first = (t == 0) & is_start
        z = []
        for l in range(len(network.layers)):
            law = latent_law(network.prior(l, h, is_first))
            if key is None:
                z.append(law.mean)
            else:
                z.append(law.sample(jax.random.fold_in(jax.random.fold_in(key, t), l)))
        h = network.advance(h, z)
        return h, network.emit(h)

    return jax.lax.scan(step, state, jnp.arange(num_steps))


def generate(
    network: Network, key: Array, num_steps: int, *, num_rows: int = 1, burn_in: int = 0
) -> Array:
    """Observations of free generation from h = 0, [num_rows, num_steps, size], after `burn_in` steps are dropped.

    Args:
        network: trained weights.
        key: PRNG key.
        num_steps: steps that are kept.
        num_rows: sequences.
        burn_in: steps before these.
    """
    prior_key, key = jax.random.split(key)
    start = network.initial_state(num_rows)
    _, emitted = rollout(network, prior_key, start, burn_in + num_steps, is_start=True)
    return jnp.swapaxes(network.law(emitted[burn_in:]).sample(key), 0, 1)


class Latents(NamedTuple):
    """One posterior run over given vectors; every entry holds an array for each layer, [rows, steps, Z].

    Attributes:
        prior_loc: mean of p(z_t | d_{t-1}).
        prior_scale: its standard deviation.
        posterior_loc: mean of q(z_t | d_{t-1}, a_t).
        posterior_scale: its standard deviation.
        kl: KL[q || p] (nats).
    """

    prior_loc: Table
    prior_scale: Table
    posterior_loc: Table
    posterior_scale: Table
    kl: Table


def latents(network: Network, key: Array, vectors: Table) -> Latents:
    """Both laws of the latents along one draw of the posterior: what each step owes to its vector, and how sure it is.

    Args:
        network: weights.
        key: PRNG key.
        vectors: adaptive vectors of each layer, [rows, steps, 2 Z].
    """
    laws = _posterior_run(network, key, vectors, vectors[0].shape[1])[1]
    return Latents(
        *(tuple(jnp.swapaxes(a, 0, 1) for a in part) for part in zip(*laws, strict=True))
    )


def regenerate(network: Network, key: Array, vectors: Table, num_given: int) -> Array:
    """Observations whose first `num_given` steps have latents from the posterior, the rest from the prior.

    Tests whether the first latents carry the identity of a sequence (target regeneration; all steps given: reconstruction).

    Args:
        network: weights.
        key: PRNG key.
        vectors: adaptive vectors of each layer, [rows, steps, 2 Z].
        num_given: steps with latents from q.

    Returns:
        [rows, steps, size].
    """
    run_key, key = jax.random.split(key)
    emitted, _ = _posterior_run(network, run_key, vectors, num_given)
    return jnp.swapaxes(network.law(emitted).sample(key), 0, 1)


def _posterior_run(
    network: Network, key: Array, vectors: Table, num_given: int
) -> tuple[Array, PyTree]:
    """What is emitted, [steps, rows, out], and by layer the moments of prior and posterior and their KL, time first."""

    def step(h: State, inputs: PyTree) -> tuple[State, PyTree]:
        t, a = inputs
        z, laws = [], []
        for l in range(len(network.layers)):
            prior = network.prior(l, h, t == 0)
            own = network.from_state(l, h) + a[l]
            p, q = (_by_element(latent_law(pre)) for pre in (prior, own))
            laws.append((p.loc, p.scale, q.loc, q.scale, kl_divergence(q, p)))
            pre = jnp.where(t < num_given, own, prior)
            noise_key = jax.random.fold_in(jax.random.fold_in(key, t), l)
            z.append(latent_law(pre).sample(noise_key))
        h = network.advance(h, z)
        return h, (network.emit(h), tuple(laws))

    xs = (jnp.arange(vectors[0].shape[1]), tuple(jnp.swapaxes(a, 0, 1) for a in vectors))
    return jax.lax.scan(step, network.initial_state(vectors[0].shape[0]), xs)[1]


def _by_element(law: Any) -> Any:
    """The law of each latent by itself."""
    return law.base_dist


def ngram_counts(symbols: Int[Array, "rows steps"], n: int, num_symbols: int = 2) -> np.ndarray:
    """Number of occurrences of each string of n symbols, in all rows, [num_symbols^n]; the first symbol counts most.

    Args:
        symbols: integers from 0 to num_symbols - 1, [rows, steps].
        n: length of a string.
        num_symbols: number of symbols.

    Raises:
        ValueError: rows have fewer than n steps, or the array has other axes; a number is no symbol.
    """
    check_counts("ngram_counts", n=n, num_symbols=num_symbols)
    rows = np.asarray(symbols)
    if rows.ndim != 2 or rows.shape[1] < n:
        raise ValueError(
            f"ngram_counts: symbols have shape {rows.shape}; [rows, steps] with at least n = {n} steps is needed."
        )
    is_symbol = np.isin(rows, np.arange(num_symbols))
    if not is_symbol.all():
        raise ValueError(
            f"ngram_counts: {int((~is_symbol).sum())} of {rows.size} symbols are none of 0 to {num_symbols - 1}, "
            f"{rows[~is_symbol][0]} among them, and would be counted as other strings. Code the symbols so, or give num_symbols=."
        )
    windows = np.lib.stride_tricks.sliding_window_view(rows.astype(int), n, axis=1)
    codes = windows @ num_symbols ** np.arange(n - 1, -1, -1)
    return np.bincount(codes.ravel(), minlength=num_symbols**n)


class NGramDivergence(NamedTuple):
    """What `ngram_divergence` returns.

    Attributes:
        divergence: KL(P || P_gen), nats.
        illegal: mass of P_gen on strings with P = 0.
    """

    divergence: float
    illegal: float


def ngram_divergence(
    probs: np.ndarray, symbols: Any, n: int, *, num_symbols: int = 2, floor: float = 1e-5
) -> NGramDivergence:
    """KL(P || P_gen) between the exact law of strings and that of generated symbols.

    Args:
        probs: P, [num_symbols^n], in the order of `ngram_counts`.
        symbols: generated, [rows, steps].
        n: length of the strings.
        num_symbols: number of symbols.
        floor: probability given to strings that were not met; the divergence depends on it, so it is to be stated.

    Raises:
        ValueError: as `ngram_counts`; `probs` are no probabilities of these strings.
    """
    probs, counts = np.asarray(probs, float), ngram_counts(symbols, n, num_symbols)
    generated = counts / counts.sum()
    check_probabilities("ngram_divergence", probs=probs, generated=generated)
    is_legal = probs > 0
    ratio = np.log(probs[is_legal]) - np.log(np.maximum(generated[is_legal], floor))
    return NGramDivergence(float(probs[is_legal] @ ratio), float(generated[~is_legal].sum()))


def diverging_step(
    generated: Array, target: Array, *, threshold: float = 0.0
) -> Int[Array, " rows"]:
    """First step (from 1) at which a regenerated sequence leaves its target (NaN does), num_steps + 1 where it never does.

    Args:
        generated: [rows, steps, size].
        target: [rows, steps, size].
        threshold: largest |generated - target| of any dimension that counts as following; 0 for symbols.

    Raises:
        ValueError: the shapes differ, or have other axes.
    """
    shapes = jnp.shape(generated), jnp.shape(target)
    if shapes[0] != shapes[1] or len(shapes[0]) != 3:
        raise ValueError(
            f"diverging_step: generated has shape {shapes[0]} and target {shapes[1]}, so that sequences would be compared with "
            "others. Give both as [rows, steps, size]; for many of one target, jnp.broadcast_to(target, generated.shape)."
        )
    off = jnp.abs(jnp.asarray(generated) - jnp.asarray(target)).max(-1)
    off = ~(off <= threshold)  # NaN, too, has left
    return jnp.where(off.any(1), jnp.argmax(off, 1), off.shape[1]) + 1


def largest_lyapunov(
    step: Callable[[PyTree], PyTree],
    states: PyTree,
    key: Array,
    *,
    num_steps: int = 5000,
    burn_in: int = 500,
) -> Float[Array, " starts"]:
    """Largest Lyapunov exponent of a map, nats per step, from each start.

    lim 1/n log |D F^n v|: a tangent vector is carried by `jax.jvp`, renormalised at each step, and its log growth averaged after
    `burn_in` steps. The limit of a random vector is the largest exponent almost surely.

    Args:
        step: F, a map from states to states (any pytree of arrays).
        states: starts, a leading axis on every leaf.
        key: PRNG key of the first tangents.
        num_steps: steps that are averaged.
        burn_in: steps before.
    """

    def one(state: PyTree, key: Array) -> Array:
        flat, unravel = ravel_pytree(state)
        tangent = jax.random.normal(key, flat.shape)

        def move(carry: PyTree, _: PyTree) -> PyTree:
            x, v = carry
            x, v = jax.jvp(lambda x: ravel_pytree(step(unravel(x)))[0], (x,), (v,))
            size = jnp.linalg.norm(v)
            # A map that forgets in one step (size 0) has exponent -inf; its direction no longer matters.
            return (x, v / jnp.where(size > 0, size, 1.0)), jnp.log(size)

        carry, _ = jax.lax.scan(move, (flat, tangent / jnp.linalg.norm(tangent)), None, burn_in)
        return jax.lax.scan(move, carry, None, num_steps)[1].mean()

    num_starts = jax.tree.leaves(states)[0].shape[0]
    return jax.jit(jax.vmap(one))(states, jax.random.split(key, num_starts))


class Skeleton(NamedTuple):
    """The network without its noise.

    Attributes:
        exponents: largest Lyapunov exponent from each start (nats per step).
        spread: standard deviation over time of the most mobile unit on the attractor, from each start: 0 at a fixed point.
    """

    exponents: Float[Array, " starts"]
    spread: Float[Array, " starts"]


def skeleton(
    network: Network, key: Array, *, num_starts: int = 10, num_steps: int = 5000, burn_in: int = 500
) -> Skeleton:
    """Largest exponents and size of the attractor of the deterministic map h -> h, every prior at its mean.

    Args:
        network: trained weights.
        key: PRNG key of starts and tangents.
        num_starts: states drawn from Normal(0, 1), from which the map is followed.
        num_steps: steps that count.
        burn_in: steps before these.
    """
    start_key, tangent_key = jax.random.split(key)
    keys = jax.random.split(start_key, len(network.layers))
    states = tuple(
        jax.random.normal(k, h.shape)
        for k, h in zip(keys, network.initial_state(num_starts), strict=True)
    )
    step = lambda h: rollout(network, None, h, 1)[0]
    exponents = largest_lyapunov(step, states, tangent_key, num_steps=num_steps, burn_in=burn_in)

    @jax.jit
    def path(h: State) -> Array:
        def record(h: State, _: PyTree) -> tuple[State, Array]:
            h = step(h)
            return h, jnp.concatenate([jnp.tanh(x) for x in h], -1)

        h, _ = jax.lax.scan(record, h, None, burn_in)
        return jax.lax.scan(record, h, None, 500)[1]

    return Skeleton(exponents, path(states).std(0).max(-1))
