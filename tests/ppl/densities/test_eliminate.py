"""Discrete sites summed out of a program: densities, posteriors, modes and draws against brute force (`_brute_force.py`).

Chains are compared with a forward recursion in NumPy and with funsor's sum-product as well.
"""

import itertools
from typing import Any

import funsor
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from _brute_force import check
from funsor.sum_product import naive_sequential_sum_product
from numpyro.handlers import seed, trace
from numpyro.infer import MCMC, NUTS, Predictive
from numpyro.infer.util import log_density

from lapilli import inference, ppl

funsor.set_backend("jax")
KEY = jax.random.key(0)
X = jnp.array([0.9, -0.2, 1.4])
sigmoid = jax.nn.sigmoid


def mixture(x, scale=1.0):
    p = ppl.sample("p", dist.Beta(2.0, 3.0))
    with ppl.plate("rows", x.shape[0]):
        b = ppl.sample("b", dist.Bernoulli(p))
        ppl.sample("x", dist.Normal(2.0 * b, scale), obs=x)


@pytest.mark.slow
def test_a_mixture_is_summed_row_by_row():
    eliminated, _ = check(mixture, ["b"], {"p": jnp.array(0.3)}, (X,), num_draws=20_000)
    trace = eliminated.trace({"p": 0.3}, jnp.zeros(1000))  # 2 lanes, not 2^1000
    assert trace.log_probs["eliminate[b]"].shape == (1000,)
    assert trace.sites["eliminate[b]"].dims == ("rows",)


def switching(x):
    """Chain with a memory of one step that switches the mean of kept continuous states, and moves discrete emissions."""
    w = ppl.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))

    def step(carry, x):
        c, v = carry
        c = ppl.sample("c", dist.CategoricalLogits(jnp.arange(3.0) * w[c]))
        v = ppl.sample("v", dist.Normal(0.8 * v + w[c], 0.7))
        ppl.sample("x", dist.Normal(v * (1 + c), 1.0), obs=x)
        return (c, v), None

    ppl.scan(step, (0, 0.0), x)


@pytest.mark.slow
def test_a_switching_chain_with_continuous_states_is_exact():
    kept = {"w": jnp.array([0.4, -0.3, 0.9]), "v": jnp.array([0.1, 0.5, -0.2])}
    check(switching, ["c"], kept, (X,), num_draws=20_000)


def emissions(x):
    """A chain, enumerated emissions given it in a plate inside the step, and a site above all."""
    b0 = ppl.sample("b_top", dist.Bernoulli(0.3))

    def step(b, x):
        b = ppl.sample("b", dist.Bernoulli(sigmoid(1.5 * b - 0.5 + b0)))
        with ppl.plate("rows", 2):
            c = ppl.sample("c", dist.CategoricalLogits(jnp.arange(3.0) * (b - 0.37)))
            ppl.sample("x", dist.Normal(c * 1.0, 1.0), obs=x + jnp.array([0.0, 0.5]))
        return b, None

    ppl.scan(step, b0, x)


def memory_of_two(x):
    def step(carry, x):
        b, older = carry
        new = ppl.sample("b", dist.Bernoulli(sigmoid(1.5 * b - 0.7 * older)))
        ppl.sample("x", dist.Normal(1.0 * new - b, 1.0), obs=x)
        return (new, b), None

    ppl.scan(step, (0, 1), jnp.concatenate([x, x[:2]]))


def coupled(x):
    def step(carry, x):
        b, c = carry
        b = ppl.sample("b", dist.Bernoulli(sigmoid(1.5 * b - 0.7 * c)))
        c = ppl.sample("c", dist.CategoricalLogits(jnp.arange(3.0) * b - 0.3 * c))
        ppl.sample("x", dist.Normal(b - 0.5 * c, 1.0), obs=x)
        return (b, c), None

    ppl.scan(step, (0, 1), x)


