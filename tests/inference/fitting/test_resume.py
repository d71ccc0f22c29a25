"""A checkpoint belongs to its program, objective, optimiser, start, data and settings: another run is refused by name.

And the same run is not, however it is written down.
"""

import dataclasses
import types

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
from _fit_fakes import Objective

from lapilli import inference, ppl

X = np.linspace(0.5, 3.0, 12, dtype=np.float32)
OFFSETS = np.linspace(0.0, 1.0, 12)


class Shift(eqx.Module):
    by: jax.Array
    power: float = eqx.field(static=True)

    def __call__(self, x):
        return (x + self.by) ** self.power


def shifted(x, by=0.1):
    return x + by


def programs(
    prior=2.0, at=0.0, noise=1.0, site="mu", offsets=OFFSETS, module=None, helper=shifted,
    law=dist.Normal, start=0.3, wide=False, order=False, extra=False, record=1.0, more=False,
):  # fmt: skip
    """A location with a discrete shift; what varies is closed over, in many ways."""
    module = Shift(jnp.float32(0.5), 1.0) if module is None else module
    table = {"b": 2.0, "a": record} if order else {"a": record, "b": 2.0}

    @ppl.model
    def model(x):
        mu = ppl.sample(site, law(at, prior))
        kind = ppl.sample("kind", dist.Bernoulli(0.3))
        if extra:
            ppl.factor("extra", -jnp.square(mu))
        ppl.deterministic("recorded", table["a"] * mu)
        with ppl.plate("rows", x.shape[0]):
            centre = helper(module(mu)) + kind + jnp.asarray(offsets)[: x.shape[0]]
            ppl.sample("x", dist.Normal(centre, noise), obs=x)

    @ppl.model
    def guide(x):
        scale = ppl.param("scale", 0.4, constraint=dist.constraints.positive)
        loc = ppl.param("loc", start) + (ppl.param("extra", 0.0) if more else 0.0)
        ppl.sample(site, (dist.Laplace if wide else dist.Normal)(loc, scale))
        ppl.sample("kind", dist.Bernoulli(logits=ppl.param("logit", 0.0)))

    return model, guide


def bound(strategies=None, **options):
    return inference.elbo(*programs(**options), strategies=strategies or {"kind": "reinforce"})


def run(path, objective=None, optimizer=None, args=(X,), **options):
    options = {"num_steps": 2, "key": jax.random.key(0), "progress": False} | options
    optimizer = optax.adam(0.05) if optimizer is None else optimizer
    return inference.fit(objective or bound(), optimizer, args, checkpoint=path, **options)


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    path = tmp_path_factory.mktemp("resume") / "run.npz"
    run(path)
    return path


def looked_up(name):
    """A function of another body with the name and the place of `shifted`."""
    return types.FunctionType((lambda x: x * 1.1).__code__, globals(), name)


