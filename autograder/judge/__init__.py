"""Trusted: draws hidden cases, asks the oracle, compares, and writes signed verdicts."""
