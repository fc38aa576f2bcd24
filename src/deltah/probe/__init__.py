"""Counterfactual probe: what a call's result did, against no result and against an unrelated one.

`queries.Backend` is what a model is asked: by `server` of a server, by `deltah.engines.local_scorer` in memory.
"""
