"""How results print: ten lines at most, names in them, nothing computed, HTML escaped."""

import copy
import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest

from lapilli import inference, ppl
from lapilli.inference.diffusion._corrector import Diffused
from lapilli.inference.local._inner import InnerResult
from lapilli.models import diffusion, imputation
from lapilli.ppl import _show
from lapilli.ppl._show import MAX_LINES, MAX_WIDTH, shown


@shown
class Record(NamedTuple):
    draws: Any
    count: int = 3
    nothing: None = None


@shown
@dataclasses.dataclass(frozen=True)
class Facts:
    facts: Any
    tables: Any = ()

    def _facts(self):
        return self.facts

    def _tables(self):
        return list(self.tables)


def lines(result):
    found = repr(result).splitlines()
    assert len(found) <= MAX_LINES and max(map(len, found)) <= MAX_WIDTH, found
    return found


def test_fields_are_shown_by_name_those_that_are_none_left_out():
    assert lines(Record(np.zeros((5, 2), np.float32))) == [
        "Record",
        "  draws  float32[5, 2]",
        "  count  3",
    ]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1.23456789, "1.23457"),
        (np.float32(0.5), "0.5"),
        (jnp.array([1.0, 2.5]), "[1, 2.5]"),
        (jnp.array([True, False]), "[True, False]"),
        (jnp.zeros(9, jnp.bfloat16), "bfloat16[9]"),
        (jnp.zeros((), jnp.bfloat16), "bfloat16[]"),
        (jax.random.key(0), "key<fry>[]"),
        (jax.ShapeDtypeStruct((2,), jnp.int32), "int32[2]"),
        ({}, "none"),
        ({"a": np.zeros(1), "b": {"c": np.zeros(3), "d": np.zeros((2, 2))}}, "a float64[1], b dict of 2 arrays, 7 numbers"),
        ((np.zeros(1), "x", 0.25), "float64[1], x, 0.25"),
        (jnp.tanh, "tanh"),
        (inference.diffusion.Langevin(2), "Langevin(num_moves=2, step_size=0.5, method='auto')"),
        (dist.Normal(np.zeros(3), 1.0), "Normal of 2 arrays, 4 numbers"),
    ],
)  # fmt: skip
def test_values_in_few_words(value, expected):
    assert _show.describe(value) == expected


def test_many_facts_are_named_and_long_ones_cut():
    many = {f"fact {i}": i for i in range(30)}
    found = lines(Facts(many))
    assert len(found) == MAX_LINES and "fact 7 " in found[8] and "also fact 8, fact 9" in found[9]
    wide = {f"parameter_{i}": np.zeros((i, 2)) for i in range(500)}
    (_, line) = lines(Facts({"params": wide}))
    assert "parameter_0 float64[0, 2], parameter_1 float64[1, 2]" in line
    assert line.endswith(", ... (500 in all)")
    assert lines(Facts({"text": "word " * 100}))[1].endswith(" ...")
    assert lines(Facts({"two\nlines": "one\ntwo"}))[1:] == ["  two lines  one two"]
    assert lines(Facts({"n" * 300: 1}))
    assert lines(Facts({})) == ["Facts"]


def test_arrays_that_cannot_be_read_are_told_by_their_shapes():
    deleted = jnp.arange(3)
    deleted.delete()
    assert "int32[3]" in repr(Record(deleted))
    seen = []
    jax.jit(lambda x: (seen.append(repr(Record(x))), x)[1])(jnp.zeros(2))
    assert "float32[2]" in seen[0]


def test_html_has_the_facts_and_the_tables_escaped():
    found = Facts({"<b>": {"x": "<script>"}}, [[("a&b", "c"), ("<1>", "2")]])._repr_html_()
    assert "&lt;b&gt;" in found and "x &lt;script&gt;" in found and "<script>" not in found
    assert "<caption>Facts</caption>" in found and "<th>a&amp;b</th>" in found
    assert "<tr><td>&lt;1&gt;</td><td>2</td></tr>" in found and found.count("<table>") == 2


@ppl.model
def model(x):
    z = ppl.sample("z", dist.Normal(jnp.zeros(3), 1.0).to_event(1))
    ppl.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def guide(x):
    loc = ppl.param("loc", jnp.zeros(3))
    ppl.sample("z", dist.Normal(loc, 1.0).to_event(1))


BOUND = inference.elbo(model, guide)


