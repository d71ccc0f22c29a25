"""The steps of a run: one compiled loop, and the host that calls it until the run is over.

    Config, Carry, initial_carry      what a step is made of: static choices; parameters, optimiser, state
    Training, HostPlan                device calls, and in between history, progress, callbacks, checkpoints, Ctrl-C
    make_optimizer, by_row            one transformation for all parameters, or one per group; rows of tables by themselves
    FitInfo and callbacks             what they see, `EarlyStopping`, `KeepBest`, `LogEvery`, `Profile`
    Shardings                         where parameters, and what goes along with them, lie on a mesh
    NonFiniteError                    a step that went wrong, by site

Numbers depend on key, data and step alone, not on where one device call ends.
"""

from ._by_row import by_row as by_row
from ._callbacks import (
    EarlyStopping as EarlyStopping,
    FitInfo as FitInfo,
    LogEvery as LogEvery,
    Stateful as Stateful,
    labels as labels,
    with_state as with_state,
)
from ._initial import initial_params as initial_params
from ._keep_best import KeepBest as KeepBest
from ._loop import (
    Carry as Carry,
    Config as Config,
    initial_carry as initial_carry,
    run_keys as run_keys,
    strong as strong,
)
from ._nonfinite import NonFiniteError as NonFiniteError
from ._optimizer import (
    FROZEN as FROZEN,
    Optimizer as Optimizer,
    apply as apply,
    is_optimizer as is_optimizer,
    leaf_names as leaf_names,
    make_optimizer as make_optimizer,
    memory_of as memory_of,
)
from ._profile import Profile as Profile
from ._shardings import (
    Shardings as Shardings,
    check_seeds as check_seeds,
    shardings_of as shardings_of,
)
from ._train import HostPlan as HostPlan, Training as Training

__all__: list[str] = []
