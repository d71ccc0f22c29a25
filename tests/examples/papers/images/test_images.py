"""Scripts on models of images at smoke size."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from _examples import kept_by, load_example

from lapilli.models import diffusion


def metrics(name, out):
    """What the script finds, once it has run without warnings of ours."""
    return kept_by(f"images/{name}", out, f"{name}.png", "draws.nc", "report.txt")


@pytest.mark.slow  # trains three models
def test_two_stages_run(tmp_path):
    """400 steps of training: of distances nothing is asked but that real images have the least."""
    found = metrics("two_stage", tmp_path)
    distance = {name: rows[0]["Frechet"] for name, rows in found["cells"].items()}
    assert (
        abs(distance["real images"]) < 5 < min(v for n, v in distance.items() if n != "real images")
    )
    assert distance["VAE, mixture"] < distance["VAE, N(0, I)"]
    mixture, normal = (found["bounds"][f"two stages, {p}"][0] for p in ("mixture", "N(0, I)"))
    assert mixture > normal


@pytest.mark.slow  # trains five models
def test_bits_of_all_families_compare(tmp_path):
    found = metrics("bits_per_dimension", tmp_path)
    nats = {name: values[0] for name, values in found["nats"].items()}
    assert nats["VAE, ELBO"] < nats["VAE, IWELBO"]
    plain = nats["plain, uniform noise"], nats["diffusion, plain network"]
    assert max(plain) < nats["diffusion"]
    assert nats["independent pixels"] < nats["any order"] < 0
    assert found["samples"]["real"]["precision"][0] > 0.5


@pytest.mark.slow  # trains four models
def test_digits_have_the_attributes_that_were_asked_for(tmp_path):
    """Beyond chance, 1/30, by 4.5 standard errors of 400 images; the divergence falls with its weight, the pixels' part too."""
    found = metrics("attributes", tmp_path)
    little, much = (found[f"beta = {b}, learned"] for b in ("0.5", "4"))
    assert min(little["both"]) > 1 / 30 + 4.5 * (1 / 30 / 400) ** 0.5
    assert min(little["divergence"]) > max(much["divergence"])
    assert min(little["pixels"]) > max(much["pixels"])
    assert found["real"]["ink"] == 1 and found["real"]["class"] > 0.85


@pytest.mark.slow  # trains two models
def test_images_are_functions_of_a_place(tmp_path):
    found = {name: values[0] for name, values in metrics("coordinates", tmp_path).items()}
    assert found["28 averaged to 14, rms"] < 0.1 and found["56 averaged to 14, rms"] < 0.1
    assert all(found[f"held out at {side}, rms"] < 0.3 for side in (7, 14, 28))


@pytest.mark.slow  # trains three models
def test_a_swapped_database_brings_its_classes(tmp_path):
    found = metrics("retrieval", tmp_path)
    share = {name: row["share 5 to 9"][0] for name, row in found["swapped"].items()}
    assert share["held-out images"] > 0.9 and share["neighbour and noise"] > 0.8
    assert share["and around the mean"] > share["without retrieval"] + 0.2


@pytest.mark.slow  # trains eight models
def test_tokens_of_three_kinds_have_likelihoods(tmp_path):
    """40 steps of training on 8 values: better than even ones, which have 49 log 8 = 101.9 nats; held-out tokens draw best."""
    found = metrics("tokens", tmp_path)
    for row in found.values():
        assert row["tokens, causal"] > -95 and row["tokens, any order"] > -95
        assert 0 < row["flips"] < 0.5 and row["probe"] > 0.2
        assert row["Frechet, held-out tokens"] < row["Frechet, causal"]


@pytest.mark.slow  # imports what the scripts need
def test_levels_around_a_set_have_the_weights_of_its_mean():
    """Nothing learned beyond the set's mean m: each pixel has the weights exp(-(v - m)^2 / 2) on its levels."""
    models, noising = load_example("papers/images/_two_stage"), diffusion.VP()
    rng, grid = np.random.default_rng(0), models.GRID
    neighbours = jnp.asarray(rng.normal(size=(4, 3)), jnp.float32)
    net = diffusion.MLP((3, len(grid)), encoder=lambda images: jnp.zeros(32), key=jax.random.key(0))
    net = eqx.tree_at(lambda n: n.last, net, jax.tree.map(jnp.zeros_like, net.last))
    around = diffusion.LevelNet(models.Around(net, jnp.zeros(())), grid)
    found = diffusion.from_network(around, noising, (3,), context=neighbours)
    x = jnp.array([0.3, -1.0, 2.0])
    for t in (0.01, 0.3, 1.0):
        exact = [
            diffusion.gaussian_mixture(noising, np.exp(-0.5 * (grid - m) ** 2), grid[:, None], 0.0).score(x[i : i + 1], t)[0]
            for i, m in enumerate(neighbours.mean(0))
        ]  # fmt: skip
        np.testing.assert_allclose(found.score(x, t), exact, rtol=1e-4, atol=1e-3)
