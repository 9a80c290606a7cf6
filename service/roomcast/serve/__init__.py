"""One process: a node from its configuration, over AWS, started and ended in order."""
