"""The network from here to other hosts: this host's address on the way, and its interface."""

import socket

import psutil


def towards(host: str) -> str:
    """Return this host's address on the way to another one; empty if there is no way. No packet is
    sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((host, 9))
        except OSError:
            return ""
        return probe.getsockname()[0]


def interface(address: str) -> str:
    """Return the network interface with an address of this host; empty if none has it."""
    found = psutil.net_if_addrs().items()
    return next((n for n, all_ in found if address in (a.address for a in all_)), "")
