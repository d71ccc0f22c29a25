"""Draws, predictions, log-likelihoods and chains over eight forced host devices; a script, as `_on_mesh.py`.

It prints one line for each kind that has the numbers of one device: whether to the bit, and what a device holds of it.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
from _collectives import collectives

from lapilli import inference, ppl
from lapilli.inference._meshes import with_auto_axes
from lapilli.inference.posteriors.chains._sampler import Sampler
from lapilli.inference.posteriors.forms import make_target
from lapilli.ppl import _shared_jit
from lapilli.ppl._compat import is_concrete

ROWS = 40
rng = np.random.default_rng(0)
X = rng.normal(size=(ROWS, 3)).astype(np.float32)
Y = (X @ np.array([1.0, -1.0, 0.5]) + rng.normal(size=ROWS)).astype(np.float32)


@ppl.model
def model(x, y=None):
    beta = ppl.sample("beta", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    scale = ppl.sample("scale", dist.Gamma(2.0, 2.0))  # drawn by a loop of rejections
    with ppl.plate("rows", x.shape[0]):
        ppl.sample("y", dist.Normal(x @ beta, scale), obs=y)


def guide(x, y=None):
    ppl.sample("beta", dist.Normal(ppl.param("loc", jnp.zeros(3)), 0.1).to_event(1))
    ppl.sample(
        "scale", dist.Gamma(ppl.param("shape", 50.0, constraint=dist.constraints.positive), 50.0)
    )


def compare(name, run, mesh):
    """What `run(mesh=...)` gives with and without the mesh, and the programs that it ran there."""
    one, seen = run(), []
    lower = _shared_jit.SharedJit.__call__

    def looked_at(self, *args):
        arrays = [x for x in jax.tree.leaves(args) if is_concrete(x) and isinstance(x, jax.Array)]
        if any(len(x.sharding.device_set) == 8 for x in arrays):
            seen.append(self._jit.lower(*args).compile())
        return lower(self, *args)

    _shared_jit.SharedJit.__call__ = looked_at
    many = run(mesh=mesh)
    _shared_jit.SharedJit.__call__ = lower
    assert seen, name
    for program in seen:
        assert not collectives(program.as_text()), (name, collectives(program.as_text()))
    is_same = True
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(many), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-5, err_msg=name)
        is_same &= np.array_equal(a, b)
    memory = seen[-1].memory_analysis()
    sizes = memory.output_size_in_bytes, memory.temp_size_in_bytes
    print(f"{name}: same to {'the bit' if is_same else 'rounding'}, {sizes} bytes", flush=True)
    return one, many


def leaves(tree):
    return {group.path: {n: v.values for n, v in group.data_vars.items()} for group in tree.subtree}


def main():
    mesh, key = jax.make_mesh((8,), ("devices",)), jax.random.key(3)
    bound = inference.elbo(model, guide)
    settings = {"num_steps": 20, "progress": False, "key": jax.random.key(0)}
    fitted = inference.fit(bound, optax.adam(0.05), (X, Y), **settings)
    for number in (800, 13):  # with more places than draws, too
        compare(f"posterior of {number}", lambda n=number, **o: fitted.posterior(key, n, **o), mesh)
    compare("predict", lambda **o: fitted.predict(key, X, num_samples=800, **o), mesh)
    batches = [(X[:20],), (X[20:],)]
    compare(
        "predict_batches",
        lambda **o: list(fitted.predict_batches(key, batches, num_samples=800, **o)),
        mesh,
    )
    compare(
        "to_arviz",
        lambda **o: leaves(inference.to_arviz(fitted, key=key, num_samples=800, **o)),
        mesh,
    )
    split = inference.fit(bound, optax.adam(0.05), (X, Y), mesh=mesh, **settings)
    few = jax.make_mesh((4, 2), ("a", "b"))
    compare("posterior of a fit over another mesh", lambda **o: split.posterior(key, 80, **o), few)
    draws = {"beta": np.zeros((80, 3), np.float32), "scale": np.ones(80, np.float32)}
    compare(
        "predictions from draws",
        lambda **o: inference.predict(model, draws, key, X, num_samples=80, **o),
        mesh,
    )
    chains(mesh, key)


def chains(mesh, key):
    """The first transitions to rounding, which grows from then on; and a posterior with its certificate."""
    target = make_target("nuts", model, (X, Y))
    settings = {"num_chains": 8, "num_warmup": 50, "is_dense": True}
    ends = []
    for there in (None, with_auto_axes(mesh)):
        sampler = Sampler(
            target.log_density, target.arrays, target.dimension, mesh=there, **settings
        )
        points = np.random.default_rng(0).normal(size=(8, target.dimension))
        state = sampler.begin(key, points, sampler.frame(), 0.8)
        state, run = sampler.advance(state, sampler.frame(), 0.8, 3)
        ends.append(run)
    np.testing.assert_allclose(ends[1].u, ends[0].u, rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(ends[1].num_steps, ends[0].num_steps)
    assert {len(x.sharding.device_set) for x in jax.tree.leaves(state)} == {8}
    text = (
        sampler._many._jit.lower(state, *sampler._held(sampler.frame(), 0.8, 3)).compile().as_text()
    )
    assert not collectives(text), collectives(text)
    options = {"methods": ("nuts",), "num_samples": 4000, "progress": False, "key": key}
    one, many = (inference.infer(model, (X, Y), **options, **o) for o in ({}, {"mesh": mesh}))
    assert one.certificate.is_certified and many.certificate.is_certified
    for name, a in one.choices.items():
        b = many.choices[name]
        # Effective sizes of 400 or more: 4.5 standard errors of a difference.
        assert np.all(np.abs(a.mean(0) - b.mean(0)) < 4.5 * a.std(0) * (2 / 400) ** 0.5), name
    with pytest.raises(
        ValueError,
        match="12 chains cannot be split evenly over the 8 devices of the mesh. Use num_chains=16",
    ):
        inference.infer(model, (X, Y), num_chains=12, mesh=mesh)
    print("chains: the same", flush=True)


if __name__ == "__main__":
    main()
