"""Learning rates for credit online: one small grid for every method, on a validation split.

    python experiments/online_tuning.py --preset quick

The 5,000 last training images are held out and scored; no test image is looked at.  Three rates of the network for
every method, at one rate of the estimator, and two more of the estimator's own, at the network's default, where it
learns; 15 epochs, one seed.  How many samples' tangents a step takes to fit the chain's maps, which is most of what the
chain costs beyond back-propagation, with and without being told the weights' updates, or begun as feedback alignment.
On 12 blocks, eight epochs: a rate at which coarse maps stay fitted, at the seed where those at 3e-3 break first; and
what the chain lacks, which ends further below back-propagation there than on four: more tangents, others, a rate, a
pull on the states, smaller first steps, the exact gradient in one place, more fits a step, being told the weights'
updates, another start, with both in two sweeps over all blocks at once; does the exact gradient with an error of the
same size lack as much, or Kolen-Pollack, whose feedback is told them, if it is told them late?  Everything that was
tried stands here.
"""

from collections.abc import Sequence
from pathlib import Path

import jcredit as jc
from jcredit.report import dots
from jcredit.report.schema import Row
from jcredit.report.styles import PALETTE
from jcredit.report.tables import TableSpec
from jcredit.study.experiment import Experiment, Preset, credit_columns, main
from jcredit.study.settings import CIFAR10, CIFAR10_DEEP, MENDED_FIELD, PULL, SMOKE, lines, named
from jcredit.sweeps.variants import Variant

METHODS = named("bp", "frozen", "broadcast", "dfa", "fa", "grape", "tangent_gate", "tangent_mask", "tangent_chain") | {
    "tangent_sweeps K=1": {"credit": jc.tangent_sweeps(1)},
    "tangent_sweeps K=2": {"credit": jc.tangent_sweeps(2)},
    "tangent_sweeps K=1 from the mask": {"credit": jc.tangent_sweeps(1, start="mask")},
    "linear_field": {"credit": jc.linear_field("gate", learning_rate=3e-3)},  # its default is what came of this
    "vector_field, mended": MENDED_FIELD,
}
COARSE_BLOCK = "coarse maps on 12 blocks, D = 512"
NETWORK_RATES = (3e-4, 1e-3, 3e-3)
SAMPLES = (4, 8, 16, 32, 128)
COARSE = {
    "estimator 0.003": {"credit": jc.tangent_coarse(learning_rate=3e-3)},
    "estimator 0.001": {"credit": jc.tangent_coarse()},
    "estimator 0.0003": {"credit": jc.tangent_coarse(learning_rate=3e-4)},
    "estimator 0.003, clip 1": {"credit": jc.tangent_coarse(learning_rate=3e-3, clip=1.0)},
}
SAMPLES_BLOCK = "tangents measured in a step"
DEEP_BLOCK = "what the chain lacks on 12 blocks, D = 512"


def measured(samples: tuple[int, ...]) -> dict[str, dict]:
    """{label: the chain, fitted to the tangents of so many samples}."""
    return {f"{n} samples": {"credit": jc.tangent_chain(samples=n)} for n in samples}


def following(samples: tuple[int, ...]) -> dict[str, dict]:
    """{label: the same, its maps told the weights' updates, too}."""
    return {f"{n} samples, following": {"credit": jc.tangent_chain(samples=n, follows=True)} for n in samples}


def from_feedback() -> dict[str, dict]:
    """{label: the chain of the tables, its maps begun as feedback alignment in place of the broadcast}."""
    return {
        f"32 samples, from feedback{told}": {"credit": jc.tangent_chain(begins="feedback", follows=follows)}
        for told, follows in (("", False), (", following", True))
    }


def shallow_chains(samples: tuple[int, ...]) -> dict[str, dict]:
    """{label: line}: the chain on four blocks, by the tangents that a step measures; at a lower rate if it follows."""
    slower = {
        f"{n} samples, following, estimator 0.001": {
            "credit": jc.tangent_chain(samples=n, follows=True, learning_rate=1e-3)
        }
        for n in samples
        if n <= 8
    }
    return measured(samples) | following(samples) | slower | from_feedback()


