"""The pilot study and the probe on the embedded agent; writes docs/results/pilot.json and docs/results/pilot.md.

    python experiments/pilot_lab.py --seeds 0 1 2 --out runs/pilot-lab

Each seed is a world of its own (`write_world(..., seed=S)`), its 200 held-out questions, a seed of the sampling and of
the probe. Resumable: traces and probes that are finished are kept, a probe that was cut short goes on where it was.

The world's labels, which no agent, tool or reward sees: a call is *needed* if it is the first to return a value of the
question's plan that the agent has not learned by heart; *answering* if that value is the answer; a *repeat* if the same
call was made before. `needed_probed` is `needed` on the probed calls alone, so that every signal has the same calls.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from pilot_page import page
from pilot_probe import CLAIMS, FORMS, Forms, Rows, claim_row, group_rows, groups_of, probed_rows

from deltah import Trajectory, read_traces
from deltah.lab.demo import EVAL_TASKS, rollout_config, write_world
from deltah.lab.questions import Question, questions
from deltah.lab.world import Split, World
from deltah.runs import nan_to_none, open_run, package_versions, write_atomic
from deltah.stats.associations import Association, distinct
from deltah.stats.bootstrap import Estimate, interval
from deltah.stats.columns import PROBE_COLUMNS, StudyTable, build_table, known
from deltah.stats.labels import CallValues, Evidence, read_call_values
from deltah.stats.replicates import STATISTICS, blocks
from deltah.stats.study import StudyResult, run_study
from deltah.stats.study_text import label_tables
from deltah.stats.summary import RESAMPLES
from deltah.tasks import read_tasks
from deltah.tools import read_corpus

RESULTS = Path(__file__).parents[1] / "docs" / "results"
EXPLORED_SEED = 0
"""The claims were made on 60 questions of this seed; the others put them to the test."""
POOLED = "pooled"
PAIRS = (
    ("delta_h", "call_index"),
    ("reduced", "call_index"),
    ("reduced_0.10", "call_index"),
    ("entropy_before", "call_index"),
    ("reduced", "delta_h"),
    ("reduced_0.10", "reduced"),
    ("reduced_0.10", "delta_h"),
    ("position_corrected", "delta_h"),
    ("entropy_before", "delta_h"),
    ("placebo_controlled", "delta_h"),
    ("gold_gain", "delta_h"),
)
"""Signals compared on the same calls, first less second."""


@dataclass(frozen=True, slots=True)
class SeedFiles:
    """Files of one seed, and the commands that write them."""

    seed: int
    path: Path

    @property
    def traces(self) -> Path:
        return self.path / "traces.jsonl.zst"

    @property
    def labels(self) -> Path:
        return self.path / "labels.csv"

    def split(self, name: str) -> Path:
        """File of the held-out world: tasks or corpus."""
        return self.path / "world" / "eval" / f"{name}.jsonl"

    def probe(self, form: str) -> Path:
        return self.path / f"probe-{form.replace(' ', '-')}.jsonl"

    def world_command(self) -> list[str]:
        """What writes the tasks and the corpus without this script."""
        return ["python", "-m", "experiments.coldstart", "world", str(self.path / "world"), "--seed", str(self.seed)]

    def commands(self, samples: int, max_calls: int) -> list[tuple[Path, list[str]]]:
        """Each command of deltah with the file that shows it is done."""
        seed, acting = str(self.seed), rollout_config()
        limits = [f"{key}={getattr(acting, key)}" for key in ("max_completion_length", "max_turn_tokens", "max_rounds")]
        act = ["rollout", "--model", acting.model, "--tools", ",".join(acting.tools), "--samples", str(samples)]
        act += ["--tasks", str(self.split("tasks")), "--corpus", str(self.split("corpus")), "--seed", seed]
        act += [word for limit in limits for word in ("--set", limit)]
        probe = ["probe", str(self.traces), "--model", acting.model, "--max-calls", str(max_calls), "--seed", seed]
        return [
            (self.traces, [*act, "--out", str(self.traces)]),
            *((self.probe(form), [*probe, *how, "--out", str(self.probe(form))]) for form, how in FORMS.items()),
        ]

    def study_command(self) -> list[str]:
        """What gives this seed's study without this script."""
        given = {"tasks": self.split("tasks"), "corpus": self.split("corpus"), "labels": self.labels}
        given |= {"probe": self.probe("sentence"), "out": self.path / "study"}
        return ["study", str(self.traces), *(w for key, path in given.items() for w in (f"--{key}", str(path)))]


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedData:
    """What the files of one seed hold."""

    trajectories: list[Trajectory]
    evidence: Evidence
    labels: CallValues
    probes: dict[str, CallValues]
    rows: Forms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--samples", type=int, default=2, help="trajectories of each question")
    parser.add_argument("--max-calls", type=int, default=400, help="calls probed of each seed")
    parser.add_argument("--out", type=Path, default=Path("runs/pilot-lab"))
    parser.add_argument("--page-only", action="store_true", help="write the page again from pilot.json")
    options = parser.parse_args()
    if not options.page_only:
        content = nan_to_none(measured(options))
        write_atomic(RESULTS / "pilot.json", compact(content))
    saved = json.loads((RESULTS / "pilot.json").read_text(encoding="utf-8"))
    write_atomic(RESULTS / "pilot.md", page(saved))


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """Run what is missing, then all numbers."""
    open_run(options.out, {key: getattr(options, key) for key in ("samples", "max_calls")}, command="pilot_lab")
    data = {}
    for seed in options.seeds:
        files = SeedFiles(seed, options.out / f"seed-{seed}")
        write_world(files.path / "world", seed=seed)
        for done, command in files.commands(options.samples, options.max_calls):
            if not done.exists():
                subprocess.run([sys.executable, "-m", "deltah", *command], check=True)
        data[seed] = read(files)
        print(f"seed {seed} is measured", flush=True)
    scopes = {POOLED: list(data.values()), **{str(seed): [found] for seed, found in data.items()}}
    tables = {scope: table_of(parts, "sentence") for scope, parts in scopes.items()}
    studies = {scope: run_study(table) for scope, table in tables.items()}
    probed = {scope: [part.rows for part in parts] for scope, parts in scopes.items()}
    fresh = [found.rows for seed, found in data.items() if seed != EXPLORED_SEED]
    return {
        "facts": facts(options, studies),
        "study": {scope: associations(study, full=scope == POOLED) for scope, study in studies.items()},
        "answer_alone": associations(run_study(bare_table(scopes[POOLED])), full=False),
        "pairs": [row for label in computed_labels(studies[POOLED]) for row in differences(tables[POOLED], label)],
        "positions": positions(studies[POOLED]),
        "probe": [row for scope, parts in probed.items() for row in group_rows(scope, parts)],
        "claims": [claim_row(claim, {**probed, "fresh": fresh}) for claim in CLAIMS],
    }


