"""Trust one certificate: that of an endpoint which one's own workspace runs."""

from __future__ import annotations

import ssl
from pathlib import Path


def trusting(certificate: Path) -> ssl.SSLContext:
    """For a client that trusts exactly this certificate, whatever name it is for. Raises OSError, ssl.SSLError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(certificate)
    context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    return context
