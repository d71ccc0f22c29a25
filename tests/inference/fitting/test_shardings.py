"""Parameters split over devices: numbers of one device, a share of the memory each, refusals."""

import re

import _sharded_fit
import jax
import jax.numpy as jnp
import pytest
from _on_mesh import finished, python

from lapilli import inference
from lapilli.inference.fitting.training._shardings import leaf_specs, shardings_of

P = jax.P
PARAMS = {"net": [jnp.zeros((6, 4)), jnp.zeros(4)], "scale": jnp.zeros(())}


def mesh(**sizes):
    """A mesh as far as sizes go."""
    return type("Mesh", (), {"shape": sizes})()


@pytest.mark.parametrize(
    ("shardings", "want"),
    [
        ({"net": "d"}, [P(None, "d"), P("d"), P()]),
        ({"net": "m"}, [P("m", None), P("m"), P()]),
        ({"net.0": P("m", "d")}, [P("m", "d"), P(), P()]),
        ({"net.*": P(("m",))}, [P(("m",)), P(("m",)), P()]),
        ({}, [P(), P(), P()]),
    ],
    ids=["longest that divides", "longest", "leaf", "axes", "none"],
)
def test_patterns_say_how_leaves_are_split(shardings, want):
    assert leaf_specs(shardings, PARAMS, mesh(d=4, m=2)) == want


@pytest.mark.parametrize(
    ("shardings", "message"),
    [
        ({"nets": "d"}, "pattern 'nets' matches no parameter"),
        ({"net": "d", "net.0": "m"}, r"'net.0' matches several patterns: \['net', 'net.0'\]"),
        ({"net": "x"}, r"'net.0' of shape \[6, 4\]: the mesh has no axis \['x'\]"),
        ({"net.1": P(None, "d")}, r"'net.1' of shape \[4\]: .* is for 2 dimensions"),
        ({"net.0": P("d")}, "4 devices do not divide dimension 0"),
        ({"scale": "d"}, "pattern 'scale': no leaf has a dimension that the 4 devices of axis 'd'"),
    ],
    ids=["nothing", "twice", "axis", "dimensions", "odd", "scalar"],
)
def test_splits_that_cannot_be_are_refused(shardings, message):
    with pytest.raises(ValueError, match=message):
        leaf_specs(shardings, PARAMS, mesh(d=4, m=2))


def test_states_lie_where_their_parameters_do():
    import optax

    one = jax.make_mesh((1,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    params = {"net": jnp.zeros((6, 4)), "other": jnp.zeros((6, 4))}
    place = shardings_of({"net": P(None, "d")}, params, one, None)
    clipped = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1))
    for optimizer in (
        clipped,
        optax.partition({"a": clipped, "b": clipped}, {"net": "a", "other": "b"}),
    ):
        found = place(jax.eval_shape(optimizer.init, params))
        pairs = jax.tree_util.tree_leaves_with_path(found)
        split = [path for path, leaf in pairs if leaf.spec == P(None, "d")]
        assert len(split) == 2 and all("net" in str(path[-1]) for path in split)
    seeds = shardings_of({"net": P(None, "d")}, params, one, 3)
    assert seeds({"net": jnp.zeros((3, 6, 4))})["net"].spec == P(None, None, "d")


def test_no_devices_to_split_over_are_refused():
    with pytest.raises(ValueError, match="there are no devices to split over. Pass mesh="):
        inference.fit(
            inference.elbo(_sharded_fit.model, _sharded_fit.guide),
            args=(_sharded_fit.X, _sharded_fit.Y),
            shardings={"net": "d"},
        )


@pytest.mark.slow  # four programs are compiled for eight devices
def test_a_network_of_eight_shares_trains_on_eight_devices():
    (out,) = finished(python(_sharded_fit.__file__))
    for text in ("same", "seeds", "goes on"):
        assert text in out, (text, out)
    whole, split = map(int, re.findall(r"parameters on a device (\d+) (\d+)", out)[0])
    assert split < 1.05 * whole / 8
    needs = {name: int(size) for name, size in re.findall(r"(\w+) arguments (\d+)", out)}
    # Parameters, two moments and the average, against parameters and two moments.
    assert needs["split"] < 0.2 * needs["whole"], needs
