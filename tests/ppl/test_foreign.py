"""Errors that begin outside of the package are told with the program's statement, and calls outside of a run with what to do."""

from __future__ import annotations

import argparse

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
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


def empty(x):
    ppl.sample("a", dist.Normal(0.0, 1.0))
    with numpyro.plate("rows", 0):
        numpyro.sample("b", dist.Normal(0.0, 1.0))


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


@pytest.mark.parametrize("run", ["simulate", "guide"])
def test_a_plate_of_numpyros_without_rows_is_named(run):
    """NumPyro asserts, with eight words."""
    told = r"line \d+ of 'test_foreign.py', after site 'a': size of plate.*`with numpyro.plate.*at least one row: leave"
    with pytest.raises(ValueError, match=told):
        RUNS[run](empty)


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("case", CASES)
def test_errors_of_distributions_name_the_statement(case, run):
    program, message = CASES[case]
    with pytest.raises(ValueError, match=rf"^Site 'b': .*line \d+ of 'test_foreign.py', {message}"):
        RUNS[run](program)


ONE_LINE = {
    "first": ('ppl.sample("a", dist.Gamma(-1.0, 1.0)); ppl.sample("b", dist.Normal(0.0, 1.0))', "a"),
    "second": ('ppl.sample("a", dist.Normal(0.0, 1.0)); ppl.sample("b", dist.Gamma(-1.0, 1.0))', "b"),
    "both": ('ppl.sample("a", dist.Gamma(-1.0, 1.0)); ppl.sample("b", dist.Gamma(-1.0, 1.0))', "a"),
    "within": ('f(ppl.sample("é", dist.Normal(0.0, 1.0)), ppl.sample("b", dist.Gamma(-1.0, 1.0)))', "b"),
    "split": ('ppl.sample("a", dist.Normal(0.0, 1.0)); ppl.sample(\n        "b",\n        dist.Gamma(-1.0, 1.0))', "b"),
}  # fmt: skip


@pytest.mark.parametrize("case", ONE_LINE)
def test_of_two_statements_on_a_line_the_one_that_failed_is_named(case, tmp_path):
    line, site = ONE_LINE[case]
    file = tmp_path / f"{case}.py"
    file.write_text(f"def program(x):\n    f = lambda *args: None\n    {line}\n")
    names = {"ppl": ppl, "dist": dist}
    exec(compile(file.read_text(), file, "exec"), names)
    with pytest.raises(ValueError, match=f"^Site '{site}': .*concentration"):
        ppl.model(names["program"]).simulate(KEY, 0.0)


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
        if self.where == "package":
            raise ImportError("Install another package.")
        return jnp.zeros(3) + value if self.where == "shape" else super().log_prob(value)

    @property
    def support(self):
        return dist.constraints.real if self.where != "support" else [][0]


@pytest.mark.parametrize("where", ["draw", "branch", "shape", "support", "package"])
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


