"""From files to labelled sessions. Nothing here learns."""
