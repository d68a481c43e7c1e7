"""Who answers this machine's questions for names, set and restored.

Standard library only, because the privileged child imports it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class NameServers:
    """The name servers that come with a TUN.

    :ivar device: the TUN.
    :ivar servers: their addresses, in the order to ask.
    :ivar search: domains to complete short names with, in order; and those are asked of
        ``servers`` whoever else is asked.
    :ivar exclusive: no other server is asked for anything, as all traffic goes through the tunnel.
        Otherwise, where the owner of /etc/resolv.conf can tell names apart (systemd-resolved), only
        names in ``search`` are asked of ``servers``; where it cannot, all names are, and the
        servers of before follow them in the list.
    """

    device: str
    servers: tuple[str, ...]
    search: tuple[str, ...] = ()
    exclusive: bool = False
