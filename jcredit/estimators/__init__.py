"""Credit estimators: where d loss / d h_l comes from when it is not back-propagated.

Each factory declares its settings and returns an ``Estimator``, a tuple of pure functions; one's own is made alike.
"""

from jcredit.estimators.aligned import grape
from jcredit.estimators.bridges import scalar_bridge, state_bridge
from jcredit.estimators.controls import bp, broadcast, disturbed_bp, frozen
from jcredit.estimators.feedback import dfa, fa
from jcredit.estimators.fields import linear_field, vector_field
from jcredit.estimators.local_losses import forward_gradient, local_heads
from jcredit.estimators.mirrors import kolen_pollack, weight_mirror
from jcredit.estimators.tangents import tangent_chain, tangent_coarse, tangent_gate, tangent_mask, tangent_sweeps
from jcredit.estimators.trunk import mlp
from jcredit.estimators.wrappers import exact_at, exact_terminal, unbiased_residual

__all__ = [
    "bp", "broadcast", "dfa", "disturbed_bp", "exact_at", "exact_terminal", "fa", "forward_gradient", "frozen",
    "grape", "kolen_pollack", "linear_field", "local_heads", "mlp", "scalar_bridge", "state_bridge", "tangent_chain",
    "tangent_coarse", "tangent_gate", "tangent_mask", "tangent_sweeps", "unbiased_residual", "vector_field",
    "weight_mirror",
]  # fmt: skip