def product(x):
    b = ppl.sample("a", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    ppl.sample("b", dist.Normal(x @ b, 1.0))


def sum_of_two(x):
    b = ppl.sample("a", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    mean = x + b
    ppl.sample("b", dist.Normal(mean, 1.0).to_event(1))


def groups(x):
    b = ppl.sample("a", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    ppl.sample("b", dist.Normal(b[x], 1.0).to_event(1))


def network(x):
    net = ppl.module("a", eqx.nn.Linear(2, 1, key=KEY))
    ppl.sample("b", dist.Normal(net(x), 1.0).to_event(1))


def rows_of(x):
    ppl.sample("b", dist.Normal(jnp.zeros(x.shape), 1.0))


X = jnp.zeros(3)
SHAPES = r"x is float32\[3\], b is float32\[2\]"
OF_ARRAYS = {
    "product": (product, X, rf"^Site 'b': .*after site 'a': `ppl.sample.*dot_general.*There {SHAPES}. Correct"),
    "sum": (sum_of_two, X, rf"^<Program.*after site 'a': `mean = x \+ b` cannot.*broadcasting.*{SHAPES}"),
    "float index": (groups, X, r"^Site 'b': .*integer.*x is float32\[3\]. Give whole numbers from 0"),
    "boolean index": (groups, X > 1, r"^Site 'b': .*boolean ind.* There .*x is bool\[3\]. Use jnp.where"),
    "network": (network, X, r"^Site 'b': .*test_foreign.py.*`ppl.sample\(.b., dist.Normal\(net\(x\)"),
    "None": (rows_of, None, "asks None for its shape. .*take their number from"),
    "tuple": (rows_of, (X,), "asks a tuple for its shape. Pass an array"),
}  # fmt: skip


@pytest.mark.parametrize("case", OF_ARRAYS)
def test_errors_of_arrays_name_the_statement_and_the_shapes(case):
    program, x, message = OF_ARRAYS[case]
    with pytest.raises((TypeError, ValueError, IndexError, AttributeError), match=message):
        ppl.model(program).simulate(KEY, x)


def test_errors_that_a_program_raises_itself_stay_as_they_are():
    def program(x):
        raise ValueError("of my own")

    with pytest.raises(ValueError, match="^of my own$"):
        ppl.model(program).simulate(KEY, X)


NORMAL = dist.Normal(0.0, 1.0)


def twice():
    with ppl.plate("rows", 3), ppl.plate("rows", 3):
        ppl.sample("b", NORMAL)


ONCE = lambda carry, x: carry
WIDER = lambda carry, x: (carry + X, None)
CALLS = {
    "keyword": (lambda: ppl.sample("b", NORMAL, observed=1.0), "^Site 'b': ppl.sample: .*'observed'. Did you mean 'obs'"),
    "no name": (lambda: ppl.sample(NORMAL), r"argument: 'distribution'. Call it as ppl.sample\(name, distribution, "),
    "swapped": (lambda: ppl.sample(NORMAL, "b"), "^ppl.sample: name must be a word, got"),
    "class": (lambda: ppl.sample("b", dist.Normal), r"^Site 'b': Normal is a class and no law yet. Call it"),
    "number": (lambda: ppl.sample("b", 1.0), "^Site 'b': a law of numpyro.distributions is needed, got 1.0"),
    "two plates": (twice, "^Site 'b': two plates around it are named 'rows', one inside"),
    "plate": (lambda: ppl.plate("rows", X).__enter__(), r"^Plate 'rows': its size is an array .*Pass x.shape"),
    "no size": (lambda: ppl.plate("rows").__enter__(), r"^Plate 'rows': its size is missing; .* integer. Pass x.shape"),
    "text": (lambda: ppl.plate("rows", "3").__enter__(), r"^Plate 'rows': its size is '3'; .* integer. Pass x.shape"),
    "share": (lambda: ppl.plate("rows", 3, subsample_size=0.5).__enter__(), r"^Plate 'rows': its subsample_size is 0.5; "),
    "step of one": (lambda: ppl.scan(ONCE, 0.0, X), "^ppl.scan: the step returned .*Write return carry, y"),
    "carry": (lambda: ppl.scan(WIDER, 0.0, X), r"^ppl.scan: the step hands on something else.*float32\[3\].*jnp.zeros"),
}  # fmt: skip


@pytest.mark.parametrize("case", CALLS)
def test_statements_that_are_called_wrongly_say_how(case):
    call, message = CALLS[case]
    with pytest.raises((TypeError, ValueError), match=message):
        ppl.model(lambda: (ppl.sample("first", NORMAL), call())).simulate(KEY)


def test_a_site_without_a_value_is_told_where_zero_would_be_outside_of_its_support():
    def program():
        s = ppl.sample("s", dist.HalfNormal(1.0))
        ppl.sample("m", dist.Normal(0.0, s))

    with pytest.raises(ValueError, match=r"missing \['s'\]"):
        ppl.model(program).log_density({"m": 0.5})


def reads_an_argument(x):
    ppl.sample("a", dist.Normal(0.0, 1.0))
    ppl.sample("b", dist.Normal(jnp.zeros(len(np.unique(x))), 1.0).to_event(1))


def reads_a_draw(x):
    a = ppl.sample("a", dist.Normal(0.0, 1.0))
    if a > 0:
        ppl.sample("b", dist.Normal(a, 1.0))


def reads_a_count(x):
    n = ppl.sample("a", dist.Poisson(3.0), strategy="reinforce")
    return jnp.zeros(int(n)), range(n)


@pytest.mark.parametrize(
    ("program", "line"),
    [
        (reads_an_argument, r"len\(np.unique\(x\)\)"),
        (reads_a_draw, r"if a > 0:"),
        (reads_a_count, r"int\(n\)"),
    ],
)
def test_values_that_cannot_be_read_are_told_with_the_statement(program, line):
    expectation = ppl.expectation(lambda m, x: (program(x), m)[1], strategies="auto")
    message = rf"line \d+ of 'test_foreign.py', after site 'a': `.*{line}.*` reads the value .*functools.partial"
    for run in (expectation.value, jax.jit(expectation.value)):
        with pytest.raises(TypeError, match=message):
            run(0.3, KEY, jnp.array([1, 1, 2]))


def test_the_argument_that_a_line_reads_is_named():
    def groups(x, index, y=None):
        with ppl.plate("groups", int(index.max()) + 1):
            ppl.sample("a", dist.Normal(0.0, 1.0))

    with pytest.raises(TypeError, match=r"here that may be index: functools.partial\(program, index=index\)"):  # fmt: skip
        jax.jit(lambda x, i: ppl.model(groups).simulate(KEY, x, i).log_density)(1.0, jnp.arange(3))


def test_arguments_that_nobody_can_compare_are_named():
    def program(x, options):
        ppl.sample("a", dist.Normal(0.0, options["loc"].value))

    options = {"loc": argparse.Namespace(value=2.0)}
    message = (
        r"Argument 1 of the program, args\[1\]\['loc'\], is of type Namespace, .*functools.partial"
    )
    for objective in (inference.elbo(program, program), inference.fivo(program, num_particles=2)):
        with pytest.raises(TypeError, match=message):
            objective.value({}, KEY, jnp.zeros(2), options)
    assert jnp.isfinite(
        inference.elbo(program, program).value({}, KEY, jnp.zeros(2), {"loc": Fixed()})
    )


class Fixed:
    value = 2.0


def test_a_path_in_the_place_of_data_is_told():
    def program(x):
        ppl.sample("x", dist.Normal(0.0, 1.0).expand([x.shape[0]]).to_event(1), obs=x)

    for run in (
        lambda: ppl.model(program).simulate(KEY, "data.csv"),
        lambda: inference.fit(program, args=("data.csv",)),
    ):
        with pytest.raises(
            AttributeError, match="asks the text 'data.csv' for its shape.*reads no file"
        ):
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


def test_a_start_at_random_is_bound_before_scoring():
    def program():
        ppl.sample("z", dist.Normal(ppl.param("loc", lambda key: jax.random.normal(key)), 1.0))

    with pytest.raises(TypeError, match=r"test_foreign.py.*needs a random key.*program.bind"):
        ppl.model(program).log_density({"z": 0.0})


def test_a_package_that_does_not_fit_is_told_with_its_line(tmp_path, monkeypatch):
    (tmp_path / "misfit.py").write_text("import jax\njax.no_such_name\n")
    monkeypatch.syspath_prepend(tmp_path)

    def program():
        import misfit  # noqa: F401

    with pytest.raises(AttributeError, match=r"`import misfit.*does not fit jax \d.*no_such_name"):
        ppl.model(program).simulate(KEY)


def test_an_object_that_has_changed_is_told():
    """A compiled step knows it by identity, and went on with its old fields."""

    class Options:
        def __init__(self):
            self.scale, self.names = 2.0, ["a"]

    def guide(options):
        ppl.sample("a", dist.Normal(0.0, options.scale))

    def program(options):
        guide(options)
        ppl.sample("x", dist.Normal(0.0, options.scale), obs=0.5)

    options, other = Options(), Options()
    for objective in (inference.elbo(program, guide), inference.fivo(program, num_particles=2)):
        options.scale = 2.0
        value = objective.value({}, KEY, options)
        assert objective.value({}, KEY, options) == value == objective.value({}, KEY, other)
        options.scale = 5.0
        with pytest.raises(
            ValueError, match=r"type Options, and its fields \['scale'\] have changed"
        ):
            objective.value({}, KEY, options)
        options.scale = 2.0
        options.names.append("b")
        with pytest.raises(ValueError, match=r"fields \['names'\] have changed.*another object"):
            objective.value({}, KEY, options)
        options.names.pop()
