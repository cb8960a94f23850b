"""What cannot run is refused when it is built or traced, before anything is compiled."""

import re

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import as_part, refused, small, tiny

import jcredit as jc
from jcredit.checking import check_run
from jcredit.config import credit_depth
from jcredit.training import make_run


def test_batches_that_do_not_fit_the_data_are_refused():
    for changes in (dict(batch_size=64), dict(batch_size=8, steps_per_epoch=5)):
        refused(
            lambda changes=changes: make_run(tiny(**changes)),
            rf"batch_size={changes['batch_size']} .*does not fit the 32 training",
        )
    assert make_run(tiny(batch_size=8, steps_per_epoch=3)).steps_per_epoch == 3
    assert make_run(tiny(batch_size=9)).steps_per_epoch == 3  # the incomplete batch is left out
    fresh = tiny(task=jc.tasks.lq(), network=jc.lq_dynamics(depth=2))
    refused(lambda: make_run(fresh), "steps_per_epoch=0: task lq draws fresh samples")


def checked(config):
    return check_run(make_run(config))


def test_a_factory_that_returns_something_else_is_refused():
    refused(lambda: tiny(rule=as_part(jc.rule, 1)), "rule=.*: its factory must return a jc.LocalRule, not 1")
    refused(lambda: checked(tiny(network=as_part(jc.network, 3))), "network=.* must return a jc.Network, not 3")
    nothing = as_part(jc.task(jc.ladder_mlp(depth=2, width=8)), None)
    refused(lambda: checked(tiny(task=nothing)), "task=.* must return a jc.Task, not None")
    named = jc.broadcast().build()._replace(optimizer="adam")
    refused(lambda: tiny(as_part(jc.estimator, named)), "optimizer='adam' is none of optax")


def credit_of_shape(shape):
    broadcast = jc.broadcast().build()
    return as_part(jc.estimator, broadcast._replace(credit=lambda state, ctx, env, key: jnp.zeros(shape)))


def estimator_with_metrics(*names, value=1.0):
    loss = lambda state, ctx, env, key: (jnp.sum(state.params["w"]), dict.fromkeys(names, jnp.asarray(value)))  # noqa: E731
    init = lambda key, shapes: jc.EstState({"w": jnp.ones(2)}, {})  # noqa: E731
    return as_part(jc.estimator, jc.broadcast().build()._replace(init=init, loss=loss))


@pytest.mark.parametrize("shape", [(3, 8, 16), (4, 8, 15), (4, 8), ()])
def test_a_credit_of_another_shape_is_refused(shape):
    message = f"credit of helpers.as_part.<locals>.own has shape {shape}, not (4, 8, 16): give a_0..a_L, one for each"
    refused(lambda: checked(tiny(credit_of_shape(shape))), re.escape(message))


@pytest.mark.parametrize("dtype", ["int32", "bool", "complex64", "bfloat16"])
def test_a_credit_of_another_type_is_refused(dtype):
    broadcast = jc.broadcast().build()
    cast = broadcast._replace(credit=lambda *args: broadcast.credit(*args).astype(dtype))
    refused(lambda: checked(tiny(as_part(jc.estimator, cast))), f"is of type {dtype}, hidden states are float32: cast")


@pytest.mark.parametrize(
    "name",
    ["train_loss", "train_accuracy", "test_loss", "test_accuracy", "loss", "accuracy", "estimator_loss", "gamma",
     "rho_deep", "h_rms_last"],
)  # fmt: skip
def test_a_metric_that_bears_a_reported_name_is_refused(name):
    refused(lambda: checked(tiny(estimator_with_metrics("mine", name))), f"own returns a metric '{name}', which is a")
    checked(tiny(estimator_with_metrics("mine")))


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        (lambda p: {"v": p}, "returns a metric 'v' that is an array of shape (3,)"),
        (lambda p: {"v": {"w": p[0]}}, "returns a metric 'v' that is a dict"),
        (lambda p: {"v": "text"}, "returns a metric 'v' that is a str"),
        (lambda p: {0: p[0]}, "returns a metric 0 that is an array of shape ()"),
        (lambda p: {"a.b": p[0]}, "returns a metric 'a.b'; name it without the point"),
        (lambda p: {"dl_norm": p[0]}, "returns a metric 'dl_norm'; dl_ begins what followups measure"),
    ],
)
def test_a_metric_that_is_no_scalar_by_name_is_refused(metrics, said):
    mine = (
        jc.broadcast()
        .build()
        ._replace(
            init=lambda key, shapes: jc.EstState(jnp.ones(3), {}),
            loss=lambda state, ctx, env, key: (jnp.sum(state.params**2), metrics(state.params)),
        )
    )
    refused(lambda: checked(tiny(as_part(jc.estimator, mine))), re.escape(said))


