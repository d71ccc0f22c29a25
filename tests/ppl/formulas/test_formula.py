"""A formula becomes the program that one would write by hand; rows to come are coded as the first ones."""

import inspect
import sys

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pandas as pd
import pytest

from lapilli import inference, ppl

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
N = 40
FRAME = pd.DataFrame(
    {
        "y": 5.0 + 2.0 * RNG.standard_normal(N),
        "x": 100.0 + 3.0 * RNG.standard_normal(N),
        "h": pd.Categorical(RNG.choice(["u", "v"], N), categories=["u", "v", "w"]),
        "g": RNG.choice([10, 20, 30], N),
        "count": RNG.poisson(3.0, N),
        "was": RNG.random(N) < 0.5,
        "time": RNG.uniform(1.0, 9.0, N),
    }
)
NEW = pd.DataFrame({"x": [100.0, 101.0, 99.0, 97.0], "h": ["v", "u", "v", "u"], "g": [20.0, 40.0, 10.0, 40.0]})  # fmt: skip


def density(program, choices, args):
    """The joint log-density, and the program's arguments by name."""
    return float(ppl.as_program(program).log_density(choices, **args))


def draws_of(made):
    return made.program.simulate(KEY, **made.args).choices


def by_hand(x, g, y):
    """As one would write y ~ x + (1 | g), with the documented priors."""
    s, c = FRAME.y.std(ddof=0), FRAME.x.std(ddof=0)
    intercept = ppl.sample("intercept", dist.Normal(FRAME.y.mean(), 2.5 * s))
    slopes = ppl.sample("slopes", dist.Normal(0.0, jnp.array([2.5 * s / c])).to_event(1))
    sd = ppl.sample("sd_g", dist.HalfNormal(2.5 * s))
    with ppl.plate("g", 3):
        effect = ppl.sample("by_g", dist.Normal(0.0, sd))
    sigma = ppl.sample("sigma", dist.Exponential(1 / s))
    mean = intercept + (x[:, 0] - FRAME.x.mean()) * slopes[0] + effect[g]
    with ppl.plate("rows", N):
        ppl.sample("y", dist.Normal(mean, sigma), obs=y)


