"""WireGuard's timers, in seconds (PROTOCOL 7), and how late a busy machine may be."""

REKEY_AFTER = 120
#: A handshake is tried again after 5 s and a third of one at most.
RETRY = 5.4
#: Data without an answer in return draws a keepalive.
KEEPALIVE = 10
#: Nothing heard after sending: new keys.
DEAD_AFTER = 15
LATE = 3.0
