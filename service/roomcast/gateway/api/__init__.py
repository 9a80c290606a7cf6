"""The server API of Centrifugo over HTTP, for back ends in the same network. See server.py."""