def deep(samples: tuple[int, ...]) -> dict[str, dict]:
    """{label: line}: the chain on 12 blocks, with as many tangents as the default or more, and what it may lack."""
    many = tuple(n for n in samples if n >= 32)
    return named("bp") | measured(many) | {
        "estimator 0.001": {"credit": jc.tangent_chain(learning_rate=1e-3)},
        "bp, fresh error 0.25": {"credit": jc.disturbed_bp(0.25, "fresh")},  # Gamma .97, as the chain's is there
        "bp, fixed error 0.25": {"credit": jc.disturbed_bp(0.25, "fixed")},
        "bp, pull": named("bp")["bp"] | PULL,
        "32 samples, pull": {"credit": jc.tangent_chain()} | PULL,
        "bp, rate from zero": named("bp")["bp"] | {"schedule": "warmup_cosine"},
        "32 samples, rate from zero": {"credit": jc.tangent_chain(), "schedule": "warmup_cosine"},
        "32 samples, along states": {"credit": jc.tangent_chain(along="states")},
        "32 samples, along states and noise": {"credit": jc.tangent_chain(along="both")},
        "32 samples, exact for the embedding": {"credit": jc.exact_at(of=jc.tangent_chain())},
        "32 samples, exact for the blocks": {"credit": jc.exact_at(of=jc.tangent_chain(), layers="blocks")},
        **following(many),
        **from_feedback(),
        "32 samples, from feedback, following, 2 sweeps": {
            "credit": jc.tangent_sweeps(2, follows=True, begins="feedback")
        },
        "32 samples, 4 fits a step": {"credit": jc.tangent_chain(), "estimator_steps": 4},
        "Kolen-Pollack": {"credit": jc.kolen_pollack()},
        "Kolen-Pollack, 30 steps late": {"credit": jc.kolen_pollack(lag=30)},
        "Kolen-Pollack, 100 steps late": {"credit": jc.kolen_pollack(lag=100)},
    }  # fmt: skip


def tried(methods: tuple[str, ...]) -> dict[str, dict[str, dict]]:
    """{method: {label: line}}."""
    table: dict[str, dict[str, dict]] = {}
    for name in methods:
        line = METHODS[name]
        table[name] = {f"network {rate:g}": line | {"learning_rate": rate} for rate in NETWORK_RATES}
        for path, part in line["credit"].walk("credit"):
            if default := _rate(part):
                own = {f"estimator {default * f:g}": line | {f"{path}.learning_rate": default * f} for f in (1 / 3, 3)}
                table[name] |= own
    return table


def grid(
    methods: tuple[str, ...] = tuple(METHODS), samples: tuple[int, ...] = SAMPLES, **fields
) -> tuple[Variant, ...]:
    """All that is tried, on the validation split: each method's rates, the chain's tangents, maps of 12 blocks."""
    shallow = tuple(
        variant
        for block, table in (tried(methods) | {SAMPLES_BLOCK: shallow_chains(samples)}).items()
        for variant in lines(CIFAR10, table, block, evaluate_on="validation", **fields)
    )
    fields |= {"epochs": min(8, fields["epochs"]), "evaluate_on": "validation"}
    tables = {COARSE_BLOCK: COARSE, DEEP_BLOCK: deep(samples)}
    return shallow + tuple(v for block, table in tables.items() for v in lines(CIFAR10_DEEP, table, block, **fields))


