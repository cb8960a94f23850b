"""Parts: settings from annotations, documentation from docstrings, and which part fits where."""

import json
from collections.abc import Callable
from typing import Annotated, Any, Literal

import jax
import numpy as np
import pytest
from helpers import as_part, first_batch, refused, same_bits, tiny, variant

import jcredit as jc
from jcredit.config import config_hash, described, static_key
from jcredit.parts import Arrays, Part
from jcredit.settings import Added
from jcredit.training import make_run

# --- settings ---------------------------------------------------------------------------------------------------------


@jc.estimator
def mine(
    rank: jc.Count = 4,
    holes: jc.Size = 0,
    rate: jc.Positive = 1e-2,
    decay: jc.NonNegative = 0.0,
    share: jc.Fraction = 0.5,
    shift: jc.Swept = -1.0,
    threshold: float = 0.1,
    how: Literal["fast", "slow"] = "fast",
    order: Literal[1, 2] = 1,
    loud: bool = False,
    name: str = "x",
    inner: Part = jc.mlp(hidden=8),  # noqa: B008
    other: Part | None = None,
) -> jc.Estimator:
    """A broadcast with every kind of setting.

    Args:
      rank: of nothing,
        told on two lines.
      rate: a swept number.

    Raises:
      Nothing: at all.
    """
    estimator = jc.broadcast().build()
    return estimator._replace(credit=lambda *args: estimator.credit(*args) * (rate - shift))


def test_the_annotation_says_what_a_setting_is():
    settings = mine.settings
    assert list(settings) == list(mine().settings) and mine().kind == "estimator"
    swept = {name for name, setting in settings.items() if setting.swept}
    assert swept == {"rate", "decay", "share", "shift"}
    assert settings["how"].choices == ("fast", "slow") and settings["order"].choices == (1, 2)
    assert mine().settings["rate"] == 0.01 and mine(rate=1).settings["rate"] == 1.0
    assert isinstance(mine(rate=np.float32(2)).settings["rate"], float)
    assert isinstance(mine(threshold=1).settings["threshold"], float)


def test_documentation_comes_from_the_docstring():
    docs = {name: setting.doc for name, setting in mine.settings.items()}
    assert docs["rank"] == "of nothing, told on two lines." and docs["rate"] == "a swept number."
    assert docs["holes"] == "" and not any("Nothing" in doc for doc in docs.values())
    assert mine.__doc__ and getattr(mine, "__name__") == "mine"  # noqa: B009  # help(mine) works


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(rank=0), "rank=0 must be positive"),
        (dict(holes=-1), "holes=-1 must be zero or more"),
        (dict(rate=0.0), r"rate=0\.0 must be positive"),
        (dict(decay=-1.0), r"decay=-1\.0 must be zero or more"),
        (dict(share=1.1), r"share=1\.1 must lie between 0 and 1"),
        (dict(shift=np.nan), "shift=nan is not finite"),
        (dict(threshold=np.inf), "threshold=inf is not finite"),
        (dict(how="fsat"), "how='fsat' is unknown; choose one of: fast, slow"),
        (dict(order=3), "order=3 is unknown; choose one of: 1, 2"),
        (dict(order=True), "order=True is unknown"),
        (dict(loud=1), "loud=1 must be True or False"),
        (dict(name=1), "name=1 must be of type str"),
        (dict(inner=jc.mlp), "inner=.* must be of type Part; call its factory"),
        (dict(inner=None), "inner=None must be of type Part"),
        (dict(ranks=1), "test_parts.mine: setting 'ranks' is unknown; did you mean 'rank'"),
    ],
)
def test_values_are_checked_where_they_are_given(settings, message):
    refused(lambda: mine(**settings), message)
    refused(lambda: mine().replace(**settings), message)
    refused(
        lambda: tiny(mine()).replace(**{f"credit.{name}": value for name, value in settings.items()}),
        "is unknown|must be|must lie|finite",
    )


def test_a_setting_without_a_type_is_refused_when_it_is_declared():
    with pytest.raises(TypeError, match=r"untyped: setting 'rank' needs a type, such as jc\.Count or jc\.Positive"):

        @jc.estimator
        def untyped(rank=4): ...

    with pytest.raises(TypeError, match="open_ended: setting 'rest' needs a type"):

        @jc.estimator
        def open_ended(**rest: int): ...


@pytest.mark.parametrize(
    "annotation", [Callable, np.ndarray, jax.Array, complex, Any, list[int], Literal[1, "a"], Literal["a"] | None]
)
def test_a_setting_of_a_type_that_no_row_can_hold_is_refused_when_it_is_declared(annotation):
    def own(choice=None): ...

    own.__annotations__ = {"choice": annotation}
    with pytest.raises(
        TypeError, match=r"own: setting 'choice' of type .* cannot be kept in a row; take a number, bool"
    ):
        jc.estimator(own)


def test_a_tuple_of_numbers_is_a_setting():
    @jc.estimator
    def layered(widths: tuple[int, ...] = (32, 32)) -> jc.Estimator:
        assert len(widths) > 1
        return jc.broadcast().build()

    key = lambda part: variant(credit=part).hash  # noqa: E731
    assert key(layered()) == key(layered((32, 32))) != key(layered((32, 16)))
    with pytest.raises(jc.ConfigError, match="widths=3 must be of type tuple"):
        layered(3)


def test_positional_only_parameters_are_no_settings():
    @jc.network
    def net(sizes: jc.Sizes, /, depth: jc.Count = 2) -> Any:
        return sizes, depth

    assert list(net.settings) == ["depth"]
    assert net(depth=3).build(jc.Sizes((5,), 2)) == (jc.Sizes((5,), 2), 3)

    @jc.task(net())
    def data(data_dir: str | None, /, size: jc.Count = 3) -> Any:
        return data_dir, size

    assert data().build("here") == ("here", 3) and jc.Config(task=data()).network == net()

    @jc.task(net())
    def without() -> Any:
        return "nothing was handed over"

    assert without().build("here") == "nothing was handed over"


