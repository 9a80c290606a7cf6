"""In-memory twins of the ports, also for tests of applications."""
