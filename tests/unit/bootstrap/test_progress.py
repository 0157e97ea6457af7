"""The bar that callers show for long work, and what there is without tqdm."""

from __future__ import annotations

import sys

import pytest
from structlog.testing import capture_logs

from quorin.engine.bootstrap import progress as module
from quorin.hydration import progress_bar


def test_a_bar_goes_to_the_total_that_the_work_tells(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("hydrating") as progress:
        progress(3, 10)
        progress(10, 10)
    shown = capsys.readouterr().err
    assert "hydrating: 100%" in shown
    assert "10.0/10.0" in shown


def test_work_without_a_total_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("replacing") as progress:
        progress(3)
        progress(7)
    assert "replacing: 7.00" in capsys.readouterr().err


def test_without_tqdm_progress_is_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    monkeypatch.setattr(module, "LOG_SECONDS", 0.0)
    with capture_logs() as logs, progress_bar("hydrating") as progress:
        progress(3, 10)
    assert [(log["event"], log["what"], log["done"], log["total"]) for log in logs] == [
        ("progress", "hydrating", 3, 10)
    ]
