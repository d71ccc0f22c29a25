"""Search for what a verifier likes: more compute for one sample, and no law.

What is found has a large score, errors of the verifier included. What samples the tilt by a reward, and comes nearer with every
particle, is in `inference.tilt`, `smc` and `inference.diffusion`; `inference.best_of` samples a law that can be stated.

Searches
    zero_order                  a noise moved as long as its sample gets better
    first_order                 ... along the gradient through the generator
    over_paths                  back to more noise, in copies, and on from the best

Verifiers
    mean_rank                   several of them, by the ranks that they give
"""

from ._search import (
    Searched as Searched,
    first_order as first_order,
    mean_rank as mean_rank,
    over_paths as over_paths,
    zero_order as zero_order,
)

__all__ = ["zero_order", "first_order", "over_paths", "mean_rank"]
