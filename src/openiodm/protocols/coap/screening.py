"""Which critical options are understood (RFC 7252 section 5.4.1): a message with another one must be refused. Pure."""

from typing import Final

from openiodm.protocols.coap.codec import CoapFormatError, Code, Message, Option, decode_block

# Length of the value, shortest and longest, and whether it may come more than once (section 5.10, RFC 7959 2.1).
_IN_REQUESTS: Final = {
    Option.URI_HOST: (1, 255, False),
    Option.URI_PORT: (0, 2, False),
    Option.URI_PATH: (0, 255, True),
    Option.URI_QUERY: (0, 255, True),
    Option.ACCEPT: (0, 2, False),
    Option.BLOCK2: (0, 3, False),
    Option.BLOCK1: (0, 3, False),
}
_BLOCKS: Final = frozenset({Option.BLOCK1, Option.BLOCK2})
_IN_ANSWERS: Final = _BLOCKS
_PROXY: Final = frozenset({Option.PROXY_URI, Option.PROXY_SCHEME})


def refusal_of(request: Message) -> Message | None:
    """The answer to a request with a critical option that is not understood: 4.02, for those of a proxy 5.05.

    A block option with the reserved size is 4.00 (RFC 7959 section 2.2).
    """
    last = -1
    for number, value in request.options:
        if number & 1:
            known = _IN_REQUESTS.get(number)  # type: ignore[call-overload]
            if known is None:
                if number in _PROXY:
                    return Message(Code.PROXYING_NOT_SUPPORTED)
                return Message(Code.BAD_OPTION, payload=f"option {number}".encode())
            shortest, longest, repeatable = known
            if not shortest <= len(value) <= longest or (number == last and not repeatable):
                return Message(Code.BAD_OPTION, payload=f"option {number}".encode())
            if number in _BLOCKS:
                try:
                    decode_block(value)
                except CoapFormatError as error:
                    return Message(Code.BAD_REQUEST, payload=str(error).encode())
        last = number
    return None


def understands_answer(answer: Message) -> bool:
    """Has it no critical option that is not understood?"""
    return all(not number & 1 or number in _IN_ANSWERS for number, _ in answer.options)
