"""Codes of categories are indices and classes; what would read them as numbers, or as entries of another list, is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pandas as pd
import pytest

from lapilli import inference, ppl

KEY = jax.random.key(0)
CALLS = {
    "fit": lambda model, *args: inference.fit(model, args=args, num_steps=1, progress=False, k_hat="skip"),
    "infer": lambda model, *args: inference.infer(model, args=args, progress=False),
    "nuts": lambda model, *args: inference.nuts(model, args=args, progress=False),
    "smc": lambda model, *args: inference.smc(model, KEY, *args, num_particles=4),
    "tempered_smc": lambda model, *args: inference.tempered_smc(model, KEY, *args, num_particles=4),
}  # fmt: skip


def of(values, levels=None):
    return pd.Series(pd.Categorical(values, categories=levels))


def line(x, y):
    slope = ppl.sample("slope", dist.Normal(0.0, 1.0))
    with ppl.plate("rows", 4):
        ppl.sample("y", dist.Normal(slope * x, 1.0), obs=y)


def walk(x, y):
    slope = ppl.sample("slope", dist.Normal(0.0, 1.0))

    def step(level, row):
        level = level + slope * row[0]
        ppl.sample("y", dist.Normal(level, 1.0), obs=row[1])
        return level, None

    ppl.scan(step, 0.0, (x, y))


def match(home, away, y):
    skill = ppl.sample("skill", dist.Normal(0.0, 1.0).expand([4]).to_event(1))
    with ppl.plate("rows", 4):
        ppl.sample("y", dist.Normal(skill[home] - skill[away], 1.0), obs=y)


def two_tables(home, away, y):
    attack = ppl.sample("attack", dist.Normal(0.0, 1.0).expand([4]).to_event(1))
    defence = ppl.sample("defence", dist.Normal(0.0, 1.0).expand([4]).to_event(1))
    with ppl.plate("rows", 4):
        ppl.sample("y", dist.Normal(attack[home] - defence[away], 1.0), obs=y)


def observe(y, law):
    rate = ppl.sample("rate", dist.Beta(1.0, 1.0))
    with ppl.plate("rows", 4):
        ppl.sample("y", law(rate), obs=y)


Y = np.array([0.1, 0.9, 0.2, 2.0])


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("program", [line, walk])
def test_levels_are_not_computed_with_by_their_codes(call, program):
    """Doses 10, 20, 40 were read as 0, 1, 2, and a slope came out ten times as large."""
    with pytest.raises(
        ValueError, match=r"'x' holds categories of pandas, \[10, 20, 40\].*computed with as real"
    ):
        CALLS[call](program, of([10, 20, 40, 10]), Y)


@pytest.mark.parametrize("levels", [["low", "mid", "top"], pd.interval_range(0, 3)], ids=str)
def test_names_are_no_numbers(levels):
    with pytest.raises(ValueError, match="'x' holds categories.*effect"):
        CALLS["smc"](line, of([levels[0], levels[1], levels[2], levels[0]]), Y)


@pytest.mark.parametrize("values", [["no", "yes", "no", "yes"], [False, True] * 2, [0, 1, 2, 0]])
def test_two_levels_are_0_and_1_and_numbers_that_are_their_codes_are_numbers(values):
    program, codes = ppl.as_program(line), of(values).cat.codes.to_numpy(float)
    CALLS["smc"](line, of(values), Y)
    there = {"slope": jnp.array(0.7)}
    assert program.log_density(there, of(values), Y) == program.log_density(there, codes, Y)


@pytest.mark.parametrize("call", CALLS)
def test_one_table_has_one_list_of_levels(call):
    """Teams at home and away, each with levels of its own: code 0 is team a in one and team b in the other."""
    with pytest.raises(
        ValueError, match=r"'home' and 'away' index one table.*\[a, b, c\] and \[b, c, d\]"
    ):
        CALLS[call](match, of([*"abca"]), of([*"bcdd"]), Y)


def test_tables_of_their_own_and_levels_in_common_may_stay():
    CALLS["smc"](two_tables, of([*"abca"]), of([*"bcdd"]), Y)
    CALLS["smc"](match, of([*"abca"], [*"abcd"]), of([*"bcdd"], [*"abcd"]), Y)


@pytest.mark.parametrize("call", ["fit", "infer", "smc"])
@pytest.mark.parametrize(
    ("law", "values"),
    [
        (lambda p: dist.Poisson(10 * p), [3, 5, 9, 3]),
        (lambda p: dist.Binomial(20, p), [3, 5, 9, 3]),
        (dist.Bernoulli, [1, 1, 1, 1]),
    ],
    ids=["Poisson", "Binomial", "Bernoulli"],
)
def test_levels_are_not_counted_by_their_codes(call, law, values):
    with pytest.raises(ValueError, match=r"'y' holds categories.*would observe their codes"):
        CALLS[call](observe, of(values), law)


@pytest.mark.parametrize("values", [["no", "yes", "no", "yes"], [1, 2, 1, 2], [0, 1, 1, 1]])
def test_two_kinds_are_outcomes(values):
    CALLS["smc"](observe, of(values), dist.Bernoulli)
