"""Counterfactual probe: what a call's result did, against no result and against an unrelated one, from the same state.

Import from the submodules. The probe defines what a model is asked (`queries.Backend`); `server` asks a server, and
`deltah.engines.local_scorer` a model in memory.
"""
