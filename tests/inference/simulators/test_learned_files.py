"""What was learned from simulations comes back from its file as it was, to its own programs only."""

import subprocess
import sys
import textwrap

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from lapilli import inference, ppl
from lapilli.inference.simulators import (
    Amortised,
    Ratio,
    ReferenceTable,
    Surrogate,
    reference_table,
)

KEY = jax.random.key(0)
FEW = {"num_simulations": 200, "key": KEY}
SHORT = {"num_steps": 4, "progress": False}


def model(x, scale=1.0):
    m = ppl.sample("m", dist.Normal(0.0, scale))
    ppl.sample("x", dist.Normal(m, 1.0), obs=x)


def prior():
    ppl.sample("m", dist.Normal(0.0, 1.0))


def noisy(key, parameters):
    return parameters["m"] + jax.random.normal(key)


def line(x):
    ppl.sample("m", dist.Normal(ppl.param("slope", 0.4) * x, 0.7))


def steeper(x):
    ppl.sample("m", dist.Normal(ppl.param("slope", 0.4) * x, 0.6))


def wide(x):
    ppl.sample("m", dist.Normal(ppl.param("slope", jnp.zeros(2)).sum() * x, 0.7))


def law(m):
    return dist.Normal(m + ppl.param("shift", 0.1), 1.0)


def other_law(m):
    return dist.Normal(m + ppl.param("shift", 0.1), 1.5)


class Bilinear(eqx.Module):
    """A critic of one number."""

    factor: jax.Array
    power: int = eqx.field(static=True, default=1)

    def __call__(self, parameters, data, /):
        return (self.factor * parameters**self.power * data).sum()


CRITIC, SQUARED = Bilinear(jnp.ones(1)), Bilinear(jnp.ones(1), 2)


@pytest.fixture(scope="module")
def table():
    return reference_table(model, (0.0,), **FEW)


@pytest.fixture(scope="module")
def simulated():
    """Of a prior and a function."""
    return reference_table(prior, simulator=noisy, **FEW)


def _amortised(table):
    return inference.amortise(table, guide=line, **SHORT)


def _ratio(table):
    return inference.ratio(table, critic=CRITIC, kind="logistic", num_contrasts=7, **SHORT)


def _surrogate(table):
    return inference.surrogate(table, sites=["x"], by=law, **SHORT)


@pytest.fixture(scope="module")
def learned(table, simulated, tmp_path_factory):
    """Name -> what was learned and its file."""
    folder = tmp_path_factory.mktemp("learned")
    made = {
        "amortised": _amortised(table),
        "ratio": _ratio(table),
        "surrogate": _surrogate(table),
        "amortised of a function": _amortised(simulated),
    }
    for name, found in made.items():
        found.save(folder / f"{name}.npz")
    return {name: (found, folder / f"{name}.npz") for name, found in made.items()}


def test_a_learned_posterior_comes_back_with_its_report_and_run(learned):
    found, path = learned["amortised"]
    again = Amortised.load(path, model, (0.0,), guide=line)
    assert str(again) == str(found) and again.held_out == found.held_out
    assert again.report.p_values == found.report.p_values and again.rounds is None
    assert str(again.training) == str(found.training)
    values = (x.training[0].fit.history["value"] for x in (again, found))
    np.testing.assert_array_equal(*values)
    draws = (x.draws(KEY, {"x": 1.0}, 50)["m"] for x in (again, found))
    np.testing.assert_array_equal(*draws)
    weighted = (x.posterior(KEY, 1.0, num_samples=50).log_weights for x in (again, found))
    np.testing.assert_array_equal(*weighted)


def test_so_does_one_of_a_function_whose_prior_is_the_program(learned):
    found, path = learned["amortised of a function"]
    again = Amortised.load(path, prior, guide=line)
    draws = (x.draws(KEY, {"x": 1.0}, 50)["m"] for x in (again, found))
    np.testing.assert_array_equal(*draws)


def test_a_ratio_and_a_surrogate_come_back(learned):
    found, path = learned["ratio"]
    again = Ratio.load(path, model, (0.0,), critic=CRITIC)
    assert repr(again) == repr(found) and again.kind == "logistic"
    value = {"m": 0.3}, {"x": 1.2}
    assert float(again.log_ratio(*value)) == float(found.log_ratio(*value))
    found, path = learned["surrogate"]
    again = Surrogate.load(path, model, (0.0,), by=law)
    assert repr(again) == repr(found) and again.parents == found.parents
    densities = (x.model.log_density({"m": jnp.asarray(0.3)}, 1.0) for x in (again, found))
    assert len({float(x) for x in densities}) == 1


