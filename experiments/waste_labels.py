"""How often a call that deltah calls waste is waste: a labelled set of calls, with and without a declaration of tools.

    python experiments/waste_labels.py            # prints, and writes docs/results/waste_labels.txt

Each scenario below has the shape of a complaint about loop detectors (polls, retries, looks after a change, pages,
clocks) or about wasteful agents (the same search twice). It states for every call whether a careful reader would call
it waste, from what the tool does and what happened in the world, which the log need not show. The labels use nothing of
deltah's rule; some cases are out of its reach on purpose: a file that another program writes, a question in other
words, a look after a change that cannot have mattered. Trajectories share a world, so that answers agree between them.
Half of them carry entropies, drawn at random whatever the label: deltah certifies about half of the waste there.
Recall is of the labelled waste that did not reduce entropy, as deltah calls no other call waste.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.stats import binomtest

from deltah import CallTable, Segment, SegmentKind, ToolCall, Trajectory
from deltah.core.types import CallStatus

OUT = Path(__file__).parents[1] / "docs" / "results" / "waste_labels.txt"
TOOLS = {
    **dict.fromkeys(
        ("search_docs", "read_file", "grep_code", "list_orders", "get_user", "calculate", "fetch_page"), "read"
    ),
    **dict.fromkeys(("git_status", "db_query", "describe_table", "translate"), "read"),
    **dict.fromkeys(
        ("job_status", "clock", "roll_die", "stock_price", "queue_depth", "inbox", "page_snapshot"), "poll"
    ),
    **dict.fromkeys(("run_tests", "room_state", "weather_now"), "poll"),
    **dict.fromkeys(("edit_file", "git_add", "click", "press_key", "db_update", "turn_on", "send_note"), "write"),
}
"""What a user would declare; `delegate` is a tool that the user forgot."""


class Step(NamedTuple):
    """One call with its label; the calls of a list are those of one turn, a text is a message of the user."""

    tool: str
    arguments: dict[str, object]
    result: str
    waste: bool = False


Steps = list["Step | list[Step] | str"]


def again(step: Step, *, waste: bool) -> Step:
    return step._replace(waste=waste)


class World:
    """Answers that do not depend on the trajectory, and random ones."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.seed = seed

    def fact(self, *of: object, words: int = 14) -> str:
        names = ("harbour", "ledger", "copper", "violet", "meadow", "signal", "engine", "bishop", "lantern", "timber")
        rng = random.Random(f"{self.seed}/{of}")
        return " ".join(f"{rng.choice(names)}{rng.randint(1, 99)}" for _ in range(words))

    def pick(self, prefix: str, n: int = 30) -> str:
        return f"{prefix}{self.rng.randint(1, n)}"

    def search(self, query: str | None = None) -> Step:
        query = query or self.pick("harbour history ")
        return Step("search_docs", {"query": query}, f"1. {self.fact(query)}\n2. {self.fact(query, 2)}")

    def file(self, path: str | None = None, version: int = 0) -> Step:
        path = path or self.pick("src/part") + ".py"
        return Step("read_file", {"path": path}, self.fact(path, version, words=40))


def same_search(w: World) -> Steps:
    one = w.search()
    return [one, again(one, waste=True)]


def search_between_reads(w: World) -> Steps:
    one, file = w.search(), w.file()
    return [one, file, again(one, waste=True), again(file, waste=True)]


def other_searches(w: World) -> Steps:
    return [w.search(f"harbour history {n}") for n in w.rng.sample(range(1, 31), 3)]


def search_in_other_words(w: World) -> Steps:
    query = w.pick("harbour history ")
    return [w.search(query), w.search(query)._replace(arguments={"query": f"the {query} please"}, waste=True)]


def parallel_twins(w: World) -> Steps:
    one = w.search()
    return [[one, again(one, waste=True)]]


def look_edit_look(w: World) -> Steps:
    file = w.file()
    edit = Step("edit_file", {"path": file.arguments["path"], "old": "a", "new": w.pick("b", 10**6)}, "Applied.")
    seen = w.file(str(file.arguments["path"]), w.rng.randint(0, 1))
    return [file, edit, seen, *([again(seen, waste=True)] if w.rng.random() < 0.5 else [])]


def look_change_elsewhere_look(w: World) -> Steps:
    file = w.file()
    edit = Step("edit_file", {"path": "README.md", "old": "a", "new": w.pick("b", 10**6)}, "Applied.")
    return [file, edit, again(file, waste=True)]


