"""Which videos a corpus is made of, and each as a local file: listing and fetching, shared by the stages."""
