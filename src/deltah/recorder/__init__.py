"""Recorder: an OpenAI-compatible pass-through that asks for log-probabilities and writes a log that deltah reads."""
