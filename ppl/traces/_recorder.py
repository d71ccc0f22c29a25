"""Handlers that run a program and remember its sites.

A `Recorder` sits on NumPyro's stack, gives each sample statement a value and keeps what the statement
contributed. Recorders know about *regions*: the bodies of `ppl.scan`, `ppl.cond` and `ppl.particles`
(`_regions.py`, `_particles.py`). Inside a region a recorder fills a frame of its own; when the region closes, the frame's
arrays leave it stacked, so that no tracer leaks and a site keeps its name.

Keys are derived from addresses (`_keys.py`): a site's key is that of its region and its name, a region's key for step t or
particle k is fold_in(region key, t or k). Two runs that share a key therefore share the noise of every site that they share.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.handlers
from jaxtyping import PyTree
from numpyro.distributions import constraints
from numpyro.primitives import Messenger

from .._compat import handler_stack, trace_state
from .._foreign import named_site
from .._types import Message
from ..distributions import CENSORED, base_of, misplaced
from ._keys import fold_name
from ._reach import Reach, limits_of
from ._sites import Region, SiteInfo, describe, describe_deterministic, widened

Array = jax.Array


SEEN = " seen"  # no site: whether a step's observations hold


class Begun(NamedTuple):
    """A forced value that holds for the first steps of a scan.

    Attributes:
        value: one for each step; those after the end are not used.
        holds: whether the step has one.
    """

    value: Array
    holds: Array


@dataclasses.dataclass
class RegionState:
    """What a recorder knows of the region that is being run."""

    key: Array | None
    state: PyTree
    kind: str = "program"
    forced: dict[str, Array] = dataclasses.field(default_factory=dict)
    numbers: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    infos: dict[str, SiteInfo] = dataclasses.field(default_factory=dict)
    used: set[str] = dataclasses.field(default_factory=set)
    sites: dict[str, Any] = dataclasses.field(default_factory=dict)
    num_regions: int = 0


class HiddenDraw(ValueError):
    """A foreign handler hides a random statement from the recorder."""


class Recorder(Messenger, abc.ABC):
    """Abstract: run a program, give every site a value, keep every site's numbers."""

    # Whether forced values of a shorter scan hold for its first steps; and for how many of them its observations do, None: where
    # a forced value does.
    continues: bool = False
    num_seen: int | None = None
    # Whether what is recorded is run step by step afterwards.
    is_stepped: bool = False

    def __init__(self, key: Array | None = None, forced: dict[str, Array] | None = None) -> None:
        super().__init__()
        self.root_key = key
        self.frames = [RegionState(key, None, forced=dict(forced or {}))]
        # Run region bodies once untransformed first, so that parameters inside them are met as plain arrays.
        self.is_exploring = False
        self.plates: dict[str, int] = {}
        self.params: dict[str, str] = {}

    # Whether messages end here (a runner, an engine) or go on to a recorder outside.
    is_final = True

    @property
    def frame(self) -> RegionState:
        """The frame of the innermost open region."""
        return self.frames[-1]

    def __enter__(self) -> Recorder:
        super().__enter__()
        self.frames[0].state = trace_state()
        return self

    def __exit__(self, kind: Any, err: Any, traceback: Any) -> None:
        inside = handler_stack()[handler_stack().index(self) + 1 :] if kind is None else []
        if inside:
            names = [getattr(h, "name", None) or type(h).__name__ for h in inside]
            raise RuntimeError(
                f"The program has returned, but plates or handlers that it has entered are still open: {names}, by __enter__ or "
                "in a generator that was not read to its end. Use them in a with statement of the program's own."
            )
        super().__exit__(kind, err, traceback)

    # What a final class decides.

    @abc.abstractmethod
    def visit(self, msg: Message) -> None:
        """Give the sample statement `msg` its value (or leave it to handlers further out)."""

    @abc.abstractmethod
    def numbers_of(self, msg: Message) -> dict[str, PyTree]:
        """The arrays to keep of a sample statement that has its value."""

    def hand_out(self, key: Array, name: str) -> Array:
        """The key that a `rng_key` statement gets."""
        return key

    def begin_steps(self, init: PyTree) -> None:
        """A scan begins in the open frame, in state `init`."""

    def end_step(self, state: PyTree, t: Array) -> None:
        """Step t of the innermost scan ends in `state`."""

    # NumPyro's protocol.

    def process_message(self, msg: Message) -> None:
        kind = msg["type"]
        if kind == "control_flow":
            self.control_flow(msg)
            return
        self._check_level(msg)
        if kind == "sample":
            _refuse_sample_shape(msg)
            _refuse_latent_censored(msg)
            _refuse_misplaced(msg)
            with named_site(msg):
                if msg["is_observed"] and len(self.frames) == 1:
                    msg["fn"] = widened(msg)
                self.visit(msg)
        elif kind == "prng_key" and msg["value"] is None and self.frame.key is not None:
            name = msg.get("name") or self._unnamed_key()
            self.frame.used.add(name)
            msg["value"] = self.hand_out(fold_name(self.frame.key, name, kind="key"), name)
        elif kind == "prng_key" and msg["value"] is None and not msg.get("name"):
            self._check_not_hidden()
        elif kind == "plate" and msg["value"] is None:
            if self.root_key is None:
                if self.is_final and not self._is_answered_outside():
                    raise ValueError(
                        f"Plate '{msg['name']}' subsamples {msg['args'][1]} of {msg['args'][0]} rows, "
                        "but scoring given choices has no random key to choose them. Use simulate or "
                        "generate, an objective, or all rows."
                    )
                return
            # The subsample is drawn once per run, whatever the region or particle: model and guide must see the
            # same rows.
            rng_key = fold_name(self.root_key, msg["name"], kind="plate")
            msg["value"] = msg["fn"](*msg["args"], rng_key=rng_key)
        elif kind == "mutable":
            raise TypeError(
                f"Site '{msg['name']}': numpyro.mutable keeps state inside a program, which cannot be "
                "replayed. Pass the state through the program's arguments and return value."
            )

    # The value of a control-flow statement of numpyro.contrib; `_regions.py` sets it, since regions are made of recorders.
    adopt: ClassVar[Callable[[dict[str, PyTree]], PyTree]]

    def control_flow(self, msg: Message) -> None:
        """Take over a control-flow statement of numpyro.contrib."""
        msg["value"], msg["stop"] = Recorder.adopt(msg), True

    def postprocess_message(self, msg: Message) -> None:
        if msg["type"] == "plate":
            name, size = msg["name"], msg["args"][0]
            # After the run of the program every plate has one size, by which log-probs were scaled.
            if self.plates.setdefault(name, size) != size:
                raise ValueError(
                    f"Plate '{name}' has {self.plates[name]} rows in one place and {size} in another; log-probs "
                    "are scaled by a plate's size. Use two names, or one size."
                )
        elif msg["type"] == "param":
            shapes = [jnp.shape(x) for x in jax.tree.leaves(msg["value"])]
            self.params[msg["name"]] = (
                f"{' '.join(map(str, shapes))} {msg['kwargs'].get('constraint', constraints.real)}"
            )
        elif msg["type"] == "sample":
            name = self.address(msg)
            with named_site(msg):
                self.frame.infos[name] = describe(msg, self.plates)
                self.frame.numbers[name] = self.numbers_of(msg)
        elif msg["type"] == "deterministic":
            name = self.address(msg)
            self.frame.infos[name] = describe_deterministic(msg)
            self.frame.numbers[name] = {"value": jnp.asarray(msg["value"])}

    def address(self, msg: Message) -> str:
        """The name under which a site is kept; a name met twice is an error."""
        name = msg["name"]
        if self.seen(name):
            raise ValueError(
                f"Site '{name}' appears twice in one run of the program; each sample statement needs a "
                f"name of its own. Rename one of them, e.g. '{name}_2'."
            )
        return name

    def _is_answered_outside(self) -> bool:
        stack = handler_stack()
        outside = stack[: stack.index(self)]
        return any(isinstance(h, Recorder) and h.root_key is not None for h in outside)

    def _unnamed_key(self) -> str:
        self._check_not_hidden()
        return f"prng_key_{len(self.frame.used)}"

    def _check_not_hidden(self) -> None:
        stack = handler_stack()
        if any(isinstance(h, numpyro.handlers.block) for h in stack[stack.index(self) :]):
            raise HiddenDraw(
                "numpyro.handlers.block hides a random statement of this program, so its draw would "
                "have no density and no gradient. Use ppl.condition, ppl.intervene or ppl.block."
            )

    def given(self, name: str) -> Array | None:
        """The forced value of a site, sliced to the open regions; None when there is none.

        Raises:
            ValueError: the value lacks the axis of a region around the site.
        """
        if name in self.frame.forced:
            return self.frame.forced[name]
        for frame in self.frames[:-1]:
            if name in frame.forced:
                raise ValueError(
                    f"Site '{name}' stands in {', '.join(f.kind for f in self.frames[1:])}, but the "
                    f"value given for it has shape {jnp.shape(frame.forced[name])}, without the leading "
                    "axis (or with another size) of that region. Stack one value per step or particle."
                )
        return None

    def limits(self, name: str) -> Reach:
        """What limits the law that a forced value was drawn from, as far as that was given too (`_reach.as_choices`)."""
        forced = {n for frame in self.frames for n in frame.forced}
        return {limit: self.given(n) for limit, n in limits_of(name, forced).items()}

    def seen(self, name: str) -> bool:
        """Whether an open frame already holds `name`."""
        return any(name in frame.numbers for frame in self.frames)

    def _check_level(self, msg: Message) -> None:
        if trace_state() == self.frame.state:
            return
        if msg["type"] == "sample":
            raise ValueError(
                f"Site '{msg['name']}' is a sample statement inside a raw JAX transformation (lax.scan, "
                "lax.while_loop, lax.cond, lax.map, jit, vmap, grad or checkpoint), where its value and "
                "density would be lost. Use ppl.scan for a loop, ppl.cond for a branch, ppl.plate for a "
                "vectorised site or ppl.particles(K) for independent runs, or move the statement out."
            )
        raise ValueError(
            f"Statement '{msg.get('name', msg['type'])}' ({msg['type']}) stands inside a raw JAX "
            "transformation, which would keep its value of the first run. Move the statement out and "
            "pass its value in, or use ppl.scan, ppl.cond or ppl.particles."
        )

    # Regions.

    def open_region(self, kind: str) -> tuple[Array | None, dict[str, Array]]:
        """The region's key and the forced values that may belong to it."""
        frame = self.frame
        if trace_state() != frame.state:
            raise ValueError(
                f"A ppl.{kind} statement stands inside a raw JAX transformation (lax.scan, jit, vmap, "
                "grad, ...), where its sites would be lost. Nest ppl.scan, ppl.cond and ppl.particles "
                "in each other, or move the statement out."
            )
        frame.num_regions += 1
        if frame.key is None:
            return None, frame.forced
        return fold_name(frame.key, f"{kind}_{frame.num_regions}", kind="region"), frame.forced

    def push(self, kind: str, key: Array | None, forced: dict[str, Array]) -> None:
        """Enter the body of a region."""
        self.frames.append(RegionState(key, trace_state(), kind, forced))

    def depth(self, kind: str) -> int:
        """How many regions of this kind are open."""
        return sum(frame.kind == kind for frame in self.frames)

    @staticmethod
    def absent(numbers: dict[str, PyTree]) -> dict[str, Array | dict[str, Array] | list[PyTree]]:
        """The numbers of a site in a branch that is not taken: zeros."""
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), numbers)

    def pop(self) -> tuple[RegionState, dict[str, dict[str, Any]]]:
        """Leave the body of a region: its frame, emptied of the body's arrays, and the numbers, to be returned by the body."""
        frame = self.frames.pop()
        numbers = frame.numbers
        frame.key, frame.state, frame.forced, frame.numbers = None, None, {}, {}
        return frame, numbers

    def merge(
        self, frame: RegionState, numbers: dict[str, dict[str, PyTree]], region: Region
    ) -> None:
        """Take in the numbers of a closed region, stacked along the region's axis."""
        for name, info in frame.infos.items():
            self.address({"name": name})
            if region.axis is not None:
                shape = (region.size, *info.batch_shape)
                info = dataclasses.replace(info, dims=(region.axis, *info.dims), batch_shape=shape)
            self.frame.infos[name] = dataclasses.replace(info, regions=(region, *info.regions))
            self.frame.numbers[name] = numbers[name]
        self.frame.used |= frame.used