@pytest.mark.parametrize(
    "name, load, match",
    [
        ("amortised", lambda p: Amortised.load(p, lambda x: model(x, 2.0), (0.0,), guide=line), "model, 'm': another"),
        ("amortised", lambda p: Amortised.load(p, model, (0.0,), guide=steeper), "guide, .m.: another"),
        ("amortised", lambda p: Amortised.load(p, model, (0.0,), guide=wide), "params, 'slope'"),
        ("amortised", lambda p: Amortised.load(p, model, (np.zeros(3),), guide=line), "Amortised.load: the file holds"),
        ("amortised", lambda p: Amortised.load(p, model, (0.0,)), "params, 'flow_m': absent in the file"),
        ("amortised", lambda p: Ratio.load(p, model, (0.0,)), "has the format 'Amortised 1'"),
        ("ratio", lambda p: Ratio.load(p, model, (0.0,), critic=SQUARED), "critic, 'critic': another computation"),
        ("ratio", lambda p: Ratio.load(p, model, (0.0,)), r"critic, 'critic': Bilinear in the file, Critic now"),
        ("surrogate", lambda p: Surrogate.load(p, lambda x: model(x, 2.0), (0.0,), by=law), "model, 'm': another"),
        ("surrogate", lambda p: Surrogate.load(p, model, (0.0,), by=other_law), "law of 'x', 'value': another computation"),
    ],
)  # fmt: skip
def test_another_program_shape_or_site_is_refused_by_name(learned, name, load, match):
    with pytest.raises(ValueError, match=match):
        load(learned[name][1])


def test_a_table_belongs_to_its_prior(table, tmp_path):
    """A ratio's posterior, and the simulations of rounds, are those of the prior that is given to load."""
    table.save(tmp_path / "rows.npz")
    again = ReferenceTable.load(tmp_path / "rows.npz", model, (0.0,))
    np.testing.assert_array_equal(again.parameters["m"], table.parameters["m"])
    with pytest.raises(ValueError, match=r"ReferenceTable.load.*\n.*'m': another computation"):
        ReferenceTable.load(tmp_path / "rows.npz", lambda x: model(x, 2.0), (0.0,))


@pytest.mark.slow(reason="trainings in rounds")
def test_a_posterior_of_rounds_keeps_its_observation_and_its_region(table, tmp_path):
    options = {"num_rounds": 2, "tolerance": 0.0, "epsilon": 0.01}
    found = inference.amortise(table, guide=line, at={"x": 0.5}, **options, **SHORT)
    assert found.table.region is not None
    found.save(tmp_path / "rounds.npz")
    again = Amortised.load(tmp_path / "rounds.npz", model, (0.0,), guide=line)
    assert str(again.rounds) == str(found.rounds)
    draws = (x.draws(KEY, {"x": 0.5}, 20)["m"] for x in (again, found))
    np.testing.assert_array_equal(*draws)
    with pytest.raises(ValueError, match="learned in rounds at one observation"):
        again.draws(KEY, {"x": 0.6})
    with pytest.raises(ValueError, match="cut to where one posterior can be"):
        inference.amortise(again.table, guide=line, **SHORT)
    with pytest.raises(ValueError, match="the region was read from a file.*Call amortise"):
        again.table.region.holds(again.table.parameters)
    again.save(tmp_path / "rounds.npz")  # and what was loaded is saved again
    assert str(Amortised.load(tmp_path / "rounds.npz", model, (0.0,), guide=line)) == str(found)


@pytest.mark.slow(reason="flows to compile, and processes of their own")
def test_defaults_come_back_in_a_fresh_process(tmp_path):
    source = textwrap.dedent('''
        import sys
        import jax, numpy as np, numpyro.distributions as dist
        from lapilli import inference, ppl
        from lapilli.inference import simulators

        def model(x):
            s = ppl.sample("s", dist.Uniform(0.5, 2.0))
            m = ppl.sample("m", dist.Normal(0.0, s))
            ppl.sample("x", dist.Normal(m, 1.0).expand([2]).to_event(1), obs=x)

        args, options = (np.zeros(2),), {"num_steps": 8, "progress": False}
        if sys.argv[1] == "make":
            table = simulators.reference_table(model, args, num_simulations=300)
            found = [inference.amortise(table, **options), inference.ratio(table, **options)]
            found.append(inference.surrogate(table, sites=["x"], **options))
            for i, x in enumerate(found):
                x.save(f"{i}.npz")
        else:
            classes = simulators.Amortised, simulators.Ratio, simulators.Surrogate
            found = [c.load(f"{i}.npz", model, args) for i, c in enumerate(classes)]
        x, value = np.array([1.0, 0.4], np.float32), {"s": np.float32(0.7), "m": np.float32(0.2)}
        print(found[0].draws(jax.random.key(3), {"x": x}, 5)["m"].tolist())
        print(float(found[1].log_ratio(value, {"x": x})), float(found[2].model.log_density(value, x)))
        print(str(found[0]))
    ''')  # fmt: skip
    (tmp_path / "script.py").write_text(source)
    run = lambda what: (
        subprocess.run(
            [sys.executable, "script.py", what],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    )
    assert run("make") == run("load")
