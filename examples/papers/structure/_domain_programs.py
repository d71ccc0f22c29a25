"""Simulated paths of several domains, the programs that explain them, and the ways to adapt these to a new one."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from lapilli import inference, ppl

PAST, FUTURE, HIDDEN = 8, 8, 32
NEW = 3  # number of a domain that nothing has used so far, after those to train on
SPEED, TURN = (0.5, 0.1), (0.0, 0.03)  # means and standard deviations, metres and radians a step


class Paths(NamedTuple):
    """Past and future, [paths, 16] each, in metres, x and y of a step side by side; the causes, [paths, 3]; domains."""

    x: Any
    y: Any
    causes: np.ndarray
    e: Any


def simulate(num: int, swerve: float, rng: np.random.Generator, e: int = NEW) -> Paths:
    """Paths that start at the origin along the first axis."""
    speed, turn = rng.normal(*SPEED, num), rng.normal(*TURN, num)
    s = rng.normal(swerve, 0.3, num)
    time = np.arange(1, PAST + FUTURE + 1)
    heading = turn[:, None] * time
    aside = s[:, None] / (1 + np.exp(-(time - PAST + 1) / 1.5))
    steps = speed[:, None, None] * np.stack([np.cos(heading), np.sin(heading)], -1)
    path = np.cumsum(steps, 1) + aside[..., None] * np.stack(
        [-np.sin(heading), np.cos(heading)], -1
    )
    path = (path + rng.normal(0, 0.05, path.shape)).reshape(num, -1).astype(np.float32)
    causes = np.stack([speed, turn, s], 1)
    return Paths(path[:, : 2 * PAST], path[:, 2 * PAST :], causes, np.full(num, e))


class Programs(NamedTuple):
    """Of one path, x and y [16] each, and its domain e where it is told.

    Attributes:
        model: e -> s, z free of e, (z, s) -> past x and future y; e takes no value NEW unless it is set.
        guide: q(z | x) q(s | x), which returns z and s.
        seeing: the guide with the factor p(y | z, s); returns the future's mean.
        regression: the future from the past, without causes; returns its mean.
    """

    model: ppl.Program
    guide: ppl.Program
    seeing: ppl.Program
    regression: ppl.Program


def networks(key: jax.Array) -> dict[str, eqx.nn.MLP]:
    sizes = {
        "past": (3, 2 * PAST),
        "future": (3, 2 * FUTURE),
        "encoder_z": (2 * PAST, 4),
        "encoder_s": (2 * PAST, 2),
        "regression": (2 * PAST, 2 * FUTURE),
    }
    return {
        name: eqx.nn.MLP(*size, HIDDEN, 2, jax.nn.silu, key=k)
        for (name, size), k in zip(sizes.items(), jax.random.split(key, len(sizes)), strict=True)
    }


def make_programs(nets: dict[str, eqx.nn.MLP]) -> Programs:
    def path_law(name: str, inputs: Any) -> dist.Distribution:
        noise = ppl.param(f"{name} noise", jnp.array(0.5), constraint=dist.constraints.positive)
        return dist.Normal(ppl.module(name, nets[name])(inputs), noise).to_event(1)

    @ppl.model
    def model(x: Any, y: Any, e: Any = None) -> None:
        place = ppl.param("place", jnp.array([*np.linspace(-2, 2, NEW), 0.0]))
        log_width = ppl.param("log_width", jnp.full(NEW + 1, -1.0))
        e = ppl.sample("e", dist.Categorical(logits=jnp.zeros(NEW)), obs=e)
        s = ppl.sample("s", dist.Normal(place[e], jnp.exp(log_width[e])))
        z = ppl.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
        causes = jnp.append(z, s)
        ppl.sample("x", path_law("past", causes), obs=x)
        ppl.sample("y", path_law("future", causes), obs=y)

    @ppl.model
    def guide(x: Any, y: Any, e: Any = None) -> Any:
        at, log_width = jnp.split(ppl.module("encoder_z", nets["encoder_z"])(x), 2)
        z = ppl.sample("z", dist.Normal(at, jnp.exp(log_width - 1.0)).to_event(1))
        at, log_width = ppl.module("encoder_s", nets["encoder_s"])(x)
        return jnp.append(z, ppl.sample("s", dist.Normal(at, jnp.exp(log_width - 1.0))))

    @ppl.model
    def seeing(x: Any, y: Any, e: Any = None) -> Any:
        law = path_law("future", guide(x, y))
        ppl.sample("y", law, obs=y)
        return law.mean

    @ppl.model
    def regression(x: Any, y: Any, e: Any = None) -> Any:
        law = path_law("regression", x)
        ppl.sample("y", law, obs=y)
        return law.mean

    return Programs(model, guide, seeing, regression)


def causal_bound(joint: Any, seeing: Any, guide: Any, num_particles: int = 8) -> Any:
    """The published objective for one path, as a bound on log p(x, y).

    Args:
        joint: program of the path, p(z, s) p(x, y | z, s).
        seeing: the guide with the factor p(y | z, s).
        guide: q(z, s | x).
        num_particles: that are proposed and resampled.
    """
    given_both = ppl.normalize(seeing, proposal=guide, num_particles=num_particles, strategy="enum")
    return inference.elbo(joint, given_both)


@inference.objective
def supervised(model: Any, guide: Any, x: Any, y: Any, e: Any, causes: Any) -> Any:
    """Log p(x, y, z, s) + log q(z, s | x) of causes that are told."""
    return model.log_density(causes, x, y, e) + guide.log_density(causes, x, y)


NOTHING = ppl.model(lambda *_: None)
ALL, LAW, ENCODER = ("*",), ("place", "log_width"), ("encoder_s",)


class Row(NamedTuple):
    """A way to train, to adapt and to predict.

    Attributes:
        trained: how the model was trained: without causes, or causes or domains told, or domains summed out.
        joint: program of z, s, past and future.
        seeing: the guide with the factor p(y | z, s), which returns the future's mean.
        guide: ... without.
        moved: the parameters that move; none for a model as it was trained.
        is_weighted: whether draws of the guide weigh p(x, z, s) / q(z, s | x), or all the same.
    """

    trained: str
    joint: Any
    seeing: Any
    guide: Any
    moved: tuple[str, ...]
    is_weighted: bool = False

    @property
    def bound(self) -> Any:
        if self.guide is NOTHING:
            return inference.elbo(self.joint, self.guide)
        return causal_bound(self.joint, self.seeing, self.guide)


PLAIN = "regression"
SUMMED, TOLD, CAUSES = CAUSAL = "domains summed out", "domains told", "causes told"


def make_rows(programs: Programs) -> dict[str, Row]:
    model, guides = programs.model, (programs.seeing, programs.guide)
    known, new = ppl.eliminate(model, "e"), ppl.intervene(model, {"e": NEW})
    plain = PLAIN, programs.regression, programs.regression, NOTHING
    rows = {f"{PLAIN}: nothing": Row(*plain, ()), f"{PLAIN}: all": Row(*plain, ALL)}
    for name in CAUSAL:
        rows |= {
            f"{name}: nothing, by guide": Row(name, known, *guides, ()),
            f"{name}: s, by guide": Row(name, new, *guides, LAW + ENCODER),
            f"{name}: all, by guide": Row(name, new, *guides, ALL),
            f"{name}: nothing, by model": Row(name, known, *guides, (), True),
            f"{name}: law of s, by model": Row(name, new, *guides, LAW, True),
            f"{name}: s, by model": Row(name, new, *guides, LAW + ENCODER, True),
            f"{name}: all, by model": Row(name, new, *guides, ALL, True),
        }
    return rows
