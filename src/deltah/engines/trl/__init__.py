"""TRL engine: stock `GRPOTrainer(tools=...)` with per-call entropy rewards; needs the extra `train`.

Import from the submodules (`deltah.engines.trl.trainer`); this package itself loads nothing heavy.
"""

from importlib.util import find_spec

from deltah.errors import missing_dependency

for _package in ("datasets", "torch", "transformers", "accelerate", "trl"):
    if find_spec(_package) is None:
        raise missing_dependency(_package, extra="train", purpose="Training, evaluating or rolling out a model")
