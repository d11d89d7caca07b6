"""``python -m raydelta.cli``."""

from raydelta.cli import main

main()
