"""Calls of trajectories: one row a call, their waste, what dropping it would save, and their grades."""
