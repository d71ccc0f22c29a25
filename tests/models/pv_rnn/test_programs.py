"""The PV-RNN as a program: its cell, its objective and the gradients of its adaptive vectors, against loops by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
from _frozen import Frozen

from lapilli import inference, ppl
from lapilli.models import pv_rnn
from lapilli.models.pv_rnn import Categorical, Gaussian, Layer, Network
from lapilli.models.pv_rnn._network import latent_law
from lapilli.models.pv_rnn._programs import own_rows

N, T, O = 2, 4, 3
LAYERS = (Layer(4, 2, 2.0), Layer(3, 1, 4.0))
X = jax.random.normal(jax.random.key(7), (N, T, O))
INDEX = jnp.arange(N)


def make(output=None, *, guide="adaptive", kl="analytic", layers=LAYERS, seed=0, **options):
    network = Network(layers, output or Gaussian(O, 0.5), key=jax.random.key(seed), **options)
    programs = pv_rnn.programs(
        network, guide=guide, num_sequences=N, num_steps=T, init_scale=0.3, key=jax.random.key(5)
    )
    bound = inference.elbo(*programs, kl=kl, strategies={"z*": Frozen()}, check_jumps=False)
    return network, programs, bound


def by_hand(params, network, x=X, w=lambda l, t: 1.0, w_x=1.0):
    """The objective with frozen noise as a Python loop: the formulas of the module, one sequence and one step at a time."""
    net = pv_rnn.frozen(params, network)
    total = 0.0
    for i in range(N):
        h = [jnp.zeros(layer.num_units) for layer in net.layers]
        for t in range(T):
            d, z = [jnp.tanh(a) for a in h], []
            for l, weights in enumerate(net.weights):
                prior = d[l] @ weights.prior + weights.prior_bias
                if t == 0 and net.first_prior == "unit":
                    prior = jnp.zeros_like(prior)
                post = params["adaptive"][l][i, t]
                if weights.posterior is not None:
                    post = post + d[l] @ weights.posterior
                (mp, sp), (mq, sq) = (
                    (jnp.tanh(a[: len(a) // 2]), jnp.exp(a[len(a) // 2 :])) for a in (prior, post)
                )
                kl = jnp.log(sp / sq) + ((mq - mp) ** 2 + sq**2) / (2 * sp**2) - 0.5
                total -= w(l, t) * kl.sum()
                z.append(mq + 0.5 * sq)
            new = list(h)
            for l in range(len(h) - 1, -1, -1):
                weights, tau = net.weights[l], jnp.asarray(net.layers[l].tau)
                u = d[l] @ weights.recurrent + z[l] @ weights.from_latent + weights.bias
                if l + 1 < len(h):
                    above = d[l + 1] if net.connectivity == "parallel" else jnp.tanh(new[l + 1])
                    u = u + above @ weights.from_above
                if l > 0 and net.connectivity == "parallel":
                    u = u + d[l - 1] @ weights.from_below
                new[l] = (1 - 1 / tau) * h[l] + u / tau
            h = new
            out = jnp.tanh(h[0]) @ net.readout + net.readout_bias
            if isinstance(net.output, Categorical):
                log_p = jax.nn.log_softmax(out.reshape(net.output.size, -1))
                total += w_x * jnp.take_along_axis(log_p, x[i, t][:, None], 1).sum()
            else:
                scale = jnp.exp(net.log_scale) if net.output.scale is None else net.output.scale
                total += w_x * dist.Normal(out, scale).log_prob(x[i, t]).sum()
    return total


CASES = {
    "top down": {},
    "parallel, learned first prior": {"connectivity": "parallel", "first_prior": "learned"},
    "own vectors only, two time constants, learned scale": {
        "posterior_from_state": False,
        "layers": (Layer(4, 2, (2.0, 2.0, 4.0, 4.0)), Layer(3, 1, 8.0)),
        "output": Gaussian(O),
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_objective_and_gradient_equal_a_loop_by_hand(case, key):
    network, _, bound = make(**CASES[case])
    params = bound.init(key, X, INDEX)
    value, grads = bound.value_and_grad(params, key, X, INDEX)
    expected, expected_grads = jax.jit(jax.value_and_grad(lambda p: by_hand(p, network)))(params)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for a, b in zip(*map(jax.tree.leaves, (grads, expected_grads)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_categorical_output_equals_a_loop_by_hand(key):
    x = jax.random.randint(key, (N, T, 2), 0, 4)
    network, _, bound = make(Categorical(4, 2))
    params = bound.init(key, x, INDEX)
    value = bound.value(params, key, x, INDEX)
    np.testing.assert_allclose(value, by_hand(params, network, x), rtol=1e-5)


@pytest.mark.slow
def test_weighted_objective_is_the_free_energy(key):
    """F of `site_weights`, with w by layer, other ones at the first step."""
    network, _, bound = make()
    weights = pv_rnn.site_weights(network, [[1.0, 0.5], [0.1, 0.02]], num_steps=T)
    bound = bound.with_site_weights(weights)
    params = bound.init(key, X, INDEX)
    w = lambda l, t: ((1.0, 0.5) if t == 0 else (0.1, 0.02))[l] / network.layers[l].num_latents
    expected = by_hand(params, network, w=w, w_x=1 / O)
    np.testing.assert_allclose(bound.value(params, key, X, INDEX), expected, rtol=1e-5)
    assert bound.label(X, INDEX) == "elbo with site weights (not a bound)"


@pytest.mark.slow
def test_free_energy_is_linear_in_w_and_a_bound_under_the_identity(key):
    network, _, bound = make(layers=(Layer(4, 2, 2.0), Layer(3, 2, 4.0)))
    params = bound.init(key, X, INDEX)

    def weighted(w):
        return bound.with_site_weights(pv_rnn.site_weights(network, w, num_steps=T))

    f = [float(weighted(w).value(params, key, X, INDEX)) for w in (0.0, 0.5, 1.0)]
    np.testing.assert_allclose(f[2] - f[1], f[1] - f[0], rtol=1e-4)
    identity = weighted(2 / O)  # w / Z = 1 / O
    assert identity.label(X, INDEX) == f"elbo x {1 / O:g}"
    plain = bound.value(params, key, X, INDEX)
    np.testing.assert_allclose(identity.value(params, key, X, INDEX), plain / O, rtol=1e-5)


@pytest.mark.slow  # two objectives are compiled
def test_squared_error_with_w_is_the_bound_of_noise_w_o_over_2z(key):
    """F with squared errors (a Gaussian of variance 1/2) is 2 s^2 / O times the elbo of noise s^2, up to a constant."""
    layers, z, w = (Layer(4, 2, 2.0), Layer(3, 2, 4.0)), 2, 0.05
    scale = np.sqrt(w * O / (2 * z))
    network, _, squared = make(Gaussian(O, np.sqrt(0.5)), layers=layers)
    _, _, noisy = make(Gaussian(O, scale), layers=layers)
    squared = squared.with_site_weights(pv_rnn.site_weights(network, w, num_steps=T))
    params, other = (b.init(key, X, INDEX) for b in (squared, noisy))
    values = []
    for factor in (1.0, 1.3):
        leaves = [factor * a for a in jax.tree.leaves(params)]
        values.append([
            float(b.value(jax.tree.unflatten(jax.tree.structure(p), leaves), key, X, INDEX))
            for b, p in ((squared, params), (noisy, other))
        ])  # fmt: skip
    (f1, l1), (f2, l2) = values
    np.testing.assert_allclose(f2 - f1, 2 * scale**2 / O * (l2 - l1), rtol=1e-4)


@pytest.mark.slow  # seconds of compilation
def test_vectors_of_the_prior_have_no_divergence_and_no_gradient(key):
    """Later form: a = the prior's pre-activation gives KL = 0 and a gradient of 0, a = 0 does so at the first step."""
    network, programs, _ = make(posterior_from_state=False)
    bound = inference.elbo(
        *programs, kl="analytic", strategies={"z*": Frozen()}, site_weights={"x": 0.0}
    )
    params = bound.init(key, X, INDEX)
    net, rows = pv_rnn.frozen(params, network), []
    h = net.initial_state(N)
    for t in range(T):
        a = [net.prior(l, h, t == 0) for l in range(2)]
        laws = [latent_law(p) for p in a]
        h = net.advance(h, [q.mean + 0.5 * jnp.sqrt(q.variance) for q in laws])
        rows.append(a)
    table = tuple(jnp.stack([row[l] for row in rows], 1) for l in range(2))
    assert all(np.all(a[:, 0] == 0) for a in table)
    params = ppl.Params({**params, "adaptive": table}, params.constraints)
    value, grads = bound.value_and_grad(params, key, X, INDEX)
    np.testing.assert_allclose(value, 0, atol=1e-5)
    for g in grads["adaptive"]:
        np.testing.assert_allclose(g, 0, atol=1e-5)


