"""How one decoder is led through one session, and which labels it is shown."""
