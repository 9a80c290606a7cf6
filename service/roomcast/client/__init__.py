"""② One client: its connection and the parts of the connection.

The session (session.py) decides and the connection (connection.py) carries out. Three modules hold
the state that lasts: lifetime.py the timers, work.py the tasks and their order, subscriptions.py
the subscriptions. Each of the others carries out one kind of command, and is named after it.
"""
