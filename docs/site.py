"""Pages of the site that are made of what the repository holds, when MkDocs builds it; no copies are committed.

Experiments (docstring, presets, tables, figures, script), examples, the ledger of claims, the reference of every
module, and the long texts beside the code.  Links that lead out of a text into the repository, and work there, are
turned to the page that shows the same thing; one that no page shows is a warning, which ends the build.
"""

from __future__ import annotations

import ast
import logging
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

log = logging.getLogger("mkdocs.hooks.site")
LINK = re.compile(r"(\]\()([^)#\s]+)((?:#[^)\s]*)?\))")
ROOMS = {"report": "Rows, tables, figures", "sweeps": "Sweeps", "study": "The study"}
TEXTS = {  # file of the repository: its page
    "README.md": "index.md",
    "results/CLAIMS.md": "claims.md",
    "results/benchmark/README.md": "benchmark.md",
    "results/online/README.md": "online.md",
    "experiments/SCALING.md": "scaling.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
}


def on_files(files: Any, config: Any) -> Any:
    """Adds the generated pages and figures, and writes them into the navigation where it names their folder."""
    pages = dict(generated())
    for uri, content in pages.items():
        files.append(File.generated(config, uri, content=content))
    for path, uri in figures():
        files.append(File.generated(config, uri, abs_src_path=str(path)))
    config.nav = [unfolded(item, pages) for item in config.nav]
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """A written page with its links into the repository turned; generated ones have theirs turned already."""
    source = page.file.abs_src_path
    return relinked(markdown, Path(source).parent, page.file.src_uri) if source else markdown


# --- what there is ----------------------------------------------------------------------------------------------------


def generated() -> Iterator[tuple[str, str]]:
    """(address, Markdown) of every page that is made here."""
    from jcredit.study.scripts import load_experiments

    found = load_experiments(ROOT / "experiments")
    yield "experiments/index.md", experiments_index(found)
    for name, experiment in found.items():
        yield f"experiments/{name}.md", experiment_page(name, experiment)
    examples = sorted((ROOT / "experiments/examples").glob("*.py"))
    yield "examples/index.md", examples_index(examples)
    for path in examples:
        yield f"examples/{path.stem}.md", example_page(path)
    for source, uri in TEXTS.items():
        if uri != "index.md":
            path = ROOT / source
            yield uri, relinked(path.read_text(encoding="utf-8"), path.parent, uri)
    yield "reference/index.md", reference_index()
    for module in modules():
        yield f"reference/{module}.md", f"# {module}\n\n::: {module}\n"


def figures() -> Iterator[tuple[Path, str]]:
    """(file, address) of the figure of every experiment and preset, and of every finding."""
    for path in sorted([*(ROOT / "results").glob("*/*/figure.png"), *(ROOT / "results/findings").glob("*.png")]):
        yield path, page_of(path) or path.name


def modules() -> list[str]:
    """Every module of the package that has something to say, in the order of their names."""
    paths = sorted((ROOT / "jcredit").rglob("*.py"))
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths if path.name != "__init__.py"]
    return sorted(names, key=lambda name: (name.split(".")[1] in ROOMS, name))


def unfolded(item: Any, pages: dict[str, str]) -> Any:
    """An entry of the navigation; a folder's name stands for the pages in it, its index first."""
    if isinstance(item, dict):
        title, inner = next(iter(item.items()))
        if isinstance(inner, list):
            return {title: [unfolded(entry, pages) for entry in inner]}
        if inner.endswith("/"):
            return {title: [uri for uri in pages if uri.startswith(inner)]}
    return item


# --- pages ------------------------------------------------------------------------------------------------------------


def experiments_index(found: dict[str, Any]) -> str:
    """A line for each experiment: what it asks, of which phase and claims."""
    lines = [f"| [{name}]({name}.md) | {escaped(e.question)} | {e.phase} |" for name, e in found.items()]
    head = "| experiment | question | phase, claims |\n|---|---|---|"
    note = "What ids such as LD1 claim is in [the mathematics, section 10](../method.md#10-claims-of-the-study)."
    return "# Experiments\n\n" + "\n".join([head, *lines]) + f"\n\n{note}\n"


def experiment_page(name: str, experiment: Any) -> str:
    """Docstring, presets, then figure and table of every preset that has rows, and the script."""
    uri, script = f"experiments/{name}.md", ROOT / f"experiments/{name}.py"
    presets = [
        f"| {preset} | {len(p.variants)} | {len(p.seeds)} | {p.minutes} |" for preset, p in experiment.presets.items()
    ]
    head = "| preset | configurations | seeds | on two cores |\n|---|---:|---:|---|"
    parts = [f"# {name}", prose(experiment.doc or experiment.question), "\n".join([head, *presets])]
    for table in sorted((ROOT / "results" / name).glob("*/table.md")):
        parts.append(f"## Preset {table.parent.name}")
        if (table.parent / "figure.png").exists():
            parts.append(f"![Figure of {name}, preset {table.parent.name}](../figures/{name}-{table.parent.name}.png)")
        demoted = re.sub(r"^#", "##", table.read_text(encoding="utf-8"), flags=re.M)
        parts.append(relinked(demoted, table.parent, uri))
    return "\n\n".join([*parts, listing(script)]) + "\n"


