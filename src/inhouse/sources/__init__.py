"""Fetch what a project names: package indexes, model hubs, local files. One file per URI scheme."""

from inhouse.sources.resolve import Scheme, fetch, fingerprint, scheme_of

__all__ = ["Scheme", "fetch", "fingerprint", "scheme_of"]
