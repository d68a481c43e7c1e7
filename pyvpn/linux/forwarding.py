"""The sysctls that a hub needs, worked out from what this machine has now."""

from __future__ import annotations

import os


def hub_sysctls(tun_name: str, proc: str = "/proc") -> dict[str, str]:
    """The sysctls of :class:`pyvpn.linux.desired.SystemState` for a hub on ``tun_name``, in order.

    * The kernel forwards between clients, in both families.
    * It sends no ICMP redirects on the way from client to client, in at and out of the same TUN;
      the kernel sends them when either ``all`` or the interface says so.
    * A forwarding machine takes no router advertisements any more, which would take its own IPv6
      uplink down: where they were accepted so far, accept_ra becomes 2. That comes first, since
      the kernel throws away the learned default routes in the moment when forwarding goes on.

    What the kernel changes beside these (each interface's forwarding, accept_redirects) and who
    else needs them is the ledger's affair: :mod:`pyvpn.linux.ledger`. Without IPv6 its part is
    missing.

    :param proc: where procfs is; read only.
    """
    wanted = {}
    if _read(proc, "net/ipv6/conf/all/disable_ipv6") == "0":
        wanted.update(
            {f"net/ipv6/conf/{name}/accept_ra": "2" for name in _advertised(tun_name, proc)}
        )
        wanted["net/ipv6/conf/all/forwarding"] = "1"
    wanted["net/ipv4/conf/all/send_redirects"] = "0"
    wanted[f"net/ipv4/conf/{tun_name}/send_redirects"] = "0"
    wanted["net/ipv4/ip_forward"] = "1"
    return wanted


def forwards(proc: str = "/proc") -> bool:
    """Does this machine forward packets of either family, for whomever?

    :param proc: as for :func:`hub_sysctls`.
    """
    keys = ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding")
    return any(_read(proc, key) not in (None, "0") for key in keys)


def _advertised(tun_name: str, proc: str) -> list[str]:
    """The interfaces on which router advertisements count now and would not any more.

    Those with 2 already are named too: another hub of ours may have set it, and must not take it
    back while we run. If it was the administrator's own setting, nothing is changed or restored.
    """
    try:
        names = sorted(os.listdir(os.path.join(proc, "sys/net/ipv6/conf")))
    except OSError:
        return []
    return [
        name
        for name in names
        if name not in ("all", "default", "lo", tun_name)
        and _read(proc, f"net/ipv6/conf/{name}/disable_ipv6") == "0"
        and (
            _read(proc, f"net/ipv6/conf/{name}/accept_ra"),
            _read(proc, f"net/ipv6/conf/{name}/forwarding"),
        )
        in (("1", "0"), ("2", "0"), ("2", "1"))
    ]


def _read(proc: str, key: str) -> str | None:
    try:
        with open(os.path.join(proc, "sys", key), encoding="ascii") as stream:
            return stream.read().strip()
    except OSError:
        return None