@pytest.mark.parametrize(
    ("fact", "said"),
    [({"tier": 2}, "tier=2 must be a text"), ({"depth": 1.0}, "depth=1.0 must be a whole number, or a function of L")],
)
def test_a_fact_that_no_row_can_hold_is_refused_before_anything_runs(fact, said):
    refused(lambda: tiny(as_part(jc.estimator, jc.broadcast().build()._replace(**fact))), said)


@pytest.mark.parametrize(
    "credit", [jc.fa(), small(jc.tangent_chain), small(jc.tangent_mask), small(jc.linear_field, form="chain")]
)
def test_a_network_without_a_branch_is_refused_where_one_is_needed(credit):
    config = tiny(credit, task=jc.tasks.lq(state_size=16), network=jc.lq_dynamics(depth=2), steps_per_epoch=1)
    refused(lambda: checked(config), "the network has no branch")


@pytest.mark.parametrize("factory", [jc.tangent_gate, jc.tangent_mask, jc.tangent_coarse, jc.tangent_sweeps])
def test_more_tangents_than_a_batch_has_samples_are_refused(factory):
    refused(lambda: checked(tiny(factory(samples=1, shuffled=True))), "samples=1 with shuffled=True: .* at least 2")
    refused(lambda: checked(tiny(factory(samples=1000))), "samples=1000 of a tangent bridge exceeds a batch of 8; low")
    small_evaluation = tiny(factory(samples=8), diagnostic_samples=4)
    refused(lambda: checked(small_evaluation), "samples=8 of a tangent bridge exceeds a batch of 4")


def test_states_that_are_not_flat_are_refused():
    image = jc.image_mlp(depth=2, width=16).build(jc.Sizes((128,), 4))
    shaped = image._replace(embed=lambda params, x: image.embed(params, x).reshape(-1, 4, 4))
    config = tiny(network=as_part(jc.network, shaped))
    refused(lambda: checked(config), r"embed returned states of shape \(\d+, 4, 4\); .* flatten them")


def test_a_task_without_its_usual_network_is_refused_when_it_is_declared():
    with pytest.raises(TypeError, match=r"name the network that it is usually given, as @jc.task\(jc.image_mlp\(\)\)"):

        @jc.task
        def own():
            """Never made."""


def test_a_network_of_another_number_of_outputs_and_a_signal_of_another_shape_are_refused():
    image = jc.image_mlp(depth=2, width=16).build(jc.Sizes((128,), 4))
    wide = image._replace(readout=lambda params, h: jnp.tile(image.readout(params, h), 2))
    config = tiny(network=as_part(jc.network, wide))
    refused(lambda: checked(config), r"readout gives each sample an array of shape \(8,\), and the task has 4 outputs")
    total = jc.LocalRule(lambda h, after, a: a, lambda h, after, goal: goal.sum(-1))
    config = tiny(jc.dfa(), rule=as_part(jc.rule, total))
    refused(
        lambda: checked(config), r"local rule's signal has shape \(8,\) and type float32, not \(8, 16\) and float32"
    )


def test_more_samples_than_the_data_have_are_refused():
    x, y = np.zeros((8, 3), np.float32), np.arange(8) % 2
    task = jc.tasks.arrays(x, y, x, y).build(None)
    for changes, said in (
        (dict(train_size=16), "train_size=16, but its data have 8 training samples"),
        (dict(data=task.data._replace(test_y=y[:5])), r"test_x has shape \(8, 3\) and test_y \(5,\); give as many of"),
    ):
        part = as_part(jc.task(jc.image_mlp(depth=2, width=16)), task._replace(**changes))
        refused(lambda part=part: checked(tiny(task=part, batch_size=4)), said)


def test_a_step_that_changes_the_states_type_is_refused():
    growing = jc.dfa().build()._replace(update=lambda state, *seen: state._replace(extra=state.extra[:1]))
    config = tiny(as_part(jc.estimator, growing._replace(loss=lambda s, *rest: (jnp.sum(s.extra), {}))))
    refused(lambda: checked(config), r"a step turns state\.est_state\.extra from float32.* shapes and types must stay")


