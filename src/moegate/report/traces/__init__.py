"""The page about one routing trace, alone or against another."""

from moegate.report.traces.page import MAX_BYTES, SCRIPTS, write_trace_report

__all__ = ["MAX_BYTES", "SCRIPTS", "write_trace_report"]
