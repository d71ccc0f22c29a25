"""Rows of NumPyro's handlers; each name of `numpyro.handlers.__all__` has one."""

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from _numpyro_rows import Row
from numpyro import handlers
from numpyro.infer import reparam

X = jnp.array([0.5, -0.2, 1.3])
Z = {"z": jnp.asarray(0.4)}


def base():
    z = numpyro.sample("z", dist.Normal(0.0, 2.0))
    with numpyro.plate("rows", 3):
        numpyro.sample("x", dist.Normal(z, 1.0), obs=X)


def scaled():
    scale = numpyro.param("scale", 1.5, constraint=dist.constraints.positive)
    numpyro.sample("z", dist.Normal(0.0, scale))


def observation_blocked():
    z = numpyro.sample("z", dist.Normal(0.0, 2.0))
    with handlers.block(hide=["x"]):
        numpyro.sample("x", dist.Normal(z, 1.0), obs=0.5)


def latent_blocked():
    with handlers.block(hide=["hidden"]):
        hidden = numpyro.sample("hidden", dist.Normal(0.0, 2.0))
    numpyro.sample("z", dist.Normal(hidden, 1.0))


def collapsed():
    with handlers.collapse():
        p = numpyro.sample("p", dist.Beta(2.0, 3.0))
        numpyro.sample("heads", dist.Bernoulli(p), obs=1.0)
    numpyro.sample("z", dist.Normal(0.0, 1.0))


def masked():
    z = numpyro.sample("z", dist.Normal(0.0, 2.0))
    with numpyro.plate("rows", 3), handlers.mask(mask=jnp.array([True, False, True])):
        numpyro.sample("x", dist.Normal(z, 1.0), obs=X)


def weighted():
    z = numpyro.sample("z", dist.Normal(0.0, 2.0))
    with numpyro.plate("rows", 3), handlers.scale(scale=jnp.array([1.0, 2.0, 3.0])):
        numpyro.sample("x", dist.Normal(z, 1.0), obs=X)


def traced():
    with handlers.trace() as inner:
        z = numpyro.sample("z", dist.Normal(0.0, 2.0))
    numpyro.factor("again", inner["z"]["fn"].log_prob(z))


def conditioned_scan():
    from numpyro.contrib.control_flow import scan

    step = lambda last, _: (numpyro.sample("x", dist.Normal(last, 1.0)), None)
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    with handlers.condition(data={"x": X}):
        scan(step, z, None, length=3)


def log_normal():
    numpyro.sample("z", dist.LogNormal(0.0, 2.0))


def angle():
    numpyro.sample("z", dist.VonMises(0.3, 2.0))


replayed = handlers.replay(base, handlers.trace(handlers.seed(base, 0)).get_trace())


ROWS = [
    Row(
        "`block` of an observation",
        "it counts for nothing; `ppl.block` does the same",
        observation_blocked,
        Z,
    ),
    Row(
        "`block` of a latent site",
        "its draw would have no density: `ppl.condition`, `ppl.intervene`, `ppl.marginal`",
        latent_blocked,
        refused="hides a random statement.*ppl.condition, ppl.intervene",
    ),
    Row("`collapse`", "conjugate pairs, by funsor", collapsed, Z),
    Row("`condition`", "as `ppl.condition`", handlers.condition(base, {"z": 0.4})),
    Row("`condition` around a scan", "each step gets its slice", conditioned_scan, Z),
    Row(
        "`do`",
        "the site's density stays, over a value that nobody reads; `ppl.intervene` leaves it out",
        handlers.do(base, {"z": 1.0}),
        Z,
    ),
    Row("`infer_config`", "", handlers.infer_config(base, lambda site: {"a": 1}), Z),
    Row(
        "`lift`",
        "",
        handlers.lift(scaled, {"scale": dist.Gamma(2.0, 2.0)}),
        {**Z, "scale": jnp.asarray(0.7)},
    ),
    Row("`mask`", "`False`, or an array; `ppl.mask` around a program", masked, Z),
    Row(
        "`reparam`: `LocScaleReparam`",
        "learned centredness is a parameter",
        handlers.reparam(base, {"z": reparam.LocScaleReparam()}),
        {"z_decentered": jnp.asarray(0.3)},
    ),
    Row(
        "`reparam`: `TransformReparam`",
        "",
        handlers.reparam(log_normal, {"z": reparam.TransformReparam()}),
        {"z_base": jnp.asarray(0.3)},
    ),
    Row(
        "`reparam`: `CircularReparam`",
        "its base law is improper: scored, and drawn by a guide, but not simulated",
        handlers.reparam(angle, {"z": reparam.CircularReparam()}),
        refused="ImproperUniform has a density and no sampler.*guide",
    ),
    Row("`replay`", "its values stay latent", replayed),
    Row("`scale`", "a number, or an array; `ppl.reweight` by site", weighted, Z),
    Row(
        "`scope`",
        "sites are named `prefix/name`",
        handlers.scope(base, prefix="a"),
        {"a/z": jnp.asarray(0.4)},
    ),
    Row(
        "`seed`",
        "passed over: keys come from the run, `program.simulate(key)`",
        handlers.seed(base, 0),
        Z,
    ),
    Row(
        "`substitute`",
        "values of sites and of parameters",
        handlers.substitute(scaled, {"scale": 2.0}),
        Z,
    ),
    Row(
        "`trace`",
        "inside of a program; around one, `program.simulate(key)` returns a trace",
        traced,
        Z,
    ),
    Row(
        "`uncondition`",
        "observations become latent sites",
        handlers.uncondition(base),
        {**Z, "x": X},
    ),
]
