"""Rows of NumPyro's contributed modules; each module of `numpyro.contrib` has one."""

import importlib.util

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.contrib.funsor as contrib_funsor
import numpyro.distributions as dist
import pytest
from _numpyro_rows import KEY, Row, assert_same_density
from numpyro.contrib import module as nets
from numpyro.contrib.control_flow import cond, scan
from numpyro.contrib.einstein import RBFKernel, SteinVI
from numpyro.contrib.hsgp import approximation as hsgp
from numpyro.infer import HMC, HMCECS, MCMC
from numpyro.infer.inspect import get_model_relations

from lapilli import inference, ppl

Y = jnp.array([0.3, -0.2, 1.1])
ZS = {"z": jnp.array([0.1, 0.2, 0.3])}
NET = eqx.nn.Linear(1, 2, key=KEY)


def walk(**options):
    def step(z, y):
        z = numpyro.sample("z", dist.Normal(0.7 * z, 1.0))
        numpyro.sample("y", dist.Normal(z, 0.5), obs=y)
        return z, z

    return lambda: scan(step, 0.2, Y, **options)


def plate_in_scan():
    def step(z, y):
        with numpyro.plate("series", 2):
            z = numpyro.sample("z", dist.Normal(z, 1.0))
        return z, z

    scan(step, jnp.zeros(2), Y)


def scan_in_plate(scan):
    step = lambda z, y: (numpyro.sample("z", dist.Normal(z, 1.0)), None)
    with numpyro.plate("series", 2):
        scan(step, jnp.zeros(2), Y)


def nested():
    inner = lambda z, _: (numpyro.sample("z", dist.Normal(z, 1.0)), None)
    scan(lambda c, _: scan(inner, c, None, length=3), 0.0, None, length=2)


def check_nested():
    """NumPyro's scans do not nest; ours have the density of the path."""
    z = jnp.arange(6.0).reshape(2, 3) / 10.0
    before = jnp.array([[0.0, z[0, 0], z[0, 1]], [z[0, 2], z[1, 0], z[1, 1]]])
    expected = dist.Normal(before, 1.0).log_prob(z).sum()
    np.testing.assert_allclose(ppl.as_program(nested).log_density({"z": z}), expected, rtol=1e-5)


def branches():
    return cond(
        Y[0] > 0,
        lambda x: numpyro.sample("w", dist.Normal(x, 1.0)),
        lambda x: numpyro.sample("w", dist.Normal(x, 2.0)),
        0.3,
    )


def unequal_branches():
    left = lambda x: numpyro.sample("left", dist.Normal(x, 1.0))
    right = lambda x: numpyro.sample("right", dist.Normal(x, 2.0))
    return cond(Y[0] > 0, left, right, 0.3)


def check_unequal_branches():
    """NumPyro's branches need equal sites."""
    choices = {"left": jnp.asarray(0.4), "right": jnp.asarray(9.0)}
    found = ppl.as_program(unequal_branches).log_density(choices)
    np.testing.assert_allclose(found, dist.Normal(0.3, 1.0).log_prob(0.4), rtol=1e-5)


def with_net(declare):
    def program():
        net = declare("net", NET)
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(net(z[None]), 1.0).to_event(1), obs=jnp.ones(2))

    return program


def random_net():
    net = nets.random_eqx_module("net", NET, prior=dist.Normal(0.0, 1.0))
    numpyro.sample("x", dist.Normal(net(jnp.ones(1)), 1.0).to_event(1), obs=jnp.ones(2))


def check_flax(plain, with_prior, with_state):
    """A net of parameters and one of sites have NumPyro's density, and one with batch statistics is refused."""
    if importlib.util.find_spec("flax") is None:
        for declare in (nets.flax_module, nets.nnx_module):
            with pytest.raises(ImportError, match="(?s)needs a package that is missing.*flax"):
                ppl.as_program(lambda declare=declare: declare("net", None)).simulate(KEY)
        return
    assert_same_density(with_net(plain), {"z": jnp.asarray(0.4)})
    prior = dist.Normal(0.0, 1.0)
    sites = {"net/kernel": jnp.ones((1, 2)), "net/bias": jnp.ones(2)}
    observed = lambda net: numpyro.sample(
        "x", dist.Normal(net(jnp.ones(1)), 1.0).to_event(1), obs=jnp.ones(2)
    )
    assert_same_density(lambda: observed(with_prior("net", prior)), sites)
    with pytest.raises(TypeError, match="numpyro.mutable keeps state inside a program"):
        ppl.as_program(lambda: with_state("net")).simulate(KEY)


