"""Several trainings of one guide are their equal mixture: its density, draws, files, rounds, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy.special import logsumexp
from scipy.stats import kstest, norm

from lapilli import inference, ppl
from lapilli.inference.simulators import Amortised, _side_by_side, reference_table
from lapilli.inference.simulators.amortised._mixture import EqualMixture

KEY = jax.random.key(0)
SHORT = {"num_steps": 30, "progress": False}
PLANTED = [{"slope": jnp.float32(s), "log_sd": jnp.float32(d)} for s, d in ((0.2, 0), (1, -2))]


def model(x):
    m = ppl.sample("m", dist.Normal(0.0, 1.0))
    ppl.sample("x", dist.Normal(m, 1.0), obs=x)


@ppl.model
def line(x):
    slope, log_sd = ppl.param("slope", 0.4), ppl.param("log_sd", 0.0)
    ppl.sample("m", dist.Normal(slope * x, jnp.exp(log_sd)))


@ppl.model
def wider(x):
    slope, log_sd = ppl.param("slope", 0.4), ppl.param("log_sd", 0.0)
    ppl.sample("m", dist.Normal(slope * x, 2 * jnp.exp(log_sd)))


@ppl.model
def two_sites(x):
    """The second site follows the first, with rows of its own."""
    m = ppl.sample("m", dist.Normal(ppl.param("slope", 0.4) * x, 1.0))
    with ppl.plate("rows", 3):
        ppl.sample("k", dist.Bernoulli(logits=ppl.param("log_sd", 0.0) * m))


@pytest.fixture(scope="module")
def table():
    return reference_table(model, (0.0,), num_simulations=400, key=KEY)


@pytest.fixture(scope="module")
def found(table):
    return inference.amortise(table, guide=line, num_seeds=3, **SHORT)


def test_the_density_is_the_mean_of_those_of_the_members():
    """Sites that follow one another, rows and a discrete one included: of the whole, not site by site."""
    for program, choices in (
        (line, {"m": 0.7}),
        (two_sites, {"m": -0.3, "k": jnp.array([0, 1, 1])}),
    ):
        mixed = EqualMixture(program, PLANTED)
        each = [float(program.bind(p).log_density(choices, x=1.3)) for p in PLANTED]
        exact = logsumexp(each) - np.log(2)
        assert float(mixed.log_density(choices, x=1.3)) == pytest.approx(exact, abs=1e-6)
        assert float(mixed.generate(KEY, choices, x=1.3)[1]) == pytest.approx(exact, abs=1e-6)
        assert [float(m.log_density(choices, x=1.3)) for m in mixed.members] == each


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_draws_are_those_of_the_mixture_and_so_is_their_density(seed):
    """Of two Normals apart, N(0.4, 1) and N(2, e^-2): by Kolmogorov and Smirnov, false alarm 1e-5; each member has half."""
    mixed, x = EqualMixture(line, PLANTED), 2.0
    draw = lambda key: (lambda t: (t.choices["m"], t.log_density))(mixed.simulate(key, x=x))
    m, logs = jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(seed), 20_000))
    laws = norm(0.4, 1.0), norm(2.0, np.exp(-2.0))
    assert kstest(np.asarray(m), lambda m: sum(law.cdf(m) for law in laws) / 2).pvalue > 1e-5
    exact = np.log(sum(law.pdf(np.asarray(m, float)) for law in laws) / 2)
    np.testing.assert_allclose(logs, exact, atol=1e-4)
    alone = EqualMixture(line, PLANTED[:1]).simulate(KEY, x=x).choices["m"]
    assert kstest(np.asarray(m), laws[0].cdf).pvalue < 1e-5 and jnp.isfinite(alone)


def test_one_member_is_the_guide_itself(table, found):
    """And the first of several is what one training gives."""
    one = inference.amortise(table, guide=line, **SHORT)
    again = inference.amortise(table, guide=line, num_seeds=1, **SHORT)
    assert one.held_out == again.held_out and one.disagreement == 0 and "members" not in repr(one)
    for name, x in one.training[0].params.items():
        assert float(x) == float(again.training[0].params[name])
        assert float(x) == float(found.training[0].params[name])
    draws = [f.draws(KEY, {"x": 1.0}, 20)["m"] for f in (one, again)]
    np.testing.assert_array_equal(*draws)


@pytest.mark.parametrize("has_two_cores", [True, False])
def test_members_beside_each_other_are_those_alone(table, found, monkeypatch, has_two_cores):
    monkeypatch.setattr(_side_by_side, "_has_two_cores", lambda: has_two_cores)
    again = inference.amortise(table, guide=line, num_seeds=3, **SHORT)
    assert [t.validation for t in again.training] == [t.validation for t in found.training]
    assert again.held_out == found.held_out


def test_what_is_reported_is_of_the_mixture(table, found):
    parameters, data = table.rows("held out")
    slopes, sds = (
        [f(t.params[n]) for t in found.training] for n, f in (("slope", float), ("log_sd", np.exp))
    )
    assert len(set(slopes)) == 3
    each = np.stack(
        [norm(s * data["x"], d).logpdf(parameters["m"]) for s, d in zip(slopes, sds, strict=True)]
    )
    mixed = logsumexp(each, axis=0) - np.log(3)
    assert found.held_out[0] == pytest.approx(mixed.mean(), abs=1e-5)
    assert found.disagreement == pytest.approx(mixed.mean() - each.mean(), abs=1e-5)
    assert found.disagreement > 0 and "3, which disagree: alone each has" in repr(found)
    at = float(found.log_density({"m": 0.5}, {"x": 1.0}))
    exact = logsumexp([norm(s, d).logpdf(0.5) for s, d in zip(slopes, sds, strict=True)])
    assert at == pytest.approx(exact - np.log(3), abs=1e-5)


def test_weighted_draws_of_a_mixture_have_the_exact_evidence(found):
    posterior = found.posterior(KEY, 1.0, num_samples=4_000)
    worth = inference.diagnostics.importance_diagnostics(posterior.log_weights)
    log_z = norm(0.0, 2**0.5).logpdf(1.0)
    assert worth.log_evidence == pytest.approx(log_z, abs=5 * worth.log_evidence_std_error + 1e-3)


def test_a_mixture_comes_back_from_its_file(found, tmp_path):
    found.save(tmp_path / "three.npz")
    again = Amortised.load(tmp_path / "three.npz", model, (0.0,), guide=line)
    assert str(again) == str(found) and again.disagreement == found.disagreement
    draws = [f.draws(KEY, {"x": 1.0}, 50)["m"] for f in (found, again)]
    np.testing.assert_array_equal(*draws)
    for one, other in zip(found.training, again.training, strict=True):
        np.testing.assert_array_equal(one.fit.history["value"], other.fit.history["value"])
    again.save(tmp_path / "three.npz")
    with pytest.raises(ValueError, match="guide, .m.: another"):
        Amortised.load(tmp_path / "three.npz", model, (0.0,), guide=wider)


def test_rounds_are_of_mixtures_too(table):
    """The region of the second round is where the mixture is, and the law is N(x / 2, 1 / 2) cut to it."""
    at = inference.amortise(
        table, guide=line, at={"x": 1.0}, num_rounds=2, tolerance=0.0, num_seeds=2,
        num_steps=400, progress=False,
    )  # fmt: skip
    assert at.rounds is not None and len(at.rounds.rounds) == 2 and len(at.training) == 2
    draws = at.draws(KEY, {"x": 1.0}, 4_000)["m"]
    assert draws.mean() == pytest.approx(0.5, abs=0.15)
    assert draws.std() == pytest.approx(0.5**0.5, abs=0.15)


def test_rows_take_turns_at_validating(table):
    """Those that are held out are so in each training, and of the others each validates once before one does again."""
    number = lambda part, turn: {float(m) for m in table.rows(part, turn)[0]["m"]}
    held = number("held out", 0)
    turns = range(9)
    validate = [number("validation", turn) for turn in turns]
    for turn in turns:
        assert number("held out", turn) == held and not held & validate[turn]
        assert (
            number("training", turn) | validate[turn] | held
            == number("training", 0) | validate[0] | held
        )
        assert not number("training", turn) & validate[turn]
    assert len(set.union(*validate)) == sum(map(len, validate))


def test_members_are_compiled_once():
    """The second training compiles nothing that the first has not, where rows are no part of the program."""
    from lapilli.ppl import _shared_jit

    table = reference_table(model, (0.0,), num_simulations=1_500, key=KEY)
    first = inference.amortise(table, guide=line, num_seeds=1, **SHORT)
    known = set(_shared_jit._executables)
    again = inference.amortise(table, guide=line, num_seeds=2, **SHORT)
    assert first.held_out != again.held_out
    # What draws and scores the mixture is new: of the report.
    assert len(set(_shared_jit._executables) - known) <= 1


def test_what_a_mixture_cannot_do_is_refused(table, found):
    with pytest.raises(ValueError, match="num_seeds"):
        inference.amortise(table, guide=line, num_seeds=0, **SHORT)
    with pytest.raises(TypeError, match="mixture of 3 line: its density is that of no single run"):
        found.guide(1.0)
    with pytest.raises(TypeError, match="guide.members"):
        inference.elbo(model, found.guide).init(KEY, 1.0)
    with pytest.raises(ValueError, match="m2"):
        found.guide.log_density({"m": 0.0, "m2": 0.0}, x=1.0)
    with pytest.raises(ValueError, match="'m'"):
        found.guide.log_density({}, x=1.0)
