"""Single checks against closed forms and brute force; their refusals."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from _planted import planted
from scipy import stats

from lapilli import ppl
from lapilli.inference import posterior_checks as pc
from lapilli.inference.posterior_checks import _ranks, _symmetry
from lapilli.inference.posterior_checks._simulations import names_of

KEY = jax.random.key(0)


def test_the_statistic_is_the_smallest_binomial_p_value():
    ranks = np.random.default_rng(0).integers(0, 10, (50, 3))
    counts = _ranks.counts_below(ranks, 9)
    for column, found in zip(ranks.T, _ranks._statistic(counts, 50), strict=True):
        tails = []
        for j in range(1, 10):
            count, law = (column < j).sum(), stats.binom(50, j / 10)
            tails.append(2 * min(law.cdf(count), law.sf(count - 1)))
        assert found == pytest.approx(min(tails), rel=1e-10)


def test_p_values_of_two_draws_are_those_of_all_outcomes():
    """Three ranks, 24 simulations: the law of the statistic by the multinomial law of the counts."""
    outcomes = [(i, j, 24 - i - j) for i in range(25) for j in range(25 - i)]
    probs = stats.multinomial.pmf(outcomes, 24, [1 / 3] * 3)
    statistics = _ranks._statistic(np.cumsum(outcomes, 1)[:, :-1], 24)
    for column in ([0] * 14 + [1] * 5 + [2] * 5, [0] * 9 + [1] * 9 + [2] * 6):
        check = _ranks.rank_check("", ("",), np.array(column)[:, None], 2)
        own = _ranks._statistic(_ranks.counts_below(check.ranks, 2), 24)[0]
        exact = probs[statistics <= own * (1 + 1e-9)].sum()
        error = 4.5 * (exact * (1 - exact) / _ranks.NUM_NULL) ** 0.5
        assert abs(check.p_values[0] - exact) < error + 1 / _ranks.NUM_NULL


def test_a_band_holds_whole_curves():
    """3000 curves: 95% or more, since counts are discrete; three standard errors below, 3% above."""
    rng = np.random.default_rng(1)
    check = _ranks.rank_check("", ("",), rng.integers(0, 20, (100, 1)), 19)
    low, high = check.band(0.95)
    curves = _ranks.counts_below(rng.integers(0, 20, (100, 3_000)), 19) / 100
    share = ((curves >= low - 1e-12) & (curves <= high + 1e-12)).all(1).mean()
    assert 0.95 - 3 * (0.05 * 0.95 / 3_000) ** 0.5 < share < 0.98


@pytest.mark.parametrize("num_draws", [1, 8, 9])
def test_central_ranks_are_a_bijection_that_puts_the_middle_first(num_draws):
    ranks = np.arange(num_draws + 1)
    central = _ranks.central(ranks, num_draws)
    assert sorted(central) == list(ranks)
    depth = np.minimum(ranks, num_draws - ranks)
    assert (np.diff(depth[np.argsort(central)]) <= 0).all()


def test_symmetry_p_values_are_those_of_all_reflections():
    ranks, num_draws = np.array([9, 9, 8, 8, 7, 7, 6, 3, 1, 0]), 9
    signs = np.array(list(itertools.product([-1, 1], repeat=10)))

    def statistic(centred):
        values = np.unique(np.abs(centred))
        return max(abs((centred >= v).sum() - (centred <= -v).sum()) for v in values)

    centred = 2 * ranks - num_draws
    null = np.array([statistic(s * np.abs(centred)) for s in signs])
    exact = (null >= statistic(centred)).mean()
    found = _symmetry._p_value(np.random.default_rng(0), ranks, num_draws)
    assert abs(found - exact) < 4.5 * (exact * (1 - exact) / 999) ** 0.5 + 0.001


def test_vsbc_sees_a_shift_and_no_width():
    right, wide = planted(), planted("narrow")
    shifted = pc.Simulations(right.truths, right.observed, {"m": right.draws["m"] + 0.4})
    assert pc.vsbc(wide, KEY).p_values.min() > 0.01 and pc.vsbc(shifted, KEY).p_values.max() < 1e-6
    assert pc.coverage(wide, KEY).p_values.max() < 1e-6


def test_z_scores_and_shrinkage_in_closed_form():
    """The posterior has half the prior's variance: shrinkage 1/2; z is N(0, 1) over simulations, up to the 999 draws."""
    z = pc.z_scores(planted(num=2_000, num_draws=999))
    assert np.abs(z.z_scores.mean(0)).max() < 4.5 / 2_000**0.5
    assert np.abs((z.z_scores**2).mean(0) - 1).max() < 4.5 * (2 / 2_000) ** 0.5
    assert np.median(z.shrinkage, 0) == pytest.approx(0.5, abs=0.08)
    assert z.verdicts == ("identified", "identified")
    assert pc.z_scores(planted("prior")).verdicts == ("poorly identified", "poorly identified")