def rows_of_chains(x):
    with ppl.plate("rows", 2):

        def step(b, x):
            b = ppl.sample("b", dist.Bernoulli(sigmoid(1.5 * b - 0.7)))
            ppl.sample("x", dist.Normal(1.0 * b, 1.0), obs=x + jnp.array([0.0, 1.0]))
            return b, None

        ppl.scan(step, jnp.zeros(2, int), x)


def crossed(x):
    """Rows and columns that meet in every cell: no order sums them one by one, so one side is enumerated jointly."""
    with ppl.plate("rows", 3, dim=-2):
        b = ppl.sample("b", dist.Bernoulli(0.3))
    with ppl.plate("columns", 2, dim=-1):
        c = ppl.sample("c", dist.CategoricalLogits(jnp.array([0.1, 0.5, -0.3])))
    with ppl.plate("rows", 3, dim=-2), ppl.plate("columns", 2, dim=-1):
        ppl.sample("x", dist.Normal(b + 0.7 * c, 1.0), obs=x[:, None] * jnp.array([1.0, 2.0]))


def joint_elements(x):
    b = ppl.sample("b", dist.Bernoulli(jnp.array([0.2, 0.5, 0.6])).to_event(1))
    with ppl.plate("rows", 3):
        c = ppl.sample("c", dist.CategoricalLogits(jnp.arange(3.0) * b.sum()))
        ppl.sample("x", dist.Normal(c + b[0], 1.0), obs=x)


def branches(x):
    b = ppl.sample("b", dist.Bernoulli(0.4))
    mean = ppl.cond(
        b == 1,
        lambda: 1.0 * ppl.sample("b_in", dist.Bernoulli(0.7)),
        lambda: 2.0 * ppl.sample("c_in", dist.CategoricalLogits(jnp.array([0.1, 0.5, -0.3]))),
    )
    ppl.sample("x", dist.Normal(mean, 1.0).expand([3]).to_event(1), obs=x)


STRUCTURES = {
    "emissions": (emissions, ["b_top", "b", "c"]),
    "memory of two": (memory_of_two, ["b"]),
    "coupled": (coupled, ["b", "c"]),
    "rows of chains": (rows_of_chains, ["b"]),
    "crossed": (crossed, ["b", "c"]),
    "joint elements": (joint_elements, ["b", "c"]),
}


@pytest.mark.fast("rows of chains")
@pytest.mark.parametrize("name", STRUCTURES)
def test_plates_and_chains_in_every_arrangement_agree_with_brute_force(name):
    program, names = STRUCTURES[name]
    args = (X[:2] if program is emissions else X,)
    check(program, names, {}, args, num_draws=20_000)


@pytest.mark.slow
def test_sites_of_a_branch_are_summed():
    """A site of the branch not taken counts once, whatever its value: compare the density alone."""
    total = jnp.array(
        [
            jnp.log(p) + dist.Normal(mean, 1.0).log_prob(X).sum()
            for p, mean in [
                (0.4 * 0.3, 0.0),
                (0.4 * 0.7, 1.0),
                *zip(
                    0.6 * jax.nn.softmax(jnp.array([0.1, 0.5, -0.3])), (0.0, 2.0, 4.0), strict=True
                ),
            ]
        ]
    )
    got = ppl.eliminate(branches, ["b", "b_in", "c_in"]).log_density({}, X)
    np.testing.assert_allclose(got, jax.nn.logsumexp(total), rtol=1e-5)


# Chains.


def hmm(x, size=8):
    trans = ppl.param("trans", lambda key: jax.random.normal(key, (size, size)))
    means = ppl.param("means", lambda key: jax.random.normal(key, (size,)))

    def step(z, x):
        z = ppl.sample("z", dist.CategoricalLogits(trans[z]))
        ppl.sample("x", dist.Normal(means[z], 1.0), obs=x)
        return z, None

    ppl.scan(step, 0, x)


