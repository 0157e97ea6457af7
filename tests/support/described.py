"""Servers against their OpenAPI descriptions: requests that follow one, and requests that do not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode

MODES = list(GenerationMode)
SETTINGS = settings(
    max_examples=25,
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


def check_operation(
    url: str,
    method: str,
    path: str,
    *,
    modes: Sequence[GenerationMode] = MODES,
    amend: Callable[[Case], None] = lambda _: None,
    **options: Any,
) -> list[tuple[Case, int]]:
    """Send generated requests to one operation, valid and invalid ones, and hold each answer to the description; the
    requests with the statuses of their answers.
    """
    answered = []
    operation = schemathesis.openapi.from_url(url + "/openapi.json")[path][method]

    @SETTINGS
    @given(case=st.one_of([operation.as_strategy(mode) for mode in modes]))
    def check(case: Case) -> None:
        amend(case)
        answered.append((case, case.call_and_validate(**options).status_code))

    check()
    return answered
