"""Lost cells: masks, the interval over seeds and sequences, Chung's VRNN against a loop by hand, the script at smoke size."""

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from _examples import load_example


@pytest.fixture(scope="module")
def script():
    return load_example("papers/pv_rnn/lost_cells")


def test_patterns_lose_what_they_say(script):
    rng = np.random.default_rng(0)
    seen = {p: script.masks(p, 200, 50, rng) for p in script.PATTERNS}
    assert seen["complete"].all()
    lost = ~seen["3 of 6 channels"]
    assert np.all(lost.all(1).sum(1) == 3) and np.all(lost.any(1).sum(1) == 3)
    assert abs(seen["half the cells"].mean() - 0.5) < 4.5 * 0.5 / np.sqrt(60_000)
    dead = ~seen["a dead axis"]
    assert not dead[:, :15].any() and np.all(dead[:, 15:].sum(2) == 2)
    assert np.all(dead[:, 20, :3] == dead[:, 20, 3:])
    gaps = seen["gaps"]
    assert np.all(gaps.any(2) == gaps.all(2)) and np.all((~gaps[:, :45, 0]).sum(1) == 15)


def test_interval_adds_variances_over_seeds_and_sequences(script):
    """Crossed effects of known variances: the mean's own variance over 20,000 tables is what the interval has, on average."""
    rng = np.random.default_rng(0)
    tables = rng.normal(0, 0.5, (20_000, 5, 1)) + rng.normal(0, 1.0, (20_000, 1, 20))
    halves = np.array([script.crossed(t)[1] for t in tables[:2000]])
    t = script.stats.t.ppf(0.975, 4)
    own = ((halves / t) ** 2).mean()
    assert abs(own / tables.mean((1, 2)).var() - 1) < 0.1


@pytest.mark.slow  # a program with missing cells is compiled
def test_vrnn_equals_a_loop_by_hand(key):
    """Log-density of given latents and missing cells; the recurrence hears x, drawn where it is not seen, and z."""
    module = load_example("papers/pv_rnn/_vrnn")
    program = module.vrnn_of(key)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 3, 6)), jnp.float32)
    seen = jnp.ones((2, 3, 6), bool).at[0, 1, :3].set(False).at[1, 0].set(False)
    params = program.init(key, x, seen)
    z = jnp.asarray(rng.normal(size=(3, 2, module.NUM_LATENTS)), jnp.float32)
    filled = jnp.asarray(rng.normal(size=(3, 2, 6)), jnp.float32)
    found = program.bind(params).log_density({"z": z, "x_unobserved": filled}, x, seen)
    parts = module.Parts(key)
    total = 0.0
    for row in range(2):
        h = jnp.zeros(module.NUM_UNITS)
        for t in range(3):
            total += module.law(parts.prior(h)).log_prob(z[t, row])
            mean = parts.output(jnp.concatenate([z[t, row], h]))
            heard = jnp.where(seen[row, t], x[row, t], filled[t, row])
            total += dist.Normal(mean, 1.0).log_prob(heard).sum()
            h = parts.cell(jnp.concatenate([heard, z[t, row]]), h)
    np.testing.assert_allclose(found, total, rtol=1e-5)


@pytest.mark.slow  # six fits and nine predictors are compiled: two minutes of CPU
def test_lost_cells_at_smoke_size(script, tmp_path, capsys):
    data = script.main(["--smoke", "--out", str(tmp_path)])
    assert (tmp_path / "lost_cells.nc").exists()
    assert capsys.readouterr().out.count(" is chosen") == 6
    assert data.mse.shape == (9, 5, 2, 2, 5) and np.all(np.isfinite(data.mse))
    complete, lost = (data.mse.sel(pattern=p) for p in ("complete", "half the cells"))
    assert not np.allclose(complete, lost)
