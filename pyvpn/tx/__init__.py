"""The Twisted layer: descriptors, datagram protocols and timers around the protocol core."""
