"""How a receiver checks that a notice comes from its server: `python verify_notice.py SECRET SIGNATURE < body`."""

import hashlib
import hmac
import sys
import time


def is_genuine(secret: str, signature: str, body: bytes, now: float, tolerance_s: float = 300) -> bool:
    """`signature` is the header X-OpenIODM-Signature: `t=SECONDS,v1=HEX`. `body` is what was received, as it was."""
    parts = dict(part.partition("=")[::2] for part in signature.split(","))
    seconds = parts.get("t", "")
    if not (seconds.isascii() and seconds.isdigit()) or abs(now - int(seconds)) > tolerance_s:
        return False  # too old to be anything but a repeat of what somebody has recorded
    expected = hmac.new(secret.encode(), seconds.encode() + b"." + body, hashlib.sha256).hexdigest()
    return hmac.compare_digest(expected, parts.get("v1", ""))


if __name__ == "__main__":
    sys.exit(0 if is_genuine(sys.argv[1], sys.argv[2], sys.stdin.buffer.read(), time.time()) else 1)
