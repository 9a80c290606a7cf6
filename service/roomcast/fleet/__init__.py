"""The fleet of nodes: leases, connected clients, node info and orders."""