def test_parts_among_settings_are_built_with_traced_numbers():
    @jc.trunk
    def scaled(scale: jc.Positive = 2.0) -> Any:
        return scale

    @jc.estimator
    def outer(inner: Part, factor: jc.Swept = 3.0) -> Any:
        return factor * inner.build()

    part = outer(inner=scaled(scale=5))
    assert part.numbers() == {"factor": 3.0, "inner": {"scale": 5.0}}
    assert part.build() == 15
    program = jax.jit(lambda numbers: part.build(numbers=numbers))
    assert program({"factor": 2.0, "inner": {"scale": 0.5}}) == 1 and program(part.numbers()) == 15


def test_an_own_swept_setting_is_traced_and_a_static_one_is_not():
    config = tiny(mine(), optimizer="sgd")
    run = make_run(config)
    key, seen = jax.random.key(0), []

    def credit(key, hp):
        seen.append(1)
        state, data = run.init(key, hp), run.data(key, hp)
        return run.step(state, hp, data, first_batch(config))[0]

    program = jax.jit(credit)
    results = [program(key, run.hparams(config.replace(**{"credit.rate": rate}))) for rate in (0.1, 0.2)]
    assert len(seen) == 1 and not same_bits(*results)
    assert static_key(config) == static_key(config.replace(rate=0.5))
    assert static_key(config) != static_key(config.replace(threshold=0.5))


def test_a_part_shows_what_was_changed():
    assert repr(mine()) == "test_parts.mine()"
    assert repr(mine(rank=3, how="slow")) == "test_parts.mine(rank=3, how='slow')"
    assert repr(jc.exact_terminal(jc.fa(scale=2))) == "exact_terminal(of=fa(scale=2.0))"
    assert mine() == mine(rank=4) != mine(rank=5) and len({mine(), mine(rank=4), mine(rank=5)}) == 2


def test_a_setting_that_was_added_later_leaves_old_keys_as_they_were():
    @jc.trunk
    def later(hidden: jc.Count = 8, sharpness: Annotated[jc.Positive, Added(1.0)] = 2.0) -> Any: ...

    assert "sharpness" not in later(sharpness=1.0).described("key")
    assert later(sharpness=1.0).described("full")["sharpness"] == 1.0
    assert later().described("key")["sharpness"] == 2.0
    assert later() != later(sharpness=1.0) and later.settings["sharpness"].swept


def test_arrays_are_equal_by_their_contents():
    one, same = (Arrays((np.arange(4), np.ones(2))) for _ in range(2))
    for other in (
        Arrays((np.arange(4), np.zeros(2))), Arrays((np.arange(4.0), np.ones(2))), Arrays((np.arange(4),)),
        Arrays((np.arange(4).reshape(2, 2), np.ones(2))),
    ):  # fmt: skip
        assert one != other and one.digest != other.digest
    assert one == same and hash(one) == hash(same)


# --- own rules --------------------------------------------------------------------------------------------------------


def test_an_own_rule_is_that_rule():
    @jc.rule
    def doubled(eta: jc.Positive = 0.5) -> jc.LocalRule:
        return jc.LocalRule(lambda h, after, a: a, lambda h, after, goal: 2 * eta * goal / goal.shape[0])

    results = []
    for rule in (doubled(), jc.inner_product()):
        config = tiny(jc.dfa(), rule=rule)
        run = make_run(config)
        hp, key = run.hparams(config), jax.random.key(0)
        state, data = run.init(key, hp), run.data(key, hp)
        results.append(jax.jit(run.step)(state, hp, data, first_batch(config))[0])
    assert same_bits(*results)  # 2 x 0.5 = 1, exactly
    assert described(tiny(rule=doubled()))["rule"]["eta"] == 0.5


def test_an_own_part_of_another_kind_is_refused():
    refused(lambda: jc.Config(credit=as_part(jc.rule, None)), "is no estimator; rules are given as rule=; give one")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: jc.vector_field(trunk=jc.dfa()), r"trunk=dfa\(\) is no trunk but a part of kind estimator"),
        (lambda: jc.exact_terminal(of=jc.mlp()), r"of=mlp\(\) is no estimator but a part of kind trunk"),
        (lambda: jc.tasks.teacher(teacher_network=jc.dfa()), "teacher_network=dfa.* is no network"),
        (lambda: jc.vector_field(trunk=jc.mlp), "must be of type Part; call its factory"),
        (lambda: make_run(jc.dfa()), r"make_run\(dfa\(\)\): give a jc.Config, such as jc.Config\(credit="),
    ],
)
def test_a_part_of_another_kind_is_refused_where_it_is_given(make, message):
    with pytest.raises(jc.ConfigError, match=message):
        make()


def test_a_setting_added_later_leaves_the_keys_of_runs_that_do_not_use_it():
    before = jc.Config(task=jc.tasks.lq(), network=jc.lq_dynamics(), trains="nothing", steps_per_epoch=2)
    text = json.dumps(described(before, "key"))
    for name in ("near", "spread", "target"):  # added after rows had been made; all at what was there before
        assert f'"{name}"' not in text and f'"{name}"' in json.dumps(described(before))
    keys = {config_hash(before.replace(**{path: value})) for path, value in (
        ("network.near", "identity"), ("network.spread", 0.2), ("task.target", "fixed")
    )}  # fmt: skip
    assert len(keys | {config_hash(before)}) == 4
    assert config_hash(before.replace(spread=0.1, near="isometry", target="independent")) == config_hash(before)
