"""Program transformations: condition, intervene, block, mask."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Collection, Mapping

import numpyro.handlers
from jaxtyping import Array, ArrayLike, PyTree
from numpyro.primitives import Messenger

from .._compat import fresh_caches, handler_stack
from .._types import Choices, Message, ModelFn
from ..traces import Recorder
from ._callables import name_of
from ._choices import arrays
from ._program import Program, as_program


class GivenSites(Recorder):
    """Fix sites by name; inside a region the values are sliced along its axis."""

    is_final = False

    def __init__(self, values: Mapping[str, ArrayLike], observed: bool) -> None:
        super().__init__(None, arrays(values))
        self.observed = observed
        self.fixed: set[str] = set()

    def visit(self, msg: Message) -> None:
        value = None if msg["is_observed"] else self.given(msg["name"])
        if value is None:
            return
        self.fixed.add(msg["name"])
        msg["value"], msg["is_observed"], msg["is_whole"] = value, True, True
        # Missing cells that are given are missing no more; the mask may belong to one step of a scan.
        msg["infer"] = {k: v for k, v in msg["infer"].items() if k not in ("cells", "imputed")}
        if not self.observed:
            msg["fn"] = msg["fn"].mask(False)
            msg["is_set"] = True  # no observation, so that predictions do not draw it anew

    def numbers_of(self, msg: Message) -> dict[str, Array]:
        return {}

    def control_flow(self, msg: Message) -> None:
        # Reached under NumPyro's own inference only: its scan and cond take conditions along.
        if is_ours():
            super().control_flow(msg)
        else:
            given = dict(self.frame.forced)
            msg["kwargs"]["substitute_stack"].append(
                ("condition", given if self.observed else _do(given))
            )


def is_ours() -> bool:
    """Whether the program runs under one of our recorders, not under NumPyro's own inference."""
    return any(isinstance(h, Recorder) and h.is_final for h in handler_stack())


def _do(given: Choices) -> Callable[[Message], Array | None]:
    """A condition for NumPyro under which a site has its value and no density."""

    def value_of(site: Message) -> Array | None:
        value = given.get(site["name"])
        if value is not None:
            site["fn"] = site["fn"].mask(False)
        return value

    return value_of


def condition(program: ModelFn, values: Mapping[str, ArrayLike]) -> Program:
    """The program with latent sites observed: they count in the density and are no longer choices.

    What is observed tells of what lies before it; a value that is set from outside, and tells nothing, is `intervene`'s.

    Args:
        program: a program or NumPyro model.
        values: latent site -> value; a site in `ppl.scan` takes its stacked values.

    Raises:
        ValueError: a name is none of a latent site.
    """
    return _transformed(
        program, lambda: GivenSites(values, observed=True), set(values), "condition"
    )


def intervene(program: ModelFn, values: Mapping[str, ArrayLike]) -> Program:
    """The program under the intervention do(site = value): the value is used downstream and the site has no density.

    It tells nothing of what lies before it; a value that was seen is `condition`'s. Predictions keep it, where they draw what was
    observed anew.

    Errors are those of `condition`.

    Args:
        program: a program, or a function of sample statements.
        values: site name -> value, as for `condition`.
    """
    return _transformed(
        program, lambda: GivenSites(values, observed=False), set(values), "intervene"
    )


def block(program: ModelFn, sites: Collection[str]) -> Program:
    """The program with observed sites, factors or deterministic sites hidden: they no longer count.

    A latent site cannot be hidden, since its draw would then have no density; use `ppl.marginal` for that.

    Args:
        program: a program, or a function of sample statements.
        sites: names of the sites to hide.

    Raises:
        ValueError: one of the sites is latent, or the program has none of that name.
    """
    hidden = frozenset(sites)

    class _Hide(Messenger):
        def __init__(self) -> None:
            super().__init__()
            self.met: set[str] = set()

        def process_message(self, msg: Message) -> None:
            if msg.get("name") in hidden:
                if msg["type"] == "sample" and not msg["is_observed"]:
                    raise ValueError(
                        f"Site '{msg['name']}': ppl.block cannot hide a latent site, its draw would have "
                        "no density. Condition or intervene on it instead."
                    )
                msg["stop"] = True
            if msg["type"] in ("sample", "deterministic"):
                self.met.add(msg["name"])

    return _transformed(program, _Hide, set(hidden), "block")


