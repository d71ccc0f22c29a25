"""Loaders that say where they stand: a killed run goes on there, to the bit, no batch lost, doubled or read again."""

import json
import signal
import subprocess
import sys
import time

import _killed_run
import jax
import numpy as np
import optax
import pytest
from _on_mesh import environment

from lapilli import inference, ppl

KEY = jax.random.key(0)
NUM_STEPS = 300


class Killed(Exception):
    pass


class Stream:
    """Random batches without end, which depend on all that was drawn before; a Grain iterator's methods."""

    def __init__(self, dies_at=None):
        self.rng, self.number, self.dies_at, self.read = np.random.default_rng(0), 0, dies_at, []

    def __iter__(self):
        return self

    def __next__(self):
        if self.number == self.dies_at:
            raise Killed
        self.read.append(self.number)
        self.number += 1
        return (self.rng.normal(size=3).astype(np.float32),)

    def get_state(self):
        return {"number": self.number, "rng": self.rng.bit_generator.state}

    def set_state(self, state):
        self.number = state["number"]
        self.rng.bit_generator.state = state["rng"]


class Loader:
    """The same stream behind a loader that keeps the state itself, as PyTorch's does."""

    def __init__(self):
        self.stream = Stream()

    def __iter__(self):
        yield from self.stream

    def state_dict(self):
        return self.stream.get_state()

    def load_state_dict(self, state):
        self.stream.set_state(state)


def model(x):
    import numpyro.distributions as dist

    with ppl.plate("rows", 3):
        ppl.sample("x", dist.Normal(ppl.param("mean", 0.0), 1.0), obs=x)


BOUND = inference.elbo(model, lambda x: None)


def train(stream, path=None, num_steps=NUM_STEPS):
    return inference.fit(
        BOUND, optax.adam(0.1), stream, num_steps=num_steps, key=KEY, plate_sizes={}, checkpoint=path,
        checkpoint_every=7, progress=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole():
    return train(Stream())


def killed_again_and_again(path, whole, deaths):
    """The fit after a run that dies in each of these batches; what each attempt read."""
    read = []
    for dies_at in [*deaths, None]:
        stream = Stream(dies_at)
        try:
            fit = train(stream, path)
        except Killed:
            pass
        read.append(stream.read)
    assert fit.params == whole.params
    np.testing.assert_array_equal(fit.history["value"], whole.history["value"])
    return read


@pytest.mark.parametrize("seed", range(3))
def test_a_killed_run_goes_on_where_its_loader_stood(tmp_path, whole, seed):
    deaths = sorted(np.random.default_rng(seed).choice(np.arange(1, NUM_STEPS), 3, replace=False))
    read = killed_again_and_again(tmp_path / "run.npz", whole, deaths)
    for before, after in zip(deaths[:-1], read[1:-1], strict=True):
        # The first batch tells the shapes; the others begin at the last checkpoint, at most 7 steps and a stack back.
        assert after[0] == 0 and (len(after) < 2 or after[1] >= before - 7 - 64)


def life(path, num_steps, dies_after=None):
    """Start the run in a process of its own; kill it so many seconds after it has begun to read, or let it end."""
    seconds = 0.0 if dies_after is None else 0.002  # for each batch
    command = [sys.executable, _killed_run.__file__, path, num_steps, seconds]
    with subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, env=environment(1)
    ) as run:
        assert run.stdout.readline() == b"reads\n"
        if dies_after is not None:
            time.sleep(dies_after)
            run.send_signal(signal.SIGKILL)
    assert run.returncode == (0 if dies_after is None else -signal.SIGKILL)


def step_of(path):
    if not path.exists():
        return 0
    with np.load(path) as file:
        return json.loads(str(file["header"]))["step"]


@pytest.mark.slow  # a process for each kill, some 3.5 seconds
@pytest.mark.parametrize("num_kills", [100])
def test_a_process_killed_at_any_time_is_the_same_run(tmp_path, num_kills):
    # At most 80 + 0.4 s / 2 ms steps a life, so that no life ends by itself.
    path, num_steps = tmp_path / "run.npz", 280 * num_kills
    rng, steps = np.random.default_rng(1), [0]
    for _ in range(num_kills):
        life(path, num_steps, rng.uniform(0.0, 0.4))
        steps.append(step_of(path))
    assert np.all(np.diff(steps) >= 0) and 0 < steps[-1] < num_steps
    life(path, num_steps)
    whole = _killed_run.train(_killed_run.Stream(), num_steps)
    np.testing.assert_array_equal(np.load(f"{path}.values.npy"), whole.history["value"])
    assert {p.name for p in tmp_path.iterdir()} == {path.name, f"{path.name}.values.npy"}
    print(f"{num_kills} kills, {np.count_nonzero(np.diff(steps))} after a checkpoint of that life")


def test_loaders_that_keep_their_own_state(tmp_path, whole):
    path = tmp_path / "run.npz"
    train(Loader(), path, num_steps=21)
    assert train(Loader(), path).params == whole.params


@pytest.mark.parametrize("state", [(1, 2), np.zeros(2)], ids=["tuple", "array"])
def test_a_state_that_a_file_does_not_hold_is_read_up_to(tmp_path, whole, state):
    class Other(Stream):
        def get_state(self):
            return state

    path = tmp_path / "run.npz"
    train(Other(), path, num_steps=21)
    assert train(Other(), path).params == whole.params


def test_bytes_are_a_state(tmp_path, whole):
    import json

    class Bytes(Stream):
        def get_state(self):
            return json.dumps(super().get_state()).encode()

        def set_state(self, state):
            super().set_state(json.loads(state))

    path = tmp_path / "run.npz"
    train(Bytes(), path, num_steps=21)
    assert train(Bytes(), path).params == whole.params


def test_a_state_that_the_loader_goes_on_to_change_is_copied(tmp_path, whole):
    class Live(Stream):
        """Hands out the very object that it counts in."""

        def __init__(self):
            super().__init__()
            self.state = {}

        def get_state(self):
            self.state.update(super().get_state())
            return self.state

        def __next__(self):
            batch = super().__next__()
            self.state.update(super().get_state())
            return batch

    path = tmp_path / "run.npz"
    train(Live(), path, num_steps=21)
    assert train(Live(), path).params == whole.params
