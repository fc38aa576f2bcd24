"""Which calls of a log made the model more certain, and which are waste?

    python examples/score_a_log.py

The same from a shell, with tables and savings:

    deltah score examples/lab/vllm.jsonl.zst --vocab-size 1394 --answers examples/lab/tasks.jsonl
"""

from pathlib import Path

import deltah

LAB = Path(__file__).parent / "lab"


def main() -> None:
    """Score the recorded log and print what a first look needs."""
    log, tasks, tools = LAB / "vllm.jsonl.zst", LAB / "tasks.jsonl", LAB / "tools.toml"
    calls = deltah.read_calls(log, vocab_size=1394, answers=tasks, tools=tools)
    print(f"{len(calls)} calls")
    print(calls.sql("SELECT verdict, count(*) AS calls FROM calls GROUP BY verdict ORDER BY calls DESC"))
    print(
        calls.sql("""
        SELECT tool, count(*) AS calls, round(avg(value), 3) AS mean_nats,
               count(*) FILTER (waste_level = 'certified') AS certified_waste
        FROM calls GROUP BY tool ORDER BY calls DESC""")
    )
    print("calls that are certainly waste:")
    for trajectory, index, tool, arguments, waste in calls.sql("""
        SELECT trajectory, "index", tool, arguments, waste FROM calls
        WHERE waste_level = 'certified' ORDER BY ALL LIMIT 5""").fetchall():
        print(f"  {trajectory}, call {index}: {tool} {arguments}  ({', '.join(waste)})")


if __name__ == "__main__":
    main()
