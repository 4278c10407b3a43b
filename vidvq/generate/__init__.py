"""`vidvq generate`: trains a transformer on token shards, and generates, predicts, interpolates and fills in video.

Bottom up: ``network`` is the transformer, ``training`` fits it, ``sampling`` turns prompts into codes and files,
``stages`` run that as corpus jobs, and ``evaluation`` scores a generator. Beside them are settings, conditions and the
blanking of hidden pixels, which several of them use.
"""
