"""Output directory of `vidvq decode`."""

# Its settings, written before the first clip.
DECODE_SETTINGS = "decode.json"
