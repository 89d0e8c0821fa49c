"""`python -m refgba`: the command line, where its command is not on the path."""

from refgba.cli import main

if __name__ == "__main__":
    main()
