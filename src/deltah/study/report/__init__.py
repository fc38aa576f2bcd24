"""The report: one self-contained HTML page with inline SVG and a trajectory viewer, and its JSON twin."""

from deltah.study.report.data import ArmData, Evaluations, ReportData
from deltah.study.report.evaluation import Evaluation
from deltah.study.report.load import load_report, load_run, load_traces
from deltah.study.report.render import write_report

__all__ = [
    "ArmData",
    "Evaluation",
    "Evaluations",
    "ReportData",
    "load_report",
    "load_run",
    "load_traces",
    "write_report",
]