weighted = lambda w: inference.elbo(
    *programs(), strategies={"kind": "reinforce"}, site_weights={"x": w}
)
scheduled = lambda steps: optax.chain(
    optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(0.05, steps))
)
PROGRAMS = {
    "prior": ({"prior": 0.01}, "model, 'mu': another computation of its log-density"),
    "location": ({"at": -50.0}, "model, 'mu': another computation of its log-density"),
    "law": ({"law": dist.Laplace}, "model, 'mu': latent Normal.* in the checkpoint, latent Laplace"),
    "noise": ({"noise": np.float32(0.9)}, "model, 'x': another computation"),
    "array": ({"offsets": OFFSETS + np.eye(12)[3] * 1e-3}, "model, 'x': another computation"),
    "JAX array": ({"offsets": jnp.asarray(OFFSETS[::-1])}, "model, 'x': another computation"),
    "module's array": ({"module": Shift(jnp.float32(0.6), 1.0)}, "model, 'x': another comput"),
    "module's number": ({"module": Shift(jnp.float32(0.5), 2.0)}, "model, 'x': another comput"),
    "helper": ({"helper": looked_up("shifted")}, "model, 'x': another computation"),
    "default": ({"helper": lambda x: shifted(x, 0.2)}, "model, 'x': another computation"),
    "renamed site": ({"site": "nu"}, "model, 'mu': latent.* in the checkpoint, absent now"),
    "factor": ({"extra": True}, "model, 'extra': absent in the checkpoint, factor"),
    "deterministic": ({"record": 3.0}, "model, 'recorded': another computation of its value"),
    "guide": ({"wide": True}, "guide, 'mu': latent Normal.* in the checkpoint, latent Laplace"),
    "start": ({"start": 0.5}, r"start\['params'\]\['loc'\]: root mean square 0.3 in the checkp"),
    "strategy": ({"strategies": {"kind": "enum"}}, "'strategies': {'kind': 'reinforce'} in"),
    "strategy's option": (
        {"strategies": {"kind": ppl.Reinforce(baseline=ppl.strategies.MovingAverage(0.5))}},
        "'strategies'.* in the checkpoint, absent|another computation of one step",
    ),
}  # fmt: skip
RUNS = {
    "objective": (
        lambda: {"objective": inference.iwelbo(*programs(), num_particles=50, strategies="auto")},
        "objective, 'name': elbo in the checkpoint, iwelbo now",
    ),
    "weights": (lambda: {"objective": weighted(0.5)}, "'site_weights'"),
    "learning rate": (
        lambda: {"optimizer": optax.adam(0.5)},
        "'optimizer': another computation of its update: -0.05 in the checkpoint, -0.5 now",
    ),
    "memory": (lambda: {"optimizer": optax.adam(0.05, b1=0.8)}, "'optimizer': another computation"),
    "schedule": (lambda: {"optimizer": scheduled(100)}, "opt_state"),
    "chosen optimiser": (lambda: {"optimizer": {"*": optax.adam(0.05)}}, "opt_state"),
    "key": (lambda: {"key": jax.random.key(1)}, "argument 'key'"),
    "data": (lambda: {"args": (X + 1,)}, "values of args"),
    "rows": (lambda: {"args": (X[:6],)}, r"'args': \[\"float32\[12\]\"\] in the checkpoint"),
    "batch size": (lambda: {"subsample": {"rows": 4}}, "argument 'subsample': null in"),
    "average": (lambda: {"average": "polyak"}, "average"),
    "start": (
        lambda: {"params": {"loc": jnp.float32(2.0), "scale": jnp.float32(0.0), "logit": 0.0}},
        r"start\['params'\]\['loc'\]",
    ),
}  # fmt: skip


@pytest.mark.fast("location", "module's array", "helper", "renamed site", "start")
@pytest.mark.parametrize("name", PROGRAMS)
def test_another_program_is_refused_by_name(begun, name):
    options, message = PROGRAMS[name]
    with pytest.raises(
        ValueError, match=f"(?s)belongs to another run.*{message}.*resume='changed'"
    ):
        run(begun, bound(**options), num_steps=4)


@pytest.mark.fast("objective", "learning rate", "start")
@pytest.mark.parametrize("name", RUNS)
def test_another_run_is_refused_by_name(begun, name):
    options, message = RUNS[name]
    with pytest.raises(ValueError, match=f"(?s)belongs to another run.*{message}"):
        run(begun, num_steps=4, **options())


def test_the_same_run_goes_on_however_it_is_written_down(begun, tmp_path):
    """Programs made anew, other names and order of what changes no number, more steps: all in one call."""
    path = tmp_path / "run.npz"
    path.write_bytes(begun.read_bytes())
    whole = run(None, num_steps=6)
    helper = jax.jit(lambda y: y + 0.1)
    changed = bound(order=True, helper=helper, offsets=jnp.asarray(OFFSETS))
    assert run(path, changed, args=(jnp.asarray(X),), num_steps=4).steps == 4
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("rows",))
    last = run(path, num_steps=6, mesh=mesh, on_nonfinite="skip", callbacks=[lambda info: None])
    for name in whole.params:
        np.testing.assert_array_equal(whole.params[name], last.params[name])


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (scheduled(100), scheduled(200), "another computation of its update: 100"),
        (
            optax.inject_hyperparams(optax.adam)(learning_rate=0.05),
            optax.inject_hyperparams(optax.adam)(learning_rate=0.5),
            r"opt_state.*'learning_rate'.*: root mean square 0.05 in the checkpoint, 0.5 now",
        ),
        (
            {"loc": optax.adam(0.05), "log_scale": optax.sgd(0.1)},
            {"log_scale": optax.sgd(0.2), "loc": optax.adam(0.05)},
            "another computation of its update: -0.1 in the checkpoint, -0.2 now",
        ),
        (None, optax.adam(0.02), "opt_state|default in the checkpoint, given now"),
    ],
    ids=["schedule", "in the state", "group", "default"],
)  # fmt: skip
@pytest.mark.fast("in the state")
def test_optimisers_are_told_apart(tmp_path, before, after, message):
    def train(optimizer, num_steps):
        return inference.fit(
            Objective(), optimizer, (X,), num_steps=num_steps, key=jax.random.key(0),
            checkpoint=tmp_path / "run", progress=False,
        )  # fmt: skip

    train(before, 2)
    train(before, 4)
    with pytest.raises(ValueError, match=f"(?s)belongs to another run.*({message})"):
        train(after, 6)


