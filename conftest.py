"""Every distribution's tests use the kit's fixtures."""

from hypothesis import settings

pytest_plugins = ["containerd_shimkit.testing.fixtures"]

# Its limit of 200 ms for one example fails on a busy machine; pytest-timeout watches over all.
settings.register_profile("workspace", deadline=None)
settings.load_profile("workspace")
