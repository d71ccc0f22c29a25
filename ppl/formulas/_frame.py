"""A formula and a data frame: columns, groups and the response as numbers; rows to come coded as the first ones were."""

from __future__ import annotations

import dataclasses
import keyword
import re
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import ArrayLike

if TYPE_CHECKING:
    import pandas as pd


type Level = tuple[Hashable, ...]
type Term = Any  # of `formulae`, which has no types
# What the program of a formula calls its own.
RESERVED: frozenset[str] = frozenset(
    "x offset intercept slopes sigma concentration mean new num_rows ppl dist jnp priors program".split()
)
NO_COLUMNS = {"", "Sum", "Treatment"}  # constants, and codings of `formulae`


@dataclasses.dataclass(frozen=True)
class Grouping:
    """A grouping: the columns that make it, and its levels, combinations of values that there are in the first frame."""

    columns: tuple[str, ...]
    levels: tuple[Level, ...]


@dataclasses.dataclass(frozen=True)
class Effects:
    """A term (expr | factor) of a formula: effects that differ by group.

    Attributes:
        term: of `formulae`.
        name: the term as an identifier, "job" or "x_job".
        factor: the grouping as an identifier, that of the argument which holds the group of each row.
        columns: what is multiplied by the effects, by name; empty for the groups' intercepts.
        scales: of the columns, (1.0,) for intercepts.
    """

    term: Term
    name: str
    factor: str
    columns: tuple[str, ...]
    scales: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Design:
    """What `formulae` makes of a formula and a frame.

    Attributes:
        common: its terms that all groups share, without intercept and offsets.
        offsets: terms that are added as they are, and their sum by row.
        effects: terms by group.
        groups: argument of a grouping -> its columns and levels.
        columns: names of the columns of the common terms.
        has_intercept: whether there is one.
        means, scales: of the columns: standard deviations around the means, or root mean squares where there is no intercept.
        response: its name as an identifier, and its values.
        needed: columns of the frame that rows to come need.
    """

    common: tuple[Term, ...]
    offsets: tuple[tuple[Term, ...], np.ndarray]
    effects: tuple[Effects, ...]
    groups: dict[str, Grouping]
    columns: tuple[str, ...]
    has_intercept: bool
    means: np.ndarray
    scales: np.ndarray
    response: tuple[str, np.ndarray]
    needed: tuple[str, ...]


def designed(text: str, frame: pd.DataFrame) -> Design:
    """The columns of a formula, those of a frame.

    Raises:
        ImportError: `formulae` is missing.
        ValueError: the formula cannot be read or has no response; a name is no column; cells are missing; a column is constant.
    """
    matrices, needed = _matrices(text, frame)
    if matrices.response is None:
        raise ValueError(
            f"formula: '{text}' has no response. Say what is predicted: 'y ~ ...', with y a column of the frame."
        )
    terms = [] if matrices.common is None else list(matrices.common.terms.values())
    has_intercept = any(t.kind == "intercept" for t in terms)
    common = tuple(t for t in terms if t.kind not in ("intercept", "offset"))
    columns = tuple(str(label) for t in common for label in t.labels)
    x = table(common, frame, is_new=False)
    means = x.mean(0) if has_intercept else np.zeros(x.shape[1])
    scales = np.sqrt(((x - means) ** 2).mean(0))
    for name, scale, mean in zip(columns, scales, x.mean(0), strict=True):
        if not scale > 1e-7 * abs(mean):
            raise ValueError(
                f"formula: column '{name}' of '{text}' has the same value, {mean:g}, in all {len(x)} rows, and tells nothing "
                "beside the intercept. Leave it out, or pass rows in which it differs."
            )
    offsets = tuple(t for t in terms if t.kind == "offset")
    taken = set(RESERVED)
    name, values = _response(matrices.response, text)
    name = _unused(name, taken)
    effects = _effects(matrices.group, frame, taken)
    terms_of = {e.factor: e.term for e in effects}
    return Design(
        common,
        (offsets, table(offsets, frame, is_new=False).sum(1)),
        effects,
        {factor: _groups(term, frame) for factor, term in terms_of.items()},
        columns,
        has_intercept,
        means,
        scales,
        (name, values),
        tuple(sorted(needed - set(matrices.response.term.var_names))),
    )


