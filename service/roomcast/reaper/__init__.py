"""Cleaning up after nodes that died: one Reaper, called by the command line and by a Lambda."""
