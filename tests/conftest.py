"""Settings of the whole suite."""

from hypothesis import settings

# Tests never judge wall times: a busy machine is no bug.
settings.register_profile("no-deadline", deadline=None)
settings.load_profile("no-deadline")
