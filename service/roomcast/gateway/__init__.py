"""⑨ Sockets and HTTP: the outer face of a node."""
