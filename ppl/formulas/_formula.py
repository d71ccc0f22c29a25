"""A regression by its formula: the program, its data, and the data of rows to come."""

from __future__ import annotations

import dataclasses
import linecache
from collections.abc import Hashable, Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Literal

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from .._calls import checked_call
from ..language import Program, model, plate, sample
from ._frame import Design, Level, check_cells, designed, place_of, table, without_unused_levels
from ._source import HEAD, Family, written

if TYPE_CHECKING:
    import pandas as pd


@dataclasses.dataclass(frozen=True, eq=False)
class Formula:
    """A regression: `print(it)` shows its program, priors included, as text that can be copied and changed.

    Attributes:
        text: the formula.
        family: of the response.
        program: what the text of `source` makes; its arguments are those of `args`.
        source: the program as Python, with its imports.
        args: the data, by argument, for `fit`, `nuts` or `infer`.
        columns: names of the columns of argument `x`.
        groups: argument of a grouping -> its levels; the number in the data is a level's place.
        design: the terms, by which rows to come are coded.
    """

    text: str
    family: Family
    program: Program
    source: str
    args: dict[str, np.ndarray | int]
    columns: tuple[str, ...]
    groups: dict[str, tuple[Hashable, ...]]
    design: Design = dataclasses.field(repr=False)

    def __str__(self) -> str:
        return self.source

    @checked_call
    def rows(
        self, frame: pd.DataFrame, *, new_groups: Literal["refuse", "draw"] = "refuse"
    ) -> tuple[np.ndarray | int, ...]:
        """Arguments of the program for rows to come, without a response: `fit.predict(key, *formula.rows(frame))`.

        Columns, levels and transformations (`scale`, `poly`, ...) are coded as those of the first frame were.

        Args:
            frame: with the columns of the formula; the response is not read.
            new_groups: "refuse" levels of a grouping that the first frame does not have, or "draw": their effects come from the
                law of all groups, one for each new level.

        Raises:
            ValueError: a column is missing, or cells are; a level is new.
        """
        check_cells(frame, set(self.design.needed), f"Formula.rows: '{self.text}'")
        frame = without_unused_levels(frame, self.design.needed)
        data, news = coded(self.design, frame, is_new=True)
        if new_groups == "refuse" and (
            found := {g: list(map(_plain, new)) for g, new in news.items() if new}
        ):
            raise ValueError(
                f"Formula.rows: groups are new, by grouping {found}. Give new_groups='draw': their effects are drawn from the "
                "law of all groups; or leave their rows out."
            )
        return (*data.values(), *(len(levels) for levels in news.values()))


@checked_call
def formula(
    text: str,
    frame: pd.DataFrame,
    *,
    family: Literal["normal", "bernoulli", "poisson", "negbinomial"] = "normal",
    priors: Mapping[str, dist.Distribution] | None = None,
) -> Formula:
    """The program of a regression formula, such as "y ~ x + (1 | g)", and the data of a frame for it.

    Terms are those of the package `formulae`, as in bambi: columns, categories (their first level is the base), interactions,
    `scale`, `center`, `poly`, `bs`, `offset`, functions of NumPy, and groups (1 | g), (x | g), (1 | g:h). Effects of a group are
    independent of each other. The mean is that of the response ("normal"), its logit ("bernoulli") or its logarithm.

    Priors have the scale of the data: with s the standard deviation of a normal response (else 1, on the scale of the link), and
    s_j that of column j,

        intercept        Normal(mean of the response, 2.5 s); of a row whose columns are at their means
        slopes           Normal(0, 2.5 s / s_j)
        sd_g             HalfNormal(2.5 s), the spread of a grouping's intercepts; of slopes 2.5 s / s_j
        sigma            Exponential(1 / s)
        concentration    Gamma(2, 0.1), of the negative binomial law: variance mean + mean^2 / concentration

    Without intercept s and s_j are root mean squares. `priors` replaces them by site, and so does a change of the text.

    Args:
        text: the formula.
        frame: a pandas data frame; rows with missing cells are refused, not left out.
        family: the law of the response.
        priors: site -> its law, of the site's shape.

    Returns:
        A `Formula`: `program` and `args` for `fit`, `nuts` or `infer`, `rows` for predictions, `source` to read and to change.

    Raises:
        ImportError: the package `formulae` is missing (`pip install 'lapilli[formula]'`).
        ValueError: the formula and the frame do not go together; the response is none of the family.

    Example:
        >>> import pandas as pd
        >>> from lapilli import ppl
        >>> frame = pd.DataFrame({"y": [1.0, 3.0, 2.0, 6.0], "x": [0.0, 1.0, 2.0, 3.0], "g": ["a", "a", "b", "b"]})
        >>> f = ppl.formula("y ~ x + (1 | g)", frame)
        >>> f.columns, f.groups
        (('x',), {'g': ('a', 'b')})
        >>> print(f.source.splitlines()[7])
        def program(x, g, new_g=0, y=None):
    """
    if not hasattr(frame, "columns"):
        raise ValueError(
            f"formula: frame is {type(frame).__name__}. Pass a pandas DataFrame with the columns that the formula names; a file "
            "is read by pandas.read_csv."
        )
    if not len(frame):
        raise ValueError("formula: the frame has no rows. Pass one that has.")
    laws = dict(priors or {})
    for name, law in laws.items():
        if not isinstance(law, dist.Distribution):
            raise ValueError(
                f"formula: the prior of '{name}' is {law!r}. Pass a distribution, e.g. dist.Normal(0.0, 1.0)."
            )
    design = designed(text, frame)
    name, y = design.response
    _check_response(name, y, family)
    body = written(design, family, text, laws)
    data, _ = coded(design, frame, is_new=False)
    data[name] = np.asarray(y, float if family == "normal" else int)
    levels = {g: tuple(map(_plain, groups.levels)) for g, groups in design.groups.items()}
    return Formula(
        text, family, _run(body, text, laws), HEAD + body, data, design.columns, levels, design
    )  # fmt: skip


