"""The names of ``jcredit``; each is imported when it is first used (see ``__init__.py``)."""

from . import tasks as tasks, testing as testing
from .config import Config as Config
from .estimators import (
    bp as bp,
    broadcast as broadcast,
    dfa as dfa,
    disturbed_bp as disturbed_bp,
    exact_at as exact_at,
    exact_terminal as exact_terminal,
    fa as fa,
    forward_gradient as forward_gradient,
    frozen as frozen,
    grape as grape,
    kolen_pollack as kolen_pollack,
    linear_field as linear_field,
    local_heads as local_heads,
    mlp as mlp,
    scalar_bridge as scalar_bridge,
    state_bridge as state_bridge,
    tangent_chain as tangent_chain,
    tangent_coarse as tangent_coarse,
    tangent_gate as tangent_gate,
    tangent_mask as tangent_mask,
    tangent_sweeps as tangent_sweeps,
    unbiased_residual as unbiased_residual,
    vector_field as vector_field,
    weight_mirror as weight_mirror,
)
from .estimators.trunk import Trunk as Trunk
from .files import FileError as FileError
from .losses.perturbation import (
    Probe as Probe,
    all_layers as all_layers,
    directional_loss as directional_loss,
    measure as measure,
    random_layers as random_layers,
)
from .networks import (
    image_cnn as image_cnn,
    image_mixer as image_mixer,
    image_mlp as image_mlp,
    ladder_mlp as ladder_mlp,
    lq_dynamics as lq_dynamics,
)
from .numerics import layer_norm as layer_norm
from .parts import (
    Arrays as Arrays,
    EstimatorPart as EstimatorPart,
    NetworkPart as NetworkPart,
    Part as Part,
    TrunkPart as TrunkPart,
    estimator as estimator,
    network as network,
    rule as rule,
    task as task,
    trunk as trunk,
)
from .report.rows import ResultsError as ResultsError, Rows as Rows
from .rules import cosine_rule as cosine_rule, inner_product as inner_product, target_shift as target_shift
from .settings import (
    Added as Added,
    ConfigError as ConfigError,
    Count as Count,
    Fraction as Fraction,
    NonNegative as NonNegative,
    Positive as Positive,
    Size as Size,
    Swept as Swept,
)
from .sweeps.batch import BatchError as BatchError
from .sweeps.checkpoints import CheckpointError as CheckpointError
from .sweeps.door import Interrupted as Interrupted, sweep as sweep
from .tasks.image_data import DataError as DataError
from .training import Run as Run, TrainState as TrainState, make_run as make_run
from .types import (
    Branch as Branch,
    Context as Context,
    Data as Data,
    Env as Env,
    Estimator as Estimator,
    EstState as EstState,
    LocalRule as LocalRule,
    NetParams as NetParams,
    Network as Network,
    OracleContext as OracleContext,
    Shapes as Shapes,
    Sizes as Sizes,
    Task as Task,
    Trace as Trace,
    adam as adam,
)

__version__: str
