"""How the parts are put together and run: the `appa` command and the one-machine stack."""
