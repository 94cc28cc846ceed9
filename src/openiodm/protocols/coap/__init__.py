"""CoAP (RFC 7252, 7641, 7959) over UDP and DTLS: the carrier of LwM2M. `carrier.py` is what a protocol on top gets."""