@pytest.mark.parametrize("tau", [1.0, 2.0, 8.0])
def test_zero_weights_leak(tau):
    network = jax.tree.map(
        jnp.zeros_like, Network([(3, 1, tau)], Gaussian(1), key=jax.random.key(0))
    )
    h = (jnp.array([0.3, -1.0, 2.0]),)
    for t in range(1, 6):
        h = network.advance(h, [jnp.ones(1)])
        np.testing.assert_allclose(h[0], (1 - 1 / tau) ** t * np.array([0.3, -1.0, 2.0]), rtol=1e-5)


@pytest.mark.slow
def test_unit_time_constant_is_a_plain_rnn(key):
    network = Network([(4, 2, 1.0)], Gaussian(1), key=key)
    w, h = network.weights[0], jax.random.normal(key, (4,))
    z = jnp.array([0.2, -1.0])
    want = jnp.tanh(h) @ w.recurrent + z @ w.from_latent + w.bias
    np.testing.assert_allclose(network.advance((h,), [z])[0], want, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_gradients_reach_earlier_vectors_of_the_same_sequence_only(key):
    """dF_t / da_s is zero for s > t and for other sequences, and not zero for s <= t."""
    _, _, bound = make()
    params = bound.init(key, X, INDEX)

    @jax.jit
    @jax.vmap
    def grad_of_step(w):
        only = bound.with_site_weights({"x": w, "z*": 0.0})
        return only.grad(params, key, X, INDEX)["adaptive"]

    for g in grad_of_step(jnp.stack([jnp.zeros((T, N)).at[t, 0].set(1.0) for t in range(T)])):
        assert np.all(g[:, 1] == 0)
        size = np.abs(g[:, 0]).max(-1)
        np.testing.assert_array_equal(size > 0, np.tri(T, dtype=bool))


@pytest.mark.slow  # compiled in float64, forward and backward
def test_gradient_equals_central_differences(key):
    """In float64, with frozen noise, along a random direction of all parameters; forward mode gives the same."""
    with jax.enable_x64(True):
        _, _, bound = make()
        x = jnp.asarray(X, jnp.float64)
        params = bound.init(key, x, INDEX)
        params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), params)
        leaves, tree = jax.tree.flatten(params)
        rng = np.random.default_rng(0)
        direction = [jnp.asarray(rng.normal(size=a.shape)) for a in leaves]

        def f(s):
            moved = [a + s * d for a, d in zip(leaves, direction, strict=True)]
            return bound.value(jax.tree.unflatten(tree, moved), key, x, INDEX)

        grads = jax.tree.leaves(bound.grad(params, key, x, INDEX))
        along = sum(jnp.vdot(g, d) for g, d in zip(grads, direction, strict=True))
        f = jax.jit(f)
        central = (f(1e-5) - f(-1e-5)) / 2e-5
        np.testing.assert_allclose(along, central, rtol=1e-6)
        np.testing.assert_allclose(jax.jvp(f, (0.0,), (1.0,))[1], central, rtol=1e-6)


