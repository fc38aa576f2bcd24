"""Entry point `deltah`: an error of the user becomes one sentence and exit code 2, an interrupt one sentence and 130.

Only the standard library is imported here: what takes time to load is loaded where an interrupt is expected.
"""

from __future__ import annotations

import errno
import os
import sys
from contextlib import nullcontext

_STOPPED = {129: "the terminal was closed", 130: "interrupted", 143: "asked to end"}
"""Exit codes of a command that was stopped by a signal."""
_CONTINUED = {"demo", "train", "rollout", "probe"}
"""Commands that continue when they are run again."""


def main() -> None:
    """Run the command line.

    Exit codes: 0 done; 1 done, but records were lost (they are listed); 2 a user's error; 128 + n stopped by signal n.
    """
    code: int | str | None = 0
    try:
        _run()
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        code = 141
    except SystemExit as leaving:  # rich leaves with 1 where nobody reads its output
        code = 141 if isinstance(leaving.__context__, BrokenPipeError) else leaving.code
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        code = 2
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python tries once more at its end
        sys.stderr.write("error: the output cannot be written: no space is left; free some, or write elsewhere\n")
    if code in _STOPPED:
        hint = "; run the same command again to continue" if _CONTINUED.intersection(sys.argv[1:2]) else ""
        sys.stderr.write(f"{_STOPPED[code]}{hint}\n")
    sys.exit(code)


def _run() -> None:
    """Run the command; an error of the user becomes its message and exit code 2."""
    from rich.console import Console
    from rich.text import Text

    from deltah.cli.app import app
    from deltah.errors import DeltahError
    from deltah.parallel import stop_on_termination

    try:
        # Not under torchrun: it ends the processes of a group itself, and one that waits for another hears no signal.
        with nullcontext() if "RANK" in os.environ else stop_on_termination():
            app()
    except DeltahError as error:
        message = Text.assemble(("error:", "bold red"), f" {error}")  # brackets are no markup here
        Console(stderr=True).print(message, soft_wrap=True, highlight=False)
        sys.exit(2)


if __name__ == "__main__":
    main()
