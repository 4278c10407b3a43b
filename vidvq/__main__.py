"""`python -m vidvq` is `vidvq`."""

from vidvq.cli import main

if __name__ == "__main__":
    main()