@pytest.mark.slow  # a program with missing cells is compiled
def test_masked_rows_and_missing_cells(key):
    """A hidden observation counts for nothing, and its value is not read."""
    network, (model, guide), _ = make()
    seen = jnp.ones((N, T), bool).at[0, 2].set(False)
    params = model.init(key, X, INDEX, seen)
    choices = guide.bind(params).simulate(key, X, INDEX).choices
    log_density = lambda x, unseen: model.bind(params).log_density(
        {**choices, "x_unobserved": jnp.zeros((T, N, O))}, x, INDEX, seen
    )
    hidden = X.at[0, 2].set(jnp.nan)
    np.testing.assert_allclose(log_density(X, 0), log_density(hidden, 0), rtol=1e-6)


@pytest.mark.slow  # an expectation for each step is compiled
def test_encoder_sees_the_present_step_only(key):
    network = Network(LAYERS, Gaussian(O, 0.5), key=key)
    model, guide = pv_rnn.programs(network, guide="encoder", num_steps=T, key=key)
    bound = inference.elbo(model, guide, kl="analytic", strategies={"z*": Frozen()})
    params = bound.init(key, X, INDEX)
    assert sorted(params) == ["encoder", "network"]

    def latents(x):
        return ppl.expectation(lambda p: ppl.draw(guide.bind(p), x, INDEX).choices["z1"][2].sum(),
            strategies={"z*": Frozen()}).value(params, key)  # fmt: skip

    reach = [abs(float(latents(X.at[0, t].add(1.0)) - latents(X))) > 0 for t in range(T)]
    assert reach == [True, True, True, False]


