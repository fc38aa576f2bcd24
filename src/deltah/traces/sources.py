"""Which files are meant by what a user names: files, folders, glob patterns, standard input.

A folder stands for the trace files in it, at any depth and in order of their names; of a run directory, also one inside
the folder, only `traces` and `eval` count. A log that was rotated (`log.jsonl.2`, `log.jsonl.1`, `log.jsonl`;
`log.jsonl-20261124`) is read from its oldest file to its newest, because conversations go on from one to the next.
Files found in a folder may be something else (tasks, a corpus): they are marked as found, and the reader passes over
those that open with no known format.
"""

from __future__ import annotations

import glob
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from deltah.errors import DataError

STDIN = "-"
_SUFFIXES = (".jsonl", ".ndjson", ".json", ".log", ".txt", ".eval", ".parquet")
_COMPRESSED = (".gz", ".zst")
_ROTATED = re.compile(rf"(.+(?:{'|'.join(map(re.escape, _SUFFIXES))}))[.-](\d[\dT_.:-]*)", re.IGNORECASE)
_DATE_DIGITS = 6
"""A shorter number counts how often a log was rotated since."""
_NOT_TRACES = frozenset({"metrics.jsonl", "run.json", "status.json", "report.json", "study.json"})


@dataclass(frozen=True, slots=True)
class Source:
    """One file to read."""

    path: str
    named: bool
    """Whether the user named the file itself; False if a folder or a pattern led to it."""


def reads_once(path: str) -> bool:
    """Whether what was read of a path is gone: standard input, a pipe (`<(cat log.jsonl)`), a device.

    It must not be opened to look what it holds.
    """
    return path == STDIN or (os.path.exists(path) and not os.path.isfile(path))


def expand(paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[Source]:
    """Files behind paths, in the order given; a file met twice, also under another name, is read once.

    Files of one rotated log come from the oldest to the newest, in the places where they stand: a shell names them in
    the order of their names.

    Raises:
        DataError: if a path does not exist or may not be read, or a folder or pattern holds no file to read.
    """
    listed = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    found: dict[str, Source] = {}
    for path in listed:
        for source in _sources(os.fspath(path)):
            key = STDIN if source.path == STDIN else os.path.realpath(source.path)
            if key not in found or source.named:  # in its first place, but as a file that was named
                found[key] = source
    return _oldest_first(list(found.values()))


def _oldest_first(sources: list[Source]) -> list[Source]:
    """Put the files of each rotated log in their order, and leave all others where they are."""
    places: dict[str, list[int]] = defaultdict(list)
    for i, source in enumerate(sources):
        if not reads_once(source.path):
            base, _ = _base_and_turn(os.path.basename(source.path))
            places[os.path.join(os.path.dirname(source.path), base)].append(i)
    ordered = sources.copy()
    for own in places.values():
        by_age = sorted((sources[i] for i in own), key=lambda source: _by_age(Path(source.path)))
        for i, source in zip(own, by_age, strict=True):
            ordered[i] = source
    return ordered


def _sources(path: str) -> list[Source]:
    if path == STDIN:
        return [Source(path, True)]
    if Path(path).is_dir():
        inside = [Source(str(file), False) for file in _files_in(Path(path))]
        if not inside:
            raise DataError(f"{path} holds no trace files; expected files such as .jsonl, .jsonl.gz, .parquet or .eval")
        return inside
    if not os.path.lexists(path) and glob.has_magic(path):
        matches = [m for m in sorted(glob.glob(path, recursive=True)) if not Path(m).is_dir()]
        if not matches:
            raise DataError(
                f"no file matches {path}; check the pattern, and quote it so that the shell leaves it alone"
            )
        return [Source(match, False) for match in matches]
    try:
        if not reads_once(path):
            open(path, "rb").close()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}; expected a file of traces or logs") from error
    return [Source(path, True)]


def _files_in(folder: Path) -> Iterator[Path]:
    runs = {manifest.parent for manifest in folder.rglob("run.json")}
    for file in sorted(folder.rglob("*")):
        if not file.is_file() or file.name.startswith(".") or file.name in _NOT_TRACES:
            continue
        run = next((parent for parent in file.parents if parent in runs), None)
        inside = run is None or file.relative_to(run).parts[0] in ("traces", "eval")
        if inside and base_name(file.name).lower().endswith(_SUFFIXES):
            yield file


def base_name(path: str) -> str:
    """A path as it was before the file was compressed and rotated."""
    return _base_and_turn(path)[0]


def _by_age(file: Path) -> tuple[int, int, str, str]:
    """Key of a file among those of its log: by falling number, by date, and the newest, which has neither."""
    _, turn = _base_and_turn(file.name)
    if not turn:
        return 2, 0, "", file.name
    if turn.isdecimal() and len(turn) < _DATE_DIGITS:
        return 0, -int(turn), "", file.name
    return 1, 0, turn, file.name


def _base_and_turn(name: str) -> tuple[str, str]:
    """A file's name before it was compressed and rotated, and the number or date that the rotation gave it."""
    while name.lower().endswith(_COMPRESSED):
        name = os.path.splitext(name)[0]
    rotated = _ROTATED.fullmatch(name)
    return (rotated[1], rotated[2]) if rotated is not None else (name, "")