def look_delegate_look(w: World) -> Steps:
    file = w.file()
    return [file, Step("delegate", {"task": w.pick("tidy ")}, "The helper is done."), again(file, waste=False)]


def look_because_asked(w: World) -> Steps:
    file = w.file()
    return [file, "I saved it just now, look again.", again(file, waste=False)]


def same_content_in_two_files(w: World) -> Steps:
    file = w.file()
    return [file, file._replace(arguments={"path": f"copy/{file.arguments['path']}"})]


def file_written_by_another_program(w: World) -> Steps:
    log = Step("read_file", {"path": w.pick("build", 10**6) + ".log"}, "Linking.")
    return [log, log, *([log._replace(result="Linking.\nReady.")] if w.rng.random() < 0.5 else [])]


def grep_case(w: World) -> Steps:
    name = w.pick("parseItem", 40)
    return [Step("grep_code", {"pattern": p}, "No matches found.") for p in (name, name.lower(), f'"{name}"')]


def grep_twice(w: World) -> Steps:
    name = w.pick("parseItem", 40)
    one = Step("grep_code", {"pattern": name, "in": "src"}, f"src/a.py:3: {name}({w.fact(name, words=3)})")
    return [one, w.file(), again(one, waste=True)]


def pages(w: World) -> Steps:
    found = [
        Step("list_orders", {"page": n}, f"orders {w.fact(n)}" if n < 3 else "no further orders") for n in (1, 2, 3)
    ]
    return [*found, Step("list_orders", {"page": 4}, "no further orders")]


def types_differ(w: World) -> Steps:
    return [Step("get_user", {"id": i}, "No such user.") for i in (17, "17", "0017")]


def poll(w: World) -> Steps:
    job = {"id": w.rng.randint(1, 10**6)}
    shapes = ('{{"done": false, "id": {id}}}', '{{"phase": "CREATE_IN_PROGRESS"}}', "{id} is at 40 of 100", "not yet")
    look = Step("job_status", job, w.rng.choice(shapes).format(**job))
    done = [look._replace(result=f"finished {w.fact(job['id'], words=3)}")] if w.rng.random() < 0.5 else []
    return [look] * w.rng.randint(2, 4) + done


def poll_with_work_between(w: World) -> Steps:
    look = Step("job_status", {"id": w.rng.randint(1, 10**6)}, '{"ready": false}')
    return [look, w.search(), look, w.file(), look]


def clock(w: World) -> Steps:
    now = Step("clock", {"zone": w.pick("Region/City", 5)}, f"09:{w.rng.randint(10, 59)}")
    return [now, w.search(), now]


def dice(w: World) -> Steps:
    return [Step("roll_die", {"sides": 2}, str(w.rng.randint(1, 2))) for _ in range(3)]


def ticker(w: World) -> Steps:
    name = w.pick("TICK", 25)
    price = 50 + len(w.fact(name)) + (w.rng.random() < 0.05)
    return [Step("stock_price", {"of": name}, f"{name} {price} {w.fact(name, words=2)}")] * w.rng.randint(2, 3)


def queue(w: World) -> Steps:
    return [Step("queue_depth", {"queue": w.pick("q", 4)}, f"{w.rng.randint(0, 2)} waiting") for _ in range(3)]


def mail(w: World) -> Steps:
    return [Step("inbox", {}, "no new mail"), w.search(), Step("inbox", {}, "no new mail")]


def snapshot(w: World) -> Steps:
    page = Step("page_snapshot", {}, f"page {w.fact(w.pick('p'), words=30)}")
    return [page, Step("click", {"ref": w.rng.randint(1, 99)}, "Clicked."), page, page]


def keys(w: World) -> Steps:
    return [Step("press_key", {"key": "Down"}, "ok")] * 3


def lamp(w: World) -> Steps:
    state = Step("room_state", {}, f"lamp on, {w.fact('room', words=20)}")
    return [state, Step("turn_on", {"name": w.pick("lamp", 9)}, "Turned on."), state]


def notes(w: World) -> Steps:
    return [Step("send_note", {"to": w.pick("u", 5), "text": "reminder"}, "Sent.")] * 2


