"""The names of ``jcredit``; each is imported when it is first used (see ``__init__.py``)."""

from . import tasks as tasks
from . import testing as testing
from .config import Config as Config
from .estimators import (
    bp as bp,
)
from .estimators import (
    broadcast as broadcast,
)
from .estimators import (
    dfa as dfa,
)
from .estimators import (
    disturbed_bp as disturbed_bp,
)
from .estimators import (
    exact_terminal as exact_terminal,
)
from .estimators import (
    fa as fa,
)
from .estimators import (
    forward_gradient as forward_gradient,
)
from .estimators import (
    frozen as frozen,
)
from .estimators import (
    grape as grape,
)
from .estimators import (
    kolen_pollack as kolen_pollack,
)
from .estimators import (
    linear_field as linear_field,
)
from .estimators import (
    local_heads as local_heads,
)
from .estimators import (
    mlp as mlp,
)
from .estimators import (
    scalar_bridge as scalar_bridge,
)
from .estimators import (
    state_bridge as state_bridge,
)
from .estimators import (
    tangent_chain as tangent_chain,
)
from .estimators import (
    tangent_coarse as tangent_coarse,
)
from .estimators import (
    tangent_gate as tangent_gate,
)
from .estimators import (
    tangent_mask as tangent_mask,
)
from .estimators import (
    tangent_sweeps as tangent_sweeps,
)
from .estimators import (
    unbiased_residual as unbiased_residual,
)
from .estimators import (
    vector_field as vector_field,
)
from .estimators import (
    weight_mirror as weight_mirror,
)
from .estimators.trunk import Trunk as Trunk
from .losses.perturbation import (
    all_layers as all_layers,
)
from .losses.perturbation import (
    directional_loss as directional_loss,
)
from .losses.perturbation import (
    measure as measure,
)
from .losses.perturbation import (
    random_layers as random_layers,
)
from .networks import image_cnn as image_cnn
from .networks import image_mixer as image_mixer
from .networks import image_mlp as image_mlp
from .networks import ladder_mlp as ladder_mlp
from .networks import lq_dynamics as lq_dynamics
from .parts import (
    Arrays as Arrays,
)
from .parts import (
    EstimatorPart as EstimatorPart,
)
from .parts import (
    NetworkPart as NetworkPart,
)
from .parts import (
    Part as Part,
)
from .parts import (
    TrunkPart as TrunkPart,
)
from .parts import (
    estimator as estimator,
)
from .parts import (
    network as network,
)
from .parts import (
    rule as rule,
)
from .parts import (
    task as task,
)
from .parts import (
    trunk as trunk,
)
from .report.rows import ResultsError as ResultsError
from .report.rows import Rows as Rows
from .rules import cosine_rule as cosine_rule
from .rules import inner_product as inner_product
from .rules import target_shift as target_shift
from .settings import (
    Added as Added,
)
from .settings import (
    ConfigError as ConfigError,
)
from .settings import (
    Count as Count,
)
from .settings import (
    Fraction as Fraction,
)
from .settings import (
    NonNegative as NonNegative,
)
from .settings import (
    Positive as Positive,
)
from .settings import (
    Size as Size,
)
from .settings import (
    Swept as Swept,
)
from .sweeps.batch import BatchError as BatchError
from .sweeps.checkpoints import CheckpointError as CheckpointError
from .sweeps.door import Interrupted as Interrupted
from .sweeps.door import sweep as sweep
from .tasks.image_data import DataError as DataError
from .training import Run as Run
from .training import make_run as make_run
from .types import (
    Branch as Branch,
)
from .types import (
    Context as Context,
)
from .types import (
    Data as Data,
)
from .types import (
    Env as Env,
)
from .types import (
    Estimator as Estimator,
)
from .types import (
    EstState as EstState,
)
from .types import (
    LocalRule as LocalRule,
)
from .types import (
    NetParams as NetParams,
)
from .types import (
    Network as Network,
)
from .types import (
    OracleContext as OracleContext,
)
from .types import (
    Shapes as Shapes,
)
from .types import (
    Sizes as Sizes,
)
from .types import (
    Task as Task,
)
from .types import (
    Trace as Trace,
)
from .types import (
    adam as adam,
)
