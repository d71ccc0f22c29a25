"""Training: the packed gradient is the loss's, replay and incomplete trajectories are sound, what makes no sense is refused."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from _gflownet import exact, grid, parameters, sets, slow

from lapilli import inference
from lapilli.models import gflownet

BALANCES = {
    "tb": (gflownet.trajectory_balance("huber"), "total"),
    "lv": (gflownet.log_variance(), "total"),
    "db": (gflownet.detailed_balance(), "network"),
    "subtb": (gflownet.subtrajectory_balance(1.5, "linex"), "shared"),
    "fm": (gflownet.detailed_balance(), "edges"),
}
QUICK = [("db", sets), ("subtb", grid)]
PAIRS = [
    pair if pair in QUICK else slow(*pair) for pair in itertools.product(BALANCES, (sets, grid))
]


@pytest.mark.fast("subtb-grid-5")
@pytest.mark.parametrize("rows_per_chunk", [5, slow(1000)])
@pytest.mark.parametrize(("name", "make"), PAIRS)
def test_value_and_gradient_are_those_of_the_loss_at_the_trajectories_drawn(
    make, name, rows_per_chunk, key
):
    loss, flow = BALANCES[name]
    net = make(flow, "uniform" if flow == "edges" else "learned")
    params = parameters(net)
    objective = gflownet.balance(net, loss, batch_size=4, rows_per_chunk=rows_per_chunk)

    def both(params, key):
        batch = gflownet.rollout(net, net.modules(params), key, 4)
        plain = lambda p: loss(net.log_weight_process(p, batch.actions))
        packed = objective.value_and_grad_at(params, batch, key)
        return jax.value_and_grad(plain)(params), packed

    (value, grads), (packed_value, packed) = jax.jit(both)(params, key)
    np.testing.assert_allclose(packed_value, value, rtol=1e-5)
    for one, two in zip(*map(jax.tree.leaves, (packed, grads)), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5)


@pytest.mark.slow  # compiles two gradients
def test_the_gradient_of_parts_is_that_of_the_parts(key):
    """Two steps of each trajectory; the loss reads more than what `first` and `last` leave, on purpose."""
    net = grid("network", "learned")
    params, batch_key = parameters(net), jax.random.fold_in(key, 1)
    own = gflownet.Loss(lambda p: (p.increments * p.is_step).sum() + (p.u**2).sum(), "own")
    objective = gflownet.balance(net, own, batch_size=4, rows_per_chunk=3, num_consecutive=2)

    def both(params):
        batch = gflownet.rollout(net, net.modules(params), batch_key, 4)
        cut = lambda p: objective._cut(net.log_weight_process(p, batch.actions), key)
        plain = lambda p: own(cut(p))
        return jax.value_and_grad(plain)(params), objective.value_and_grad_at(params, batch, key)

    (value, grads), (packed_value, packed) = jax.jit(both)(params)
    np.testing.assert_allclose(packed_value, value, rtol=1e-5)
    for one, two in zip(*map(jax.tree.leaves, (packed, grads)), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-4)


def tables(net):
    """A trainable copy with zero tables."""
    zero = lambda module: None if module is None else jax.tree.map(jnp.zeros_like, module)
    return gflownet.GFlowNet(
        net.env,
        zero(net.policy),
        net.flow,
        zero(net.flow_network),
        net.backward_policy,
        net.forward_looking,
    )


def train(net, loss, key, *, num_steps=600, rate=0.05, **options):
    objective = gflownet.balance(tables(net), loss, batch_size=16, **options)
    fit = inference.fit(
        objective, optax.adam(rate), (), num_steps=num_steps, key=key, progress=False
    )
    return fit, gflownet.total_variation(exact(net)[0].law(net, fit.params), exact(net)[0].target)


RUNS = {
    "tb, explored, then not": (
        grid, "total", False, gflownet.trajectory_balance(),
        {"epsilon": optax.linear_schedule(1.0, 0.0, 300), "temperature": 2.0},
    ),
    "fl-db, three steps of each trajectory": (
        grid, "network", True, gflownet.detailed_balance(), {"num_consecutive": 3},
    ),
    "subtb, replay backwards by reward": (
        sets, "network", False, gflownet.subtrajectory_balance(),
        {"replay": gflownet.Replay(64, 8, log_reward_power=0.5, backward=True)},
    ),
    "modified db": (grid, "stop", True, gflownet.detailed_balance("huber"), {"epsilon": 0.1}),
    "flow matching": (sets, "edges", False, gflownet.detailed_balance(), {}),
}  # fmt: skip


QUICK_RUNS = ["subtb, replay backwards by reward"]


@pytest.mark.slow  # training
@pytest.mark.parametrize(
    "run",
    [run if name in QUICK_RUNS else slow(run, id=name) for name, run in RUNS.items()],
    ids=lambda r: r[0].__name__,
)
def test_training_reaches_the_target(run, key):
    """Tables of 9 or 32 states are learned to TV < 0.05 from TV > 0.1, by any loss and any exploration."""
    make, flow, forward_looking, loss, options = run
    net = make(flow, "uniform", forward_looking)
    start = exact(net)[0].law(tables(net), parameters(tables(net)))
    assert gflownet.total_variation(start, exact(net)[0].target) > 0.1
    fit, distance = train(net, loss, key, **options)
    assert distance < 0.05
    if flow in ("total", "network"):
        np.testing.assert_allclose(net.log_z(fit.params), exact(net)[0].log_z, atol=0.1)


@pytest.mark.slow  # compiles a fit and its draws
def test_the_fit_has_programs_and_weights(key):
    net = sets("total", "learned")
    fit, _ = train(net, gflownet.log_variance(), key, num_steps=400)
    posterior = fit.posterior(key, 2_000)
    assert posterior.choices["action"].shape == (2_000, 3)
    # Well trained: importance weights are nearly constant, and their mean is Z.
    assert posterior.log_weights.std() < 0.2
    log_mean = np.logaddexp.reduce(posterior.log_weights) - np.log(2_000)
    np.testing.assert_allclose(log_mean, exact(net)[0].log_z, atol=0.03)


@pytest.mark.slow  # compiles three fits
def test_replay_keeps_the_newest_trajectories_and_resumes_to_the_bit(tmp_path, key):
    net = sets("network", "uniform")
    objective = gflownet.balance(
        net, gflownet.detailed_balance(), batch_size=4, replay=gflownet.Replay(6, 3)
    )
    options = {"key": key, "progress": False}
    run = lambda n, **more: inference.fit(
        objective, optax.adam(0.1), (), num_steps=n, **options, **more
    )
    whole = run(5)
    assert int(whole.state["count"]) == 20 and int(whole.state["step"]) == 5
    assert np.isfinite(whole.state["log_reward"]).all()
    run(2, checkpoint=tmp_path / "fit")
    resumed = run(5, checkpoint=tmp_path / "fit")
    for one, two in zip(
        *map(jax.tree.leaves, ((whole.params, whole.state), (resumed.params, resumed.state))),
        strict=True,
    ):
        np.testing.assert_array_equal(one, two)


@pytest.mark.slow  # compiles a program to draw a start
def test_log_z_starts_at_the_estimate_from_weights(key):
    net = sets("total", "uniform")
    objective = gflownet.balance(net, gflownet.trajectory_balance(), batch_size=64)
    start = objective.init(key)["log_z"]
    np.testing.assert_allclose(start, exact(net)[0].log_z, atol=0.2)
    fixed = gflownet.balance(net, gflownet.trajectory_balance(), log_z_start=0.5)
    assert fixed.init(key)["log_z"] == 0.5


@pytest.mark.slow  # compiles two fits
def test_several_seeds_are_several_runs(key):
    net = grid("total", "uniform")
    objective = gflownet.balance(net, gflownet.trajectory_balance(), batch_size=3, rows_per_chunk=4)
    options = {"num_steps": 3, "progress": False}
    many = inference.fit(objective, optax.adam(0.1), (), key=key, num_seeds=2, **options)
    one = inference.fit(objective, optax.adam(0.1), (), key=jax.random.split(key, 2)[1], **options)
    np.testing.assert_allclose(many.history["value"][:, 1], one.history["value"], rtol=1e-4)


@pytest.mark.slow  # compiles a fit, and a diagnosis
def test_what_is_not_finite_is_named(key):
    net = sets("total", "uniform")
    objective = gflownet.balance(net, gflownet.trajectory_balance(lambda x: jnp.log(x * 0)))
    with pytest.raises(inference.fitting.NonFiniteError, match="the objective is"):
        inference.fit(objective, optax.adam(0.1), (), num_steps=2, key=key, progress=False)


TB, DB, LV = gflownet.trajectory_balance(), gflownet.detailed_balance(), gflownet.log_variance()
SETS, GRID = gflownet.Sets([0.1, 0.2, 0.3], 2), gflownet.Hypergrid(2, 3)


class Opaque(gflownet.Sets):
    rewards_prefixes = False


class Picture(gflownet.Hypergrid):
    def observe(self, state):
        return jnp.outer(state, state)


REFUSED = {
    "db without flows": (lambda: gflownet.balance(sets("total"), DB), "flow='total'.*log Z alone"),
    "tb on parts": (
        lambda: gflownet.balance(sets("total"), TB, num_consecutive=2), "two ends.*num_consecutive=2",
    ),
    "lv of one": (lambda: gflownet.balance(sets("total"), LV, batch_size=1), "batch_size of at least 2"),
    "no steps": (lambda: gflownet.balance(sets(), DB, num_consecutive=0), "at least 1"),
    "small memory": (
        lambda: gflownet.balance(sets(), DB, replay=gflownet.Replay(4)), "capacity of at least a batch",
    ),
    "walks back": (
        lambda: gflownet.balance(grid("network", "prior"), DB, replay=gflownet.Replay(backward=True)),
        "replay.backward",
    ),
    "probability": (lambda: gflownet.balance(sets(), DB, epsilon=1.5), "epsilon is 1.5"),
    "temperature": (lambda: gflownet.balance(sets(), DB, temperature=0.0), "temperature is 0"),
    "chunks": (lambda: gflownet.balance(sets(), DB, rows_per_chunk=0), "rows_per_chunk"),
    "shape": (lambda: gflownet.trajectory_balance("cubic"), "square.*huber.*linex"),
    "decay": (lambda: gflownet.subtrajectory_balance(0.0), "decay must be positive"),
    "arguments": (
        lambda: gflownet.balance(sets(), DB).init(jax.random.key(0), 1), "takes no arguments",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
def test_objectives_that_make_no_sense_are_refused(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


PROGRAMS = {
    "no prefix rewards": (Opaque([0.1, 0.2], 1), {"forward_looking": True}, "rewards_prefixes=False"),
    "nothing to split": (SETS, {"forward_looking": True, "flow": "total"}, "no flow of states"),
    "no stop action": (SETS, {"forward_looking": True, "flow": "stop"}, "stops is False"),
    "no looking forward": (GRID, {"flow": "stop"}, "forward_looking=True"),
    "induced backward policy": (SETS, {"flow": "edges", "backward": "learned"}, "induces P_B"),
    "prior without its name": (GRID, {"prior": abs}, "do not go together"),
    "name without a prior": (GRID, {"backward": "prior"}, "do not go together"),
    "prior and no flow": (GRID, {"backward": "prior", "prior": abs, "flow": "edges"}, "not for a prior"),
    "outputs of the prior": (GRID, {"backward": "prior", "prior": abs}, r"prior returns shape \(6,\), expected \(3,\)"),
    "unused network": (SETS, {"flow": "total", "flow_network": abs}, "does not use it"),
    "another flow": (SETS, {"flow": "state"}, "flow must be one of"),
    "features that are no vector": (Picture(2, 3), {}, r"Picture.observe returns shape \(2, 2\).*take a vector"),
    "outputs": (GRID, {"backward": "learned", "policy": lambda x: x}, r"shape \(6,\), expected \(5,\): 3 actions, 2 last"),
}  # fmt: skip


@pytest.mark.slow_for("outputs of the prior")
@pytest.mark.parametrize(("env", "options", "message"), PROGRAMS.values(), ids=PROGRAMS)
def test_choices_that_do_not_go_together_are_refused(env, options, message, key):
    with pytest.raises(ValueError, match=message):
        gflownet.programs(env, key=key, **options)
