"""`vidvq generate`: trains a transformer on token shards, and generates, predicts, interpolates and fills in video."""