def tables(params, x):
    """Log transition matrix and log likelihoods in float64."""
    logits = np.asarray(params["trans"], float)
    log_w = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    x = np.asarray(x, float)
    log_x = -0.5 * (x[:, None] - np.asarray(params["means"], float)) ** 2 - 0.5 * np.log(2 * np.pi)
    return log_w, log_x


def test_the_likelihood_of_a_long_chain_agrees_with_the_forward_algorithm():
    x = jax.random.normal(jax.random.key(1), (200,))
    params = ppl.model(hmm).init(KEY, x)
    run = jax.jit(jax.value_and_grad(lambda p: ppl.eliminate(hmm, "z").bind(p).log_density({}, x)))

    def by_hand(params):
        log_w, log_x = tables(params, x)
        alpha = log_w[0] + log_x[0]
        for row in log_x[1:]:
            alpha = np.logaddexp.reduce(alpha[:, None] + log_w, 0) + row
        return np.logaddexp.reduce(alpha)

    value, grads = run(params)
    np.testing.assert_allclose(value, by_hand(params), rtol=1e-5)
    for name, index in (("trans", (2, 3)), ("trans", (7, 0)), ("means", (4,))):
        h = np.zeros(params[name].shape)
        h[index] = 1e-5
        up, down = ({**params, name: np.asarray(params[name], float) + s * h} for s in (1, -1))
        want = (by_hand(up) - by_hand(down)) / 2e-5
        np.testing.assert_allclose(grads[name][index], want, rtol=2e-4, atol=2e-4)


@pytest.mark.slow
def test_the_mode_of_a_long_chain_is_viterbi_and_the_marginals_are_smoothed():
    x = jax.random.normal(jax.random.key(1), (60,))
    params = ppl.model(hmm).init(KEY, x)
    bound = ppl.eliminate(hmm, "z").bind(params)
    log_w, log_x = tables(params, x)
    best, back = log_w[0] + log_x[0], []
    for row in log_x[1:]:
        scores = best[:, None] + log_w
        back.append(scores.argmax(0))
        best = scores.max(0) + row
    path = [int(best.argmax())]
    for pointers in back[::-1]:
        path.append(int(pointers[path[-1]]))
    found, highest = jax.jit(lambda: bound.mode({}, x))()
    assert found["z"].tolist() == path[::-1]
    np.testing.assert_allclose(highest, best.max(), rtol=1e-5)
    forward, backward = [log_w[0] + log_x[0]], [np.zeros(8)]
    for row in log_x[1:]:
        forward.append(np.logaddexp.reduce(forward[-1][:, None] + log_w, 0) + row)
    for row in log_x[:0:-1]:
        backward.append(np.logaddexp.reduce(log_w + row + backward[-1], 1))
    both = np.array(forward) + np.array(backward[::-1])
    want = np.exp(both - np.logaddexp.reduce(both, 1)[:, None])
    probs = jax.jit(lambda: bound.posterior_probs({}, x))()["z"]
    np.testing.assert_allclose(probs, want, atol=2e-5)


@pytest.mark.slow
def test_a_chain_agrees_with_the_sum_product_of_funsor():
    x = jax.random.normal(jax.random.key(1), (12,))
    params = ppl.model(hmm).init(KEY, x)
    log_w, log_x = tables(params, x)
    steps = jnp.asarray(log_w[None] + log_x[:, None], jnp.float32)
    steps = steps.at[0].set(jnp.where(jnp.arange(8)[:, None] == 0, steps[0], -jnp.inf))
    names = {"time": funsor.Bint[12], "prev": funsor.Bint[8], "curr": funsor.Bint[8]}
    total = naive_sequential_sum_product(
        funsor.ops.logaddexp, funsor.ops.add, funsor.Tensor(steps, names), funsor.Variable("time", funsor.Bint[12]),
        {"prev": "curr"},
    )  # fmt: skip
    want: Any = total.reduce(funsor.ops.logaddexp)
    got = ppl.eliminate(hmm, "z").bind(params).log_density({}, x)
    np.testing.assert_allclose(got, want.data, rtol=1e-5)


