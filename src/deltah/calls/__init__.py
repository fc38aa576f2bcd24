"""Calls of trajectories: one row per call, their waste, what dropping it would save, and their grades."""
