"""What the commands and the public names give, held against golden files: equal to float noise.

Golden files lie in `frozen/*.json.gz`, one a group, by case. Inputs beside them: `demo.jsonl.gz` (the lab's agent on 12
tasks, four rollouts each, exact entropies), `made.jsonl.gz` (chosen numbers: bounds, parallel and unanswered calls) and
`arms/` (run directories of a small demo). A change on purpose is stated in the tables below. To write the golden files
of some groups, or of all, anew: `python tests/test_frozen.py --write [GROUP ...]`; the tables are then to be emptied.
"""

from __future__ import annotations

import csv
import gzip
import json
import math
import os
import re
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from typer.testing import CliRunner

from deltah import (
    Group,
    PositionBaseline,
    RewardConfig,
    SignalConfig,
    Trajectory,
    group_rewards,
    read_traces,
    score,
    token_advantages,
)
from deltah.cli.app import app

ANY: Final = object()
"""As a rule of `CHANGED`: whatever it is now."""

_ASSUMED: Final = ("vllm-bare*", "inspect.*", "llama-cpp-python-long-tokens*")
"""Cases of logs that state no vocabulary size."""
_SUMMARY: Final = ("by_*.delta_h.*", "by_*.reduction_rate.*", "by_*.undecided", "by_*.certified", "by_*.likely")
_CALL: Final = ("delta_h", "lower", "upper", "label", "entropy_before", "entropy_after", "verdict")

# The tables of changes. A path is "group/case.key.key.0.key" as the golden file has it; patterns are shell patterns,
# and * spans any number of keys. Every pattern must match something.
RENAMED: Mapping[str, str] = {
    # Whatever the signal, and in its unit.
    "*.deltah/delta_h_mean": "deltah/signal_mean",
    "*.deltah/delta_h_std": "deltah/signal_std",
    # A value beside its unit, whatever the signal; a verdict is what the signal says of a call, and nothing else.
    "report/*.viewer.trajectories.*.blocks.*.delta_h": "value",
    "report/*.viewer.trajectories.*.blocks.*.label": "verdict",
    "report/*.viewer.trajectories.*.blocks.*.calls.*.verdict": "waste_level",
    "report/*.page.waste.meanings.verdicts": "levels",
    "report/*.page.waste.tables.*.arms.*.verdicts": "levels",
    "report/*.page.calls.*.by_*.delta_h": "mean",
    # New beside them, and free as keys that the golden files lack: `cost`, `cost_with_cache` and `file` of every call.
    # The mean of a signal over calls, whatever the signal.
    "score/*.summary.by_*.delta_h": "mean_value",
    # Calls by waste level: a verdict is what the signal says.
    "score/*.summary.savings.verdicts": "levels",
    "report/*.page.*.rows.*.all.delta_h": "mean_value",
    # Rows of calls: a value beside its unit; the verdict of the signal; the level of waste.
    "calls/*.rows.*.delta_h": "value",
    "calls/*.rows.*.label": "verdict",
    "calls/*.rows.*.verdict": "waste_level",
}
"""Old path of a key -> its new name, or names joined by / to descend from the object that held it:
{"score/*.without_entropies": "unmeasured", "score/*.waste.hint": "others/hint"}."""
ABSENT: Sequence[str] = (
    # A class that no call has any more, see `_WASTE`.
    "report/*.page.viewer.trajectories.*.calls.*.waste",
    "report/*.page.viewer.trajectories.*.calls.*.verdict",
    "study/made.study.rocs.not_redundant|*",
    # A control over the batch is refused for a group alone, so that it cannot be run unshuffled.
    "advantages/*.shuffled, *",
    # A size known from the model's name is stated where something was measured with it.
    "traces/llama-cpp-python-function-calling*.metadata.vocab_size",
    "traces/llama-cpp-python-function-calling*.metadata.vocab_size_from",
)
"""Paths that the new output may lack; a whole case too: ["calls/demo-csv", "report/*.viewer.note"]."""
_NOTES: Final = {
    r"No entropies \(no logprobs\) of (.*): judged by text alone\.": (
        r"No log-probabilities for \1, so only the text is judged there. To measure entropy, log with logprobs=true "
        "and top_logprobs=20."
    ),
    r"No logprobs of (\d+) sampled tokens of (.*), by the server's own count (\(.*\)); no entropy speaks of them\.": (
        r"The server sampled \1 tokens of \2 without listing log-probabilities \3. No entropy includes them."
    ),
    r"Certified are the verdicts (\(.*?\))\. A mean (.*) averages .* alone\.": (
        "The log lists only the most likely tokens, so entropies are estimates with certified bounds. "
        r"Verdicts \1 rest on the bounds. A mean \2 rests on the estimates; its interval shows how much questions "
        "differ, not how far the estimates may be off."
    ),
    r"Approximate spans in (.*): .* are estimated\.": (
        r"Token positions are approximate in \1: the log does not mark where reasoning, calls and results begin, so "
        "these borders are estimated."
    ),
    "made a tool call: there is": "has a tool call, so there is",
    r"name (\(.*\)); --vocab-size states it\.": r"name \1. If it is another, give --vocab-size.",
    r"The answers' file of (\d+ rows) speaks of (.*)\.": r"Grades matched \2 (the file of answers has \1).",
    r"the (\d+) questions, (.*equal ones): below 30, .*": (
        r"The \1 questions, \2. With fewer than 30 the intervals can be too narrow: in simulations 86 to 100 % of them "
        "contained the truth, where 95 % are meant, and tests rejected up to 11 % of true nulls, where 5 % are meant."
    ),
}


