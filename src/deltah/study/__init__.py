"""Statistics on trajectories with clustered intervals, waste and savings, and the HTML report with its JSON twin."""

from deltah.study.bootstrap import Estimate
from deltah.study.callgroups import CallSummary, summarise_calls
from deltah.study.calls import CallRow, call_rows, calls_by
from deltah.study.logs import LogOptions, ScoredLog
from deltah.study.report import (
    ArmData,
    Evaluation,
    ReportData,
    load_report,
    load_run,
    load_traces,
    write_report,
)
from deltah.study.savings import Costs, Prices, Savings, SavingsAccumulator, SavingsReport, estimate_savings
from deltah.study.summary import STATISTICS, Comparison, Statistics, Summary, by, compare, summarise
from deltah.study.tables import ALL_COLUMNS, DEMO_COLUMNS, Cell, Column, Row, Table, table
from deltah.study.waste import Verdict, Waste, verdict, waste_of_calls

__all__ = [
    "ALL_COLUMNS",
    "DEMO_COLUMNS",
    "STATISTICS",
    "ArmData",
    "CallRow",
    "CallSummary",
    "Cell",
    "Column",
    "Comparison",
    "Costs",
    "Estimate",
    "Evaluation",
    "LogOptions",
    "Prices",
    "ReportData",
    "Row",
    "Savings",
    "SavingsAccumulator",
    "SavingsReport",
    "ScoredLog",
    "Statistics",
    "Summary",
    "Table",
    "Verdict",
    "Waste",
    "by",
    "call_rows",
    "calls_by",
    "compare",
    "estimate_savings",
    "load_report",
    "load_run",
    "load_traces",
    "summarise",
    "summarise_calls",
    "table",
    "verdict",
    "waste_of_calls",
    "write_report",
]
