"""The README's code runs, and its estimator is unbiased."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
import pytest

from _stats import assert_unbiased
from lapilli import ppl

README = (Path(__file__).resolve().parents[1] / "README.md").read_text()
EXAMPLES = re.findall(r"<!-- example -->\n```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.filterwarnings("ignore")
def test_the_thirty_lines_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = EXAMPLES[0].replace("num_steps=1000", "num_steps=200")
    scope = {"__name__": "readme"}
    exec(code, scope)
    history = scope["fit"].history["value"]
    assert history[-20:].mean() > history[:20].mean() + 50
    assert (tmp_path / "means.png").stat().st_size > 1000


def test_the_estimator_of_the_readme_is_unbiased(key):
    scope = {}
    exec(EXAMPLES[1] + EXAMPLES[2], scope)

    def cost(loc):
        with ppl.plate("rows", 2):
            z = ppl.sample("z", dist.Normal(loc, 0.8), strategy=scope["Mirrored"]())
        return (z * jnp.array([1.0, -2.0])).sum() + z[0] * z[1] * 3.0 + (z[0] > 0.5)

    loc = jnp.array([0.4, -0.7])
    jump = jnp.exp(dist.Normal(0.4, 0.8).log_prob(0.5))
    exact = jnp.array([1 + 3 * loc[1] + jump, -2 + 3 * loc[0]])
    grad = ppl.expectation(cost).grad
    keys = jax.random.split(key, 40_000)
    estimates = jax.vmap(lambda k: grad(loc, k))(keys)
    assert_unbiased(estimates, exact)  # finds a bias of 0.2 (7 standard errors)
    assert 7 * (estimates.std(0) / len(estimates) ** 0.5).max() < 0.2
