"""Refusals of the particle methods under jit: the same words as eagerly where they can be decided, else NaN in what is returned.

Programs are traced in both ways, so that what is decided there holds within them. `mam` has its own particles here.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from lapilli import inference, ppl
from lapilli.inference import particles
from lapilli.inference.particles import resampling
from lapilli.models import mam

KEY = jax.random.key(0)
WALK = inference.FeynmanKac(jax.random.normal, lambda key, x, t: x, lambda _, x, t: -0.5 * x**2, 3)
COUNTS = inference.FeynmanKac(
    lambda key: jnp.zeros((), int), lambda key, x, t: x, lambda _, x, t: -1.0 * x, 3
)
WIDE = inference.FeynmanKac(jax.random.normal, lambda key, x, t: x, lambda _, x, t: jnp.zeros(2), 3)
YS = jnp.array([0.5, -1.0, 0.25])


def walk(ys):
    a = ppl.sample("a", dist.Uniform(-1.0, 1.0))

    def step(x, y):
        x = ppl.sample("x", dist.Normal(a * x, 1.0))
        return x, ppl.sample("y", dist.Normal(x, 1.0), obs=y)

    ppl.scan(step, 0.0, ys)


def straight(ys):
    z = ppl.sample("z", dist.Normal(0.0, 1.0))
    with ppl.plate("rows", 3):
        ppl.sample("y", dist.Normal(z, 1.0), obs=ys)


def discrete(ys):
    z = ppl.sample("z", dist.Bernoulli(0.5))
    with ppl.plate("rows", 3):
        ppl.sample("y", dist.Normal(z, 1.0), obs=ys)


def summarised(ys):
    def step(x, y):
        x = ppl.sample("x", dist.Normal(x, 1.0))
        return ppl.sample("y", dist.Normal(x, 1.0), obs=y), x

    _, xs = ppl.scan(step, 0.0, ys)
    ppl.factor("squares", -jnp.sum(xs**2))


def backwards(ys):
    z = ppl.sample("z", dist.Normal(0.0, 1.0))
    ppl.factor("y", jax.lax.scan(lambda c, y: (c + y * z, -(c**2)), 0.0, ys, reverse=True)[1])


def five(ys):
    with ppl.plate("five", 5):
        z = ppl.sample("z", dist.Normal(0.0, 1.0))
    ppl.scan(lambda c, y: (c, ppl.sample("y", dist.Normal(z.sum(), 1.0), obs=y)), 0.0, ys)


def five_steps(ys):
    ppl.scan(lambda c, _: (c, ppl.sample("z", dist.Normal(0.0, 1.0))), 0.0, None, length=5)


def late(ys):
    ppl.scan(lambda x, _: (ppl.sample("x", dist.Normal(x, 1.0)), None), 0.0, ys)
    ppl.sample("a", dist.Uniform(-1.0, 1.0))


def auxiliary(ys):
    u = ppl.sample("u", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
    ppl.sample("z", dist.Normal(u, 1.0))


def unseen(ys):
    ppl.sample("z", dist.Normal(ys.sum(), 1.0))


def empty(ys):
    ppl.sample("y", dist.Normal(0.0, 1.0), obs=ys.sum())


def hierarchical(ys):
    b = ppl.sample("b", dist.Normal(0.0, 1.0))
    a = ppl.sample("a", dist.Normal(b, 1.0))
    ppl.scan(lambda x, y: (a * x, ppl.sample("y", dist.Normal(a * x, 1.0), obs=y)), 1.0, ys)


def own(ancestors):
    return resampling.Scheme("own", lambda key, log_weights, num=None: ancestors, None, True)


weighed = lambda key, fn: inference.smc(
    inference.FeynmanKac(*PARTS[:2], fn, 2), key, num_particles=4
)
PARTS, EVERY = (WALK.init, WALK.kernel, WALK.log_potential), resampling.every()
HALF, PARTIAL = resampling.ess_below(0.5), resampling.partial_resampling(0.5)
few = {"num_particles": 4}
METROPOLIS = particles.FilterOptions(resampling="metropolis")
smc = functools.partial(inference.smc, **few)
chain = functools.partial(smc, WALK)
tempered = functools.partial(inference.tempered_smc, **few)
smooth = functools.partial(inference.smooth, **few)
pmmh = functools.partial(particles.pmmh, parameters=["a"], num_samples=2, **few)
gibbs = functools.partial(particles.particle_gibbs, num_samples=2, **few)
smc2 = functools.partial(particles.smc2, parameters=["a"], num_parameter_particles=2, **few)
liu_west = functools.partial(particles.liu_west, parameters=["a"], **few)
islands = functools.partial(particles.islands, num_islands=2, **few)
conditional = functools.partial(particles.conditional_smc, WALK)
PAIR = jnp.zeros((2, 3), int)  # evidence of two rows
networks = mam.residual_mlps(3, 2, width=4, key=KEY)

FROZEN = object.__new__(inference.TemperedResult)  # whatever it holds

# Key words -> call(key, ys).
STRUCTURE = {
    "num_particles must be an integer": lambda key, ys: inference.smc(WALK, key, num_particles=0),
    "history must be": lambda key, ys: chain(key, history="some"),
    "batch_size must be None or": lambda key, ys: chain(key, batch_size=0),
    "does not divide num_particles": lambda key, ys: chain(key, batch_size=3),
    "no program arguments": lambda key, ys: chain(key, ys),
    "No resampling scheme is called": lambda key, ys: chain(key, resampling="systemic"),
    "names axes of a mesh, and there is none": lambda key, ys: chain(key, mesh_axes="particles"),
    "one number per particle": lambda key, ys: smc(WIDE, key),
    "retained path has shapes": lambda key, ys: chain(key, retained=jnp.zeros(2)),
    "which sorting would break": lambda key, ys: chain(key, retained=jnp.zeros(4), order=lambda x, t: x),
    "has no gradient strategy": lambda key, ys: chain(key, retained=jnp.zeros(4), gradient="drop"),
    "in no order": lambda key, ys: chain(key, gradient="drop", order=lambda x, t: x),
    "no gradient is called": lambda key, ys: chain(key, gradient="dorp"),
    "psi is known": lambda key, ys: chain(key, gradient="ot", history="none", twist=lambda x, t: x),
    "leaves no ancestors": lambda key, ys: chain(key, gradient="ot"),
    "policy that looks at the weights": lambda key, ys: chain(key, gradient="score", resampling="multinomial", policy=HALF),
    "pathwise derivative only": lambda key, ys: smc(COUNTS, key, gradient="drop"),
    "all ancestors and their weights by itself": lambda key, ys: chain(key, gradient="drop", resampling=PARTIAL),
    "twist must return one number": lambda key, ys: chain(key, twist=lambda x, t: jnp.zeros(2)),
    "order must return a number or a vector": lambda key, ys: chain(key, order=lambda x, t: jnp.zeros((2, 2))),
    "coordinates, and a curve": lambda key, ys: chain(key, order=lambda x, t: jnp.zeros(16)),
    "num_steps must be an integer >= 0, got -1": lambda key, ys: inference.FeynmanKac(*PARTS, -1),
    "num_steps must be an integer >= 0, got 2.5": lambda key, ys: inference.FeynmanKac(*PARTS, 2.5),
    "FeynmanKac.log_potential: a log-weight in nats is wanted, got bool": lambda key, ys: weighed(key, lambda _, x, t: x > 0),
    "a log-weight in nats is wanted, got nothing": lambda key, ys: weighed(key, lambda _, x, t: None),
    "a log-weight in nats is wanted, got complex64": lambda key, ys: weighed(key, lambda _, x, t: x + 1j),
    r"ancestors of shape \(3,\)": lambda key, ys: chain(key, resampling=own(jnp.arange(3)), policy=EVERY),
    r"ancestors of shape \(4, 1\)": lambda key, ys: chain(key, resampling=own(jnp.zeros((4, 1), int))),
    "type float32, and 4 are wanted": lambda key, ys: chain(key, resampling=own(jnp.zeros(4))),
    "type None, and 4 are wanted": lambda key, ys: chain(key, resampling=own(None)),
    r"policy returned shape \(4,\)": lambda key, ys: chain(key, policy=lambda t, log_weights: log_weights > 0),
    "policy returned .* float32": lambda key, ys: chain(key, policy=lambda t, log_weights: 1 / jnp.exp(2 * log_weights).sum()),
    "policy returned .* NoneType": lambda key, ys: chain(key, policy=lambda t, log_weights: None),
    "one True or False": lambda key, ys: chain(key, policy=lambda t, log_weights: 1),
    "nothing": lambda key, ys: smc(unseen, key, ys),
    "uses the stacked values of a scan": lambda key, ys: smc(summarised, key, ys, history="none"),
    "scan with sites runs backwards": lambda key, ys: smc(backwards, key, ys),
    "has 5 steps, the model's 3": lambda key, ys: smc(five, key, ys, proposal=five_steps),
    "needs site 'a' before the proposal": lambda key, ys: smc(walk, key, ys, proposal=late),
    r"auxiliary sites \['u'\]": lambda key, ys: smc(straight, key, ys, proposal=auxiliary),
    "retained path has no values": lambda key, ys: smc(walk, key, ys, retained={"a": 0.5}),
    r"retained path has shape \(1,\) at site 'z', and the site has \(5,\)": lambda key, ys: smc(
        five, key, ys, retained={"z": jnp.ones(1)}
    ),
    "top-level scans": lambda key, ys: smc(straight, key, ys, twist=lambda x, t: x),
    "ess_below: fraction": lambda key, ys: resampling.ess_below(0.0),
    "RandomWalk: target_accept must lie in": lambda key, ys: particles.moves.RandomWalk(30.0),
    "HMC: target_accept must lie in": lambda key, ys: particles.moves.MALA(0.0),
    "HMC: num_leapfrog must be an integer >= 1, got 0": lambda key, ys: particles.moves.HMC(0),
    "BlackJAX: first_step_size must be positive": lambda key, ys: particles.moves.BlackJAX(len, first_step_size=0.0),
    "window: needs": lambda key, ys: resampling.window(3, 2),
    r"Soft: alpha must lie": lambda key, ys: resampling.Soft(0.0),
    "Transport: needs epsilon": lambda key, ys: resampling.Transport(epsilon=0.0),
    "partial_resampling: fraction": lambda key, ys: resampling.partial_resampling(1.0),
    "kept no genealogy": lambda key, ys: particles.unique_ancestors(chain(key, history="none")),
    "form must be 'unbiased' or": lambda key, ys: particles.evidence_variance(chain(key), form="best"),
    "lag must be None or": lambda key, ys: particles.evidence_variance(chain(key), lag=0),
    "says nothing about this run": lambda key, ys: particles.evidence_variance(chain(key, policy=resampling.every())),
    "one particle, or chain, shows no variance": lambda key, ys: particles.evidence_variance(
        inference.smc(WALK, key, num_particles=1)
    ),
    "with retained choices is not unbiased": lambda key, ys: particles.evidence_variance(chain(key, retained=jnp.zeros(4))),
    "num_particles must be at least 2": lambda key, ys: conditional(key, jnp.zeros(4), num_particles=1),
    "path must be 'genealogy'": lambda key, ys: conditional(key, jnp.zeros(4), path="old", **few),
    "log_transition is missing": lambda key, ys: conditional(key, jnp.zeros(4), path="ancestor", **few),
    "method must be 'ffbs', 'mcmc'": lambda key, ys: smooth(WALK, key, method="best"),
    "no path to smooth": lambda key, ys: smooth(straight, key, ys),
    "temperatures or a frozen": lambda key, ys: tempered(straight, key, ys, temperatures=[1.0], frozen=FROZEN),
    "keep must be": lambda key, ys: tempered(straight, key, ys, keep="first"),
    "states of each chain": lambda key, ys: tempered(straight, key, ys, keep="all", num_moves=2),
    "does not divide the": lambda key, ys: tempered(straight, key, ys, batch_size=3),
    r"tempered_smc: target_ess must lie": lambda key, ys: tempered(straight, key, ys, target_ess=1.0),
    "temperatures must increase": lambda key, ys: tempered(straight, key, ys, temperatures=[0.5, 0.7]),
    "has no latent site": lambda key, ys: tempered(empty, key, ys),
    "continuous coordinates, and this site": lambda key, ys: tempered(discrete, key, ys),
    "data_axis='time' is to order": lambda key, ys: tempered(straight, key, ys, data_axis="time"),
    "'parameters' is empty": lambda key, ys: pmmh(walk, key, ys, parameters=[]),
    "must be a latent site": lambda key, ys: pmmh(walk, key, ys, parameters=["b"]),
    "a parameter is drawn once": lambda key, ys: pmmh(walk, key, ys, parameters=["x"]),
    "is discrete": lambda key, ys: pmmh(discrete, key, ys, parameters=["z"]),
    "depends on a latent site that is none": lambda key, ys: pmmh(hierarchical, key, ys),
    "target_accept must lie": lambda key, ys: pmmh(walk, key, ys, target_accept=1.0),
    "init names": lambda key, ys: pmmh(walk, key, ys, init={"b": 0.5}),
    "init of 'a' has shape": lambda key, ys: pmmh(walk, key, ys, init={"a": jnp.zeros(2)}),
    "makes the evidence estimates biased": lambda key, ys: pmmh(walk, key, ys, filter=METROPOLIS),
    "has no sites, so no parameters": lambda key, ys: gibbs(WALK, key, parameters=["a"]),
    "smc2: batch_size must be an integer >= 1, got 0": lambda key, ys: smc2(walk, key, ys, batch_size=0),
    "smc2: target_ess must lie": lambda key, ys: smc2(walk, key, ys, target_ess=0.0),
    "discount must lie in": lambda key, ys: liu_west(walk, key, ys, discount=0.2),
    "top-level scans with observations, and": lambda key, ys: liu_west(straight, key, ys, parameters=["z"]),
    "exchange must be 'islands' or": lambda key, ys: islands(WALK, key, exchange="some"),
    "is no power of two": lambda key, ys: islands(WALK, key, num_islands=3, exchange="butterfly"),
    "is biased, so neither": lambda key, ys: inference.smc_sampler(straight, resampling="metropolis", **few),
    "the particles belong to one row": lambda key, ys: mam.feynman_kac(mam.MaM(networks, evidence=PAIR), jnp.sum),
}  # fmt: skip


@pytest.mark.parametrize("mode", ["eagerly", "jit"])
@pytest.mark.parametrize("words", STRUCTURE)
def test_what_is_decided_before_the_run_is_refused(words, mode):
    call = STRUCTURE[words]
    run = call if mode == "eagerly" else lambda *args: jax.eval_shape(jax.jit(call), *args)
    with pytest.raises((ValueError, TypeError), match=words):
        run(KEY, YS)


def test_temperatures_that_are_traced_are_refused():
    call = lambda last: tempered(straight, KEY, YS, temperatures=last * jnp.array([0.5, 1.0]))
    with pytest.raises(ValueError, match="must be concrete numbers"):
        jax.eval_shape(call, 1.0)


# What draws decide: an error outside of jit; within it nothing that could pass for a result.

NAN = inference.FeynmanKac(jax.random.normal, lambda key, x, t: x, lambda _, x, t: jnp.log(x), 1)
PRECISE = inference.FeynmanKac(
    jax.random.normal, lambda key, x, t: x, lambda _, x, t: -0.5 * x**2, 2,
    lambda old, new, t: 5.0 + 0.0 * old,
)  # fmt: skip
DRAWN = {
    "NaN at weighing": lambda key: inference.smc(NAN, key, num_particles=16).log_evidence,
    "temperatures ended": lambda key: tempered(straight, key, YS * 100, max_steps=1).log_evidence,
    "exceeds log_bound": lambda key: smooth(PRECISE, key, method=particles.BackwardRejection(0.0, 2)).paths,
    "init has log-density": lambda key: gibbs(walk, key, YS, init={"a": 2.0, "x": jnp.zeros(3)}).choices["a"],
}  # fmt: skip


@pytest.mark.slow_for("exceeds log_bound", "NaN at weighing", "temperatures ended")
@pytest.mark.parametrize("words", DRAWN)
def test_what_draws_decide_is_refused_or_nan(words):
    call = DRAWN[words]
    with pytest.raises((ValueError, RuntimeError), match=words):
        call(KEY)
    assert jnp.isnan(jax.jit(call)(KEY)).all()


@pytest.mark.slow
@pytest.mark.parametrize("ancestors", [[1, 2, 3, 4], [-1, 0, 1, 2]])
def test_ancestors_that_there_are_not_are_refused(ancestors):
    """JAX would take the nearest; under jit the evidence is NaN."""
    run = lambda key: chain(key, resampling=own(jnp.array(ancestors)), policy=EVERY)
    with pytest.raises(ValueError, match="names particles that there are not.*return 0 to"):
        run(KEY)
    assert jnp.isnan(jax.jit(lambda key: run(key).log_evidence)(KEY))


def test_a_chain_that_is_lost_says_so_under_jit():
    """`log_joint` is the status of pmmh: its chain may come to the posterior later."""
    call = lambda key: pmmh(walk, key, YS + jnp.inf).log_joint
    with pytest.raises(RuntimeError, match="lost all its particles"):
        call(KEY)
    assert not jnp.isfinite(jax.jit(call)(KEY)).any()


@pytest.mark.slow
def test_known_evidence_of_a_mam_stays_known(key):
    """As many steps under jit as outside of it, and the same evidence."""
    model = mam.MaM(networks).condition(np.array([0, 1, 0]), np.array([False, True, True]))
    log_f = lambda x: 1.0 * x.sum()

    def run(key):
        chain = mam.feynman_kac(model, log_f)
        assert chain.num_steps == 1
        return inference.smc(chain, key, num_particles=10, history="none").log_evidence

    np.testing.assert_allclose(jax.jit(run)(key), run(key), rtol=1e-5)
    # Evidence that is traced: a step for every variable, and those of the evidence move nothing.
    traced = lambda evidence: mam.feynman_kac(mam.MaM(networks, evidence=evidence), log_f)
    assert jax.eval_shape(lambda e: jnp.zeros(traced(e).num_steps), model.evidence).shape == (3,)
