"""Costs read off compiled programs, against counts by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import first_batch, small, start, tiny

import jcredit as jc
from jcredit import parts
from jcredit.study.experiment import main
from jcredit.sweeps.cost import matmul_flops, memory_of, time_by_scope
from jcredit.sweeps.plan import Cost, Device, cost_of, shown
from jcredit.sweeps.run import plan_sweep
from jcredit.sweeps.variants import Folder, Snapshot, Variant
from jcredit.tasks.images import image_task
from jcredit.training import make_run


def test_products_in_nested_loops_are_counted_as_often_as_they_run():
    def tower(x, weights):
        inner = lambda h, w: (jnp.tanh(h @ w), None)  # noqa: E731
        return jax.lax.map(lambda scale: jax.lax.scan(inner, x * scale, weights)[0], jnp.arange(3.0))

    assert matmul_flops(tower, jnp.ones((32, 64)), jnp.ones((4, 64, 64))) == 3 * 4 * 2 * 32 * 64 * 64


def test_batched_products_and_their_contracted_axes():
    product = jax.jit(lambda a, b: jnp.einsum("bij,bjk->bik", a, b))
    assert matmul_flops(product, jnp.ones((5, 8, 9)), jnp.ones((5, 9, 7))) == 2 * 5 * 8 * 9 * 7


def test_a_convolution_costs_its_kernel_at_every_place():
    images, kernel = jnp.ones((3, 2, 8, 8)), jnp.ones((5, 2, 3, 3))
    convolve = lambda x, k: jax.lax.conv(x, k, (2, 2), "SAME")  # noqa: E731
    assert matmul_flops(convolve, images, kernel) == 2 * (3 * 5 * 4 * 4) * (2 * 3 * 3)


def test_what_nobody_needs_is_free_branches_count_once_and_so_do_loops_of_unknown_length():
    def until(x):
        jnp.ones((9, 8)) @ x
        x = jax.lax.cond(jnp.sum(x) > 0, lambda c: c @ c @ c, lambda c: c @ c, x)
        return jax.lax.while_loop(lambda c: jnp.sum(c) < 1e6, lambda c: c @ c, x)

    assert matmul_flops(until, jnp.ones((8, 8))) == 3 * 2 * 8**3
    assert matmul_flops(lambda x: x + 1, 1.0) == 0


def test_what_is_done_twice_to_the_same_numbers_counts_once():
    def twice(x, w, v):
        first, again, other = jnp.tanh(x) @ w, jax.jit(jnp.matmul)(jnp.tanh(x), w), jnp.tanh(x) @ v
        return first + again + jax.jit(jnp.matmul)(jnp.tanh(x), w) + (2 * x) @ w + other

    eight = jnp.ones((8, 8))
    # tanh(x) w bare, the same in a function of its own (there twice), tanh(x) v, and 2 x w.
    assert matmul_flops(twice, eight, eight, eight) == 4 * 2 * 8**3


def test_activation_derivatives_come_with_the_forward_pass():
    # Feedback alignment walks back as back-propagation does, through matrices of the same sizes: if what it reads of
    # the blocks, their gates, were formed anew, it would take more products.
    flops = {}
    for credit in (jc.bp(), jc.fa()):
        config = tiny(credit, network=jc.image_mlp(depth=3, width=8))
        run = make_run(config)
        state, hp, data = start(run, config)
        flops[credit.name] = matmul_flops(run.step, state, hp, data, first_batch(config))
    assert flops["fa"] == flops["bp"]


def test_memory_counts_arguments_and_donation():
    x = jnp.ones((256, 256))
    plain = memory_of(jax.jit(lambda a: a + 1).lower(x).compile())
    donated = memory_of(jax.jit(lambda a: a + 1, donate_argnums=0).lower(x).compile())
    assert plain.arguments == donated.arguments == x.nbytes
    assert plain.results == x.nbytes and donated.results == 0


def held_bytes(run):
    """What the state of one run takes."""
    state = jax.eval_shape(run.init, jax.random.key(0), run.hparams(run.config))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state) if leaf.dtype != state.key.dtype)


def test_a_step_of_dfa_costs_what_its_products_cost():
    batch, inputs, width, depth, classes, steps = 32, 128, 16, 3, 10, 4
    task = jc.tasks.teacher(classes=classes, inputs=inputs, train_size=batch * steps, test_size=8)
    network = jc.ladder_mlp(depth=depth, width=width)
    run = make_run(jc.Config(task=task, network=network, credit=jc.dfa(), batch_size=batch, epochs=7))
    cost = cost_of(run, ("dfa",), 5)
    assert (cost.labels, cost.runs, cost.epochs) == (("dfa",), 5, 7)
    forward = inputs * width + depth * width * width + width * classes
    # Weight gradients of all, nothing of the forward pass taken again; delta_L through the readout; e_T B_l.
    backward = inputs * width + depth * width * width + width * classes + width * classes
    feedback = (depth + 1) * classes * width
    evaluation = 2 * 8 * forward
    by_hand = steps * 2 * batch * (forward + backward + feedback) + evaluation
    assert cost.flops == pytest.approx(by_hand, rel=0.05)  # the readout may be taken once more or once less
    assert cost.held_bytes >= held_bytes(run)


def test_how_many_runs_fit_and_how_long_they_take():
    cost = Cost(("a",), runs=10, epochs=3, flops=2e9, held_bytes=30, scratch_bytes=70, shared_bytes=350)
    device = Device(memory=1000, flops=1e9, count=4)
    for width, most in ((None, 6), (1, 19), (4, 12), (7, 6)):  # 650 bytes for 100 each, or for 30 each and 70 a turn
        one = cost._replace(width=width)
        assert one.per_device(device) == most
        assert one.of_device(most) <= device.memory < one.of_device(most + 1)
    assert cost.seconds(device) == 3 * 3 * 2e9 / (1e9 * 0.5)
    assert cost.per_device(device._replace(memory=100)) == 0


def test_plan_runs_nothing(tmp_path, capsys):
    from test_command import tiny_experiment

    args = ["--results-dir", str(tmp_path), "--no-progress", "--plan", "--device-gib", "80", "--device-gflops", "60000"]
    main(tiny_experiment(), [*args, "--devices", "8"])
    shown = capsys.readouterr().out
    assert "8 devices with 80.0 GiB" in shown and "frozen" in shown and "runs/device" in shown
    assert not list(tmp_path.iterdir())


def test_snapshots_that_are_still_to_be_trained_are_planned_and_no_run_takes_less_than_its_state(tmp_path):
    net = tiny(jc.bp(), epochs=3)
    fitted = tiny(small(jc.vector_field), trains="nothing", epochs=2)
    line = Variant("field", fitted, start=Snapshot(net, 3))
    programs = plan_sweep([line], [0, 1], Folder(tmp_path, "planned", "quick"))
    assert [(p.labels, p.runs, p.epochs) for p in programs] == [(("snapshot",), 2, 3), (("field",), 2, 2)]
    assert all(p.held_bytes >= held_bytes(make_run(c)) for p, c in zip(programs, (net, fitted), strict=True))
    assert not list(tmp_path.iterdir())


@parts.task(jc.image_mlp(depth=2, width=16))
def black_images() -> jc.Task:
    """2,048 black images of CIFAR-10's shape, which all runs share."""
    pixels, labels = np.zeros((2048, 32, 32, 3), np.uint8), np.zeros(2048, np.int32)
    return image_task("cifar10", jc.Data(pixels, labels, pixels[:64], labels[:64]), crops=True, flips=True)  # type: ignore[arg-type]


