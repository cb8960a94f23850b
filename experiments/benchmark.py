"""Speed: seed-steps per second, compile time, FLOPs, memory, per method and number of seeds, in one run.

    python experiments/benchmark.py --preset quick --against torch

CIFAR shapes (L = 4, D = 256, batch 128), the real step: gather, crops and flips, credit, local updates, AdamW, and the
estimator's step.  Every line is measured in a process of its own (compile time and peak memory are its own); the
float32 matmul peak and the costs relative to BP come from the same run.  ``--against torch`` (pip install
'jcredit[peers]') also runs the same algorithms in eager PyTorch, one seed after another.  Profiles say which part of a
step of one seed on one core takes how long, in matrix products and in everything else.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from jcredit import results
from jcredit.bases import CIFAR10, TANGENT, with_fields
from jcredit.experiment import Parser
from jcredit.tables import MISSING

LINES: dict[str, dict[str, Any]] = {
    "bp": {},
    "dfa": {"method": "dfa"},
    "broadcast": {"method": "broadcast"},
    "scalar_bridge": {"method": "scalar_bridge"},
    "vector_field M=4 central": {"method": "vector_field"},
    "vector_field M=4 jvp": {"method": "vector_field", "scheme": "jvp"},
    "vector_field M=4 central, all layers": {"method": "vector_field", "direction_layers": "all"},
    "tangent_gate": {"method": "tangent_gate"} | TANGENT,
    "tangent_mask": {"method": "tangent_mask"} | TANGENT,
    "tangent_chain": {"method": "tangent_chain"} | TANGENT,
}
PEERS = {name: name.split()[0] for name in ("bp", "dfa", "scalar_bridge", "vector_field M=4 central")}
PROFILED = ("bp", "dfa", "scalar_bridge", "vector_field M=4 central", "vector_field M=4 jvp")
PARTS = (
    ("batch",), ("adam",), ("estimator",), ("credit",), ("update", "embedding"), ("update",), ("forward", "embedding"),
    ("forward",),
)  # fmt: skip
# What is aimed at with six seeds: torch ratios, and costs against BP.
TORCH_AIMS = {"bp": 2.5, "dfa": 3.5, "scalar_bridge": 4.0, "vector_field M=4 central": 6.0}
COST_AIMS = {
    "dfa": 1.0, "broadcast": 1.0, "scalar_bridge": 2.4, "vector_field M=4 central": 1.8, "vector_field M=4 jvp": 1.8,
}  # fmt: skip
PRESETS = {  # lines, seeds, seconds per repeat, repeats, minutes
    "smoke": (("bp", "dfa"), (2,), 0.3, 2, "20 seconds"),
    "quick": (tuple(LINES), (1, 2, 6, 16), 1.5, 3, "25 minutes"),
    "full": (tuple(LINES), (1, 2, 6, 16), 10.0, 7, "40 minutes"),
}
IMAGES = 3200


# --- one measurement, in a process of its own -------------------------------------------------------------------------


def work(job: dict[str, Any]) -> dict[str, Any]:
    """Measures one job and returns its numbers."""
    if job["kind"] == "torch":
        sys.path.insert(0, str(Path(__file__).parent))
        from peers.torch_eager import Sizes, measure

        rates = measure(job["method"], job["seeds"], Sizes(), job["seconds"], job["repeats"])
        return {"rates": rates, "peak_bytes": _peak_bytes()}
    if job.get("one_core"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    from jcredit.layout import use_all_cores

    use_all_cores()
    return {"peak": matmul_peak, "line": measure_line, "profile": profile}[job["kind"]](job)


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _rates(call, units: float, job: dict[str, Any]) -> list[float]:
    """Units per second of each repeat, every repeat long enough to be timed."""
    start = time.perf_counter()
    call()  # the first call also faults pages in, and tells how many make a repeat
    n = max(1, round(job["seconds"] / (time.perf_counter() - start)))
    rates = []
    for _ in range(job["repeats"]):
        start = time.perf_counter()
        for _ in range(n):
            call()
        rates.append(n * units / (time.perf_counter() - start))
    return rates


def matmul_peak(job: dict[str, Any]) -> dict[str, Any]:
    """FLOP/s of 1024 x 1024 float32 products on all devices at once."""
    import jax
    import jax.numpy as jnp

    from jcredit.layout import Layout, over_runs

    layout = Layout(jax.local_device_count())
    size, products = 1024, 10
    chain = over_runs(lambda x, w: jax.lax.fori_loop(0, products, lambda _, y: y @ w, x), (True, False), layout)
    x, w = jnp.ones((layout.devices, size, size)), jnp.eye(size)
    call = lambda: jax.block_until_ready(chain(x, w))  # noqa: E731
    return {"rates": _rates(call, layout.devices * products * 2 * size**3, job)}


def _run_of(fields: dict[str, Any]):
    """The configuration with these fields and its run, on random pixels of CIFAR-10's shape."""
    import numpy as np

    from jcredit.tasks import Data
    from jcredit.tasks.images import image_task_on
    from jcredit.training import make_run

    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (IMAGES, 32, 32, 3), dtype=np.uint8)
    labels = random.integers(0, 10, IMAGES).astype(np.int32)
    config = with_fields(CIFAR10, **fields)
    return config, make_run(config, task=image_task_on(config, Data(pixels, labels, pixels[:1], labels[:1])))  # type: ignore[arg-type]


