"""Whether the web lets us use an image: one file for each signal, and the one rule that joins them (`policy.py`).

Everything here is a pure function of bytes and strings: no requests, no files, no clock.
"""