class Noiseless(Recorder):
    """Abstract: run a program whose density is a number without noise, a sum or an integral.

    Attributes:
        label: whose density it is.
        is_called: what the density is, in words.
    """

    label: str
    is_called: str

    def process_message(self, msg: Message) -> None:
        if msg["type"] == "plate" and msg["value"] is None:
            raise ValueError(
                f"Plate '{msg['name']}' subsamples {msg['args'][1]} of {msg['args'][0]} rows by itself, and {self.label} has no "
                "random key to choose them. Use all rows, or minibatches of the data (fit(..., subsample=...))."
            )
        super().process_message(msg)

    def hand_out(self, key: Array, name: str) -> Array:
        if name.startswith("rng:"):
            raise ValueError(
                f"ppl.rng_key('{name.removeprefix('rng:')}'): {self.label} is {self.is_called} without noise. Make the draw a "
                "site."
            )
        return key


def _refuse_sample_shape(msg: Message) -> None:
    shape = msg["kwargs"].get("sample_shape")
    if shape:
        raise ValueError(
            f"Site '{msg['name']}': sample_shape={tuple(shape)} would draw a value larger than the site's own shape. "
            f"Use a plate, or {type(msg['fn']).__name__}(...).expand({[*shape, *msg['fn'].batch_shape]})."
        )


def _refuse_misplaced(msg: Message) -> None:
    """A transform that gets values outside of its domain has no density, but NumPyro computes a number."""
    if (why := misplaced(msg["fn"])) is not None:
        raise ValueError(
            f"Site '{msg['name']}': {why}, so that its log-probability is not that of its values. Use a base law inside of the "
            "domain, or transform the site's value in the program (no density of it is needed then)."
        )


def _refuse_latent_censored(msg: Message) -> None:
    """A censored law says how probable an observation is; NumPyro draws from the law behind it, whose density is another."""
    if not msg["is_observed"] and isinstance(base_of(msg["fn"]), CENSORED):
        law = type(base_of(msg["fn"])).__name__
        raise ValueError(
            f"Site '{msg['name']}': {law} is a law of observations only. Its draws are those of the law behind it, and its "
            "density is a probability of being censored, so that weights and gradients of a latent site would be wrong. "
            "Observe it (obs=), or make the site the law behind it."
        )