def test_the_size_of_a_chain_program_does_not_depend_on_its_length():
    def size(length):
        x = jnp.zeros(length)
        params = ppl.model(hmm).init(KEY, x)
        run = lambda p: ppl.eliminate(hmm, "z").bind(p).log_density({}, x)
        return len(str(jax.make_jaxpr(run)(params)))

    assert size(1000) < 1.02 * size(100)


@pytest.mark.slow
def test_twenty_sites_in_a_row_are_summed_one_by_one():
    def program():
        b = 0
        for i in range(20):
            b = ppl.sample(f"b{i}", dist.Bernoulli(sigmoid(1.5 * b - 0.2 * i + 1.0)))
            ppl.factor(f"f{i}", 0.3 * b * i)

    alpha = np.array([1.0, 0.0])
    for i in range(20):
        p = 1 / (1 + np.exp(-(1.5 * np.arange(2) - 0.2 * i + 1.0)))
        alpha = np.array([alpha @ (1 - p), alpha @ p * np.exp(0.3 * i)])
    eliminated = ppl.eliminate(program, [f"b{i}" for i in range(20)])
    np.testing.assert_allclose(eliminated.log_density({}), np.log(alpha.sum()), rtol=1e-5)


# In inference.


def guide(x, scale=1.0):
    a = ppl.param("a", 1.5, constraint=dist.constraints.positive)
    ppl.sample("p", dist.Beta(a, 3.0))


@pytest.mark.slow
def test_an_eliminated_model_serves_in_a_bound_and_its_gradient():
    """With the same draws, the bound of the eliminated model is log p(x, p) - log q(p), by hand."""
    objective = inference.elbo(ppl.eliminate(mixture, "b"), guide)
    params = objective.init(KEY, X)
    assert set(params) == {"a"}

    def by_hand(params):
        def fn(params):
            q = ppl.draw(ppl.model(guide).bind(params), X)
            p = q.choices["p"]
            rows = jnp.logaddexp(
                jnp.log1p(-p) + dist.Normal(0.0, 1.0).log_prob(X),
                jnp.log(p) + dist.Normal(2.0, 1.0).log_prob(X),
            )
            return dist.Beta(2.0, 3.0).log_prob(p) + rows.sum() - q.log_density

        return ppl.expectation(fn).value_and_grad(params, KEY)

    want, slope = by_hand(params)
    value, grads = objective.value_and_grad(params, KEY, X)
    np.testing.assert_allclose(value, want, rtol=1e-5)
    np.testing.assert_allclose(grads["a"], slope["a"], rtol=1e-4)


@pytest.mark.slow  # seconds of compilation
def test_minibatches_scale_the_sum_over_rows():
    eliminated = ppl.eliminate(mixture, "b")
    plain = eliminated.trace({"p": 0.3}, X)
    scaled = ppl.rescale_plates(eliminated, {"rows": 30}).trace({"p": 0.3}, X)
    np.testing.assert_allclose(
        scaled.log_probs["eliminate[b]"], 10 * plain.log_probs["eliminate[b]"], rtol=1e-6
    )
    np.testing.assert_allclose(scaled.log_probs["p"], plain.log_probs["p"])
    objective = inference.elbo(eliminated, guide).with_plate_sizes({"rows": 30})
    objective.plan(objective.init(KEY, X), X)


@pytest.mark.slow
def test_parameters_of_an_eliminated_model_are_learned():
    def model(x):
        logits = ppl.param("logits", jnp.zeros(2))
        with ppl.plate("rows", x.shape[0]):
            c = ppl.sample("c", dist.CategoricalLogits(logits))
            ppl.sample("x", dist.Normal(3.0 * c, 1.0), obs=x)

    x = jnp.array([0.0, 3.0, 3.0, 3.0])
    objective = inference.elbo(ppl.eliminate(model, "c"), lambda x: None)
    params = objective.init(KEY, x)
    assert set(params) == {"logits"}
    _, grads = objective.value_and_grad(params, KEY, x)
    probs = ppl.eliminate(model, "c").bind(params).posterior_probs({}, x)["c"]
    np.testing.assert_allclose(
        grads["logits"], (probs - 0.5).sum(0), atol=1e-5
    )  # Fisher's identity


