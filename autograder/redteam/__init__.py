"""Attacks on our own grader, kept as code: each must earn nothing, and a command proves it."""
