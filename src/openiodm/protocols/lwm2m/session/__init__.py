"""What LwM2M makes of a device's standing and of its words. Pure: no socket, no row.

`dialogue` has the words that the sessions share with the server; `firmware` is object 5, `software` object 9.
"""
