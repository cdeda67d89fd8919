"""Turn inference.proto into inference.binpb, the description that is read when the endpoint starts.

A description and not generated code: it fits every version of protobuf.
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from inhouse.core.plugins import require

HERE = Path(__file__).parent
SOURCE = HERE / "inference.proto"
DESCRIPTION = HERE / "inference.binpb"


def compiled() -> bytes:
    """A serialised FileDescriptorSet."""
    require("dev", "grpc_tools")
    from grpc_tools import protoc

    with TemporaryDirectory() as folder:
        out = Path(folder, "out")
        status = protoc.main(["protoc", f"-I{HERE}", f"--descriptor_set_out={out}", str(SOURCE)])
        if status != 0:
            sys.exit(status)
        return out.read_bytes()


if __name__ == "__main__":
    DESCRIPTION.write_bytes(compiled())
