"""jcredit: learned credit in place of back-propagated gradients, as pure JAX functions.

    from jcredit import Config, make_run

``make_run(config)`` is the whole training API; ``jcredit.estimators`` and ``jcredit.losses.rules`` hold the parts.
"""

from jcredit.config import Config, Hparams
from jcredit.training import Run, make_run
from jcredit.types import Context, Env, Estimator, EstState, LocalRule, Network, Trace

__all__ = [
    "Config",
    "Context",
    "Env",
    "EstState",
    "Estimator",
    "Hparams",
    "LocalRule",
    "Network",
    "Run",
    "Trace",
    "make_run",
]
