"""`python -m deltah` is the command `deltah`."""

from deltah.cli.main import main

if __name__ == "__main__":
    main()