def test_rows_stay_apart_in_an_importance_weighted_bound():
    def model(x):
        with ppl.plate("rows", x.shape[0]):
            v = ppl.sample("v", dist.Normal(0.0, 1.0))
            b = ppl.sample("b", dist.Bernoulli(sigmoid(v)))
            ppl.sample("x", dist.Normal(2.0 * b, 1.0), obs=x)

    def proposal(x):
        with ppl.plate("rows", x.shape[0]):
            ppl.sample("v", dist.Normal(0.3 * x, 1.0))

    objective = inference.iwelbo(
        ppl.eliminate(model, "b"), proposal, num_particles=200, per="plate"
    )
    keys = jax.random.split(KEY, 20)
    values = jax.jit(jax.vmap(lambda key: objective.value({}, key, X)))(keys)
    v = np.linspace(-8, 8, 4001)
    prior = np.exp(-0.5 * v**2) / np.sqrt(2 * np.pi) * (v[1] - v[0])
    rows = [
        (prior * (p * np.exp(-0.5 * (x - 2) ** 2) + (1 - p) * np.exp(-0.5 * x**2))).sum()
        for x in np.asarray(X)
        for p in [1 / (1 + np.exp(-v))]
    ]
    evidence = np.log(rows).sum() - 1.5 * np.log(2 * np.pi)
    # The bound's gap is of order 1 / 200 a row.
    assert -0.05 < values.mean() - evidence < 0.02


@pytest.mark.slow
def test_numpyro_sees_the_same_density():
    eliminated = ppl.eliminate(switching, "c")
    kept = {"w": jnp.array([0.4, -0.3, 0.9]), "v": jnp.array([0.1, 0.5, -0.2])}
    got, sites = log_density(eliminated, (X,), {}, kept)
    np.testing.assert_allclose(got, eliminated.log_density(kept, X), rtol=1e-6)
    assert "c" not in sites


@pytest.mark.slow  # MCMC
def test_nuts_samples_the_posterior_of_an_eliminated_model():
    x = jnp.array([0.1, 2.2, 1.9, 2.5, -0.3, 1.0])
    mcmc = MCMC(
        NUTS(ppl.eliminate(mixture, "b")), num_warmup=300, num_samples=4000, progress_bar=False
    )
    mcmc.run(jax.random.key(2), x)
    p = np.linspace(0.0, 1.0, 4003)[1:-1]
    density = p * (1 - p) ** 2
    for row in np.asarray(x):
        density *= p * np.exp(-0.5 * (row - 2) ** 2) + (1 - p) * np.exp(-0.5 * row**2)
    mean = (p * density).sum() / density.sum()
    draws = np.asarray(mcmc.get_samples()["p"])
    ess = numpyro.diagnostics.effective_sample_size(draws[None])
    assert abs(draws.mean() - mean) < 4.5 * draws.std() / np.sqrt(ess)


def test_prior_draws_under_numpyro_are_those_of_the_program():
    """Mean of Beta(2, 3) is 0.4, sd 0.2: standard error 0.0045."""
    draws = Predictive(ppl.eliminate(mixture, "b"), num_samples=2000)(jax.random.key(1), X)["p"]
    assert abs(draws.mean() - 0.4) < 4.5 * 0.0045


@pytest.mark.slow
def test_predictions_draw_the_eliminated_sites_from_their_posterior():
    eliminated = ppl.eliminate(mixture, "b")
    x = jnp.array([-5.0, 7.0])
    new = jax.vmap(lambda key: eliminated.predict(key, {"p": jnp.array(0.5)}, x)["x"])(
        jax.random.split(KEY, 2000)
    )
    # Rows of component 0 and 1 for certain: means 0 and 2, standard error 0.022.
    assert np.abs(np.asarray(new.mean(0)) - [0.0, 2.0]).max() < 0.1


