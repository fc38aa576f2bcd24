"""A signal of your own: how far entropy fell below the lowest point so far.

    python examples/own_signal.py

The command line finds it too, where the file can be imported:

    PYTHONPATH=examples deltah score examples/lab/vllm.jsonl.zst --vocab-size 1394 --signal own_signal:record_low
"""

from pathlib import Path

import numpy as np

import deltah
from deltah import SIGNALS, Interval, SegmentEntropies

LOG = Path(__file__).parent / "lab" / "vllm.jsonl.zst"


@SIGNALS.register("record_low", title="record low", unit="nats", meaning="H(r_k) less the lowest entropy before it")
def record_low(h: SegmentEntropies) -> Interval:
    """H(r_k) - min(H(r_0), ..., H(r_(k-1))): negative only where the model was never so certain before."""
    lowest = [np.fmin.accumulate(values)[:-1] for values in (h.point, h.lower, h.upper)]
    return Interval(h.point[1:] - lowest[0], h.lower[1:] - lowest[2], h.upper[1:] - lowest[1])


def main() -> None:
    """Compare the signal with the method's own, call by call and tool by tool."""
    longest = max(deltah.read_traces(LOG, vocab_size=1394), key=lambda trajectory: len(trajectory.rounds))
    for name in ("delta_h", "record_low"):
        signal = deltah.score(longest, name)
        print(f"{name:>10}, {signal.unit}: {signal.value.round(3)} {[verdict.value for verdict in signal.verdicts]}")
    calls = deltah.read_calls(LOG, signal="record_low", vocab_size=1394)
    by_tool = "SELECT tool, count(*) AS calls, avg((verdict = 'reduced')::INT) AS reduced FROM calls GROUP BY tool"
    print(calls.sql(by_tool))


if __name__ == "__main__":
    main()