@pytest.mark.slow
def test_one_model_three_guides_share_the_density(key):
    """The model's density does not know which guide it was written with."""
    densities = []
    for guide in ("adaptive", "encoder", "prior"):
        network = Network(LAYERS, Gaussian(O, 0.5), key=jax.random.key(0))
        model, _ = pv_rnn.programs(
            network, guide=guide, num_sequences=N, num_steps=T, key=jax.random.key(1)
        )
        choices = {
            f"z{l + 1}": jnp.sin(jnp.arange(T * N * z)).reshape(T, N, z)
            for l, (_, z, _) in enumerate(LAYERS)
        }
        densities.append(model.log_density(choices, X, INDEX))
    np.testing.assert_allclose(densities, densities[0], rtol=1e-6)


@pytest.mark.slow  # a filter of its own is compiled
def test_prior_guide_of_a_network_that_ignores_its_latents_is_exact(key):
    """Particles of a deterministic network have one weight: the evidence is the density of the deterministic rollout."""
    network = Network(LAYERS, Gaussian(O, 0.5), key=jax.random.key(0))
    deaf = tuple(
        jax.tree.map(lambda a: a, w).__class__(**{**vars(w), "from_latent": jnp.zeros_like(w.from_latent)})
        for w in network.weights
    )  # fmt: skip
    import equinox as eqx

    network = eqx.tree_at(lambda n: n.weights, network, deaf)
    model, _ = pv_rnn.programs(network, guide="prior", num_steps=T)
    result = inference.smc(model, key, X, INDEX, num_particles=50)
    h, total = network.initial_state(N), 0.0
    for t in range(T):
        h = network.advance(h, [jnp.zeros((N, z)) for _, z, _ in LAYERS])
        total += network.law(network.emit(h)).log_prob(X[:, t]).sum()
    np.testing.assert_allclose(result.log_evidence, total, rtol=1e-4)


def test_sequences_have_vectors_of_their_own(key):
    """A number beyond the table read its last row, and a negative one counted from behind; now NaN, or a refusal."""
    rng = np.random.default_rng(0)
    table = jnp.asarray(rng.normal(size=(4, 2, 3)))
    for _ in range(10):
        index = rng.integers(-3, 7, 5)
        is_row = (index >= 0) & (index < 4)
        found = jax.jit(own_rows)(table, index)
        np.testing.assert_array_equal(found[is_row], table[index[is_row]])
        assert np.isnan(found[~is_row]).all()
        if is_row.all():
            np.testing.assert_array_equal(own_rows(table, index), found)
        else:
            with pytest.raises(ValueError, match=r"index holds -?\d, .* has rows 0 to 3, and the"):
                own_rows(table, index)


@pytest.mark.slow  # compiles
def test_a_fit_is_not_of_other_sequences_vectors(key):
    objective = make()[2]
    params = objective.init(key, X, jnp.arange(N))
    assert np.isfinite(objective.value(params, key, X, jnp.arange(N)))
    for shift in (1, -1):
        with pytest.raises((ValueError, inference.fitting.NonFiniteError)):
            inference.fit(
                objective,
                optax.sgd(0.1),
                (X, jnp.arange(N) + shift),
                num_steps=1,
                key=key,
                progress=False,
            )


def test_errors(key):
    with pytest.raises(
        ValueError, match="layer 1 has 0 units.*tau=0.5.*connectivity.*first_prior.*output"
    ):
        Network([(0, 1, 0.5)], None, connectivity="up", first_prior="no", key=key)  # pyright: ignore
    with pytest.raises(ValueError, match="there is no layer"):
        Network([], Gaussian(1), key=key)
    network = Network(LAYERS, Gaussian(O), key=key)
    with pytest.raises(ValueError, match="num_sequences"):
        pv_rnn.programs(network, num_steps=T)
    with pytest.raises(ValueError, match="give key"):
        pv_rnn.programs(network, guide="encoder", num_steps=T)
    with pytest.raises(ValueError, match="choose 'adaptive'"):
        pv_rnn.programs(network, guide="none", num_steps=T)  # pyright: ignore
    with pytest.raises(ValueError, match="needs a key"):
        pv_rnn.adaptive_vectors(network, 2, 3, scale=1.0)
    model, _ = pv_rnn.programs(network, guide="prior", num_steps=T)
    with pytest.raises(ValueError, match=r"x has shape \(2, 3, 3\).*4 steps"):
        model.simulate(key, X[:, :3], INDEX)
    model, _ = pv_rnn.programs(
        Network(LAYERS, Categorical(3, O), key=key), guide="prior", num_steps=T
    )
    with pytest.raises(ValueError, match="symbols are integers"):
        model.simulate(key, X, INDEX)
