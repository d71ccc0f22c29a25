"""Random tiny programs with random strategies: plates, scans, branches, shared and mixed costs.

`make(seed)` returns a `RandomProgram` for the exact tests of `_oracles.py`. Everything is drawn from one NumPy
generator: shape of the program, sites, parents, costs, strategies. Its text is in `.text`, for reports.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math

import jax.numpy as jnp
import numpy as np
from _oracles import bernoulli, bits, categorical, digits, nodes, normal, of

from lapilli import ppl

ROWS, COLS = 2, 2
SHAPES = {"": (), "r": (ROWS,), "rc": (COLS, ROWS)}
MAX_OUTCOMES = 3000


@dataclasses.dataclass
class RandomProgram:
    fn: object
    params: dict
    spec: dict
    strategies: dict
    text: str

    @property
    def enumerated(self):
        return [name for name, s in self.strategies.items() if s == "enum"]


class _Maker:
    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        self.params, self.spec, self.strategies = {}, {}, {}
        self.statements, self.terms, self.text = [], [], []
        self.values = {}  # name -> (frame, is discrete scalar)
        self.outcomes = 1
        self.count = 0

    def pick(self, *options):
        return options[self.rng.integers(len(options))]

    def chance(self, p):
        return self.rng.random() < p

    def number(self):
        return float(np.round(self.rng.normal(), 2))

    def name(self, prefix):
        self.count += 1
        return f"{prefix}{self.count}"

    # Sites.

    def site(self, frame, time=()):
        """A description of a new site, or None when the table would be too large."""
        kind = self.pick("b", "b", "b", "k", "x")
        shape = time + SHAPES[frame]
        size = math.prod(shape)
        strategy = (
            self.pick("reparam", "reinforce")
            if kind == "x"
            else self.pick("enum", "reinforce", "mvd")
        )
        num_nodes = 3 if strategy == "reparam" else 9
        levels = {"b": 3, "k": 5, "x": num_nodes}[kind]
        if (
            kind == "x"
            and self.outcomes * levels**size > MAX_OUTCOMES
            or self.outcomes * {"b": 2, "k": 3}.get(kind, 1) ** size > MAX_OUTCOMES
        ):
            return None
        self.outcomes *= {"b": 2, "k": 3}.get(kind, levels) ** size
        name = self.name(kind)
        self.strategies[name] = strategy
        self.spec[name] = {
            "b": bits(*shape),
            "k": digits(3, *shape),
            "x": nodes(num_nodes, *shape),
        }[kind]
        own = SHAPES[frame] if self.chance(0.5) else ()
        event = (3,) if kind == "k" else ()
        self.params[name] = jnp.asarray(np.round(self.rng.normal(size=own + event) * 0.7, 2))
        slope = (
            np.round(self.rng.normal(size=event), 2) * 0.6 if kind == "k" else 0.6 * self.number()
        )
        return name, kind, slope, SHAPES[frame]

    @staticmethod
    def distribution(site, params, parent, noise):
        name, kind, slope, shape = site
        theta = params[name]
        parent = jnp.asarray(parent, float)
        if kind == "k":
            logits = jnp.broadcast_to(theta + slope * parent[..., None], (*shape, 3))
            return categorical(logits, noise)
        eta = jnp.broadcast_to(theta + slope * parent, shape)
        if kind == "b":
            return bernoulli(1 / (1 + jnp.exp(-eta)), noise)
        return normal(eta, 0.5 + 0.3 * jnp.tanh(theta) * jnp.ones(shape), noise)

    # Expressions of earlier values, brought to a frame.

    def parent(self, frame):
        if not self.values or self.chance(0.25):
            return "0", lambda env: 0.0
        name = self.pick(*self.values)
        own, _ = self.values[name]
        if len(own) <= len(frame):
            if own and own == frame and self.chance(0.2):
                return f"{name}[::-1]", lambda env: env[name][..., ::-1]
            return name, lambda env: env[name]
        axes = tuple(range(len(own) - len(frame)))
        return f"{name}.sum{axes}", lambda env: env[name].sum(axes)

    def add_site(self):
        frame = self.pick("", "", "r", "rc")
        site = self.site(frame)
        if site is None:
            return
        label, parent = self.parent(frame)
        plates = _plates(frame)

        def run(env, params, noise):
            with contextlib.ExitStack() as stack:
                for plate in plates:
                    stack.enter_context(plate())
                env[site[0]] = ppl.sample(
                    site[0], self.distribution(site, params, parent(env), of(noise, site[0]))
                )

        self.statements.append(run)
        self.values[site[0]] = (frame, frame == "" and site[1] == "b")
        self.text.append(f"{site[0]}[{frame}] ~ {self.strategies[site[0]]} ({label})")

    def add_scan(self):
        frame, length = self.pick("", "", "r"), int(self.rng.integers(2, 4))
        inside = bool(frame) and self.chance(0.5)
        sites = [
            s
            for s in (self.site(frame, (length,)) for _ in range(self.rng.integers(1, 3)))
            if s is not None
        ]
        if not sites:
            return
        label, parent = self.parent(frame)
        keep, gain, out = self.number(), self.number(), self.name("c")
        feeds = self.chance(0.7)
        plates = _plates(frame)

        def run(env, params, noise):
            def step(carry, x):
                total = carry
                with contextlib.ExitStack() as stack:
                    for plate in plates if inside else []:
                        stack.enter_context(plate())
                    for site in sites:
                        before = total if feeds else parent(env)
                        z = ppl.sample(
                            site[0],
                            self.distribution(
                                site, params, before, None if x is None else x[site[0]]
                            ),
                        )
                        total = 0.5 * total + gain * z
                return total if feeds else keep * carry, total * total

            xs = None if noise is None else {s[0]: noise[s[0]] for s in sites}
            init = jnp.broadcast_to(jnp.asarray(parent(env), float), SHAPES[frame])
            with contextlib.ExitStack() as stack:
                for plate in [] if inside else plates:
                    stack.enter_context(plate())
                carry, ys = ppl.scan(step, init, xs, length)
            env[out], env[f"{out}y"] = carry, ys.sum(0)

        self.statements.append(run)
        self.values[out], self.values[f"{out}y"] = (frame, False), (frame, False)
        names = ", ".join(f"{s[0]} ~ {self.strategies[s[0]]}" for s in sites)
        self.text.append(
            f"{out}, {out}y[{frame}] = scan {length} of {names} (init {label}, feeds {feeds}, plate inside {inside})"
        )

    def add_cond(self):
        preds = [name for name, (_, ok) in self.values.items() if ok]
        if not preds:
            return
        pred, out = self.pick(*preds), self.name("d")
        branches = []
        for _ in range(2):
            site = self.site("") if self.chance(0.75) else None
            label, parent = self.parent("")
            branches.append((site, parent, self.number(), label))

        def branch(env, params, noise, which):
            site, parent, gain, _ = branches[which]

            def run():
                z = parent(env)
                if site is not None:
                    z = ppl.sample(site[0], self.distribution(site, params, z, of(noise, site[0])))
                return jnp.asarray(gain + z * (1 + 0.5 * gain), float)

            return run

        def run(env, params, noise):
            env[out] = ppl.cond(
                env[pred] > 0.5, branch(env, params, noise, 0), branch(env, params, noise, 1)
            )

        self.statements.append(run)
        self.values[out] = ("", False)
        names = " | ".join(
            "-" if s is None else f"{s[0]} ~ {self.strategies[s[0]]} ({l})"
            for s, _, _, l in branches
        )
        self.text.append(f"{out} = cond {pred}: {names}")

    def add_term(self):
        a, b, w, c = self.pick(*self.values), self.pick(*self.values), self.number(), self.number()
        smooth, f = ("square", jnp.square) if self.is_polynomial() else ("tanh", jnp.tanh)
        theta = self.pick(*self.params)
        text, term = self.pick(
            (f"{w} sum {a}", lambda e, p: w * jnp.sum(e[a])),
            (f"sum ({a} - {c})^2", lambda e, p: jnp.sum((e[a] - c) ** 2)),
            (f"({a}.sum - {c})^2", lambda e, p: (jnp.sum(e[a]) - c) ** 2),
            (f"sum {w} {a} {b}", lambda e, p: jnp.sum(w * e[a] * e[b])),
            (f"mean theta({theta}) * sum {a}", lambda e, p: jnp.mean(p[theta]) * jnp.sum(e[a])),
            (f"{a}.sum * {b}.sum", lambda e, p: jnp.sum(e[a]) * jnp.sum(e[b])),
            (
                f"sum theta {smooth} {a}",
                lambda e, p: jnp.sum(jnp.mean(p[theta]) * f(0.3 * e[a]) * (1 + e[b])),
            ),
        )
        self.terms.append(term)
        self.text.append(f"cost {text}")

    def is_polynomial(self):
        """Whether costs must be polynomials: score-function gradients of Normal sites are exact for them only."""
        return any(
            self.strategies[name] == "reinforce" for name in self.strategies if name[0] == "x"
        )

    def build(self):
        for _ in range(self.rng.integers(2, 5)):
            self.pick(self.add_site, self.add_site, self.add_scan, self.add_cond)()
        while not self.values:
            self.add_site()
        for _ in range(self.rng.integers(1, 4)):
            self.add_term()
        shape = "sum" if self.is_polynomial() else self.pick("sum", "sum", "square", "log")
        self.text.append(f"result {shape}")

        def fn(params, noise):
            env = {}
            for run in self.statements:
                run(env, params, noise)
            total = 1.0 * sum(term(env, params) for term in self.terms)
            return {
                "sum": lambda s: s,
                "square": lambda s: 0.1 * s**2,
                "log": lambda s: jnp.log(2 + s**2),
            }[shape](total)

        return RandomProgram(fn, self.params, self.spec, self.strategies, "\n".join(self.text))


def _plates(frame):
    made = []
    if "c" in frame:
        made.append(lambda: ppl.plate("cols", COLS, dim=-2))
    if "r" in frame:
        made.append(lambda: ppl.plate("rows", ROWS, dim=-1))
    return made


def make(seed):
    """The random program of a seed."""
    return _Maker(seed).build()
