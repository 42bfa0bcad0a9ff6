"""Starts the processes: the embedded stack, the command line, the demonstration."""
