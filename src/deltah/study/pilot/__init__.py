"""The pilot study: do signals of entropy tell good tool calls from others, and does position explain it?"""

from deltah.study.pilot.columns import LABEL_MEANING, PROBE_COLUMNS, SIGNAL_MEANING, WasteRule, build_table
from deltah.study.pilot.evidence import Evidence
from deltah.study.pilot.figures import Failure, FailureKind
from deltah.study.pilot.result import StudyResult, run_study
from deltah.study.pilot.sources import CallKey, CallValues, read_call_values
from deltah.study.pilot.statistics import Association, associate
from deltah.study.pilot.table import CallReference, StudyTable

__all__ = [
    "LABEL_MEANING",
    "PROBE_COLUMNS",
    "SIGNAL_MEANING",
    "Association",
    "CallKey",
    "CallReference",
    "CallValues",
    "Evidence",
    "Failure",
    "FailureKind",
    "StudyResult",
    "StudyTable",
    "WasteRule",
    "associate",
    "build_table",
    "read_call_values",
    "run_study",
]
