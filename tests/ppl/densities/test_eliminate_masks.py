"""Masked and scaled densities, summed as the program has them: log p(v) = log sum_z exp(log p(z, v)), masks and scales included.

A masked-out site with k values thus counts as k, as NumPyro's enumeration has it. Under strategy "enum" of an expectation a mask
changes no draw, so there the law stays.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from _brute_force import check
from numpyro.contrib.funsor import enum, log_density
from numpyro.handlers import mask, scale

from lapilli import ppl

X = jnp.array([0.3, 1.2, -0.5])
KEEP = jnp.array([True, False, True])
NONE = jnp.array(False)
HALF = 0.5 * jnp.log(2 * jnp.pi)


def masked_law(x):
    with ppl.plate("rows", 3):
        b = ppl.sample("b", dist.Bernoulli(0.3).mask(NONE))
        ppl.sample("x", dist.Normal(2.0 * b, 1.0), obs=x)


def masked_rows(x):
    with ppl.plate("rows", 3), mask(mask=KEEP):
        b = ppl.sample("b", dist.Bernoulli(0.3))
        ppl.sample("x", dist.Normal(2.0 * b, 1.0), obs=x)


def imputed(x):
    """Observed and missing values of one variable: a flat site, and its density by hand."""
    seen = jnp.array([0, -1, 1])
    with ppl.plate("rows", 3):
        b = ppl.sample("b", dist.Bernoulli(0.3).mask(NONE))
        log_prob = dist.Bernoulli(0.3).log_prob(b)
        ppl.factor("seen", jnp.where((seen >= 0) & (b != seen), -jnp.inf, log_prob))
        ppl.sample("x", dist.Normal(0.4 * b, 1.0), obs=x)


def events(x):
    """Masks inside and outside of events, and one that another site decides."""
    cells = dist.Bernoulli(jnp.array([0.2, 0.6, 0.7])).mask(KEEP).to_event(1)
    b = ppl.sample("b", cells)
    c = ppl.sample("c", dist.CategoricalLogits(jnp.arange(3.0) * b[0]).mask(b[1] == 1))
    whole = dist.Bernoulli(jnp.array([0.3, 0.4])).to_event(1).mask(c > 0)
    ppl.sample("b_whole", whole)
    ppl.sample("x", dist.Normal(1.0 * c, 1.0), obs=x[0])


def chains_of_different_lengths(x):
    """A hidden Markov model of padded sequences, masked where they have ended."""
    lengths, xs = jnp.array([3, 2]), jnp.stack([x, x[::-1]], 1)

    def step(carry, x):
        t, b = carry
        with ppl.plate("sequences", 2), mask(mask=t < lengths):
            b = ppl.sample("b", dist.Bernoulli(logits=1.3 * b - 0.4))
            ppl.sample("x", dist.Normal(1.0 * b, 1.0), obs=x)
        return (t + 1, b), None

    ppl.scan(step, (0, jnp.zeros(2, int)), xs)


def power(x):
    """A power of the whole density, and once more of the likelihood."""
    w = ppl.sample("w", dist.Normal(0.0, 1.0))
    with scale(scale=2.0), ppl.plate("rows", 3):
        b = ppl.sample("b", dist.Bernoulli(logits=w))
        with scale(scale=0.3):
            ppl.sample("x", dist.Normal(2.0 * b, 1.0), obs=x)


def weighted_rows(x):
    """A scale of its own for each row, computed from a site that is left."""
    w = ppl.sample("w", dist.Normal(0.0, 1.0))
    with ppl.plate("rows", 3):
        with scale(scale=jnp.exp(w * jnp.arange(3.0))):
            b = ppl.sample("b", dist.Bernoulli(0.3))
        ppl.sample("x", dist.Normal(2.0 * b, 1.0), obs=x)


PROGRAMS = {
    "law": (masked_law, ["b"], {}),
    "rows": (masked_rows, ["b"], {}),
    "imputed": (imputed, ["b"], {}),
    "events": (events, ["b", "c", "b_whole"], {}),
    "lengths": (chains_of_different_lengths, ["b"], {}),
    "power": (power, ["b"], {"w": jnp.array(0.4)}),
    "weighted rows": (weighted_rows, ["b"], {"w": jnp.array(0.4)}),
}


@pytest.mark.fast("rows")
@pytest.mark.parametrize("name", PROGRAMS)
def test_masked_and_scaled_sites_are_summed_with_their_own_density(name):
    program, names, kept = PROGRAMS[name]
    check(program, names, kept, (X,), num_draws=20_000)


@pytest.mark.parametrize("program", [masked_law, imputed])
def test_masks_count_as_in_the_enumeration_of_numpyro(program):
    def numpyro_program(x):
        with numpyro.handlers.infer_config(
            config_fn=lambda site: {"enumerate": "parallel"} if site["name"] == "b" else {}
        ):
            program(x)

    with enum(first_available_dim=-2):
        want, _ = log_density(enum(numpyro_program, -2), (X,), {}, {})
    np.testing.assert_allclose(ppl.eliminate(program, "b").log_density({}, X), want, rtol=1e-5)


def test_a_mask_around_the_sum_leaves_the_law():
    """Outside of the sum what is masked adds nothing; inside of it both values of a masked row count."""
    rows = lambda program: program.trace({}, X).log_probs["eliminate[b]"]

    def plain(x):
        with ppl.plate("rows", 3):
            b = ppl.sample("b", dist.Bernoulli(0.3))
            ppl.sample("x", dist.Normal(2.0 * b, 1.0), obs=x)

    alone = rows(ppl.eliminate(plain, "b"))
    outside = rows(ppl.mask(ppl.eliminate(plain, "b"), KEEP))
    inside = rows(ppl.eliminate(ppl.mask(plain, KEEP), "b"))
    np.testing.assert_allclose(outside, jnp.where(KEEP, alone, 0.0), atol=1e-6)
    np.testing.assert_allclose(inside, jnp.where(KEEP, alone, jnp.log(2.0)), rtol=1e-6)


@pytest.mark.slow
def test_cells_that_are_seen_count_once():
    """The seen cells are no values of the site of the missing ones."""

    def program(x):
        b = ppl.sample("b", dist.Bernoulli(0.3))
        with ppl.plate("rows", 3):
            ppl.sample("c", dist.Bernoulli(logits=2.0 * b - 0.5), obs=x, obs_mask=KEEP)

    x, logits = jnp.array([1, 0, 0]), 2.0 * jnp.arange(2) - 0.5
    seen = dist.Bernoulli(logits=logits[:, None]).log_prob(x[jnp.array([0, 2])]).sum(1)
    want = jax.nn.logsumexp(seen + jnp.log(jnp.array([0.7, 0.3])))
    both = ppl.eliminate(program, ["b", "c_unobserved"])
    np.testing.assert_allclose(both.log_density({}, x), want, rtol=1e-6)
    _, highest = both.mode({}, x)
    missing = dist.Bernoulli(logits=logits).log_prob(jnp.arange(2)[:, None]).max(0)
    want = (seen + jnp.log(jnp.array([0.7, 0.3])) + missing).max()
    np.testing.assert_allclose(highest, want, rtol=1e-6)


def test_an_expectation_draws_by_the_law_whatever_is_masked():
    """E[b] = 0.3 in each row, under `enum` as under any other strategy."""

    def cost():
        with ppl.plate("rows", 3):
            b = ppl.sample("b", dist.Bernoulli(0.3).mask(KEEP))
        return (b * jnp.array([1.0, 10.0, 100.0])).sum()

    value = ppl.expectation(lambda _: cost(), strategies={"b": "enum"}).value({}, jax.random.key(0))
    np.testing.assert_allclose(value, 0.3 * 111, rtol=1e-6)


def test_minibatches_and_powers_go_together():
    """Ten rows for each of three, each of them a power of its density: 10/3 log sum_z p(x, z)^2 a row."""

    def program(x):
        with ppl.plate("rows", 3), scale(scale=2.0):
            b = ppl.sample("b", dist.Bernoulli(0.3))
            ppl.sample("x", dist.Normal(2.0 * b, 1.0), obs=x)

    b = jnp.arange(2.0)[:, None]
    log_joint = jnp.log(jnp.where(b == 1, 0.3, 0.7)) - 0.5 * (X - 2 * b) ** 2 - HALF
    want = 10 / 3 * jax.nn.logsumexp(2 * log_joint, 0).sum()
    eliminated = ppl.rescale_plates(ppl.eliminate(program, "b"), {"rows": 10})
    np.testing.assert_allclose(eliminated.log_density({}, X), want, rtol=1e-5)


def test_per_row_limits_of_minibatches_count_the_sum_alone():
    """An infinite plate: the mean over rows of their sums; what lies outside counts zero."""

    def program(x):
        w = ppl.sample("w", dist.Normal(0.0, 1.0))
        ppl.factor("outside", 3.0 * ppl.sample("b_outside", dist.Bernoulli(0.3)))
        with ppl.plate("rows", 3):
            b = ppl.sample("b", dist.Bernoulli(0.3))
            ppl.sample("x", dist.Normal(w + 2.0 * b, 1.0), obs=x)

    eliminated = ppl.eliminate(program, ["b", "b_outside"])
    trace = eliminated.trace({"w": 0.0}, X)
    rows = next(x for x in trace.log_probs.values() if x.shape == (3,))
    limit = ppl.rescale_plates(eliminated, {"rows": jnp.inf}).log_density({"w": 0.0}, X)
    np.testing.assert_allclose(limit, rows.mean(), rtol=1e-6)


@pytest.mark.parametrize("give, more", [(ppl.intervene, 0.0), (ppl.condition, 1.0)])
def test_missing_cells_of_a_scan_that_are_given_let_a_chain_be_integrated(give, more):
    """A walk seen with noise at two of three steps; the third is set (no density) or observed as well."""
    y, seen = jnp.array([0.4, 9.0, -0.3]), jnp.array([True, False, True])

    def walk(y, seen):
        def step(z, row):
            y, is_seen = row
            z = ppl.sample("z", dist.Normal(z, 0.5))
            ppl.sample("y", dist.Normal(z, 1.0), obs=y, obs_mask=is_seen)
            return z, None

        ppl.scan(step, 0.0, (y, seen))

    given = give(walk, {"y_unobserved": jnp.array([0.0, 0.7, 0.0])})
    found = ppl.eliminate(given, "z").log_density({}, y, seen)
    rows = np.array([0, 1, 2] if more else [0, 2])
    covariance = 0.25 * np.minimum.outer(np.arange(1, 4), np.arange(1, 4)) + np.eye(3)
    law = dist.MultivariateNormal(jnp.zeros(len(rows)), jnp.array(covariance[np.ix_(rows, rows)]))
    values = np.array([0.4, 0.7, -0.3])[rows]
    np.testing.assert_allclose(found, law.log_prob(jnp.array(values)), rtol=1e-5)
