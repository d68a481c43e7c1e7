"""PyVPN: a self-hosted hub VPN in Python on Twisted."""

__version__ = "0.1.0"
