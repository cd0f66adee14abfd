"""The public test kit: what tests of the kit and of every shim are built with."""
