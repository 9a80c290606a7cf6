"""Who is in a channel, over all nodes."""