def test_a_point_is_off_by_infinitely_many_deviations_unless_it_is_the_truth():
    truth = np.arange(40.0)
    z = pc.z_scores(pc.Simulations({"m": truth}, {"x": truth}, {"m": np.full((40, 9), 0.1)}))
    assert (z.z_scores[:, 0] == np.where(truth > 0.1, -np.inf, np.inf)).all()
    assert z.verdicts == ("overfitted",) and "inf" in str(z)
    right = pc.z_scores(
        pc.Simulations({"m": truth}, {"x": truth}, {"m": np.tile(truth[:, None], 9)})
    )
    assert (right.z_scores == 0).all() and right.verdicts == ("identified",)


def test_the_rare_value_of_a_discrete_site_is_no_overfitting():
    """Draws of the prior, of which 9 often agree where the truth is the other value: z is infinite, the posterior right."""
    rng = np.random.default_rng(0)
    truth, draws = rng.random(400) < 0.2, rng.random((400, 9)) < 0.2
    z = pc.z_scores(pc.Simulations({"k": truth}, {"x": truth}, {"k": draws}))
    assert np.isinf(z.z_scores).any() and z.verdicts == ("poorly identified",)


def test_mmd_by_its_double_sums():
    rng = np.random.default_rng(0)
    known, seen = rng.normal(size=(30, 2)), rng.normal(size=(4, 2))
    found = pc.misspecification({"x": known}, {"x": seen}, KEY, num_permutations=19)
    pooled = np.concatenate([seen, known])
    pooled = (pooled - pooled.mean(0)) / pooled.std(0)
    squares = ((pooled[:, None] - pooled) ** 2).sum(-1)
    kernel = np.exp(-squares / (2 * np.median(squares[np.triu_indices(34, 1)])))
    y, x = slice(0, 4), slice(4, 34)
    exact = kernel[y, y].mean() - 2 * kernel[x, y].mean() + kernel[x, x].mean()
    assert found.mmd == pytest.approx(exact, rel=1e-10)


def test_data_that_the_model_does_not_predict_are_found():
    data = np.random.default_rng(0).normal(size=(400, 3))
    found = pc.misspecification({"x": data}, {"x": np.array([0.0, 6.0, 0.0])}, KEY)
    assert found.p_value < 0.01 and found.tails[1] == 1 and found.distance > 5
    # Only a summary that looks at it sees what single values hide: as many signs alike.
    data = np.random.default_rng(1).normal(size=(400, 30))
    seen = np.abs(np.random.default_rng(2).normal(size=30))
    assert pc.misspecification({"x": data}, {"x": seen}, KEY).p_value > 0.01
    mean = pc.misspecification({"x": data}, {"x": seen}, KEY, summary_fn=lambda v: v["x"].mean())
    assert mean.p_value < 0.01


def test_discrete_sites_have_uniform_ranks():
    """Bernoulli, drawn from its exact posterior; false alarm 1e-3 a column."""
    rng = np.random.default_rng(0)
    k = rng.random(400) < 0.3
    x = 2.0 * k + rng.standard_normal(400)
    prob = 1 / (1 + np.exp(-(np.log(3 / 7) + 2 * x - 2)))
    draws = rng.random((400, 99)) < prob[:, None]
    simulations = pc.Simulations({"k": k * 1.0}, {"x": x}, {"k": draws * 1.0})
    for kind in ("below", "central", "hpd", "joint"):
        assert pc.coverage(simulations, KEY, kind=kind).p_values.min() > 1e-3


def test_own_reference_points_and_classifiers():
    from sklearn.tree import DecisionTreeClassifier

    simulations = planted(num=100, num_draws=9)
    points = simulations.data_matrix / 2 + 0.1
    assert pc.tarp(simulations, KEY, references=points).p_values[0] > 1e-3
    found = pc.local_c2st(
        simulations, {"x": np.zeros(2)}, {"m": np.zeros((5, 2))}, KEY, num_null=3,
        classifier_fn=lambda: DecisionTreeClassifier(max_depth=2),
    )  # fmt: skip
    assert found.probs.shape == (5,) and found.p_value in (0.25, 0.5, 0.75, 1.0)


def test_features_of_ones_own_see_what_the_usual_ones_do_not():
    simulations = planted(num=400, num_draws=99)
    wave = np.sign(np.sin(6 * simulations.data_matrix[:, 0]))
    draws = simulations.draws["m"] + 0.6 * wave[:, None, None]
    wrong = pc.Simulations(simulations.truths, simulations.observed, {"m": draws})
    assert pc.local_coverage(wrong, KEY).smallest_p_value > 1e-3
    seen = pc.local_coverage(wrong, KEY, features_fn=lambda x: np.sin(6 * x[:, 0]))
    assert seen.p_values[0, 0] < 1e-6 and seen.shift_slopes[0, 0] < -0.3


def test_coordinates_are_named_in_order():
    assert names_of({"a": (), "b": (2, 1)}) == ("a", "b[0, 0]", "b[1, 0]")