@pytest.mark.parametrize(
    ("update", "said"),
    [
        (lambda state, *seen: (state.params, state.extra), r"state\.est_state from CustomNode\(.*EstState.* into \("),
        (
            lambda state, *seen: jc.EstState(state.params, {"slow": state.extra}),
            r"state\.est_state from .* fields must stay",
        ),
    ],
)
def test_a_step_that_changes_the_states_fields_is_refused(update, said):
    changing = jc.dfa().build()._replace(update=update, loss=lambda state, *rest: (jnp.sum(state.extra), {}))
    refused(lambda: checked(tiny(as_part(jc.estimator, changing))), f"own: a step turns {said}")


def test_a_state_that_is_changed_in_place_is_refused():
    def counted(state):
        state.extra["calls"] = state.extra["calls"] + 1
        return state.extra["calls"]

    init = lambda key, shapes: jc.EstState({"w": jnp.ones(2)}, {"calls": jnp.zeros(())})  # noqa: E731
    mine, said = jc.broadcast().build()._replace(init=init), "changes the state it is handed; return what is to be kept"
    credit = lambda state, ctx, env, key: ctx.trace.h_KxBxD * counted(state)  # noqa: E731
    refused(lambda: checked(tiny(as_part(jc.estimator, mine._replace(credit=credit)))), f"credit of .*own {said}")
    loss = lambda state, ctx, env, key: (counted(state) * jnp.sum(state.params["w"]), {})  # noqa: E731
    refused(lambda: checked(tiny(as_part(jc.estimator, mine._replace(loss=loss)))), f"loss of .*own {said}")


def test_functions_that_do_not_take_what_they_are_called_with_are_refused():
    mine = jc.broadcast().build()
    short = mine._replace(credit=lambda state, ctx, env: ctx.trace.h_KxBxD)
    said = re.escape("own: credit(state, ctx, env) is called as credit(state, ctx, env, key); let it take these")
    refused(lambda: checked(tiny(as_part(jc.estimator, short))), said)
    refused(lambda: checked(tiny(as_part(jc.estimator, mine._replace(update=lambda state: state)))), "update.state. is")


def test_parameters_that_are_no_real_numbers_are_refused():
    whole = jc.broadcast().build()._replace(init=lambda key, shapes: jc.EstState({"n": jnp.zeros(3, int)}, {}))
    said = re.escape("own: state.params['n'] is of type int32; keep it in state.extra")
    refused(lambda: checked(tiny(as_part(jc.estimator, whole))), said)


def test_a_state_that_is_none_is_refused():
    config = tiny(as_part(jc.estimator, jc.dfa().build()._replace(init=lambda key, shapes: {"params": {}})))
    refused(lambda: checked(config), r"own: init returns a dict; return jc\.EstState\(params")


@pytest.mark.parametrize("depth", [2.0, True, lambda blocks: np.ceil(blocks / 2)])
def test_a_depth_that_is_no_whole_number_is_refused_before_anything_runs(depth):
    own = as_part(jc.estimator, jc.dfa().build()._replace(depth=depth))
    refused(lambda: tiny(own), r"own.*depth=.* must be a whole number, or a function of L that gives one")


def test_a_depth_may_be_numpys_or_not_stated_and_may_not_fail():
    with_depth = lambda depth: tiny(as_part(jc.estimator, jc.dfa().build()._replace(depth=depth)))  # noqa: E731
    assert credit_depth(with_depth(lambda blocks: np.maximum(blocks, 2))) == 3
    assert credit_depth(with_depth(lambda blocks: None)) is None
    refused(lambda: with_depth(lambda blocks: {}[blocks]), r"own.*its depth fails for L = 3 \(KeyError: 3\)")


def test_hparams_of_another_static_shape_are_refused():
    config = tiny(small(jc.scalar_bridge))
    run = make_run(config)
    free = config.replace(**{"credit.sigma": 0.3, "learning_rate": 0.1, "epochs": 7, "diagnose_every": 3})
    assert float(run.hparams(free).total_steps) == 28 and float(run.hparams(free).credit["sigma"]) == np.float32(0.3)
    for changes, named in (
        ({"depth": 2}, "network.depth=2 where the run has 3"),
        ({"batch_size": 4}, "batch_size=4 where the run has 8"),
        ({"noise_samples": 3}, "credit.noise_samples=3 where"),
        ({"credit": jc.dfa()}, "credit.estimator='dfa' where"),
        ({"classes": 5}, "task.classes=5 where"),
    ):
        refused(
            lambda changes=changes: run.hparams(config.replace(**changes)), f"{named}.*, and that decides its program"
        )
