"""Linear-Gaussian systems with matrices that change from step to step, and their data as one dense normal law."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from lapilli import ppl


class System(NamedTuple):
    """Transitions (T, d, d), root of their noise, sensors (T, k, d), root of theirs, steps that were seen (T,), data (T, k)."""

    moves: np.ndarray
    inner: np.ndarray
    sensors: np.ndarray
    outer: np.ndarray
    seen: np.ndarray
    data: np.ndarray


def system(d: int, num_steps: int, condition: float, seed: int) -> System:
    """A stable one, the covariances of whose noise have a condition number; d = 1: of which the sensor's is smaller by it."""
    rng = np.random.default_rng(seed)
    k = max(1, d // 2)
    moves = rng.normal(size=(num_steps, d, d))
    moves *= 0.97 / np.abs(np.linalg.eigvals(moves)).max(-1)[:, None, None]

    def root(n: int) -> np.ndarray:
        turn, _ = np.linalg.qr(rng.normal(size=(n, n)))
        return np.linalg.cholesky(turn * np.logspace(0, -np.log10(condition), n) @ turn.T)

    inner, outer = root(d), 0.3 * root(k) * (1 if d > 1 else condition**-0.5)
    sensors = rng.normal(size=(num_steps, k, d))
    z, data = np.zeros(d), []
    for a, h in zip(moves, sensors, strict=True):
        z = a @ z + inner @ rng.normal(size=d)
        data.append(h @ z + outer @ rng.normal(size=k))
    return System(moves, inner, sensors, outer, rng.random(num_steps) < 0.8, np.array(data))


def program(moves: Any, inner: Any, sensors: Any, outer: Any, seen: Any, data: Any) -> None:
    """The system, from a known start."""

    def step(z: Any, x: Any) -> Any:
        a, h, seen, y = x
        z = ppl.sample("z", dist.MultivariateNormal(a @ z, scale_tril=inner))
        law = dist.MultivariateNormal(h @ z, scale_tril=outer)
        ppl.sample("y", law.mask(seen), obs=y)
        return z, None

    ppl.scan(step, jnp.zeros(inner.shape[0]), (moves, sensors, seen, data))


def dense_log_density(s: System) -> float:
    """The log-density of the data that were seen, of one normal law."""
    num_steps, d, _ = s.moves.shape
    of_noise = np.zeros((num_steps, d, num_steps * d))
    for t in range(num_steps):
        if t:
            of_noise[t] = s.moves[t] @ of_noise[t - 1]
        of_noise[t, :, t * d : (t + 1) * d] = s.inner
    looks = (s.sensors @ of_noise)[s.seen].reshape(-1, num_steps * d)
    noise = np.kron(np.eye(s.seen.sum()), s.outer @ s.outer.T)
    tril = np.linalg.cholesky(looks @ looks.T + noise)
    white = np.linalg.solve(tril, s.data[s.seen].ravel())
    return float(
        -0.5 * white @ white - np.log(np.diag(tril)).sum() - 0.5 * white.size * np.log(2 * np.pi)
    )
