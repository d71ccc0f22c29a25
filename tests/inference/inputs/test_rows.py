"""What belongs to rows: told by tracing with more of them, whatever other numbers are as large."""

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from _random_rows import random_program

from lapilli import ppl
from lapilli.inference.inputs._rows import met, rows_of


def found(model, args, targets=("y",)):
    program = ppl.as_program(model)
    return rows_of(lambda args: met(program, args), args, targets=targets)


def followers(model, args):
    """Latent sites that belong to the rows of which y is predicted."""
    rows = [r for r in found(model, args) if "y" in r.names("site")]
    return {name for r in rows for name in r.names("site")} - {"y"}


@pytest.mark.slow_for("1", "2", "3")
@pytest.mark.parametrize(
    "seed", [*range(4), *(pytest.param(s, marks=pytest.mark.slow) for s in range(4, 60))]
)
def test_what_grows_with_the_rows_belongs_to_them_and_nothing_else_does(seed):
    rng = np.random.default_rng(seed)
    for is_observed in (True, False):
        case = random_program(rng)
        args = case.args if is_observed else case.args[:3]
        assert followers(case.model, args) == case.of_rows, (case.shared, case.size, len(args[0]))


@pytest.mark.slow
def test_equal_lengths_alone_would_say_something_else():
    """The rule of old, an axis as long as the arguments, is wrong of a quarter of these programs or more."""
    wrong = 0
    for seed in range(24):
        case = random_program(np.random.default_rng(seed))
        sites = met(ppl.as_program(case.model), case.args).shapes
        equal = {n for (kind, n), s in sites.items() if kind == "site" and len(case.args[0]) in s}
        wrong += equal - {"y"} != case.of_rows
    assert wrong >= 6


X = np.linspace(0.0, 1.0, 6, dtype=np.float32)


def draws(name, size):
    with ppl.plate(f"{name}s", size):
        return ppl.sample(name, dist.Normal(0.0, 1.0))


def in_columns(x, y=None):
    """Two covariates in the rows of an array, and observations along its columns."""
    slopes = draws("slope", x.shape[0])
    ppl.sample("y", dist.Normal(slopes @ x + draws("u", x.shape[1]), 1.0).to_event(1), obs=y)


def distances(d, y=None):
    f = ppl.sample("f", dist.MultivariateNormal(jnp.zeros(len(d)), jnp.exp(-d) + jnp.eye(len(d))))
    ppl.sample("y", dist.Normal(f, 1.0).to_event(1), obs=y)


def counted(num_rows, num_parts, y=None):
    total = draws("part", num_parts).sum()
    with ppl.plate("rows", num_rows):
        ppl.sample("y", dist.Normal(total, 1.0), obs=y)


def in_twos(x, y=None):
    mean = (x.reshape(-1, 2) + draws("pair", len(x) // 2)[:, None]).reshape(-1)
    ppl.sample("y", dist.Normal(mean, 1.0).to_event(1), obs=y)


CASES = {
    "columns": (in_columns, (np.stack([X, X]),), [(0, 1)], {"u"}),
    "columns with observations": (in_columns, (np.stack([X, X]), X), [(0, 1), (1, 0)], {"u"}),
    "distances": (distances, (np.zeros((6, 6)), X), [(0, 0), (0, 1), (1, 0)], {"f"}),
    "integers": (counted, (3, 3), [(0, None)], set()),
    "pairs of pairs": (in_twos, (X,), [(0, 0)], {"pair"}),
}


@pytest.mark.parametrize("name", CASES)
def test_axes_of_the_arguments_that_are_rows_together(name):
    model, args, axes, names = CASES[name]
    rows = [r for r in found(model, args) if "y" in r.names("site")]
    assert [sorted(r.axes) for r in rows] == [axes]
    assert rows[0].names("site") - {"y"} == names and rows[0].why is None


def test_an_argument_that_cannot_be_longer_leaves_the_rows_of_the_others_alone():
    """A table of six, as the program says, beside six rows."""

    def model(x, group, table, y=None):
        mean = x + (table + draws("thing", 6))[group]
        ppl.sample("y", dist.Normal(mean, 1.0).to_event(1), obs=y)

    rows = found(model, (X, np.arange(6), X, X))
    assert [[axis.leaf for axis in r.axes] for r in rows] == [[0, 1, 3], [2]]
    assert rows[0].names("site") == {"y"} and not rows[0].why and rows[1].why


def test_parameters_and_plates_follow_as_sites_do():
    def model(x):
        scale = ppl.param("scale", 1.0)
        shift = ppl.param("shift", jnp.zeros(x.shape[0]))
        with ppl.plate("rows", x.shape[0]):
            ppl.sample("y", dist.Normal(shift, scale))

    (rows,) = found(model, (X,))
    assert rows.follows == {
        ("site", "y"): {0}, ("param", "shift"): {0}, ("plate", "rows"): {0}
    }  # fmt: skip


def test_where_no_more_rows_can_be_traced_lengths_decide_and_the_reason_is_told():
    known = jnp.asarray(X)

    def model(x, y=None):
        pairs = draws("pair", len(x) // 2)  # met before the run fails: its shape tells
        group, other = draws("group", 6), draws("other", 2)
        mean = x + known + other.sum() + pairs.sum() + group.sum()
        ppl.sample("y", dist.Normal(mean, 1.0).to_event(1), obs=y)

    (rows,) = found(model, (X,))
    assert rows.names("site") == {"y", "pair", "group"} and not rows.longer
    assert rows.why and "incompatible shapes" in rows.why