def _effects(group: Term, frame: pd.DataFrame, taken: set[str]) -> tuple[Effects, ...]:
    found, factors = [], dict[str, str]()
    for term in () if group is None else group.terms.values():
        if (of := term.factor.name) not in factors:
            factors[of] = _unused(_identifier(of), taken)
        factor, is_intercept = factors[of], term.kind == "intercept"
        label = factor if is_intercept else f"{_identifier(term.expr.name)}_{factor}"
        z = np.ones((1, 1)) if is_intercept else table((term.expr,), frame, is_new=False)
        found.append(
            Effects(
                term,
                label,
                factor,
                () if is_intercept else tuple(map(str, term.expr.labels)),
                tuple(np.sqrt((z**2).mean(0)).tolist()),
            )
        )
    return tuple(found)


def table(terms: tuple[Term, ...], frame: pd.DataFrame, *, is_new: bool) -> np.ndarray:
    """The columns of some terms, [rows, columns]: as they were made of the first frame, or of another one.

    Raises:
        ValueError: a category has a level that is new; a term is not finite.
    """
    try:
        with np.errstate(all="ignore"):
            parts = [_columns(t.eval_new_data(frame) if is_new else t.data) for t in terms]
    except ValueError as err:  # levels that are new
        raise ValueError(
            f"Formula.rows: {err} Effects of a category are known for its levels in the first frame only: leave the other rows "
            "out, or let the category be a grouping, (1 | name), whose new levels can be drawn."
        ) from err
    for term, part in zip(terms, parts, strict=True):
        check_finite(term.name, part)
    return np.column_stack(parts) if parts else np.zeros((len(frame), 0))


def check_finite(name: str, values: np.ndarray) -> None:
    """Refuse infinite cells, and what a function makes of numbers that it is not for, as log(0)."""
    is_bad = ~np.isfinite(values).reshape(len(values), -1).all(1)
    if is_bad.any():
        row = int(is_bad.argmax())
        raise ValueError(
            f"formula: '{name}' is not finite in {is_bad.sum()} of {len(values)} rows, the first at position {row} (there it is "
            f"{values[row]}). Correct the cells that it is computed from, or leave their rows out."
        )


def without_unused_levels(frame: pd.DataFrame, names: tuple[str, ...]) -> pd.DataFrame:
    """The frame with categories among these columns as their values, so that levels which no row has are forgotten."""
    return frame.astype({n: object for n in names if hasattr(frame[n].dtype, "categories")})


def check_cells(frame: pd.DataFrame, names: set[str], what: str) -> None:
    """Refuse names that are no column, and cells that are missing."""
    if missing := sorted(names - set(frame.columns)):
        raise ValueError(
            f"{what} needs the column(s) {missing}, and the frame has {list(map(str, frame.columns))}. Add them, or correct the "
            "formula."
        )
    holes = {
        name: int(n) for name in sorted(names) if (n := np.sum(np.asarray(frame[name].isna())))
    }
    if holes:
        raise ValueError(
            f"{what}: cells are missing, by column {holes}. Leave their rows out, frame.dropna(subset={sorted(holes)}), if "
            "whether a cell is missing depends on nothing else; or give the column a law of its own in the program: print the "
            "formula and change its text."
        )


def _identifier(name: str) -> str:
    """A term's name as one of Python: "scale(x)" to "scale_x"."""
    found = re.sub(r"\W+", "_", name).strip("_")
    return f"_{found}" if not found or found[0].isdigit() else found


def _unused(name: str, taken: set[str]) -> str:
    """The name, with as many underscores behind it as it takes; it is taken from then on."""
    while name in taken or keyword.iskeyword(name):
        name += "_"
    taken.add(name)
    return name


