"""Checks a downloaded file against size and digests, as its bytes come."""

import hashlib

from openiodm.simulator.messages import Artifact


class Digests:
    """Takes in a file's bytes in order; `problem` compares them with what the server promised."""

    def __init__(self, artifact: Artifact) -> None:
        self._artifact = artifact
        self.restart()

    def restart(self) -> None:
        """Forget all bytes: the server begins again from the first."""
        self.size = 0
        self._sha1 = hashlib.sha1(usedforsecurity=False) if self._artifact.sha1 else None
        self._sha256 = hashlib.sha256() if self._artifact.sha256 else None

    def feed(self, piece: bytes) -> None:
        """Take in the next bytes."""
        self.size += len(piece)
        for digest in (self._sha1, self._sha256):
            if digest is not None:
                digest.update(piece)

    def problem(self) -> str | None:
        """What differs, as a sentence; None when all is as promised."""
        artifact = self._artifact
        if self.size != artifact.size:
            return f"size of {artifact.filename} is {self.size}, expected {artifact.size}"
        if self._sha256 is not None and self._sha256.hexdigest() != artifact.sha256:
            return f"sha256 mismatch of {artifact.filename}"
        if self._sha1 is not None and self._sha1.hexdigest() != artifact.sha1:
            return f"sha1 mismatch of {artifact.filename}"
        return None
