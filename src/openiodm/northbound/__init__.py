"""The HTTP APIs that applications call: the published contract (compat) and what it cannot say (native)."""