def _plainer(note: str) -> str:
    """A note in the plainer words that stand now."""
    for old, new in _NOTES.items():
        note = re.sub(old, new, note)
    return note


# Waste needs a repeat of a tool that is known to be repeatable (all cases declare `search` and `python`): near
# duplicates and results in context are hints, calls that could not be parsed equal none, and a result of one or two new
# words is never called unused. The study's label of redundancy follows, and with it Holm's correction over all labels.
_FEWER = ("demo*", "made*", "both")
_WASTE: Final = (
    *(f"score/{case}.summary.{key}" for case in (*_FEWER, "sglang-cut-off*") for key in ("savings.*", "waste.*")),
    *(f"score/{case}.summary.by_*.certified" for case in (*_FEWER, "sglang-cut-off*")),
    *(f"score/{case}.summary.by_*.likely" for case in _FEWER),
    *(f"score/{case}.summary.savings.classes.result_unused" for case in ("vllm*", "trl*")),
    *(f"score/{case}.summary.{key}.*" for case in ("vllm-apart", "trl*") for key in ("savings.verdicts", "waste")),
    *(f"calls/{case}.rows.*.waste" for case in (*_FEWER[:2], "inspect*", "sglang-cut-off*", "trl*", "vllm-apart")),
    *(f"calls/{case}.rows.*.verdict" for case in (*_FEWER[:2], "inspect*", "sglang-cut-off*", "trl*", "vllm-apart")),
    "calls/vllm*.rows.eval-1-1-00020|*.waste",
    *(f"report/{case}.page.calls.*.by_*.{level}" for case in _FEWER for level in ("certified", "likely")),
    *(f"report/{case}.page.headline.figures.*.rows.*" for case in _FEWER),
    *(f"report/{case}.page.overview.*.{key}.*" for case in _FEWER for key in ("waste", "certified_waste", "cells.6")),
    *(f"report/{case}.page.waste.tables.*" for case in _FEWER),
    "report/*.page.waste.tables.*.by_class.result_unused.*",
    "report/*.page.viewer.trajectories.*.waste.*",
    "report/*.page.viewer.trajectories.*.calls.*.waste",
    "report/*.page.viewer.trajectories.*.calls.*.verdict",
    *(f"study/*.study.{key}" for key in ("associations.not_redundant|*", "histograms.*", "rocs.not_redundant|*")),
    "study/*.study.positions.*.labels.not_redundant.*",
    *(f"study/*.study.associations.*.{p}" for p in ("p_holm", "p_partial_holm")),
)


