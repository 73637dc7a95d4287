"""Roles of docstrings, such as ``:class:`~a.b.C```, become code on the site, which has no such markup."""

from __future__ import annotations

import re
from typing import Any

_ROLE = re.compile(r":(?:class|data|func|meth|mod):<code>~?(?:[\w.]+\.)?(\w+)</code>")


def on_page_content(html: str, **_: Any) -> str:
    """The page without them.

    Args:
        html: Of the page.
        **_: What MkDocs hands over besides.
    """
    return _ROLE.sub(r"<code>\1</code>", html)
