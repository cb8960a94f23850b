"""Where rows come from, in the notes below their table: code, devices, options of JAX, data, other experiments."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from jcredit.report.schema import Row

SHOWN_LABELS = 5


def origins(rows: Sequence[Row]) -> list[str]:
    """What a reader should know before comparing them; of rows that all come from one place, nothing."""
    told = (_commits_note, _versions_note, _devices_note, _numerics_note, _data_note, _copies_note)
    return [text for note in told for text in note(rows)]


def _commits_note(rows: Sequence[Row]) -> list[str]:
    """A note that rows come from more than one commit, each with its labels; rows of no known commit count as one."""
    commits: dict[str, dict[str, None]] = {}
    for row in rows:
        commits.setdefault(row.get("git_commit") or "an unknown one", {})[row["label"]] = None
    if len(commits) < 2:
        return []
    shown = ", ".join(f"{commit} ({_some(list(labels))})" for commit, labels in commits.items())
    return [f"Rows come from {len(commits)} commits of the code: {shown}."]


def _versions_note(rows: Sequence[Row]) -> list[str]:
    """Notes that rows of one kind of device come from more than one version of jcredit or JAX, each with its labels."""
    usual = Counter(_place(row)[0] for row in rows if row.get("device")).most_common(1)
    here = [row for row in rows if not row.get("device") or _place(row)[0] == usual[0][0]]
    notes = []
    for package, name in (("jcredit", "jcredit"), ("jax", "JAX")):
        found: dict[str, dict[str, None]] = {}
        for row in here:
            if version := row.get("versions", {}).get(package):
                found.setdefault(version, {})[row["label"]] = None
        if len(found) > 1:
            shown = ", ".join(f"{version} ({_some(list(labels))})" for version, labels in found.items())
            notes.append(f"Rows come from {len(found)} versions of {name}: {shown}.")
    return notes


def _numerics_note(rows: Sequence[Row]) -> list[str]:
    """Which lines were run with other options of JAX than those by default, float64 among them."""
    found: dict[str, dict[str, None]] = {}
    for row in rows:
        if options := row.get("numerics"):
            text = ", ".join(f"{name}={value}" for name, value in options.items())
            found.setdefault(text, {})[row["label"]] = None
    return [f"Run with {text}: {_some(list(labels))}." for text, labels in found.items()]


def _devices_note(rows: Sequence[Row]) -> list[str]:
    """Which lines were run elsewhere than most, at how many of their seeds: bits hang on the kind of device."""
    places = {id(row): _place(row) for row in rows if row.get("device")}
    devices = Counter(device for device, _ in places.values()).most_common()
    versions = Counter(version for _, version in places.values()).most_common(1)
    lines: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        lines.setdefault((row["label"], row.get("block", "")), []).append(row)
    labels = Counter(label for label, _ in lines)
    notes = []
    for place in dict.fromkeys(place for place in places.values() if place[0] != devices[0][0]):
        shown = []
        for (label, block), own in lines.items():
            there = sum(places.get(id(row)) == place for row in own)
            about = [block] * (labels[label] > 1) + [f"{there} of {len(own)} seeds"] * (there < len(own))
            shown += [f"{label} ({', '.join(about)})" if about else label] * (there > 0)
        device, version = place
        made_with = f" with JAX {version}" if version != versions[0][0] else ""
        notes.append(f"Run on {device}{made_with}, not on {devices[0][0]}: {_some(shown)}.")
    return notes


def _place(row: Row) -> tuple[str, str]:
    """The devices that a run was trained on, one after the other, and JAX's version."""
    devices = [device.removeprefix("cpu: ") for device in row["device"].split(", ")]
    return ", then ".join(devices), row.get("versions", {}).get("jax", "")


def _data_note(rows: Sequence[Row]) -> list[str]:
    """A warning that rows come from more than one copy of a data set; of rows that do not say, nothing is known."""
    copies: dict[tuple[str, str], dict[str, None]] = {}
    for row in rows:
        if data := row.get("data"):
            copies.setdefault((row["config"].get("task", {}).get("task", ""), data), {})[row["label"]] = None
    notes = []
    for task in dict.fromkeys(name for name, _ in copies):
        mine = {data[:8]: labels for (name, data), labels in copies.items() if name == task}
        if len(mine) > 1:
            shown = ", ".join(f"{data} ({_some(list(labels))})" for data, labels in mine.items())
            notes.append(f"Rows come from {len(mine)} different copies of {task}, do not compare them: {shown}.")
    return notes


def _copies_note(rows: Sequence[Row]) -> list[str]:
    """A note that rows were copied from other experiments, counted for each."""
    counts = Counter(row["from"] for row in rows if row.get("from"))
    if not counts:
        return []
    first, *others = (f"{n} row{'s are those' if n > 1 else ' is that'} of {place}" for place, n in counts.items())
    return ["; ".join([first, *others]) + "."]


def _some(labels: Sequence[str]) -> str:
    return ", ".join(labels if len(labels) <= SHOWN_LABELS else [*labels[: SHOWN_LABELS - 1], "..."])