def test_the_program_is_the_one_that_is_written_by_hand():
    made = ppl.formula("y ~ x + (1 | g)", FRAME)
    assert made.groups == {"g": (10, 20, 30)} and made.columns == ("x",)
    args = {"x": FRAME[["x"]].to_numpy(), "g": (FRAME.g.to_numpy() // 10) - 1, "y": FRAME.y.to_numpy()}  # fmt: skip
    for name, value in made.args.items():
        np.testing.assert_array_equal(value, args[name])
    choices = draws_of(made)
    # numbers in the text have three digits
    np.testing.assert_allclose(
        density(made.program, choices, made.args), density(by_hand, choices, args), rtol=2e-3
    )


MEANS = {
    "y ~ 1": lambda c, a: c["intercept"] + np.zeros(N),
    "y ~ 0 + h": lambda c, a: np.where(FRAME.h == "v", c["slopes"][1], c["slopes"][0]),
    "y ~ x * h": lambda c, a: c["intercept"] + (a["x"] - a["x"].mean(0)) @ c["slopes"],
    "count ~ h + offset(log(time))": lambda c, a: (
        c["intercept"] + (a["x"] - a["x"].mean(0)) @ c["slopes"] + np.log(FRAME.time)
    ),
    "y ~ (x | g)": lambda c, a: (
        c["intercept"] + c["by_g"][a["g"]] + c["by_x_g"][a["g"]] * FRAME.x.to_numpy()
    ),
    "y ~ (0 + h | g)": lambda c, a: (
        c["intercept"] + np.where(FRAME.h == "v", c["by_h_g"][a["g"], 1], c["by_h_g"][a["g"], 0])
    ),
    "y ~ (1 | g:h)": lambda c, a: (
        c["intercept"] + c["by_g_h"][2 * (FRAME.g.to_numpy() // 10 - 1) + (FRAME.h == "v")]
    ),
}


@pytest.mark.parametrize("text", MEANS)
def test_the_mean_of_a_row_is_the_sum_of_its_terms(text):
    family = "poisson" if text.startswith("count") else "normal"
    made = ppl.formula(text, FRAME, family=family)
    trace = made.program.simulate(KEY, **made.args)
    c = {name: np.asarray(x, float) for name, x in trace.choices.items()}
    mean = MEANS[text](c, made.args)
    y = FRAME[text.split()[0]].to_numpy()
    law = dist.Poisson(np.exp(mean)) if family == "poisson" else dist.Normal(mean, c["sigma"])
    np.testing.assert_allclose(
        trace.log_probs[text.split()[0]], law.log_prob(jnp.asarray(y)), rtol=2e-3, atol=2e-3
    )


def test_the_text_is_the_program():
    made = ppl.formula("was ~ x + (x | g)", FRAME, family="bernoulli")
    assert str(made) == made.source and "Effects" not in repr(made)
    names = {}
    exec(made.source, names)
    choices = draws_of(made)
    assert density(names["program"], choices, made.args) == density(made.program, choices, made.args)  # fmt: skip
    assert inspect.getsource(made.program.fn).splitlines()[1] in made.source
    changed = made.source.replace("dist.HalfNormal(2.5)", "dist.HalfNormal(0.1)")
    exec(changed, names)
    assert density(names["program"], choices, made.args) != density(made.program, choices, made.args)  # fmt: skip


def test_priors_are_replaced_by_site():
    made = ppl.formula("y ~ x", FRAME, priors={"sigma": dist.HalfNormal(7.0)})
    trace = made.program.simulate(KEY, **made.args)
    np.testing.assert_allclose(
        trace.log_probs["sigma"], dist.HalfNormal(7.0).log_prob(trace.choices["sigma"]), rtol=1e-6
    )
    assert 'priors["sigma"]' in made.source


def test_rows_to_come_are_coded_as_the_first():
    made = ppl.formula("y ~ scale(x) + h + (x | g)", FRAME)
    x, z, g, new = made.rows(NEW, new_groups="draw")
    scaled = (NEW.x - FRAME.x.mean()) / FRAME.x.std(ddof=0)
    np.testing.assert_allclose(x, np.column_stack([scaled, [1, 0, 1, 0]]))
    np.testing.assert_array_equal(z, NEW.x)
    assert (
        g.tolist() == [1, 3, 0, 3] and new == 1
    )  # 20.0 is 20; both rows of the new group have one effect
    again = made.rows(FRAME)
    for given, name in zip(again, ["x", "x_x_g", "g"], strict=False):
        np.testing.assert_allclose(given, made.args[name])
    assert again[-1] == 0


def test_new_groups_come_from_the_law_of_all_groups():
    made = ppl.formula("y ~ (1 | g)", FRAME)
    g, new = made.rows(NEW, new_groups="draw")
    choices = {"intercept": 0.0, "sd_g": 2.0, "by_g": jnp.array([5.0, 6.0, 7.0]), "sigma": 1e-3}
    one = lambda key: ppl.condition(made.program, choices).simulate(key, g, new).choices["y"]
    y = np.asarray(jax.vmap(one)(jax.random.split(KEY, 4000)))
    assert abs(y[:, 0] - 6.0).max() < 0.01 and abs(y[:, 2] - 5.0).max() < 0.01
    assert abs(y[:, 1] - y[:, 3]).max() < 0.02
    assert abs(y[:, 1].mean()) < 4.5 * 2.0 / 4000**0.5
    assert abs(y[:, 1].std() - 2.0) < 4.5 * 2.0 / 8000**0.5


def test_names_that_python_or_the_program_have_are_changed():
    frame = FRAME.rename(columns={"y": "class", "g": "x", "x": "sigma"})
    made = ppl.formula("class ~ sigma + (1 | x)", frame)
    assert sorted(made.args) == ["class_", "x", "x_"] and made.groups == {"x_": (10, 20, 30)}
    assert np.isfinite(density(made.program, draws_of(made), made.args))


HOLES = FRAME.assign(x=FRAME.x.where(FRAME.index > 1))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ppl.formula("y ~ nope", FRAME), r"needs the column\(s\) \['nope'\]"),
        (lambda: ppl.formula("y ~ x +* h", FRAME), "cannot be read.*Write it like"),
        (lambda: ppl.formula("x + h", FRAME), "has no response"),
        (lambda: ppl.formula("y ~ x | g", FRAME), "a bar outside of brackets"),
        (lambda: ppl.formula("y ~ nofunction(x)", FRAME), "do not go together.*nofunction"),
        (lambda: ppl.formula("y ~ x", HOLES), r"cells are missing, by column \{'x': 2\}"),
        (lambda: ppl.formula("y ~ x", FRAME.assign(x=np.inf)), "'x' is not finite in .* rows, the first at position 0"),
        (lambda: ppl.formula("y ~ (x | g)", FRAME.assign(x=np.inf)), "'x' is not finite"),
        (lambda: ppl.formula("y ~ log(zero)", FRAME.assign(zero=0.0)), r"'log\(zero\)' is not finite.*-inf"),
        (lambda: ppl.formula("y ~ x + offset(log(zero))", FRAME.assign(zero=0.0)), "is not finite"),
        (lambda: ppl.formula("log(zero) ~ x", FRAME.assign(zero=-1.0)), r"'log\(zero\)' is not finite.*nan"),
        (lambda: ppl.formula("y ~ exp(x)", FRAME).rows(NEW.assign(x=1e9)), r"'exp\(x\)' is not finite"),
        (lambda: ppl.formula("y ~ x", FRAME.assign(x=1.0)), "'x' of 'y ~ x' has the same value, 1"),
        (lambda: ppl.formula("h ~ x", FRAME, family="bernoulli"), r"categoric with the levels \['u', 'v'\]"),
        (lambda: ppl.formula("p(count, 20) ~ x", FRAME), "is proportion"),
        (lambda: ppl.formula("was ~ x", FRAME), "'was' holds truth values.*family='bernoulli'"),
        (lambda: ppl.formula("y ~ x", FRAME.assign(y=2.0)), "'y' is 2 in all rows"),
        (lambda: ppl.formula("count ~ x", FRAME, family="bernoulli"), "is for 0 and 1.*'count' has the values"),
        (lambda: ppl.formula("y ~ x", FRAME, family="poisson"), "is for counts"),
        (lambda: ppl.formula("y ~ x", FRAME, family="gamma"), "family"),
        (lambda: ppl.formula("y ~ x", FRAME, priors={"tau": dist.Normal()}), r"given for \['tau'\].*draws \['intercept'"),
        (lambda: ppl.formula("y ~ x", FRAME, priors={"sigma": 3.0}), "the prior of 'sigma' is 3.0"),
        (lambda: ppl.formula("y ~ x", FRAME.iloc[:0]), "has no rows"),
        (lambda: ppl.formula("y ~ x", "data.csv"), "frame is str.*read_csv"),
        (lambda: ppl.formula("y ~ x + (1 | g)", FRAME).rows(NEW), r"groups are new, by grouping \{'g': \[40"),
        (lambda: ppl.formula("y ~ (1 | g)", FRAME).rows(NEW.assign(g="20")), "levels of 'g' are text in one"),
        (lambda: ppl.formula("y ~ (1 | C(g))", FRAME), r"grouping \['C\(g\)'\] is no column"),
        (lambda: ppl.formula("y ~ h", FRAME).rows(NEW.assign(h="w")), "The levels.*leave the other rows"),
        (lambda: ppl.formula("y ~ x", FRAME).rows(NEW[["h"]]), r"needs the column\(s\) \['x'\]"),
        (lambda: ppl.formula("y ~ x", FRAME).rows(NEW.assign(x=np.nan)), "cells are missing"),
        (lambda: ppl.formula("y ~ x", FRAME).rows(NEW, new_groups="skip"), "new_groups must be 'refuse' or 'draw'"),
    ],
)  # fmt: skip
def test_what_is_no_regression_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "formulae", None)
    with pytest.raises(ImportError, match=r"pip install 'lapilli\[formula\]'"):
        ppl.formula("y ~ x", FRAME)


