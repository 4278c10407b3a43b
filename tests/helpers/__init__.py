"""Shared test helpers, imported as ``tests.helpers.NAME``; scripts are run by path."""
