"""Tables with relations: what the bijection keeps, and the script at smoke size."""

import jax
import numpy as np
import pytest
from _examples import load_example
from numpyro.distributions.transforms import biject_to


@pytest.mark.slow(reason="a real table")
def test_no_real_row_breaks_a_relation_and_free_numbers_make_it_again():
    example = load_example("papers/structure/relations")
    table = example.load()
    inside = example.relations(table.names)
    assert table.x.shape == (554, 20) and (inside.shortfall(table.x) == 0).all()
    to_rows = biject_to(inside)
    np.testing.assert_allclose(to_rows(to_rows.inv(table.x)), table.x, rtol=1e-3, atol=1e-4)
    wild = 3.0 * jax.random.normal(jax.random.key(0), (1000, 20))
    assert (inside.shortfall(wild) > 0).any() and (inside.shortfall(to_rows(wild)) == 0).all()


@pytest.mark.slow
def test_the_script_runs(tmp_path):
    (scores,) = load_example("papers/structure/relations").main(["--smoke", "--out", str(tmp_path)])
    assert scores["autoencoder"].violated > 0
    assert scores["autoencoder, bijection"].violated == scores["autoencoder, clamped"].violated == 0
    assert (tmp_path / "relations.png").exists() and (tmp_path / "relations.nc").exists()