@functools.cache
def fitted(num_seeds=None):
    return inference.fit(
        BOUND, optax.adam(1e-2), (jnp.ones(3),), num_steps=20, key=jax.random.key(0), num_seeds=num_seeds, progress=False
    )  # fmt: skip


def test_a_fit_says_what_where_and_how_far():
    fit = fitted()
    found = "\n".join(lines(fit))
    assert found.startswith("Fit\n  objective  elbo, maximised\n")
    assert f"{fit.history['value'][-1]:.6g} nats at the last step" in found
    assert "20, all that were asked for" in found and "loc float32[3]" in found
    assert "float32[3]" in fit._repr_html_() and "averaged" not in found
    large = dataclasses.replace(
        fit,
        params={f"w{i}": np.zeros((100, 100)) for i in range(90)},
        num_skipped=2,
        stop_reason="interrupt",
    )
    found = "\n".join(lines(large))
    assert "(90 in all)" in found and "2 skipped), ended by Ctrl-C" in found
    assert "running average" in found
    unmoved = dataclasses.replace(fit, history={"value": np.zeros(0)}, steps=0)
    assert "no step was taken" in repr(unmoved)


def test_a_fit_of_several_seeds_gives_the_range():
    fit = fitted(2)
    found = "\n".join(lines(fit))
    means = fit.history["value"][-2:].mean(0)
    assert f"{means.min():.6g} to {means.max():.6g} nats over seeds" in found
    assert "seeds      2" in found


def test_draws_are_told_by_site():
    draws = fitted().posterior(jax.random.key(1), 30)
    assert "z float32[3]" in repr(draws) and "draws        30" in lines(draws)[1]
    none = inference.Posterior({"z": np.zeros((0, 3))}, np.zeros(0))
    assert "none" in repr(none) and lines(none)


def test_a_callback_can_print_what_it_sees():
    info = inference.fitting.FitInfo(7, 3, {"a": np.zeros(9)}, (), np.arange(7.0), 0, "min", 0.5)
    assert "6 nats at the last step, minimised" in repr(info) and "a float64[9]" in repr(info)
    seeds = dataclasses.replace(info, values=np.ones((7, 2)))
    assert "[1, 1] nats" in repr(seeds)
    assert lines(dataclasses.replace(info, values=np.zeros(0)))


def test_objectives_name_their_programs():
    assert lines(BOUND)[1:4] == [
        "  name            elbo, maximised",
        "  model           <Program model>",
        "  guide           <Program guide>",
    ]
    weighted = BOUND.with_plate_sizes({"rows": 10}).with_site_weights({"z": 0.5})
    assert "rows 10" in repr(weighted) and "z 0.5" in repr(weighted)
    particles = inference.fivo(model, guide, num_particles=4)
    assert "<Program model>" in repr(particles) and "num_particles" in repr(particles)
    assert lines(particles)


def test_reports_print_facts_and_show_tables_in_notebooks():
    gradient = inference.diagnostics.ParameterGradient(3, 0.1, 0.2, 0.5)
    site = inference.diagnostics.SiteGradient("<reparam>", 0.04, 0.001, 1.0)
    report = inference.diagnostics.GradientReport(
        -1.0, 0.5, 0.04, {f"loc{i}": gradient for i in range(60)}, {"z": site}, 100, 1e-3, 1e4
    )
    assert "-1 nats, sd 0.5" in repr(report) and "z 100% (<reparam>)" in repr(report)
    assert "(60 in all)" in repr(report) and lines(report)
    assert (
        "<td>loc59</td>" in report._repr_html_() and "<td>&lt;reparam&gt;" in report._repr_html_()
    )
    assert "loc59" in str(report)

    refused = inference.diagnostics.Trial("z", "enum", np.nan, np.nan, "no <finite> support")
    chosen = inference.diagnostics.Trial("z", "reparam", 1.0, 2.0, None)
    pilot = inference.diagnostics.Pilot({"z": "reparam"}, (refused, chosen), BOUND)
    assert "2, 1 of them refused" in repr(pilot) and "z reparam" in repr(pilot) and lines(pilot)
    assert "no &lt;finite&gt; support" in pilot._repr_html_()

    ranks = {"k": np.arange(20), "m": np.zeros((20, 2), int)}
    p_values = {"k": np.array(1.0), "m": np.array([1e-9, 1e-8])}
    calibration = inference.diagnostics.Calibration(ranks, 19, p_values)
    assert "k 1, m 1e-09" in repr(calibration) and "3e-09, corrected" in repr(calibration)
    assert "<td>k</td>" in calibration._repr_html_() and lines(calibration)

    bracket = inference.diagnostics.EvidenceBracket(
        np.array([-2.0, -1.0]), np.array([-1.0, 0.0]), 5
    )
    assert "gap                  1 +- 0 nats" in repr(bracket) and lines(bracket)

    weights = inference.diagnostics.importance_diagnostics(np.log(np.arange(1.0, 101)))
    assert "of 100 draws" in repr(weights) and "nats" in lines(weights)[3]


