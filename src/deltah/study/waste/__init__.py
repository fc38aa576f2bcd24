"""Waste that the text of a trajectory shows, call by call, and the verdict of text and entropy together."""

from deltah.study.waste.classes import Verdict, Waste, verdict, waste_of_calls

__all__ = ["Verdict", "Waste", "verdict", "waste_of_calls"]
