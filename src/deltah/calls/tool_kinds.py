"""What is known about tools, and the waste level of every call that follows from it.

A repeat of a call is waste only if its tool is known to be *repeatable*: the same call gives the same answer as long as
nothing is changed. That is declared by the user (`tools.toml`), stated by the log (MCP annotations), known of tools
that deltah ships, or measured over the whole table. The level is a matter of the whole table, so it is computed there,
in SQL, by `judge`. docs/waste.md states the rule and its numbers.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from deltah.calls.evidence import REPEATS
from deltah.core.registry import check_number
from deltah.core.types import CallStatus, Trajectory
from deltah.errors import ConfigError, InvalidValueError
from deltah.text_format import count
from deltah.tools.toolbox import TOOLS
from deltah.traces.importing import TOOL_KINDS
from deltah.traces.trees import DURATION_FROM

if TYPE_CHECKING:
    from deltah.calls.table import CallTable

MIN_REPEATS: Final = 100
"""Repeats without another result from which a tool is measured repeatable: fewer than 3 % then change (95 %)."""
MIN_REPEATED: Final = 20
"""Different calls among them, each met in two questions or more, and different results."""
MIN_QUESTIONS: Final = 10
"""Questions of the trajectories that call the tool. A log may hold a conversation twice; that is no repeat."""


class ToolKind(StrEnum):
    """What calling a tool does."""

    READ = "read"
    """It changes nothing, and the same call gives the same answer until something is changed."""
    POLL = "poll"
    """It changes nothing, but its answer may change by itself: a status, a clock, a price, a random number."""
    WRITE = "write"
    """It may change something, or it is not known that it does not."""
    UNKNOWN = "unknown"
    """Nobody says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """What a user says of a tool.

    Raises:
        InvalidValueError: if a number is negative, or the timeout 0.
    """

    kind: ToolKind = ToolKind.UNKNOWN
    cost: float | None = None
    """Fee of one call, in the currency of the prices."""
    timeout: float | None = None
    """Seconds from which a call ran into its time limit, which makes it an error."""

    def __post_init__(self) -> None:
        for name, least in (("cost", 0.0), ("timeout", 1e-9)):
            if (value := getattr(self, name)) is not None:
                check_number(name, value, least)


Declared: TypeAlias = str | os.PathLike[str] | Mapping[str, Any]
"""A TOML file, or its content: tool -> kind, or a table with `kind`, `cost` and `timeout`."""


@dataclass(frozen=True, slots=True)
class ToolKinds:
    """What users and run directories say of tools, by name."""

    declared: Mapping[str, Tool] = field(default_factory=dict)
    own: frozenset[str] = frozenset()
    """Tools that deltah ships, in the run that the traces lie in."""

    @classmethod
    def of(cls, given: Declared | None, own: Iterable[str] = ()) -> ToolKinds:
        """Read a declaration; of the `own` tools those count that a registration calls "read".

        Raises:
            ConfigError: if a file cannot be read, or an entry is wrong.
        """
        shipped = frozenset(name for name in own if name in TOOLS and TOOLS[name].options.get("kind") == "read")
        if given is None:
            return cls(own=shipped)
        if isinstance(given, Mapping):
            return cls({name: _tool(name, value, "tools") for name, value in given.items()}, shipped)
        where = os.fspath(given)
        try:
            content = tomllib.loads(Path(where).read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"--tools {where}: cannot read it ({error.strerror or error}); check the path") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(
                f'--tools {where}: no TOML ({error}); expected one line for each tool, such as: search = "read"'
            ) from error
        return cls({name: _tool(name, value, f"--tools {where}") for name, value in content.items()}, shipped)

    @property
    def fees(self) -> dict[str, float]:
        """Fee of one call, by tool."""
        return {name: tool.cost for name, tool in self.declared.items() if tool.cost is not None}

    @property
    def limits_s(self) -> dict[str, float]:
        """Time limit of one call, by tool, in seconds."""
        return {name: tool.timeout for name, tool in self.declared.items() if tool.timeout is not None}

    def timed(self, trajectory: Trajectory) -> Trajectory:
        """The trajectory with its calls that ran into a declared timeout as errors; gaps between API calls are none."""
        limits = self.limits_s
        if not limits or DURATION_FROM in trajectory.metadata:
            return trajectory
        calls = tuple(
            replace(call, status=CallStatus.ERROR)
            if call.status is CallStatus.OK and (call.duration_s or 0.0) >= limits.get(call.name, inf)
            else call
            for call in trajectory.calls
        )
        return trajectory if calls == trajectory.calls else replace(trajectory, calls=calls)


