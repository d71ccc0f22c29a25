"""Densities of the steps ahead of a particle: against the program's own density; what has none is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from _state_space import (
    LINE,
    independent,
    moving_average,
    random_slope,
    rich,
    second_order,
    seen,
    two_scans,
    walk,
)  # fmt: skip

from lapilli import inference, ppl
from lapilli.inference.particles.engine import RunOptions, run

# Program, memory of each scan, sites of each scan.
MODELS = {
    "walk": (walk, [1], ["x y"]),
    "second order": (second_order, [2], ["x y"]),
    "moving average": (moving_average, [4], ["x y"]),
    "random slope": (random_slope, [4], ["x y"]),
    "two scans": (two_scans, [1, 1], ["x y", "z w"]),
    "independent": (independent, [0], ["x y"]),
    "rich": (rich, [4], ["b far x y_observed y_unobserved"]),
}


@pytest.mark.fast("independent")
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n == "rich")) for n in MODELS]
)
def test_densities_of_the_steps_ahead(name, key):
    """The densities differ between particles as the program's density does, their later choices put equal.

    Nobody is resampled, so that a slot holds one path.
    """
    program, memories, loops = MODELS[name]
    program = ppl.as_program(program)
    other = program.simulate(jax.random.fold_in(key, 1), LINE).choices
    never = inference.particles.resampling.never()
    options = RunOptions(4, policy=never, history="ancestors", path="filter")
    _, segments = run(program, key, (LINE,), options)
    assert [s.filter.future().memory for s in segments if s.filter] == memories
    past, known = [], {}  # sites whose log-probs are behind, and the particles' values
    for (values, record), names in zip(segments[:-1], loops, strict=True):
        sites = names.split()
        past, known = [*past, *values], known | values
        future, made = record.future(), {n: jnp.moveaxis(x, 0, 1) for n, x in record.made.items()}

        def ahead(t, own, made, sites=sites, past=past):
            splice = lambda n, x: jnp.concatenate([x[:t], other[n][t:]])
            choices = other | own | {n: splice(n, x) for n, x in made.items()}
            terms = program.trace(choices, LINE).log_probs
            behind = sum(terms[n][:t].sum() for n in sites) + sum(terms[n].sum() for n in past)
            return sum(x.sum() for x in terms.values()) - behind

        for t in range(future.length):
            at = np.minimum(t + np.arange(max(future.memory, 1)), future.length - 1)
            window = {n: jnp.broadcast_to(other[n][at], (4, *other[n][at].shape)) for n in made}
            got = future(jax.tree.map(lambda x, t=t: x[t], record.states), window, jnp.asarray(t))
            want = jax.vmap(lambda own, made, t=t: ahead(t, own, made))(known, made)
            rounding = 4 * np.finfo(np.float32).eps * np.abs(want).max()  # sums reach thousands
            np.testing.assert_allclose(
                jnp.broadcast_to(got, (4,)) - jnp.ravel(got)[0],
                want - want[0],
                atol=max(1e-4, rounding),
            )
        past, known = [*past, *sites], known | made


# Refusals.

CHAIN = inference.FeynmanKac(
    init=jax.random.normal,
    kernel=lambda key, x, t: x + jax.random.normal(key),
    log_potential=lambda old, x, t: -0.5 * x**2,
    num_steps=3,
    log_transition=lambda old, x, t: -0.5 * (x - old) ** 2,
)


def last_seen(ys):
    """A statement after the scan looks at the whole path."""
    _, xs = ppl.scan(lambda x, y: (seen(x, y, "x", "y")[0],) * 2, 0.0, ys)
    ppl.sample("sum", dist.Normal(xs.sum(), 1.0), obs=1.0)


def slope_seen(ys):
    """A statement after the scan looks at a site before it."""
    slope = ppl.sample("slope", dist.Normal(0.0, 1.0))
    ppl.scan(lambda x, y: seen(x + slope, y, "x", "y"), 0.0, ys)
    ppl.sample("end", dist.Normal(slope, 1.0), obs=1.0)


def end_seen(ys):
    """A statement after the scan looks at the last choice, which is no obstacle."""
    x, _ = ppl.scan(lambda x, y: seen(x, y, "x", "y"), 0.0, ys)
    ppl.sample("end", dist.Normal(x, 1.0), obs=1.0)


def noisy(ys):
    def step(x, y):
        scale = 1.0 + jax.random.uniform(ppl.rng_key("dropout"))
        x = ppl.sample("x", dist.Normal(x, scale))
        ppl.sample("y", dist.Normal(x, 1.0), obs=y)
        return x, None

    ppl.scan(step, 0.0, ys)


def move(program, path, key, choices=None, **options):
    choices = {"x": jnp.zeros(4)} | (choices or {})
    return inference.particles.conditional_smc(
        program, key, choices, LINE, num_particles=3, path=path, **options
    )


ERRORS = {
    "path": (lambda k: move(walk, "forward", k), "path must be"),
    "missing": (
        lambda k: inference.particles.conditional_smc(random_slope, k, {"x": jnp.zeros(4)}, LINE, num_particles=3),
        r"no values for the latent sites \['slope'\]",
    ),
    "length": (
        lambda k: inference.particles.conditional_smc(CHAIN, k, jnp.zeros(3), num_particles=3),
        r"shapes \(3,\).*have \(4,\)",
    ),
    "sum": (lambda k: move(last_seen, "ancestor", k), r"\['sum'\].*after a scan"),
    "slope": (lambda k: move(slope_seen, "backward", k, {"slope": 0.0}), r"\['end'\].*after a scan"),
    "noise": (lambda k: move(noisy, "ancestor", k), r"\['x'\].*no sites"),
    "partial": (
        lambda k: inference.smooth(
            random_slope, k, LINE, num_particles=3,
            proposal=lambda ys: ppl.sample("slope", dist.Normal(0.0, 1.0)),
        ),
        r"\['x'\]: the proposal does not draw",
    ),
    "density": (
        lambda k: inference.particles.conditional_smc(
            dataclasses.replace(CHAIN, log_transition=None), k, jnp.zeros(4), num_particles=3, path="ancestor"
        ),
        "log_transition is missing",
    ),
    "shape": (
        lambda k: inference.particles.conditional_smc(
            dataclasses.replace(CHAIN, log_transition=lambda a, b, t: jnp.ones(2)), k, jnp.zeros(4), num_particles=3,
            path="backward",
        ),
        "log_transition must return one number",
    ),
}  # fmt: skip


@pytest.mark.slow_for("shape", "slope")
@pytest.mark.parametrize("name", ERRORS)
def test_what_has_no_density_is_refused_by_name(name, key):
    run, message = ERRORS[name]
    with pytest.raises(ValueError, match=message):
        run(key)


@pytest.mark.slow
def test_statements_after_a_scan_may_see_its_last_choice(key):
    assert move(end_seen, "ancestor", key)["x"].shape == (4,)
