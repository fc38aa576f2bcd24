"""Waste that the text of a trajectory shows, call by call, and the verdict of text and entropy together."""

from deltah.calls.waste.classes import Waste, WasteLevel, waste_level, waste_of_calls

__all__ = ["Waste", "WasteLevel", "waste_level", "waste_of_calls"]
