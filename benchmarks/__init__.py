"""Ours beside other libraries: one command each, results as JSON."""
