"""Counterfactual probe: what a call's result did, against no result and against an unrelated one, from the same state.

Import from the submodules. Only `deltah.probe.local` needs torch, and loads it when a model is loaded.
"""
