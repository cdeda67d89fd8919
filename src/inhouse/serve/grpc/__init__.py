"""The same endpoint over gRPC."""
