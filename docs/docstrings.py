"""A griffe extension: what looks like an HTML tag in a docstring, such as <a, v>, is text."""

import re

import griffe

SECTION = re.compile(r"^(Args|Attributes|Raises|Returns|Yields):$")


class PlainText(griffe.Extension):
    """Escapes the angles in docstrings, but for code."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        """Called for every object that has been loaded."""
        if obj.docstring:
            obj.docstring.value = plain(obj.docstring.value)


def plain(text: str) -> str:
    """A docstring without tags; ``code`` and, above the first section, indented lines stay as they are."""
    lines, inside = [], False
    for line in text.split("\n"):
        inside = inside or bool(SECTION.match(line))
        code = line.startswith("    ") and not inside
        pieces = re.split(r"(`+[^`]+`+)", line)
        lines.append(line if code else "".join(p if p.startswith("`") else p.replace("<", r"\<") for p in pieces))
    return "\n".join(lines)
