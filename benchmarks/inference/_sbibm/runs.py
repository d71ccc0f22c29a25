"""Runs of the benchmark: methods, what each observation gives, and a file of what was measured, to go on from."""

import functools
import hashlib
import importlib.metadata
import json
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from _common import is_older, ran_so_far
from scipy.special import logsumexp

from lapilli import inference

from .references import LOG_DENSITIES, REFERENCES, read
from .scores import c2st
from .tasks import TASKS

ROOT = Path(__file__).resolve().parents[3]
MADE_BY = (
    "inference/simulators",
    "inference/flows",
    "inference/fitting",
    "inference/posteriors",
    "benchmarks/inference/_sbibm",
)
PACKAGES = ("jax", "numpyro", "scikit-learn")


def observed(task, number, folder, size):
    """Data of the task, and exact draws given them."""
    if folder is not None:
        x, draws = read(folder, task, number)
        return TASKS[task].shaped(x), draws[:size]
    model = TASKS[task].model
    x = model.predict_trace(jax.random.key(number), {}, np.zeros(TASKS[task].x_shape, np.float32))
    x = np.asarray(x.observed["x"])
    return x, REFERENCES[task](np.random.default_rng(number), x.ravel().astype(float), size)


def npe(task, table, key, options, num_seeds=1):
    found = inference.amortise(table, num_seeds=num_seeds, key=key, progress=False)
    return (lambda key, x, size: found.draws(key, {"x": x}, size)["theta"]), lambda x: found


def tsnpe(task, table, key, options):
    """Rounds for each observation anew; the table is the first."""

    @functools.cache
    def learned(x):
        at = {"x": np.frombuffer(x, np.float32).reshape(table.data["x"].shape[1:])}
        return inference.amortise(
            table, at=at, num_rounds=options.rounds, tolerance=0.0, key=key, progress=False
        )

    found = lambda x: learned(np.asarray(x, np.float32).tobytes())
    return (lambda key, x, size: found(x).draws(key, {"x": x}, size)["theta"]), found


def chains(model):
    """Of a learned density `infer` draws: it looks for modes, and weighs those that no chain crosses."""

    def draws(key, x, size):
        run = inference.infer(model, (x,), key=key, num_samples=size, progress=False)
        return run.choices["theta"]

    return draws


def nle(task, table, key, options):
    found = inference.surrogate(table, sites=["x"], key=key, progress=False)
    return chains(found.model), lambda x: found


def nre(task, table, key, options):
    found = inference.ratio(table, key=key, progress=False)
    return chains(found.model), lambda x: found


_EACH = (
    10  # of so many draws of a chain one is kept: the classifier takes them for independent ones
)


def program(task, table, key, options):
    """A program of the task whose density is known: nothing is learned. A solver's chains take longer than `infer` waits for."""

    def draws(key, x, size):
        run = inference.infer(
            TASKS[task].exact, (x,), key=key, num_samples=_EACH * size, max_seconds=None, progress=False
        )  # fmt: skip
        return run.choices["theta"][::_EACH][:size]

    return draws, lambda x: None


METHODS = {
    "npe": npe,
    "ensemble": functools.partial(npe, num_seeds=3),
    "tsnpe": tsnpe,
    "nle": nle,
    "nre": nre,
    "program": program,
}


def nats(task, found, x, reference):
    """E_ref[log p - log q] where the posterior's density is known; None elsewhere.

    Of a program that is a posterior up to its evidence this is the mean of p / q under p, by the reference draws.
    """
    if task not in LOG_DENSITIES or found is None:
        return None
    own = (
        (lambda t: found.log_density({"theta": t}, {"x": x}))
        if hasattr(found, "guide")
        else lambda t: found.model.log_density({"theta": t}, x)
    )
    log_p = LOG_DENSITIES[task](reference, np.asarray(x, float))
    gaps = log_p - np.asarray(jax.jit(jax.vmap(own))(jnp.asarray(reference, jnp.float32)), float)
    return float(
        gaps.mean() + (0.0 if hasattr(found, "guide") else logsumexp(-gaps, b=1 / len(gaps)))
    )


class Measured(NamedTuple):
    """Of one observation: C2ST, nats or None, the mean of log q on held-out pairs or None, seconds of learning, objections.

    And what had run: MADE_BY, path -> digests.
    """

    score: float
    nats: float | None
    held_out: float | None
    seconds: float
    objections: list[str]
    ran: dict[str, str]

    @property
    def is_current(self):
        """Whether all that it was made by is as it was."""
        return not any(is_older(digests, ROOT / path) for path, digests in self.ran.items())


def learned(task, method, budget, options):
    """The key of its runs, draws and what is learned given any observation, and the seconds that it took."""
    began = time.perf_counter()
    key = jax.random.fold_in(jax.random.key(options.seed), budget)
    x = np.zeros(TASKS[task].x_shape, np.float32)
    first = budget // options.rounds if method == "tsnpe" else budget
    table = inference.simulators.reference_table(
        TASKS[task].model, (x,), num_simulations=first, key=key
    )
    draw, found = METHODS[method](task, table, jax.random.fold_in(key, 1), options)
    return key, draw, found, time.perf_counter() - began


def _digest(*parts):
    found = hashlib.sha256()
    for part in parts:
        found.update(part.encode() if isinstance(part, str) else np.ascontiguousarray(part))
    return found.hexdigest()[:16]


def measured(task, method, budget, observations, options):
    """Each of the first observations, those that are kept first; what is learned is learned only for others.

    A kept one is the same if its task, method, sizes and seed are, the data and the draws that it is scored against, packages,
    and each function that had run.
    """
    is_new = options.kept is None or not options.kept.exists()
    rows = [] if is_new else map(json.loads, options.kept.read_text().splitlines())
    kept = [(tuple(row["of"]), Measured(**row["found"])) for row in rows]
    known = {of: found for of, found in kept if found.is_current}
    own, packages = None, _digest(*map(importlib.metadata.version, PACKAGES))
    rounds = options.rounds if method == "tsnpe" else None
    for number in range(1, observations + 1):
        x, reference = observed(task, number, options.data, options.draws)
        against = _digest(x, reference)
        of = (task, method, budget, number, options.seed, options.draws, rounds, against, packages)
        if of not in known:
            own = learned(task, method, budget, options) if own is None else own
            key, draw, found, seconds = own
            draws = np.asarray(draw(jax.random.fold_in(key, 1 + number), x, len(reference)), float)
            at, score = found(x), c2st(reference, draws.reshape(len(draws), -1))
            objections = list(at.report.objections) if hasattr(at, "report") else []
            held_out = at.held_out[0] if hasattr(at, "held_out") else None
            known[of] = Measured(
                score, nats(task, at, x, reference), held_out, seconds, objections, ran_so_far(MADE_BY)
            )  # fmt: skip
            if options.kept is not None:
                with options.kept.open("a") as file:
                    file.write(json.dumps({"of": of, "found": known[of]._asdict()}) + "\n")
        yield known[of]
