"""The recorder that runs a program under gradient strategies and leaves markers for the analysis."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import PyTree

from .._foreign import kind_of
from .._types import Message
from ..distributions import (
    OneHotCategorical,
    Support,
    at_own_draw,
    is_known_sampler,
    is_on_sphere,
    law_parameters,
    log_prob_at,
    probabilities,
    support_of_law,
)
from ..jaxprs import REALS, SAMPLER, Range, mark, mark_key, range_of_support
from ..traces import COMMON, SALT, Recorder, Region, check_shape, describe, fold_name
from ._boundary import Boundary
from ._enum import Enum, support_of
from ._mvd import MVD
from ._pathwise import Reparam
from ._registry import AUTO, AUTO_SUPPORT, STRATEGIES, advice, as_strategy
from ._reinforce import Reinforce
from ._strategy import Draw, Strategy, StrategyError, element, stop

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class StrategySite:
    """A latent site under the engine.

    Attributes:
        index: number in the markers.
        address: name, with a suffix when one program is drawn several times.
        name: name in the program.
        strategy: the strategy in use.
        why: why this one.
        distribution: class name of one element.
        shape: shape of the elements at the statement (without region axes).
        num_values: size of the support when it is enumerated, 1 where the draw is its only state, else None.
        support: the support's values, shape (num_values, *event), or None.
        fixed: parameters without a derivative under this strategy.
        is_unbounded: every real value is possible.
        unknown_support: why its true support cannot be known, or "".
        is_reparameterisable: its sampler is differentiable.
        bounds: the smallest and largest of its values, where it is discrete and they are known.
        range: the numbers that it can hold.
        is_discrete: its draw is no continuous noise.
        is_deterministic: it has no noise of its own.
        is_one_hot: its last axis holds one 1, and 0 else.
        is_on_sphere: its last axis has norm 1.
        regions: control flow around the site, outermost first.
        event_shape: shape of one element's draw.
    """

    index: int
    address: str
    name: str
    strategy: Strategy
    why: str
    distribution: str
    shape: tuple[int, ...]
    num_values: int | None
    support: Any
    fixed: tuple[str, ...]
    is_unbounded: bool
    unknown_support: str
    is_reparameterisable: bool
    bounds: tuple[int, int] | None
    range: Range = REALS
    is_discrete: bool = False
    is_deterministic: bool = False
    is_on_sphere: bool = False
    is_one_hot: bool = False
    regions: tuple[Region, ...] = ()
    event_shape: tuple[int, ...] = ()

    @property
    def sizes(self) -> tuple[int, ...]:
        """Shape of the elements outside, region axes first."""
        return tuple(r.size for r in self.regions if r.axis is not None) + self.shape

    @property
    def noise(self) -> frozenset[int | str] | None:
        """The continuous noise that it adds; None where it only hands on that of its parameters."""
        if self.is_deterministic:
            return None
        return frozenset() if self.is_discrete else frozenset([self.index])


class Engine(Recorder):
    """Run programs, draw every latent site by its strategy.

    Args:
        key: random key.
        strategies: pattern -> strategy or name, from outside.
        demoted: site -> names of strategies that `auto` must not use again.
        exploring: meet the parameters inside regions as plain arrays.
        rows: plate -> indices of the rows that it is to draw; log-probs are then kept for `analysis/_subsampled.py`.
    """

    is_engine = True
    has_gradients = True

    def __init__(
        self,
        key: Array,
        strategies: Mapping[str, Any] | str | None,
        demoted: Mapping[str, set[str]] | None = None,
        *,
        exploring: bool = False,
        rows: Mapping[str, Array] | None = None,
    ) -> None:
        super().__init__(key)
        self.is_exploring = exploring
        self.rows = rows
        # Plates that stand for more rows than they run on: name -> (rows they run on, rows they stand for).
        self.subsampled: dict[str, tuple[int, float]] = {}
        # Eliminated programs that may have a probability of 0 which parameters move.
        self.alarmed: set[str] = set()
        self.drawn: list[Any] = []  # traces of the draws so far
        self.strategies = _as_mapping(strategies)
        self.demoted = demoted or {}
        self.matched: set[str] = set()
        self.indices: dict[str, int] = {}
        self.sites: dict[str, StrategySite] = {}
        # Discrete sites whose strategy hands out real numbers: site -> strategy's name.
        self.relaxed: dict[str, str] = {}

    def visit(self, msg: Message) -> None:
        msg["stop"] = True
        if msg["is_observed"]:
            check_shape(msg)
            return
        if msg["value"] is not None:
            raise ValueError(
                f"Site '{msg['name']}' got its value from a handler inside the program (substitute or "
                "replay), so its draw has no strategy. Use ppl.condition or ppl.intervene."
            )
        # 1. Which strategy, and which key: that of the region and the site's address, so that a replay has the same noise.
        address = self._address(msg)
        strategy, why = self._choose(msg, address)
        assert self.frame.key is not None
        key = fold_name(self.frame.key, msg["name"] if COMMON in msg["infer"] else address)
        if SALT in msg["infer"]:
            key = jax.random.fold_in(key, msg["infer"][SALT])
        fn = msg["fn"]
        base, shape = element(fn)
        is_known = not strategy.is_pathwise or is_known_sampler(fn)
        if not is_known:  # parameters may move a threshold across its noise
            key = mark_key(key, SAMPLER + address)
        # 2. The draw.
        try:
            if strategy.is_pathwise and strategy.draws_from_law:
                (draw, intermediates), noise = fn.sample_with_intermediates(key), None
            else:
                (draw, noise), intermediates = strategy.draw_with_noise(fn, key), []
        except (ValueError, TypeError, NotImplementedError) as err:
            raise kind_of(err)(
                f"Site '{msg['name']}': drawing from {type(fn).__name__} failed ({err}). "
                "Correct the law's arguments, or its sampler."
            ) from err
        if not strategy.moves_value:
            draw = stop(draw)  # the sampler would add a derivative of its own
        # One index per address: a site that stands in both branches of a cond is one site.
        index = self.indices.setdefault(address, len(self.indices))
        # 3. The marker: an equation of `site_p` whose result is the value, with the law's parameters and the support's ends as
        # operands, so that the analysis sees what moves them.
        support = support_of_law(base)
        # What is drawn without noise is marked in every state as well, by the key.
        edges = [support.edges, key] if isinstance(base, dist.Delta) else support.edges
        has_boundary = isinstance(strategy, Boundary)
        law = law_parameters(base, shape) if has_boundary else base if is_known else (base, draw)
        value = mark(jnp.asarray(draw), law, edges, index=index, is_aligned=has_boundary)
        msg["value"], msg["intermediates"] = value, intermediates
        if support.is_discrete and jnp.issubdtype(value.dtype, jnp.floating):
            self.relaxed[msg["name"]] = strategy.name
        # 4. The log-density at the marked value: a replay with another value then has its own.
        if not strategy.is_weighted:  # else the value is another law's draw
            fn, base = at_own_draw(fn, value), at_own_draw(base, value)
        try:
            if strategy.is_pathwise and not has_boundary:
                shape = tuple(fn.batch_shape)
                log_prob = log_prob_at(fn, value, intermediates)
            else:
                log_prob = jnp.broadcast_to(base.log_prob(value), shape)
            msg["_log_prob"] = log_prob
        except (ValueError, TypeError) as err:
            raise kind_of(err)(
                f"Site '{msg['name']}': {type(fn).__name__}.log_prob failed ({err}). Correct the value, the "
                "law's arguments, or its log_prob."
            ) from err
        # 5. What is static goes to `sites`, what are arrays to `numbers`, which leave regions stacked.
        values = support_of(base) if strategy.kind == "enumerated" else None
        fixed = strategy.fixed_parameters(base)
        self.frame.infos[address] = describe(msg)
        self.frame.sites[address] = StrategySite(
            index, address, msg["name"], strategy, why, type(base).__name__, shape,
            1 if strategy.is_weighted else None if values is None else values.shape[0],
            None if values is None else np.reshape(values, (values.shape[0], *base.event_shape)), fixed,
            support.is_unbounded, support.unknown, Reparam().refuse(base) is None, support.bounds,
            **_kind_of_values(base, support, strategy), event_shape=jnp.shape(value)[len(shape):],
        )  # fmt: skip
        drawn = Draw(base, shape, value, log_prob, key, noise)
        self.frame.numbers[address] = {
            "log_prob": strategy.log_weight(drawn) if strategy.is_weighted else log_prob,
            "active": jnp.ones(()),
            "value": value,
            "fixed": [jnp.asarray(getattr(base, name), float) for name in fixed],
            "local": strategy.local(drawn),
            "probabilities": [] if strategy.serves_null_values else probabilities(base, shape),
        }

    def hand_out(self, key: Array, name: str) -> Array:
        return mark_key(key, name)

    def numbers_of(self, msg: Message) -> dict[str, PyTree]:
        raise NotImplementedError  # sites are recorded when they are visited

    def process_message(self, msg: Message) -> None:
        if (
            msg["type"] == "plate"
            and msg["value"] is None
            and self.rows
            and msg["name"] in self.rows
        ):
            msg["value"] = self.rows[msg["name"]]
        super().process_message(msg)

    def postprocess_message(self, msg: Message) -> None:
        if msg["type"] == "param":
            super().postprocess_message(msg)
        elif msg["type"] == "plate":
            super().postprocess_message(msg)
            rows, full = msg["value"].shape[0], msg.get("full_size", msg["args"][0])
            if rows != full:
                self.subsampled[msg["name"]] = (rows, full)

    def merge(self, frame: Any, numbers: dict[str, dict[str, PyTree]], region: Region) -> None:
        self.frame.sites.update(
            {
                a: dataclasses.replace(s, regions=(region, *s.regions))
                for a, s in frame.sites.items()
            }
        )
        for address, info in frame.infos.items():
            self.frame.infos[address] = info
            self.frame.numbers[address] = numbers[address]
        self.frame.used |= frame.used

    def check_patterns(self) -> None:
        """Refuse a pattern of `strategies` that matched no latent site."""
        unmatched = sorted(set(self.strategies) - self.matched - {"*"})
        if unmatched:
            names = sorted({s.name for s in self.frame.sites.values()})
            raise ValueError(
                f"strategies: {unmatched} match no latent site. The sites are {names}; patterns are names or "
                "shell-style wildcards such as 'z*'."
            )

    def _address(self, msg: Message) -> str:
        name = msg["name"]
        if not self.seen(name):
            return name
        # A Runner that scores a program a second time checks names itself and leaves missing cells to the engine.
        if not (msg.get("_collected") or msg.get("_imputed")):
            raise ValueError(
                f"Site '{name}' appears twice in one run of the program; each sample statement needs a "
                f"name of its own. Rename one of them, e.g. '{name}_2'."
            )
        number = 2
        while self.seen(f"{name}#{number}"):
            number += 1
        return f"{name}#{number}"

    def _choose(self, msg: Message, address: str) -> tuple[Strategy, str]:
        name, fn = msg["name"], msg["fn"]
        base, _ = element(fn)
        chosen, why = self._asked(name)
        # What is asked of the expectation goes before what stands at the site.
        if chosen is None and msg["infer"].get("strategy") is not None:
            chosen, why = msg["infer"]["strategy"], "at the site"
        if chosen == "auto":
            return self._automatic(name, base)
        if chosen is None:
            if Reparam().refuse(base) is None:
                return Reparam(), "default: differentiable sampler"
            if msg["infer"].get("imputed"):
                return Reinforce(), "default for a missing cell"
            summed = f" To sum the site out, as NumPyro's infer={{'enumerate': ...}} asks: ppl.eliminate(program, '{name}')."
            raise StrategyError(
                name,
                f"Site '{name}': {type(base).__name__} has no differentiable sampler, and no strategy "
                f"was chosen, so its gradient would be wrong. {advice(name, base)}"
                + (summed if msg["infer"].get("enumerate") else ""),
            )
        strategy = as_strategy(chosen, name)
        reason = strategy.refuse(base)
        if reason is not None:
            raise StrategyError(
                name,
                f"Site '{name}': strategy '{strategy.name}' {reason}. {advice(name, base)}",
            )
        return strategy, why

    def _asked(self, name: str) -> tuple[None, str]:
        # The site's own name before patterns, whatever their order in the mapping.
        for pattern in (name, *self.strategies):
            if pattern in self.strategies and (
                pattern == name or fnmatch.fnmatchcase(name, pattern)
            ):
                self.matched.add(pattern)
                return self.strategies[pattern], f"strategies['{pattern}']"
        return None, ""

    def _automatic(self, name: str, base: dist.Distribution) -> tuple[Strategy, str]:
        """The rule of `strategies="auto"`; see `ppl.expectation`."""
        # Choices that a check of this program has refused already: the rule goes on to the next one.
        refused = self.demoted.get(name, set())
        for choice, why in AUTO.items():
            strategy = STRATEGIES[choice]()
            if strategy.name in refused or strategy.refuse(base) is not None:
                continue
            if strategy.is_enumerated and support_of(base).shape[0] > AUTO_SUPPORT:
                continue
            return strategy, f"auto: {why}" + (
                f" ({', '.join(sorted(refused))} refused)" if refused else ""
            )
        reasons = [f"'{s}' was refused for this program" for s in sorted(refused)]
        reasons += [
            f"'{s.name}' {why}"
            for s in (Reparam(), Enum(), MVD())
            if (why := s.refuse(base)) and s.name not in refused
        ]
        raise StrategyError(
            name,
            f"Site '{name}': no strategy can serve {type(base).__name__} soundly: {'; '.join(reasons)}. Name one of them in "
            "strategies= to see why it is refused, or draw from a law with a fixed support and transform the draw.",
        )


def _kind_of_values(
    base: dist.Distribution, support: Support, strategy: Strategy
) -> dict[str, PyTree]:
    """What the checks know of a site's values."""
    is_one_hot = isinstance(base, OneHotCategorical)
    is_relaxed = "slope" in strategy.calls or strategy.is_pathwise
    is_discrete = is_one_hot or support.is_discrete
    return {
        "range": range_of_support(support.core),
        "is_discrete": is_discrete and not is_relaxed,
        "is_deterministic": isinstance(base, dist.Delta),
        "is_on_sphere": is_on_sphere(support.core),
        "is_one_hot": is_one_hot and not is_relaxed,
    }


def _as_mapping(strategies: object) -> dict[str, PyTree]:
    if isinstance(strategies, str | Strategy):
        return {"*": strategies}
    if strategies is None or isinstance(strategies, Mapping):
        return dict(strategies or {})
    raise TypeError(
        "strategies: give a mapping from patterns to strategies, one ppl.strategies.Strategy or a name, not "
        f"{type(strategies).__name__}."
    )
