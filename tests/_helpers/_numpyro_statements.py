"""Rows of NumPyro's statements; each name of `numpyro.primitives` that programs use has one."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from _numpyro_rows import KEY, Row
from jax.example_libraries import stax
from numpyro import handlers
from numpyro.primitives import mutable

from lapilli import inference, ppl

X = jnp.array([0.5, -0.2, 1.3])
Z = {"z": jnp.asarray(0.4)}


def with_key():
    return numpyro.sample("z", dist.Normal(0.0, 2.0), rng_key=KEY)


def check_key():
    """The key is NumPyro's own way of drawing; sites of ours get theirs from their address."""
    program = ppl.as_program(with_key)
    one, two = (program.simulate(jax.random.key(i)).choices["z"] for i in (0, 1))
    assert one != two
    np.testing.assert_allclose(program.log_density(Z), dist.Normal(0.0, 2.0).log_prob(0.4))


def repeated():
    numpyro.sample("z", dist.Normal(0.0, 2.0), sample_shape=(3,))


def holes():
    with numpyro.plate("rows", 3):
        z = numpyro.sample("z", dist.Normal(0.0, 2.0))
        mask = jnp.array([True, False, True])
        numpyro.sample("x", dist.Normal(z, 1.0), obs=X, obs_mask=mask)


def enumerated():
    k = numpyro.sample("k", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})
    numpyro.sample("x", dist.Normal(k, 1.0), obs=0.5)


def auxiliary():
    numpyro.sample("z", dist.Normal(0.0, 2.0), infer={"is_auxiliary": True})


def started_at_random():
    loc = numpyro.param("loc", lambda key: jax.random.normal(key))
    numpyro.sample("z", dist.Normal(loc, 1.0))


def constrained():
    scale = numpyro.param("scale", 1.5, constraint=dist.constraints.positive)
    numpyro.sample("z", dist.Normal(0.0, scale))


def stored():
    mutable("count", {"value": 1.0})
    numpyro.sample("z", dist.Normal(0.0, 1.0))


def squared():
    numpyro.deterministic("square", numpyro.sample("z", dist.Normal(0.0, 1.0)) ** 2)


def penalised():
    numpyro.factor("penalty", -(numpyro.sample("z", dist.Normal(0.0, 1.0)) ** 2))


def asking_for_the_mask():
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    with handlers.mask(mask=False):
        left_out = numpyro.get_mask() is False
    numpyro.factor("told", z if left_out and numpyro.get_mask() is None else -z)


def network():
    net = numpyro.module("net", stax.Dense(2), (1,))
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    numpyro.sample("x", dist.Normal(net(z[None]), 1.0).to_event(1), obs=jnp.ones(2))


def rows(**options):
    z = numpyro.sample("z", dist.Normal(0.0, 2.0))
    with numpyro.plate("rows", 3, **options):
        numpyro.sample("x", dist.Normal(z, 1.0), obs=numpyro.subsample(X, 0))


def two_of_three():
    rows(subsample_size=2)


def check_subsample():
    """One run has the density of the rows that were drawn, scaled; over keys its mean is that of all rows."""
    guide = lambda: numpyro.sample("z", dist.Delta(0.4))
    value = jax.jit(inference.elbo(two_of_three, guide).value)
    found = {round(float(value({}, key)), 3) for key in jax.random.split(KEY, 40)}
    each = dist.Normal(0.4, 1.0).log_prob(X)
    prior = dist.Normal(0.0, 2.0).log_prob(0.4)
    pairs = [prior + 1.5 * (each[i] + each[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    assert found == {round(float(x), 3) for x in pairs}


def stacked():
    with numpyro.plate_stack("plates", [2, 3]):
        numpyro.sample("z", dist.Normal(0.0, 2.0))


def placed():
    with numpyro.plate("columns", 2, dim=-2), numpyro.plate("rows", 3, dim=-1):
        numpyro.sample("z", dist.Normal(0.0, 2.0))


def noisy():
    noise = jax.random.normal(numpyro.prng_key())
    numpyro.sample("z", dist.Normal(0.0, 1.0 + noise**2))


def check_noise():
    """The key belongs to the run, and a bound's model and guide have noise of their own."""
    program = ppl.as_program(noisy)
    a, b = program.simulate(KEY), program.simulate(KEY)
    assert a.log_density == b.log_density
    guide = lambda: numpyro.sample("z", dist.Delta(0.4))
    values = jax.vmap(lambda key: inference.elbo(noisy, guide).value({}, key))(
        jax.random.split(KEY, 3)
    )
    assert len(set(values.tolist())) == 3


ROWS = [
    Row("`sample`", "", lambda: numpyro.sample("z", dist.Normal(0.0, 2.0)), Z),
    Row("`sample(rng_key=)`", "passed over: keys come from the run", check=check_key),
    Row(
        "`sample(sample_shape=)`",
        "a plate, or `.expand`",
        repeated,
        refused=r"Use a plate, or Normal\(...\).expand\(\[3\]\)",
    ),
    Row(
        "`sample(obs_mask=)`",
        "missing cells are the site `x_unobserved`; in `ppl.sample`, cells of a row, too",
        holes,
        {"z": jnp.zeros(3), "x_unobserved": jnp.ones(3)},
    ),
    Row(
        '`infer={"enumerate": "parallel"}`',
        'a mark for NumPyro\'s own sums; here `ppl.eliminate` of a model, `strategies={"k": "enum"}` of a guide',
        enumerated,
        {"k": jnp.asarray(1)},
    ),
    Row(
        '`infer={"is_auxiliary": True}`',
        "a guide's site that the model does not have",
        auxiliary,
        Z,
    ),
    Row(
        "`param`",
        "constraints are kept beside the unconstrained values; `ppl.constrain` applies them",
        constrained,
        Z,
    ),
    Row("`param`, a function of a key", "", started_at_random, Z),
    Row(
        "`param` without a value, scored",
        "`program.bind(program.init(key))` first",
        started_at_random,
        refused="needs a random key.*program.bind",
        attempt=lambda program: program.log_density(Z),
    ),
    Row("`module`", "stax; [networks](howto/networks.md)", network, Z),
    Row(
        "`mutable`",
        "state goes through arguments and results",
        stored,
        refused="Site 'count': numpyro.mutable.*arguments and return value",
    ),
    Row("`deterministic`", "", squared, Z),
    Row("`factor`", "", penalised, Z),
    Row("`get_mask`", "", asking_for_the_mask, Z),
    Row("`plate`", "sites must have the plate's rows: nothing is broadcast", rows, Z),
    Row("`plate(dim=)`", "", placed, {"z": jnp.ones((2, 3))}),
    Row(
        "`plate(subsample_size=)`",
        "in runs that have a key: simulations, objectives; model and guide see the same rows",
        check=check_subsample,
    ),
    Row(
        "`plate(subsample_size=)`, scored",
        "all rows",
        two_of_three,
        refused="Plate 'rows' subsamples 2 of 3 rows.*all rows",
        attempt=lambda program: program.log_density(Z),
    ),
    Row("`plate_stack`", "", stacked, {"z": jnp.ones((2, 3))}),
    Row("`subsample`", "", rows, Z),
    Row(
        "`prng_key`",
        "noise of the run; `ppl.rng_key(name)` is the same in a replay",
        check=check_noise,
    ),
]
