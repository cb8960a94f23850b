"""Pieces of HTML that the parts of the page share."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape


def opening(key: str, caption: str, header: Iterable[tuple[str, str]], kind: str = "lines") -> str:
    """A table up to its body, in a frame that scrolls and can be reached with the keyboard.

    Roles are said because narrow screens show the cells of some tables as blocks, which are no table to a reader.
    """
    heads = "".join(
        f'<th scope="col" aria-sort="none"><button type="button">{title}{more}</button></th>' for title, more in header
    )
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-labelledby="{key}-caption">'
        f'<table class="{kind}" role="table">'
        f'<caption id="{key}-caption">{caption}</caption><thead><tr>{heads}</tr></thead><tbody role="rowgroup">'
    )


def hidden(text: str) -> str:
    """Text for those who listen to a page."""
    return f'<span class="vh"> {escape(text)}</span>'
