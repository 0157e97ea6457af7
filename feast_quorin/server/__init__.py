"""The feature server: Feast's own application, with a short way in front for online features."""