def git(w: World) -> Steps:
    status = Step("git_status", {}, f"modified: {w.pick('part')}.py")
    steps = [status, Step("git_add", {"path": "."}, "done"), again(status, waste=False)]
    return [*steps, again(status, waste=True)] if w.rng.random() < 0.5 else steps


def tests_after_a_fix(w: World) -> Steps:
    run = Step("run_tests", {}, f"1 of 40 did not pass: test_{w.pick('x')}")
    edit = Step("edit_file", {"path": "a.py", "old": "a", "new": w.pick("b", 10**6)}, "Applied.")
    return [run, edit, run]


def flaky_tests(w: World) -> Steps:
    return [Step("run_tests", {"name": w.pick("t", 9)}, "1 of 1 did not pass")] * 2


def retry(w: World) -> Steps:
    page = {"url": w.pick("https://site.example/", 10**6)}
    busy = Step("fetch_page", page, w.rng.choice(("Request failed with status code 503", "Timed out after 30 s.")))
    end = [Step("fetch_page", page, w.fact(page["url"]))] if w.rng.random() < 0.5 else []
    return [busy, busy, *end]


def error_again(w: World) -> Steps:
    said = w.rng.choice(("404 Not Found", '{"isError": true, "text": "no such page"}', "Error: no such page"))
    lost = Step("fetch_page", {"url": w.pick("https://lost.example/", 10**6)}, said)
    return [lost, again(lost, waste=True), *([again(lost, waste=True)] if w.rng.random() < 0.5 else [])]


def error_after_a_change(w: World) -> Steps:
    query = Step("db_query", {"sql": f"SELECT a FROM {w.pick('t', 10**6)}"}, "ERROR: no such table")
    return [query, Step("db_update", {"sql": w.pick("CREATE TABLE x", 10**6)}, "done"), again(query, waste=False)]


def page_again(w: World) -> Steps:
    url = w.pick("https://doc.example/", 40)
    page = Step("fetch_page", {"url": url}, w.fact(url, words=60))
    return [page, w.search(), again(page, waste=True)]


def sums(w: World) -> Steps:
    a, b = w.rng.randint(1, 40), w.rng.randint(1, 40)
    one = Step("calculate", {"of": f"{a} * {b}"}, str(a * b))
    return [one, again(one, waste=True), Step("calculate", {"of": f"{b} * {a}"}, str(a * b), waste=True)]


def schema(w: World) -> Steps:
    table = w.pick("table", 30)
    one = Step("describe_table", {"name": table}, w.fact(table, words=20))
    rows = Step("db_query", {"sql": f"SELECT count(*) FROM {table}"}, str(len(w.fact(table))))
    return [one, rows, again(one, waste=True)]


def rows_after_an_update(w: World) -> Steps:
    rows = Step("db_query", {"sql": f"SELECT count(*) FROM {w.pick('table', 30)}"}, "12 rows")
    return [rows, Step("db_update", {"sql": w.pick("UPDATE x SET a = ", 10**6)}, "1 row"), rows]


def words(w: World) -> Steps:
    word = w.pick("word", 40)
    one = Step("translate", {"text": word, "to": "fr"}, w.fact(word, words=3))
    return [one, w.search(), again(one, waste=True)]


def weather(w: World) -> Steps:
    now = Step("weather_now", {"city": w.pick("city", 25)}, f"{w.rng.randint(3, 9)} degrees")
    return [now, now]


SCENARIOS: tuple[Callable[[World], Steps], ...] = (
    same_search, search_between_reads, other_searches, search_in_other_words, parallel_twins, look_edit_look,
    look_change_elsewhere_look, look_delegate_look, look_because_asked, same_content_in_two_files,
    grep_case, grep_twice, pages, types_differ, poll, poll_with_work_between, clock,
    dice, ticker, queue, mail, snapshot, keys, lamp, notes, git, tests_after_a_fix, flaky_tests, retry, error_again,
    error_after_a_change, page_again, sums, schema, rows_after_an_update, words, weather,
)  # fmt: skip


