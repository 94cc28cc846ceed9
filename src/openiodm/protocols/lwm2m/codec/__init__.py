"""Bytes to values and back for LwM2M: what CoAP carries in payloads and queries.

`values` has paths, content formats and the reading of raw values; `tlv`, `senml` the two structured formats; `content`
chooses by content format; `registration` is what a device says when it registers. Every decoder raises
`Lwm2mFormatError` and nothing else, whatever the bytes.
"""
