"""Fuzzing of everything that reads outside input: one target for each parser, a corpus, and inputs that once failed.

`python -m tests.fuzz TARGET --seconds 60` runs one for long: guided by coverage where atheris is installed (the extra
`fuzz`), else by mutation alone. `test_replay.py` replays corpus and regressions with every run of the tests.
"""
