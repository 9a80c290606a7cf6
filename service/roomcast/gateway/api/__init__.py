"""The server API of Centrifugo over HTTP, for back ends in the same network; server.py is the way
in.
"""
