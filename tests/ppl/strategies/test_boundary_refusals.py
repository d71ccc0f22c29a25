"""What the boundary strategy cannot serve is refused, each time with the site's name and a remedy."""

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
import pytest
from _boundary_programs import draw, ties

from lapilli import inference, ppl

KEPT = ppl.Boundary("reinforce")
stop = jax.lax.stop_gradient


def step(is_true):
    return jnp.where(is_true, 1.0, 0.0)


def z_of(p, loc=1.0):
    return draw("z", loc * p, strategy="boundary")


def rows_of(p):
    with ppl.plate("n", 3):
        return z_of(p)


def site_in_a_scan(p):
    return ppl.scan(lambda c, _: (c + step(z_of(p) < c), None), 0.0, None, length=3)[0]


def compared_in_a_loop(p):
    z = z_of(p)
    return jax.lax.fori_loop(0, 3, lambda i, c: c + step(z < i), 0.0)


def compared_in_a_branch(p):
    z = z_of(p)
    return jax.lax.cond(p > 0, lambda: step(z < 0), lambda: 0.0)


def compared_with_what_is_downstream(p):
    z = z_of(p)
    return step(z < draw("w", z, strategy="reinforce"))


def two_elements(p):
    z = rows_of(p)
    return step(z[0] < z[1])


UNTREATED = {
    "no line": lambda p: step(z_of(p) ** 2 < 1),
    "sign": lambda p: jnp.sign(z_of(p)),
    "floor": lambda p: jnp.floor(z_of(p)),
    "integer": lambda p: z_of(p).astype(int) * 1.0,
    "fewer digits": lambda p: step(z_of(p).astype(jnp.float16) < 1),
    "logarithm of what has an end": lambda p: step(jnp.log(3 + z_of(p)) < 1),
    "two elements": two_elements,
    "mean": lambda p: step((z := rows_of(p)) < z.mean()).sum(),
    "order": lambda p: jnp.argsort(rows_of(p))[0] * 1.0,
    "site in a scan": site_in_a_scan,
    "compared in a loop": compared_in_a_loop,
    "compared in a branch": compared_in_a_branch,
    "compared with what is downstream": compared_with_what_is_downstream,
    "place cut off": lambda p: step(z_of(p) < stop(p)),
}
FAST = ("no line", "two elements", "compared in a loop", "place cut off")


@pytest.mark.fast("compared in a loop", "no line")
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n in FAST else pytest.mark.slow) for n in UNTREATED],
)  # slow: a search each
def test_other_jumps_are_refused(name):
    with pytest.raises(
        ppl.StrategyError, match=r"Site 'z': the result jumps.*'boundary' treats .*affine"
    ):
        ppl.expectation(UNTREATED[name]).plan(0.3)


@pytest.mark.slow
def test_place_cut_off_from_a_kept_value():
    cost = lambda p: step(draw("z", p, strategy=KEPT) < stop(p) ** 2)
    with pytest.raises(
        ValueError, match=r"Site 'z': with the noise of the draw kept.*'boundary' treats"
    ):
        ppl.expectation(cost).plan(0.3)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["reparam", pytest.param("boundary", marks=pytest.mark.slow)])
def test_slope_that_changes_its_sign(strategy):
    """1(r z < 0) jumps at r = 0, too, which is no place of z."""
    cost = lambda p: step(draw("r", p, strategy=strategy) * z_of(p, 0.0) < 0)
    with pytest.raises(ppl.StrategyError, match=r"Site 'r': the result jumps.*operation: sign"):
        ppl.expectation(cost).plan(0.3)


def test_place_that_jumps():
    cost = lambda p: step(z_of(p, 0.0) < jnp.where(draw("r", p) < 0, 0.0, 1.0))
    with pytest.raises(ppl.StrategyError, match="Site 'r': the result jumps.*operation: lt"):
        ppl.expectation(cost).plan(0.3)


@pytest.mark.parametrize(
    ("cost", "operation"),
    [
        (lambda p: stop(step(z_of(p) < 0)) * p, "stop_gradient"),
        (lambda p: (lambda z: z * stop(z))(z_of(p)), "stop_gradient"),
    ],
)
def test_derivatives_of_another_function_are_refused(cost, operation):
    with pytest.raises(
        ppl.StrategyError,
        match=rf"Site 'z': .*pathwise derivative and in part made of jumps.*{operation}.*ppl.Boundary\('reinforce'\)",
    ):
        ppl.expectation(cost).plan(0.3)


def test_kept_values_do_not_mind():
    cost = lambda p: stop(step(draw("z", p, strategy=KEPT) < p)) * 2.0
    assert ppl.expectation(cost).plan(0.3)["z: comparison 1"].strategy == "boundary"


