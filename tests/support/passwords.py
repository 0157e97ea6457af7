"""URLs with passwords that nobody escaped, and texts that must hold nothing of them."""

from __future__ import annotations

import traceback

from hypothesis import strategies as st

LETTERS = "XZJ"
"""What passwords are made of, beside delimiters: in no other text that these tests meet."""
_DELIMITERS = "/?#@:%'\"& \n\t\\[]+;\N{ACCOUNT OF}"


def urls_with_passwords(*forms: str) -> st.SearchStrategy[str]:
    """URLs of these forms with a password in the place of ``PASSWORD``. In a form without ``@`` it has none either."""
    letters = st.text(LETTERS, min_size=4, max_size=6)
    return st.one_of(
        st.lists(letters | st.text(_delimiters_of(form), max_size=2), min_size=1, max_size=4)
        .map("".join)
        .filter(lambda text: set(text) & set(LETTERS))
        .map(lambda text, form=form: form.replace("PASSWORD", text))
        for form in forms
    )


def _delimiters_of(form: str) -> str:
    """An ``@`` in a password that no other one follows makes the rest a host, to everybody."""
    return _DELIMITERS if "@" in form else _DELIMITERS.replace("@", "")


def without_password(text: object) -> str:
    """A text, or the one of an error and of all that it stems from, that has been looked through."""
    shown = "".join(traceback.format_exception(text, limit=0)) if isinstance(text, BaseException) else str(text)
    assert not set(shown) & set(LETTERS), shown
    return shown
