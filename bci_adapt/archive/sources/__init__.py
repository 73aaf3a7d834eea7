"""Sources: where NWB files come from. A file here with a `Source` in it is found."""