@pytest.mark.slow
def test_draws_of_the_program_have_the_marginal_density():
    trace = ppl.eliminate(mixture, "b").simulate(KEY, X)
    assert set(trace.choices) == {"p"}
    np.testing.assert_allclose(
        trace.log_density, ppl.eliminate(mixture, "b").log_density(trace.choices, X), rtol=1e-6
    )
    fixed, weight = ppl.eliminate(mixture, "b").generate(KEY, {"p": 0.3}, X)
    np.testing.assert_allclose(weight, fixed.log_density)


def rows_alone(x):
    with ppl.plate("rows", x.shape[0]):
        b = ppl.sample("b", dist.Bernoulli(0.3))
        ppl.sample("x", dist.Normal(2.0 * b, 1.0), obs=x)


def test_transformations_act_on_the_program_inside():
    eliminated = ppl.eliminate(mixture, "b")
    given = ppl.condition(eliminated, {"p": 0.3})
    np.testing.assert_allclose(
        given.log_density({}, X), eliminated.log_density({"p": 0.3}, X), rtol=1e-6
    )
    keep = jnp.array([True, False, True])
    rows = ppl.eliminate(rows_alone, "b").trace({}, X).log_probs["eliminate[b]"]
    masked = ppl.mask(ppl.eliminate(rows_alone, "b"), keep).trace({}, X).log_probs["eliminate[b]"]
    np.testing.assert_allclose(masked, jnp.where(keep, rows, 0.0), atol=1e-6)


# Refusals.


def refuse(match, program, names: Any = "b", kept=None):
    with pytest.raises(ValueError, match=match):
        ppl.eliminate(program, names).log_density(kept or {})


def sites_that_meet(num_rows):
    def program():
        with ppl.plate("rows", num_rows):
            b = ppl.sample("b", dist.Bernoulli(0.3))
        ppl.sample("x", dist.Normal(jnp.tanh(b.sum()), 1.0), obs=0.3)

    return program


def carried():
    def step(total, _):
        b = ppl.sample("b", dist.Bernoulli(0.3))
        total = 0.5 * total + b
        ppl.factor("f", total**2)
        return total, None

    ppl.scan(step, 0.0, None, length=20)


def test_refusals_name_site_and_remedy():
    refuse(r"Site 'b'.*2\^20 states.*\(20,\).*reduce_sum.*keep the site", sites_that_meet(20))
    refuse(r"Site 'b'.*2\^20 states.*all earlier ones.*by step", carried)
    refuse(r"\['k'\] are no latent sites.*are \['b'\]", sites_that_meet(2), "k")
    refuse(
        r"Site 'z'.*finite support, but this one is Laplace",
        lambda: ppl.sample("z", dist.Laplace()),
        "z",
    )
    refuse(r"missing \['p'\]", lambda: mixture(X))
    refuse(r"extra \['q'\]", sites_that_meet(2), kept={"q": 1.0})
    with pytest.raises(ValueError, match="name distinct latent sites"):
        ppl.eliminate(mixture, [])

    def many():
        sites = [ppl.sample(f"b{i}", dist.Bernoulli(0.3)) for i in range(17)]
        ppl.factor("f", jnp.tanh(sum(sites)))

    refuse(r"131072 states.*meet.*ppl.marginal", many, [f"b{i}" for i in range(17)])


def test_scales_that_meet_in_one_sum_are_refused():
    def shared(x):
        b = ppl.sample("b", dist.Bernoulli(0.3))
        with ppl.plate("rows", x.shape[0]):
            ppl.sample("x", dist.Normal(1.0 * b, 1.0), obs=x)

    program = ppl.rescale_plates(ppl.eliminate(shared, "b"), {"rows": 30})
    with pytest.raises(
        ValueError, match=r"\['b', 'x'\] are scaled by .*10.0.*inside the subsampled plate"
    ):
        program.log_density({}, X)


