"""From bytes to fields, in place: check the length once, then read by offset.

Nothing here allocates per frame or raises on bad bytes; `frame.dissect` is the one entry, and
answers `MALFORMED` for what it can't read.
"""
