"""A payload with its content format to values, and a value to the payload of a write."""

from openiodm.protocols.lwm2m.codec import senml, tlv
from openiodm.protocols.lwm2m.codec.values import (
    ContentFormat,
    Lwm2mFormatError,
    Path,
    Raw,
    format_path,
)


def decode(content_format: int | None, payload: bytes, base: Path) -> dict[Path, Raw]:
    """Path -> raw value of an answer to a request for `base`. Without a format it is text (LwM2M 1.0 section 6.4).

    Raises:
        Lwm2mFormatError: an unknown format, or bytes that are not of theirs.
    """
    match content_format:
        case ContentFormat.TLV:
            return tlv.values(payload, base)
        case ContentFormat.SENML_JSON:
            return senml.decode_json(payload)
        case ContentFormat.SENML_CBOR:
            return senml.decode_cbor(payload)
        case ContentFormat.OPAQUE:
            return {base: payload}
        case ContentFormat.TEXT | None:
            return {base: _text(payload)}
        case _:
            raise Lwm2mFormatError(f"content format {content_format} is not known here")


def _text(payload: bytes) -> str:
    try:
        return payload.decode("utf-8").rstrip("\0")
    except UnicodeDecodeError as error:
        raise Lwm2mFormatError("text that is no UTF-8") from error


def value(content_format: int | None, payload: bytes, path: Path) -> Raw:
    """The one value that a request for the resource `path` is answered with.

    Raises:
        Lwm2mFormatError: as `decode`, or the answer holds another resource.
    """
    found = decode(content_format, payload, path)
    if path not in found:
        raise Lwm2mFormatError(f"the answer holds no {format_path(path)}")
    return found[path]


def resources(content_format: int | None, payload: bytes, instance: Path) -> dict[int, Raw]:
    """Resource id -> value of an answer to a read of the object instance; those of several instances left out.

    Raises:
        Lwm2mFormatError: as `decode`.
    """
    found = decode(content_format, payload, instance)
    return {path[2]: raw for path, raw in found.items() if len(path) == 3 and path[:2] == instance}
