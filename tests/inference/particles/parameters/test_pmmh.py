"""Chains over parameters against the exact posterior: Kalman's likelihood on a grid of parameters."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from _compilations import compilations

from _stats import assert_unbiased
from lapilli import inference, ppl
from lapilli.inference.particles import FilterOptions, resampling
from lapilli.inference.particles.parameters import _parameter_filter
from lapilli.ppl import _shared_jit

Y = np.array([0.5, -1.0, 0.25, 2.0, 1.5, 2.5], np.float32)


@ppl.model
def walk(ys):
    """An unknown coefficient on (-1, 1) and an unknown noise scale above 0; both need a Jacobian."""
    a = ppl.sample("a", dist.Uniform(-1.0, 1.0))
    s = ppl.sample("s", dist.Gamma(3.0, 3.0))
    x = ppl.sample("x0", dist.Normal(0.0, 1.0))

    def step(x, y):
        x = ppl.sample("x", dist.Normal(a * x, s))
        ppl.sample("y", dist.Normal(x, 1.0), obs=y)
        return x, None

    ppl.scan(step, x, ys)


@ppl.model
def guided(ys):
    """The locally optimal proposal, which looks at the parameters; their laws here do not matter."""
    a = ppl.sample("a", dist.Normal(0.0, 1.0))
    s = ppl.sample("s", dist.Normal(0.0, 1.0))
    x = ppl.sample("x0", dist.Normal(0.0, 1.0))

    def step(x, y):
        gain = s**2 / (1 + s**2)
        return ppl.sample("x", dist.Normal(a * x + gain * (y - a * x), jnp.sqrt(gain))), None

    ppl.scan(step, x, ys)


@functools.cache
def exact():
    """Log evidence, and posterior means of a, a^2, log s, a log s, and of the last state and its square."""
    a = np.linspace(-1, 1, 1003)[1:-1, None]
    log_s = np.linspace(-5, 2.5, 1001)[None]
    s = np.exp(log_s)
    mean, var, log_p = np.zeros((1001, 1001)), np.ones((1001, 1001)), np.zeros((1001, 1001))
    for y in Y.astype(float):
        mean, var = a * mean, a**2 * var + s**2
        total = var + 1
        log_p += -0.5 * (np.log(2 * np.pi * total) + (y - mean) ** 2 / total)
        mean, var = mean + var / total * (y - mean), var / total
    # Gamma(3, rate 3) in coordinates log s; the uniform density is 1/2.
    log_p += np.log(0.5) + 3 * np.log(3.0) - np.log(2.0) + 3 * log_s - 3 * s
    p = np.exp(log_p)
    log_z = np.log(p.sum() * (a[1, 0] - a[0, 0]) * (log_s[0, 1] - log_s[0, 0]))
    functions = [a, a**2, log_s, a * log_s, mean, mean**2 + var]
    return log_z, np.array([(p * f).sum() / p.sum() for f in functions])


def moments(draws):
    a, log_s, x = draws["a"], jnp.log(draws["s"]), draws["x"][..., -1]
    return jnp.stack([a, a**2, log_s, a * log_s, x, x**2], -1)


def chains(key, num_chains=400, **options):
    """Means of the moments along independent chains, which need no correction for autocorrelation, and acceptance rates."""
    options = {"num_particles": 8, "num_warmup": 100, "num_samples": 200} | options

    def run(key):
        result = inference.particles.pmmh(walk, key, Y, parameters=["a", "s"], **options)
        return moments(result.choices).mean(0), result.is_accepted.mean()

    return jax.jit(jax.vmap(run))(jax.random.split(key, num_chains))


SLOW = pytest.mark.slow  # a long compilation


@pytest.mark.slow
@pytest.mark.parametrize(
    "proposal", [pytest.param(None, id="prior"), pytest.param(guided, id="guided", marks=SLOW)]
)
def test_the_chain_has_the_exact_posterior(proposal, key):
    """Eight particles, whose evidence is noisy; one standard error is 0.01 or less of a posterior sd of 0.5."""
    means, rates = chains(key, filter=FilterOptions(proposal))
    assert_unbiased(means, exact()[1], names=["a", "a^2", "log s", "a log s", "x", "x^2"])
    assert 0.1 < rates.mean() < 0.4


@SLOW
def test_a_missing_jacobian_is_found(key, monkeypatch):
    make = _parameter_filter.make_parameters
    flat = lambda *args: dataclasses.replace(make(*args), log_jacobian=lambda u: 0.0 * u[0])
    monkeypatch.setattr(_parameter_filter, "make_parameters", flat)
    with pytest.raises(AssertionError, match="limit 4.5"):
        test_the_chain_has_the_exact_posterior(None, key)


@ppl.model
def die(rolls):
    """All latent sites are parameters: the chain is plain Metropolis-Hastings on a simplex."""
    p = ppl.sample("p", dist.Dirichlet(jnp.array([1.0, 2.0, 3.0])))
    ppl.scan(lambda _, y: (None, ppl.sample("y", dist.CategoricalProbs(p), obs=y)), None, rolls)


ROLLS = jnp.array([0, 0, 1, 2, 0])


def run_die(key, **options):
    options = {"num_particles": 1, "num_warmup": 100, "num_samples": 200} | options
    return inference.particles.pmmh(die, key, ROLLS, parameters=["p"], **options)


@pytest.mark.slow
def test_parameters_on_a_simplex_without_states(key):
    """The posterior is Dirichlet(4, 3, 4); one standard error of a mean is 0.002."""
    runs = jax.jit(jax.vmap(run_die))(jax.random.split(key, 400))
    p = np.asarray(runs.parameters["p"], float)
    assert runs.states == {}
    assert_unbiased(p.mean(1), np.array([4, 3, 4]) / 11)
    assert_unbiased((p**2).mean(1), np.array([4 * 5, 3 * 4, 4 * 5]) / (11 * 12))
    # One particle, no draws: the estimate is the density itself.
    exact = jax.vmap(lambda p: die.log_density({"p": p}, ROLLS))(runs.parameters["p"][0])
    np.testing.assert_allclose(runs.log_joint[0], exact, rtol=1e-5)


@pytest.mark.slow
def test_a_rejected_proposal_leaves_everything_in_place(key):
    chain = inference.particles.pmmh(
        walk, key, Y, parameters=["a", "s"], num_particles=5, num_warmup=5, num_samples=100
    )
    values = np.stack([*chain.parameters.values(), chain.log_joint, chain.states["x0"]], -1)
    is_new = (np.diff(values, axis=0) != 0).any(1)
    np.testing.assert_array_equal(is_new, chain.is_accepted[1:])
    assert 0 < is_new.mean() < 1
    assert chain.spread.shape == (2, 2) and chain.choices.keys() == {"a", "s", "x0", "x"}


@pytest.mark.slow
def test_a_chain_starts_at_init(key):
    """Without warmup a first sample that was not accepted is the start itself."""
    init = {"p": jnp.array([0.2, 0.3, 0.5])}
    run = lambda key: run_die(key, init=init, num_warmup=0, num_samples=1)
    chains = jax.jit(jax.vmap(run))(jax.random.split(key, 50))
    is_start = np.isclose(chains.parameters["p"][:, 0], init["p"], rtol=1e-5).all(1)
    np.testing.assert_array_equal(is_start, ~np.asarray(chains.is_accepted[:, 0]))
    assert is_start.any() and not is_start.all()


@pytest.mark.slow  # a long compilation
def test_arviz_gets_chains(key):
    run = lambda key: run_die(key, num_warmup=5, num_samples=7)
    chains = jax.jit(jax.vmap(run))(jax.random.split(key, 3))
    tree = inference.to_arviz(chains, model=die, args=(ROLLS,), groups=["observed_data"])
    assert dict(tree.posterior["p"].sizes) == {"chain": 3, "draw": 7, "p_dim_0": 3}
    np.testing.assert_array_equal(tree.posterior["p"], chains.parameters["p"])
    np.testing.assert_array_equal(tree.sample_stats["log_joint"], chains.log_joint)
    one = inference.to_arviz(jax.tree.map(lambda x: x[0], chains))
    assert one.sample_stats["is_accepted"].shape == (1, 7)


WEIGHT = 1.0


@ppl.model
def tilted(y):
    """It reads a number around it."""
    a = ppl.sample("a", dist.Normal(0.0, 1.0))
    ppl.sample("y", dist.Normal(WEIGHT * a, 1.0), obs=y)


def run_tilted(key, y, **options):
    return inference.particles.pmmh(
        tilted, key, y, parameters=["a"], num_samples=3, num_particles=1, num_warmup=1, **options
    ).log_joint


@pytest.mark.slow
def test_a_run_is_compiled_once_while_the_program_means_the_same(key, monkeypatch):
    run = lambda y: run_tilted(
        key, jnp.array(y), filter=FilterOptions(policy=resampling.ess_below(0.3))
    )
    first = run(0.5)
    with compilations() as count:
        assert not np.allclose(run(-0.7), first)
    assert count() == 0
    monkeypatch.setitem(globals(), "WEIGHT", 3.0)
    with compilations() as count:
        assert not np.allclose(run(0.5), first)
    assert count() >= 1


@ppl.model
def picking(y):
    """It reads its data in Python, so that they cannot be inputs of a compiled run."""
    a = ppl.sample("a", dist.Normal(0.0, 1.0))
    with ppl.plate("rows", int((np.asarray(y) > 0).sum())):
        ppl.sample("y", dist.Normal(a, 1.0), obs=np.asarray(y)[np.asarray(y) > 0])


@pytest.mark.slow  # two compilations
def test_a_compiled_run_gives_what_a_new_one_gives(key, monkeypatch):
    run_tilted(key, jnp.array(0.5))
    again = run_tilted(key, jnp.array(-0.7))
    monkeypatch.setattr(_shared_jit, "_executables", type(_shared_jit._executables)())
    np.testing.assert_allclose(run_tilted(key, jnp.array(-0.7)), again, rtol=1e-5)


@pytest.mark.slow  # two compilations
def test_data_that_are_read_in_python_and_policies_that_do_not_compare_are_taken(key):
    class Policy:
        __hash__ = None

        def __call__(self, *_):
            return False

    options = {"parameters": ["a"], "num_samples": 2, "num_particles": 1, "num_warmup": 0}
    assert inference.particles.pmmh(picking, key, Y, **options).log_joint.shape == (2,)
    assert run_tilted(key, jnp.array(0.5), filter=FilterOptions(policy=Policy())).shape == (3,)


# What is refused.


@ppl.model
def awkward(ys):
    kind = ppl.sample("kind", dist.Bernoulli(0.5))
    top = ppl.sample("top", dist.Gamma(2.0, 1.0))
    ppl.sample("below", dist.Uniform(0.0, top))
    ppl.sample("free", dist.Normal(top, 1.0 + kind))

    def step(x, y):
        x = ppl.sample("x", dist.Normal(x, 1.0))
        return x, ppl.sample("y", dist.Normal(x, 1.0), obs=y)

    x, _ = ppl.scan(step, 0.0, ys)
    ppl.sample("late", dist.Normal(x, 1.0))


def refuse(parameters, **options):
    options = {"num_particles": 2, "num_samples": 1} | options
    return lambda key: inference.particles.pmmh(awkward, key, Y, parameters=parameters, **options)


ERRORS = {
    "empty": (refuse([]), "'parameters' is empty"),
    "missing": (refuse(["nothing"]), "'nothing' must be a latent site, but there is no such site. Candidates are .*'top'"),
    "observed": (refuse(["y"]), "'y' must be a latent site, but it is observed"),
    "in a scan": (refuse(["x"]), "'x' stands in a scan"),
    "after a scan": (refuse(["late"]), "'late' stands after a scan"),
    "discrete": (refuse(["kind"]), "'kind' is discrete .Bernoulli"),
    "prior": (refuse(["top", "free"]), "prior of the parameters .* depends on a latent site"),
    "support": (refuse(["top", "below"]), "support of site 'below' depends on another draw"),
    "support of a state": (refuse(["below"]), "depends on a latent site"),
    "scheme": (refuse(["top"], filter=FilterOptions(resampling="metropolis")), "'metropolis' makes the evidence"),
    "samples": (refuse(["top"], num_samples=0), "num_samples must be"),
    "particles": (refuse(["top"], num_particles=0), "num_particles must be"),
    "warmup": (refuse(["top"], num_warmup=-1), "num_warmup must be"),
    "target": (refuse(["top"], target_accept=1.0), "target_accept must"),
    "shape of init": (refuse(["top"], init={"top": [1.0, 2.0]}), "init of 'top' has shape .2,., and the site has .."),
    "init outside": (refuse(["top"], init={"top": -1.0}), "init lies where the prior of .'top'. has no density"),
    "init": (refuse(["top"], init={"tip": 1.0}), "init names \\['tip'\\], the parameters are \\['top'\\]"),
}  # fmt: skip


@pytest.mark.slow_for(
    "after a scan", "empty", "in a scan", "init outside", "observed", "prior", "support"
)
@pytest.mark.parametrize("name", ERRORS)
def test_bad_input_is_refused_by_name(name, key):
    run, message = ERRORS[name]
    with pytest.raises(ValueError, match=message):
        run(key)


@pytest.mark.slow  # seconds of compilation
def test_a_chain_that_never_met_possible_data_is_no_result(key):
    @ppl.model
    def impossible(ys):
        ppl.sample("a", dist.Normal(0.0, 1.0))

        def step(x, y):
            x = ppl.sample("x", dist.Normal(x, 1.0))
            ppl.factor("wall", jnp.where(jnp.isfinite(y), -jnp.inf, 0.0))
            return x, None

        ppl.scan(step, 0.0, ys)

    run = lambda key: inference.particles.pmmh(
        impossible, key, Y, parameters=["a"], num_samples=4, num_particles=2, num_warmup=1
    )
    with pytest.raises(RuntimeError, match="4 of 4 samples .*lost all its particles"):
        run(key)
    assert (jax.jit(run)(key).log_joint == -jnp.inf).all()