def facts(options: argparse.Namespace, studies: dict[str, StudyResult]) -> dict[str, Any]:
    pooled, example = studies[POOLED], SeedFiles(0, Path("runs/pilot-lab/seed-0"))
    commands = [command for _, command in example.commands(options.samples, options.max_calls)]
    return {
        "command": f"python experiments/pilot_lab.py --seeds {' '.join(map(str, options.seeds))} "
        f"--samples {options.samples} --max-calls {options.max_calls}",
        "commands": [example.world_command(), *commands, example.study_command()],
        "seeds": options.seeds,
        "explored_seed": EXPLORED_SEED,
        "samples": options.samples,
        "date": date.today().isoformat(),
        "machine": f"{platform.machine().replace('_', '-')}, {os.cpu_count()} cores",
        "versions": package_versions(),
        "resamples": pooled.resamples,
        "permutations": pooled.permutations,
        "sizes": {s: {k: getattr(r, k) for k in ("questions", "trajectories", "calls")} for s, r in studies.items()},
        "tests": sum(p == p for a in pooled.associations for p in (a.p, a.p_partial)),
        "texts": len({q.task.question for seed in options.seeds for q in eval_questions(seed)}),
        "notes": list(pooled.notes),
    }


def eval_questions(seed: int) -> list[Question]:
    """Questions of the evaluation split that `write_world` writes, with their plans: what only a study may know."""
    return list(questions(World(seed + 1, Split.EVAL), EVAL_TASKS, seed=seed + 1))


def read(files: SeedFiles) -> SeedData:
    """Read one seed, and write its labels beside it."""
    trajectories = list(read_traces(files.traces))
    asked = {q.task.id: q for q in eval_questions(files.seed)}
    groups = {
        (t.id, call): found
        for t in trajectories
        for call, found in groups_of(t, asked[str(t.metadata["task_id"])]).items()
    }
    rows = {form: probed_rows(files.probe(form), groups) for form in FORMS}
    probed = {(row["trajectory"], row["call"]) for row in rows["sentence"]}
    write_atomic(files.labels, label_file(groups, probed))
    return SeedData(
        trajectories=trajectories,
        evidence=Evidence.of(read_tasks(files.split("tasks")), read_corpus(files.split("corpus"))),
        labels=read_call_values(files.labels),
        probes={form: read_call_values(files.probe(form), only=PROBE_COLUMNS) for form in FORMS},
        rows=rows,
    )