def _matrices(text: str, frame: pd.DataFrame) -> tuple[Term, set[str]]:
    try:
        import formulae
    except ImportError as err:
        raise ImportError(
            "ppl.formula needs the package formulae. Install it with: pip install 'lapilli[formula]'."
        ) from err
    if _has_bare_bar(text):
        raise ValueError(
            f"formula: '{text}' has a bar outside of brackets, which would be left out. Write groups in brackets: (1 | g)."
        )
    try:
        needed = set(formulae.model_description(text).var_names) - NO_COLUMNS
    except Exception as err:  # of its scanner, its parser and its resolver
        raise ValueError(
            f"formula: '{text}' cannot be read: {err}. Write it like 'y ~ x + (1 | g)': the response, a tilde, terms with + "
            "between them, groups behind a bar."
        ) from err
    check_cells(frame, needed, f"formula: '{text}'")
    # Looked up last, after the columns and the functions of formulae; a function of ours sees no names of the caller's.
    names = {"np": np, "log": np.log, "exp": np.exp, "sqrt": np.sqrt}
    try:
        with np.errstate(all="ignore"):  # what is not finite is refused by name
            return formulae.design_matrices(text, frame, "error", 0, names), needed
    except Exception as err:
        raise ValueError(
            f"formula: '{text}' and this frame do not go together: {type(err).__name__}, {err}. Functions are those of formulae "
            "(scale, center, poly, bs, C, I, offset, ...), np, log, exp and sqrt; compute others as a column of the frame."
        ) from err


def place_of(groups: Grouping, frame: pd.DataFrame) -> tuple[np.ndarray, tuple[Level, ...]]:
    """The group of each row, by its place among the levels; levels that are new have the places behind, in order of appearance.

    Raises:
        ValueError: levels are text in one frame and no text in the other.
    """
    known = {level: place for place, level in enumerate(groups.levels)}
    found = _keys(frame, groups.columns)
    for i, name in enumerate(groups.columns):
        was, now = ({isinstance(k[i], str) for k in keys} for keys in (known, found))
        if was != now and len(was | now) > 1:
            raise ValueError(
                f"Formula.rows: the levels of '{name}' are text in one of the frames and not in the other, so that all would be "
                f"new: {list(known)[0][i]!r} and {found[0][i]!r}. Convert the column, frame['{name}'].astype(...)."
            )
    places = dict(known)
    for key in found:
        places.setdefault(key, len(places))
    return np.array([places[key] for key in found], int), tuple(list(places)[len(known) :])


def _groups(term: Term, frame: pd.DataFrame) -> Grouping:
    columns = tuple(component.name for component in term.factor.components)
    if unknown := [name for name in columns if name not in frame.columns]:
        raise ValueError(
            f"formula: the grouping {unknown} is no column of the frame. Compute it as one, and name the column behind the bar."
        )
    keys = set(_keys(frame, columns))
    order = [_order(frame, name, {key[i] for key in keys}) for i, name in enumerate(columns)]
    rank = lambda key: tuple(ranks[x] for ranks, x in zip(order, key, strict=True))
    return Grouping(columns, tuple(sorted(keys, key=rank)))


def _keys(frame: pd.DataFrame, columns: tuple[str, ...]) -> list[Level]:
    return list(zip(*(frame[name].tolist() for name in columns), strict=True))


def _order(frame: pd.DataFrame, name: str, values: set[Hashable]) -> dict[Hashable, int]:
    """Places of a column's values: of the categories, or in order of size where there is one."""
    categories = getattr(frame[name].dtype, "categories", None)
    if categories is not None:
        ordered = categories.tolist()
    else:
        try:
            ordered = sorted(values)  # pyright: ignore[reportArgumentType]
        except TypeError:
            ordered = list(dict.fromkeys(frame[name].tolist()))
    return {value: place for place, value in enumerate(ordered)}


def _columns(data: ArrayLike) -> np.ndarray:
    data = np.asarray(data, float)
    return data[:, None] if data.ndim == 1 else data


def _has_bare_bar(text: str) -> bool:
    """Whether a bar stands outside of brackets: `formulae` reads y ~ x | g as y ~ x."""
    depth = 0
    for letter in re.sub(r"'[^']*'|\"[^\"]*\"", "", text):
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "|" and depth == 0:
            return True
    return False


def _response(response: Term, text: str) -> tuple[str, np.ndarray]:
    values = np.asarray(response)
    if response.kind != "numeric" and values.ndim != 1:
        raise ValueError(
            f"formula: the response of '{text}' is {response.kind}"
            + (f" with the levels {response.levels}" if response.levels else "")
            + ". Make it a column of numbers or truth values: e.g. frame['is_b'] = frame['g'] == 'b'."
        )
    check_finite(response.name, values)
    return _identifier(response.name), values
