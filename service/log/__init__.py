"""The channel log: resolving tails, appending with group commit, reading."""
