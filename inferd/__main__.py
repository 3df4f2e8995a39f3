"""`python -m inferd` and the `inferd` command."""

import sys

from inferd.working_directory import keep_out


def main() -> int:
    """The exit status."""
    keep_out()
    from inferd.cli.main import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
