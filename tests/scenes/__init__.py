"""Real WireGuard programs and PyVPN at the ends of one tunnel: ``sudo make scenes``."""