def _tool(name: str, value: Any, where: str) -> Tool:
    """One entry of a declaration; a `ConfigError` that names tool and field for what does not fit."""
    known = ", ".join(ToolKind)
    fields = {"kind": value} if isinstance(value, str) else value
    if not isinstance(fields, Mapping):
        raise ConfigError(f"{where}: tool {name!r} is {value!r:.60}; expected one of {known}, or a table with a kind")
    if unknown := sorted(fields.keys() - {"kind", "cost", "timeout"}):
        raise ConfigError(f"{where}: tool {name!r} has an unknown key {unknown[0]!r}; the keys are kind, cost, timeout")
    kind = fields.get("kind", ToolKind.UNKNOWN)
    if kind not in list(ToolKind):
        raise ConfigError(f"{where}: tool {name!r} is of kind {kind!r:.60}; expected one of {known}")
    try:
        return Tool(**{**fields, "kind": ToolKind(kind)})
    except InvalidValueError as error:
        raise ConfigError(f"{where}: tool {name!r}: {error}") from error


_TOOLS: Final = f"""
    CREATE OR REPLACE TABLE tools AS
    WITH said AS (SELECT unnest($names::VARCHAR[]) AS tool, unnest($kinds::VARCHAR[]) AS kind,
        unnest($sources::VARCHAR[]) AS kind_from),
    same AS (
        SELECT tool, call_hash, count(DISTINCT hash(cluster, index)) AS n, count(DISTINCT cluster) AS met,
            count(DISTINCT result_hash) AS results, any_value(news_hash) AS news
        FROM calls WHERE result_hash IS NOT NULL GROUP BY tool, call_hash
    ),
    measured AS (
        SELECT tool, sum(n - 1)::BIGINT AS repeats, count(*) FILTER (n > 1) AS repeated,
            count(*) FILTER (results > 1) AS changed, count(*) FILTER (met > 1) AS apart,
            count(DISTINCT news) FILTER (met > 1) AS answers
        FROM same GROUP BY tool
    ),
    counted AS (
        SELECT tool, count(*) AS calls, count(DISTINCT key) AS trajectories, count(DISTINCT cluster) AS questions
        FROM calls GROUP BY tool
    ),
    joined AS (
        SELECT tool, kind, kind_from, calls, trajectories, coalesce(repeats, 0) AS repeats,
            coalesce(repeated, 0) AS repeated, coalesce(changed, 0) AS changed,
            changed = 0 AND repeats >= {MIN_REPEATS} AND apart >= {MIN_REPEATED} AND answers >= {MIN_REPEATED}
                AND questions >= {MIN_QUESTIONS} AS repeatable
        FROM counted LEFT JOIN measured USING (tool) LEFT JOIN said USING (tool)
    )
    SELECT * EXCLUDE (kind, kind_from, repeatable),
        CASE WHEN kind_from IN ('declared', 'own') OR kind = 'write' THEN kind
            WHEN repeatable THEN 'read' WHEN kind = 'read' AND changed > 0 THEN 'poll' ELSE coalesce(kind, 'unknown')
        END AS kind,
        CASE WHEN kind_from IN ('declared', 'own') OR kind = 'write' THEN kind_from
            WHEN repeatable OR (kind = 'read' AND changed > 0) THEN 'measured' ELSE kind_from
        END AS kind_from
    FROM joined ORDER BY calls DESC, tool
"""
LEVEL: Final = """
    CASE WHEN waste IS NULL THEN NULL
        WHEN len(waste) = 0 OR verdict = 'reduced' THEN 'none'
        WHEN redundant THEN if(verdict = 'not_reduced', 'certified', 'likely')
        ELSE 'hint'
    END
"""
"""The waste level of a call, from its facts, what is known of its tool, and its verdict, in SQL."""
_REPEATS: Final = f"list_has_any(waste, {[name.value for name in REPEATS]})"
# A call whose answer changes in a trajectory though nothing was changed there asks for something that others change.
_REDUNDANT: Final = f"""
    UPDATE calls SET redundant = CASE
        WHEN message_between OR result_hash IS NULL OR NOT {_REPEATS} THEN false
        WHEN (key, call_hash) IN (SELECT (key, call_hash) FROM calls WHERE NOT same_result AND NOT message_between
            AND list_has_all($harmless::VARCHAR[], "between")) THEN false
        WHEN list_contains($reads::VARCHAR[], tool) AND list_has_all($harmless::VARCHAR[], "between") THEN true
        WHEN list_contains($others::VARCHAR[], tool) OR list_has_any($writes::VARCHAR[], "between") THEN false
        ELSE NULL
    END WHERE repeats IS NOT NULL
"""


