"""Is a posterior right? Checks beyond simulation-based calibration, of any function that returns posterior draws.

The whole
    check_posterior                     every check below, and what is wrong in words
    check_simulations                   the same for simulations that are there already
    report_tree, plot_report            the report for ArviZ, and as a picture

Simulations
    simulate, Simulations               truths, data and posterior draws, many times

One by one
    coverage                            of intervals, densest regions, joint regions, with simultaneous bands
    tarp                                balls around random points, or points that know the data
    directions                          intervals along the directions that look worst
    vsbc                                whether the centre is right, whatever the width
    local_coverage                      where in the space of data the posterior is wrong, and to which side
    local_c2st                          a classifier's view of the posterior at the data that were seen
    z_scores                            how far off, and how much the data teach
    misspecification                    whether the model predicts the data at all

Simulation-based calibration itself is `inference.diagnostics.calibrate`. What each check misses, and which sees it: a wrong
correlation has right intervals ("joint", "directions", "tarp"); a posterior that ignores the data has uniform ranks ("local",
"tarp_data"), and so has one whose bias averages out over the data ("local", "here").
"""

from ._c2st import LocalC2ST as LocalC2ST, local_c2st as local_c2st
from ._coverage import coverage as coverage
from ._local import LocalCoverage as LocalCoverage, local_coverage as local_coverage
from ._misspecification import (
    Misspecification as Misspecification,
    misspecification as misspecification,
)
from ._ranks import RankCheck as RankCheck
from ._report import (
    PosteriorReport as PosteriorReport,
    check_posterior as check_posterior,
    check_simulations as check_simulations,
)
from ._shrinkage import ZScores as ZScores, z_scores as z_scores
from ._simulations import Simulations as Simulations, simulate as simulate
from ._symmetry import vsbc as vsbc
from ._tarp import directions as directions, tarp as tarp
from ._views import plot_report as plot_report, report_tree as report_tree

__all__ = [
    "check_posterior",
    "check_simulations",
    "report_tree",
    "plot_report",
    "simulate",
    "Simulations",
    "coverage",
    "tarp",
    "directions",
    "vsbc",
    "local_coverage",
    "local_c2st",
    "z_scores",
    "misspecification",
]