CHANGED: Mapping[str, Any] = {
    "report/*.page.curves.*.key": {"deltah/delta_h_mean": "deltah/signal_mean"},
    # A vocabulary size that nobody states is assumed to be 2**19, no longer unknown: upper bounds are finite, verdicts
    # follow from them, and point estimates extrapolate over as many tokens (before: 2**17).
    **{
        f"score/{case}.summary.{key}": ANY
        for case in _ASSUMED
        for key in (*_SUMMARY, "deltah/*", "savings.*", "waste*", "notes*")
    },
    **{f"calls/{case}.rows.*.{key}": ANY for case in _ASSUMED for key in _CALL},
    **{f"study/vllm-bare.study.{key}.*": ANY for key in ("associations", "histograms", "positions", "rocs")},
    **{f"traces/{case}.sums.entropy*": ANY for case in _ASSUMED[1:]},
    "score/llama-cpp-python-function-calling*.summary.notes": ANY,  # no size is taken from the name, see above
    # Log-probabilities without alternatives are no longer called no log-probabilities.
    "score/sglang-top-0*.summary.notes.0": lambda old: (
        "Log-probabilities without alternatives for 1 of 1 call, so only the text is judged there. To measure entropy, "
        "ask the server for top_logprobs=20."
    ),
    "report/*.page.schema_version": {1: 2},  # for the keys renamed above
    "report/*.page.*.columns.*.key": {"delta_h": "mean_value"},
    # Plainer sentences; one word, reduced, for one thing.
    "report/*.page.signal.reduced": {"that certainly lowered entropy": "that certainly reduced entropy"},
    "report/*.page.headline.figures.*.about": {
        "tool calls, all told": "number of tool calls",
        "share of calls that certainly lowered entropy": "share of calls that certainly reduced entropy",
        "share of calls whose text shows waste and that did not lower entropy": "share of calls that repeat one for "
        "nothing and that did not reduce entropy",
        "share of calls whose text shows waste and that do not count as reduced": "share of calls that repeat one for "
        "nothing and that do not count as reduced",
        "tokens not sampled and not read, if the calls of certified waste were dropped; see Waste": "tokens not "
        "sampled and not read if calls of certified waste were dropped; see Waste",
    },
    "report/*.page.waste.meanings.classes.*": ANY,
    "report/*.page.waste.meanings.verdicts.*": ANY,
    **dict.fromkeys(
        (
            "score/*.summary.notes.*",
            "report/*.page.arms.*.notes.*",
            "study/*.study.notes.*",
        ),
        _plainer,
    ),
    **dict.fromkeys(_WASTE, ANY),
}
"""Path -> what is now there: ANY, a mapping of old to new values, or a function from the old value to the new one:
{"score/*.notes": ANY, "calls/*.label": {"undecided": "unknown"}, "study/*.p": lambda old: min(2 * old, 1.0)}."""

RUN_DEPENDENT: Final = frozenset({"versions", "version", "machine", "date", "platform", "python", "argv"})
"""Keys that are not frozen."""

ROOT: Final = Path(__file__).resolve().parents[1]
FROZEN: Final = ROOT / "tests" / "frozen"
DATA: Final = "tests/traces/data"
LAB: Final = "examples/lab"
RELATIVE, ABSOLUTE, SHOWN = 1e-9, 1e-12, 20


@dataclass
class Comparison:
    """Differences of new structures from old ones, under the tables of changes.

    Args:
        relative: Tolerance of floats, as a share.
        absolute: Tolerance of floats.
    """

    relative: float = RELATIVE
    absolute: float = ABSOLUTE
    renamed: Mapping[str, str] = field(default_factory=lambda: RENAMED)
    absent: Sequence[str] = field(default_factory=lambda: ABSENT)
    changed: Mapping[str, Any] = field(default_factory=lambda: CHANGED)
    found: list[str] = field(default_factory=list)

    def walk(self, old: Any, new: Any, path: str) -> None:
        """Note where `new` is not `old`; keys that are only in `new` are free."""
        rule = next((rule for pattern, rule in self.changed.items() if fnmatchcase(path, pattern)), None)
        if rule is ANY:
            return
        if rule is not None:
            old = rule(old) if callable(rule) else rule.get(old, old)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            for key, value in old.items():
                self._key(key, value, new, f"{path}.{key}")
        elif isinstance(old, list) and isinstance(new, list):
            if len(old) != len(new):
                self.found.append(f"{path}: {len(old)} items then, {len(new)} now")
            for i, (a, b) in enumerate(zip(old, new, strict=False)):
                self.walk(a, b, f"{path}.{i}")
        elif not self._same(old, new):
            self.found.append(f"{path}: {_short(old)} then, {_short(new)} now")

    def _key(self, key: str, value: Any, new: Any, path: str) -> None:
        names = next((name for pattern, name in self.renamed.items() if fnmatchcase(path, pattern)), None)
        for name in [key] if names is None else [names] if names in new else names.split("/"):
            if not isinstance(new, Mapping) or name not in new:
                if not any(fnmatchcase(path, pattern) for pattern in self.absent):
                    self.found.append(f"{path}: {_short(value)} then, no key {name!r} now")
                return
            new = new[name]
        self.walk(value, new, path)

    def _same(self, old: Any, new: Any) -> bool:
        if _is_nothing(old) or _is_nothing(new):
            return _is_nothing(old) and _is_nothing(new)
        if any(isinstance(value, bool | str | list | Mapping) for value in (old, new)):
            return type(old) is type(new) and bool(old == new)
        if isinstance(old, int) and isinstance(new, int):
            return old == new
        return math.isclose(old, new, rel_tol=self.relative, abs_tol=self.absolute)


