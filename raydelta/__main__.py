"""``python -m raydelta``."""

from raydelta.cli import main

main()