@pytest.mark.slow(reason="a posterior by chains")
def test_infer_takes_it_and_predicts_new_groups():
    """Beside restricted maximum likelihood of statsmodels, on data that it brings."""
    import statsmodels.api as sm
    import statsmodels.formula.api as smf

    data = sm.datasets.grunfeld.load_pandas().data
    data = data.assign(log_i=np.log(data.invest), log_v=np.log(data.value))
    made = ppl.formula("log_i ~ log_v + (1 | firm)", data)
    found = inference.infer(made.program, args=made.args, progress=False)
    assert found.certificate.is_certified
    theirs = smf.mixedlm("log_i ~ log_v", data, groups=data.firm).fit(reml=True)
    slope = found.choices["slopes"][:, 0]
    assert abs(slope.mean() - theirs.params["log_v"]) < 0.25 * theirs.bse["log_v"]
    assert 0.9 < slope.std() / theirs.bse["log_v"] < 1.2
    assert abs(found.choices["sigma"].mean() / theirs.scale**0.5 - 1) < 0.05
    rows = pd.DataFrame({"log_v": [7.0, 7.0], "firm": ["IBM", "a new firm"]})
    y = np.asarray(found.predict(KEY, *made.rows(rows, new_groups="draw"))["log_i"])
    spread = np.sqrt((found.choices["sd_firm"] ** 2 + found.choices["sigma"] ** 2).mean())
    assert y.shape == (4000, 2) and 0.85 < y[:, 1].std() / spread < 1.25
    assert y[:, 0].std() < 0.5 * y[:, 1].std()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "family"),
    [("y ~ x + h", "normal"), ("was ~ x + h", "bernoulli"), ("count ~ x + h", "poisson")],
)
def test_posteriors_are_near_maximum_likelihood_where_data_are_many(text, family):
    import statsmodels.api as sm
    import statsmodels.formula.api as smf

    rng = np.random.default_rng(1)
    n = 3000
    x, h = rng.standard_normal(n), rng.choice(["u", "v"], n)
    eta = 0.3 + 0.5 * x + 0.4 * (h == "v")
    frame = pd.DataFrame({"x": x, "h": h, "y": eta + rng.standard_normal(n)})
    frame["was"] = 1 * (rng.random(n) < 1 / (1 + np.exp(-eta)))
    frame["count"] = rng.poisson(np.exp(eta))
    made = ppl.formula(text, frame, family=family)
    found = inference.infer(made.program, args=made.args, progress=False)
    families = {"normal": "Gaussian", "bernoulli": "Binomial", "poisson": "Poisson"}
    law = getattr(sm.families, families[family])()
    theirs = smf.glm(text, frame, family=law).fit()
    ours = {"x": 0, "h[T.v]": 1}
    for name, place in ours.items():
        values = found.choices["slopes"][:, made.columns.index("x" if place == 0 else "h[v]")]
        assert abs(values.mean() - theirs.params[name]) < 0.2 * theirs.bse[name]
        assert 0.9 < values.std() / theirs.bse[name] < 1.1


def test_counts_with_more_spread_than_poisson():
    made = ppl.formula("count ~ x", FRAME, family="negbinomial")
    trace = made.program.simulate(KEY, **made.args)
    c = {k: np.asarray(v) for k, v in trace.choices.items()}
    mean = np.exp(c["intercept"] + (made.args["x"] - made.args["x"].mean(0)) @ c["slopes"])
    law = dist.NegativeBinomial2(mean, c["concentration"])
    np.testing.assert_allclose(
        trace.log_probs["count"], law.log_prob(made.args["count"]), rtol=2e-3, atol=2e-3
    )