def test_noise_inside_is_refused():
    def noisy():
        u = jax.random.uniform(ppl.rng_key("u"))
        ppl.sample("x", dist.Normal(u * ppl.sample("b", dist.Bernoulli(0.3)), 1.0), obs=0.3)

    def subsampled():
        with ppl.plate("rows", 4, subsample_size=2):
            ppl.sample("b", dist.Bernoulli(0.3))

    refuse("rng_key.'u'.*sum without noise", noisy)
    refuse("Plate 'rows' subsamples 2 of 4", subsampled)


def test_an_eliminated_guide_is_refused():
    def model():
        ppl.sample("p", dist.Beta(2.0, 3.0))

    objective = inference.elbo(model, ppl.eliminate(lambda: mixture(X), "b"))
    with pytest.raises(TypeError, match="as the model; as a guide"):
        objective.value({}, KEY)
    with pytest.raises(TypeError, match="propose"):
        ppl.eliminate(mixture, "b").propose(KEY, {}, None, X)


def test_values_of_what_is_summed_out_are_refused():
    eliminated, values = ppl.eliminate(mixture, "b"), {"p": 0.3, "b": jnp.array([0, 1, 1])}
    for run in (
        lambda: eliminated.log_density(values, X),
        lambda: eliminated.generate(KEY, values, X),
    ):
        with pytest.raises(ppl.ChoiceMismatch, match=r"\['b'\] are summed out and take no value"):
            run()


def test_foreign_handlers_around_it_are_refused():
    eliminated = ppl.eliminate(mixture, "b")
    with numpyro.handlers.scale(scale=2.0), pytest.raises(TypeError, match="scale around it"):
        eliminated.log_density({"p": 0.3}, X)
    given = numpyro.handlers.condition(eliminated, {"b": jnp.array([0, 1, 1])})
    with pytest.raises(TypeError, match="condition around it.*ppl.condition"):
        log_density(given, (X,), {}, {"p": 0.3})


def moving_along(x):
    def step(b, x):
        b = ppl.sample("b", dist.Bernoulli(0.3 + 0.2 * b))
        ppl.sample("v", dist.Uniform(0.0, x + 2.0))
        return b, None

    ppl.scan(step, 0, x)


def moved_by_a_site(x):
    b = ppl.sample("b", dist.Bernoulli(0.3))
    u = ppl.sample("u", dist.Uniform(1.0, 2.0))
    v = ppl.sample("v", dist.Uniform(0.0, u))
    ppl.sample("x", dist.Normal(b + v, 1.0).expand([3]).to_event(1), obs=x)


@pytest.mark.parametrize("program", [moving_along, moved_by_a_site])
def test_a_support_that_moves_is_refused_under_numpyro(program):
    with pytest.raises(ValueError, match="Site 'v': its support .* may depend on"):
        trace(seed(ppl.eliminate(program, "b"), 0)).get_trace(X)


@pytest.mark.slow  # seconds of compilation
def test_states_that_are_never_reached_keep_derivatives_finite():
    steps = jnp.array([[0.5, 0.5, 0.0], [0.0, 0.5, 0.5], [0.0, 0.0, 1.0]])

    def left_to_right(y):
        means = ppl.sample("means", dist.Normal(0.0, 1.0).expand([3]).to_event(1))

        def step(z, y):
            z = ppl.sample("z", dist.Categorical(steps[z]))
            ppl.sample("y", dist.Normal(means[z], 1.0), obs=y)
            return z, None

        ppl.scan(step, 0, y)

    y = jnp.array([0.1, 0.4, 1.5])
    model = ppl.eliminate(left_to_right, "z")
    means = jnp.array([0.0, 1.0, 2.0])

    def brute(means):
        total = 0.0
        for path in itertools.product(range(3), repeat=3):
            pairs = zip((0, *path), path, strict=False)
            weight = np.prod([float(steps[a, b]) for a, b in pairs])
            total += weight * jnp.exp(dist.Normal(means[jnp.array(path)], 1.0).log_prob(y).sum())
        return jnp.log(total) + dist.Normal(0.0, 1.0).log_prob(means).sum()

    value, grad = jax.value_and_grad(lambda m: model.log_density({"means": m}, y))(means)
    want, slope = jax.value_and_grad(brute)(means)
    np.testing.assert_allclose(value, want, rtol=1e-5)
    np.testing.assert_allclose(grad, slope, rtol=1e-4, atol=1e-5)
    probs = model.posterior_probs({"means": means}, y)["z"]
    np.testing.assert_allclose(probs.sum(-1), 1.0, rtol=1e-5)
    assert float(probs[0, 2]) == 0.0


