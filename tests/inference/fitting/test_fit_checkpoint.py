"""fit: checkpoints; a resumed run equals an uninterrupted one to the bit."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from _fit_fakes import Objective

from lapilli.inference.fitting import KeepBest
from lapilli.inference.fitting._fit import fit
from lapilli.inference.fitting.storage import Checkpoint, load, save
from lapilli.inference.fitting.training._nonfinite import NonFiniteError

X = np.linspace(0.5, 3.0, 12, dtype=np.float32)
BATCHES = [(X[:4],), (X[4:8],), (X[8:],)]
MODES = {
    "full": {},
    "minibatches": {"subsample": {"rows": 5}},
    "batches": {"args": BATCHES, "plate_sizes": {"rows": 12}},
    "seeds-average": {"num_seeds": 2, "average": 0.9, "subsample": {"rows": 4}},
}


def run(objective=None, optimizer=None, args=(X,), **options):
    options = {"num_steps": 20, "key": jax.random.key(0), "progress": False} | options
    return fit(objective or Objective(), optimizer or optax.adam(1e-2), args, **options)


def assert_same_fit(a, b):
    for one, two in zip(
        *(jax.tree.leaves((f.params, f.last_params, f.state, f.history)) for f in (a, b)),
        strict=True,
    ):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(two))
    assert (a.steps, a.stop_reason) == (b.steps, b.stop_reason)


class Crash(Exception):
    pass


def crash_at(step):
    def callback(info):
        if info.step == step:
            raise Crash

    return callback


@pytest.mark.fast("full")
@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_resume_after_a_crash_is_exact(tmp_path, mode):
    path = tmp_path / "deep" / "run.ckpt"
    straight = run(**mode)
    with pytest.raises(Crash):
        run(
            **mode, checkpoint=path, checkpoint_every=6, callbacks=[crash_at(13)], callback_every=13
        )
    resumed = run(**mode, checkpoint=path, checkpoint_every=6)
    assert_same_fit(straight, resumed)
    again = run(**mode, checkpoint=path)  # nothing left to do
    assert_same_fit(straight, again)
    assert [p.name for p in path.parent.iterdir()] == ["run.ckpt"]


@pytest.mark.slow
def test_more_steps_go_on_from_the_end(tmp_path):
    path = tmp_path / "run.ckpt"
    run(num_steps=8, checkpoint=path)
    assert_same_fit(run(num_steps=20), run(num_steps=20, checkpoint=path))
    with pytest.raises(ValueError, match="already at step 20, beyond num_steps=5"):
        run(num_steps=5, checkpoint=path)


def test_a_run_that_a_callback_stopped_stays_stopped(tmp_path):
    options = {"checkpoint": tmp_path / "run.ckpt", "callback_every": 5}
    stop = lambda info: info.step >= 10
    first = run(callbacks=[stop], **options)
    assert_same_fit(first, run(callbacks=[stop], **options))
    assert first.steps == 10
    assert run(**options).steps == 20


def test_an_interrupt_writes_the_checkpoint(tmp_path):
    def interrupt(info):
        raise KeyboardInterrupt

    path = tmp_path / "run.ckpt"
    with pytest.warns(UserWarning, match="Ctrl-C after step 7"):
        assert run(checkpoint=path, callbacks=[interrupt], callback_every=7).steps == 7
    assert_same_fit(run(), run(checkpoint=path))


@pytest.mark.slow
def test_a_nonfinite_step_leaves_the_last_good_state_in_the_checkpoint(tmp_path):
    path = tmp_path / "run.ckpt"
    with pytest.raises(NonFiniteError):
        run(Objective(break_at=("gradient", (4,))), checkpoint=path)
    with pytest.raises(ValueError, match="another computation of one step"):
        run(checkpoint=path)
    assert_same_fit(run(), run(checkpoint=path, resume="changed"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"key": jax.random.key(1)}, "argument 'key'"),
        ({"optimizer": optax.sgd(1e-2, momentum=0.9)}, r"\.opt_state\[0\]\.mu.*absent now"),
        ({"args": (X[:6],)}, r"argument 'args': \[\"float32\[12\]\"\] in the checkpoint"),
        ({"subsample": {"rows": 4}}, "argument 'subsample': null in the checkpoint"),
        ({"average": 0.9}, r"\.average.*absent in the checkpoint"),
        ({"num_seeds": 2}, r"\.params.*float..\[\] in the checkpoint, float..\[2\] now"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path_factory, options, message):
    path = tmp_path_factory.getbasetemp() / "other-run.ckpt"
    if not path.exists():
        run(num_steps=2, checkpoint=path)
    with pytest.raises(ValueError, match="(?s)belongs to another run.*" + message):
        run(checkpoint=path, **options)


def test_an_iterator_that_ends_before_the_checkpoint_is_refused(tmp_path):
    options = {"plate_sizes": {"rows": 12}, "checkpoint": tmp_path / "run.ckpt"}
    run(args=iter(BATCHES), num_steps=3, **options)
    with pytest.raises(ValueError, match="ended after 2 batches.*checkpoint is at step 3"):
        run(args=iter(BATCHES[:2]), num_steps=6, **options)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", None], ids=["empty", "text", "cut"])
def test_a_damaged_file_is_refused(tmp_path, content):
    path = tmp_path / "run.ckpt"
    if content is None:
        run(num_steps=2, checkpoint=path)
        content = path.read_bytes()[:700]
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is no checkpoint"):
        run(checkpoint=path)


@pytest.mark.fast("full")
@pytest.mark.parametrize("options", [{}, {"subsample": {"rows": 5}}], ids=["full", "minibatches"])
def test_other_data_of_the_same_shape_are_refused(tmp_path, options):
    path = tmp_path / "run.ckpt"
    run(checkpoint=path, num_steps=4, **options)
    with pytest.raises(ValueError, match="another run:\\n.*values of args"):
        run(args=(X + 1,), checkpoint=path, num_steps=8, **options)
    # The same values from another place are the same data.
    assert run(args=(jnp.asarray(X),), checkpoint=path, num_steps=6, **options).steps == 6


def test_a_newer_format_is_refused(tmp_path):
    path = tmp_path / "run.ckpt"
    np.savez(path, header=np.array(json.dumps({"format": 99, "leaves": []})), values=np.zeros(0))
    path = path.with_name("run.ckpt.npz")
    with pytest.raises(ValueError, match="has the format 99"):
        run(checkpoint=path)


def test_every_dtype_survives_and_a_failed_write_keeps_the_old_file(tmp_path):
    carry = {
        "half": jnp.arange(3, dtype=jnp.bfloat16),
        "key": jax.random.key(7),
        "count": jnp.int32(3),
        "flag": jnp.array([True, False]),
        "empty": jnp.zeros((0, 2)),
    }
    path = tmp_path / "c"
    save(path, Checkpoint(5, carry, np.arange(5.0), {"key": 1}, False))
    back = load(path, jax.tree.map(lambda leaf: leaf, carry), {"key": 1})
    for name, leaf in carry.items():
        assert back.carry[name].dtype == leaf.dtype
        unpack = jax.random.key_data if name == "key" else lambda x: x
        np.testing.assert_array_equal(unpack(back.carry[name]), unpack(leaf))
    with pytest.raises(TypeError):
        save(path, Checkpoint(6, carry, np.arange(5.0), {"key": object()}, False))
    assert load(path, carry, {"key": 1}).step == 5
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


def test_what_a_callback_has_seen_is_resumed(tmp_path):
    """The best parameters lie before the interruption, and are kept after it."""
    loss = lambda params, key: jnp.abs(params["loc"] - 0.5)
    whole, begun, resumed = (KeepBest(loss, None) for _ in range(3))

    def train(best, steps, path=None):
        return fit(
            Objective(noisy=False), optax.sgd(0.02), (np.full(4, 3.0, np.float32),), num_steps=steps,
            key=jax.random.key(0), callbacks=[best], callback_every=5, checkpoint=path, progress=False,
        )  # fmt: skip

    train(whole, 200)
    path = tmp_path / "run.npz"
    train(begun, 100, path)
    train(resumed, 200, path)
    assert resumed.losses == whole.losses and len(whole.losses) == 40
    assert resumed.params["loc"] == whole.params["loc"] == begun.params["loc"]
    with pytest.raises(
        ValueError, match=r"argument 'callbacks': .*least.* in the checkpoint, \[\] now"
    ):
        fit(
            Objective(noisy=False), optax.sgd(0.02), (np.full(4, 3.0, np.float32),), num_steps=300,
            key=jax.random.key(0), checkpoint=path, progress=False,
        )  # fmt: skip


def test_a_callback_that_has_seen_nothing_is_resumed_as_such():
    best = KeepBest(lambda params, key: jnp.nan, None)
    state = best.get_state({"loc": jnp.zeros(())})
    again = KeepBest(lambda params, key: jnp.nan, None)
    again.set_state(state)
    assert again.losses == []
    with pytest.raises(ValueError, match="none of 0 looks"):
        again.params  # noqa: B018


def test_states_of_two_callbacks_are_told_apart(tmp_path):
    low, high = (lambda params, key, a=a: jnp.abs(params["loc"] - a) for a in (0.0, 9.0))
    path = tmp_path / "run"
    with pytest.raises(ValueError, match="2 of 'KeepBest .*lambda.*name='validation'"):
        run(callbacks=[KeepBest(low, None), KeepBest(high, None)], checkpoint=path)
    make = lambda: [KeepBest(low, None, name="low"), KeepBest(high, None, name="high")]
    run(callbacks=make(), checkpoint=path)
    with pytest.raises(ValueError, match=r"callbacks with a state.*KeepBest low.*KeepBest high"):
        run(callbacks=make()[::-1], checkpoint=path, num_steps=40)
    run(callbacks=make(), checkpoint=path, num_steps=40)