def _is_nothing(value: Any) -> bool:
    """Whether a number was not measured."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def message(found: Sequence[str]) -> str:
    """The first differences, a line each."""
    more = [f"... and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
    return "\n".join([f"{len(found)} differences from the golden files:", *found[:SHOWN], *more])


def plain(value: Any) -> Any:
    """The same as JSON has it: lists, null for NaN; without what depends on the run."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items() if key not in RUN_DEPENDENT}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, str):
        return str(value).replace(str(ROOT), "ROOT")
    return None if _is_nothing(value) else value


def keyed(rows: Iterable[Mapping[str, Any]], *names: str) -> dict[str, Any]:
    """Rows by what they speak of, so that rows may be added; the n-th of one key gets its number.

    Where one of these names is renamed, the new one is to be given here: the golden files hold the values alone.
    """
    found: dict[str, Any] = {}
    for row in rows:
        base = key = "|".join(str(row[name]) for name in names)
        n = 1
        while key in found:
            n += 1
            key = f"{base}|{n}"
        found[key] = row
    return found


# Commands.


def invoke(*arguments: object) -> dict[str, Any]:
    """Run a command from the root of the repository."""
    before = Path.cwd()
    os.chdir(ROOT)
    try:
        result = CliRunner().invoke(app, [str(argument) for argument in (*arguments, "--tools", f"{LAB}/tools.toml")])
    finally:
        os.chdir(before)
    refused = result.exception is not None and not isinstance(result.exception, SystemExit)
    return {"exit": 2 if refused else result.exit_code, "stdout": result.stdout}


def summary_of(*arguments: str) -> Callable[[Path], Any]:
    """Case of `deltah score --json`."""

    def case(folder: Path) -> Any:
        said = invoke("score", *arguments, "--json", "--workers", 1)
        summary = json.loads(said["stdout"]) if said["stdout"].startswith("{") else None
        if summary is not None:  # `invoke` names tools that some logs do not call
            summary["notes"] = [note for note in summary["notes"] if not note.startswith("--tools names")]
        return {"exit": said["exit"], "summary": summary}

    return case


def rows_of(suffix: str, *arguments: str) -> Callable[[Path], Any]:
    """Case of `deltah score --out`."""

    def case(folder: Path) -> Any:
        out = folder / f"calls{suffix}"
        said = invoke("score", *arguments, "--out", out, "--workers", 1)
        rows = list(_rows(out)) if out.exists() else []
        by_key = keyed(rows, "trajectory", "call", "index")
        return {"exit": said["exit"], "order": list(by_key), "rows": by_key}

    return case


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    if path.suffix == ".jsonl":
        yield from map(json.loads, path.read_text(encoding="utf-8").splitlines())
    elif path.suffix == ".csv":
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                yield {key: _number(value) for key, value in row.items()}
    else:
        duckdb = pytest.importorskip("duckdb")
        found = duckdb.sql(f"SELECT * FROM read_parquet('{path}')")
        for values in found.fetchall():
            yield dict(zip(found.columns, values, strict=True))


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def report_of(*arguments: str) -> Callable[[Path], Any]:
    """Case of the JSON twin of `deltah report`."""

    def case(folder: Path) -> Any:
        said = invoke("report", *arguments, "--out", folder / "report.html")
        twin = folder / "report.json"
        return {"exit": said["exit"], "page": json.loads(twin.read_text(encoding="utf-8")) if twin.exists() else None}

    return case