def test_a_plan_prints_its_strategies_and_shows_its_table_in_notebooks():
    @ppl.model
    def many():
        for i in range(40):
            ppl.sample(f"z{i}", dist.Bernoulli(0.5), strategy="straight_through" if i else "enum")

    plan = ppl.expectation(lambda _: ppl.draw(many).log_density).plan(0.5)
    found = "\n".join(lines(plan))
    assert "z0 enum, z1 straight_through (biased)" in found and "(40 in all)" in found
    assert "num_replicates  1" in found and "z39" not in found
    assert (
        "<td>z39</td>" in plan._repr_html_()
        and "<th>evaluations downstream</th>" in plan._repr_html_()
    )
    assert "z39" in str(plan) and len(str(plan).splitlines()) > 40
    assert "elbo" in repr(BOUND.plan(fitted().params, jnp.ones(3)))


def test_a_plan_tells_the_shape_of_events_where_there_are_any():
    def program():
        ppl.sample("z", dist.Normal(jnp.zeros((2, 3)), 1.0).to_event(1))
        ppl.sample("k", dist.Bernoulli(0.5).expand([4]).to_event(1), strategy="enum")
        ppl.sample("p", dist.Dirichlet(jnp.ones(3)))

    plan = ppl.expectation(lambda _: ppl.draw(program).log_density).plan(0.5)
    shapes = {site: (plan[site].shape, plan[site].event_shape) for site in ("z", "k", "p")}
    assert shapes == {"z": ((2,), (3,)), "k": ((4,), ()), "p": ((), (3,))}
    head, row = (str(plan).splitlines()[i].split() for i in (0, 2))
    assert head[2:5] == ["shape", "event", "strategy"] and row[2:5] == ["(2,)", "(3,)", "reparam"]


def test_diffusion_models_and_particles_print_shapes():
    noising = diffusion.VP(0.1, 8.0)
    model = diffusion.gaussian_mixture(noising, [0.4, 0.6], [[-1.0, 0.2], [0.2, 0.5]], 0.3)
    corrected = inference.diffusion.fkc(
        [model, model], noising.log_snr_times(20), exponents=[0.5, 2.0], integrator="exponential"
    )
    assert "steps      20" in repr(corrected) and "float32[21]" in repr(corrected)
    state = Diffused(np.zeros((9, 2)), np.zeros((9, 1, 2)), (None,), None)
    for result in (model, corrected, state, InnerResult(np.zeros(9))):
        assert lines(result)[0] == type(result).__name__


def test_traces_and_series_print_shapes():
    trace = ppl.model(
        lambda: ppl.sample("z", dist.Normal(jnp.zeros(30), 1.0).to_event(1))
    ).simulate(jax.random.key(0))
    assert repr(trace).splitlines() == [
        "Trace",
        "  choices    z float32[30]",
        "  log_probs  z float32[]",
        "  retval     float32[30]",
    ]
    cells = np.ones((3, 4, 2), bool)
    series = imputation.Series(np.zeros((3, 4, 2)), cells, np.zeros((3, 4)), np.ones((3, 4), bool))
    assert repr(series).splitlines()[:2] == ["Series", "  values    float64[3, 4, 2]"]


@pytest.mark.parametrize("kind", ["dataclass", "named tuple"])
def test_what_a_result_lacks_is_told_with_what_it_has(kind):
    @shown
    @dataclasses.dataclass(frozen=True)
    class Found:
        choices: int

        @property
        def broken(self):
            return {}["key"].value

    @shown
    class Drawn(NamedTuple):
        choices: int

    result = Found(1) if kind == "dataclass" else Drawn(1)
    with pytest.raises(
        AttributeError, match="has no 'choises'. Did you mean 'choices'\\? Take one of"
    ):
        _ = result.choises
    with pytest.raises(AttributeError, match="has no 'save'.*to_arviz"):
        result.save("file")
    assert not hasattr(result, "_tables") and copy.deepcopy(result) == result
    if kind == "dataclass":
        with pytest.raises(KeyError, match="key"):
            _ = result.broken
