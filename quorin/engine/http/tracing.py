"""The trace that a request belongs to, if the package ``opentelemetry-api`` is installed."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from quorin.engine.http.reply import has_none_of
from quorin.logging import bind

if TYPE_CHECKING:
    from quorin.engine.http.reply import Headers


class TraceContext:
    """Continues the traces that headers of requests name, in the form that OpenTelemetry is set up for."""

    def __init__(self, context: Any, propagate: Any, trace: Any) -> None:
        self._context, self._propagate, self._trace = context, propagate, trace
        self._fields = frozenset(name.lower().encode() for name in propagate.get_global_textmap().fields)

    def enter(self, headers: Headers) -> ExitStack | None:
        """Make a request's trace the current one, and bind ``trace_id`` into what is logged, until the stack is closed.
        None if the headers name no trace.
        """
        if has_none_of(headers, self._fields):
            return None
        carrier: dict[str, list[str]] = {}
        for name, value in headers:
            if name in self._fields:
                carrier.setdefault(name.decode("latin-1"), []).append(value.decode("latin-1"))
        context = self._propagate.extract(carrier)
        span = self._trace.get_current_span(context).get_span_context()
        stack = ExitStack()
        stack.callback(self._context.detach, self._context.attach(context))
        if span.is_valid:
            stack.enter_context(bind(trace_id=f"{span.trace_id:032x}"))
        return stack


def trace_context() -> TraceContext | None:
    """None if the package is missing."""
    try:
        from opentelemetry import context, propagate, trace
    except ModuleNotFoundError:
        return None
    return TraceContext(context, propagate, trace)