def judge(table: CallTable) -> None:
    """Fill the table `tools`, and `redundant` and `waste_level` of the calls that repeat one, from all rows."""
    said = _annotated(table) | {name: (ToolKind.READ.value, "own") for name in table.tools.own}
    declared = {name: tool.kind for name, tool in table.tools.declared.items() if tool.kind is not ToolKind.UNKNOWN}
    said |= {name: (kind.value, "declared") for name, kind in declared.items()}
    names = {"names": [*said], "kinds": [kind for kind, _ in said.values()], "sources": [of for _, of in said.values()]}
    execute = table.connection.execute
    execute(_TOOLS, names)
    by_kind: dict[str, list[str]] = {kind.value: [] for kind in ToolKind}
    for tool, kind in execute("SELECT tool, kind FROM tools").fetchall():
        by_kind[kind].append(tool)
    reads, polls, writes = by_kind["read"], by_kind["poll"], by_kind["write"]
    execute(_REDUNDANT, {"reads": reads, "harmless": reads + polls, "others": polls + writes, "writes": writes})
    execute(f"UPDATE calls SET waste_level = {LEVEL} WHERE repeats IS NOT NULL")


def _annotated(table: CallTable) -> dict[str, tuple[str, str]]:
    """Kinds that the tool definitions of the log state; of contradicting ones the most careful."""
    order, found = [kind.value for kind in ToolKind], dict[str, str]()
    stated = f"SELECT DISTINCT metadata->>'{TOOL_KINDS}' FROM trajectories WHERE metadata->>'{TOOL_KINDS}' IS NOT NULL"
    for (text,) in table.connection.execute(stated).fetchall():
        for name, kind in json.loads(text).items():
            found[name] = max(kind, found.get(name, kind), key=order.index)
    return {name: (kind, "annotated") for name, kind in found.items()}


def draft(table: CallTable) -> str:
    """A declaration of the tools of a table, as TOML to correct: what is known or measured, and why."""
    lines = [
        "# What calling each tool does, for: deltah score --tools THIS_FILE. Correct it where it is wrong.",
        '#   "read":    changes nothing, and the same call gives the same answer until something is changed',
        '#   "poll":    changes nothing, but the answer may change by itself (a status, a clock, a price)',
        '#   "write":   may change something',
        '#   "unknown": its repeats are never called waste',
        "# Or a table, with the fee of a call and its limit in seconds:",
        '#   search = { kind = "read", cost = 0.005, timeout = 30 }',
        "",
    ]
    query = "SELECT tool, kind, kind_from, calls, trajectories, repeats, repeated, changed FROM tools"
    for name, kind, source, calls, trajectories, repeats, repeated, changed in table.sql(query).fetchall():
        if not name.strip():
            continue
        how = f"{count(repeats, 'repeat')} of {count(repeated, 'call')}, {changed:,} of them with another result"
        seen = f"{count(calls, 'call')} in {count(trajectories, 'trajectory')}, {how if repeats else 'no repeats'}"
        value, comment = _value(table.tools.declared.get(name), kind), f"{source}: {seen}" if source else seen
        lines.append(f"{json.dumps(name, ensure_ascii=False)} = {value}  # {comment}")
    return "\n".join(lines) + "\n"


def _value(tool: Tool | None, kind: str) -> str:
    stated = {} if tool is None else {"cost": tool.cost, "timeout": tool.timeout}
    more = "".join(f", {name} = {value!r}" for name, value in stated.items() if value is not None)
    return f'{{ kind = "{kind}"{more} }}' if more else f'"{kind}"'
