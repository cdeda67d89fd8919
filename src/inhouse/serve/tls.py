"""The certificate and the key of the endpoint, looked at before anything is loaded."""

from __future__ import annotations

import logging
import re
import ssl
import stat
import time
from dataclasses import dataclass
from pathlib import Path

from inhouse.core.errors import UserError
from inhouse.release.settings import TlsParams
from inhouse.remote.trust import trusting

CERTIFICATE = re.compile(r"-----BEGIN (?:TRUSTED |X509 )?CERTIFICATE-----")
KEY = re.compile(r"-----BEGIN (?:[A-Z]+ )?PRIVATE KEY-----")
LOCKED_KEY = re.compile(r"-----BEGIN ENCRYPTED PRIVATE KEY-----|^Proc-Type: 4,ENCRYPTED", re.M)
NOT_YET_VALID, EXPIRED = 9, 10  # X509_V_ERR_CERT_NOT_YET_VALID, X509_V_ERR_CERT_HAS_EXPIRED
SOON_DAYS = 14
ROUNDS = 4  # of a handshake in memory; TLS 1.3 needs two
DAY_S = 86_400
log = logging.getLogger("inhouse.serve")


@dataclass(frozen=True)
class Secured:
    """What both faces need: the context for HTTP, and the PEM texts, as gRPC wants them."""

    path: Path  # of the certificate
    context: ssl.SSLContext
    certificate: bytes
    key: bytes


def secure(asked: TlsParams) -> Secured:
    """Read the two files and try them: the certificate is valid now, and the key is the one that belongs to it.

    Raises serve.tls_unreadable, serve.tls_no_certificate, serve.tls_no_key, serve.tls_locked, serve.tls_mismatch,
    serve.tls_unusable, serve.tls_not_yet_valid, serve.tls_expired.
    """
    certificate, key = _read(asked.cert), _read(asked.key)
    if not CERTIFICATE.search(certificate):
        raise UserError("serve.tls_no_certificate", path=asked.cert)
    if LOCKED_KEY.search(key):
        raise UserError("serve.tls_locked", path=asked.key)
    if not KEY.search(key):
        raise UserError("serve.tls_no_key", path=asked.key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(asked.cert, asked.key, password=str)  # "" and no question at the terminal
    except (ssl.SSLError, OSError) as error:
        reason = getattr(error, "reason", None) or str(error)
        if reason == "KEY_VALUES_MISMATCH":
            raise UserError("serve.tls_mismatch", cert=asked.cert, key=asked.key) from None
        raise UserError("serve.tls_unusable", cert=asked.cert, problem=reason) from None
    _warn(asked, _valid_until(asked, context))
    return Secured(asked.cert.absolute(), context, certificate.encode(), key.encode())


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError("serve.tls_unreadable", path=path, problem=error.strerror or str(error)) from None
    except UnicodeDecodeError:  # DER, or no certificate at all
        return ""


def _valid_until(asked: TlsParams, context: ssl.SSLContext) -> float:
    """Seconds since 1970; a client in memory shakes hands with the server, as those that come will."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    try:
        client = trusting(asked.cert).wrap_bio(to_client, to_server)
        server = context.wrap_bio(to_server, to_client, server_side=True)
        for _ in range(ROUNDS):
            for side in (client, server):
                try:
                    side.do_handshake()
                except ssl.SSLWantReadError:
                    continue
        return ssl.cert_time_to_seconds(str((client.getpeercert() or {})["notAfter"]))
    except ssl.SSLCertVerificationError as error:
        if error.verify_code == EXPIRED:
            raise UserError("serve.tls_expired", path=asked.cert) from None
        if error.verify_code == NOT_YET_VALID:
            raise UserError("serve.tls_not_yet_valid", path=asked.cert) from None
        raise UserError("serve.tls_unusable", cert=asked.cert, problem=error.verify_message) from None
    except (ssl.SSLError, KeyError, ValueError) as error:
        problem = getattr(error, "reason", None) or str(error)
        raise UserError("serve.tls_unusable", cert=asked.cert, problem=problem) from None


def _warn(asked: TlsParams, until: float) -> None:
    days = (until - time.time()) / DAY_S
    if days < SOON_DAYS:
        log.warning("the certificate %s is valid for %.0f more days: renew it and restart", asked.cert, days)
    mode = asked.key.stat().st_mode
    if mode & (stat.S_IRGRP | stat.S_IROTH | stat.S_IWGRP | stat.S_IWOTH):
        log.warning("others than its owner may read or change the key %s: chmod 600 %s", asked.key, asked.key)
