"""TRL engine: stock `GRPOTrainer(tools=...)` with per-call entropy rewards.

Import from the submodules (`deltah.engines.trl.trainer`); this package itself loads nothing heavy.
"""
