"""The functions of OpenSSL 3 that `dtls.py` calls, by ctypes: every argument and result declared, nothing else.

`PyDLL`, not `CDLL`: it keeps the interpreter's lock during a call. The calls take microseconds, and letting go of the
lock would let another thread in the middle of each of them, for up to the switch interval of 5 ms.
"""

import ctypes
from ctypes import c_char_p, c_int, c_long, c_size_t, c_uint, c_uint64, c_void_p
from functools import lru_cache
from typing import Any, Final

LIBRARY: Final = "libssl.so.3"
"""Debian's package libssl3; its interface is stable for all of OpenSSL 3."""

DTLS1_2_VERSION: Final = 0xFEFD
SSL_OP_NO_QUERY_MTU: Final = 0x1000
SSL_OP_COOKIE_EXCHANGE: Final = 0x2000
SSL_OP_NO_TICKET: Final = 0x4000
SSL_OP_CIPHER_SERVER_PREFERENCE: Final = 0x400000
SSL_OP_NO_ENCRYPT_THEN_MAC: Final = 0x80000
SSL_OP_NO_RENEGOTIATION: Final = 0x40000000
SSL_CTRL_SET_MTU: Final = 17
SSL_CTRL_SET_SESS_CACHE_MODE: Final = 44
SSL_CTRL_SET_MAX_SEND_FRAGMENT: Final = 52
DTLS_CTRL_HANDLE_TIMEOUT: Final = 74
SSL_CTRL_SET_MIN_PROTO_VERSION: Final = 123
SSL_CTRL_SET_MAX_PROTO_VERSION: Final = 124
BIO_CTRL_RESET: Final = 1
BIO_C_SET_BUF_MEM_EOF_RETURN: Final = 130
SSL_ERROR_WANT_READ: Final = 2
SSL_ERROR_WANT_WRITE: Final = 3

PskServer = ctypes.CFUNCTYPE(c_uint, c_void_p, c_char_p, c_void_p, c_uint)
"""ssl, identity, buffer for the key, its size: length of the key, 0 for an unknown identity."""
PskClient = ctypes.CFUNCTYPE(c_uint, c_void_p, c_char_p, c_void_p, c_uint, c_void_p, c_uint)
"""ssl, hint, buffer for the identity, its size, buffer for the key, its size: length of the key."""
CookieGenerate = ctypes.CFUNCTYPE(c_int, c_void_p, c_void_p, c_void_p)
"""ssl, buffer for the cookie (255 bytes), pointer to its length: 1."""
CookieVerify = ctypes.CFUNCTYPE(c_int, c_void_p, c_void_p, c_uint)
"""ssl, cookie, its length: 1 when it is ours."""

_SIGNATURES: Final[dict[str, tuple[Any, list[Any]]]] = {
    "DTLS_server_method": (c_void_p, []),
    "DTLS_client_method": (c_void_p, []),
    "SSL_CTX_new": (c_void_p, [c_void_p]),
    "SSL_CTX_free": (None, [c_void_p]),
    "SSL_CTX_ctrl": (c_long, [c_void_p, c_int, c_long, c_void_p]),
    "SSL_CTX_set_options": (c_uint64, [c_void_p, c_uint64]),
    "SSL_CTX_set_cipher_list": (c_int, [c_void_p, c_char_p]),
    "SSL_CTX_set_psk_server_callback": (None, [c_void_p, PskServer]),
    "SSL_CTX_set_psk_client_callback": (None, [c_void_p, PskClient]),
    "SSL_CTX_set_cookie_generate_cb": (None, [c_void_p, CookieGenerate]),
    "SSL_CTX_set_cookie_verify_cb": (None, [c_void_p, CookieVerify]),
    "SSL_new": (c_void_p, [c_void_p]),
    "SSL_free": (None, [c_void_p]),
    "SSL_ctrl": (c_long, [c_void_p, c_int, c_long, c_void_p]),
    "SSL_set_bio": (None, [c_void_p, c_void_p, c_void_p]),
    "SSL_set_accept_state": (None, [c_void_p]),
    "SSL_set_connect_state": (None, [c_void_p]),
    "SSL_do_handshake": (c_int, [c_void_p]),
    "SSL_is_init_finished": (c_int, [c_void_p]),
    "SSL_read": (c_int, [c_void_p, c_void_p, c_int]),
    "SSL_write": (c_int, [c_void_p, c_char_p, c_int]),
    "SSL_shutdown": (c_int, [c_void_p]),
    "SSL_get_error": (c_int, [c_void_p, c_int]),
    "SSL_get_current_cipher": (c_void_p, [c_void_p]),
    "SSL_CIPHER_get_name": (c_char_p, [c_void_p]),
    "DTLSv1_listen": (c_int, [c_void_p, c_void_p]),
    # libcrypto's, found through libssl, which is linked with it.
    "BIO_s_mem": (c_void_p, []),
    "BIO_new": (c_void_p, [c_void_p]),
    "BIO_free": (c_int, [c_void_p]),
    "BIO_up_ref": (c_int, [c_void_p]),
    "BIO_ctrl": (c_long, [c_void_p, c_int, c_long, c_void_p]),
    "BIO_read": (c_int, [c_void_p, c_void_p, c_int]),
    "BIO_write": (c_int, [c_void_p, c_char_p, c_int]),
    "BIO_ADDR_new": (c_void_p, []),
    "BIO_ADDR_free": (None, [c_void_p]),
    "ERR_clear_error": (None, []),
    "ERR_get_error": (c_uint64, []),
    "ERR_error_string_n": (None, [c_uint64, c_void_p, c_size_t]),
    "OpenSSL_version": (c_char_p, [c_int]),
}


class DtlsUnavailable(Exception):
    """There is no OpenSSL here that DTLS could stand on; the text says what to do."""


@lru_cache(maxsize=1)
def library() -> Any:
    """The library with all signatures declared; loaded once, at the first call.

    Raises:
        DtlsUnavailable: it is not on this machine, or lacks a function.
    """
    try:
        lib = ctypes.PyDLL(LIBRARY)
    except OSError as error:
        raise DtlsUnavailable(f"DTLS needs OpenSSL 3 ({LIBRARY}; Debian's package libssl3): {error}") from error
    for name, (result, arguments) in _SIGNATURES.items():
        try:
            function = getattr(lib, name)
        except AttributeError as error:
            raise DtlsUnavailable(f"{LIBRARY} has no {name}") from error
        function.restype = result
        function.argtypes = arguments
    return lib


def version() -> str:
    """`OpenSSL 3.0.19 27 Jan 2026`: what a log wants to say at the start."""
    return bytes(library().OpenSSL_version(0)).decode("ascii", "replace")


def last_error() -> str:
    """The oldest error of OpenSSL's queue as text, and an empty queue; empty when there was none."""
    lib = library()
    number = lib.ERR_get_error()
    if not number:
        return ""
    buffer = ctypes.create_string_buffer(256)
    lib.ERR_error_string_n(number, buffer, len(buffer))
    lib.ERR_clear_error()
    return buffer.value.decode("ascii", "replace")
