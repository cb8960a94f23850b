"""A search over swept numbers: Optuna asks for eight trials at once, and one compiled program runs them all.

Learning rates and weights are traced, so trials of one kind of credit are lines of one sweep, side by side with their
seeds.  Trials are judged on a validation split of the training samples; the test samples are seen once, at the end, by
the best trial and by what it has to beat.
"""

import numpy as np
import optuna
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import jcredit as jc

ROUNDS, TRIALS = 3, 8
x, y = (np.asarray(a) for a in load_digits(return_X_y=True))
x, x_test, y, y_test = train_test_split(x, y, test_size=0.3, random_state=0)
x_train, x_valid, y_train, y_valid = train_test_split(x, y, test_size=0.25, random_state=1)
network = jc.image_mlp(depth=3, width=32)
base = jc.Config(
    task=jc.tasks.arrays(x_train, y_train, x_valid, y_valid),
    network=network,
    credit=jc.state_bridge(trunk=jc.mlp(hidden=32)),
    epochs=5,
    batch_size=50,
)


def suggested(trial: optuna.Trial) -> jc.Config:
    """The configuration of a trial: swept numbers alone, so that all trials share a program."""
    return base.replace(
        **{
            "learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-2, log=True),
            "credit.learning_rate": trial.suggest_float("credit.learning_rate", 1e-4, 1e-2, log=True),
            "state_penalty": trial.suggest_float("state_penalty", 1e-6, 1e-2, log=True),
        }
    )


optuna.logging.set_verbosity(optuna.logging.WARNING)
study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=0, constant_liar=True))
for _ in range(ROUNDS):
    trials = [study.ask() for _ in range(TRIALS)]
    rows = jc.sweep({f"trial {trial.number}": suggested(trial) for trial in trials}, seeds=range(2), progress=False)
    for trial in trials:
        found = [row["metrics"]["test_accuracy"] for row in rows.where(label=f"trial {trial.number}")]
        study.tell(trial, sum(found) / len(found))
    print(f"{len(study.trials)} trials, best on validation {study.best_value:.3f} at {study.best_params}")

final = base.replace(task=jc.tasks.arrays(x, y, x_test, y_test))
lines = {"found": final.replace(**study.best_params), "default": final, "frozen": final.replace(credit=jc.frozen())}
print(jc.sweep(lines, seeds=range(10, 13), progress=False).table())
