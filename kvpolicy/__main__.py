"""`python -m kvpolicy` is the command `kvpolicy`."""

from kvpolicy.cli import main

if __name__ == "__main__":
    main()