def test_what_runs_share_is_not_counted_as_theirs():
    run = make_run(tiny(jc.dfa(), task=black_images(), network=jc.image_mlp(depth=2, width=16)))
    cost = cost_of(run)
    assert cost.shared_bytes == (2048 + 64) * (32 * 32 * 3 + 4)
    assert held_bytes(run) <= cost.held_bytes and cost.held_bytes + cost.scratch_bytes < cost.shared_bytes


def test_programs_are_shown_by_their_first_line():
    assert [shown(()), shown(("a",)), shown(("a", "b", "c"))] == ["", "a", "a +2"]


def test_time_is_told_apart_by_scope_and_by_kind():
    w, x = jnp.ones((64, 64)), jnp.ones((3, 64, 64))

    def program(x):
        with jax.named_scope("first"):
            x = jax.lax.map(lambda y: y @ w, x)
        with jax.named_scope("second"), jax.named_scope("inner"):
            return jnp.sin(x) @ w, jnp.cos(x[0]) + 1

    compiled = jax.jit(program).lower(x).compile()
    scopes = (("first",), ("second", "inner"), ("second",), ("third",))
    spent = time_by_scope(compiled, lambda: jax.block_until_ready(compiled(x)), scopes)
    assert list(spent) == ["first", "second inner", "second", "third", "other"]
    assert spent["first"][0] > 0 and min(spent["second inner"]) > 0
    assert spent["second"] == [0, 0] == spent["third"]
