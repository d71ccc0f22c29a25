"""Denoisers of points at known levels: the exact score of independent coordinates, for any process."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lapilli.models import diffusion

LEVELS = np.array([-1.0, 0.2, 1.5])
LOGITS = jax.nn.log_softmax(jnp.array([[0.3, -1.0, 0.5], [0.0, 2.0, -1.0]]))


class Known(eqx.Module):
    """Logits of two coordinates, whatever the rest."""

    num_classes: int = eqx.field(static=True, default=0)

    def __call__(self, x, level, context):
        assert x.shape == LOGITS.shape
        return LOGITS


@pytest.mark.parametrize("noising", [diffusion.VP(), diffusion.EDM()], ids=["VP", "EDM"])
def test_independent_coordinates_have_the_exact_score(noising):
    """That of a mixture of points for each coordinate; alpha^2 + std^2 is 1 in one process and not in the other."""
    found = diffusion.from_network(diffusion.LevelNet(Known(), LEVELS), noising, (2,))
    one = lambda logits: diffusion.gaussian_mixture(noising, jnp.exp(logits), LEVELS[:, None], 0.0)
    exact = jax.jit(lambda x, t: jnp.concatenate([one(p).score(v[None], t) for p, v in zip(LOGITS, x, strict=True)]))  # fmt: skip
    score = jax.jit(found.score)
    for t in (0.05, 0.3, 1.0):
        x = jnp.array([0.3, -1.2])
        np.testing.assert_allclose(score(x, t), exact(x, t), rtol=1e-4, atol=1e-4)


def test_levels_are_no_parameters_and_labels_are_passed_on(key):
    net = diffusion.MLP((2, 3), num_classes=4, width=8, depth=1, key=key)
    wrapped = diffusion.LevelNet(net, LEVELS)
    assert wrapped.num_classes == 4 and not wrapped.takes_context
    num = lambda tree: len(jax.tree.leaves(eqx.filter(tree, eqx.is_inexact_array)))
    assert num(wrapped) == num(net)


@pytest.mark.parametrize("levels", [[1.0], [0.0, 0.0], [0.0, np.nan], [[0.0, 1.0]]], ids=str)
def test_what_are_no_levels_is_refused(levels):
    with pytest.raises(ValueError, match="LevelNet: levels must be two or more different numbers"):
        diffusion.LevelNet(Known(), levels)
