"""Nothing is lost and no bit changes, whatever happens to the command: the short form of the suite.

pytest -m faults                                        # this file, its slower half too
python tests/faults/tally.py --seed 0 --moments 200     # the whole, with its tally in results/reliability
"""

import itertools
import os
import sys
from functools import cache, partial

import harness
import kills
import numpy as np
import pytest
import tally
from cases import CASES, can_mount
from damages import CORRUPTIONS, DAMAGES

pytestmark = pytest.mark.faults
GIT = """#!{python}
import sys, uuid
print({checkout!r} if "--show-toplevel" in sys.argv else uuid.uuid4().hex[:12])
"""
"""A git to which each call is after another commit, in a tree that is being edited."""


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """Somebody is at work in the checkout all the while."""
    tools = tmp_path_factory.mktemp("tools")
    (tools / "git").write_text(GIT.format(python=sys.executable, checkout=str(harness.HERE.parent.parent)))
    (tools / "git").chmod(0o700)
    workshop = harness.Workshop(tmp_path_factory.mktemp("faults"), PATH=f"{tools}{os.pathsep}{os.environ['PATH']}")
    yield workshop
    workshop.close()


@pytest.fixture(scope="module")
def references(shop):
    """The undisturbed run of some lines, once."""
    return cache(partial(harness.undisturbed, shop))


def slow_but(quick, every):
    """All of them, those that are not quick marked slow."""
    return [value if value in quick else pytest.param(value, marks=pytest.mark.slow) for value in every]


def test_a_commit_meanwhile_changes_no_row(shop, references, tmp_path):
    """Rows are compared by their commit too, and the children of one zygote run the same code."""
    assert shop.git_commit and shop.git_commit[12] == "+"
    assert shop.command(tmp_path, ("dfa",)).status == 0
    references(("dfa",)).check(tmp_path)
    assert shop.git_commit in harness.rows_file(tmp_path).read_text()


@pytest.mark.parametrize("lines", slow_but([("dfa",)], kills.CHAINS))
def test_a_chain_of_kills_ends_in_the_same_rows(shop, references, tmp_path, lines):
    deaths = []
    rng = np.random.default_rng([7, len(lines)])
    for i in range(3):  # a chain ends by itself where its moment never comes
        if len(deaths) < 3:
            kills.chain_of_kills(shop, references(lines), tmp_path / str(i), rng, 3, deaths)
    assert len(deaths) > 0


@pytest.mark.parametrize("name", slow_but(["SIGTERM", "no space from a write on"], CASES))
def test_what_happens_to_a_process_is_said_and_nothing_is_lost(shop, references, tmp_path, name):
    if name == "full file system" and not can_mount(tmp_path / "mounted"):
        pytest.skip(tally.NO_MOUNT)
    CASES[name].act(shop, references(CASES[name].lines), tmp_path / "results", np.random.default_rng(0))


QUICK = [(what, how) for what, how in DAMAGES if how == "a flipped bit" and what != "kept network"]


@pytest.mark.parametrize("damage", slow_but(QUICK, DAMAGES), ids=", ".join)
def test_a_damaged_file_is_named_and_never_used(shop, references, tmp_path, damage):
    what, how = damage
    kind = CORRUPTIONS[what]
    kind.act(shop, references(kind.lines), tmp_path / "results", how, np.random.default_rng(0))


def test_other_rows_are_found_out(shop, references, tmp_path):
    """The suite itself: a lost, a doubled and a changed row."""
    reference = references(("dfa",))
    path = harness.rows_file(tmp_path)
    path.parent.mkdir(parents=True)
    first, second = harness.rows_file(reference.results).read_text().splitlines()
    changed = first.replace('"epochs": 3', '"epochs": 4', 1)
    assert changed != first
    for lines, counts in (([first], (1, 0, 0)), ([first, second, second], (0, 1, 0)), ([changed, second], (0, 0, 1))):
        path.write_text("\n".join(lines) + "\n")
        with pytest.raises(harness.Differ) as raised:
            reference.check(tmp_path)
        assert (raised.value.lost, raised.value.doubled, raised.value.different) == counts


# --- the tally --------------------------------------------------------------------------------------------------------


def done(item, killed=0, differ=(0, 0, 0), failure=None):
    lost, doubled, different = differ
    return {
        "name": item.name, "kind": item.kind, "kills": [["clock", "epoch"]] * killed, "rows": 2, "lost": lost,
        "doubled": doubled, "different": different, "failure": failure, "seconds": 1.0, "git_commit": "abc",
    }  # fmt: skip


def test_a_tally_that_was_cut_off_goes_on_where_it_was(tmp_path):
    def names(out, stop=10**9):
        found, counted = [], tally.Tally(out, 0, 9, 1)
        for item in counted.left():
            if len(found) == stop:
                break
            found.append(item.name)
            counted.add(done(item, 4 if item.kind == ["chain"] else 0))
        return found

    whole = names(tmp_path / "whole")
    assert [name for name in whole if name.startswith("chain")] == ["chain 0", "chain 1", "chain 2"]
    assert len(whole) == len(set(whole)) == 3 + len(DAMAGES) + len(CASES)
    parts = [names(tmp_path / "parts", stop) for stop in (1, 4, 10**9)]
    assert len(parts[0]) == 1 and len(parts[1]) == 4 and sorted(itertools.chain(*parts)) == sorted(whole)
    assert (
        not names(tmp_path / "whole")
        and (tmp_path / "parts/README.md").read_text() == (tmp_path / "whole/README.md").read_text()
    )


def test_the_page_says_what_was_counted():
    items = [
        done(tally.chain(0, 9), 7, (3, 0, 0), "bad"), done(tally.chain(1, 9), 1, (0, 5, 0)),
        *(done(item, item.name.startswith("a cluster's")) for item in tally.others(2)),
    ]  # fmt: skip
    text = tally.page(tally.summary(items, 0, 9, 2))
    on_clusters = 2 * sum(name.startswith("a cluster's") for name in CASES)
    for line in (
        "| SIGKILLs of the command wanted | 9 |", "| done, in 2 chains of restarts | 8 |", "| rows lost | 3 |",
        f"| SIGKILLs of a worker of a two-worker cluster | {on_clusters} |", "| rows doubled | 5 |", "| SIGINT | 2 |",
        f"| clock | {8 + on_clusters} |", "| rows | 2 | 2 | 2 | 2 | 2 |", "- chain 0: bad",
        "| damages and cases that are still to be tried | 0 |",
    ):  # fmt: skip
        assert line in text, line
