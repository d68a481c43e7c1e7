"""The TUN device: opened once by the service, read and written through its descriptor alone."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from collections.abc import Callable

import pytun
from attrs import frozen

from pyvpn.errors import StartError

VNET_HEADER_SIZE = 10
"""Bytes of virtio header before each packet, both ways (struct virtio_net_hdr)."""

DEVICE_NODE = "/dev/net/tun"

# linux/if_tun.h; the numbers stand here because not every release of pytun names them all.
_IFF_TUN = 0x0001
_IFF_NO_PI = 0x1000
_IFF_VNET_HDR = 0x4000
_IFF_TUN_EXCL = 0x8000
_TUNSETOFFLOAD = 0x400454D0
_TUNSETVNETHDRSZ = 0x400454D8
_SIOCSIFMTU = 0x8922  # linux/sockios.h

# TUN_F_CSUM, _TSO4 and _TSO6, _USO4 and _USO6. TUN_F_TSO_ECN is not among them: without it a
# super-packet never carries CWR, which only the first of its segments may have (RFC 3168).
_CSUM, _TSO, _USO = 0x01, 0x02 | 0x04, 0x20 | 0x40


@frozen
class Offloads:
    """What the kernel leaves to the other end of a TUN device.

    :ivar csum: packets come with a checksum to be finished.
    :ivar tso: TCP comes in super-packets of up to 64 KiB.
    :ivar uso: so does UDP that its sender cut with UDP_SEGMENT (kernel 6.2 and later).
    """

    csum: bool = False
    tso: bool = False
    uso: bool = False

    def __str__(self) -> str:
        names = ("csum", "tso", "uso")
        return ", ".join(name for name in names if getattr(self, name)) or "none"


class TUNDevice:
    """An open TUN device; it vanishes from the system, addresses and all, when it is closed.

    Reads and writes are made on :meth:`fileno` with ``os.readv`` and ``os.writev``; each carries
    one virtio header of :data:`VNET_HEADER_SIZE` bytes and one IP packet.

    :ivar name: the interface's name.
    :ivar offloads: what was agreed with the kernel.
    """

    def __init__(self, device: pytun.TunTapDevice) -> None:
        self._device: pytun.TunTapDevice | None = device
        self.name: str = device.name
        self.offloads = Offloads()

    def fileno(self) -> int:
        """The descriptor, or -1 once closed."""
        return -1 if self._device is None else int(self._device.fileno())

    def close(self) -> None:
        """Close the descriptor, which removes the interface. Harmless twice."""
        device, self._device = self._device, None
        if device is not None:
            device.close()


def open_tun(name: str, node: str = DEVICE_NODE, offload: bool = True) -> TUNDevice:
    """Make the TUN interface ``name``: non-blocking, not inherited, with virtio headers.

    :param offload: ask for super-packets and unfinished checksums, as far as the kernel has them.

    The name must be free: IFF_TUN_EXCL refuses to attach to an interface that somebody else
    made and left behind, whose addresses we would then remove at the end.

    :raises StartError: no /dev/net/tun, no privilege, or the name is taken or invalid.
    """
    flags = _IFF_TUN | _IFF_NO_PI | _IFF_VNET_HDR | _IFF_TUN_EXCL
    try:
        device = pytun.TunTapDevice(name=name, flags=flags, dev=node)
    except OSError as error:
        raise StartError(explain_tun_error(name, error, node)) from error
    tun = TUNDevice(device)
    try:
        # pytun opens it blocking and inheritable: both must go before anything forks.
        os.set_inheritable(tun.fileno(), False)
        os.set_blocking(tun.fileno(), False)
        fcntl.ioctl(tun.fileno(), _TUNSETVNETHDRSZ, struct.pack("i", VNET_HEADER_SIZE))
        if offload:
            tun.offloads = negotiate_offloads(tun.fileno())
    except OSError as error:
        tun.close()
        raise StartError(explain_tun_error(name, error, node)) from error
    return tun


def negotiate_offloads(fd: int, ioctl: Callable[[int, int, int], object] = fcntl.ioctl) -> Offloads:
    """Ask for the most, then for less; a kernel that knows none of it still carries packets.

    :returns: what the kernel took.
    :raises OSError: the device is broken: it refuses even to do nothing.
    """
    for wanted in (Offloads(True, True, True), Offloads(True, True)):
        bits = _CSUM | _TSO | (_USO if wanted.uso else 0)
        try:
            ioctl(fd, _TUNSETOFFLOAD, bits)
        except OSError:
            continue
        return wanted
    ioctl(fd, _TUNSETOFFLOAD, 0)
    return Offloads()


def set_mtu(name: str, mtu: int) -> None:
    """Set the MTU in bytes of an interface of our own, where no privileged child does it.

    :raises StartError: there is no such interface in this namespace, or no privilege.
    """
    request = struct.pack("16si20x", os.fsencode(name), mtu)  # struct ifreq, 40 bytes
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            fcntl.ioctl(control, _SIOCSIFMTU, request)
    except OSError as error:
        raise StartError(f"cannot set the MTU of {name} to {mtu}: {error.strerror}") from error


def explain_tun_error(name: str, error: OSError, node: str = DEVICE_NODE) -> str:
    """One line for a person: what is wrong with opening the TUN ``name``, and what helps."""
    number = error.errno
    if number == errno.ENOENT:
        return (
            f"{node} does not exist; load the kernel module with 'modprobe tun' as root"
            f" (in a container: pass the device in, as with --device {node})"
        )
    if number in (errno.ENODEV, errno.ENXIO):
        return f"the kernel has no TUN support behind {node}; run 'modprobe tun' as root"
    if number in (errno.EPERM, errno.EACCES):
        return f"no privilege to make a TUN interface ({node}); start as root, with sudo"
    if number == errno.EBUSY:
        return (
            f"an interface named {name} exists already;"
            " stop the program that made it, or choose another name with --tun"
        )
    if number in (errno.EINVAL, None):
        return (
            f"the kernel refuses {name!r} as the name of a TUN interface; choose another with --tun"
        )
    return f"cannot make the TUN interface {name}: {os.strerror(number)}"
