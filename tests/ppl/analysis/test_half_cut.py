"""Plans say where stop_gradient holds a draw fixed in one factor of a product and not in another, and say it nowhere else."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from lapilli import inference, ppl

stop = jax.lax.stop_gradient
PARAMS = {"m": jnp.array(0.3), "l": jnp.array(0.2)}


def plan(fn, **options):
    return ppl.expectation(fn, **options).plan(PARAMS)


def normal(params, name="z"):
    return ppl.sample(name, dist.Normal(params["m"], 1.0))


@pytest.mark.one_in(2)
@pytest.mark.parametrize("seed", range(12))
def test_it_is_told_exactly_where_the_cut_number_and_the_draw_meet(seed):
    """The truth for F(stop(z), z) is its mixed derivative: zero everywhere, or not, in c and z apart."""
    rng = np.random.default_rng(seed)
    unary = [jnp.sin, jnp.exp, jnp.tanh, lambda x: -2.0 * x]
    binary = [lambda a, b: a + b, lambda a, b: a - 0.5 * b, lambda a, b: a * b, lambda a, b: a / (2.0 + b * b)]  # fmt: skip
    steps = [(rng.integers(3), rng.integers(4), *rng.integers(0, 10, 2)) for _ in range(3)]

    def combined(c, z):
        found = [c, z]
        for kind, op, i, j in steps:
            a, b = found[i % len(found)], found[j % len(found)]
            found.append(unary[op](a) if kind == 0 else binary[op](a, b))
        return found[-1] + found[-2]

    mixed = jax.vmap(jax.grad(jax.grad(combined, 0), 1))
    points = jnp.asarray(rng.normal(size=(2, 20)))
    meets = bool((jnp.abs(mixed(*points)) > 1e-7).any())

    def fn(params):
        z = normal(params)
        return combined(stop(z), z)

    assert bool(plan(fn).cut) == meets


def rows(params):
    with ppl.plate("rows", 3):
        return ppl.sample("k", dist.Bernoulli(logits=params["l"]))


def of_weights(params, draw):
    """Self-normalised weights, cut, times log q of the same draws."""

    def particle():
        z = draw(params)
        return -jnp.sum(0.5 * z**2), jnp.sum(dist.Normal(params["m"], 1.0).log_prob(z))

    log_w, log_q = ppl.particles(4)(particle)()
    return (stop(jax.nn.softmax(log_w)) * log_q).sum()


def fixed(params):
    return normal(jax.tree.map(stop, params))


def through(params):
    z = normal(params)
    k = ppl.sample("k", dist.Normal(z, 1.0))
    return stop(jnp.exp(z)) * k


def in_a_loop(params):
    z = normal(params)
    return jax.lax.fori_loop(0, 3, lambda _, total: total + stop(z) * z, 0.0)


@pytest.mark.parametrize(
    "fn, options, told",
    [
        (lambda p: of_weights(p, normal), {}, ["z"]),
        (lambda p: of_weights(p, rows), {"strategies": "reinforce_loo", "num_replicates": 2}, ["k"]),
        (lambda p: of_weights(p, rows), {"strategies": "enum"}, ["k"]),
        (through, {}, ["z"]),
        (in_a_loop, {}, ["z"]),
        (lambda p: jax.jit(lambda z: stop(z) * z)(normal(p)), {}, ["z"]),
        (lambda p: of_weights(p, fixed), {}, []),  # as reweighted wake-sleep has it
        (lambda p: (stop(p["m"]) * normal(p)), {}, []),  # a parameter is no draw
        (lambda p: stop(normal(p)) * p["m"], {}, []),
        (lambda p: stop(normal(p)) * normal(p, "other"), {}, []),
        (lambda p: stop(normal(p)) + normal(p, "other") ** 2, {}, []),
        (lambda p: jax.nn.softmax(jnp.stack([normal(p), 0.0]))[0] * p["m"], {}, []),  # JAX's own
        (lambda p: jax.nn.logsumexp(jnp.stack([normal(p), 0.0]) * normal(p, "b")), {}, []),
    ],
)  # fmt: skip
def test_draws_are_named_with_their_line(fn, options, told):
    cut = plan(fn, **options).cut
    assert [name for name in ("z", "k", "other") if f"'{name}'" in cut] == told
    if told:
        assert "test_half_cut.py:" in cut and "ppl.detached" in cut


def model(x):
    z = ppl.sample("z", dist.Normal(0.0, 1.0))
    ppl.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x):
    ppl.sample("z", dist.Normal(ppl.param("m", 0.5), ppl.param("s", 0.5)))


@pytest.mark.parametrize(
    "make",
    [
        lambda: inference.rws(model, guide, num_particles=3),
        lambda: inference.wake_phi(model, guide, num_particles=3),
        lambda: inference.iwelbo(model, guide, num_particles=3, gradient="dreg"),
        lambda: inference.elbo(model, guide, gradient="stl"),
    ],
    ids=["rws", "wake_phi", "dreg", "stl"],
)
def test_of_the_library_s_own_objectives_nothing_is_told(make):
    objective = make()
    assert not objective.plan(objective.init(jax.random.key(0), 1.0), 1.0).cut


def test_an_objective_of_ones_own_says_so_in_its_plan():
    @inference.objective
    def own(model, guide, x):
        q = ppl.draw(guide, x)
        weight = stop(ppl.score(model, q, x).log_density - q.log_density)
        return weight * q.log_density

    @inference.objective
    def held(model, guide, x):
        q = ppl.draw(ppl.detached(guide), x)
        weight = stop(ppl.score(model, q, x).log_density - q.log_density)
        return weight * ppl.score(guide, q, x).log_density

    first, second = own(model, guide), held(model, guide)
    params = first.init(jax.random.key(0), 1.0)
    text = str(first.plan(params, 1.0))
    assert "stop_gradient: taken at its word. test_half_cut.py:" in text
    assert "stop_gradient" not in str(second.plan(params, 1.0))
