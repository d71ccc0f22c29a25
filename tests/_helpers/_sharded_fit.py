"""A network of eight times one device's share, fitted on eight forced host devices; a script, as `_on_mesh.py`.

It prints what a device holds and what the compiled step needs there, with the network whole and split, and the collectives.
"""

import contextlib
import tempfile

import equinox as eqx
import jax
import numpy as np
import numpyro.distributions as dist
import optax
from _collectives import collectives, has_host_transfers

from lapilli import inference, ppl
from lapilli.inference.fitting.training import _train

WIDTH = 256
rng = np.random.default_rng(0)
X = rng.normal(size=(64, 16)).astype(np.float32)
Y = np.sin(X.sum(1))


@ppl.model
def model(x, y):
    net = ppl.module("net", eqx.nn.MLP(16, 8, WIDTH, 2, key=jax.random.key(1)))
    bias = ppl.param("bias", 0.0)
    noise = ppl.sample("noise", dist.Normal(0.0, 1.0))
    with ppl.plate("rows", x.shape[0]):
        ppl.sample("y", dist.Normal(jax.vmap(net)(x).sum(1) + bias + noise, 1.0), obs=y)


def guide(x, y):
    ppl.sample("noise", dist.Normal(ppl.param("loc", 0.0), 1.0))


def compiled_steps(seen, compile_steps=_train.compile_steps):
    """Keep the compiled step of a fit."""

    def looked_at(config, donate):
        run = compile_steps(config, donate)

        def call(*args):
            if not seen:
                seen.append(run._jit.lower(*args).compile())
            return run(*args)

        return call

    return looked_at


def fit_and_step(*args, **options):
    """A fit, and its compiled step."""
    seen = []
    _train.compile_steps = compiled_steps(seen)
    result = inference.fit(*args, key=jax.random.key(0), progress=False, **options)
    return result, seen[0]


def fitted(mesh, **options):
    bound = inference.elbo(model, guide)
    return fit_and_step(bound, optax.adam(1e-3), (X, Y), num_steps=5, mesh=mesh, **options)


def on_a_device(tree):
    """Bytes of a tree on the first device."""
    leaves = [x for x in jax.tree.leaves(tree) if eqx.is_array(x)]
    return sum(x.addressable_shards[0].data.nbytes for x in leaves)


class Stop(Exception):
    pass


def goes_on(folder):
    """A folder of eight devices goes on with four, and that with one."""
    settings = {
        "args": (X, Y), "num_steps": 9, "shardings": {"net": "devices"}, "average": "polyak",
        "key": jax.random.key(0), "progress": False, "callback_every": 3,
    }  # fmt: skip
    bound = inference.elbo(model, guide)

    def run(number, last, **options):
        def stop(info):
            if info.step == last:
                raise Stop

        over = jax.sharding.Mesh(jax.devices()[:number], ("devices",))
        return inference.fit(
            bound, optax.adam(1e-3), mesh=over, callbacks=[stop], **settings, **options
        )

    whole, again = run(8, None), run(8, None)
    for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(again.params), strict=True):
        np.testing.assert_array_equal(b, a)  # same devices: to the bit
    for number, last in ((8, 3), (4, 6)):
        with contextlib.suppress(Stop):
            run(number, last, checkpoint=folder, checkpoint_every=3)
    resumed = run(1, None, checkpoint=folder, checkpoint_every=3)
    weight = resumed.params["net"].layers[1].weight
    assert len(weight.sharding.device_set) == 1 and resumed.steps == 9
    for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(resumed.params), strict=True):
        np.testing.assert_allclose(b, a, rtol=2e-4, atol=2e-6)
    np.testing.assert_allclose(resumed.history["value"], whole.history["value"], rtol=1e-5)
    print("goes on")


if __name__ == "__main__":
    mesh = jax.make_mesh((8,), ("devices",))
    one, alone = fitted(None)
    whole, step = fitted(mesh)
    split, step_split = fitted(mesh, shardings={"net": "devices"}, average="polyak")
    for a, b, c in zip(*(jax.tree.leaves(r.last_params) for r in (one, whole, split)), strict=True):
        np.testing.assert_allclose(b, a, rtol=2e-4, atol=2e-6)
        np.testing.assert_allclose(c, a, rtol=2e-4, atol=2e-6)
    print("same", flush=True)
    sizes = [on_a_device(r.params) for r in (whole, split)]
    print("bytes of parameters on a device", *sizes)
    for name, compiled in (("one", alone), ("whole", step), ("split", step_split)):
        memory = compiled.memory_analysis()
        text = compiled.as_text()
        print(
            name, "arguments", memory.argument_size_in_bytes, "temporary", memory.temp_size_in_bytes,
            "collectives", dict(collectives(text)),
        )  # fmt: skip
        assert not has_host_transfers(text)
    seeds, _ = fitted(mesh, shardings={"net*weight": "devices"}, num_seeds=2)
    weight = seeds.params["net"].layers[1].weight
    assert weight.addressable_shards[0].data.shape == (2, WIDTH // 8, WIDTH), weight.sharding
    print("seeds")
    with tempfile.TemporaryDirectory() as folder:
        goes_on(f"{folder}/run")
