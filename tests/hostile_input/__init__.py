"""Hostile input of every kind: a right result or one clear line, never a traceback or a hang.

`MMOE_FUZZ_CASES=500 python -m pytest tests/hostile_input` is the long form: cases of each test.
"""
