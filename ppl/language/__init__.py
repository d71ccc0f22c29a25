"""What a user writes: programs, statements, handlers.

`model` makes a `Program` of a function; statements (`sample`, `plate`, `param`, ...) are NumPyro's with our options, so that a
program stays a NumPyro model; handlers (`condition`, `intervene`, `block`, `mask`) turn programs into programs. They stand on
top of `ppl`.
"""

from ._autoguides import (
    check_set_up as check_set_up,
    set_up as set_up,
    what_is_not_finite as what_is_not_finite,
    why_not_finite as why_not_finite,
)
from ._callables import name_of as name_of
from ._choices import (
    ChoiceMismatch as ChoiceMismatch,
    arrays as arrays,
    predictions as predictions,
)
from ._handlers import (
    GivenSites as GivenSites,
    block as block,
    condition as condition,
    handled as handled,
    intervene as intervene,
    is_ours as is_ours,
    mask as mask,
    rescale_plates as rescale_plates,
)
from ._inline_guide import InlineGuide as InlineGuide, JointRun as JointRun, guide_of as guide_of
from ._keywords import (
    Keywords as Keywords,
    apply as apply,
    arguments as arguments,
    as_arguments as as_arguments,
    as_tuple as as_tuple,
    joined as joined,
    parted as parted,
    told_of_not_finite as told_of_not_finite,
    where_not_finite as where_not_finite,
)
from ._labels import (
    Labels as Labels,
    LabelText as LabelText,
    labelled_as as labelled_as,
    labels_of as labels_of,
)
from ._program import Program as Program, as_program as as_program, model as model
from ._repeatable import refuse_unrepeatable as refuse_unrepeatable
from ._reweight import SiteWeights as SiteWeights, reweight as reweight
from ._rng_key import rng_key as rng_key
from ._score import (
    check_proposed_cells as check_proposed_cells,
    detached as detached,
    draw as draw,
    matched as matched,
    misses as misses,
    score as score,
    score_at as score_at,
)
from ._statements import (
    deterministic as deterministic,
    factor as factor,
    module as module,
    param as param,
    plate as plate,
    sample as sample,
    subsample as subsample,
)
