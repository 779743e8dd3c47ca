"""What holds for all tests."""

from hypothesis import settings

# A slow machine is no failure. Everything else stays as it is loaded, in CI the same examples every time.
settings.register_profile("unhurried", settings.default, deadline=None)
settings.load_profile("unhurried")
