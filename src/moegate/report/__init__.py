"""The HTML report: what a run's router did, and how the runs of a sweep compare, on one page."""

from moegate.report.page import write_report

__all__ = ["write_report"]
