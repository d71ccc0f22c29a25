"""The enumeration dimension of a site: how long it is, what it shows, and when it is too long.

A site with k values and n elements that meet has k^n *states*. Along its enumeration dimension stand these states; for a
*chain*, a site in a scan of which everything sees at most `lag` steps back, all *windows* z[t - lag], ..., z[t] of its
states, for all steps t at once. Elements that do not meet (other rows, other steps) share the dimension.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from ..evaluation import Layout
from ..jaxprs import Relation
from ..strategies import StrategySite

Array = jax.Array
MAX_STATES = 65_536  # evaluated at once: states of sites that meet, or elements replayed one by one


@dataclasses.dataclass(frozen=True)
class Asker:
    """Who enumerates, for refusals.

    Attributes:
        what: the strategy or transformation.
        apart: what to do about elements of one site that meet; `{name}` is the site's.
        fewer: the same about several sites.
        error: the exception, from the site and the text.
    """

    what: str
    apart: str
    fewer: str
    error: Callable[[StrategySite, str], Exception]

    def refuse(self, site: StrategySite, count: str, why: str, remedy: str) -> Exception:
        """The refusal of everything that would take more than `MAX_STATES`."""
        return self.error(
            site,
            f"Site '{site.address}': {self.what} would need {count} states at once (the limit is {MAX_STATES}), because "
            f"{why}. {remedy.format(name=site.name)}",
        )


def layout_of(
    site: StrategySite,
    joint: Collection[int],
    chain: tuple[int, int] | None,
    why: str,
    asker: Asker,
    time: str | None = None,
) -> Layout:
    """The layout of a site whose elements meet along the axes `joint`, for the reason `why`.

    Args:
        site: the site.
        joint: element axes.
        chain: (time axis, memory) of a chain.
        why: for the plan and refusals.
        asker: who enumerates.
        time: name of the time axis.

    Raises:
        ValueError: too many states (of the asker's kind).
    """
    axis, lag = chain or (None, 0)
    axes = tuple(sorted(joint))
    elements = math.prod(site.sizes[a] for a in axes)
    assert site.num_values is not None
    if elements * (lag + 1) * math.log(site.num_values) > math.log(MAX_STATES):
        raise asker.refuse(
            site,
            f"{site.num_values}^{elements * (lag + 1)}",
            f"{elements} elements (of shape {site.sizes}) meet: {why}",
            asker.apart,
        )
    states = site.num_values**elements
    return Layout(axes, states ** (lag + 1), states, axis, lag, why, time)


def size_of(indices: Iterable[int], layouts: Mapping[int, Layout]) -> int:
    """How many states sites have together."""
    return math.prod(layouts[i].size for i in indices)


def check_together(
    largest: Collection[int],
    sites: Mapping[int, StrategySite],
    layouts: Mapping[int, Layout],
    asker: Asker,
) -> None:
    """Refuse sites that have too many states together.

    Raises:
        ValueError: of the asker's kind.
    """
    count = size_of(largest, layouts)
    if count > MAX_STATES:
        names = sorted(sites[i].address for i in largest)
        why = f"the enumerated sites {names} meet"
        raise asker.refuse(sites[max(largest)], str(count), why, asker.fewer)


def mixing(uses: Iterable[Relation], axes: Collection[int]) -> str:
    """Why the elements of a site do not separate along `axes`, in words."""
    links = [u[i] for u in uses for i in axes if u[i].kind != "aligned"]
    carried = lambda lag: (
        f"a scan carry (later steps depend on {'all ' * (lag is None)}earlier ones)"
    )
    return ", ".join(sorted({link.why or carried(link.lag) for link in links}))


def digits(layout: Layout, length: int) -> Array:
    """The state that each window of a chain, by place, shows at each step, shape (windows, steps)."""
    window = jnp.arange(layout.size)[:, None]
    place = jnp.arange(length) % (layout.lag + 1)
    return window // layout.num_states ** (layout.lag - place) % layout.num_states


def states(site: StrategySite, layout: Layout) -> np.ndarray:
    """The support's value of each joint element in each state, shape (states, elements)."""
    elements = math.prod(site.sizes[i] for i in layout.joint)
    assert site.num_values is not None
    return np.indices((site.num_values,) * elements).reshape(elements, -1).T


def enumerated_values(site: StrategySite, layout: Layout, *, step: bool = False) -> Array:
    """All values of a site along its enumeration dimension: (layout.size, *elements, *event).

    Of a chain, all windows at all steps; with `step` all states of one step, without the time axis.
    """
    shape = [site.sizes[i] if i in layout.joint else 1 for i in range(len(site.sizes))]
    values = site.support[states(site, layout).reshape(-1, *shape)]
    event = values.shape[1 + len(shape) :]
    sizes = list(site.sizes)
    if step:
        assert layout.axis is not None
        values = np.squeeze(values, 1 + layout.axis)
        del sizes[layout.axis]
    elif layout.axis is not None:
        shown = digits(layout, site.sizes[layout.axis])
        values = jnp.moveaxis(jnp.asarray(values)[shown], 1, 1 + layout.axis)
        values = jnp.squeeze(values, 2 + layout.axis)
    return jnp.broadcast_to(values, (values.shape[0], *sizes, *event))