def trajectory(name: str, steps: Steps, rng: random.Random, *, measured: bool) -> tuple[Trajectory, list[bool]]:
    """A trajectory of these steps and the label of each call; a segment of reasoning has one token."""
    segments, calls, labels, entropy, turn = list[Segment](), list[ToolCall](), list[bool](), list[float](), 0

    def reason(text: str) -> None:
        start = len(entropy)
        entropy.extend([rng.uniform(0.1, 2.0)] if measured else [])
        segments.append(
            Segment(
                kind=SegmentKind.REASONING, start=start, stop=len(entropy), turn=turn, text=None if measured else text
            )
        )

    for step in steps:
        if isinstance(step, str):
            segments.append(
                Segment(kind=SegmentKind.PROMPT, start=len(entropy), stop=len(entropy), turn=turn, text=step)
            )
            continue
        reason("Let me see.")
        for call in step if isinstance(step, list) else [step]:
            status = CallStatus.of(call.result)
            arguments = json.dumps(call.arguments)
            calls.append(ToolCall(id=f"{len(calls)}", name=call.tool, arguments=arguments, turn=turn, result=call.result, status=status))  # fmt: skip  # noqa: E501
            labels.append(call.waste)
        turn += 1
    reason("That is all.")
    texts = ("word",) * len(entropy) if measured else None
    made = Trajectory(
        id=name,
        segments=tuple(segments),
        calls=tuple(calls),
        entropy=np.array(entropy) if measured else None,
        estimator="exact" if measured else "none",  # type: ignore[arg-type]
        token_texts=texts,
    )
    return made, labels


def labelled_set(seed: int, rounds: int, others_every: int = 9) -> tuple[list[Trajectory], list[bool]]:
    """Every scenario once a round, a file that others write in every `others_every`-th; and the labels of all calls."""
    world, rows, labels = World(seed), list[Trajectory](), list[bool]()
    for n in range(rounds):
        for scenario in SCENARIOS if n % others_every else (*SCENARIOS, file_written_by_another_program):
            made, found = trajectory(f"{scenario.__name__}/{n}", scenario(world), world.rng, measured=n % 2 == 0)
            rows.append(made)
            labels += found
    return rows, labels


def measure(seed: int, rounds: int, others_every: int) -> Iterator[str]:
    """Lines of the table: precision and recall with 95 % intervals (Clopper-Pearson)."""
    rows, labels = labelled_set(seed, rounds, others_every)
    kinds = len({call.name for row in rows for call in row.calls})
    size = f"{len(labels):,} calls of {kinds} tools in {len(rows):,} trajectories of {len(SCENARIOS) + 1} scenarios"
    yield f"{size}; {sum(labels):,} are waste."
    for title, tools in (("with tools.toml", TOOLS), ("without", None)):
        table = CallTable.of(rows, tools=tools)
        query = "SELECT trajectory, waste_level, verdict FROM calls ORDER BY key, index"
        found = list(zip(labels, table.sql(query).fetchall(), strict=True))
        yield ""
        yield f"{title:24} called waste   precision              recall"
        for name, levels in (("certified", ("certified",)), ("likely", ("likely",)), ("both", ("certified", "likely"))):
            has_verdict = {"certified": lambda v: v is not None, "likely": lambda v: v is None}.get(
                name, lambda v: True
            )
            called = [label for label, (_, level, _) in found if level in levels]
            real = [level in levels for label, (_, level, v) in found if label and v != "reduced" and has_verdict(v)]
            yield f"  {name:22} {len(called):12}   {rate(sum(called), len(called)):20}   {rate(sum(real), len(real))}"
        wrong = sorted(
            {str(row[0]).partition("/")[0] for label, row in found if row[1] in ("certified", "likely") and not label}
        )
        yield f"  accused in: {', '.join(wrong) or 'none'}"
        known = table.sql(
            "SELECT tool FROM tools WHERE kind_from = 'measured' AND kind = 'read' ORDER BY tool"
        ).fetchall()
        yield f"  measured repeatable: {', '.join(name for (name,) in known) or 'none'}"


def rate(hits: int, n: int) -> str:
    if not n:
        return "-"
    low, high = binomtest(hits, n).proportion_ci()
    return f"{hits / n:.3f} [{low:.3f}, {high:.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=63, help="how often each scenario is drawn")
    parser.add_argument(
        "--others-every", type=int, nargs="+", default=[9, 4, 1], help="rounds in which others write a file"
    )
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    lines = [f"python experiments/waste_labels.py --rounds {given.rounds}; {date.today()}, {platform.machine()}"]
    for every in given.others_every:
        for seed in given.seeds:
            lines += [
                "",
                f"== seed {seed}, others write a file in every {every}. round",
                *measure(seed, given.rounds, every),
            ]
    text = "\n".join(lines) + "\n"
    given.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
