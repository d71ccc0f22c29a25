"""Exact posteriors, in closed form or by a grid: draws and log-densities; and the draws that the benchmark ships."""

import bz2
import csv
import io
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from scipy.special import ndtr, ndtri
from scipy.stats import binom, norm

from .tasks import TASKS, infected


def read(folder, task, number):
    """Observation and reference draws of one of the ten observations in an unpacked `sbibm` wheel."""
    name, file = TASKS[task].place or (task, "observation")
    place = Path(folder) / name / "files" / f"num_observation_{number}"
    table = lambda text: np.array(
        [[float(v) for v in row] for row in list(csv.reader(io.StringIO(text)))[1:]]
    )
    observation = table((place / f"{file}.csv").read_text())[0]
    draws = table(
        bz2.decompress((place / "reference_posterior_samples.csv.bz2").read_bytes()).decode()
    )
    return observation, draws


def gaussian_linear(rng, x, size):
    return x / 2 + 0.05**0.5 * rng.normal(size=(size, 10))


def gaussian_linear_uniform(rng, x, size):
    sd = 0.1**0.5
    low, high = ndtr((-1 - x) / sd), ndtr((1 - x) / sd)
    return x + sd * ndtri(low + (high - low) * rng.uniform(size=(size, 10)))


def two_moons(rng, x, size):
    """Inverted: x minus the noise is (-|t1 + t2|, t2 - t1) / sqrt 2, an isometry on either side, cut to the box."""

    def proposed(num):
        a, r = rng.uniform(-np.pi / 2, np.pi / 2, num), rng.normal(0.1, 0.01, num)
        q = x - np.stack([r * np.cos(a) + 0.25, r * np.sin(a)], -1)
        both = rng.choice([-1, 1], num) * 2**0.5 * np.abs(q[:, 0])
        other = 2**0.5 * q[:, 1]
        t = np.stack([both - other, both + other], -1) / 2
        return t[(q[:, 0] <= 0) & (np.abs(t) <= 1).all(1)]

    return rejected(proposed, size)


def gaussian_mixture(rng, x, size):
    def proposed(num):
        t = x + rng.choice([1.0, 0.1], num)[:, None] * rng.normal(size=(num, 2))
        return t[(np.abs(t) <= 10).all(1)]

    return rejected(proposed, size)


def slcp(rng, x, size, num=100):
    """A grid of |t3|, |t4|, t5; given these (t1, t2) is N(mean of x, S / 4), cut to the box by rejection, and signs are fair."""
    x = np.asarray(x, float).reshape(4, 2)
    mean, spread = x.mean(0), (x - x.mean(0)).T @ (x - x.mean(0))
    edge = (np.arange(num) + 0.5) / num * 3
    a, b, c = np.meshgrid(edge, edge, (np.arange(2 * num) + 0.5) / num * 3 - 3, indexing="ij")

    def covariance(a, b, c):
        return a**4 + 1e-6, b**4 + 1e-6, np.tanh(c) * a**2 * b**2

    def log_density(a, b, c):
        s11, s22, s12 = covariance(a, b, c)
        det = s11 * s22 - s12**2
        trace = (s22 * spread[0, 0] + s11 * spread[1, 1] - 2 * s12 * spread[0, 1]) / det
        return -1.5 * np.log(det) - trace / 2

    logs = log_density(a, b, c).ravel()
    weights = np.exp(logs - logs.max())
    weights /= weights.sum()

    def proposed(count):
        chosen = rng.choice(weights.size, count, p=weights)
        t = [v.ravel()[chosen] + rng.uniform(-0.5, 0.5, count) * 3 / num for v in (a, b, c)]
        s11, s22, s12 = covariance(*t)
        z = rng.normal(size=(2, count)) / 2
        t1 = mean[0] + s11**0.5 * z[0]
        t2 = mean[1] + s12 / s11**0.5 * z[0] + np.sqrt(s22 - s12**2 / s11) * z[1]
        signs = rng.choice([-1, 1], (2, count))
        drawn = np.stack([t1, t2, signs[0] * t[0], signs[1] * t[1], t[2]], -1)
        return drawn[(np.abs(drawn) <= 3).all(1)]

    return rejected(proposed, size)


