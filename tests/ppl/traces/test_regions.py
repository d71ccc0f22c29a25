"""Control flow inside programs: scan, cond and particles as part of the language."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from jax.scipy.stats import norm

from _stats import assert_unbiased
from lapilli import ppl

pytestmark = pytest.mark.one_in(2)

KEY = jax.random.key(0)
YS = jnp.array([0.3, -0.1, 0.4])
ZS = jnp.array([0.2, 0.1, 0.5])


def close(a, b, rtol=1e-5, atol=1e-5):
    np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


def step(z, y):
    z = ppl.sample("z", dist.Normal(0.9 * z, 1.0))
    ppl.sample("y", dist.Normal(z, 0.5), obs=y)
    ppl.factor("potential", -0.1 * z**2)
    ppl.deterministic("double", 2 * z)
    return z, z + 1


@ppl.model
def walk(ys):
    start = ppl.sample("start", dist.Normal(0.0, 1.0))
    return ppl.scan(step, start, ys)


@ppl.model
def unrolled(ys):
    z = ppl.sample("start", dist.Normal(0.0, 1.0))
    for t in range(len(ys)):
        z = ppl.sample(f"z{t}", dist.Normal(0.9 * z, 1.0))
        ppl.sample(f"y{t}", dist.Normal(z, 0.5), obs=ys[t])
        ppl.factor(f"potential{t}", -0.1 * z**2)
    return z


# Scan.


def test_a_scan_equals_the_unrolled_loop():
    def scanned(start, zs, ys):
        return walk.log_density({"start": start, "z": zs}, ys)

    def looped(start, zs, ys):
        return unrolled.log_density({"start": start} | {f"z{t}": zs[t] for t in range(3)}, ys)

    args = (jnp.asarray(0.3), ZS, YS)
    one, two = (jax.value_and_grad(f, (0, 1, 2))(*args) for f in (scanned, looped))
    jax.tree.map(close, one, two)


def test_sites_of_a_scan_keep_their_names_and_get_a_time_axis():
    trace = walk.trace({"start": 0.3, "z": ZS}, YS)
    assert list(trace.sites) == ["start", "z", "y", "potential", "double"]
    assert trace.sites["z"].dims == ("time",) and trace.sites["y"].dims == ("time",)
    assert {n: x.shape for n, x in trace.log_probs.items()} == {
        "start": (), "z": (3,), "y": (3,), "potential": (3,),
    }  # fmt: skip
    close(trace.observed["y"], YS)
    close(trace.deterministic["double"], 2 * ZS)
    close(trace.log_probs["potential"], -0.1 * ZS**2)
    carry, ys = trace.retval
    close(carry, ZS[-1])
    close(ys, ZS + 1)


def test_steps_draw_with_keys_of_their_own():
    trace = ppl.model(
        lambda: ppl.scan(lambda c, _: (c, ppl.sample("z", dist.Normal(0, 1))), 0.0, None, length=4)
    ).simulate(KEY)
    assert len(set(trace.choices["z"].tolist())) == 4
    close(trace.retval[1], trace.choices["z"])


def test_two_scans_draw_with_keys_of_their_own():
    @ppl.model
    def program():
        for name in ("a", "b"):
            body = lambda c, _, name=name: (c, ppl.sample(name, dist.Normal(0, 1)))
            ppl.scan(body, 0.0, None, length=2)

    choices = program.simulate(KEY).choices
    assert not np.allclose(choices["a"], choices["b"])


def test_a_simulated_scan_scores_its_own_draws():
    trace = walk.simulate(KEY, YS)
    close(trace.log_density, walk.log_density(trace.choices, YS))


def test_xs_may_be_any_pytree_and_events_may_have_axes():
    @ppl.model
    def program(xs):
        def body(c, x):
            v = ppl.sample("v", dist.MultivariateNormal(x["loc"], jnp.eye(2)))
            return c + v.sum(), {"v": v}

        return ppl.scan(body, 0.0, xs)

    trace = program.simulate(KEY, {"loc": jnp.zeros((3, 2))})
    assert trace.choices["v"].shape == (3, 2) and trace.log_probs["v"].shape == (3,)
    assert trace.sites["v"].event_shape == (2,) and trace.sites["v"].dims == ("time",)
    close(trace.retval[0], trace.choices["v"].sum())
    assert trace.retval[1]["v"].shape == (3, 2)


@pytest.mark.parametrize("length", [0, 1])
def test_edge_lengths(length):
    trace = walk.simulate(KEY, jnp.zeros(length))
    assert trace.choices["z"].shape == (length,)
    close(trace.log_density, walk.log_density(trace.choices, jnp.zeros(length)))


@pytest.mark.parametrize(
    ("xs", "length"),
    [(None, None), (jnp.zeros(3), 4), ({"a": jnp.zeros(3), "b": jnp.zeros(2)}, None), (1.0, None)],
    ids=["unknown", "contradiction", "ragged", "scalar"],
)
def test_an_unclear_number_of_steps_is_refused(xs, length):
    program = ppl.model(lambda: ppl.scan(lambda c, x: (c, None), 0.0, xs, length))
    with pytest.raises(ValueError, match="ppl.scan.*one number of steps"):
        program.simulate(KEY)


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda: ppl.scan("time", lambda c, x: (c, None), 0.0, 3), r"scan\(step, init, xs\): argument 'step' is 'time'"),
        (lambda: ppl.scan(lambda c, x: (c, None), 0.0, None, 3.0), "ppl.scan: argument 'length' is of type float"),
        (lambda: ppl.scan(lambda c, x: (c, None), 0.0, None, jnp.array(3)), "'length' is of type ArrayImpl"),
        (lambda: ppl.cond("branch", True, lambda: 1.0, lambda: 2.0), "ppl.cond.*'true_fn' is True, which is no function"),
        (lambda: ppl.cond(True, lambda: 1.0, 2.0), "ppl.cond.*'false_fn' is 2.0, which is no function"),
    ],
    ids=["scan", "float", "array", "true", "false"],
)  # fmt: skip
def test_arguments_of_another_kind_are_refused(call, said):
    with pytest.raises(TypeError, match=said):
        call()
    with pytest.raises(TypeError, match=said):
        ppl.model(call).simulate(KEY)


@ppl.model
def nested(xs):
    """Data of shape (2, 3): a scan over rows of a scan over columns."""

    def outer(total, row):
        w = ppl.sample("w", dist.Normal(total, 1.0))

        def inner(total, x):
            z = ppl.sample("z", dist.Normal(w, 1.0))
            ppl.sample("x", dist.Normal(z, 1.0), obs=x)
            return total + z, None

        return ppl.scan(inner, total, row)

    return ppl.scan(outer, 0.0, xs)[0]


def test_scans_nest():
    xs = jnp.arange(6.0).reshape(2, 3) / 5
    trace = nested.simulate(KEY, xs)
    w, z = trace.choices["w"], trace.choices["z"]
    assert w.shape == (2,) and z.shape == (2, 3) and trace.sites["z"].dims == ("time", "time_1")
    assert len(set(z.ravel().tolist())) == 6
    totals = jnp.array([0.0, z[0].sum()])
    exact = norm.logpdf(w, totals).sum() + norm.logpdf(z, w[:, None]).sum()
    close(trace.log_density, exact + norm.logpdf(xs, z).sum())
    close(trace.log_density, nested.log_density(trace.choices, xs))


def test_a_plate_around_a_scan_acts_inside_the_step():
    @ppl.model
    def program(xs):
        with ppl.plate("rows", 4, subsample_size=2) as rows:
            return ppl.scan(step, jnp.zeros(2), xs[:, rows])

    xs = jnp.arange(12.0).reshape(3, 4) / 5
    trace = program.simulate(KEY, xs)
    z = trace.choices["z"]
    assert z.shape == (3, 2) and trace.sites["z"].dims == ("time", "rows")
    previous = jnp.concatenate([jnp.zeros((1, 2)), z[:-1]])
    close(trace.log_probs["z"], 2 * norm.logpdf(z, 0.9 * previous))
    assert trace.sites["z"].scale == 2.0 and len(set(z.ravel().tolist())) == 6


def test_a_plate_inside_a_step_is_the_same_subsample_in_every_step():
    @ppl.model
    def program():
        def body(c, _):
            with ppl.plate("rows", 6, subsample_size=3) as rows:
                z = ppl.sample("z", dist.Normal(0.0, 1.0))
            return c + z.sum(), rows

        return ppl.scan(body, 0.0, None, length=2)[1]

    trace = program.simulate(KEY)
    assert trace.choices["z"].shape == (2, 3) and trace.sites["z"].dims == ("time", "rows")
    np.testing.assert_array_equal(trace.retval[0], trace.retval[1])
    close(trace.log_density, 2 * norm.logpdf(trace.choices["z"]).sum())


# A hidden Markov model, against its forward pass.

INITIAL, READINGS = jnp.array([0.6, 0.4]), jnp.array([0.2, 1.5, 0.9])
TRANSITION, MEANS = jnp.array([[0.8, 0.2], [0.3, 0.7]]), jnp.array([0.0, 1.0])


@ppl.model
def hmm(readings):
    def body(probs, y):
        k = ppl.sample("k", dist.Categorical(probs))
        ppl.sample("y", dist.Normal(MEANS[k], 1.0), obs=y)
        return TRANSITION[k], None

    ppl.scan(body, INITIAL, readings)


def forward(readings):
    """Evidence p(readings), and the same with the first state fixed to 1."""
    out = []
    for initial in (INITIAL, INITIAL * jnp.array([0.0, 1.0])):
        alpha = initial
        for i, y in enumerate(readings):
            alpha = (alpha if i == 0 else alpha @ TRANSITION) * jnp.exp(norm.logpdf(y, MEANS, 1.0))
        out.append(alpha.sum())
    return out


def test_all_paths_of_a_hidden_markov_model_sum_to_the_evidence():
    paths = jnp.array(list(itertools.product([0, 1], repeat=3)))
    densities = jax.jit(jax.vmap(lambda k: hmm.log_density({"k": k}, READINGS)))(paths)
    close(jnp.exp(densities).sum(), forward(READINGS)[0])


def test_weights_of_generate_average_to_the_evidence_of_a_scan(seed):
    # Weights lie in (0, 0.07); a wrong transition shifts the mean by several %, > 10 errors.
    weigh = jax.jit(jax.vmap(lambda k: jnp.exp(hmm.generate(k, {}, READINGS)[1])))
    assert_unbiased(weigh(jax.random.split(seed, 10_000)), forward(READINGS)[0])


# Cond.


@ppl.model
def branches(flag):
    """Equal site "z" and a site of its own in each branch."""

    def yes(shift):
        z = ppl.sample("z", dist.Normal(shift, 1.0))
        a = ppl.sample("a", dist.Exponential(2.0))
        return z + a

    def no(shift):
        z = ppl.sample("z", dist.Normal(-shift, 3.0))
        ppl.sample("x", dist.Normal(z, 1.0), obs=0.5)
        ppl.factor("f", -1.0)
        return z

    return ppl.cond(flag, yes, no, 1.0)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_only_the_branch_taken_counts(wrap):
    def run(flag, z, a):
        trace = branches.trace({"z": z, "a": a}, flag)
        return trace.log_density, trace.retval, trace.log_probs

    density, retval, log_probs = wrap(run)(True, 0.3, 0.7)
    close(density, norm.logpdf(0.3, 1.0, 1.0) + jnp.log(2.0) - 1.4)
    close(retval, 1.0)
    close((log_probs["x"], log_probs["f"]), (0.0, 0.0))
    density, retval, log_probs = wrap(run)(False, 0.3, 0.7)
    close(density, norm.logpdf(0.3, -1.0, 3.0) + norm.logpdf(0.5, 0.3) - 1.0)
    close(retval, 0.3)
    close(log_probs["a"], 0.0)


@pytest.mark.slow
def test_cond_under_vmap_and_grad_equals_the_loop():
    run = lambda flag, z: branches.log_density({"z": z, "a": 0.7}, flag)
    flags, zs = jnp.array([True, False, True]), jnp.array([0.1, 0.2, 0.3])
    many = jax.vmap(jax.value_and_grad(run, 1))(flags, zs)
    for i in range(3):
        one = jax.value_and_grad(run, 1)(flags[i], zs[i])
        close((many[0][i], many[1][i]), one)


def test_sites_of_the_branch_not_taken_hold_zeros():
    yes, no = (branches.simulate(KEY, flag) for flag in (True, False))
    assert set(yes.choices) == set(no.choices) == {"z", "a"}
    close(no.choices["a"], 0.0)
    assert yes.choices["a"] > 0
    for flag, trace in ((True, yes), (False, no)):
        close(trace.log_density, branches.log_density(trace.choices, flag))
    assert jax.tree.structure(yes) == jax.tree.structure(no)


def test_the_value_of_an_absent_site_does_not_matter():
    """Its branch is not taken, so nothing there is read, not even its support."""
    close(branches.log_density({"z": 0.3, "a": -5.0}, False),
          branches.log_density({"z": 0.3, "a": 0.5}, False))  # fmt: skip
    assert jax.jit(branches.log_density)({"z": 0.3, "a": -5.0}, True) == -jnp.inf


def test_cond_on_a_latent_site_averages_to_the_evidence(seed):
    @ppl.model
    def program():
        b = ppl.sample("b", dist.Bernoulli(0.3))
        loc = ppl.cond(
            b == 1,
            lambda: 2.0 * ppl.sample("c", dist.Bernoulli(0.6)),
            lambda: ppl.sample("d", dist.Categorical(jnp.array([0.5, 0.25, 0.25]))) * 1.0,
        )
        ppl.sample("x", dist.Normal(loc, 1.0), obs=1.0)

    p = lambda x: jnp.exp(norm.logpdf(1.0, x))
    exact = 0.3 * (0.6 * p(2.0) + 0.4 * p(0.0))
    exact += 0.7 * (0.5 * p(0.0) + 0.25 * p(1.0) + 0.25 * p(2.0))
    # Weights lie in (0.24, 0.4), sd 0.07: a swapped branch shifts the mean by 0.01 = 14 errors.
    weigh = jax.jit(jax.vmap(lambda k: jnp.exp(program.generate(k, {})[1])))
    assert_unbiased(weigh(jax.random.split(seed, 10_000)), exact)


def test_cond_inside_scan_and_scan_inside_cond():
    @ppl.model
    def program(ys):
        def body(c, y):
            z = ppl.cond(
                y > 0,
                lambda c: ppl.sample("z", dist.Normal(c, 1.0)),
                lambda c: ppl.sample("w", dist.Normal(c, 2.0)),
                c,
            )
            return z, z

        long = lambda: ppl.scan(body, 0.0, ys)[1].sum()
        return ppl.cond(ys.sum() > 0, long, lambda: 1.0)

    trace = program.simulate(KEY, YS)
    z, w = trace.choices["z"], trace.choices["w"]
    assert z.shape == w.shape == (3,) and trace.sites["z"].dims == ("time",)
    close((z[1], w[0], w[2]), (0.0, 0.0, 0.0))
    exact = norm.logpdf(z[0]) + norm.logpdf(w[1], z[0], 2.0) + norm.logpdf(z[2], w[1])
    close(trace.log_density, exact)
    close(program.simulate(KEY, -YS).retval, 1.0)
    close(program.simulate(KEY, -YS).log_density, 0.0)


def test_a_plate_around_cond_acts_inside_the_branches():
    @ppl.model
    def program(flag):
        with ppl.plate("rows", 4, subsample_size=2):
            yes = lambda: ppl.sample("z", dist.Normal(0.0, 1.0))
            return ppl.cond(flag, yes, lambda: jnp.zeros(2))

    trace = program.simulate(KEY, True)
    assert trace.choices["z"].shape == (2,) and trace.sites["z"].dims == ("rows",)
    close(trace.log_density, 2 * norm.logpdf(trace.choices["z"]).sum())


def test_a_site_in_one_branch_with_another_shape_in_the_other_is_refused_by_name():
    @ppl.model
    def program(flag):
        yes = lambda: ppl.sample("z", dist.Normal(0.0, 1.0))
        no = lambda: ppl.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1)).sum()
        return ppl.cond(flag, yes, no)

    with pytest.raises((ValueError, TypeError), match="'z'"):
        program.simulate(KEY, True)


@pytest.mark.parametrize("shape", [(1,), (3,)])
def test_a_batched_predicate_is_refused(shape):
    with pytest.raises(ValueError, match=r"ppl.cond: the predicate has shape \(\d,\).*jnp.where"):
        branches.simulate(KEY, jnp.ones(shape, bool))


# Particles.


def lane(scale):
    z = ppl.sample("z", dist.Normal(0.0, scale))
    with ppl.plate("rows", 2):
        ppl.sample("x", dist.Normal(z, 1.0), obs=jnp.array([0.1, 0.2]))
    return z


@ppl.model
def population(scale=2.0):
    return ppl.particles(3)(lane)(scale)


def test_particles_are_independent_runs_with_a_leading_axis():
    trace = population.simulate(KEY)
    z = trace.choices["z"]
    assert z.shape == (3,) and len(set(z.tolist())) == 3
    close(trace.retval, z)
    assert trace.sites["z"].dims == ("particles",)
    assert trace.sites["x"].dims == ("particles", "rows")
    assert trace.log_probs["x"].shape == (3, 2)
    close(trace.log_probs["z"], norm.logpdf(z, 0.0, 2.0))
    close(trace.log_density, population.log_density(trace.choices))
    exact = norm.logpdf(z, 0.0, 2.0).sum() + norm.logpdf(jnp.array([0.1, 0.2]), z[:, None]).sum()
    close(trace.log_density, exact)


def test_particles_weigh_and_take_constraints():
    z = jnp.array([0.1, 0.2, 0.3])
    trace, weight = population.generate(KEY, {"z": z})
    close(trace.choices["z"], z)
    close(weight, population.log_density({"z": z}))


def test_particles_have_the_prior_as_their_law(seed):
    draw = jax.jit(jax.vmap(lambda k: population.simulate(k).choices["z"]))
    z = draw(jax.random.split(seed, 10_000))
    # Correlation of 0.15 between lanes, or a scale of 1.9, is over 7 standard errors.
    assert_unbiased(z, np.zeros(3))
    assert_unbiased(z**2, np.full(3, 4.0))
    assert_unbiased(z * jnp.roll(z, 1, axis=1), np.zeros(3))


@pytest.mark.slow
def test_particles_nest_with_themselves_and_with_scan():
    @ppl.model
    def program():
        def inner():
            return ppl.scan(
                lambda c, _: (ppl.sample("z", dist.Normal(c, 1.0)), None), 0.0, None, length=4
            )[0]

        return ppl.particles(2)(lambda: ppl.particles(3)(inner)())()

    trace = program.simulate(KEY)
    z = trace.choices["z"]
    assert z.shape == (2, 3, 4) and trace.retval.shape == (2, 3)
    assert trace.sites["z"].dims == ("particles", "particles_1", "time")
    assert len(set(z.ravel().tolist())) == 24
    previous = jnp.concatenate([jnp.zeros((2, 3, 1)), z[..., :-1]], -1)
    close(trace.log_probs["z"], norm.logpdf(z, previous))
    close(trace.log_density, program.log_density(trace.choices))


def test_particles_inside_a_scan_step():
    @ppl.model
    def program():
        def body(c, _):
            z = ppl.particles(3)(lambda c: ppl.sample("z", dist.Normal(c, 1.0)))(c)
            return z.mean(), z

        return ppl.scan(body, 0.0, None, length=2)[1]

    trace = program.simulate(KEY)
    assert trace.choices["z"].shape == (2, 3) and trace.sites["z"].dims == ("time", "particles")
    close(trace.retval, trace.choices["z"])
    close(trace.log_density, program.log_density(trace.choices))


def test_a_plate_around_particles_acts_in_every_lane():
    @ppl.model
    def program():
        with ppl.plate("rows", 2):
            return ppl.particles(3)(lambda: ppl.sample("z", dist.Normal(0.0, 1.0)))()

    trace = program.simulate(KEY)
    assert trace.choices["z"].shape == (3, 2) and trace.sites["z"].dims == ("particles", "rows")


def test_one_particle_keeps_its_axis():
    program = ppl.model(lambda: ppl.particles(1)(lane)(1.0))
    assert program.simulate(KEY).choices["z"].shape == (1,)


@pytest.mark.parametrize("number", [0, -1, 2.0, None])
def test_a_wrong_number_of_particles_is_refused(number):
    with pytest.raises(ValueError, match="ppl.particles: the number of particles.*integer >= 1"):
        ppl.particles(number)


def test_particles_used_as_a_context_are_refused():
    with pytest.raises(TypeError, match=r"ppl.particles\(K\)\(fn\)"):
        with ppl.particles(3):
            pass


def test_particles_without_a_running_program_are_refused():
    with pytest.raises(RuntimeError, match=r"ppl.particles\(K\) runs inside"):
        ppl.particles(3)(lane)(1.0)


def test_regions_without_a_program_are_jaxs_own():
    """Without sites and handlers `scan` and `cond` are lax.scan and lax.cond."""
    carry, ys = ppl.scan(lambda c, x: (c + x, c), 0.0, jnp.arange(3.0))
    close(carry, 3.0)
    close(ys, [0.0, 0.0, 1.0])
    close(ppl.cond(True, lambda x: x, lambda x: -x, 2.0), 2.0)


@pytest.mark.slow_for("expectation-scan")
@pytest.mark.parametrize("region", ["scan", "cond", "particles"])
@pytest.mark.parametrize("run", ["simulate", "expectation"])
def test_no_tracer_leaks(region, run):
    """What a region recorded leaves it as arrays only (numpyro issues 1998 and 1981)."""

    @ppl.model
    def program():
        site = lambda: ppl.param("m", 0.5) * ppl.sample("z", dist.Normal(0.0, 1.0))
        if region == "scan":
            return ppl.scan(lambda c, _: (c + site(), None), 0.0, None, length=2)[0]
        if region == "cond":
            return ppl.cond(True, site, lambda: 1.0)
        return ppl.particles(2)(site)().sum()

    expectation = ppl.expectation(lambda p: ppl.draw(program.bind(p)).retval)
    runs = {
        "simulate": lambda: program.simulate(KEY),
        "expectation": lambda: expectation.value_and_grad({"m": 0.5}, KEY),
    }
    with jax.checking_leaks():
        runs[run]()


@pytest.mark.slow
def test_regions_compile_once_for_one_shape():
    count = 0

    @jax.jit
    def run(key, ys):
        nonlocal count
        count += 1
        return walk.simulate(key, ys).log_density, branches.simulate(key, ys[0] > 0).log_density

    for i in range(3):
        run(jax.random.key(i), YS + i)
    assert count == 1


# One name in both branches.

BOTH = {
    "values": (dist.DiscreteUniform(0, 2), dist.DiscreteUniform(5, 7), "enum", r"values \[.*sums over one set of values"),
    "number of values": (dist.Categorical(jnp.ones(2) / 2), dist.Categorical(jnp.ones(3) / 3), "enum", "CategoricalProbs"),
    "class": (dist.Normal(0.0, 1.0), dist.HalfNormal(1.0), "reparam", "as .*Normal.*HalfNormal|as HalfNormal.*Normal"),
    "event shape": (dist.Normal(0.0, 1.0), dist.Normal(jnp.zeros(2), 1.0).to_event(1), "reparam", "event_shape"),
    "dtype": (dist.Normal(0.0, 1.0), dist.Poisson(1.0), "reinforce", "with numbers|as "),
}  # fmt: skip


@pytest.mark.parametrize("wrap", ["eager", "jit", "inside"])
@pytest.mark.parametrize("case", BOTH)
def test_a_name_with_two_meanings_in_the_branches_is_refused(case, wrap):
    one, other, strategy, words = BOTH[case]

    def program(t):
        a = ppl.sample("a", dist.Bernoulli(logits=t), strategy="enum")
        take = lambda law: lambda: 1.0 * jnp.sum(ppl.sample("k", law))
        return t * ppl.cond(a == 1, take(one), take(other))

    def inside(t):
        return ppl.draw(ppl.as_program(program), t).retval

    objective = ppl.expectation(inside if wrap == "inside" else program, strategies={"k": strategy})
    with pytest.raises(ValueError, match=f"Site 'k' stands in both branches.*{words}.*two names"):
        (jax.jit(objective.grad) if wrap == "jit" else objective.grad)(0.3, KEY)


def test_a_name_in_other_regions_of_the_branches_is_refused():
    @ppl.model
    def program(flag):
        site = lambda: ppl.sample("x", dist.Normal(0.0, 1.0))
        ppl.cond(flag, site, lambda: ppl.cond(flag, site, lambda: jnp.zeros(())))

    words = "within (cond of size 1 and within no other region|no other region and within cond)"
    with pytest.raises(ValueError, match=f"Site 'x' stands in both branches.*{words}"):
        program.simulate(KEY, True)


def test_a_name_observed_in_one_branch_only_is_refused():
    @ppl.model
    def program(flag):
        law = dist.Normal(0.0, 1.0)
        see = lambda: ppl.sample("x", law, obs=jnp.array(1.0))
        return ppl.cond(flag, see, lambda: ppl.sample("x", law))

    with pytest.raises(ValueError, match="'x' stands in both branches.*kind '.*observed|latent"):
        program.simulate(KEY, True)


def test_a_name_with_its_values_in_both_branches_is_summed():
    """E[t k] with k uniform on {0, 1, 2} if a else Binomial-like weights on the same values."""

    def cost(t):
        a = ppl.sample("a", dist.Bernoulli(logits=t), strategy="enum")
        law = lambda p: dist.Categorical(jnp.array(p))
        take = lambda p: lambda: ppl.sample("k", law(p), strategy="enum")
        return t * ppl.cond(a == 1, take([0.2, 0.3, 0.5]), take([0.6, 0.3, 0.1]))

    exact = lambda t: t * (jax.nn.sigmoid(t) * 1.3 + jax.nn.sigmoid(-t) * 0.5)
    value, grad = ppl.expectation(cost).value_and_grad(0.3, KEY)
    close([value, grad], jax.value_and_grad(exact)(0.3))


def test_unconstrained_coordinates_of_a_name_with_two_supports_are_refused():
    from lapilli.inference._supports import transforms_of

    @ppl.model
    def program():
        a = ppl.sample("a", dist.Normal(0.0, 1.0))
        take = lambda law: lambda: ppl.sample("z", law)
        return ppl.cond(a > 0, take(dist.Normal(0.0, 1.0)), take(dist.HalfNormal(1.0)))

    with pytest.raises(ValueError, match="Site 'z' has the support .* in one branch.*two names"):
        transforms_of("test", program, (), {"z": jnp.zeros(())})
