"""The assembly: services that own ports, store, control socket and Linux state.

Only the core owns sessions; only these services own what has to be undone.
"""

from pyvpn.service.client import ClientService
from pyvpn.service.server import ServerService

__all__ = ["ClientService", "ServerService"]