def label_file(groups: dict[tuple[str, str], set[str]], probed: set[tuple[str, str]]) -> str:
    """The world's labels as `deltah study --labels` reads them."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("trajectory", "call", "needed", "needed_probed"))
    for key, found in groups.items():
        needed = int("needed" in found)
        writer.writerow((*key, needed, needed if key in probed else ""))
    return text.getvalue()


def table_of(parts: Sequence[SeedData], form: str) -> StudyTable:
    """The study's table of some seeds; questions of different seeds are different clusters."""
    evidence = Evidence(
        by_id={key: found for part in parts for key, found in part.evidence.by_id.items()},
        by_question={},
        missing=sum(part.evidence.missing for part in parts),
    )
    return build_table(
        [t for part in parts for t in part.trajectories],
        evidence=evidence,
        probe={key: found for part in parts for key, found in part.probes[form].items()},
        columns={key: found for part in parts for key, found in part.labels.items()},
    )


def bare_table(parts: Sequence[SeedData]) -> StudyTable:
    """What another form of the answer changes: the gain and the label made of it."""
    table = table_of(parts, "answer alone")
    labels = {name: table.labels[name] for name in ("useful", "needed_probed")}
    signals = {name: table.signals[name] for name in ("delta_h", "entropy_before", "placebo_controlled", "gold_gain")}
    return replace(table, signals=signals, labels=labels)


def associations(study: StudyResult, *, full: bool) -> Rows:
    """Statistics and tests of every signal and label; of a part the two AUCs and the corrected partial test."""
    kept = STATISTICS if full else STATISTICS[:2]
    tests = ("p", "p_holm", "p_partial", "p_partial_holm") if full else ("p_partial_holm",)
    return [association_row(a, kept, tests) for label in study.labels for a in study.of_label(label)]


def computed_labels(study: StudyResult) -> list[str]:
    return [table.label for table in label_tables(study) if table.rows]


def association_row(a: Association, kept: Sequence[str], tests: Sequence[str]) -> dict[str, Any]:
    head = {"signal": a.signal, "label": a.label, "n": a.spearman.n, "good": a.good, "questions": a.questions}
    if a.reason is not None:
        return {**head, "reason": a.reason}
    found = {name: numbers(getattr(a, name)) for name in kept}
    return {**head, **found, **{name: round(getattr(a, name), 4) for name in tests}}


def numbers(estimate: Estimate) -> list[float | int]:
    """Value, interval, n."""
    return [*(round(x, 4) for x in (estimate.value, estimate.low, estimate.high)), estimate.n]


def differences(table: StudyTable, label: str) -> Rows:
    """`PAIRS` for one label: differences of the AUC and of that within call index, resampled together."""
    columns, found = table.with_baseline(), []
    for first, second in PAIRS:
        both = known(columns[first]) & known(columns[second])
        signals = {name: np.where(both, columns[key], np.nan) for name, key in (("a", first), ("b", second))}
        small = replace(table, signals=signals, labels={label: table.labels[label]})
        block = next((b for b in blocks(small) if "a" in b.signals), None)
        if block is None:
            continue
        a, b = block.signals.index("a"), block.signals.index("b")
        estimate = block.estimate()[:, 0, :2]
        draws = np.concatenate([d[:, :, 0, :2] for d in block.replicates(resamples=RESAMPLES, seed=0)])
        gaps = [
            [
                float(estimate[a, i] - estimate[b, i]),
                *interval(draws[:, a, i] - draws[:, b, i], distinct(block.cluster)),
            ]
            for i in (0, 1)
        ]
        row = {name: [round(x, 4) for x in gap] for name, gap in zip(STATISTICS, gaps, strict=False)}
        found.append({"label": label, "first": first, "second": second, "n": len(block), **row})
    return found


def positions(study: StudyResult) -> Rows:
    """Mean reduction and label rates by call index."""
    return [
        {
            "index": row.index,
            "n": row.n,
            "reduction": numbers(row.reduction),
            **{name: numbers(estimate) for name, estimate in row.labels.items()},
        }
        for row in study.positions
    ]


def compact(content: dict[str, Any]) -> str:
    """JSON with one row a line."""
    parts = [f"{json.dumps(key)}: {_rows(value, '  ')}" for key, value in content.items()]
    return "{\n " + ",\n ".join(parts) + "\n}\n"


def _rows(value: Any, indent: str) -> str:
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "[\n" + ",\n".join(indent + json.dumps(row, ensure_ascii=False) for row in value) + f"\n{indent[1:]}]"
    if isinstance(value, dict):
        inner = (f"{indent}{json.dumps(key)}: {_rows(item, indent + ' ')}" for key, item in value.items())
        return "{\n" + ",\n".join(inner) + f"\n{indent[1:]}}}"
    return json.dumps(value, ensure_ascii=False)


if __name__ == "__main__":
    main()