def test_laws():
    class Normal(dist.Normal):  # of its density nothing is known
        pass

    for law in (dist.StudentT(3.0, 0.0, 1.0), Normal(0.0, 1.0)):
        cost = lambda p, law=law: ppl.sample("z", law, strategy="boundary") * p
        with pytest.raises(
            ppl.StrategyError, match="Site 'z': strategy 'boundary' needs a distribution function"
        ):
            ppl.expectation(cost).plan(0.3)


def test_base():
    for base in ("mvd", ppl.MVD(), "enum", "no such"):
        with pytest.raises(ValueError, match="Boundary: base must be one of"):
            ppl.Boundary(base)


def test_support_that_moves_under_a_score():
    cost = lambda p: ppl.sample("z", dist.Uniform(0.0, p), strategy=KEPT)
    with pytest.raises(
        ppl.StrategyError, match="Site 'z': the support of Uniform depends on a parameter"
    ):
        ppl.expectation(cost).plan(0.3)


def test_second_derivatives():
    expectation = ppl.expectation(ties, strategies="boundary")
    value = lambda m: expectation.value({"m": m, "t": 0.5, "u": 0.4}, jax.random.key(0))
    with pytest.raises(TypeError, match="differentiated again"):
        jax.hessian(value)(0.2)


def test_slope_zero_is_loud():
    cost = lambda p: step(z_of(p) * jnp.array([1.0, 0.0]) < 1.0).sum()
    assert jnp.isnan(ppl.expectation(cost).grad(0.3, jax.random.key(0)))


@pytest.mark.slow
def test_jumps_of_other_strategies_name_it():
    for strategy in ("reparam", "reinforce"):
        cost = lambda p, s=strategy: step(draw("z", p, strategy=s) < p**2)
        with pytest.raises(ValueError, match="Site 'z': .*use 'boundary'"):
            ppl.expectation(cost).plan(0.3)
    cost = lambda p: step(ppl.sample("z", dist.StudentT(3.0, p, 1.0)) < 0)
    with pytest.raises(ValueError) as error:
        ppl.expectation(cost).plan(0.3)
    assert "boundary" not in str(error.value)


def test_replays_are_bounded():
    cost = lambda p: step(z_of(p) < jnp.arange(70_000) * p).sum()
    with pytest.raises(
        ppl.StrategyError, match="Site 'z: comparison 1': strategy 'boundary' would replay 70000"
    ):
        ppl.expectation(cost).plan(0.3)


# Objectives.


@ppl.model
def model(x):
    z = ppl.sample("z", dist.Normal(0.0, 1.0))
    ppl.sample("x", dist.Normal(jnp.where(z < 0, 0.0, z), 1.0), obs=x)


@ppl.model
def guide(x):
    ppl.sample("z", dist.Normal(ppl.param("m", 0.2), 1.0))


@ppl.model
def model_of_two(x):
    z = ppl.sample("z", dist.Normal(0.0, 1.0))
    ppl.sample("w", dist.Normal(z, 1.0))


@ppl.model
def guide_of_two(x):
    """Detached, its threshold would stand still: the density at a fixed draw has no mean score."""
    m = ppl.param("m", 0.2)
    z = ppl.sample("z", dist.Normal(m, 1.0))
    ppl.sample("w", dist.Normal(jnp.where(z < m, 0.0, 1.0), 1.0))


def plan(objective):
    return objective.plan(objective.init(jax.random.key(0), 0.5), 0.5)


@pytest.mark.parametrize("gradient", ["dreg", "gdreg"])
def test_estimators_that_integrate_by_parts_refuse_it(gradient):
    """They move a score onto values across which the weights must not jump."""
    for strategy, message in ((KEPT, "passes through the values"), ("boundary", "made of jumps")):
        bound = inference.iwelbo(
            model, guide, num_particles=2, gradient=gradient, strategies={"z": strategy}
        )
        with pytest.raises(ValueError, match=f"'z'.*{message}"):
            plan(bound)


@pytest.mark.slow
def test_sticking_the_landing():
    """Fine where the guide has no threshold of its own, refused where it has."""
    assert plan(inference.elbo(model, guide, gradient="stl", strategies="boundary"))
    bound = inference.elbo(model_of_two, guide_of_two, gradient="stl", strategies={"z": "boundary"})
    with pytest.raises(ppl.StrategyError, match="Site 'z': the result jumps"):
        plan(bound)
    assert plan(inference.elbo(model_of_two, guide_of_two, strategies={"z": "boundary"}))


def test_particle_runs_refuse_it():
    def target():
        z = ppl.sample("z", dist.Normal(0.0, 1.0), infer={"strategy": "boundary"})
        ppl.sample("x", dist.Normal(z, 1.0), obs=jnp.float32(0.5))

    with pytest.raises(ValueError, match="Site 'z': smc draws it once.*'boundary'"):
        inference.smc(
            ppl.model(target), jax.random.key(0), num_particles=4, gradient="stop_gradient"
        )