def study_of(*arguments: str) -> Callable[[Path], Any]:
    """Case of `deltah study`, its associations by label and signal."""

    def case(folder: Path) -> Any:
        said = invoke("study", *arguments, "--resamples", 100, "--seed", 7, "--out", folder / "study.json")
        out = folder / "study.json"
        found = json.loads(out.read_text(encoding="utf-8")) if out.exists() else None
        if found is not None:
            found["associations"] = keyed(found["associations"], "label", "signal")
            found["rocs"] = keyed(found["rocs"], "label", "signal")
        return {"exit": said["exit"], "study": found}

    return case


# Public names.


def read(path: str) -> list[Trajectory]:
    return list(read_traces(ROOT / path))


def traces_of(path: str, **options: Any) -> Callable[[Path], Any]:
    """Case of `read_traces`: every trajectory with its calls and spans, and sums of its numbers."""

    def case(folder: Path) -> Any:
        reader = read_traces(ROOT / path, **options)
        rows = [_trajectory(t) for t in reader]
        return {"trajectories": rows, "problems": reader.n_problems, "unjoined": reader.n_unjoined}

    return case


def _trajectory(t: Trajectory) -> dict[str, Any]:
    sums = {}
    for name in ("entropy", "entropy_lower", "entropy_upper", "logprobs"):
        values = getattr(t, name)
        known = None if values is None else values[np.isfinite(values)]
        sums[name] = None if known is None else [len(known), float(known.sum()), float((known**2).sum())]
    return {
        "id": t.id,
        "group_id": t.group_id,
        "question": t.question,
        "prediction": t.prediction,
        "golden_answers": t.golden_answers,
        "outcome": t.outcome,
        "model": t.model,
        "temperature": t.temperature,
        "facts": [t.estimator.value, t.stop_reason.value, t.spans.value],
        "metadata": dict(t.metadata),
        "segments": [[s.kind.value, s.start, s.stop, s.turn] for s in t.segments],
        "text": None if t.token_texts is None else zlib.crc32("".join(t.token_texts).encode()),
        "token_ids": None if t.token_ids is None else int(t.token_ids.sum()),
        "calls": [[c.id, c.name, c.arguments, c.turn, c.result, c.status.value, c.duration_s] for c in t.calls],
        "sums": sums,
    }


_SIGNAL_FIELDS = ("lower", "upper", "segment_entropy", "segment_lower", "segment_upper", "segment_tokens")


def signals_case(path: str) -> Callable[[Path], Any]:
    """Case of `score`: every signal of every trajectory."""

    def case(folder: Path) -> Any:
        trajectories = read(path)
        baseline = PositionBaseline.fit([score(t) for t in trajectories], min_rounds=5)
        configs = {
            "delta_h": SignalConfig(),
            "margin": SignalConfig(margin=0.1),
            "min_tokens": SignalConfig(min_tokens=4),
            "ratio": SignalConfig(name="ratio"),
            "position_corrected": SignalConfig(name="position_corrected", baseline=baseline),
            "tail": SignalConfig(name="tail", tail_tokens=3),
            "entropy_before": SignalConfig(name="entropy_before"),
            "cumulative": SignalConfig(name="cumulative"),
        }
        return {name: {t.id: _signal(t, config) for t in trajectories} for name, config in configs.items()}

    return case


def _signal(t: Trajectory, config: SignalConfig) -> dict[str, Any]:
    found = score(t, config)
    return {
        "delta_h": found.value,
        **{name: getattr(found, name) for name in _SIGNAL_FIELDS},
        "labels": [label.value for label in found.verdicts],
        "call_labels": [label.value for label in found.call_verdicts],
        "calls": [found.n_calls, found.n_reduced],
    }


_ARMS = ("outcome", "sparse", "dense", "penalty", "otc", "shuffled")
_POOLINGS = ("pooled", "trajectory_mean", "leave_one_out")
_MORE: Mapping[str, Mapping[str, Any]] = {
    "sparse, none without a call": {"name": "sparse", "no_call_efficiency": 0.0},
    "sparse, half is correct": {"name": "sparse", "correctness_first": True, "correct_at": 0.5},
    "dense, alpha 2": {"name": "dense", "alpha": 2.0},
    "dense, not scaled": {"name": "dense", "scale": False, "pooling": "leave_one_out"},
    "penalty 0.3": {"name": "penalty", "call_penalty": 0.3},
    "otc, smoothing 1": {"name": "otc", "otc_smoothing": 1.0},
    "sparse, not scaled": {"name": "sparse", "scale": False},
}