def check_linen():
    linen = lambda kind: __import__("flax.linen").linen.__dict__[kind]
    module = lambda name, *prior: (nets.random_flax_module if prior else nets.flax_module)(
        name, linen("Dense")(2), *prior, input_shape=(1,)
    )
    norm = lambda name: nets.flax_module(
        name,
        linen("BatchNorm")(use_running_average=False),
        input_shape=(1,),
        mutable=["batch_stats"],
    )
    check_flax(lambda name, _=None: module(name), module, norm)


def check_nnx():
    nnx = lambda: __import__("flax.nnx").nnx
    linear = lambda: nnx().Linear(1, 2, rngs=nnx().Rngs(0))
    check_flax(
        lambda name, _=None: nets.nnx_module(name, linear()),
        lambda name, prior: nets.random_nnx_module(name, linear(), prior),
        lambda name: nets.nnx_module(name, nnx().BatchNorm(1, rngs=nnx().Rngs(0))),
    )


class Dense:
    """Stands for a module of linen."""

    __module__ = "flax.linen.linear"


def process(approximation, **options):
    def program():
        f = approximation(x=jnp.linspace(-1.0, 1.0, 4), alpha=1.0, length=0.5, m=3, **options)
        numpyro.sample("x", dist.Normal(f, 1.0).to_event(1), obs=jnp.ones(4))

    return program


def chain():
    x, law = 0, jnp.array([[0.8, 0.2], [0.3, 0.7]])
    for t in contrib_funsor.markov(range(3)):
        x = numpyro.sample(f"x{t}", dist.Categorical(law[x]))
        numpyro.sample(f"y{t}", dist.Normal(x, 1.0), obs=Y[t])


XS = {f"x{t}": jnp.asarray(1) for t in range(3)}
marked = contrib_funsor.config_enumerate(chain)


def with_funsors_plate():
    with contrib_funsor.plate("rows", 3):
        numpyro.sample("x", dist.Normal(0.0, 1.0), obs=Y)


def simple(x=None):
    z = numpyro.sample("z", dist.Normal(0.0, 2.0))
    with numpyro.plate("rows", 3, subsample_size=None if x is None else 2):
        numpyro.sample("x", dist.Normal(z, 1.0), obs=numpyro.subsample(Y, 0))


def check_stein():
    guide = lambda: numpyro.sample("z", dist.Normal(numpyro.param("loc", 0.5), 1.0))
    losses = [
        SteinVI(
            p, q, numpyro.optim.Adam(0.1), RBFKernel(), num_stein_particles=3, num_elbo_particles=2
        )
        .run(KEY, 2, progress_bar=False)
        .losses
        for p, q in ((simple, guide), (ppl.model(simple), ppl.model(guide)))
    ]
    np.testing.assert_allclose(*losses, rtol=1e-5)


def check_subsampled_chain():
    draws = []
    for program in (simple, ppl.model(simple)):
        proxy = HMCECS.taylor_proxy({"z": jnp.asarray(0.3)})
        kernel = HMCECS(
            HMC(program, num_steps=2, trajectory_length=None), num_blocks=1, proxy=proxy
        )
        mcmc = MCMC(kernel, num_warmup=1, num_samples=2, progress_bar=False)
        mcmc.run(KEY, 2)
        draws.append(mcmc.get_samples()["z"])
    np.testing.assert_allclose(*draws, rtol=1e-5)


def check_relations():
    told = [get_model_relations(p) for p in (simple, ppl.model(simple))]
    assert told[0] == told[1] and told[0]["sample_param"]


def branching():
    k = numpyro.sample("k", dist.Bernoulli(0.5), infer={"branching": True})
    loc = numpyro.sample("a", dist.Normal(0.0, 1.0)) if k == 0 else 1.0
    numpyro.sample("x", dist.Normal(loc, 1.0), obs=0.2)


def branching_bound(program):
    guide = lambda: numpyro.sample("k", dist.Bernoulli(0.5))
    return inference.elbo(program, guide, strategies="enum").value({}, KEY)


def import_of(name):
    return lambda program: __import__(f"numpyro.contrib.{name}")


