"""Messages on the wire, generated from the ``.proto`` files beside this one by ``make proto``."""
