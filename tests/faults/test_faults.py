"""Nothing is lost and no bit changes, whatever happens to the command: the short form of the suite.

pytest -m faults                                        # this file, its slower half too
python tests/faults/tally.py --seed 0 --moments 200     # the whole, with its tally in results/reliability
"""

import harness
import numpy as np
import pytest
import tally

pytestmark = [pytest.mark.faults, pytest.mark.xdist_group("faults")]  # one zygote, one after the other


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    workshop = harness.Workshop(tmp_path_factory.mktemp("faults"))
    yield workshop
    workshop.close()


@pytest.fixture(scope="module")
def references(shop):
    """The undisturbed run of some lines, once."""
    found = {}

    def reference(lines):
        if lines not in found:
            found[lines] = harness.undisturbed(shop, lines)
        return found[lines]

    return reference


@pytest.mark.parametrize("lines", [("dfa",), *(pytest.param(c, marks=pytest.mark.slow) for c in harness.CHAINS[1:])])
def test_a_chain_of_kills_ends_in_the_same_rows(shop, references, tmp_path, lines):
    deaths = []
    rng = np.random.default_rng([7, len(lines)])
    for i in range(3):  # a chain ends by itself where its moment never comes
        harness.chain_of_kills(shop, references(lines), tmp_path / str(i), rng, 3 - len(deaths), deaths)
    assert len(deaths) > 0


QUICK = ("SIGTERM", "no space from a write on")


@pytest.mark.parametrize(
    "case", [case if case in QUICK else pytest.param(case, marks=pytest.mark.slow) for case in harness.CASES]
)
def test_what_happens_to_a_process_is_said_and_nothing_is_lost(shop, references, tmp_path, case):
    if case == "full file system" and not harness.can_mount(tmp_path / "mounted"):
        pytest.skip("needs the right to mount a file system")
    harness.CASES[case](shop, references(("dfa",)), tmp_path / "results", np.random.default_rng(0))


@pytest.mark.parametrize(
    "how", ["a flipped bit", *(pytest.param(h, marks=pytest.mark.slow) for h in harness.DAMAGES[1:])]
)
@pytest.mark.parametrize(
    "what", [pytest.param(w, marks=pytest.mark.slow if w == "kept network" else ()) for w in harness.CORRUPTIONS]
)
def test_a_damaged_file_is_named_and_never_used(shop, references, tmp_path, what, how):
    act, lines = harness.CORRUPTIONS[what]
    act(shop, references(lines), tmp_path / "results", how, np.random.default_rng(0))


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


def test_the_page_says_what_was_counted():
    counted = {
        "command": "python x", "seed": 0, "moments_wanted": 9, "moments_killed": 7, "chains": 2, "rows_compared": 12,
        "rows_lost": 3, "rows_doubled": 5, "rows_different": 6, "killed_by_plan": {"clock": 7},
        "killed_while": {"epoch": 7}, "cases": {"SIGINT": 4}, "not_possible": {},
        "files_damaged": {"rows": {"truncated": 8}}, "failures": ["chain 1: bad"], "minutes": 1.0, "git_commit": "abc",
    }  # fmt: skip
    text = tally.page(counted)
    for line in ("| SIGKILLs wanted | 9 |", "| rows lost | 3 |", "| SIGINT | 4 |", "- chain 1: bad"):
        assert line in text
