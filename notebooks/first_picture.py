"""From nothing to a first picture: `marimo edit notebooks/first_picture.py` (pip install -e '.[notebook]')."""

import marimo

app = marimo.App(width="medium")


@app.cell(hide_code=True)
def _():
    import marimo as mo

    mo.md(
        """
        # What is a credit worth?

        Every hidden layer of a small network gets an estimate of its gradient that was made without back-propagating
        through any hidden block. Nine cells: a task, four credits, their rows, two pictures. Change a number, and what
        depends on it is run again; runs that are finished are found.
        """
    )
    return (mo,)


@app.cell
def _():
    import jcredit as jc

    return (jc,)


@app.cell
def _(jc):
    # A student learns a random teacher; inputs are Gaussian, labels are the teacher's largest output.
    base = jc.Config(
        task=jc.tasks.teacher(train_size=2048, test_size=512),
        network=jc.ladder_mlp(depth=4, width=32),
        epochs=6,
        batch_size=64,
        diagnose_every=1,
    )
    return (base,)


@app.cell
def _(jc):
    # The exact gradient; no credit at all; delta_L handed down unchanged; random feedback.
    credits = {"bp": jc.bp(), "frozen": jc.frozen(), "broadcast": jc.broadcast(), "dfa": jc.dfa()}
    return (credits,)


@app.cell
def _(base, credits, jc):
    configs = {name: base.replace(credit=credit) for name, credit in credits.items()}
    rows = jc.sweep(configs, seeds=range(3), results_dir="runs", name="first_picture", progress=False)
    rows  # noqa: B018
    return (rows,)


@app.cell
def _(rows):
    # A pandas data frame with a line for each run.
    frame = rows.frame()
    frame.groupby("label")[["metrics.test_accuracy", "metrics.gamma", "metrics.h_rms_last"]].agg(["mean", "std"])
    return (frame,)


@app.cell
def _(mo, rows):
    # The project's picture: a dot is a seed.
    rows.plot("runs/first_picture.png", title="what a credit is worth")
    mo.image("runs/first_picture.png")
    return


@app.cell
def _(rows):
    # The same of your own making: how good is the credit, layer by layer?
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(5, 3))
    for name in ("bp", "broadcast", "dfa"):
        profiles = [row["layers"]["gamma"] for row in rows.where(label=name)]
        axis.plot([sum(layer) / len(profiles) for layer in zip(*profiles, strict=True)], marker="o", label=name)
    axis.set(xlabel="layer l", ylabel="Gamma (cosine to the gradient)")
    axis.legend()
    figure  # noqa: B018
    return


@app.cell(hide_code=True)
def _(mo):
    mo.md(
        """
        High is not always good: see "Reading the numbers" on the site for what Gamma can hide. Next: an estimator of
        your own, in the tutorial there.
        """
    )
    return


if __name__ == "__main__":
    app.run()