@pytest.fixture(scope="module")
def few():
    return planted(num=20, num_draws=4)


T = np.zeros(20)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda s: pc.coverage(s, KEY, kind="all"), "kind must be"),
        (lambda s: pc.coverage(s, KEY).band(1.0), "between 0 and 1"),
        (lambda s: pc.tarp(s, KEY, references="far"), "references must be"),
        (lambda s: pc.tarp(s, KEY, references=np.zeros(3)), "one for each simulation"),
        (lambda s: pc.directions(pc.Simulations({"m": T}, {"x": T}, {"m": np.zeros((20, 2))}), KEY), "two or more of both"),
        (lambda s: pc.z_scores(pc.Simulations({"m": T}, {"x": T}, {"m": np.zeros((20, 1))})), "at least two draws"),
        (lambda s: pc.local_coverage(s, KEY, features_fn=lambda x: x[:3]), "one finite row for each"),
        (lambda s: pc.local_coverage(s, KEY, features_fn=lambda x: np.eye(20)[:, :9]), "fewer features"),
        (lambda s: pc.local_c2st(s, {"x": np.zeros(3)}, {"m": np.zeros((5, 2))}, KEY), "same sites"),
        (lambda s: pc.local_c2st(s, {"x": np.zeros(2)}, {"m": np.full((5, 2), np.nan)}, KEY), "Mend posterior_fn"),
        (lambda s: pc.misspecification({"x": T}, {"y": 0.0}, KEY), "same sites"),
        (lambda s: pc.misspecification({"x": T, "y": T}, {"x": T, "y": T[:3]}, KEY), "one number N"),
        (lambda s: pc.misspecification({"x": T}, {"x": np.nan}, KEY), "Mend summary_fn"),
        (lambda s: pc.check_simulations(s, KEY, level=2.0), "between 0 and 1"),
        (lambda s: pc.check_simulations(s, KEY, observed={"x": T[:2]}), "belong together"),
        (lambda s: pc.Simulations({"m": T}, {"x": T}, {"n": T}), "draws of each latent"),
        (lambda s: pc.Simulations({"m": T}, {"x": T}, {"m": np.zeros((19, 3))}), "with one S"),
        (lambda s: pc.Simulations({"m": T[:5]}, {"x": T[:5]}, {"m": np.zeros((5, 3))}), "at least 20"),
        (lambda s: pc.Simulations({"m": T}, {"x": T * np.nan}, {"m": np.zeros((20, 3))}), "not finite in 20"),
    ],
)  # fmt: skip
def test_what_cannot_be_checked_is_refused(few, call, words):
    with pytest.raises(ValueError, match=words):
        call(few)


@ppl.model
def model(x):
    m = ppl.sample("m", dist.Normal(0.0, 1.0))
    ppl.sample("k", dist.Bernoulli(0.5))
    ppl.sample("x", dist.Normal(m, 1.0), obs=x)


def posterior(key, observed):
    return {"m": observed["x"] / 2 + 0.5**0.5 * jax.random.normal(key, (9,))}


def test_compiled_and_python_loops_are_the_same_simulations():
    both = [
        pc.simulate(model, posterior, KEY, jnp.array(0.0), num_simulations=20, loop=loop)
        for loop in ("compiled", "python")
    ]
    assert both[0].coordinates == ("m",) and both[0].data_coordinates == ("x",)
    for name in ("truth_matrix", "data_matrix", "draw_matrix"):
        np.testing.assert_allclose(getattr(both[0], name), getattr(both[1], name), rtol=1e-6)
    with pytest.raises(ValueError, match="'compiled' or 'python'"):
        pc.simulate(model, posterior, KEY, jnp.array(0.0), loop="fast")
    with pytest.raises(ValueError, match="from these names"):
        pc.simulate(model, lambda key, x: {"q": jnp.zeros(3)}, KEY, jnp.array(0.0))


def test_draws_in_other_numbers_and_data_of_other_sites_are_refused():
    numbers = iter([5] * 7 + [4] * 99)
    uneven = lambda key, seen: {"m": np.zeros(next(numbers))}
    options = {"num_simulations": 20, "loop": "python"}
    with pytest.raises(ValueError, match=r"\{'m': \(5,\)\} for the first .*\(4,\)\} for number 7"):
        pc.simulate(model, uneven, KEY, jnp.array(0.0), **options)
    with pytest.raises(TypeError, match="simulate: posterior_fn returned .*, which tells no sites"):
        pc.simulate(model, lambda key, seen: np.zeros(3), KEY, jnp.array(0.0), **options)
    for observed in ({"y": 1.0}, {"x": np.zeros(3)}):
        with pytest.raises(ValueError, match=r"check_posterior: observed has .*\{'x': \(\)\}"):
            pc.check_posterior(
                model, posterior, KEY, jnp.array(0.0), observed=observed, num_simulations=20
            )
