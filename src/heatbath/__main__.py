"""The program `heatbath`, and `python -m heatbath`."""

import sys

EXTRA_OF = {  # the extra that brings a package, by the name under which it is imported
    "typer": "cli",
    "rich": "cli",
    "matplotlib": "plots",
    "scipy": "studies",
    "sklearn": "studies",
    "pooch": "studies",
    "tensorboard": "studies",
    "PIL": "studies",
    "networkx": "studies",
    "filelock": "studies",
    "arviz_stats": "studies",
}


def remedy(error: ModuleNotFoundError) -> str | None:
    """One sentence that says what to install; None where the missing module is of no extra."""
    package = (error.name or "").partition(".")[0]
    if package not in EXTRA_OF:
        return None
    return f"this needs the package {package}: pip install 'heatbath[{EXTRA_OF[package]}]'"


def main() -> None:
    """Run the command line, or say what to install."""
    try:
        from heatbath import cli

        cli.main()
    except ModuleNotFoundError as error:
        sentence = remedy(error)
        if sentence is None:
            raise
        sys.stderr.write(f"heatbath: {sentence}\n")
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
