"""`python -m inferd_gateway` and the `inferd-gateway` command."""

import sys

from inferd.working_directory import keep_out


def main() -> int:
    """The exit status."""
    keep_out()
    from inferd_gateway.serve import main as serve

    return serve()


if __name__ == "__main__":
    sys.exit(main())
