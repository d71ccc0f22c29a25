"""Plates that draw their rows: what is wrong with a row is told whether the first draw meets it or not."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from lapilli import inference, ppl

GROUPS = np.arange(60) % 3
Y = np.linspace(-1.0, 1.0, 60)


def model(statement, g, y):
    effect = ppl.sample("effect", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    with ppl.plate("rows", 60, subsample_size=4) as rows:
        statement(effect, rows, g, y)


def indexed(effect, rows, g, y):
    ppl.sample("y", dist.Normal(effect[g[rows]], 1.0), obs=y[rows])


def subsampled(effect, _, g, y):
    g, y = ppl.subsample(g, event_dim=0), numpyro.subsample(y, event_dim=0)
    ppl.sample("y", dist.Normal(effect[g], 1.0), obs=y)


def guarded(effect, rows, g, y):
    known = jnp.where((g >= 0) & (g < 3), effect[g], 0.0)
    ppl.sample("y", dist.Normal(known[rows], 1.0), obs=y[rows])


def by_four(effect, rows, g, y):
    """It cannot be run with other than four rows."""
    ppl.sample("y", dist.Normal(effect[g[rows]] + jnp.zeros(4), 1.0), obs=y[rows])


def fit(statement, g):
    args = (statement, g, Y)
    key = jax.random.key(0)
    return inference.fit(model, args=args, num_steps=1, progress=False, k_hat="skip", key=key)


def with_one(code):
    return np.where(np.arange(60) == 7, code, GROUPS)


@pytest.mark.parametrize("statement", [indexed, subsampled])
@pytest.mark.parametrize(("g", "value", "count"), [(GROUPS + 1, 3, 20), (with_one(3), 3, 1), (with_one(-1), -1, 1)])  # fmt: skip
def test_a_group_that_is_not_there_is_told_whether_it_is_drawn_or_not(statement, g, value, count):
    with pytest.raises(ValueError, match=rf"'g' of .* holds {value} at \[\d\] \({count} such\)"):
        fit(statement, g)


@pytest.mark.parametrize("statement", [indexed, subsampled, guarded, by_four])
def test_groups_that_are_there_may_be_drawn(statement):
    fit(statement, GROUPS)


def test_a_guard_is_one_for_all_rows():
    fit(guarded, with_one(-1))
