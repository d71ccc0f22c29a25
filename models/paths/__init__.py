"""Paths from one law to another: (discrete) flow matching, rectified flow, stochastic interpolants, Schrödinger bridges.

All names, by task:

    linear, trigonometric     paths between two ends, with noise or without
    of_noising                the path of a diffusion model, or of a Poisson flow
    chord, separation, kinetic_energy     the path of least kinetic energy for given data
    sphere, torus             paths along geodesics
    tokens, TokenPath         masked and uniform paths of tokens: discrete flow matching
    jump                      their draws, by rates
    Path, Interpolant         a path of one's own
    independent, transport, entropic      which draws of the ends belong together
    flow_matching             the regression that learns a path's velocity, and its score
    from_network, Field       what was learned
    mixture_field, Mixture    exact fields between Gaussian mixtures
    normal_score              the score that follows from a velocity
    FlowLaw                   the law at the end of a flow, in any program
    flow_log_density          its log-density with few derivatives a step
    bridge                    a Schrödinger bridge, learned in rounds
    diffuse                   draws of a diffusion with the same marginals
    diffusion_log_density     their density, estimated without bias
"""

from ._bridge import bridge as bridge
from ._chord import (
    Separation as Separation,
    chord as chord,
    kinetic_energy as kinetic_energy,
    separation as separation,
)
from ._couplings import (
    entropic as entropic,
    independent as independent,
    transport as transport,
)
from ._diffusions import diffuse as diffuse, diffusion_log_density as diffusion_log_density
from ._flow_law import FlowLaw as FlowLaw, flow_log_density as flow_log_density
from ._matching import (
    Field as Field,
    flow_matching as flow_matching,
    from_network as from_network,
    normal_score as normal_score,
)
from ._mixtures import Mixture as Mixture, mixture_field as mixture_field
from ._path import (
    Interpolant as Interpolant,
    Path as Path,
    linear as linear,
    of_noising as of_noising,
    sphere as sphere,
    torus as torus,
    trigonometric as trigonometric,
)
from ._tokens import TokenPath as TokenPath, jump as jump, tokens as tokens

__all__ = [
    "Path",
    "Interpolant",
    "linear",
    "trigonometric",
    "of_noising",
    "chord",
    "separation",
    "Separation",
    "kinetic_energy",
    "sphere",
    "torus",
    "tokens",
    "TokenPath",
    "jump",
    "independent",
    "transport",
    "entropic",
    "flow_matching",
    "from_network",
    "Field",
    "normal_score",
    "bridge",
    "mixture_field",
    "Mixture",
    "FlowLaw",
    "flow_log_density",
    "diffuse",
    "diffusion_log_density",
]