def sir(rng, x, size, num=300):
    """A grid of the logarithms over five prior standard deviations, a draw uniform in its cell."""
    centre, sd = np.log([0.4, 0.125]), np.array([0.5, 0.2])
    cells = (np.arange(num) + 0.5) / num

    def grid(low, high):
        axes = [l + cells * (h - l) for l, h in zip(low, high, strict=True)]
        return np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2)

    def log_density(z):
        share = np.asarray(infected(jnp.asarray(np.exp(centre + sd * z))), float)
        share = np.clip(share, 1e-9, 1 - 1e-6)
        return binom.logpmf(np.round(x)[:, None], 1000, share).sum(0) - (z**2).sum(1) / 2

    # The posterior is a small part of the prior: each grid lies on what the one before found.
    low, high = np.full(2, -5.0), np.full(2, 5.0)
    for _ in range(3):
        z = grid(low, high)
        logs, width = log_density(z), (high - low) / num
        kept = z[logs > logs.max() - 20]
        low, high = kept.min(0) - width, kept.max(0) + width
    z = grid(low, high)
    logs = log_density(z)
    weights = np.exp(logs - logs.max())
    chosen = rng.choice(len(z), size, p=weights / weights.sum())
    jitter = rng.uniform(-0.5, 0.5, (size, 2)) * (high - low) / num
    return np.exp(centre + sd * (z[chosen] + jitter))


def rejected(proposed, size):
    """So many draws of a function that returns those of its proposals that it keeps."""
    found = np.zeros((0, 1))
    parts = []
    while sum(map(len, parts)) < size:
        found = proposed(4 * size)
        parts.append(found)
    return np.concatenate(parts)[:size]


def linear_log_density(theta, x):
    return norm.logpdf(theta, x / 2, 0.05**0.5).sum(1)


def linear_uniform_log_density(theta, x):
    sd = 0.1**0.5
    inside = ndtr((1 - x) / sd) - ndtr((-1 - x) / sd)
    return (norm.logpdf(theta, x, sd) - np.log(inside)).sum(1)


def mixture_log_density(theta, x):
    parts = [norm.logpdf(theta, x, s).sum(1) for s in (1.0, 0.1)]
    inside = [(ndtr((10 - x) / s) - ndtr((-10 - x) / s)).prod() for s in (1.0, 0.1)]
    return np.logaddexp(*parts) - np.log(sum(inside))


def moons_log_density(theta, x, num=200_000):
    """Its evidence from the share of inverted noise that falls into the box."""
    rng = np.random.default_rng(0)
    a, r = rng.uniform(-np.pi / 2, np.pi / 2, num), rng.normal(0.1, 0.01, num)
    q = x - np.stack([r * np.cos(a) + 0.25, r * np.sin(a)], -1)
    both, other = 2**0.5 * np.abs(q[:, 0]), 2**0.5 * q[:, 1]
    inside = [
        ((q[:, 0] <= 0) & (np.abs(s * both - other) <= 2) & (np.abs(s * both + other) <= 2)).mean()
        for s in (1, -1)
    ]
    total = theta[:, 0] + theta[:, 1], theta[:, 1] - theta[:, 0]
    noise = x - np.stack([0.25 - np.abs(total[0]) / 2**0.5, total[1] / 2**0.5], -1)
    radius = np.linalg.norm(noise, axis=1)
    return norm.logpdf(radius, 0.1, 0.01) - np.log(np.pi * radius) - np.log(sum(inside))


LOG_DENSITIES = {
    "gaussian_linear": linear_log_density,
    "gaussian_linear_uniform": linear_uniform_log_density,
    "gaussian_mixture": mixture_log_density,
    "two_moons": moons_log_density,
}
REFERENCES = {
    f.__name__: f
    for f in (gaussian_linear, gaussian_linear_uniform, two_moons, gaussian_mixture, slcp, sir)
}
assert set(REFERENCES) < set(TASKS)
