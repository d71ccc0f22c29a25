"""Flow matching, discrete flow matching, rectified flow, stochastic interpolants, Schrödinger bridges: paths between two laws.

All names, by task:

    linear, trigonometric     paths between two ends, with noise or without
    of_noising                the path of a diffusion model, or of a Poisson flow
    separation                of data from noise; its `chord` is the path of least kinetic energy
    sphere, torus             paths along geodesics
    tokens                    masked and uniform paths of tokens: discrete flow matching
    Path, Interpolant         a path of one's own
    independent, transport, entropic      which draws of the ends belong together
    flow_matching             the regression that learns a path's velocity, and its score
    from_network, Field       what was learned
    mixture_field, Mixture    exact fields between Gaussian mixtures
    normal_score              the score that follows from a velocity
    FlowLaw                   the law at the end of a flow, in any program
    bridge                    a Schrödinger bridge, learned in rounds
    diffuse                   draws of a flow or a diffusion with its marginals; of tokens, by jumps
    diffusion_log_density     their density, estimated without bias
"""

from ._bridge import bridge as bridge
from ._chord import separation as separation
from ._couplings import (
    entropic as entropic,
    independent as independent,
    transport as transport,
)
from ._diffusions import diffuse as diffuse, diffusion_log_density as diffusion_log_density
from ._flow_law import FlowLaw as FlowLaw
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
from ._tokens import tokens as tokens

__all__ = [
    "Path",
    "Interpolant",
    "linear",
    "trigonometric",
    "of_noising",
    "separation",
    "sphere",
    "torus",
    "tokens",
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
    "diffuse",
    "diffusion_log_density",
]
