"""Errors that begin outside of the package are told with the program's statement, and calls outside of a run with what to do."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import pytest

from lapilli import inference, ppl

KEY = jax.random.key(0)


def negative(x):
    ppl.sample("a", dist.Normal(0.0, 1.0))
    ppl.sample("b", dist.Gamma(-1.0, 1.0))


def misfit(x):
    ppl.sample("a", dist.Normal(0.0, 1.0))
    numpyro.sample("b", dist.Normal(jnp.zeros(3), jnp.ones(2)))


def in_steps(x):
    def step(carry, _):
        ppl.sample("a", dist.Normal(0.0, 1.0))
        ppl.sample("b", dist.Gamma(-1.0, 1.0))
        return carry, None

    ppl.scan(step, 0.0, None, length=2)


def first(x):
    ppl.sample("b", dist.Gamma(-1.0, 1.0))


CASES = {
    "constructor": (negative, r"after site 'a'.*concentration.*`ppl.sample\(\"b\", dist.Gamma"),
    "shapes": (misfit, r"after site 'a'.*broadcasting.*`numpyro.sample\(\"b\", dist.Normal"),
    "steps": (in_steps, r"after site 'a'.*concentration.*`ppl.sample\(\"b\", dist.Gamma"),
    "first": (first, r"before its first site.*concentration.*`ppl.sample\(\"b\""),
}
RUNS = {
    "simulate": lambda p: ppl.model(p).simulate(KEY, 0.0),
    "under jit": lambda p: jax.jit(ppl.model(p).simulate)(KEY, 0.0),
    "guide": lambda p: inference.elbo(lambda x: None, p).value({}, KEY, 0.0),
    "expectation": lambda p: ppl.expectation(lambda m: (p(0.0), m)[1]).value(0.3, KEY),
    "program inside": lambda p: ppl.model(lambda x: p(x)).simulate(KEY, 0.0),
}


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("case", CASES)
def test_errors_of_distributions_name_the_statement(case, run):
    program, message = CASES[case]
    with pytest.raises(ValueError, match=rf"^Site 'b': .*line \d+ of 'test_foreign.py', {message}"):
        RUNS[run](program)


def test_a_statement_of_several_lines_is_named_and_a_law_that_is_made_before_is_told_by_its_line():
    def program():
        ppl.sample("first", dist.Normal(0.0, 1.0))
        ppl.sample(
            "second",
            dist.TransformedDistribution(
                dist.Normal(0.0, -1.0),
                [],
            ),
        )

    with pytest.raises(
        ValueError, match=r"^Site 'second': .*after site 'first'.*scale.*`dist.Normal"
    ):
        ppl.model(program).simulate(KEY)

    def before():
        ppl.sample("first", dist.Normal(0.0, 1.0))
        law = dist.Normal(0.0, -1.0)
        ppl.sample("second", law)

    with pytest.raises(
        ValueError, match=r"^<Program before>, line .*after site 'first'.*`law = dist.Normal"
    ):
        ppl.model(before).simulate(KEY)


class Broken(dist.Normal):
    """Fails where it is told to."""

    def __init__(self, where):
        self.where = where
        super().__init__(jnp.zeros(2), 1.0)

    def tree_flatten(self):
        return (self.loc, self.scale), self.where

    def sample(self, key, sample_shape=()):
        return super().sample(key, sample_shape) if self.where != "draw" else {}["draw"]

    def log_prob(self, value):
        if self.where == "branch" and (value > 0).all():  # a number that is not known yet
            return value
        return jnp.zeros(3) + value if self.where == "shape" else super().log_prob(value)

    @property
    def support(self):
        return dist.constraints.real if self.where != "support" else [][0]


@pytest.mark.parametrize("where", ["draw", "branch", "shape", "support"])
def test_errors_of_draws_supports_and_densities_name_the_site(where):
    def program(x=None):
        with ppl.plate("rows", 2):
            ppl.sample("b", Broken(where), obs=x)

    observed = jax.jit(lambda x: ppl.model(program).log_density({}, x))
    runs = [lambda: ppl.expectation(lambda p: p * ppl.draw(program).log_density).value(1.0, KEY)]
    runs += [lambda: observed(jnp.zeros(2))] * (where in ("branch", "shape"))
    for run in runs:
        with pytest.raises(Exception, match="^['\"]?Site 'b': Broken"):
            run()


def test_other_errors_pass_unchanged():
    def program():
        raise ValueError("my own")

    with pytest.raises(ValueError, match="^my own$"):
        ppl.model(program).simulate(KEY)


def test_a_statement_outside_of_a_run_says_so():
    for call in (
        lambda: ppl.sample("z", dist.Normal(0.0, 1.0)),
        lambda: inference.elbo(negative(0.0), first),
    ):
        with pytest.raises(
            RuntimeError,
            match=r"Site '[za]': ppl.sample was called outside of a run.*not elbo\(model\(x\)",
        ):
            call()
    assert float(ppl.sample("z", dist.Normal(0.0, 1.0), obs=1.5)) == 1.5


def test_the_result_of_a_call_is_no_program():
    with pytest.raises(TypeError, match=r"got NoneType. Pass the function itself"):
        inference.elbo(None, first)
