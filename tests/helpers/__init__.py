"""Helpers of several tests, imported as ``tests.helpers.NAME``; scripts among them are run by path."""
