"""② One client: its connection, and what each part of it does.

The session (session.py) decides and the connection (connection.py) carries out. Three parts own
what lasts: lifetime.py the timers, work.py the tasks and their order, subscriptions.py the state of
each subscription. The others carry out one kind of command each, and are named after it.
"""