@pytest.mark.slow
def test_the_mode_weighs_a_branch_that_is_not_taken_once():
    def branching():
        c = ppl.sample("c", dist.Bernoulli(0.45))
        ten = lambda: ppl.sample("k", dist.Categorical(jnp.full(10, 0.1)))
        ppl.cond(c == 1, ten, lambda: 0)

    best, log_density = ppl.eliminate(branching, ["c", "k"]).mode({})
    assert int(best["c"]) == 0
    np.testing.assert_allclose(log_density, np.log(0.55), rtol=1e-5)


def chosen_branch(chooser, y, flag):
    """A continuous site of a branch that an eliminated site chooses, by itself or through others; or data do."""
    k = ppl.sample("k", dist.Bernoulli(0.4))
    j = ppl.sample("j", dist.Bernoulli(0.3 + 0.2 * k))
    is_high = {"itself": k == 1, "another": k + j > 1, "data": flag, "both": k == 1}
    high = lambda: ppl.sample("a", dist.Normal(2.0 + k, 1.0))
    low = (lambda: ppl.sample("a", dist.Normal(-1.0, 0.5))) if chooser == "both" else lambda: -1.0
    mean = ppl.cond(is_high[chooser], high, low)
    ppl.sample("y", dist.Normal(mean + j, 1.0), obs=y)


@pytest.mark.parametrize("chooser", ["itself", "another", "data", "both"])
def test_densities_of_unlike_spaces_are_not_added(chooser):
    """With branches chosen by data, or a law in both branches, the site is of one space, and the sum is exact."""
    program = ppl.eliminate(chosen_branch, ["k", "j"])
    args, choices = (chooser, jnp.array(0.7), jnp.array(True)), {"a": jnp.array(0.4)}
    if chooser in ("data", "both"):
        each = [
            ppl.as_program(chosen_branch).log_density({**choices, "k": jnp.int32(k), "j": jnp.int32(j)}, *args)
            for k in (0, 1)
            for j in (0, 1)
        ]  # fmt: skip
        total = jax.nn.logsumexp(jnp.stack(each))
        np.testing.assert_allclose(program.log_density(choices, *args), total, rtol=1e-5)
        return
    sites = r"\['k'\]" if chooser == "itself" else r"\['j', 'k'\]"
    with pytest.raises(
        ValueError, match=f"site 'a' is drawn in a branch .* that {sites} choose.*Draw it before"
    ):
        program.log_density(choices, *args)


def test_a_step_whose_branch_a_state_chooses_is_no_exception():
    def steps(y):
        def step(k, y):
            k = ppl.sample("k", dist.Bernoulli(0.2 + 0.5 * k))
            jump = lambda: ppl.sample("jump", dist.Normal(0.0, 3.0))
            ppl.sample("y", dist.Normal(ppl.cond(k == 1, jump, lambda: 0.0), 1.0), obs=y)
            return k, None

        ppl.scan(step, 0, y)

    with pytest.raises(ValueError, match="site 'jump' is drawn in a branch"):
        ppl.eliminate(steps, "k").log_density({"jump": jnp.zeros(3)}, jnp.ones(3))
