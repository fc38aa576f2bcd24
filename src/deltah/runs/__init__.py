"""Run directories: what a command was asked, how far it is, and what it made."""