def reward_configs() -> dict[str, RewardConfig]:
    """Every form of every reward."""
    found = {
        f"{name}, {pooling}{', first' * first}{', centred' * centred}": RewardConfig(
            name=name, pooling=pooling, correctness_first=first, centred=centred
        )
        for name in _ARMS
        if name != "shuffled"
        for pooling in _POOLINGS
        for first in (False, True)
        for centred in (False, True)
    }
    return found | {name: RewardConfig(**options) for name, options in _MORE.items()}


def advantages_case(path: str, names: Sequence[str]) -> Callable[[Path], Any]:
    """Case of `group_rewards` and `token_advantages` on some groups of a file."""

    def case(folder: Path) -> Any:
        rows = [t for t in read(path) if t.outcome is not None and t.group_id in names]
        groups = {name: _group([t for t in rows if t.group_id == name]) for name in names}
        return {
            title: {name: _credit(group, config) for name, group in groups.items()}
            for title, config in reward_configs().items()
        }

    return case


def _group(trajectories: Sequence[Trajectory]) -> Group:
    return Group(
        trajectories=trajectories,
        signals=[score(t) for t in trajectories],
        outcomes=np.array([t.outcome for t in trajectories]),
    )


def _credit(group: Group, config: RewardConfig) -> dict[str, Any]:
    rewards = group_rewards(group, config)
    tokens = token_advantages(group, config)
    return {
        "totals": [r.total for r in rewards],
        "process": [r.process for r in rewards],
        "tokens": {t.id: _runs(a) for t, a in zip(group.trajectories, tokens, strict=True)},
    }


def _runs(values: Iterable[float]) -> list[list[float]]:
    """[value, how often in a row] of a vector."""
    found: list[list[float]] = []
    for value in map(float, values):
        if found and math.isclose(found[-1][0], value, rel_tol=RELATIVE, abs_tol=ABSOLUTE):
            found[-1][1] += 1
        else:
            found.append([value, 1])
    return found


# The trainer, which measures in float32.


def trl_case(folder: Path) -> Any:
    """Rewards and advantages that the TRL trainer gives a scripted batch, under every reward."""
    pytest.importorskip("trl")
    poolings = {f"dense, {p}": {"name": "dense", "pooling": p, "centred": True} for p in _POOLINGS}
    forms: dict[str, dict[str, Any]] = {name: {"name": name} for name in _ARMS}
    forms |= {f"{name}, first": {"name": name, "correctness_first": True} for name in _ARMS} | poolings
    return {title: _batch(folder / str(i), RewardConfig(**form)) for i, (title, form) in enumerate(forms.items())}


def _batch(folder: Path, reward: RewardConfig) -> dict[str, Any]:
    from engines.trl_fixtures import call, make_trainer

    end = "<|end|>"
    scripts = [
        [f" Is it north {call('a')}{end}", f" maybe so {call('b')}{end}", f" Yes{end}"],
        [f" Is it south {call('c')}{end}", f" No{end}"],
        [f" Is it here {call('d')}{call('e')}{end}", f" Yes{end}"],
        [f" maybe{end}"],
        [f" it {call('boom')}{end}", f" No it {call('x', name='fly')}{end}", f" Yes{end}"],
        [f' it is <tool_call>{{"name": "search", "arguments": {{"query": "a</tool_call>{end}'],
        [" Yes it is"],
    ]
    seen: dict[str, Any] = {}
    trainer = make_trainer(
        folder,
        scripts,
        reward=reward,
        on_trajectories=lambda rows, signals, *_: seen.update(rows=rows, signals=signals),
    )
    original = trainer._compute_loss
    trainer._compute_loss = lambda model, inputs: seen.update(batch=inputs) or original(model, inputs)
    trainer.train()
    logged = trainer.state.log_history[0]
    given = {}
    for ids, mask, row in zip(
        *(seen["batch"][k] for k in ("completion_ids", "completion_mask", "advantages")), strict=True
    ):
        n = int(mask.sum())
        given[tuple(ids[:n].tolist())] = _runs(row[:n].tolist()) if row.ndim else float(row)
    return {
        "logged": {k: v for k, v in logged.items() if k.startswith(("deltah/", "reward")) and "seconds" not in k},
        "trajectories": {t.id: _trajectory(t) | {"entropy": t.entropy} for t in seen["rows"]},
        "signals": {
            t.id: [s.value, [x.value for x in s.verdicts]] for t, s in zip(seen["rows"], seen["signals"], strict=True)
        },
        "advantages": {t.id: given[tuple(t.token_ids.tolist())] for t in seen["rows"]},
    }


