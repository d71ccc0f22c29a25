"""Plates that stand for more rows than they run on are scaled only where their rows are separate."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest

from lapilli import inference, ppl

KEY = jax.random.key(0)
X = jnp.array([0.4, 1.5, -0.7, 0.1, 2.0, -1.2])
MATRIX = jnp.array([[1.0, 0.2, 0.0], [0.0, 1.0, 0.3], [0.1, 0.0, 1.0]])
ROWS = "plate 'rows' runs on 3 rows that stand for 6"


def model_of(couple=lambda z: z, outside=None, of_data=lambda x: x):
    """Programs of all six rows, of a subsample drawn by the plate, and of a batch that is given."""

    def model(x, size=6, subsample=None):
        with ppl.plate("rows", size, subsample_size=subsample) as i:
            rows = x[i] if len(x) == size else x
            z = ppl.sample("z", dist.Normal(0.0, 1.0))
            ppl.sample("x", dist.Normal(couple(z), 1.0), obs=of_data(rows))
        if outside is not None:
            ppl.factor("outside", outside(z, rows))

    return model


def guide_of(encode=lambda x: x):
    def guide(x, size=6, subsample=None):
        m = ppl.param("m", 0.3)
        with ppl.plate("rows", size, subsample_size=subsample) as i:
            ppl.sample("z", dist.Normal(m * encode(x[i] if len(x) == size else x), 1.0))

    return guide


def by_plate(model, guide):
    """The plate draws three rows of six."""
    bound = inference.elbo(model, guide, check_jumps=False)
    return bound.plan({"m": 0.3}, X, 6, 3)


def by_batch(model, guide):
    """Three rows are given, and the plate says that there are six."""
    bound = inference.elbo(model, guide, check_jumps=False)
    return bound.plan({"m": 0.3}, X[:3], 6, 3)


def by_sizes(model, guide):
    """Three rows are given, and the objective says that there are six."""
    bound = inference.elbo(model, guide, check_jumps=False).with_plate_sizes({"rows": 6})
    return bound.plan({"m": 0.3}, X[:3], 3)


WAYS = {"plate": by_plate, "batch": by_batch, "sizes": by_sizes}
normalised = lambda x: (x - x.mean(0)) / jnp.sqrt(x.var(0) + 1e-5)  # batch normalisation
COUPLED = {
    "mean of values": (model_of(lambda z: z - z.mean()), guide_of(), "site 'x'.*other rows of site 'z' .operation: reduce_sum"),
    "neighbour": (model_of(lambda z: z + jnp.roll(z, 1)), guide_of(), "site 'x'.*other rows of site 'z' .it moves by"),
    "reversed": (model_of(lambda z: z[::-1]), guide_of(), "site 'x'.*other rows of site 'z'"),
    "matrix": (model_of(lambda z: MATRIX @ z), guide_of(), "site 'x'.*other rows of site 'z'"),
    "running sum": (model_of(jnp.cumsum), guide_of(), "site 'x'.*other rows of site 'z'"),
    "batch normalisation": (model_of(), guide_of(normalised), "site 'z' of <Program guide.*other rows (that|of array)"),
    "centred data": (model_of(of_data=lambda x: x - x.mean()), guide_of(), "site 'x'.*other rows (that|of array)"),
    "values outside": (model_of(outside=lambda z, x: z.sum()), guide_of(), "site 'outside'.*lies outside.*of site 'z'"),
    "data outside": (model_of(outside=lambda z, x: x.mean()), guide_of(), "site 'outside'.*lies outside.*rows (that|of array)"),
}  # fmt: skip


@pytest.mark.fast("matrix-batch", "running sum-batch")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", COUPLED)
def test_rows_that_meet_are_refused(case, way):
    model, guide, found = COUPLED[case]
    with pytest.raises(ValueError, match=f"(?i){found}") as caught:
        WAYS[way](model, guide)
    assert ROWS in str(caught.value) and "all rows" in str(caught.value)


def test_a_global_law_that_sees_a_batch_is_refused():
    """Log q(g | batch) is the law of another guide for each batch."""

    def model(x):
        g = ppl.sample("g", dist.Normal(0.0, 1.0))
        with ppl.plate("rows", x.shape[0]):
            ppl.sample("x", dist.Normal(g, 1.0), obs=x)

    def guide(x):
        ppl.sample("g", dist.Normal(ppl.param("m", 0.3) * x.mean(), 1.0))

    bound = inference.elbo(model, guide).with_plate_sizes({"rows": 6})
    with pytest.raises(
        ValueError, match="Site 'g' of <Program guide.*outside of the plate.*of array 1"
    ):
        bound.value({"m": 0.3}, KEY, X[:3])
    with pytest.raises(ValueError, match="Site 'g' of <Program guide.*outside of the plate"):
        options = {"num_steps": 2, "key": KEY, "progress": False}
        inference.fit(
            inference.elbo(model, guide), optax.sgd(0.1), (X,), subsample={"rows": 3}, **options
        )


OBJECTIVES = {
    "iwelbo": lambda p, q: inference.iwelbo(p, q, num_particles=2, per="rows"),
    "dreg": lambda p, q: inference.iwelbo(p, q, num_particles=2, per="rows", gradient="dreg"),
    "stl": lambda p, q: inference.elbo(p, q, gradient="stl"),
    "wake_theta": lambda p, q: inference.wake_theta(p, q, num_particles=2, per="rows"),
    "particles": lambda p, q: inference.elbo(p, q, num_replicates=4),
    "reinforce": lambda p, q: inference.elbo(p, q, strategies="reinforce"),
}


@pytest.mark.fast("particles", "reinforce", "wake_theta")
@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_refuses_them(name):
    """Of the values' own rows or of the data's: batch normalisation leaves the latent values apart."""
    model, guide, found = COUPLED["batch normalisation"]
    for run in (lambda b: b.value, lambda b: jax.jit(b.value, static_argnums=(3, 4))):
        with pytest.raises(ValueError, match=f"(?i){found}"):
            run(OBJECTIVES[name](model, guide))({"m": 0.3}, KEY, X, 6, 3)


def network(z):
    hidden = jnp.tanh(z[:, None] * jnp.arange(1.0, 4.0) + 0.1)
    return (hidden @ MATRIX).sum(-1)


def convolved(x):
    """Lanes of two `vmap`s meet in the batch axis of one convolution: no relation keeps them apart."""
    images = x[:, None, None] * jnp.ones((1, 4, 1)) + jnp.arange(4.0)[:, None]
    kernel = jnp.ones((1, 1, 3))
    one = lambda image: jax.lax.conv_general_dilated(image[None], kernel, (1,), "SAME")[0].sum()
    return jax.vmap(lambda many: jax.vmap(one)(many[:, None]).sum())(images)


def in_columns(x):
    """Rows as columns of a linear system."""
    return jax.scipy.linalg.solve_triangular(MATRIX + jnp.eye(3), x * jnp.ones((3, 1))).sum(0)


SEPARATE = {
    "rows": (model_of(), guide_of()),
    "a network on each row": (model_of(network), guide_of(network)),
    "a mapped function": (model_of(jax.vmap(lambda z: jnp.where(z > 0, z, jnp.sin(z)))), guide_of()),
    "convolutions": (model_of(), guide_of(convolved)),
    "a linear system": (model_of(in_columns), guide_of(in_columns)),
    "statistics of all rows": (model_of(), guide_of(lambda x: (x - X.mean()) / X.std())),
    "a factor in each row": (model_of(lambda z: z), guide_of(lambda x: x / x.shape[0])),
}  # fmt: skip


@pytest.mark.fast(
    "a factor in each row-batch",
    "a factor in each row-plate",
    "a mapped function-batch",
    "a network on each row-plate",
    "rows-batch",
    "rows-plate",
    "statistics of all rows-batch",
    "statistics of all rows-plate",
)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", SEPARATE)
def test_rows_that_are_separate_pass(case, way):
    WAYS[way](*SEPARATE[case])


@pytest.mark.slow
def test_a_hierarchical_regression_passes_with_its_groups_and_local_parameters():
    groups, y = jnp.array([0, 1, 2, 0, 1, 2]), jnp.sin(X)

    def model(x, y, groups):
        slope = ppl.sample("slope", dist.Normal(0.0, 1.0))
        with ppl.plate("groups", 3):
            level = ppl.sample("level", dist.Normal(0.0, 1.0))
        with ppl.plate("rows", 6, subsample_size=2) as i:
            shift = ppl.sample("shift", dist.Normal(0.0, 0.1))
            ppl.sample("y", dist.Normal(slope * x[i] + level[groups[i]] + shift, 1.0), obs=y[i])

    def guide(x, y, groups):
        ppl.sample("slope", dist.Normal(ppl.param("a", 0.1), 1.0))
        with ppl.plate("groups", 3):
            ppl.sample("level", dist.Normal(ppl.param("b", jnp.zeros(3)), 1.0))
        with ppl.plate("rows", 6, subsample_size=2):
            ppl.sample("shift", dist.Normal(ppl.param("c", jnp.zeros(6), event_dim=0), 1.0))

    bound = inference.elbo(model, guide)
    args = X, y, groups
    assert np.isfinite(bound.value(bound.init(KEY, *args), KEY, *args))


def test_two_batches_of_one_size_are_told_apart():
    """Three rows and three columns: each argument is rows of that plate whose terms keep them apart."""

    def model(a, b):
        g = ppl.sample("g", dist.Normal(0.0, 1.0))
        with ppl.plate("rows", a.shape[0]):
            ppl.sample("a", dist.Normal(g, 1.0), obs=a)
        with ppl.plate("columns", b.shape[0]):
            ppl.sample("b", dist.Normal(-g, 1.0), obs=b)

    def coupled(a, b):
        model(a, b)
        ppl.factor("outside", a.sum())

    def guide(a, b):
        ppl.sample("g", dist.Normal(ppl.param("m", 0.3), 1.0))

    sizes = {"rows": 6, "columns": 12}
    bound = inference.elbo(model, guide).with_plate_sizes(sizes)
    assert np.isfinite(bound.value({"m": 0.3}, KEY, X[:3], X[3:]))
    bound = inference.elbo(coupled, guide).with_plate_sizes(sizes)
    with pytest.raises(ValueError, match="Site '(outside|a|b)'.*of array 1 among the arguments"):
        bound.value({"m": 0.3}, KEY, X[:3], X[3:])


@pytest.mark.slow
def test_steps_and_eliminated_sites_pass_and_are_checked():
    couplings = (lambda z: z, lambda z: z + 0.1 * z.mean())

    def chain(couple):
        def model(x):
            def step(z, x):
                with ppl.plate("rows", x.shape[0]):
                    z = ppl.sample("z", dist.Normal(couple(z), 1.0))
                    ppl.sample("x", dist.Normal(z, 1.0), obs=x)
                return z, None

            ppl.scan(step, jnp.zeros(x.shape[0]), jnp.stack([x, x, x, x]))

        return model

    def steps(x):
        def step(_, x):
            with ppl.plate("rows", x.shape[0]):
                ppl.sample("z", dist.Normal(ppl.param("m", 0.3) * x, 1.0))
            return _, None

        ppl.scan(step, 0.0, jnp.stack([x, x, x, x]))

    bounds = [inference.elbo(chain(c), steps).with_plate_sizes({"rows": 6}) for c in couplings]
    assert np.isfinite(bounds[0].value({"m": 0.3}, KEY, X[:3]))
    with pytest.raises(ValueError, match=f"Site 'z'.*{ROWS}.*other rows of site 'z'"):
        bounds[1].value({"m": 0.3}, KEY, X[:3])

    def mixture(couple):
        def model(x):
            m = ppl.sample("m", dist.Normal(0.0, 1.0))
            with ppl.plate("rows", x.shape[0]):
                k = ppl.sample("k", dist.Bernoulli(0.3))
                ppl.sample("x", dist.Normal(m * k + couple(x), 1.0), obs=x)

        return ppl.eliminate(model, "k")

    guide = lambda x: ppl.sample("m", dist.Normal(ppl.param("m", 0.3), 1.0))
    bounds = [inference.elbo(mixture(c), guide).with_plate_sizes({"rows": 6}) for c in couplings]
    assert np.isfinite(bounds[0].value({"m": 0.3}, KEY, X[:3]))
    with pytest.raises(ValueError, match=f"Site '.*eliminate.*{ROWS}.*other rows of array 1"):
        bounds[1].value({"m": 0.3}, KEY, X[:3])


@pytest.mark.slow
def test_what_one_row_cannot_show_is_refused():
    """A suspicion that only a trial can settle needs two rows."""
    scattered = lambda z: jnp.zeros(z.shape).at[jnp.arange(len(z))].set(z)
    bound = inference.elbo(model_of(scattered), guide_of(), check_jumps=False)
    assert np.isfinite(bound.value({"m": 0.3}, KEY, X, 6, 2))
    with pytest.raises(
        ValueError, match="runs on 1 rows.*one row alone does not show it, two would"
    ):
        bound.value({"m": 0.3}, KEY, X, 6, 1)


def test_a_score_inside_of_a_raw_transformation_is_refused():
    prior = ppl.model(lambda: ppl.sample("w", dist.Normal(0.0, 1.0)))

    @inference.objective
    def raw(model, guide, *args):
        q = ppl.draw(guide, *args)
        slope = jax.grad(lambda w: prior.log_density({"w": w}))
        return ppl.score(model, q, *args).log_density + slope(1.0)

    bound = raw(ppl.model(model_of()), ppl.model(guide_of()))
    bound.plan({"m": 0.3}, X)
    message = "inside of a raw JAX transformation, and plate 'rows' is subsampled"
    with pytest.raises(ValueError, match=message):
        bound.plan({"m": 0.3}, X, 6, 3)


FACTORS = {
    "separate": (lambda x: jnp.sin(x), None, True),
    "coupled": (lambda x: x * x.mean(), None, False),
    "outside": (lambda x: x, lambda x: x.mean() ** 2, False),
}


@pytest.mark.parametrize("case", FACTORS)
def test_the_refusals_are_those_of_biased_numbers(case):
    """All twenty subsets of six rows: their mean is the number of all rows where rows are separate, and not elsewhere."""
    inside, outside, is_separate = FACTORS[case]

    def program(x, size=6):
        with numpyro.handlers.scale(scale=size / x.shape[0]), ppl.plate("rows", x.shape[0]):
            ppl.factor("inside", inside(x))
        if outside is not None:
            ppl.factor("outside", outside(x))

    def scaled(x):
        with ppl.plate("rows", x.shape[0]):
            ppl.factor("inside", inside(x))
        if outside is not None:
            ppl.factor("outside", outside(x))

    density = lambda x: float(ppl.model(program).log_density({}, x))
    subsets = [density(X[jnp.array(s)]) for s in itertools.combinations(range(6), 3)]
    is_unbiased = abs(np.mean(subsets) - density(X)) < 1e-5
    cost = ppl.expectation(
        lambda p, x: p * ppl.rescale_plates(scaled, {"rows": 6}).log_density({}, x)
    )
    if is_separate:
        assert is_unbiased
        found = [
            float(cost.value(1.0, KEY, X[jnp.array(s)]))
            for s in itertools.combinations(range(6), 3)
        ]
        np.testing.assert_allclose(np.mean(found), density(X), rtol=1e-5)
    else:
        assert not is_unbiased
        with pytest.raises(ValueError, match=ROWS):
            cost.value(1.0, KEY, X[:3])


@pytest.mark.slow
@pytest.mark.parametrize("shifts", [(1, -1), (1,)], ids=["there and back", "neighbour"])
def test_rows_are_tried_where_a_program_closes_over_what_jit_does_not_know(shifts):
    couple = lambda z: functools.reduce(jnp.roll, shifts, z)
    model, guide = model_of(couple), guide_of()

    def value(scale):
        def scaled(*args):
            ppl.factor("scale", scale)
            model(*args)

        bound = inference.elbo(scaled, guide, check_jumps=False)
        return bound.value({"m": 0.3}, KEY, X, 6, 3)

    run = jax.jit(value)
    if sum(shifts) == 0:
        assert jnp.isfinite(run(1.0))
    else:
        with pytest.raises(ValueError, match="other rows of site 'z'"):
            run(1.0)
