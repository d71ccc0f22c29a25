"""A regression through the origin and its guide, new functions at each call."""

import numpyro.distributions as dist

from lapilli import ppl


def new_programs():
    def model(x, y=None):
        slope = ppl.sample("slope", dist.Normal(0.0, 1.0))
        with ppl.plate("rows", len(x)):
            ppl.sample("y", dist.Normal(slope * x, 1.0), obs=y)

    def guide(x, y=None):
        width = ppl.param("width", 0.3, constraint=dist.constraints.positive)
        ppl.sample("slope", dist.Normal(ppl.param("mean", 0.0), width))

    return model, guide
