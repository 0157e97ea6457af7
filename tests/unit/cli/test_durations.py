"""Durations on the command line."""

from __future__ import annotations

import pytest
import typer

from quorin.cli.durations import seconds


@pytest.mark.parametrize(
    ("text", "expected"),
    [("500ms", 0.5), ("1s", 1), ("0.5s", 0.5), ("10m", 600), ("1h30m", 5400), ("2d", 172800), ("0s", 0)],
)
def test_a_duration_is_a_number_and_a_unit(text: str, expected: float) -> None:
    assert seconds(text) == expected


@pytest.mark.parametrize("text", ["", "5", "s", "-1s", "1 s", "1sec", "1s!", "1e3s", "٣s" + "x"])
def test_anything_else_is_refused_with_what_was_expected(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="expected a duration such as"):
        seconds(text)
