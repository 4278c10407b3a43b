"""The inputs of the stages: listing videos, fetching them as local files, decoding planned items."""
