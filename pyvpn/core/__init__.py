"""The protocol, sans-I/O: bytes, numbers and ``now`` in, bytes and events out.

Nothing in here knows Twisted, sockets, files, clocks or randomness; all of them are arguments.
"""
