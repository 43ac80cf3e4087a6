"""`python -m kvpolicy` is the command `kvpolicy`."""

from __future__ import annotations

from kvpolicy.commands.interrupts import ends_at_once


def main() -> None:
    """Run the command line. Ctrl-C ends the process at once while its modules are imported."""
    with ends_at_once():
        from kvpolicy.cli import main as run

    run()


if __name__ == "__main__":
    main()
