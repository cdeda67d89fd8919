"""Addresses of this machine."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def stays_here(url: str) -> bool:
    """Whether a request to a URL does not leave this machine: then no proxy of the environment may see or break it."""
    try:
        return is_loopback(urlsplit(url).hostname or "")
    except ValueError:  # no URL, which the client says
        return False
