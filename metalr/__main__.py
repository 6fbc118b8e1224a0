"""`metalr` and `python -m metalr`: the version, or the command line of `metalr.cli`, which needs more than the core."""

import sys

import metalr


def main() -> None:
    """Print the version, or hand over to the command line."""
    if sys.argv[1:2] == ["--version"]:
        print(f"metalr {metalr.__version__}")
        return
    from metalr.cli import main as cli

    cli.main()


if __name__ == "__main__":
    main()
