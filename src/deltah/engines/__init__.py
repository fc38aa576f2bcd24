"""Adapters to training engines: beside the lab the only importers of heavy packages. No arithmetic here."""
