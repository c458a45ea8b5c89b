"""The HTML report: what a run's router did, how the runs of a sweep compare, and what a routing trace holds."""

from moegate.report.page import write_report
from moegate.report.traces import write_trace_report

__all__ = ["write_report", "write_trace_report"]