def test_a_run_goes_on_over_other_devices(tmp_path):
    """An autoguide starts over a mesh where it starts without one."""

    def model(x):
        mu = ppl.sample("mu", dist.Normal(0.0, 1.0))
        with ppl.plate("rows", x.shape[0]):
            ppl.sample("x", dist.Normal(mu, 1.0), obs=x)

    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("rows",))
    train = lambda num_steps, **options: inference.fit(
        model, args=(X,), num_steps=num_steps, checkpoint=tmp_path / "run", progress=False,
        k_hat="skip", **options,
    )  # fmt: skip
    train(2)
    assert train(3, mesh=mesh).steps == 3


@inference.objective
def tempered(model, guide, *args):
    q = ppl.draw(guide, *args)
    return ppl.score(model, q, *args).log_density - 0.9 * q.log_density


@inference.objective
def warmer(model, guide, *args):
    q = ppl.draw(guide, *args)
    return ppl.score(model, q, *args).log_density - 0.8 * q.log_density


remembering = lambda decay: bound(
    {"kind": ppl.Reinforce(baseline=ppl.strategies.MovingAverage(decay))}
)
named = lambda objective: dataclasses.replace(
    objective(*programs(), strategies={"kind": "enum"}), name="tempered"
)
sampled = lambda num: inference.iwelbo(
    *programs(), num_particles=num, strategies={"kind": "reinforce"}
)
OBJECTIVES = {
    "strategy's option": (
        lambda: remembering(0.9),
        lambda: remembering(0.5),
        "computation of one step",
    ),
    "function": (lambda: named(tempered), lambda: named(warmer), "computation of one step"),
    "option": (lambda: sampled(5), lambda: sampled(50), "'num_particles': 5 in the checkpoint, 50"),
}


@pytest.mark.fast("strategy's option")
@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives_are_told_apart(tmp_path, name):
    before, after, message = OBJECTIVES[name]
    run(tmp_path / "run", before())
    assert run(tmp_path / "run", before(), num_steps=3).steps == 3
    with pytest.raises(ValueError, match=f"(?s)belongs to another run.*{message}"):
        run(tmp_path / "run", after(), num_steps=4)


def test_a_changed_run_goes_on_when_it_is_asked_for(begun, tmp_path):
    path = tmp_path / "run.npz"
    path.write_bytes(begun.read_bytes())
    changed = run(path, bound(prior=0.5), optax.adam(0.5), num_steps=4, resume="changed")
    assert changed.steps == 4 and len(changed.history["value"]) == 4
    assert run(path, bound(prior=0.5), optax.adam(0.5), num_steps=5).steps == 5  # it is its own now
    with pytest.raises(ValueError, match="(?s)another run.*'extra'.*absent in the checkpoint"):
        run(path, bound(more=True), num_steps=6, resume="changed")
    with pytest.raises(ValueError, match="'resume' must be 'same' or 'changed'; got 'yes'"):
        run(path, resume="yes")


def test_settings_of_jax_belong_to_a_run(begun):
    with (
        jax.default_matmul_precision("float32"),
        pytest.raises(ValueError, match="default_matmul_precision: None in the checkpoint"),
    ):
        run(begun, num_steps=4)


@pytest.mark.slow
def test_double_precision_belongs_to_a_run(begun):
    with jax.enable_x64(True), pytest.raises(ValueError, match="jax_enable_x64: False in the che"):
        run(begun, num_steps=4)