def profile(job: dict[str, Any]) -> dict[str, Any]:
    """Seconds of one step of one seed in each of its parts, [in matrix products, in everything else]."""
    import jax

    from jcredit.cost import time_by_scope

    config, run = _run_of(job["fields"])
    hp, key = run.hparams(config), jax.random.key(0)
    state, data = run.init(key, hp), run.data(key, hp)
    epoch = jax.jit(run.epoch).lower(state, hp, data).compile()
    call = lambda: jax.block_until_ready(epoch(state, hp, data))  # noqa: E731
    rate = statistics.median(_rates(call, run.steps_per_epoch, job))
    spent = time_by_scope(epoch, call, PARTS)
    return {"rate": rate, "parts": {part: [s / run.steps_per_epoch for s in both] for part, both in spent.items()}}


def measure_line(job: dict[str, Any]) -> dict[str, Any]:
    """Compile seconds, seed-steps per second, matmul FLOPs of one step, and peak memory of one line."""
    import jax
    import jax.numpy as jnp

    from jcredit.cost import matmul_flops
    from jcredit.layout import choose_layout, over_runs, place, stack

    config, run = _run_of(job["fields"])
    seeds, hp = range(job["seeds"]), run.hparams(config)
    layout = choose_layout(job["seeds"], job.get("seeds_per_batch"))
    padded = [*seeds, *[0] * (layout.padded(len(seeds)) - len(seeds))]
    states = place(stack([run.init(jax.random.key(s), hp) for s in padded]), layout, per_run=True)
    hps = place(stack([hp] * len(padded)), layout, per_run=True)
    data = place(run.data(jax.random.key(0), hp), layout, per_run=False)
    start = time.perf_counter()
    epoch = over_runs(run.epoch, (True, True, False), layout, (0,)).lower(states, hps, data).compile()
    compile_s = time.perf_counter() - start

    def call():
        nonlocal states
        states, metrics = epoch(states, hps, data)
        jax.block_until_ready(metrics)

    rates = _rates(call, job["seeds"] * run.steps_per_epoch, job)
    one = jax.tree.map(lambda leaf: leaf[0], (states, hps))
    lowered = jax.jit(run.step).lower(*one, data, jnp.arange(config.batch_size))
    step = lowered.compile(compiler_options={"xla_backend_optimization_level": "0"})  # only its text is read
    return {"compile_s": compile_s, "rates": rates, "flops": matmul_flops(step), "peak_bytes": _peak_bytes()}


# --- all of them --------------------------------------------------------------------------------------------------


def jobs(preset: str, against: str | None) -> dict[str, dict[str, Any]]:
    """Every measurement of a preset by name."""
    lines, seed_counts, seconds, repeats, _ = PRESETS[preset]
    pace = {"seconds": seconds, "repeats": repeats}
    found: dict[str, dict[str, Any]] = {"matmul peak": {"kind": "peak", **pace}}
    for seeds in seed_counts:
        for line in lines:
            found[f"{line} | {seeds}"] = {"kind": "line", "fields": LINES[line], "seeds": seeds, **pace}
            if against and line in PEERS:
                found[f"torch {line} | {seeds}"] = {"kind": "torch", "method": PEERS[line], "seeds": seeds, **pace}
    if preset != "smoke":
        found["bp | 1 on one core"] = {"kind": "line", "fields": {}, "seeds": 1, "one_core": True, **pace}
        for line in PROFILED:
            found[f"profile of {line}"] = {"kind": "profile", "fields": LINES[line], "one_core": True, **pace}
        for depth in (2, 48):
            fields = {"depth": depth, "width": 64}
            brief = {"seconds": 0.1, "repeats": 1}
            found[f"bp, L = {depth}, D = 64 | 1"] = {"kind": "line", "fields": fields, "seeds": 1, **brief}
    return found


