"""Where recordings come from: archives and folders, downloads that are verified, what is pinned."""
