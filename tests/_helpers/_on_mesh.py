"""Particle runs over a mesh against the same runs on one device; a script, since the devices must be there from the start.

    python tests/_helpers/_on_mesh.py quick | thorough            with XLA_FLAGS=--xla_force_host_platform_device_count=8
    python tests/_helpers/_on_mesh.py processes PORT RANK         one of two processes of four devices each

`python` runs it, and others like it, with the right environment. It prints one line for each check that holds.
"""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from lapilli import inference, ppl
from lapilli.inference.particles import resampling
from lapilli.models import diffusion

Y = np.array([0.5, -1.0, 0.25, 2.0, 1.5], np.float32)
NUM = 256


def environment(devices):
    """This process's environment, with forced host devices."""
    flags = os.environ.get("XLA_FLAGS", "")
    return os.environ | {
        "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
    }


def python(*command, devices=8, stderr=subprocess.PIPE):
    """Python in a process of its own, with forced host devices, where a warning is an error."""
    return subprocess.Popen(
        [sys.executable, "-W", "error", *map(str, command)],
        env=environment(devices),
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
    )


def finished(*processes):
    """What each of them has printed; all have to end well."""
    outputs = [p.communicate(timeout=500) for p in processes]
    for process, (out, err) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, out + err
    return [out for out, _ in outputs]


