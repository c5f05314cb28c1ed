"""What an instructor works with beside the cycle: rosters, extensions, regrades, exports, explanations."""
