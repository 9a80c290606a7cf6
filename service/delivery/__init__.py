"""From the queue to the sockets: poller, dispatcher, hub."""