def free_port():
    """For processes that meet there."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


MODEL = inference.FeynmanKac(
    init=lambda key: {"x": jax.random.normal(key), "n": jnp.zeros((2,), jnp.int32)},
    kernel=lambda key, z, t: {"x": 0.9 * z["x"] + jax.random.normal(key), "n": z["n"] + 1},
    log_potential=lambda previous, z, t: -0.5 * (jnp.asarray(Y)[t] - z["x"]) ** 2,
    num_steps=4,
)


def program(ys, noise=1.0):
    """A vector before the scan that its steps take apart, discrete and continuous sites, values used after the scan."""
    slope = ppl.sample("slope", dist.Normal(0.0, 1.0))
    with ppl.plate("inputs", 5):
        u = ppl.sample("u", dist.Normal(0.0, 0.5))

    def step(x, inputs):
        y, u = inputs
        b = ppl.sample("b", dist.Bernoulli(0.4))
        x = ppl.sample("x", dist.Normal(0.9 * x + slope + u * b, noise))
        ppl.sample("y", dist.Normal(x, 1.0), obs=y)
        return x, x

    x, xs = ppl.scan(step, 0.0, (ys, u))
    ppl.sample("last", dist.Normal(x + xs.sum(), 3.0), obs=1.0)


def filtered(ys, noise=1.0):
    """Without paths, for every history."""
    step = lambda x, y: (seen(ppl.sample("x", dist.Normal(0.9 * x, noise)), y), None)
    ppl.scan(step, 0.0, ys)


def seen(x, y):
    ppl.sample("y", dist.Normal(x, 1.0), obs=y)
    return x


def proposal(ys):
    step = lambda x, y: (ppl.sample("x", dist.Normal(0.45 * x + 0.5 * y, 0.8)), None)
    ppl.scan(step, 0.0, ys)


def corrected_diffusion():
    """A tilted product in two dimensions, whose states hold scores and densities."""
    noising = diffusion.VP(0.1, 8.0)
    q1, q2 = (
        diffusion.gaussian_mixture(noising, [0.4, 0.6], [[-1.0, m], [m, 0.5]], 0.3) for m in (0.2, 0.7)
    )  # fmt: skip
    return inference.diffusion.fkc(
        [q1, q2],
        noising.log_snr_times(20),
        reward=lambda x, t: (t - 1) * x.sum(),
        integrator="exponential",
    )


def assert_same(one, many):
    """Decisions and genealogy bit for bit, the evidence to 1e-6, all else to float32 rounding."""
    leaves = jax.tree_util.tree_leaves_with_path(one)
    for (path, a), b in zip(leaves, jax.tree.leaves(many), strict=True):
        name = jax.tree_util.keystr(path)
        a, b = np.asarray(a), np.asarray(b)
        if a.dtype.kind in "ib":
            np.testing.assert_array_equal(a, b, err_msg=name)
        else:
            tight = name in (".log_evidence", ".increments")
            tolerance = 1e-6 if tight else 1e-5
            np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance, err_msg=name)


def check(name, run, mesh, **options):
    """`run(key, mesh, mesh_axes)` on the mesh gives what it gives on one device, and is split."""
    key = jax.random.key(0)
    one = jax.jit(run)(key)
    many = run(key, mesh=mesh, **options)
    assert_same(one, many)
    for x in jax.tree.leaves(many.particles):
        assert len(x.sharding.device_set) == 8
        assert x.addressable_shards[0].data.size == x.size // 8, (name, x.sharding)
    print("same", name, flush=True)
    return many


def smc(target, *args, **options):
    return lambda key, **mesh: inference.smc(
        target, key, *args, num_particles=NUM, **options, **mesh
    )


def quick():
    mesh = jax.make_mesh((8,), ("particles",))
    check("feynman-kac", smc(MODEL), mesh)
    result = check("program", smc(program, Y, policy=resampling.every()), mesh)
    assert result.ancestors.sharding.spec == jax.P(None, "particles")
    again = smc(program, Y, policy=resampling.every())(jax.random.key(0), mesh=mesh)
    for a, b in zip(jax.tree.leaves(result), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)  # on the same devices to the bit
    both = jax.make_mesh((4, 2), ("islands", "particles"))
    run = lambda key, **mesh: inference.particles.islands(
        program, key, Y, num_islands=4, num_particles=NUM // 4, **mesh,
        island_policy=resampling.every(2),
    )  # fmt: skip
    check("islands", run, both, mesh_axes="islands")
    memory(mesh)


def memory(mesh):
    """A device holds its part of the states, whether or not it resamples; all weights, and draws of the step, beside it."""

    def wide(ys):
        def step(x, y):
            x = ppl.sample("x", dist.Normal(0.9 * x, 1.0).to_event(1))
            ppl.sample("y", dist.Normal(x.sum(), 1.0), obs=y)
            return x, None

        ppl.scan(step, jnp.zeros(16), ys)

    size = 1 << 14
    state = size * 16 * 4
    run = lambda key, **mesh: inference.smc(
        wide, key, Y, num_particles=size, history="none", **mesh
    )
    temporary = lambda **mesh: (
        jax.jit(lambda key: run(key, **mesh))
        .lower(jax.random.key(0))
        .compile()
        .memory_analysis()
        .temp_size_in_bytes
    )
    one, many = temporary(), temporary(mesh=mesh)
    assert many < 1.5 * state < 4 * state < one, (many / state, one / state)
    print(f"memory {one / state:.2f} {many / state:.2f}")


def thorough():
    mesh = jax.make_mesh((8,), ("particles",))
    for scheme in ("multinomial", "residual", "ssp", "killing", "rejection"):
        check(scheme, smc(filtered, Y, resampling=scheme, policy=resampling.every()), mesh)
    for history in ("none", "ancestors"):
        check(history, smc(filtered, Y, history=history, proposal=proposal), mesh)
        check(f"{history} feynman-kac", smc(MODEL, history=history), mesh)
    check("corrected diffusion", smc(corrected_diffusion(), history="none"), mesh)
    twist = lambda x, t, ys: -0.1 * (x - jnp.append(ys, 0.0)[t]) ** 2
    check("twist", smc(filtered, Y, twist=twist, policy=resampling.every()), mesh)
    butterfly = lambda key, **mesh: inference.particles.islands(
        MODEL, key, num_islands=8, num_particles=NUM // 8, exchange="butterfly", **mesh,
        island_policy=resampling.every(),
    )  # fmt: skip
    check("butterfly", butterfly, mesh)
    check("partial", smc(filtered, Y, resampling=resampling.partial_resampling(0.3)), mesh)
    retained = {"x": Y}
    check("retained", smc(filtered, Y, retained=retained), mesh)
    explicit = jax.sharding.Mesh(
        np.array(jax.devices()).reshape(2, 4), ("a", "b"), axis_types=(jax.sharding.AxisType.Explicit,) * 2
    )  # fmt: skip
    check("all axes", smc(filtered, Y), explicit)
    copied = smc(filtered, Y)(jax.random.key(0), mesh=explicit, mesh_axes="b")
    assert_same(jax.jit(smc(filtered, Y))(jax.random.key(0)), copied)
    assert copied.particles["x"].addressable_shards[0].data.shape == (NUM // 4, 5)
    for gradient in ("stop_gradient", "soft", "ot"):
        grad = jax.value_and_grad(evidence)
        one, many = grad(1.3, gradient), grad(1.3, gradient, mesh=mesh)
        np.testing.assert_allclose(one, many, rtol=1e-5)
        print("same gradient", gradient)
    lanes = lambda **mesh: jax.vmap(lambda k: smc(MODEL)(k, **mesh))(
        jax.random.split(jax.random.key(1), 3)
    )
    assert_same(jax.jit(lanes)(), jax.jit(lambda: lanes(mesh=mesh))())
    print("same vmap")


def evidence(noise, gradient, **mesh):
    key = jax.random.key(0)
    options = {"num_particles": 64, "gradient": gradient, "history": "none"}
    return inference.smc(filtered, key, Y, noise, **options, **mesh).log_evidence


def processes(port, rank):
    jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=int(rank))
    assert jax.device_count() == 8 and jax.local_device_count() == 4
    mesh = jax.make_mesh((8,), ("particles",))
    islands = lambda key, **mesh: inference.particles.islands(
        MODEL, key, num_islands=8, num_particles=16, island_policy=resampling.every(), **mesh
    )
    butterfly = lambda key, **mesh: inference.particles.islands(
        MODEL, key, num_islands=8, num_particles=16, island_policy=resampling.every(), exchange="butterfly", **mesh
    )  # fmt: skip
    runs = {"program": smc(program, Y), "islands": islands, "butterfly": butterfly}
    for name, run in runs.items():
        key = jax.random.key(0)
        one, many = jax.jit(run)(key), run(key, mesh=mesh)
        assert len(many.log_evidence.sharding.device_set) == 8
        np.testing.assert_allclose(many.log_evidence, one.log_evidence, rtol=1e-6)
        for shard in many.ancestors.addressable_shards:
            np.testing.assert_array_equal(shard.data, np.asarray(one.ancestors)[shard.index])
        for a, b in zip(
            jax.tree.leaves(one.particles), jax.tree.leaves(many.particles), strict=True
        ):
            for shard in b.addressable_shards:
                np.testing.assert_allclose(shard.data, np.asarray(a)[shard.index], rtol=1e-5, atol=1e-5)  # fmt: skip
        print("same", name, flush=True)


if __name__ == "__main__":
    {"quick": quick, "thorough": thorough, "processes": processes}[sys.argv[1]](*sys.argv[2:])
