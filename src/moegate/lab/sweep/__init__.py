"""Sweeps: many runs that differ in router, K, balance and seed, and the table that compares them."""

from moegate.lab.sweep.grid import (
    Axes,
    Cell,
    Grid,
    make_grid,
    parse_controls,
    parse_integers,
    parse_list,
    parse_settings,
)
from moegate.lab.sweep.intervals import Estimate, estimate, student_coverage, student_quantile
from moegate.lab.sweep.rendering import markdown_table, print_table
from moegate.lab.sweep.running import SweepPlan, failed_cells, finished_rows, run_sweep
from moegate.lab.sweep.table import make_rows, read_runs, write_table

__all__ = [
    "Axes",
    "Cell",
    "Estimate",
    "Grid",
    "SweepPlan",
    "estimate",
    "failed_cells",
    "finished_rows",
    "make_grid",
    "make_rows",
    "markdown_table",
    "parse_controls",
    "parse_integers",
    "parse_list",
    "parse_settings",
    "print_table",
    "read_runs",
    "run_sweep",
    "student_coverage",
    "student_quantile",
    "write_table",
]
