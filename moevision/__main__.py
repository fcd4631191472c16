"""`python -m moevision`."""

from moevision.cli.main import main

if __name__ == "__main__":
    main()
