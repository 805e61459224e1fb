"""Which trace a request belongs to, for programs that make traces by OpenTelemetry: W3C Trace Context, level 1.

Nothing is imported for it: a program that has a current span has loaded OpenTelemetry already.
"""

from __future__ import annotations

import sys


def trace_headers() -> dict[str, str]:
    """The header that names the caller's current span; none if there is no such span."""
    module = sys.modules.get("opentelemetry.trace")
    if module is None:
        return {}
    current = module.get_current_span().get_span_context()
    if not current.is_valid:
        return {}
    found = {"traceparent": f"00-{current.trace_id:032x}-{current.span_id:016x}-{current.trace_flags & 0xFF:02x}"}
    state = current.trace_state.to_header() if current.trace_state else ""
    return found | {"tracestate": state} if state else found
