"""Command line: one file a command, each thin over a library function."""
