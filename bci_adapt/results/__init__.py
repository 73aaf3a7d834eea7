"""What a run found: tables, statistics, pages. Nothing here trains."""
