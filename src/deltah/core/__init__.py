"""Distributions -> entropy -> segments -> ΔH -> reward -> advantage: numpy only, pure functions, frozen types."""