MISSING = "NumPyro names the package, if it is missing"
ROWS = [
    Row("`control_flow.scan`", "as `ppl.scan`", walk(), ZS),
    Row(
        "`scan(history=)`",
        "how many steps a summed site is remembered is read off the program, up to 3",
        walk(history=2),
        ZS,
    ),
    Row(
        "`scan(reverse=True)`",
        "values stand in the order of the steps, results beside their inputs",
        walk(reverse=True),
        ZS,
    ),
    Row("`scan`, a plate inside", "", plate_in_scan, {"z": jnp.ones((3, 2))}),
    Row(
        "`scan` inside of a plate",
        "NumPyro refuses it; `ppl.scan`, or the plate inside",
        lambda: scan_in_plate(scan),
        refused="under a `plate`.*into the control flow body",
    ),
    Row(
        "`ppl.scan` inside of a plate",
        "",
        check=lambda: ppl.as_program(lambda: scan_in_plate(ppl.scan)).log_density(
            {"z": jnp.ones((3, 2))}
        ),
    ),
    Row("`scan` inside of `scan`", "not in NumPyro", check=check_nested),
    Row("`control_flow.cond`", "as `ppl.cond`", branches, {"w": jnp.asarray(0.4)}),
    Row("`cond` with unequal sites", "not in NumPyro", check=check_unequal_branches),
    Row(
        "`module.eqx_module`", "as `ppl.module`", with_net(nets.eqx_module), {"z": jnp.asarray(0.4)}
    ),
    Row(
        "`module.random_eqx_module`",
        "weights are sites",
        random_net,
        {"net/weight": jnp.ones((2, 1)), "net/bias": jnp.ones(2)},
    ),
    Row(
        "`module.flax_module`, `random_flax_module`",
        "with Flax's linen; batch statistics (`mutable=`) are state and refused",
        check=check_linen,
        verdict="with Flax",
    ),
    Row(
        "`module.nnx_module`, `random_nnx_module`",
        "batch statistics and dropout are state and refused; `ppl.module` takes such modules",
        check=check_nnx,
        verdict="with Flax",
    ),
    Row(
        "`ppl.module` of a module of Flax's linen, or of Haiku",
        "`flax_module`; `ppl.module` takes modules of equinox and of Flax's nnx",
        with_net(lambda name, _: ppl.module(name, Dense())),
        refused="Module 'net' is a Dense of flax.*flax_module",
    ),
    Row(
        "`funsor.config_enumerate`", "a mark; here `ppl.eliminate`, or strategy `enum`", marked, XS
    ),
    Row(
        "`funsor.config_kl`",
        "",
        contrib_funsor.config_kl(with_net(nets.eqx_module)),
        {"z": jnp.asarray(0.4)},
    ),
    Row("`funsor.markov`", "a mark: who depends on whom is read off the program", chain, XS),
    Row(
        "`funsor.infer_discrete`",
        "a draw given the data: `ppl.eliminate(model, ...).posterior`",
        contrib_funsor.infer_discrete(marked, first_available_dim=-1, rng_key=KEY),
        XS,
    ),
    Row(
        "`funsor.enum`",
        "",
        contrib_funsor.enum(marked, first_available_dim=-1),
        refused="Site 'x0': numpyro.contrib.funsor's enum.*ppl.eliminate",
    ),
    Row(
        "`funsor.plate`, `plate_to_enum_plate`",
        "NumPyro's, for enumeration: `numpyro.plate`",
        with_funsors_plate,
        refused="Ran out of free dims during allocation for rows",
    ),
    Row(
        "`hsgp.hsgp_squared_exponential`",
        "",
        process(hsgp.hsgp_squared_exponential, ell=2.0),
        {"beta": jnp.ones(3)},
    ),
    Row(
        "`hsgp.hsgp_matern`", "", process(hsgp.hsgp_matern, ell=2.0, nu=1.5), {"beta": jnp.ones(3)}
    ),
    Row(
        "`hsgp.hsgp_rational_quadratic`",
        MISSING,
        process(hsgp.hsgp_rational_quadratic, ell=2.0, scale_mixture=1.0),
        refused="needs a package.*TensorFlow Probability",
        verdict="with TFP",
    ),
    Row(
        "`hsgp.hsgp_periodic_non_centered`",
        MISSING,
        process(hsgp.hsgp_periodic_non_centered, w0=1.0),
        refused="needs a package.*TensorFlow Probability",
        verdict="with TFP",
    ),
    Row(
        "`tfp`",
        MISSING,
        attempt=import_of("tfp"),
        refused="TensorFlow Probability",
        verdict="with TFP",
    ),
    Row(
        "`nested_sampling`",
        MISSING + "; the evidence: `inference.tempered_smc`",
        attempt=import_of("nested_sampling"),
        refused="jaxns",
        verdict="with JAXNS",
    ),
    Row("`einstein.SteinVI`", "NumPyro's own inference, on our programs", check=check_stein),
    Row(
        "`ecs_proxies`, `HMCECS`",
        "NumPyro's own inference, on our programs",
        check=check_subsampled_chain,
    ),
    Row("`render`", "as for any model", check=check_relations),
    Row(
        "`stochastic_support`: a Python `if` on a draw",
        "`ppl.cond`; `ppl.eliminate` sums over the branches",
        branching,
        refused="reads the value of an array.*ppl.cond",
        attempt=branching_bound,
    ),
]
