"""What a gradient, a posterior or a guide is worth."""

from ._calibration import Calibration as Calibration, calibrate as calibrate
from ._evidence_bracket import (
    EvidenceBracket as EvidenceBracket,
    evidence_bracket as evidence_bracket,
)
from ._expected_calibration import expected_calibration_error as expected_calibration_error
from ._gradient_report import (
    GradientReport as GradientReport,
    ParameterGradient as ParameterGradient,
    SiteGradient as SiteGradient,
    gradient_report as gradient_report,
)
from ._gradient_views import gradient_tree as gradient_tree, plot_gradients as plot_gradients
from ._pilot import Pilot as Pilot, Trial as Trial, pilot as pilot
