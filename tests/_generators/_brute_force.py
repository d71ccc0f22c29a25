"""Programs of discrete sites, summed by brute force: the definition that `ppl.eliminate` is compared with.

    log p(v) = log sum_z exp(log p(z, v)),

over all assignments z, with the program's own `log_density`. What a program returns is taken off each term: the log of the number
of assignments that differ only in sites that are not met (a branch not taken), where elimination counts one.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lapilli import ppl

VALUES = {"b": 2, "c": 3}  # first letter of an eliminated site's name -> number of its values


class Sum(NamedTuple):
    """All assignments: site -> values, one row each; their log-densities, and those without what counts once."""

    rows: dict[str, jax.Array]
    log_probs: jax.Array
    log_weights: jax.Array

    @property
    def weights(self) -> np.ndarray:
        """Posterior probability of each assignment."""
        return np.asarray(jax.nn.softmax(self.log_weights), float)


def assignments(shapes: dict[str, tuple[int, ...]]) -> dict[str, jax.Array]:
    """All assignments of sites of these shapes: site -> array with a leading axis."""
    counts = [VALUES[n[0]] for n, shape in shapes.items() for _ in range(int(np.prod(shape)))]
    table = np.indices(counts).reshape(len(counts), -1).T
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes.values()])
    parts = np.split(table, ends[:-1], axis=1)
    return {
        n: jnp.asarray(part.reshape(-1, *shape))
        for (n, shape), part in zip(shapes.items(), parts, strict=True)
    }


def shapes_of(program: Any, args: Any = ()) -> dict[str, tuple[int, ...]]:
    """The shapes of all latent sites."""
    simulate = ppl.as_program(program).simulate
    trace = jax.eval_shape(lambda key: simulate(key, *args), jax.random.key(0))
    return {n: x.shape for n, x in trace.choices.items()}


def check(
    program: Any, names: Any, kept: Any = None, args: Any = (), *, num_draws: int = 0
) -> tuple[Any, Sum]:
    """Compare density, gradient, marginals and mode, and joint draws if asked for; returns the eliminated program and the sum."""
    program, kept = ppl.as_program(program), dict(kept or {})
    eliminated, shapes = ppl.eliminate(program, names), shapes_of(program, args)
    rows = assignments({n: shapes[n] for n in names})

    def brute(kept: Any) -> Any:
        traces = jax.vmap(lambda z: _density(program, {**kept, **z}, args))(rows)
        return jax.nn.logsumexp(traces[1]), traces

    def by_elimination(kept: Any) -> Any:
        value = jax.value_and_grad(lambda kept: eliminated.log_density(kept, *args))(kept)
        return value, eliminated.posterior_probs(kept, *args), eliminated.mode(kept, *args)

    (want, traces), slope = jax.jit(jax.value_and_grad(brute, has_aux=True))(kept)
    (value, grad), probs, (_, highest) = jax.jit(by_elimination)(kept)
    whole = Sum(rows, *traces)
    np.testing.assert_allclose(value, want, rtol=1e-5, atol=2e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), grad, slope)
    for n in names:
        hot = np.asarray(rows[n])[..., None] == np.arange(VALUES[n[0]])
        marginal = np.tensordot(whole.weights, hot.astype(float), 1)
        np.testing.assert_allclose(probs[n], marginal, atol=3e-5, err_msg=n)
    # The program's own density of the assignment that was found.
    np.testing.assert_allclose(highest, whole.log_probs.max(), rtol=1e-5, atol=2e-5)
    if num_draws:
        check_draws(eliminated, whole, kept, args, num_draws)
    return eliminated, whole


def _density(program: Any, choices: Any, args: Any) -> tuple[jax.Array, jax.Array]:
    trace = program.trace(choices, *args)
    unmet = 0.0 if trace.retval is None else trace.retval
    return trace.log_density, trace.log_density - unmet


def check_draws(eliminated: Any, whole: Sum, kept: Any, args: Any = (), n: int = 20_000) -> None:
    """Joint draws against all probabilities that are expected at least 20 times; z scores below 4.5 (conventions)."""
    key = jax.random.key(0)
    draws = jax.jit(lambda key: eliminated.posterior(key, kept, *args, num_samples=n))(key)
    names = list(whole.rows)
    flat = lambda d: np.concatenate([np.asarray(d[x]).reshape(len(d[x]), -1) for x in names], 1)
    known, drawn = flat(whole.rows), flat(draws)
    place = 3 ** np.arange(known.shape[1], dtype=np.int64)
    codes, numbers = np.unique(drawn @ place, return_counts=True)
    found = dict(zip(codes.tolist(), numbers.tolist(), strict=True))
    counts = np.array([found.get(code, 0) for code in (known @ place).tolist()])
    assert counts.sum() == n
    weights = whole.weights
    often = weights * n > 20
    z = (counts / n - weights) / np.sqrt(np.maximum(weights * (1 - weights) / n, 1e-12))
    assert np.abs(z[often]).max(initial=0.0) < 4.5
    assert counts[weights < 1e-9].sum() == 0