def run_jobs(found: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Runs every job in a fresh process, one after the other, without a compilation cache."""
    from tqdm import tqdm

    measured = {}
    for name, job in (bar := tqdm(found.items(), unit="line")):
        bar.set_description(name)
        command = [sys.executable, __file__, "--job", json.dumps(job)]
        finished = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"JAX_PLATFORMS": ""})
        if finished.returncode != 0:
            sys.exit(f"benchmark.py: {name} failed: {finished.stderr.strip().splitlines()[-1]}")
        measured[name] = json.loads(finished.stdout.splitlines()[-1])
    return measured


def table(measured: dict[str, dict[str, Any]], preset: str) -> str:
    """The table of a run, from its measurements."""
    peak = statistics.median(measured["matmul peak"]["rates"])
    parts = [f"# Benchmark ({preset})", f"float32 matmul peak in this run: {peak / 1e9:.0f} GFLOP/s, all devices"]
    for seeds in sorted({int(n.split(" | ")[1]) for n in measured if n.split(" | ")[-1].isdigit() and ", L" not in n}):
        bp = statistics.median(measured[f"bp | {seeds}"]["rates"])
        head = ["method", "compile s", "seed-steps/s", "spread", "MFLOP/step", "of peak", "cost / BP", "peak MiB"]
        head += ["torch", "ratio"] if f"torch bp | {seeds}" in measured else []
        lines = []
        for name, m in measured.items():
            if not name.endswith(f" | {seeds}") or name.startswith("torch ") or ", L" in name:
                continue
            rate, peer = statistics.median(m["rates"]), measured.get(f"torch {name}")
            line = [
                name.split(" | ")[0], f"{m['compile_s']:.1f}", f"{rate:.1f}",
                f"{min(m['rates']):.1f}..{max(m['rates']):.1f}", f"{m['flops'] / 1e6:.0f}",
                f"{rate * m['flops'] / peak:.0%}", f"{bp / rate:.2f}", f"{m['peak_bytes'] / 2**20:.0f}",
            ]  # fmt: skip
            if peer:
                other = statistics.median(peer["rates"])
                line += [f"{other:.1f}", f"{rate / other:.2f}"]
            lines.append(line + [MISSING] * (len(head) - len(line)))
        parts += [f"## {seeds} seed{'s' * (seeds > 1)}", _markdown(head, lines)]
    if "bp | 1 on one core" in measured and "bp | 6" in measured:
        parts += ["## Six seeds: what is aimed at", bars(measured, peak)]
    if profiles := {name.removeprefix("profile of "): m for name, m in measured.items() if name.startswith("profile")}:
        parts += ["## Milliseconds of a step, one seed on one core", profile_table(profiles)]
    return "\n\n".join(parts) + "\n"


def _markdown(head: list[str], lines: list[list[str]]) -> str:
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, rule, *lines])


def bars(measured: dict[str, dict[str, Any]], peak: float) -> str:
    """The bars this project set itself, against this run."""
    rate = {name: statistics.median(m["rates"]) for name, m in measured.items() if "rates" in m}
    bp, mine = rate["bp | 6"], measured["bp | 6"]
    at_most, at_least = (lambda x, aim: x <= aim), (lambda x, aim: x >= aim)
    shallow, deep = (measured[f"bp, L = {depth}, D = 64 | 1"]["compile_s"] for depth in (2, 48))
    memory = max(m["peak_bytes"] for name, m in measured.items() if name.endswith(" | 6") and "torch" not in name)
    needs = lambda line, aim: aim * rate[f"torch {line} | 6"] * measured[f"{line} | 6"]["flops"] / peak  # noqa: E731
    found = [
        (
            f"{line} against eager PyTorch (the aim takes {needs(line, aim):.0%} of the matmul peak)",
            rate[f"{line} | 6"] / rate[f"torch {line} | 6"], at_least, aim,
        )
        for line, aim in TORCH_AIMS.items()
        if f"torch {line} | 6" in rate
    ]  # fmt: skip
    found.append(("BP, fraction of the matmul peak", bp * mine["flops"] / peak, at_least, 0.6))
    found += [(f"cost of {line} against BP", bp / rate[f"{line} | 6"], at_most, aim) for line, aim in COST_AIMS.items()]
    found += [
        ("six seeds on all cores against one on one core", bp / rate["bp | 1 on one core"], at_least, 1.7),
        ("compile time at L = 48 against L = 2 (D = 64)", deep / shallow, at_most, 1.3),
        ("peak memory of six seeds, the largest line, GiB", memory / 2**30, at_most, 2.5),
    ]
    lines = [
        [what, f"{'>=' if test is at_least else '<='} {aim:g}", f"{value:.2f}", "yes" if test(value, aim) else "no"]
        for what, value, test, aim in found
    ]
    return _markdown(["six seeds", "aim", "measured", "met"], lines)


def profile_table(profiles: dict[str, dict[str, Any]]) -> str:
    """Where the time of a step goes: matrix products + everything else, for each part."""
    part_names = [*next(iter(profiles.values()))["parts"], "all"]
    lines = []
    for name, m in profiles.items():
        both = [*m["parts"].values(), [sum(kind) for kind in zip(*m["parts"].values(), strict=True)]]
        cells = [f"{products * 1e3:.1f} + {rest * 1e3:.1f}" for products, rest in both]
        lines.append([name, *cells, f"{1e3 / m['rate']:.1f}"])
    return _markdown(["products + the rest", *part_names, "untraced"], lines)


def figure(measured: dict[str, dict[str, Any]], path: Path) -> None:
    """Seed-steps per second of every line, jcredit and torch."""
    import io

    from matplotlib.figure import Figure

    counts = sorted({int(n.split(" | ")[1]) for n in measured if n.split(" | ")[-1].isdigit() and ", L" not in n})
    sheet = Figure(figsize=(2.6 + 2.6 * len(counts), 4.2), layout="constrained")
    axes = sheet.subplots(1, len(counts), squeeze=False, sharey=True)[0]
    for axis, seeds in zip(axes, counts, strict=True):
        names = [n for n in measured if n.endswith(f" | {seeds}") and ", L" not in n and not n.startswith("torch ")]
        for offset, prefix, color in ((0.2, "", "#0072B2"), (-0.2, "torch ", "#D55E00")):
            found = [
                (i, measured[prefix + n]["rates"]) for i, n in enumerate(reversed(names)) if prefix + n in measured
            ]
            if found:
                axis.barh(
                    [i + offset for i, _ in found], [statistics.median(r) for _, r in found], 0.38, color=color,
                    label=prefix.strip() or "jcredit",
                )  # fmt: skip
        axis.set_yticks(range(len(names)), [n.split(" | ")[0] for n in reversed(names)])
        axis.set_xlabel("seed-steps per second")
        axis.set_title(f"{seeds} seed{'s' * (seeds > 1)}")
    sheet.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper")
    buffer = io.BytesIO()
    sheet.savefig(buffer, format="png", dpi=130)
    results.write_bytes(path, buffer.getvalue())


def main() -> None:
    """The command."""
    parser = Parser(prog="benchmark.py", description=__doc__, allow_abbrev=False)
    sizes = "; ".join(f"{name}: {p[-1]}" for name, p in PRESETS.items())
    parser.add_argument("--preset", default="quick", choices=PRESETS, help=f"size ({sizes})")
    parser.add_argument("--against", choices=["torch"], help="also measure the same algorithms in eager PyTorch")
    parser.add_argument("--results-dir", type=Path, default=Path("results"), metavar="DIR", help="where results go")
    parser.add_argument("--no-progress", action="store_true", help="no progress bar")
    parser.add_argument("--redraw", action="store_true", help="only rebuild table and figure from measurements.json")
    parser.add_argument("--job", help="(internal) measure one job in this process")
    args = parser.parse_args()
    if args.job:
        print(json.dumps(work(json.loads(args.job))))
        return
    if args.against:
        try:
            __import__("torch")
        except ModuleNotFoundError:
            parser.error("--against torch needs PyTorch; pip install 'jcredit[peers]'")
    os.environ["TQDM_DISABLE"] = "1" if args.no_progress else ""
    directory = results.experiment_dir(args.results_dir, "benchmark", args.preset)
    kept = directory / "measurements.json"
    if args.redraw and not kept.exists():
        parser.error(f"--redraw needs {kept}; run without it to measure")
    if args.redraw:
        measured = json.loads(kept.read_text())["measured"]
    else:
        measured = run_jobs(jobs(args.preset, args.against))
        results.write_json(kept, {"device": _device(), "measured": measured})
    text = table(measured, args.preset)
    results.write_text(directory / "table.md", text)
    figure(measured, directory / "figure.png")
    print(text)


def _device() -> str:
    import platform

    return f"{len(os.sched_getaffinity(0))} cores, {platform.machine()}"


if __name__ == "__main__":
    main()