# Cases.

VLLM: Final = (f"{LAB}/vllm.jsonl.zst", "--vocab-size", "1394", "--answers", f"{LAB}/tasks.jsonl")
BARE: Final = (f"{LAB}/vllm.jsonl.zst",)
DEMO, MADE, ARMS = ("tests/frozen/demo.jsonl.gz",), ("tests/frozen/made.jsonl.gz",), ("tests/frozen/arms",)
EVIDENCE: Final = ("--tasks", f"{LAB}/tasks.jsonl", "--corpus", f"{LAB}/corpus.jsonl")
PRICES: Final = ("--price", "input=2", "--price", "cached=0.2", "--price", "output=8", "--price", "search=0.005")
LATENCY: Final = ("--latency", "search=0.8", "--currency", "EUR")
RECORDED: Final = sorted(
    p.name
    for p in (ROOT / DATA).iterdir()
    if p.name.startswith(("vllm", "llama", "sglang", "inspect.", "trl")) and p.suffix != ".py"
)


def size_of(name: str) -> int | None:
    """Vocabulary of the model that a recorded server ran; None where the log is to say it."""
    return None if "python" in name or "emoji" in name or not name.startswith(("vllm", "llama", "sglang")) else 1394


def recorded(name: str) -> tuple[str, ...]:
    size = size_of(name)
    return (f"{DATA}/{name}", *(() if size is None else ("--vocab-size", str(size))))


VARIANTS: Final = {
    "vllm": VLLM,
    "vllm-bare": BARE,
    "vllm-apart": (*VLLM, "--no-join"),
    "vllm-prices": (*VLLM, *PRICES, *LATENCY),
    "vllm-margin": (*VLLM, "--margin", "0.1"),
    "demo": DEMO,
    "demo-prices": (*DEMO, *PRICES, *LATENCY),
    "demo-no-waste": (*DEMO, "--no-waste"),
    "made": MADE,
    **{f"made-{name}": (*MADE, "--signal", name) for name in ("ratio", "tail", "entropy_before", "cumulative")},
    "both": (*DEMO, *MADE),
}
_SAME_ROWS: Final = ("vllm-prices", "demo-prices", "demo-no-waste", "both")
"""Whose rows other cases have."""
GROUPS: Final[Mapping[str, Mapping[str, Callable[[Path], Any]]]] = {
    "score": {
        **{name: summary_of(*arguments) for name, arguments in VARIANTS.items()},
        **{name: summary_of(*recorded(name)) for name in RECORDED},
    },
    "calls": {
        **{name: rows_of(".jsonl", *arguments) for name, arguments in VARIANTS.items() if name not in _SAME_ROWS},
        **{name: rows_of(".jsonl", *recorded(name)) for name in RECORDED},
        **{f"{name}-parquet": rows_of(".parquet", *VARIANTS[name]) for name in ("vllm", "vllm-bare", "demo", "made")},
        **{f"{name}-csv": rows_of(".csv", *VARIANTS[name]) for name in ("vllm", "made")},
    },
    "report": {
        "vllm": report_of(*VLLM, "--title", "A log"),
        "vllm-prices": report_of(*VLLM, *PRICES, *LATENCY),
        "demo": report_of(*DEMO),
        "made": report_of(*MADE, "--signal", "tail"),
        "both": report_of(*DEMO, *MADE),
        "arms": report_of(*ARMS),
    },
    "study": {
        "vllm": study_of(*BARE, "--vocab-size", "1394", *EVIDENCE),
        "vllm-bare": study_of(*BARE),
        "demo": study_of(*DEMO, *EVIDENCE),
        "made": study_of(*MADE),
    },
    "traces": {
        "demo": traces_of(*DEMO),
        "made": traces_of(*MADE),
        **{name: traces_of(f"{DATA}/{name}", vocab_size=size_of(name)) for name in RECORDED},
    },
    "signals": {"demo": signals_case(*DEMO), "made": signals_case(*MADE)},
    "advantages": {
        "demo": advantages_case(*DEMO, names=("eval-1-1-00001", "eval-1-1-00003", "eval-1-1-00006")),
        "made": advantages_case(*MADE, names=("q001", "q004", "odd")),
    },
    "trl": {"batch": trl_case},
}
TOLERANCES: Final = {"trl": (1e-4, 1e-5)}
"""Relative and absolute, of the groups whose numbers come from float32."""