def mask(program: ModelFn, mask: ArrayLike) -> Program:
    """The program with every log-density multiplied by the boolean `mask` (broadcast against each site's batch shape).

    Around `ppl.eliminate(...)` the sites that are summed out keep their law, so that what is masked adds nothing. A mask inside
    of the program that is eliminated masks their densities as well: a site with k values then counts as k, as it does there.

    Args:
        program: a program, or a function of sample statements.
        mask: boolean, a scalar or an array along the plates; False counts nothing.
    """
    program = as_program(program)
    summed_out = getattr(program, "summed_out", ())

    class _Mask(numpyro.handlers.mask):
        def process_message(self, msg: Message) -> None:
            if msg.get("name") not in summed_out:
                super().process_message(msg)

    return _transformed(program, lambda: _Mask(mask=mask), set(), "mask")


def rescale_plates(program: ModelFn, sizes: Mapping[str, float]) -> Program:
    """The program run on a minibatch: a plate named in `sizes` stands for that many rows, whatever number of rows it is run on.

    Log-probs inside plate `name` run on n rows are scaled by sizes[name] / n.

    An infinite size, `math.inf`, takes the limit of the log-density divided by the number of rows: what lies inside the plate is
    scaled by 1 / n, the mean over rows, and what lies outside counts zero.

    A name that the program does not have is passed over: a plate may belong to the model only.

    Args:
        program: a program, or a function of sample statements.
        sizes: plate name -> number of rows that it stands for; at most one is infinite.

    Raises:
        ValueError: the plate subsamples by itself, or has more rows than its full size; more than one size is infinite.
    """
    infinite = [name for name, size in sizes.items() if math.isinf(size)]
    if len(infinite) > 1:
        raise ValueError(
            f"Plates {infinite} are all given an infinite size, but log-densities can be counted per row of one plate only. "
            "Give the others the number of rows that there are."
        )

    class _Rescale(Messenger):
        def process_message(self, msg: Message) -> None:
            if msg["type"] == "plate" and msg["name"] in sizes:
                size, own = msg["args"]
                if own not in (None, size):
                    raise ValueError(
                        f"Plate '{msg['name']}' already subsamples {own} of {size} rows. Subsample it in "
                        "one place only."
                    )
                if size > sizes[msg["name"]]:
                    raise ValueError(
                        f"Plate '{msg['name']}' has {size} rows, more than its full size "
                        f"{sizes[msg['name']]}. Give the number of rows that there are in all, or more."
                    )
                msg["full_size"] = sizes[msg["name"]]  # for `strategies/_engine.py`
            if msg["type"] == "sample":
                plates = {f.name: f.size for f in msg["cond_indep_stack"] if f.name in sizes}
                rows = 1.0 if set(infinite) <= plates.keys() else 0.0
                for name, size in plates.items():
                    rows = rows * (1 if name in infinite else sizes[name]) / size
                if plates or infinite:
                    msg["scale"] = rows * (1.0 if msg["scale"] is None else msg["scale"])
                    # For `densities/_listing.py`.
                    msg["rows_scale"] = rows * msg.get("rows_scale", 1.0)

    return _transformed(program, _Rescale, set(), "rescale_plates")


def _transformed(
    program: PyTree, handler: Callable[[], PyTree], names: set[str], statement: str
) -> Program:
    """The program under a handler of the sites `names`, all of which it has to meet, and to fix if that is what it does."""

    def check(active: PyTree) -> None:
        if names:
            met = set(active.frame.infos) if isinstance(active, GivenSites) else active.met
            if names - met:
                raise ValueError(
                    f"ppl.{statement}: no site named {sorted(names - met)}; the program's sites are "
                    f"{sorted(met)}. Name one of these."
                )
        # NumPyro's own scan and cond, which are not ours, fix their sites themselves.
        if isinstance(active, GivenSites) and is_ours() and (left := sorted(names - active.fixed)):
            kinds = {name: active.frame.infos[name].kind for name in left}
            raise ValueError(
                f"ppl.{statement}: only latent sites can be given a value, and {kinds} are none. Name the latent sites that they "
                "are made of, or pass observed values as the program's arguments."
            )

    return handled(program, handler, check)


def handled(
    program: ModelFn, handler: Callable[[], PyTree], check: Callable[[PyTree], None]
) -> Program:
    """The program under a handler, a new one in each run, which `check` looks at when the run is over."""
    program = as_program(program)
    rebuilt = getattr(program, "rebuilt", None)
    if rebuilt is not None:  # made of another program, on which the handler is to act
        return rebuilt(lambda inner: handled(inner, handler, check))

    def transformed(*args: PyTree, **kwargs: PyTree) -> PyTree:
        active = handler()
        with active, contextlib.nullcontext() if isinstance(active, Recorder) else fresh_caches():
            out = program.fn(*args, **kwargs)
        check(active)
        return out

    transformed.__name__ = name_of(program)
    return Program(transformed, program.params, program.site_weights)
