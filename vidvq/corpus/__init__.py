"""Which videos a corpus is made of, each as a local file, and how it changes: shared by the stages."""