def examples_index(paths: list[Path]) -> str:
    """A line for each example."""
    lines = [f"- [{path.stem}]({path.stem}.md): {escaped(docstring(path).splitlines()[0])}" for path in paths]
    return "# Examples\n\nEach is one file, `python experiments/examples/NAME.py`, and is run in CI.\n\n" + "\n".join(
        [*lines, ""]
    )


def example_page(path: Path) -> str:
    """What an example shows, and its code."""
    code = path.read_text(encoding="utf-8")
    end = ast.parse(code).body[0].end_lineno or 0
    body = "\n".join(code.splitlines()[end:]).strip()
    return f"# {path.stem}\n\n{prose(docstring(path))}\n\n```python\n{body}\n```\n"


def reference_index() -> str:
    """The names of ``import jcredit as jc``, each with the module that documents it."""
    tree = ast.parse((ROOT / "jcredit/__init__.pyi").read_text(encoding="utf-8"))
    lines = []
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module:
            lines += [f"- [`jc.{alias.name}`][{defined(node.module, alias.name)}]" for alias in node.names]
    tasks = ast.parse((ROOT / "jcredit/tasks/__init__.py").read_text(encoding="utf-8"))
    for node in tasks.body:
        if isinstance(node, ast.ImportFrom) and node.module:
            lines += [f"- [`jc.tasks.{alias.name}`][{node.module}.{alias.name}]" for alias in node.names]
    checks = [
        f"- [`jc.testing.{name}`][jcredit.testing.{name}]"
        for name in ("check_estimator", "check_rule", "check_network", "check_task")
    ]
    intro = "All that a user needs is a name of `import jcredit as jc`. What each is, is said where it is defined."
    return "# The names\n\n" + intro + "\n\n" + "\n".join([*lines, *checks]) + "\n"


def defined(module: str, name: str) -> str:
    """Where a name that ``jcredit`` takes from a module is defined: there, or one package further down."""
    package = ROOT / "jcredit" / module.replace(".", "/") / "__init__.py"
    if package.exists():
        for node in ast.parse(package.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ImportFrom) and name in [alias.name for alias in node.names]:
                return f"{node.module}.{name}"
    return f"jcredit.{module}.{name}"


# --- text -------------------------------------------------------------------------------------------------------------


def docstring(path: Path) -> str:
    """A script's docstring."""
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


def listing(path: Path) -> str:
    """A script, folded."""
    code = "\n".join(f"    {line}".rstrip() for line in path.read_text(encoding="utf-8").splitlines())
    return f'??? note "{path.relative_to(ROOT)}"\n\n    ```python\n{code}\n    ```'


def prose(text: str) -> str:
    """A docstring as Markdown: stars and underscores are what they are, indented lines are code."""
    return "\n".join(line if line.startswith("    ") else escaped(line) for line in text.splitlines())


def escaped(line: str) -> str:
    """A line in which nothing but ``code`` is markup."""
    pieces = re.split(r"(`+[^`]+`+)", line)
    return "".join(p if p.startswith("`") else re.sub(r"([*_<|])", r"\\\1", p) for p in pieces)


def relinked(text: str, folder: Path, uri: str) -> str:
    """A text with its links into the repository turned to pages of the site.

    Args:
      text: Markdown whose links are relative to ``folder``.
      folder: of the file it comes from.
      uri: address of the page it becomes.
    """

    def turned(match: re.Match[str]) -> str:
        before, target, after = match.groups()
        if re.match(r"[a-z]+:", target):
            return match[0]
        path = Path(os.path.normpath(folder / target))
        page = page_of(path)
        if page is None:
            log.warning("%s: no page of the site shows %s", uri, path)
            return match[0]
        return before + os.path.relpath(page, Path(uri).parent).replace(os.sep, "/") + after

    return LINK.sub(turned, text)


def page_of(path: Path) -> str | None:
    """The address of the page, or the figure, that shows a file or a folder of the repository."""
    try:
        inside = path.relative_to(ROOT)
    except ValueError:
        return None
    if (text := TEXTS.get(str(inside))) is not None:
        return text
    match inside.parts:
        case ("docs", *rest) if path.exists():
            return "/".join(rest)
        case ("results",) | ("experiments",):
            return "experiments/index.md"
        case ("experiments", "examples"):
            return "examples/index.md"
        case ("jcredit", "__init__.pyi"):
            return "reference/index.md"
        case ("results", name, preset, "figure.png"):
            return f"figures/{name}-{preset}.png"
        case ("results", "findings", figure):
            return f"figures/findings-{figure}"
        case ("results", name, *_) if (ROOT / f"experiments/{name}.py").exists():
            return f"experiments/{name}.md"
        case ("experiments", "examples", script) if path.exists():
            return f"examples/{Path(script).stem}.md"
        case ("experiments", script) if path.exists():
            return f"experiments/{Path(script).stem}.md"
        case ("jcredit", *rest) if path.exists() and path.suffix == ".py":
            return f"reference/jcredit.{'.'.join(rest)[:-3]}.md"
    return None
