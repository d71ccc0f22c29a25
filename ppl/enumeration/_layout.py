"""The enumeration dimension of a site: what stands along it, and when it is too long.

A site with k values and n elements that meet has k^n *states*. Along its enumeration dimension stand these states; for a
*chain*, a site in a scan of which everything sees at most `lag` steps back, all *windows* z[t - lag], ..., z[t] of its
states, for all steps t at once. Elements that do not meet (other rows, other steps) share the dimension.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..evaluation import Layout
from ..jaxprs import Relation
from ..strategies import StrategySite

Array = jax.Array
MAX_STATES = 65_536  # evaluated at once: states of sites that meet, or elements replayed one by one
MAX_WINDOWS = 4096**2  # of a chain, evaluated at once for one step: 67 MB in single precision


class Asker(NamedTuple):
    """Who enumerates, for refusals: its name, what to do about elements and about sites that meet, the exception."""

    what: str
    elements: str
    sites: str
    error: Callable[[StrategySite, str], Exception]

    def check(
        self, site: StrategySite, base: int, power: int, why: str, remedy: str, *, has_chain: bool
    ) -> None:
        """Refuse more than `MAX_STATES` states, `MAX_WINDOWS` with a chain among them; there are `base ** power`."""
        limit = MAX_WINDOWS if has_chain else MAX_STATES
        if power * math.log(base) > math.log(limit) + 1e-9:
            count = f"{base}^{power}" if power > 1 else str(base)
            text = (
                f"Site '{site.address}': {self.what} would need {count} states at once (the limit is {limit}), "
                f"because {why}. {remedy.format(name=site.name)}"
            )
            raise self.error(site, text)


def layout_of(
    site: StrategySite,
    joint: Collection[int],
    chain: tuple[int, int] | None,
    why: str,
    asker: Asker,
) -> Layout:
    """The layout of a site, perhaps a chain (time axis, memory), whose elements meet along the axes `joint`.

    Raises:
        ValueError: too many states (of the asker's kind).
    """
    axis, lag = chain or (None, 0)
    elements = math.prod(site.sizes[a] for a in joint)
    assert site.num_values is not None
    meet = f"{elements} elements (of shape {site.sizes}) meet: {why}"
    power, has_chain = elements * (lag + 1), axis is not None
    asker.check(site, site.num_values, power, meet, asker.elements, has_chain=has_chain)
    states = site.num_values**elements
    return Layout(tuple(sorted(joint)), states ** (lag + 1), states, axis, lag, why)


def size_of(indices: Iterable[int], layouts: Mapping[int, Layout]) -> int:
    """How many states sites have together."""
    return math.prod(layouts[i].size for i in indices)


def check_together(
    met: Collection[int],
    sites: Mapping[int, StrategySite],
    layouts: Mapping[int, Layout],
    asker: Asker,
) -> None:
    """Refuse sites that have too many states together.

    Raises:
        ValueError: of the asker's kind.
    """
    if met:
        why = f"the enumerated sites {sorted(sites[i].address for i in met)} meet"
        has_chain = any(layouts[i].axis is not None for i in met)
        size = size_of(met, layouts)
        asker.check(sites[max(met)], size, 1, why, asker.sites, has_chain=has_chain)


def mixing(uses: Iterable[Relation], axes: Collection[int]) -> str:
    """Why the elements of a site do not separate along `axes`, in words."""
    links = [u[i] for u in uses for i in axes if u[i].kind != "aligned"]
    carried = lambda lag: (
        f"a scan carry (later steps depend on {'all ' * (lag is None)}earlier ones)"
    )
    return ", ".join(sorted({link.why or carried(link.lag) for link in links}))


def digits(layout: Layout, length: int) -> Array:
    """The state that each window of a chain, by place, shows at each step, shape (windows, steps)."""
    # A window is a number of lag + 1 digits in base num_states, the first place the most significant; step t is at place
    # t mod (lag + 1).
    window = jnp.arange(layout.size)[:, None]
    place = (jnp.arange(length) % (layout.lag + 1))[None]
    return window // layout.num_states ** (layout.lag - place) % layout.num_states


def states(site: StrategySite, layout: Layout) -> np.ndarray:
    """The support's value of each joint element in each state, shape (states, elements)."""
    elements = math.prod(site.sizes[i] for i in layout.joint)
    assert site.num_values is not None
    # All combinations, the last element changing fastest: [elements, k, ..., k] -> [k ** elements, elements].
    found = np.indices((site.num_values,) * elements)  # of no element: one state
    return found.reshape(elements, site.num_values**elements).T


def enumerated_values(site: StrategySite, layout: Layout, *, step: bool = False) -> Array:
    """All values of a site along its enumeration dimension: (layout.size, *elements, *event).

    Of a chain, all windows at all steps; with `step` all states of one step, without the time axis.
    """
    shape = [site.sizes[i] if i in layout.joint else 1 for i in range(len(site.sizes))]
    found = states(site, layout)
    values = site.support[found.reshape(len(found), *shape)]
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
