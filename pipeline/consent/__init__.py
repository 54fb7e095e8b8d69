"""Whether an image may be used: one file for each opt-out signal, and the rule that combines them (`policy.py`).

All functions here are pure functions of bytes and strings: no requests, no files, no clock.
"""