def figure(rows: Sequence[Row], path: Path) -> None:
    """Accuracy of every method at each rate of the network and of its own, of the chain with few tangents, and deep."""
    met = {row.get("block") for row in rows}
    methods = [name for name in METHODS if name in met]
    canvas, axes = dots.panels(4, (18.0, 1.6 + 0.35 * len(methods)))
    for y, method in enumerate(methods):
        own = [row for row in rows if row.get("block") == method]
        seeds = set.intersection(*(set(seeds) for seeds in _seeds(own).values()))  # others have one line alone
        alike = [row for row in own if row["seed"] in seeds]
        default = next((d for _, part in METHODS[method]["credit"].walk("") if (d := _rate(part))), None)
        estimators = {} if default is None else {
            "a third": f"estimator {default / 3:g}",
            "as in the tables": "network 0.001",
            "three times": f"estimator {default * 3:g}",
        }  # fmt: skip
        networks = {f"{rate:g}": f"network {rate:g}" for rate in NETWORK_RATES}
        for axis, tried_here in zip(axes[:2], (networks, estimators), strict=True):
            for i, ((name, label), color) in enumerate(zip(tried_here.items(), PALETTE, strict=False)):
                values = dots.values_of(alike, "metrics.test_accuracy", label)
                dots.draw(axis, y + 0.2 * (i - 1), values, color, name if y == len(methods) - 1 else None, half=0.1)
    dots.name(axes[0], methods, "rate of the network: validation accuracy")
    dots.name(axes[1], [""] * len(methods), "rate of the estimator: validation accuracy")
    chains = {SAMPLES_BLOCK: shallow_chains(SAMPLES), DEEP_BLOCK: deep(SAMPLES)}
    titles = ("the chain, fitted to few: validation accuracy", "12 blocks: validation accuracy")
    for axis, (block, known), title in zip(axes[2:], chains.items(), titles, strict=True):
        labels = [label for label in known if dots.values_of(rows, "metrics.test_accuracy", label, block)]
        for y, label in enumerate(labels):
            dots.draw(axis, y, dots.values_of(rows, "metrics.test_accuracy", label, block), PALETTE[0])
        dots.name(axis, labels, title)
    for axis, where in zip(axes[:2], ("lower left", "upper left"), strict=True):  # where no dots are
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8, loc=where)
    dots.write(canvas, "Learning rates and tangents, validation split", path)


def _seeds(rows: Sequence[Row]) -> dict[str, list[int]]:
    """{label: seeds}."""
    return {label: [row["seed"] for row in rows if row["label"] == label] for label in {row["label"] for row in rows}}


def _rate(part: jc.Part) -> float | None:
    """A part's own learning rate."""
    return part.settings.get("learning_rate")


EXPERIMENT = Experiment(
    name="online_tuning",
    question="Which learning rates does each credit take online, and how many tangents the chain?",
    phase="tuning, validation split",
    doc=__doc__,
    presets={
        "smoke": Preset(
            (42,),
            grid(("frozen", "tangent_chain"), (4, 32), depth=2, width=16, epochs=1, **SMOKE),
            "1 minute",
        ),
        "quick": Preset((42,), grid(epochs=3), "20 minutes"),
        "full": Preset((42,), grid(epochs=15), "2 hours"),
    },
    table=TableSpec(
        "Learning rates and tangents for credit online: CIFAR-10, validation accuracy",
        credit_columns(),
        notes=(
            "At the last epoch; accuracy on the 5,000 training images held out. Everything that was tried.",
            "Samples: the leading ones of a batch of 128, whose tangents a step measures to fit the chain's maps.",
            "fresh, fixed error: the exact gradient plus an error of that size relative to its norm, drawn anew for"
            " every sample and step, or made by one random matrix per layer.",
            "pull: 1e-4 h_l, added to the credit of h_l.",
            "rate from zero: the network's rate rises from zero over the first tenth of the run.",
            "along states: tangents along the way from a sample's state to another's, alone or with noise added.",
            "exact for the embedding, for the blocks: given the gradient itself, all else the chain's credit.",
            "following: the maps are also told the weights' updates, as Kolen-Pollack's feedback is.",
            "from feedback: the maps begin random, as feedback alignment, in place of zero, the broadcast.",
            "2 sweeps: the maps hand the credit down to all layers at once, twice, in place of block by block.",
            "4 fits a step: the maps take four steps of their optimizer, on fresh tangents, for one of the network.",
            "n steps late: the feedback follows the weights' updates n steps late, on average.",
            "Quick: 3 epochs (a look, on which nothing is chosen); full: 15, 8 on 12 blocks.",
        ),
    ),
    figure=figure,
)  # fmt: skip

if __name__ == "__main__":
    main(EXPERIMENT)