def coded(
    design: Design, frame: pd.DataFrame, *, is_new: bool
) -> tuple[dict[str, np.ndarray | int], dict[str, tuple[Level, ...]]]:
    """What the program takes for each row, by argument; and the new levels of each grouping."""
    data: dict[str, np.ndarray | int] = {}
    if design.columns:
        data["x"] = table(design.common, frame, is_new=is_new)
    if design.offsets[0]:
        data["offset"] = table(design.offsets[0], frame, is_new=is_new).sum(1)
    news: dict[str, tuple[Level, ...]] = {}
    for effects in design.effects:
        if effects.columns:
            z = table((effects.term.expr,), frame, is_new=is_new)
            data[f"x_{effects.name}"] = z[:, 0] if z.shape[1] == 1 else z
    for factor, groups in design.groups.items():
        data[factor], news[factor] = place_of(groups, frame)
    if not data:  # no term has a number for each row
        data["num_rows"] = len(frame)
    return data, news


def _plain(level: Level) -> Hashable:
    return level[0] if len(level) == 1 else level


def _check_response(name: str, y: np.ndarray, family: Family) -> None:
    """Refuse values that the family does not have, before anything is compiled."""
    is_normal = family == "normal"
    if is_normal and (y.dtype == bool or np.ptp(y) == 0):
        what = "holds truth values" if y.dtype == bool else f"is {y[0]:g} in all rows"
        raise ValueError(
            f"formula: the response '{name}' {what}, which is no normal law. Give family='bernoulli' for truth values, or "
            "another response."
        )
    values = np.unique(y)
    is_right = (
        is_normal
        or (set(values.tolist()) <= {0, 1} if family == "bernoulli" else bool((values >= 0).all()))
        and bool((values == np.round(values)).all())
    )
    if not is_right:
        wanted = "0 and 1, or truth values" if family == "bernoulli" else "counts: 0, 1, 2, ..."
        raise ValueError(
            f"formula: family '{family}' is for {wanted}; the response '{name}' has the values {values[:5].tolist()}"
            f"{' ...' if len(values) > 5 else ''}. Choose the family that has them, or correct the column."
        )


def _run(body: str, text: str, priors: Mapping[str, dist.Distribution]) -> Program:
    """The program that the text defines. Its lines are known to tracebacks and to `inspect.getsource`."""
    file = f"<formula {text} {hash(body):x}>"
    linecache.cache[file] = (len(body), None, body.splitlines(keepends=True), file)
    names = {
        "ppl": SimpleNamespace(model=model, plate=plate, sample=sample),
        "dist": dist,
        "jnp": jnp,
        "priors": priors,
    }
    exec(compile(body, file, "exec"), names)
    return names["program"]  # type: ignore[return-value]
