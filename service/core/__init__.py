"""The pure core: data in, data out. No clock, randomness, environment, logger, I/O or await."""
