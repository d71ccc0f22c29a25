"""Small episodes and networks."""

import equinox as eqx
import jax
import numpy as np

from lapilli.models import niw_meta


def mlp(num_outputs=1, width=4):
    return eqx.nn.MLP(2, num_outputs, width, 1, activation=jax.nn.tanh, key=jax.random.key(0))


def regression(sizes=((3, 2), (3, 2))):
    rng = np.random.default_rng(0)
    part = lambda n: (rng.normal(size=(n, 2)), rng.normal(size=n))
    return niw_meta.Episodes(*(niw_meta.pad_points([part(n) for n in column]) for column in sizes))


def classification():
    rng = np.random.default_rng(1)
    x = lambda n: rng.normal(size=(n, 2))
    support = [(x(4), [0, 1, 2, 2]), (x(3), [0, 1, 2])]
    query = [(x(2), [1, 2]), (x(3), [0, 0, 1])]
    return niw_meta.Episodes(niw_meta.pad_points(support), niw_meta.pad_points(query))


def unpadded(points, i):
    return jax.tree.map(lambda leaf: leaf[i][: points.mask[i].sum()], points)


def weights_of(network):
    return jax.flatten_util.ravel_pytree(eqx.filter(network, eqx.is_inexact_array))[0]