def golden(group: str) -> dict[str, Any]:
    with gzip.open(FROZEN / f"{group}.json.gz", "rt", encoding="utf-8") as file:
        found: dict[str, Any] = json.load(file)
    return found


@pytest.fixture(scope="module")
def then() -> dict[str, dict[str, Any]]:
    return {group: golden(group) for group in GROUPS}


@pytest.mark.parametrize(("group", "case"), [(group, case) for group, cases in GROUPS.items() for case in cases])
def test_nothing_but_what_is_stated_changed(
    group: str, case: str, then: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    if any(fnmatchcase(f"{group}/{case}", pattern) for pattern in ABSENT):
        pytest.skip("stated as absent")
    comparison = Comparison(*TOLERANCES.get(group, (RELATIVE, ABSOLUTE)))
    comparison.walk(then[group][case], plain(GROUPS[group][case](tmp_path)), f"{group}/{case}")
    if comparison.found:
        pytest.fail(message(comparison.found), pytrace=False)


def test_every_case_is_frozen_and_every_stated_change_is_of_something(then: dict[str, dict[str, Any]]) -> None:
    assert {group: set(cases) for group, cases in then.items()} == {g: set(cases) for g, cases in GROUPS.items()}
    missing = {*RENAMED, *ABSENT, *CHANGED}
    for path in (path for g, cases in then.items() for c, value in cases.items() for path in _paths(value, f"{g}/{c}")):
        if not missing:
            break
        missing -= {pattern for pattern in missing if fnmatchcase(path, pattern)}
    assert not missing, f"patterns that no golden file knows: {sorted(missing)}"


def _paths(value: Any, path: str) -> Iterator[str]:
    yield path
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _paths(item, f"{path}.{key}")


def test_the_comparison_finds_differences_and_honours_the_tables() -> None:
    old = {"a": 1, "b": [1.0, None], "c": "x", "d": {"e": 2.0}, "f": 3, "g": True}
    new = {"a": 1, "b": [1.0 + 1e-12, math.nan], "c": "y", "d": {"h": {"i": 2.5}}, "g": True, "more": 1}

    def found(**tables: Any) -> list[str]:
        comparison = Comparison(**{"renamed": {}, "absent": (), "changed": {}, **tables})
        comparison.walk(old, new, "t")
        return comparison.found

    assert found() == ["t.c: 'x' then, 'y' now", "t.d.e: 2.0 then, no key 'e' now", "t.f: 3 then, no key 'f' now"]
    renamed, absent = {"*.e": "h/i"}, ["t.f"]
    assert found(renamed=renamed, absent=absent, changed={"t.c": {"x": "y"}}) == ["t.d.e: 2.0 then, 2.5 now"]
    assert not found(renamed=renamed, absent=absent, changed={"t.c": ANY, "t.d.e": lambda value: value + 0.5})
    comparison = Comparison()
    for a, b in ((1, 2), (1, True), (1.0, None), ("1", 1), ([1], [1, 2]), ({}, []), (0.1, 0.1 + 1e-9)):
        comparison.walk(a, b, "t")
    assert len(comparison.found) == 7
    assert message(["x"] * 30).endswith("... and 10 more")


def write(groups: Iterable[str]) -> None:
    """Write golden files anew."""
    for group in groups:
        with tempfile.TemporaryDirectory() as folder:
            found = {}
            for i, (case, run) in enumerate(GROUPS[group].items()):
                place = Path(folder) / str(i)
                place.mkdir()
                found[case] = plain(run(place))
        text = json.dumps(found, ensure_ascii=False, sort_keys=True, separators=(",", ":")) + "\n"
        (FROZEN / f"{group}.json.gz").write_bytes(gzip.compress(text.encode(), 9, mtime=0))


if __name__ == "__main__":
    if sys.argv[1:2] != ["--write"] or not set(sys.argv[2:]) <= set(GROUPS):
        sys.exit(f"usage: python tests/test_frozen.py --write [GROUP ...], of {', '.join(GROUPS)}")
    write(sys.argv[2:] or GROUPS)
