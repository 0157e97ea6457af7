"""The feature server: Feast's own application, with a short way in front for online features."""

import quorin.http  # noqa: F401 - first, because it says how to install what is missing
