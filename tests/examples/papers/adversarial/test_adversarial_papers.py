"""Papers on adversarial training: exact fixed points, exact kernels, an exact law of patches; the scripts at smoke size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from _examples import load_example, run_example


def test_auxiliary_classifiers_sharpen_and_critics_of_pairs_do_not():
    points = load_example("papers/adversarial/_fixed_points")
    spread, apart = points.fixed_point("ADC, pairs only", points.normals, 800)
    assert spread == pytest.approx(1.0, abs=0.01) and apart < 0.01
    spread, apart = points.fixed_point("AC", points.normals, 800)
    assert spread < 0.8 and apart > 0.1


@pytest.mark.parametrize("length", [2, 5])
def test_the_backward_law_is_that_of_the_joint_normal(length):
    """By the precision of x_t-1 given x0 and x_t."""
    noise = load_example("papers/adversarial/_denoising").Noise(length)
    kept = np.asarray(noise.kept, float)
    for t in range(2, length + 1):
        step = kept[t] / kept[t - 1]
        precision = 1 / (1 - kept[t - 1]) + step / (1 - step)
        x0, x = 0.7, -0.4
        mean = (
            kept[t - 1] ** 0.5 * x0 / (1 - kept[t - 1]) + step**0.5 * x / (1 - step)
        ) / precision
        found = noise.backward(jnp.array([[x]]), jnp.array([[x0]]), jnp.array([t]))
        np.testing.assert_allclose([v.item() for v in found], [mean, precision**-0.5], rtol=1e-4)


def test_weights_make_the_mean_of_patches_that_of_the_whole():
    epigraf = load_example("papers/adversarial/epigraf")
    for b in (1.0, 4.0):
        (plain, error), (weighted, other) = epigraf.means(b, 20_000, jax.random.key(0))
        whole = (np.e**2 - 1) / 2
        assert abs(weighted - whole) < 4.5 * other
        assert abs(plain - whole) > 7 * error


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adcgan", "ddgan", "epigraf"])
def test_scripts_print_their_rows(name):
    text = run_example(f"papers/adversarial/{name}", "--smoke", timeout=600)
    assert len(text.splitlines()) >= 4 and "nan" not in text
