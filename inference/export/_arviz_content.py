"""What goes into a tree of `to_arviz`: the groups that are asked for, of all draws or of a block of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any, Literal, NamedTuple

import jax
from jax.sharding import Mesh

from ...ppl._types import Key
from ..inputs import check_new
from ._arviz_source import ArvizSource
from ._arviz_tree import Content
from ._draws import Description, describe, draw_prior, factors_of, replay
from ._summed import scaled_sites

COMPUTED = (
    "posterior_predictive",
    "prior",
    "prior_predictive",
    "log_likelihood",
    "log_prior",
    "observed_data",
)
ASKED = ("log_predictive",)  # computed only if asked for
_OF_PRIOR = frozenset({"prior", "prior_predictive"})
_NEED_KEY = _OF_PRIOR | {"posterior_predictive"}


class Asked(NamedTuple):
    """What `to_arviz` is to compute; its arguments, but for `keys`, one for each use."""

    group: Literal["posterior", "prior"]
    groups: Collection[str] | None
    num_samples: int
    batch_size: int
    mesh: Mesh | None
    keys: dict[str, Key] | None
    constant_data: dict[str, object]


class DrawBlock(NamedTuple):
    """Some draws of each chain.

    Attributes:
        rows: which.
        num_draws: of each chain, in all blocks.
        sites: what is known of the model's sites, where that is the same for all blocks.
    """

    rows: slice
    num_draws: int
    sites: Description | None = None


def _wanted(
    groups: Collection[str] | None, group: str, source: ArvizSource, keys: dict[str, Key] | None
) -> frozenset[str]:
    """The groups to compute, besides the draws themselves and their statistics."""
    if source.model is None:
        possible = {*source.given, *source.content.data} & set(COMPUTED)
    else:
        possible = {g for g in (*COMPUTED, *ASKED) if keys is not None or g not in _NEED_KEY}
    if group == "prior":
        possible &= {"prior_predictive", "observed_data"}
    wrong = sorted(set(groups or ()) - possible)
    if wrong:
        needs = "model=" if source.model is None else "key="
        remedy = f"Pass {needs}, or leave them out" if group != "prior" else "Leave them out"
        raise ValueError(
            f"to_arviz: argument 'groups' asks for {wrong}, which cannot be computed for these draws. {remedy}."
        )
    return frozenset(possible - set(ASKED) if groups is None else groups)


def described(source: ArvizSource, asked: Asked) -> Description | None:
    """What is known of the model's sites; None without a model."""
    if source.model is None:
        return None
    check_new("to_arviz", source.model, source.args)
    return describe(source.model, _replay_key(asked), source.choices, source.args)


def _replay_key(asked: Asked) -> Key:
    # Without a key every latent site is given, and nothing is left to draw.
    return jax.random.key(0) if asked.keys is None else asked.keys["replay"]


def content_of(source: ArvizSource, asked: Asked, block: DrawBlock | None = None) -> Content:
    """Everything that goes into the tree; runs the model where there is one."""
    block = block or DrawBlock(slice(None), source.num_draws, described(source, asked))
    group, keys, sites = asked.group, asked.keys, block.sites
    wanted = _wanted(asked.groups, group, source, keys)
    origin = source.origin + (", not weighted" if source.log_weights is not None else "")
    attrs: dict[str, dict[str, Any]] = {group: {"draws": origin, **source.attrs}}
    if source.no_weight:
        attrs[group]["log_weight"] = f"undefined: {source.no_weight}"
    if wanted & _OF_PRIOR and group == "posterior" and source.model is not None:
        if factors := factors_of(source.model, source.args):
            if asked.groups is not None:
                raise ValueError(f"to_arviz: {_no_prior(factors, wanted)}")
            attrs[group]["prior"] = f"none: {_no_prior(factors, wanted)}"
            wanted -= _OF_PRIOR
    values, given, found = source.choices, source.given, source.content
    if source.model is not None and sites is not None:
        if sites.no_likelihood and group == "posterior":
            attrs[group]["log_likelihood"] = f"none: {sites.no_likelihood}"
        values = {name: values[name] for name in sites.latents}
        draw_keys = jax.random.split(_replay_key(asked), source.num_chains * block.num_draws)
        own = draw_keys.reshape(source.num_chains, -1)[:, block.rows].ravel()
        given = replay(
            source.model, own, values, source.args, _replayed(wanted, group), asked.batch_size, asked.mesh
        )  # fmt: skip
        given["deterministic"] = {
            **source.given.get("deterministic", {}), **given["deterministic"]
        }  # fmt: skip
        if group == "prior":
            given["prior_predictive"] = given.pop("posterior_predictive", {})
        elif keys is not None and wanted & _OF_PRIOR:
            prior = jax.random.split(keys["prior"], asked.num_samples)[_rows_of_prior(block)]
            if len(prior):
                given |= draw_prior(source.model, prior, source.args, asked.batch_size, asked.mesh)
        found = Content(
            data={"observed_data": sites.observed},
            sites={**source.content.sites, **sites.sites},
            cells=sites.cells,
        )  # fmt: skip
    if group == "posterior" and (scaled := scaled_sites(found.sites)):
        if "log_likelihood" in (asked.groups or ()):
            raise ValueError(f"to_arviz: group 'log_likelihood' cannot be made: {_scaled(scaled)}")
        attrs[group]["log_likelihood"] = f"none of {list(scaled)}: {_scaled(scaled)}"
    draws = {g: by_site for g, by_site in given.items() if g in wanted}
    if "log_predictive" in draws:
        attrs["log_predictive"] = {"what": _ONE_STEP}
    draws[group] = {**values, **given.get("deterministic", {})}
    draws["sample_stats"] = source.stats
    attrs["sample_stats"] = source.weighing
    data = {g: by_site for g, by_site in found.data.items() if g in wanted}
    return dataclasses.replace(
        found,
        draws=draws,
        data=data | {"constant_data": asked.constant_data},
        attrs=attrs,
        num_chains=source.num_chains,
        mcmc=source.mcmc,
    )


def _rows_of_prior(block: DrawBlock) -> slice:
    """As many draws of the prior as a block has; the last one has those that are left."""
    is_last = block.rows.stop in (None, block.num_draws)
    return slice(block.rows.start, None if is_last else block.rows.stop)


def _no_prior(factors: list[str], wanted: Collection[str]) -> str:
    return (
        f"groups {sorted(_OF_PRIOR & {*wanted})} are draws forward, which do not hear the factors {factors}, and nothing tells "
        "whether these belong to the prior or to the likelihood. Leave the groups out; draws of the program without what is "
        "likelihood are put into a tree by to_arviz(draws, model=..., group='prior')."
    )


def _scaled(scaled: Mapping[str, float | str]) -> str:
    return (
        f"the log-probs of observed sites {dict(scaled)} (name and factor) are scaled by numpyro.handlers.scale or a subsample, "
        "and leave-one-out of them would be wrong with the factor and without. Leave 'log_likelihood' out of groups=(...); "
        "for rows that count several times, give the program as many rows."
    )


_ONE_STEP = "log p(y_t | y_<t, z), nats: each step given those before it; leave-one-out cannot be made of it"


def _replayed(wanted: frozenset[str], group: str) -> frozenset[str]:
    if group == "posterior":
        return wanted
    return frozenset({"posterior_predictive"} if "prior_predictive" in wanted else ())
